#include "tests/component/syscall/server_process.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "transport/syscall/channel.h"

namespace e2bfs::testing {

using namespace transport::syscall;
namespace fs = std::filesystem;

const std::string& PerlBaseDirectory() {
  static const std::string directory = []() -> std::string {
    std::string pattern = (fs::temp_directory_path() / "e2bfs-perl-base-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return "";
    FILE* list = popen("dpkg -L perl-base 2>/dev/null", "r");
    if (!list) return "";
    bool some = false;
    char line[4096];
    while (fgets(line, sizeof line, list)) {
      const std::string path(line, strcspn(line, "\n"));
      const size_t at = path.find("/perl-base/");
      std::error_code error;
      if (at == std::string::npos || path.find("/doc/") != std::string::npos || !fs::is_regular_file(path, error)) continue;
      const fs::path copy = fs::path(pattern) / path.substr(at + 11);
      fs::create_directories(copy.parent_path());
      fs::copy_file(path, copy, error);
      some = true;
    }
    pclose(list);
    fs::permissions(pattern, fs::perms(0755));
    static const struct Cleaner {
      std::string path;
      ~Cleaner() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
      }
    } cleaner{pattern};
    return some ? pattern : "";
  }();
  return directory;
}

// The server's text, with numbers in its table of system calls that no kernel knows.
static std::string ProgramWithout(const std::vector<std::string>& missing_calls) {
  std::string text = kServerProgram;
  for (const std::string& name : missing_calls) {
    const size_t at = text.find("[" + name + " => ");
    EXPECT_NE(at, std::string::npos) << name;
    if (at != std::string::npos) text.replace(at, text.find(']', at) - at, "[" + name + " => 9999, 9999");
  }
  return text;
}

ServerProcess::ServerProcess(const ServerProcessOptions& options) : id_("\x01\xfftest\0\n", 8), parser_(id_) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  std::string program = kServerLoader;
  if (!PerlBaseDirectory().empty()) program = "BEGIN{@INC=('" + PerlBaseDirectory() + "')}" + program;
  const passwd* nobody = options.as_nobody && getuid() == 0 ? getpwnam("nobody") : nullptr;
  const std::string home = "HOME=" + options.root;
  const char* arguments[] = {"/usr/bin/perl", "-e", program.c_str(), nullptr};
  const char* environment[] = {home.c_str(), "PERL5OPT=", "PERL5LIB=", "PERL_UNICODE=", "LC_ALL=C", nullptr};
  pid_ = fork();
  if (pid_ == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    if (nobody && (setgid(nobody->pw_gid) != 0 || setuid(nobody->pw_uid) != 0)) _exit(99);
    execve(arguments[0], const_cast<char**>(arguments), const_cast<char**>(environment));
    _exit(98);
  }
  for (int fd : {in[0], out[1], err[1]}) close(fd);
  in_ = in[1];
  out_ = out[0];
  err_ = err[0];
  fcntl(err_, F_SETFL, O_NONBLOCK);
  std::string head;
  for (const char c : id_) head += fmt::format("{:02x}", uint8_t(c));
  const std::string text = ProgramWithout(options.missing_calls);
  SendBytes(head + fmt::format("{:08x}", text.size()) + text);
  if (!options.initialize) return;
  EXPECT_EQ(Ask(Operation::kInitialize, Arguments().Text(options.root).U32(options.silence)), 0);
}

ServerProcess::~ServerProcess() {
  if (!ended_) kill(pid_, SIGKILL);
  WaitEnd();
  EXPECT_EQ(TakeWords(), "") << "on standard error";
  for (int fd : {in_, out_, err_}) {
    if (fd >= 0) close(fd);
  }
}

void ServerProcess::SendBytes(const std::string& bytes) {
  struct sigaction ignore {}, before {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &before);
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t wrote = write(in_, bytes.data() + at, bytes.size() - at);
    if (wrote <= 0) break;
    at += size_t(wrote);
  }
  sigaction(SIGPIPE, &before, nullptr);
}

void ServerProcess::CloseInput() {
  close(in_);
  in_ = -1;
}

// False when nothing came in time, or the output has ended.
bool ServerProcess::Pump(int timeout_ms) {
  pollfd fd{out_, POLLIN, 0};
  if (poll(&fd, 1, timeout_ms) <= 0) return false;
  char buffer[65536];
  const ssize_t got = read(out_, buffer, sizeof buffer);
  if (got <= 0) return false;
  parser_.Feed(std::string_view(buffer, size_t(got)));
  while (true) {
    auto reply = parser_.Next();
    EXPECT_TRUE(reply) << ToString(reply.error());
    if (!reply || !*reply) return reply.has_value();
    replies_[(*reply)->number].push_back(std::move(**reply));
  }
}

std::vector<Reply> ServerProcess::Receive(uint64_t number, int timeout_ms) {
  const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    auto found = replies_.find(number);
    if (found != replies_.end() && !found->second.back().more) {
      auto replies = std::move(found->second);
      replies_.erase(found);
      return replies;
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0 || !Pump(int(left))) return {};
  }
}

bool ServerProcess::WaitForFirst(uint64_t number, int timeout_ms) {
  while (!replies_.contains(number)) {
    if (!Pump(timeout_ms)) return false;
  }
  return true;
}

int ServerProcess::Ask(Operation operation, const Arguments& arguments, std::string* result, uint64_t low) {
  const uint64_t number = NextNumber();
  Send(number, EncodeOperations(low, {{operation, arguments.bytes()}}));
  const auto replies = Receive(number);
  if (replies.empty() || replies.back().outcomes.empty()) {
    ADD_FAILURE() << "no reply to operation " << int(operation);
    return -1;
  }
  if (result) *result = replies.back().outcomes[0].result;
  return replies.back().outcomes[0].errno_value;
}

bool ServerProcess::Echo(uint64_t low) {
  const uint64_t number = NextNumber();
  Send(number, EncodeEcho(low, "are you there?"));
  const auto replies = Receive(number);
  return replies.size() == 1 && replies[0].echo && replies[0].rest == "are you there?";
}

int ServerProcess::WaitEnd(int timeout_ms) {
  for (int waited = 0; !ended_; ++waited) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      ended_ = true;
      status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (waited >= timeout_ms) {
      return -1;
    } else {
      usleep(1000);
    }
  }
  return status_;
}

std::vector<pid_t> ServerProcess::Children() const {
  const std::string number = std::to_string(pid_);
  std::ifstream file("/proc/" + number + "/task/" + number + "/children");
  std::vector<pid_t> children;
  for (pid_t child; file >> child;) children.push_back(child);
  return children;
}

pid_t ServerProcess::StopNextFork(const std::function<void()>& cause) {
  if (ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE) != 0) return -1;
  cause();
  // A tracer sees the fork before either side of it goes on.
  unsigned long child = 0;
  int status = 0;
  if (waitpid(pid_, &status, __WALL) != pid_ || !WIFSTOPPED(status) || status >> 8 != (SIGTRAP | PTRACE_EVENT_FORK << 8)) return -1;
  if (ptrace(PTRACE_GETEVENTMSG, pid_, nullptr, &child) != 0) return -1;
  const pid_t pid = static_cast<pid_t>(child);
  if (pid <= 0 || waitpid(pid, nullptr, __WALL) != pid || kill(pid, SIGSTOP) != 0) return -1;
  if (ptrace(PTRACE_DETACH, pid, nullptr, nullptr) != 0 || ptrace(PTRACE_DETACH, pid_, nullptr, nullptr) != 0) return -1;
  return pid;
}

std::string ServerProcess::TakeWords() {
  std::string words;
  char buffer[4096];
  ssize_t got;
  while ((got = read(err_, buffer, sizeof buffer)) > 0) words.append(buffer, size_t(got));
  return words;
}

}  // namespace e2bfs::testing
