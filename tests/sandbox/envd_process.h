// process.Process: Start, Connect, List, Update, SendInput, StreamInput, SendSignal, CloseStdin.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "tests/sandbox/envd.h"
#include "tests/sandbox/process.h"

namespace e2bfs::sandbox {

// Thread-safe.
class ProcessService {
 public:
  explicit ProcessService(EnvdContext& context);
  // Kills what still runs.
  ~ProcessService();
  // Kills what runs, so that requests which wait for it return. Nothing new is started afterwards.
  void Stop();
  // False if there is no such method.
  bool Handle(Exchange& exchange, const std::string& method);

 private:
  struct RetainedExit {
    std::optional<std::string> tag;
    std::string end_json;
    std::chrono::steady_clock::time_point expiry;
  };
  void Start(Exchange& exchange);
  void Connect(Exchange& exchange);
  void StreamInput(Exchange& exchange);
  RpcResult<std::string> List();
  // The rest of the unary methods, all of which name a process.
  RpcResult<std::string> Control(const std::string& method, const JsonMessage& request);
  RpcResult<std::shared_ptr<Process>> Find(const JsonMessage& selector);
  std::optional<std::pair<uint32_t, std::string>> FindRetained(const JsonMessage& selector);
  RpcResult<void> Input(Process* process, const JsonMessage& input);
  // Sends the process's events until it ends, the client leaves or the deadline passes.
  void Follow(RpcStream& stream, Process& process, const std::shared_ptr<ProcessListener>& listener);
  RpcResult<Process::Command> MakeCommand(const JsonMessage& config, const Account& account);
  void Ended(pid_t pid, const std::string& end_json);

  EnvdContext& context_;
  const std::string nice_;  // its path, "" if the machine has none
  std::mutex mutex_;        // guards what follows
  std::map<pid_t, std::shared_ptr<Process>> processes_;
  std::vector<std::shared_ptr<Process>> ended_;  // their threads are joined when the next one starts
  std::map<uint32_t, RetainedExit> retained_;
};

}  // namespace e2bfs::sandbox
