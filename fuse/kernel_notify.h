// KernelNotify: tells the kernel which pages, attributes and names are outdated, from a thread of its own. Nobody waits for it: an
// invalidation waits for reads in flight, which wait for us, so telling from inside a request would deadlock
// (libfuse, doc/README.notifications).
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "cache/cached_fs.h"

namespace e2bfs::fuse {

// One thing that the kernel has to forget: a node's pages and attributes, its attributes alone, or a name in a directory.
struct Outdated {
  cache::NodeId node = 0;
  bool pages = false;
  std::string name;  // not empty: the name in the directory `node`
  cache::NodeId left = 0;  // what had that name until then, if somebody else took it away
  friend auto operator<=>(const Outdated&, const Outdated&) = default;
};

class KernelNotify {
 public:
  // `invalidate` runs on the thread, one call at a time. The thread starts with the first.
  explicit KernelNotify(std::function<void(const Outdated&)> invalidate);
  // Joins the thread; what it waits for has to be over (the connection to the kernel is cut).
  ~KernelNotify();

  // No more of it. False: the thread still waits for the kernel (for a page of a read that will never be answered) after `wait`; then
  // this object must not be destroyed.
  bool Stop(std::chrono::milliseconds wait);

  // Any thread; never blocks. What waits already is not added again. When very much waits (the sandbox can make the kernel wait by an operation
  // that it does not end, and tell of new names meanwhile), names and attributes are left out: the kernel believes what it was told of
  // them for as long as it was told (attr_timeout). Pages it would believe for ever; only nodes that it opened have them.
  void Invalidate(Outdated outdated);

  // Whether the kernel may have come to that node by a name that it no longer has, since it was not told yet: an invalidation of a name waits for whoever
  // holds the directory, such as the making of a lock file, whose answer then overtakes it. Returns when it is told, or after `wait`. Any thread.
  bool IsLeaving(cache::NodeId node, std::chrono::milliseconds wait);

  static constexpr size_t kMostWaiting = 50'000;

 private:
  // In the order in which it came, nothing twice.
  struct Queue {
    std::set<Outdated> all;
    std::deque<std::set<Outdated>::const_iterator> order;
  };

  void Run();

  const std::function<void(const Outdated&)> invalidate_;
  std::mutex mutex_;  // a leaf: not held while the kernel is told
  std::condition_variable changed_;
  Queue waiting_, pages_;  // pages_: those with pages
  std::multiset<cache::NodeId> leaving_;
  bool ending_ = false;
  bool telling_ = false;
  std::thread thread_;
};

}  // namespace e2bfs::fuse
