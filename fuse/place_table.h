// PlaceTable: where the kernel has each directory, and by which number; and where it has each symbolic link.
//
// To the kernel a directory has one place. When a program in the sandbox moved it, the kernel moves it too, as soon as it finds it below another
// directory; but only if it gets the locks for that at once (d_splice_alias in fs/dcache.c). If not, and not either when it asks a second time, the
// program's call fails with ESTALE, which no local disk would say. So when the kernel asks again for what it was just told, it is given
// another number for the same directory: to the kernel a second directory, with the same content, that needs not be moved.
//
// The kernel follows ".." by its own places, and the sandbox says where things are: if it could make a directory seem deeper than the kernel
// has it, a link in it would lead out of the mount. So everything that the kernel was told stays a spot where it may have the object, until it
// cannot be there any more, and the spot nearest to the root counts (DepthOf). It never gets nearer by what the sandbox says: a directory that
// was moved towards the root inside is given by another number, since a link's text may be on its way to the kernel already. Only renames
// through the mount bring one nearer, from before they are asked for.
//
// Most mounts never have a second number. Elsewhere "number" is what the kernel calls a node, "node" what CachedFs calls it: they differ here only.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
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
  NodeId Referenced(NodeId parent, const std::string& name, NodeId node, Found found, TimePoint asked);
  // The same of a symbolic link, which may be in several directories, and of anything else.
  void LinkReferenced(NodeId parent, const std::string& name, NodeId link);
  void OtherReferenced(NodeId parent, const std::string& name);
  void Forgotten(NodeId number, uint64_t count);
  // A rename through the mount: before it is asked for, and after it was done, before the kernel is told so.
  void Renaming(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, bool exchange);
  void Renamed(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, bool exchange);

  // So many directories, at least, are between the root and the object: so many ".." lead from the one that holds it to the root.
  size_t DepthOf(NodeId number) const;

  NodeId NodeOf(NodeId number) const { return number < kFirstSecond ? number : NodeOfSecond(number); }
  // All numbers that the kernel has for the node; itself where it is no directory, or has but one.
  std::vector<NodeId> NumbersOf(NodeId node) const;

 private:
  // Numbers from here on are second ones, never used again. CachedFs counts from 1.
  static constexpr NodeId kFirstSecond = NodeId{1} << 63;

  // The kernel may have the object by that name in that directory (its number).
  struct Spot {
    NodeId parent = 0;
    std::string name{};
    NodeId number = 0;
    mutable bool newest = false;                   // it was told of nothing else by that name since
    mutable TimePoint until = TimePoint::max();    // when it was renamed from there and the kernel has done it
    friend bool operator<(const Spot& a, const Spot& b) {
      return std::tie(a.parent, a.name, a.number) < std::tie(b.parent, b.name, b.number);
    }
  };
  using Spots = std::set<Spot>;

  struct Place {
    NodeId node = 0;
    uint64_t references = 0;
    NodeId parent = 0;    // of a directory: the number of the one that the kernel has it in; 0: not known
    NodeId told = 0;      // the kernel was told of this other one, and would ask again before `sure_from` if it could not move it there
    TimePoint sure_from{};
    TimePoint settled_from{};  // of one that was made through the mount: the kernel has it by then
    std::vector<Spots::iterator> spots{};
    bool anywhere = false;  // there were too many of them
  };

  NodeId NodeOfSecond(NodeId number) const;
  // The rest with mutex_ held. False: the kernel could not move the directory there, or it might not.
  bool Settle(Place& place, NodeId parent, Found found, TimePoint asked);
  // Whether the kernel may be told that the directory is there: it would not get nearer to the root.
  bool MayBeTold(NodeId number, Place& place, NodeId parent, const std::string& name);
  bool AddSpot(NodeId number, Place& place, NodeId parent, const std::string& name);  // false: it has too many
  std::vector<Spots::iterator> SpotsAt(NodeId parent, const std::string& name) const;
  void Told(NodeId parent, const std::string& name, NodeId number);  // 0: of none that is in the table
  void Arrived(NodeId number, NodeId parent, const std::string& name, NodeId new_parent);
  size_t Distance(NodeId number) const;  // of the root, at least

  mutable std::mutex mutex_;  // a leaf
  std::unordered_map<NodeId, Place> places_;               // by number
  Spots spots_;
  std::unordered_map<NodeId, std::vector<NodeId>> seconds_;  // by node
  std::atomic<size_t> second_count_{0};
  NodeId next_second_ = kFirstSecond;
  TimePoint careful_until_{};
};

}  // namespace e2bfs::fuse
