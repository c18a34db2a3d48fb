// NodeTable: what fuse/ has to remember about the nodes that the kernel holds. Node numbers and their meaning are
// CachedFs's; here is only what concerns the kernel's pages. Where it has them is in place_table.h.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "cache/cached_fs.h"

namespace e2bfs::fuse {

// Any thread may call it; nothing blocks.
class NodeTable {
 public:
  using NodeId = cache::NodeId;

  void Referenced(NodeId node);  // the kernel was given one reference
  void Forgotten(NodeId node, uint64_t count);

  // Attributes go to the kernel. True if its pages of the node are of another generation; it is told so once for each change.
  bool PagesOutdated(NodeId node, uint64_t content_generation);
  // An open goes to the kernel. True if it may keep its pages of the node:
  // `same_as_before`, and they are of this generation. False: the answer makes the kernel drop them.
  bool MayKeepPages(NodeId node, uint64_t content_generation, bool same_as_before);

  size_t size() const;

 private:
  struct Known {
    uint64_t references = 0;
    uint64_t pages_generation = 0;
    bool has_pages = false;  // was opened: pages_generation means something
  };
  struct Shard {
    mutable std::mutex mutex;  // a leaf
    std::unordered_map<NodeId, Known> nodes;
  };
  Shard& shard(NodeId node) { return shards_[node % shards_.size()]; }

  std::array<Shard, 16> shards_;
};

}  // namespace e2bfs::fuse
