// WorkerPool: threads for operations that may wait for the sandbox. Elastic: a thread more for each operation that finds
// none idle, up to the lane's limit, beyond which operations queue; idle threads end after a while.
//
// Lanes keep kinds of operations apart, so that a stalled transfer, or hundreds, never delay `ls`, and closing a file goes
// on while reads are stuck.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>

namespace e2bfs::fuse {

enum class Lane { kReaders, kNames, kRead, kWrite, kClose };  // kReaders: those who take requests from the kernel
inline constexpr size_t kLaneCount = 5;

struct WorkerPoolOptions {
  std::array<int, kLaneCount> max_threads{8, 256, 256, 64, 256};
  std::chrono::milliseconds idle_time{5'000};
};

// Any thread may call it. Threads block all signals.
class WorkerPool {
 public:
  explicit WorkerPool(WorkerPoolOptions options);
  // Stop(0), then leaves what still runs to itself: see Stop.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;

  // Runs `task` on a thread of the lane, later if all are busy. Dropped (destroyed unrun) after Stop. `task` must not throw.
  // False if it was dropped at once, also because not even one thread could be started.
  bool Submit(Lane lane, std::function<void()> task);

  // Takes no more and waits. True if everything is done.
  bool Wait(std::chrono::milliseconds time);

  // Takes no more and waits until everything is done. False if something still runs when the time is over: what is queued then is
  // destroyed, and threads go on with what they have (the pool's own state outlives it), so what their tasks use must stay.
  bool Stop(std::chrono::milliseconds wait);

  // Threads that exist now in the lane; for tests and status.
  int threads(Lane lane) const;

 private:
  struct Room;
  std::shared_ptr<Room> room_;
};

}  // namespace e2bfs::fuse
