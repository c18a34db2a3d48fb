#include "tests/component/syscall/scripted_envd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace e2bfs::testing {
namespace {

using namespace std::chrono_literals;
using transport::syscall::Arguments;
using transport::syscall::Fields;
using transport::syscall::Operation;

constexpr size_t kHeaderBytes = 28;
constexpr size_t kChunkBytes = 64 << 10;
constexpr size_t kOutputAhead = 4 << 20;

// Big-endian, as frames have it.
std::string Big16(uint16_t value) { return {char(value >> 8), char(value)}; }
std::string Big32(uint32_t value) { return Arguments().U32(value).bytes(); }

uint32_t Sum(std::string_view bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) sum += uint32_t{uint8_t(bytes[i])} << (8 * (3 - i % 4));
  return sum;
}

}  // namespace

std::string ScriptedEnvd::RootAttributes() {
  struct statx found {};
  if (::statx(AT_FDCWD, "/", AT_SYMLINK_NOFOLLOW, STATX_ALL, &found) != 0) throw std::runtime_error("statx");
  return std::string(reinterpret_cast<const char*>(&found), 144) + std::string(1, '\0');
}

void ScriptedEnvd::Server::Say(const std::string& bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return dead_ || output_.size() < kOutputAhead; });
  output_ += bytes;
  changed_.notify_all();
}

std::string ScriptedEnvd::Server::Frame(uint64_t number, const std::string& body) const {
  const std::string checked = id_ + Arguments().U64(number).bytes() + body;
  return "e2R1" + Big32(uint32_t(body.size())) + Big32(Sum(checked)) + checked;
}

void ScriptedEnvd::Server::Reply(uint64_t number, uint8_t flags, const std::vector<std::string>& results) {
  std::string body(1, char(flags));
  body += Big16(uint16_t(results.size()));
  for (const std::string& result : results) body += Big32(0) + Big32(uint32_t(result.size())) + result;
  Say(Frame(number, body));
}

void ScriptedEnvd::Server::Fail(uint64_t number, uint32_t error) { Say(Frame(number, std::string("\0\0\1", 3) + Big32(error) + Big32(0))); }

void ScriptedEnvd::Server::News(const std::string& records) { Say(Frame(0, std::string("\4\0\0", 3) + records)); }

void ScriptedEnvd::Server::Die() {
  std::lock_guard lock(mutex_);
  dead_ = true;
  changed_.notify_all();
}

bool ScriptedEnvd::Server::dead() {
  std::lock_guard lock(mutex_);
  return dead_;
}

ScriptedEnvd::ScriptedEnvd(Script script) : script_(std::move(script)) {
  http_server_ = std::make_unique<sandbox::Server>(sandbox::ServerOptions{}, [this](sandbox::Exchange& exchange) { Serve(exchange); });
  auto http = transport::http::HttpClient::Create({});
  if (!http) throw std::runtime_error(ToString(http.error()));
  http_ = std::move(*http);
  transport::Environment environment;
  environment.sandbox_url = "http://127.0.0.1:" + std::to_string(http_server_->port());
  environment.debug = true;
  auto endpoint = transport::SandboxEndpoint::Create("i1abc", "", environment, {});
  if (!endpoint) throw std::runtime_error(ToString(endpoint.error()));
  client_ = std::make_shared<transport::envd::Client>(*http_, *endpoint, transport::envd::Capabilities::ForVersion("0.6.13"));
}

ScriptedEnvd::~ScriptedEnvd() {
  for (const auto& server : servers_) server->Die();
  client_.reset();
  http_.reset();
  http_server_.reset();
}

int ScriptedEnvd::started() {
  std::lock_guard lock(mutex_);
  return int(servers_.size());
}

std::shared_ptr<ScriptedEnvd::Server> ScriptedEnvd::latest() {
  std::lock_guard lock(mutex_);
  return servers_.back();
}

void ScriptedEnvd::OnInitialize(int from_server, Script script) {
  std::lock_guard lock(mutex_);
  initialize_from_ = from_server;
  on_initialize_ = std::move(script);
}

std::shared_ptr<ScriptedEnvd::Server> ScriptedEnvd::Find(const sandbox::JsonMessage& process) {
  std::lock_guard lock(mutex_);
  for (const auto& server : servers_) {
    if (server->pid_ == process.Uint32("pid") && !server->dead()) return server;
  }
  return nullptr;
}

void ScriptedEnvd::Serve(sandbox::Exchange& exchange) {
  using sandbox::RpcStream;
  const std::string& path = exchange.path();
  if (path == "/process.Process/Start" || path == "/process.Process/Connect") {
    RpcStream stream(exchange, log_, path, RpcStream::Kind::kServerStream);
    if (!stream.Open()) return;
    const auto request = stream.ReceiveRequest();
    if (!request) return;
    std::shared_ptr<Server> server;
    if (path.ends_with("Start")) {
      server = std::make_shared<Server>();
      server->label_ = request->Object("process").StringMap("envs")["E2BFS_SERVER"];
      std::lock_guard lock(mutex_);
      servers_.push_back(server);
      server->number_ = int(servers_.size());
      server->pid_ = 1'000'000 + uint32_t(server->number_);
    } else {
      server = Find(request->Object("process"));
    }
    if (!server) return stream.End(sandbox::RpcError{"not_found", "no process"});
    if (!stream.Send(R"({"event":{"start":{"pid":)" + std::to_string(server->pid_) + "}}}")) return;
    Listen(stream, *server);
  } else if (path == "/process.Process/StreamInput") {
    RpcStream stream(exchange, log_, path, RpcStream::Kind::kClientStream);
    if (!stream.Open()) return;
    std::shared_ptr<Server> server;
    bool torn = false;
    std::optional<sandbox::RpcError> error;
    while (const auto message = stream.Receive(&torn, &error)) {
      if (message->Has("start")) server = Find(message->Object("start").Object("process"));
      if (!server) return stream.End(sandbox::RpcError{"not_found", "no process"});
      if (message->Has("data")) TakeInput(*server, message->Object("data").Object("input").Bytes("stdin"));
    }
    if (!torn && stream.Send("{}")) stream.End({});
  } else if (path == "/process.Process/List") {
    sandbox::ServeUnary(exchange, log_, path, [this](const sandbox::JsonMessage&) -> sandbox::RpcResult<std::string> {
      std::lock_guard lock(mutex_);
      std::string list;
      for (const auto& server : servers_) {
        if (server->dead()) continue;
        list += (list.empty() ? "" : ",") + std::string(R"({"pid":)") + std::to_string(server->pid_) +
                R"(,"config":{"cmd":"/usr/bin/perl","envs":{"E2BFS_SERVER":")" + server->label_ + "\"}}}";
      }
      return R"({"processes":[)" + list + "]}";
    });
  } else if (path == "/process.Process/SendSignal") {
    sandbox::ServeUnary(exchange, log_, path, [this](const sandbox::JsonMessage& request) -> sandbox::RpcResult<std::string> {
      auto server = Find(request.Object("process"));
      if (!server) return sandbox::RpcFailure("not_found", "no process");
      server->Die();
      return std::string("{}");
    });
  } else {
    exchange.Reply(404, {}, "");
  }
}

void ScriptedEnvd::Listen(sandbox::RpcStream& stream, Server& server) {
  std::unique_lock lock(server.mutex_);
  const int mine = ++server.listener_;
  while (true) {
    server.changed_.wait_for(lock, 20ms, [&] { return server.dead_ || !server.output_.empty() || server.listener_ != mine; });
    if (server.listener_ != mine || stream.ClientGone()) return;
    std::string chunk = server.output_.substr(0, kChunkBytes);
    server.output_.erase(0, chunk.size());
    const bool ended = server.dead_ && chunk.empty();
    server.changed_.notify_all();
    lock.unlock();
    if (ended) {
      if (stream.Send(R"({"event":{"end":{"exitCode":-1,"status":"signal: killed"}}})")) stream.End({});
      return;
    }
    if (!chunk.empty() && !stream.Send(R"({"event":{"data":{"stdout":")" + sandbox::Base64Encode(chunk) + "\"}}}")) return;
    lock.lock();
  }
}

// One thread for each way in.
void ScriptedEnvd::TakeInput(Server& server, const std::string& bytes) {
  server.input_ += bytes;
  if (!server.has_program_) {
    if (server.input_.size() < 24) return;
    const size_t whole = 24 + std::stoul(server.input_.substr(16, 8), nullptr, 16);
    if (server.input_.size() < whole) return;
    for (size_t i = 0; i < 16; i += 2) server.id_.push_back(char(std::stoul(server.input_.substr(i, 2), nullptr, 16)));
    server.input_.erase(0, whole);
    server.has_program_ = true;
  }
  while (server.input_.size() >= kHeaderBytes) {
    Fields header(std::string_view(server.input_).substr(4, 24));
    const uint32_t length = header.U32();
    header.Bytes(12);
    const auto number = uint64_t(header.I64());
    if (server.input_.size() < kHeaderBytes + length) return;
    const std::string body = server.input_.substr(kHeaderBytes, length);
    server.input_.erase(0, kHeaderBytes + length);
    Answer(server, number, body);
  }
}

void ScriptedEnvd::Answer(Server& server, uint64_t number, std::string_view body) {
  Fields fields(body);
  fields.I64();  // the low-water mark
  const uint8_t kind = fields.U8();
  if (kind == 1) return server.Say(server.Frame(number, std::string("\2\0\0", 3) + std::string(fields.Rest())));
  if (kind == 3) return server.Die();
  if (kind != 0) return;
  fields.U16();
  Request request;
  request.number = number;
  request.operation = Operation(fields.U8());
  request.arguments = std::string(fields.Text());
  Script on_initialize;
  {
    std::lock_guard lock(mutex_);
    if (server.number_ >= initialize_from_) on_initialize = on_initialize_;
  }
  if (request.operation == Operation::kInitialize) {
    if (on_initialize) return on_initialize(server, request);
    Arguments facts;
    facts.U32(server.pid_).U32(0).U32(0).U32(0).Text("user").Text("/home").Text("/root").Text("5.36").I64(0).Raw(RootAttributes());
    server.Reply(number, 0, {facts.bytes()});
  } else if (request.operation == Operation::kClose) {
    server.Reply(number, 0, {""});
  } else {
    script_(server, request);
  }
}

}  // namespace e2bfs::testing
