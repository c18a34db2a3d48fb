// MemoryBudget: the bound on what all readers of a mount buffer together. Any thread; never blocks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace e2bfs::cache {

class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  // Takes `bytes`, or nothing and false.
  bool TryTake(int64_t bytes) {
    int64_t used = used_.load();
    do {
      if (used + bytes > limit_bytes_) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    int64_t peak = peak_.load();
    while (peak < used + bytes && !peak_.compare_exchange_weak(peak, used + bytes)) {
    }
    return true;
  }
  void Give(int64_t bytes) { used_ -= bytes; }
  int64_t free_bytes() const { return std::max<int64_t>(0, limit_bytes_ - used_.load()); }
  int64_t used_bytes() const { return used_.load(); }
  int64_t peak_bytes() const { return peak_.load(); }
  int64_t limit_bytes() const { return limit_bytes_; }

 private:
  const int64_t limit_bytes_;
  std::atomic<int64_t> used_{0};
  std::atomic<int64_t> peak_{0};
};

}  // namespace e2bfs::cache
