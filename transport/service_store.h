// Store of the service tier: stage the new bytes, then one command that puts them into the inode (service_fs.h says why).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

class ServiceSession;

// One command's share of a store.
struct StorePiece {
  std::vector<Extent> extents;
  std::vector<Extent> zeros;    // where the file was cut and nothing written: what it has there reads as zeros afterwards
  std::optional<Extent> append;
  std::optional<int64_t> size;  // the file's size afterwards (before the append)
  bool last = false;            // the attributes go with it
  int64_t bytes() const;
};

// A file that may be torn is filled in pieces of this size, so that the sandbox never needs much space for staging.
inline constexpr int64_t kStorePieceBytes = int64_t{64} << 20;

// EINVAL for extents that are not sorted, disjoint, positive and below the size. At least one piece.
Result<std::vector<StorePiece>> PlanStore(const StoreRequest& request);

// Into a new file of the stage directory: its absolute path. `ctx` is renewed.
Result<std::string> StageContent(ServiceSession& session, const StorePiece& piece, ContentSource& source, OpContext& ctx);

// "uid:gid", "uid", ":gid" or "-"; five octal digits or "-".
std::string OwnerArgument(const AttributeChange& change);
std::string ModeArgument(const std::optional<uint32_t>& permissions);
// Of what a shell makes: the umask, and the mode that is set after it, if creation with `asked_for` cannot give all the bits, or "-".
std::string UmaskArgument(uint32_t permissions);
std::string ModeBeyondCreation(uint32_t permissions, uint32_t asked_for);

// `by_writer`: it was opened for writing, so that its mode does not matter now. The attributes afterwards.
Result<Attributes> StoreContent(ServiceSession& session, const Node& node, bool by_writer, const StoreRequest& request,
                                const OpContext& ctx);

}  // namespace e2bfs::transport
