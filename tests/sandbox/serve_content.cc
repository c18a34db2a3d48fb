#include "tests/sandbox/serve_content.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "tests/sandbox/go_path.h"
#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {
namespace {

constexpr std::array<const char*, 12> kMonthNames = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
constexpr size_t kServePiece = size_t{256} << 10;

struct ByteRange {
  int64_t start = 0;
  int64_t length = 0;
};

std::optional<time_t> ParseHttpDate(const std::string& text) {
  std::array<char, 4> month{};
  tm utc{};
  if (std::sscanf(text.c_str(), "%*3s, %d %3s %d %d:%d:%d GMT", &utc.tm_mday, month.data(), &utc.tm_year,
                  &utc.tm_hour, &utc.tm_min, &utc.tm_sec) != 6) {
    return std::nullopt;
  }
  const auto* found = std::find(kMonthNames.begin(), kMonthNames.end(), std::string_view(month.data()));
  if (found == kMonthNames.end()) {
    return std::nullopt;
  }
  utc.tm_mon = static_cast<int>(found - kMonthNames.begin());
  utc.tm_year -= 1900;
  return timegm(&utc);
}

std::optional<int64_t> ParseOffset(std::string_view text) {
  if (!text.empty() && text.front() == '+') {
    text.remove_prefix(1);
  }
  int64_t value = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc() || end != text.data() + text.size() || value < 0) {
    return std::nullopt;
  }
  return value;
}

enum class RangeOutcome { kGood, kInvalid, kNoOverlap };

RangeOutcome ParseRangeList(std::string_view header, int64_t size, std::vector<ByteRange>* ranges) {
  if (header.empty()) {
    return RangeOutcome::kGood;
  }
  static constexpr std::string_view kUnit = "bytes=";
  if (header.substr(0, kUnit.size()) != kUnit) {
    return RangeOutcome::kInvalid;
  }
  header.remove_prefix(kUnit.size());
  bool beyond = false;
  while (!header.empty()) {
    const size_t comma = std::min(header.find(','), header.size());
    const std::string_view item = TrimBlanks(header.substr(0, comma));
    header.remove_prefix(std::min(comma + 1, header.size()));
    if (item.empty()) {
      continue;
    }
    const size_t dash = item.find('-');
    if (dash == std::string_view::npos) {
      return RangeOutcome::kInvalid;
    }
    const std::string_view first = TrimBlanks(item.substr(0, dash));
    const std::string_view last = TrimBlanks(item.substr(dash + 1));
    ByteRange range;
    if (first.empty()) {
      const auto count = last.empty() ? std::nullopt : ParseOffset(last);
      if (!count) {
        return RangeOutcome::kInvalid;
      }
      range.start = size - std::min(*count, size);
      range.length = size - range.start;
    } else {
      const auto start = ParseOffset(first);
      if (!start) {
        return RangeOutcome::kInvalid;
      }
      if (*start >= size) {
        beyond = true;
        continue;
      }
      range.start = *start;
      range.length = size - *start;
      if (!last.empty()) {
        const auto end = ParseOffset(last);
        if (!end || *end < *start) {
          return RangeOutcome::kInvalid;
        }
        range.length = std::min(*end, size - 1) - *start + 1;
      }
    }
    ranges->push_back(range);
  }
  return beyond && ranges->empty() ? RangeOutcome::kNoOverlap : RangeOutcome::kGood;
}

// The beginning of http.DetectContentType's table, then its test for text.
std::string SniffMediaType(std::string_view head) {
  static constexpr std::pair<std::string_view, const char*> kSignatures[] = {
      {"%PDF-", "application/pdf"},
      {"\x89PNG\r\n\x1A\n", "image/png"},
      {"GIF87a", "image/gif"},
      {"GIF89a", "image/gif"},
      {"\xFF\xD8\xFF", "image/jpeg"},
      {"\x1F\x8B\x08", "application/x-gzip"},
      {"PK\x03\x04", "application/zip"},
      {"\xFE\xFF", "text/plain; charset=utf-16be"},
      {"\xFF\xFE", "text/plain; charset=utf-16le"},
      {"\xEF\xBB\xBF", "text/plain; charset=utf-8"},
      {"%!PS-Adobe-", "application/postscript"},
  };
  std::string_view trimmed = head;
  while (!trimmed.empty() &&
         std::string_view("\t\n\x0c\r ").find(trimmed.front()) != std::string_view::npos) {
    trimmed.remove_prefix(1);
  }
  std::string lower(trimmed.substr(0, 16));
  for (char& c : lower) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (lower.starts_with("<!doctype html") || lower.starts_with("<html>") || lower.starts_with("<html ")) {
    return "text/html; charset=utf-8";
  }
  if (lower.starts_with("<?xml")) {
    return "text/xml; charset=utf-8";
  }
  for (const auto& [signature, type] : kSignatures) {
    if (head.starts_with(signature)) {
      return type;
    }
  }
  for (const char c : head) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x08 || byte == 0x0B || (byte >= 0x0E && byte <= 0x1A) || (byte >= 0x1C && byte <= 0x1F)) {
      return "application/octet-stream";
    }
  }
  return "text/plain; charset=utf-8";
}

// io.CopyN from an offset: stops early where the file does. False if the client is gone or the file ended:
// then the answer is short of its length.
bool CopyFileRange(Exchange& exchange, int fd, int64_t length) {
  std::vector<char> buffer(static_cast<size_t>(std::min<int64_t>(length, kServePiece)));
  while (length > 0) {
    const ssize_t got = read(fd, buffer.data(), static_cast<size_t>(std::min<int64_t>(length, kServePiece)));
    if (got <= 0 || !exchange.Write(std::string_view(buffer.data(), static_cast<size_t>(got)))) {
      return false;
    }
    length -= got;
  }
  return true;
}

std::string ContentRangeText(const ByteRange& range, int64_t size) {
  return "bytes " + std::to_string(range.start) + "-" + std::to_string(range.start + range.length - 1) + "/" +
         std::to_string(size);
}

}  // namespace

std::string MediaTypeByExtension(std::string extension) {
  static constexpr std::pair<std::string_view, const char*> kTypes[] = {
      {".bin", "application/octet-stream"},
      {".bmp", "image/bmp"},
      {".css", "text/css; charset=utf-8"},
      {".csv", "text/csv; charset=utf-8"},
      {".exe", "application/octet-stream"},
      {".gif", "image/gif"},
      {".gz", "application/gzip"},
      {".htm", "text/html; charset=utf-8"},
      {".html", "text/html; charset=utf-8"},
      {".ico", "image/vnd.microsoft.icon"},
      {".jpeg", "image/jpeg"},
      {".jpg", "image/jpeg"},
      {".js", "text/javascript; charset=utf-8"},
      {".json", "application/json"},
      {".mjs", "text/javascript; charset=utf-8"},
      {".mp3", "audio/mpeg"},
      {".mp4", "video/mp4"},
      {".pdf", "application/pdf"},
      {".png", "image/png"},
      {".svg", "image/svg+xml"},
      {".tif", "image/tiff"},
      {".tiff", "image/tiff"},
      {".txt", "text/plain; charset=utf-8"},
      {".text", "text/plain; charset=utf-8"},
      {".wasm", "application/wasm"},
      {".wav", "audio/wav"},
      {".webm", "audio/webm"},
      {".webp", "image/webp"},
      {".xhtml", "application/xhtml+xml"},
      {".xml", "text/xml; charset=utf-8"},
      {".zip", "application/zip"},
  };
  for (char& c : extension) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  for (const auto& [known, type] : kTypes) {
    if (known == extension) {
      return type;
    }
  }
  return "";
}

void ReplyGoError(Exchange& exchange, int status, HeaderList headers, const std::string& text) {
  headers.emplace_back("content-type", "text/plain; charset=utf-8");
  headers.emplace_back("x-content-type-options", "nosniff");
  exchange.Reply(status, std::move(headers), text + "\n");
}

void ServeContent(Exchange& exchange, int fd, const std::string& name, time_t modified, HeaderList headers) {
  const HeaderList plain_headers = headers;  // for errors, which lose Last-Modified
  if (modified != 0) {
    headers.emplace_back("last-modified", HttpDate(modified));
  }
  // RFC 7232 section 6, in Go's reading. There is never an ETag here.
  if (const auto match = exchange.Header("if-match"); match && !match->empty()) {
    if (TrimBlanks(*match).substr(0, 1) != "*") {
      exchange.Reply(412, headers, "");
      return;
    }
  } else if (const auto since = exchange.Header("if-unmodified-since"); since && modified != 0) {
    const auto time = ParseHttpDate(*since);
    if (time && modified > *time) {
      exchange.Reply(412, headers, "");
      return;
    }
  }
  if (const auto none = exchange.Header("if-none-match"); none && !none->empty()) {
    if (TrimBlanks(*none).substr(0, 1) == "*") {
      exchange.SendHead(304, headers);
      return;
    }
  } else if (const auto since = exchange.Header("if-modified-since"); since && modified != 0) {
    const auto time = ParseHttpDate(*since);
    if (time && modified <= *time) {
      exchange.SendHead(304, headers);
      return;
    }
  }
  std::string range_header = exchange.Header("range").value_or("");
  if (const auto condition = exchange.Header("if-range");
      condition && !condition->empty() && !range_header.empty()) {
    const auto time = ParseHttpDate(*condition);
    if (!time || modified == 0 || *time != modified) {
      range_header.clear();
    }
  }

  std::string type = MediaTypeByExtension(Extension(name));
  if (type.empty()) {
    std::array<char, 512> head;
    size_t have = 0;
    while (have < head.size()) {
      const ssize_t got = read(fd, head.data() + have, head.size() - have);
      if (got <= 0) {
        break;
      }
      have += static_cast<size_t>(got);
    }
    type = SniffMediaType(std::string_view(head.data(), have));
    if (lseek(fd, 0, SEEK_SET) < 0) {
      ReplyGoError(exchange, 500, plain_headers, "seeker can't seek");
      return;
    }
  }
  const off_t end = lseek(fd, 0, SEEK_END);
  if (end < 0 || lseek(fd, 0, SEEK_SET) < 0) {
    ReplyGoError(exchange, 500, plain_headers, "seeker can't seek");
    return;
  }
  const int64_t size = end;
  std::vector<ByteRange> ranges;
  const RangeOutcome outcome = ParseRangeList(range_header, size, &ranges);
  if (outcome == RangeOutcome::kInvalid) {
    ReplyGoError(exchange, 416, plain_headers, "invalid range");
    return;
  }
  if (outcome == RangeOutcome::kNoOverlap && size != 0) {
    HeaderList with_range = plain_headers;
    with_range.emplace_back("content-range", "bytes */" + std::to_string(size));
    ReplyGoError(exchange, 416, std::move(with_range), "invalid range: failed to overlap");
    return;
  }
  int64_t total = 0;
  for (const ByteRange& range : ranges) {
    total += range.length;
  }
  if (total > size) {
    ranges.clear();
  }
  headers.emplace_back("accept-ranges", "bytes");
  if (ranges.size() <= 1) {
    headers.emplace_back("content-type", type);
    const ByteRange range = ranges.empty() ? ByteRange{0, size} : ranges.front();
    if (!ranges.empty()) {
      headers.emplace_back("content-range", ContentRangeText(range, size));
    }
    headers.emplace_back("content-length", std::to_string(range.length));
    exchange.SendHead(ranges.empty() ? 200 : 206, headers);
    lseek(fd, range.start, SEEK_SET);
    if (range.length > 0 && !CopyFileRange(exchange, fd, range.length)) {
      exchange.Abort();
    }
    return;
  }
  static std::atomic<uint64_t> boundaries{0};
  const std::string boundary = "sandboxboundary" + std::to_string(boundaries.fetch_add(1));
  std::vector<std::string> leads;
  const std::string closing = "\r\n--" + boundary + "--\r\n";
  size_t length = closing.size();
  for (const ByteRange& range : ranges) {
    leads.push_back((leads.empty() ? "--" : "\r\n--") + boundary + "\r\nContent-Range: " +
                    ContentRangeText(range, size) + "\r\nContent-Type: " + type + "\r\n\r\n");
    length += leads.back().size() + static_cast<size_t>(range.length);
  }
  headers.emplace_back("content-type", "multipart/byteranges; boundary=" + boundary);
  headers.emplace_back("content-length", std::to_string(length));
  exchange.SendHead(206, headers);
  for (size_t i = 0; i < ranges.size(); ++i) {
    lseek(fd, ranges[i].start, SEEK_SET);
    if (!exchange.Write(leads[i]) || !CopyFileRange(exchange, fd, ranges[i].length)) {
      exchange.Abort();
      return;
    }
  }
  (void)exchange.Write(closing);
}

}  // namespace e2bfs::sandbox
