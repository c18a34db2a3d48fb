#include "cache/replay.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <map>
#include <memory>
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
constexpr int64_t kMostOfFileInRow = 64 << 10;  // of one file
constexpr size_t kFewestInRow = 2;
constexpr std::chrono::seconds kRetrying{20};

using Entries = std::vector<UnsentEntry*>;

bool IsSendable(const UnsentEntry& entry) { return entry.record && entry.problem.empty(); }

bool IsDirectory(const UnsentEntry& entry) { return entry.record->make && entry.record->make->type == transport::FileType::kDirectory; }

// Only attributes are set, of what is there by then: a directory's, or a file's.
bool SetsAttributesAtLast(const UnsentEntry& entry) { return IsDirectory(entry) || (!entry.record->make && !entry.record->change.touches_content()); }

size_t DepthOf(const UnsentEntry& entry) { return static_cast<size_t>(std::ranges::count(entry.record->path, '/')); }

// What a question of many new objects can make.
bool FitsIntoRow(const UnsentEntry& entry) {
  const UnsentRecord& record = *entry.record;
  if (!record.make || record.being_sent) return false;  // what was begun may be there
  if (record.make->type == transport::FileType::kSymlink) return true;
  return record.make->type == transport::FileType::kRegular && record.change.SizeAfter(0) <= kMostOfFileInRow;
}

class StringSource final : public transport::ContentSource {
 public:
  explicit StringSource(std::string content) : content_(std::move(content)) {}
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    content_.copy(buffer, length, static_cast<size_t>(offset));
    return {};
  }

 private:
  const std::string content_;
};

bool IsBelow(const std::string& path, const std::string& directory) { return path.size() > directory.size() && path.starts_with(directory) && path[directory.size()] == '/'; }

class OrderedSend {
 public:
  OrderedSend(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, bool same_sandbox, const SendTimes& times, const TellSent& tell)
      : remote_(remote), entries_(entries), same_sandbox_(same_sandbox), times_{times.operation, times.transfer, kRetrying}, tell_(tell) {}

  void Run(Entries chosen, const OfUnsent& awaited) {
    AddDirectoriesAbove(chosen);
    std::ranges::stable_sort(chosen, {}, [](const UnsentEntry* entry) { return std::tuple(entry->record->order, entry->since); });
    std::map<size_t, Entries> makings, attributes;  // by depth
    Entries others;
    for (UnsentEntry* entry : chosen) {
      if (IsDirectory(*entry)) makings[DepthOf(*entry)].push_back(entry);
      (SetsAttributesAtLast(*entry) ? attributes[DepthOf(*entry)] : others).push_back(entry);
    }
    for (const auto& [depth, level] : makings) ForEach(level, [this](UnsentEntry& entry) { MakeDirectory(entry); });
    for (UnsentEntry& entry : entries_) {  // from here on no path changes
      if (IsSendable(entry) && (is_chosen_.contains(&entry) || awaited(entry))) left_.insert(entry.record->path);
    }
    if (same_sandbox_) others = MakeInRows(std::move(others));
    ForEach(others, [this](UnsentEntry& entry) { SendAndRemove(entry); });
    for (auto level = attributes.rbegin(); level != attributes.rend(); ++level) {
      ForEach(level->second, [this](UnsentEntry& entry) { SetAttributes(entry); });
    }
  }

 private:
  // The new directories that they are to be made in.
  void AddDirectoriesAbove(Entries& chosen) {
    is_chosen_.insert(chosen.begin(), chosen.end());
    std::set<std::string> above;
    for (const UnsentEntry* entry : chosen) {
      const std::string& path = entry->record->path;
      for (size_t slash = path.rfind('/'); slash != std::string::npos && slash > 0; slash = path.rfind('/', slash - 1)) {
        if (!above.insert(path.substr(0, slash)).second) break;
      }
    }
    for (UnsentEntry& entry : entries_) {
      if (IsSendable(entry) && IsDirectory(entry) && above.contains(entry.record->path) && !is_chosen_.contains(&entry)) chosen.push_back(&entry);
    }
  }

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

  // New links and small files, many by one question each. What is left has to be sent one by one.
  Entries MakeInRows(Entries entries) {
    std::map<std::string, int> of_path;
    for (const UnsentEntry* entry : entries) ++of_path[entry->record->path];
    const auto fits = std::ranges::stable_partition(entries, [&](const UnsentEntry* entry) { return !FitsIntoRow(*entry) || of_path[entry->record->path] > 1; });
    const Entries small(fits.begin(), fits.end());
    if (small.size() < kFewestInRow) return entries;
    entries.erase(fits.begin(), fits.end());
    for (size_t at = 0; at < small.size();) {
      Entries row;
      for (int64_t bytes = 0; at < small.size() && row.size() < transport::kMostNewObjects; ++at) {
        bytes += small[at]->record->change.SizeAfter(0);
        if (bytes > transport::kMostNewBytes) break;
        row.push_back(small[at]);
      }
      if (unreachable_ || no_rows_) entries.insert(entries.end(), row.begin(), row.end());
      else MakeRow(row, entries);
    }
    return entries;
  }

  // What was not made goes to `left`.
  void MakeRow(const Entries& row, Entries& left) {
    FaultPoint("replay.row");
    std::vector<Result<std::string>> contents(row.size());
    std::map<const UnsentEntry*, size_t> place;
    for (size_t i = 0; i < row.size(); ++i) place[row[i]] = i;
    ForEach(row, [&](UnsentEntry& entry) {
      Result<std::string>& content = contents[place[&entry]];
      content = entry.record->make->type == transport::FileType::kRegular ? ContentOfNewFile(entry) : std::string();
      if (auto noted = content ? NoteBegun(entry, true) : Result<void>(); !noted) content = Forward(noted.error());
    });
    Entries asked;
    std::vector<std::unique_ptr<StringSource>> sources;
    std::vector<transport::NewObject> objects;
    for (size_t i = 0; i < row.size(); ++i) {
      if (!contents[i]) {
        left.push_back(row[i]);  // it is told then
        continue;
      }
      const UnsentRecord& record = *row[i]->record;
      transport::NewObject object;
      const size_t slash = record.path.rfind('/');
      object.directory.path = slash == std::string::npos ? std::string() : record.path.substr(0, slash);
      object.name = record.path.substr(slash + 1);
      object.type = record.make->type;
      object.permissions = record.make->permissions;
      object.creator = record.make->creator;
      object.target = record.make->target;
      object.size = static_cast<int64_t>(contents[i]->size());
      object.attributes = record.change.attributes;
      sources.push_back(std::make_unique<StringSource>(std::move(*contents[i])));
      object.source = sources.back().get();
      objects.push_back(std::move(object));
      asked.push_back(row[i]);
    }
    OpContext ctx = OpContext::Within(times_.transfer, ServiceClass::kBulk);
    ctx.renewal = times_.transfer;
    FaultPoint("replay.row.noted");
    auto made = remote_.MakeObjects(objects, ctx);
    FaultPoint("replay.row.made");
    if (made && made->objects.size() != asked.size()) made = Failure(ErrorKind::kProtocol, EIO, "another number of new objects was answered");
    const bool none = !made && made.error().kind == ErrorKind::kErrno;
    no_rows_ = no_rows_ || none;
    std::map<const UnsentEntry*, size_t> answer;
    for (size_t i = 0; i < asked.size(); ++i) answer[asked[i]] = i;
    std::set<const UnsentEntry*> is_left;
    ForEach(asked, [&](UnsentEntry& entry) {
      const transport::MadeObject* object = made ? &made->objects[answer[&entry]] : nullptr;
      const bool is_open = object != nullptr && object->error && object->error->kind != ErrorKind::kErrno;  // what was done of it
      if (object != nullptr && object->attributes && object->attributes->type == entry.record->make->type && !is_open) {
        return Finish(entry, {SendOutcome::kSent, {}, object->error ? "its attributes were refused: " + ToString(*object->error) : ""});
      }
      const bool not_made = none || (object != nullptr && object->error && !object->attributes && !is_open);
      if (auto noted = not_made ? NoteBegun(entry, false) : Result<void>(); !noted) log::Warning("cache", "{}", ToString(noted.error()));
      std::lock_guard lock(mutex_);
      entry.record->being_sent = !not_made;
      is_left.insert(&entry);
    });
    std::ranges::copy_if(asked, std::back_inserter(left), [&](const UnsentEntry* entry) { return is_left.contains(entry); });
  }

  static Result<void> NoteBegun(const UnsentEntry& entry, bool begun) {
    UnsentRecord record = *entry.record;
    record.being_sent = begun;
    return WriteUnsentNote(entry.note, record);
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
    std::string waits_for;
    {
      std::lock_guard lock(mutex_);
      if (const auto found = made_.find(&entry); found != made_.end()) made = found->second;
      const std::string below = entry.record->path + "/";
      if (const auto left = left_.lower_bound(below); left != left_.end() && left->starts_with(below)) waits_for = *left;
    }
    if (made.outcome == SendOutcome::kFailed) return Tell(entry, made);
    if (!waits_for.empty()) {
      const std::string where = made.outcome == SendOutcome::kConflictCopy ? "as " + PrintableName(made.path) + ", since " + made.text : std::string("there");
      if (is_chosen_.contains(&entry)) Tell(entry, {SendOutcome::kFailed, {}, "it is " + where + "; it waits for what goes into it: " + PrintableName(waits_for)});
      return;
    }
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
    if (report.outcome != SendOutcome::kFailed) {
      if (const auto found = left_.find(entry.record->path); found != left_.end()) left_.erase(found);
    }
    tell_(entry, report);
  }

  transport::RemoteFs& remote_;
  std::vector<UnsentEntry>& entries_;
  const bool same_sandbox_;
  const SendTimes times_;
  const TellSent& tell_;
  std::atomic<bool> unreachable_{false};
  bool no_rows_ = false;  // they are refused
  std::mutex mutex_;
  std::map<const UnsentEntry*, SendReport> made_;
  std::set<const UnsentEntry*> is_chosen_;
  std::multiset<std::string> left_;  // paths: of what is not sent yet, and waited for
};

}  // namespace

UnsentOwner OwnerOf(const UnsentEntry& entry) { return {entry.record->sandbox_id, entry.record->user, entry.record->root, entry.record->scope}; }

void SendInOrder(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, const OfUnsent& chosen, const OfUnsent& awaited, bool same_sandbox,
                 const SendTimes& times, const TellSent& tell) {
  Entries sent;
  for (UnsentEntry& entry : entries) {
    if (IsSendable(entry) && chosen(entry)) sent.push_back(&entry);
  }
  OrderedSend(remote, entries, same_sandbox, times, tell).Run(std::move(sent), awaited);
}

size_t CountAccepted(const std::string& unsent_parent, const UnsentOwner& owner) {
  const std::vector<UnsentEntry> entries = ListUnsent(unsent_parent);
  return static_cast<size_t>(std::ranges::count_if(entries, [&](const UnsentEntry& entry) { return IsSendable(entry) && entry.record->accepted && OwnerOf(entry) == owner; }));
}

ReplayReport Replay(transport::RemoteFs& remote, const std::string& unsent_parent, const UnsentOwner& owner, const SendTimes& times, const TellSent& tell) {
  std::vector<UnsentEntry> entries = ListUnsent(unsent_parent);
  std::erase_if(entries, [&](const UnsentEntry& entry) { return !entry.record || OwnerOf(entry) != owner; });
  ReplayReport report;
  const OfUnsent accepted = [](const UnsentEntry& entry) { return entry.record->accepted; };
  SendInOrder(remote, entries, accepted, accepted, true, times,
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
