// -o writeback: what is accepted here, and sent behind the programs' backs. The states and the rules are in cache/DESIGN.md.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"
#include "transport/base/waiting.h"

namespace e2bfs::cache {

std::chrono::milliseconds CachedFsImpl::RetryAfter(uint64_t tries) {
  std::chrono::milliseconds wait = kFirstRetry;
  for (uint64_t i = 1; i < tries && wait < kMostRetry; ++i) wait *= 2;
  return WithJitter(std::min<std::chrono::milliseconds>(wait, kMostRetry));
}

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
  if (settled) return false;
  if (!node->unmade || node->unmade->being_made || node->unmade->maybe_made) return Forward(settled.error());
  lock.unlock();
  return RemoveHere(parent_id, name, directory, ctx);  // it was not made there: it is here alone again
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
    if (auto sent = SendAll(nodes, ForTransfer(ctx), {}, SendWhat::kAccepted); !sent) log::Debug("cache", "sending behind: {}", ToString(sent.error()));
    lock.lock();
    for (const NodePtr& node : nodes) --node->pins;
    look_at = Clock::now();
  }
}

Result<void> CachedFsImpl::SendLate(const NodePtr& node, const OpContext& ctx, SendWhat what) {
  FaultPoint("store.sending");
  {
    Lock lock(mutex_);
    if (node->is_directory() && WaitsForBelow(*node)) return {};  // since it was chosen: it goes when that has gone
  }
  auto sent = Send(node, nullptr, ctx, what);
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
