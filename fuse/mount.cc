#include "fuse/mount.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "cache/cached_fs.h"
#include "fuse/fuse_bridge.h"
#include "fuse/mount_table.h"
#include "transport/base/log.h"

namespace e2bfs::fuse {
namespace {

using std::chrono::milliseconds;

// How long fusermount3 may take; it only hangs where the kernel does.
constexpr milliseconds kFusermountTimeout{20'000};
// For telling the kernel what is outdated: it waits for reads that are under way.
constexpr milliseconds kNotifyPatience{2'000};
// How much later than its deadline a drain is given up: it should have ended by itself.
constexpr milliseconds kDrainGrace{5'000};

// --- signals. A handler and an eventfd instead of signalfd: it does not matter then which thread the signal reaches,
// nor whether threads that others started block it.
// One eventfd for the process, never closed: a handler on another thread may be just about to write to it.
int EventDescriptor() {
  static const int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return descriptor;
}

std::atomic<int> signal_event_fd{-1};
std::atomic<int> last_signal{0};
std::atomic<int> signal_count{0};

void OnEndingSignal(int signal) {
  const int before = errno;
  last_signal = signal;
  ++signal_count;
  const uint64_t one = 1;
  // Nothing can be done in a handler about an eventfd that is full.
  [[maybe_unused]] const ssize_t written = write(signal_event_fd, &one, sizeof one);
  errno = before;
}

// What the thread in RunMount waits for. Any thread may post.
class MountEvents {
 public:
  MountEvents() : fd_(EventDescriptor()) {
    TakeAll();  // what an earlier mount left
    signal_count = 0;
    last_signal = 0;
    signal_event_fd = fd_;
    for (Handler& handler : handlers_) {
      struct sigaction action {};
      action.sa_handler = OnEndingSignal;
      action.sa_flags = SA_RESTART;
      sigemptyset(&action.sa_mask);
      sigaction(handler.signal, nullptr, &handler.before);
      // What was ignored from the start (nohup, a shell's background job) stays so, but SIGTERM.
      handler.taken = handler.signal == SIGTERM || handler.before.sa_handler != SIG_IGN;
      if (handler.taken) sigaction(handler.signal, &action, nullptr);
    }
  }
  ~MountEvents() {
    for (const Handler& handler : handlers_) {
      if (handler.taken) sigaction(handler.signal, &handler.before, nullptr);
    }
  }
  MountEvents(const MountEvents&) = delete;

  void Post(std::atomic<bool>& flag) {
    flag = true;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
  }

  // Until something was posted or a signal came.
  void Wait() {
    pollfd wait{fd_, POLLIN, 0};
    if (poll(&wait, 1, -1) > 0) TakeAll();
  }

  std::atomic<bool> session_ended{false};
  std::atomic<bool> stop_asked{false};
  std::atomic<bool> not_ready{false};

 private:
  void TakeAll() {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof count);
  }

  struct Handler {
    int signal;
    bool taken = false;
    struct sigaction before {};
  };
  const int fd_;
  Handler handlers_[3] = {{SIGTERM}, {SIGINT}, {SIGHUP}};
};

tl::unexpected<Error> CannotMount(int errno_value, const std::string& text) {
  return Failure(ErrorKind::kLocal, errno_value, text);
}

std::string MountOptionText(const MountOptions& options) {
  std::string text = "fsname=" + EscapeMountOption(options.source) + ",subtype=e2bfs,nosuid,nodev";
  text += options.read_only ? ",ro" : ",rw";
  if (options.allow_other || options.allow_root) text += ",allow_other";
  if (options.default_permissions) text += ",default_permissions";
  return text;
}

// Only root may; without it the kernel asks for 128 KiB at a time.
// The way's delay is hidden by cache/, which reads ahead much further; this hides the daemon's, and each piece on its way has a buffer.
constexpr std::string_view kReadAheadKiB = "512";

void RaiseReadAhead(dev_t device) {
  if (geteuid() != 0) return;
  const std::string path = "/sys/class/bdi/" + std::to_string(major(device)) + ":" + std::to_string(minor(device)) +
                           "/read_ahead_kb";
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, kReadAheadKiB.data(), kReadAheadKiB.size()) != ssize_t(kReadAheadKiB.size())) log::Debug("mount", "{}: {}", path, strerror(errno));
  if (fd >= 0) close(fd);
}

bool HasUnsent(const cache::CachedFs& cached) {
  const cache::CacheStatus status = cached.Status();
  return status.dirty_bytes > 0 || status.dirty_files > 0 || !status.unsent.empty();
}

// Runs FlushAll until `deadline`; a signal beyond the first `signals_seen` cuts it short. False: it hangs, and still uses `cached`.
bool Drain(cache::CachedFs& cached, TimePoint deadline, int signals_seen,
           const std::function<void(int64_t)>& progress, std::string* error) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    std::string error;
    std::stop_source stop;
  };
  const auto shared = std::make_shared<Shared>();
  const auto flush = [shared, &cached, deadline, progress] {
    OpContext ctx;
    ctx.deadline = deadline;
    ctx.stop = shared->stop.get_token();
    ctx.service_class = ServiceClass::kBulk;
    const auto sent = cached.FlushAll(ctx, [&progress](int64_t left) {
      if (progress) progress(left);
    });
    std::lock_guard lock(shared->mutex);
    shared->done = true;
    if (!sent) shared->error = ToString(sent.error());
    shared->changed.notify_all();
  };
  try {
    std::thread(flush).detach();
  } catch (const std::system_error& thrown) {  // it stays unsent, and is put aside
    *error = std::string("cannot start a thread to send it: ") + thrown.what();
    return true;
  }
  std::unique_lock lock(shared->mutex);
  TimePoint give_up = deadline + kDrainGrace;
  while (!shared->done && Clock::now() < give_up) {
    // Signals do not wake a condition variable: looked at often enough for a person.
    shared->changed.wait_for(lock, milliseconds(50));
    if (signal_count > signals_seen && !shared->stop.stop_requested()) {
      lock.unlock();
      log::Warning("mount", "a second signal: what is unsent is not waited for");
      shared->stop.request_stop();
      lock.lock();
      give_up = std::min(give_up, Clock::now() + kDrainGrace);
    }
  }
  *error = shared->done ? shared->error : "sending does not end";
  return shared->done;
}

void SaveUnsent(const MountOptions& options, cache::CachedFs& cached, MountEnd* end) {
  const std::string& directory = options.unsent_directory;
  if (directory.empty()) {
    end->error += "; there is no directory to keep it in";
    return;
  }
  const auto saved = cached.SaveUnsent(directory);
  if (!saved) {
    end->error += "; it could not be saved in " + directory + ": " + ToString(saved.error());
    end->unsent_files = std::max<int>(1, static_cast<int>(cached.Status().dirty_files));
    log::Error("mount", "unsent changes could not be saved: {}", end->error);
    return;
  }
  end->unsent_files = *saved;
  if (*saved == 0) {  // it was put aside before
    end->error.clear();
    return;
  }
  end->saved_in = directory;
  log::Error("mount", "{} changed files could not be sent ({}); they are kept in {}", *saved, end->error, directory);
}

}  // namespace

Result<std::string> UsableMountPoint(const std::string& mount_point) {
  auto table = ReadMountTable();
  if (!table) return Forward(std::move(table.error()));
  auto canonical = CanonicalDirectory(mount_point, *table);
  if (!canonical) {
    return CannotMount(canonical.error().errno_value,
                       "mount point " + mount_point + ": " + strerror(canonical.error().errno_value));
  }
  const auto mounted = FindMount(*table, *canonical);
  if (mounted && mounted->type.starts_with("fuse")) {
    return CannotMount(EBUSY, "mount point " + *canonical + " is busy: " + mounted->source +
                                  " is mounted there (e2bfs umount or fusermount3 -u takes it away)");
  }
  struct stat attributes {};
  if (stat(canonical->c_str(), &attributes) != 0) {
    return CannotMount(errno, "mount point " + *canonical + ": " + strerror(errno));
  }
  if (!S_ISDIR(attributes.st_mode)) {
    return CannotMount(ENOTDIR, "mount point " + *canonical + " is not a directory");
  }
  if (geteuid() != 0 && access(canonical->c_str(), W_OK) != 0) {
    return CannotMount(EACCES, "mount point " + *canonical + " is not writable for this user, as mounting requires");
  }
  if (geteuid() != 0 && (attributes.st_mode & S_ISVTX) != 0 && attributes.st_uid != geteuid()) {
    return CannotMount(EACCES, "mount point " + *canonical + " is a sticky directory of another user: mounting wants one of this user's");
  }
  return canonical;
}

Result<void> Unmount(const std::string& mount_point, bool lazy) {
  if (geteuid() == 0) {
    if (umount2(mount_point.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) return {};
    const int reason = errno;
    if (reason != EPERM) return CannotMount(reason, "unmount " + mount_point + ": " + strerror(reason));
  }
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return Errno(errno, "pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
  std::string path = mount_point;
  char program[] = "fusermount3", unmount[] = "-u", detach[] = "-z", end_of_options[] = "--";
  char* const eager_words[] = {program, unmount, end_of_options, path.data(), nullptr};
  char* const lazy_words[] = {program, unmount, detach, end_of_options, path.data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawnp(&child, program, &actions, nullptr, lazy ? lazy_words : eager_words, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_fds[1]);
  if (failed != 0) {
    close(pipe_fds[0]);
    return CannotMount(failed, std::string("cannot run fusermount3: ") + strerror(failed));
  }
  // The end of its output is its end.
  std::string said;
  const TimePoint until = Clock::now() + kFusermountTimeout;
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
    pollfd wait{pipe_fds[0], POLLIN, 0};
    const int ready = left > 0 ? poll(&wait, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      kill(child, SIGKILL);
      close(pipe_fds[0]);
      return CannotMount(ETIMEDOUT, "fusermount3 does not end");
    }
    char text[512];
    const ssize_t got = read(pipe_fds[0], text, sizeof text);
    if (got <= 0) break;
    if (said.size() < 4096) said.append(text, static_cast<size_t>(got));
  }
  close(pipe_fds[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  while (!said.empty() && said.back() == '\n') said.pop_back();
  const bool busy = said.find("busy") != std::string::npos;
  return CannotMount(busy ? EBUSY : EINVAL, said.empty() ? "fusermount3 failed" : said);
}

Result<MountEnd> RunMount(const MountOptions& options, cache::CachedFs& cached, const std::function<void()>& on_ready) {
  auto mount_point = UsableMountPoint(options.mount_point);
  if (!mount_point) return Forward(std::move(mount_point.error()));
  signal(SIGPIPE, SIG_IGN);

  FilesystemOptions filesystem = options.filesystem;
  filesystem.mount_point = *mount_point;
  BridgeOptions bridge_options;
  bridge_options.mount_options = MountOptionText(options);
  bridge_options.debug = options.debug;
  bridge_options.root_and_owner_only = options.allow_root;
  bridge_options.max_waiting_operations = options.max_waiting_operations;
  MountEvents events;
  auto bridge = std::make_unique<FuseBridge>(cached, filesystem, bridge_options);
  if (auto mounted = bridge->Mount(*mount_point); !mounted) return Forward(std::move(mounted.error()));
  bridge->Serve([&events] { events.Post(events.session_ended); });
  std::stop_callback on_stop(options.stop, [&events] { events.Post(events.stop_asked); });

  // Whether it answers is asked as any program would ask.
  std::atomic<bool> ready{false};
  std::atomic<int> ready_errno{0};
  const auto look = [&] {
    struct stat attributes {};
    if (stat(mount_point->c_str(), &attributes) != 0) {
      ready_errno = errno;
      events.Post(events.not_ready);
      return;
    }
    RaiseReadAhead(attributes.st_dev);
    ready = true;
    on_ready();
  };
  std::thread ready_thread;
  try {
    ready_thread = std::thread(look);
  } catch (const std::system_error&) {
    ready_errno = EAGAIN;
    events.Post(events.not_ready);
  }

  while (!events.session_ended && !events.stop_asked && !events.not_ready && signal_count == 0) {
    events.Wait();
  }

  MountEnd end;
  end.signal = events.session_ended ? 0 : last_signal.load();
  const bool by_stop = events.stop_asked && !events.session_ended && signal_count == 0;
  const TimePoint deadline = Clock::now() + (by_stop ? options.stop_drain_timeout.value_or(options.drain_timeout) : options.drain_timeout);
  // The signal that ended it is no reason to stop sending; the next one is.
  const int signals_seen = signal_count;
  bool drain_ended = true;
  if (!events.session_ended) {
    log::Info("mount", "{} ends: sending what is unsent", *mount_point);
    drain_ended = Drain(cached, deadline, signals_seen, options.on_drain_progress, &end.error);
    auto unmounted = Unmount(*mount_point, false);
    if (!unmounted && unmounted.error().errno_value == EBUSY) unmounted = Unmount(*mount_point, true);
    // It may be unmounted here already, and mounted in another mount namespace, which finds it disconnected from now on.
    if (!unmounted && !events.session_ended && MayBeMounted(*mount_point)) log::Error("mount", "{}", unmounted.error().message);
  }
  bridge->Disconnect();
  if (ready_thread.joinable()) ready_thread.join();
  // Files that programs have closed may still be on their way.
  bool idle = bridge->WaitIdle(milliseconds(0));
  while (!idle && drain_ended && Clock::now() < deadline && signal_count == signals_seen) {
    idle = bridge->WaitIdle(milliseconds(50));
  }
  const bool all_told = bridge->StopNotifying(kNotifyPatience);
  if ((!idle && !bridge->Finish(options.finish_timeout)) || !all_told) {
    log::Warning("mount", "operations still wait for the sandbox");
    static_cast<void>(bridge.release());  // they use it: see MountEnd::operations_left
    end.operations_left = true;
  }
  // Also what programs wrote between the first sending and the end.
  if (drain_ended && HasUnsent(cached)) {
    drain_ended = Drain(cached, deadline, signals_seen, options.on_drain_progress, &end.error);
  }
  if (!drain_ended) end.operations_left = true;
  if (HasUnsent(cached)) {
    if (end.error.empty()) end.error = "not sent in time";
    SaveUnsent(options, cached, &end);
  } else if (drain_ended) {
    end.error.clear();
  }
  if (!ready && end.signal == 0 && !events.stop_asked) {
    const int reason = ready_errno != 0 ? ready_errno.load() : EIO;
    return CannotMount(reason, "the mount on " + *mount_point + " did not answer: " + strerror(reason));
  }
  return end;
}

}  // namespace e2bfs::fuse
