// A far network on loopback: forwards TCP connections to HOST:PORT, each piece after half a round trip. Prints the port it listens on.
//
//   delayproxy HOST:PORT ROUND_TRIP_MS [MBIT_PER_SECOND]
//
// The way is a pipe: reading goes on while earlier pieces are on it, up to kOnTheWay bytes in each direction of a connection, which is more than
// loopback can move in the longest delay that we measure with; so what limits is the two ends, not this. A connection costs what TCP's handshake
// would: nobody can hold back the kernel's SYN-ACK, so the far side is connected to after one and a half round trips, and who speaks first has
// his answer after two.
//
// With a bandwidth, all connections share a wire of it in each direction and take turns on it (as fair queueing in routers has it), and a connection
// has no more on the way than the delay explains, and a little: whoever sends faster is held back. Not modelled: loss, slow start.
//
// Two threads for each direction, one that reads and one that writes when it is time; there are few connections.
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPieceBytes = 256 << 10;
constexpr size_t kOnTheWay = 256 << 20;
constexpr size_t kTurnBytes = 32 << 10;     // of one connection on the wire, before another's
constexpr size_t kQueuedBytes = 512 << 10;  // of one connection beyond what the delay explains

[[noreturn]] void Fail(const char* what) {
  fprintf(stderr, "delayproxy: %s: %s\n", what, strerror(errno));
  _exit(1);
}

constexpr auto kLateness = std::chrono::milliseconds(2);

// What moves bytes one after the other in one direction, for all connections. Any thread.
class Wire {
 public:
  explicit Wire(double bytes_per_second) : second_(bytes_per_second) {}  // 0: no limit

  bool limited() const { return second_ > 0; }
  size_t BytesWithin(Clock::duration time) const {
    return static_cast<size_t>(second_ * std::chrono::duration<double>(time).count());
  }
  // Returns when they have left. A connection has one turn at a time, so those that want to send take turns.
  void Transmit(size_t bytes) {
    Clock::time_point done;
    {
      std::lock_guard lock(mutex_);
      const std::chrono::duration<double> takes(static_cast<double>(bytes) / second_);
      // A thread that woke up late has not left the wire idle.
      done = free_ = std::max(free_, Clock::now() - kLateness) + std::chrono::duration_cast<Clock::duration>(takes);
    }
    std::this_thread::sleep_until(done);
  }

 private:
  const double second_;
  std::mutex mutex_;
  Clock::time_point free_{};
};

// No bytes: the end of the stream.
struct Piece {
  Clock::time_point due;
  size_t size = 0;
  std::unique_ptr<char[]> bytes;
};

// One direction of a connection. Read and Write are run by a thread each.
class Way {
 public:
  Way(Clock::duration delay, Wire& wire)
      : delay_(delay), wire_(wire), on_the_way_(wire.limited() ? wire.BytesWithin(delay) + kQueuedBytes : kOnTheWay),
        piece_(wire.limited() ? kTurnBytes : kPieceBytes) {}

  void Read(int from) {
    auto buffer = std::make_unique_for_overwrite<char[]>(piece_);
    while (true) {
      const ssize_t got = recv(from, buffer.get(), piece_, 0);
      if (got < 0 && errno == EINTR) continue;
      Piece piece{Clock::now() + delay_, got > 0 ? static_cast<size_t>(got) : 0, nullptr};
      const bool ends = piece.size == 0;
      if (piece.size > piece_ / 2) {
        piece.bytes = std::exchange(buffer, std::make_unique_for_overwrite<char[]>(piece_));
      } else if (!ends) {
        piece.bytes = std::make_unique_for_overwrite<char[]>(piece.size);
        memcpy(piece.bytes.get(), buffer.get(), piece.size);
      }
      std::unique_lock lock(mutex_);
      taken_.wait(lock, [&] { return size_ < on_the_way_; });
      size_ += piece.size;
      pieces_.push_back(std::move(piece));
      put_.notify_one();
      if (ends) return;
    }
  }

  // When the receiver is gone, the sender is told so by a closed connection; what he had sent is dropped.
  void Write(int from, int to) {
    bool gone = false;
    while (true) {
      Piece piece;
      {
        std::unique_lock lock(mutex_);
        put_.wait(lock, [&] { return !pieces_.empty(); });
        piece = std::move(pieces_.front());
        pieces_.pop_front();
        size_ -= piece.size;
        taken_.notify_one();
      }
      if (piece.size == 0) break;
      if (gone) continue;
      std::this_thread::sleep_until(piece.due);
      if (wire_.limited()) wire_.Transmit(piece.size);
      for (size_t sent = 0; sent < piece.size && !gone;) {
        const ssize_t n = send(to, piece.bytes.get() + sent, piece.size - sent, MSG_NOSIGNAL);
        if (n > 0) sent += n;
        gone = n < 0 && errno != EINTR;
      }
      if (gone) shutdown(from, SHUT_RDWR);
    }
    shutdown(to, gone ? SHUT_RDWR : SHUT_WR);
  }

 private:
  const Clock::duration delay_;
  Wire& wire_;
  const size_t on_the_way_, piece_;
  std::mutex mutex_;
  std::condition_variable put_, taken_;
  std::deque<Piece> pieces_;
  size_t size_ = 0;
};

void NoNagle(int socket) {
  const int one = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

struct Wires {
  Wire there, back;
};

void Serve(int near, const addrinfo& target, Clock::duration delay, Wires& wires) {
  const auto connects_at = Clock::now() + 3 * delay;
  NoNagle(near);
  Way there(delay, wires.there), back(delay, wires.back);
  std::thread from_near([&] { there.Read(near); });
  std::this_thread::sleep_until(connects_at);
  const int far = socket(target.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (far < 0) Fail("socket");
  NoNagle(far);
  if (connect(far, target.ai_addr, target.ai_addrlen) == 0) {
    std::thread from_far([&] { back.Read(far); });
    std::thread to_near([&] { back.Write(far, near); });
    there.Write(near, far);
    from_far.join();
    to_near.join();
  } else {
    shutdown(near, SHUT_RDWR);
  }
  from_near.join();
  close(far);
  close(near);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string target = argc == 3 || argc == 4 ? argv[1] : "";
  const size_t colon = target.rfind(':');
  if (colon == std::string::npos) {
    fprintf(stderr, "usage: delayproxy HOST:PORT ROUND_TRIP_MS [MBIT_PER_SECOND]\n");
    return 2;
  }
  const auto delay = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(atof(argv[2]) / 2));
  const double bytes_per_second = argc == 4 ? atof(argv[3]) * 1e6 / 8 : 0;
  static Wires wires{Wire(bytes_per_second), Wire(bytes_per_second)};
  signal(SIGPIPE, SIG_IGN);

  addrinfo hints{}, *far = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int error = getaddrinfo(target.substr(0, colon).c_str(), target.substr(colon + 1).c_str(), &hints, &far); error != 0) {
    fprintf(stderr, "delayproxy: %s: %s\n", target.c_str(), gai_strerror(error));
    return 1;
  }

  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof here;
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&here), size) < 0 || listen(listener, 1024) < 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&here), &size) < 0) {
    Fail("listen");
  }
  printf("%d\n", int{ntohs(here.sin_port)});
  fflush(stdout);
  while (true) {
    const int near = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (near >= 0) {
      std::thread(Serve, near, std::cref(*far), delay, std::ref(wires)).detach();
    } else if (errno != EINTR && errno != ECONNABORTED) {
      Fail("accept");
    }
  }
}
