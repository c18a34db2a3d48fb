#include "fuse/running_mounts.h"

#include <dirent.h>
#include <fmt/core.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <future>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>
#include <utility>

#include "fuse/directories.h"
#include "fuse/mount_table.h"

namespace e2bfs::fuse {
namespace {

constexpr std::chrono::milliseconds kDescribeTime{1000};
constexpr std::chrono::milliseconds kLivenessTime{2000};

std::vector<std::string> SocketsIn(const std::string& directory, const std::string& prefix) {
  std::vector<std::string> paths;
  DIR* opened = opendir(directory.c_str());
  if (opened == nullptr) return paths;
  while (const dirent* entry = readdir(opened)) {
    const std::string name = entry->d_name;
    if (name.starts_with(prefix) && name.ends_with(".sock")) paths.push_back(directory + "/" + name);
  }
  closedir(opened);
  return paths;
}

Result<RunningMount> DescribeSocket(const std::string& socket) {
  auto client = ControlClient::Connect(socket);
  if (!client) {
    // Left behind by a process that was killed: nobody can ever answer there again.
    if (client.error().errno_value == ECONNREFUSED) unlink(socket.c_str());
    return Forward(client.error());
  }
  if (auto sent = client->Send(R"({"command":"describe"})"); !sent) return Forward(sent.error());
  auto line = client->ReadLine(kDescribeTime);
  if (!line) return Forward(line.error());
  const auto json = nlohmann::json::parse(line->value_or(""), nullptr, false);
  if (!json.is_object() || !json.contains("mountpoint")) return Errno(EPROTO, socket);
  RunningMount mount;
  try {
    mount.directory = json.value("mountpoint", "");
    mount.sandbox_id = json.value("sandbox", "");
    mount.path = json.value("path", "");
    mount.state = json.value("state", "");
    mount.process_id = json.value("pid", int64_t{0});
    mount.dirty_bytes = json.value("dirty_bytes", int64_t{0});
  } catch (const nlohmann::json::exception&) {
    return Errno(EPROTO, socket);
  }
  mount.socket = socket;
  return mount;
}

std::vector<RunningMount> FindBySocketName(unsigned user, const std::string& prefix) {
  std::vector<RunningMount> mounts;
  for (const std::string& directory : RuntimeDirectoriesOf(user)) {
    for (const std::string& socket : SocketsIn(directory, prefix)) {
      if (auto mount = DescribeSocket(socket)) mounts.push_back(std::move(*mount));
    }
  }
  return mounts;
}

}  // namespace

std::vector<RunningMount> FindRunningMounts(unsigned user) { return FindBySocketName(user, ""); }

Result<RunningMount> FindRunningMount(unsigned user, const std::string& directory) {
  std::vector<RunningMount> mounts = FindBySocketName(user, ControlSocketPrefix(directory));
  const RunningMount* best = nullptr;
  for (const RunningMount& mount : mounts) {
    if (mount.directory == directory && (best == nullptr || best->state == "unmounting")) best = &mount;
  }
  if (best == nullptr) return Errno(ENOENT, directory);
  return *best;
}

bool IsDeadMount(const std::string& directory) {
  std::packaged_task<int()> ask([directory] {
    struct statvfs ignored {};
    return statvfs(directory.c_str(), &ignored) == 0 ? 0 : errno;
  });
  std::future<int> outcome = ask.get_future();
  std::thread asker;
  try {
    asker = std::thread(std::move(ask));
  } catch (const std::system_error&) {  // not known to be dead
    return false;
  }
  if (outcome.wait_for(kLivenessTime) != std::future_status::ready) {
    asker.detach();  // a mount that does not answer holds it
    return false;
  }
  asker.join();  // the caller may fork
  return outcome.get() == ENOTCONN;
}

Result<ControlClient> AskMount(const RunningMount& mount, const std::string& request) {
  auto client = ControlClient::Connect(mount.socket);
  if (!client) return client;
  if (auto sent = client->Send(request); !sent) return Forward(sent.error());
  return client;
}

Result<NamedMount> FindNamedMount(const std::string& directory) {
  auto table = ReadMountTable();
  if (!table) return Forward(table.error());
  auto canonical = CanonicalDirectory(directory, *table);
  if (!canonical) {
    return Failure(ErrorKind::kLocal, canonical.error().errno_value,
                   fmt::format("{}: {}", directory, strerrordesc_np(canonical.error().errno_value)));
  }
  NamedMount named;
  named.directory = *canonical;
  const auto entry = FindMount(*table, *canonical);
  named.in_mount_table = entry && entry->is_e2bfs();
  if (entry && !named.in_mount_table) {
    return Failure(ErrorKind::kLocal, EINVAL,
                   fmt::format("{}: what is mounted there is not of e2bfs (but {})", directory, entry->type));
  }
  auto running = FindRunningMount(named.in_mount_table ? entry->user_id : geteuid(), *canonical);
  if (running) {
    named.running = std::move(*running);
    return named;
  }
  if (!named.in_mount_table) {
    return Failure(ErrorKind::kLocal, EINVAL, fmt::format("{}: no sandbox is mounted there (see e2bfs list --mounts)", directory));
  }
  if (geteuid() != 0 && entry->user_id != geteuid()) {
    return Failure(ErrorKind::kLocal, EPERM, fmt::format("{}: was mounted by user {}", directory, entry->user_id));
  }
  if (!IsDeadMount(*canonical)) {
    return Failure(ErrorKind::kLocal, EHOSTUNREACH,
                   fmt::format("{}: the mount's process does not answer from here (fusermount3 -u {} unmounts all the same)", directory, directory));
  }
  return Failure(ErrorKind::kLocal, ENOTCONN,
                 fmt::format("{}: the mount is stale: its process is gone (clear it with e2bfs umount --force {})", directory, directory));
}

}  // namespace e2bfs::fuse
