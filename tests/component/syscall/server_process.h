// The syscall server by itself, on pipes: no envd in between. Runs with perl-base's own files and nothing else.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "transport/syscall/frame.h"

namespace e2bfs::testing {

// Holds the files of Debian's package perl-base as @INC; empty where dpkg does not know it.
const std::string& PerlBaseDirectory();

struct ServerProcessOptions {
  std::string root;
  uint32_t silence = 3600;
  bool as_nobody = false;   // when the test runs as root
  bool initialize = true;
  std::vector<std::string> missing_calls = {};  // ENOSYS, as where the kernel or a file system has no such call
};

class ServerProcess {
 public:
  explicit ServerProcess(const ServerProcessOptions& options);
  // Kills it, and expects that it never said anything on its standard error but what ForgiveWords took.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& id() const { return id_; }
  uint64_t NextNumber() { return ++number_; }

  void SendBytes(const std::string& bytes);
  void Send(uint64_t number, const std::string& body) { SendBytes(transport::syscall::EncodeFrame(id_, number, body)); }
  void CloseInput();
  // The replies to the number, up to the last; empty when none comes in time or the server ended.
  std::vector<transport::syscall::Reply> Receive(uint64_t number, int timeout_ms = 20'000);
  bool HasReply(uint64_t number) const { return replies_.count(number) != 0; }
  // The first of several to it, or the only one. False: nothing came in time.
  bool WaitForFirst(uint64_t number, int timeout_ms = 20'000);
  // One operation: its errno, and the result in *result.
  int Ask(transport::syscall::Operation operation, const transport::syscall::Arguments& arguments, std::string* result = nullptr, uint64_t low = 0);
  // Answered, and everything before it is done with.
  bool Echo(uint64_t low = 0);
  // Its exit status (128 + signal), or -1 when it still runs after the time.
  int WaitEnd(int timeout_ms = 20'000);
  std::vector<pid_t> Children() const;
  // Its next child, which `cause` makes it fork: stopped (SIGSTOP) before its first instruction. -1 when there was none.
  pid_t StopNextFork(const std::function<void()>& cause);
  std::string TakeWords();  // of standard error

 private:
  bool Pump(int timeout_ms);

  std::string id_;
  uint64_t number_ = 0;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  int status_ = -1;
  bool ended_ = false;
  transport::syscall::ReplyParser parser_;
  std::map<uint64_t, std::vector<transport::syscall::Reply>> replies_;
};

}  // namespace e2bfs::testing
