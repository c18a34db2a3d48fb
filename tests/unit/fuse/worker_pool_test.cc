#include "fuse/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

namespace e2bfs::fuse {
namespace {

constexpr std::chrono::seconds kPoolPatience{60};

// Holds tasks until it is opened; counts those inside.
class PoolGate {
 public:
  void Pass() {
    std::unique_lock lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    --inside_;
    ++passed_;
    changed_.notify_all();
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  bool WaitInside(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPoolPatience, [&] { return inside_ >= count; });
  }
  bool WaitPassed(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPoolPatience, [&] { return passed_ >= count; });
  }
  int inside() {
    std::lock_guard lock(mutex_);
    return inside_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int inside_ = 0;
  int passed_ = 0;
};

WorkerPoolOptions PoolWithLimit(int threads) {
  WorkerPoolOptions options;
  options.max_threads.fill(threads);
  return options;
}

TEST(WorkerPool, AStuckLaneDoesNotHoldUpTheOthers) {
  PoolGate stuck, open;
  open.Open();
  WorkerPool pool(PoolWithLimit(3));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(pool.Submit(Lane::kRead, [&] { stuck.Pass(); }));
  ASSERT_TRUE(stuck.WaitInside(3));
  for (const Lane lane : {Lane::kNames, Lane::kWrite, Lane::kClose}) {
    ASSERT_TRUE(pool.Submit(lane, [&] { open.Pass(); }));
  }
  EXPECT_TRUE(open.WaitPassed(3));
  EXPECT_EQ(pool.threads(Lane::kRead), 3);
  EXPECT_EQ(stuck.inside(), 3);
  stuck.Open();
  EXPECT_TRUE(stuck.WaitPassed(10));  // what queued runs later
  EXPECT_TRUE(pool.Stop(kPoolPatience));
}

TEST(WorkerPool, AThreadForEachTaskThatFindsNoneIdle) {
  PoolGate gate;
  WorkerPool pool(PoolWithLimit(200));
  for (int i = 0; i < 150; ++i) ASSERT_TRUE(pool.Submit(Lane::kNames, [&] { gate.Pass(); }));
  EXPECT_TRUE(gate.WaitInside(150));
  EXPECT_EQ(pool.threads(Lane::kNames), 150);
  gate.Open();
  EXPECT_TRUE(gate.WaitPassed(150));
  EXPECT_TRUE(pool.Stop(kPoolPatience));
  EXPECT_EQ(pool.threads(Lane::kNames), 0);
}

TEST(WorkerPool, IdleThreadsEnd) {
  WorkerPoolOptions options = PoolWithLimit(4);
  options.idle_time = std::chrono::milliseconds(1);
  WorkerPool pool(options);
  PoolGate gate;
  gate.Open();
  ASSERT_TRUE(pool.Submit(Lane::kNames, [&] { gate.Pass(); }));
  ASSERT_TRUE(gate.WaitPassed(1));
  const auto until = std::chrono::steady_clock::now() + kPoolPatience;
  while (pool.threads(Lane::kNames) > 0 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(pool.threads(Lane::kNames), 0);
  ASSERT_TRUE(pool.Submit(Lane::kNames, [&] { gate.Pass(); }));
  EXPECT_TRUE(gate.WaitPassed(2));
  EXPECT_TRUE(pool.Stop(kPoolPatience));
}

TEST(WorkerPool, StopWaitsForWhatIsQueued) {
  std::atomic<int> done{0};
  WorkerPool pool(PoolWithLimit(1));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(pool.Submit(Lane::kClose, [&] { ++done; }));
  EXPECT_TRUE(pool.Stop(kPoolPatience));
  EXPECT_EQ(done, 100);
  EXPECT_FALSE(pool.Submit(Lane::kClose, [&] { ++done; }));
  EXPECT_EQ(done, 100);
}

TEST(WorkerPool, StopGivesUpAndDropsWhatIsQueued) {
  // Owned by the task that is left behind, too.
  const auto gate = std::make_shared<PoolGate>();
  auto dropped = std::make_shared<int>(0);
  {
    WorkerPool pool(PoolWithLimit(1));
    ASSERT_TRUE(pool.Submit(Lane::kRead, [gate] { gate->Pass(); }));
    ASSERT_TRUE(gate->WaitInside(1));
    ASSERT_TRUE(pool.Submit(Lane::kRead, [dropped] { ++*dropped; }));
    EXPECT_EQ(dropped.use_count(), 2);
    EXPECT_FALSE(pool.Stop(std::chrono::milliseconds(1)));
    EXPECT_EQ(dropped.use_count(), 1);
  }
  EXPECT_EQ(*dropped, 0);
  gate->Open();
  EXPECT_TRUE(gate->WaitPassed(1));
}

}  // namespace
}  // namespace e2bfs::fuse
