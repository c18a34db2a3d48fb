// Waiting on a condition within an OpContext, and how long to wait.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <string>
#include <utility>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs {

// Waits for `done` on `lock`: true, or false when ctx ended first.
template <typename Condition>
bool WaitWithin(std::condition_variable_any& changed, std::unique_lock<std::mutex>& lock, const OpContext& ctx, Condition done) {
  if (ctx.deadline == TimePoint::max()) return changed.wait(lock, ctx.stop, done);
  return changed.wait_until(lock, ctx.stop, ctx.deadline, done);
}

// Why a wait under ctx ended without what was waited for.
inline tl::unexpected<Error> WaitEnded(const OpContext& ctx, std::string what) {
  if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, std::move(what));
  return Failure(ErrorKind::kTimeout, ETIMEDOUT, std::move(what));
}

// 0.5 to 1 of it: what failed together does not come back together.
inline std::chrono::milliseconds WithJitter(std::chrono::milliseconds wait) {
  thread_local std::minstd_rand generator{std::random_device{}()};
  return std::chrono::milliseconds(std::uniform_int_distribution<int64_t>(wait.count() / 2, wait.count())(generator));
}

}  // namespace e2bfs
