// e2bfs list: what can be mounted, and what is.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "fuse/commands.h"
#include "fuse/commands_connect.h"
#include "fuse/daemon.h"
#include "fuse/message.h"
#include "fuse/mount_table.h"
#include "fuse/running_mounts.h"

namespace e2bfs::fuse {
namespace {

using transport::SandboxSummary;

constexpr std::chrono::seconds kListTime{60};

// Mounts by their sockets, and what the kernel's table has beyond them: mounts of others, and stale ones.
std::vector<RunningMount> ListMounts() {
  std::vector<RunningMount> mounts = FindRunningMounts(geteuid());
  auto table = ReadMountTable();
  if (!table) return mounts;
  for (const MountEntry& entry : *table) {
    if (!entry.is_e2bfs()) continue;
    if (std::any_of(mounts.begin(), mounts.end(), [&](const RunningMount& known) { return known.directory == entry.directory; })) continue;
    // Root's view of another user's mount: its own process knows more.
    if (auto running = FindRunningMount(entry.user_id, entry.directory); running) {
      mounts.push_back(std::move(*running));
      continue;
    }
    RunningMount unknown;
    unknown.directory = entry.directory;
    unknown.state = geteuid() == 0 || entry.user_id == geteuid() ? (IsDeadMount(entry.directory) ? "stale" : "does not answer from here") : fmt::format("of user {}", entry.user_id);
    // "e2bfs:<sandbox>:<path>"
    const size_t first = entry.source.find(':');
    const size_t second = first == std::string::npos ? first : entry.source.find(':', first + 1);
    unknown.sandbox_id = second == std::string::npos ? entry.source : entry.source.substr(first + 1, second - first - 1);
    if (second != std::string::npos) unknown.path = entry.source.substr(second + 1);
    mounts.push_back(std::move(unknown));
  }
  return mounts;
}

Result<std::vector<SandboxSummary>> AskForSandboxes(const transport::Environment& environment) {
  if (environment.debug) {
    SandboxSummary only;
    only.id = std::string(transport::kDebugSandboxId);
    only.state = transport::SandboxState::kRunning;
    return std::vector<SandboxSummary>{only};
  }
  auto options = transport::http::ClientOptions::FromEnvironment();
  if (!options) return Forward(options.error());
  auto http = transport::http::HttpClient::Create(*options);
  if (!http) return Forward(http.error());
  auto control_plane = OpenControlPlane(**http, environment);
  if (!control_plane) return Forward(control_plane.error());
  return (*control_plane)->List({}, OpContext::Within(kListTime));
}

std::string MetadataText(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const auto& [name, value] : metadata) text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, value);
  return Printable(text);
}

void PrintSandboxes(const std::vector<SandboxSummary>& sandboxes, const std::vector<RunningMount>& mounts) {
  std::vector<std::vector<std::string>> rows = {{"SANDBOX", "TEMPLATE", "STATE", "TIME LEFT", "MOUNTED ON", "METADATA"}};
  for (const SandboxSummary& sandbox : sandboxes) {
    std::string where;
    for (const RunningMount& mount : mounts) {
      if (mount.sandbox_id == sandbox.id) where += (where.empty() ? "" : " ") + Printable(mount.directory);
    }
    const bool timed = sandbox.end_at.tv_sec != 0 && sandbox.state == transport::SandboxState::kRunning;
    rows.push_back({Printable(sandbox.id), Printable(sandbox.alias.empty() ? sandbox.template_id : sandbox.alias),
                    std::string(ToString(sandbox.state)), timed ? HumanSeconds(sandbox.end_at.tv_sec - time(nullptr)) : "-",
                    where.empty() ? "-" : where, MetadataText(sandbox.metadata)});
  }
  PrintTable(rows);
}

void PrintMounts(const std::vector<RunningMount>& mounts) {
  if (mounts.empty()) {
    PrintLine("Nothing is mounted.");
    return;
  }
  std::vector<std::vector<std::string>> rows = {{"MOUNTED ON", "SANDBOX", "PATH", "STATE", "UNSENT", "PROCESS"}};
  for (const RunningMount& mount : mounts) {
    rows.push_back({Printable(mount.directory), Printable(mount.sandbox_id), Printable(mount.path), Printable(mount.state),
                    HumanBytes(mount.dirty_bytes), mount.process_id == 0 ? "-" : fmt::format("{}", mount.process_id)});
  }
  PrintTable(rows);
}

nlohmann::json MountsJson(const std::vector<RunningMount>& mounts) {
  nlohmann::json list = nlohmann::json::array();
  for (const RunningMount& mount : mounts) {
    list.push_back({{"mountpoint", mount.directory}, {"sandbox", mount.sandbox_id}, {"path", mount.path}, {"state", mount.state},
                    {"dirty_bytes", mount.dirty_bytes}, {"pid", mount.process_id}});
  }
  return list;
}

nlohmann::json SandboxesJson(const std::vector<SandboxSummary>& sandboxes) {
  nlohmann::json list = nlohmann::json::array();
  for (const SandboxSummary& sandbox : sandboxes) {
    nlohmann::json one = {{"id", sandbox.id}, {"template", sandbox.template_id}, {"alias", sandbox.alias},
                          {"state", ToString(sandbox.state)}, {"envd_version", sandbox.envd_version}, {"metadata", sandbox.metadata}};
    one["ends_at"] = sandbox.end_at.tv_sec != 0 ? nlohmann::json(sandbox.end_at.tv_sec) : nlohmann::json();
    one["seconds_left"] = sandbox.end_at.tv_sec != 0 ? nlohmann::json(sandbox.end_at.tv_sec - time(nullptr)) : nlohmann::json();
    list.push_back(std::move(one));
  }
  return list;
}

}  // namespace

ExitStatus ListCommand(const CommandLine& line) {
  ProtectSecrets();
  const bool json = line.Has("--json");
  const std::vector<RunningMount> mounts = ListMounts();
  nlohmann::json output = {{"mounts", MountsJson(mounts)}};
  ExitStatus status = ExitStatus::kOk;
  if (!line.Has("--mounts")) {
    const transport::Environment environment = TakeEnvironment();
    auto sandboxes = AskForSandboxes(environment);
    if (sandboxes) {
      output["sandboxes"] = SandboxesJson(*sandboxes);
      if (!json) PrintSandboxes(*sandboxes, mounts);
    } else {
      PrintErrorLine("list", "cannot list sandboxes: " + ErrorText(sandboxes.error()));
      output["sandboxes"] = nullptr;
      output["error"] = ErrorText(sandboxes.error());
      status = RemoteExitStatus(sandboxes.error());
    }
    if (!json) PrintLine("");
  }
  if (json) {
    PrintLine(output.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    PrintMounts(mounts);
  }
  return status;
}

}  // namespace e2bfs::fuse
