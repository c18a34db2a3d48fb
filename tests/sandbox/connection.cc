#include "tests/sandbox/connection.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <stdexcept>

namespace e2bfs::sandbox {
namespace {

constexpr int64_t kLingerMs = 1000;

int64_t MonotonicMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// A BIO over a socket that sends with MSG_NOSIGNAL: OpenSSL's own raises SIGPIPE when the peer is gone.
int QuietBioSocket(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

int QuietBioWrite(BIO* bio, const char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t sent = send(QuietBioSocket(bio), bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
    BIO_set_retry_write(bio);
  }
  return static_cast<int>(sent);
}

int QuietBioRead(BIO* bio, char* bytes, int size) {
  BIO_clear_retry_flags(bio);
  const ssize_t got = recv(QuietBioSocket(bio), bytes, static_cast<size_t>(size), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    BIO_set_retry_read(bio);
  }
  return static_cast<int>(got);
}

long QuietBioControl(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

BIO_METHOD* QuietBioMethod() {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket without SIGPIPE");
    BIO_meth_set_write(made, QuietBioWrite);
    BIO_meth_set_read(made, QuietBioRead);
    BIO_meth_set_ctrl(made, QuietBioControl);
    return made;
  }();
  return method;
}

uint64_t NextConnectionId() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Connection::Connection(int socket, SSL_CTX* tls)
    : id_(NextConnectionId()), socket_(socket), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), read_wants_(POLLIN), write_wants_(POLLOUT) {
  if (tls != nullptr) {
    ssl_.reset(SSL_new(tls));
  }
  BIO* bio = ssl_ ? BIO_new(QuietBioMethod()) : nullptr;
  if (wake_ < 0 || (tls != nullptr && bio == nullptr)) {
    ::close(socket_);
    if (wake_ >= 0) {
      ::close(wake_);
    }
    throw std::runtime_error("no descriptor or memory for a connection");
  }
  if (bio != nullptr) {
    BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(socket_)));
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
    SSL_set_accept_state(ssl_.get());
    SSL_set_read_ahead(ssl_.get(), 1);  // or each record costs two calls
  }
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Connection::~Connection() {
  CloseSocket();
  ::close(wake_);
}

void Connection::Signal(unsigned signals) {
  signals_ |= signals;
  const uint64_t one = 1;
  (void)!::write(wake_, &one, sizeof one);  // fails only when the counter is full, and then it is awake
}

bool Connection::PeerGone() {
  const std::lock_guard lock(mutex_);
  if (socket_ < 0 || must_end()) {
    return true;
  }
  pollfd poll_socket{socket_, POLLRDHUP, 0};
  return poll(&poll_socket, 1, 0) > 0 && (poll_socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool Connection::Handshake() {
  while (ssl_ && !must_end()) {
    ERR_clear_error();
    short wants = POLLIN;
    const int result = SSL_accept(ssl_.get());
    if (result == 1) {
      return true;
    }
    if (AfterTls(result, wants) != IoStatus::kBlocked) {
      return false;
    }
    read_wants_ = wants;
    Wait(true, false, false, -1);
    read_wants_ = POLLIN;
  }
  return !ssl_;
}

std::string_view Connection::protocol() const {
  const unsigned char* name = nullptr;
  unsigned size = 0;
  if (ssl_) {
    SSL_get0_alpn_selected(ssl_.get(), &name, &size);
  }
  return {reinterpret_cast<const char*>(name), size};
}

IoStatus Connection::AfterTls(int result, short& wants) {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      wants = POLLIN;
      return IoStatus::kBlocked;
    case SSL_ERROR_WANT_WRITE:
      wants = POLLOUT;
      return IoStatus::kBlocked;
    default:
      ERR_clear_error();
      return IoStatus::kEnded;
  }
}

IoStatus Connection::Read(char* buffer, size_t capacity, size_t& moved) {
  moved = 0;
  if (socket_ < 0 || must_end()) {
    return IoStatus::kEnded;
  }
  if (ssl_) {
    ERR_clear_error();
    const int got = SSL_read(ssl_.get(), buffer, static_cast<int>(std::min<size_t>(capacity, INT_MAX)));
    if (got <= 0) {
      return AfterTls(got, read_wants_);
    }
    moved = static_cast<size_t>(got);
    return IoStatus::kDone;
  }
  const ssize_t got = recv(socket_, buffer, capacity, 0);
  if (got <= 0) {
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? IoStatus::kBlocked : IoStatus::kEnded;
  }
  moved = static_cast<size_t>(got);
  return IoStatus::kDone;
}

IoStatus Connection::Write(const char* bytes, size_t size, size_t& moved) {
  moved = 0;
  if (socket_ < 0 || must_end()) {
    return IoStatus::kEnded;
  }
  if (ssl_) {
    ERR_clear_error();
    const int sent = SSL_write(ssl_.get(), bytes, static_cast<int>(std::min<size_t>(size, INT_MAX)));
    if (sent <= 0) {
      return AfterTls(sent, write_wants_);
    }
    moved = static_cast<size_t>(sent);
    return IoStatus::kDone;
  }
  const ssize_t sent = send(socket_, bytes, size, MSG_NOSIGNAL);
  if (sent < 0) {
    return errno == EAGAIN || errno == EINTR ? IoStatus::kBlocked : IoStatus::kEnded;
  }
  moved = static_cast<size_t>(sent);
  return IoStatus::kDone;
}

void Connection::Wait(bool reading, bool writing, bool watching, int64_t timeout_ms) {
  pollfd polled[2] = {{socket_, 0, 0}, {wake_, POLLIN, 0}};
  if (reading) {
    polled[0].events |= read_wants_;
  }
  if (writing) {
    polled[0].events |= write_wants_;
  }
  if (watching) {
    polled[0].events |= POLLRDHUP;
  }
  if (polled[0].events == 0) {
    polled[0].fd = -1;  // poll would report POLLHUP and POLLERR all the same
  }
  poll(polled, 2, static_cast<int>(std::clamp<int64_t>(timeout_ms, -1, INT_MAX)));
  if ((polled[1].revents & POLLIN) != 0) {
    uint64_t ignored = 0;
    (void)!::read(wake_, &ignored, sizeof ignored);
  }
}

void Connection::Drain() {
  const int64_t deadline = MonotonicMs() + kLingerMs;
  while (!PeerGone() && MonotonicMs() < deadline) {
    int unsent = 0;
    if (ioctl(socket_, SIOCOUTQ, &unsent) != 0 || unsent == 0) {
      return;
    }
    Wait(false, false, true, 1);  // the kernel tells nobody when its queue is empty
  }
}

void Connection::CloseCleanly() {
  if (socket_ < 0) {
    return;
  }
  if (ssl_ && !must_end() && SSL_is_init_finished(ssl_.get())) {
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }
  shutdown(socket_, SHUT_WR);
  const int64_t deadline = MonotonicMs() + kLingerMs;
  char thrown_away[16384];
  while (!must_end() && MonotonicMs() < deadline) {
    const ssize_t got = recv(socket_, thrown_away, sizeof thrown_away, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
      break;
    }
    if (got < 0) {
      read_wants_ = POLLIN;
      Wait(true, false, true, deadline - MonotonicMs());
    }
  }
  CloseSocket();
}

void Connection::CloseWithReset() {
  if (socket_ >= 0) {
    const linger at_once{1, 0};
    setsockopt(socket_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  }
  CloseSocket();
}

void Connection::CloseSocket() {
  const std::lock_guard lock(mutex_);
  if (socket_ >= 0) {
    ::close(socket_);
    socket_ = -1;
  }
}

}  // namespace e2bfs::sandbox
