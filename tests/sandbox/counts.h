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
  // Answers the request's place in the sequence (see ServerCounts::sequence), for AnswerBegins.
  int64_t RequestBegun(const std::string& method, const std::string& path, const std::string& sandbox_id, bool http2);
  // Before the first byte of the answer goes out.
  void AnswerBegins(int64_t place);
  void RequestEnded();
  void RequestBodyBytes(int64_t bytes) { request_body_bytes_ += bytes; }
  void ResponseBodyBytes(int64_t bytes) { response_body_bytes_ += bytes; }
  void Input(int64_t bytes, int64_t frames);
  // Held (shared) over a send and its ResponseBodyBytes, so that nobody reads a count older than what a client got.
  std::shared_lock<std::shared_mutex> Sending() { return std::shared_lock(sending_); }

  ServerCounts Read();
  // What is now (connections, requests) stays, and is the new maximum.
  void Reset();

 private:
  std::shared_mutex sending_;  // before mutex_
  std::mutex mutex_;           // innermost; guards counts_
  ServerCounts counts_;
  int64_t answered_place_ = 0;  // the highest place in the sequence of a request whose answer began
  int64_t highest_place_ = 0;
  int64_t first_place_ = 0;     // highest_place_ at the last Reset
  std::atomic<int64_t> request_body_bytes_{0};
  std::atomic<int64_t> response_body_bytes_{0};
};

}  // namespace e2bfs::sandbox
