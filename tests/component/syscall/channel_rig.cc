#include "tests/component/syscall/channel_rig.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace e2bfs::testing {

ChannelRig::ChannelRig(ChannelRigOptions options) : options_(std::move(options)) {
  std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-channel-XXXXXX").string();
  if (!mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp");
  directory_ = std::filesystem::canonical(pattern).string();
  root_ = directory_ + "/home";
  std::filesystem::create_directory(root_);
  sandbox::SandboxOptions served;
  served.root = root_;
  served.edge_routing = options_.edge_routing;
  sandbox::SandboxOptions::Instance instance;
  instance.id = "i1abc";
  served.instances = {instance};
  if (options_.http2) {
    served.server.listen.clear();
    served.server.tls_listen = "127.0.0.1:0";
  }
  sandbox_ = std::make_unique<sandbox::Sandbox>(served);
  transport::http::ClientOptions http_options;
  if (options_.http2) {
    http_options.ca_file = directory_ + "/ca.pem";
    std::ofstream(http_options.ca_file) << sandbox_->server().certificate_pem();
  }
  auto http = transport::http::HttpClient::Create(http_options);
  if (!http) throw std::runtime_error(ToString(http.error()));
  http_ = std::move(*http);
  transport::Environment environment;
  environment.sandbox_url = options_.http2 ? sandbox_->tls_base_url() : sandbox_->base_url();
  environment.debug = true;
  auto endpoint = transport::SandboxEndpoint::Create("i1abc", "", environment, {});
  if (!endpoint) throw std::runtime_error(ToString(endpoint.error()));
  client_ = std::make_shared<transport::envd::Client>(*http_, *endpoint, transport::envd::Capabilities::ForVersion("0.6.13"));
  Mount();
}

ChannelRig::~ChannelRig() {
  fs_.reset();
  client_.reset();
  http_.reset();
  sandbox_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void ChannelRig::Mount() {
  fs_.reset();
  auto fs = transport::SyscallFs::Create(client_, {.channel = options_.channel}, OpContext::Within(std::chrono::minutes(1)));
  if (!fs) throw std::runtime_error(ToString(fs.error()));
  fs_ = std::move(*fs);
}

void ChannelRig::Write(const std::string& name, const std::string& content) const { std::ofstream(Path(name)) << content; }

std::string ChannelRig::Content(const std::string& name) const {
  std::ifstream file(Path(name));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

int64_t ChannelRig::Status(const std::string& key) const {
  for (const auto& [name, value] : fs_->Status()) {
    if (name == key) return std::stoll(value);
  }
  ADD_FAILURE() << "no status " << key;
  return -1;
}

pid_t ChannelRig::ServerPid() const {
  for (const auto& [name, value] : fs_->Status()) {
    if (name == "syscall server") return static_cast<pid_t>(std::stol(value.substr(value.find("pid ") + 4)));
  }
  return -1;
}

std::vector<pid_t> ChannelRig::Processes() {
  std::vector<pid_t> pids;
  auto processes = client_->ListProcesses(OpContext::Within(std::chrono::seconds(30)));
  EXPECT_TRUE(processes) << (processes ? "" : ToString(processes.error()));
  if (processes) {
    for (const auto& process : *processes) pids.push_back(static_cast<pid_t>(process.pid));
  }
  return pids;
}

int64_t ChannelRig::Requests(const std::string& part) {
  int64_t sum = 0;
  for (const auto& [name, count] : sandbox_->server().counts().requests) {
    if (name.find(part) != std::string::npos) sum += count;
  }
  return sum;
}

void ChannelRig::Fault(const std::string& match, const std::string& action, int64_t at_byte, int count, int64_t delay_ms) {
  sandbox::Fault fault;
  fault.match = match;
  fault.action = action;
  fault.at_byte = at_byte;
  fault.count = count;
  fault.delay_ms = delay_ms;
  sandbox_->server().AddFault(std::move(fault));
}

}  // namespace e2bfs::testing
