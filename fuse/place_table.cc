#include "fuse/place_table.h"

#include <algorithm>

namespace e2bfs::fuse {

namespace {

// A kernel that could not use an answer asks again at once; one that could believes it for some time.
constexpr std::chrono::seconds kRetryTime{1};
// While the kernel may be trying to move one, its second try is not to depend on another; once it failed, others would too.
constexpr std::chrono::seconds kCareful{1}, kCarefulAfterFailure{10};

}  // namespace

bool PlaceTable::Settle(Place& place, NodeId parent, Found found, TimePoint asked) {
  if (place.parent == parent) return true;
  if (found == Found::kMade) return false;
  if (found == Found::kListed) {
    if (place.told != parent) place.parent = place.told = 0;
    return true;
  }
  if (place.told == parent) {
    const bool moved = asked >= place.sure_from;
    place.parent = moved ? parent : 0;
    place.told = 0;
    return moved;
  }
  const TimePoint now = Clock::now();
  if (now < careful_until_) return false;
  careful_until_ = now + kCareful;
  place.parent = 0;
  place.told = parent;
  place.sure_from = now + kRetryTime;
  return true;
}

PlaceTable::NodeId PlaceTable::Referenced(NodeId parent, NodeId node, Found found, TimePoint asked) {
  std::lock_guard lock(mutex_);
  const auto seconds = seconds_.find(node);
  if (seconds != seconds_.end()) {
    for (const NodeId number : seconds->second) {
      Place& second = places_[number];
      if (second.parent != parent) continue;
      ++second.references;
      return number;
    }
  }
  const auto [known, fresh] = places_.try_emplace(node);
  Place& place = known->second;
  if (fresh) place = {.node = node, .parent = parent};
  if (Settle(place, parent, found, asked)) {
    ++place.references;
    return node;
  }
  careful_until_ = Clock::now() + kCarefulAfterFailure;
  const NodeId number = next_second_++;
  places_[number] = {.node = node, .references = 1, .parent = parent};
  seconds_[node].push_back(number);
  ++second_count_;
  return number;
}

void PlaceTable::Forgotten(NodeId number, uint64_t count) {
  std::lock_guard lock(mutex_);
  const auto found = places_.find(number);
  if (found == places_.end()) return;
  if (found->second.references > count) {
    found->second.references -= count;
    return;
  }
  const NodeId node = found->second.node;
  places_.erase(found);
  if (number < kFirstSecond) return;
  std::vector<NodeId>& seconds = seconds_[node];
  std::erase(seconds, number);
  if (seconds.empty()) seconds_.erase(node);
  --second_count_;
}

void PlaceTable::Moved(NodeId node, NodeId from_parent, NodeId to_parent) {
  for (const NodeId number : NumbersOf(node)) {
    std::lock_guard lock(mutex_);
    const auto found = places_.find(number);
    if (found == places_.end() || found->second.parent != from_parent) continue;
    found->second.parent = to_parent;
    found->second.told = 0;
    return;
  }
}

PlaceTable::NodeId PlaceTable::NodeOfSecond(NodeId number) const {
  std::lock_guard lock(mutex_);
  const auto found = places_.find(number);
  return found == places_.end() ? number : found->second.node;  // what nobody knows: ESTALE
}

std::vector<PlaceTable::NodeId> PlaceTable::NumbersOf(NodeId node) const {
  std::vector<NodeId> numbers = {node};
  if (second_count_ == 0) return numbers;
  std::lock_guard lock(mutex_);
  const auto seconds = seconds_.find(node);
  if (seconds != seconds_.end()) numbers.insert(numbers.end(), seconds->second.begin(), seconds->second.end());
  return numbers;
}

}  // namespace e2bfs::fuse
