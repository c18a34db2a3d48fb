#include "tests/sandbox/fault_book.h"

#include <algorithm>
#include <string_view>

#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {

bool IsFaultAction(const std::string& action) {
  static constexpr std::string_view kActions[] = {
      "status", "delay", "stall", "stall_request", "reset", "close", "cut", "reset_request",
      "late_request", "refuse", "goaway", "goaway_refuse", "freeze", "replace_body"};
  return std::find(std::begin(kActions), std::end(kActions), action) != std::end(kActions);
}

void FaultBook::Add(Fault fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(std::move(fault));
}

void FaultBook::Clear() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
  ++generation_;
}

TakenFault FaultBook::Take(const std::string& method, const std::string& target) {
  const std::string as_sent = method + " " + target;
  const std::string decoded = method + " " + PercentDecode(target, false);
  TakenFault taken;
  const std::lock_guard lock(mutex_);
  taken.generation = generation_;
  for (Fault& fault : faults_) {
    if (as_sent.find(fault.match) == std::string::npos && decoded.find(fault.match) == std::string::npos) {
      continue;
    }
    if (fault.skip > 0) {
      --fault.skip;
      continue;
    }
    const bool is_delay = fault.action == "delay";
    // One action for a request: the other faults that match wait for the next one.
    if (fault.count == 0 || (!is_delay && !taken.fault.action.empty())) {
      continue;
    }
    if (fault.count > 0) {
      --fault.count;
    }
    if (is_delay) {
      taken.delay_ms += fault.delay_ms;
    } else {
      taken.fault = fault;
    }
  }
  std::erase_if(faults_, [](const Fault& fault) { return fault.count == 0; });
  return taken;
}

uint64_t FaultBook::generation() const {
  const std::lock_guard lock(mutex_);
  return generation_;
}

}  // namespace e2bfs::sandbox
