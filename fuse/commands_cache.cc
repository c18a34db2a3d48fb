// e2bfs cache: what the block store holds, and away with it.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "cache/block_store.h"
#include "fuse/commands.h"
#include "fuse/directories.h"
#include "fuse/message.h"

namespace e2bfs::fuse {
namespace {

using Json = nlohmann::ordered_json;

std::string FilesText(int64_t files, int64_t bytes) { return fmt::format("{} in {} file{}", HumanBytes(bytes), files, files == 1 ? "" : "s"); }

void PrintSummary(const std::string& directory, const cache::BlockStoreSummary& found) {
  PrintLine(fmt::format("{:<10} {}", "directory", Printable(directory)));
  PrintLine(fmt::format("{:<10} {}", "size", FilesText(found.entries, found.bytes)));
  PrintLine(fmt::format("{:<10} {}", "limit", found.limit_bytes > 0 ? HumanBytes(found.limit_bytes) : "-"));
  if (found.set_aside > 0) PrintLine(fmt::format("{:<10} {}", "set aside", FilesText(found.set_aside, found.set_aside_bytes)));
  if (!found.sandboxes.empty()) PrintLine("\nsandboxes:");
  for (const auto& [sandbox, share] : found.sandboxes) PrintLine(fmt::format("  {}: {}", Printable(sandbox), FilesText(share.first, share.second)));
}

Json SummaryJson(const std::string& directory, const cache::BlockStoreSummary& found) {
  Json json = {{"directory", directory}, {"bytes", found.bytes}, {"files", found.entries}, {"limit_bytes", found.limit_bytes},
               {"set_aside_bytes", found.set_aside_bytes}, {"set_aside_files", found.set_aside}};
  json["sandboxes"] = Json::array();
  for (const auto& [sandbox, share] : found.sandboxes) {
    json["sandboxes"].push_back({{"sandbox", sandbox}, {"files", share.first}, {"bytes", share.second}});
  }
  return json;
}

}  // namespace

ExitStatus CacheCommand(const CommandLine& line) {
  const std::string directory = line.arguments.empty() ? DefaultCacheDirectory() : line.arguments[0];
  const bool json = line.Has("--json");
  int64_t removed = 0;
  Result<cache::BlockStoreSummary> found = cache::BlockStoreSummary{};
  if (line.Has("--clear")) {
    auto cleared = cache::BlockStore::Clear(directory);
    if (cleared) removed = *cleared;
    if (!cleared) found = Forward(cleared.error());
  }
  if (found) found = cache::BlockStore::Inspect(directory);
  const bool none = !found && found.error().errno_value == ENOENT;
  if (!found && !none) {
    PrintErrorLine("cache", ErrorText(found.error()));
    return ExitStatus::kFailure;
  }
  if (json) {
    Json output = SummaryJson(directory, none ? cache::BlockStoreSummary{} : *found);
    if (line.Has("--clear")) output["removed_bytes"] = removed;
    PrintLine(output.dump(2, ' ', false, Json::error_handler_t::replace));
  } else if (none) {
    PrintLine(fmt::format("Nothing is kept in {}.", Printable(directory)));
  } else if (line.Has("--clear")) {
    PrintLine(fmt::format("Removed {} from {}.", HumanBytes(removed), Printable(directory)));
  } else {
    PrintSummary(directory, *found);
  }
  return ExitStatus::kOk;
}

}  // namespace e2bfs::fuse
