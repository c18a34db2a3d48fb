// Directories: listings, what they tell about names and attributes, and snapshots with stable positions.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/log.h"

namespace e2bfs::cache {

void CachedFsImpl::AbsorbListing(Node& directory, const transport::Listing& listing, uint64_t asked_stamp,
                                 TimePoint asked) {
  Absorb(directory, listing.directory, asked_stamp, asked, Origin::kAsked);
  const TimePoint fresh_until = NameUntil(directory, asked_stamp, asked, options_.attribute_ttl);
  std::set<std::string_view> names;
  bool complete = true;
  for (const transport::Entry& entry : listing.entries) {
    names.insert(entry.name);
    if (entry.only_type) {
      complete = false;
      continue;
    }
    Child* child = Tree::FindChild(directory, entry.name);
    NodePtr known = child && child->node ? tree_.Find(child->node) : nullptr;
    if (!known || (known->unmade && !known->unmade->being_made)) directory.ours = false;
    if (known && known->unmade) continue;                                            // which of them has the name shows when ours is made
    if (asked_stamp < (child ? child->stamp : directory.forgotten_stamp)) continue;  // changed here since
    NodePtr node = tree_.GetOrMake(entry.attributes, known);
    if (!child || child->node != node->id) child = &tree_.Attach(directory, entry.name, *node);
    child->fresh_until = fresh_until;
    Absorb(*node, entry.attributes, asked_stamp, asked, Origin::kAsked, true);
    if (entry.link_target) {
      node->link_text = entry.link_target;
      node->link_fresh_until = node->fresh_until;
    }
  }
  std::vector<std::string> gone;
  for (const auto& [name, child] : directory.children) {
    if (child.node == 0 || child.stamp > asked_stamp || names.contains(name)) continue;
    if (const NodePtr node = tree_.Find(child.node); !node || !node->unmade) gone.push_back(name);
  }
  if (!gone.empty()) directory.ours = false;
  for (const std::string& name : gone) tree_.Detach(directory, name).fresh_until = NameUntil(directory, asked_stamp, asked, options_.negative_ttl);
  if (!complete) directory.listed_until = {};
  if (complete && directory.forgotten_stamp <= asked_stamp) directory.listed_until = fresh_until;
}

DirectorySnapshot::Entry CachedFsImpl::EntryOf(const std::string& name, const Node& node) const {
  const bool made_up = made_here_.contains(node.id);
  return {name, node.id, node.attributes.type, made_up ? kMadeUpDevice : node.attributes.device, made_up ? node.id : node.attributes.inode};
}

void CachedFsImpl::AddUnmade(const Node& directory, DirectorySnapshot& snapshot) const {
  if (!options_.writeback) return;
  std::set<std::string> listed;
  for (const DirectorySnapshot::Entry& entry : snapshot.entries) listed.insert(entry.name);
  for (const auto& [name, child] : directory.children) {
    const NodePtr node = child.node ? tree_.Find(child.node) : nullptr;
    if (node && node->unmade && !listed.contains(name)) snapshot.entries.push_back(EntryOf(name, *node));
  }
}

Result<std::shared_ptr<const DirectorySnapshot>> CachedFsImpl::TakeSnapshot(const NodePtr& node, ListedFor why, const OpContext& ctx) {
  {
    Lock lock(mutex_);
    if (!WaitWithin(ahead_arrived_, lock, ctx, [&] { return !listed_ahead_.contains(node->id); })) return WaitEnded(ctx, "listing");
    const TimePoint now = Clock::now();
    if (why == ListedFor::kReading) node->read_at = now;
    if (node->listed_until > now || node->unmade) {
      auto cached = std::make_shared<DirectorySnapshot>();
      cached->entries.reserve(node->linked_children);
      bool complete = true;
      for (const auto& [name, child] : node->children) {
        if (child.node == 0) {
          if (child.fresh_until <= now) complete = false;  // a change of it ended in the dark
          continue;
        }
        NodePtr entry = tree_.Find(child.node);
        if (!entry || (child.fresh_until <= now && !entry->unmade)) {
          complete = false;
          break;
        }
        cached->entries.push_back(EntryOf(name, *entry));
      }
      if (complete) {
        ListingUsed(*node);
        return std::shared_ptr<const DirectorySnapshot>(std::move(cached));
      }
    }
  }
  auto ask = [&] { return AskListing(node, why, ctx); };
  if (options_.attribute_ttl.count() == 0) return ask();
  auto taken = listings_.Do(std::to_string(node->id), ctx, ask);
  Lock lock(mutex_);
  if (why == ListedFor::kReading) node->read_at = Clock::now();  // what comes next may be in it
  return taken;
}

Result<std::shared_ptr<const DirectorySnapshot>> CachedFsImpl::AskListing(const NodePtr& node, ListedFor why, const OpContext& ctx) {
  uint64_t asked_stamp;
  std::optional<ListedAhead> ahead;
  {
    Lock lock(mutex_);
    asked_stamp = stamp_;
    if (auto question = AskAhead(*node, why)) ahead.emplace(*this, std::move(*question));
  }
  TimePoint asked = Clock::now();
  std::optional<Result<transport::Listing>> listing;
  std::vector<transport::DeepListing> more;
  if (ahead) {
    const WalkQuestion& question = ahead->ahead;
    OpContext guessing = ctx;  // what was asked for by the program has its time, too
    guessing.deadline = asked + (ctx.deadline - asked) / 4;
    auto answer = AtNode(question.top, guessing, [&](const transport::Node& at) { return remote_.ListDeep(at, question.question, guessing); });
    Lock lock(mutex_);
    if (answer) {
      more = std::move(*answer);
      for (transport::DeepListing& each : more) {
        std::erase_if(each.listing.entries, [](const transport::Entry& entry) { return !IsName(entry.name); });
        if (each.path != question.wanted || each.listing.directory.id != node->file_id) continue;
        if (FindBelow(question.top, question.wanted, asked_stamp) == node) listing = std::move(each.listing);
      }
    } else {
      WalkFailed(question);
    }
    if (!listing) {  // by itself, then
      AbsorbAhead(lock, question, more, asked_stamp, asked);
      lock.unlock();
      ahead.reset();
      lock.lock();
      asked_stamp = stamp_;
    }
  }
  if (!listing) {
    asked = Clock::now();
    listing = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.List(at, ctx); });
    if (!*listing) return Forward(listing->error());
  }
  // The kernel would fail a whole listing for one.
  std::vector<transport::Entry>& entries = (*listing)->entries;
  const size_t bad = std::erase_if(entries, [](const transport::Entry& entry) { return !IsName(entry.name); });
  if (bad > 0) log::Warning("cache", "{} names that no file can have are left out of a listing", bad);
  // In the order in which what is known is shown, so that a program meets directories and files in the order in which they are asked for ahead.
  std::sort(entries.begin(), entries.end(), [](const transport::Entry& a, const transport::Entry& b) { return a.name < b.name; });
  auto taken = std::make_shared<DirectorySnapshot>();
  taken->entries.reserve(entries.size());
  Lock lock(mutex_);
  tree_.SweepIfLarge(Clock::now());  // not after it, or what was listed would go before the kernel has it
  AbsorbListing(*node, **listing, asked_stamp, asked);
  for (transport::Entry& entry : entries) {
    const Child* child = Tree::FindChild(*node, entry.name);
    const transport::Attributes& attributes = entry.attributes;
    const NodePtr listed = child && child->node ? tree_.Find(child->node) : nullptr;
    const bool same = listed && (!attributes.id.known() || listed->file_id == attributes.id);
    if (listed && (listed->unmade || (same && made_here_.contains(listed->id)))) {
      taken->entries.push_back(EntryOf(entry.name, *listed));
    } else {
      taken->entries.push_back({std::move(entry.name), same ? listed->id : 0, attributes.type, attributes.device, attributes.inode});
    }
  }
  AddUnmade(*node, *taken);
  if (ahead) AbsorbAhead(lock, ahead->ahead, more, asked_stamp, asked);
  return std::shared_ptr<const DirectorySnapshot>(std::move(taken));
}

Result<DirectoryHandle> CachedFsImpl::OpenDirectory(NodeId id, const OpContext&) {
  Lock lock(mutex_);
  auto node = FindDirectory(id);
  if (!node) return Forward(node.error());
  if ((AccessShown(**node) & 4) == 0) return Errno(EACCES, tree_.PathOf(**node));
  const DirectoryHandle handle = next_handle_++;
  auto opened = std::make_shared<OpenDirectoryState>();
  opened->node = *node;
  ++(*node)->pins;
  directories_.emplace(handle, std::move(opened));
  return handle;
}

void CachedFsImpl::CloseDirectory(DirectoryHandle handle) {
  Lock lock(mutex_);
  auto at = directories_.find(handle);
  if (at == directories_.end()) return;
  --at->second->node->pins;
  directories_.erase(at);
}

Result<void> CachedFsImpl::ReadDirectory(DirectoryHandle handle, uint64_t position, bool with_references,
                                         const std::function<bool(const DirectoryEntry&, uint64_t next)>& emit,
                                         const OpContext& context) {
  const OpContext ctx = ForNames(context);
  std::shared_ptr<OpenDirectoryState> opened;
  std::shared_ptr<const DirectorySnapshot> snapshot;
  {
    Lock lock(mutex_);
    auto at = directories_.find(handle);
    if (at == directories_.end()) return Errno(EBADF, "not an open directory");
    opened = at->second;
    if (position != 0) snapshot = opened->snapshot;
    if (opened->node->deleted) return {};
  }
  if (!snapshot) {
    auto taken = TakeSnapshot(opened->node, ListedFor::kReading, ctx);
    if (!taken) return Forward(taken.error());
    snapshot = *taken;
    Lock lock(mutex_);
    opened->snapshot = snapshot;
  }
  const auto& entries = snapshot->entries;
  for (uint64_t i = position; i < entries.size(); ++i) {
    const DirectorySnapshot::Entry& listed = entries[i];
    DirectoryEntry entry;
    entry.name = listed.name;
    {
      Lock lock(mutex_);
      const Child* child = Tree::FindChild(*opened->node, listed.name);
      // The name may lead to something else by now, or to nothing: it is shown, but not held.
      NodePtr node = child && child->node != 0 && child->node == listed.node ? tree_.Find(child->node) : nullptr;
      if (node) {
        entry.attributes = BuildEntry(*opened->node, *node, Clock::now());
        if (with_references) {
          entry.node = node->id;
          ++node->references;
        }
      } else {
        entry.attributes.node = listed.node;
        entry.attributes.attributes.type = listed.type;
        entry.attributes.attributes.device = listed.device;
        entry.attributes.attributes.inode = listed.inode;
      }
    }
    if (!emit(entry, i + 1)) {
      if (entry.node != 0) Forget(entry.node, 1);
      return {};
    }
  }
  return {};
}

}  // namespace e2bfs::cache
