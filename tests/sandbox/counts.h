// CountBook: what the server counts, see ServerCounts.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "tests/sandbox/server.h"

namespace e2bfs::sandbox {

// Thread-safe.
class CountBook {
 public:
  void ConnectionOpened();
  void ConnectionClosed();
  void ConnectionClosedBusy();
  void RequestBegun(const std::string& method, const std::string& path, const std::string& sandbox_id, bool http2);
  void RequestEnded();
  void RequestBodyBytes(int64_t bytes) { request_body_bytes_ += bytes; }
  void ResponseBodyBytes(int64_t bytes) { response_body_bytes_ += bytes; }
  // Held (shared) over a send and its ResponseBodyBytes, so that nobody reads a count older than what a client got.
  std::shared_lock<std::shared_mutex> Sending() { return std::shared_lock(sending_); }

  ServerCounts Read();
  // What is now (connections, requests) stays, and is the new maximum.
  void Reset();

 private:
  std::shared_mutex sending_;  // before mutex_
  std::mutex mutex_;           // innermost; guards counts_
  ServerCounts counts_;
  std::atomic<int64_t> request_body_bytes_{0};
  std::atomic<int64_t> response_body_bytes_{0};
};

}  // namespace e2bfs::sandbox
