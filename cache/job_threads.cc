#include "cache/job_threads.h"

#include <chrono>
#include <system_error>
#include <utility>

namespace e2bfs::cache {

void JobThreads::Stop() {
  std::vector<std::jthread> threads;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    threads.swap(threads_);
  }
  for (std::jthread& thread : threads) thread.request_stop();
  threads.clear();  // joins
}

void JobThreads::StartThread() {
  threads_.emplace_back([this](std::stop_token stop) { Run(stop); });
}

void JobThreads::SetTick(std::function<void()> tick) {
  std::lock_guard lock(mutex_);
  tick_ = std::move(tick);
  StartThread();
}

bool JobThreads::Add(Job job) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  if (idle_ <= jobs_.size() && threads_.size() < most_threads_) {
    try {
      StartThread();
    } catch (const std::system_error&) {
      if (threads_.empty()) return false;
    }
  }
  jobs_.push_back(std::move(job));
  added_.notify_one();
  return true;
}

void JobThreads::Run(std::stop_token stop) {
  const auto has_job = [this] { return !jobs_.empty(); };
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    if (tick_) {
      added_.wait_for(lock, stop, std::chrono::seconds(1), has_job);
    } else {
      added_.wait(lock, stop, has_job);
    }
    --idle_;
    if (stop.stop_requested() && (jobs_.empty() || at_end_ == AtEnd::kDrop)) return;
    if (jobs_.empty()) {
      const auto tick = tick_;
      lock.unlock();
      tick();
      lock.lock();
      continue;
    }
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job(stop);
    job = nullptr;  // what it holds goes without the lock
    lock.lock();
  }
}

}  // namespace e2bfs::cache
