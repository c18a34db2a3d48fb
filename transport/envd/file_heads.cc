#include "transport/envd/file_heads.h"

#include <algorithm>
#include <charconv>
#include <random>

namespace e2bfs::transport::envd {
namespace {

tl::unexpected<Error> BadFileAnswer(const char* what) {
  return Failure(ErrorKind::kProtocol, EIO, std::string("envd's answer to a download: ") + what);
}

}  // namespace

std::optional<int64_t> ParseLength(std::string_view value) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (value.empty() || value.front() == '-' || error != std::errc() || end != value.data() + value.size()) return std::nullopt;
  return number;
}

std::optional<ContentRange> ParseContentRange(std::string_view value) {
  constexpr std::string_view kUnit = "bytes ";
  if (!value.starts_with(kUnit)) return std::nullopt;
  value.remove_prefix(kUnit.size());
  const size_t slash = value.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  ContentRange range;
  const auto total = ParseLength(value.substr(slash + 1));
  if (!total) return std::nullopt;
  range.total = *total;
  const std::string_view ends = value.substr(0, slash);
  if (ends == "*") return range;
  const size_t dash = ends.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto first = ParseLength(ends.substr(0, dash)), last = ParseLength(ends.substr(dash + 1));
  if (!first || !last || *first > *last || *last >= range.total) return std::nullopt;
  range.first = *first;
  range.last = *last;
  return range;
}

time_t ParseHttpDate(std::string_view value) {
  std::tm parts{};
  const std::string text(value);
  const char* rest = strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return rest != nullptr && *rest == '\0' && text.size() == value.size() ? timegm(&parts) : 0;
}

Result<DownloadHead> CheckDownloadHead(const DownloadRequest& request, const http::ResponseHead& head) {
  DownloadHead checked;
  checked.status = head.status;
  checked.offset = request.offset;
  checked.last_modified = head.Find("last-modified");
  checked.last_modified_seconds = ParseHttpDate(checked.last_modified);
  const std::string_view encoding = head.Find("content-encoding");
  const std::string_view length_text = head.Find("content-length");
  const auto declared = length_text.empty() ? std::nullopt : ParseLength(length_text);
  if (!length_text.empty() && !declared) return BadFileAnswer("an impossible length");
  if (head.status == 416) {
    const auto range = ParseContentRange(head.Find("content-range"));
    if (request.offset == 0 || !range || range->first >= 0 || range->total > request.offset) {
      return BadFileAnswer("a range refused that is none");
    }
    checked.length = 0;
    checked.total_size = range->total;
    return checked;
  }
  if (request.gzip) {
    if (head.status != 200) return BadFileAnswer("a part of a file that was asked for whole");
    if (encoding == "gzip") return checked;
    if (!encoding.empty() && encoding != "identity") return BadFileAnswer("an encoding that was not asked for");
    // Identity after all (nothing forbids it): its length is checked as any.
  } else if (!encoding.empty() && encoding != "identity") {
    return BadFileAnswer("an encoding that was not asked for");
  }
  const bool ranged = !request.gzip && (request.offset > 0 || request.length);
  if (head.status == 206) {
    const auto range = ParseContentRange(head.Find("content-range"));
    if (!ranged || !range || range->first != request.offset) return BadFileAnswer("another range than asked for");
    const int64_t most = request.length ? std::min(*request.length, range->total - request.offset) : range->total - request.offset;
    checked.length = range->last - range->first + 1;
    checked.total_size = range->total;
    if (checked.length != most) return BadFileAnswer("another range than asked for");
    if (declared && *declared != checked.length) return BadFileAnswer("a length that is not its range's");
    return checked;
  }
  // 200: the whole file. To a range only where the file is empty (Go's ServeContent), or where ranges are not known and it begins at 0.
  if (ranged && declared != 0 && (request.offset > 0 || !declared)) return BadFileAnswer("a whole file where a range was asked for");
  if (declared) {
    checked.total_size = *declared;
    checked.length = request.length ? std::min(*request.length, *declared) : *declared;
  }
  if (request.offset > 0) checked.length = 0;
  return checked;
}

MultipartFrame MultipartFrame::Make() {
  static constexpr char kHexDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string boundary = "e2bfs-";
  for (int i = 0; i < 8; ++i) {
    for (uint32_t bits = random(), k = 0; k < 4; ++k, bits >>= 4) boundary += kHexDigits[bits & 15];
  }
  MultipartFrame frame;
  frame.content_type = "multipart/form-data; boundary=" + boundary;
  // With `path=` in the query the part's file name is not looked at (infra: api/upload.go resolvePath), but has to be there.
  frame.before = "--" + boundary +
                 "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\nContent-Type: application/octet-stream\r\n\r\n";
  frame.after = "\r\n--" + boundary + "--\r\n";
  return frame;
}

}  // namespace e2bfs::transport::envd
