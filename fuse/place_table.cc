#include "fuse/place_table.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace e2bfs::fuse {

namespace {

// A kernel that could not use an answer asks again at once; one that could believes it for some time.
constexpr std::chrono::seconds kRetryTime{1};
// While the kernel may be trying to move one, its second try is not to depend on another; once it failed, others would too.
constexpr std::chrono::seconds kCareful{1}, kCarefulAfterFailure{10};
// After the answer to a rename, the kernel does it.
constexpr std::chrono::seconds kRenameTime{2};
constexpr size_t kMostSpots = 64;
// Further away from the root is as good as this far.
constexpr size_t kMostLookedAt = 10'000;

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

std::vector<PlaceTable::Spots::iterator> PlaceTable::SpotsAt(NodeId parent, const std::string& name) const {
  std::vector<Spots::iterator> found;
  for (auto spot = spots_.lower_bound({.parent = parent, .name = name}); spot != spots_.end(); ++spot) {
    if (spot->parent != parent || spot->name != name) break;
    found.push_back(spot);
  }
  return found;
}

bool PlaceTable::AddSpot(NodeId number, Place& place, NodeId parent, const std::string& name) {
  const auto [spot, fresh] = spots_.insert({.parent = parent, .name = name, .number = number});
  spot->until = TimePoint::max();
  if (!fresh) return true;
  std::erase_if(place.spots, [&, now = Clock::now()](const Spots::iterator& old) {
    if (old->until > now) return false;
    spots_.erase(old);
    return true;
  });
  if (place.spots.size() >= kMostSpots) {
    spots_.erase(spot);
    return false;
  }
  place.spots.push_back(spot);
  return true;
}

void PlaceTable::Told(NodeId parent, const std::string& name, NodeId number) {
  for (const auto& spot : SpotsAt(parent, name)) spot->newest = spot->number == number;
}

size_t PlaceTable::Distance(NodeId number) const {
  const TimePoint now = Clock::now();
  std::vector<NodeId> level{number}, above;
  std::unordered_set<NodeId> seen{number};
  for (size_t distance = 0;; ++distance) {
    above.clear();
    for (const NodeId at : level) {
      const auto place = places_.find(at);
      // The root is not in the table; what else is not may be anywhere.
      if (place == places_.end() || place->second.anywhere || place->second.spots.empty()) return distance;
      for (const auto& spot : place->second.spots) {
        if (spot->until > now && seen.insert(spot->parent).second) above.push_back(spot->parent);
      }
    }
    if (above.empty()) return 0;
    if (seen.size() > kMostLookedAt) return distance;
    level.swap(above);
  }
}

size_t PlaceTable::DepthOf(NodeId number) const {
  std::lock_guard lock(mutex_);
  const size_t distance = Distance(number);
  return distance > 0 ? distance - 1 : 0;
}

bool PlaceTable::MayBeTold(NodeId number, Place& place, NodeId parent, const std::string& name) {
  const auto known = spots_.find({.parent = parent, .name = name, .number = number});
  if (known != spots_.end() && known->until == TimePoint::max()) return true;
  return Distance(parent) + 1 >= Distance(number) && AddSpot(number, place, parent, name);
}

PlaceTable::NodeId PlaceTable::Referenced(NodeId parent, const std::string& name, NodeId node, Found found, TimePoint asked) {
  std::lock_guard lock(mutex_);
  const auto seconds = seconds_.find(node);
  if (seconds != seconds_.end()) {
    for (const NodeId number : seconds->second) {
      Place& second = places_[number];
      if (second.parent != parent) continue;
      if (!AddSpot(number, second, parent, name)) second.anywhere = true;
      Told(parent, name, number);
      ++second.references;
      return number;
    }
  }
  const auto [known, fresh] = places_.try_emplace(node);
  Place& place = known->second;
  if (fresh) {
    place = {.node = node, .parent = parent};
    if (found == Found::kMade) place.settled_from = Clock::now() + kRetryTime;
    AddSpot(node, place, parent, name);
  }
  // The kernel may still be about to put in its place what was made just now: told of another one meanwhile, it could not, and the program's mkdir
  // would fail.
  const bool unsettled = place.parent != parent && Clock::now() < place.settled_from;
  if (!unsettled && MayBeTold(node, place, parent, name)) {
    if (Settle(place, parent, found, asked)) {
      Told(parent, name, node);
      ++place.references;
      return node;
    }
    careful_until_ = Clock::now() + kCarefulAfterFailure;
  }
  const NodeId number = next_second_++;
  Place& second = places_[number] = {.node = node, .references = 1, .parent = parent};
  AddSpot(number, second, parent, name);
  Told(parent, name, number);
  seconds_[node].push_back(number);
  ++second_count_;
  return number;
}

void PlaceTable::LinkReferenced(NodeId parent, const std::string& name, NodeId link) {
  std::lock_guard lock(mutex_);
  Place& place = places_[link];
  place.node = link;
  ++place.references;
  if (!AddSpot(link, place, parent, name)) place.anywhere = true;
  Told(parent, name, link);
}

void PlaceTable::OtherReferenced(NodeId parent, const std::string& name) {
  std::lock_guard lock(mutex_);
  Told(parent, name, 0);
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
  for (const auto& spot : found->second.spots) spots_.erase(spot);
  places_.erase(found);
  // A directory that the kernel does not have has nothing in it.
  for (auto spot = spots_.lower_bound({.parent = number}); spot != spots_.end() && spot->parent == number; spot = spots_.erase(spot)) {
    std::erase(places_[spot->number].spots, spot);
  }
  if (number < kFirstSecond) return;
  std::vector<NodeId>& seconds = seconds_[node];
  std::erase(seconds, number);
  if (seconds.empty()) seconds_.erase(node);
  --second_count_;
}

void PlaceTable::Renaming(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, bool exchange) {
  std::lock_guard lock(mutex_);
  // What the kernel has by a name is known for sure only by itself: all that it may be.
  const auto there = SpotsAt(parent, name), back = exchange ? SpotsAt(new_parent, new_name) : std::vector<Spots::iterator>{};
  const auto may_go = [&](const std::vector<Spots::iterator>& which, NodeId to, const std::string& as) {
    for (const auto& spot : which) {
      Place& place = places_[spot->number];
      if (!AddSpot(spot->number, place, to, as)) place.anywhere = true;
    }
  };
  may_go(there, new_parent, new_name);
  may_go(back, parent, name);
}

void PlaceTable::Arrived(NodeId number, NodeId parent, const std::string& name, NodeId new_parent) {
  if (number == 0) return;
  Place& place = places_[number];
  if (place.parent == parent) {
    place.parent = new_parent;
    place.told = 0;
  }
  const auto left = spots_.find({.parent = parent, .name = name, .number = number});
  if (left != spots_.end()) left->until = Clock::now() + kRenameTime;
}

void PlaceTable::Renamed(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, bool exchange) {
  if (parent == new_parent && name == new_name) return;
  std::lock_guard lock(mutex_);
  const auto newest = [&](NodeId in, const std::string& as) -> NodeId {
    for (const auto& spot : SpotsAt(in, as)) {
      if (spot->newest) return spot->number;
    }
    return 0;
  };
  const NodeId moved = newest(parent, name), other = exchange ? newest(new_parent, new_name) : 0;
  Arrived(moved, parent, name, new_parent);
  Arrived(other, new_parent, new_name, parent);
  Told(new_parent, new_name, moved);
  Told(parent, name, other);
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
