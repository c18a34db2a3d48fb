// -o writeback: what is accepted here, and sent behind the programs' backs. The states and the rules are in cache/DESIGN.md.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "cache/recovery.h"
#include "cache/spool_source.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"
#include "transport/base/waiting.h"

namespace e2bfs::cache {
namespace {

// More of it may follow at once, so what was accepted waits so long for company.
constexpr auto kQuiet = std::chrono::milliseconds(100);
constexpr auto kMostDelay = std::chrono::seconds(3);
constexpr auto kFirstRetry = std::chrono::seconds(1);
constexpr auto kMostRetry = std::chrono::seconds(30);
// Content up to this size goes with the file's making; longer one follows by itself.
constexpr int64_t kMostInRow = 256 << 10;
// In a row that needs no space but that of what it makes.
constexpr int64_t kMostInPlainRow = 16 << 10;
constexpr uint32_t kOwnerWrites = 0200;
constexpr uint64_t kRefusalsBeforePutAside = 3;
constexpr int kMostConflictNames = 100;

std::chrono::milliseconds RetryAfter(uint64_t tries) {
  std::chrono::milliseconds wait = kFirstRetry;
  for (uint64_t i = 1; i < tries && wait < kMostRetry; ++i) wait *= 2;
  return WithJitter(std::min<std::chrono::milliseconds>(wait, kMostRetry));
}

transport::Node NodeAt(const transport::Name& name, const transport::Attributes& there) {
  return {name.parent.path.empty() ? name.name : name.parent.path + "/" + name.name, there.id, name.parent.id};
}

}  // namespace

struct CachedFsImpl::Row {
  struct Item {
    NodePtr node;
    Change sent;
    bool with_content = false;
    bool again = false;        // it was not made, and nothing hinders that any more
    std::unique_ptr<SpoolSource> source;
  };
  std::vector<Item> items;
  std::vector<transport::NewObject> objects;  // of the items
  std::vector<NodePtr> parents;               // a change of each of them is on its way
  int64_t bytes = 0;
  uint64_t asked_stamp = 0;
  TimePoint asked{};
  std::optional<TimePoint> retry_at;          // of all of it: it failed as a whole
};

bool CachedFsImpl::IsForNow(const Error& error) {
  if (error.kind != ErrorKind::kErrno) return true;
  switch (error.errno_value) {
    case ENOSPC: case EDQUOT: case EIO: case ENOMEM: case EMFILE: case ENFILE: case EAGAIN: return true;
    default: return false;
  }
}

bool CachedFsImpl::IsUnmoved(const Node& node) const {
  if (unmoved_.empty()) return true;
  const std::string path = tree_.PathOf(node);
  return std::none_of(unmoved_.begin(), unmoved_.end(), [&](const std::string& moved) {
    return path.starts_with(moved) && (path.size() == moved.size() || moved.empty() || path[moved.size()] == '/');
  });
}

bool CachedFsImpl::WaitUntilUnmoved(Lock& lock, const Node& node, const OpContext& ctx) {
  return WaitWithin(moved_, lock, ctx, [&] { return IsUnmoved(node); });
}

uint64_t CachedFsImpl::NextOrder() {
  const auto now = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  last_order_ = std::max(last_order_ + 1, static_cast<uint64_t>(std::max<int64_t>(now, 0)));
  return last_order_;
}

void CachedFsImpl::Accepted() {
  last_accepted_ = Clock::now();
  if (first_accepted_ == TimePoint{}) first_accepted_ = last_accepted_;
  unsynced_ = true;
  SomethingToSend();
}

void CachedFsImpl::SomethingToSend() {
  ++behind_count_;
  behind_.notify_all();
}

// At the release, not at the flush: what flushes may be a copy of a descriptor that goes on writing, as in a shell's redirection.
void CachedFsImpl::SendInTime(const OpenFile& closed) {
  if (closed.has_written && (closed.node->content->accepted || closed.node->content->sending_accepted)) {
    TimePoint& by = closed.node->content->send_by;
    by = std::min(by, Clock::now() + kMostDelay);
  }
  SomethingToSend();
}

bool CachedFsImpl::MayMakeHere(Node& parent, const std::string& name) const {
  if (!options_.writeback || !parent.ours || parent.deleted || (AccessShown(parent) & 3) != 3 || dirty_.size() >= most_unsent_) return false;
  const TimePoint now = Clock::now();
  if (!parent.unmade && parent.listed_until <= now) return false;
  const Child* child = Tree::FindChild(parent, name);
  return !child || (child->node == 0 && (parent.unmade || child->fresh_until > now));
}

transport::Attributes CachedFsImpl::AttributesOfNew(const Node& parent, const UnsentMaking& making) const {
  static const auto kNoNames = std::make_shared<const std::vector<std::string>>();
  constexpr uint32_t kSetGroup = 02000;
  constexpr int64_t kDirectoryBytes = 4096;
  const transport::Description& actor = remote_.description();
  transport::Attributes made;
  made.type = making.type;
  made.permissions = making.permissions;
  made.uid = making.creator ? making.creator->uid : actor.uid;
  made.gid = making.creator ? making.creator->gid : actor.gid;
  if (!making.creator) made.owner = actor.user;
  if ((parent.attributes.permissions & kSetGroup) != 0) {
    made.gid = parent.attributes.gid;
    if (making.type == transport::FileType::kDirectory) made.permissions |= kSetGroup;
  }
  if (making.type == transport::FileType::kSymlink) {
    made.permissions = 0777;
    made.size = static_cast<int64_t>(making.target.size());
  }
  if (making.type == transport::FileType::kDirectory) {
    made.size = kDirectoryBytes;
    made.blocks = kDirectoryBytes / 512;
    made.link_count = 2;
  }
  made.atime = made.mtime = made.ctime = SandboxNow();
  made.access = transport::AccessByMode(made, actor.uid, actor.gid, {});
  made.xattr_names = kNoNames;
  return made;
}

void CachedFsImpl::NameChangedHere(Node& directory) {
  directory.attributes.mtime = directory.attributes.ctime = SandboxNow();
  if (!directory.content.exists()) return;
  // What was set before is over.
  Change& pending = directory.content->current;
  if (!pending.attributes.mtime) return;
  pending.attributes.mtime.reset();
  if (!directory.has_unsent()) dirty_.erase(directory.id);
  NoteUnsent(directory);
}

Result<NodePtr> CachedFsImpl::MakeHere(NodeId parent_id, const std::string& name, const UnsentMaking& making, const OpContext& ctx) {
  if (!options_.writeback || !IsName(name)) return NodePtr();
  NodePtr parent;
  bool relist = false;
  {
    Lock lock(mutex_);
    parent = tree_.Find(parent_id);
    if (!parent || !parent->ours) return NodePtr();
    relist = !parent->unmade && parent->listed_until <= Clock::now();
    if (!relist && !MayMakeHere(*parent, name)) return NodePtr();
    ++parent->pins;
  }
  struct Pin {
    ~Pin() {
      Lock lock(fs.mutex_);
      --node->pins;
    }
    CachedFsImpl& fs;
    const NodePtr& node;
  } pin{*this, parent};
  // Where it is not watched: whether somebody else was there.
  if (relist && !TakeSnapshot(parent, ListedFor::kLookups, ctx)) return NodePtr();
  auto spool = spool_.NewFile();
  if (!spool) return NodePtr();  // this disk takes nothing: without it, then
  Lock lock(mutex_);
  if (!WaitUntilUnmoved(lock, *parent, ctx)) return WaitEnded(ctx, "making " + name);
  if (!MayMakeHere(*parent, name)) return NodePtr();
  const NodePtr node = tree_.GetOrMake(AttributesOfNew(*parent, making), nullptr);
  Child& child = tree_.Attach(*parent, name, *node);
  child.stamp = node->stamp = ++stamp_;
  child.fresh_until = node->link_fresh_until = node->xattr_names_until = kWatched;
  node->unmade = std::make_unique<Unmade>();
  node->unmade->making = making;
  node->unmade->order = NextOrder();
  node->ours = node->is_directory();
  node->listed_until = node->is_directory() ? kWatched : TimePoint{};
  if (making.type == transport::FileType::kSymlink) node->link_text = making.target;
  ++node->pins;
  Content& content = *node->content;
  content.spool = std::move(*spool);
  content.fresh = node->is_regular();
  NoteBase(*node);
  FaultPoint("accept.making");
  NoteUnsent(*node);
  unmade_.emplace(node->unmade->order, node->id);
  if (node->is_directory()) ++parent->unmade_directories;
  if (!content.spool->note().says()) {
    EndUnmade(*node);
    DiscardUnsent(*node);
    tree_.Detach(*parent, name);
    return NodePtr();
  }
  dirty_.insert(node->id);
  made_here_.insert(node->id);
  NameChangedHere(*parent);
  Accepted();
  FaultPoint("accept.made");
  ++node->references;
  return node;
}

Result<bool> CachedFsImpl::RemoveHere(NodeId parent_id, const std::string& name, bool directory, const OpContext& ctx) {
  if (!options_.writeback) return false;
  NodePtr node;
  {
    Lock lock(mutex_);
    const NodePtr parent = tree_.Find(parent_id);
    if (!parent || !parent->is_directory()) return false;
    if (!WaitUntilUnmoved(lock, *parent, ctx)) return WaitEnded(ctx, "removing " + name);
    if (auto may = MayChangeNames(*parent); !may) return Forward(may.error());
    const Child* child = Tree::FindChild(*parent, name);
    node = child && child->node ? tree_.Find(child->node) : nullptr;
    if (!node) return false;
    if (directory && node->is_directory()) {
      // There it may be empty.
      for (const auto& [below, entry] : node->children) {
        const NodePtr in_it = entry.node ? tree_.Find(entry.node) : nullptr;
        if (in_it && in_it->unmade) return Errno(ENOTEMPTY, tree_.PathOf(*node));
      }
    }
    if (!node->unmade) return false;
    if (!node->unmade->being_made && !node->unmade->maybe_made && node->is_directory() == directory) {
      FaultPoint("accept.removing");
      EndUnmade(*node);
      node->deleted = true;
      node->attributes.link_count = 0;
      NoteUnsent(*node);
      if (node->open_files == 0) DiscardUnsent(*node);
      Child& gone = tree_.Detach(*parent, name);
      gone.stamp = ++stamp_;
      gone.fresh_until = parent->unmade ? kWatched : parent->listed_until;
      NameChangedHere(*parent);
      settled_.notify_all();
      FaultPoint("accept.removed");
      return true;
    }
    ++node->pins;
  }
  auto settled = Settle(node, ctx);
  Lock lock(mutex_);
  --node->pins;
  if (!settled) return Forward(settled.error());
  return false;
}

bool CachedFsImpl::Accept(Node& node) {
  Content& content = *node.content;
  if (!options_.writeback || !content.spool || !node.has_unsent()) return false;
  if (!node.unmade && !content.accepted && dirty_.size() >= most_unsent_) return false;
  if (!content.accepted && !content.sending_accepted) content.send_by = TimePoint::max();
  const bool before = std::exchange(content.accepted, true);
  if (content.order == 0) content.order = node.unmade ? node.unmade->order : NextOrder();
  content.retry_at = {};
  FaultPoint("accept.closing");
  NoteUnsent(node);
  if (!content.spool->note().says()) {
    content.accepted = before;  // what was promised stays so
    return false;
  }
  Accepted();
  FaultPoint("accept.closed");
  return true;
}

Result<bool> CachedFsImpl::AcceptFile(const NodePtr& node, const OpContext& ctx) {
  if (!options_.writeback) return false;
  Lock lock(mutex_);
  if (!WaitUntilUnmoved(lock, *node, ctx)) return WaitEnded(ctx, "accepting what was written");
  if (node->deleted) return false;
  return Accept(*node);
}

void CachedFsImpl::EndUnmade(Node& node) {
  if (!node.unmade) return;
  if (node.content.exists()) node.content->beside.reset();
  unmade_.erase(node.unmade->order);
  node.unmade.reset();
  --node.pins;
  const NodePtr parent = node.is_directory() ? tree_.Find(node.places.current().parent) : nullptr;
  if (parent && parent->unmade_directories > 0) --parent->unmade_directories;
}

Result<void> CachedFsImpl::SettleAll(const std::vector<NodePtr>& nodes, const OpContext& ctx) {
  Lock lock(mutex_);
  std::vector<std::pair<NodePtr, uint64_t>> waiting;  // and the tries before
  for (const NodePtr& node : nodes) {
    for (NodePtr at = node; at && at->unmade; at = tree_.Find(at->places.current().parent)) {
      at->unmade->retry_at = {};
      at->unmade->wanted = true;
      if (at == node) waiting.emplace_back(node, node->unmade->tries);
    }
  }
  if (waiting.empty()) return {};
  ++wanted_;
  SomethingToSend();
  const bool ended = WaitWithin(settled_, lock, ctx, [&] {
    return std::ranges::all_of(waiting, [](const auto& each) { return !each.first->unmade || each.first->unmade->tries != each.second; });
  });
  --wanted_;
  for (const auto& [node, tries] : waiting) {
    if (node->unmade && node->unmade->error && node->unmade->tries != tries) return Forward(*node->unmade->error);
  }
  if (!ended) return WaitEnded(ctx, "waiting until it is made in the sandbox");
  return {};
}

Result<void> CachedFsImpl::Settle(const NodePtr& node, const OpContext& ctx) {
  if (!options_.writeback) return {};
  {
    Lock lock(mutex_);
    if (!node->unmade) return {};
  }
  return SettleAll({node}, ctx);
}

Result<void> CachedFsImpl::SettleName(NodeId parent_id, const std::string& name, const OpContext& ctx) {
  if (!options_.writeback) return {};
  NodePtr node;
  {
    Lock lock(mutex_);
    const NodePtr parent = tree_.Find(parent_id);
    const Child* child = parent ? Tree::FindChild(*parent, name) : nullptr;
    node = child && child->node ? tree_.Find(child->node) : nullptr;
  }
  if (!node) return {};
  return Settle(node, ctx);
}

CachedFsImpl::Row CachedFsImpl::CollectRow(TimePoint* retry_at) {
  Row row;
  *retry_at = TimePoint::max();
  std::unordered_map<NodeId, size_t> in_row;
  // A directory that failed since somebody waited for it is wanted for what was to go there.
  for (const auto& [order, id] : unmade_) {
    const NodePtr node = tree_.Find(id);
    if (!node->unmade->wanted) continue;
    for (NodePtr at = tree_.Find(node->places.current().parent); at && at->unmade && !at->unmade->wanted; at = tree_.Find(at->places.current().parent)) {
      at->unmade->wanted = true;
    }
  }
  // First what somebody waits for, with what that is in.
  for (const bool wanted : {true, false}) {
    for (const auto& [order, id] : unmade_) {
      const NodePtr node = tree_.Find(id);
      if (node->unmade->wanted != wanted) continue;
      if (!AddToRow(row, in_row, node, retry_at)) break;
    }
  }
  for (const Row::Item& item : row.items) item.node->unmade->wanted = false;
  if (single_rows_ > 0) --single_rows_;
  row.asked_stamp = ++stamp_;
  row.asked = Clock::now();
  return row;
}

bool CachedFsImpl::AddToRow(Row& row, std::unordered_map<NodeId, size_t>& in_row, const NodePtr& node, TimePoint* retry_at) {
  const int64_t most_bytes = plain_rows_ || single_rows_ > 0 ? kMostInPlainRow : transport::kMostNewBytes;
  if (row.items.size() >= (single_rows_ > 0 ? 1 : transport::kMostNewObjects)) return false;
  Unmade& unmade = *node->unmade;
  if (unmade.retry_at > Clock::now()) {
    *retry_at = std::min(*retry_at, unmade.retry_at);
    return true;
  }
  const NodePtr parent = tree_.Find(node->places.current().parent);
  transport::NewObject object;
  if (parent->unmade) {
    const auto made_in = in_row.find(parent->id);
    if (made_in == in_row.end()) return true;  // that has to wait, too
    object.made_in = made_in->second;
  } else {
    object.directory = tree_.Address(*parent);
  }
  Content& content = *node->content;
  Row::Item item;
  item.node = node;
  const int64_t size = node->is_regular() ? node->size() : 0;
  // Whoever has made it may write to it; by any other way the sandbox lets nobody but root.
  const bool only_by_descriptor = node->is_regular() && remote_.description().uid != 0 && (unmade.making.permissions & kOwnerWrites) == 0;
  item.with_content = !content.current.empty() && !node->is_directory() && WritingEnded(*node) && !content.storing && !content.early &&
                      size <= std::min(kMostInRow, most_bytes) && !(only_by_descriptor && node->open_writers > 0);
  if (item.with_content && row.bytes + size > most_bytes) return false;
  object.name = node->places.current().name;
  object.type = unmade.making.type;
  object.permissions = unmade.making.permissions;
  if (only_by_descriptor && !item.with_content && (!content.current.empty() || node->open_writers > 0)) {
    object.permissions |= kOwnerWrites;  // its mode comes with its content
    auto& pending = content.current.attributes.permissions;
    if (!pending) pending = unmade.making.permissions;
  }
  object.creator = unmade.making.creator;
  object.target = unmade.making.target;
  if (item.with_content) {
    object.size = size;
    item.source = std::make_unique<SpoolSource>(content.spool, content);
    object.source = item.source.get();
    row.bytes += size;
    item.sent = content.sending = std::exchange(content.current, {});
    content.sending_accepted = std::exchange(content.accepted, false);
    content.storing = true;
    content.untried = content.not_early = false;
    object.attributes = item.sent.attributes;
    BeginChange(*node);
  }
  if (!node->is_directory() && !object.attributes.mtime) {
    object.attributes.mtime = transport::TimeChange{false, node->attributes.mtime};
    object.attributes.mtime_is_implied = true;
  }
  if (object.attributes.mtime) unmade.sent_mtime = object.attributes.mtime->value;
  unmade.being_made = true;
  unmade.maybe_made = unmade.maybe_made || (content.beside && content.beside->being_sent);
  unmade.overtaken = false;
  content.beside.reset();
  NoteUnsent(*node);  // should this process end now, what is found there is known for ours
  if (!parent->unmade && std::ranges::find(row.parents, parent) == row.parents.end()) {
    row.parents.push_back(parent);
    BeginChange(*parent);
    ++parent->pins;
  }
  in_row.emplace(node->id, row.items.size());
  row.items.push_back(std::move(item));
  row.objects.push_back(std::move(object));
  return true;
}

void CachedFsImpl::MakeRow(Row& row, std::stop_token stop) {
  OpContext ctx;
  ctx.stop = stop;
  ctx.service_class = ServiceClass::kBulk;
  FaultPoint("make.sending");
  auto made = remote_.MakeObjects(row.objects, ForTransfer(ctx));
  FaultPoint("make.answered");
  for (Row::Item& item : row.items) item.source.reset();  // its place in the spool is free when it is sent
  log::Debug("cache", "{} new objects with {} bytes: {}", row.items.size(), row.bytes, made ? "answered" : ToString(made.error()));
  if (made && made->objects.size() != row.items.size()) made = Failure(ErrorKind::kProtocol, EIO, "another number of new objects was answered");
  {
    Lock lock(mutex_);
    row_failures_ = made ? 0 : row_failures_ + 1;
    plain_rows_ = !made && made.error().kind == ErrorKind::kErrno;  // a large row is put somewhere first, and may find no space there
    if (!made) {
      row.retry_at = Clock::now() + RetryAfter(row_failures_);
      if (row_failures_ == 1) log::Warning("cache", "{} new objects are not made in the sandbox yet: {}", row.items.size(), ToString(made.error()));
      const bool by_itself = made.error().kind == ErrorKind::kLocal || made.error().kind == ErrorKind::kBadRequest;
      if (by_itself && row.items.size() > 1) single_rows_ = row.items.size();
    }
    for (const NodePtr& parent : row.parents) {
      std::optional<transport::Attributes> after;
      for (const transport::Attributes& each : made ? made->directories : std::vector<transport::Attributes>()) {
        if (each.id.known() && each.id == parent->file_id) after = each;
      }
      EndChange(*parent, after, row.asked_stamp, row.asked);
      --parent->pins;
    }
  }
  for (size_t at = 0; at < row.items.size(); ++at) {
    if (!made) {
      NotMade(row, at, made.error(), stop);
      continue;
    }
    const transport::MadeObject& object = made->objects[at];
    if (object.attributes && object.attributes->type == row.objects[at].type && object.attributes->id.known()) {
      Made(row, at, *object.attributes, object.error);
    } else {
      NotMade(row, at, object.error && !object.attributes ? *object.error : Failure(ErrorKind::kProtocol, EIO, "something else was made").value(), stop);
    }
  }
  {
    Lock lock(mutex_);
    settled_.notify_all();
  }
  FaultPoint("make.done");
}

void CachedFsImpl::Made(Row& row, size_t at, const transport::Attributes& attributes, const std::optional<Error>& refused) {
  const Row::Item& item = row.items[at];
  const NodePtr& node = item.node;
  bool overtaken = false;
  {
    std::lock_guard writing(node->content->write_mutex);
    Lock lock(mutex_);
    if (!node->unmade && !item.with_content) return;  // it was put aside meanwhile
    ++node->pins;
    overtaken = node->unmade && node->unmade->overtaken;
    EndUnmade(*node);
    tree_.Rekey(*node, attributes.id);
    node->attributes.id = attributes.id;
    const NodePtr parent = tree_.Find(node->places.current().parent);
    Child* child = parent ? Tree::FindChild(*parent, node->places.current().name) : nullptr;
    if (child && child->node == node->id) child->fresh_until = overtaken ? TimePoint{} : NameUntil(*parent, row.asked_stamp, row.asked, options_.attribute_ttl);
    if (overtaken && parent) parent->ours = false;
    node->xattr_names_until = {};
    Content& content = *node->content;
    if (!item.with_content) {
      if (content.dirty()) content.base = UnsentBase{attributes.id, attributes.size, attributes.mtime, attributes.ctime, attributes.permissions};
      if (!remote_.description().identities_survive_renames) content.base.id = {};
      node->ctime_shown = TimeShown{attributes.ctime, node->attributes.ctime};
      const bool in_use = overtaken || IsOvertaken(node->file_id, row.asked_stamp);
      node->stamp = row.asked_stamp;
      node->fresh_until = {};
      Absorb(*node, attributes, row.asked_stamp, row.asked, Origin::kOwnChange, true);
      if (in_use) node->fresh_until = {};
      if (node->is_directory()) {
        node->ours = node->ours && !in_use;
        node->listed_until = in_use ? TimePoint{} : NameUntil(*node, row.asked_stamp, row.asked, options_.attribute_ttl);
        for (auto& [name, entry] : node->children) {
          if (entry.node == 0) entry.fresh_until = node->listed_until;
        }
      }
      node->link_fresh_until = node->fresh_until;
      content.last_error.reset();
      if (!content.dirty()) content.accepted = false;
      if (!node->has_unsent()) dirty_.erase(node->id);
      NoteUnsent(*node);
      if (node->open_files == 0) DropSentBytes(*node);
    }
    if (refused) {
      NoteError(tree_.PathOf(*node), *refused);
      log::Warning("cache", "{}: its attributes were refused: {}", tree_.PathOf(*node), ToString(*refused));
      TellWriters(*node, nullptr, *refused);
    }
  }
  FaultPoint("make.one");
  if (item.with_content) StoreSucceeded(node, item.sent, attributes, row.asked_stamp, row.asked);
  Lock lock(mutex_);
  if (overtaken) node->fresh_until = {};
  --node->pins;
}

void CachedFsImpl::TriedToMake(Unmade& unmade, const Error& error) {
  unmade.error = error;
  ++unmade.tries;
  if (!IsForNow(error)) ++unmade.refusals;
}

// What was to go there by a later row failed with it: whoever waits for it is told, too.
void CachedFsImpl::TriedToMakeBelow(const NodePtr& directory, const Error& error) {
  for (std::vector<NodePtr> directories{directory}; !directories.empty();) {
    const NodePtr above = directories.back();
    directories.pop_back();
    for (const auto& [name, child] : above->children) {
      const NodePtr below = child.node ? tree_.Find(child.node) : nullptr;
      if (!below || !below->unmade || below->unmade->being_made) continue;  // of the same row: it has its own answer
      TriedToMake(*below->unmade, error);
      below->unmade->wanted = false;
      directories.push_back(below);
    }
  }
}

void CachedFsImpl::NotMade(Row& row, size_t at, const Error& answered, std::stop_token stop) {
  Row::Item& item = row.items[at];
  const NodePtr& node = item.node;
  const bool taken = answered.kind == ErrorKind::kErrno && answered.errno_value == EEXIST;
  const std::optional<size_t> made_in = row.objects[at].made_in;
  Error error = answered;
  {
    Lock lock(mutex_);
    if (!node->unmade) return;
    // That a directory is missing says nothing, but why it was not made.
    const Unmade* const above = made_in && !row.items[*made_in].again ? row.items[*made_in].node->unmade.get() : nullptr;
    if (above && above->error) error = *above->error;
    ++node->pins;
    node->unmade->being_made = false;
    node->unmade->maybe_made = node->unmade->maybe_made || answered.kind != ErrorKind::kErrno;
    if (item.with_content) StoreFailed(*node, nullptr, error, taken);
    NoteUnsent(*node);
  }
  // What it is in may have another name now, or have been found there.
  OpContext ctx = OpContext::Within(options_.operation_timeout);
  ctx.stop = stop;
  item.again = (made_in && row.items[*made_in].again) || (taken && ResolveTaken(node, ctx));
  bool put_aside = false;
  {
    Lock lock(mutex_);
    if (node->unmade && item.again) node->unmade->retry_at = {};
    if (node->unmade && !item.again) {
      Unmade& unmade = *node->unmade;
      TriedToMake(unmade, error);
      TriedToMakeBelow(node, error);
      unmade.retry_at = row.retry_at ? *row.retry_at : Clock::now() + RetryAfter(unmade.tries);
      if (unmade.tries == 1 && !row.retry_at) log::Warning("cache", "{} is not made in the sandbox yet: {}", tree_.PathOf(*node), ToString(error));
      NoteError(tree_.PathOf(*node), error);
      if (!item.with_content && !IsForNow(error)) TellWriters(*node, nullptr, error);
      const bool last = std::ranges::none_of(node->children, [&](const auto& child) {
        const NodePtr below = child.second.node ? tree_.Find(child.second.node) : nullptr;
        return below && below->unmade;
      });
      const bool in_the_way = taken && unmade.names_tried <= kMostConflictNames;
      put_aside = !row.retry_at && !in_the_way && unmade.refusals >= kRefusalsBeforePutAside && node->open_files == 0 && last;
    }
  }
  if (put_aside) PutAside(node, "it cannot be made in the sandbox (" + ToString(error) + ")");
  Lock lock(mutex_);
  --node->pins;
}

// Empty, or the beginning of what we have, all of it included.
bool CachedFsImpl::IsBegunThere(const NodePtr& node, const transport::Attributes& there, const transport::Name& name, const OpContext& ctx) {
  std::shared_ptr<SpoolFile> spool;
  {
    Lock lock(mutex_);
    if (there.size > std::min(node->size(), kMostInRow)) return false;
    spool = node->content->spool;
  }
  if (there.size == 0) return true;
  auto stream = remote_.Read(0, NodeAt(name, there), &there, transport::Extent{0, there.size}, ctx);
  std::string theirs(static_cast<size_t>(there.size), '\0'), ours = theirs;
  for (size_t done = 0; done < theirs.size();) {
    auto got = stream ? (*stream)->Read(theirs.data() + done, theirs.size() - done, ctx) : Result<size_t>(Forward(stream.error()));
    if (!got || *got == 0) return false;
    done += *got;
  }
  return spool && spool->ReadAt(0, ours.data(), ours.size()) && ours == theirs;
}

bool CachedFsImpl::ResolveTaken(const NodePtr& node, const OpContext& ctx) {
  transport::Name name;
  std::string target;
  transport::FileType type;
  timespec sent_mtime{};
  bool maybe_made = false;
  {
    Lock lock(mutex_);
    if (!node->unmade) return false;
    const NodePtr parent = tree_.Find(node->places.current().parent);
    if (!parent || parent->unmade) return false;
    target = node->unmade->making.target;
    type = node->unmade->making.type;
    sent_mtime = node->unmade->sent_mtime;
    maybe_made = node->unmade->maybe_made;
    name = transport::Name{tree_.Address(*parent), node->places.current().name};
  }
  auto there = remote_.Lookup(name, ctx);
  if (!there) return false;  // the next try shows
  const bool same_type = there->type == type;
  if (same_type && there->type == transport::FileType::kSymlink) {
    auto text = remote_.ReadLink(NodeAt(name, *there), ctx);
    if (text && *text == target && TakeForOurs(node, *there)) return true;
  }
  if (same_type && there->type == transport::FileType::kDirectory && TakeForOurs(node, *there)) return true;
  if (type != transport::FileType::kRegular) return RenameAside(node);
  const bool is_ours = same_type && maybe_made && (transport::SameTime(there->mtime, sent_mtime) || IsBegunThere(node, *there, name, ctx));
  if (is_ours && TakeForOurs(node, *there)) return true;
  {
    Lock lock(mutex_);
    if (IsBeingWritten(*node)) return false;  // whoever writes it goes on with his own
  }
  return SendBeside(node, "something else was made in the sandbox by that name");
}

// Made before by a question whose answer was lost; or by somebody else, which is the same to a directory and to a link.
bool CachedFsImpl::TakeForOurs(const NodePtr& node, const transport::Attributes& there) {
  Lock lock(mutex_);
  if (!node->unmade || there.type != node->attributes.type || !there.id.known() || tree_.FindIdentity(there.id)) return false;
  EndUnmade(*node);
  tree_.Rekey(*node, there.id);
  node->ours = false;  // somebody may be in it
  node->listed_until = node->fresh_until = node->link_fresh_until = node->xattr_names_until = {};
  for (auto& [name, entry] : node->children) {
    if (entry.node == 0) entry.fresh_until = {};
  }
  node->attributes = there;
  node->stamp = ++stamp_;
  Content& content = *node->content;
  content.last_error.reset();
  if (!content.dirty()) content.accepted = false;
  if (content.dirty()) content.base = UnsentBase{there.id, there.size, there.mtime, there.ctime, there.permissions};
  if (!remote_.description().identities_survive_renames) content.base.id = {};
  if (!node->has_unsent()) dirty_.erase(node->id);
  NoteUnsent(*node);
  return true;
}

bool CachedFsImpl::RenameAside(const NodePtr& node) {
  Lock lock(mutex_);
  if (!node->unmade) return false;
  const Place place = node->places.current();
  const NodePtr parent = tree_.Find(place.parent);
  if (!parent) return false;
  if (node->unmade->wanted_name.empty()) node->unmade->wanted_name = place.name;
  std::string name;
  do {
    if (++node->unmade->names_tried > kMostConflictNames) return false;
    name = ConflictName(node->unmade->wanted_name, node->content->since, node->unmade->names_tried);
  } while (Tree::FindChild(*parent, name));
  log::Error("cache", "{}: something else was made in the sandbox by that name; what was made here is {}", tree_.PathOf(*node), name);
  tree_.Detach(*parent, place.name).stamp = ++stamp_;
  Child& child = tree_.Attach(*parent, name, *node);
  child.stamp = stamp_;
  child.fresh_until = kWatched;
  parent->ours = false;
  node->unmade->retry_at = {};
  for (const NodeId id : dirty_) {
    if (const NodePtr below = tree_.Find(id); below && IsBelow(*below, *node)) NoteUnsent(*below);
  }
  kernel_news_.push_back({.directory = parent->id, .name = place.name});
  TellKernel(lock);
  return true;
}

bool CachedFsImpl::SendBeside(const NodePtr& node, const std::string& why) {
  UnsentEntry entry;
  std::shared_ptr<SpoolFile> spool;
  {
    Lock lock(mutex_);
    Content& content = *node->content;
    if (!node->has_unsent() || content.storing || node->is_gone() || !content.spool) return false;
    EndEarly(*node);
    spool = content.spool;
    content.sending = std::exchange(content.current, {});
    content.sending_accepted = std::exchange(content.accepted, false);
    content.storing = true;
    content.untried = false;
    BeginChange(*node);
    entry.record = RecordOf(*node);
    entry.id = entry.record->id;
    entry.directory = spool_.directory();
    entry.content = spool->path();
    entry.note = entry.content + kUnsentNoteSuffix;
    entry.content_is_there = true;
    entry.bytes = entry.record->change.bytes();
  }
  // By the note that is written here, too: it has what is accepted meanwhile.
  const auto note = [&](const UnsentRecord& said) -> Result<void> {
    Lock lock(mutex_);
    Content& content = *node->content;
    const std::optional<transport::Extent>& append = content.sending.append;
    if (append && said.change.append && said.change.append->offset > append->offset) {
      AppendedInPart(*node, said.change.append->offset - append->offset);
      content.base = said.base;
    }
    content.beside.reset();
    if (said.make) content.beside = said;
    NoteUnsent(*node);
    return {};
  };
  FaultPoint("conflict.sending");
  const SendReport report = SendUnsent(remote_, entry, true, SendTimes{options_.operation_timeout, options_.transfer_timeout}, note);
  FaultPoint("conflict.sent");
  const bool sent = report.outcome != SendOutcome::kFailed;
  const std::string copy = report.path.substr(report.path.rfind('/') + 1);
  std::optional<transport::Attributes> there;
  if (report.outcome == SendOutcome::kConflictCopy) there = LookUpBeside(node, copy);
  log::Error("cache", "{}: {}; what was written here {}", entry.record->path, why,
             report.outcome == SendOutcome::kConflictCopy ? "is " + report.path : sent ? "was there" : "waits: " + report.text);
  std::lock_guard writing(node->content->write_mutex);
  Lock lock(mutex_);
  Content& content = *node->content;
  if (!sent) {
    StoreFailed(*node, nullptr, Failure(ErrorKind::kUnavailable, EIO, report.text).value(), true);
    return false;
  }
  Change whole = std::exchange(content.sending, {});
  const bool was_accepted = content.sending_accepted;
  if (node->unmade && content.beside) node->unmade->maybe_made = node->unmade->maybe_made || content.beside->being_sent;
  content.beside.reset();
  content.begun_bytes = 0;
  content.storing = content.sending_accepted = false;
  --node->changes_in_flight;
  content.stored.notify_all();
  // Where it lies was made behind this cache.
  if (const NodePtr parent = node->places.empty() ? nullptr : tree_.Find(node->places.current().parent)) {
    Child* beside = Tree::FindChild(*parent, copy);
    if (beside) beside->fresh_until = {};
    kernel_news_.push_back({.directory = parent->id, .name = copy});
    Outdated(*parent);
    parent->listed_until = {};
    parent->ours = false;
  }
  if (there && GoOnAs(*node, copy, *there)) {
    // for who has it open, and with what was written meanwhile
  } else if (node->unmade && !content.current.empty()) {  // all of it once more, into that copy
    content.current = MergeChanges(std::move(whole), std::exchange(content.current, {}), 0);
    content.accepted = content.accepted || was_accepted;
    NoteUnsent(*node);
    return false;
  } else {
    GiveUpName(*node);
  }
  NoteUnsent(*node);
  DropSavedCopy(*node);
  if (content.current.empty()) DiscardUnsent(*node);
  if (node->open_files == 0) CloseHandlesIfUnused(*node);
  ContentChanged(*node, true);
  Outdated(*node);
  TellKernel(lock);
  return true;
}

std::optional<transport::Attributes> CachedFsImpl::LookUpBeside(const NodePtr& node, const std::string& name) {
  transport::Name at;
  {
    Lock lock(mutex_);
    const NodePtr parent = node->unmade ? tree_.Find(node->places.current().parent) : nullptr;
    if (!parent || parent->unmade) return {};
    at = transport::Name{tree_.Address(*parent), name};
  }
  auto there = remote_.Lookup(at, OpContext::Within(options_.operation_timeout));
  if (!there || there->type != transport::FileType::kRegular || !there->id.known()) return {};
  return *there;
}

bool CachedFsImpl::GoOnAs(Node& node, const std::string& name, const transport::Attributes& there) {
  const NodePtr parent = node.unmade ? tree_.Find(node.places.current().parent) : nullptr;
  const Child* taken = parent ? Tree::FindChild(*parent, name) : nullptr;
  if (!parent || (taken && taken->node != 0) || tree_.FindIdentity(there.id)) return false;
  EndUnmade(node);
  settled_.notify_all();
  const std::string before = node.places.current().name;
  tree_.Detach(*parent, before).stamp = ++stamp_;
  kernel_news_.push_back({.directory = parent->id, .name = before});
  tree_.Rekey(node, there.id);
  tree_.Attach(*parent, name, node).stamp = stamp_;
  node.attributes = there;
  node.stamp = stamp_;
  Content& content = *node.content;
  content.fresh = false;
  content.last_error.reset();
  content.base = UnsentBase{there.id, there.size, there.mtime, there.ctime, there.permissions};
  if (!remote_.description().identities_survive_renames) content.base.id = {};
  if (!node.has_unsent()) dirty_.erase(node.id);
  return true;
}

void CachedFsImpl::GiveUpName(Node& node) {
  if (!node.unmade) return;
  EndUnmade(node);
  settled_.notify_all();
  const Place place = node.places.current();
  const NodePtr parent = tree_.Find(place.parent);
  if (!parent) return;
  tree_.Detach(*parent, place.name).stamp = ++stamp_;
  parent->ours = false;
  kernel_news_.push_back({.directory = parent->id, .name = place.name});
}

void CachedFsImpl::PutAside(const NodePtr& node, const std::string& why) {
  if (options_.unsent_directory.empty()) return;
  const std::string path = PathOf(node->id);
  FaultPoint("aside.saving");
  auto saved = SaveUnsentOf(node, options_.unsent_directory, SaveWhen::kFailed, why);
  FaultPoint("aside.saved");
  if (!saved) log::Error("cache", "{}: {}, and it cannot be put aside: {}", path, why, ToString(saved.error()));
  if (!saved || !*saved) return;
  log::Error("cache", "{}: {}; it is put aside in {}", path, why, options_.unsent_directory);
  Lock lock(mutex_);
  Outdated(*node);
  TellKernel(lock);
}

void CachedFsImpl::MakeBehind(std::stop_token stop) {
  Lock lock(mutex_);
  while (!stop.stop_requested()) {
    if (!behind_.wait(lock, stop, [&] { return !unmade_.empty(); })) return;
    while (!stop.stop_requested() && wanted_ == 0 && unmade_.size() < transport::kMostNewObjects) {
      const TimePoint due = std::min(first_accepted_ + kMostDelay, last_accepted_ + kQuiet);
      if (first_accepted_ == TimePoint{} || due <= Clock::now()) break;
      behind_.wait_until(lock, stop, due, [&] { return wanted_ > 0; });
    }
    if (stop.stop_requested()) return;
    first_accepted_ = {};
    TimePoint retry_at;
    Row row = CollectRow(&retry_at);
    if (row.items.empty()) {
      const uint64_t seen = behind_count_;
      behind_.wait_until(lock, stop, std::min(retry_at, Clock::now() + kMostRetry), [&] { return behind_count_ != seen; });
      continue;
    }
    lock.unlock();
    MakeRow(row, stop);
    lock.lock();
    SomethingToSend();  // what waited for it
  }
}

std::vector<NodePtr> CachedFsImpl::SendableBehind(TimePoint* retry_at) const {
  std::vector<NodePtr> nodes;
  const TimePoint now = Clock::now();
  for (const NodeId id : dirty_) {
    const NodePtr node = tree_.Find(id);
    if (!node || node->unmade || !node->content->accepted || node->content->storing || node->is_gone()) continue;
    const TimePoint due = std::max(node->content->retry_at, IsBeingWritten(*node) ? node->content->send_by : TimePoint{});
    if (due > now) {
      *retry_at = std::min(*retry_at, due);
      continue;
    }
    // Its times are set when all is in it.
    const bool full = std::ranges::none_of(node->children, [&](const auto& child) {
      const NodePtr below = child.second.node ? tree_.Find(child.second.node) : nullptr;
      return below && below->unmade;
    });
    // What is in it can be reached until it is closed.
    const bool alone = !ClosesSoon(*node) || std::ranges::none_of(dirty_, [&](const NodeId other) {
      const NodePtr below = other == id ? nullptr : tree_.Find(other);
      return below && IsBelow(*below, *node);
    });
    if (full && alone && !(node->is_directory() && WaitsForBelow(*node))) nodes.push_back(node);
  }
  return nodes;
}

void CachedFsImpl::SendBehind(std::stop_token stop) {
  uint64_t seen = 0;
  TimePoint look_at = Clock::now() + kMostRetry;
  Lock lock(mutex_);
  while (!stop.stop_requested()) {
    behind_.wait_until(lock, stop, look_at, [&] { return behind_count_ != seen; });
    const TimePoint until = Clock::now() + kMostDelay;
    while (!stop.stop_requested() && std::min(until, last_accepted_ + kQuiet) > Clock::now()) {
      behind_.wait_until(lock, stop, std::min(until, last_accepted_ + kQuiet), [] { return false; });
    }
    if (stop.stop_requested()) return;
    seen = behind_count_;
    look_at = Clock::now() + kMostRetry;
    const std::vector<NodePtr> nodes = SendableBehind(&look_at);
    if (nodes.empty()) continue;
    for (const NodePtr& node : nodes) ++node->pins;
    lock.unlock();
    OpContext ctx;
    ctx.stop = stop;
    if (auto sent = SendAll(nodes, ForTransfer(ctx), {}, true); !sent) log::Debug("cache", "sending behind: {}", ToString(sent.error()));
    lock.lock();
    for (const NodePtr& node : nodes) --node->pins;
    look_at = Clock::now();
  }
}

Result<bool> CachedFsImpl::ChangedThere(const NodePtr& node, const OpContext& ctx) {
  {
    Lock lock(mutex_);
    const Content& content = *node->content;
    const Change& change = content.current;
    if (!content.accepted || content.storing || content.fresh || node->unmade || node->deleted || !node->is_regular()) return false;
    if (!MayLoseTheirs(change) || (IsBeingWritten(*node) && content.send_by > Clock::now())) return false;
    const NodePtr parent = node->places.empty() ? nullptr : tree_.Find(node->places.current().parent);
    const bool told = parent && parent->watched && node->attributes.link_count == 1 && node->fresh_until == kWatched && node->changes_in_flight == 0;
    if (told) return node->attributes.size != content.base.size || !transport::SameTime(node->attributes.mtime, content.base.mtime);
  }
  return IsNotItsBase(node, ctx);
}

bool CachedFsImpl::MayLoseTheirs(const Change& change) {
  return change.touches_content() && !(change.append && change.extents.empty() && !change.size && !change.cut);
}

Result<bool> CachedFsImpl::IsNotItsBase(const NodePtr& node, const OpContext& ctx) {
  auto now = AskAttributes(node, ctx);
  if (!now && now.error().kind == ErrorKind::kErrno && now.error().errno_value == ESTALE) return true;  // another one has its name
  if (!now && now.error().kind == ErrorKind::kErrno) return false;                                     // the store says so, too
  if (!now) return Forward(now.error());
  Lock lock(mutex_);
  const UnsentBase& base = node->content->base;
  return now->size != base.size || !transport::SameTime(now->mtime, base.mtime) || (base.id.known() && now->id.known() && now->id != base.id);
}

Result<void> CachedFsImpl::SendLate(const NodePtr& node, const OpContext& ctx, bool only_accepted) {
  FaultPoint("store.sending");
  {
    Lock lock(mutex_);
    if (node->is_directory() && WaitsForBelow(*node)) return {};  // since it was chosen: it goes when that has gone
    if (only_accepted && !node->content->accepted) return {};  // sent since then: what there is now was begun after that
  }
  auto sent = Send(node, nullptr, ctx);
  FaultPoint("store.sent");
  if (sent || !options_.writeback) return sent;
  Lock lock(mutex_);
  node->content->retry_at = Clock::now() + RetryAfter(std::max<uint64_t>(node->content->failures, 1));
  return sent;
}

bool CachedFsImpl::WaitsForBelow(const Node& directory) const {
  return std::ranges::any_of(dirty_, [&](const NodeId id) {
    const NodePtr below = id == directory.id ? nullptr : tree_.Find(id);
    if (!below || !IsBelow(*below, directory)) return false;
    if (below->unmade) return !below->unmade->error;
    return ClosesSoon(directory) && !below->content->last_error;
  });
}

bool CachedFsImpl::IsBelow(const Node& node, const Node& top) const {
  const Node* at = &node;
  NodePtr held;
  for (int depth = 0; at && depth < 4096; ++depth) {
    if (at->id == top.id) return true;
    if (at->id == kRoot || at->places.empty()) return false;
    held = tree_.Find(at->places.current().parent);
    at = held.get();
  }
  return false;
}

Result<void> CachedFsImpl::SendBelow(const NodePtr& node, const OpContext& ctx) {
  if (!options_.writeback) return {};
  std::vector<NodePtr> below;
  {
    Lock lock(mutex_);
    auto add = [&](const NodePtr& each) {
      const Content& content = *each->content;
      if (!each->is_gone() && (each->unmade || content.accepted || content.sending_accepted)) below.push_back(each);
    };
    if (!node->is_directory()) add(node);
    for (const NodeId id : node->is_directory() ? dirty_ : std::set<NodeId>()) {
      if (const NodePtr each = tree_.Find(id); each && IsBelow(*each, *node)) add(each);
    }
    for (const NodePtr& each : below) ++each->pins;
  }
  auto sent = SettleAll(below, ctx);
  if (sent) sent = SendAll(below, ctx, {});
  Lock lock(mutex_);
  for (const NodePtr& each : below) --each->pins;
  return sent;
}

Result<void> CachedFsImpl::SyncDirectory(NodeId id, const OpContext& ctx) {
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindDirectory(id);
    if (!found) return Forward(found.error());
    node = *found;
  }
  return SendBelow(node, ForTransfer(ctx));
}

}  // namespace e2bfs::cache
