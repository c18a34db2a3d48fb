#include "transport/syscall/staging.h"

#include <algorithm>

#include "transport/stage_upload.h"
#include "transport/syscall/frame.h"

namespace e2bfs::transport::syscall {
namespace {

constexpr size_t kMostRowsInRequest = 800;  // 24 bytes each


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
  return UploadRanges(client, path, ranges, *request.source, table, ctx);
}

}  // namespace e2bfs::transport::syscall
