// A syscall tier on a test sandbox, with short times, and ways to look behind it.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/sandbox/sandbox.h"
#include "transport/envd/client.h"
#include "transport/syscall/syscall_fs.h"

namespace e2bfs::testing {

struct ChannelRigOptions {
  bool http2 = false;
  bool edge_routing = false;
  transport::syscall::ChannelOptions channel;
};

class ChannelRig {
 public:
  explicit ChannelRig(ChannelRigOptions options);
  ~ChannelRig();

  // Mounts (again).
  void Mount();
  void Unmount() { fs_.reset(); }
  transport::RemoteFs& fs() { return *fs_; }
  sandbox::Sandbox& sandbox() { return *sandbox_; }
  transport::envd::Client& client() { return *client_; }
  const std::string& root() const { return root_; }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  void Write(const std::string& name, const std::string& content) const;
  std::string Content(const std::string& name) const;

  int64_t Status(const std::string& key) const;  // a number of the file system's status
  int64_t Servers() const { return Status("servers started"); }
  int64_t Reattached() const { return Status("reattached"); }
  pid_t ServerPid() const;
  std::vector<pid_t> Processes();  // that the sandbox knows
  // Whether it comes to that in time; polled.
  template <typename Condition>
  static bool Eventually(Condition condition, int timeout_ms = 30'000) {
    for (int waited = 0; waited < timeout_ms; waited += 5) {
      if (condition()) return true;
      usleep(5000);
    }
    return condition();
  }
  int64_t Requests(const std::string& part);  // counted at the sandbox, whose "METHOD path" contains it
  void Fault(const std::string& match, const std::string& action, int64_t at_byte, int count = 1, int64_t delay_ms = 0);
  // Every connection is cut, now.
  void CutAll() { sandbox_->server().ResetAll(); }

 private:
  const ChannelRigOptions options_;
  std::string directory_, root_;
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  std::unique_ptr<transport::http::HttpClient> http_;
  std::shared_ptr<transport::envd::Client> client_;
  std::unique_ptr<transport::RemoteFs> fs_;
};

}  // namespace e2bfs::testing
