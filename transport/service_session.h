// ServiceSession: what every part of the service tier shares: the client, the facts about the sandbox, running scripts,
// and one way from what envd or a script says to Attributes.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "transport/envd/client.h"
#include "transport/remote_fs.h"
#include "transport/service_fs.h"
#include "transport/service_names.h"
#include "transport/service_path_locks.h"
#include "transport/service_scripts.h"

namespace e2bfs::transport {

// Thread-safe.
class ServiceSession {
 public:
  static Result<std::unique_ptr<ServiceSession>> Create(std::shared_ptr<envd::Client> client, const ServiceFsOptions& options,
                                                        const OpContext& ctx);
  // Removes the stage directory, within five seconds.
  ~ServiceSession();

  envd::Client& client() { return *client_; }
  const ServiceFacts& facts() const { return facts_; }
  PathIdentities& identities() { return identities_; }
  const PathIdentities& identities() const { return identities_; }
  // Held around Locate and what is done by its answer.
  PathLocks& path_locks() { return path_locks_; }

  // In the sandbox. ENAMETOOLONG beyond what a system call takes, EINVAL for what is no path of this interface.
  Result<std::string> Absolute(const std::string& path) const;
  // The same after a look whether `node` still is what it was: ESTALE.
  Result<std::string> Locate(const Node& node) const;
  // The directory is looked at, the name only checked. `absolute_parent` may be null.
  Result<std::string> Locate(const Name& name, std::string* absolute_parent) const;
  // Our own staging directories are not shown.
  bool IsHidden(const std::string& absolute) const;

  Attributes From(const envd::EntryInfo& entry, const std::string& path) const;
  Attributes From(const ServiceStat& stat, const std::string& path) const;
  // lstat, by envd, or by a command where the path is not UTF-8.
  Result<Attributes> Stat(const std::string& path, const OpContext& ctx);
  // The same where the node has to be what it was: ESTALE.
  Result<Attributes> Stat(const Node& node, const OpContext& ctx);
  // The attributes that a change printed; asks for them where the sandbox's stat knows no nanoseconds.
  Result<Attributes> Complete(const ServiceStat& stat, const std::string& path, const OpContext& ctx);

  // Runs a script that changes nothing, repeated if need be: its output, or the error that it printed.
  Result<std::string> Ask(ServiceScript script, std::vector<std::string> arguments, const OpContext& ctx);
  // Runs a change, once. When its answer is lost it is asked for again, which repeats nothing; EIO/kBroken if that fails too.
  Result<ServiceChangeAnswer> Change(ServiceScript script, std::vector<std::string> arguments, const OpContext& ctx);

  // A new file's absolute path in the stage directory; EROFS where the sandbox has no place for one.
  Result<std::string> NewStageFile(const OpContext& ctx);
  // Best effort.
  void DiscardStageFile(const std::string& absolute);

  int64_t commands() const { return commands_.load(std::memory_order_relaxed); }

 private:
  ServiceSession(std::shared_ptr<envd::Client> client) : client_(std::move(client)) {}
  // To its end, and never killed: what copies content must not stop in the middle because an answer was lost or a deadline passed.
  Result<std::string> RunChange(const envd::ProcessConfig& process, const OpContext& ctx);
  void NoteRunning(const Error* error);  // null: it answered
  Attributes Finished(Attributes attributes, const std::string& path) const;

  std::shared_ptr<envd::Client> client_;
  ServiceFacts facts_;
  PathIdentities identities_;
  PathLocks path_locks_;
  std::atomic<int64_t> commands_{0};
  std::atomic<bool> not_running_{false};  // said the last command
  std::mutex mutex_;  // innermost; guards what follows
  uint64_t last_stage_name_ = 0;
  std::vector<std::string> finished_claims_;
  std::chrono::system_clock::time_point stage_checked_at_{};  // time that the machine was asleep counts, too
};

}  // namespace e2bfs::transport
