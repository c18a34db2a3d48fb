// Counters of the whole process, shown by `e2bfs status`. Names read layer, noun, unit: "cache.attribute_hits_count".
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace e2bfs {

// Increments are relaxed atomics: nothing depends on their order.
class Counter {
 public:
  void Add(int64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

class Metrics {
 public:
  // The counter of that name, made on first use; the reference stays valid for the life of the process. Takes a lock:
  // keep the reference in a static or a member. Any thread.
  static Counter& Get(std::string_view name);
  // Every counter that was ever asked for, by name.
  static std::map<std::string, int64_t> Snapshot();
};

}  // namespace e2bfs
