// What is unsent: stores, their failures, and the mount's end.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "cache/recovery.h"
#include "cache/spool_source.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

constexpr int64_t kMostSentBeforeStat = 4 << 20;
constexpr auto kMostWaitedByStat = std::chrono::seconds(5);
constexpr size_t kMostErrorText = 1000;
constexpr auto kRestOfWriteTime = std::chrono::milliseconds(20);
constexpr int64_t kLookedAgainBytes = 1 << 20;  // so much takes long to bring: others may have changed the file meanwhile
constexpr size_t kSendersAtOnce = 8;
constexpr auto kProgressInterval = std::chrono::milliseconds(200);

// Whether attributes of what was stored can be those of the object that was asked for.
bool IsOf(const transport::Attributes& attributes, transport::FileType type, const transport::FileId& id) {
  return attributes.type == type && (!attributes.id.known() || !id.known() || attributes.id == id);
}

// The object is not there any more, or another one has its name.
bool SaysGone(const Error& error) {
  return error.kind == ErrorKind::kErrno && (error.errno_value == ENOENT || error.errno_value == ENOTDIR || error.errno_value == ESTALE);
}

// It may have been done all the same.
bool MayBeDone(const Error& error) {
  return error.kind == ErrorKind::kBroken || error.kind == ErrorKind::kTimeout || error.kind == ErrorKind::kProtocol ||
         error.kind == ErrorKind::kCancelled;
}

}  // namespace

std::optional<Error> CachedFsImpl::TakeUnreported(OpenFile& file) {
  if (auto error = std::exchange(file.unreported, std::nullopt)) return error;
  return std::exchange(file.node->content->unreported, std::nullopt);
}

// A local disk would have refused the open or the write.
bool CachedFsImpl::IsRefusal(const Error& error) {
  if (error.kind != ErrorKind::kErrno) return false;
  switch (error.errno_value) {
    case EROFS: case EPERM: case EACCES: case ETXTBSY: case EFBIG: return true;
    default: return false;
  }
}

// All that is unsent was refused, and nobody is about to write more.
bool CachedFsImpl::IsRefused(const Node& node) const {
  const Content& content = *node.content;
  return content.last_error && IsRefusal(*content.last_error) && !content.untried && WritingEnded(node);
}

void CachedFsImpl::DiscardUnsent(Node& node) {
  if (!node.content.exists()) return;
  Content& content = *node.content;
  DropSavedCopy(node);
  EndEarly(node);
  GiveUpName(node);
  content.current = {};
  content.sending = {};
  content.accepted = content.sending_accepted = false;
  content.order = 0;
  content.unreported.reset();
  content.last_error.reset();
  content.present.Clear();
  content.spool.reset();
  dirty_.erase(node.id);
}

Result<void> CachedFsImpl::Send(const NodePtr& node, const OpenFile* teller, const OpContext& ctx, SendWhat what) {
  if (auto settled = Settle(node, ctx); !settled) return settled;
  const TimePoint patience = Clock::now() + kRestOfWriteTime;
  while (true) {
    {
      Lock lock(mutex_);
      if (auto turn = WaitForOtherStore(lock, *node, ctx); !turn) return turn;
      if (!IsToBeSent(*node, what)) return {};
      if (node->deleted) return CannotReach(*node, teller);
      // One write(2) arrives in one piece, also between those that others append.
      if (IsCut(*node, teller)) {
        if (!node->content->stored.wait_until(lock, patience, [&] { return !IsCut(*node, teller); })) node->content->rest_of = nullptr;
        continue;
      }
    }
    Error failed = Errno(EIO, "it was changed in the sandbox meanwhile").value();
    const auto changed = ChangedThere(node, ctx.Renewed());
    if (!changed) return Forward(changed.error());
    if (!*changed) {
      std::shared_ptr<EarlySend> early;
      {
        Lock lock(mutex_);
        if (node->content->storing || node->deleted || !IsToBeSent(*node, what)) continue;  // somebody else was faster
        if (IsCut(*node, teller)) continue;
        BeginStore(*node);
        early = std::exchange(node->content->early, nullptr);
        if (early) --node->changes_in_flight;
      }
      const auto sent = SendOnce(node, teller, early, ctx, what);
      if (sent) return sent;
      failed = sent.error();
      Lock lock(mutex_);
      if (!IsReplaced(*node, failed)) return sent;
    }
    if (SendBeside(node, "it was replaced or changed in the sandbox meanwhile")) return {};
    Lock lock(mutex_);
    if (!node->content->storing && IsToBeSent(*node, what)) return Forward(failed);
  }
}

bool CachedFsImpl::IsToBeSent(const Node& node, SendWhat what) const {
  if (!node.content->dirty() || node.is_gone()) return false;
  return what == SendWhat::kAll || (what == SendWhat::kAccepted ? node.content->accepted : MaySendBeforeStat(node));
}

Result<void> CachedFsImpl::WaitForOtherStore(Lock& lock, Node& node, const OpContext& ctx) {
  Content& content = *node.content;
  OpContext waiting = ctx;
  while (!WaitWithin(content.stored, lock, waiting, [&] { return !content.storing; })) {
    // Whoever waits for a transfer waits as long as it gets on.
    const TimePoint progress{TimePoint::duration(content.store_progress.load())};
    if (ctx.renewal.count() == 0 || ctx.stop.stop_requested() || progress + ctx.renewal <= Clock::now()) {
      return WaitEnded(ctx, "waiting for a store of the same file");
    }
    waiting.deadline = progress + ctx.renewal;
  }
  return {};
}

void CachedFsImpl::BeginStore(Node& node) {
  Content& content = *node.content;
  content.sending = std::exchange(content.current, {});
  content.sending_accepted = std::exchange(content.accepted, false);
  content.storing = true;
  content.untried = content.not_early = false;
  BeginChange(node);
}

bool CachedFsImpl::IsReplaced(const Node& node, const Error& error) const {
  return node.content->accepted && !node.deleted && error.kind == ErrorKind::kErrno && error.errno_value == ESTALE;
}

bool CachedFsImpl::MaySendBeforeStat(const Node& node) const {
  if (!node.content.exists() || options_.writeback || !remote_.description().tells_ctime) return false;
  const Content& content = *node.content;
  const transport::AttributeChange& set = content.current.attributes;
  // Who sets them has not finished with the file: all goes at once with his close. (The kernel asks as stat does before each chown.)
  const bool being_furnished = set.permissions || set.uid || set.gid || set.atime || (set.mtime && !set.mtime_is_implied);
  // Old content goes when its writer closes, not when somebody looks. What failed waits for its writers, too; what is long and still being
  // written would be cut in two.
  const bool replaced = content.current.cut && !content.fresh;
  return content.current.touches_content() && !being_furnished && !replaced && content.untried && !content.last_error && !content.early && !node.deleted &&
         content.unsent_bytes() <= kMostSentBeforeStat;
}

bool CachedFsImpl::SendBeforeStat(const NodePtr& node, const OpContext& ctx) {
  Lock lock(mutex_);
  if (!MaySendBeforeStat(*node)) return false;
  // By a thread of ours: who waits may be killed, a store may not. One for all who ask.
  auto sent = node->content->stat_send;
  if (!sent) {
    sent = std::make_shared<std::optional<bool>>();
    ++node->pins;
    const bool added = stat_senders_.Add([this, node, sent](std::stop_token stop) {
      OpContext sending;
      sending.stop = stop;
      const auto stored = Send(node, nullptr, ForTransfer(sending), SendWhat::kBeforeStat);
      Lock locked(mutex_);
      *sent = stored.has_value();
      node->content->stat_send.reset();
      --node->pins;
      node->content->stored.notify_all();
    });
    if (!added) {
      --node->pins;
      return false;
    }
    node->content->stat_send = sent;
  }
  // Then with what is known here: a sandbox that stalls keeps nobody longer who only looks.
  OpContext waiting = ctx;
  waiting.deadline = std::min(ctx.deadline, Clock::now() + kMostWaitedByStat);
  return WaitWithin(node->content->stored, lock, waiting, [&] { return sent->has_value(); }) && **sent;
}

bool CachedFsImpl::WritingEnded(const Node& node) const {
  if (node.open_writers == 0) return true;
  return std::ranges::all_of(files_, [&](const auto& file) {
    return file.second->node.get() != &node || !file.second->flags.write || file.second->flushed;
  });
}

bool CachedFsImpl::IsBeingWritten(const Node& node) const {
  if (node.open_writers == 0) return false;
  return std::ranges::any_of(files_, [&](const auto& file) { return file.second->node.get() == &node && file.second->wrote; });
}

Result<void> CachedFsImpl::CannotReach(Node& node, const OpenFile* teller) {
  const std::string path = tree_.PathOf(node);
  const Error error = Errno(ESTALE, path + " was removed here, and is in the sandbox by other names, which are not known").value();
  node.content->untried = false;
  node.content->last_error = error;
  NoteError(path, error);
  TellWriters(node, teller, error);
  return Forward(error);
}

Result<transport::Attributes> CachedFsImpl::CallStore(const NodePtr& node, const Change& change, bool fresh,
                                                      const std::shared_ptr<SpoolFile>& spool, transport::EarlyStore* early,
                                                      const OpContext& ctx) {
  bool closes = false;
  {
    Lock lock(mutex_);
    closes = options_.writeback && node->open_files > 0 && (AccessToCome(*node).value_or(6) & 6) != 6;
  }
  // An open file stays usable when its new mode would not let it be opened any more.
  if (closes) OpenHandlesInUse(node, ctx);
  if (!change.touches_content()) {
    transport::Handle handle;
    {
      Lock lock(mutex_);
      handle = node->write_handle;
    }
    auto changed = AtNode(node, ctx, [&](const transport::Node& at) {
      return remote_.SetAttributes(at, handle, change.attributes, ctx);
    });
    if (!changed) return Forward(changed.error());
    if (changed->object) return *changed->object;
    return AtNode(node, ctx, [&](const transport::Node& at) { return remote_.Stat(at, ctx); });
  }
  SpoolSource source(spool, *node->content);
  transport::StoreRequest request = RequestOf(change, source);
  request.fresh = fresh;
  request.early = early;
  bool changed_there = false;
  {
    Lock lock(mutex_);
    request.last = WritingEnded(*node);
    const bool takes_long = change.bytes() >= kLookedAgainBytes;
    if (options_.writeback && takes_long && !fresh && node->content->sending_accepted && MayLoseTheirs(change)) {
      request.before_changing = [&]() -> Result<void> {
        auto changed = IsNotItsBase(node, ctx.Renewed());
        if (!changed) return Forward(changed.error());
        changed_there = *changed;
        if (changed_there) return Errno(ESTALE, "it was changed in the sandbox meanwhile");
        return {};
      };
    }
  }
  for (int attempt = 0;; ++attempt) {
    transport::Handle used = 0;
    auto stored = WithHandle(node, true, ctx, [&](transport::Handle handle, const transport::Node& at) {
      used = handle;
      auto result = remote_.Store(handle, at, request, ctx);
      request.early = nullptr;  // used up
      return result;
    });
    Lock lock(mutex_);
    if (stored && request.last && used == node->write_handle) node->writing_ended = true;
    if (stored || attempt > 0 || changed_there || stored.error().errno_value != ESTALE) return stored;
    if (node->deleted || used == 0) return stored;
    DropHandle(*node, used);  // the other side may have lost it: once more with a new one
  }
}

Result<void> CachedFsImpl::SendOnce(const NodePtr& node, const OpenFile* teller, const std::shared_ptr<EarlySend>& early, const OpContext& context,
                                    SendWhat what) {
  OpContext ctx = context;
  ctx.service_class = ServiceClass::kBulk;
  Change sent;
  bool fresh;
  std::shared_ptr<SpoolFile> spool;
  uint64_t asked_stamp;
  transport::FileId asked_id;
  transport::FileType asked_type;
  std::shared_ptr<EarlySend> given_up;
  {
    Lock lock(mutex_);
    asked_id = node->file_id;
    asked_type = node->attributes.type;
    given_up = node->content->given_up.lock();
    if (early) node->content->given_up = early;  // should it not be taken
    sent = node->content->sending;
    fresh = node->content->fresh;
    spool = node->content->spool;
    asked_stamp = node->stamp;
  }
  const TimePoint asked = Clock::now();
  const std::unique_ptr<transport::EarlyStore> sent_early = early ? early->Take(ctx) : nullptr;
  if (early && !sent_early) given_up = early;
  // What the other side still gets of what was given up must not come after this.
  const bool alone = !given_up || given_up->End(ctx);
  auto stored = alone ? CallStore(node, sent, fresh, spool, sent_early.get(), ctx)
                      : Result<transport::Attributes>(WaitEnded(ctx, "waiting for the end of what was sent while it was written"));
  FaultPoint("store.answered");
  if (!stored && sent.append && MayBeDone(stored.error())) {
    // Appending again what arrived would double it: the size tells.
    OpContext again = OpContext::Within(options_.operation_timeout);
    auto now = AtNode(node, again, [&](const transport::Node& at) { return remote_.Stat(at, again); });
    if (now && now->size == sent.append->end()) stored = *now;
  }
  if (stored && !IsOf(*stored, asked_type, asked_id)) stored = Errno(ESTALE, "the sandbox stored into another file");
  if (stored) {
    StoreSucceeded(node, sent, *stored, asked_stamp, asked);
    return {};
  }
  if (stored.error().content_stored) {
    AttributesRefused(node, teller, sent, stored.error(), asked_stamp, asked);
    return Forward(stored.error());
  }
  const bool may_leave_traces = stored.error().kind == ErrorKind::kErrno && !SaysGone(stored.error());  // in the file itself
  if (options_.writeback && !remote_.description().identities_survive_renames && may_leave_traces) NoteOwnTrace(node);
  Lock lock(mutex_);
  if (stored.error().appended > 0) AppendedInPart(*node, stored.error().appended);
  if (options_.writeback && fresh && sent.touches_content()) node->content->begun_bytes = std::max(node->content->begun_bytes, sent.SizeAfter(0));
  // Attributes alone that were refused are as with chmod: told, and not tried for ever.
  if (!sent.touches_content() && stored.error().kind == ErrorKind::kErrno) node->content->sending = {};
  // Attributes of what was removed meanwhile, by whomever.
  const bool pointless = node->content->sending_accepted && !sent.touches_content() && SaysGone(stored.error());
  StoreFailed(*node, teller, stored.error(), what == SendWhat::kBeforeStat);
  lock.unlock();
  PutAsideIfRefused(node);
  if (pointless) return {};
  return Forward(stored.error());
}

void CachedFsImpl::NoteOwnTrace(const NodePtr& node) {
  OpContext ctx = OpContext::Within(options_.operation_timeout);
  auto now = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.Stat(at, ctx); });
  Lock lock(mutex_);
  if (now && now->size == node->content->base.size) node->content->base.mtime = now->mtime;
}

void CachedFsImpl::AttributesRefused(const NodePtr& node, const OpenFile* teller, const Change& sent, const Error& error,
                                     uint64_t asked_stamp, TimePoint asked) {
  OpContext ctx = OpContext::Within(options_.operation_timeout);
  auto now = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.Stat(at, ctx); });
  transport::Attributes after;
  {
    Lock lock(mutex_);
    if (now && !IsOf(*now, node->attributes.type, node->file_id)) now = Errno(ESTALE);
    after = now ? *now : node->attributes;
    if (!now) after.size = sent.SizeAfter(node->attributes.size);
  }
  StoreSucceeded(node, sent, after, asked_stamp, asked);
  Lock lock(mutex_);
  if (!now) node->fresh_until = {};
  NoteError(tree_.PathOf(*node), error);
  TellWriters(*node, teller, error);
}

void CachedFsImpl::TellWriters(const Node& node, const OpenFile* teller, const Error& error) {
  for (const auto& [handle, file] : files_) {
    if (file->node.get() == &node && file.get() != teller && file->flags.write && !file->unreported) {
      file->unreported = error;
    }
  }
}

void CachedFsImpl::StoreSucceeded(const NodePtr& node, const Change& sent, const transport::Attributes& after,
                                  uint64_t asked_stamp, TimePoint asked) {
  std::lock_guard writing(node->content->write_mutex);
  Content& content = *node->content;
  const int64_t shift = sent.append ? after.size - sent.append->end() : 0;
  std::optional<transport::Extent> later;
  std::shared_ptr<SpoolFile> spool;
  {
    Lock lock(mutex_);
    if (shift != 0 && !content.current.size) later = content.current.append;
    spool = content.spool;
    content.moving = later.has_value();
    if (content.moving) NoteUnsent(*node);
  }
  // Others appended as well: what we appended since the store began lies further on.
  const bool follows = later && spool && later->offset + shift >= 0;
  bool moved = false;
  if (follows) {
    auto done = spool->MoveRange(later->offset, later->offset + shift, later->length);
    if (!done) log::Error("cache", "{}", ToString(done.error()));
    moved = done.has_value();
  }
  Lock lock(mutex_);
  content.moving = false;
  if (moved) {
    content.current.append->offset += shift;
    content.present.Add(*content.current.append);
  }
  const int64_t expected = sent.SizeAfter(node->attributes.size);
  if (options_.writeback) node->ctime_shown = TimeShown{after.ctime, BuildAttributes(*node, Clock::now()).attributes.ctime};
  content.sending = {};
  content.storing = content.sending_accepted = false;
  content.failures = 0;
  content.begun_bytes = 0;
  content.base_moves = false;
  content.beside.reset();
  if (!content.dirty()) content.accepted = false;
  if (!content.accepted) content.order = 0;
  if (options_.writeback) SomethingToSend();
  --node->changes_in_flight;
  // The answer is the file as it is now, whatever else is on its way.
  TakeAttributes(*node, after, asked);
  const bool newest = node->changes_in_flight == 0 && asked_stamp >= node->stamp;
  node->fresh_until = newest ? NodeUntil(*node, asked_stamp, asked, false) : TimePoint{};
  node->stamp = ++stamp_;
  if (content.dirty()) content.base = UnsentBase{content.base.id, after.size, after.mtime, after.ctime, after.permissions};
  if (sent.touches_content()) {
    content.fresh = false;
    ContentChanged(*node, after.size != expected);  // another size than ours: others wrote, too
  }
  content.last_error.reset();
  if (!node->has_unsent()) dirty_.erase(node->id);
  ChargeSpool(*node);
  DropSavedCopy(*node);
  if (node->open_files == 0) {
    if (node->is_gone()) DiscardUnsent(*node);
    DropSentBytes(*node);
    CloseHandlesIfUnused(*node);
  }
  content.stored.notify_all();
}

void CachedFsImpl::AppendedInPart(Node& node, int64_t done) {
  std::optional<transport::Extent>& append = node.content->sending.append;
  if (!append) return;  // truncated meanwhile: it has a place now, and is written there
  done = std::min(done, append->length);
  append = transport::Extent{append->offset + done, append->length - done};
  node.attributes.size = std::max(node.attributes.size, append->offset);
  node.content->base.size = std::max(node.content->base.size, append->offset);  // what arrived is known here no longer
  if (append->length == 0) append.reset();
  DropSavedCopy(node);  // it says more than is to be sent
}

void CachedFsImpl::StoreFailed(Node& node, const OpenFile* teller, const Error& error, bool tried) {
  Content& content = *node.content;
  content.current = MergeChanges(std::exchange(content.sending, {}), std::exchange(content.current, {}),
                                 node.attributes.size);
  content.storing = false;
  content.accepted = std::exchange(content.sending_accepted, false) || content.accepted;
  ++content.failures;
  --node.changes_in_flight;
  content.base_moves = content.base_moves && node.changes_in_flight > 0;
  node.fresh_until = {};
  node.stamp = ++stamp_;
  content.last_error = error;
  NoteError(tree_.PathOf(node), error);
  const bool is_later = content.accepted && content.dirty() && IsForNow(error);  // it is sent all the same
  if (tried && content.dirty()) {
    content.untried = true;
  } else if (!is_later) {
    TellWriters(node, teller, error);
  }
  if (content.accepted && !content.dirty()) {
    content.accepted = false;
    if (!SaysGone(error)) {
      log::Error("cache", "{}: what was set was refused: {}", tree_.PathOf(node), ToString(error));
      untold_ = error;
    }
  }
  // As if it had been moved there when the copy was made.
  if (!content.saved.empty() && !content.being_written) {
    if (content.accepted) untold_ = error;
    content.saved.clear();
    DiscardUnsent(node);
  }
  if (!node.has_unsent()) dirty_.erase(node.id);
  ChargeSpool(node);
  if (node.open_files == 0) {
    if (node.is_gone()) DiscardUnsent(node);
    CloseHandlesIfUnused(node);
  }
  content.stored.notify_all();
}

Result<void> CachedFsImpl::SendForName(const NodePtr& node, const OpContext& ctx) {
  if (auto sent = Send(node, nullptr, ctx.Uninterruptible()); !sent) return sent;
  Lock lock(mutex_);
  if (auto error = std::exchange(node->content->unreported, std::nullopt)) return Forward(*error);
  return {};
}

Result<void> CachedFsImpl::Flush(FileHandle handle, const OpContext& context) {
  std::shared_ptr<OpenFile> file;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
  }
  if (!file->flags.write) return {};
  {
    Lock lock(mutex_);
    file->flushed = true;
    file->wrote = false;
    if (file->node->content.exists() && file->node->content->rest_of == file.get()) file->node->content->rest_of = nullptr;
  }
  auto accepted = AcceptFile(file->node, ForTransfer(context));
  if (!accepted) return Forward(accepted.error());
  if (*accepted) {
    Lock lock(mutex_);
    if (auto unreported = TakeUnreported(*file)) return Forward(*unreported);
    return {};
  }
  auto sent = Send(file->node, file.get(), ForTransfer(context));
  transport::Handle written = 0;
  {
    Lock lock(mutex_);
    if (!file->node->writing_ended && WritingEnded(*file->node)) {
      written = file->node->write_handle;
      file->node->writing_ended = true;
    }
  }
  remote_.EndWriting(written);
  Lock lock(mutex_);
  auto unreported = TakeUnreported(*file);
  if (!sent) return sent;
  if (unreported) return Forward(*unreported);
  return {};
}

Result<void> CachedFsImpl::Sync(FileHandle handle, const OpContext& context) {
  std::shared_ptr<OpenFile> file;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
  }
  // Also what another handle wrote: fsync(2) is about the file.
  const NodePtr& node = file->node;
  auto sent = Send(node, file.get(), ForTransfer(context));
  {
    Lock lock(mutex_);
    auto unreported = TakeUnreported(*file);
    if (!sent) return sent;
    if (unreported) return Forward(*unreported);
    if (node->deleted) return {};
    // Nothing of ours to make durable.
    if (node->write_handle == 0 && node->read_handle == 0 && !file->flags.write) return {};
  }
  const OpContext ctx = ForTransfer(context);
  return WithHandle(node, file->flags.write, ctx, [&](transport::Handle handle, const transport::Node& at) {
    return remote_.Sync(handle, at, ctx);
  });
}

Result<void> CachedFsImpl::FlushAll(const OpContext& context, const std::function<void(int64_t)>& progress) {
  const OpContext ctx = ForTransfer(context);
  std::vector<NodePtr> nodes;
  {
    Lock lock(mutex_);
    for (NodeId id : dirty_) {
      if (NodePtr node = tree_.Find(id); node && node->has_unsent() && !node->is_gone()) {
        ++node->pins;
        nodes.push_back(std::move(node));
      }
    }
  }
  auto sent = SettleAll(nodes, ctx);
  if (auto rest = SendAll(nodes, ctx, progress); sent) sent = rest;
  Lock lock(mutex_);
  for (const NodePtr& node : nodes) --node->pins;
  if (auto untold = std::exchange(untold_, std::nullopt)) {
    if (sent) return Forward(*untold);
    sent.error().message += "; " + untold->message;
  }
  return sent;
}

Result<void> CachedFsImpl::SendAll(std::vector<NodePtr> nodes, const OpContext& ctx, const std::function<void(int64_t)>& progress, SendWhat what) {
  size_t files = 0, open = 0;
  {
    Lock lock(mutex_);
    std::erase_if(nodes, [](const NodePtr& node) { return node->unmade != nullptr; });  // it could not be made, which is known
    // Directories when all is in them: their times are to stay.
    const auto directories = std::stable_partition(nodes.begin(), nodes.end(), [](const NodePtr& node) { return !node->is_directory(); });
    files = static_cast<size_t>(directories - nodes.begin());
    // Then those that will be closed to this user, each after what is in it.
    const auto closed = std::stable_partition(directories, nodes.end(), [&](const NodePtr& node) { return !ClosesSoon(*node); });
    open = static_cast<size_t>(closed - nodes.begin());
    std::stable_sort(closed, nodes.end(), [&](const NodePtr& a, const NodePtr& b) { return tree_.PathOf(*a).size() > tree_.PathOf(*b).size(); });
  }
  // A few at once: one that stalls must not keep the others.
  std::mutex mutex;  // a leaf
  size_t next = 0;
  std::optional<Error> first;
  TimePoint next_progress{};
  auto work = [&](size_t end) {
    OpContext within = ctx;
    for (;;) {
      NodePtr node;
      bool tell = false;
      {
        std::lock_guard lock(mutex);
        if (next == end) return;
        node = nodes[next++];
        tell = progress && Clock::now() >= next_progress;
        if (tell) next_progress = Clock::now() + kProgressInterval;
      }
      if (tell) progress(Status().dirty_bytes);
      auto sent = SendLate(node, within, what);
      if (sent) within = within.Renewed();
      std::lock_guard lock(mutex);
      if (!sent && !first) first = sent.error();
    }
  };
  for (const size_t end : {files, open, nodes.size()}) {
    const size_t helpers_wanted = end > open ? 1 : std::min(end - next, kSendersAtOnce);
    std::vector<std::jthread> helpers;
    try {
      for (size_t i = 1; i < helpers_wanted; ++i) helpers.emplace_back(work, end);
    } catch (const std::system_error& thrown) {  // no more threads: those that are there do it
      log::Warning("cache", "sending what is unsent: {}", thrown.what());
    }
    work(end);
  }
  if (first) return Forward(*first);
  return {};
}

UnsentRecord CachedFsImpl::RecordOf(const Node& node) const {
  const Content& content = *node.content;
  const transport::Description& remote = remote_.description();
  UnsentRecord record;
  if (content.spool) record.id = content.spool->id();
  record.sandbox_id = options_.sandbox_id;
  record.user = remote.user;
  record.root = remote.root;
  record.path = tree_.PathOf(node);
  record.has_content = content.spool != nullptr && content.unsent_bytes() > 0;
  record.fresh = content.fresh;
  record.accepted = content.accepted || content.sending_accepted || node.unmade;
  record.order = node.unmade ? node.unmade->order : content.order;
  if (node.unmade) record.make = node.unmade->making;
  record.scope = options_.store_scope;
  record.base = content.base;
  record.change = content.sending.empty() ? content.current : MergeChanges(content.sending, content.current, node.attributes.size);
  if (node.unmade && !node.is_directory() && !record.change.attributes.mtime) {  // as with its making
    record.change.attributes.mtime = transport::TimeChange{false, node.attributes.mtime};
    record.change.attributes.mtime_is_implied = true;
  }
  record.since = content.since;
  if (content.last_error) record.last_error = ToString(*content.last_error).substr(0, kMostErrorText);
  if (node.unmade && node.unmade->error) record.last_error = ToString(*node.unmade->error).substr(0, kMostErrorText);
  record.being_sent = node.unmade ? node.unmade->being_made || node.unmade->maybe_made : content.storing;
  record.begun_bytes = content.begun_bytes;
  if (options_.writeback && content.fresh && content.sending.touches_content()) record.begun_bytes = std::max(record.begun_bytes, content.sending.SizeAfter(0));
  if (content.beside) {  // and it may have begun
    record.make = content.beside->make;
    record.fresh = content.beside->fresh;
    record.base = content.beside->base;
    record.being_sent = content.beside->being_sent;
  }
  record.removing = content.removing;
  record.moving = content.moving;
  return record;
}

Result<bool> CachedFsImpl::SaveUnsentOf(const NodePtr& node, const std::string& directory, SaveWhen when, const std::string& why) {
  std::lock_guard writing(node->content->write_mutex);
  Lock lock(mutex_);
  if (!node->has_unsent() || node->is_gone()) return false;
  Content& content = *node->content;
  if (when != SaveWhen::kAlways && content.storing) return false;
  if (when == SaveWhen::kRefused && !IsRefused(*node)) return false;
  // A store that does not end still uses the spool file: a copy then, and nothing is dropped.
  const bool being_sent = content.storing;
  if (!content.saved.empty()) {  // all of it, and nothing is new
    if (being_sent) return false;
    content.saved.clear();
    DiscardUnsent(*node);
    return false;
  }
  // Under the lock: DropSavedCopy removes it.
  for (size_t slash = directory.find('/', 1);; slash = directory.find('/', slash + 1)) {
    const std::string part = directory.substr(0, slash);
    if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) return Failure(ErrorKind::kLocal, errno, "making " + part);
    if (slash == std::string::npos) break;
  }
  UnsentRecord record = RecordOf(*node);
  if (being_sent || record.id.empty()) record.id = NewUnsentId();
  const std::string name = record.path.substr(record.path.rfind('/') + 1).substr(0, 200);
  // No name of the sandbox makes a content file that looks like a note.
  const bool misleading = name.ends_with(kUnsentNoteSuffix) || name.ends_with(kUnsentNoteTemporarySuffix);
  const std::string wanted = directory + "/" + std::to_string(node->id) + "-" + name + (misleading ? "." : "");
  std::string target = wanted;
  struct stat there {};
  auto taken = [&](const std::string& path) { return ::lstat(path.c_str(), &there) == 0; };
  for (int n = 2; taken(target) || taken(target + kUnsentNoteSuffix); ++n) target = wanted + "." + std::to_string(n);
  // First what it is, so that the content is never there without.
  const std::string note = target + kUnsentNoteSuffix;
  if (auto noted = WriteUnsentNote(note, record); !noted) return Forward(noted.error());
  if (record.has_content && (being_sent || ::rename(content.spool->path().c_str(), target.c_str()) != 0)) {
    const int error = errno;
    Result<void> copied;
    if (!being_sent && error != EXDEV) {
      copied = Failure(ErrorKind::kLocal, error, "moving " + content.spool->path());
    } else {
      const std::string temporary = directory + "/.copy-" + record.id;
      copied = content.spool->CopyTo(temporary);
      if (copied && ::rename(temporary.c_str(), target.c_str()) != 0) copied = Failure(ErrorKind::kLocal, errno, "renaming " + temporary);
      if (!copied) ::unlink(temporary.c_str());
    }
    if (!copied) {
      ::unlink(note.c_str());
      return Forward(copied.error());
    }
  }
  if (auto said = AppendUnsentText(directory, DescribeUnsent(record, record.has_content ? target : "(no content)")); !said) {
    log::Warning("cache", "{}", ToString(said.error()));  // only for people: the note says it all
  }
  if (being_sent) {
    content.saved = target;
    NoteUnsent(*node);
  }
  // Before it is unsent no longer: whoever waits for it is told.
  if (record.accepted && !why.empty()) {
    untold_ = Failure(ErrorKind::kErrno, EIO, record.path + ": " + why + "; it is put aside in " + directory).value();
    last_error_ = untold_->message;
  }
  if (!being_sent) DiscardUnsent(*node);
  return true;
}

void CachedFsImpl::DropSavedCopy(Node& node) {
  Content& content = *node.content;
  if (content.saved.empty()) return;
  UnsentEntry copy;
  copy.content = std::exchange(content.saved, {});
  copy.directory = copy.content.substr(0, copy.content.rfind('/'));
  copy.note = copy.content + kUnsentNoteSuffix;
  copy.content_is_there = true;
  NoteUnsent(node);  // first, so that one of them says it at any time
  if (node.has_unsent() && !node.is_gone() && content.spool && !content.spool->note().says()) return;  // the disk is full: there twice, rather than not at all
  if (auto removed = RemoveUnsent(copy); !removed) log::Warning("cache", "{}", ToString(removed.error()));
}

Result<int> CachedFsImpl::SaveUnsent(const std::string& directory) {
  std::vector<NodePtr> nodes;
  {
    Lock lock(mutex_);
    for (NodeId id : dirty_) {
      if (NodePtr node = tree_.Find(id)) nodes.push_back(std::move(node));
    }
  }
  int saved = 0;
  for (const NodePtr& node : nodes) {
    auto done = SaveUnsentOf(node, directory, SaveWhen::kAlways, {});
    if (!done) return Forward(done.error());
    if (*done) ++saved;
  }
  return saved;
}

void CachedFsImpl::PutAsideIfRefused(const NodePtr& node) {
  std::string path, error;
  bool refused = false;
  {
    Lock lock(mutex_);
    const Content& content = *node->content;
    if (content.last_error && IsReplaced(*node, *content.last_error)) return;
    const bool gone = content.last_error && SaysGone(*content.last_error);
    refused = IsRefused(*node);
    if (!gone && !refused && !node->linked_elsewhere) return;
    if (!refused && node->open_files > 0) return;
    if (!content.dirty() || content.storing || options_.unsent_directory.empty()) return;
    path = tree_.PathOf(*node);
    if (content.last_error) error = ToString(*content.last_error);
  }
  const std::string why = std::string(refused ? "it was refused by the sandbox (" : "it is gone in the sandbox (") + error + ")";
  auto saved = SaveUnsentOf(node, options_.unsent_directory, refused ? SaveWhen::kRefused : SaveWhen::kFailed, why);
  if (!saved) {
    log::Error("cache", "{} cannot be stored in the sandbox ({}), and what was written could not be put aside: {}", path, error,
               ToString(saved.error()));
    return;
  }
  if (!*saved) return;
  log::Error("cache", "{}: {}; what was written is put aside in {}", path, why, options_.unsent_directory);
  Lock lock(mutex_);
  ContentChanged(*node, true);
  Outdated(*node);
  TellKernel(lock);
  if (!lock.owns_lock()) lock.lock();
  if (node->open_files == 0) CloseHandlesIfUnused(*node);
}

}  // namespace e2bfs::cache
