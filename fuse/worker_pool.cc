#include "fuse/worker_pool.h"

#include <signal.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <exception>
#include <thread>
#include <utility>

#include "transport/base/log.h"

namespace e2bfs::fuse {

struct WorkerPool::Room {
  struct LaneState {
    std::condition_variable work;
    std::deque<std::function<void()>> queue;
    int threads = 0;
    int idle = 0;
  };

  explicit Room(WorkerPoolOptions given) : options(given) {}

  const WorkerPoolOptions options;
  std::mutex mutex;  // a leaf: tasks run and are destroyed without it
  std::condition_variable thread_ended;
  std::array<LaneState, kLaneCount> lanes;
  bool stopping = false;

  static void RunThread(const std::shared_ptr<Room>& room, LaneState& lane) {
    std::unique_lock lock(room->mutex);
    while (true) {
      if (!lane.queue.empty()) {
        std::function<void()> task = std::move(lane.queue.front());
        lane.queue.pop_front();
        lock.unlock();
        task();
        task = nullptr;
        lock.lock();
        continue;
      }
      if (room->stopping) break;
      ++lane.idle;
      const bool woken = lane.work.wait_for(lock, room->options.idle_time,
                                            [&] { return room->stopping || !lane.queue.empty(); });
      --lane.idle;
      if (!woken) break;
    }
    --lane.threads;
    room->thread_ended.notify_all();
  }
};

WorkerPool::WorkerPool(WorkerPoolOptions options) : room_(std::make_shared<Room>(options)) {}

WorkerPool::~WorkerPool() { Stop(std::chrono::milliseconds(0)); }

bool WorkerPool::Submit(Lane lane_name, std::function<void()> task) {
  const size_t index = static_cast<size_t>(lane_name);
  Room::LaneState& lane = room_->lanes[index];
  std::unique_lock lock(room_->mutex);
  if (room_->stopping) {
    lock.unlock();
    return false;
  }
  lane.queue.push_back(std::move(task));
  // Idle threads that were woken but have not run yet still count as idle: compare with everything that is queued.
  if (static_cast<size_t>(lane.idle) >= lane.queue.size()) {
    lane.work.notify_one();
    return true;
  }
  if (lane.threads >= room_->options.max_threads[index]) return true;
  ++lane.threads;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  try {
    std::thread([room = room_, &lane] { Room::RunThread(room, lane); }).detach();
  } catch (const std::exception&) {
    started = false;
    --lane.threads;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (started || lane.threads > 0) return true;
  std::function<void()> dropped = std::move(lane.queue.back());
  lane.queue.pop_back();
  lock.unlock();
  log::Error("fuse", "cannot start a thread: an operation fails");
  return false;
}

bool WorkerPool::Wait(std::chrono::milliseconds time) {
  std::unique_lock lock(room_->mutex);
  if (!room_->stopping) {
    room_->stopping = true;
    for (auto& lane : room_->lanes) lane.work.notify_all();
  }
  return room_->thread_ended.wait_for(lock, time, [this] {
    for (const auto& lane : room_->lanes) {
      if (lane.threads > 0) return false;
    }
    return true;
  });
}

bool WorkerPool::Stop(std::chrono::milliseconds wait) {
  const bool ended = Wait(wait);
  std::array<std::deque<std::function<void()>>, kLaneCount> dropped;
  std::lock_guard lock(room_->mutex);
  for (size_t i = 0; i < kLaneCount; ++i) dropped[i].swap(room_->lanes[i].queue);
  return ended;
}

int WorkerPool::threads(Lane lane) const {
  std::lock_guard lock(room_->mutex);
  return room_->lanes[static_cast<size_t>(lane)].threads;
}

}  // namespace e2bfs::fuse
