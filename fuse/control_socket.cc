#include "fuse/control_socket.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "transport/base/context.h"
#include "transport/base/log.h"

namespace e2bfs::fuse {
namespace {

constexpr size_t kMaxRequestBytes = 64 * 1024;
constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kMaxConnections = 32;
constexpr std::chrono::seconds kRequestTime{10};
constexpr std::chrono::seconds kSendTime{10};

// A socket's name for the kernel. One that is too long for it is reached through its directory, which stays open meanwhile.
class SocketAddress {
 public:
  static Result<SocketAddress> Of(const std::string& path) {
    SocketAddress made;
    std::string name = path;
    if (name.size() >= sizeof made.address_.sun_path) {
      const size_t slash = path.rfind('/');
      if (slash == std::string::npos) return Errno(ENAMETOOLONG, "control socket " + path);
      made.directory_ = open(path.substr(0, slash + 1).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
      if (made.directory_ < 0) return Errno(errno, "control socket " + path);
      name = fmt::format("/proc/self/fd/{}/{}", made.directory_, path.substr(slash + 1));
      if (name.size() >= sizeof made.address_.sun_path) return Errno(ENAMETOOLONG, "control socket " + path);
    }
    made.address_.sun_family = AF_UNIX;
    memcpy(made.address_.sun_path, name.data(), name.size());
    return made;
  }
  SocketAddress(SocketAddress&& other) noexcept : address_(other.address_), directory_(std::exchange(other.directory_, -1)) {}
  SocketAddress& operator=(SocketAddress&&) = delete;
  ~SocketAddress() {
    if (directory_ >= 0) close(directory_);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address_); }
  static socklen_t size() { return sizeof(sockaddr_un); }

 private:
  SocketAddress() = default;
  sockaddr_un address_{};
  int directory_ = -1;
};

// poll(2) for reading until `deadline`; false at the deadline.
bool WaitReadable(int descriptor, TimePoint deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd poller{descriptor, POLLIN, 0};
    const int64_t wait = std::clamp<int64_t>(left.count(), 0, 60'000);
    const int count = poll(&poller, 1, static_cast<int>(wait));
    if (count > 0) return true;
    if (count < 0 && errno != EINTR) return false;
    if (left.count() <= 0) return false;
  }
}

bool SendAll(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = send(descriptor, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

// Takes the first line out of `buffer`, reading more as needed. nullopt at the end; ETIMEDOUT; EMSGSIZE.
Result<std::optional<std::string>> TakeLine(int descriptor, std::string& buffer, size_t limit, TimePoint deadline) {
  size_t searched = 0;
  while (true) {
    const size_t newline = buffer.find('\n', searched);
    if (newline != std::string::npos) {
      std::string line = buffer.substr(0, newline);
      buffer.erase(0, newline + 1);
      return line;
    }
    searched = buffer.size();
    if (buffer.size() > limit) return Errno(EMSGSIZE, "control socket");
    if (!WaitReadable(descriptor, deadline)) return Errno(ETIMEDOUT, "control socket");
    char piece[8192];
    const ssize_t count = recv(descriptor, piece, sizeof piece, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Errno(errno, "control socket");
    if (count == 0) return std::optional<std::string>();
    buffer.append(piece, static_cast<size_t>(count));
  }
}

class SocketServer final : public ControlServer {
 public:
  SocketServer(std::string path, int listener, int waker, Handler handler)
      : path_(std::move(path)), listener_(listener), waker_(waker), handler_(std::move(handler)) {
    accepter_ = std::thread([this] { Accept(); });
  }

  ~SocketServer() override {
    unlink(path_.c_str());
    const uint64_t one = 1;
    if (write(waker_, &one, sizeof one) < 0) log::Error("control", "cannot wake the control socket's thread");
    accepter_.join();
    {
      std::lock_guard lock(mutex_);
      // Reading only: what a handler is just saying still arrives.
      for (Connection& connection : connections_) shutdown(connection.descriptor, SHUT_RD);
    }
    while (true) {
      std::unique_lock lock(mutex_);
      if (connections_.empty()) break;
      std::thread thread = std::move(connections_.front().thread);
      lock.unlock();
      if (thread.joinable()) thread.join();
      lock.lock();
      close(connections_.front().descriptor);
      connections_.pop_front();
    }
    close(listener_);
    close(waker_);
  }

 private:
  struct Connection {
    int descriptor = -1;
    bool done = false;
    std::thread thread;
  };

  void Accept() {
    while (true) {
      pollfd pollers[2] = {{listener_, POLLIN, 0}, {waker_, POLLIN, 0}};
      if (poll(pollers, 2, -1) < 0 && errno != EINTR) return;
      if (pollers[1].revents != 0) return;
      if (pollers[0].revents == 0) continue;
      const int descriptor = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (descriptor < 0) {
        // Out of descriptors: whoever waits is still there in a moment.
        if (errno == EMFILE || errno == ENFILE) poll(&pollers[1], 1, 100);
        continue;
      }
      // A client that stops reading holds nobody up for longer.
      const timeval patience{kSendTime.count(), 0};
      setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
      ucred peer{};
      socklen_t length = sizeof peer;
      const bool known = getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
      if (!known || (peer.uid != 0 && peer.uid != geteuid()) || !Serve(descriptor)) close(descriptor);
    }
  }

  bool Serve(int descriptor) {
    std::lock_guard lock(mutex_);
    for (auto connection = connections_.begin(); connection != connections_.end();) {
      if (!connection->done) {
        ++connection;
        continue;
      }
      connection->thread.join();
      close(connection->descriptor);
      connection = connections_.erase(connection);
    }
    if (connections_.size() >= kMaxConnections) return false;
    Connection& connection = connections_.emplace_back();
    connection.descriptor = descriptor;
    try {
      connection.thread = std::thread([this, &connection] { Answer(connection); });
    } catch (const std::system_error& thrown) {
      log::Error("control", "cannot start a thread: {}", thrown.what());
      connections_.pop_back();
      return false;
    }
    return true;
  }

  void Answer(Connection& connection) {
    const int descriptor = connection.descriptor;
    std::string buffer;
    auto request = TakeLine(descriptor, buffer, kMaxRequestBytes, Clock::now() + kRequestTime);
    if (request && *request) {
      handler_(**request, [descriptor](const std::string& line) { return SendAll(descriptor, line + "\n"); });
    }
    shutdown(descriptor, SHUT_RDWR);
    std::lock_guard lock(mutex_);
    connection.done = true;
  }

  const std::string path_;
  const int listener_;
  const int waker_;
  const Handler handler_;
  std::mutex mutex_;  // guards connections_; nothing is called under it
  std::list<Connection> connections_;
  std::thread accepter_;
};

}  // namespace

std::string ControlSocketPrefix(const std::string& mount_point) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a: the same in every process, and no secret depends on it
  for (unsigned char c : mount_point) hash = (hash ^ c) * 0x100000001b3;
  return fmt::format("{:016x}-", hash);
}

std::string ControlSocketName(const std::string& mount_point, int process_id) {
  return fmt::format("{}{}.sock", ControlSocketPrefix(mount_point), process_id);
}

Result<std::unique_ptr<ControlServer>> ControlServer::Create(const std::string& path, Handler handler) {
  auto address = SocketAddress::Of(path);
  if (!address) return Forward(address.error());
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return Errno(errno, "control socket");
  int outcome = bind(listener, address->get(), SocketAddress::size());
  if (outcome != 0 && errno == EADDRINUSE && !ControlClient::Connect(path)) {
    unlink(path.c_str());
    outcome = bind(listener, address->get(), SocketAddress::size());
  }
  const int waker = outcome == 0 && chmod(path.c_str(), 0600) == 0 && listen(listener, 16) == 0
                        ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
                        : -1;
  if (waker < 0) {
    const int reason = errno;
    close(listener);
    return Errno(reason, "control socket " + path);
  }
  return std::make_unique<SocketServer>(path, listener, waker, std::move(handler));
}

Result<ControlClient> ControlClient::Connect(const std::string& path) {
  auto address = SocketAddress::Of(path);
  if (!address) return Forward(address.error());
  const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return Errno(errno, "control socket");
  if (connect(descriptor, address->get(), SocketAddress::size()) != 0) {
    const int reason = errno;
    close(descriptor);
    return Errno(reason, "control socket " + path);
  }
  return ControlClient(descriptor);
}

ControlClient::ControlClient(int descriptor) : descriptor_(descriptor) {
  ucred server{};
  socklen_t size = sizeof server;
  if (getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &server, &size) != 0 || server.pid <= 0) return;
  process_ = cache::Descriptor(static_cast<int>(syscall(SYS_pidfd_open, server.pid, 0)));
}

ControlClient::ControlClient(ControlClient&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), process_(std::move(other.process_)), buffer_(std::move(other.buffer_)) {}

ControlClient::~ControlClient() {
  if (descriptor_ >= 0) close(descriptor_);
}

Result<void> ControlClient::Send(const std::string& line) {
  if (!SendAll(descriptor_, line + "\n")) return Errno(errno, "control socket");
  return {};
}

Result<std::optional<std::string>> ControlClient::ReadLine(std::chrono::milliseconds timeout) {
  return TakeLine(descriptor_, buffer_, kMaxLineBytes, Clock::now() + timeout);
}

bool ControlClient::WaitForExit(std::chrono::milliseconds timeout) const {
  pollfd wait{process_.get(), POLLIN, 0};
  if (!process_.is_open()) return true;
  const TimePoint until = Clock::now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    const int ended = poll(&wait, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ended >= 0 || errno != EINTR) return ended > 0;
  }
}

}  // namespace e2bfs::fuse
