// -o writeback: what was made here is made in the sandbox, many objects in one question.
#include <algorithm>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "cache/spool_source.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

// In a row that needs no space but that of what it makes.
constexpr int64_t kMostInPlainRow = 16 << 10;
constexpr uint32_t kOwnerWrites = 0200;
constexpr uint64_t kRefusalsBeforePutAside = 3;

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
    item.source = std::make_unique<SpoolSource>(content.spool, content, content.current);
    object.source = item.source.get();
    row.bytes += size;
    BeginStore(*node);
    item.sent = content.sending;
    object.attributes = item.sent.attributes;
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

}  // namespace e2bfs::cache
