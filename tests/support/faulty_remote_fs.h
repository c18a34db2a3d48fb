// FaultyRemoteFs: another RemoteFs with chosen calls failing, waiting, standing still, or their streams cut.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "transport/remote_fs.h"

namespace e2bfs::testing {

// Acts on calls of `function` (RemoteFs' name, "ReadChunk" for ByteStream::Read, empty: any call but Close and ReadChunk) after
// the first `skip` of them, `count` times (-1: until cleared).
struct RemoteFault {
  enum Action {
    kFail,       // `error` without doing it
    kDoAndFail,  // done, then `error` as if the answer had been lost
    kDelay,      // done after delay_ms
    kStall,      // waits for Release or Clear (then goes on), the context's deadline (ETIMEDOUT) or its stop token (EINTR)
    kStallAfter, // done, then waits as kStall does; after a deadline or stop the answer is lost
    kCut,        // Read: the stream fails with `error` (EIO/kBroken) after `bytes` bytes of content
  };
  std::string function;
  int skip = 0;
  int count = 1;
  Action action = kFail;
  Error error{EIO, ErrorKind::kBroken, "injected", 0, ""};
  int64_t delay_ms = 0;
  int64_t bytes = 0;
  std::string path_contains;  // of Node/Name; empty: any
};

// Thread-safe. Counts calls as MemoryRemoteFs does.
class FaultyRemoteFs : public transport::RemoteFs {
 public:
  explicit FaultyRemoteFs(transport::RemoteFs& inner);
  ~FaultyRemoteFs() override;

  void Add(RemoteFault fault);
  // Shorthand: the k-th call (1 is the next) of `function` fails.
  void FailNth(const std::string& function, int k, int errno_value, ErrorKind kind = ErrorKind::kErrno);
  void Clear();                       // forgets all faults and lets go what is stalled
  void Release();                     // lets go what is stalled now
  int64_t stalled() const;            // calls standing still now
  // Blocks until that many calls stand still; false after 30 s.
  bool WaitForStalled(int64_t count) const;
  int64_t calls(const std::string& function) const;
  int64_t total_calls() const;        // without ReadChunk and Close (and OpenSoon)
  int64_t max_calls_at_once(const std::string& function) const;
  void ResetCalls();

  const transport::Description& description() const override;
  void SetListener(transport::ChangeListener* listener) override { inner_.SetListener(listener); }
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
  // Its path is those of all the objects, a line each.
  Result<transport::MadeObjects> MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext& ctx) override;
  Result<std::string> GetXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const OpContext& ctx) override;
  Result<std::vector<std::string>> ListXattrs(const transport::Node& node, transport::Handle handle, const OpContext& ctx) override;
  Result<transport::Changed> SetXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const std::string& value, int flags,
                        const OpContext& ctx) override;
  Result<transport::Changed> RemoveXattr(const transport::Node& node, transport::Handle handle, const std::string& name, const OpContext& ctx) override;
  Result<transport::Opened> Open(const transport::Node& node, const transport::OpenRequest& request, const OpContext& ctx) override;
  // No fault acts on it: it does not wait for anything.
  transport::Handle OpenSoon(const transport::Node& node, const transport::OpenRequest& request) override;
  std::optional<Error> OpenFailure(transport::Handle handle) const override { return inner_.OpenFailure(handle); }
  Result<transport::Opened> Create(const transport::Name& name, const transport::CreateRequest& request,
                                   const OpContext& ctx) override;
  Result<std::unique_ptr<transport::ByteStream>> Read(transport::Handle handle, const transport::Node& node,
                                                      const transport::Attributes* version, transport::Extent range,
                                                      const OpContext& ctx) override;
  Result<std::vector<transport::FileContent>> ReadFiles(const std::vector<transport::KnownFiles>& files, const OpContext& ctx) override;
  Result<transport::Attributes> Store(transport::Handle handle, const transport::Node& node, const transport::StoreRequest& request,
                                      const OpContext& ctx) override;
  // "EarlyWrite" is its Write.
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
  void EndWriting(transport::Handle handle) override { inner_.EndWriting(handle); }
  void Close(transport::Handle handle, const OpContext& ctx) override;
  std::vector<std::pair<std::string, std::string>> Status() const override;

 private:
  struct State;  // shared with streams
  class Stream;
  class Early;
  template <typename Function>
  auto Run(const char* name, const std::string& path, const OpContext& ctx, Function function) -> decltype(function());

  transport::RemoteFs& inner_;
  std::shared_ptr<State> state_;
};

}  // namespace e2bfs::testing
