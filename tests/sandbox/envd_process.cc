#include "tests/sandbox/envd_process.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>

#include "tests/sandbox/go_path.h"
#include "tests/sandbox/spawn.h"

namespace e2bfs::sandbox {
namespace {

using ProcessClock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kClientCheck(100);
constexpr std::chrono::seconds kExitRetention(30);

std::string StartEventJson(pid_t pid) {
  JsonText json;
  json.BeginObject().Key("event").BeginObject().Key("start").BeginObject().Field("pid",
                                                                                 static_cast<int64_t>(pid));
  return json.EndObject().EndObject().EndObject().TakeText();
}

// Of the syscall server's protocol: magic, length of the body, 20 bytes more, body. A message holds whole ones.
int64_t FramesIn(std::string_view input) {
  constexpr size_t kHeaderBytes = 28;
  int64_t frames = 0;
  for (; input.size() >= kHeaderBytes && input.starts_with("e2Q1"); ++frames) {
    size_t length = kHeaderBytes;
    for (size_t i = 0; i < 4; ++i) {
      length += static_cast<size_t>(static_cast<uint8_t>(input[4 + i])) << (24 - 8 * i);
    }
    input.remove_prefix(std::min(length, input.size()));
  }
  return frames;
}

}  // namespace

ProcessService::ProcessService(EnvdContext& context) : context_(context), nice_(FindProgram("nice")) {}

void ProcessService::Stop() {
  const std::lock_guard lock(mutex_);
  for (const auto& [pid, process] : processes_) {
    process->KillGroup();
  }
}

ProcessService::~ProcessService() {
  Stop();
  std::map<pid_t, std::shared_ptr<Process>> processes;
  std::vector<std::shared_ptr<Process>> ended;
  {
    const std::lock_guard lock(mutex_);
    processes.swap(processes_);
  }
  processes.clear();  // joins their threads, which may be calling Ended: no lock is held
  {
    const std::lock_guard lock(mutex_);
    ended.swap(ended_);
  }
}

bool ProcessService::Handle(Exchange& exchange, const std::string& method) {
  if (method == "Start") {
    Start(exchange);
  } else if (method == "Connect") {
    Connect(exchange);
  } else if (method == "StreamInput") {
    StreamInput(exchange);
  } else if (method == "List") {
    ServeUnary(exchange, context_.log(), "/process.Process/List",
               [this](const JsonMessage&) { return List(); });
  } else if (method == "SendInput" || method == "SendSignal" || method == "Update" ||
             (method == "CloseStdin" && context_.can().close_stdin)) {
    ServeUnary(exchange, context_.log(), "/process.Process/" + method,
               [&](const JsonMessage& request) { return Control(method, request); });
  } else {
    return false;
  }
  return true;
}

RpcResult<Process::Command> ProcessService::MakeCommand(const JsonMessage& config, const Account& account) {
  const auto directory = context_.ResolvePath(config.String("cwd"), account);
  if (!directory) {
    return tl::make_unexpected(directory.error());
  }
  struct stat info {};
  if (stat(directory->c_str(), &info) != 0 && errno == ENOENT) {
    return RpcFailure("invalid_argument", "cwd '" + *directory + "' does not exist");
  }
  Process::Command command;
  command.directory = *directory;
  const std::string& command_path = context_.options().command_path;
  const char* path = command_path.empty() ? getenv("PATH") : command_path.c_str();
  std::map<std::string, std::string> variables = {
      {"PATH", path != nullptr ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
      {"HOME", account.home},
      {"USER", account.name},
      {"LOGNAME", account.name},
      {"E2B_SANDBOX", "false"},
  };
  for (const std::string& variable : context_.options().environment) {
    const size_t equals = variable.find('=');
    variables[variable.substr(0, equals)] = equals == std::string::npos ? "" : variable.substr(equals + 1);
  }
  for (const auto& [name, value] : config.StringMap("envs")) {
    variables[name] = value;
  }
  for (const auto& [name, value] : variables) {
    command.environment.push_back(name + "=" + value);
  }
  std::string program = config.String("cmd");
  if (!command_path.empty() && program.starts_with('/')) {
    program = command_path + program.substr(program.rfind('/'));
  }
  std::vector<std::string> arguments = config.StringList("args");
  arguments.insert(arguments.begin(), program);
  if (context_.can().wrapped_commands) {
    // envd also sets an I/O priority; a failure to adjust must not keep a command from running here.
    command.program = "/bin/sh";
    command.arguments = {"/bin/sh", "-c",
                         "{ echo 100 > /proc/$$/oom_score_adj; } 2>/dev/null; exec " +
                             (nice_.empty() ? std::string() : nice_ + " -n 0 ") + "\"${@}\"",
                         "--"};
    command.arguments.insert(command.arguments.end(), arguments.begin(), arguments.end());
  } else {
    command.program = FindProgram(program);
    if (command.program.empty()) {
      return RpcFailure("invalid_argument", "error starting process '" + program + "': exec: \"" + program +
                                                "\": executable file not found in $PATH");
    }
    command.arguments = std::move(arguments);
  }
  return command;
}

void ProcessService::Start(Exchange& exchange) {
  RpcStream stream(exchange, context_.log(), "/process.Process/Start", RpcStream::Kind::kServerStream);
  if (!stream.Open()) {
    return;
  }
  const auto request = stream.ReceiveRequest();
  if (!request) {
    return;
  }
  const auto account = context_.RpcAccount(exchange);
  if (!account) {
    stream.End(account.error());
    return;
  }
  const JsonMessage config = request->Object("process");
  Process::Settings settings;
  settings.tag = request->OptionalString("tag");
  settings.config_json = request->Dump("process");
  settings.deadline = stream.deadline();
  settings.with_stdin = request->OptionalBool("stdin").value_or(true);
  settings.with_terminal = request->Has("pty");
  settings.columns = request->Object("pty").Object("size").Uint32("cols");
  settings.rows = request->Object("pty").Object("size").Uint32("rows");
  settings.on_end = [this](pid_t pid, const std::string& end) { Ended(pid, end); };
  if (context_.can().output_logged) {
    settings.log_output = [this](const std::string& event) {
      context_.log().Line("Streaming process event", {{"event", event}});
    };
  }
  const auto command = MakeCommand(config, *account);
  if (!request->error().empty()) {
    stream.End(RpcError{"invalid_argument", "unmarshal message: " + request->error()});
    return;
  }
  if (!command) {
    stream.End(command.error());
    return;
  }
  if (context_.stopping || context_.crashed) {
    stream.Abort();
    return;
  }
  auto process = std::make_shared<Process>(std::move(settings));
  std::vector<std::shared_ptr<Process>> ended;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(ended_);
  }
  ended.clear();
  const auto pid = process->Start(*command, *account);
  if (!pid) {
    stream.End(pid.error());
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    retained_.erase(static_cast<uint32_t>(*pid));
    if (process->settings().tag) {
      std::erase_if(retained_,
                    [&](const auto& entry) { return entry.second.tag == process->settings().tag; });
    }
    processes_[*pid] = process;
  }
  context_.log().Line("Process with pid " + std::to_string(*pid) + " started",
                      {{"event_type", "\"process_start\""},
                       {"pid", std::to_string(*pid)},
                       {"process", process->settings().config_json}});
  const auto listener = process->Listen();  // its thread begins here, when End can find it in the table
  if (exchange.Header("connect-timeout-ms") == "0") {  // no time at all: not even the start is told
    stream.End(RpcError{"deadline_exceeded", "context deadline exceeded"});
  } else if (stream.Send(StartEventJson(*pid))) {
    Follow(stream, *process, listener);
  }
  process->Cancel(listener);
}

void ProcessService::Ended(pid_t pid, const std::string& end_json) {
  const auto now = ProcessClock::now();
  context_.log().Line("Process with pid " + std::to_string(pid) + " ended",
                      {{"event_type", "\"process_end\""}, {"process_result", end_json}});
  const std::lock_guard lock(mutex_);
  std::erase_if(retained_, [&](const auto& entry) { return entry.second.expiry < now; });
  const auto found = processes_.find(pid);
  if (found == processes_.end()) {
    return;
  }
  if (context_.can().retained_exits) {
    retained_[static_cast<uint32_t>(pid)] = {found->second->settings().tag, end_json, now + kExitRetention};
  }
  ended_.push_back(std::move(found->second));
  processes_.erase(found);
}

void ProcessService::Follow(RpcStream& stream, Process& process,
                            const std::shared_ptr<ProcessListener>& listener) {
  if (stream.keepalive_seconds() <= 0) {  // a ticker without an interval panics in a goroutine: envd is gone
    context_.crashed = true;
    stream.Abort();
    return;
  }
  const std::chrono::seconds keepalive(stream.keepalive_seconds());
  auto next_keepalive = ProcessClock::now() + keepalive;
  while (true) {
    auto until = std::min(next_keepalive, ProcessClock::now() + kClientCheck);
    if (stream.deadline()) {
      until = std::min(until, *stream.deadline());
    }
    const Process::Next next = process.WaitEvent(*listener, until);
    const auto now = ProcessClock::now();
    if (stream.deadline() && now >= *stream.deadline()) {
      stream.End(RpcError{"deadline_exceeded", "context deadline exceeded"});
      return;
    }
    if (context_.stopping || context_.crashed) {
      stream.Abort();
      return;
    }
    if (next.event != nullptr) {
      if (!stream.Send(*next.event)) {
        return;
      }
      next_keepalive = now + keepalive;
      if (next.is_end) {
        stream.End(std::nullopt);
        return;
      }
      continue;
    }
    if (now >= next_keepalive) {
      if (!stream.Send("{\"event\":{\"keepalive\":{}}}")) {
        return;
      }
      next_keepalive = now + keepalive;
    }
    if (stream.ClientGone()) {
      return;
    }
  }
}

void ProcessService::Connect(Exchange& exchange) {
  RpcStream stream(exchange, context_.log(), "/process.Process/Connect", RpcStream::Kind::kServerStream);
  if (!stream.Open()) {
    return;
  }
  const auto request = stream.ReceiveRequest();
  if (!request) {
    return;
  }
  const JsonMessage selector = request->Object("process");
  const auto process = Find(selector);
  if (!process) {
    if (const auto retained = FindRetained(selector)) {
      if (stream.Send(StartEventJson(static_cast<pid_t>(retained->first))) && stream.Send(retained->second)) {
        stream.End(std::nullopt);
      }
      return;
    }
    stream.End(process.error());
    return;
  }
  const auto listener = (*process)->Listen();
  if (stream.Send(StartEventJson((*process)->pid()))) {
    Follow(stream, **process, listener);
  }
  (*process)->Cancel(listener);
}

RpcResult<std::shared_ptr<Process>> ProcessService::Find(const JsonMessage& selector) {
  const std::lock_guard lock(mutex_);
  if (selector.Has("pid")) {
    const uint32_t pid = selector.Uint32("pid");
    const auto found = processes_.find(static_cast<pid_t>(pid));
    if (found == processes_.end()) {
      return RpcFailure("not_found", "process with pid " + std::to_string(pid) + " not found");
    }
    return found->second;
  }
  if (selector.Has("tag")) {
    const std::string tag = selector.String("tag");
    std::shared_ptr<Process> found;
    for (const auto& [pid, process] : processes_) {
      if (!process->settings().tag) {
        continue;
      }
      if (*process->settings().tag != tag) {
        break;  // envd's search ends at the first other tag
      }
      found = process;
    }
    if (found == nullptr) {
      return RpcFailure("not_found", "process with tag " + tag + " not found");
    }
    return found;
  }
  return RpcFailure("unimplemented", "invalid input type *process.ProcessSelector");
}

std::optional<std::pair<uint32_t, std::string>> ProcessService::FindRetained(const JsonMessage& selector) {
  const auto now = ProcessClock::now();
  const std::lock_guard lock(mutex_);
  for (const auto& [pid, exit] : retained_) {
    const bool wanted =
        selector.Has("pid") ? pid == selector.Uint32("pid") : exit.tag && *exit.tag == selector.String("tag");
    if (wanted && exit.expiry >= now) {
      return std::pair(pid, exit.end_json);
    }
  }
  return std::nullopt;
}

RpcResult<void> ProcessService::Input(Process* process, const JsonMessage& input) {
  if (input.Has("pty")) {
    return process->WriteTerminal(input.Bytes("pty"));
  }
  if (input.Has("stdin")) {
    return process->WriteStdin(input.Bytes("stdin"));
  }
  return RpcFailure("unimplemented", "invalid input type <nil>");
}

void ProcessService::StreamInput(Exchange& exchange) {
  RpcStream stream(exchange, context_.log(), "/process.Process/StreamInput", RpcStream::Kind::kClientStream);
  if (!stream.Open()) {
    return;
  }
  context_.log().Line("Process streamInput (client stream start)",
                      {{"method", "\"POST /process.Process/StreamInput\""}});
  std::shared_ptr<Process> process;
  while (true) {
    bool torn = false;
    std::optional<RpcError> error;
    const auto message = stream.Receive(&torn, &error);
    if (!message) {
      if (torn && !error) {
        error = RpcError{
            "unknown",
            "error streaming input: invalid_argument: protocol error: incomplete envelope: unexpected EOF"};
      }
      if (!error && !stream.Send("{}")) {
        return;
      }
      stream.End(error);
      return;
    }
    if (message->Has("start")) {
      auto found = Find(message->Object("start").Object("process"));
      if (!found) {
        stream.End(found.error());
        return;
      }
      process = std::move(*found);
    } else if (message->Has("data")) {
      if (process == nullptr) {  // a nil pointer in envd: its handler panics and the connection is cut
        stream.Abort();
        return;
      }
      const JsonMessage input = message->Object("data").Object("input");
      const std::string bytes = input.Bytes("stdin");
      exchange.CountInput(static_cast<int64_t>(bytes.size()), FramesIn(bytes));
      if (auto written = Input(process.get(), input); !written) {
        stream.End(written.error());
        return;
      }
    } else if (!message->Has("keepalive")) {
      stream.End(RpcError{"unimplemented", "invalid event type <nil>"});
      return;
    }
  }
}

RpcResult<std::string> ProcessService::List() {
  JsonText json;
  json.BeginObject();
  const std::lock_guard lock(mutex_);
  if (!processes_.empty()) {
    json.Key("processes").BeginArray();
    for (const auto& [pid, process] : processes_) {
      json.BeginObject();
      if (!process->settings().config_json.empty()) {
        json.Key("config").Raw(process->settings().config_json);
      }
      json.Field("pid", static_cast<int64_t>(pid));
      if (process->settings().tag) {
        json.Field("tag", *process->settings().tag);
      }
      json.EndObject();
    }
    json.EndArray();
  }
  json.EndObject();
  return EncodedMessage(std::move(json));
}

RpcResult<std::string> ProcessService::Control(const std::string& method, const JsonMessage& request) {
  const auto process = Find(request.Object("process"));
  if (!process) {
    return tl::make_unexpected(process.error());
  }
  RpcResult<void> done;
  if (method == "SendInput") {
    done = Input(process->get(), request.Object("input"));
  } else if (method == "CloseStdin") {
    done = (*process)->CloseStdin();
  } else if (method == "Update") {
    if (request.Has("pty")) {
      const JsonMessage size = request.Object("pty").Object("size");
      done = (*process)->Resize(size.Uint32("cols"), size.Uint32("rows"));
    }
  } else {
    const std::string signal = request.EnumName("signal").value_or("");
    if (signal == "SIGNAL_SIGKILL" || signal == "9") {
      done = (*process)->Signal(SIGKILL);
    } else if (signal == "SIGNAL_SIGTERM" || signal == "15") {
      done = (*process)->Signal(SIGTERM);
    } else {
      return RpcFailure("unimplemented", "invalid signal: " + signal);
    }
  }
  if (!done) {
    return tl::make_unexpected(done.error());
  }
  return std::string("{}");
}

}  // namespace e2bfs::sandbox
