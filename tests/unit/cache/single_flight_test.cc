#include "cache/single_flight.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

namespace e2bfs::cache {
namespace {

TEST(SingleFlightTest, AQuestionThatThrewIsAskedByWhoWaitsForIt) {
  SingleFlight<int> flights;
  const OpContext ctx = OpContext::Within(std::chrono::seconds(30));
  std::atomic<bool> asking{false};
  std::thread other([&] {
    while (!asking) std::this_thread::yield();
    const auto answer = flights.Do("question", ctx, [] { return Result<int>(7); });
    EXPECT_EQ(answer.value_or(0), 7);
  });
  EXPECT_THROW((void)flights.Do("question", ctx,
                                [&]() -> Result<int> {
                                  asking = true;
                                  std::this_thread::sleep_for(std::chrono::milliseconds(100));
                                  throw std::runtime_error("no memory");
                                }),
               std::runtime_error);
  other.join();
  EXPECT_EQ(flights.Do("question", ctx, [] { return Result<int>(8); }).value_or(0), 8);
}

}  // namespace
}  // namespace e2bfs::cache
