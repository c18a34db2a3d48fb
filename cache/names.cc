// Names: looking up, making, removing, renaming.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

constexpr size_t kNameMax = 255;

Result<void> CheckName(const std::string& name) {
  if (name.size() > kNameMax) return Errno(ENAMETOOLONG, name.substr(0, 40));
  if (!IsName(name)) return Errno(EINVAL, "a name");
  return {};
}

// As a directory's size says: some hundred names at most.
constexpr int64_t kSmallDirectoryBytes = 8192;

// Nothing on the other side was changed, certainly.
bool NothingDone(const Error& error) {
  return error.kind == ErrorKind::kErrno || error.kind == ErrorKind::kBadRequest ||
         error.kind == ErrorKind::kUnauthorized || error.kind == ErrorKind::kConnect;
}

}  // namespace

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= kNameMax && text != "." && text != ".." && text.find('/') == std::string_view::npos &&
         text.find('\0') == std::string_view::npos;
}

struct CachedFsImpl::Pinned {
  Pinned(CachedFsImpl& owner, NodePtr held) : fs(owner), node(std::move(held)) {  // mutex_ held
    if (node) ++node->pins;
  }
  ~Pinned() {  // mutex_ not held
    if (!node) return;
    Lock lock(fs.mutex_);
    --node->pins;
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  CachedFsImpl& fs;
  NodePtr node;
};

Result<NodePtr> CachedFsImpl::LookupRemote(const NodePtr& parent, const std::string& name, const OpContext& ctx) {
  for (int attempt = 0;; ++attempt) {
    uint64_t asked_stamp;
    {
      Lock lock(mutex_);
      asked_stamp = stamp_;
    }
    const TimePoint asked = Clock::now();
    auto answer = AtNode(parent, ctx, [&](const transport::Node& at) {
      return remote_.Lookup(transport::Name{at, name}, ctx);
    });
    Lock lock(mutex_);
    Child* child = Tree::FindChild(*parent, name);
    const uint64_t changed = child ? child->stamp : parent->forgotten_stamp;
    if (const NodePtr here = child && child->node ? tree_.Find(child->node) : nullptr; here && here->unmade) return here;
    const bool outdated = asked_stamp < changed;
    if (outdated && attempt < 3) {
      // What the change told is newer, if it told.
      if (child && child->fresh_until > Clock::now()) {
        if (child->node == 0) return Errno(ENOENT, name);
        if (NodePtr node = tree_.Find(child->node); node && Fresh(*node, Clock::now())) return node;
      }
      continue;
    }
    if (!answer) {
      if (answer.error().errno_value == ENOENT && answer.error().kind == ErrorKind::kErrno && !outdated) {
        tree_.Detach(*parent, name).fresh_until = NameUntil(*parent, asked_stamp, asked, options_.negative_ttl);
        tree_.SweepIfLarge(Clock::now());
      } else if (child) {
        child->fresh_until = {};
      }
      return Forward(answer.error());
    }
    NodePtr known = child && child->node ? tree_.Find(child->node) : nullptr;
    NodePtr node = tree_.GetOrMake(*answer, known);
    if (!outdated) {
      if (!child || child->node != node->id) child = &tree_.Attach(*parent, name, *node);
      child->fresh_until = NameUntil(*parent, asked_stamp, asked, options_.attribute_ttl);
    } else if (node->places.empty() && node->id != kRoot) {
      tree_.Attach(*parent, name, *node);  // its path has to be known, even if not for long
    }
    Absorb(*node, *answer, asked_stamp, asked, Origin::kAsked, true);
    tree_.SweepIfLarge(Clock::now());
    return node;
  }
}

bool CachedFsImpl::WorthListing(const NodePtr& directory) const {
  Lock lock(mutex_);
  return (directory->watched || directory->ours) && !directory->unmade && directory->listed_until != kWatched && (directory->attributes.access & 5) == 5 &&
         directory->attributes.size <= kSmallDirectoryBytes && options_.attribute_ttl.count() > 0;
}

bool CachedFsImpl::RefreshedByListing(const NodePtr& node, const OpContext& ctx) {
  {
    Lock lock(mutex_);
    if (!node->is_directory() || node->watched || node->listed_until != TimePoint{} || node->deleted || node->places.empty()) return false;
    // Where nothing is watched it would be listed again and again.
    const NodePtr parent = tree_.Find(node->places.current().parent);
    if (!parent || !parent->watched || (node->attributes.access & 5) != 5) return false;
    if (node->attributes.size > kSmallDirectoryBytes || options_.attribute_ttl.count() == 0) return false;
  }
  if (!TakeSnapshot(node, ListedFor::kAttributes, ctx)) return false;
  Lock lock(mutex_);
  return Fresh(*node, Clock::now());
}

Result<NodeAttributes> CachedFsImpl::Lookup(NodeId parent_id, const std::string& name, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (auto good = CheckName(name); !good) return Forward(good.error());
  static Counter& hits = Metrics::Get("cache.name_hits_count");
  static Counter& misses = Metrics::Get("cache.name_misses_count");
  for (int attempt = 0;; ++attempt) {
    NodePtr parent, stale;
    {
      Lock lock(mutex_);
      auto found = FindDirectory(parent_id);
      if (!found) return Forward(found.error());
      parent = *found;
      const TimePoint now = Clock::now();
      // What is known of it is nothing to who may not search.
      if ((AccessShown(*parent) & 1) == 0 && Fresh(*parent, now)) return Errno(EACCES, tree_.PathOf(*parent));
      if (parent->guess != 0) ListingUsed(*parent);
      if (Child* child = Tree::FindChild(*parent, name)) {
        if (child->fresh_until > now) {
          if (child->node == 0) {
            hits.Add();
            return Errno(ENOENT, name);
          }
          NodePtr node = tree_.Find(child->node);
          if (node && Fresh(*node, now)) {
            hits.Add();
            ++node->references;
            NodeAttributes built = BuildEntry(*parent, *node, now);
            // The kernel takes it for the name, too.
            const auto name_valid_for = Remaining(child->fresh_until, now);
            built.valid_for = std::min(built.valid_for, name_valid_for);
            return built;
          }
          stale = node;
          if (stale) ++stale->pins;
        }
      } else if (parent->listed_until > now) {
        hits.Add();
        return Errno(ENOENT, name);
      }
      ++parent->pins;
    }
    misses.Add();
    if (stale) {
      const bool refreshed = attempt == 0 && RefreshedByListing(stale, ctx);
      Lock lock(mutex_);
      --stale->pins;
      if (refreshed) {
        --parent->pins;
        continue;
      }
    }
    // Who looks for one name will look for others: where the answer stays true, all of a small directory costs no more than one of it.
    if (attempt == 0 && WorthListing(parent)) {
      auto listed = TakeSnapshot(parent, ListedFor::kLookups, ctx);
      Lock lock(mutex_);
      --parent->pins;
      if (listed) continue;
      ++parent->pins;
    }
    auto ask = [&] { return LookupRemote(parent, name, ctx); };
    auto answer = options_.attribute_ttl.count() == 0
                      ? ask()
                      : lookups_.Do(std::to_string(parent_id) + "/" + name, ctx, ask);
    Lock lock(mutex_);
    --parent->pins;
    if (!answer) return Forward(answer.error());
    // Between the answer and here nobody held the node: if it was dropped, ask again.
    if (tree_.Find((*answer)->id) != *answer && attempt < 3) continue;
    ++(*answer)->references;
    return BuildEntry(*parent, **answer, Clock::now());
  }
}

void CachedFsImpl::Forget(NodeId id, uint64_t count) {
  Lock lock(mutex_);
  NodePtr node = tree_.Find(id);
  if (!node) return;
  node->references -= std::min(node->references, count);
  tree_.SweepIfLarge(Clock::now());
}

Result<std::string> CachedFsImpl::ReadLink(NodeId id, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    if (node->attributes.type != transport::FileType::kSymlink) return Errno(EINVAL, tree_.PathOf(*node));
    if (node->link_text && node->link_fresh_until > Clock::now()) return *node->link_text;
  }
  uint64_t asked_stamp;
  {
    Lock lock(mutex_);
    asked_stamp = stamp_;
  }
  const TimePoint asked = Clock::now();
  auto text = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.ReadLink(at, ctx); });
  if (!text) return text;
  Lock lock(mutex_);
  node->link_text = *text;
  // A link's text never changes; its identity may be another one's by now.
  node->link_fresh_until = NodeUntil(*node, asked_stamp, asked, false);
  return text;
}

Result<CachedFsImpl::NameChange> CachedFsImpl::BeginName(NodeId parent, const std::string& name) {
  if (auto may = MayChange(); !may) return Forward(may.error());
  if (auto good = CheckName(name); !good) return Forward(good.error());
  Lock lock(mutex_);
  auto found = FindDirectory(parent);
  if (!found) return Forward(found.error());
  if (auto may = MayChangeNames(**found); !may) return Forward(may.error());
  NameChange change{*found, name, 0, Clock::now()};
  ++change.parent->pins;
  BeginChange(*change.parent);
  change.stamp = stamp_;
  if (Child* child = Tree::FindChild(*change.parent, name)) child->stamp = stamp_;
  return change;
}

void CachedFsImpl::EndParent(const NameChange& change, const std::optional<transport::Attributes>& parent) {
  if (options_.writeback && parent) NameChangedHere(*change.parent);
  EndChange(*change.parent, parent, change.stamp, change.asked);
  --change.parent->pins;
}

NodePtr CachedFsImpl::EndMade(NameChange& change, const transport::Attributes& object) {
  Child* child = Tree::FindChild(*change.parent, change.name);
  change.overtaken = child && child->stamp > change.stamp;
  NodePtr known = child && child->node ? tree_.Find(child->node) : nullptr;
  NodePtr node = tree_.GetOrMake(object, known);
  if (!child || child->node != node->id) child = &tree_.Attach(*change.parent, change.name, *node);
  child->stamp = ++stamp_;
  child->fresh_until = change.overtaken ? TimePoint{} : NameUntil(*change.parent, change.stamp, change.asked, options_.attribute_ttl);
  return node;
}

void CachedFsImpl::EndUnknown(const NameChange& change) {
  Child* child = Tree::FindChild(*change.parent, change.name);
  if (!child) child = &tree_.Detach(*change.parent, change.name);
  child->stamp = ++stamp_;
  child->fresh_until = {};
}

Result<NodeAttributes> CachedFsImpl::Make(NodeId parent_id, const std::string& name, const OpContext& ctx,
                                          const std::function<Result<transport::Changed>(const transport::Name&)>& call,
                                          const UnsentMaking* making) {
  if (auto may = MayChange(); !may) return Forward(may.error());
  if (making) {
    auto here = MakeHere(parent_id, name, *making, ctx);
    if (!here) return Forward(here.error());
    Lock lock(mutex_);
    if (*here) return BuildAttributes(**here, Clock::now());
  }
  if (auto settled = SettleName(parent_id, name, ctx); !settled) return Forward(settled.error());
  auto begun = BeginName(parent_id, name);
  if (!begun) return Forward(begun.error());
  auto made = AtNode(begun->parent, ctx, [&](const transport::Node& at) { return call(transport::Name{at, name}); });
  {
    Lock lock(mutex_);
    if (!made || !made->object) {
      EndUnknown(*begun);
      EndParent(*begun, made ? made->parent : std::nullopt);
      if (!made) return Forward(made.error());
    } else {
      NodePtr node = EndMade(*begun, *made->object);
      EndParent(*begun, made->parent);
      Absorb(*node, *made->object, stamp_, begun->asked, Origin::kOwnChange, true);
      const bool in_use = IsOvertaken(node->file_id, begun->stamp);  // somebody inside was faster than its answer
      if (begun->overtaken || in_use) node->fresh_until = {};
      // What was made just now is empty: no name in it has to be asked for.
      if (node->is_directory() && node->children.empty() && !in_use) {
        node->listed_until = NameUntil(*node, begun->stamp, begun->asked, options_.attribute_ttl);
        node->ours = options_.writeback;
      }
      if (node->attributes.type == transport::FileType::kSymlink && making) {
        node->link_text = making->target;
        node->link_fresh_until = node->fresh_until;
      }
      ++node->references;
      tree_.SweepIfLarge(Clock::now());
      return BuildEntry(*begun->parent, *node, Clock::now());
    }
  }
  return Lookup(parent_id, name, ctx);
}

Result<NodeAttributes> CachedFsImpl::MakeDirectory(NodeId parent, const std::string& name, uint32_t permissions,
                                                   const OpContext& context) {
  const OpContext ctx = ForNames(context);
  const UnsentMaking making{transport::FileType::kDirectory, permissions, ctx.creator, {}};
  return Make(parent, name, ctx, [&](const transport::Name& at) { return remote_.MakeDirectory(at, permissions, ctx); }, &making);
}

Result<NodeAttributes> CachedFsImpl::MakeNode(NodeId parent, const std::string& name, transport::FileType type,
                                              uint32_t permissions, uint32_t major, uint32_t minor,
                                              const OpContext& context) {
  const OpContext ctx = ForNames(context);
  return Make(
      parent, name, ctx,
      [&](const transport::Name& at) { return remote_.MakeNode(at, type, permissions, major, minor, ctx); }, nullptr);
}

Result<NodeAttributes> CachedFsImpl::MakeSymlink(NodeId parent, const std::string& name, const std::string& target,
                                                 const OpContext& context) {
  const OpContext ctx = ForNames(context);
  const UnsentMaking making{transport::FileType::kSymlink, 0, ctx.creator, target};
  return Make(parent, name, ctx, [&](const transport::Name& at) { return remote_.MakeSymlink(at, target, ctx); }, &making);
}

Result<NodeAttributes> CachedFsImpl::MakeLink(NodeId existing_id, NodeId parent_id, const std::string& name,
                                              const OpContext& context) {
  const OpContext ctx = ForNames(context);
  NodePtr existing;
  {
    Lock lock(mutex_);
    auto found = FindNode(existing_id);
    if (!found) return Forward(found.error());
    existing = *found;
  }
  if (auto may = MayChange(); !may) return Forward(may.error());
  if (auto sent = SendForName(existing, ForTransfer(context)); !sent) return Forward(sent.error());
  uint64_t stamp;
  {
    Lock lock(mutex_);
    BeginChange(*existing);
    stamp = stamp_;
  }
  const TimePoint asked = Clock::now();
  std::optional<transport::Attributes> after;
  auto made = Make(parent_id, name, ctx,
                   [&](const transport::Name& at) {
                     auto changed = AtNode(existing, ctx, [&](const transport::Node& from) {
                       return remote_.MakeLink(from, at, ctx);
                     });
                     if (changed) after = changed->object;
                     return changed;
                   },
                   nullptr);
  Lock lock(mutex_);
  if (after && after->id != existing->file_id) after.reset();
  EndChange(*existing, after, stamp, asked);
  if (made && existing->content.exists()) existing->content->fresh = false;  // what it has is seen by another name, too
  if (made && made->node == existing->id) return BuildAttributes(*existing, Clock::now());
  return made;
}

void CachedFsImpl::OpenHandlesInUse(const NodePtr& node, const OpContext& ctx) {
  bool read = false, write = false;
  {
    Lock lock(mutex_);
    write = node->open_writers > 0 && node->write_handle == 0;
    // A file made here and never given content needs nothing of the other side.
    read = node->open_files > 0 && node->read_handle == 0 && node->base_limit() > 0;
  }
  // Errors show when the handle is needed.
  if (read) (void)RemoteHandle(node, false, ctx);
  if (write) (void)RemoteHandle(node, true, ctx);
}

void CachedFsImpl::BeforeRemoval(const NodePtr& node, const OpContext& ctx) {
  // Where links cannot be told, handles are paths, too (the service tier).
  const bool paths_only = !remote_.description().hard_links_share_identity;
  bool send = false;
  {
    Lock lock(mutex_);
    if (!node->is_regular() || node->deleted) return;
    if (!node->content.exists()) return;  // never opened
    const bool may_have_links = node->attributes.link_count > 1 || node->places.size() > 1 ||
                                (paths_only && !node->content->fresh);
    send = node->content->dirty() && may_have_links;
  }
  if (send) {
    if (auto sent = Send(node, nullptr, ForTransfer(ctx)); !sent) {
      log::Warning("cache", "what was not sent before a name was removed: {}", ToString(sent.error()));
    }
  }
  OpenHandlesInUse(node, ctx);
  if (paths_only) RescueContent(node, ctx);
}

NodePtr CachedFsImpl::WhatLostItsName(const NodePtr& known, const std::optional<transport::Attributes>& told) {
  if (!told || (known && known->file_id == told->id)) return known;
  if (!remote_.description().identities_survive_renames) return told->id.known() ? known : nullptr;
  // Another file had got the name in the sandbox: what we took for it may be there by other names.
  if (known) known->fresh_until = {};
  return tree_.FindIdentity(told->id);
}

void CachedFsImpl::NodeRemoved(const NodePtr& node, const std::optional<transport::Attributes>& after,
                               const NameChange& change) {
  const bool newest = change.stamp >= node->stamp;
  node->stamp = ++stamp_;
  node->fresh_until = {};
  // Where each name is a file of its own to us, the others of this one are not found by it.
  const bool found_by_others = remote_.description().hard_links_share_identity;
  uint32_t links = node->attributes.link_count > 0 ? node->attributes.link_count - 1 : 0;
  if (after && (after->id == node->file_id || !node->file_id.known())) {
    links = after->link_count;
    if (newest && found_by_others) Absorb(*node, *after, stamp_, change.asked, Origin::kOwnChange);
  }
  node->attributes.link_count = links;
  if (links > 0 && !node->is_directory() && found_by_others) return;
  if (!node->is_directory() && node->linked) return;  // another name that is known
  node->deleted = true;
  node->linked_elsewhere = links > 0 && !node->is_directory();
  tree_.ForgetIdentity(*node);
  if (node->content.exists()) NoteUnsent(*node);  // who finds the spool must not make it again
  if (node->open_files == 0 && node->is_gone()) {
    DiscardUnsent(*node);
    CloseHandlesIfUnused(*node);
  }
}

NodePtr CachedFsImpl::NoteRemoving(const NodePtr& node) {
  Lock lock(mutex_);
  if (!node || !node->content.exists() || !node->content->dirty() || node->unmade) return nullptr;
  if (node->attributes.link_count > 1 || node->places.size() > 1) return nullptr;  // it goes on by another name
  node->content->removing = true;
  NoteUnsent(*node);
  return node;
}

Result<void> CachedFsImpl::Unlink(NodeId parent_id, const std::string& name, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  NodePtr node;
  {
    Lock lock(mutex_);
    auto parent = FindDirectory(parent_id);
    if (!parent) return Forward(parent.error());
    Child* child = Tree::FindChild(**parent, name);
    if (child && child->node) node = tree_.Find(child->node);
  }
  if (auto may = MayChange(); !may) return may;
  auto removed = RemoveHere(parent_id, name, false, ctx);
  if (!removed) return Forward(removed.error());
  if (*removed) return {};
  if (node) BeforeRemoval(node, ctx);
  auto begun = BeginName(parent_id, name);
  if (!begun) return Forward(begun.error());
  const NodePtr noted = NoteRemoving(node);
  FaultPoint("remove.sending");
  auto done = AtNode(begun->parent, ctx, [&](const transport::Node& at) {
    return remote_.Unlink(transport::Name{at, name}, ctx);
  });
  FaultPoint("remove.answered");
  Lock lock(mutex_);
  if (noted) noted->content->removing = false;
  EndUnknown(*begun);
  Child* child = Tree::FindChild(*begun->parent, name);
  if (done) {
    node = child->node ? tree_.Find(child->node) : nullptr;
    Child& gone = tree_.Detach(*begun->parent, name);
    gone.stamp = ++stamp_;
    gone.fresh_until = NameUntil(*begun->parent, begun->stamp, begun->asked, options_.negative_ttl);
    node = WhatLostItsName(node, done->object);
    if (node) NodeRemoved(node, done->object, *begun);
  }
  if (noted && noted->content->dirty() && !noted->is_gone()) NoteUnsent(*noted);
  EndParent(*begun, done ? done->parent : std::nullopt);
  if (!done) return Forward(done.error());
  lock.unlock();
  if (node) PutAsideIfRefused(node);
  return {};
}

Result<void> CachedFsImpl::RemoveDirectory(NodeId parent_id, const std::string& name, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (auto may = MayChange(); !may) return may;
  auto removed = RemoveHere(parent_id, name, true, ctx);
  if (!removed) return Forward(removed.error());
  if (*removed) return {};
  auto begun = BeginName(parent_id, name);
  if (!begun) return Forward(begun.error());
  auto done = AtNode(begun->parent, ctx, [&](const transport::Node& at) {
    return remote_.RemoveDirectory(transport::Name{at, name}, ctx);
  });
  Lock lock(mutex_);
  EndUnknown(*begun);
  if (done) {
    Child* child = Tree::FindChild(*begun->parent, name);
    NodePtr node = child->node ? tree_.Find(child->node) : nullptr;
    Child& gone = tree_.Detach(*begun->parent, name);
    gone.stamp = ++stamp_;
    gone.fresh_until = NameUntil(*begun->parent, begun->stamp, begun->asked, options_.negative_ttl);
    node = WhatLostItsName(node, done->object);
    if (node) NodeRemoved(node, std::nullopt, *begun);
  }
  EndParent(*begun, done ? done->parent : std::nullopt);
  if (!done) return Forward(done.error());
  return {};
}

Result<void> CachedFsImpl::Rename(NodeId parent_id, const std::string& name, NodeId new_parent_id,
                                  const std::string& new_name, uint32_t flags, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (auto may = MayChange(); !may) return may;
  const bool exchange = (flags & transport::kRenameExchange) != 0;
  NodePtr moved, target;
  {
    Lock lock(mutex_);
    auto parent = FindDirectory(parent_id);
    if (!parent) return Forward(parent.error());
    auto new_parent = FindDirectory(new_parent_id);
    if (!new_parent) return Forward(new_parent.error());
    if (Child* child = Tree::FindChild(**parent, name); child && child->node) moved = tree_.Find(child->node);
    if (Child* child = Tree::FindChild(**new_parent, new_name); child && child->node) target = tree_.Find(child->node);
  }
  if (moved == target) target = nullptr;  // two names of one file: nothing is replaced
  auto path_below = [](const std::string& directory, const std::string& child) {
    return directory.empty() ? child : directory + "/" + child;
  };
  // What was accepted below is sent before its path changes.
  std::optional<Unmoved> unmoved;
  if (options_.writeback) {
    std::vector<std::string> paths;
    {
      Lock lock(mutex_);
      if (auto parent = tree_.Find(parent_id)) paths.push_back(path_below(tree_.PathOf(*parent), name));
      if (auto parent = tree_.Find(new_parent_id)) paths.push_back(path_below(tree_.PathOf(*parent), new_name));
    }
    unmoved.emplace(*this, std::move(paths));
    for (const NodePtr& node : {moved, target}) {
      if (!node) continue;
      if (auto sent = SendBelow(node, ForTransfer(context)); !sent) return sent;
    }
  }
  if (moved) {
    if (auto sent = SendForName(moved, ForTransfer(context)); !sent) return sent;
  }
  if (target && exchange) {
    if (auto sent = SendForName(target, ForTransfer(context)); !sent) return sent;
  } else if (target && (flags & transport::kRenameNoReplace) == 0) {
    BeforeRemoval(target, ctx);
  }
  auto from = BeginName(parent_id, name);
  if (!from) return Forward(from.error());
  auto to = BeginName(new_parent_id, new_name);
  if (!to) {
    Lock lock(mutex_);
    EndUnknown(*from);
    EndParent(*from, std::nullopt);
    return Forward(to.error());
  }
  std::vector<std::string> moving;
  {
    Lock lock(mutex_);
    moving.push_back(path_below(tree_.PathOf(*from->parent), name));
    if (exchange) moving.push_back(path_below(tree_.PathOf(*to->parent), new_name));
    moving_.insert(moving.begin(), moving.end());
  }
  auto done = AtNode(from->parent, ctx, [&](const transport::Node& from_at) {
    return AtNode(to->parent, ctx, [&](const transport::Node& to_at) {
      return remote_.Rename(transport::Name{from_at, name}, transport::Name{to_at, new_name}, flags, ctx);
    });
  });
  Lock lock(mutex_);
  for (const std::string& path : moving) moving_.erase(moving_.find(path));
  moved_.notify_all();
  EndUnknown(*from);
  EndUnknown(*to);
  const bool same_parent = from->parent == to->parent;
  if (done) {
    Child* from_child = Tree::FindChild(*from->parent, name);
    Child* to_child = Tree::FindChild(*to->parent, new_name);
    moved = from_child->node ? tree_.Find(from_child->node) : nullptr;
    target = to_child->node ? tree_.Find(to_child->node) : nullptr;
    // Two links of one file: both names stay.
    const bool nothing = done->object && done->replaced ? done->object->id == done->replaced->id && done->object->id.known()
                                                        : moved && moved == target;
    const transport::FileId moved_before = moved ? moved->file_id : transport::FileId{};
    if (!nothing) {
      Child& old_entry = tree_.Detach(*from->parent, name);
      Child& new_entry = tree_.Detach(*to->parent, new_name);
      target = WhatLostItsName(target, done->replaced);
      if (target && !exchange) NodeRemoved(target, done->replaced, *to);
      // Where identities stay with their files, another identity is another file, that had got the name in the sandbox.
      const bool another = moved && done->object && done->object->id.known() && moved->file_id.known() &&
                           done->object->id != moved->file_id && remote_.description().identities_survive_renames;
      if (another) {
        moved->fresh_until = {};
        moved = nullptr;
      }
      if (moved) {
        if (!done->object || (done->object->id.known() && done->object->id != moved->file_id)) {
          tree_.IdentitiesChanged(*moved);
        }
        if (done->object) tree_.Rekey(*moved, done->object->id);
        tree_.Attach(*to->parent, new_name, *moved).fresh_until = NameUntil(*to->parent, to->stamp, to->asked, options_.attribute_ttl);
        const bool newest = to->stamp >= moved->stamp;
        moved->stamp = ++stamp_;
        // Its ctime changed.
        if (!done->object || !newest || !Absorb(*moved, *done->object, stamp_, to->asked, Origin::kOwnChange, true)) {
          moved->fresh_until = {};
        }
      } else if (done->object) {
        NodePtr node = tree_.GetOrMake(*done->object, nullptr);
        tree_.Attach(*to->parent, new_name, *node).fresh_until = NameUntil(*to->parent, to->stamp, to->asked, options_.attribute_ttl);
        Absorb(*node, *done->object, stamp_, to->asked, Origin::kOwnChange, true);
      }
      if (exchange) {
        if (target) {
          const bool told = done->replaced && done->replaced->id.known() && done->replaced->id == target->file_id;
          if (!told && (!done->object || done->object->id != moved_before)) tree_.IdentitiesChanged(*target);
          tree_.Attach(*from->parent, name, *target);
          target->fresh_until = {};
        }
      } else {
        old_entry.fresh_until = NameUntil(*from->parent, from->stamp, from->asked, options_.negative_ttl);
      }
      old_entry.stamp = ++stamp_;
      new_entry.stamp = stamp_;
    }
  } else if (!NothingDone(done.error())) {
    from->parent->listed_until = {};
    to->parent->listed_until = {};
  }
  std::optional<transport::Attributes> new_after = done ? done->parent : std::nullopt;
  std::optional<transport::Attributes> old_after = done ? done->old_parent : std::nullopt;
  if (same_parent) {
    // One directory was begun twice: the second end takes the answer.
    --from->parent->changes_in_flight;
    --from->parent->pins;
  } else {
    EndParent(*from, old_after);
  }
  EndParent(*to, new_after);
  if (!done) return Forward(done.error());
  // What is unsent below a directory belongs elsewhere now.
  if ((moved && moved->is_directory()) || (exchange && target && target->is_directory())) {
    for (const NodeId id : dirty_) {
      if (const NodePtr dirty = tree_.Find(id); dirty && dirty->content.exists()) NoteUnsent(*dirty);
    }
  }
  lock.unlock();
  if (target) PutAsideIfRefused(target);
  return {};
}

}  // namespace e2bfs::cache
