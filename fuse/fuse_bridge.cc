#define FUSE_USE_VERSION 314

#include "fuse/fuse_bridge.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <functional>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "fuse/interrupts.h"
#include "fuse/kernel_notify.h"
#include "fuse/worker_pool.h"
#include "transport/base/log.h"
#include "transport/base/metrics.h"

namespace e2bfs::fuse {

// The kernel's own limit for one read or write (256 pages); the mount option max_read has to say the same.
constexpr unsigned kMaxTransferBytes = 1 << 20;

// All but one of them may be in an operation on names.
constexpr int kReaderThreads = 18;

// A request that reads ahead, and each release, counts as background: with the kernel's default of 12, a dozen stalled reads
// would hold up all others. Each of them has a buffer for its answer, of the kernel's read-ahead at most. As an ordinary user the kernel may allow less.
constexpr unsigned kMaxBackground = 64;

// The kernel is told of a name when nobody holds its directory.
constexpr std::chrono::milliseconds kLeavingTime{100};

// Destroyed last: threads of the other members use the session.
struct SessionOwner {
  fuse_session* session = nullptr;
  bool mounted = false;
  ~SessionOwner() {
    if (session == nullptr) return;
    // After Disconnect the descriptor says POLLERR, and libfuse only closes it; before, it unmounts.
    if (mounted) fuse_session_unmount(session);
    fuse_session_destroy(session);
  }
};

struct FuseBridge::State {
  State(cache::CachedFs& cached, const FilesystemOptions& filesystem_options, BridgeOptions bridge_options)
      : options(std::move(bridge_options)),
        cached(cached),
        notify([this](const Outdated& outdated) { Forget(outdated); }),
        filesystem(cached, filesystem_options, [this](Outdated outdated) { notify.Invalidate(std::move(outdated)); }),
        pool(PoolOptions(options.max_waiting_operations)) {}

  static WorkerPoolOptions PoolOptions(int limit) {
    WorkerPoolOptions pool_options;
    pool_options.max_threads.fill(std::max(limit, 1));
    pool_options.max_threads[static_cast<size_t>(Lane::kReaders)] = kReaderThreads;
    // A write holds its bytes (up to 1 MiB) while it waits.
    pool_options.max_threads[static_cast<size_t>(Lane::kWrite)] = std::clamp(limit, 1, 32);
    return pool_options;
  }

  void ReadRequests();
  int TakeRequest(int epoll, fuse_buf* buffer);

  // Whether the reader that calls it may run an operation itself, which saves a change of threads: another one is left to read. Then EndHere.
  bool BeginHere() {
    std::lock_guard lock(readers_mutex);
    if (readers < 2) return false;
    --readers;
    LeaveSession();
    return true;
  }
  void EndHere() {
    std::lock_guard lock(readers_mutex);
    ++readers;
    ++in_session;
  }
  void LeaveSession() {  // readers_mutex held
    if (--in_session == 0 && disconnecting) session_left.notify_all();
  }

  // The kernel knows few of the nodes that are told of: that it does not is no error.
  void Forget(const Outdated& outdated) {
    if (!outdated.name.empty()) {
      fuse_lowlevel_notify_inval_entry(session, outdated.node, outdated.name.c_str(), outdated.name.size());
    } else {
      fuse_lowlevel_notify_inval_inode(session, outdated.node, outdated.pages ? 0 : -1, 0);
    }
  }

  const BridgeOptions options;
  SessionOwner owner;
  fuse_session*& session = owner.session;
  int wake_fd = -1;  // readable from the moment on when the readers have to end
  std::atomic<bool> init_answered{false};
  std::function<void()> on_end;
  std::atomic<bool> end_told{false};

  std::stop_source shutdown;  // for operations that no signal may end
  std::mutex running_mutex;   // a leaf
  std::map<uint64_t, std::stop_source> running;
  std::atomic<uint64_t> next_id{1};

  InterruptWatch interrupts;
  cache::CachedFs& cached;
  KernelNotify notify;
  Filesystem filesystem;

  std::mutex readers_mutex;  // a leaf
  std::condition_variable session_left;
  int readers = 0;     // that are not in an operation
  int in_session = 0;  // readers that use the session's descriptor, or have a request in hand that nobody else knows of
  bool disconnecting = false;

  WorkerPool pool;  // last: its threads use the others
};

namespace {

using State = FuseBridge::State;

enum class Ending {
  kWithCaller,  // may be given up when the caller is dying
  kNever,       // flush, fsync, release, write: only the end of the mount ends it
};

// One request, answered exactly once; with EIO if nobody did. Not copyable; used by one thread at a time, but for OnInterrupt and for
// the answer to a caller who is dying: he waits for nothing, while what was begun goes on (a change that was sent cannot be called
// back) and finds that its answer was given.
class Reply {
 public:
  Reply(State& state, fuse_req_t request) : state_(state), request_(request), id_(state.next_id++) {}
  Reply(const Reply&) = delete;

  ~Reply() {
    if (const std::lock_guard lock(request_mutex_); request_ == nullptr) return;
    static Counter& unanswered = Metrics::Get("fuse.unanswered_requests_count");
    unanswered.Add();
    AnswerErrno(EIO);
  }

  State& state() { return state_; }
  // Of somebody whom allow_root leaves out. Before Begin.
  bool FromStranger() const {
    if (!state_.options.root_and_owner_only) return false;
    const uid_t caller = fuse_req_ctx(request_)->uid;
    return caller != 0 && caller != getuid();
  }

  // Before it is handed to another thread.
  OpContext Begin(const char* operation, fuse_ino_t node, Ending ending, ServiceClass service_class) {
    operation_ = operation;
    node_ = node;
    started_ = Clock::now();
    OpContext ctx;
    ctx.service_class = service_class;
    if (state_.filesystem.real_ids()) {
      const fuse_ctx* caller = fuse_req_ctx(request_);
      ctx.creator = Creator{caller->uid, caller->gid};
    }
    if (ending == Ending::kNever) {
      ctx.stop = state_.shutdown.get_token();
      return ctx;
    }
    ctx.stop = stop_.get_token();
    {
      std::lock_guard lock(state_.running_mutex);
      state_.running.emplace(id_, stop_);
    }
    interruptible_ = true;
    fuse_req_interrupt_func(request_, &Reply::OnInterrupt, this);
    gone_.emplace(stop_.get_token(), [this] { AnswerErrno(EINTR); });
    return ctx;
  }

  void Ok() { AnswerErrno(0); }

  void Fail(const e2bfs::Error& error) {
    Log(error);
    AnswerErrno(KernelErrno(error, stop_.stop_requested()));
  }

  // False if the kernel did not take it.
  bool AnswerErrno(int value) { return Give([&](fuse_req_t request) { return fuse_reply_err(request, value); }) == 0; }

  bool Nothing(const Result<void>& result) {
    if (result) return AnswerErrno(0);
    Fail(result.error());
    return false;
  }

  void Entry(const Result<NodeReply>& result) {
    if (!result) return Fail(result.error());
    const fuse_entry_param entry = ToEntry(*result);
    if (Give([&](fuse_req_t request) { return fuse_reply_entry(request, &entry); }) != 0) state_.filesystem.Forget(result->node, 1);
  }

  void Attributes(const Result<AttributeReply>& result) {
    if (!result) return Fail(result.error());
    Give([&](fuse_req_t request) { return fuse_reply_attr(request, &result->attributes, AttributeSeconds(result->valid_for)); });
  }

  void Opened(const Result<OpenReply>& result, fuse_file_info info, const OpContext& ctx) {
    if (!result) return Fail(result.error());
    FillInfo(*result, &info);
    // The program is gone: nobody will close it.
    if (Give([&](fuse_req_t request) { return fuse_reply_open(request, &info); }) != 0) state_.filesystem.Release(result->handle, ctx.Uninterruptible());
  }

  void Created(const Result<CreateReply>& result, fuse_file_info info, const OpContext& ctx) {
    if (!result) return Fail(result.error());
    FillInfo(result->file, &info);
    const fuse_entry_param entry = ToEntry(result->node);
    if (Give([&](fuse_req_t request) { return fuse_reply_create(request, &entry, &info); }) != 0) {
      state_.filesystem.Release(result->file.handle, ctx.Uninterruptible());
      state_.filesystem.Forget(result->node.node, 1);
    }
  }

  void DirectoryOpened(const Result<DirectoryHandle>& result, fuse_file_info info) {
    if (!result) return Fail(result.error());
    info.fh = *result;
    if (Give([&](fuse_req_t request) { return fuse_reply_open(request, &info); }) != 0) state_.filesystem.ReleaseDir(*result);
  }

  void Text(const Result<std::string>& result) {
    if (!result) return Fail(result.error());
    Give([&](fuse_req_t request) { return fuse_reply_readlink(request, result->c_str()); });
  }

  // False if the kernel did not take it.
  bool Bytes(const char* bytes, size_t length) { return Give([&](fuse_req_t request) { return fuse_reply_buf(request, bytes, length); }) == 0; }

  void Written(const Result<size_t>& result) {
    if (!result) return Fail(result.error());
    Give([&](fuse_req_t request) { return fuse_reply_write(request, *result); });
  }

  void Position(const Result<off_t>& result) {
    if (!result) return Fail(result.error());
    Give([&](fuse_req_t request) { return fuse_reply_lseek(request, *result); });
  }

  void Statistics(const Result<struct statvfs>& result) {
    if (!result) return Fail(result.error());
    Give([&](fuse_req_t request) { return fuse_reply_statfs(request, &*result); });
  }

  // getxattr and listxattr: `size` is what the caller has room for, 0 if it only asks how long it is.
  void Xattr(const Result<std::string>& result, size_t size) {
    if (!result) return Fail(result.error());
    if (size == 0) {
      Give([&](fuse_req_t request) { return fuse_reply_xattr(request, result->size()); });
    } else if (result->size() > size) {
      AnswerErrno(ERANGE);
    } else {
      Bytes(result->data(), result->size());
    }
  }

  static double Seconds(std::chrono::milliseconds time) { return std::chrono::duration<double>(time).count(); }
  double AttributeSeconds(std::chrono::milliseconds time) const { return state_.options.root_and_owner_only ? 0 : Seconds(time); }

  fuse_entry_param ToEntry(const NodeReply& from) const {
    fuse_entry_param entry{};
    entry.ino = from.node;
    entry.attr = from.attributes;
    entry.attr_timeout = AttributeSeconds(from.valid_for);
    entry.entry_timeout = Seconds(from.valid_for);
    return entry;
  }

 private:
  static void OnInterrupt(fuse_req_t request, void* data) {
    auto* reply = static_cast<Reply*>(data);
    reply->state_.interrupts.Interrupted(reply->id_, fuse_req_ctx(request)->pid, reply->stop_);
  }

  static void FillInfo(const OpenReply& from, fuse_file_info* info) {
    info->fh = from.handle;
    info->keep_cache = from.keep_cache;
    info->direct_io = from.direct_io;
    info->noflush = from.no_flush;
  }

  // 0: the kernel took the answer. Otherwise it did not, or was given another one before.
  template <typename Answer>
  int Give(Answer answer) {
    fuse_req_t request = Take();
    return request != nullptr ? answer(request) : -ENOENT;
  }

  // The request, for the one answer that it gets; null if it has it.
  fuse_req_t Take() {
    fuse_req_t request;
    {
      std::lock_guard lock(request_mutex_);
      request = std::exchange(request_, nullptr);
    }
    if (request != nullptr && interruptible_) {
      // Waits for an OnInterrupt that is running, so that none uses this object later.
      fuse_req_interrupt_func(request, nullptr, nullptr);
      state_.interrupts.Finished(id_);
      std::lock_guard lock(state_.running_mutex);
      state_.running.erase(id_);
    }
    return request;
  }

  // What the operation itself says (ENOENT...) is ordinary; everything else, somebody will ask about.
  void Log(const e2bfs::Error& error) const {
    const bool ordinary = error.kind == ErrorKind::kErrno || error.kind == ErrorKind::kCancelled;
    if (ordinary && log::GetLevel() > log::Level::kDebug) return;
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - started_).count();
    const std::string path = state_.filesystem.PathOf(node_);
    if (ordinary) {
      log::Debug("fuse", "{} of {} ({}): {} after {} ms", operation_, node_, path, ToString(error), took);
    } else {
      log::Warning("fuse", "{} of {} ({}): {} ({}) after {} ms", operation_, node_, path, ToString(error),
                   ToString(error.kind), took);
    }
  }

  State& state_;
  std::mutex request_mutex_;  // a leaf
  fuse_req_t request_;
  const uint64_t id_;
  const char* operation_ = "";
  fuse_ino_t node_ = 0;
  TimePoint started_{};
  std::stop_source stop_;
  bool interruptible_ = false;
  std::optional<std::stop_callback<std::function<void()>>> gone_;  // last: its destructor waits while it answers
};

using ReplyPtr = std::shared_ptr<Reply>;

// The guard around every operation: whatever is thrown on the way, the request is answered (by ~Reply).
template <typename Body>
void RunGuarded(const char* operation, Body&& body) noexcept {
  try {
    body();
  } catch (const std::exception& thrown) {
    try {
      log::Error("fuse", "{}: {}", operation, thrown.what());
    } catch (...) {
      // Not even memory for the line: the answer says it.
    }
  } catch (...) {
  }
}

template <typename Function>
struct EntryPoint;

// Who may ask. Lookups too may everybody, where some are refused: an error there would make the kernel drop the name for all.
enum class For { kUsers, kAnybody };

// What libfuse calls, for an operation that takes a ReplyPtr instead of the request.
template <typename... Args>
struct EntryPoint<void (*)(const ReplyPtr&, Args...)> {
  template <void (*Operation)(const ReplyPtr&, Args...), For Who>
  static void Call(fuse_req_t request, Args... args) noexcept {
    ReplyPtr reply;
    try {
      reply = std::make_shared<Reply>(*static_cast<State*>(fuse_req_userdata(request)), request);
    } catch (...) {
      fuse_reply_err(request, ENOMEM);
      return;
    }
    if (Who == For::kUsers && reply->FromStranger()) {
      reply->AnswerErrno(EACCES);
      return;
    }
    RunGuarded("decode", [&] { Operation(reply, args...); });
  }
};

template <auto Operation>
constexpr auto kEntryPoint = &EntryPoint<decltype(Operation)>::template Call<Operation, For::kUsers>;
// Also of what is open: whoever has a descriptor was let in, or was given it by somebody who was.
template <auto Operation>
constexpr auto kAnybodysEntryPoint = &EntryPoint<decltype(Operation)>::template Call<Operation, For::kAnybody>;

// Runs body(filesystem, reply, ctx) on a thread of the lane.
template <typename Body>
void RunOn(Lane lane, const ReplyPtr& reply, const char* operation, const OpContext& ctx, Body body) {
  reply->state().pool.Submit(lane, [reply, operation, ctx, body = std::move(body)]() mutable {
    RunGuarded(operation, [&] { body(reply->state().filesystem, *reply, ctx); });
  });
}

template <typename Body>
void DispatchTo(const ReplyPtr& reply, const char* operation, fuse_ino_t node, Lane lane, Ending ending,
              ServiceClass service_class, Body body) {
  RunOn(lane, reply, operation, reply->Begin(operation, node, ending, service_class), std::move(body));
}

// For operations on names and attributes: by the thread that read the request, if another is left to read.
template <typename Body>
void DispatchNames(const ReplyPtr& reply, const char* operation, fuse_ino_t node, Body body) {
  const OpContext ctx = reply->Begin(operation, node, Ending::kWithCaller, ServiceClass::kMetadata);
  if (!reply->state().BeginHere()) {
    RunOn(Lane::kNames, reply, operation, ctx, std::move(body));
    return;
  }
  RunGuarded(operation, [&] { body(reply->state().filesystem, *reply, ctx); });
  reply->state().EndHere();
}

void OpLookup(const ReplyPtr& reply, fuse_ino_t parent, const char* name) {
  DispatchNames(reply, "lookup", parent, [parent, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
    to.Entry(fs.Lookup(parent, name, ctx));
  });
}

void OpGetAttr(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  if (info == nullptr && reply->FromStranger()) {
    reply->AnswerErrno(EACCES);
    return;
  }
  // The kernel gives the open file with its own questions, and none with stat(2) and fstat(2).
  DispatchNames(reply, "getattr", node, [node, for_size = info != nullptr](Filesystem& fs, Reply& to, auto& ctx) {
    to.Attributes(fs.GetAttr(node, for_size, ctx));
  });
}

void OpSetAttr(const ReplyPtr& reply, fuse_ino_t node, struct stat* attributes, int valid, fuse_file_info* info) {
  SetAttrRequest request;
  if (valid & FUSE_SET_ATTR_MODE) request.mode = attributes->st_mode;
  if (valid & FUSE_SET_ATTR_UID) request.uid = attributes->st_uid;
  if (valid & FUSE_SET_ATTR_GID) request.gid = attributes->st_gid;
  if (valid & FUSE_SET_ATTR_SIZE) request.size = attributes->st_size;
  if (valid & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW)) {
    request.atime = transport::TimeChange{(valid & FUSE_SET_ATTR_ATIME_NOW) != 0, attributes->st_atim};
  }
  if (valid & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
    request.mtime = transport::TimeChange{(valid & FUSE_SET_ATTR_MTIME_NOW) != 0, attributes->st_mtim};
  }
  const FileHandle file = info != nullptr ? info->fh : 0;
  DispatchNames(reply, "setattr", node, [node, file, request](Filesystem& fs, Reply& to, auto& ctx) {
    to.Attributes(fs.SetAttr(node, file, request, ctx));
  });
}

void OpAccess(const ReplyPtr& reply, fuse_ino_t node, int mask) {
  DispatchNames(reply, "access", node, [node, mask](Filesystem& fs, Reply& to, auto& ctx) {
    to.Nothing(fs.Access(node, mask, ctx));
  });
}

void OpStatFs(const ReplyPtr& reply, fuse_ino_t node) {
  DispatchNames(reply, "statfs", node, [](Filesystem& fs, Reply& to, auto& ctx) { to.Statistics(fs.StatFs(ctx)); });
}

void OpReadLink(const ReplyPtr& reply, fuse_ino_t node) {
  DispatchNames(reply, "readlink", node, [node](Filesystem& fs, Reply& to, auto& ctx) {
    to.Text(fs.ReadLink(node, ctx));
  });
}

void OpSymlink(const ReplyPtr& reply, const char* text, fuse_ino_t parent, const char* name) {
  DispatchNames(reply, "symlink", parent,
                [text = std::string(text), parent, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
                  to.Entry(fs.Symlink(text, parent, name, ctx));
                });
}

void OpMkdir(const ReplyPtr& reply, fuse_ino_t parent, const char* name, mode_t mode) {
  DispatchNames(reply, "mkdir", parent, [parent, name = std::string(name), mode](Filesystem& fs, Reply& to, auto& ctx) {
    to.Entry(fs.Mkdir(parent, name, mode, ctx));
  });
}

void OpMknod(const ReplyPtr& reply, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  DispatchNames(reply, "mknod", parent,
                [parent, name = std::string(name), mode, device](Filesystem& fs, Reply& to, auto& ctx) {
                  to.Entry(fs.Mknod(parent, name, mode, device, ctx));
                });
}

void OpLink(const ReplyPtr& reply, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  DispatchNames(reply, "link", node, [node, parent, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
    to.Entry(fs.Link(node, parent, name, ctx));
  });
}

void OpUnlink(const ReplyPtr& reply, fuse_ino_t parent, const char* name) {
  DispatchNames(reply, "unlink", parent, [parent, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
    to.Nothing(fs.Unlink(parent, name, ctx));
  });
}

void OpRmdir(const ReplyPtr& reply, fuse_ino_t parent, const char* name) {
  DispatchNames(reply, "rmdir", parent, [parent, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
    to.Nothing(fs.Rmdir(parent, name, ctx));
  });
}

void OpRename(const ReplyPtr& reply, fuse_ino_t parent, const char* name, fuse_ino_t new_parent, const char* new_name,
              unsigned flags) {
  DispatchNames(reply, "rename", parent,
                [parent, name = std::string(name), new_parent, new_name = std::string(new_name), flags](
                    Filesystem& fs, Reply& to, auto& ctx) {
                  const auto done = fs.Rename(parent, name, new_parent, new_name, flags, ctx);
                  if (!to.Nothing(done) && done) fs.RenameNotTaken(parent, name, new_parent, new_name, flags);
                });
}

void OpOpen(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  DispatchNames(reply, "open", node, [node, info = *info](Filesystem& fs, Reply& to, auto& ctx) {
    // ESTALE: the kernel looks for the name again, and asks for what it leads to now.
    if (to.state().notify.IsLeaving(node, kLeavingTime) && !fs.HasName(node)) return to.Fail(Errno(ESTALE, "its name was taken away").value());
    to.Opened(fs.Open(node, info.flags, ctx), info, ctx);
  });
}

void OpCreate(const ReplyPtr& reply, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* info) {
  DispatchNames(reply, "create", parent,
                [parent, name = std::string(name), mode, info = *info](Filesystem& fs, Reply& to, auto& ctx) {
                  to.Created(fs.Create(parent, name, mode, info.flags, ctx), info, ctx);
                });
}

void OpRead(const ReplyPtr& reply, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) {
  const FileHandle file = info->fh;
  DispatchTo(reply, "read", node, Lane::kRead, Ending::kWithCaller, ServiceClass::kForeground,
           [file, size, offset](Filesystem& fs, Reply& to, auto& ctx) {
             // Not zeroed: most of it is overwritten at once.
             const std::unique_ptr<char[]> buffer(new char[std::max<size_t>(size, 1)]);
             const auto got = fs.Read(file, offset, buffer.get(), size, ctx);
             if (!got) return to.Fail(got.error());
             to.Bytes(buffer.get(), *got);
           });
}

void OpWrite(const ReplyPtr& reply, fuse_ino_t node, const char* bytes, size_t size, off_t offset, fuse_file_info* info) {
  const OpContext ctx = reply->Begin("write", node, Ending::kNever, ServiceClass::kForeground);
  const auto write = [file = info->fh, offset](std::string_view content, Filesystem& fs, Reply& to, const OpContext& within) {
    to.Written(fs.Write(file, offset, content, within));
  };
  // Into the spool, mostly: by the reader itself, from its buffer. It may have to wait for room there.
  if (reply->state().BeginHere()) {
    RunGuarded("write", [&] { write({bytes, size}, reply->state().filesystem, *reply, ctx); });
    reply->state().EndHere();
    return;
  }
  RunOn(Lane::kWrite, reply, "write", ctx, [write, content = std::string(bytes, size)](Filesystem& fs, Reply& to, auto& within) {
    write(content, fs, to, within);
  });
}

void OpLseek(const ReplyPtr& reply, fuse_ino_t node, off_t offset, int whence, fuse_file_info* info) {
  DispatchTo(reply, "lseek", node, Lane::kClose, Ending::kWithCaller, ServiceClass::kForeground,
             [file = info->fh, offset, whence](Filesystem& fs, Reply& to, auto& ctx) {
               to.Position(fs.Lseek(file, offset, whence, ctx));
             });
}

// Changes of content, as writes are: nobody's signal ends them.
void OpFallocate(const ReplyPtr& reply, fuse_ino_t node, int mode, off_t offset, off_t length, fuse_file_info* info) {
  DispatchTo(reply, "fallocate", node, Lane::kClose, Ending::kNever, ServiceClass::kForeground,
             [file = info->fh, mode, offset, length](Filesystem& fs, Reply& to, auto& ctx) {
               to.Nothing(fs.Fallocate(file, mode, offset, length, ctx));
             });
}

void OpCopyFileRange(const ReplyPtr& reply, fuse_ino_t, off_t from_offset, fuse_file_info* from_info, fuse_ino_t node,
                     off_t to_offset, fuse_file_info* to_info, size_t length, int) {
  const FileHandle from = from_info->fh, to_file = to_info->fh;
  DispatchTo(reply, "copy_file_range", node, Lane::kClose, Ending::kNever, ServiceClass::kBulk,
             [from, from_offset, to_file, to_offset, length](Filesystem& fs, Reply& to, auto& ctx) {
               to.Written(fs.CopyFileRange(from, from_offset, to_file, to_offset, length, ctx));
             });
}

void OpFlush(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  DispatchTo(reply, "flush", node, Lane::kClose, Ending::kNever, ServiceClass::kForeground,
           [file = info->fh](Filesystem& fs, Reply& to, auto& ctx) { to.Nothing(fs.Flush(file, ctx)); });
}

void OpFsync(const ReplyPtr& reply, fuse_ino_t node, int, fuse_file_info* info) {
  DispatchTo(reply, "fsync", node, Lane::kClose, Ending::kNever, ServiceClass::kForeground,
           [file = info->fh](Filesystem& fs, Reply& to, auto& ctx) { to.Nothing(fs.Fsync(file, ctx)); });
}

void OpRelease(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  DispatchTo(reply, "release", node, Lane::kClose, Ending::kNever, ServiceClass::kForeground,
           [file = info->fh](Filesystem& fs, Reply& to, auto& ctx) {
             fs.Release(file, ctx);
             to.Ok();
           });
}

void OpOpenDir(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  DispatchNames(reply, "opendir", node, [node, info = *info](Filesystem& fs, Reply& to, auto& ctx) {
    to.DirectoryOpened(fs.OpenDir(node, ctx), info);
  });
}

// Both kinds of listing. Entries are packed as libfuse wants them until the kernel's buffer is full.
void List(const ReplyPtr& reply, fuse_ino_t node, size_t size, off_t offset, DirectoryHandle directory, bool plus) {
  DispatchNames(
      reply, plus ? "readdirplus" : "readdir", node,
      [node, size, offset, directory, plus](Filesystem& fs, Reply& to, auto& ctx) {
        std::vector<char> buffer(size);
        std::vector<NodeId> referenced;
        size_t used = 0;
        const auto emit = [&](const DirectoryItem& item) {
          // libfuse's functions do not use their request argument.
          size_t needed;
          if (plus) {
            const fuse_entry_param entry = to.ToEntry(item.node);
            needed = fuse_add_direntry_plus(nullptr, buffer.data() + used, size - used, item.name.c_str(), &entry,
                                            static_cast<off_t>(item.next));
          } else {
            needed = fuse_add_direntry(nullptr, buffer.data() + used, size - used, item.name.c_str(),
                                       &item.node.attributes, static_cast<off_t>(item.next));
          }
          if (needed > size - used) return false;
          if (plus && item.node.node != 0) referenced.push_back(item.node.node);
          used += needed;
          return true;
        };
        const auto listed = fs.ReadDir(node, directory, static_cast<uint64_t>(offset), plus, emit, ctx);
        bool taken = false;
        if (listed || used > 0) {
          taken = to.Bytes(buffer.data(), used);  // an error after some entries comes again with the next call
        } else {
          to.Fail(listed.error());
        }
        if (taken) return;
        for (const NodeId unused : referenced) fs.Forget(unused, 1);
      });
}

void OpReadDir(const ReplyPtr& reply, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) {
  List(reply, node, size, offset, info->fh, false);
}

void OpReadDirPlus(const ReplyPtr& reply, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) {
  List(reply, node, size, offset, info->fh, true);
}

void OpReleaseDir(const ReplyPtr& reply, fuse_ino_t node, fuse_file_info* info) {
  DispatchTo(reply, "releasedir", node, Lane::kClose, Ending::kNever, ServiceClass::kMetadata,
           [directory = info->fh](Filesystem& fs, Reply& to, auto&) {
             fs.ReleaseDir(directory);
             to.Ok();
           });
}

void OpFsyncDir(const ReplyPtr& reply, fuse_ino_t node, int, fuse_file_info*) {
  DispatchTo(reply, "fsyncdir", node, Lane::kClose, Ending::kNever, ServiceClass::kForeground,
           [node](Filesystem& fs, Reply& to, auto& ctx) { to.Nothing(fs.FsyncDir(node, ctx)); });
}

void OpGetXattr(const ReplyPtr& reply, fuse_ino_t node, const char* name, size_t size) {
  auto get = [node, name = std::string(name), size](Filesystem& fs, Reply& to, auto& ctx) {
    to.Xattr(fs.GetXattr(node, name, ctx), size);
  };
  // The kernel asks for security.capability before every write.
  if (Filesystem::IsLocalXattr(name)) {
    const OpContext ctx = reply->Begin("getxattr", node, Ending::kNever, ServiceClass::kMetadata);
    return get(reply->state().filesystem, *reply, ctx);
  }
  DispatchNames(reply, "getxattr", node, std::move(get));
}

void OpListXattr(const ReplyPtr& reply, fuse_ino_t node, size_t size) {
  DispatchNames(reply, "listxattr", node, [node, size](Filesystem& fs, Reply& to, auto& ctx) {
    to.Xattr(fs.ListXattr(node, ctx), size);
  });
}

void OpSetXattr(const ReplyPtr& reply, fuse_ino_t node, const char* name, const char* value, size_t size, int flags) {
  DispatchNames(reply, "setxattr", node,
                [node, name = std::string(name), value = std::string(value, size), flags](Filesystem& fs, Reply& to,
                                                                                          auto& ctx) {
                  to.Nothing(fs.SetXattr(node, name, value, flags, ctx));
                });
}

void OpRemoveXattr(const ReplyPtr& reply, fuse_ino_t node, const char* name) {
  DispatchNames(reply, "removexattr", node, [node, name = std::string(name)](Filesystem& fs, Reply& to, auto& ctx) {
    to.Nothing(fs.RemoveXattr(node, name, ctx));
  });
}

void OpForget(fuse_req_t request, fuse_ino_t node, uint64_t count) {
  RunGuarded("forget", [&] { static_cast<State*>(fuse_req_userdata(request))->filesystem.Forget(node, count); });
  fuse_reply_none(request);
}

void OpForgetMulti(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
  RunGuarded("forget", [&] {
    Filesystem& filesystem = static_cast<State*>(fuse_req_userdata(request))->filesystem;
    for (size_t i = 0; i < count; ++i) filesystem.Forget(forgets[i].ino, forgets[i].nlookup);
  });
  fuse_reply_none(request);
}

void OpInit(void*, fuse_conn_info* connection) {
  unsigned want = 0;
  want |= FUSE_CAP_ASYNC_READ;       // several reads of a file at once: read-ahead fills the way to the sandbox
  want |= FUSE_CAP_ASYNC_DIO;
  want |= FUSE_CAP_PARALLEL_DIROPS;  // a slow lookup does not hold up others in its directory; see WriteReply
  want |= FUSE_CAP_READDIRPLUS;      // always: our listings have the attributes anyway, and d_ino is then right
  want |= FUSE_CAP_ATOMIC_O_TRUNC;   // O_TRUNC comes with the open: no truncate of its own on the way
  // Left out for a reason: AUTO_INVAL_DATA (would drop the pages after each of our own writes; content generations say
  // when they are outdated), WRITEBACK_CACHE (ignores sizes and times that change in the sandbox), HANDLE_KILLPRIV (libfuse
  // 3.14 does not tell the kernel), CACHE_SYMLINKS (what is shown depends on where the link is now), EXPORT,
  // splicing (requests are small or copied anyway), POSIX_ACL. Locks are the kernel's own, local to this machine.
  connection->want = want & connection->capable;
  connection->max_write = kMaxTransferBytes;
  connection->max_read = kMaxTransferBytes;
  connection->max_background = kMaxBackground;
  connection->congestion_threshold = kMaxBackground * 3 / 4;
}

// Not here: ioctl, poll, bmap, getlk, setlk, flock: the kernel does them itself or says that they are not supported.
fuse_lowlevel_ops MakeOperations() {
  fuse_lowlevel_ops ops{};
  ops.init = OpInit;
  ops.lookup = kAnybodysEntryPoint<&OpLookup>;
  ops.forget = OpForget;
  ops.forget_multi = OpForgetMulti;
  ops.getattr = kAnybodysEntryPoint<&OpGetAttr>;
  ops.setattr = kEntryPoint<&OpSetAttr>;
  ops.readlink = kEntryPoint<&OpReadLink>;
  ops.symlink = kEntryPoint<&OpSymlink>;
  ops.mkdir = kEntryPoint<&OpMkdir>;
  ops.mknod = kEntryPoint<&OpMknod>;
  ops.unlink = kEntryPoint<&OpUnlink>;
  ops.rmdir = kEntryPoint<&OpRmdir>;
  ops.rename = kEntryPoint<&OpRename>;
  ops.link = kEntryPoint<&OpLink>;
  ops.open = kEntryPoint<&OpOpen>;
  ops.create = kEntryPoint<&OpCreate>;
  ops.read = kAnybodysEntryPoint<&OpRead>;
  ops.write = kAnybodysEntryPoint<&OpWrite>;
  ops.flush = kAnybodysEntryPoint<&OpFlush>;
  ops.fsync = kAnybodysEntryPoint<&OpFsync>;
  ops.release = kAnybodysEntryPoint<&OpRelease>;
  ops.opendir = kEntryPoint<&OpOpenDir>;
  ops.readdir = kAnybodysEntryPoint<&OpReadDir>;
  ops.readdirplus = kAnybodysEntryPoint<&OpReadDirPlus>;
  ops.releasedir = kAnybodysEntryPoint<&OpReleaseDir>;
  ops.fsyncdir = kAnybodysEntryPoint<&OpFsyncDir>;
  ops.statfs = kEntryPoint<&OpStatFs>;
  ops.access = kEntryPoint<&OpAccess>;
  ops.getxattr = kEntryPoint<&OpGetXattr>;
  ops.listxattr = kEntryPoint<&OpListXattr>;
  ops.setxattr = kEntryPoint<&OpSetXattr>;
  ops.removexattr = kEntryPoint<&OpRemoveXattr>;
  ops.lseek = kAnybodysEntryPoint<&OpLseek>;
  ops.fallocate = kAnybodysEntryPoint<&OpFallocate>;
  ops.copy_file_range = kAnybodysEntryPoint<&OpCopyFileRange>;
  return ops;
}

std::mutex libfuse_text_mutex;
std::string libfuse_text;  // the last error line of libfuse, for the message of a failed mount

void OnLibfuseLog(fuse_log_level level, const char* format, va_list arguments) {
  char line[1024];
  vsnprintf(line, sizeof line, format, arguments);
  std::string text(line);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (level > FUSE_LOG_WARNING) {
    log::Debug("libfuse", "{}", text);  // asked for by -d
    return;
  }
  log::Info("libfuse", "{}", text);
  std::lock_guard lock(libfuse_text_mutex);
  libfuse_text = text;
}

std::string LastLibfuseText() {
  std::lock_guard lock(libfuse_text_mutex);
  return libfuse_text.empty() ? "" : ": " + libfuse_text;
}

}  // namespace

namespace {

// libfuse's own reading and writing, but that the answer to the kernel's first request says what libfuse before 3.17 leaves out although OpInit
// wants it (libfuse pull request 861). Without it whoever looks for a name waits for all others who do in that directory, and no signal ends that.
ssize_t ReadRequest(int fd, void* buffer, size_t size, void*) { return read(fd, buffer, size); }

ssize_t WriteReply(int fd, iovec* parts, int count, void* userdata) {
  if (!static_cast<State*>(userdata)->init_answered.exchange(true) && count == 2 && parts[1].iov_len >= offsetof(fuse_init_out, max_background)) {
    uint32_t flags = 0;
    char* const at = static_cast<char*>(parts[1].iov_base) + offsetof(fuse_init_out, flags);
    std::memcpy(&flags, at, sizeof flags);
    flags |= FUSE_PARALLEL_DIROPS;
    std::memcpy(at, &flags, sizeof flags);
  }
  return writev(fd, parts, count);
}

}  // namespace

// Waits for a request. What fuse_session_receive_buf says of it, or 0 when the readers have to end.
int FuseBridge::State::TakeRequest(int epoll, fuse_buf* buffer) {
  while (!fuse_session_exited(session)) {
    epoll_event events[2];
    const int ready = epoll_wait(epoll, events, 2, -1);
    if (ready < 0 && errno != EINTR) return -errno;
    for (int i = 0; i < ready; ++i) {
      if (events[i].data.fd == wake_fd) return 0;
    }
    const int got = ready > 0 ? fuse_session_receive_buf(session, buffer) : -EINTR;
    if (got != -EAGAIN && got != -EINTR) return got;
  }
  return 0;
}

void FuseBridge::State::ReadRequests() {
  // Each request wakes one of the readers, not all.
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  bool watching = epoll >= 0;
  for (const auto& [fd, how] : {std::pair<int, uint32_t>{fuse_session_fd(session), EPOLLIN | EPOLLEXCLUSIVE}, {wake_fd, EPOLLIN}}) {
    epoll_event event{};
    event.events = how;
    event.data.fd = fd;
    watching = watching && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
  }
  if (!watching) log::Error("fuse", "epoll: {}", strerror(errno));
  fuse_buf buffer{};
  std::unique_lock lock(readers_mutex);
  ++readers;
  while (watching && !disconnecting) {
    ++in_session;
    lock.unlock();
    const int got = TakeRequest(epoll, &buffer);
    if (got > 0) fuse_session_process_buf(session, &buffer);
    lock.lock();
    LeaveSession();
    if (got <= 0) break;
  }
  --readers;
  lock.unlock();
  free(buffer.mem);
  if (epoll >= 0) close(epoll);
  const uint64_t one = 1;
  if (write(wake_fd, &one, sizeof one) < 0) log::Error("fuse", "eventfd: {}", strerror(errno));
  if (!end_told.exchange(true)) on_end();
}

FuseBridge::FuseBridge(cache::CachedFs& cached, const FilesystemOptions& filesystem, BridgeOptions options)
    : state_(std::make_unique<State>(cached, filesystem, std::move(options))) {}

FuseBridge::~FuseBridge() {
  if (state_->wake_fd >= 0) close(state_->wake_fd);
}

Result<void> FuseBridge::Mount(const std::string& mount_point) {
  static const fuse_lowlevel_ops operations = MakeOperations();
  fuse_set_log_func(OnLibfuseLog);
  const std::string mount_options =
      state_->options.mount_options + ",max_read=" + std::to_string(kMaxTransferBytes);
  std::vector<std::string> words = {"e2bfs", "-o", mount_options};
  if (state_->options.debug) words.push_back("-d");
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  fuse_args args = FUSE_ARGS_INIT(static_cast<int>(pointers.size()), pointers.data());
  state_->session = fuse_session_new(&args, &operations, sizeof operations, state_.get());
  fuse_opt_free_args(&args);
  if (state_->session == nullptr) {
    return Failure(ErrorKind::kLocal, EINVAL, "libfuse refused the mount options" + LastLibfuseText());
  }
  if (fuse_session_mount(state_->session, mount_point.c_str()) != 0) {
    return Failure(ErrorKind::kLocal, EIO, "cannot mount on " + mount_point + LastLibfuseText());
  }
  state_->owner.mounted = true;
  fuse_custom_io io{};
  io.read = ReadRequest;
  io.writev = WriteReply;
  if (const int failed = fuse_session_custom_io(state_->session, &io, fuse_session_fd(state_->session)); failed != 0) {
    return Failure(ErrorKind::kLocal, -failed, "libfuse refused to be read for" + LastLibfuseText());
  }
  return {};
}

void FuseBridge::Serve(std::function<void()> on_end) {
  state_->on_end = std::move(on_end);
  const int fd = fuse_session_fd(state_->session);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  state_->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  state_->cached.SetKernel([filesystem = &state_->filesystem](const std::vector<cache::KernelNews>& news) {
    for (const cache::KernelNews& item : news) filesystem->Tell(item);
  });
  bool begun = false;
  for (int i = 0; i < kReaderThreads; ++i) begun |= state_->pool.Submit(Lane::kReaders, [this] { state_->ReadRequests(); });
  if (!begun && !state_->end_told.exchange(true)) state_->on_end();
}

void FuseBridge::Disconnect() {
  state_->cached.SetKernel({});
  state_->end_told = true;
  {
    std::unique_lock lock(state_->readers_mutex);
    state_->disconnecting = true;
    const uint64_t one = 1;
    if (write(state_->wake_fd, &one, sizeof one) < 0) log::Error("fuse", "eventfd: {}", strerror(errno));
    state_->session_left.wait(lock, [&] { return state_->in_session == 0; });
  }
  fuse_session_exit(state_->session);
  // The descriptor becomes a pipe that nobody reads: the kernel sees its end of the connection closed, while operations that
  // still run can answer into it without harm (the number stays taken).
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) == 0) {
    close(pipe_fds[0]);
    dup3(pipe_fds[1], fuse_session_fd(state_->session), O_CLOEXEC);
    close(pipe_fds[1]);
  }
  std::vector<std::stop_source> stops;
  {
    std::lock_guard lock(state_->running_mutex);
    for (const auto& [id, stop] : state_->running) stops.push_back(stop);
  }
  for (std::stop_source& stop : stops) stop.request_stop();
}

bool FuseBridge::WaitIdle(std::chrono::milliseconds time) { return state_->pool.Wait(time); }

bool FuseBridge::StopNotifying(std::chrono::milliseconds wait) { return state_->notify.Stop(wait); }

bool FuseBridge::Finish(std::chrono::milliseconds wait) {
  state_->shutdown.request_stop();
  return state_->pool.Stop(wait);
}

std::string EscapeMountOption(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == ',' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

}  // namespace e2bfs::fuse
