// A sandbox double and a client of it, for HTTP/1.1 in clear and HTTP/2 over TLS.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "tests/sandbox/sandbox.h"
#include "transport/envd/client.h"
#include "transport/http/client.h"

namespace e2bfs::transport::envd {

struct EnvdTestOptions {
  std::string version = "0.6.13";
  std::string access_token;    // what the double requires
  std::string client_token;    // what the client begins with; "same": the double's
  bool edge_routing = false;
  std::string sandbox_id = "debug_sandbox_id";
};

// Owns a temporary directory, the double, the HTTP client, the endpoint.
class EnvdTestBench {
 public:
  EnvdTestBench(bool http2, EnvdTestOptions options = {});
  ~EnvdTestBench();

  std::unique_ptr<Client> MakeClient(ClientOptions options = {}) const;
  Client& client() { return *client_; }
  sandbox::Server& server() { return sandbox_->server(); }
  sandbox::Sandbox& sandbox() { return *sandbox_; }
  SandboxEndpoint& endpoint() { return *endpoint_; }
  http::HttpClient& http() { return *http_; }
  std::string url() const { return http2_ ? sandbox_->tls_base_url() : sandbox_->base_url(); }
  const std::string& root() const { return root_; }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  void Write(const std::string& name, const std::string& content) const;
  std::string Read(const std::string& name) const;
  int64_t Requests(const std::string& call) { return server().counts().requests[call]; }

  // Generous: machines are loaded, sanitizers slow.
  static OpContext Context() { return OpContext::Within(std::chrono::seconds(120)); }

 private:
  const bool http2_;
  const EnvdTestOptions options_;
  std::string directory_, root_;
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  std::unique_ptr<http::HttpClient> http_;
  std::shared_ptr<SandboxEndpoint> endpoint_;
  std::unique_ptr<Client> client_;
};

// Each test of a suite once for each protocol.
class EnvdProtocolTest : public testing::TestWithParam<bool> {
 protected:
  static OpContext Ctx() { return EnvdTestBench::Context(); }
};

inline std::string EnvdProtocolName(const testing::TestParamInfo<bool>& info) { return info.param ? "Http2" : "Http1"; }

}  // namespace e2bfs::transport::envd
