#include "fuse/kernel_notify.h"

#include <system_error>
#include <utility>

#include "transport/base/log.h"
#include "transport/base/metrics.h"

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
  if (ending_) return;
  static Counter& left_out = Metrics::Get("fuse.kernel_not_told_count");
  if (outdated.pages) {
    pages_.insert(std::move(outdated));
  } else if (waiting_.size() < kMostWaiting) {
    waiting_.insert(std::move(outdated));
  } else {
    left_out.Add();
    return;
  }
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error& thrown) {  // it waits for the next one
      log::Error("fuse", "cannot start the thread that tells the kernel: {}", thrown.what());
    }
  }
  changed_.notify_one();
}

void KernelNotify::Run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    std::set<Outdated>& from = pages_.empty() ? waiting_ : pages_;
    if (from.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Outdated outdated = std::move(from.extract(from.begin()).value());
    telling_ = true;
    lock.unlock();
    invalidate_(outdated);
    lock.lock();
    telling_ = false;
    changed_.notify_all();
  }
}

}  // namespace e2bfs::fuse
