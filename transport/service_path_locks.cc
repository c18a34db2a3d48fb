#include "transport/service_path_locks.h"

#include <algorithm>
#include <utility>

#include "transport/base/waiting.h"

namespace e2bfs::transport {

namespace {

bool IsAtOrBelow(const std::string& path, const std::string& above) {
  return above.empty() || (path.starts_with(above) && (path.size() == above.size() || path[above.size()] == '/'));
}

}  // namespace

bool PathLocks::InTheWay(const Claim& one, const Claim& other) {
  auto moves = [](const Claim& changing, const Claim& used) {
    return changing.changing && std::any_of(changing.paths.begin(), changing.paths.end(), [&](const std::string& changed) {
             return std::any_of(used.paths.begin(), used.paths.end(), [&](const std::string& path) { return IsAtOrBelow(path, changed); });
           });
  };
  return moves(one, other) || moves(other, one);
}

Result<PathLocks::Held> PathLocks::Take(Claim claim, const OpContext& ctx) {
  std::unique_lock lock(mutex_);
  const auto mine = claims_.insert(claims_.end(), std::move(claim));
  auto free = [&] { return std::none_of(claims_.begin(), mine, [&](const Claim& earlier) { return InTheWay(earlier, *mine); }); };
  if (WaitWithin(changed_, lock, ctx, free)) return Held(*this, mine);
  claims_.erase(mine);
  changed_.notify_all();
  return WaitEnded(ctx, "waiting for what is done with the path");
}

void PathLocks::Drop(std::list<Claim>::iterator claim) {
  {
    std::lock_guard lock(mutex_);
    claims_.erase(claim);
  }
  changed_.notify_all();
}

}  // namespace e2bfs::transport
