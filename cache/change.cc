#include "cache/change.h"

#include <algorithm>
#include <utility>

namespace e2bfs::cache {

int64_t Change::SizeAfter(int64_t before) const {
  if (size) return *size;
  int64_t after = std::max(before, extents.end());
  if (append) after = std::max(after, append->end());
  return after;
}

void Change::AppendBecomesExtent() {
  if (!append) return;
  extents.Add(*append);
  if (size) size = std::max(*size, append->end());
  append.reset();
}

transport::StoreRequest RequestOf(const Change& change, transport::ContentSource& source) {
  transport::StoreRequest request;
  request.extents = change.extents.extents();
  request.size = change.size;
  request.cut_to = change.cut;
  request.append = change.append;
  request.attributes = change.attributes;
  request.source = &source;
  return request;
}

Change MergeChanges(Change first, Change later, int64_t remote_size) {
  Change merged = std::move(first);
  const int64_t first_end = merged.SizeAfter(remote_size);
  if (later.append && (merged.size || (!merged.append && merged.extents.end() > remote_size) ||
                       (merged.append && merged.append->end() != later.append->offset))) {
    later.AppendBecomesExtent();
  }
  if (merged.append && (later.size || later.extents.end() > merged.append->offset)) {
    merged.AppendBecomesExtent();
    later.AppendBecomesExtent();
  }
  merged.extents.Add(later.extents);
  if (later.append) {
    if (merged.append) {
      merged.append->length += later.append->length;
    } else {
      merged.append = later.append;
    }
  }
  if (later.size) {
    merged.size = later.size;
  } else if (merged.size) {
    merged.size = std::max(first_end, later.extents.end());
  }
  if (later.cut) merged.cut = std::min(merged.cut.value_or(*later.cut), *later.cut);
  transport::AttributeChange& set = merged.attributes;
  if (later.attributes.permissions) set.permissions = later.attributes.permissions;
  if (later.attributes.uid) set.uid = later.attributes.uid;
  if (later.attributes.gid) set.gid = later.attributes.gid;
  if (later.attributes.atime) set.atime = later.attributes.atime;
  if (later.attributes.mtime) {
    set.mtime = later.attributes.mtime;
    set.mtime_is_implied = later.attributes.mtime_is_implied;
  }
  return merged;
}

}  // namespace e2bfs::cache
