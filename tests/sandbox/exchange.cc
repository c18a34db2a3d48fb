#include "tests/sandbox/exchange.h"

#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {

std::optional<std::string> Exchange::Header(std::string_view name) const {
  for (const auto& [key, value] : headers()) {
    if (key == name) {
      return value;
    }
  }
  return std::nullopt;
}

std::optional<std::string> Exchange::Query(std::string_view name) const {
  std::string_view rest = raw_query();
  while (!rest.empty()) {
    const size_t end = rest.find('&');
    const std::string_view pair = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    const size_t equals = pair.find('=');
    if (PercentDecode(pair.substr(0, equals), true) == name) {
      return equals == std::string_view::npos ? "" : PercentDecode(pair.substr(equals + 1), true);
    }
  }
  return std::nullopt;
}

std::optional<std::string> Exchange::ReadWholeBody(size_t limit) {
  std::string body;
  char buffer[16384];
  for (;;) {
    const std::optional<size_t> got = ReadBody(buffer, sizeof buffer);
    if (!got || body.size() + *got > limit) {
      return std::nullopt;
    }
    if (*got == 0) {
      return body;
    }
    body.append(buffer, *got);
  }
}

void Exchange::Reply(int status, HeaderList headers, std::string_view body) {
  // A 204 or 304 must not promise a length (RFC 9110, 8.6).
  if (status != 204 && status != 304) {
    headers.emplace_back("content-length", std::to_string(body.size()));
  }
  SendHead(status, headers);
  if (!body.empty()) {
    (void)Write(body);  // nothing is left to do for a client that is gone
  }
}

}  // namespace e2bfs::sandbox
