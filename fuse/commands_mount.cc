// e2bfs mount: the composition root, which sees every layer. Credentials, control plane, endpoint, HTTP client, envd client, remote
// file system (commands_connect.h), cache, mount, in this order; and back.
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "cache/block_store.h"
#include "cache/cached_fs.h"
#include "cache/recovery.h"
#include "cache/replay.h"
#include "fuse/commands.h"
#include "fuse/commands_connect.h"
#include "fuse/control_socket.h"
#include "fuse/daemon.h"
#include "fuse/directories.h"
#include "fuse/message.h"
#include "fuse/mount.h"
#include "fuse/mount_control.h"
#include "fuse/mount_table.h"
#include "fuse/options.h"
#include "fuse/running_mounts.h"
#include "transport/base/log.h"
#include "transport/envd/client.h"

namespace e2bfs::fuse {
namespace {

namespace envd = transport::envd;
namespace http = transport::http;

constexpr std::chrono::seconds kConnectTime{90};
constexpr std::chrono::seconds kControlIdleTime{3};
constexpr int kMostEntriesTold = 20;
constexpr std::chrono::milliseconds kMostWaitForSender{30'000};
constexpr std::chrono::milliseconds kReplayTick{2'000};
constexpr off_t kLongLogBytes = off_t{8} << 20;

// A forced umount has put aside what could not be sent before it ends the mount.
constexpr std::chrono::milliseconds kForcedDrainTime{2'000};

// What is known before anything is asked.
struct MountRequest : SandboxRequest {
  std::string mount_point;
  bool foreground = false;
  bool debug = false;
  std::string state_directory, runtime_directory;
};

template <typename T>
using MountStep = CommandStep<T>;

// --- before the fork

// Takes away what is left of a mount of ours whose process is gone.
MountStep<std::string> CheckMountPoint(const std::string& directory) {
  const auto table = ReadMountTable();
  const auto canonical = table ? CanonicalDirectory(directory, *table) : Result<std::string>(Forward(table.error()));
  const auto entry = canonical ? FindMount(*table, *canonical) : std::nullopt;
  if (entry && entry->is_e2bfs()) {
    auto running = FindRunningMount(entry->user_id, *canonical);
    if (running) return Stop(ExitStatus::kMountPoint, fmt::format("mount point {} is busy: sandbox {} is already mounted there", directory, running->sandbox_id));
    if (geteuid() != 0 && entry->user_id != geteuid()) {
      return Stop(ExitStatus::kMountPoint, fmt::format("mount point {} is busy: user {} has a sandbox mounted there", directory, entry->user_id));
    }
    if (!IsDeadMount(*canonical)) {
      return Stop(ExitStatus::kMountPoint, fmt::format("mount point {} is busy: {} is mounted there, by a process that does not answer from here", directory, entry->source));
    }
    // Nobody can use it any more, and whoever mounted it wants it back.
    if (auto cleared = Unmount(*canonical, true); !cleared) {
      return Stop(ExitStatus::kMountPoint, fmt::format("mount point {} is busy: a mount whose process is gone cannot be cleared: {}", directory, ErrorText(cleared.error())));
    }
    return CheckMountPoint(directory);
  }
  auto usable = UsableMountPoint(directory);
  if (!usable) return Stop(ExitStatus::kMountPoint, ErrorText(usable.error()));
  return *usable;
}

bool IsInPath(const char* program) {
  const char* path = getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/usr/bin:/bin";
  while (true) {
    const size_t colon = rest.find(':');
    if (access(fmt::format("{}/{}", rest.substr(0, colon), program).c_str(), X_OK) == 0) return true;
    if (colon == std::string_view::npos) return false;
    rest.remove_prefix(colon + 1);
  }
}

// Whether /etc/fuse.conf has `user_allow_other`, as fusermount3 reads it; also when only fusermount3 can read it.
bool OthersMayBeLetIn() {
  constexpr const char* kFile = "/etc/fuse.conf";
  if (access(kFile, R_OK) != 0 && errno != ENOENT) return true;
  std::ifstream file(kFile);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string word, more;
    if (words >> word && word == "user_allow_other" && !(words >> more)) return true;
  }
  return false;
}

// Root of a container often may not.
bool MayMount() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  return syscall(SYS_capget, &header, data) != 0 || (data[0].effective & (1U << CAP_SYS_ADMIN)) != 0;
}

MountStep<void> CheckFuse(const OptionValues& options) {
  const int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  const int reason = errno;
  if (device >= 0) close(device);
  if (device < 0 && (reason == ENOENT || reason == ENODEV || reason == ENXIO)) {
    return Stop(ExitStatus::kFuseMissing, "/dev/fuse is missing: load the kernel's module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)");
  }
  if (device < 0) return Stop(ExitStatus::kFuseMissing, fmt::format("/dev/fuse cannot be opened: {}", strerrordesc_np(reason)));
  if (geteuid() == 0 && !MayMount()) return Stop(ExitStatus::kFuseMissing, "root may not mount here: a container needs --cap-add SYS_ADMIN");
  if (geteuid() != 0 && !IsInPath("fusermount3")) return Stop(ExitStatus::kFuseMissing, "fusermount3 is missing: install the package fuse3");
  if (geteuid() != 0 && (options.allow_other || options.allow_root) && !OthersMayBeLetIn()) {
    return Stop(ExitStatus::kMountPoint, fmt::format("mount option {}: /etc/fuse.conf has no line user_allow_other, without which only root may let others in",
                                                     options.allow_other ? "allow_other" : "allow_root"));
  }
  return {};
}

MountStep<MountRequest> PrepareRequest(const CommandLine& line) {
  MountRequest request;
  auto options = ReadMountOptions(line);
  if (!options) return tl::unexpected(options.error());
  request.options = std::move(*options);
  auto spec = ParseSandboxSpec(line.arguments[0]);
  if (!spec) return Stop(ExitStatus::kUsage, spec.error().message);
  request.spec = std::move(*spec);
  request.foreground = line.Has("--foreground");
  request.debug = line.Has("--debug");
  auto http = HttpOptions(request.options);
  if (!http) return tl::unexpected(http.error());
  request.http = std::move(*http);
  // All that can be known without asking: a mount that fails for a local reason neither resumes a sandbox nor extends its life.
  if (auto fuse = CheckFuse(request.options); !fuse) return tl::unexpected(fuse.error());
  auto mount_point = CheckMountPoint(line.arguments[1]);
  if (!mount_point) return tl::unexpected(mount_point.error());
  request.mount_point = std::move(*mount_point);
  auto state = StateDirectory();
  if (!state) return Stop(ExitStatus::kFailure, ErrorText(state.error()));
  request.state_directory = std::move(*state);
  auto runtime = RuntimeDirectory();
  if (!runtime) return Stop(ExitStatus::kFailure, ErrorText(runtime.error()));
  request.runtime_directory = std::move(*runtime);
  request.environment = TakeEnvironment();
  if (request.environment.debug && request.options.sandbox_timeout_s) {
    return Stop(ExitStatus::kUsage, fmt::format("mount option {}: with E2B_DEBUG there is no control plane that could extend the sandbox's life",
                                                request.options.keep_alive ? "keep_alive" : "timeout"));
  }
  return request;
}

// --- after it

log::Level LogLevel(const std::string& name) {
  if (name == "debug") return log::Level::kDebug;
  if (name == "info") return log::Level::kInfo;
  return name == "error" ? log::Level::kError : log::Level::kWarning;
}

// The log of mounts in the background that named none. A long one is kept once, as e2bfs.log.1.
std::string DefaultLogFile(const std::string& state_directory) {
  const std::string path = state_directory + "/e2bfs.log";
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && status.st_size > kLongLogBytes && rename(path.c_str(), (path + ".1").c_str()) != 0) {
    log::Warning("mount", "{} cannot be renamed", path);
  }
  return path;
}

// -o keep_alive: a thread that extends the time to live at half of it, as long as the mount is there.
class KeepAlive {
 public:
  KeepAlive(transport::ControlPlane& plane, std::string sandbox_id, int64_t seconds)
      : thread_([this, &plane, id = std::move(sandbox_id), seconds](std::stop_token stop) { Run(plane, id, seconds, stop); }) {}

 private:
  void Run(transport::ControlPlane& plane, const std::string& id, int64_t seconds, const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!tick_.wait_for(lock, stop, std::chrono::seconds(seconds) / 2, [&] { return stop.stop_requested(); })) {
      if (stop.stop_requested()) return;
      lock.unlock();
      OpContext ctx = OpContext::Within(std::chrono::seconds(30));
      ctx.stop = stop;
      auto done = plane.Connect(id, {.extend_to_seconds = seconds, .resume = false}, ctx);
      if (!done) log::Warning("mount", "the sandbox's time to live could not be extended: {}", ToString(done.error()));
      lock.lock();
    }
  }

  std::mutex mutex_;  // guards nothing but the wait
  std::condition_variable_any tick_;
  std::jthread thread_;
};

// What -o ids=real needs of the sandbox's side.
MountStep<void> CheckRealIds(const MountRequest& request, const transport::Description& remote) {
  if (request.options.ids != "real") return {};
  if (remote.tier == "service") return Stop(ExitStatus::kUsage, "mount option ids=real needs the syscall tier, which does not work in this sandbox");
  if (remote.uid != 0) return Stop(ExitStatus::kUsage, fmt::format("mount option ids=real needs root in the sandbox: {} is not", remote.user));
  return {};
}

cache::CachedFsOptions CacheOptions(const OptionValues& options, std::string spool_directory, std::string unsent_directory) {
  cache::CachedFsOptions result;
  result.unsent_directory = std::move(unsent_directory);
  result.attribute_ttl = options.attribute_timeout;
  result.negative_ttl = options.negative_timeout;
  result.operation_timeout = options.operation_timeout;
  result.transfer_timeout = options.transfer_timeout;
  result.reader_idle = options.reader_idle;
  result.memory_bytes = options.memory;
  result.max_window_bytes = options.read_ahead;
  result.prefetch = options.prefetch == "auto";
  result.spool_bytes = options.spool_size;
  result.spool_directory = std::move(spool_directory);
  result.read_only = options.read_only;
  result.writeback = options.writeback;
  return result;
}

// Null where there is to be none. The default one is only a help: where it cannot be, the mount does without.
MountStep<std::unique_ptr<cache::BlockStore>> OpenStore(const OptionValues& options) {
  const bool named = !options.cache_directory.empty();
  if (options.cache_directory == kNoCache) return nullptr;
  const std::string directory = named ? options.cache_directory : DefaultCacheDirectory();
  auto made = MakePrivateDirectory(directory);
  Result<std::unique_ptr<cache::BlockStore>> store = nullptr;
  if (made) store = cache::BlockStore::Open({.directory = directory, .limit_bytes = options.cache_size});
  if (made && store) return std::move(*store);
  const std::string problem = ErrorText(made ? store.error() : made.error());
  if (named) return Stop(ExitStatus::kFailure, fmt::format("mount option cache={}: {}", directory, problem));
  log::Warning("mount", "files are read without a cache on the disk: {}", problem);
  return nullptr;
}

MountOptions ToMountOptions(const MountRequest& request, const std::string& sandbox_id, const std::string& remote_root,
                            const std::string& unsent_directory) {
  const OptionValues& options = request.options;
  MountOptions result;
  result.mount_point = request.mount_point;
  result.source = fmt::format("e2bfs:{}:{}", sandbox_id, remote_root);
  result.read_only = options.read_only;
  result.allow_other = options.allow_other;
  result.allow_root = options.allow_root;
  result.default_permissions = options.default_permissions;
  result.debug = request.debug;
  if (options.uid) result.filesystem.identity.uid = static_cast<uid_t>(*options.uid);
  if (options.gid) result.filesystem.identity.gid = static_cast<gid_t>(*options.gid);
  result.filesystem.identity.real = options.ids == "real";
  result.filesystem.identity.umask = static_cast<uint32_t>(options.umask.value_or(0));
  if (auto policy = ParseSymlinkPolicy(options.symlinks)) result.filesystem.symlinks = *policy;  // the table knows the same words
  result.unsent_directory = unsent_directory;
  result.drain_timeout = options.drain_timeout;
  result.stop_drain_timeout = std::min<std::chrono::milliseconds>(options.drain_timeout, kForcedDrainTime);
  result.on_drain_progress = [](int64_t bytes_left) {
    // Draining may take longer than the service manager waits: this asks for as long as it goes on.
    NotifyServiceManager(fmt::format("STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=Sending {}", HumanBytes(bytes_left)));
  };
  return result;
}

TransportStatus TransportStatusOf(const http::HttpClient& http, const transport::SandboxEndpoint& endpoint, const envd::Capabilities& capabilities) {
  TransportStatus status;
  switch (http.protocol_of(endpoint.origin())) {
    case http::Protocol::kHttp2: status.protocol = "h2"; break;
    case http::Protocol::kHttp1: status.protocol = "http/1.1"; break;
    case http::Protocol::kUnknown: status.protocol = "none yet"; break;
  }
  const http::PoolStatistics pool = http.statistics();
  status.requests = pool.requests;
  status.retries = pool.retries;
  status.bytes_sent = pool.bytes_sent;
  status.bytes_received = pool.bytes_received;
  status.connections = pool.connections_now;
  status.connections_opened = pool.connections_opened;
  status.can = capabilities.Names(true);
  status.cannot = capabilities.Names(false);
  return status;
}

void ReportEnd(const MountEnd& end, const std::string& spool_directory) {
  if (end.saved_in.empty() && end.error.empty()) return;
  if (!end.saved_in.empty()) {
    log::Error("mount", "{} file(s) could not be sent ({}); put aside in {}", end.unsent_files, end.error, end.saved_in);
  } else {
    log::Error("mount", "unsent data stays in {}: {}", spool_directory, end.error);
  }
}

// What earlier mounts of this sandbox left. What mounts of another directory or user of it accepted is theirs to send.
void SayWhatIsPutAside(const MountRequest& request, const cache::UnsentOwner& owner) {
  int64_t bytes = 0, files = 0, of_others = 0, unreadable = 0;
  for (const cache::UnsentEntry& entry : cache::ListUnsent(UnsentParent(request.state_directory))) {
    if (!entry.record) ++unreadable;
    if (!entry.record || entry.record->sandbox_id != owner.sandbox_id) continue;
    const std::string& scope = entry.record->scope;
    if (!scope.empty() && scope != owner.scope) continue;  // another one of that id
    const bool waits = entry.record->accepted && entry.problem.empty() && !scope.empty() && cache::OwnerOf(entry) != owner;
    if (waits) ++of_others;
    else bytes += entry.bytes, ++files;
  }
  if (unreadable > 0) log::Warning("mount", "of {} file(s) that earlier mounts left no record can be read, and nothing is sent: see e2bfs recover", unreadable);
  if (of_others > 0) {
    log::Warning("mount", "mounts of another directory or user of this sandbox accepted {} entr{} that {} not sent: the next mount of theirs sends it, or e2bfs recover --send", of_others,
                 of_others == 1 ? "y" : "ies", of_others == 1 ? "is" : "are");
  }
  if (files == 0) return;
  log::Warning("mount", "{} in {} file{} of this sandbox could not be sent by earlier mounts and {} put aside: see e2bfs recover", HumanBytes(bytes), files,
               files == 1 ? "" : "s", files == 1 ? "is" : "are");
}

// Tells whoever waits for the mount that this goes on: the service manager, and a person after a while.
class ReplayProgress {
 public:
  explicit ReplayProgress(size_t count) : count_(count), thread_([this](std::stop_token stop) { Run(stop); }) {}
  void Done() { ++done_; }

 private:
  void Run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    for (int ticks = 1; !tick_.wait_for(lock, stop, kReplayTick, [&] { return stop.stop_requested(); }) && !stop.stop_requested(); ++ticks) {
      NotifyServiceManager(fmt::format("EXTEND_TIMEOUT_USEC=30000000\nSTATUS=Sending what earlier mounts accepted: {} of {}", done_.load(), count_));
      if (ticks == 1) PrintErrorLine("mount", fmt::format("sending what earlier mounts accepted, before this one is there: {} of {} entries so far", done_.load(), count_));
    }
  }

  const size_t count_;
  std::atomic<size_t> done_{0};
  std::mutex mutex_;  // guards nothing but the wait
  std::condition_variable_any tick_;
  std::jthread thread_;
};

// What earlier mounts accepted (-o writeback) and did not send goes first. What cannot be sent stays, and nothing else depends on it.
void SendWhatWasAccepted(const MountRequest& request, const cache::UnsentOwner& owner, transport::RemoteFs& remote) {
  const std::string unsent = UnsentParent(request.state_directory);
  cache::ClearRemoved(unsent);
  const size_t count = cache::CountAccepted(unsent, owner);
  if (count == 0) return;
  if (request.options.read_only) {
    log::Warning("mount", "this mount is read-only: what earlier ones accepted ({} entries) is sent by the next one that is not", count);
    return;
  }
  ReplayProgress progress(count);
  auto lock = LockUnsent(request.state_directory, kMostWaitForSender, [] { log::Warning("mount", "waiting for another e2bfs that sends what earlier mounts left"); });
  if (!lock) {  // whoever has it sends it, or the next mount does
    log::Warning("mount", "what earlier mounts accepted is not sent: {}", ErrorText(lock.error()));
    return;
  }
  log::Info("mount", "sending what earlier mounts accepted: {} entries", count);
  int told = 0;
  const auto tell = [&](const cache::UnsentEntry& entry, const cache::SendReport& report) {
    progress.Done();
    const std::string name = fmt::format("{} {}", entry.id, cache::PrintableName(entry.record->path));
    if (report.outcome == cache::SendOutcome::kFailed || report.outcome == cache::SendOutcome::kConflictCopy) {
      if (++told > kMostEntriesTold) return;
      if (report.outcome == cache::SendOutcome::kFailed) {
        log::Warning("mount", "{}: accepted by an earlier mount, and not sent: {}", name, report.text);
      } else {
        log::Warning("mount", "{}: accepted by an earlier mount; conflict: {}; what was written is beside it: {}", name, report.text, cache::PrintableName(report.path));
      }
    } else if (!report.text.empty()) {
      log::Info("mount", "{}: sent ({})", name, report.text);
    }
  };
  const cache::ReplayReport report = cache::Replay(remote, unsent, owner, {request.options.operation_timeout, request.options.transfer_timeout}, tell);
  if (told > kMostEntriesTold) log::Warning("mount", "and {} more", told - kMostEntriesTold);
  log::Warning("mount", "of what earlier mounts accepted {} entries are sent, {} of them beside something else; {} stay", report.sent, report.conflicts, report.failed);
}

// Declared before what keeps files there.
struct SpoolDirectoryOwner {
  std::string path;
  ~SpoolDirectoryOwner() { RemoveSpoolDirectory(path); }
};

// Everything of one mount, from the network to the kernel, until it ends. `become_ready` is null in the foreground.
MountStep<void> ServeMount(const MountRequest& request, const BecomeReady* become_ready) {
  log::SetLevel(LogLevel(request.options.log_level));
  std::string log_file = request.options.log_file;
  if (!log_file.empty()) {
    if (auto opened = log::OpenFile(log_file); !opened) return Stop(ExitStatus::kFailure, ErrorText(opened.error()));
  } else if (become_ready != nullptr) {
    log_file = DefaultLogFile(request.state_directory);
    // Warnings of a mount that is being made are for the terminal, a trace is not.
    if (log::GetLevel() < log::Level::kWarning) {
      if (auto opened = log::OpenFile(log_file); !opened) log::SetLevel(log::Level::kWarning);
    }
  }

  const std::string spool_parent = request.options.spool_directory.empty() ? request.state_directory + "/spool" : request.options.spool_directory;
  auto spool_directory = MakeSpoolDirectory(spool_parent, UnsentParent(request.state_directory));
  if (!spool_directory) return Stop(ExitStatus::kFailure, "spool directory: " + ErrorText(spool_directory.error()));
  const SpoolDirectoryOwner spool_owner{*spool_directory};
  auto http = http::HttpClient::Create(request.http);
  if (!http) return Stop(RemoteExitStatus(http.error()), ErrorText(http.error()));
  const OpContext connect_context = OpContext::Within(kConnectTime);
  auto way = FindSandbox(request, **http, connect_context);
  if (!way) return tl::unexpected(way.error());
  auto client = MakeClient(request, **http, *way);
  std::string tier_reason;
  auto remote = OpenRemote(request, client, connect_context, &tier_reason);
  if (!remote) return tl::unexpected(remote.error());
  if (auto checked = CheckRealIds(request, (*remote)->description()); !checked) return checked;

  auto store = OpenStore(request.options);
  if (!store) return tl::unexpected(store.error());

  const std::string& sandbox_id = way->endpoint->sandbox_id();
  std::optional<KeepAlive> keep_alive;
  if (request.options.keep_alive && way->control_plane) keep_alive.emplace(*way->control_plane, sandbox_id, *request.options.sandbox_timeout_s);
  const std::string scope = SandboxScope(*way->endpoint);
  const cache::UnsentOwner owner{sandbox_id, (*remote)->description().user, (*remote)->description().root, scope};
  SendWhatWasAccepted(request, owner, **remote);
  SayWhatIsPutAside(request, owner);

  const std::string unsent_directory = UnsentDirectory(request.state_directory, sandbox_id);
  cache::CachedFsOptions cache_options = CacheOptions(request.options, *spool_directory, unsent_directory);
  cache_options.store = store->get();
  cache_options.settled_after = request.options.cache_after;
  cache_options.store_scope = scope;
  cache_options.sandbox_id = sandbox_id;
  auto cached = cache::CachedFs::Create(**remote, std::move(cache_options), OpContext::Within(kConnectTime));
  if (!cached) return Stop(RemoteExitStatus(cached.error()), ErrorText(cached.error()));

  std::stop_source end_request;
  MountControl control({request.mount_point, sandbox_id, way->template_id, unsent_directory, request.options.read_only, tier_reason}, **cached,
                       [&] { return TransportStatusOf(**http, *way->endpoint, client->capabilities()); }, end_request);
  const std::string socket = request.runtime_directory + "/" + ControlSocketName(request.mount_point, getpid());
  auto server = ControlServer::Create(socket, [&control](const std::string& asked, const ControlServer::SendLine& send) { control.Answer(asked, send); });
  if (!server) return Stop(ExitStatus::kFailure, ErrorText(server.error()));

  MountOptions mount_options = ToMountOptions(request, sandbox_id, (*remote)->description().root, unsent_directory);
  mount_options.stop = end_request.get_token();
  auto end = RunMount(mount_options, **cached, [&] {
    control.SetState("mounted");
    NotifyServiceManager(fmt::format("READY=1\nSTATUS=Sandbox {} is mounted on {}", sandbox_id, request.mount_point));
    if (become_ready == nullptr) return;
    if (!log_file.empty() && request.options.log_file.empty()) {
      // Without a log a mount is still a mount.
      if (auto opened = log::OpenFile(log_file); !opened) log_file.clear();
    }
    (*become_ready)(log_file);
  });
  control.SetState("unmounting");
  control.SetEnd(end ? *end : MountEnd{});
  keep_alive.reset();
  const bool idle = control.WaitUntilIdle(kControlIdleTime);
  if (end) ReportEnd(*end, *spool_directory);
  if (!idle || control.PutAside() || (end && end->operations_left)) {
    // Threads may still use the layers below, for as long as the sandbox does not answer. Nothing is lost by leaving: what was not sent is on disk. And what
    // is put aside may be sent by the next mount, beside which nothing of this one is to be under way.
    if (idle) server->reset();
    unlink(socket.c_str());
    const bool all_sent = !end || end->error.empty();
    _exit(static_cast<int>(!end ? ExitStatus::kFailure : all_sent ? ExitStatus::kOk : ExitStatus::kUnsentData));
  }
  server->reset();
  cached->reset();
  if (!end) {
    const bool missing = end.error().errno_value == ENODEV || end.error().errno_value == ENOSYS;
    return Stop(missing ? ExitStatus::kFuseMissing : ExitStatus::kMountPoint, ErrorText(end.error()));
  }
  if (!end->saved_in.empty()) {
    return Stop(ExitStatus::kUnsentData, fmt::format("{} file(s) could not be sent ({}); put aside in {}", end->unsent_files, end->error, end->saved_in));
  }
  if (!end->error.empty()) return Stop(ExitStatus::kUnsentData, end->error);
  return {};
}

ExitStatus PrintFailure(const CommandFailure& failure) {
  PrintErrorLine("mount", failure.text);
  return failure.status;
}

}  // namespace

ExitStatus MountCommand(const CommandLine& line) {
  ProtectSecrets();
  RaiseDescriptorLimit();
  auto request = PrepareRequest(line);
  if (!request) return PrintFailure(request.error());
  auto serve = [&](const BecomeReady* become_ready) {
    auto served = ServeMount(*request, become_ready);
    return served ? ExitStatus::kOk : PrintFailure(served.error());
  };
  if (request->foreground) return serve(nullptr);
  return static_cast<ExitStatus>(RunInBackground("mount", [&](const BecomeReady& ready) { return static_cast<int>(serve(&ready)); }));
}

}  // namespace e2bfs::fuse
