#include "transport/http/rate_limit.h"

#include <algorithm>

namespace e2bfs::transport::http {

std::optional<TimePoint> RateLimit::Take(TimePoint now) {
  if (limit_ <= 0) return std::nullopt;
  const int64_t second = std::chrono::floor<std::chrono::seconds>(now.time_since_epoch()).count();
  if (second - second_ >= kSlots) {
    slots_.fill(0);
    sum_ = 0;
    second_ = second;
  }
  while (second_ < second) {
    ++second_;
    int64_t& slot = slots_[static_cast<size_t>(second_ % kSlots)];
    sum_ -= slot;
    slot = 0;
  }
  if (sum_ < limit_) {
    ++slots_[static_cast<size_t>(second_ % kSlots)];
    ++sum_;
    return std::nullopt;
  }
  // When the oldest second that holds requests leaves the window.
  int64_t oldest = second_ - kSlots + 1;
  while (slots_[static_cast<size_t>((oldest + kSlots) % kSlots)] == 0) ++oldest;
  return TimePoint(std::chrono::seconds(std::max(oldest + kSlots, second_ + 1)));
}

}  // namespace e2bfs::transport::http
