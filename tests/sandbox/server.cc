#include "tests/sandbox/server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>
#include <stdexcept>

#include "tests/sandbox/connection.h"
#include "tests/sandbox/core.h"
#include "tests/sandbox/h1_session.h"
#include "tests/sandbox/h2_session.h"
#include "tests/sandbox/tls_context.h"

namespace e2bfs::sandbox {
class OwnedSocket {
 public:
  OwnedSocket() = default;
  explicit OwnedSocket(int fd) : fd_(fd) {}
  ~OwnedSocket() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  OwnedSocket(OwnedSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedSocket& operator=(OwnedSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

namespace {

union SocketAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

[[noreturn]] void ThrowListenError(const std::string& listen, const std::string& why) {
  throw std::runtime_error("cannot listen on '" + listen + "': " + why);
}

// "127.0.0.1:80", "localhost:80" or "[::1]:80".
socklen_t ParseLoopbackAddress(const std::string& listen, SocketAddress& address) {
  const size_t colon = listen.rfind(':');
  uint16_t port = 0;
  if (colon == std::string::npos || colon == 0) {
    ThrowListenError(listen, "expected HOST:PORT");
  }
  const char* const end = listen.data() + listen.size();
  const auto [parsed, error] = std::from_chars(listen.data() + colon + 1, end, port);
  if (error != std::errc() || parsed != end) {
    ThrowListenError(listen, "expected HOST:PORT");
  }
  std::string host = listen.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host == "localhost") {
    host = "127.0.0.1";
  }
  memset(&address, 0, sizeof address);
  if (inet_pton(AF_INET, host.c_str(), &address.v4.sin_addr) == 1 &&
      (ntohl(address.v4.sin_addr.s_addr) >> 24) == 127) {
    address.v4.sin_family = AF_INET;
    address.v4.sin_port = htons(port);
    return sizeof address.v4;
  }
  if (inet_pton(AF_INET6, host.c_str(), &address.v6.sin6_addr) == 1 &&
      IN6_IS_ADDR_LOOPBACK(&address.v6.sin6_addr)) {
    address.v6.sin6_family = AF_INET6;
    address.v6.sin6_port = htons(port);
    return sizeof address.v6;
  }
  ThrowListenError(listen, "not a loopback address");
}

// Fills `port` with the one that was given.
OwnedSocket ListenOn(const std::string& listen, int& port) {
  SocketAddress address;
  socklen_t size = ParseLoopbackAddress(listen, address);
  OwnedSocket made(socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (made.get() < 0 || setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(made.get(), &address.any, size) != 0 || ::listen(made.get(), 4096) != 0 ||
      getsockname(made.get(), &address.any, &size) != 0) {
    ThrowListenError(listen, strerror(errno));
  }
  port = ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
  return made;
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

class Server::Impl {
 public:
  Impl(Server& server, ServerOptions options, Handler handler)
      : core_(server, std::move(options), std::move(handler)) {
    if (!core_.options.listen.empty()) {
      listener_ = ListenOn(core_.options.listen, port_);
    }
    if (!core_.options.tls_listen.empty()) {
      tls_ = MakeTlsContext(core_.options);
      tls_listener_ = ListenOn(core_.options.tls_listen, tls_port_);
    }
    stop_ = OwnedSocket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (stop_.get() < 0) {
      throw std::runtime_error("no descriptor for the server");
    }
    RaiseDescriptorLimit();
  }

  ~Impl() {
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    SignalAll(kSignalStop);
    core_.threads.JoinAll();
  }

  // Apart from the constructor: handlers may use the Server from the first request on.
  void Start() {
    if (!core_.threads.Spawn([this] { AcceptLoop(); })) {
      throw std::runtime_error("no thread for the server");
    }
  }

  void SignalAll(unsigned signals, uint64_t except = 0) {
    const std::lock_guard lock(mutex_);
    for (const std::shared_ptr<Connection>& connection : connections_) {
      if (connection->id() != except) {
        connection->Signal(signals);
      }
    }
  }

  Core& core() { return core_; }
  int port() const { return port_; }
  int tls_port() const { return tls_port_; }
  const std::string& certificate_pem() const { return tls_.certificate_pem; }

 private:
  void AcceptLoop() {
    pollfd polled[3] = {{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}, {tls_listener_.get(), POLLIN, 0}};
    for (;;) {
      const int ready = poll(polled, 3, -1);
      if ((polled[0].revents & POLLIN) != 0) {
        return;
      }
      if (ready > 0) {
        AcceptFrom(polled[1], nullptr);
        AcceptFrom(polled[2], tls_.context.get());
      }
    }
  }

  void AcceptFrom(const pollfd& polled, SSL_CTX* tls) {
    if (polled.fd < 0 || (polled.revents & POLLIN) == 0) {
      return;
    }
    for (int accepted = 0; accepted < 64; ++accepted) {
      const int socket = accept4(polled.fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (socket < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
          pollfd stop{stop_.get(), POLLIN, 0};
          poll(&stop, 1, 20);  // some connection has to end first; the listener stays readable
        }
        return;
      }
      Admit(socket, tls);
    }
  }

  void Admit(int socket, SSL_CTX* tls) {
    const int limit = core_.options.max_connections;
    std::shared_ptr<Connection> connection;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_ || (limit > 0 && connections_.size() >= static_cast<size_t>(limit))) {
        ::close(socket);
        return;
      }
      try {
        connection = std::make_shared<Connection>(socket, tls);
      } catch (const std::exception&) {
        return;  // the constructor closed the socket
      }
      connections_.insert(connection);
    }
    core_.counts.ConnectionOpened();
    if (!core_.threads.Spawn([this, connection] { Serve(connection); })) {
      Forget(connection);
    }
  }

  void Serve(const std::shared_ptr<Connection>& connection) {
    if (connection->Handshake()) {
      if (connection->protocol() == "h2") {
        ServeHttp2(core_, connection);
      } else {
        ServeHttp1(core_, *connection);
      }
    }
    Forget(connection);
  }

  void Forget(const std::shared_ptr<Connection>& connection) {
    core_.counts.ConnectionClosed();
    const std::lock_guard lock(mutex_);
    connections_.erase(connection);
  }

  TlsContext tls_;
  OwnedSocket stop_;  // eventfd
  OwnedSocket listener_;
  OwnedSocket tls_listener_;
  int port_ = 0;
  int tls_port_ = 0;
  std::mutex mutex_;  // before Connection's
  bool stopping_ = false;
  std::set<std::shared_ptr<Connection>> connections_;
  Core core_;  // last: its threads end before the rest goes
};

Server::Server(ServerOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(*this, std::move(options), std::move(handler))) {
  impl_->Start();
}

Server::~Server() = default;

int Server::port() const { return impl_->port(); }
int Server::tls_port() const { return impl_->tls_port(); }
const std::string& Server::certificate_pem() const { return impl_->certificate_pem(); }

void Server::AddFault(Fault fault) { impl_->core().faults.Add(std::move(fault)); }

void Server::ClearFaults() {
  impl_->core().faults.Clear();
  impl_->SignalAll(0);  // what is stalled looks at the faults' generation
}

ServerCounts Server::counts() const { return impl_->core().counts.Read(); }
void Server::ResetCounts() { impl_->core().counts.Reset(); }
void Server::set_latency_ms(int64_t latency_ms) { impl_->core().latency_ms = latency_ms; }
void Server::GoAwayAll() { impl_->SignalAll(kSignalGoAway); }
void Server::ResetAll(uint64_t except_connection) { impl_->SignalAll(kSignalReset, except_connection); }

}  // namespace e2bfs::sandbox
