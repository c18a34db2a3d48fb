#include "tests/sandbox/counts.h"

#include <algorithm>

namespace e2bfs::sandbox {

void CountBook::ConnectionOpened() {
  const std::lock_guard lock(mutex_);
  ++counts_.connections_opened;
  ++counts_.connections_now;
  counts_.max_connections = std::max(counts_.max_connections, counts_.connections_now);
}

void CountBook::ConnectionClosed() {
  const std::lock_guard lock(mutex_);
  --counts_.connections_now;
}

void CountBook::ConnectionClosedBusy() {
  const std::lock_guard lock(mutex_);
  ++counts_.connections_closed_busy;
}

int64_t CountBook::RequestBegun(const std::string& method, const std::string& path, const std::string& sandbox_id,
                                bool http2) {
  const std::lock_guard lock(mutex_);
  ++counts_.requests[method + " " + path];
  ++counts_.total_requests;
  ++counts_.requests_now;
  counts_.max_requests = std::max(counts_.max_requests, counts_.requests_now);
  if (!sandbox_id.empty()) {
    ++counts_.by_sandbox[sandbox_id];
  }
  if (http2) {
    ++counts_.http2_requests;
  }
  const int64_t place = answered_place_ + 1;
  highest_place_ = std::max(highest_place_, place);
  return place;
}

void CountBook::AnswerBegins(int64_t place) {
  const std::lock_guard lock(mutex_);
  answered_place_ = std::max(answered_place_, place);
}

void CountBook::Input(int64_t bytes, int64_t frames) {
  const std::lock_guard lock(mutex_);
  counts_.input_frames += frames;
  counts_.input_bytes += bytes;
}

void CountBook::RequestEnded() {
  const std::lock_guard lock(mutex_);
  --counts_.requests_now;
}

ServerCounts CountBook::Read() {
  const std::unique_lock none_sends(sending_);
  const std::lock_guard lock(mutex_);
  ServerCounts copy = counts_;
  copy.sequence = highest_place_ - first_place_;
  copy.request_body_bytes = request_body_bytes_;
  copy.response_body_bytes = response_body_bytes_;
  return copy;
}

void CountBook::Reset() {
  const std::unique_lock none_sends(sending_);
  const std::lock_guard lock(mutex_);
  ServerCounts fresh;
  fresh.connections_now = fresh.max_connections = counts_.connections_now;
  fresh.requests_now = fresh.max_requests = counts_.requests_now;
  counts_ = fresh;
  // Requests that are still on their way have places up to here, and lengthen nothing that begins now.
  first_place_ = answered_place_ = highest_place_ = std::max(highest_place_, answered_place_);
  request_body_bytes_ = 0;
  response_body_bytes_ = 0;
}

}  // namespace e2bfs::sandbox
