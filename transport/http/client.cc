#include "transport/http/client.h"

#include <pthread.h>
#include <csignal>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "transport/http/event_loop.h"
#include "transport/http/exchange_state.h"
#include "transport/http/origin.h"
#include "transport/http/pool.h"
#include "transport/http/tls.h"

namespace e2bfs::transport::http {
namespace {

constexpr size_t kBigAnswerBytes = size_t{8} << 20;
constexpr std::chrono::seconds kBigAnswerWait{60};
constexpr size_t kLongestConsumedStep = size_t{16} << 10;

// One thread of the process at a time has it.
class BigAnswerTurn {
 public:
  BigAnswerTurn() = default;
  BigAnswerTurn(const BigAnswerTurn&) = delete;
  BigAnswerTurn& operator=(const BigAnswerTurn&) = delete;
  ~BigAnswerTurn() {
    if (!mine_) return;
    std::lock_guard lock(mutex_);
    taken_ = false;
    changed_.notify_one();
  }
  bool Take(const OpContext& ctx) {
    if (mine_) return true;
    std::unique_lock lock(mutex_);
    const TimePoint until = std::min(ctx.deadline, Clock::now() + kBigAnswerWait);
    if (!changed_.wait_until(lock, ctx.stop, until, [] { return !taken_; })) return false;
    taken_ = mine_ = true;
    return true;
  }

 private:
  static inline std::mutex mutex_;  // innermost
  static inline std::condition_variable_any changed_;
  static inline bool taken_ = false;
  bool mine_ = false;
};

class PooledClient final : public HttpClient {
 public:
  PooledClient(ClientOptions options, std::unique_ptr<EventLoop> loop, std::shared_ptr<TlsContext> tls)
      : options_(std::move(options)),
        loop_(std::move(loop)),
        queue_(loop_->queue()),
        pool_(std::make_unique<Pool>(*loop_, options_, std::move(tls), counters_, protocols_)) {}

  bool Run() {
    // Signals are for the threads of whoever uses this; and SIGPIPE of a closed socket is for nobody.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
      thread_ = std::thread([this] { loop_->Run(); });
    } catch (const std::system_error&) {
      started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  ~PooledClient() override {
    if (!thread_.joinable()) return;
    queue_->Post([this] {
      pool_->Shutdown();
      loop_->Stop();
    });
    thread_.join();
  }

  Result<std::unique_ptr<Exchange>> Start(Request request, const OpContext& ctx) override {
    auto origin = ParseOrigin(request.origin);
    if (!origin) return Forward(origin.error());
    if (auto checked = CheckRequest(request); !checked) return Forward(checked.error());
    if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, "cancelled");
    if (ctx.deadline <= Clock::now()) return Failure(ErrorKind::kTimeout, ETIMEDOUT, "the operation's deadline has passed");
    const int window = request.window_bytes > 0 ? request.window_bytes : options_.stream_window_bytes;
    const ExchangeState::Settings settings{
        request.head_timeout.count() > 0 ? request.head_timeout : options_.head_timeout,
        request.idle_timeout.count() > 0 ? request.idle_timeout : options_.idle_timeout, ctx.service_class,
        std::min(kLongestConsumedStep, static_cast<size_t>(window) / 4)};
    auto state = std::make_shared<ExchangeState>(std::move(request), settings, queue_, counters_);
    if (!queue_->Post([this, state, where = std::move(*origin)] { pool_->Enqueue(state, where); })) {
      return Failure(ErrorKind::kCancelled, EINTR, "the client was closed");
    }
    return std::make_unique<ExchangeHandle>(std::move(state));
  }

  PoolStatistics statistics() const override {
    PoolStatistics now;
    const auto relaxed = std::memory_order_relaxed;
    now.requests = counters_->requests.load(relaxed);
    now.requests_now = counters_->requests_now.load(relaxed);
    now.retries = counters_->retries.load(relaxed);
    now.connections_opened = counters_->connections_opened.load(relaxed);
    now.connections_now = counters_->connections_now.load(relaxed);
    now.idle_connections = counters_->idle_connections.load(relaxed);
    now.bytes_sent = counters_->bytes_sent.load(relaxed);
    now.bytes_received = counters_->bytes_received.load(relaxed);
    now.rate_limit_waits = counters_->rate_limit_waits.load(relaxed);
    return now;
  }

  Protocol protocol_of(std::string_view origin) const override {
    const auto parsed = ParseOrigin(origin);
    return parsed ? protocols_->Get(parsed->text) : Protocol::kUnknown;
  }

 private:
  const ClientOptions options_;
  const std::shared_ptr<SharedCounters> counters_ = std::make_shared<SharedCounters>();
  const std::shared_ptr<ProtocolTable> protocols_ = std::make_shared<ProtocolTable>();
  const std::unique_ptr<EventLoop> loop_;
  const std::shared_ptr<LoopQueue> queue_;
  const std::unique_ptr<Pool> pool_;
  std::thread thread_;
};

}  // namespace

std::string_view ResponseHead::Find(std::string_view lower_case_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_case_name) return value;
  }
  return {};
}

Result<std::unique_ptr<HttpClient>> HttpClient::Create(ClientOptions options) {
  auto tls = TlsContext::Create(options.ca_file, options.ca_directory);
  if (!tls) return Forward(tls.error());
  auto loop = EventLoop::Create();
  if (!loop) return Forward(loop.error());
  auto client = std::make_unique<PooledClient>(std::move(options), std::move(*loop), std::move(*tls));
  if (!client->Run()) return Failure(ErrorKind::kLocal, EAGAIN, "the network thread could not be started");
  return client;
}

Result<Response> HttpClient::Fetch(Request request, const OpContext& ctx, size_t max_body_bytes) {
  const bool is_head = request.method == "HEAD";
  auto exchange = Start(std::move(request), ctx);
  if (!exchange) return Forward(exchange.error());
  auto head = (*exchange)->WaitHead(ctx);
  if (!head) return Forward(head.error());
  Response response;
  response.head = std::move(*head);
  // An answer without a body may still name an encoding.
  const bool bodyless = response.head.status == 204 || response.head.status == 304 || is_head ||
                        response.head.Find("content-length") == "0";
  const bool gzip = !bodyless && ToLowerAscii(response.head.Find("content-encoding")) == "gzip";
  GzipReader inflated(**exchange);
  std::string buffer(65536, '\0');
  // Many of these at once would take more memory than a mount may: beyond a size one at a time.
  BigAnswerTurn turn;
  while (true) {
    if (response.body.size() > kBigAnswerBytes && !turn.Take(ctx)) {
      return Failure(ErrorKind::kTimeout, ETIMEDOUT, "waiting for another big answer");
    }
    auto count = gzip ? inflated.Read(buffer.data(), buffer.size(), ctx)
                      : (*exchange)->Read(buffer.data(), buffer.size(), ctx);
    if (!count) {
      Error error = std::move(count.error());
      if (error.http_status == 0) error.http_status = response.head.status;
      return Forward(std::move(error));
    }
    if (*count == 0) return response;
    if (*count > max_body_bytes - response.body.size()) {
      return Failure(ErrorKind::kProtocol, EFBIG, "the answer is longer than it may be");
    }
    response.body.append(buffer, 0, *count);
  }
}

}  // namespace e2bfs::transport::http
