// Envd: the daemon's services over one machine, without the edge and the control plane. Reproduces envd's
// answers, traps included; see envd_versions.h for what differs between versions.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/sandbox/connect_server.h"
#include "tests/sandbox/envd_log.h"
#include "tests/sandbox/envd_versions.h"
#include "tests/sandbox/exchange.h"

namespace e2bfs::sandbox {

struct Account {
  std::string name;
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
  std::string home;
};

struct EnvdOptions {
  std::string root = "/";
  std::string version;
  std::string access_token;
  std::string default_user;
  std::string log_file;
  std::string command_path;  // PATH of commands, and the directory of what they name by an absolute path; empty: the machine's
  std::vector<std::string> environment;  // NAME=VALUE: the template's, which commands get
  int max_watches = 0;  // WatchDir streams and watchers at a time; 0: as many as the kernel gives
};

// What the services share. Thread-safe.
class EnvdContext {
 public:
  explicit EnvdContext(const EnvdOptions& options);

  const EnvdOptions& options() const { return options_; }
  const EnvdCapabilities& can() const { return can_; }
  EnvdLog& log() { return log_; }

  // The account of that name; nullopt if the machine has none. A default user that the machine does not have
  // stands for the user who runs the double. When that is not root, every known name acts as that user.
  std::optional<Account> FindAccount(const std::string& name) const;
  // Who an RPC acts as: the name of its Basic authorisation, else the default user, where the version has
  // one.
  RpcResult<Account> RpcAccount(const Exchange& exchange) const;
  // The user name in a Basic authorisation header, if there is one.
  static std::optional<std::string> BasicUser(const Exchange& exchange);

  // envd's ExpandAndResolve: ~ and relative paths from the home, anything else as it is.
  RpcResult<std::string> ResolvePath(const std::string& path, const Account& account) const;
  // ResolvePath, refusing with permission_denied what is outside of the fence (sandbox.h). With `follow` a
  // link at the end counts as what it points to.
  RpcResult<std::string> FencedPath(const std::string& path, const Account& account, bool follow) const;

  // envd's EnsureDirs: makes what is missing of `path`, mode 0755, owned by the account.
  RpcResult<void> EnsureDirectories(const std::string& path, const Account& account) const;
  // chown to the account; 0 or an errno.
  int ChownPath(const std::string& path, const Account& account) const;

  // True between Stop and destruction: streams end.
  std::atomic<bool> stopping = false;
  // Set when a request killed envd (a panic in a goroutine): nothing is answered any more.
  std::atomic<bool> crashed = false;

 private:
  bool InsideFence(const std::string& path, bool follow) const;
  EnvdOptions options_;
  EnvdCapabilities can_;
  EnvdLog log_;
  std::string canonical_root_;
  Account self_;  // who runs the double
};

class FilesystemService;
class WatchService;
class ProcessService;
class FilesApi;

class Envd {
 public:
  explicit Envd(const EnvdOptions& options);
  // Kills what was started and is still running. No request may be in work any more.
  ~Envd();
  // Ends streams; requests in work return soon after.
  void Stop();
  void Handle(Exchange& exchange);
  EnvdContext& context() { return *context_; }

 private:
  std::unique_ptr<EnvdContext> context_;
  std::unique_ptr<FilesystemService> filesystem_;
  std::unique_ptr<WatchService> watches_;
  std::unique_ptr<ProcessService> processes_;
  std::unique_ptr<FilesApi> files_;
};

// Go's http.NotFound.
void ReplyNotFound(Exchange& exchange);
// {"code":…,"message":…}, as the HTTP part of envd reports errors.
void ReplyJsonError(Exchange& exchange, int status, const std::string& message);

}  // namespace e2bfs::sandbox
