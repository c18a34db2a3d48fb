// RateLimit: at most so many requests in any minute. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "transport/base/context.h"

namespace e2bfs::transport::http {

class RateLimit {
 public:
  // 0: no limit.
  explicit RateLimit(int64_t requests_per_minute) : limit_(requests_per_minute) {}

  // Counts one request and gives nullopt, or says when to ask again (at most a minute from `now`, which never goes back).
  std::optional<TimePoint> Take(TimePoint now);

 private:
  // Whole seconds; a token bucket would let twice the limit through in its first minute.
  static constexpr int64_t kSlots = 61;  // one more than the window: the current second is not over yet
  const int64_t limit_;
  std::array<int64_t, kSlots> slots_{};
  int64_t second_ = 0;  // of slots_[second_ % kSlots]
  int64_t sum_ = 0;
};

}  // namespace e2bfs::transport::http
