// KernelNotify: tells the kernel which files' pages are outdated, from a thread of its own. Nobody waits for it: an
// invalidation waits for reads in flight, which wait for us, so telling from inside a request would deadlock
// (libfuse, doc/README.notifications).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <chrono>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "cache/cached_fs.h"

namespace e2bfs::fuse {

class KernelNotify {
 public:
  // `invalidate` runs on the thread, for one node at a time. The thread starts with the first node.
  explicit KernelNotify(std::function<void(cache::NodeId)> invalidate);
  // Joins the thread; what it waits for has to be over (the connection to the kernel is cut).
  ~KernelNotify();

  // No more of it. False: the thread still waits for the kernel (for a page of a read that will never be answered) after `wait`; then
  // this object must not be destroyed.
  bool Stop(std::chrono::milliseconds wait);

  // Any thread; never blocks. A node that waits already is not added again.
  void Invalidate(cache::NodeId node);

 private:
  void Run();

  const std::function<void(cache::NodeId)> invalidate_;
  std::mutex mutex_;  // a leaf: not held while the kernel is told
  std::condition_variable changed_;
  std::set<cache::NodeId> waiting_;
  bool ending_ = false;
  bool telling_ = false;
  std::thread thread_;
};

}  // namespace e2bfs::fuse
