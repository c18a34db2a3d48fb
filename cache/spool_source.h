// SpoolSource: the bytes that a store takes, out of the spool. What takes them shows that the store gets on.
#pragma once

#include <memory>
#include <utility>

#include "cache/node.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

class SpoolSource final : public transport::ContentSource {
 public:
  SpoolSource(std::shared_ptr<SpoolFile> spool, Content& content) : spool_(std::move(spool)), content_(content) {}
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    if (!spool_) return Errno(EIO, "nothing is spooled");
    content_.store_progress = Clock::now().time_since_epoch().count();
    return spool_->ReadAt(offset, buffer, length);
  }

 private:
  std::shared_ptr<SpoolFile> spool_;
  Content& content_;
};

}  // namespace e2bfs::cache
