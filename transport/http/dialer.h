// Dialer: opens one TLS connection: name, address after address, handshake, ALPN. Loop thread only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "transport/http/client.h"
#include "transport/http/event_loop.h"
#include "transport/http/origin.h"
#include "transport/http/resolver.h"
#include "transport/http/tls.h"

namespace e2bfs::transport::http {

class Dialer {
 public:
  struct Outcome {
    // On success the receiver owns both.
    int descriptor = -1;
    ssl_st* connection = nullptr;
    bool http2 = false;  // what ALPN said
    std::optional<Error> error;
    bool final = false;  // trying again would not help: the certificate is not trusted
  };
  // Called once, never from the constructor; may destroy the dialer.
  using Done = std::function<void(Outcome)>;

  // Ends by options.connect_timeout, names included.
  Dialer(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls, Resolver& resolver,
         const Origin& origin, Done done);
  ~Dialer();  // gives up
  Dialer(const Dialer&) = delete;
  Dialer& operator=(const Dialer&) = delete;

 private:
  void OnAddresses(Result<std::vector<SocketAddress>> addresses);
  void TryNextAddress();
  void OnConnectEvent();
  void Handshake();
  void AddressFailed(int reason, const std::string& text);
  void GiveUp(Error error, bool final);
  void DropSocket();

  EventLoop& loop_;
  const ClientOptions& options_;
  const std::shared_ptr<TlsContext> tls_;
  const Origin origin_;
  Done done_;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // expires with this object: late answers are dropped
  std::vector<SocketAddress> addresses_;
  size_t next_address_ = 0;
  int descriptor_ = -1;
  ssl_st* connection_ = nullptr;
  EventLoop::WatchId watch_ = 0;
  EventLoop::TimerId timer_ = 0;          // the whole
  EventLoop::TimerId address_timer_ = 0;  // this address
  Error last_error_;
};

}  // namespace e2bfs::transport::http
