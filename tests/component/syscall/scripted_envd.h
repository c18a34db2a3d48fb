// An envd in which "/usr/bin/perl" is the test's: a syscall server that answers what the test wants, honest or not.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/sandbox/connect_server.h"
#include "tests/sandbox/server.h"
#include "transport/envd/client.h"
#include "transport/syscall/channel.h"

namespace e2bfs::testing {

class ScriptedEnvd {
 public:
  // One that was started. Its test's thread, and the threads of requests.
  class Server {
   public:
    int number() const { return number_; }  // 1, 2, ...
    // Into its standard output.
    void Say(const std::string& bytes);
    // A whole frame: flags as in frame.h.
    void Reply(uint64_t number, uint8_t flags, const std::vector<std::string>& results);
    void Fail(uint64_t number, uint32_t error);
    void News(const std::string& records);
    void Die();
    bool dead();

   private:
    friend class ScriptedEnvd;
    std::string Frame(uint64_t number, const std::string& body) const;
    int number_ = 0;
    uint32_t pid_ = 0;
    std::string label_, id_, input_;
    bool has_program_ = false;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string output_;
    bool dead_ = false;
    int listener_ = 0;  // the latest one hears it
  };

  struct Request {
    uint64_t number = 0;
    transport::syscall::Operation operation{};
    std::string arguments;  // of its first operation
  };
  // Gets what is not Initialize, Close or an echo.
  using Script = std::function<void(Server&, const Request&)>;

  explicit ScriptedEnvd(Script script);
  ~ScriptedEnvd();

  std::shared_ptr<transport::envd::Client> client() { return client_; }
  int started();                     // servers
  std::shared_ptr<Server> latest();
  // A server from that number on does not say who it is: it is asked by this instead.
  void OnInitialize(int from_server, Script script);
  // The attributes of /, as an answer has them.
  static std::string RootAttributes();

 private:
  void Serve(sandbox::Exchange& exchange);
  void Listen(sandbox::RpcStream& stream, Server& server);
  void TakeInput(Server& server, const std::string& bytes);
  void Answer(Server& server, uint64_t number, std::string_view body);
  std::shared_ptr<Server> Find(const sandbox::JsonMessage& process);

  const Script script_;
  Script on_initialize_;
  int initialize_from_ = 1 << 30;
  sandbox::EnvdLog log_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Server>> servers_;
  std::unique_ptr<sandbox::Server> http_server_;
  std::unique_ptr<transport::http::HttpClient> http_;
  std::shared_ptr<transport::envd::Client> client_;
};

}  // namespace e2bfs::testing
