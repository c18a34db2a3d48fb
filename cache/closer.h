// Closer: one thread that does what nobody should wait for: closing files on the other side, ending readers.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace e2bfs::cache {

class Closer {
 public:
  Closer();
  // Jobs that were not done yet are still called, with a stop that is already requested.
  ~Closer();
  // The job is called once by the thread. Any thread may add; never blocks.
  void Add(std::function<void(std::stop_token)> job);
  // Called about once a second while there is nothing else to do; set before the first Add.
  void SetTick(std::function<void()> tick);

 private:
  void Run(std::stop_token stop);

  std::mutex mutex_;  // a leaf
  std::condition_variable_any added_;
  std::deque<std::function<void(std::stop_token)>> jobs_;
  std::function<void()> tick_;
  std::jthread thread_;
};

}  // namespace e2bfs::cache
