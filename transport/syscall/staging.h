// Staging: large changes of a file's content on their way, by the files API, into a nameless file of the syscall server.
#pragma once

#include <string>
#include <vector>

#include "transport/envd/client.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport::syscall {

// What goes where. The staged file holds all extents one after the other, then what is appended, then, where there are many extents, the
// table of them.
struct StagePlan {
  int64_t bytes = 0;             // of extents and append
  int64_t append_at = 0;         // in the staged file
  int64_t table_at = -1;         // -1: the table goes with the request
  int64_t staged_bytes = 0;      // all of it
};

// EINVAL for extents that are not as StoreRequest has them.
Result<StagePlan> PlanStage(const StoreRequest& request);

// One row for each extent, as server.pl reads them: place in the file, length, place in the stage.
std::vector<std::string> StageTable(const StoreRequest& request);

// POST into the file at `path`, once. Whether all arrived is checked by the server's Commit.
Result<void> UploadStage(envd::Client& client, const std::string& path, const StagePlan& plan, const StoreRequest& request, const OpContext& ctx);

}  // namespace e2bfs::transport::syscall
