// Content on its way into a staged file, by the files API: the same for both tiers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "transport/envd/client.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

// Bytes of memory, which outlive it.
class HeldSource final : public ContentSource {
 public:
  explicit HeldSource(std::string_view bytes) : bytes_(bytes) {}
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    bytes_.copy(buffer, length, static_cast<size_t>(offset));
    return {};
  }

 private:
  const std::string_view bytes_;
};

// POST of the source's ranges, one after the other, and then of `tail`, once. `ctx` is renewed with each part that went out: there is no limit on
// the whole. Whether all arrived is for the caller to check.
Result<void> UploadRanges(envd::Client& client, const std::string& path, const std::vector<Extent>& ranges, ContentSource& source,
                          std::string_view tail, OpContext& ctx);

}  // namespace e2bfs::transport
