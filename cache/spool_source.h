// SpoolSource: the bytes that a store takes, out of the spool. What takes them shows that the store gets on.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "cache/node.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

class SpoolSource final : public transport::ContentSource {
 public:
  SpoolSource(std::shared_ptr<SpoolFile> spool, Content& content) : spool_(std::move(spool)), content_(content) {}
  // All of a file that has nothing but `whole`: zeros elsewhere, where the spool may still have what was cut off.
  SpoolSource(std::shared_ptr<SpoolFile> spool, Content& content, const Change& whole) : SpoolSource(std::move(spool), content) {
    known_ = whole.extents;
    if (whole.append) known_->Add(*whole.append);
  }
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    if (!spool_) return Errno(EIO, "nothing is spooled");
    content_.store_progress = Clock::now().time_since_epoch().count();
    if (!known_) return spool_->ReadAt(offset, buffer, length);
    std::fill_n(buffer, length, '\0');
    for (const transport::Extent& part : known_->Within({offset, static_cast<int64_t>(length)})) {
      if (auto read = spool_->ReadAt(part.offset, buffer + (part.offset - offset), static_cast<size_t>(part.length)); !read) return read;
    }
    return {};
  }

 private:
  std::shared_ptr<SpoolFile> spool_;
  Content& content_;
  std::optional<ExtentMap> known_;
};

}  // namespace e2bfs::cache
