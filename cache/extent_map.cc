#include "cache/extent_map.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace e2bfs::cache {

void ExtentMap::Add(transport::Extent extent) {
  if (extent.length <= 0) return;
  int64_t begin = extent.offset;
  int64_t end = extent.end();
  auto at = ranges_.upper_bound(begin);
  if (at != ranges_.begin() && std::prev(at)->second >= begin) --at;  // touches the one before
  while (at != ranges_.end() && at->first <= end) {
    begin = std::min(begin, at->first);
    end = std::max(end, at->second);
    bytes_ -= at->second - at->first;
    at = ranges_.erase(at);
  }
  ranges_.emplace_hint(at, begin, end);
  bytes_ += end - begin;
}

void ExtentMap::Add(const ExtentMap& other) {
  for (const auto& [begin, end] : other.ranges_) Add(transport::Extent{begin, end - begin});
}

void ExtentMap::Remove(transport::Extent extent) {
  if (extent.length <= 0) return;
  const int64_t begin = extent.offset;
  const int64_t end = extent.end();
  auto at = ranges_.upper_bound(begin);
  if (at != ranges_.begin() && std::prev(at)->second > begin) --at;
  while (at != ranges_.end() && at->first < end) {
    const auto [first, last] = *at;
    at = ranges_.erase(at);
    if (first < begin) ranges_.emplace(first, begin);
    if (last > end) ranges_.emplace(end, last);
    bytes_ -= std::min(last, end) - std::max(first, begin);
  }
}

void ExtentMap::ClipTo(int64_t size) {
  Remove(transport::Extent{size, std::numeric_limits<int64_t>::max() - size});
}

std::vector<transport::Extent> ExtentMap::extents() const {
  std::vector<transport::Extent> all;
  all.reserve(ranges_.size());
  for (const auto& [begin, end] : ranges_) all.push_back(transport::Extent{begin, end - begin});
  return all;
}

std::vector<transport::Extent> ExtentMap::Within(transport::Extent extent) const {
  std::vector<transport::Extent> found;
  if (extent.length <= 0) return found;
  auto at = ranges_.upper_bound(extent.offset);
  if (at != ranges_.begin() && std::prev(at)->second > extent.offset) --at;
  for (; at != ranges_.end() && at->first < extent.end(); ++at) {
    const int64_t begin = std::max(at->first, extent.offset);
    const int64_t end = std::min(at->second, extent.end());
    found.push_back(transport::Extent{begin, end - begin});
  }
  return found;
}

}  // namespace e2bfs::cache
