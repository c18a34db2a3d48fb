#include "tests/sandbox/h1_parse.h"

#include <algorithm>
#include <charconv>

#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {
namespace {

// The next line without its CRLF; nullopt where the line end is not CRLF or the line holds a control character.
std::optional<std::string_view> NextHeadLine(std::string_view& rest) {
  const size_t end = rest.find("\r\n");
  if (end == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end + 2);
  if (line.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) {
    return std::nullopt;
  }
  return line;
}

bool ParseRequestLine(std::string_view line, H1Head& head, int& status) {
  const size_t first = line.find(' ');
  const size_t second = line.rfind(' ');
  if (first == std::string_view::npos || first == second) {
    return false;
  }
  const std::string_view method = line.substr(0, first);
  std::string_view target = line.substr(first + 1, second - first - 1);
  const std::string_view version = line.substr(second + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    status = version.substr(0, 5) == "HTTP/" ? 505 : 400;
    return false;
  }
  head.http10 = version == "HTTP/1.0";
  // The absolute form, which clients use towards a proxy.
  if (const size_t scheme_end = target.find("://"); target.substr(0, 4) == "http" && scheme_end < 6) {
    const size_t path = target.find('/', scheme_end + 3);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  }
  const bool has_control = std::any_of(target.begin(), target.end(), [](char c) {
    return static_cast<unsigned char>(c) <= ' ' || c == 0x7f;
  });
  if (!IsHttpToken(method) || target.empty() || target.front() != '/' || has_control) {
    return false;
  }
  head.request.method = method;
  head.request.SetTarget(std::string(target));
  return true;
}

bool HasListItem(std::string_view list, std::string_view item) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (TrimBlanks(list.substr(0, comma)) == item) {
      return true;
    }
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
  }
  return false;
}

}  // namespace

H1ParseResult ParseH1Head(std::string_view text) {
  H1Head head;
  int status = 400;
  std::optional<std::string_view> line = NextHeadLine(text);
  if (!line || !ParseRequestLine(*line, head, status)) {
    return {std::nullopt, status};
  }
  bool has_host = false;
  bool has_length = false;
  bool close = false;
  bool keep = false;
  while ((line = NextHeadLine(text)) && !line->empty()) {
    const size_t colon = line->find(':');
    if (colon == std::string_view::npos || !IsHttpToken(line->substr(0, colon))) {
      return {std::nullopt, 400};  // a folded line starts with a blank, which no token does
    }
    std::string name = LowerAscii(line->substr(0, colon));
    std::string value(TrimBlanks(line->substr(colon + 1)));
    const std::string lower = LowerAscii(value);
    if (name == "host") {
      if (has_host) {
        return {std::nullopt, 400};
      }
      has_host = true;
    } else if (name == "content-length") {
      int64_t length = -1;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), length);
      if (error != std::errc() || end != value.data() + value.size() || value.front() == '-' ||
          (has_length && length != head.content_length)) {
        return {std::nullopt, 400};
      }
      has_length = true;
      head.content_length = length;
    } else if (name == "transfer-encoding") {
      if (head.chunked || lower != "chunked") {
        return {std::nullopt, head.chunked ? 400 : 501};
      }
      head.chunked = true;
    } else if (name == "connection") {
      close = close || HasListItem(lower, "close");
      keep = keep || HasListItem(lower, "keep-alive");
    } else if (name == "expect") {
      head.expect_continue = lower == "100-continue";
    }
    head.request.headers.emplace_back(std::move(name), std::move(value));
  }
  if (!line || (head.chunked && (has_length || head.http10)) || (!has_host && !head.http10)) {
    return {std::nullopt, 400};
  }
  head.keep_alive = !close && (!head.http10 || keep);
  return {std::move(head), 0};
}

std::optional<int64_t> ParseChunkSize(std::string_view line) {
  int64_t size = -1;
  const std::string_view digits = TrimBlanks(line.substr(0, line.find(';')));
  if (digits.empty() || digits.size() > 12 || digits.front() == '-') {
    return std::nullopt;
  }
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size, 16);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    return std::nullopt;
  }
  return size;
}

}  // namespace e2bfs::sandbox
