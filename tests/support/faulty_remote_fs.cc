#include "tests/support/faulty_remote_fs.h"

#include <algorithm>
#include <chrono>

namespace e2bfs::testing {

using transport::Extent;
using transport::Handle;
using transport::Name;
using transport::Node;

struct FaultyRemoteFs::State {
  mutable std::mutex mutex;  // never held while the inner file system is called
  mutable std::condition_variable_any changed;
  std::vector<RemoteFault> faults;
  std::map<std::string, int64_t> calls, now, most;
  int64_t stalled = 0;
  uint64_t releases = 0;

  std::optional<RemoteFault> Enter(const std::string& name, const std::string& path) {
    std::lock_guard<std::mutex> lock(mutex);
    ++calls[name];
    most[name] = std::max(most[name], ++now[name]);
    for (RemoteFault& fault : faults) {
      if (fault.action == RemoteFault::kCut) continue;  // matched in Read
      if (fault.function.empty() ? name == "Close" || name == "ReadChunk" : fault.function != name) continue;
      if (path.find(fault.path_contains) == std::string::npos || fault.count == 0) continue;
      if (fault.skip > 0) {
        --fault.skip;
        continue;
      }
      if (fault.count > 0) --fault.count;
      return fault;
    }
    return std::nullopt;
  }

  void Leave(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex);
    --now[name];
  }

  Result<void> Stall(const OpContext& ctx) {
    std::unique_lock<std::mutex> lock(mutex);
    uint64_t begun = releases;
    ++stalled;
    changed.notify_all();
    auto released = [&] { return releases != begun; };
    bool let_go = ctx.deadline == TimePoint::max() ? changed.wait(lock, ctx.stop, released)
                                                   : changed.wait_until(lock, ctx.stop, ctx.deadline, released);
    --stalled;
    changed.notify_all();
    if (let_go) return {};
    if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, "stall interrupted");
    return Failure(ErrorKind::kTimeout, ETIMEDOUT, "stalled");
  }

  void LetGo() {
    std::lock_guard<std::mutex> lock(mutex);
    ++releases;
    changed.notify_all();
  }

  static void Sleep(int64_t milliseconds, const OpContext& ctx) {
    std::mutex own;
    std::unique_lock<std::mutex> lock(own);
    std::condition_variable_any never;
    never.wait_for(lock, ctx.stop, std::chrono::milliseconds(milliseconds), [] { return false; });
  }
};

template <typename Function>
auto FaultyRemoteFs::Run(const char* name, const std::string& path, const OpContext& ctx, Function function)
    -> decltype(function()) {
  struct Scope {
    State& state;
    const char* name;
    ~Scope() { state.Leave(name); }
  };
  std::optional<RemoteFault> fault = state_->Enter(name, path);
  Scope scope{*state_, name};
  if (!fault) return function();
  switch (fault->action) {
    case RemoteFault::kFail:
      return Forward(fault->error);
    case RemoteFault::kDelay:
      State::Sleep(fault->delay_ms, ctx);
      return function();
    case RemoteFault::kStall:
      if (auto let_go = state_->Stall(ctx); !let_go) return Forward(let_go.error());
      return function();
    case RemoteFault::kDoAndFail: {
      auto result = function();
      if (!result) return result;
      return Forward(fault->error);
    }
    case RemoteFault::kStallAfter: {
      auto result = function();
      if (auto let_go = state_->Stall(ctx); !let_go) return Forward(let_go.error());
      return result;
    }
    case RemoteFault::kCut:
      break;  // only streams are cut: see Read
  }
  return function();
}

class FaultyRemoteFs::Stream : public transport::ByteStream {
 public:
  Stream(std::shared_ptr<State> state, std::string path, std::unique_ptr<transport::ByteStream> inner, std::optional<RemoteFault> cut)
      : state_(std::move(state)), path_(std::move(path)), inner_(std::move(inner)), cut_(std::move(cut)) {}

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    std::optional<RemoteFault> fault = state_->Enter("ReadChunk", path_);
    state_->Leave("ReadChunk");
    if (fault && fault->action == RemoteFault::kFail) return Forward(fault->error);
    if (fault && fault->action == RemoteFault::kDelay) State::Sleep(fault->delay_ms, ctx);
    if (fault && (fault->action == RemoteFault::kStall || fault->action == RemoteFault::kStallAfter)) {
      // A cancelled stream has to come back too: Cancel releases.
      if (auto let_go = state_->Stall(ctx); !let_go) return Forward(let_go.error());
    }
    if (cut_) {
      if (cut_->bytes <= 0) return Forward(cut_->error);
      capacity = size_t(std::min<int64_t>(int64_t(std::min<size_t>(capacity, INT32_MAX)), cut_->bytes));
    }
    auto got = inner_->Read(buffer, capacity, ctx);
    if (got && cut_) cut_->bytes -= int64_t(*got);
    return got;
  }

  void Cancel() override {
    inner_->Cancel();
    state_->LetGo();
  }
  const transport::Attributes* attributes() const override { return inner_->attributes(); }

 private:
  std::shared_ptr<State> state_;
  std::string path_;
  std::unique_ptr<transport::ByteStream> inner_;
  std::optional<RemoteFault> cut_;
};

class FaultyRemoteFs::Early final : public transport::EarlyStore {
 public:
  Early(FaultyRemoteFs& fs, std::string path, std::unique_ptr<transport::EarlyStore> inner) : fs_(fs), path_(std::move(path)), inner_(std::move(inner)) {}
  Result<void> Write(std::string_view bytes, const OpContext& ctx) override {
    return fs_.Run("EarlyWrite", path_, ctx, [&] { return inner_->Write(bytes, ctx); });
  }
  transport::EarlyStore* inner() { return inner_.get(); }

 private:
  FaultyRemoteFs& fs_;
  const std::string path_;
  const std::unique_ptr<transport::EarlyStore> inner_;
};

FaultyRemoteFs::FaultyRemoteFs(transport::RemoteFs& inner) : inner_(inner), state_(std::make_shared<State>()) {}

FaultyRemoteFs::~FaultyRemoteFs() { Clear(); }

void FaultyRemoteFs::Add(RemoteFault fault) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->faults.push_back(std::move(fault));
}

void FaultyRemoteFs::FailNth(const std::string& function, int k, int errno_value, ErrorKind kind) {
  RemoteFault fault;
  fault.function = function;
  fault.skip = k - 1;
  fault.error = Error{errno_value, kind, "injected", 0, ""};
  Add(fault);
}

void FaultyRemoteFs::Clear() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->faults.clear();
  }
  state_->LetGo();
}

void FaultyRemoteFs::Release() { state_->LetGo(); }

int64_t FaultyRemoteFs::stalled() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->stalled;
}

bool FaultyRemoteFs::WaitForStalled(int64_t count) const {
  std::unique_lock<std::mutex> lock(state_->mutex);
  return state_->changed.wait_for(lock, std::chrono::seconds(30), [&] { return state_->stalled >= count; });
}

int64_t FaultyRemoteFs::calls(const std::string& function) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  auto found = state_->calls.find(function);
  return found == state_->calls.end() ? 0 : found->second;
}

int64_t FaultyRemoteFs::total_calls() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  int64_t total = 0;
  for (const auto& [name, count] : state_->calls) {
    if (name != "ReadChunk" && name != "Close") total += count;
  }
  return total;
}

int64_t FaultyRemoteFs::max_calls_at_once(const std::string& function) const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  auto found = state_->most.find(function);
  return found == state_->most.end() ? 0 : found->second;
}

void FaultyRemoteFs::ResetCalls() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->calls.clear();
  state_->most.clear();
}

namespace {
std::string FaultPath(const Name& name) { return name.parent.path.empty() ? name.name : name.parent.path + "/" + name.name; }
}  // namespace

const transport::Description& FaultyRemoteFs::description() const { return inner_.description(); }

Result<transport::Attributes> FaultyRemoteFs::Stat(const Node& node, const OpContext& ctx) {
  return Run("Stat", node.path, ctx, [&] { return inner_.Stat(node, ctx); });
}

Result<transport::Attributes> FaultyRemoteFs::Lookup(const Name& name, const OpContext& ctx) {
  return Run("Lookup", FaultPath(name), ctx, [&] { return inner_.Lookup(name, ctx); });
}

Result<transport::Listing> FaultyRemoteFs::List(const Node& directory, const OpContext& ctx) {
  return Run("List", directory.path, ctx, [&] { return inner_.List(directory, ctx); });
}

Result<std::vector<transport::DeepListing>> FaultyRemoteFs::ListDeep(const Node& directory, const transport::DeepQuestion& question,
                                                                     const OpContext& ctx) {
  return Run("ListDeep", directory.path, ctx, [&] { return inner_.ListDeep(directory, question, ctx); });
}

Result<std::vector<transport::FileContent>> FaultyRemoteFs::ReadFiles(const std::vector<transport::KnownFiles>& files, const OpContext& ctx) {
  return Run("ReadFiles", files.empty() ? std::string() : files[0].directory.path, ctx, [&] { return inner_.ReadFiles(files, ctx); });
}

Result<std::string> FaultyRemoteFs::ReadLink(const Node& node, const OpContext& ctx) {
  return Run("ReadLink", node.path, ctx, [&] { return inner_.ReadLink(node, ctx); });
}

Result<transport::FsStatistics> FaultyRemoteFs::StatFs(const OpContext& ctx) {
  return Run("StatFs", "", ctx, [&] { return inner_.StatFs(ctx); });
}

Result<transport::Changed> FaultyRemoteFs::MakeDirectory(const Name& name, uint32_t permissions, const OpContext& ctx) {
  return Run("MakeDirectory", FaultPath(name), ctx, [&] { return inner_.MakeDirectory(name, permissions, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::MakeNode(const Name& name, transport::FileType type, uint32_t permissions, uint32_t major,
                                                    uint32_t minor, const OpContext& ctx) {
  return Run("MakeNode", FaultPath(name), ctx, [&] { return inner_.MakeNode(name, type, permissions, major, minor, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::MakeSymlink(const Name& name, const std::string& target, const OpContext& ctx) {
  return Run("MakeSymlink", FaultPath(name), ctx, [&] { return inner_.MakeSymlink(name, target, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::MakeLink(const Node& existing, const Name& name, const OpContext& ctx) {
  return Run("MakeLink", FaultPath(name), ctx, [&] { return inner_.MakeLink(existing, name, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::Unlink(const Name& name, const OpContext& ctx) {
  return Run("Unlink", FaultPath(name), ctx, [&] { return inner_.Unlink(name, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::RemoveDirectory(const Name& name, const OpContext& ctx) {
  return Run("RemoveDirectory", FaultPath(name), ctx, [&] { return inner_.RemoveDirectory(name, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::Rename(const Name& from, const Name& to, uint32_t flags, const OpContext& ctx) {
  return Run("Rename", FaultPath(from), ctx, [&] { return inner_.Rename(from, to, flags, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::SetAttributes(const Node& node, Handle handle, const transport::AttributeChange& change,
                                                         const OpContext& ctx) {
  return Run("SetAttributes", node.path, ctx, [&] { return inner_.SetAttributes(node, handle, change, ctx); });
}

Result<transport::MadeObjects> FaultyRemoteFs::MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext& ctx) {
  std::vector<std::string> paths;
  std::string lines;
  for (const transport::NewObject& object : objects) {
    paths.push_back(object.made_in && *object.made_in < paths.size() ? paths[*object.made_in] + "/" + object.name
                                                                     : FaultPath({object.directory, object.name}));
    lines += paths.back() + "\n";
  }
  return Run("MakeObjects", lines, ctx, [&] { return inner_.MakeObjects(objects, ctx); });
}

Result<std::string> FaultyRemoteFs::GetXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) {
  return Run("GetXattr", node.path, ctx, [&] { return inner_.GetXattr(node, handle, name, ctx); });
}

Result<std::vector<std::string>> FaultyRemoteFs::ListXattrs(const Node& node, Handle handle, const OpContext& ctx) {
  return Run("ListXattrs", node.path, ctx, [&] { return inner_.ListXattrs(node, handle, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::SetXattr(const Node& node, Handle handle, const std::string& name, const std::string& value, int flags,
                                      const OpContext& ctx) {
  return Run("SetXattr", node.path, ctx, [&] { return inner_.SetXattr(node, handle, name, value, flags, ctx); });
}

Result<transport::Changed> FaultyRemoteFs::RemoveXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) {
  return Run("RemoveXattr", node.path, ctx, [&] { return inner_.RemoveXattr(node, handle, name, ctx); });
}

Result<transport::Opened> FaultyRemoteFs::Open(const Node& node, const transport::OpenRequest& request, const OpContext& ctx) {
  return Run("Open", node.path, ctx, [&] { return inner_.Open(node, request, ctx); });
}

Handle FaultyRemoteFs::OpenSoon(const Node& node, const transport::OpenRequest& request) { return inner_.OpenSoon(node, request); }

Result<transport::Opened> FaultyRemoteFs::Create(const Name& name, const transport::CreateRequest& request, const OpContext& ctx) {
  return Run("Create", FaultPath(name), ctx, [&] { return inner_.Create(name, request, ctx); });
}

Result<std::unique_ptr<transport::ByteStream>> FaultyRemoteFs::Read(Handle handle, const Node& node,
                                                                    const transport::Attributes* version, Extent range,
                                                                    const OpContext& ctx) {
  // Cuts are matched apart, so that a stream can be made by a call that another fault delays.
  std::optional<RemoteFault> cut;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    for (RemoteFault& fault : state_->faults) {
      if (fault.action != RemoteFault::kCut || fault.count == 0) continue;
      if (node.path.find(fault.path_contains) == std::string::npos) continue;
      if (fault.skip > 0) {
        --fault.skip;
        continue;
      }
      if (fault.count > 0) --fault.count;
      cut = fault;
      break;
    }
  }
  auto stream = Run("Read", node.path, ctx, [&] { return inner_.Read(handle, node, version, range, ctx); });
  if (!stream) return stream;
  return std::unique_ptr<transport::ByteStream>(std::make_unique<Stream>(state_, node.path, std::move(*stream), cut));
}

Result<transport::Attributes> FaultyRemoteFs::Store(Handle handle, const Node& node, const transport::StoreRequest& request,
                                                    const OpContext& ctx) {
  transport::StoreRequest for_inner = request;
  if (request.early) for_inner.early = static_cast<Early&>(*request.early).inner();
  return Run("Store", node.path, ctx, [&] { return inner_.Store(handle, node, for_inner, ctx); });
}

Result<std::unique_ptr<transport::EarlyStore>> FaultyRemoteFs::BeginStore(Handle handle, const Node& node, bool fresh, const OpContext& ctx) {
  auto begun = Run("BeginStore", node.path, ctx, [&] { return inner_.BeginStore(handle, node, fresh, ctx); });
  if (!begun || !*begun) return begun;
  return std::unique_ptr<transport::EarlyStore>(std::make_unique<Early>(*this, node.path, std::move(*begun)));
}

Result<int64_t> FaultyRemoteFs::Seek(Handle handle, const Node& node, int64_t offset, transport::SeekTarget target,
                                     const OpContext& ctx) {
  return Run("Seek", node.path, ctx, [&] { return inner_.Seek(handle, node, offset, target, ctx); });
}

Result<transport::Attributes> FaultyRemoteFs::Allocate(Handle handle, const Node& node, uint32_t mode, Extent range,
                                                       const OpContext& ctx) {
  return Run("Allocate", node.path, ctx, [&] { return inner_.Allocate(handle, node, mode, range, ctx); });
}

Result<transport::Copied> FaultyRemoteFs::CopyRange(Handle from, const Node& from_node, int64_t from_offset, Handle to,
                                                    const Node& to_node, Extent target, const OpContext& ctx) {
  return Run("CopyRange", to_node.path, ctx,
             [&] { return inner_.CopyRange(from, from_node, from_offset, to, to_node, target, ctx); });
}

Result<transport::Attributes> FaultyRemoteFs::StatHandle(Handle handle, const Node& node, const OpContext& ctx) {
  return Run("StatHandle", node.path, ctx, [&] { return inner_.StatHandle(handle, node, ctx); });
}

Result<void> FaultyRemoteFs::Sync(Handle handle, const Node& node, const OpContext& ctx) {
  return Run("Sync", node.path, ctx, [&] { return inner_.Sync(handle, node, ctx); });
}

void FaultyRemoteFs::Close(Handle handle, const OpContext& ctx) {
  // A fault can delay it, but the handle is gone in any case.
  bool closed = false;
  (void)Run("Close", "", ctx, [&]() -> Result<void> {
    inner_.Close(handle, ctx);
    closed = true;
    return {};
  });
  if (!closed) inner_.Close(handle, ctx);
}

std::vector<std::pair<std::string, std::string>> FaultyRemoteFs::Status() const { return inner_.Status(); }

}  // namespace e2bfs::testing
