// OpContext: what every operation carries down through the layers: until when, whether anybody still wants it, and
// how urgent it is. Cheap to copy.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>

namespace e2bfs {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

// Classes of service. Each has connections or streams reserved in the pool, so that a big copy never makes `ls` slow.
enum class ServiceClass {
  kMetadata,    // names and attributes, small calls
  kForeground,  // content that a program waits for
  kBulk,        // read-ahead, uploads
  kStream,      // long-lived: watches, process output
};

// Whom a new object belongs to, by the sandbox's numbers.
struct Creator {
  uint32_t uid = 0, gid = 0;
};

struct OpContext {
  // The whole operation, retries included, ends by then with ETIMEDOUT. max() means none: then only the idle and
  // handshake deadlines of the transport bound each wait (transfers whose length nobody can know).
  TimePoint deadline = TimePoint::max();
  // Requested when the caller is dying; the operation ends with EINTR as soon as it safely can. What was already sent
  // and changes names or content is not cancelled by it (the seam's implementations see to that).
  std::stop_token stop;
  ServiceClass service_class = ServiceClass::kMetadata;
  // Unset: the user that the mount acts as. Set only where that user is root and ids are real (-o ids=real).
  std::optional<Creator> creator = std::nullopt;
  // Of a transfer, not zero: the deadline is one for each step of it, and moves as the transfer gets on.
  std::chrono::milliseconds renewal{0};

  static OpContext Within(std::chrono::milliseconds time, ServiceClass service_class = ServiceClass::kMetadata) {
    return OpContext{Clock::now() + time, {}, service_class, {}, {}};
  }
  // The same operation without the right to be interrupted: flush, fsync, release, uploads, clean-up.
  OpContext Uninterruptible() const { return OpContext{deadline, {}, service_class, creator, renewal}; }
  // After a step that got on: the same, with the whole time for the next one.
  OpContext Renewed() const {
    OpContext next = *this;
    if (renewal.count() > 0 && deadline != TimePoint::max()) next.deadline = std::max(deadline, Clock::now() + renewal);
    return next;
  }
};

}  // namespace e2bfs
