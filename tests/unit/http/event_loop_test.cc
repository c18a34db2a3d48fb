#include "transport/http/event_loop.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace e2bfs::transport::http {
namespace {

TEST(EventLoop, RunsPostedJobsInOrderFromManyThreads) {
  auto loop = std::move(*EventLoop::Create());
  const auto queue = loop->queue();
  std::vector<std::vector<int>> seen(4);
  std::thread runner([&] { loop->Run(); });
  std::vector<std::thread> posters;
  for (size_t who = 0; who < 4; ++who) {
    posters.emplace_back([&, who] {
      for (int i = 0; i < 1000; ++i) ASSERT_TRUE(queue->Post([&seen, who, i] { seen[who].push_back(i); }));
    });
  }
  for (auto& poster : posters) poster.join();
  queue->Post([&] { loop->Stop(); });
  runner.join();
  for (const auto& list : seen) {
    ASSERT_EQ(list.size(), 1000u);
    for (int i = 0; i < 1000; ++i) EXPECT_EQ(list[static_cast<size_t>(i)], i);
  }
}

TEST(EventLoop, PostAfterTheEndSaysSo) {
  auto loop = std::move(*EventLoop::Create());
  const auto queue = loop->queue();
  queue->Post([&] { loop->Stop(); });
  bool late_ran = false;
  queue->Post([&] { queue->Post([&] { late_ran = true; }); });
  loop->Run();
  EXPECT_TRUE(late_ran) << "what was posted before the end runs";
  loop.reset();
  EXPECT_FALSE(queue->Post([] { FAIL(); }));
}

TEST(EventLoop, PostersMayOutliveTheLoop) {
  // Yesterday's race: the descriptor was closed under a thread that was just waking the loop.
  for (int round = 0; round < 200; ++round) {
    auto loop = std::move(*EventLoop::Create());
    std::atomic<bool> begun{false};
    std::thread poster([&begun, queue = loop->queue()] {
      begun = true;
      while (queue->Post([] {})) {
      }
    });
    while (!begun) std::this_thread::yield();
    loop->queue()->Post([&] { loop->Stop(); });
    loop->Run();
    loop.reset();
    poster.join();
  }
}

TEST(EventLoop, TimersRunByTimeAndCanBeCancelled) {
  auto loop = std::move(*EventLoop::Create());
  const TimePoint now = Clock::now();
  std::vector<int> order;
  loop->AddTimer(now + std::chrono::milliseconds(30), [&] { order.push_back(3); });
  loop->AddTimer(now + std::chrono::milliseconds(10), [&] { order.push_back(1); });
  EventLoop::TimerId cancelled = loop->AddTimer(now + std::chrono::milliseconds(20), [&] { order.push_back(2); });
  loop->AddTimer(now + std::chrono::milliseconds(15), [&] { loop->CancelTimer(cancelled); });
  loop->AddTimer(now + std::chrono::milliseconds(40), [&] {
    EXPECT_GE(Clock::now(), now + std::chrono::milliseconds(40));
    loop->Stop();
  });
  loop->Run();
  EXPECT_EQ(order, (std::vector<int>{1, 3}));
  EXPECT_EQ(cancelled, 0u);
}

TEST(EventLoop, AHandlerMayRemoveItselfAndOthers) {
  auto loop = std::move(*EventLoop::Create());
  int first[2];
  int second[2];
  ASSERT_EQ(pipe(first), 0);
  ASSERT_EQ(pipe(second), 0);
  ASSERT_EQ(write(first[1], "x", 1), 1);
  ASSERT_EQ(write(second[1], "x", 1), 1);
  int calls = 0;
  EventLoop::WatchId one = 0;
  EventLoop::WatchId two = 0;
  const auto handler = [&](uint32_t events) {
    EXPECT_NE(events & EPOLLIN, 0u);
    ++calls;
    loop->Unwatch(one);
    loop->Unwatch(two);
    loop->Defer([&] { loop->Stop(); });
  };
  one = loop->Watch(first[0], EPOLLIN, handler);
  two = loop->Watch(second[0], EPOLLIN, handler);
  ASSERT_NE(one, 0u);
  ASSERT_NE(two, 0u);
  loop->Run();
  EXPECT_EQ(calls, 1);
  for (int descriptor : {first[0], first[1], second[0], second[1]}) close(descriptor);
}

}  // namespace
}  // namespace e2bfs::transport::http
