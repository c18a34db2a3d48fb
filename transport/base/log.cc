#include "transport/base/log.h"

#include <fcntl.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <ctime>

namespace e2bfs::log {
namespace {

std::atomic<Level> current_level{Level::kWarning};
// Never closed once opened: a thread may be writing to it. Opening again dup2()s over the same number.
std::atomic<int> log_descriptor{STDERR_FILENO};

std::string_view LevelName(Level level) {
  switch (level) {
    case Level::kDebug: return "debug";
    case Level::kInfo: return "info";
    case Level::kWarning: return "warning";
    case Level::kError: return "error";
    case Level::kOff: break;
  }
  return "off";
}

void AppendEscaped(std::string& line, std::string_view text) {
  for (unsigned char c : text) {
    if (c < 0x20 || c == 0x7f) {
      line += fmt::format("\\x{:02x}", c);
    } else {
      line += static_cast<char>(c);
    }
  }
}

}  // namespace

void SetLevel(Level level) { current_level.store(level, std::memory_order_relaxed); }
Level GetLevel() { return current_level.load(std::memory_order_relaxed); }

Result<void> OpenFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
  if (descriptor < 0) return Errno(errno, "log file " + path);
  const int previous = log_descriptor.load();
  if (previous == STDERR_FILENO) {
    log_descriptor.store(descriptor);
    return {};
  }
  const int outcome = dup3(descriptor, previous, O_CLOEXEC);
  const int reason = errno;
  close(descriptor);
  if (outcome < 0) return Errno(reason, "log file " + path);
  return {};
}

void Write(Level level, std::string_view area, std::string_view text) {
  timeval now{};
  gettimeofday(&now, nullptr);
  tm local{};
  localtime_r(&now.tv_sec, &local);
  std::string line = fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03} {} {}: ", local.tm_year + 1900,
                                 local.tm_mon + 1, local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec,
                                 now.tv_usec / 1000, LevelName(level), area);
  AppendEscaped(line, text);
  line += '\n';
  // One write(2) a line: lines of several threads, and of several processes on one file, do not mix.
  if (::write(log_descriptor.load(), line.data(), line.size()) < 0) return;  // nowhere left to say so
}

}  // namespace e2bfs::log
