// Heads of file transfers, out and in: ranges, dates, multipart frames. Pure. Private to this folder.
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>

#include "transport/base/error.h"
#include "transport/envd/client.h"
#include "transport/http/client.h"

namespace e2bfs::transport::envd {

// "bytes 10-19/10000" → first, last, total; "bytes */10000" → total only (416). nullopt for anything else, "/*" included.
struct ContentRange {
  int64_t first = -1, last = -1;
  int64_t total = 0;
};
std::optional<ContentRange> ParseContentRange(std::string_view value);
// A non-negative decimal number without anything around it.
std::optional<int64_t> ParseLength(std::string_view value);
// "Sat, 21 Nov 2026 14:31:26 GMT"; 0 for anything else.
time_t ParseHttpDate(std::string_view value);

// What an answer to `request` delivers, or why it cannot be the answer (EIO/kProtocol). Status is 200, 206 or 416.
Result<DownloadHead> CheckDownloadHead(const DownloadRequest& request, const http::ResponseHead& head);

// A multipart body around one file's bytes. The boundary is random: content cannot be made to hold it.
struct MultipartFrame {
  std::string content_type;
  std::string before, after;
  static MultipartFrame Make();
};

}  // namespace e2bfs::transport::envd
