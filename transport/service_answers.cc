// Reading what the service tier's scripts print. Everything comes from a sandbox and is not believed.
#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "transport/service_names.h"
#include "transport/service_scripts.h"

namespace e2bfs::transport {

namespace {

constexpr size_t kServiceMaxOwnerName = 256;

struct ServiceMessage {
  std::string_view text;  // lower case
  int errno_value;
};

// What comes after the last ": " of a message: glibc's texts, then musl's, then the shells' own.
constexpr ServiceMessage kServiceMessages[] = {
    {"no such file or directory", ENOENT},
    {"permission denied", EACCES},
    {"operation not permitted", EPERM},
    {"file exists", EEXIST},
    {"is a directory", EISDIR},
    {"not a directory", ENOTDIR},
    {"directory not empty", ENOTEMPTY},
    {"no space left on device", ENOSPC},
    {"disk quota exceeded", EDQUOT},
    {"quota exceeded", EDQUOT},
    {"read-only file system", EROFS},
    {"too many levels of symbolic links", ELOOP},
    {"symbolic link loop", ELOOP},
    {"file name too long", ENAMETOOLONG},
    {"filename too long", ENAMETOOLONG},
    {"invalid cross-device link", EXDEV},
    {"cross-device link", EXDEV},
    {"too many links", EMLINK},
    {"device or resource busy", EBUSY},
    {"resource busy", EBUSY},
    {"text file busy", ETXTBSY},
    {"invalid argument", EINVAL},
    {"file too large", EFBIG},
    {"operation not supported", EOPNOTSUPP},
    {"not supported", EOPNOTSUPP},
    {"function not implemented", EOPNOTSUPP},
    {"input/output error", EIO},
    {"i/o error", EIO},
    {"stale file handle", ESTALE},
    {"no such device or address", ENXIO},
    {"no such device", ENODEV},
    {"argument list too long", E2BIG},
    {"value too large for defined data type", EOVERFLOW},
    {"value too large for data type", EOVERFLOW},
    {"cannot allocate memory", ENOMEM},
    {"out of memory", ENOMEM},
    {"too many open files", EMFILE},
    {"no file descriptors available", EMFILE},
    {"too many open files in system", ENFILE},
    {"resource temporarily unavailable", EAGAIN},
    {"directory nonexistent", ENOENT},
    {"nonexistent directory", ENOENT},
    {"no such file", ENOENT},
    {"cannot overwrite existing file", EEXIST},
    {"destination exists", EEXIST},
};

constexpr std::pair<std::string_view, int> kServiceVerdicts[] = {
    {"ENOENT", ENOENT}, {"EACCES", EACCES},       {"EPERM", EPERM},   {"EEXIST", EEXIST},     {"EISDIR", EISDIR},
    {"ENOTDIR", ENOTDIR}, {"ENOTEMPTY", ENOTEMPTY}, {"EINVAL", EINVAL}, {"EOPNOTSUPP", EOPNOTSUPP}, {"ESTALE", ESTALE},
    {"ENOSPC", ENOSPC},
};

template <typename Number>
bool ReadServiceNumber(std::string_view text, Number& value, int base = 10) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::vector<std::string_view> SplitServiceText(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// "1700000000", "1700000000.123456789" (find: ten digits), and negative ones: a decimal number from stat ("-0.25" is a quarter
// of a second before 1970), but the seconds rounded down and the fraction added to them from find ("-1.75" for the same).
bool ReadServiceTime(std::string_view text, bool from_find, timespec& time, bool& nanoseconds) {
  size_t dot = text.find('.');
  int64_t seconds = 0;
  if (!ReadServiceNumber(text.substr(0, dot), seconds)) return false;
  nanoseconds = dot != std::string_view::npos;
  long fraction = 0;
  if (nanoseconds) {
    std::string digits(text.substr(dot + 1));
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos) return false;
    digits.resize(9, '0');
    if (!ReadServiceNumber(digits, fraction)) return false;
    if (text[0] == '-' && !from_find && fraction > 0) {
      --seconds;
      fraction = 1'000'000'000 - fraction;
    }
  }
  time.tv_sec = seconds;
  time.tv_nsec = fraction;
  return true;
}

bool FileTypeOfServiceMode(uint32_t mode, FileType& type) {
  switch (mode & 0170000) {
    case 0100000: type = FileType::kRegular; return true;
    case 0040000: type = FileType::kDirectory; return true;
    case 0120000: type = FileType::kSymlink; return true;
    case 0010000: type = FileType::kFifo; return true;
    case 0140000: type = FileType::kSocket; return true;
    case 0020000: type = FileType::kCharDevice; return true;
    case 0060000: type = FileType::kBlockDevice; return true;
    default: return false;
  }
}

// find's letters.
bool FileTypeOfServiceLetter(std::string_view letter, FileType& type) {
  static constexpr std::pair<std::string_view, FileType> kLetters[] = {
      {"f", FileType::kRegular}, {"d", FileType::kDirectory}, {"l", FileType::kSymlink},    {"p", FileType::kFifo},
      {"s", FileType::kSocket},  {"c", FileType::kCharDevice}, {"b", FileType::kBlockDevice}};
  for (const auto& [text, value] : kLetters) {
    if (text == letter) {
      type = value;
      return true;
    }
  }
  return false;
}

// "F type permissions links uid gid size time owner group", from find.
std::optional<ServiceStat> ParseServiceFind(std::string_view line) {
  auto words = SplitServiceText(line, ' ');
  ServiceStat stat;
  if (words.size() != 10 || words[0] != "F" || !FileTypeOfServiceLetter(words[1], stat.type) ||
      !ReadServiceNumber(words[2], stat.permissions, 8) || !ReadServiceNumber(words[3], stat.link_count) ||
      !ReadServiceNumber(words[4], stat.uid) || !ReadServiceNumber(words[5], stat.gid) || !ReadServiceNumber(words[6], stat.size) ||
      !ReadServiceTime(words[7], true, stat.mtime, stat.nanoseconds)) {
    return std::nullopt;
  }
  if (stat.permissions > 07777 || stat.size < 0 || words[8].size() > kServiceMaxOwnerName || words[9].size() > kServiceMaxOwnerName) {
    return std::nullopt;
  }
  stat.owner = words[8];
  stat.group = words[9];
  return stat;
}

std::map<std::string, uint32_t> ParseServiceAccounts(std::string_view text) {
  std::map<std::string, uint32_t> numbers;
  for (std::string_view line : SplitServiceText(text, '\n')) {
    auto fields = SplitServiceText(line, ':');
    uint32_t number = 0;
    if (fields.size() < 3 || fields[0].empty() || fields[0].size() > kServiceMaxOwnerName) continue;
    if (ReadServiceNumber(fields[2], number)) numbers.try_emplace(std::string(fields[0]), number);
  }
  return numbers;
}

}  // namespace

int ErrnoFromCommandOutput(std::string_view text) {
  auto lines = SplitServiceText(text, '\n');
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
    std::string_view words = *line;
    while (!words.empty() && (words.back() == ' ' || words.back() == '\r' || words.back() == '.')) words.remove_suffix(1);
    if (words.substr(0, 2) == "E ") {
      std::string_view verdict = words.substr(2);
      for (const auto& [name, value] : kServiceVerdicts) {
        if (name == verdict) return value;
      }
      int number = 0;
      if (ReadServiceNumber(verdict, number) && number > 0 && number < 134) return number;
      continue;
    }
    size_t colon = words.rfind(": ");
    std::string last(words.substr(colon == std::string_view::npos ? 0 : colon + 2));
    for (char& c : last) {
      if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    }
    for (const ServiceMessage& message : kServiceMessages) {
      if (last == message.text) return message.errno_value;
    }
  }
  return EIO;
}

std::optional<ServiceStat> ParseServiceStat(std::string_view line) {
  auto words = SplitServiceText(line, ' ');
  ServiceStat stat;
  uint32_t mode = 0;
  if (words.size() != 9 || words[0] != "A" || !ReadServiceNumber(words[1], mode, 16) || !ReadServiceNumber(words[2], stat.link_count) ||
      !ReadServiceNumber(words[3], stat.uid) || !ReadServiceNumber(words[4], stat.gid) || !ReadServiceNumber(words[5], stat.size) ||
      !ReadServiceTime(words[6], false, stat.mtime, stat.nanoseconds)) {
    return std::nullopt;
  }
  if (mode > 0177777 || !FileTypeOfServiceMode(mode, stat.type) || stat.size < 0 || words[7].size() > kServiceMaxOwnerName ||
      words[8].size() > kServiceMaxOwnerName) {
    return std::nullopt;
  }
  stat.permissions = mode & 07777;
  stat.owner = words[7];
  stat.group = words[8];
  return stat;
}

std::optional<ServiceChangeAnswer> ParseServiceChange(std::string_view output) {
  auto lines = SplitServiceText(output, '\n');
  // "S status", what was printed, ".", and the empty piece after the last newline.
  if (lines.size() < 3 || !lines.back().empty() || lines[lines.size() - 2] != ".") return std::nullopt;
  ServiceChangeAnswer answer;
  if (lines[0].substr(0, 2) != "S " || !ReadServiceNumber(lines[0].substr(2), answer.status)) return std::nullopt;
  for (size_t i = 1; i + 2 < lines.size(); ++i) {
    std::string_view line = lines[i];
    if (auto stat = ParseServiceStat(line)) {
      answer.objects.push_back(std::move(*stat));
    } else if (line == "NEW" || line == "OLD" || line == "MOVE" || line == "OVER" || line == "SAME" || line == "STORED") {
      answer.words.emplace_back(line);
    } else if (line.substr(0, 9) == "APPENDED " && ReadServiceNumber(line.substr(9), answer.appended) && answer.appended > 0) {
    } else {
      answer.messages += line;
      answer.messages += '\n';
    }
  }
  return answer;
}

std::optional<ServiceListing> ParseServiceListing(std::string_view output, bool links_only) {
  if (output.empty() || output.back() != '\0') return std::nullopt;
  output.remove_suffix(1);
  auto fields = SplitServiceText(output, '\0');
  if (fields.back() != "E") return std::nullopt;
  fields.pop_back();
  ServiceListing listing;
  size_t next = 0;
  if (!links_only) {
    if (fields.empty() || fields[0].substr(0, 1) != "D") return std::nullopt;
    listing.directory = ParseServiceStat(fields[0].substr(1));
    if (!listing.directory) return std::nullopt;
    next = 1;
  }
  size_t each = links_only ? 2 : 3;
  if ((fields.size() - next) % each != 0) return std::nullopt;
  std::set<std::string_view> seen;
  for (; next < fields.size(); next += each) {
    if (fields[next].substr(0, 1) != "N") return std::nullopt;
    std::string_view name = fields[next].substr(1);
    if (CheckName(name) != 0 || !seen.insert(name).second) return std::nullopt;
    ServiceListedEntry entry;
    entry.name = name;
    entry.link_target = fields[next + each - 1];
    if (entry.link_target.size() > 65536) return std::nullopt;
    if (!links_only) {
      auto stat = fields[next + 1].substr(0, 1) == "F" ? ParseServiceFind(fields[next + 1]) : ParseServiceStat(fields[next + 1]);
      if (!stat) return std::nullopt;
      entry.stat = std::move(*stat);
    }
    listing.entries.push_back(std::move(entry));
  }
  return listing;
}

std::optional<ServiceFacts> ParseServiceFacts(std::string_view output) {
  auto fields = SplitServiceText(output, '\0');
  if (fields.size() != 16 || fields[14] != "E" || !fields[15].empty()) return std::nullopt;
  ServiceFacts facts;
  facts.home = fields[0];
  facts.root = fields[1];
  if (facts.root.empty() || facts.root[0] != '/' || facts.root.size() > 4095) return std::nullopt;
  if (!ReadServiceNumber(fields[2], facts.uid) || !ReadServiceNumber(fields[3], facts.gid)) return std::nullopt;
  for (std::string_view word : SplitServiceText(fields[4], ' ')) {
    uint32_t group = 0;
    if (ReadServiceNumber(word, group)) facts.groups.push_back(group);
  }
  facts.user = fields[5];
  facts.stage = fields[6];
  if (!facts.stage.empty() && facts.stage[0] != '/') return std::nullopt;
  facts.dd_bytes = fields[7] == "b";
  facts.find_prints = fields[8] == "g";
  facts.perl = fields[9] == "p";
  facts.full_times = fields[10].find('.') != std::string_view::npos;
  if (!ReadServiceNumber(fields[11], facts.clock_seconds)) facts.clock_seconds = 0;
  facts.users = ParseServiceAccounts(fields[12]);
  facts.group_numbers = ParseServiceAccounts(fields[13]);
  return facts;
}

std::string ServiceTimeArgument(const std::optional<TimeChange>& change) {
  if (!change) return "-";
  if (change->now) return "now";
  int64_t seconds = change->value.tv_sec;
  int64_t nanoseconds = std::clamp<int64_t>(change->value.tv_nsec, 0, 999'999'999);
  std::string sign;
  if (seconds < 0) {
    sign = "-";
    seconds = -seconds;
    if (nanoseconds > 0) {
      --seconds;
      nanoseconds = 1'000'000'000 - nanoseconds;
    }
  }
  std::string digits = std::to_string(nanoseconds);
  return sign + std::to_string(seconds) + "." + std::string(9 - digits.size(), '0') + digits;
}

std::string ServiceMtimeArgument(const AttributeChange& change) {
  return (change.mtime && change.mtime_is_implied ? "i" : "") + ServiceTimeArgument(change.mtime);
}

}  // namespace e2bfs::transport
