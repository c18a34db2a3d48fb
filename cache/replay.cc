#include "cache/replay.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

constexpr size_t kSentAtOnce = 16;

using Entries = std::vector<UnsentEntry*>;

bool IsDirectory(const UnsentEntry& entry) { return entry.record->make && entry.record->make->type == transport::FileType::kDirectory; }

// Only attributes are set, of what is there by then: a directory's, or a file's.
bool SetsAttributesAtLast(const UnsentEntry& entry) { return IsDirectory(entry) || (!entry.record->make && !entry.record->change.touches_content()); }

size_t DepthOf(const UnsentEntry& entry) { return static_cast<size_t>(std::ranges::count(entry.record->path, '/')); }

bool IsBelow(const std::string& path, const std::string& directory) { return path.size() > directory.size() && path.starts_with(directory) && path[directory.size()] == '/'; }

class OrderedSend {
 public:
  OrderedSend(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, bool same_sandbox, const SendTimes& times, const TellSent& tell)
      : remote_(remote), entries_(entries), same_sandbox_(same_sandbox), times_(times), tell_(tell) {}

  void Run(Entries chosen) {
    std::ranges::stable_sort(chosen, {}, [](const UnsentEntry* entry) { return std::tuple(entry->record->order, entry->since); });
    std::map<size_t, Entries> makings, attributes;  // by depth
    Entries others;
    for (UnsentEntry* entry : chosen) {
      if (IsDirectory(*entry)) makings[DepthOf(*entry)].push_back(entry);
      (SetsAttributesAtLast(*entry) ? attributes[DepthOf(*entry)] : others).push_back(entry);
    }
    for (const auto& [depth, level] : makings) ForEach(level, [this](UnsentEntry& entry) { MakeDirectory(entry); });
    ForEach(others, [this](UnsentEntry& entry) { SendAndRemove(entry); });
    for (auto level = attributes.rbegin(); level != attributes.rend(); ++level) {
      ForEach(level->second, [this](UnsentEntry& entry) { SetAttributes(entry); });
    }
  }

 private:
  // Several at once, begun in their order; those of one path one after the other.
  void ForEach(const Entries& entries, const std::function<void(UnsentEntry&)>& work) {
    std::vector<Entries> groups;
    std::map<std::string, size_t> group_of;
    for (UnsentEntry* entry : entries) {
      const auto [at, is_new] = group_of.try_emplace(entry->record->path, groups.size());
      if (is_new) groups.emplace_back();
      groups[at->second].push_back(entry);
    }
    std::atomic<size_t> next{0};
    const auto run = [&] {
      for (size_t i = next++; i < groups.size(); i = next++) {
        for (UnsentEntry* entry : groups[i]) work(*entry);
      }
    };
    std::vector<std::jthread> helpers;
    try {
      while (helpers.size() + 1 < std::min(groups.size(), kSentAtOnce)) helpers.emplace_back(run);
    } catch (const std::system_error& thrown) {  // no more threads: those that are there do it
      log::Warning("cache", "sending what was left: {}", thrown.what());
    }
    run();
  }

  void MakeDirectory(UnsentEntry& entry) {
    SendReport made = unreachable_ ? NotTried() : MakeUnsentDirectory(remote_, entry, same_sandbox_, times_);
    if (made.outcome == SendOutcome::kConflictCopy) {
      if (auto moved = MoveBelow(entry.record->path, made.path); !moved) made = {SendOutcome::kFailed, {}, ToString(moved.error())};
    }
    if (made.unreachable) unreachable_ = true;
    std::lock_guard lock(mutex_);
    made_[&entry] = std::move(made);
  }

  // What was to go into a directory goes into another one. The directory's own note is the last one to say so: until then it is done again.
  Result<void> MoveBelow(const std::string& from_path, const std::string& to) {
    const std::string from = from_path;
    std::lock_guard lock(mutex_);
    for (const bool itself : {false, true}) {
      for (UnsentEntry& entry : entries_) {
        if (!entry.record) continue;
        UnsentRecord& record = *entry.record;
        if (itself ? record.path != from || !IsDirectory(entry) : !IsBelow(record.path, from)) continue;
        UnsentRecord moved = record;
        moved.path = to + record.path.substr(from.size());
        if (same_sandbox_) {  // what another sandbox has says nothing of this one
          if (auto noted = WriteUnsentNote(entry.note, moved); !noted) return noted;
          FaultPoint("replay.moved");
        }
        record = std::move(moved);
      }
    }
    return {};
  }

  void SendAndRemove(UnsentEntry& entry) {
    Finish(entry, unreachable_ ? NotTried() : SendUnsent(remote_, entry, same_sandbox_, times_));
  }

  void SetAttributes(UnsentEntry& entry) {
    SendReport made{SendOutcome::kSent, {}, {}};  // also of what did not have to be made
    bool waits = false;
    {
      std::lock_guard lock(mutex_);
      if (const auto found = made_.find(&entry); found != made_.end()) made = found->second;
      const std::string below = entry.record->path + "/";
      const auto failed = failed_.lower_bound(below);
      waits = failed != failed_.end() && failed->starts_with(below);
    }
    if (made.outcome == SendOutcome::kFailed) return Tell(entry, made);
    if (waits) return Tell(entry, {SendOutcome::kFailed, {}, "what goes into it was not sent"});
    SendReport report = unreachable_ ? NotTried() : SendUnsent(remote_, entry, same_sandbox_, times_);
    if (report.outcome != SendOutcome::kFailed && IsDirectory(entry)) {
      report.outcome = made.outcome;
      report.path = made.path;
      report.text = made.text + (made.text.empty() || report.text.empty() ? "" : "; ") + report.text;
    }
    Finish(entry, std::move(report));
  }

  static SendReport NotTried() { return {SendOutcome::kFailed, {}, "it was not tried, since the sandbox does not answer"}; }

  void Finish(UnsentEntry& entry, SendReport report) {
    if (report.unreachable) unreachable_ = true;
    if (report.outcome != SendOutcome::kFailed) {
      if (auto removed = RemoveUnsent(entry); !removed) report = {SendOutcome::kFailed, {}, "it was sent, and is still listed: " + ToString(removed.error())};
    }
    Tell(entry, report);
  }

  void Tell(const UnsentEntry& entry, const SendReport& report) {
    std::lock_guard lock(mutex_);
    if (report.outcome == SendOutcome::kFailed) failed_.insert(entry.record->path);
    tell_(entry, report);
  }

  transport::RemoteFs& remote_;
  std::vector<UnsentEntry>& entries_;
  const bool same_sandbox_;
  const SendTimes times_;
  const TellSent& tell_;
  std::atomic<bool> unreachable_{false};
  std::mutex mutex_;
  std::map<const UnsentEntry*, SendReport> made_;
  std::set<std::string> failed_;  // paths
};

}  // namespace

UnsentOwner OwnerOf(const UnsentEntry& entry) { return {entry.record->sandbox_id, entry.record->user, entry.record->root}; }

void SendInOrder(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, const std::function<bool(const UnsentEntry&)>& chosen, bool same_sandbox,
                 const SendTimes& times, const TellSent& tell) {
  Entries sent;
  for (UnsentEntry& entry : entries) {
    if (entry.record && entry.problem.empty() && chosen(entry)) sent.push_back(&entry);
  }
  OrderedSend(remote, entries, same_sandbox, times, tell).Run(std::move(sent));
}

std::vector<UnsentEntry> ListAccepted(const std::string& unsent_parent, const UnsentOwner& owner) {
  std::vector<UnsentEntry> entries = ListUnsent(unsent_parent);
  std::erase_if(entries, [&](const UnsentEntry& entry) { return !entry.problem.empty() || !entry.record->accepted || OwnerOf(entry) != owner; });
  return entries;
}

ReplayReport Replay(transport::RemoteFs& remote, const std::string& unsent_parent, const UnsentOwner& owner, const SendTimes& times, const TellSent& tell) {
  std::vector<UnsentEntry> entries = ListUnsent(unsent_parent);
  std::erase_if(entries, [&](const UnsentEntry& entry) { return !entry.record || OwnerOf(entry) != owner; });
  ReplayReport report;
  SendInOrder(remote, entries, [](const UnsentEntry& entry) { return entry.record->accepted; }, true, times,
              [&](const UnsentEntry& entry, const SendReport& sent) {
                if (sent.outcome == SendOutcome::kFailed) ++report.failed;
                else ++report.sent;
                if (sent.outcome == SendOutcome::kConflictCopy) ++report.conflicts;
                tell(entry, sent);
              });
  FaultPoint("replay.done");
  return report;
}

}  // namespace e2bfs::cache
