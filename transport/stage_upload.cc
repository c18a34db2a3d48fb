#include "transport/stage_upload.h"

#include <algorithm>
#include <memory>

namespace e2bfs::transport {
namespace {

constexpr int64_t kAtOnceBytes = 1 << 20;  // uploaded whole, from memory
constexpr size_t kChunkBytes = 256 << 10;

}  // namespace

Result<void> UploadRanges(envd::Client& client, const std::string& path, const std::vector<Extent>& ranges, ContentSource& source,
                          std::string_view tail, OpContext& ctx) {
  int64_t total = static_cast<int64_t>(tail.size());
  for (const Extent& range : ranges) total += range.length;
  if (total <= kAtOnceBytes) {
    std::string bytes(static_cast<size_t>(total) - tail.size(), '\0');
    size_t filled = 0;
    for (const Extent& range : ranges) {
      if (auto read = source.ReadAt(range.offset, bytes.data() + filled, static_cast<size_t>(range.length)); !read) return read;
      filled += static_cast<size_t>(range.length);
    }
    bytes += tail;
    auto written = client.WriteFile(path, bytes, ctx);
    if (!written) return Forward(written.error());
    return {};
  }
  envd::UploadRequest request;
  request.path = path;
  request.length = total;
  std::unique_ptr<envd::Upload> upload;
  std::string chunk;
  // Opened with the first bytes in hand, or there are none but the tail.
  auto open = [&]() -> Result<void> {
    request.beginning = chunk;
    auto opened = client.OpenUpload(request, ctx);
    if (!opened) return Forward(opened.error());
    upload = std::move(*opened);
    return {};
  };
  for (const Extent& range : ranges) {
    for (int64_t done = 0; done < range.length; done += static_cast<int64_t>(chunk.size())) {
      chunk.resize(static_cast<size_t>(std::min<int64_t>(range.length - done, kChunkBytes)));
      if (auto read = source.ReadAt(range.offset + done, chunk.data(), chunk.size()); !read) return read;
      if (!upload) {
        if (auto opened = open(); !opened) return opened;
      }
      if (auto wrote = upload->Write(chunk, ctx); !wrote) return wrote;
      ctx = ctx.Renewed();
    }
  }
  if (!upload) {
    if (auto opened = open(); !opened) return opened;
  }
  if (!tail.empty()) {
    if (auto wrote = upload->Write(tail, ctx); !wrote) return wrote;
  }
  auto finished = upload->Finish(ctx);
  if (!finished) return Forward(finished.error());
  return {};
}

}  // namespace e2bfs::transport
