// Process: a command that was started, its output fanned out to whoever listens, and its input.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/sandbox/connect_server.h"

namespace e2bfs::sandbox {

struct Account;

// A listener's events, as ready response messages. Guarded by the process's mutex.
struct ProcessListener {
  std::deque<std::shared_ptr<const std::string>> events;
  bool cancelled = false;
};

// Thread-safe. One thread of its own reads the outputs and waits for the end. Output is dropped when nobody
// listens; a listener that does not take its events stops the output for all.
class Process {
 public:
  using Clock = std::chrono::steady_clock;
  struct Settings {
    std::optional<std::string> tag;
    std::string config_json;                    // the request's "process" object, for List
    std::optional<Clock::time_point> deadline;  // killed when it passes
    bool with_stdin = true;
    bool with_terminal = false;
    uint32_t columns = 0;
    uint32_t rows = 0;
    std::function<void(const std::string&)> log_output;              // may be empty
    std::function<void(pid_t, const std::string& end_json)> on_end;  // before listeners hear of it
  };
  struct Command {
    std::string program;
    std::vector<std::string> arguments;
    std::vector<std::string> environment;
    std::string directory;
  };

  explicit Process(Settings settings);
  // Kills it with its process group if it still runs, and waits.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Starts the command as the account. Errors: invalid_argument, internal.
  RpcResult<pid_t> Start(const Command& command, const Account& account);
  std::shared_ptr<ProcessListener> Listen();
  void Cancel(const std::shared_ptr<ProcessListener>& listener);

  // Waits for the next event of the listener, at most until `until`: an event, or the end (is_end), or
  // neither.
  struct Next {
    std::shared_ptr<const std::string> event;
    bool is_end = false;
  };
  Next WaitEvent(ProcessListener& listener, Clock::time_point until);

  RpcResult<void> WriteStdin(std::string_view bytes);
  RpcResult<void> WriteTerminal(std::string_view bytes);
  RpcResult<void> CloseStdin();
  RpcResult<void> Resize(uint32_t columns, uint32_t rows);
  RpcResult<void> Signal(int signal_number);
  // Kills it and what it started, and lets go of whoever waits here: for the double's own end.
  void KillGroup();

  pid_t pid() const { return pid_; }
  const Settings& settings() const { return settings_; }

 private:
  void Run();
  bool ReadOutput(int fd, const char* name);
  void Deliver(std::shared_ptr<const std::string> event);
  void KillAtDeadline();
  std::string WaitForEnd();

  const Settings settings_;
  pid_t pid_ = -1;
  int output_fd_ = -1;  // standard output, or the terminal
  int error_fd_ = -1;
  int wake_fd_ = -1;
  int pid_fd_ = -1;
  std::thread thread_;

  std::mutex mutex_;  // guards what follows; taken after stdin_mutex_
  std::condition_variable changed_;
  std::vector<std::shared_ptr<ProcessListener>> listeners_;
  std::shared_ptr<const std::string> end_event_;
  bool reaped_ = false;
  bool cancelled_ = false;  // killed: its output is not waited for beyond its end
  bool closing_ = false;

  std::mutex stdin_mutex_;  // held while a write waits for room, as in envd
  int stdin_fd_ = -1;
};

}  // namespace e2bfs::sandbox
