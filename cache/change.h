// Change: what one store has to bring to a file of the sandbox. A value; the owner locks.
#pragma once

#include <cstdint>
#include <optional>

#include "cache/extent_map.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

struct Change {
  ExtentMap extents;
  std::optional<int64_t> size;               // exactly this afterwards (truncate happened); else never shrinks
  std::optional<int64_t> cut;                // the smallest size it was truncated to
  std::optional<transport::Extent> append;   // at its place as we see it; nothing else lies at or beyond it
  transport::AttributeChange attributes;     // size is never set
  bool touches_content() const { return !extents.empty() || size || cut || append; }
  bool empty() const { return !touches_content() && attributes.empty(); }
  int64_t bytes() const { return extents.bytes() + (append ? append->length : 0); }
  // The file's size after this change, if it was `before`.
  int64_t SizeAfter(int64_t before) const;
  void AppendBecomesExtent();
};

// What a store of the change asks for, but for what only its caller knows (fresh, last, early). `source` outlives the request.
transport::StoreRequest RequestOf(const Change& change, transport::ContentSource& source);

// What a failed store was to bring, with what came after it laid over. `remote_size`: without both.
Change MergeChanges(Change first, Change later, int64_t remote_size);

}  // namespace e2bfs::cache
