// Sandbox: the whole double in process: envd's services, the edge's routing, and the control plane over the server core.
// The program e2bfs-test-sandbox (main.cc) is this class and option parsing.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sandbox/server.h"

namespace e2bfs::sandbox {

struct SandboxOptions {
  ServerOptions server;
  std::string root;                    // absolute; the user's home and the fence, see below
  std::string envd_version = "0.6.13";
  std::string access_token;            // required as X-Access-Token when not empty (401 otherwise)
  std::string default_user;            // envd's default user; empty: the user who runs the double
  // The control plane, on the same listeners: API key that it takes (empty: any), the sandboxes it knows.
  std::string api_key;
  struct Instance {
    std::string id;
    std::string state = "running";     // or "paused"
    std::string template_id = "base";
    std::map<std::string, std::string> metadata;
    int64_t seconds_left = 300;
  };
  std::vector<Instance> instances;     // empty: one running, id "debug_sandbox_id"
  std::string log_file;                // the log is appended to it too, when not empty
  std::string command_path;            // PATH of commands, and where what they name by an absolute path is; empty: the machine's
  std::vector<std::string> environment;  // NAME=VALUE: the template's, which commands get
  int max_watches = 0;                 // WatchDir streams and watchers at one time, refused beyond; 0: no limit
  bool edge_routing = false;           // requests need E2b-Sandbox-Id / a 49983-<id> host of a running instance, else 502 JSON
};

// Paths of the API are the machine's own paths, as with a real envd; `root` is the user's home (where empty and relative
// paths and commands start, HOME) and the fence: what does not resolve below it (links followed), /proc or /sys is refused with
// permission_denied, unless root is "/" . So commands of the process service need no translation of paths. A command
// itself is not fenced: it can do what the user who runs the double can; the double listens on loopback only.
class Sandbox {
 public:
  explicit Sandbox(SandboxOptions options);  // throws std::runtime_error with a clear text
  ~Sandbox();
  Server& server();
  std::string base_url() const;      // http://127.0.0.1:port
  std::string tls_base_url() const;  // https://localhost:port
  // What the double wrote to its log: what envd logs (unary requests whole, command lines), for tests that look for secrets.
  std::string log_text() const;
  // State of an instance, as seen by the control plane and the edge: "running", "paused", "killed".
  void SetState(const std::string& sandbox_id, const std::string& state);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace e2bfs::sandbox
