// Connection: one accepted socket, in clear or with TLS, driven by one thread and nudged by others.
#pragma once

#include <openssl/ssl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>

namespace e2bfs::sandbox {

enum class IoStatus {
  kDone,     // some bytes were moved
  kBlocked,  // Wait and try again
  kEnded,    // the peer closed (reads), or the connection is broken
};

// What other threads ask of a connection. The first two end it.
enum ConnectionSignal : unsigned {
  kSignalStop = 1,     // the server is going down: drop everything
  kSignalReset = 2,    // TCP reset
  kSignalGoAway = 4,   // no further requests, please
};

class Connection {
 public:
  // Takes the socket, which is non-blocking; with a context, it will speak TLS.
  Connection(int socket, SSL_CTX* tls);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // --- any thread
  uint64_t id() const { return id_; }  // never 0, never used twice
  // Adds `signals` (0: only wakes) and wakes Wait.
  void Signal(unsigned signals);
  unsigned signals() const { return signals_; }
  bool must_end() const { return (signals_ & (kSignalStop | kSignalReset)) != 0; }
  // The peer has closed or reset; what it sent before may still be unread. True also when must_end() or closed here.
  bool PeerGone();

  // --- the connection's own thread
  // The TLS handshake. False if it failed, or must_end().
  bool Handshake();
  // ALPN's choice, empty in clear.
  std::string_view protocol() const;
  IoStatus Read(char* buffer, size_t capacity, size_t& moved);
  IoStatus Write(const char* bytes, size_t size, size_t& moved);
  // Until Read (if `reading`) or Write (if `writing`) may get further, the peer is gone (if `watching`), a Signal comes,
  // or the time is over (negative: no limit). Returns at once if a Signal came since the last Wait.
  void Wait(bool reading, bool writing, bool watching, int64_t timeout_ms);
  // FIN, TLS' close_notify before it; then, unless must_end(), what the peer still sends is thrown away for at most a
  // second, so that no reset overtakes what was sent. The socket is closed after it.
  void CloseCleanly();
  // Waits until the peer's kernel has taken everything, at most a second: a reset throws away what is still on its way.
  void Drain();
  // RST, and the socket is closed.
  void CloseWithReset();

 private:
  struct SslDeleter {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  IoStatus AfterTls(int result, short& wants);
  void CloseSocket();

  std::mutex mutex_;    // innermost; guards the closing of socket_ against PeerGone of other threads
  const uint64_t id_;
  int socket_;          // -1 once closed; changed by the own thread only
  const int wake_;      // eventfd
  std::atomic<unsigned> signals_{0};
  std::unique_ptr<SSL, SslDeleter> ssl_;
  short read_wants_;    // poll events that the last blocked Read or Write waits for
  short write_wants_;
};

}  // namespace e2bfs::sandbox
