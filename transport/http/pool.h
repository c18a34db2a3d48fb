// Pool: which connection gets which request, and when connections open and close. Loop thread only.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "transport/http/carrier.h"
#include "transport/http/dialer.h"
#include "transport/http/exchange_state.h"
#include "transport/http/h1_client.h"
#include "transport/http/h2_connection.h"
#include "transport/http/origin.h"
#include "transport/http/rate_limit.h"

namespace e2bfs::transport::http {

// The protocol last used with each origin, by its canonical text. Any thread.
class ProtocolTable {
 public:
  void Set(const std::string& origin, Protocol protocol) {
    std::lock_guard lock(mutex_);
    table_[origin] = protocol;
  }
  Protocol Get(const std::string& origin) const {
    std::lock_guard lock(mutex_);
    auto found = table_.find(origin);
    return found == table_.end() ? Protocol::kUnknown : found->second;
  }

 private:
  mutable std::mutex mutex_;  // a leaf
  std::map<std::string, Protocol> table_;
};

inline constexpr size_t kServiceClassCount = 4;

// What the pool holds for one origin.
struct OriginPool {
  enum class Mode { kAsk, kHttp1, kHttp2 };  // kAsk: ALPN will tell

  Origin origin;
  Mode mode = Mode::kAsk;
  std::array<std::deque<ExchangePtr>, kServiceClassCount> queues;  // FIFO each
  std::vector<std::unique_ptr<H2Connection>> connections;
  std::unique_ptr<Dialer> dialer;  // the one connection that is being opened
  int dial_failures = 0;           // in a row
  EventLoop::TimerId redial_timer = 0;
  std::array<int, kServiceClassCount> http1_active{};
  TimePoint last_progress{};       // when a request last got its connection
  bool dispatch_scheduled = false;
  bool http1_worked = false;       // of an origin that speaks HTTP/2: it gave an answer by HTTP/1.1, too
  TimePoint http1_refused_until{}; // it did not, or the connection failed: not to be tried before

  bool waiting() const;
  int http1_total() const;
};

class Pool final : public Carrier, public H2Connection::Listener {
 public:
  Pool(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls,
       std::shared_ptr<SharedCounters> counters, std::shared_ptr<ProtocolTable> protocols);
  ~Pool();

  void Enqueue(const ExchangePtr& exchange, const Origin& origin);
  // Fails everything and closes every connection.
  void Shutdown();

  // Carrier: for requests that wait here
  void OnConsumed(const ExchangePtr&, size_t) override {}
  void OnRequestBodyReady(const ExchangePtr&) override {}
  void OnAbandoned(const ExchangePtr& exchange, Abandon why) override;

  // H2Connection::Listener
  void OnTryEnded(const ExchangePtr& exchange, TryOutcome outcome) override;
  void OnCapacity(H2Connection& connection) override;
  void OnClosed(H2Connection& connection) override;

 private:
  void Push(const ExchangePtr& exchange, bool in_front);
  void PushLater(const ExchangePtr& exchange, std::chrono::milliseconds delay);
  // Forgets an exchange that has ended.
  void Finish(const ExchangePtr& exchange);
  bool MayRetry(const ExchangePtr& exchange, const TryOutcome& outcome) const;

  void ScheduleDispatch(OriginPool& home);
  void ScheduleDispatchAll();
  void Dispatch(OriginPool& home);
  // False: no request of this class can start at this origin now.
  bool StartOne(OriginPool& home, ServiceClass service_class);
  static void NoteHttp1(OriginPool& home, int status, const TryOutcome& outcome);
  static bool IsBig(const ExchangeState& exchange);
  bool IsBetterByHttp1(const OriginPool& home, const H2Connection& connection, const ExchangeState& exchange) const;
  bool Http1HasRoom(const OriginPool& home, ServiceClass service_class) const;
  H2Connection* Pick(OriginPool& home, ServiceClass service_class, bool big) const;
  void WaitForRate(TimePoint until);

  void MaybeDial(OriginPool& home);
  void OnDialed(OriginPool& home, Dialer::Outcome outcome);
  void OnDialFailed(OriginPool& home, const Error& error, bool final);
  void DialLater(OriginPool& home, std::chrono::milliseconds delay);
  void FailWaiting(OriginPool& home, const Error& error, bool only_exhausted);

  int http2_connections() const;
  int ConnectionsTo(const OriginPool& home) const;
  int total_connections() const;
  bool CloseOldestIdle();
  void Bury(H2Connection& connection);
  void EnforceIdleLimit();
  void ArmSweep();
  void Sweep();

  EventLoop& loop_;
  const ClientOptions& options_;
  const std::shared_ptr<TlsContext> tls_;
  const std::shared_ptr<SharedCounters> counters_;
  const std::shared_ptr<ProtocolTable> protocols_;
  const std::shared_ptr<Resolver> resolver_;
  RateLimit rate_;
  std::map<std::string, std::unique_ptr<OriginPool>> origins_;
  std::unordered_set<ExchangePtr> exchanges_;  // all that have not ended
  std::vector<std::unique_ptr<H2Connection>> buried_;  // closed, freed at the end of the turn: they may be on the stack
  int in_flight_ = 0;
  bool globally_blocked_ = false;  // somebody waits for a limit that is not its origin's
  bool all_scheduled_ = false;
  bool idle_check_scheduled_ = false;
  bool shutting_down_ = false;
  EventLoop::TimerId rate_timer_ = 0;
  EventLoop::TimerId sweep_timer_ = 0;
  TimePoint sweep_at_{};
  std::string dispatch_after_;     // origins take turns at global limits: the last one served
  std::unique_ptr<H1Client> http1_;  // last: its end calls nothing above
};

}  // namespace e2bfs::transport::http
