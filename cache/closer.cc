#include "cache/closer.h"

#include <chrono>

namespace e2bfs::cache {

Closer::Closer() : thread_([this](std::stop_token stop) { Run(stop); }) {}

Closer::~Closer() {
  thread_.request_stop();
  thread_.join();
}

void Closer::Add(std::function<void(std::stop_token)> job) {
  std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
  added_.notify_one();
}

void Closer::SetTick(std::function<void()> tick) {
  std::lock_guard lock(mutex_);
  tick_ = std::move(tick);
}

void Closer::Run(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  for (;;) {
    added_.wait_for(lock, stop, std::chrono::seconds(1), [this] { return !jobs_.empty(); });
    if (jobs_.empty()) {
      if (stop.stop_requested()) return;
      if (auto tick = tick_) {
        lock.unlock();
        tick();
        lock.lock();
      }
      continue;
    }
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job(stop);
    job = nullptr;  // what it holds goes without the lock
    lock.lock();
  }
}

}  // namespace e2bfs::cache
