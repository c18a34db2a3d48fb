// FaultBook: the faults that are set, and which of them a request gets.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "tests/sandbox/server.h"

namespace e2bfs::sandbox {

// What a request has to suffer: a delay, and at most one other action.
struct TakenFault {
  int64_t delay_ms = 0;
  Fault fault;               // `action` empty: none
  uint64_t generation = 0;   // of the book when it was taken; a stall ends when the book's is another
};

// Thread-safe.
class FaultBook {
 public:
  void Add(Fault fault);
  void Clear();
  // Counts this request in every fault that it matches. `target` is path and query as sent.
  TakenFault Take(const std::string& method, const std::string& target);
  // Grows with each Clear.
  uint64_t generation() const;

 private:
  mutable std::mutex mutex_;  // innermost
  std::vector<Fault> faults_;
  uint64_t generation_ = 0;
};

// True for the actions of server.h.
bool IsFaultAction(const std::string& action);

}  // namespace e2bfs::sandbox
