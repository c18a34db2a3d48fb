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
  Queue& queue = outdated.pages ? pages_ : waiting_;
  if (!outdated.pages && waiting_.order.size() >= kMostWaiting) {
    left_out.Add();
    return;
  }
  const auto [place, is_new] = queue.all.insert(std::move(outdated));
  if (!is_new) return;
  queue.order.push_back(place);
  if (place->left != 0) leaving_.insert(place->left);
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error& thrown) {  // it waits for the next one
      log::Error("fuse", "cannot start the thread that tells the kernel: {}", thrown.what());
    }
  }
  changed_.notify_all();
}

bool KernelNotify::IsLeaving(cache::NodeId node, std::chrono::milliseconds wait) {
  std::unique_lock lock(mutex_);
  if (ending_ || !thread_.joinable() || !leaving_.contains(node)) return false;
  changed_.wait_for(lock, wait, [&] { return ending_ || !leaving_.contains(node); });
  return true;
}

void KernelNotify::Run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    Queue& from = pages_.order.empty() ? waiting_ : pages_;
    if (from.order.empty()) {
      changed_.wait(lock);
      continue;
    }
    const Outdated outdated = std::move(from.all.extract(from.order.front()).value());
    from.order.pop_front();
    telling_ = true;
    lock.unlock();
    invalidate_(outdated);
    lock.lock();
    telling_ = false;
    if (outdated.left != 0) leaving_.erase(leaving_.find(outdated.left));
    changed_.notify_all();
  }
}

}  // namespace e2bfs::fuse
