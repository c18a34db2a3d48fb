// JobThreads: a few threads for what nobody should wait for: fetching ahead, sending, closing files on the other side.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace e2bfs::cache {

class JobThreads {
 public:
  using Job = std::function<void(std::stop_token)>;
  // What becomes of the jobs that were not begun at the end. kRun: they are called with a stop that is already requested.
  enum class AtEnd { kDrop, kRun };

  // Threads are started when there are jobs for them, at most so many.
  JobThreads(size_t most_threads, AtEnd at_end) : most_threads_(most_threads), at_end_(at_end) {}
  ~JobThreads() { Stop(); }
  JobThreads(const JobThreads&) = delete;
  JobThreads& operator=(const JobThreads&) = delete;

  // Any thread; never blocks. Jobs begin in the order in which they were added. False: there is no thread for it.
  bool Add(Job job);
  // Called about once a second by a thread that has nothing else to do. Before the first Add; starts a thread, or throws.
  void SetTick(std::function<void()> tick);
  // Ends the jobs that run, and waits for them. Nothing is added any more.
  void Stop();

 private:
  void StartThread();
  void Run(std::stop_token stop);

  const size_t most_threads_;
  const AtEnd at_end_;
  std::mutex mutex_;  // a leaf
  std::condition_variable_any added_;
  std::deque<Job> jobs_;
  std::function<void()> tick_;
  size_t idle_ = 0;
  bool stopped_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace e2bfs::cache
