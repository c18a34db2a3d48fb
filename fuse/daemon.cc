#include "fuse/daemon.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "fuse/exit_status.h"
#include "fuse/message.h"

namespace e2bfs::fuse {
namespace {

constexpr rlim_t kMostDescriptors = rlim_t{1} << 20;

volatile sig_atomic_t background_child = 0;

extern "C" void E2bfsForwardSignal(int) {
  const int saved = errno;
  if (background_child > 0) kill(background_child, SIGTERM);
  errno = saved;
}

void LeaveStandardStreams(const std::string& log_path) {
  const int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nowhere < 0) return;
  for (int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(nowhere, descriptor);
  if (nowhere > STDERR_FILENO) close(nowhere);
  if (log_path.empty()) return;
  const int log = open(log_path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY);
  if (log < 0) return;
  dup2(log, STDERR_FILENO);
  close(log);
}

// What whoever started us had open is not ours to keep: a lock, a pipe that somebody waits on. Before any thread is there.
void CloseInherited(int kept) {
  if (kept > STDERR_FILENO + 1) close_range(STDERR_FILENO + 1, static_cast<unsigned>(kept) - 1, 0);
  close_range(static_cast<unsigned>(kept) + 1, ~0U, 0);
}

int WaitForChild(std::string_view command, pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return static_cast<int>(ExitStatus::kFailure);
  }
  if (WIFEXITED(status)) {
    // Success without a word would be a mount that was gone before it answered.
    return WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : static_cast<int>(ExitStatus::kFailure);
  }
  const int signal_number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  if (signal_number == SIGINT || signal_number == SIGTERM) return static_cast<int>(ExitStatus::kInterrupted);
  PrintErrorLine(command, fmt::format("the process in the background was ended by signal {}", signal_number));
  return static_cast<int>(ExitStatus::kFailure);
}

}  // namespace

void ProtectSecrets() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
#ifndef E2BFS_SANITIZED  // the leak checker attaches to its own process
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= std::min(limit.rlim_max, kMostDescriptors)) return;
  limit.rlim_cur = std::min(limit.rlim_max, kMostDescriptors);
  setrlimit(RLIMIT_NOFILE, &limit);
}

void WipeVariable(const char* name) {
  if (char* value = getenv(name); value != nullptr) explicit_bzero(value, strlen(value));
  unsetenv(name);
}

bool NotifyServiceManager(std::string_view message) {
  const char* path = getenv("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return false;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = strlen(path);
  if (length >= sizeof address.sun_path) return false;
  memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // the abstract name space
  const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) return false;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  const ssize_t sent = sendto(descriptor, message.data(), message.size(), MSG_NOSIGNAL,
                              reinterpret_cast<const sockaddr*>(&address), size);
  close(descriptor);
  return sent == static_cast<ssize_t>(message.size());
}

int RunInBackground(std::string_view command, const std::function<int(const BecomeReady&)>& run) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    PrintErrorLine(command, fmt::format("pipe: {}", strerror(errno)));
    return static_cast<int>(ExitStatus::kFailure);
  }
  const pid_t child = fork();
  if (child < 0) {
    PrintErrorLine(command, fmt::format("fork: {}", strerror(errno)));
    return static_cast<int>(ExitStatus::kFailure);
  }
  if (child == 0) {
    const int ready_end = ends[1];
    CloseInherited(ready_end);
    // Until it is ready it stays in the terminal's foreground group, so that Ctrl-C reaches it.
    return run([ready_end](const std::string& log_path) {
      setsid();
      if (chdir("/") != 0) return;  // cannot fail; a daemon must not hold a directory
      LeaveStandardStreams(log_path);
      const char ready = 'r';
      if (write(ready_end, &ready, 1) != 1) kill(getpid(), SIGTERM);  // the parent is gone: nobody wants this mount
      close(ready_end);
    });
  }
  close(ends[1]);
  background_child = child;
  struct sigaction forward {}, previous_interrupt{}, previous_terminate{};
  forward.sa_handler = E2bfsForwardSignal;
  sigaction(SIGINT, &forward, &previous_interrupt);
  sigaction(SIGTERM, &forward, &previous_terminate);
  char ready = 0;
  ssize_t count = 0;
  do {
    count = read(ends[0], &ready, 1);
  } while (count < 0 && errno == EINTR);
  // The child that ends is waited for with signals still going to it.
  const int status = count == 1 ? static_cast<int>(ExitStatus::kOk) : WaitForChild(command, child);
  background_child = 0;
  sigaction(SIGINT, &previous_interrupt, nullptr);
  sigaction(SIGTERM, &previous_terminate, nullptr);
  close(ends[0]);
  return status;
}

}  // namespace e2bfs::fuse
