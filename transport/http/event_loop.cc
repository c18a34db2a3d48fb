#include "transport/http/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace e2bfs::transport::http {

Result<std::shared_ptr<LoopQueue>> LoopQueue::Create() {
  const int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (descriptor < 0) return Failure(ErrorKind::kLocal, errno, "eventfd failed");
  return std::shared_ptr<LoopQueue>(new LoopQueue(descriptor));
}

LoopQueue::~LoopQueue() { close(descriptor_); }

bool LoopQueue::Post(Job job) {
  bool wake = false;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    wake = jobs_.empty();
    jobs_.push_back(std::move(job));
  }
  // Outside the lock: the caller's reference keeps the descriptor open, whatever the loop does now.
  if (wake) {
    const uint64_t one = 1;
    if (write(descriptor_, &one, sizeof one) < 0) return true;  // full: it is awake anyway
  }
  return true;
}

std::vector<LoopQueue::Job> LoopQueue::Take() {
  uint64_t count = 0;
  if (read(descriptor_, &count, sizeof count) < 0) count = 0;  // EAGAIN: nothing new
  std::vector<Job> jobs;
  std::lock_guard lock(mutex_);
  jobs.swap(jobs_);
  return jobs;
}

std::vector<LoopQueue::Job> LoopQueue::Close() {
  std::vector<Job> jobs;
  std::lock_guard lock(mutex_);
  closed_ = true;
  jobs.swap(jobs_);
  return jobs;
}

Result<std::unique_ptr<EventLoop>> EventLoop::Create() {
  auto queue = LoopQueue::Create();
  if (!queue) return Forward(queue.error());
  const int descriptor = epoll_create1(EPOLL_CLOEXEC);
  if (descriptor < 0) return Failure(ErrorKind::kLocal, errno, "epoll_create1 failed");
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (epoll_ctl(descriptor, EPOLL_CTL_ADD, (*queue)->descriptor(), &event) != 0) {
    const int reason = errno;
    close(descriptor);
    return Failure(ErrorKind::kLocal, reason, "epoll_ctl failed");
  }
  return std::unique_ptr<EventLoop>(new EventLoop(descriptor, std::move(*queue)));
}

EventLoop::~EventLoop() { close(epoll_descriptor_); }

EventLoop::WatchId EventLoop::Watch(int descriptor, uint32_t events, IoHandler handler) {
  const WatchId id = next_id_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (epoll_ctl(epoll_descriptor_, EPOLL_CTL_ADD, descriptor, &event) != 0) return 0;
  watched_.emplace(id, Watched{descriptor, events, std::make_shared<IoHandler>(std::move(handler))});
  return id;
}

void EventLoop::ChangeWatch(WatchId id, uint32_t events) {
  auto found = watched_.find(id);
  if (found == watched_.end() || found->second.events == events) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (epoll_ctl(epoll_descriptor_, EPOLL_CTL_MOD, found->second.descriptor, &event) == 0) found->second.events = events;
}

void EventLoop::Unwatch(WatchId id) {
  auto found = watched_.find(id);
  if (found == watched_.end()) return;
  epoll_ctl(epoll_descriptor_, EPOLL_CTL_DEL, found->second.descriptor, nullptr);
  watched_.erase(found);
}

EventLoop::TimerId EventLoop::AddTimer(TimePoint when, Job job) {
  const TimerId id = next_id_++;
  timers_.emplace(std::make_pair(when, id), std::move(job));
  timer_times_.emplace(id, when);
  return id;
}

void EventLoop::CancelTimer(TimerId& id) {
  auto found = timer_times_.find(id);
  if (found != timer_times_.end()) {
    timers_.erase({found->second, id});
    timer_times_.erase(found);
  }
  id = 0;
}

int EventLoop::SleepMilliseconds() const {
  if (!deferred_.empty() || stopping_) return 0;
  if (timers_.empty()) return -1;
  const auto left = timers_.begin()->first.first - Clock::now();
  if (left <= Clock::duration::zero()) return 0;
  // Rounded up, or the loop would spin for the last millisecond.
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<int>(std::min<int64_t>(milliseconds, 3'600'000));
}

void EventLoop::RunTimers() {
  const TimePoint now = Clock::now();
  // Timers that a timer adds run in the next turn, also when they are due: sockets get theirs in between.
  const TimerId limit = next_id_;
  for (auto next = timers_.begin(); next != timers_.end() && next->first.first <= now;) {
    if (next->first.second >= limit) {
      ++next;
      continue;
    }
    Job job = std::move(next->second);
    timer_times_.erase(next->first.second);
    timers_.erase(next);
    job();
    next = timers_.begin();
  }
}

void EventLoop::RunDeferred() {
  std::vector<Job> jobs;
  jobs.swap(deferred_);
  for (Job& job : jobs) job();
}

void EventLoop::Run() {
  std::array<epoll_event, 64> events;
  while (!stopping_) {
    const int count = epoll_wait(epoll_descriptor_, events.data(), static_cast<int>(events.size()), SleepMilliseconds());
    for (int i = 0; i < count; ++i) {
      const WatchId id = events[static_cast<size_t>(i)].data.u64;
      if (id == 0) {
        for (Job& job : queue_->Take()) job();
        continue;
      }
      auto found = watched_.find(id);
      if (found == watched_.end()) continue;  // removed by an earlier handler of this turn
      const auto handler = found->second.handler;
      (*handler)(events[static_cast<size_t>(i)].events);
    }
    RunTimers();
    RunDeferred();
  }
  for (Job& job : queue_->Close()) job();
}

}  // namespace e2bfs::transport::http
