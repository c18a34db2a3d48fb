// e2bfs umount: asks the mount's process to send everything, unmounts, and waits until the process says that all is over. e2bfs flush: the first part of it.
#include <fmt/core.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "fuse/commands.h"
#include "fuse/message.h"
#include "fuse/mount.h"
#include "fuse/mount_table.h"
#include "fuse/options.h"
#include "fuse/running_mounts.h"

namespace e2bfs::fuse {
namespace {

// The process reports progress at least this often while it works; longer silence is a process that is stuck.
constexpr std::chrono::seconds kSilence{90};
// A df or a file manager that looks at every mount holds this one for the time of a round trip: that is no use that anybody has to end.
constexpr std::chrono::seconds kPassingUse{3};
constexpr std::chrono::milliseconds kBetweenTries{100};
// From its last word to its end it takes no longer, but where the machine has other work.
constexpr std::chrono::seconds kProcessEnd{30};

class SendProgress {
 public:
  explicit SendProgress(std::string_view command) : command_(command), terminal_(isatty(STDERR_FILENO) != 0) {}
  ~SendProgress() { Clear(); }
  void Show(int64_t bytes_left) {
    if (!terminal_) return;
    const std::string text = fmt::format("\r\033[Ke2bfs {}: {} left to send", command_, HumanBytes(bytes_left));
    shown_ = write(STDERR_FILENO, text.data(), text.size()) > 0;
  }
  void Clear() {
    constexpr std::string_view kClear = "\r\033[K";
    if (shown_ && write(STDERR_FILENO, kClear.data(), kClear.size()) > 0) shown_ = false;
  }

 private:
  const std::string_view command_;
  const bool terminal_;
  bool shown_ = false;
};

ExitStatus Failed(std::string_view command, const std::string& text, ExitStatus status) {
  PrintErrorLine(command, text);
  return status;
}
ExitStatus UmountFailure(const std::string& text, ExitStatus status) { return Failed("umount", text, status); }

// A mount whose process is gone: nothing can be sent, only the name is left to clear.
ExitStatus ClearStaleMount(const std::string& directory) {
  if (auto done = Unmount(directory, true); !done) return UmountFailure(ErrorText(done.error()), ExitStatus::kMountPoint);
  PrintErrorLine("umount", directory + ": cleared a mount whose process was gone");
  return ExitStatus::kOk;
}

Result<void> UnmountWhenFree(const std::string& directory) {
  const TimePoint until = Clock::now() + kPassingUse;
  while (true) {
    auto done = Unmount(directory, false);
    if (done || done.error().errno_value != EBUSY || Clock::now() >= until) return done;
    std::this_thread::sleep_for(kBetweenTries);
  }
}

// The next object that the process sends; progress is shown and skipped. Not an object: it is gone or stuck.
nlohmann::json NextAnswer(ControlClient& client, SendProgress& progress) {
  while (true) {
    auto line = client.ReadLine(kSilence);
    if (!line || !*line) return nullptr;
    auto json = nlohmann::json::parse(**line, nullptr, false);
    if (!json.is_object()) return nullptr;
    if (!json.contains("bytes_left")) {
      progress.Clear();
      return json;
    }
    if (json["bytes_left"].is_number_integer()) progress.Show(json["bytes_left"].get<int64_t>());
  }
}

std::string TextOf(const nlohmann::json& json, const char* name) {
  return json.is_object() && json.contains(name) && json[name].is_string() ? json[name].get<std::string>() : "";
}

std::string BadTimeout(const CommandLine& line) { return fmt::format("--timeout {}: must be a time, such as 30, 90s or 5m", line.Value("--timeout")); }

}  // namespace

ExitStatus FlushCommand(const CommandLine& line) {
  const std::string& directory = line.arguments[0];
  const auto timeout = ParseDuration(line.Value("--timeout", "10m"));
  if (!timeout) return Failed("flush", BadTimeout(line), ExitStatus::kUsage);
  auto named = FindNamedMount(directory);
  if (!named) return Failed("flush", named.error().message, ExitStatus::kMountPoint);
  nlohmann::json request = {{"command", "flush"}};
  if (line.Has("--timeout")) request["timeout_ms"] = timeout->count();
  auto client = AskMount(named->running, request.dump());
  if (!client) return Failed("flush", directory + ": the mount's process does not answer", ExitStatus::kFailure);
  SendProgress progress("flush");
  const nlohmann::json answer = NextAnswer(*client, progress);
  if (answer.is_null()) return Failed("flush", directory + ": the mount's process stopped answering", ExitStatus::kFailure);
  if (const std::string unsent = TextOf(answer, "unsent"); !unsent.empty()) return Failed("flush", fmt::format("{}: {}", directory, unsent), ExitStatus::kUnsentData);
  return ExitStatus::kOk;
}

ExitStatus UmountCommand(const CommandLine& line) {
  const std::string& directory = line.arguments[0];
  const bool force = line.Has("--force");
  // Without one the process decides: as long as the sending gets on.
  const bool timed = line.Has("--timeout");
  const auto timeout = ParseDuration(line.Value("--timeout", "10m"));
  if (!timeout) return UmountFailure(BadTimeout(line), ExitStatus::kUsage);
  auto named = FindNamedMount(directory);
  if (!named) {
    if (named.error().errno_value == ENOTCONN && force) {
      auto table = ReadMountTable();
      auto canonical = table ? CanonicalDirectory(directory, *table) : Forward(table.error());
      if (canonical) return ClearStaleMount(*canonical);
    }
    return UmountFailure(named.error().message, ExitStatus::kMountPoint);
  }

  nlohmann::json request = {{"command", "unmount"}, {"force", force}};
  if (timed) request["timeout_ms"] = timeout->count();
  auto client = AskMount(named->running, request.dump());
  if (!client) return UmountFailure(directory + ": the mount's process does not answer", ExitStatus::kFailure);
  SendProgress progress("umount");
  nlohmann::json answer = NextAnswer(*client, progress);
  if (answer.is_null()) return UmountFailure(directory + ": the mount's process stopped answering", ExitStatus::kFailure);
  if (const std::string unsent = TextOf(answer, "unsent"); !unsent.empty()) {
    return UmountFailure(fmt::format("{}: still mounted: {} (try again, or put it aside with --force)", directory, unsent), ExitStatus::kUnsentData);
  }
  if (const std::string saved = TextOf(answer, "saved_in"); !saved.empty()) {
    PrintErrorLine("umount", fmt::format("{}: unsent data was put aside in {} ({})", directory, saved, TextOf(answer, "why")));
  }
  if (const std::string lost = TextOf(answer, "error"); !lost.empty()) {
    return UmountFailure(fmt::format("{}: still mounted: {}", directory, lost), ExitStatus::kFailure);
  }

  // Everything is there; what is written from now on, until the name is gone, is sent by the process before it ends. With --force the
  // process unmounts by itself, whatever is open.
  if (named->in_mount_table && !force) {
    if (auto done = UnmountWhenFree(named->directory); !done) {
      const bool busy = done.error().errno_value == EBUSY;
      return UmountFailure(busy ? fmt::format("{}: still mounted, though all is sent: busy, some program uses it (fuser -vm {} shows which)", directory, directory)
                                : fmt::format("{}: still mounted: {}", directory, ErrorText(done.error())),
                           ExitStatus::kMountPoint);
    }
  }
  answer = NextAnswer(*client, progress);
  // What comes next, another mount above all, is not to meet what this one still has on its way.
  if (!client->WaitForExit(kProcessEnd)) PrintErrorLine("umount", fmt::format("{}: unmounted, but its process still runs", directory));
  if (force) {  // the process is gone; its name must be, too
    auto table = ReadMountTable();
    if (table && FindMount(*table, named->directory) && FindMount(*table, named->directory)->is_e2bfs()) return ClearStaleMount(named->directory);
  }
  if (answer.is_null()) return ExitStatus::kOk;  // it ended at once: nothing was left
  if (const std::string saved = TextOf(answer, "saved_in"); !saved.empty()) {
    PrintErrorLine("umount", fmt::format("{}: data written while unmounting could not be sent; put aside in {} ({})", directory, saved, TextOf(answer, "error")));
    return force ? ExitStatus::kOk : ExitStatus::kUnsentData;
  }
  if (const std::string lost = TextOf(answer, "error"); !lost.empty()) return UmountFailure(fmt::format("{}: {}", directory, lost), ExitStatus::kFailure);
  return ExitStatus::kOk;
}

}  // namespace e2bfs::fuse
