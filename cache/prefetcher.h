// Prefetcher: a few threads that fetch ahead of their readers.
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

class Prefetcher {
 public:
  // Threads are started when there are jobs for them, at most so many.
  explicit Prefetcher(size_t most_threads) : most_threads_(most_threads) {}
  ~Prefetcher() { Stop(); }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Any thread; never blocks. Jobs begin in the order in which they were added. False: there is no thread for it.
  bool Add(std::function<void(std::stop_token)> job);
  // Ends the jobs that run, and waits for them; those that were not begun are dropped. Nothing is added any more.
  void Stop();

 private:
  void Run(std::stop_token stop);

  const size_t most_threads_;
  std::mutex mutex_;  // a leaf
  std::condition_variable_any added_;
  std::deque<std::function<void(std::stop_token)>> jobs_;
  size_t idle_ = 0;
  bool stopped_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace e2bfs::cache
