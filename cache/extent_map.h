// ExtentMap: a set of bytes of a file as sorted, disjoint, non-touching ranges.
// A value; the owner locks. Offsets and lengths are in bytes, never negative.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "transport/remote_fs.h"

namespace e2bfs::cache {

class ExtentMap {
 public:
  void Add(transport::Extent extent);  // an empty one changes nothing
  void Add(const ExtentMap& other);
  void Remove(transport::Extent extent);
  // Forgets every byte at or beyond `size`.
  void ClipTo(int64_t size);
  void Clear() { *this = {}; }

  bool empty() const { return ranges_.empty(); }
  int64_t end() const { return ranges_.empty() ? 0 : ranges_.rbegin()->second; }  // 0 if empty
  int64_t bytes() const { return bytes_; }
  size_t count() const { return ranges_.size(); }
  std::vector<transport::Extent> extents() const;
  // What of `extent` is in the set, in order.
  std::vector<transport::Extent> Within(transport::Extent extent) const;

 private:
  std::map<int64_t, int64_t> ranges_;  // first byte -> the byte after the last
  int64_t bytes_ = 0;                  // in all of them
};

}  // namespace e2bfs::cache
