#include "fuse/interrupts.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "transport/base/log.h"

namespace e2bfs::fuse {
namespace {

std::optional<uint64_t> SignalMask(std::string_view status, std::string_view name) {
  size_t at = 0;
  while (at < status.size()) {
    const size_t end = std::min(status.find('\n', at), status.size());
    std::string_view line = status.substr(at, end - at);
    at = end + 1;
    if (!line.starts_with(name)) continue;
    line.remove_prefix(name.size());
    while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    uint64_t mask = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), mask, 16);
    if (parsed.ec != std::errc{}) return std::nullopt;
    return mask;
  }
  return std::nullopt;
}

constexpr uint64_t SignalBit(int signal) { return uint64_t{1} << (signal - 1); }

// Signals whose default does not end the process.
constexpr uint64_t kHarmless = SignalBit(SIGCHLD) | SignalBit(SIGCONT) | SignalBit(SIGURG) | SignalBit(SIGWINCH) |
                               SignalBit(SIGSTOP) | SignalBit(SIGTSTP) | SignalBit(SIGTTIN) | SignalBit(SIGTTOU);

}  // namespace

bool StatusSaysDying(std::string_view status) {
  const auto thread_pending = SignalMask(status, "SigPnd:");
  const auto process_pending = SignalMask(status, "ShdPnd:");
  if (!thread_pending || !process_pending) return false;
  const uint64_t pending = *thread_pending | *process_pending;
  if (pending & SignalBit(SIGKILL)) return true;
  const auto blocked = SignalMask(status, "SigBlk:");
  const auto ignored = SignalMask(status, "SigIgn:");
  const auto caught = SignalMask(status, "SigCgt:");
  if (!blocked || !ignored || !caught) return false;
  return (pending & ~(*blocked | *ignored | *caught | kHarmless)) != 0;
}

bool CallerIsDying(pid_t tid) {
  if (tid <= 0) return false;
  const std::string path = "/proc/" + std::to_string(tid) + "/status";
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  char text[8192];
  size_t length = 0;
  while (length < sizeof text) {
    const ssize_t got = read(fd, text + length, sizeof text - length);
    if (got <= 0) break;
    length += static_cast<size_t>(got);
  }
  close(fd);
  return StatusSaysDying(std::string_view(text, length));
}

InterruptWatch::InterruptWatch(std::function<bool(pid_t)> is_dying, std::chrono::milliseconds interval)
    : is_dying_(std::move(is_dying)), interval_(interval) {}

InterruptWatch::~InterruptWatch() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void InterruptWatch::Interrupted(uint64_t id, pid_t tid, std::stop_source stop) {
  std::lock_guard lock(mutex_);
  if (ending_) return;
  watched_.insert_or_assign(id, Watched{tid, std::move(stop)});
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error& thrown) {  // the next one tries again
      log::Error("fuse", "cannot start the thread that looks after interrupts: {}", thrown.what());
    }
  }
  changed_.notify_all();
}

void InterruptWatch::Finished(uint64_t id) {
  std::lock_guard lock(mutex_);
  watched_.erase(id);
}

void InterruptWatch::Run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (watched_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const std::map<uint64_t, Watched> looked_at = watched_;
    lock.unlock();
    std::vector<uint64_t> dying;
    for (const auto& [id, watched] : looked_at) {
      if (!is_dying_(watched.tid)) continue;
      auto stop = watched.stop;
      stop.request_stop();
      dying.push_back(id);
    }
    lock.lock();
    for (const uint64_t id : dying) watched_.erase(id);
    if (!ending_) changed_.wait_for(lock, interval_);
  }
}

}  // namespace e2bfs::fuse
