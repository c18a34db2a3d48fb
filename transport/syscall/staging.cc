#include "transport/syscall/staging.h"

#include <algorithm>

#include "transport/syscall/frame.h"

namespace e2bfs::transport::syscall {
namespace {

constexpr size_t kMostRowsInRequest = 800;  // 24 bytes each
constexpr size_t kChunkBytes = 256 << 10;
constexpr size_t kSampleBytes = 4096;
constexpr int64_t kAtOnceBytes = 1 << 20;   // uploaded whole, from memory

bool CompressionPays(const std::string& bytes) {
  if (bytes.size() < kSampleBytes) return false;
  const std::string_view sample(bytes.data() + (bytes.size() - kSampleBytes) / 2, kSampleBytes);
  return http::GzipCompress(sample).size() < kSampleBytes * 7 / 10;
}

}  // namespace

Result<StagePlan> PlanStage(const StoreRequest& request) {
  StagePlan plan;
  int64_t end = 0;
  for (const Extent& extent : request.extents) {
    const bool sane = extent.offset >= end && extent.length > 0 && extent.length <= INT64_MAX - extent.offset;
    if (!sane || (request.size && extent.end() > *request.size)) return Errno(EINVAL, "extents");
    end = extent.end();
    plan.bytes += extent.length;
  }
  if ((request.size && *request.size < 0) || (request.cut_to && *request.cut_to < 0)) return Errno(EINVAL, "size");
  if (request.append && (request.append->offset < 0 || request.append->length < 0)) return Errno(EINVAL, "append");
  plan.append_at = plan.bytes;
  if (request.append) plan.bytes += request.append->length;
  plan.staged_bytes = plan.bytes;
  if (request.extents.size() > kMostRowsInRequest) {
    plan.table_at = plan.bytes;
    plan.staged_bytes += int64_t{24} * static_cast<int64_t>(request.extents.size());
  }
  return plan;
}

std::vector<std::string> StageTable(const StoreRequest& request) {
  std::vector<std::string> rows;
  int64_t place = 0;
  for (const Extent& extent : request.extents) {
    rows.push_back(Arguments().I64(extent.offset).I64(extent.length).I64(place).bytes());
    place += extent.length;
  }
  return rows;
}

Result<void> UploadStage(envd::Client& client, const std::string& path, const StagePlan& plan, const StoreRequest& request, const OpContext& context) {
  OpContext ctx = context;
  if (!request.source) return Errno(EINVAL, "store without a source");
  std::vector<Extent> ranges = request.extents;
  if (request.append && request.append->length > 0) ranges.push_back(*request.append);
  std::string table;
  if (plan.table_at >= 0) {
    for (const std::string& row : StageTable(request)) table += row;
  }
  if (plan.staged_bytes <= kAtOnceBytes) {
    std::string bytes(static_cast<size_t>(plan.bytes), '\0');
    size_t filled = 0;
    for (const Extent& range : ranges) {
      if (auto read = request.source->ReadAt(range.offset, bytes.data() + filled, static_cast<size_t>(range.length)); !read) return read;
      filled += static_cast<size_t>(range.length);
    }
    bytes += table;
    auto written = client.WriteFile(path, bytes, CompressionPays(bytes), ctx);
    if (!written) return Forward(written.error());
    return {};
  }
  envd::UploadRequest upload_request;
  upload_request.path = path;
  upload_request.length = plan.staged_bytes;
  auto upload = client.OpenUpload(upload_request, ctx);
  if (!upload) return Forward(upload.error());
  std::string chunk;
  for (const Extent& range : ranges) {
    for (int64_t done = 0; done < range.length; done += static_cast<int64_t>(chunk.size())) {
      chunk.resize(static_cast<size_t>(std::min<int64_t>(range.length - done, kChunkBytes)));
      if (auto read = request.source->ReadAt(range.offset + done, chunk.data(), chunk.size()); !read) return read;
      if (auto wrote = (*upload)->Write(chunk, ctx); !wrote) return wrote;
      ctx = ctx.Renewed();  // it gets on
    }
  }
  if (!table.empty()) {
    if (auto wrote = (*upload)->Write(table, ctx); !wrote) return wrote;
  }
  auto finished = (*upload)->Finish(ctx);
  if (!finished) return Forward(finished.error());
  return {};
}

}  // namespace e2bfs::transport::syscall
