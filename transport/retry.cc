#include "transport/retry.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <string>

#include "transport/base/waiting.h"

namespace e2bfs::transport {

bool MayRepeat(const Error& error, Repeat repeat) {
  switch (error.kind) {
    case ErrorKind::kConnect:
    case ErrorKind::kUnavailable:
    case ErrorKind::kRateLimited:
      return true;
    case ErrorKind::kBroken:
    case ErrorKind::kTimeout:
      return repeat == Repeat::kIdempotent;
    case ErrorKind::kErrno:
    case ErrorKind::kBadRequest:
    case ErrorKind::kUnauthorized:
    case ErrorKind::kNotRunning:
    case ErrorKind::kProtocol:
    case ErrorKind::kCancelled:
    case ErrorKind::kLocal:
      return false;
  }
  return false;
}

std::chrono::milliseconds BackoffBeforeTry(const RetryPolicy& policy, int next_try) {
  std::chrono::milliseconds wait = policy.first_wait;
  for (int i = 2; i < next_try && wait < policy.longest_wait; ++i) wait *= 2;
  return std::min(wait, policy.longest_wait);
}

Retrier::Retrier(Repeat repeat, const OpContext& ctx, RetryPolicy policy) : repeat_(repeat), ctx_(ctx), policy_(policy) {}

Result<void> Retrier::WaitToRepeat(const Error& error, std::optional<std::chrono::milliseconds> retry_after) {
  if (!MayRepeat(error, repeat_)) return Forward(error);
  std::chrono::milliseconds wait{0};
  if (error.kind == ErrorKind::kRateLimited) {
    ++rate_limit_waits_;
    if (ctx_.deadline == TimePoint::max() && rate_limit_waits_ > policy_.max_rate_limit_waits) return Forward(error);
    wait = policy_.first_rate_limit_wait;
    for (int i = 1; i < rate_limit_waits_ && wait < policy_.longest_rate_limit_wait; ++i) wait *= 2;
    wait = WithJitter(wait);
    if (retry_after) wait = std::max(wait, *retry_after);
    wait = std::min(wait, policy_.longest_rate_limit_wait);
  } else {
    // A deadline that was missed is worth one more try, not five: the waits were long already.
    const int most = error.kind == ErrorKind::kTimeout ? std::min(2, policy_.max_tries) : policy_.max_tries;
    if (tries_ >= most) return Forward(error);
    ++tries_;
    wait = WithJitter(BackoffBeforeTry(policy_, tries_));
    if (retry_after && error.kind == ErrorKind::kUnavailable) wait = std::clamp(*retry_after, wait, policy_.longest_wait);
  }
  const TimePoint until = Clock::now() + wait;
  if (until >= ctx_.deadline) {
    // Said now rather than at the deadline: nothing will change until then.
    return Failure(ErrorKind::kTimeout, ETIMEDOUT, "no time left to try again after: " + ToString(error));
  }
  return SleepUntil(until, ctx_);
}

std::optional<std::chrono::milliseconds> ParseRetryAfter(std::string_view value, std::chrono::system_clock::time_point now) {
  constexpr int64_t kLongest = 24 * 3600;
  int64_t seconds = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (error == std::errc() && end == value.data() + value.size() && !value.empty()) {
    if (seconds < 0) return std::nullopt;
    return std::chrono::seconds(std::min(seconds, kLongest));
  }
  // "Wed, 21 Oct 2026 07:28:00 GMT": with the C locale's names, which this process never leaves.
  std::tm parts{};
  const std::string text(value);
  const char* rest = strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  if (rest == nullptr || *rest != '\0') return std::nullopt;
  const auto until = std::chrono::system_clock::from_time_t(timegm(&parts));
  if (until <= now) return std::chrono::milliseconds(0);
  return std::min(std::chrono::duration_cast<std::chrono::milliseconds>(until - now),
                  std::chrono::milliseconds(std::chrono::seconds(kLongest)));
}

Result<void> SleepUntil(TimePoint until, const OpContext& ctx) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  wake.wait_until(lock, ctx.stop, std::min(until, ctx.deadline), [] { return false; });
  if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, "given up while waiting to try again");
  if (until > ctx.deadline) return Failure(ErrorKind::kTimeout, ETIMEDOUT, "deadline passed");
  return {};
}

}  // namespace e2bfs::transport
