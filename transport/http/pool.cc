#include "transport/http/pool.h"

#include <algorithm>
#include <utility>

#include "transport/base/log.h"
#include "transport/base/waiting.h"

namespace e2bfs::transport::http {
namespace {

constexpr int kMaxTries = 3;
constexpr int64_t kBigBytes = 1 << 20;
constexpr auto kHttp1RefusedTime = std::chrono::seconds(60);
// Connections that a server closes before it acts on a request are no tries of the request; but it does not wait for ever.
constexpr int kMaxUnsentTries = 10;
// After a connection that took no requests at all.
constexpr std::chrono::milliseconds kNothingTakenWait{2'000};
// In this order requests are served: what is small and waited for first.
constexpr ServiceClass kServingOrder[] = {ServiceClass::kMetadata, ServiceClass::kForeground, ServiceClass::kStream,
                                          ServiceClass::kBulk};

Error ClientClosedError() { return Failure(ErrorKind::kCancelled, EINTR, "the client was closed").value(); }

}  // namespace

bool OriginPool::waiting() const {
  return std::any_of(queues.begin(), queues.end(), [](const auto& queue) { return !queue.empty(); });
}

int OriginPool::http1_total() const {
  int total = 0;
  for (int count : http1_active) total += count;
  return total;
}

Pool::Pool(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls,
           std::shared_ptr<SharedCounters> counters, std::shared_ptr<ProtocolTable> protocols)
    : loop_(loop),
      options_(options),
      tls_(std::move(tls)),
      counters_(std::move(counters)),
      protocols_(std::move(protocols)),
      resolver_(std::make_shared<Resolver>(loop.queue())),
      rate_(options.rate_limit_requests),
      http1_(std::make_unique<H1Client>(
          loop, options, tls_, counters_,
          [this](const ExchangePtr& exchange, TryOutcome outcome) { OnTryEnded(exchange, std::move(outcome)); })) {
}

Pool::~Pool() = default;

// --- requests in and out

void Pool::Enqueue(const ExchangePtr& exchange, const Origin& origin) {
  if (shutting_down_) return exchange->Fail(ClientClosedError());
  auto& home = origins_[origin.text];
  if (home == nullptr) {
    home = std::make_unique<OriginPool>();
    home->origin = origin;
    const bool http1 = !origin.tls || options_.protocol == ProtocolChoice::kHttp1Only || MayUseProxy(origin);
    home->mode = http1 ? OriginPool::Mode::kHttp1 : OriginPool::Mode::kAsk;
  }
  exchange->home = home.get();
  exchanges_.insert(exchange);
  counters_->requests.fetch_add(1, std::memory_order_relaxed);
  counters_->requests_now.fetch_add(1, std::memory_order_relaxed);
  Push(exchange, false);
}

void Pool::Push(const ExchangePtr& exchange, bool in_front) {
  OriginPool& home = *exchange->home;
  exchange->carrier = this;
  exchange->queued_at = Clock::now();
  auto& queue = home.queues[static_cast<size_t>(exchange->service_class())];
  if (in_front) {
    queue.push_front(exchange);
  } else {
    queue.push_back(exchange);
  }
  ScheduleDispatch(home);
}

void Pool::PushLater(const ExchangePtr& exchange, std::chrono::milliseconds delay) {
  exchange->carrier = nullptr;
  loop_.AddTimer(Clock::now() + WithJitter(delay), [this, exchange] {
    if (exchanges_.count(exchange) == 0) return;  // the pool was shut down
    if (exchange->over()) return Finish(exchange);
    Push(exchange, false);
  });
}

void Pool::Finish(const ExchangePtr& exchange) {
  exchange->carrier = nullptr;
  if (exchanges_.erase(exchange) > 0) counters_->requests_now.fetch_sub(1, std::memory_order_relaxed);
}

void Pool::OnAbandoned(const ExchangePtr& exchange, Abandon) {
  auto& queue = exchange->home->queues[static_cast<size_t>(exchange->service_class())];
  const auto found = std::find(queue.begin(), queue.end(), exchange);
  if (found != queue.end()) queue.erase(found);
  Finish(exchange);
}

bool Pool::MayRetry(const ExchangePtr& exchange, const TryOutcome& outcome) const {
  if (exchange->over() || exchange->has_head() || exchange->tries >= kMaxTries || shutting_down_) return false;
  if (outcome.reach == TryOutcome::Reach::kMaybeActedOn && !exchange->request().idempotent) return false;
  return exchange->RewindRequestBody();
}

// HTTP/1.1 need not be offered beside HTTP/2, nor served where it is.
void Pool::NoteHttp1(OriginPool& home, int status, const TryOutcome& outcome) {
  const bool unwanted = status == 421 || status == 426 || status == 505;
  const bool failed = status == 0 && outcome.error && (outcome.reach == TryOutcome::Reach::kConnectFailed || !home.http1_worked);
  if (unwanted || failed) {
    home.http1_refused_until = Clock::now() + kHttp1RefusedTime;
  } else if (status != 0) {
    home.http1_worked = true;
  }
}

void Pool::OnTryEnded(const ExchangePtr& exchange, TryOutcome outcome) {
  using Reach = TryOutcome::Reach;
  OriginPool& home = *exchange->home;
  if (exchange->in_flight) {
    exchange->in_flight = false;
    --in_flight_;
    if (exchange->on_http1) {
      --home.http1_active[static_cast<size_t>(exchange->service_class())];
      NoteHttp1(home, exchange->status(), outcome);
    }
  }
  const bool untouched = outcome.reach == Reach::kNeverSent || outcome.reach == Reach::kUnsent;
  if (untouched && ++exchange->unsent_tries <= kMaxUnsentTries) --exchange->tries;
  if (!outcome.error) {
    exchange->Complete();
    Finish(exchange);
  } else if (outcome.reach != Reach::kDone && MayRetry(exchange, outcome)) {
    counters_->retries.fetch_add(1, std::memory_order_relaxed);
    log::Debug("http", "{} {}: again after: {}", exchange->request().method, home.origin.text, outcome.error->message);
    if (outcome.reach == Reach::kConnectFailed) {
      PushLater(exchange, std::chrono::milliseconds(100 * exchange->tries));
    } else if (outcome.reach == Reach::kRefused) {
      PushLater(exchange, std::chrono::milliseconds(30 * exchange->tries));
    } else {
      Push(exchange, true);
    }
  } else {
    exchange->Fail(std::move(*outcome.error));
    Finish(exchange);
  }
  if (globally_blocked_) {
    ScheduleDispatchAll();
  } else if (home.waiting()) {
    ScheduleDispatch(home);
  }
  EnforceIdleLimit();
}

// --- which request goes where

void Pool::ScheduleDispatch(OriginPool& home) {
  if (home.dispatch_scheduled || shutting_down_) return;
  home.dispatch_scheduled = true;
  loop_.Defer([this, &home] {
    home.dispatch_scheduled = false;
    Dispatch(home);
  });
}

void Pool::ScheduleDispatchAll() {
  if (all_scheduled_ || shutting_down_) return;
  all_scheduled_ = true;
  loop_.Defer([this] {
    all_scheduled_ = false;
    globally_blocked_ = false;
    // Beginning behind the origin that was served last, or the first ones would take every free place.
    std::vector<OriginPool*> order;
    for (auto next = origins_.upper_bound(dispatch_after_); next != origins_.end(); ++next) order.push_back(next->second.get());
    for (auto next = origins_.begin(); next != origins_.upper_bound(dispatch_after_); ++next) order.push_back(next->second.get());
    for (OriginPool* home : order) {
      if (home->waiting()) Dispatch(*home);
    }
  });
}

void Pool::Dispatch(OriginPool& home) {
  if (shutting_down_) return;
  for (ServiceClass service_class : kServingOrder) {
    while (StartOne(home, service_class)) {
    }
  }
  ArmSweep();
}

bool Pool::StartOne(OriginPool& home, ServiceClass service_class) {
  auto& queue = home.queues[static_cast<size_t>(service_class)];
  while (!queue.empty() && queue.front()->over()) {
    Finish(queue.front());
    queue.pop_front();
  }
  if (queue.empty()) return false;
  if (in_flight_ >= options_.max_requests) {
    globally_blocked_ = true;
    return false;
  }
  bool http1 = home.mode == OriginPool::Mode::kHttp1;
  H2Connection* connection = nullptr;
  if (http1) {
    if (!Http1HasRoom(home, service_class)) return false;
    if (http2_connections() + http1_->active() >= options_.max_connections && !CloseOldestIdle()) {
      globally_blocked_ = true;
      return false;
    }
  } else {
    const bool big = IsBig(*queue.front());
    connection = Pick(home, service_class, big);
    if (connection == nullptr) {
      MaybeDial(home);
      return false;
    }
    http1 = big && IsBetterByHttp1(home, *connection, *queue.front());
    // The next one finds a connection of its own.
    if (!http1 && big && connection->streams_of(ServiceClass::kStream) > 0) MaybeDial(home);
  }
  if (const auto until = rate_.Take(Clock::now())) {
    WaitForRate(*until);
    return false;
  }
  const ExchangePtr exchange = std::move(queue.front());
  queue.pop_front();
  ++exchange->tries;
  exchange->in_flight = true;
  exchange->on_http1 = http1;
  ++in_flight_;
  home.last_progress = Clock::now();
  dispatch_after_ = home.origin.text;
  if (!http1) {
    connection->Start(exchange);
    return true;
  }
  ++home.http1_active[static_cast<size_t>(service_class)];
  if (home.mode == OriginPool::Mode::kHttp1) protocols_->Set(home.origin.text, Protocol::kHttp1);
  if (auto error = http1_->Start(exchange, home.origin)) {
    OnTryEnded(exchange, TryOutcome{TryOutcome::Reach::kDone, std::move(error)});
  }
  return true;
}

// Whether others would wait for it, as far as anybody knows.
bool Pool::IsBig(const ExchangeState& exchange) {
  if (exchange.service_class() != ServiceClass::kBulk) return false;
  const int64_t expected = exchange.request().expected_bytes > 0 ? exchange.request().expected_bytes : int64_t{-1};
  const int64_t bytes = exchange.has_request_body() ? exchange.request_body_length() : expected;
  return bytes < 0 || bytes >= kBigBytes;
}

// A large upload is as fast as the server's window for a stream lets it, one window for each round trip (64 KiB at 20 ms: 3 MiB/s); TCP's own
// windows are larger, and grow. A large download takes less of both sides' time without frames.
bool Pool::IsBetterByHttp1(const OriginPool& home, const H2Connection& connection, const ExchangeState& exchange) const {
  // What failed goes by HTTP/2 the next time.
  if (exchange.tries > 0 || exchange.unsent_tries > 0 || Clock::now() < home.http1_refused_until) return false;
  if (exchange.has_request_body() ? connection.upload_window_bytes() >= kBigBytes : exchange.request().expected_bytes == 0) return false;
  if (!Http1HasRoom(home, ServiceClass::kBulk)) return false;
  return http1_->HasIdleTo(home.origin) ||
         (ConnectionsTo(home) < options_.max_connections_per_origin && total_connections() < options_.max_connections);
}

bool Pool::Http1HasRoom(const OriginPool& home, ServiceClass service_class) const {
  const int limit = options_.max_connections_per_origin;
  const int total = home.http1_total();
  if (total >= limit) return false;
  if (service_class == ServiceClass::kMetadata) return true;
  const int metadata = home.http1_active[static_cast<size_t>(ServiceClass::kMetadata)];
  const int reserved = std::min(options_.reserved_streams, limit / 4);
  if (total - metadata >= limit - reserved) return false;
  // Streams stay for hours; they leave half of the connections to what comes and goes.
  const int streams = home.http1_active[static_cast<size_t>(ServiceClass::kStream)];
  return service_class != ServiceClass::kStream || streams < std::max(1, limit / 2);
}

// Big copies and what is waited for keep away from each other: on one connection an answer waits behind all the bytes that are under way. Then
// the fullest, so that others can become idle and close.
H2Connection* Pool::Pick(OriginPool& home, ServiceClass service_class, bool big) const {
  H2Connection* best = nullptr;
  const auto disturbed = [big](const H2Connection& connection) {
    return connection.streams_of(big ? ServiceClass::kStream : ServiceClass::kBulk);
  };
  for (const auto& connection : home.connections) {
    if (!connection->HasRoom(service_class)) continue;
    const bool better = best == nullptr || disturbed(*connection) < disturbed(*best) ||
                        (disturbed(*connection) == disturbed(*best) && connection->streams() > best->streams());
    if (better) best = connection.get();
  }
  return best;
}

void Pool::WaitForRate(TimePoint until) {
  globally_blocked_ = true;
  if (rate_timer_ != 0) return;
  counters_->rate_limit_waits.fetch_add(1, std::memory_order_relaxed);
  rate_timer_ = loop_.AddTimer(until, [this] {
    rate_timer_ = 0;
    ScheduleDispatchAll();
  });
}

// --- connections

int Pool::http2_connections() const {
  int total = 0;
  for (const auto& [name, home] : origins_) {
    total += static_cast<int>(home->connections.size()) + (home->dialer != nullptr ? 1 : 0);
  }
  return total;
}

// The one that is being dialed included.
int Pool::ConnectionsTo(const OriginPool& home) const {
  return static_cast<int>(home.connections.size()) + (home.dialer != nullptr ? 1 : 0) + http1_->connections_to(home.origin);
}

int Pool::total_connections() const {
  return http2_connections() + std::max(http1_->active(), http1_->open_connections());
}

void Pool::MaybeDial(OriginPool& home) {
  // One at a time: 2,000 waiting requests never become 2,000 connections.
  if (home.dialer != nullptr || home.redial_timer != 0) return;
  for (const auto& connection : home.connections) {
    // Its SETTINGS are on the way, and make room; or the server takes nothing now, which more connections would not change.
    if (connection->usable() && (!connection->settled() || connection->stream_limit() == 0)) return;
  }
  if (ConnectionsTo(home) >= options_.max_connections_per_origin && !http1_->CloseIdleTo(home.origin)) return;
  if (total_connections() >= options_.max_connections && !CloseOldestIdle() &&
      http1_->CloseIdle(http1_->idle_connections() - 1) == 0) {
    globally_blocked_ = true;
    return;
  }
  home.dialer = std::make_unique<Dialer>(loop_, options_, tls_, *resolver_, home.origin,
                                         [this, &home](Dialer::Outcome outcome) { OnDialed(home, std::move(outcome)); });
}

void Pool::OnDialed(OriginPool& home, Dialer::Outcome outcome) {
  // The dialer is on the stack.
  loop_.Defer([dialer = std::shared_ptr<Dialer>(std::move(home.dialer))] {});
  if (outcome.error) return OnDialFailed(home, *outcome.error, outcome.final);
  home.dial_failures = 0;
  auto connection = std::make_unique<H2Connection>(loop_, options_, counters_, *this, home, home.origin.authority,
                                                   outcome.descriptor, outcome.connection);
  if (!outcome.http2) {
    // This one is given up: libcurl opens its own. It happens once for each origin.
    log::Info("http", "{} speaks HTTP/1.1 only", home.origin.text);
    home.mode = OriginPool::Mode::kHttp1;
    connection.reset();
    ScheduleDispatch(home);
    return;
  }
  home.mode = OriginPool::Mode::kHttp2;
  protocols_->Set(home.origin.text, Protocol::kHttp2);
  H2Connection& added = *connection;
  home.connections.push_back(std::move(connection));
  added.Begin();
  ScheduleDispatch(home);
  EnforceIdleLimit();
}

void Pool::OnDialFailed(OriginPool& home, const Error& error, bool final) {
  ++home.dial_failures;
  log::Info("http", "{}: {}", home.origin.text, error.message);
  const bool others = std::any_of(home.connections.begin(), home.connections.end(),
                                  [](const auto& connection) { return connection->usable(); });
  if (!others) {
    for (auto& queue : home.queues) {
      for (const ExchangePtr& exchange : queue) {
        ++exchange->tries;
        if (final) exchange->tries = kMaxTries;
      }
    }
    FailWaiting(home, error, true);
  }
  if (home.waiting()) DialLater(home, std::chrono::milliseconds(100) * std::min(home.dial_failures, 20));
}

void Pool::DialLater(OriginPool& home, std::chrono::milliseconds delay) {
  if (home.redial_timer != 0) return;
  home.redial_timer = loop_.AddTimer(Clock::now() + WithJitter(delay), [this, &home] {
    home.redial_timer = 0;
    ScheduleDispatch(home);
  });
}

void Pool::FailWaiting(OriginPool& home, const Error& error, bool only_exhausted) {
  for (auto& queue : home.queues) {
    std::deque<ExchangePtr> kept;
    for (ExchangePtr& exchange : queue) {
      if (only_exhausted && exchange->tries < kMaxTries && !exchange->over()) {
        kept.push_back(std::move(exchange));
        continue;
      }
      exchange->Fail(error);
      Finish(exchange);
    }
    queue = std::move(kept);
  }
}

void Pool::OnCapacity(H2Connection& connection) {
  if (connection.home().waiting()) ScheduleDispatch(connection.home());
  if (connection.idle()) EnforceIdleLimit();
}

void Pool::OnClosed(H2Connection& connection) {
  OriginPool& home = connection.home();
  Bury(connection);
  if (globally_blocked_) ScheduleDispatchAll();
  if (!home.waiting()) return;
  if (connection.stream_limit() == 0) {
    DialLater(home, kNothingTakenWait);
  } else {
    ScheduleDispatch(home);
  }
}

void Pool::Bury(H2Connection& connection) {
  auto& list = connection.home().connections;
  const auto found = std::find_if(list.begin(), list.end(), [&](const auto& one) { return one.get() == &connection; });
  if (found == list.end()) return;
  // It is on the stack: freed when the turn is over.
  if (buried_.empty()) {
    loop_.Defer([this] { buried_.clear(); });
  }
  buried_.push_back(std::move(*found));
  list.erase(found);
}

bool Pool::CloseOldestIdle() {
  H2Connection* oldest = nullptr;
  for (const auto& [name, home] : origins_) {
    for (const auto& connection : home->connections) {
      if (connection->idle() && (oldest == nullptr || connection->idle_since() < oldest->idle_since())) {
        oldest = connection.get();
      }
    }
  }
  if (oldest == nullptr) return false;
  oldest->CloseIdle();
  return true;
}

void Pool::EnforceIdleLimit() {
  if (idle_check_scheduled_ || shutting_down_) return;
  idle_check_scheduled_ = true;
  // At the end of the turn: requests that wait have then been given what became free.
  loop_.Defer([this] {
    idle_check_scheduled_ = false;
    if (shutting_down_) return;
    if (all_scheduled_) return EnforceIdleLimit();
    int idle = 0;
    for (const auto& [name, home] : origins_) {
      if (home->dispatch_scheduled) return EnforceIdleLimit();
      for (const auto& connection : home->connections) idle += connection->idle() ? 1 : 0;
    }
    for (; idle > options_.max_idle_connections; --idle) CloseOldestIdle();
    http1_->CloseIdle(options_.max_idle_connections - idle);
    counters_->idle_connections.store(idle + http1_->idle_connections(), std::memory_order_relaxed);
    ArmSweep();
  });
}

// --- what time does

void Pool::ArmSweep() {
  if (shutting_down_) return;
  TimePoint next = TimePoint::max();
  const auto starving = options_.head_timeout + options_.connect_timeout;
  for (const auto& [name, home] : origins_) {
    for (const auto& connection : home->connections) {
      if (connection->idle()) next = std::min(next, connection->idle_since() + options_.idle_expiry);
    }
    for (const auto& queue : home->queues) {
      if (!queue.empty()) next = std::min(next, std::max(queue.front()->queued_at, home->last_progress) + starving);
    }
  }
  if (http1_->idle_since() != TimePoint::max()) next = std::min(next, http1_->idle_since() + options_.idle_expiry);
  if (next == TimePoint::max()) return;
  // Not at every turn, when something stays due.
  next = std::max(next, Clock::now() + std::chrono::milliseconds(20));
  if (sweep_timer_ != 0 && sweep_at_ <= next) return;
  loop_.CancelTimer(sweep_timer_);
  sweep_at_ = next;
  sweep_timer_ = loop_.AddTimer(next, [this] {
    sweep_timer_ = 0;
    Sweep();
  });
}

void Pool::Sweep() {
  const TimePoint now = Clock::now();
  const auto starving = options_.head_timeout + options_.connect_timeout;
  std::vector<H2Connection*> expired;
  for (const auto& [name, home] : origins_) {
    for (const auto& connection : home->connections) {
      if (connection->idle() && connection->idle_since() + options_.idle_expiry <= now) expired.push_back(connection.get());
    }
    for (auto& queue : home->queues) {
      // Nothing at this origin got a connection for so long, and this one waits as long: everything is held by requests
      // that do not end.
      while (!queue.empty() && std::max(queue.front()->queued_at, home->last_progress) + starving <= now) {
        const ExchangePtr exchange = std::move(queue.front());
        queue.pop_front();
        exchange->Fail(Failure(ErrorKind::kTimeout, ETIMEDOUT, "no connection became free").value());
        Finish(exchange);
      }
    }
  }
  for (H2Connection* connection : expired) connection->CloseIdle();
  http1_->CloseIdleSince(now - options_.idle_expiry);
  EnforceIdleLimit();
  ArmSweep();
}

void Pool::Shutdown() {
  shutting_down_ = true;
  loop_.CancelTimer(rate_timer_);
  loop_.CancelTimer(sweep_timer_);
  for (const auto& exchange : exchanges_) exchange->Fail(ClientClosedError());
  for (const auto& [name, home] : origins_) {
    home->dialer.reset();
    loop_.CancelTimer(home->redial_timer);
    for (auto& queue : home->queues) queue.clear();
    while (!home->connections.empty()) {
      // Idle ones say good-bye; the others are cut, which cancels what is on them.
      H2Connection& connection = *home->connections.back();
      if (connection.idle()) {
        connection.CloseIdle();
      } else {
        connection.Close(ClientClosedError());
      }
    }
  }
  http1_.reset();
  buried_.clear();
  for (const auto& exchange : exchanges_) exchange->carrier = nullptr;
  exchanges_.clear();
  counters_->requests_now.store(0, std::memory_order_relaxed);
}

}  // namespace e2bfs::transport::http
