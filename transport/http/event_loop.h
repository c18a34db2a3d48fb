// EventLoop: one thread's epoll with timers, and LoopQueue, the only way into it from other threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::transport::http {

// Jobs for the loop thread. Shared by the loop and by everybody who posts, and it owns the eventfd: a thread that is
// just waking the loop keeps the descriptor open, also when the loop has meanwhile ended.
class LoopQueue {
 public:
  using Job = std::function<void()>;

  static Result<std::shared_ptr<LoopQueue>> Create();
  ~LoopQueue();
  LoopQueue(const LoopQueue&) = delete;
  LoopQueue& operator=(const LoopQueue&) = delete;

  // Any thread. Jobs run in the order in which they were posted. False after Close: the job will not run.
  bool Post(Job job);

  // The rest is for the loop's thread.
  int descriptor() const { return descriptor_; }
  std::vector<Job> Take();   // what waits, and clears the wake-up
  std::vector<Job> Close();  // the same; Post fails from now on

 private:
  explicit LoopQueue(int descriptor) : descriptor_(descriptor) {}

  const int descriptor_;
  std::mutex mutex_;  // a leaf: nothing is called with it held
  std::vector<Job> jobs_;
  bool closed_ = false;
};

// Everything here is for the loop's own thread, and before that thread starts.
class EventLoop {
 public:
  using Job = std::function<void()>;
  using IoHandler = std::function<void(uint32_t events)>;  // EPOLLIN...
  using WatchId = uint64_t;                                // never 0, never reused
  using TimerId = uint64_t;                                // never 0, never reused

  static Result<std::unique_ptr<EventLoop>> Create();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  const std::shared_ptr<LoopQueue>& queue() const { return queue_; }

  // Runs until Stop, then the jobs that were posted before the queue closed.
  void Run();
  void Stop() { stopping_ = true; }

  // Level triggered. 0 if the kernel refuses. A handler may remove itself and others; what was removed is not called any more.
  WatchId Watch(int descriptor, uint32_t events, IoHandler handler);
  void ChangeWatch(WatchId id, uint32_t events);
  // Before the descriptor is closed.
  void Unwatch(WatchId id);

  // Runs once, not before `when`.
  TimerId AddTimer(TimePoint when, Job job);
  // Takes 0 and ids that have run; sets `id` to 0.
  void CancelTimer(TimerId& id);

  // Runs at the end of this turn of the loop, before it sleeps.
  void Defer(Job job) { deferred_.push_back(std::move(job)); }

 private:
  struct Watched {
    int descriptor;
    uint32_t events;
    std::shared_ptr<IoHandler> handler;
  };

  EventLoop(int epoll_descriptor, std::shared_ptr<LoopQueue> queue)
      : epoll_descriptor_(epoll_descriptor), queue_(std::move(queue)) {}
  int SleepMilliseconds() const;
  void RunTimers();
  void RunDeferred();

  const int epoll_descriptor_;
  const std::shared_ptr<LoopQueue> queue_;
  std::unordered_map<WatchId, Watched> watched_;
  std::map<std::pair<TimePoint, TimerId>, Job> timers_;
  std::unordered_map<TimerId, TimePoint> timer_times_;
  std::vector<Job> deferred_;
  uint64_t next_id_ = 1;
  bool stopping_ = false;
};

}  // namespace e2bfs::transport::http
