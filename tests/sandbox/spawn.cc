#include "tests/sandbox/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace e2bfs::sandbox {
namespace {

// Runs between vfork and exec, in the parent's memory: system calls only.
[[noreturn]] void SpawnChild(const SpawnRequest& request, char* const* argv, char* const* envp,
                             bool change_user, int report_fd) {
  const auto fail = [&] {
    const int error = errno;
    (void)!write(report_fd, &error, sizeof(error));
    _exit(127);
  };
  for (int signal_number = 1; signal_number < 65; ++signal_number) {
    signal(signal_number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (request.terminal.empty()) {
    setpgid(0, 0);
  } else {
    setsid();
  }
  if (change_user) {
    const Account& account = request.account;
    if (syscall(SYS_setgroups, account.groups.size(), account.groups.data()) != 0 ||
        syscall(SYS_setresgid, account.gid, account.gid, account.gid) != 0 ||
        syscall(SYS_setresuid, account.uid, account.uid, account.uid) != 0) {
      fail();
    }
  }
  umask(022);
  if (chdir(request.directory.c_str()) != 0) {
    fail();
  }
  int in = request.stdin_fd;
  int out = request.stdout_fd;
  int err = request.stderr_fd;
  if (!request.terminal.empty()) {
    in = out = err = open(request.terminal.c_str(), O_RDWR);
    if (in < 0 || ioctl(in, TIOCSCTTY, 0) != 0) {
      fail();
    }
  } else if (in < 0) {
    in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
  // Above 2 first, so that no dup2 overwrites one that is still to be copied.
  in = fcntl(in, F_DUPFD_CLOEXEC, 3);
  out = fcntl(out, F_DUPFD_CLOEXEC, 3);
  err = fcntl(err, F_DUPFD_CLOEXEC, 3);
  if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) {
    fail();
  }
  execve(request.program.c_str(), argv, envp);
  fail();
  _exit(127);
}

}  // namespace

std::string FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return name;
  }
  const char* path = getenv("PATH");
  std::string directories =
      path != nullptr ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  for (size_t at = 0; at <= directories.size();) {
    const size_t end = std::min(directories.find(':', at), directories.size());
    const std::string candidate = directories.substr(at, end - at) + "/" + name;
    struct stat info {};
    if (stat(candidate.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
        access(candidate.c_str(), X_OK) == 0) {
      return candidate;
    }
    at = end + 1;
  }
  return "";
}

pid_t Spawn(const SpawnRequest& request) {
  std::vector<char*> argv;
  std::vector<char*> envp;
  for (const auto& [strings, pointers] :
       {std::pair(&request.arguments, &argv), std::pair(&request.environment, &envp)}) {
    for (const std::string& text : *strings) {
      if (text.find('\0') != std::string::npos) {
        return -EINVAL;
      }
      pointers->push_back(const_cast<char*>(text.c_str()));
    }
    pointers->push_back(nullptr);
  }
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) {
    return -errno;
  }
  const bool change_user = geteuid() == 0;
  // As Go does: fork would copy the page tables, which takes longer than everything else, with a sanitizer's shadow above all. No signal
  // handler may run in the child, which has the parent's until it has set its own.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  sigdelset(&all, SIGCHLD);  // blocked here, it would not be ignored, and interrupt another thread
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = vfork();
  if (pid == 0) {
    SpawnChild(request, argv.data(), envp.data(), change_user, report[1]);
  }
  const int fork_error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  close(report[1]);
  if (pid < 0) {
    close(report[0]);
    return -fork_error;
  }
  int failure = 0;
  ssize_t got = 0;
  do {
    got = read(report[0], &failure, sizeof(failure));
  } while (got < 0 && errno == EINTR);
  close(report[0]);
  if (got != sizeof(failure)) {
    return pid;
  }
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return -failure;
}

}  // namespace e2bfs::sandbox
