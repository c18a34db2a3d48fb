#include "fuse/directories.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <pwd.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

#include "cache/spool.h"
#include "cache/unsent_record.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::fuse {
namespace {

constexpr char kLockName[] = ".lock";
constexpr int kMostWaitsForDying = 500;
constexpr std::chrono::milliseconds kWaitForDying{10}, kWaitForLock{50};
constexpr std::string_view kMovingPrefix = ".moving-";

// An absolute path out of the environment, or empty. Relative ones are ignored, as the XDG specification says.
std::string AbsoluteFromEnvironment(const char* name) {
  const char* value = getenv(name);
  return value != nullptr && value[0] == '/' ? value : "";
}

Result<void> CheckPrivate(const std::string& path, unsigned owner) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) return Errno(errno, path);
  if (!S_ISDIR(status.st_mode)) return Failure(ErrorKind::kLocal, ENOTDIR, path + ": is not a directory");
  if (status.st_uid != owner) {
    return Failure(ErrorKind::kLocal, EACCES,
                   fmt::format("{}: belongs to user {}, not to user {}; refusing to keep data there", path, status.st_uid, owner));
  }
  if ((status.st_mode & 077) != 0) {
    return Failure(ErrorKind::kLocal, EACCES,
                   fmt::format("{}: other users may enter it (mode {:o}); chmod 700 it, or remove it", path, status.st_mode & 07777));
  }
  return {};
}

std::vector<std::string> NamesIn(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return names;
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(directory);
  return names;
}

// Certainly: what cannot be read may hold something.
bool HoldsNothing(const std::string& path) {
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return errno == ENOENT;
  bool nothing = true;
  errno = 0;
  while (const dirent* entry = readdir(directory)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != ".." && name != kLockName) nothing = false;
    errno = 0;
  }
  nothing = nothing && errno == 0;
  closedir(directory);
  return nothing;
}

void RemoveTreeOn(const std::string& path, dev_t device) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0 || status.st_dev != device) return;
  if (!S_ISDIR(status.st_mode)) {
    unlink(path.c_str());
    return;
  }
  if ((status.st_mode & 0700) != 0700) chmod(path.c_str(), 0700);
  for (const std::string& name : NamesIn(path)) RemoveTreeOn(path + "/" + name, device);
  rmdir(path.c_str());
}

bool SaysNothingIsUnsent(const std::string& note) {
  const auto record = cache::ReadUnsentNote(note);
  return record && record->nothing;
}

bool IsEmptyFile(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0;
}

bool IsThere(const std::string& path) { return access(path.c_str(), F_OK) == 0 || errno != ENOENT; }

// Removes what says of itself that nothing in it is unsent, and notes that were never finished. An empty one is of a process that was killed between two
// system calls, when nothing was accepted; or of a machine that went down, and then nobody knows what it was of.
void RemoveWhatWasSent(const std::string& path) {
  const std::string_view suffix = cache::kUnsentNoteSuffix;
  int empty_notes = 0;
  for (const std::string& name : NamesIn(path)) {
    const std::string whole = path + "/" + name;
    if (name == kLockName || !IsThere(whole)) continue;
    if (name.ends_with(cache::kUnsentNoteTemporarySuffix)) {
      unlink(whole.c_str());
      continue;
    }
    if (name.ends_with(suffix)) {
      if (IsThere(whole.substr(0, whole.size() - suffix.size()))) continue;
      const bool empty = IsEmptyFile(whole);
      if (!empty && !SaysNothingIsUnsent(whole)) continue;
      empty_notes += empty;
      unlink(whole.c_str());
      continue;
    }
    const std::string note = whole + cache::kUnsentNoteSuffix;
    const bool empty = IsEmptyFile(note);
    const bool not_begun = IsEmptyFile(whole) && (empty || !IsThere(note));
    if (!not_begun && !SaysNothingIsUnsent(note)) continue;
    empty_notes += empty;
    unlink(whole.c_str());
    unlink(note.c_str());
  }
  if (empty_notes > 0) {
    log::Warning("mount", "{}: {} empty record(s): torn or never begun; if the machine went down meanwhile, something that was accepted may be lost", path, empty_notes);
  }
}

// Whether a process that was killed, and whose last threads are still about to end, has the file locked.
bool IsHeldByDying(int file) {
  struct stat status {};
  if (fstat(file, &status) != 0) return false;
  const std::string inode = fmt::format(":{} ", status.st_ino);
  std::ifstream locks("/proc/locks");  // "1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF"
  for (std::string line; std::getline(locks, line);) {
    if (line.find(inode) == std::string::npos) continue;
    std::istringstream words(line);
    std::string skipped, pid;
    words >> skipped >> skipped >> skipped >> skipped >> pid;
    std::ifstream facts(fmt::format("/proc/{}/status", pid));
    for (std::string fact; std::getline(facts, fact);) {
      if (fact.starts_with("State:") && fact.find_first_of("ZX") != std::string::npos) return true;
      const bool pending = fact.starts_with("SigPnd:") || fact.starts_with("ShdPnd:");
      if (pending && (strtoull(fact.c_str() + sizeof "SigPnd:", nullptr, 16) & 1ULL << (SIGKILL - 1)) != 0) return true;
    }
  }
  return false;
}

// Takes a lock that its holder leaves by its death.
bool LockDead(int lock) {
  for (int i = 0; flock(lock, LOCK_EX | LOCK_NB) != 0; ++i) {
    if (i == kMostWaitsForDying || !IsHeldByDying(lock)) return false;
    std::this_thread::sleep_for(kWaitForDying);
  }
  return true;
}

// To where the other names are, also on another file system: then all of it is there before anything is removed here. Whoever calls holds the lock.
Result<void> MoveLeftovers(const std::string& path, const std::string& parent, const std::string& name) {
  const std::string target = parent + "/" + name;
  if (rename(path.c_str(), target.c_str()) == 0) return {};
  if (errno != EXDEV) return Errno(errno, target);
  // What one that was killed here made: of this spool directory, whose lock is held.
  const std::string spool = path.substr(path.rfind('/'));
  for (const std::string& each : NamesIn(parent)) {
    if (each.starts_with(kMovingPrefix) && each.ends_with("-" + spool.substr(1))) RemoveTree(parent + "/" + each);
  }
  const std::string moving = parent + "/" + std::string(kMovingPrefix) + name;
  if (mkdir(moving.c_str(), 0700) != 0) return Errno(errno, moving);
  Result<void> copied;
  for (const std::string& each : NamesIn(path)) {
    if (each == kLockName || !copied) continue;
    const int from = open((path + "/" + each).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    copied = from < 0 ? Result<void>(Errno(errno, each)) : cache::CopySparse(from, moving + "/" + each);
    if (from >= 0) close(from);
    FaultPoint("leftovers.copied");
  }
  if (copied && rename(moving.c_str(), target.c_str()) != 0) copied = Errno(errno, target);
  FaultPoint("leftovers.moved");
  RemoveTree(copied ? path : moving);
  return copied;
}

// The words about each file, in one place.
void WriteUnsentText(const std::string& path) {
  std::string text = "left behind by a mount that died\n\n";
  for (const std::string& name : NamesIn(path)) {
    if (!name.ends_with(cache::kUnsentNoteSuffix)) continue;
    const std::string content = name.substr(0, name.size() - (sizeof cache::kUnsentNoteSuffix - 1));
    const auto record = cache::ReadUnsentNote(path + "/" + name);
    if (record && !record->nothing) text += cache::DescribeUnsent(*record, content);
    if (!record) text += fmt::format("what was written:    {}\nwhat it is:          {}\n\n", cache::PrintableName(content), record.error().message);
  }
  if (auto said = cache::AppendUnsentText(path, text); !said) log::Warning("mount", "{}", ToString(said.error()));
}

std::string TimeText() {
  char date[32] = "";
  const time_t now = time(nullptr);
  tm local{};
  localtime_r(&now, &local);
  strftime(date, sizeof date, "%Y%m%d-%H%M%S", &local);
  return date;
}

// Directories named e2bfs in which somebody listens on a unix socket: a mount may have been made with other environment variables.
std::vector<std::string> DirectoriesOfSockets() {
  std::vector<std::string> found;
  std::ifstream table("/proc/net/unix");
  for (std::string line; std::getline(table, line);) {
    const size_t slash = line.find(" /");
    if (slash == std::string::npos || !line.ends_with(".sock")) continue;
    const std::string directory = line.substr(slash + 1, line.rfind('/') - slash - 1);
    const bool ours = directory.ends_with("/e2bfs") || directory.find("/e2bfs-") != std::string::npos;
    if (ours && std::find(found.begin(), found.end(), directory) == found.end()) found.push_back(directory);
  }
  return found;
}

}  // namespace

Result<void> MakePrivateDirectory(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string parent = path.substr(0, slash);
    if (mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST && access(parent.c_str(), F_OK) != 0) return Errno(errno, parent);
  }
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return Errno(errno, path);
  return CheckPrivate(path, geteuid());
}

Result<std::string> StateDirectory() {
  std::string path;
  if (std::string base = AbsoluteFromEnvironment("XDG_STATE_HOME"); !base.empty()) {
    path = base + "/e2bfs";
  } else if (std::string home = AbsoluteFromEnvironment("HOME"); !home.empty() && access(home.c_str(), W_OK) == 0) {
    path = home + "/.local/state/e2bfs";
  } else {
    path = fmt::format("/var/tmp/e2bfs-{}", geteuid());
  }
  if (auto made = MakePrivateDirectory(path); !made) return Forward(made.error());
  return path;
}

std::string DefaultCacheDirectory() {
  if (std::string base = AbsoluteFromEnvironment("XDG_CACHE_HOME"); !base.empty()) return base + "/e2bfs";
  if (std::string home = AbsoluteFromEnvironment("HOME"); !home.empty() && access(home.c_str(), W_OK) == 0) return home + "/.cache/e2bfs";
  return fmt::format("/var/tmp/e2bfs-cache-{}", geteuid());
}

Result<std::string> RuntimeDirectory() {
  std::string path;
  if (std::string base = AbsoluteFromEnvironment("XDG_RUNTIME_DIR"); !base.empty() && access(base.c_str(), W_OK) == 0) {
    path = base + "/e2bfs";
  } else if (geteuid() == 0 && access("/run", W_OK) == 0) {
    path = "/run/e2bfs";
  } else {
    path = fmt::format("/tmp/e2bfs-{}", geteuid());
  }
  if (auto made = MakePrivateDirectory(path); !made) return Forward(made.error());
  return path;
}

std::vector<std::string> RuntimeDirectoriesOf(unsigned uid) {
  std::vector<std::string> candidates;
  if (std::string base = AbsoluteFromEnvironment("XDG_RUNTIME_DIR"); !base.empty() && uid == geteuid()) {
    candidates.push_back(base + "/e2bfs");
  }
  candidates.push_back(fmt::format("/run/user/{}/e2bfs", uid));
  if (uid == 0) candidates.push_back("/run/e2bfs");
  candidates.push_back(fmt::format("/tmp/e2bfs-{}", uid));
  for (std::string& path : DirectoriesOfSockets()) candidates.push_back(std::move(path));
  std::vector<std::string> safe;
  for (const std::string& path : candidates) {
    if (std::find(safe.begin(), safe.end(), path) != safe.end()) continue;
    if (CheckPrivate(path, uid)) safe.push_back(path);
  }
  return safe;
}

std::string UnsentParent(const std::string& state_directory) { return state_directory + "/unsent"; }

std::string UnsentDirectory(const std::string& state_directory, const std::string& sandbox_id) {
  return fmt::format("{}/{}-{}-{}", UnsentParent(state_directory), sandbox_id, TimeText(), getpid());
}

Result<cache::Descriptor> LockUnsent(const std::string& state_directory, std::optional<std::chrono::milliseconds> at_most, const std::function<void()>& waiting) {
  const std::string path = state_directory + "/recover.lock";
  cache::Descriptor lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.is_open()) return Errno(errno, path);
  if (flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  waiting();
  const auto began = std::chrono::steady_clock::now();
  while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR && errno != EWOULDBLOCK) return Errno(errno, path);
    if (at_most && std::chrono::steady_clock::now() - began >= *at_most) {
      return Failure(ErrorKind::kLocal, EWOULDBLOCK, path + ": another process of e2bfs still has it");
    }
    std::this_thread::sleep_for(kWaitForLock);
  }
  return lock;
}

void CleanLeftovers(const std::string& parent, const std::string& unsent_parent) {
  for (const std::string& name : NamesIn(parent)) {
    if (name.rfind("mount-", 0) != 0) continue;
    const std::string path = parent + "/" + name;
    const int lock = open((path + "/" + kLockName).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (lock < 0) continue;
    if (LockDead(lock)) {
      RemoveWhatWasSent(path);
      const std::string new_name = fmt::format("left-behind-{}-{}", TimeText(), name);
      const std::string kept = unsent_parent + "/" + new_name;
      if (HoldsNothing(path)) {
        RemoveTree(path);
      } else {
        auto moved = MakePrivateDirectory(unsent_parent);
        if (moved) moved = MoveLeftovers(path, unsent_parent, new_name);
        if (moved) {
          WriteUnsentText(kept);
          unlink((kept + "/" + kLockName).c_str());
        }
        log::Error("mount", "a mount died with data that was not sent: it is kept in {}{}", moved ? kept : path,
                   moved ? "" : ", since it cannot be put aside: " + ToString(moved.error()));
      }
    }
    close(lock);
  }
}

Result<std::string> MakeSpoolDirectory(const std::string& parent, const std::string& unsent_parent) {
  if (auto made = MakePrivateDirectory(parent); !made) return Forward(made.error());
  CleanLeftovers(parent, unsent_parent);
  std::string path = parent + "/mount-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) return Errno(errno, parent);
  const std::string lock_path = path + "/" + kLockName;
  const int lock = open(lock_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  // Held, and so never closed, until the process ends.
  if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) return Errno(errno, lock_path);
  return path;
}

void RemoveSpoolDirectory(const std::string& path) {
  if (!HoldsNothing(path)) return;
  unlink((path + "/" + kLockName).c_str());
  rmdir(path.c_str());
}

void RemoveTree(const std::string& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) == 0) RemoveTreeOn(path, status.st_dev);
}

}  // namespace e2bfs::fuse
