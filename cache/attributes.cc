// Attributes: what is fresh, what may be cached, and what the kernel is told.
#include <algorithm>
#include <tuple>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

bool LaterTime(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

timespec ToTimespec(std::chrono::nanoseconds since_epoch) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since_epoch);
  timespec time{};
  time.tv_sec = static_cast<time_t>(seconds.count());
  time.tv_nsec = static_cast<long>((since_epoch - seconds).count());
  return time;
}

// Lays later changes over earlier ones that are still to be sent.
void MergeAttributes(transport::AttributeChange& onto, const transport::AttributeChange& change) {
  if (change.permissions) onto.permissions = change.permissions;
  if (change.uid) onto.uid = change.uid;
  if (change.gid) onto.gid = change.gid;
  if (change.atime) onto.atime = change.atime;
  if (change.mtime) {
    onto.mtime = change.mtime;
    onto.mtime_is_implied = change.mtime_is_implied;
  }
}

// Permissions after a change of content by somebody who is not root, or after a change of the owner.
uint32_t WithoutSetIds(uint32_t permissions, bool in_group) {
  constexpr uint32_t kSetUser = 04000, kSetGroup = 02000, kGroupExecutes = 010;
  permissions &= ~kSetUser;
  // Without execution for the group it means something else, which members of the group may keep.
  if ((permissions & kGroupExecutes) != 0 || !in_group) permissions &= ~kSetGroup;
  return permissions;
}

}  // namespace

std::optional<uint32_t> CachedFsImpl::SetIdsCleared(const Node& node, const OpContext& ctx, bool of_owner) const {
  if (!node.is_regular()) return std::nullopt;
  const transport::Description& actor = remote_.description();
  const bool root = ctx.creator ? ctx.creator->uid == 0 : actor.uid == 0;
  if (root && !of_owner) return std::nullopt;
  uint32_t permissions = node.attributes.permissions, gid = node.attributes.gid;
  for (const Change* change : {&node.content->sending, &node.content->current}) {
    if (change->attributes.permissions) permissions = *change->attributes.permissions;
    if (change->attributes.gid) gid = *change->attributes.gid;
  }
  const uint32_t kept = WithoutSetIds(permissions, root || gid == (ctx.creator ? ctx.creator->gid : actor.gid));
  return kept == permissions ? std::nullopt : std::optional(kept);
}

bool CachedFsImpl::IsClearedBySandbox(const Node& node, const transport::AttributeChange& change, const OpContext& ctx) const {
  const transport::Description& actor = remote_.description();
  if (!actor.clears_set_ids || ctx.creator || actor.uid == 0 || node.attributes.uid == actor.uid) return false;
  if (!node.is_regular() || !change.permissions || (!change.size && node.open_writers == 0)) return false;
  return (node.attributes.permissions & 06000) != 0 && *change.permissions == WithoutSetIds(node.attributes.permissions, true);
}

void CachedFsImpl::ClearSetIds(Node& node, const OpContext& ctx) {
  if (!remote_.description().clears_set_ids) return;  // the kernel asks for it
  const auto kept = SetIdsCleared(node, ctx, false);
  if (!kept) return;
  // The other side does it where it acts as who writes; not to what is set after the content.
  auto& pending = node.content->current.attributes.permissions;
  if (ctx.creator || pending || node.content->sending.attributes.permissions) pending = kept;
}

std::optional<uint32_t> CachedFsImpl::AccessToCome(const Node& node) const {
  const transport::Description& actor = remote_.description();
  transport::Attributes mode;
  mode.type = node.attributes.type;
  mode.permissions = node.attributes.permissions;
  mode.uid = node.attributes.uid;
  bool waits = false;
  for (const Change* change : {&node.content->sending, &node.content->current}) {
    const transport::AttributeChange& set = change->attributes;
    if (set.permissions) mode.permissions = *set.permissions;
    if (set.uid) mode.uid = *set.uid;
    waits = waits || set.permissions || set.uid;
  }
  // Of root and the owner the mode alone decides. To others groups and ACLs matter, which the sandbox knows.
  if (!waits || (actor.uid != 0 && mode.uid != actor.uid)) return std::nullopt;
  return transport::AccessByMode(mode, actor.uid, actor.gid, {});
}

uint32_t CachedFsImpl::AccessThere(const Node& node) {
  return node.is_directory() ? node.attributes.access : node.attributes.access | 1;
}

uint32_t CachedFsImpl::AccessShown(const Node& node) const {
  const auto to_come = AccessToCome(node);
  return to_come ? *to_come & AccessThere(node) : node.attributes.access;
}

bool CachedFsImpl::ClosesSoon(const Node& node) const { return node.is_directory() && (AccessToCome(node).value_or(1) & 1) == 0; }

Result<void> CachedFsImpl::MayChangeNames(const Node& directory) const {
  if ((AccessToCome(directory).value_or(3) & 3) != 3) return Errno(EACCES, tree_.PathOf(directory));
  return {};
}

timespec CachedFsImpl::SandboxNow() const {
  auto now = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch());
  // A smaller difference cannot be told from the time that a request takes.
  if (std::chrono::abs(clock_offset_) >= std::chrono::seconds(1)) now += clock_offset_;
  return ToTimespec(now);
}

NodeAttributes CachedFsImpl::BuildAttributes(const Node& node, TimePoint now) const {
  NodeAttributes built;
  built.node = node.id;
  built.attributes = node.attributes;
  built.content_generation = node.content_generation;
  transport::Attributes& shown = built.attributes;
  if (node.ctime_shown && transport::SameTime(shown.ctime, node.ctime_shown->there)) shown.ctime = node.ctime_shown->here;
  if (made_here_.contains(node.id)) std::tie(shown.device, shown.inode) = std::pair(kMadeUpDevice, node.id);
  if (node.content->dirty()) {
    for (const Change* change : {&node.content->sending, &node.content->current}) {
      const transport::AttributeChange& set = change->attributes;
      if (set.permissions) shown.permissions = *set.permissions;
      if (set.uid) shown.uid = *set.uid;
      if (set.gid) shown.gid = *set.gid;
      if (set.atime) shown.atime = set.atime->value;
      if (set.mtime) {
        shown.mtime = set.mtime->value;
        if (LaterTime(shown.mtime, shown.ctime)) shown.ctime = shown.mtime;
      }
    }
    const bool writes = node.content->sending.touches_content() || node.content->current.touches_content();
    if (writes && !node.content->sending.attributes.permissions && !node.content->current.attributes.permissions &&
        remote_.description().clears_set_ids) {
      shown.permissions = SetIdsCleared(node, {}, false).value_or(shown.permissions);
    }
    shown.access = AccessShown(node);
    shown.size = node.size();
    if (node.is_regular()) shown.blocks = std::max(shown.blocks, (shown.size + 511) / 512);
    if (node.content->sending.cut || node.content->current.cut) shown.blocks = (shown.size + 511) / 512;
  } else if (!node.deleted && !node.unmade && node.changes_in_flight == 0 && node.fresh_until > now) {
    built.valid_for = Remaining(node.fresh_until, now);
  }
  shown.link_count += node.unmade_directories;
  if (node.deleted) shown.link_count = 0;
  return built;
}

NodeAttributes CachedFsImpl::BuildEntry(const Node& directory, const Node& node, TimePoint now) const {
  NodeAttributes built = BuildAttributes(node, now);
  // The kernel learns of changes a moment later, when nobody holds the directory: it would go by the old name after a lock was taken that shows the new one.
  if (directory.names_move_until > now) built.valid_for = {};
  return built;
}

bool CachedFsImpl::Fresh(const Node& node, TimePoint now) const {
  // With unsent changes the other side's attributes are not what counts; a deleted file is known here only.
  return node.deleted || node.has_unsent() || node.fresh_until > now;
}

void CachedFsImpl::ContentChanged(Node& node, bool for_the_kernel) {
  node.held.reset();
  if (node.content.exists()) ++node.content->base_epoch;
  if (!for_the_kernel) return;
  node.content_generation = ++generation_;
  DropSentBytes(node);
}

TimePoint CachedFsImpl::NameUntil(const Node& directory, uint64_t asked_stamp, TimePoint asked, std::chrono::milliseconds ttl) const {
  const bool covered = directory.watched && asked_stamp >= directory.unwatched_stamp && asked_stamp >= lost_stamp_ && ttl.count() > 0;
  return covered ? kWatched : asked + ttl;
}

TimePoint CachedFsImpl::NodeUntil(const Node& node, uint64_t asked_stamp, TimePoint asked, bool by_directory) const {
  if (node.attributes.being_written) return asked;
  const TimePoint unwatched = asked + options_.attribute_ttl;
  if (options_.attribute_ttl.count() == 0 || asked_stamp < lost_stamp_) return unwatched;
  if (node.is_directory()) return node.watched && asked_stamp >= node.watched_stamp ? kWatched : unwatched;
  // What is written by another name is told of there.
  if (node.attributes.link_count != 1 || !node.linked || node.places.size() != 1) return unwatched;
  // That a mark was taken away is told by no kernel.
  if (node.attributes.write_refusal == EPERM || node.attributes.appends_only) return unwatched;
  const NodePtr directory = tree_.Find(node.places.current().parent);
  const bool covered = directory && directory->watched && asked_stamp >= directory->unwatched_stamp && (by_directory || asked_stamp >= directory->watched_stamp);
  return covered ? kWatched : unwatched;
}

std::chrono::milliseconds CachedFsImpl::Remaining(TimePoint fresh_until, TimePoint now) const {
  if (fresh_until == kWatched) return options_.attribute_ttl;
  return std::chrono::duration_cast<std::chrono::milliseconds>(fresh_until - now);
}

bool CachedFsImpl::Absorb(Node& node, const transport::Attributes& attributes, uint64_t asked_stamp, TimePoint asked,
                          Origin origin, bool by_directory) {
  if (asked_stamp < node.stamp || node.changes_in_flight > 0 || node.deleted) return false;
  // Of another object, whatever was asked.
  if (attributes.type != node.attributes.type) return false;
  if (attributes.watched && IsOvertaken(attributes.id, asked_stamp)) return false;
  if (attributes.id.known() && node.file_id.known() && attributes.id != node.file_id) return false;
  // Where our appends lie depends on the size: only the store's answer moves them.
  if (node.content.exists() && (node.content->sending.append || node.content->current.append)) return false;
  if (node.is_regular() && (attributes.size != node.attributes.size ||
                            (origin == Origin::kAsked && !transport::SameTime(attributes.mtime, node.attributes.mtime)))) {
    ContentChanged(node, origin == Origin::kAsked);
    const bool is_ours = node.content.exists() && node.content->begun_bytes > 0 && attributes.size <= node.content->begun_bytes;
    if (origin == Origin::kAsked && node.content.exists() && !is_ours) node.content->fresh = false;  // somebody else wrote into it
  }
  TakeAttributes(node, attributes, asked);
  if (node.is_directory() && attributes.watched && asked_stamp >= lost_stamp_ && asked_stamp >= node.watched_stamp) {
    // From the next question on; this answer's own is covered by what it says.
    if (!node.watched) node.watched_stamp = asked_stamp;
    node.watched = true;
  }
  node.fresh_until = NodeUntil(node, asked_stamp, asked, by_directory);
  if (attributes.xattr_names) node.xattr_names_until = node.fresh_until;
  return true;
}

void CachedFsImpl::TakeAttributes(Node& node, const transport::Attributes& attributes, TimePoint asked) {
  if (node.held && !transport::IsSameVersion(node.held->version, attributes)) node.held.reset();
  auto names = node.attributes.xattr_names;
  node.attributes = attributes;
  if (attributes.xattr_names) {
    node.xattr_names_until = asked + options_.attribute_ttl;
  } else {
    node.attributes.xattr_names = std::move(names);  // not every answer carries them
  }
}

void CachedFsImpl::BeginChange(Node& node) {
  node.held.reset();
  node.stamp = ++stamp_;
  ++node.changes_in_flight;
}

void CachedFsImpl::EndChange(Node& node, const std::optional<transport::Attributes>& after, uint64_t asked_stamp,
                             TimePoint asked) {
  --node.changes_in_flight;
  // The answer tells the state after this change; not after another one that began later.
  if (!after || !Absorb(node, *after, asked_stamp, asked, Origin::kOwnChange)) node.fresh_until = {};
  node.stamp = ++stamp_;
  if (!node.content.exists() || !node.content->base_moves) return;
  Content& content = *node.content;
  content.base_moves = node.changes_in_flight > 0;
  if (!after || !content.dirty()) return;
  content.base = UnsentBase{content.base.id, after->size, after->mtime, after->ctime, after->permissions};
  NoteUnsent(node);
}

Result<transport::Attributes> CachedFsImpl::AskAttributes(const NodePtr& node, const OpContext& ctx) {
  transport::Handle handle;
  {
    Lock lock(mutex_);
    handle = node->write_handle != 0 ? node->write_handle : node->read_handle;
  }
  if (handle != 0) {
    auto answer = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.StatHandle(handle, at, ctx); });
    if (answer || answer.error().kind != ErrorKind::kErrno) return answer;
  }
  auto answer = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.Stat(at, ctx); });
  if (answer && handle != 0) {
    Lock lock(mutex_);
    DropHandle(*node, handle);  // the file is there, and the handle is not
  }
  return answer;
}

Result<void> CachedFsImpl::Refresh(const NodePtr& node, bool even_if_fresh, const OpContext& ctx) {
  {
    Lock lock(mutex_);
    if (node->deleted || node->unmade || (!even_if_fresh && Fresh(*node, Clock::now()))) return {};
  }
  if (!even_if_fresh && RefreshedByListing(node, ctx)) return {};
  auto ask = [&]() -> Result<bool> {
    for (int attempt = 0;; ++attempt) {
      uint64_t asked_stamp;
      {
        Lock lock(mutex_);
        asked_stamp = stamp_;
      }
      const TimePoint asked = Clock::now();
      auto answer = AskAttributes(node, ctx);
      Lock lock(mutex_);
      if (!answer) {
        node->fresh_until = {};
        return Forward(answer.error());
      }
      if (answer->id.known() && node->file_id.known() && answer->id != node->file_id) {
        node->fresh_until = {};
        return Errno(ESTALE, tree_.PathOf(*node));
      }
      if (!node->file_id.known()) tree_.Rekey(*node, answer->id);
      if (Absorb(*node, *answer, asked_stamp, asked, Origin::kAsked)) return true;
      if (answer->type != node->attributes.type) return Errno(ESTALE, tree_.PathOf(*node));
      // Older than a change made here. What that change told may do; after some tries what is known has to do.
      if (Fresh(*node, Clock::now()) || attempt >= 2) return false;
    }
  };
  // Without a time to live nobody may be given an answer to a question that was asked before his own.
  if (options_.attribute_ttl.count() == 0 || even_if_fresh) {
    auto answer = ask();
    if (!answer) return Forward(answer.error());
    return {};
  }
  auto answer = refreshes_.Do(std::to_string(node->id), ctx, ask);
  if (!answer) return Forward(answer.error());
  return {};
}

Result<NodeAttributes> CachedFsImpl::GetAttributes(NodeId id, const OpContext& context) {
  static Counter& hits = Metrics::Get("cache.attribute_hits_count");
  static Counter& misses = Metrics::Get("cache.attribute_misses_count");
  const OpContext ctx = ForNames(context);
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    const TimePoint now = Clock::now();
    const bool fresh = Fresh(*node, now);
    (fresh ? hits : misses).Add();
    if (fresh) return BuildAttributes(*node, now);
  }
  if (auto refreshed = Refresh(node, false, ctx); !refreshed) return Forward(refreshed.error());
  Lock lock(mutex_);
  return BuildAttributes(*node, Clock::now());
}

Result<NodeAttributes> CachedFsImpl::Stat(NodeId id, const OpContext& context) {
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
  }
  if (!SendBeforeStat(node, ForNames(context))) return GetAttributes(id, context);
  Lock lock(mutex_);
  return BuildAttributes(*node, Clock::now());
}

bool CachedFsImpl::MayDeferAttributes(const Node& node) const {
  if (!options_.writeback || node.deleted) return false;
  return node.unmade || node.content->accepted || node.content->sending_accepted || (node.is_directory() && node.ours);
}

Result<NodeAttributes> CachedFsImpl::SetAttributes(NodeId id, FileHandle handle,
                                                   const transport::AttributeChange& asked_change,
                                                   const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (auto may = MayChange(); !may) return Forward(may.error());
  transport::AttributeChange change = asked_change;
  NodePtr node;
  bool send_now = false, needs_journal = false;
  std::mutex* write_mutex;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    if (change.size && !node->is_regular()) return Errno(node->is_directory() ? EISDIR : EINVAL, "truncate");
    if (change.size && *change.size < 0) return Errno(EINVAL, "truncate");
    write_mutex = &node->content->write_mutex;
    needs_journal = MayDeferAttributes(*node) && !node->content->spool;
  }
  std::shared_ptr<SpoolFile> journal;
  if (needs_journal) journal = spool_.NewFile().value_or(nullptr);
  // The write lock keeps a truncate and a write of two threads apart.
  std::unique_lock<std::mutex> writing;
  for (bool unmoved = false; !unmoved;) {
    if (writing.owns_lock()) writing.unlock();
    Lock lock(mutex_);
    if (!WaitUntilUnmoved(lock, *node, ctx)) return WaitEnded(ctx, "changing attributes");
    lock.unlock();
    writing = std::unique_lock(*write_mutex);
    lock.lock();
    unmoved = IsUnmoved(*node);
  }
  {
    Lock lock(mutex_);
    if (MayDeferAttributes(*node) && !node->content->spool) node->content->spool = std::move(journal);
    const bool behind = MayDeferAttributes(*node) && node->content->spool;  // it is accepted, and sent later
    bool created_open = false;
    bool writable = false;  // by a handle whose flush is still to come
    for (const auto& [number, file] : files_) {
      if (file->node != node || !file->flags.write) continue;
      if (number == handle) file->flushed = false;
      if (number == handle && change.size) file->wrote = file->has_written = true;
      if (file->flushed) continue;
      writable = true;
      if (file->created) created_open = true;
    }
    const bool as_root = remote_.description().uid == 0;
    const bool cleared_there = IsClearedBySandbox(*node, change, ctx);
    if (cleared_there) change.permissions.reset();
    if (!change.permissions && (change.uid || change.gid || (change.size && ctx.creator))) {
      if (auto kept = SetIdsCleared(*node, ctx, change.uid || change.gid)) change.permissions = kept;
    }
    if (change.size && (writable || node->has_unsent() || node->deleted)) {
      if (handle == 0 && (AccessShown(*node) & 2) == 0) return Errno(EACCES, tree_.PathOf(*node));
      // Truncation of an open file goes with its content; of one whose last store failed, at once.
      // So does that of a file which another program has open: whoever truncates by name expects it there when he is told.
      send_now = (!writable || handle == 0) && !node->deleted && !behind;
      RecordTruncate(*node, *change.size);
      ClearSetIds(*node, ctx);
      change.size.reset();
    }
    const bool travels = node->deleted || behind || (writable && (created_open || node->content->dirty()));
    if (travels && !change.empty() && !change.size) {
      transport::AttributeChange kept;  // what has to be asked for now, since it can be refused
      if ((change.uid || change.gid) && !as_root && !node->deleted) {
        kept.uid = std::exchange(change.uid, std::nullopt);
        kept.gid = std::exchange(change.gid, std::nullopt);
        // chown clears the set-id bits, so the mode that waits goes with it.
        kept.permissions = std::exchange(change.permissions, std::nullopt);
        if (!kept.permissions && node->content->current.attributes.permissions) {
          kept.permissions = std::exchange(node->content->current.attributes.permissions, std::nullopt);
        }
      }
      for (auto* time : {&change.atime, &change.mtime}) {
        if (*time && (*time)->now) **time = transport::TimeChange{false, SandboxNow()};
      }
      NoteBase(*node);
      MergeAttributes(node->content->current.attributes, change);
      node->content->untried = true;
      if (!node->content->current.empty()) dirty_.insert(node->id);
      NoteUnsent(*node);
      change = kept;
      if (!kept.empty() && behind) send_now = true;  // in this order
    }
    if (behind && !writable && !send_now) send_now = !Accept(*node) && node->has_unsent();
    // What it gives has to be there before use is made of it.
    if (behind && !as_root && (node->content->sending.attributes.permissions || (AccessToCome(*node).value_or(0) & ~AccessThere(*node)) != 0)) send_now = true;
    if (change.empty() && !send_now) {
      NodeAttributes built = BuildAttributes(*node, Clock::now());
      if (cleared_there) {  // the kernel takes it for done, and writes
        built.attributes.permissions = *asked_change.permissions;
        built.valid_for = {};
      }
      return built;
    }
  }
  writing.unlock();
  if (send_now) {
    if (auto sent = Send(node, nullptr, ForTransfer(context)); !sent) return Forward(sent.error());
  }
  if (change.empty()) {
    Lock lock(mutex_);
    return BuildAttributes(*node, Clock::now());
  }
  return SendAttributes(node, change, ctx);
}

Result<NodeAttributes> CachedFsImpl::SendAttributes(const NodePtr& node, transport::AttributeChange change,
                                                    const OpContext& ctx) {
  bool opened = false;
  {
    Lock lock(mutex_);
    opened = node->open_files > 0;
  }
  // An open file stays usable when its new mode would not let it be opened any more.
  if (opened && (change.permissions || change.uid || change.gid)) OpenHandlesInUse(node, ctx);
  uint64_t asked_stamp;
  {
    Lock lock(mutex_);
    BeginChange(*node);
    asked_stamp = stamp_;
  }
  const TimePoint asked = Clock::now();
  auto changed = AtObject(node, ctx, [&](transport::Handle handle, const transport::Node& at) {
    return remote_.SetAttributes(at, handle, change, ctx);
  });
  bool refresh = false;
  {
    Lock lock(mutex_);
    std::optional<transport::Attributes> after;
    if (changed) after = changed->object;
    if (change.size) ContentChanged(*node, false);
    EndChange(*node, after, asked_stamp, asked);
    if (!changed) return Forward(changed.error());
    if (change.size) DropSentBytes(*node);
    refresh = !Fresh(*node, Clock::now());
    if (!refresh || after) return BuildAttributes(*node, Clock::now());
  }
  if (auto refreshed = Refresh(node, false, ctx); !refreshed) return Forward(refreshed.error());
  Lock lock(mutex_);
  return BuildAttributes(*node, Clock::now());
}

}  // namespace e2bfs::cache
