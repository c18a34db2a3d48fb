// PlaceTable: where the kernel has each directory, and by which number.
//
// To the kernel a directory has one place. When a program in the sandbox moved it, the kernel moves it too, as soon as it finds it below another
// directory; but only if it gets the locks for that at once (d_splice_alias in fs/dcache.c). If not, and not either when it asks a second time, the
// program's call fails with ESTALE, which no local disk would say. So when the kernel asks again for what it was just told, it is given
// another number for the same directory: to the kernel a second directory, with the same content, that needs not be moved.
//
// Most mounts never have one. Elsewhere "number" is what the kernel calls a node, "node" what CachedFs calls it: they differ here only.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cache/cached_fs.h"
#include "transport/base/context.h"

namespace e2bfs::fuse {

// Any thread may call it; nothing blocks.
class PlaceTable {
 public:
  using NodeId = cache::NodeId;

  enum class Found {
    kLookedUp,  // by name: if the kernel cannot use the answer it asks again, at once
    kListed,    // if the kernel cannot use it, nobody is told
    kMade,      // just now: if the kernel cannot use the answer the program's mkdir fails, although it was done
  };
  // The kernel asked at that time, and is given one reference to a directory that is in `parent` (its number): the number to give it by.
  NodeId Referenced(NodeId parent, NodeId node, Found found, TimePoint asked);
  void Forgotten(NodeId number, uint64_t count);
  // The kernel moved it, since it was renamed through the mount.
  void Moved(NodeId node, NodeId from_parent, NodeId to_parent);

  NodeId NodeOf(NodeId number) const { return number < kFirstSecond ? number : NodeOfSecond(number); }
  // All numbers that the kernel has for the node; itself where it is no directory, or has but one.
  std::vector<NodeId> NumbersOf(NodeId node) const;

 private:
  // Numbers from here on are second ones, never used again. CachedFs counts from 1.
  static constexpr NodeId kFirstSecond = NodeId{1} << 63;

  struct Place {
    NodeId node = 0;
    uint64_t references = 0;
    NodeId parent = 0;    // the number of the directory that the kernel has it in; 0: not known
    NodeId told = 0;      // the kernel was told of this other one, and would ask again before `sure_from` if it could not move it there
    TimePoint sure_from{};
  };

  NodeId NodeOfSecond(NodeId number) const;
  // mutex_ held. False: the kernel could not move the directory there, or it might not.
  bool Settle(Place& place, NodeId parent, Found found, TimePoint asked);

  mutable std::mutex mutex_;  // a leaf
  std::unordered_map<NodeId, Place> places_;               // by number
  std::unordered_map<NodeId, std::vector<NodeId>> seconds_;  // by node
  std::atomic<size_t> second_count_{0};
  NodeId next_second_ = kFirstSecond;
  TimePoint careful_until_{};
};

}  // namespace e2bfs::fuse
