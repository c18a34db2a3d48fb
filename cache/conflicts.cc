// -o writeback: somebody in the sandbox was there first. What was accepted here then lies beside that.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "cache/recovery.h"
#include "cache/spool_source.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

transport::Node NodeAt(const transport::Name& name, const transport::Attributes& there) {
  return {name.parent.path.empty() ? name.name : name.parent.path + "/" + name.name, there.id, name.parent.id};
}

}  // namespace

Result<bool> CachedFsImpl::ChangedThere(const NodePtr& node, const OpContext& ctx) {
  if (!options_.writeback) return false;
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

// Empty, or the beginning of what we have, all of it included.
bool CachedFsImpl::IsBegunThere(const NodePtr& node, const transport::Attributes& there, const transport::Name& name, const OpContext& ctx) {
  std::optional<SpoolSource> source;
  {
    Lock lock(mutex_);
    Content& content = *node->content;
    if (there.size > std::min(node->size(), kMostInRow)) return false;
    source.emplace(content.spool, content, content.current);
  }
  if (there.size == 0) return true;
  auto stream = remote_.Read(0, NodeAt(name, there), &there, transport::Extent{0, there.size}, ctx);
  std::string theirs(static_cast<size_t>(there.size), '\0'), ours = theirs;
  for (size_t done = 0; done < theirs.size();) {
    auto got = stream ? (*stream)->Read(theirs.data() + done, theirs.size() - done, ctx) : Result<size_t>(Forward(stream.error()));
    if (!got || *got == 0) return false;
    done += *got;
  }
  return source->ReadAt(0, ours.data(), ours.size()) && ours == theirs;
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
    name = ConflictName(node->unmade->wanted_name, node->content->since, node->content->spool->id(), node->unmade->names_tried);
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
  const auto entry = BeginBeside(*node);
  if (!entry) return false;
  FaultPoint("conflict.sending");
  const SendReport report = SendUnsent(remote_, *entry, true, SendTimes{options_.operation_timeout, options_.transfer_timeout},
                                       [&](const UnsentRecord& said) { return NoteBeside(*node, said); });
  FaultPoint("conflict.sent");
  const bool is_copy = report.outcome == SendOutcome::kConflictCopy, sent = report.outcome != SendOutcome::kFailed;
  log::Error("cache", "{}: {}; what was written here {}", entry->record->path, why,
             is_copy ? "is " + report.path : sent ? "was there" : "waits: " + report.text);
  const std::string copy = report.path.substr(report.path.rfind('/') + 1);
  const auto there = is_copy ? LookUpBeside(node, copy) : std::nullopt;
  std::lock_guard writing(node->content->write_mutex);
  Lock lock(mutex_);
  if (!sent) {
    StoreFailed(*node, nullptr, Failure(ErrorKind::kUnavailable, EIO, report.text).value(), true);
    return false;
  }
  return EndBeside(lock, node, copy, there);
}

std::optional<UnsentEntry> CachedFsImpl::BeginBeside(Node& node) {
  Lock lock(mutex_);
  Content& content = *node.content;
  if (!node.has_unsent() || content.storing || node.is_gone() || !content.spool) return {};
  EndEarly(node);
  BeginStore(node);
  UnsentEntry entry;
  entry.record = RecordOf(node);
  entry.id = entry.record->id;
  entry.directory = spool_.directory();
  entry.content = content.spool->path();
  entry.note = entry.content + kUnsentNoteSuffix;
  entry.content_is_there = true;
  entry.bytes = entry.record->change.bytes();
  return entry;
}

Result<void> CachedFsImpl::NoteBeside(Node& node, const UnsentRecord& said) {
  Lock lock(mutex_);
  Content& content = *node.content;
  const std::optional<transport::Extent>& append = content.sending.append;
  if (append && said.change.append && said.change.append->offset > append->offset) {
    AppendedInPart(node, said.change.append->offset - append->offset);
    content.base = said.base;
  }
  content.beside.reset();
  if (said.make) content.beside = said;
  NoteUnsent(node);
  return {};
}

bool CachedFsImpl::EndBeside(Lock& lock, const NodePtr& node, const std::string& copy, const std::optional<transport::Attributes>& there) {
  Content& content = *node->content;
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

}  // namespace e2bfs::cache
