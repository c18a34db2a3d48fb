#include "transport/retry.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "transport/secret.h"

namespace e2bfs::transport {
namespace {

using std::chrono::milliseconds;

Error RetryTestError(ErrorKind kind) {
  Error error;
  error.kind = kind;
  return error;
}

constexpr ErrorKind kAllKinds[] = {ErrorKind::kErrno,       ErrorKind::kBadRequest, ErrorKind::kUnauthorized, ErrorKind::kNotRunning,
                                   ErrorKind::kRateLimited, ErrorKind::kUnavailable, ErrorKind::kConnect,     ErrorKind::kBroken,
                                   ErrorKind::kTimeout,     ErrorKind::kProtocol,   ErrorKind::kCancelled,   ErrorKind::kLocal};

TEST(Retry, WhatMayBeRepeated) {
  const std::set<ErrorKind> always = {ErrorKind::kConnect, ErrorKind::kUnavailable, ErrorKind::kRateLimited};
  const std::set<ErrorKind> reads = {ErrorKind::kBroken, ErrorKind::kTimeout};
  for (const ErrorKind kind : kAllKinds) {
    EXPECT_EQ(MayRepeat(RetryTestError(kind), Repeat::kOnce), always.contains(kind)) << ToString(kind);
    EXPECT_EQ(MayRepeat(RetryTestError(kind), Repeat::kIdempotent), always.contains(kind) || reads.contains(kind)) << ToString(kind);
  }
}

TEST(Retry, BackoffDoublesToItsLimit) {
  RetryPolicy policy;
  policy.first_wait = milliseconds(100);
  policy.longest_wait = milliseconds(1000);
  const int expected[] = {100, 200, 400, 800, 1000, 1000};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(BackoffBeforeTry(policy, i + 2).count(), expected[i]);
  EXPECT_EQ(BackoffBeforeTry(policy, 1'000'000).count(), 1000);
}

RetryPolicy QuickRetries() {
  RetryPolicy policy;
  policy.first_wait = policy.longest_wait = milliseconds(1);
  policy.first_rate_limit_wait = milliseconds(1);
  policy.longest_rate_limit_wait = milliseconds(2);
  policy.max_rate_limit_waits = 7;
  return policy;
}

TEST(Retry, CountsItsTries) {
  const auto waits = [](ErrorKind kind, Repeat repeat) {
    Retrier retrier(repeat, OpContext{}, QuickRetries());
    int count = 0;
    while (retrier.WaitToRepeat(RetryTestError(kind))) ++count;
    return count;
  };
  EXPECT_EQ(waits(ErrorKind::kUnavailable, Repeat::kOnce), 4);
  EXPECT_EQ(waits(ErrorKind::kBroken, Repeat::kOnce), 0);
  EXPECT_EQ(waits(ErrorKind::kBroken, Repeat::kIdempotent), 4);
  EXPECT_EQ(waits(ErrorKind::kTimeout, Repeat::kIdempotent), 1);
  EXPECT_EQ(waits(ErrorKind::kRateLimited, Repeat::kOnce), 7);
  EXPECT_EQ(waits(ErrorKind::kErrno, Repeat::kIdempotent), 0);
}

TEST(Retry, EndsAtTheDeadlineWithoutWaitingForIt) {
  OpContext ctx = OpContext::Within(std::chrono::seconds(3600));
  Retrier retrier(Repeat::kOnce, ctx, [] {
    RetryPolicy policy;
    policy.longest_rate_limit_wait = std::chrono::hours(3);
    return policy;
  }());
  const auto result = retrier.WaitToRepeat(RetryTestError(ErrorKind::kRateLimited), std::chrono::hours(2));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::kTimeout);
  EXPECT_EQ(result.error().errno_value, ETIMEDOUT);
}

TEST(Retry, IsInterruptible) {
  std::stop_source stop;
  OpContext ctx;
  ctx.stop = stop.get_token();
  std::thread canceller([&] { stop.request_stop(); });
  const auto result = SleepUntil(Clock::now() + std::chrono::hours(1), ctx);
  canceller.join();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(result.error().errno_value, EINTR);
}

TEST(Retry, RetryAfterIsBounded) {
  RetryPolicy policy = QuickRetries();
  Retrier retrier(Repeat::kOnce, OpContext{}, policy);
  // A server that says "in a day" is waited for no longer than the policy allows: this returns.
  EXPECT_TRUE(retrier.WaitToRepeat(RetryTestError(ErrorKind::kRateLimited), std::chrono::hours(24)));
}

TEST(Retry, ParsesRetryAfter) {
  const auto now = std::chrono::system_clock::from_time_t(1795271486);  // Sat, 21 Nov 2026 14:31:26 GMT
  EXPECT_EQ(ParseRetryAfter("120", now), std::chrono::seconds(120));
  EXPECT_EQ(ParseRetryAfter("0", now), milliseconds(0));
  EXPECT_EQ(ParseRetryAfter("99999999999", now), std::chrono::hours(24));
  EXPECT_EQ(ParseRetryAfter("Sat, 21 Nov 2026 14:31:36 GMT", now), std::chrono::seconds(10));
  EXPECT_EQ(ParseRetryAfter("Sat, 21 Nov 2026 14:31:16 GMT", now), milliseconds(0));
  for (const char* bad : {"", "-1", "soon", "12x", "Sat, 21 Nov", "99999999999999999999999"}) EXPECT_FALSE(ParseRetryAfter(bad, now)) << bad;
}

TEST(Secret, HoldsAndCompares) {
  const Secret secret("e2b_0123");
  const Secret copy = secret;
  EXPECT_EQ(copy.Reveal(), "e2b_0123");
  EXPECT_TRUE(copy == secret);
  EXPECT_FALSE(copy == Secret("e2b_0124"));
  EXPECT_TRUE(Secret().empty());
  EXPECT_TRUE(Secret("").empty());
  std::string text = "hidden";
  Secret::Wipe(text);
  EXPECT_TRUE(text.empty());
}

}  // namespace
}  // namespace e2bfs::transport
