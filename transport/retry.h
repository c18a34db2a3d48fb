// Which calls may be repeated, and how long to wait before: one place for every client of transport/.
//
// The layers below already repeat, at once and silently, what provably never reached the server (http/client.h). What comes up
// here was answered ("not now") or is lost.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::transport {

enum class Repeat {
  kOnce,        // a change: repeated only when the server said that it did nothing
  kIdempotent,  // a read, or a change that may be done twice
};

// kConnect, kUnavailable and kRateLimited may always be repeated; kBroken and kTimeout only what is idempotent; nothing else.
bool MayRepeat(const Error& error, Repeat repeat);

struct RetryPolicy {
  int max_tries = 5;             // in all; those refused by a rate limit do not count while the deadline is not reached
  std::chrono::milliseconds first_wait{100};  // doubles with each try
  std::chrono::milliseconds longest_wait{5'000};
  // A rate limit is waited for at least this long, or what Retry-After says, up to longest_rate_limit_wait each time.
  std::chrono::milliseconds first_rate_limit_wait{500};
  std::chrono::milliseconds longest_rate_limit_wait{30'000};
  // Without a deadline in the context, the waits for a rate limit end after this many.
  int max_rate_limit_waits = 20;
};

// One operation's tries. Not shared between threads.
class Retrier {
 public:
  Retrier(Repeat repeat, const OpContext& ctx, RetryPolicy policy = {});

  // After a failed try: waits and returns success if another is due, otherwise the error to report: `error` itself; ETIMEDOUT/kTimeout if the context's
  // deadline comes before the next try would; EINTR/kCancelled if the stop is requested meanwhile.
  // Waits have jitter of a factor 0.5..1, so that many clients do not come back together.
  // `retry_after`: the answer's Retry-After, where it had one.
  Result<void> WaitToRepeat(const Error& error, std::optional<std::chrono::milliseconds> retry_after = {});

  int tries() const { return tries_; }

 private:
  const Repeat repeat_;
  const OpContext ctx_;
  const RetryPolicy policy_;
  int tries_ = 1;
  int rate_limit_waits_ = 0;
};

// The wait before try number `next_try` (2, 3, ...) without jitter.
std::chrono::milliseconds BackoffBeforeTry(const RetryPolicy& policy, int next_try);

// "120" or an HTTP date; nullopt for anything else. Never negative.
std::optional<std::chrono::milliseconds> ParseRetryAfter(std::string_view value, std::chrono::system_clock::time_point now);

// Sleeps until `until` or the context's deadline; EINTR/kCancelled when the stop is requested, ETIMEDOUT/kTimeout at the deadline.
Result<void> SleepUntil(TimePoint until, const OpContext& ctx);

}  // namespace e2bfs::transport
