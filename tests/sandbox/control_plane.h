// The control plane's REST calls that mounting uses, and the table of sandboxes that the edge routes by.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "tests/sandbox/exchange.h"
#include "tests/sandbox/sandbox.h"

namespace e2bfs::sandbox {

// Thread-safe.
class ControlPlane {
 public:
  explicit ControlPlane(const SandboxOptions& options);
  // False if the path is not the control plane's.
  bool Handle(Exchange& exchange);
  // "running", "paused", "killed"; nullopt if there is no such sandbox. A sandbox whose time is over is
  // killed.
  std::optional<std::string> State(const std::string& sandbox_id);
  void SetState(const std::string& sandbox_id, const std::string& state);

 private:
  struct Entry {
    SandboxOptions::Instance instance;
    std::chrono::system_clock::time_point started;
    std::chrono::system_clock::time_point end;
  };
  bool Authorized(Exchange& exchange);
  void List(Exchange& exchange);
  void Detail(Exchange& exchange, const std::string& id);
  void Connect(Exchange& exchange, const std::string& id);
  void SetTimeout(Exchange& exchange, const std::string& id);
  // Call with mutex_ held.
  Entry* FindLive(const std::string& id);
  const SandboxOptions options_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_
};

}  // namespace e2bfs::sandbox
