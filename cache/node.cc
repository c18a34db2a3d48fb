#include "cache/node.h"

#include <algorithm>

namespace e2bfs::cache {

void Places::Remove(const Place& place) {
  const auto at = all_.find(place);
  const bool was_current = at == current_;
  const auto next = all_.erase(at);
  if (was_current) current_ = next != all_.end() ? next : all_.begin();
}

void Places::UseNext() {
  if (++current_ == all_.end()) current_ = all_.begin();
}

int64_t Content::unsent_bytes() const {
  int64_t bytes = current.extents.bytes() + sending.extents.bytes();
  if (current.append) bytes += current.append->length;
  if (sending.append) bytes += sending.append->length;
  return bytes;
}

const Content& LazyContent::Nothing() {
  static const Content nothing;
  return nothing;
}

int64_t Node::base_limit() const {
  int64_t limit = attributes.size;
  for (const Change* change : {&content->sending, &content->current}) {
    if (change->cut) limit = std::min(limit, *change->cut);
  }
  return limit;
}

}  // namespace e2bfs::cache
