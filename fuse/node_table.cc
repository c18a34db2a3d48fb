#include "fuse/node_table.h"

namespace e2bfs::fuse {

void NodeTable::Referenced(NodeId node) {
  Shard& in = shard(node);
  std::lock_guard lock(in.mutex);
  ++in.nodes[node].references;
}

void NodeTable::Forgotten(NodeId node, uint64_t count) {
  Shard& in = shard(node);
  std::lock_guard lock(in.mutex);
  const auto found = in.nodes.find(node);
  if (found == in.nodes.end()) return;
  if (found->second.references <= count) {
    in.nodes.erase(found);
  } else {
    found->second.references -= count;
  }
}

bool NodeTable::PagesOutdated(NodeId node, uint64_t content_generation) {
  Shard& in = shard(node);
  std::lock_guard lock(in.mutex);
  const auto found = in.nodes.find(node);
  if (found == in.nodes.end() || !found->second.has_pages) return false;
  Known& known = found->second;
  if (known.pages_generation == content_generation) return false;
  known.pages_generation = content_generation;
  return true;
}

bool NodeTable::MayKeepPages(NodeId node, uint64_t content_generation, bool same_as_before) {
  Shard& in = shard(node);
  std::lock_guard lock(in.mutex);
  const auto found = in.nodes.find(node);
  if (found == in.nodes.end()) return false;
  Known& known = found->second;
  const bool keep = same_as_before && known.has_pages && known.pages_generation == content_generation;
  known.has_pages = true;
  known.pages_generation = content_generation;
  return keep;
}

size_t NodeTable::size() const {
  size_t count = 0;
  for (const Shard& in : shards_) {
    std::lock_guard lock(in.mutex);
    count += in.nodes.size();
  }
  return count;
}

}  // namespace e2bfs::fuse
