// EarlySend: brings the first bytes of a large file to the sandbox while a program still writes it.
//
// The spool stays the whole truth: whatever happens to what was sent early, a store of all of it makes it right.
// Any thread; nothing but Take and End waits.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>

#include "cache/job_threads.h"
#include "cache/spool.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

class EarlySend : public std::enable_shared_from_this<EarlySend> {
 public:
  // Null: the other side cannot do that for this file.
  using Begin = std::function<Result<std::unique_ptr<transport::EarlyStore>>(const OpContext& ctx)>;
  EarlySend(Begin begin, std::shared_ptr<SpoolFile> spool, JobThreads& threads)
      : begin_(std::move(begin)), spool_(std::move(spool)), threads_(threads) {}

  // Bytes [0, end) are in the spool, and mostly stay as they are.
  void MoreUntil(int64_t end);
  // Bytes below were sent or may be at any moment: who changes one has to give up.
  int64_t claimed() const;
  // What was sent is of no use any more, and ends as soon as may be.
  void GiveUp();
  // Gives up, and waits until nothing of it can reach the other side any more. False: not within ctx.
  bool End(const OpContext& ctx);
  // What was sent so far, for the store that brings the rest; null if nothing was, or it failed. Waits for the piece under way, no
  // longer than it gets on, and within ctx.
  std::unique_ptr<transport::EarlyStore> Take(const OpContext& ctx);

 private:
  void Run(std::stop_token stop);
  void EndRun(std::unique_lock<std::mutex>& lock, std::unique_ptr<transport::EarlyStore> store);

  const Begin begin_;
  const std::shared_ptr<SpoolFile> spool_;
  JobThreads& threads_;

  mutable std::mutex mutex_;  // level 3, as StreamReader's
  std::condition_variable_any changed_;
  std::unique_ptr<transport::EarlyStore> store_;  // empty while the thread has it
  int64_t sent_ = 0, claimed_ = 0;
  bool queued_ = false;      // waits for a thread
  bool running_ = false;     // a thread has store_, or ends it
  bool ended_ = false;       // given up, failed, or taken
  std::stop_source given_up_;
};

}  // namespace e2bfs::cache
