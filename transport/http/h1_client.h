// H1Client: HTTP/1.1 by a libcurl multi handle that the loop drives. Loop thread only.
#pragma once

#include <curl/curl.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

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
  // Those to one origin, the ones about to be opened included.
  int connections_to(const Origin& origin) const;
  // Whether a request to it would find one of them free.
  bool HasIdleTo(const Origin& origin) const;
  // Connections without a request; too few for as long as a request has not yet found or opened its own.
  int idle_connections() const { return std::max(0, open_connections_ - active()); }
  // Since when they are idle at the origin that was used least recently; max() if none are.
  TimePoint idle_since() const;
  // Closes idle connections until at most `keep` are left, those of the origins that were used least recently first.
  // How many it closed. No request is disturbed. Not from within libcurl's callbacks.
  int CloseIdle(int keep);
  // One to that origin. False: there is none.
  bool CloseIdleTo(const Origin& origin);
  // Those of the origins that were not used after `since`.
  void CloseIdleSince(TimePoint since);

  void OnConsumed(const ExchangePtr& exchange, size_t bytes) override;
  void OnRequestBodyReady(const ExchangePtr& exchange) override;
  void OnAbandoned(const ExchangePtr& exchange, Abandon why) override;

 private:
  struct Transfer;
  // What libcurl holds for an origin.
  struct Host {
    H1Client* client = nullptr;
    Origin origin;
    int open = 0;    // connections that were opened for it
    int active = 0;  // transfers
    TimePoint used_at{};
  };

  static int OnSocket(CURL*, curl_socket_t socket, int what, void* self, void*);
  static int OnTimer(CURLM*, long milliseconds, void* self);
  static curl_socket_t OnOpenSocket(void* host, curlsocktype, curl_sockaddr* address);
  static int OnCloseSocket(void* host, curl_socket_t socket);
  static size_t OnHeader(char* data, size_t size, size_t count, void* transfer);
  static size_t OnBody(char* data, size_t size, size_t count, void* transfer);
  static size_t OnRead(char* buffer, size_t size, size_t count, void* transfer);
  static int OnPrerequest(void* transfer, char*, char*, int, int);
  static CURLcode OnSslContext(CURL*, void* context, void* self);

  // What decides which of the kept connections a transfer can use.
  void ConfigureConnection(CURL* easy, Host& host);
  void Configure(Transfer& transfer);
  void Act(curl_socket_t socket, int events);
  void CollectEnded();
  void Remove(Transfer& transfer);
  TryOutcome Judge(Transfer& transfer, CURLcode code);
  // False: there is none.
  bool CloseOneIdle(Host& host);
  std::vector<Host*> LeastRecentlyUsed();

  EventLoop& loop_;
  const ClientOptions& options_;
  const std::shared_ptr<TlsContext> tls_;
  const std::shared_ptr<SharedCounters> counters_;
  const Ended ended_;
  CURLM* multi_ = nullptr;
  EventLoop::TimerId timer_ = 0;
  bool collect_scheduled_ = false;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // expires with this object: for deferred jobs
  std::unordered_map<curl_socket_t, EventLoop::WatchId> watches_;
  std::map<std::string, Host> hosts_;  // by the origin's text; libcurl holds their addresses
  std::unordered_map<ExchangeState*, std::unique_ptr<Transfer>> transfers_;
  int open_connections_ = 0;
};

}  // namespace e2bfs::transport::http
