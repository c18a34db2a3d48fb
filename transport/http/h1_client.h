// H1Client: HTTP/1.1 by a libcurl multi handle that the loop drives. Loop thread only.
#pragma once

#include <curl/curl.h>

#include <functional>
#include <memory>
#include <unordered_map>

#include "transport/http/carrier.h"
#include "transport/http/event_loop.h"
#include "transport/http/exchange_state.h"
#include "transport/http/origin.h"
#include "transport/http/tls.h"

namespace e2bfs::transport::http {

class H1Client final : public Carrier {
 public:
  // Called when a try has ended and the exchange is no longer carried here. Not from within Start; it may call Start.
  using Ended = std::function<void(const ExchangePtr&, TryOutcome)>;

  H1Client(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls,
           std::shared_ptr<SharedCounters> counters, Ended ended);
  ~H1Client();
  H1Client(const H1Client&) = delete;
  H1Client& operator=(const H1Client&) = delete;

  // Begins a try. Nullopt, or why libcurl did not take it (kLocal).
  std::optional<Error> Start(const ExchangePtr& exchange, const Origin& origin);

  int active() const { return static_cast<int>(transfers_.size()); }
  int open_connections() const { return open_connections_; }
  // How many connections may be kept without a request, now.
  void SetIdleLimit(int connections);
  // Closes all that are idle; only when nothing is active.
  void CloseIdle();

  void OnConsumed(const ExchangePtr& exchange, size_t bytes) override;
  void OnRequestBodyReady(const ExchangePtr& exchange) override;
  void OnAbandoned(const ExchangePtr& exchange, Abandon why) override;

 private:
  struct Transfer;

  static int OnSocket(CURL*, curl_socket_t socket, int what, void* self, void*);
  static int OnTimer(CURLM*, long milliseconds, void* self);
  static curl_socket_t OnOpenSocket(void* self, curlsocktype, curl_sockaddr* address);
  static int OnCloseSocket(void* self, curl_socket_t socket);
  static size_t OnHeader(char* data, size_t size, size_t count, void* transfer);
  static size_t OnBody(char* data, size_t size, size_t count, void* transfer);
  static size_t OnRead(char* buffer, size_t size, size_t count, void* transfer);
  static int OnPrerequest(void* transfer, char*, char*, int, int);
  static CURLcode OnSslContext(CURL*, void* context, void* self);

  void MakeMulti();
  void Configure(Transfer& transfer, const Origin& origin);
  void Act(curl_socket_t socket, int events);
  void CollectEnded();
  void Remove(Transfer& transfer);
  TryOutcome Judge(Transfer& transfer, CURLcode code);
  void ApplyIdleLimit();

  EventLoop& loop_;
  const ClientOptions& options_;
  const std::shared_ptr<TlsContext> tls_;
  const std::shared_ptr<SharedCounters> counters_;
  const Ended ended_;
  CURLM* multi_ = nullptr;
  EventLoop::TimerId timer_ = 0;
  EventLoop::TimerId collect_timer_ = 0;
  std::unordered_map<curl_socket_t, EventLoop::WatchId> watches_;
  std::unordered_map<ExchangeState*, std::unique_ptr<Transfer>> transfers_;
  int open_connections_ = 0;
  int idle_limit_ = 20;
};

}  // namespace e2bfs::transport::http
