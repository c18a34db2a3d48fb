// Leveled logging for the whole process: to stderr, or to a file. Lines are "time level area: text".
// Any thread may log. Nothing secret may be passed here: credentials have no way to be printed (transport/secret.h).
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>

#include "transport/base/error.h"

namespace e2bfs::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// What is below the level costs one atomic load. The default is kWarning to stderr.
void SetLevel(Level level);
Level GetLevel();

// From now on lines go to the file (appended, created 0600). EACCES, ENOENT... if it cannot be opened.
[[nodiscard]] Result<void> OpenFile(const std::string& path);

// One line; control characters in it are escaped (names come from a hostile server). Use the functions below.
void Write(Level level, std::string_view area, std::string_view text);

template <typename... Args>
void Debug(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  if (GetLevel() <= Level::kDebug) Write(Level::kDebug, area, fmt::vformat(format, fmt::make_format_args(args...)));
}
template <typename... Args>
void Info(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  if (GetLevel() <= Level::kInfo) Write(Level::kInfo, area, fmt::vformat(format, fmt::make_format_args(args...)));
}
template <typename... Args>
void Warning(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  if (GetLevel() <= Level::kWarning) Write(Level::kWarning, area, fmt::vformat(format, fmt::make_format_args(args...)));
}
template <typename... Args>
void Error(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  if (GetLevel() <= Level::kError) Write(Level::kError, area, fmt::vformat(format, fmt::make_format_args(args...)));
}

}  // namespace e2bfs::log
