#include "fuse/kernel_notify.h"

#include <utility>

namespace e2bfs::fuse {

KernelNotify::KernelNotify(std::function<void(const Outdated&)> invalidate) : invalidate_(std::move(invalidate)) {}

KernelNotify::~KernelNotify() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool KernelNotify::Stop(std::chrono::milliseconds wait) {
  std::unique_lock lock(mutex_);
  ending_ = true;
  changed_.notify_all();
  return changed_.wait_for(lock, wait, [this] { return !telling_; });
}

void KernelNotify::Invalidate(Outdated outdated) {
  std::lock_guard lock(mutex_);
  if (ending_ || !waiting_.insert(std::move(outdated)).second) return;
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  changed_.notify_one();
}

void KernelNotify::Run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (waiting_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Outdated outdated = std::move(waiting_.extract(waiting_.begin()).value());
    telling_ = true;
    lock.unlock();
    invalidate_(outdated);
    lock.lock();
    telling_ = false;
    changed_.notify_all();
  }
}

}  // namespace e2bfs::fuse
