// PathLocks: on the service tier an object is a path, so a path has to lead where it leads for as long as a request works by it. Whoever
// uses paths waits for the changes of what they lead to that this client has begun (rename, unlink, rmdir), and they for him. What is done
// inside the sandbox is not held up.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::transport {

// Thread-safe. First come, first served among those that are in each other's way, so nobody starves. A thread that holds something asks
// for nothing more: it could wait for itself.
class PathLocks {
  struct Claim {
    std::vector<std::string> paths;
    bool changing;
  };

 public:
  class Held {
   public:
    Held(PathLocks& locks, std::list<Claim>::iterator claim) : locks_(&locks), claim_(claim) {}
    Held(Held&& other) noexcept : locks_(std::exchange(other.locks_, nullptr)), claim_(other.claim_) {}
    Held& operator=(Held&&) = delete;
    ~Held() {
      if (locks_) locks_->Drop(claim_);
    }

   private:
    PathLocks* locks_;
    std::list<Claim>::iterator claim_;
  };

  // Paths relative to the mounted directory ("" is that directory). EINTR, ETIMEDOUT as ctx says.
  Result<Held> Use(std::vector<std::string> paths, const OpContext& ctx) { return Take({std::move(paths), false}, ctx); }
  // For a change of what these paths, and those below them, lead to.
  Result<Held> Change(std::vector<std::string> paths, const OpContext& ctx) { return Take({std::move(paths), true}, ctx); }

 private:
  Result<Held> Take(Claim claim, const OpContext& ctx);
  void Drop(std::list<Claim>::iterator claim);
  static bool InTheWay(const Claim& one, const Claim& other);

  std::mutex mutex_;  // innermost
  std::condition_variable_any changed_;
  std::list<Claim> claims_;  // granted or waiting, in the order in which they came: one is granted when no earlier one is in its way
};

}  // namespace e2bfs::transport
