// A small HTTP/1.1 client over a raw socket, one connection for each request, and a sandbox to ask.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sandbox/sandbox.h"

namespace e2bfs::sandbox::test {

struct EnvdAnswer {
  int status = 0;                              // 0: the connection ended before a head
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
};

struct EnvdRequest {
  std::string method = "GET";
  std::string target;
  std::vector<std::string> headers;  // "Name: value"; Host is 127.0.0.1 if none is given
  std::string body;
};

EnvdAnswer AskEnvd(int port, const EnvdRequest& request);
// One envelope of the Connect protocol.
std::string EnvdEnvelope(const std::string& json);

// An open server stream: what it sent so far, until the object goes.
class EnvdStream {
 public:
  EnvdStream(int port, const std::string& procedure, const std::string& json,
             const std::vector<std::string>& headers = {});
  ~EnvdStream();
  EnvdStream(const EnvdStream&) = delete;
  EnvdStream& operator=(const EnvdStream&) = delete;
  // Reads until what was received contains `text`; false at the stream's end or after 60 s.
  bool ReadUntil(const std::string& text);
  const std::string& received() const { return received_; }

 private:
  int fd_;
  std::string received_;
};

class SandboxEnvdTest : public ::testing::Test {
 protected:
  SandboxEnvdTest();
  ~SandboxEnvdTest() override;
  void Begin();  // with options_
  EnvdAnswer Get(const std::string& target, const std::vector<std::string>& headers = {});
  EnvdAnswer Post(const std::string& target, const std::string& body,
                  const std::vector<std::string>& headers = {});
  EnvdAnswer Rpc(const std::string& method, const std::string& json,
                 const std::vector<std::string>& headers = {});
  int port() const { return sandbox_->server().port(); }

  std::string root_;
  SandboxOptions options_;
  std::unique_ptr<Sandbox> sandbox_;
};

}  // namespace e2bfs::sandbox::test
