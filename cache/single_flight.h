// SingleFlight: identical questions asked at the same time become one.
// Any thread. The first caller asks; others wait for its answer within their own deadline and right to stop, and ask
// themselves if the first was cancelled or ran out of its own time.
#pragma once

#include <cerrno>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/base/waiting.h"

namespace e2bfs::cache {

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
      std::optional<Result<T>> answer;
      const Landing landing{*this, key, *flight, answer};
      answer = ask();
      return *answer;
    }
  }

 private:
  struct Flight {
    std::optional<Result<T>> answer;
    std::condition_variable_any landed;
  };
  // Also when ask() throws: the others ask themselves then.
  struct Landing {
    ~Landing() {
      std::lock_guard lock(flights.mutex_);
      if (!answer) answer = Failure(ErrorKind::kCancelled, EINTR, "the same question of another thread was given up");
      flight.answer = std::move(answer);
      flights.flights_.erase(key);
      flight.landed.notify_all();
    }
    SingleFlight& flights;
    const std::string& key;
    Flight& flight;
    std::optional<Result<T>>& answer;
  };
  std::mutex mutex_;  // a leaf: nothing else is locked below it
  std::map<std::string, std::shared_ptr<Flight>> flights_;
};

}  // namespace e2bfs::cache
