// Watching: what the other side tells of changes in directories that it watches.
//
// News are as good as an answer to a question asked now: what is there is taken in, and answers that are on their way are older. Where a change
// made here is on its way too, nobody knows which was first: what is known is outdated then, and asked for again.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

// Who changes one name often changes the next one soon.
constexpr std::chrono::seconds kNamesMove{2};

}  // namespace

void CachedFsImpl::Outdated(Node& node) {
  node.fresh_until = {};
  node.stamp = ++stamp_;
  node.held.reset();
  kernel_news_.push_back({.node = node.id});
}

void CachedFsImpl::TellKernel(Lock& lock) {
  if (kernel_news_.empty()) return;
  std::vector<KernelNews> news = std::exchange(kernel_news_, {});
  for (KernelNews& item : news) {
    if (const NodePtr node = item.node != 0 ? tree_.Find(item.node) : nullptr) item.content_generation = node->content_generation;
  }
  lock.unlock();
  std::lock_guard telling(kernel_mutex_);
  if (kernel_) kernel_(news);
}

void CachedFsImpl::SetKernel(std::function<void(const std::vector<KernelNews>&)> tell) {
  std::lock_guard telling(kernel_mutex_);
  kernel_ = std::move(tell);
}

void CachedFsImpl::NameChanged(const transport::FileId& id, const std::string& name, const std::optional<transport::Entry>& now,
                               bool gone) {
  static Counter& counter = Metrics::Get("cache.changes_told_count");
  counter.Add();
  if (!IsName(name)) return;
  Lock lock(mutex_);
  const NodePtr directory = tree_.FindIdentity(id);
  if (!directory || !directory->is_directory()) return NoteUnknown(id);
  Child* child = Tree::FindChild(*directory, name);
  const NodePtr before = child && child->node ? tree_.Find(child->node) : nullptr;
  if (before && before->unmade) {  // ours, or which of them has the name shows when ours is made
    if (before->unmade->being_made) {
      before->unmade->overtaken = true;
    } else {
      directory->ours = false;
    }
    return;
  }
  const uint64_t stamp = ++stamp_;
  const TimePoint at = Clock::now();
  if (before) Outdated(*before);
  bool same = false;  // the name leads to what it led to
  const bool moved = before && (gone || (now && now->attributes.id.known() && now->attributes.id != before->file_id));
  if (directory->changes_in_flight > 0 || (!now && !gone)) {
    if (!child) child = &tree_.Detach(*directory, name);
    child->fresh_until = {};
  } else if (gone) {
    child = &tree_.Detach(*directory, name);
    child->fresh_until = NameUntil(*directory, stamp, at, options_.negative_ttl);
  } else {
    const NodePtr node = tree_.GetOrMake(now->attributes, before);
    same = node == before;
    if (!child || child->node != node->id) child = &tree_.Attach(*directory, name, *node);
    child->fresh_until = NameUntil(*directory, stamp, at, options_.attribute_ttl);
    node->stamp = stamp;
    node->held.reset();
    if (!Absorb(*node, now->attributes, stamp, at, Origin::kAsked, true)) Outdated(*node);
    if (now->link_target) {
      node->link_text = now->link_target;
      node->link_fresh_until = node->fresh_until;
    }
  }
  child->stamp = stamp;
  // A name that leads where it led stays: the kernel forgets a file's pages with its last name.
  if (!same) {
    kernel_news_.push_back({.directory = directory->id, .name = name, .left = moved ? before->id : 0});
    if (moved) directory->names_move_until = at + kNamesMove;
    if (moved && now) child->replaced_until = at + kNamesMove;
  }
  if (!same && (before || !gone)) directory->ours = false;  // not by the end of what was never there, such as a nameless file
  tree_.SweepIfLarge(at);
  TellKernel(lock);
}

void CachedFsImpl::DirectoryChanged(const transport::Attributes& now) {
  Lock lock(mutex_);
  const NodePtr directory = tree_.FindIdentity(now.id);
  if (!directory || !directory->is_directory()) return NoteUnknown(now.id);
  Outdated(*directory);
  Absorb(*directory, now, stamp_, Clock::now(), Origin::kAsked);
  TellKernel(lock);
}

void CachedFsImpl::NotWatched(Node& directory, TimePoint until) {
  if (directory.unmade) return;  // nobody else knows it
  directory.watched = false;
  directory.watched_stamp = directory.unwatched_stamp = ++stamp_;
  directory.fresh_until = std::min(directory.fresh_until, until);
  directory.listed_until = std::min(directory.listed_until, until);
  for (auto& [name, child] : directory.children) {
    const NodePtr node = child.node ? tree_.Find(child.node) : nullptr;
    if (node && node->unmade) continue;
    child.fresh_until = std::min(child.fresh_until, until);
    if (!node || node->is_directory()) continue;
    node->held.reset();
    node->fresh_until = std::min(node->fresh_until, until);
    node->link_fresh_until = std::min(node->link_fresh_until, until);
    node->xattr_names_until = std::min(node->xattr_names_until, until);
  }
}

void CachedFsImpl::Unwatched(const transport::FileId& id) {
  Lock lock(mutex_);
  const NodePtr directory = tree_.FindIdentity(id);
  if (!directory || !directory->is_directory()) return NoteUnknown(id);
  NotWatched(*directory, Clock::now() + options_.attribute_ttl);
}

void CachedFsImpl::ChangesLost() {
  Lock lock(mutex_);
  lost_stamp_ = ++stamp_;
  for (const auto& [id, node] : tree_.nodes()) {
    node->held.reset();
    if (node->unmade) continue;
    if (node->is_directory()) {
      NotWatched(*node, {});
    } else if (node->fresh_until == kWatched) {
      node->fresh_until = node->link_fresh_until = node->xattr_names_until = {};
    }
    kernel_news_.push_back({.node = node->id});
  }
  TellKernel(lock);
}

}  // namespace e2bfs::cache
