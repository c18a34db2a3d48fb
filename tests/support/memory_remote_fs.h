// MemoryRemoteFs: a RemoteFs whose "sandbox" is a tree in this process. For the tests of cache/ and fuse/, and the yardstick
// of the contract suite. POSIX semantics; the Inside... functions are what programs in the sandbox do: not counted, no
// permission checks, and nobody is told but by InsideTell.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "transport/remote_fs.h"

namespace e2bfs::testing {

struct MemoryRemoteFsOptions {
  // All names of a hard-linked file have one FileId; else each name has its own.
  bool hard_links_share_identity = true;
  // A FileId goes along with a rename; else a rename makes a new one (reported in Changed::object), also for what is below.
  bool identities_survive_renames = true;
  // A handle is the open file, wherever it is now; else it is whatever Node leads to at each use (ENOENT, ESTALE).
  bool handles_survive = true;
  bool enforce_permissions = true;
  bool xattrs = true;                // else ENOTSUP
  bool changed_carries_attributes = true;  // else Changed comes back empty
  bool listings_carry_link_targets = true;
  bool attributes_carry_xattr_names = true;
  bool lists_deep = true;            // else ListDeep is ENOTSUP
  bool reads_files = true;           // else ReadFiles is ENOTSUP
  bool makes_objects = true;         // else MakeObjects is ENOTSUP
  bool ranges = true;                // Seek, Allocate and CopyRange; else ENOTSUP
  int64_t copy_bytes = INT64_MAX;    // CopyRange copies at most so much at once
  bool early_stores = true;          // BeginStore works; else it returns null
  bool opens_soon = true;            // OpenSoon works; else it returns 0
  bool versions_are_lasting = true;
  int64_t clock_seconds = 0;         // what it says that its clock was; 0: not known
  bool watches = false;              // says that directories are watched; nothing is told, but by InsideTell
  uint32_t uid = 1000, gid = 1000;   // the acting user; 0 may do everything
  std::string root = "/home/user";
  size_t read_chunk_bytes = 1 << 20;  // a stream gives at most so many bytes at once
  int64_t space_bytes = INT64_MAX;   // content beyond it is ENOSPC
};

// What a Store asked for, in the order of the calls that were made (also the failed ones).
struct StoreRecord {
  std::string path;
  std::vector<transport::Extent> extents;
  std::optional<int64_t> size, cut_to;
  std::optional<transport::Extent> append;
  transport::AttributeChange attributes;
  bool fresh = false;
  int64_t early_bytes = 0;   // that BeginStore's had brought
  int64_t beside = 0;        // others that BeginStore had made for any file, and that had not ended
};

// Thread-safe.
class MemoryRemoteFs : public transport::RemoteFs {
 public:
  explicit MemoryRemoteFs(MemoryRemoteFsOptions options = {});
  ~MemoryRemoteFs() override;

  // --- counters. Names are those of RemoteFs' functions ("Stat", "Store"...); "ReadChunk" counts ByteStream::Read.
  int64_t calls(const std::string& function) const;
  int64_t total_calls() const;  // those that a caller waits for: without ReadChunk, OpenSoon and Close
  std::map<std::string, int64_t> all_calls() const;
  void ResetCalls();
  int64_t bytes_read() const;   // content that went out by streams
  std::vector<StoreRecord> stores() const;
  int64_t open_handles() const;
  int64_t early_bytes() const;  // kept aside by BeginStore's that have not ended
  int64_t early_stores() const; // their number

  // --- the sandbox's side. Paths as in RemoteFs. False: impossible (no parent, wrong type). Times: the sandbox's clock
  // grows by at least a nanosecond with each change.
  bool InsideWrite(const std::string& path, const std::string& content);    // makes it or replaces its content in place
  bool InsideReplace(const std::string& path, const std::string& content);  // another inode renamed over it
  bool InsideMakeDirectory(const std::string& path, uint32_t permissions = 0755);
  bool InsideMakeSymlink(const std::string& path, const std::string& target);
  bool InsideMakeFifo(const std::string& path);
  bool InsideMakeLink(const std::string& existing, const std::string& path);
  bool InsideRemove(const std::string& path);  // recursive
  bool InsideRename(const std::string& from, const std::string& to);
  bool InsideSetPermissions(const std::string& path, uint32_t permissions);
  bool InsideSetOwner(const std::string& path, uint32_t uid, uint32_t gid);
  bool InsideSetTimes(const std::string& path, timespec mtime);
  // A file whose size is shown as 0 although it has content, as in /proc.
  bool InsideMakeSizeless(const std::string& path, const std::string& content);
  bool InsideExists(const std::string& path) const;
  std::optional<std::string> InsideRead(const std::string& path) const;      // content, or a link's text
  std::vector<std::string> InsideList(const std::string& path) const;        // sorted
  std::optional<transport::Attributes> InsideStat(const std::string& path) const;
  // Whoever listens is told what the path leads to now, as if its directory were watched.
  void InsideTell(const std::string& path);
  transport::ChangeListener* listener() const { return listener_; }
  // What InsideStat and everybody else see as current time; never goes back.
  void AdvanceClock(int64_t nanoseconds);

  // --- RemoteFs
  const transport::Description& description() const override;
  void SetListener(transport::ChangeListener* listener) override { listener_ = listener; }
  Result<transport::Attributes> Stat(const transport::Node& node, const OpContext& ctx) override;
  Result<transport::Attributes> Lookup(const transport::Name& name, const OpContext& ctx) override;
  Result<transport::Listing> List(const transport::Node& directory, const OpContext& ctx) override;
  Result<std::vector<transport::DeepListing>> ListDeep(const transport::Node& directory, const transport::DeepQuestion& question,
                                                       const OpContext& ctx) override;
  Result<std::string> ReadLink(const transport::Node& node, const OpContext& ctx) override;
  Result<transport::FsStatistics> StatFs(const OpContext& ctx) override;
  Result<transport::Changed> MakeDirectory(const transport::Name& name, uint32_t permissions, const OpContext& ctx) override;
  Result<transport::Changed> MakeNode(const transport::Name& name, transport::FileType type, uint32_t permissions, uint32_t major,
                                      uint32_t minor, const OpContext& ctx) override;
  Result<transport::Changed> MakeSymlink(const transport::Name& name, const std::string& target, const OpContext& ctx) override;
  Result<transport::Changed> MakeLink(const transport::Node& existing, const transport::Name& name, const OpContext& ctx) override;
  Result<transport::Changed> Unlink(const transport::Name& name, const OpContext& ctx) override;
  Result<transport::Changed> RemoveDirectory(const transport::Name& name, const OpContext& ctx) override;
  Result<transport::Changed> Rename(const transport::Name& from, const transport::Name& to, uint32_t flags,
                                    const OpContext& ctx) override;
  Result<transport::Changed> SetAttributes(const transport::Node& node, transport::Handle handle,
                                           const transport::AttributeChange& change, const OpContext& ctx) override;
  Result<transport::MadeObjects> MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext& ctx) override;
  Result<std::string> GetXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const OpContext& ctx) override;
  Result<std::vector<std::string>> ListXattrs(const transport::Node& node, transport::Handle handle, const OpContext& ctx) override;
  Result<transport::Changed> SetXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const std::string& value, int flags,
                        const OpContext& ctx) override;
  Result<transport::Changed> RemoveXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const OpContext& ctx) override;
  Result<transport::Opened> Open(const transport::Node& node, const transport::OpenRequest& request, const OpContext& ctx) override;
  transport::Handle OpenSoon(const transport::Node& node, const transport::OpenRequest& request) override;
  Result<transport::Opened> Create(const transport::Name& name, const transport::CreateRequest& request,
                                   const OpContext& ctx) override;
  Result<std::unique_ptr<transport::ByteStream>> Read(transport::Handle handle, const transport::Node& node,
                                                      const transport::Attributes* version, transport::Extent range,
                                                      const OpContext& ctx) override;
  Result<std::vector<transport::FileContent>> ReadFiles(const std::vector<transport::KnownFiles>& files, const OpContext& ctx) override;
  Result<transport::Attributes> Store(transport::Handle handle, const transport::Node& node, const transport::StoreRequest& request,
                                      const OpContext& ctx) override;
  // "EarlyWrite" counts its writes.
  Result<std::unique_ptr<transport::EarlyStore>> BeginStore(transport::Handle handle, const transport::Node& node, bool fresh, const OpContext& ctx) override;
  Result<int64_t> Seek(transport::Handle handle, const transport::Node& node, int64_t offset, transport::SeekTarget target,
                       const OpContext& ctx) override;
  Result<transport::Attributes> Allocate(transport::Handle handle, const transport::Node& node, uint32_t mode,
                                         transport::Extent range, const OpContext& ctx) override;
  Result<transport::Copied> CopyRange(transport::Handle from, const transport::Node& from_node, int64_t from_offset,
                                      transport::Handle to, const transport::Node& to_node, transport::Extent target,
                                      const OpContext& ctx) override;
  Result<transport::Attributes> StatHandle(transport::Handle handle, const transport::Node& node, const OpContext& ctx) override;
  Result<void> Sync(transport::Handle handle, const transport::Node& node, const OpContext& ctx) override;
  void Close(transport::Handle handle, const OpContext& ctx) override;
  std::vector<std::pair<std::string, std::string>> Status() const override;

 private:
  struct Tree;  // shared with streams, which may outlive this object
  class Early;
  std::shared_ptr<Tree> tree_;
  std::atomic<transport::ChangeListener*> listener_{nullptr};
};

}  // namespace e2bfs::testing
