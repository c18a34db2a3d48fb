// Watcher: inotify with the semantics of the fsnotify fork that envd uses, recursive watches included.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace e2bfs::sandbox {

struct WatchEvent {
  std::string path;
  std::vector<std::string>
      types;  // "CREATE", "RENAME", "CHMOD", "WRITE", "REMOVE": what one event means, in this order
};

// One thread's.
class Watcher {
 public:
  Watcher() = default;
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  // Watches the directory, with `recursive` everything below it too. 0 or an errno.
  int Add(const std::string& path, bool recursive);
  // Readable when there are events; -1 before Add.
  int fd() const { return fd_; }
  // What is there, without waiting. False when the kernel's queue has overflowed: events are lost.
  bool Read(std::vector<WatchEvent>* events);

 private:
  struct Watch {
    std::string path;
    bool recursive = false;
    bool by_user = false;
  };
  int Register(const std::string& path, bool recursive, bool by_user);
  void Handle(int wd, uint32_t mask, uint32_t cookie, const std::string& name,
              std::vector<WatchEvent>* events);
  void FollowTree(const std::string& directory, std::vector<WatchEvent>* events);

  int fd_ = -1;
  std::map<int, Watch> watches_;
  std::map<std::string, int> by_path_;
  struct Cookie {
    uint32_t value = 0;
    std::string path;
  };
  std::array<Cookie, 10> cookies_;
  size_t next_cookie_ = 0;
  // Found and reported while a new tree was followed: the kernel's own report of their creation may be still
  // to come, and is then left out. (A real envd reports such a path twice if it races.)
  std::set<std::string> reported_;
};

}  // namespace e2bfs::sandbox
