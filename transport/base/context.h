// OpContext: what every operation carries down through the layers: until when, whether anybody still wants it, and
// how urgent it is. Cheap to copy.
#pragma once

#include <chrono>
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

struct OpContext {
  // The whole operation, retries included, ends by then with ETIMEDOUT. max() means none: then only the idle and
  // handshake deadlines of the transport bound each wait (transfers whose length nobody can know).
  TimePoint deadline = TimePoint::max();
  // Requested when the caller is dying; the operation ends with EINTR as soon as it safely can. What was already sent
  // and changes names or content is not cancelled by it (the seam's implementations see to that).
  std::stop_token stop;
  ServiceClass service_class = ServiceClass::kMetadata;

  static OpContext Within(std::chrono::milliseconds time, ServiceClass service_class = ServiceClass::kMetadata) {
    return OpContext{Clock::now() + time, {}, service_class};
  }
  // The same operation without the right to be interrupted: flush, fsync, release, uploads, clean-up.
  OpContext Uninterruptible() const { return OpContext{deadline, {}, service_class}; }
};

}  // namespace e2bfs
