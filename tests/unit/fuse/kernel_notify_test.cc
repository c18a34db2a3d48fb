#include "fuse/kernel_notify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <vector>

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

TEST(KernelNotifyTest, WhatWaitsIsBoundedButPagesAreAlwaysTold) {
  std::atomic<bool> hang{true};
  std::atomic<size_t> names{0}, pages{0};
  KernelNotify notify([&](const Outdated& outdated) {
    while (hang) std::this_thread::sleep_for(milliseconds(1));
    ++(outdated.pages ? pages : names);
  });
  for (size_t i = 0; i < KernelNotify::kMostWaiting + 1000; ++i) notify.Invalidate({1, false, "n" + std::to_string(i)});
  for (cache::NodeId node = 2; node < 1002; ++node) notify.Invalidate({node, true, {}});
  hang = false;
  while (pages < 1000 || names < KernelNotify::kMostWaiting) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(notify.Stop(milliseconds(60'000)));
  EXPECT_LE(names, KernelNotify::kMostWaiting + 1);  // one was being told
  EXPECT_EQ(pages, 1000u);
}

TEST(KernelNotifyTest, WhatLeavesIsKnownUntilTheKernelWasTold) {
  std::atomic<bool> hang{true};
  KernelNotify notify([&](const Outdated&) {
    while (hang) std::this_thread::sleep_for(milliseconds(1));
  });
  notify.Invalidate({1, false, "other"});
  notify.Invalidate({1, false, "name", 7});
  EXPECT_FALSE(notify.IsLeaving(8, milliseconds(60'000)));
  EXPECT_TRUE(notify.IsLeaving(7, milliseconds(1)));
  hang = false;
  while (notify.IsLeaving(7, milliseconds(60'000))) {
  }
  EXPECT_TRUE(notify.Stop(milliseconds(60'000)));
}

TEST(KernelNotifyTest, TellsInTheOrderInWhichItCame) {
  std::vector<cache::NodeId> told;  // by one thread
  std::atomic<bool> hang{true};
  std::atomic<size_t> count{0};
  KernelNotify notify([&](const Outdated& outdated) {
    while (hang) std::this_thread::sleep_for(milliseconds(1));
    told.push_back(outdated.node);
    ++count;
  });
  for (const cache::NodeId node : {5, 9, 2, 9, 7}) notify.Invalidate({node, false, "n"});
  hang = false;
  while (count < 4) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(notify.Stop(milliseconds(60'000)));
  told.erase(std::unique(told.begin(), told.end()), told.end());
  EXPECT_EQ(told, (std::vector<cache::NodeId>{5, 9, 2, 7}));
}

TEST(KernelNotifyTest, StopOfOneThatNeverBegan) {
  KernelNotify notify([](const Outdated&) { FAIL(); });
  EXPECT_TRUE(notify.Stop(milliseconds(0)));
}

}  // namespace
}  // namespace e2bfs::fuse
