// What the tests of the HTTP client share: a server with a few plain resources, and clients that trust it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "tests/sandbox/server.h"
#include "transport/http/client.h"

namespace e2bfs::http_test {

// Removed with everything in it at the end of its life.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A server on loopback, in clear and by TLS, with:
//   GET  /bytes?n=N    N bytes, content-length given      GET /stream?n=N  N bytes without a length
//   POST /echo         the request's body                 POST /length     how long the request's body was
//   POST /ignore       answers 413 without reading        GET /gzip?n=N    N bytes, gzip
//   GET  /hold         nothing until the client goes       HEAD, GET /empty 204
//   GET  /big-head?n=N  N headers of 40 bytes              POST /talk        each piece of the request as it comes
//   GET  /silent       a head, then nothing until the client goes
class TestServer {
 public:
  explicit TestServer(sandbox::ServerOptions options = {});
  sandbox::Server& server() { return *server_; }
  std::string origin() const;      // http://
  std::string tls_origin() const;  // https://localhost
  const std::string& ca_file() const { return ca_file_; }

 private:
  TemporaryDirectory directory_;
  std::string ca_file_;
  std::unique_ptr<sandbox::Server> server_;
};

sandbox::Fault MakeFault(const std::string& match, const std::string& action, int skip = 0, int count = 1,
                         int64_t at_byte = 0);

// The test's body bytes: not periodic in any power of two.
std::string Pattern(size_t size);

// Polls until it holds; false after 60 s.
bool Eventually(const std::function<bool()>& condition);

OpContext Soon(ServiceClass service_class = ServiceClass::kMetadata);  // within 120 s

// Reads to the end; the error if there is one.
Result<std::string> ReadAll(transport::http::Exchange& exchange);

enum class Wire { kHttp1Clear, kHttp1Tls, kHttp2 };
std::string WireName(const ::testing::TestParamInfo<Wire>& info);

class WireTest : public ::testing::TestWithParam<Wire> {
 protected:
  // A client for this protocol; `change` may adjust the options.
  std::unique_ptr<transport::http::HttpClient> MakeClient(
      const std::function<void(transport::http::ClientOptions&)>& change = {});
  std::string origin() const { return GetParam() == Wire::kHttp1Clear ? test_server_.origin() : test_server_.tls_origin(); }
  transport::http::Request Get(const std::string& target) const;
  transport::http::Request Post(const std::string& target, std::string body) const;
  sandbox::Server& server() { return test_server_.server(); }
  bool http2() const { return GetParam() == Wire::kHttp2; }

  TestServer test_server_;
};

}  // namespace e2bfs::http_test
