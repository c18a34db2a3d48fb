#include "fuse/kernel_notify.h"

#include <gtest/gtest.h>

#include <atomic>

namespace e2bfs::fuse {
namespace {

using std::chrono::milliseconds;

TEST(KernelNotifyTest, StopTellsWhetherTheKernelHangs) {
  std::atomic<int> told{0};
  std::atomic<bool> hang{true};
  KernelNotify notify([&](const Outdated&) {
    ++told;
    while (hang) std::this_thread::sleep_for(milliseconds(1));
  });
  notify.Invalidate({7, true, {}});
  while (told == 0) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_FALSE(notify.Stop(milliseconds(20)));
  notify.Invalidate({8, true, {}});  // too late
  hang = false;
  EXPECT_TRUE(notify.Stop(milliseconds(60'000)));
  EXPECT_EQ(told, 1);
}

TEST(KernelNotifyTest, StopOfOneThatNeverBegan) {
  KernelNotify notify([](const Outdated&) { FAIL(); });
  EXPECT_TRUE(notify.Stop(milliseconds(0)));
}

}  // namespace
}  // namespace e2bfs::fuse
