#include "tests/sandbox/watcher.h"

#include <dirent.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

constexpr uint32_t kWatchMask = IN_CREATE | IN_MODIFY | IN_DELETE | IN_DELETE_SELF | IN_MOVED_TO |
                                IN_MOVED_FROM | IN_MOVE_SELF | IN_ATTRIB;
constexpr size_t kReportedLimit = 100000;

std::vector<std::string> SortedNames(const std::string& directory, int* error) {
  std::vector<std::string> names;
  DIR* stream = opendir(directory.c_str());
  *error = stream == nullptr ? errno : 0;
  if (stream == nullptr) {
    return names;
  }
  while (const dirent* entry = readdir(stream)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") {
      names.push_back(name);
    }
  }
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

bool IsRealDirectory(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

WatchEvent EventOfMask(std::string path, uint32_t mask) {
  WatchEvent event{std::move(path), {}};
  if ((mask & (IN_CREATE | IN_MOVED_TO)) != 0) event.types.emplace_back("CREATE");
  if ((mask & (IN_MOVE_SELF | IN_MOVED_FROM)) != 0) event.types.emplace_back("RENAME");
  if ((mask & IN_ATTRIB) != 0) event.types.emplace_back("CHMOD");
  if ((mask & IN_MODIFY) != 0) event.types.emplace_back("WRITE");
  if ((mask & (IN_DELETE | IN_DELETE_SELF)) != 0) event.types.emplace_back("REMOVE");
  return event;
}

}  // namespace

Watcher::~Watcher() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

int Watcher::Register(const std::string& path, bool recursive, bool by_user) {
  const int wd = inotify_add_watch(fd_, path.c_str(), kWatchMask);
  if (wd < 0) {
    return errno;
  }
  if (watches_.count(wd) == 0) {  // one inode by two paths keeps the first
    watches_[wd] = {path, recursive, by_user};
    by_path_[path] = wd;
  }
  return 0;
}

int Watcher::Add(const std::string& path, bool recursive) {
  fd_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (fd_ < 0) {
    return errno;
  }
  const std::string root = CleanPath(path);
  if (const int error = Register(root, recursive, true); error != 0 || !recursive) {
    return error;
  }
  std::vector<std::string> pending = {root};
  while (!pending.empty()) {
    const std::string directory = pending.back();
    pending.pop_back();
    int error = 0;
    for (const std::string& name : SortedNames(directory, &error)) {
      const std::string below = JoinPath(directory, name);
      if (IsRealDirectory(below)) {
        if (error = Register(below, true, false); error != 0 && error != EACCES && error != ENOENT) {
          return error;
        }
        pending.push_back(below);
      }
    }
  }
  return 0;
}

bool Watcher::Read(std::vector<WatchEvent>* events) {
  alignas(inotify_event) char buffer[65536];
  while (true) {
    const ssize_t got = read(fd_, buffer, sizeof(buffer));
    if (got <= 0) {
      return true;
    }
    for (ssize_t at = 0; at < got;) {
      const auto* raw = reinterpret_cast<const inotify_event*>(buffer + at);
      at += static_cast<ssize_t>(sizeof(inotify_event)) + raw->len;
      if ((raw->mask & IN_Q_OVERFLOW) != 0) {
        return false;
      }
      Handle(raw->wd, raw->mask, raw->cookie, raw->len > 0 ? std::string(raw->name) : std::string(), events);
    }
  }
}

void Watcher::Handle(int wd, uint32_t mask, uint32_t cookie, const std::string& name,
                     std::vector<WatchEvent>* events) {
  const auto found = watches_.find(wd);
  if (found == watches_.end()) {
    return;
  }
  const Watch watch = found->second;
  const std::string path = name.empty() ? watch.path : watch.path + "/" + name;
  const auto forget = [&] {
    by_path_.erase(watch.path);
    watches_.erase(wd);
  };
  if ((mask & (IN_IGNORED | IN_UNMOUNT)) != 0) {
    forget();
    return;
  }
  if ((mask & IN_DELETE_SELF) != 0) {
    forget();
  }
  if ((mask & IN_MOVE_SELF) != 0) {
    if (watch.recursive && !watch.by_user) {
      return;  // the parent tells
    }
    // Like fsnotify: what was watched below goes too, and nothing of it is heard any more.
    std::vector<int> going;
    for (const auto& [other, entry] : watches_) {
      if (other == wd || (watch.recursive && entry.path.starts_with(watch.path))) {
        going.push_back(other);
      }
    }
    for (const int other : going) {
      by_path_.erase(watches_[other].path);
      watches_.erase(other);
      inotify_rm_watch(fd_, other);
    }
    if (watch.recursive) {
      events->push_back({watch.path, {"RENAME"}});
      return;
    }
  }
  if ((mask & IN_DELETE_SELF) != 0 && by_path_.count(ParentPath(watch.path)) != 0) {
    return;  // the parent tells
  }
  WatchEvent event = EventOfMask(path, mask);
  std::string renamed_from;
  if ((mask & IN_MOVED_FROM) != 0 && cookie != 0) {
    cookies_[next_cookie_] = {cookie, path};
    next_cookie_ = (next_cookie_ + 1) % cookies_.size();
  } else if ((mask & IN_MOVED_TO) != 0 && cookie != 0) {
    for (const Cookie& kept : cookies_) {
      if (kept.value == cookie) {
        renamed_from = kept.path;
      }
    }
  }
  const bool was_reported = reported_.erase(path) > 0;
  if (was_reported && (mask & IN_CREATE) != 0) {
    return;
  }
  if (event.types.empty()) {
    return;
  }
  const bool new_directory =
      watch.recursive && (mask & IN_ISDIR) != 0 && (mask & (IN_CREATE | IN_MOVED_TO)) != 0;
  events->push_back(std::move(event));
  if (!new_directory) {
    return;
  }
  (void)Register(path, true, false);
  if (renamed_from.empty()) {
    FollowTree(path, events);
    return;
  }
  for (auto& [other, entry] : watches_) {
    if (other != wd && entry.path != path && entry.path.starts_with(renamed_from)) {
      by_path_.erase(entry.path);
      entry.path.replace(0, renamed_from.size(), path);
      by_path_[entry.path] = other;
    }
  }
}

// What came into being below a new directory before it could be watched.
void Watcher::FollowTree(const std::string& directory, std::vector<WatchEvent>* events) {
  int error = 0;
  for (const std::string& name : SortedNames(directory, &error)) {
    const std::string below = directory + "/" + name;
    if (reported_.size() >= kReportedLimit) {
      reported_.clear();
    }
    if (!reported_.insert(below).second) {
      continue;
    }
    events->push_back({below, {"CREATE"}});
    if (IsRealDirectory(below)) {
      (void)Register(below, true, false);
      FollowTree(below, events);
    }
  }
}

}  // namespace e2bfs::sandbox
