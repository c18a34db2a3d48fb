// The words inside messages: permission letters, timestamps, names. No JSON here.
#include <array>

#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

// Two or four digits, or -1.
int WordDigits(std::string_view text, size_t at, size_t count) {
  int value = 0;
  for (size_t i = at; i < at + count; ++i) {
    if (i >= text.size() || text[i] < '0' || text[i] > '9') return -1;
    value = value * 10 + (text[i] - '0');
  }
  return value;
}

// Days since 1970-01-01 in the Gregorian calendar (H. Hinnant's days_from_civil).
int64_t DaysSinceEpoch(int64_t year, int64_t month, int64_t day) {
  year -= month <= 2 ? 1 : 0;
  const int64_t era = (year >= 0 ? year : year - 399) / 400;
  const int64_t year_of_era = year - era * 400;
  const int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  const int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
  return era * 146'097 + day_of_era - 719'468;
}

int DaysInMonth(int year, int month) {
  constexpr std::array<int, 12> kDays = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return month == 2 && leap ? 29 : kDays[static_cast<size_t>(month - 1)];
}

}  // namespace

std::optional<ParsedPermissions> ParsePermissionLetters(std::string_view text) {
  if (text.size() < 10) return std::nullopt;
  const std::string_view letters = text.substr(0, text.size() - 9);
  const std::string_view bits = text.substr(text.size() - 9);
  ParsedPermissions parsed;
  bool device = false, character = false, typed = false;
  if (letters != "-") {
    // In the order of Go's FileMode.String, each at most once.
    constexpr std::string_view kOrder = "dalTLDpSugct?";
    size_t last = std::string_view::npos;
    for (const char letter : letters) {
      const size_t place = kOrder.find(letter);
      if (place == std::string_view::npos || (last != std::string_view::npos && place <= last)) return std::nullopt;
      last = place;
      std::optional<FileType> type;
      switch (letter) {
        case 'd': type = FileType::kDirectory; break;
        case 'L': type = FileType::kSymlink; break;
        case 'D': type = FileType::kBlockDevice; device = true; break;
        case 'p': type = FileType::kFifo; break;
        case 'S': type = FileType::kSocket; break;
        case '?': type = FileType::kSocket; break;  // "irregular": something that cannot be opened for its content
        case 'c': character = true; break;
        case 'u': parsed.permissions |= 04000; break;
        case 'g': parsed.permissions |= 02000; break;
        case 't': parsed.permissions |= 01000; break;
        default: break;  // append-only, exclusive, temporary: Plan 9's
      }
      if (type) {
        if (typed) return std::nullopt;
        typed = true;
        parsed.type = *type;
      }
    }
    if (character) {
      if (!device) return std::nullopt;
      parsed.type = FileType::kCharDevice;
    }
  }
  constexpr std::string_view kBits = "rwxrwxrwx";
  for (size_t i = 0; i < 9; ++i) {
    if (bits[i] == kBits[i]) {
      parsed.permissions |= 1U << (8 - i);
    } else if (bits[i] != '-') {
      return std::nullopt;
    }
  }
  return parsed;
}

std::optional<timespec> ParseTimestamp(std::string_view text) {
  // 2026-08-01T12:34:56[.123456789](Z|+02:00)
  const int year = WordDigits(text, 0, 4), month = WordDigits(text, 5, 2), day = WordDigits(text, 8, 2);
  const int hour = WordDigits(text, 11, 2), minute = WordDigits(text, 14, 2), second = WordDigits(text, 17, 2);
  if (year < 1 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
      second < 0 || second > 60 || day > DaysInMonth(year, month)) {
    return std::nullopt;
  }
  if (text[4] != '-' || text[7] != '-' || (text[10] != 'T' && text[10] != 't') || text[13] != ':' || text[16] != ':') {
    return std::nullopt;
  }
  size_t at = 19;
  int64_t nanoseconds = 0;
  if (at < text.size() && text[at] == '.') {
    ++at;
    int64_t unit = 100'000'000;
    const size_t first = at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at, unit /= 10) {
      if (at - first >= 9) return std::nullopt;
      nanoseconds += (text[at] - '0') * unit;
    }
    if (at == first) return std::nullopt;
  }
  int64_t offset_seconds = 0;
  if (at >= text.size()) return std::nullopt;
  if (text[at] == 'Z' || text[at] == 'z') {
    ++at;
  } else if (text[at] == '+' || text[at] == '-') {
    const int hours = WordDigits(text, at + 1, 2), minutes = WordDigits(text, at + 4, 2);
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59 || text[at + 3] != ':') return std::nullopt;
    offset_seconds = (hours * 3600 + minutes * 60) * (text[at] == '-' ? -1 : 1);
    at += 6;
  }
  if (at != text.size()) return std::nullopt;
  timespec time{};
  time.tv_sec = DaysSinceEpoch(year, month, day) * 86'400 + hour * 3600 + minute * 60 + second - offset_seconds;
  time.tv_nsec = nanoseconds;
  return time;
}

bool IsSafeName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool IsSafeRelativePath(std::string_view path) {
  while (true) {
    const size_t slash = path.find('/');
    if (!IsSafeName(path.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x80) {
      ++i;
      continue;
    }
    size_t more = 0;
    uint32_t code = 0;
    if ((byte & 0xe0) == 0xc0) {
      more = 1;
      code = byte & 0x1fU;
    } else if ((byte & 0xf0) == 0xe0) {
      more = 2;
      code = byte & 0x0fU;
    } else if ((byte & 0xf8) == 0xf0) {
      more = 3;
      code = byte & 0x07U;
    } else {
      return false;
    }
    if (text.size() - i <= more) return false;
    for (size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    constexpr std::array<uint32_t, 4> kLeast = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
    i += more + 1;
  }
  return true;
}

std::string CleanAbsolutePath(std::string_view path) {
  if (path.empty() || path.front() != '/') return {};
  std::string clean;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    path.remove_prefix(slash == std::string_view::npos ? path.size() : slash + 1);
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      clean.resize(clean.empty() ? 0 : clean.rfind('/'));
      continue;
    }
    clean += '/';
    clean += part;
  }
  return clean.empty() ? "/" : clean;
}

}  // namespace e2bfs::transport::envd
