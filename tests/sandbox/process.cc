#include "tests/sandbox/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "tests/sandbox/go_path.h"
#include "tests/sandbox/spawn.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kOutputPiece = size_t{32} << 10;
constexpr size_t kListenerEvents = 64;
constexpr std::chrono::milliseconds kProcessTick(100);

void CloseDescriptor(int& fd) {
  if (fd >= 0) {
    close(fd);
    fd = -1;
  }
}

std::string GoSignalName(int signal_number) {
  static constexpr std::array<const char*, 16> kNames = {"",
                                                         "hangup",
                                                         "interrupt",
                                                         "quit",
                                                         "illegal instruction",
                                                         "trace/breakpoint trap",
                                                         "aborted",
                                                         "bus error",
                                                         "floating point exception",
                                                         "killed",
                                                         "user defined signal 1",
                                                         "segmentation fault",
                                                         "user defined signal 2",
                                                         "broken pipe",
                                                         "alarm clock",
                                                         "terminated"};
  return signal_number > 0 && signal_number < static_cast<int>(kNames.size())
             ? kNames[static_cast<size_t>(signal_number)]
             : "signal " + std::to_string(signal_number);
}

std::string EndEventJson(int wait_status) {
  JsonText json;
  json.BeginObject().Key("event").BeginObject().Key("end").BeginObject();
  std::string status;
  bool good = false;
  if (WIFEXITED(wait_status)) {
    const int code = WEXITSTATUS(wait_status);
    status = "exit status " + std::to_string(code);
    good = code == 0;
    if (code != 0) {
      json.Field("exitCode", static_cast<int64_t>(code));
    }
    json.Key("exited").Bool(true);
  } else {
    json.Field("exitCode", int64_t{-1});
    status =
        "signal: " + GoSignalName(WTERMSIG(wait_status)) + (WCOREDUMP(wait_status) ? " (core dumped)" : "");
  }
  json.Field("status", status);
  if (!good) {
    json.Field("error", status);
  }
  return json.EndObject().EndObject().EndObject().TakeText();
}

// A pseudo terminal's own end, and the name of the other.
int OpenTerminal(uint32_t columns, uint32_t rows, std::string* other) {
  const int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  std::array<char, 128> name;
  if (fd < 0 || grantpt(fd) != 0 || unlockpt(fd) != 0 || ptsname_r(fd, name.data(), name.size()) != 0) {
    return -1;
  }
  *other = name.data();
  winsize size{};
  size.ws_col = static_cast<unsigned short>(columns);
  size.ws_row = static_cast<unsigned short>(rows);
  ioctl(fd, TIOCSWINSZ, &size);
  return fd;
}

}  // namespace

Process::Process(Settings settings) : settings_(std::move(settings)) {}

Process::~Process() {
  KillGroup();
  if (thread_.joinable()) {
    thread_.join();
  }
  for (int* fd : {&output_fd_, &error_fd_, &wake_fd_, &pid_fd_, &stdin_fd_}) {
    CloseDescriptor(*fd);
  }
}

RpcResult<pid_t> Process::Start(const Command& command, const Account& account) {
  SpawnRequest request;
  request.program = command.program;
  request.arguments = command.arguments;
  request.environment = command.environment;
  request.directory = command.directory;
  request.account = account;
  std::array<int, 2> in = {-1, -1};
  std::array<int, 2> out = {-1, -1};
  std::array<int, 2> err = {-1, -1};
  bool ready = true;
  if (settings_.with_terminal) {
    output_fd_ = OpenTerminal(settings_.columns, settings_.rows, &request.terminal);
    ready = output_fd_ >= 0;
  } else {
    ready = pipe2(out.data(), O_CLOEXEC) == 0 && pipe2(err.data(), O_CLOEXEC) == 0 &&
            (!settings_.with_stdin || pipe2(in.data(), O_CLOEXEC) == 0);
    request.stdin_fd = in[0];
    request.stdout_fd = out[1];
    request.stderr_fd = err[1];
    output_fd_ = out[0];
    error_fd_ = err[0];
    stdin_fd_ = in[1];
  }
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (!ready || wake_fd_ < 0) {
    const int error = errno;
    for (int fd : {in[0], out[1], err[1]}) {
      CloseDescriptor(fd);
    }
    return RpcFailure("internal", "error creating pipes: " + ErrnoText(error));
  }
  if (stdin_fd_ >= 0) {
    fcntl(stdin_fd_, F_SETFL, O_NONBLOCK);
  }
  const pid_t pid = Spawn(request);
  for (int fd : {in[0], out[1], err[1]}) {
    CloseDescriptor(fd);
  }
  if (pid < 0) {
    return RpcFailure("invalid_argument",
                      "error starting process: fork/exec " + request.program + ": " + ErrnoText(-pid));
  }
  pid_ = pid;
  pid_fd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pid_fd_ >= 0) {
    fcntl(pid_fd_, F_SETFD, FD_CLOEXEC);
  }
  return pid;
}

std::shared_ptr<ProcessListener> Process::Listen() {
  auto listener = std::make_shared<ProcessListener>();
  const std::lock_guard lock(mutex_);
  listeners_.push_back(listener);
  if (pid_ > 0 && !thread_.joinable()) {
    thread_ = std::thread([this] { Run(); });
  }
  return listener;
}

void Process::Cancel(const std::shared_ptr<ProcessListener>& listener) {
  {
    const std::lock_guard lock(mutex_);
    listener->cancelled = true;
    listeners_.erase(std::remove(listeners_.begin(), listeners_.end(), listener), listeners_.end());
  }
  changed_.notify_all();
}

Process::Next Process::WaitEvent(ProcessListener& listener, Clock::time_point until) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, until,
                      [&] { return !listener.events.empty() || end_event_ != nullptr || closing_; });
  if (!listener.events.empty()) {
    Next next{listener.events.front(), false};
    listener.events.pop_front();
    lock.unlock();
    changed_.notify_all();
    return next;
  }
  return {end_event_, end_event_ != nullptr};
}

void Process::Deliver(std::shared_ptr<const std::string> event) {
  std::unique_lock lock(mutex_);
  const auto listeners = listeners_;
  for (const auto& listener : listeners) {
    while (!listener->cancelled && !closing_ && listener->events.size() >= kListenerEvents) {
      changed_.wait_for(lock, kProcessTick);
      lock.unlock();
      KillAtDeadline();
      lock.lock();
    }
    if (!listener->cancelled) {
      listener->events.push_back(event);
    }
  }
  lock.unlock();
  changed_.notify_all();
}

// False at the end of this output.
bool Process::ReadOutput(int fd, const char* name) {
  std::array<char, kOutputPiece> buffer;
  const ssize_t got = read(fd, buffer.data(), settings_.with_terminal ? kOutputPiece / 2 : kOutputPiece);
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
    return true;
  }
  if (got <= 0) {
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    if (listeners_.empty()) {
      return true;
    }
  }
  JsonText json;
  json.BeginObject().Key("event").BeginObject().Key("data").BeginObject();
  json.Field(name, Base64Encode(std::string_view(buffer.data(), static_cast<size_t>(got))));
  auto event = std::make_shared<const std::string>(json.EndObject().EndObject().EndObject().TakeText());
  if (settings_.log_output) {
    settings_.log_output(*event);
  }
  Deliver(std::move(event));
  return true;
}

void Process::KillAtDeadline() {
  if (settings_.deadline && Clock::now() >= *settings_.deadline) {
    const std::lock_guard lock(mutex_);
    if (!reaped_ && !cancelled_) {
      cancelled_ = true;
      kill(pid_, SIGKILL);
    }
  }
}

void Process::Run() {
  const char* output_name = settings_.with_terminal ? "pty" : "stdout";
  int output = output_fd_;
  int error = error_fd_;
  bool exited = false;
  while (output >= 0 || error >= 0) {
    bool cancelled = false;
    {
      const std::lock_guard lock(mutex_);
      cancelled = cancelled_ || closing_;
    }
    // A killed process's output is read as far as it is there; a child that holds it open does not delay the
    // end.
    const int timeout = cancelled && exited ? 0 : pid_fd_ < 0 || settings_.deadline ? 50 : -1;
    std::array<pollfd, 4> fds = {
        {{output, POLLIN, 0}, {error, POLLIN, 0}, {wake_fd_, POLLIN, 0}, {exited ? -1 : pid_fd_, POLLIN, 0}}};
    const int ready = poll(fds.data(), fds.size(), timeout);
    KillAtDeadline();
    if (fds[2].revents != 0) {
      uint64_t wakes = 0;
      (void)!read(wake_fd_, &wakes, sizeof(wakes));
    }
    if (pid_fd_ < 0 || fds[3].revents != 0) {
      siginfo_t info{};
      exited = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
               info.si_pid == pid_;
    }
    if (ready == 0 && cancelled && exited) {
      break;
    }
    if (fds[0].revents != 0 && !ReadOutput(output, output_name)) {
      output = -1;
    }
    if (fds[1].revents != 0 && !ReadOutput(error, "stderr")) {
      error = -1;
    }
    if (cancelled && exited && fds[0].revents == 0 && fds[1].revents == 0) {
      break;
    }
  }
  const std::string end = WaitForEnd();
  {
    const std::lock_guard lock(stdin_mutex_);
    CloseDescriptor(stdin_fd_);
  }
  if (settings_.on_end) {
    settings_.on_end(pid_, end);
  }
  {
    const std::lock_guard lock(mutex_);
    end_event_ = std::make_shared<const std::string>(end);
  }
  changed_.notify_all();
}

std::string Process::WaitForEnd() {
  while (
      true) {  // seen first and reaped under the lock, so that no signal can go to a stranger with its number
    siginfo_t info{};
    const int timeout = settings_.deadline ? 50 : 1000;
    if (pid_fd_ >= 0) {
      pollfd fd{pid_fd_, POLLIN, 0};
      poll(&fd, 1, timeout);
    } else {
      poll(nullptr, 0, 20);
    }
    KillAtDeadline();
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
        info.si_pid == pid_) {
      break;
    }
  }
  int status = 0;
  const std::lock_guard lock(mutex_);
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  reaped_ = true;
  return EndEventJson(status);
}

RpcResult<void> Process::WriteStdin(std::string_view bytes) {
  if (settings_.with_terminal) {
    return RpcFailure("internal",
                      "error writing to stdin: tty assigned to process — input should be written to the pty, "
                      "not the stdin");
  }
  const std::lock_guard lock(stdin_mutex_);
  if (stdin_fd_ < 0) {
    return RpcFailure("internal", "error writing to stdin: stdin not enabled or closed");
  }
  while (!bytes.empty()) {
    const ssize_t written = write(stdin_fd_, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
      continue;
    }
    if (errno == EINTR) {
      continue;
    }
    const int error = errno;
    bool ended = false;
    {
      const std::lock_guard state(mutex_);
      ended = reaped_ || closing_;
    }
    if (error != EAGAIN || ended) {
      return RpcFailure("internal", "error writing to stdin: error writing to stdin of process '" +
                                        std::to_string(pid_) +
                                        "': write |1: " + (ended ? "file already closed" : ErrnoText(error)));
    }
    pollfd room{stdin_fd_, POLLOUT, 0};
    poll(&room, 1, 50);
  }
  return {};
}

RpcResult<void> Process::WriteTerminal(std::string_view bytes) {
  if (!settings_.with_terminal) {
    return RpcFailure("internal",
                      "error writing to tty: tty not assigned to process — input should be written to the "
                      "stdin, not the tty");
  }
  while (!bytes.empty()) {
    const ssize_t written = write(output_fd_, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) {
      return RpcFailure("internal", "error writing to tty: " + ErrnoText(errno));
    }
    bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(written, 0)));
  }
  return {};
}

RpcResult<void> Process::CloseStdin() {
  if (settings_.with_terminal) {
    return RpcFailure("unknown",
                      "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead");
  }
  const std::lock_guard lock(stdin_mutex_);
  CloseDescriptor(stdin_fd_);
  return {};
}

RpcResult<void> Process::Resize(uint32_t columns, uint32_t rows) {
  if (!settings_.with_terminal) {
    return RpcFailure("internal", "error resizing tty: tty not assigned to process");
  }
  winsize size{};
  size.ws_col = static_cast<unsigned short>(columns);
  size.ws_row = static_cast<unsigned short>(rows);
  ioctl(output_fd_, TIOCSWINSZ, &size);
  return {};
}

RpcResult<void> Process::Signal(int signal_number) {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  const uint64_t one = 1;
  (void)!write(wake_fd_, &one, sizeof(one));
  if (reaped_ || kill(pid_, signal_number) != 0) {
    return RpcFailure("internal", "error sending signal: os: process already finished");
  }
  return {};
}

void Process::KillGroup() {
  const std::lock_guard lock(mutex_);
  closing_ = true;
  changed_.notify_all();
  if (pid_ > 0 && !reaped_) {
    cancelled_ = true;
    kill(-pid_, SIGKILL);
    kill(pid_, SIGKILL);
  }
  const uint64_t one = 1;
  (void)!write(wake_fd_, &one, sizeof(one));
}

}  // namespace e2bfs::sandbox
