// e2bfs recover: what earlier mounts could not send is listed, sent late, exported or dropped. The work is cache/recovery.h's.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cache/replay.h"
#include "cache/unsent_export.h"
#include "fuse/commands.h"
#include "fuse/commands_connect.h"
#include "fuse/daemon.h"
#include "fuse/directories.h"
#include "fuse/message.h"
#include "transport/base/log.h"

namespace e2bfs::fuse {
namespace {

using cache::UnsentEntry;
using Json = nlohmann::ordered_json;

constexpr std::chrono::seconds kRecoverConnectTime{90};

std::string DumpJson(const Json& json) { return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace); }

std::string PathInSandbox(const cache::UnsentRecord& record) { return (record.root == "/" ? "" : record.root) + "/" + record.path; }

// As people see it. Of what has no record: where it lies.
std::string NameOf(const UnsentEntry& entry) {
  return cache::PrintableName(entry.record ? PathInSandbox(*entry.record) : entry.content);
}

std::string WhyUnsent(const UnsentEntry& entry) {
  if (!entry.problem.empty()) return entry.problem;
  if (entry.record->being_sent) return "the mount ended while it was being sent: it may have arrived";
  if (entry.record->accepted && entry.record->last_error.empty()) return "the mount ended before it was sent: the next one sends it";
  return entry.record->last_error.empty() ? "the mount ended before it was sent" : entry.record->last_error;
}

std::string LocalTime(int64_t seconds) {
  char text[32] = "";
  const auto when = static_cast<time_t>(seconds);
  tm local{};
  if (localtime_r(&when, &local) != nullptr) strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

// "attributes": of what is there, whatever it is.
const char* Kind(const cache::UnsentRecord& record) {
  if (!record.make) return record.change.touches_content() ? "file" : "attributes";
  switch (record.make->type) {
    case transport::FileType::kDirectory: return "directory";
    case transport::FileType::kSymlink: return "symlink";
    default: return "file";
  }
}

Json ExtentJson(const transport::Extent& extent) { return {{"offset", extent.offset}, {"length", extent.length}}; }

Json EntryJson(const UnsentEntry& entry) {
  Json json = {{"id", entry.id}};
  if (entry.record) {
    const cache::UnsentRecord& record = *entry.record;
    json["sandbox"] = record.sandbox_id;
    json["scope"] = record.scope;
    json["path"] = PathInSandbox(record);
    json["path_bytes"] = cache::EncodeBytes(PathInSandbox(record));
    json["kind"] = Kind(record);
    json["root"] = record.root;
    json["user"] = record.user;
  }
  json["bytes"] = entry.bytes;
  json["since"] = entry.since;
  json["why"] = WhyUnsent(entry);
  json["can_be_sent"] = entry.problem.empty();
  json["directory"] = entry.directory;
  json["content"] = entry.content_is_there ? Json(entry.content) : Json();
  if (entry.record) {
    const cache::Change& change = entry.record->change;
    json["accepted"] = entry.record->accepted;
    json["made_by_mount"] = entry.record->fresh || entry.record->make;
    if (entry.record->make && entry.record->make->type == transport::FileType::kSymlink) json["target"] = cache::EncodeBytes(entry.record->make->target);
    json["ranges"] = Json::array();
    for (const transport::Extent& extent : change.extents.extents()) json["ranges"].push_back(ExtentJson(extent));
    if (change.append) json["append"] = ExtentJson(*change.append);
    if (change.cut) json["cut_to"] = *change.cut;
    if (change.size) json["size"] = *change.size;
    const cache::UnsentBase& base = entry.record->base;
    json["base"] = {{"size", base.size}, {"mtime", fmt::format("{}.{:09}", base.mtime.tv_sec, base.mtime.tv_nsec)},
                    {"ctime", fmt::format("{}.{:09}", base.ctime.tv_sec, base.ctime.tv_nsec)}};
  }
  return json;
}

void PrintEntries(const std::vector<UnsentEntry>& entries) {
  if (entries.empty()) {
    PrintLine("Nothing is put aside.");
    return;
  }
  std::vector<std::vector<std::string>> rows = {{"ID", "SANDBOX", "KIND", "SIZE", "SINCE", "NAME", "WHY"}};
  for (const UnsentEntry& entry : entries) {
    rows.push_back({Printable(entry.id), entry.record ? Printable(entry.record->sandbox_id) : "", entry.record ? Kind(*entry.record) : "", HumanBytes(entry.bytes), LocalTime(entry.since), NameOf(entry),
                    Printable(WhyUnsent(entry))});
  }
  PrintTable(rows);
}

// What the command was told to work on.
struct Recovery {
  std::string state_directory;
  OptionValues options;
  bool user_given = false;
  bool json = false;
  std::vector<UnsentEntry> all, entries;  // the latter: those that were asked for
  cache::Descriptor lock;
};

// So that nothing is sent or dropped by two at once: then what is there stays there.
CommandStep<void> Lock(Recovery& recovery) {
  auto lock = LockUnsent(recovery.state_directory, std::nullopt, [] { PrintErrorLine("recover", "waiting for another e2bfs that sends what earlier mounts left"); });
  if (!lock) return Stop(ExitStatus::kFailure, ErrorText(lock.error()));
  recovery.lock = std::move(*lock);
  cache::ClearRemoved(UnsentParent(recovery.state_directory));
  return {};
}

CommandStep<Recovery> FindEntries(const CommandLine& line, bool locked) {
  Recovery recovery;
  auto options = ReadMountOptions(line);
  if (!options) return tl::unexpected(options.error());
  recovery.options = std::move(*options);
  recovery.user_given = !recovery.options.user.empty();
  recovery.json = line.Has("--json");
  auto state = StateDirectory();
  if (!state) return Stop(ExitStatus::kFailure, ErrorText(state.error()));
  recovery.state_directory = *state;
  const std::string unsent = UnsentParent(*state);
  CleanLeftovers(*state + "/spool", unsent);
  if (!recovery.options.spool_directory.empty()) CleanLeftovers(recovery.options.spool_directory, unsent);
  if (locked) {
    if (auto done = Lock(recovery); !done) return tl::unexpected(done.error());
  }
  recovery.all = cache::ListUnsent(unsent);
  if (line.arguments.empty()) {
    recovery.entries = recovery.all;
    return recovery;
  }
  const std::set<std::string> ids(line.arguments.begin(), line.arguments.end());
  for (const std::string& id : ids) {
    const auto found = std::ranges::find(recovery.all, id, &UnsentEntry::id);
    if (found == recovery.all.end()) return Stop(ExitStatus::kUsage, fmt::format("nothing with the id {} is put aside (see e2bfs recover)", id));
    recovery.entries.push_back(*found);
  }
  return recovery;
}

// --- sending

// What became of each entry, told as it happens or, for programs, in one object at the end.
class SendResults {
 public:
  explicit SendResults(bool json) : json_(json) {}

  void Add(const UnsentEntry& entry, const cache::SendReport& report) {
    static constexpr const char* kOutcomes[] = {"sent", "was_there", "conflict_copy", "failed"};
    any_failed_ = any_failed_ || report.outcome == cache::SendOutcome::kFailed;
    any_done_ = any_done_ || report.outcome != cache::SendOutcome::kFailed;
    any_conflict_ = any_conflict_ || report.outcome == cache::SendOutcome::kConflictCopy;
    if (json_) {
      Json one = {{"id", entry.id}, {"outcome", kOutcomes[static_cast<int>(report.outcome)]}, {"text", report.text}};
      if (entry.record) one["path"] = PathInSandbox(*entry.record);
      if (!report.path.empty()) one["conflict_copy"] = cache::EncodeBytes((entry.record->root == "/" ? "" : entry.record->root) + "/" + report.path);
      results_.push_back(std::move(one));
      return;
    }
    const std::string name = fmt::format("{} {}", Printable(entry.id), NameOf(entry));
    const std::string because = report.text.empty() ? "" : " (" + Printable(report.text) + ")";
    switch (report.outcome) {
      case cache::SendOutcome::kSent: PrintLine(fmt::format("{}: sent{}", name, because)); break;
      case cache::SendOutcome::kWasThere: PrintLine(fmt::format("{}: was there{}", name, because)); break;
      case cache::SendOutcome::kConflictCopy:
        PrintErrorLine("recover", fmt::format("{}: conflict: {}; what was written is beside it: {}", name, report.text, cache::PrintableName(report.path)));
        break;
      case cache::SendOutcome::kFailed: PrintErrorLine("recover", fmt::format("{}: not sent: {}", name, report.text)); break;
    }
  }

  void Fail(const UnsentEntry& entry, const CommandFailure& why) {
    if (!connect_status_) connect_status_ = why.status;
    Add(entry, {cache::SendOutcome::kFailed, {}, why.text});
  }

  ExitStatus End() {
    if (json_) PrintLine(DumpJson({{"results", results_}}));
    if (!any_failed_) return any_conflict_ ? ExitStatus::kConflict : ExitStatus::kOk;
    return connect_status_ && !any_done_ ? *connect_status_ : ExitStatus::kUnsentData;
  }

 private:
  const bool json_;
  Json results_ = Json::array();
  bool any_failed_ = false, any_done_ = false, any_conflict_ = false;
  std::optional<ExitStatus> connect_status_;
};

// The chosen ones of `entries`, which are all of one owner, by one connection.
void SendGroup(SandboxRequest request, bool same_sandbox, std::vector<UnsentEntry> entries, const std::set<std::string>& chosen, SendResults& results) {
  auto fail_all = [&](const CommandFailure& why) {
    for (const UnsentEntry& entry : entries) {
      if (chosen.contains(entry.id)) results.Fail(entry, why);
    }
  };
  auto http = transport::http::HttpClient::Create(request.http);
  if (!http) return fail_all({ErrorText(http.error()), RemoteExitStatus(http.error())});
  const OpContext connecting = OpContext::Within(kRecoverConnectTime);
  auto way = FindSandbox(request, **http, connecting);
  if (!way) return fail_all(way.error());
  const auto client = MakeClient(request, **http, *way);
  std::string why;
  auto remote = OpenRemote(request, client, connecting, &why);
  if (!remote) return fail_all(remote.error());
  // An id alone is no sandbox: another platform's, or another envd's in debug mode, may have it too.
  const std::string& scope = entries.front().record->scope;
  same_sandbox = same_sandbox && (scope.empty() || scope == SandboxScope(*way->endpoint));
  const cache::OfUnsent is_chosen = [&](const UnsentEntry& entry) { return chosen.contains(entry.id); };
  cache::SendInOrder(**remote, entries, is_chosen, [](const UnsentEntry&) { return true; }, same_sandbox,
                     {request.options.operation_timeout, request.options.transfer_timeout},
                     [&](const UnsentEntry& entry, const cache::SendReport& report) { results.Add(entry, report); });
}

CommandStep<ExitStatus> SendEntries(const CommandLine& line, const Recovery& recovery) {
  SandboxRequest request;
  request.options = recovery.options;
  auto http = HttpOptions(request.options);
  if (!http) return tl::unexpected(http.error());
  request.http = std::move(*http);
  std::string target;
  if (line.Has("--to")) {
    auto spec = ParseSandboxSpec(line.Value("--to"));
    if (!spec || !spec->path.empty()) {
      return Stop(ExitStatus::kUsage, spec ? "--to takes a sandbox alone: paths stay what they were" : spec.error().message);
    }
    target = spec->sandbox_id;
  }
  request.environment = TakeEnvironment();
  SendResults results(recovery.json);
  std::set<std::string> chosen;
  for (const UnsentEntry& entry : recovery.entries) {
    if (entry.problem.empty()) {
      chosen.insert(entry.id);
    } else {
      results.Add(entry, {cache::SendOutcome::kFailed, {}, entry.problem + " (see e2bfs recover --export)"});
    }
  }
  std::map<cache::UnsentOwner, std::vector<UnsentEntry>> groups;
  for (const UnsentEntry& entry : recovery.all) {
    if (entry.record) groups[cache::OwnerOf(entry)].push_back(entry);
  }
  for (auto& [owner, entries] : groups) {
    if (std::ranges::none_of(entries, [&](const UnsentEntry& entry) { return chosen.contains(entry.id); })) continue;
    auto spec = ParseSandboxSpec(target.empty() ? owner.sandbox_id : target);
    if (!spec) {
      for (const UnsentEntry& entry : entries) {
        if (chosen.contains(entry.id)) results.Fail(entry, {spec.error().message, ExitStatus::kSandbox});
      }
      continue;
    }
    request.spec = std::move(*spec);
    request.spec.path = owner.root;
    if (!recovery.user_given) request.options.user = owner.user;
    SendGroup(request, request.spec.sandbox_id == owner.sandbox_id, std::move(entries), chosen, results);
  }
  return results.End();
}

// --- exporting and dropping

CommandStep<ExitStatus> ExportEntries(const CommandLine& line, const Recovery& recovery) {
  const std::string directory = line.Value("--export");
  auto target = cache::UnsentExport::Open(directory);
  if (!target) return Stop(ExitStatus::kFailure, target.error().message);
  Json results = Json::array();
  ExitStatus status = ExitStatus::kOk;
  for (const UnsentEntry& entry : recovery.entries) {
    auto path = (*target)->Add(entry);
    if (!path) {
      status = ExitStatus::kFailure;
      PrintErrorLine("recover", fmt::format("{} {}: not exported: {}", entry.id, NameOf(entry), path.error().message));
    } else if (!recovery.json) {
      PrintLine(fmt::format("{} {}: {}", Printable(entry.id), NameOf(entry),
                            path->empty() ? "has no content" : Printable(directory) + "/" + cache::PrintableName(*path)));
    }
    Json one = {{"id", entry.id}};
    one["exported"] = path && !path->empty() ? Json(cache::EncodeBytes(*path)) : Json();
    if (!path) one["error"] = path.error().message;
    results.push_back(std::move(one));
  }
  auto text = (*target)->WriteText();
  if (!text) return Stop(ExitStatus::kFailure, text.error().message);
  if (recovery.json) {
    PrintLine(DumpJson({{"exported", results}, {"text", *text}}));
  } else if (!text->empty()) {
    PrintLine(fmt::format("{}/{} says which parts were written. What was exported stays listed until it is sent or dropped.", Printable(directory), *text));
  }
  return status;
}

bool PersonAgrees(const Recovery& recovery) {
  int64_t bytes = 0;
  for (const UnsentEntry& entry : recovery.entries) bytes += entry.bytes;
  const std::string question = fmt::format("e2bfs recover: remove {} of {} file{} for good? Nobody else may have it. [y/N] ", HumanBytes(bytes), recovery.entries.size(),
                                           recovery.entries.size() == 1 ? "" : "s");
  char answer[16] = "";
  if (write(STDERR_FILENO, question.data(), question.size()) < 0) return false;
  const ssize_t length = read(STDIN_FILENO, answer, sizeof answer - 1);
  return length > 0 && (answer[0] == 'y' || answer[0] == 'Y');
}

CommandStep<ExitStatus> DropEntries(const CommandLine& line, Recovery& recovery) {
  if (!recovery.json) PrintEntries(recovery.entries);
  if (!line.Has("--yes")) {
    if (isatty(STDIN_FILENO) == 0) return Stop(ExitStatus::kUsage, "--drop asks on a terminal; without one it needs --yes");
    if (!PersonAgrees(recovery)) return Stop(ExitStatus::kInterrupted, "nothing was removed");
  }
  // Nobody waits for an answer of a person. What was sent meanwhile is not there any more.
  if (auto locked = Lock(recovery); !locked) return tl::unexpected(locked.error());
  const std::vector<UnsentEntry> now = cache::ListUnsent(UnsentParent(recovery.state_directory));
  std::erase_if(recovery.entries, [&](const UnsentEntry& entry) {
    return std::ranges::none_of(now, [&](const UnsentEntry& each) { return each.id == entry.id && each.note == entry.note; });
  });
  ExitStatus status = ExitStatus::kOk;
  Json dropped = Json::array();
  for (const UnsentEntry& entry : recovery.entries) {
    if (auto removed = cache::RemoveUnsent(entry); !removed) {
      status = ExitStatus::kFailure;
      PrintErrorLine("recover", fmt::format("{}: {}", entry.id, ErrorText(removed.error())));
    } else {
      dropped.push_back(entry.id);
    }
  }
  if (recovery.json) PrintLine(DumpJson({{"dropped", dropped}}));
  return status;
}

CommandStep<ExitStatus> Recover(const CommandLine& line) {
  const bool send = line.Has("--send"), drop = line.Has("--drop"), exports = line.Has("--export");
  if (int{send} + int{drop} + int{exports} > 1) return Stop(ExitStatus::kUsage, "one of --send, --export and --drop at a time");
  if (line.Has("--to") && !send) return Stop(ExitStatus::kUsage, "--to says where --send sends to");
  if (line.Has("--yes") && !drop) return Stop(ExitStatus::kUsage, "--yes answers the question of --drop");
  if (line.Has("--all") && !line.arguments.empty()) return Stop(ExitStatus::kUsage, "either ids or --all");
  if (drop && !line.Has("--all") && line.arguments.empty()) return Stop(ExitStatus::kUsage, "--drop needs the ids of what is to go for good, or --all");
  auto recovery = FindEntries(line, send);
  if (!recovery) return tl::unexpected(recovery.error());
  if (send) return SendEntries(line, *recovery);
  if (exports) return ExportEntries(line, *recovery);
  if (drop) return DropEntries(line, *recovery);
  if (recovery->json) {
    Json list = Json::array();
    for (const UnsentEntry& entry : recovery->entries) list.push_back(EntryJson(entry));
    PrintLine(DumpJson({{"unsent", list}}));
  } else {
    PrintEntries(recovery->entries);
  }
  return ExitStatus::kOk;
}

}  // namespace

ExitStatus RecoverCommand(const CommandLine& line) {
  ProtectSecrets();
  auto done = Recover(line);
  if (done) return *done;
  PrintErrorLine("recover", done.error().text);
  return done.error().status;
}

}  // namespace e2bfs::fuse
