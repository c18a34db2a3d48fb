#include "tests/sandbox/multipart.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kFormPiece = size_t{128} << 10;
constexpr std::string_view kTokenSpecials = "()<>@,;:\\\"/[]?=";

bool IsTokenChar(char c) { return c > 0x20 && c < 0x7F && kTokenSpecials.find(c) == std::string_view::npos; }

std::string_view TrimFormSpace(std::string_view text) {
  while (!text.empty() && std::string_view(" \t\r\n").find(text.front()) != std::string_view::npos)
    text.remove_prefix(1);
  while (!text.empty() && std::string_view(" \t\r\n").find(text.back()) != std::string_view::npos)
    text.remove_suffix(1);
  return text;
}

std::string PercentDecodeParameter(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() &&
        std::isxdigit(static_cast<unsigned char>(text[i + 1])) != 0 &&
        std::isxdigit(static_cast<unsigned char>(text[i + 2])) != 0) {
      decoded += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

}  // namespace

MediaType ParseMediaType(std::string_view header) {
  MediaType parsed;
  const size_t semicolon = std::min(header.find(';'), header.size());
  parsed.type = LowerAscii(TrimFormSpace(header.substr(0, semicolon)));
  header.remove_prefix(semicolon);
  while (!header.empty()) {
    header.remove_prefix(1);  // the semicolon
    header = TrimFormSpace(header);
    const size_t equals = header.find('=');
    if (equals == std::string_view::npos) {
      break;
    }
    std::string name = LowerAscii(TrimFormSpace(header.substr(0, equals)));
    header.remove_prefix(equals + 1);
    std::string value;
    if (!header.empty() && header.front() == '"') {
      size_t i = 1;
      for (; i < header.size() && header[i] != '"'; ++i) {
        // A backslash escapes only what would need it: Windows paths keep theirs.
        if (header[i] == '\\' && i + 1 < header.size() &&
            kTokenSpecials.find(header[i + 1]) != std::string_view::npos) {
          ++i;
        }
        value += header[i];
      }
      header.remove_prefix(std::min(i + 1, header.size()));
    } else {
      size_t i = 0;
      while (i < header.size() && IsTokenChar(header[i])) {
        ++i;
      }
      value = header.substr(0, i);
      header.remove_prefix(i);
    }
    header = TrimFormSpace(header);
    if (!name.empty() && name.back() == '*') {
      const size_t quotes = value.find("''");
      name.pop_back();
      value = PercentDecodeParameter(quotes == std::string::npos ? value : value.substr(quotes + 2));
    }
    parsed.parameters[name] = value;
    if (!header.empty() && header.front() != ';') {
      break;
    }
  }
  return parsed;
}

std::string FormatMediaType(const std::string& type, const std::string& name, const std::string& value) {
  const std::string lead = type + "; " + name;
  const bool needs_encoding =
      std::any_of(value.begin(), value.end(), [](char c) { return (c < 0x20 || c >= 0x7F) && c != '\t'; });
  if (needs_encoding) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    std::string encoded;
    for (const char c : value) {
      if (c > 0x20 && c < 0x7F && c != '*' && c != '\'' && c != '%' && IsTokenChar(c)) {
        encoded += c;
      } else {
        encoded += '%';
        encoded += kHex[static_cast<unsigned char>(c) >> 4];
        encoded += kHex[static_cast<unsigned char>(c) & 15];
      }
    }
    return lead + "*=utf-8''" + encoded;
  }
  if (!value.empty() && std::all_of(value.begin(), value.end(), IsTokenChar)) {
    return lead + "=" + value;
  }
  std::string quoted = lead + "=\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
    }
    quoted += c;
  }
  return quoted + "\"";
}

MultipartReader::MultipartReader(Source source, const std::string& boundary)
    : source_(std::move(source)), delimiter_("\r\n--" + boundary), pending_("\r\n") {}

bool MultipartReader::Fill() {
  if (source_ended_) {
    return false;
  }
  std::vector<char> buffer(kFormPiece);
  const auto got = source_(buffer.data(), buffer.size());
  if (!got || *got == 0) {
    source_ended_ = true;
    return false;
  }
  pending_.append(buffer.data(), *got);
  return true;
}

bool MultipartReader::ReadLine(std::string* line) {
  size_t end = std::string::npos;
  while ((end = pending_.find("\r\n")) == std::string::npos) {
    if (!Fill() || pending_.size() > (size_t{1} << 20)) {
      return false;
    }
  }
  *line = pending_.substr(0, end);
  pending_.erase(0, end + 2);
  return true;
}

bool MultipartReader::NextPart(bool* broken) {
  *broken = true;
  in_part_ = true;  // also what comes before the first delimiter is skipped like a part
  std::vector<char> scrap(kFormPiece);
  while (true) {
    const auto got = Read(scrap.data(), scrap.size());
    if (!got) {
      return false;
    }
    if (*got == 0) {
      break;
    }
  }
  pending_.erase(0, delimiter_.size());
  while (pending_.size() < 2) {
    if (!Fill()) {
      return false;
    }
  }
  if (pending_.compare(0, 2, "--") == 0) {
    *broken = false;
    return false;
  }
  std::string line;
  if (!ReadLine(&line)) {  // what is left of the delimiter's line
    return false;
  }
  headers_.clear();
  while (true) {
    if (!ReadLine(&line)) {
      return false;
    }
    if (line.empty()) {
      break;
    }
    if (const size_t colon = line.find(':'); colon != std::string::npos) {
      headers_[LowerAscii(line.substr(0, colon))] =
          std::string(TrimFormSpace(std::string_view(line).substr(colon + 1)));
    }
  }
  // An empty part's delimiter follows its head at once, so the line break before it is put back to look.
  pending_.insert(0, "\r\n");
  while (pending_.size() < delimiter_.size() && Fill()) {
  }
  if (pending_.compare(0, delimiter_.size(), delimiter_) != 0) {
    pending_.erase(0, 2);
  }
  in_part_ = true;
  *broken = false;
  return true;
}

std::string MultipartReader::PartHeader(const std::string& name) const {
  const auto found = headers_.find(name);
  return found == headers_.end() ? "" : found->second;
}

std::optional<size_t> MultipartReader::Read(char* buffer, size_t capacity) {
  if (!in_part_) {
    return 0;
  }
  while (true) {
    const size_t found = pending_.find(delimiter_);
    size_t usable = found;
    if (found == std::string::npos) {
      // What could be the beginning of a delimiter has to wait for more.
      usable = pending_.size() >= delimiter_.size() ? pending_.size() - delimiter_.size() + 1 : 0;
    }
    if (usable > 0) {
      const size_t count = std::min(usable, capacity);
      pending_.copy(buffer, count);
      pending_.erase(0, count);
      return count;
    }
    if (found == 0) {
      in_part_ = false;
      return 0;
    }
    if (!Fill()) {
      return std::nullopt;
    }
  }
}

}  // namespace e2bfs::sandbox
