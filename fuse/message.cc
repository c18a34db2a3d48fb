#include "fuse/message.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>

namespace e2bfs::fuse {
namespace {

void WriteToDescriptor(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(descriptor, text.data(), text.size());
    if (count < 0) {
      if (errno == EINTR) continue;
      return;  // nowhere left to say so
    }
    text.remove_prefix(static_cast<size_t>(count));
  }
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    // U+0080..U+009F are control characters too (0xc2 0x80..0x9f in UTF-8).
    const bool high_control = c == 0xc2 && i + 1 < text.size() && (static_cast<unsigned char>(text[i + 1]) & 0xe0) == 0x80;
    if (c < 0x20 || c == 0x7f) {
      result += fmt::format("\\x{:02x}", c);
    } else if (high_control) {
      result += fmt::format("\\x{:02x}\\x{:02x}", c, static_cast<unsigned char>(text[++i]));
    } else {
      result += static_cast<char>(c);
    }
  }
  return result;
}

void PrintErrorLine(std::string_view command, std::string_view text) {
  const std::string name = command.empty() ? "e2bfs" : fmt::format("e2bfs {}", command);
  WriteToDescriptor(STDERR_FILENO, fmt::format("{}: {}\n", name, Printable(text)));
}

void PrintLine(std::string_view text) {
  std::string line(text);
  line += '\n';
  WriteToDescriptor(STDOUT_FILENO, line);
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max({widths[i], row[i].size(), size_t{1}});
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i].empty() ? "-" : row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - std::max<size_t>(row[i].size(), 1) + 2, ' ');
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    PrintLine(line);
  }
}

std::string ErrorText(const Error& error) {
  if (error.message.empty()) return ToString(error);
  return error.http_status == 0 ? error.message : fmt::format("{} (HTTP {})", error.message, error.http_status);
}

std::string HumanBytes(int64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  while (value >= 1024 && unit < 3) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanSeconds(int64_t seconds) {
  if (seconds < 0) return "over";
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 3600) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  if (seconds < 86'400) return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{}d{:02}h", seconds / 86'400, seconds / 3600 % 24);
}

}  // namespace e2bfs::fuse
