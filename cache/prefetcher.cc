#include "cache/prefetcher.h"

#include <system_error>

namespace e2bfs::cache {

void Prefetcher::Stop() {
  std::vector<std::jthread> threads;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    threads.swap(threads_);
  }
  for (std::jthread& thread : threads) thread.request_stop();
  threads.clear();  // joins
}

bool Prefetcher::Add(std::function<void(std::stop_token)> job) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  if (idle_ <= jobs_.size() && threads_.size() < most_threads_) {
    try {
      threads_.emplace_back([this](std::stop_token stop) { Run(stop); });
    } catch (const std::system_error&) {
      if (threads_.empty()) return false;
    }
  }
  jobs_.push_back(std::move(job));
  added_.notify_one();
  return true;
}

void Prefetcher::Run(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    const bool there = added_.wait(lock, stop, [this] { return !jobs_.empty(); });
    --idle_;
    if (!there || stop.stop_requested()) return;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job(stop);
    job = nullptr;  // what it holds goes without the lock
    lock.lock();
  }
}

}  // namespace e2bfs::cache
