#include "tests/component/envd/envd_fixture.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace e2bfs::transport::envd {

EnvdTestBench::EnvdTestBench(bool http2, EnvdTestOptions options) : http2_(http2), options_(std::move(options)) {
  char pattern[] = "/tmp/e2bfs-envd-XXXXXX";
  if (mkdtemp(pattern) == nullptr) throw std::runtime_error("mkdtemp");
  directory_ = std::filesystem::canonical(pattern);
  root_ = directory_ + "/root";
  std::filesystem::create_directory(root_);

  sandbox::SandboxOptions served;
  served.root = root_;
  served.envd_version = options_.version;
  served.access_token = options_.access_token;
  served.edge_routing = options_.edge_routing;
  served.server.tls_listen = "127.0.0.1:0";
  sandbox::SandboxOptions::Instance instance;
  instance.id = options_.sandbox_id;
  served.instances = {instance};
  sandbox_ = std::make_unique<sandbox::Sandbox>(served);

  const std::string ca_file = directory_ + "/ca.pem";
  std::ofstream(ca_file) << server().certificate_pem();
  http::ClientOptions http_options;
  http_options.ca_file = ca_file;
  auto http = http::HttpClient::Create(http_options);
  if (!http) throw std::runtime_error(ToString(http.error()));
  http_ = std::move(*http);

  Environment environment;
  environment.sandbox_url = url();
  environment.debug = true;
  const std::string token = options_.client_token == "same" ? options_.access_token : options_.client_token;
  auto endpoint = SandboxEndpoint::Create(options_.sandbox_id, "", environment, {Secret(token), {}});
  if (!endpoint) throw std::runtime_error(ToString(endpoint.error()));
  endpoint_ = *endpoint;
  // An old envd needs a user that exists here: whoever runs the tests.
  ClientOptions client_options;
  if (const passwd* self = getpwuid(geteuid()); self != nullptr) client_options.user = self->pw_name;
  client_ = MakeClient(client_options);
}

EnvdTestBench::~EnvdTestBench() {
  client_.reset();
  http_.reset();
  sandbox_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::unique_ptr<Client> EnvdTestBench::MakeClient(ClientOptions options) const {
  return std::make_unique<Client>(*http_, endpoint_, Capabilities::ForVersion(options_.version), std::move(options));
}

void EnvdTestBench::Write(const std::string& name, const std::string& content) const {
  std::ofstream file(Path(name), std::ios::binary);
  file << content;
}

std::string EnvdTestBench::Read(const std::string& name) const {
  std::ifstream file(Path(name), std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

}  // namespace e2bfs::transport::envd
