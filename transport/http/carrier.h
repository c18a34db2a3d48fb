// Carrier: what an exchange is with at the moment: the pool's queue, an HTTP/2 connection, or libcurl. Loop thread only.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "transport/base/error.h"

namespace e2bfs::transport::http {

class ExchangeState;
using ExchangePtr = std::shared_ptr<ExchangeState>;

// Why the caller no longer wants an exchange.
enum class Abandon {
  kNone,
  kCancelled,
  kTimeout,  // a deadline passed: the connection is suspect
};

class Carrier {
 public:
  // The consumer took that many bytes of the response.
  virtual void OnConsumed(const ExchangePtr& exchange, size_t bytes) = 0;
  // There is more of the request's body, or it has ended.
  virtual void OnRequestBodyReady(const ExchangePtr& exchange) = 0;
  // The carrier lets go of the exchange.
  virtual void OnAbandoned(const ExchangePtr& exchange, Abandon why) = 0;

 protected:
  ~Carrier() = default;
};

// How a try of an exchange ended.
struct TryOutcome {
  enum class Reach {
    kDone,         // the response is complete, or the exchange failed for good (`error`)
    kNeverSent,      // not a byte of it went out
    kUnsent,         // the server acted on nothing of it: GOAWAY was below it
    kConnectFailed,  // no connection came about
    kRefused,        // REFUSED_STREAM: not acted on, the server is busy
    kMaybeActedOn,   // it was sent, and the connection or the stream died
  };
  Reach reach = Reach::kDone;
  std::optional<Error> error;  // none: complete
};

}  // namespace e2bfs::transport::http
