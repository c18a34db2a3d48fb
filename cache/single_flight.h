// SingleFlight: identical questions asked at the same time become one.
// Any thread. The first caller asks; others wait for its answer within their own deadline and right to stop, and ask
// themselves if the first was cancelled or ran out of its own time.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::cache {

// Waits for `done` on `lock`: true, or false when ctx ended first.
template <typename Condition>
bool WaitWithin(std::condition_variable_any& changed, std::unique_lock<std::mutex>& lock, const OpContext& ctx,
                Condition done) {
  if (ctx.deadline == TimePoint::max()) return changed.wait(lock, ctx.stop, done);
  return changed.wait_until(lock, ctx.stop, ctx.deadline, done);
}

// Why a wait under ctx ended without what was waited for.
inline tl::unexpected<Error> WaitEnded(const OpContext& ctx, std::string what) {
  if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, std::move(what));
  return Failure(ErrorKind::kTimeout, ETIMEDOUT, std::move(what));
}

template <typename T>
class SingleFlight {
 public:
  // `ask` is called by this thread without locks, or not at all if another thread is asking the same.
  template <typename Ask>
  Result<T> Do(const std::string& key, const OpContext& ctx, Ask ask) {
    for (;;) {
      std::shared_ptr<Flight> flight;
      {
        std::unique_lock lock(mutex_);
        auto [at, first] = flights_.try_emplace(key);
        if (first) {
          at->second = std::make_shared<Flight>();
          flight = at->second;
        } else {
          flight = at->second;
          if (!WaitWithin(flight->landed, lock, ctx, [&] { return flight->answer.has_value(); })) {
            return WaitEnded(ctx, "waiting for the same question of another thread");
          }
          const Result<T>& answer = *flight->answer;
          // The other thread's end is not ours.
          if (answer || (answer.error().kind != ErrorKind::kCancelled && answer.error().kind != ErrorKind::kTimeout)) {
            return answer;
          }
          continue;
        }
      }
      Result<T> answer = ask();
      std::lock_guard lock(mutex_);
      flight->answer = answer;
      flights_.erase(key);
      flight->landed.notify_all();
      return answer;
    }
  }

 private:
  struct Flight {
    std::optional<Result<T>> answer;
    std::condition_variable_any landed;
  };
  std::mutex mutex_;  // a leaf: nothing else is locked below it
  std::map<std::string, std::shared_ptr<Flight>> flights_;
};

}  // namespace e2bfs::cache
