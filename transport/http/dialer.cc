#include "transport/http/dialer.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "transport/http/socket_options.h"

namespace e2bfs::transport::http {

Dialer::Dialer(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls, Resolver& resolver,
               const Origin& origin, Done done)
    : loop_(loop), options_(options), tls_(std::move(tls)), origin_(origin), done_(std::move(done)) {
  timer_ = loop_.AddTimer(Clock::now() + options_.connect_timeout, [this] {
    timer_ = 0;
    GiveUp(Failure(ErrorKind::kConnect, ETIMEDOUT, "connecting to " + origin_.authority + " took too long").value(), false);
  });
  resolver.Resolve(origin_.host, origin_.port,
                   [this, alive = std::weak_ptr<int>(alive_)](Result<std::vector<SocketAddress>> addresses) {
                     if (!alive.expired()) OnAddresses(std::move(addresses));
                   });
}

Dialer::~Dialer() {
  DropSocket();
  loop_.CancelTimer(timer_);
}

void Dialer::DropSocket() {
  loop_.CancelTimer(address_timer_);
  if (watch_ != 0) loop_.Unwatch(watch_);
  watch_ = 0;
  if (connection_ != nullptr) SSL_free(connection_);
  connection_ = nullptr;
  if (descriptor_ >= 0) close(descriptor_);
  descriptor_ = -1;
}

void Dialer::GiveUp(Error error, bool final) {
  DropSocket();
  loop_.CancelTimer(timer_);
  Outcome outcome;
  outcome.error = std::move(error);
  outcome.final = final;
  const Done done = std::move(done_);
  done(std::move(outcome));  // `this` may be gone after it
}

void Dialer::OnAddresses(Result<std::vector<SocketAddress>> addresses) {
  if (!addresses) return GiveUp(std::move(addresses.error()), false);
  addresses_ = std::move(*addresses);
  TryNextAddress();
}

void Dialer::AddressFailed(int reason, const std::string& text) {
  DropSocket();
  last_error_ = Failure(ErrorKind::kConnect, reason, origin_.authority + ": " + text).value();
  TryNextAddress();
}

void Dialer::TryNextAddress() {
  if (next_address_ == addresses_.size()) return GiveUp(last_error_, false);
  const SocketAddress& address = addresses_[next_address_++];
  descriptor_ = socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor_ < 0) {
    const int reason = errno;
    return AddressFailed(reason, std::string("no socket: ") + strerrordesc_np(reason));
  }
  SetSocketOptions(descriptor_);
  if (connect(descriptor_, reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0 &&
      errno != EINPROGRESS) {
    const int reason = errno;
    return AddressFailed(reason, strerrordesc_np(reason));
  }
  watch_ = loop_.Watch(descriptor_, EPOLLOUT, [this](uint32_t) { OnConnectEvent(); });
  if (watch_ == 0) return GiveUp(Failure(ErrorKind::kLocal, ENOSPC, "epoll takes no more descriptors").value(), false);
  if (next_address_ < addresses_.size()) {
    // An address that leads nowhere leaves time for the others.
    const auto share = std::max(options_.connect_timeout / static_cast<int64_t>(addresses_.size()),
                                std::chrono::milliseconds(250));
    address_timer_ = loop_.AddTimer(Clock::now() + share, [this] {
      address_timer_ = 0;
      AddressFailed(ETIMEDOUT, "no answer");
    });
  }
}

void Dialer::OnConnectEvent() {
  if (connection_ != nullptr) return Handshake();
  int reason = 0;
  socklen_t size = sizeof reason;
  if (getsockopt(descriptor_, SOL_SOCKET, SO_ERROR, &reason, &size) != 0) reason = errno;
  if (reason != 0) return AddressFailed(reason, strerrordesc_np(reason));
  connection_ = tls_->NewConnection(descriptor_, origin_.host);
  if (connection_ == nullptr) return GiveUp(Failure(ErrorKind::kLocal, ENOMEM, "TLS could not be set up").value(), false);
  Handshake();
}

void Dialer::Handshake() {
  ERR_clear_error();
  const int code = SSL_do_handshake(connection_);
  if (code != 1) {
    const int kind = SSL_get_error(connection_, code);
    if (kind == SSL_ERROR_WANT_READ) return loop_.ChangeWatch(watch_, EPOLLIN);
    if (kind == SSL_ERROR_WANT_WRITE) return loop_.ChangeWatch(watch_, EPOLLOUT);
    const bool untrusted = SSL_get_verify_result(connection_) != X509_V_OK;
    std::string text = TlsErrorText(connection_);
    if (text.empty()) text = "the connection was closed during the TLS handshake";
    if (untrusted) {
      return GiveUp(Failure(ErrorKind::kConnect, EPROTO, origin_.authority + ": " + text).value(), true);
    }
    return AddressFailed(kind == SSL_ERROR_SSL ? EPROTO : ECONNRESET, text);
  }
  const unsigned char* name = nullptr;
  unsigned length = 0;
  SSL_get0_alpn_selected(connection_, &name, &length);
  Outcome outcome;
  outcome.http2 = length == 2 && std::memcmp(name, "h2", 2) == 0;
  loop_.Unwatch(watch_);
  watch_ = 0;
  loop_.CancelTimer(timer_);
  loop_.CancelTimer(address_timer_);
  outcome.descriptor = std::exchange(descriptor_, -1);
  outcome.connection = std::exchange(connection_, nullptr);
  const Done done = std::move(done_);
  done(std::move(outcome));  // `this` may be gone after it
}

}  // namespace e2bfs::transport::http
