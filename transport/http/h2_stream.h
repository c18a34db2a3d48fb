// The record of one HTTP/2 stream. Private to h2_connection.cc and h2_callbacks.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "transport/http/h2_connection.h"

namespace e2bfs::transport::http {

struct H2Connection::Stream {
  ExchangePtr exchange;         // null once the try has ended
  ServiceClass service_class = ServiceClass::kMetadata;
  ResponseHead head;
  size_t head_bytes = 0;        // of all heads and trailers
  int heads = 0;
  bool final_head = false;
  bool headers_sent = false;
  uint64_t written_before = 0;  // of the connection, when the request was submitted
  bool upload_ended = false;
  bool upload_deferred = false;
  bool reset_by_peer = false;
  std::optional<std::string> violation;  // of the protocol, by the server
  int window = 0;
  size_t unconsumed = 0;        // received, not yet given back to the windows
};

}  // namespace e2bfs::transport::http
