// Writing: into the spool, with what it changes recorded.
#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "cache/cached_fs_impl.h"

namespace e2bfs::cache {
namespace {

constexpr int kMostTriesForRoom = 50;
constexpr auto kPauseForRoom = std::chrono::milliseconds(10);
constexpr int64_t kEarlyBytes = 4 << 20;  // of a file that is sent while it is written

}  // namespace

// `present` and the charge follow what is recorded.
void CachedFsImpl::ChargeSpool(Node& node) {
  ChargePresent(node);
  NoteUnsent(node);
}

void CachedFsImpl::ChargePresent(Node& node) {
  Content& content = *node.content;
  if (content.spool) content.spool->Charge(content.present.bytes() - content.spool->charged());
}

// The only thing that many small writes do: the note gets a line for each.
bool CachedFsImpl::NoteMore(Node& node, bool only_more, const transport::Extent& extent, bool appended) {
  ChargePresent(node);
  Content& content = *node.content;
  if (only_more && content.spool && !node.is_gone() && content.spool->note().Add(extent, appended)) return true;
  return NoteUnsent(node);
}

bool CachedFsImpl::NoteUnsent(Node& node) {
  Content& content = *node.content;
  if (!content.spool) return true;
  UnsentRecord record;
  record.nothing = !node.has_unsent() || node.is_gone() || !content.saved.empty();
  if (!record.nothing) record = RecordOf(node);
  return content.spool->note().Write(record);
}

Change CachedFsImpl::BeforeWrite(const Node& node, const transport::Extent& extent) {
  const Change& change = node.content->current;
  Change before;
  for (const transport::Extent& overwritten : change.extents.Within(extent)) before.extents.Add(overwritten);
  before.size = change.size;
  before.append = change.append;
  before.attributes = change.attributes;
  return before;
}

void CachedFsImpl::NotWritten(Node& node, const transport::Extent& extent, Change before) {
  Content& content = *node.content;
  Change& change = content.current;
  change.extents.Remove(extent);
  change.extents.Add(before.extents);
  if (before.append && !change.append) change.extents.ClipTo(before.append->offset);
  change.size = before.size;
  change.append = before.append;
  change.attributes = before.attributes;
  // What it overwrote of ours is new, and still to be sent; of what is in the sandbox too, nothing is known here now.
  ExtentMap unsent;
  for (const Change* each : {&content.sending, &content.current}) {
    for (const transport::Extent& kept : each->extents.Within(extent)) unsent.Add(kept);
    if (each->append) unsent.Add(*each->append);
  }
  content.present.Remove(extent);
  content.present.Add(unsent);
  ChargePresent(node);
}

void CachedFsImpl::NoteBase(Node& node) {
  Content& content = *node.content;
  DropSavedCopy(node);
  if (content.dirty()) return;
  const transport::Attributes& known = node.attributes;
  content.base = UnsentBase{node.file_id, known.size, known.mtime, known.ctime, known.permissions};
  if (!remote_.description().identities_survive_renames) content.base.id = {};  // made up for this mount
  content.base_moves = node.changes_in_flight > 0;
  content.since = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void CachedFsImpl::DropSentBytes(Node& node) {
  if (!node.content.exists() || !node.content->spool) return;
  if (node.deleted && node.open_files > 0) return;  // the only copy
  Content& content = *node.content;
  ExtentMap unsent;
  for (const Change* change : {&content.sending, &content.current}) {
    unsent.Add(change->extents);
    if (change->append) unsent.Add(*change->append);
  }
  // A store that runs reads what it was begun with from the spool, whatever was truncated since; and what is being
  // written is not recorded yet.
  const bool in_use = content.storing || content.being_written;
  if (unsent.empty() && !in_use && !node.has_unsent()) {  // else its note is still of use
    content.present.Clear();
    content.spool.reset();
    return;
  }
  if (!in_use) {
    for (const transport::Extent& extent : content.present.extents()) {
      ExtentMap gone;
      gone.Add(extent);
      for (const transport::Extent& kept : unsent.Within(extent)) gone.Remove(kept);
      for (const transport::Extent& hole : gone.extents()) content.spool->Discard(hole.offset, hole.length);
    }
  }
  content.present = std::move(unsent);
  ChargeSpool(node);
}

bool CachedFsImpl::RecordWrite(Node& node, int64_t offset, int64_t length) {
  Content& content = *node.content;
  if (content.early && offset < content.early->claimed()) EndEarly(node);
  NoteBase(node);
  const transport::Extent extent{offset, length};
  Change before = BeforeWrite(node, extent);
  Change& change = content.current;
  const bool only_more = content.sending.empty() && change.touches_content() && !change.append;
  if (change.append && extent.end() > change.append->offset) change.AppendBecomesExtent();
  const int64_t known_bytes = change.extents.bytes();
  change.extents.Add(extent);
  if (change.size) change.size = std::max(*change.size, extent.end());
  content.present.Add(extent);
  change.attributes.mtime = transport::TimeChange{false, SandboxNow()};
  change.attributes.mtime_is_implied = true;
  node.content->untried = true;
  dirty_.insert(node.id);
  const bool written_again = change.extents.bytes() == known_bytes;
  if (!NoteMore(node, only_more, written_again ? transport::Extent{} : extent, false)) {
    NotWritten(node, extent, std::move(before));
    return false;
  }
  SendEarly(node);
  return true;
}

void CachedFsImpl::SendEarly(Node& node) {
  Content& content = *node.content;
  const Change& change = content.current;
  if (options_.writeback || content.not_early || !content.given_up.expired() || content.storing || node.deleted || change.append || change.extents.count() != 1) return;
  const transport::Extent written = change.extents.extents().front();
  if (written.offset != 0 || written.length < kEarlyBytes || !(content.fresh || change.cut == 0)) return;
  if (!content.early) {
    const NodePtr found = tree_.Find(node.id);
    if (!found) return;
    content.early = std::make_shared<EarlySend>(
        // Weak, since the node holds what is made here.
        [this, weak = std::weak_ptr<Node>(found), fresh = content.fresh](const OpContext& ctx) -> Result<std::unique_ptr<transport::EarlyStore>> {
          const NodePtr self = weak.lock();
          if (!self) return Errno(ESTALE, "the file is forgotten");
          OpContext within = ctx;
          within.deadline = Clock::now() + options_.operation_timeout;
          return WithHandle(self, true, within, [&](transport::Handle handle, const transport::Node& at) {
            return remote_.BeginStore(handle, at, fresh, within);
          });
        },
        content.spool, senders_);
    BeginChange(node);
  }
  content.early->MoreUntil(written.length);
}

void CachedFsImpl::EndEarly(Node& node) {
  Content& content = *node.content;
  if (!content.early) return;
  // What it holds goes by a thread that may wait.
  content.given_up = content.early;
  closer_.Add([early = std::exchange(content.early, nullptr)](std::stop_token) { early->GiveUp(); });
  content.not_early = true;
  --node.changes_in_flight;
}

bool CachedFsImpl::RecordAppend(Node& node, int64_t offset, int64_t length) {
  NoteBase(node);
  Change& change = node.content->current;
  const int64_t base = node.content->sending.SizeAfter(node.attributes.size);
  // An append is one only as long as nothing else of ours says where the file ends.
  if (!change.size && (change.append || change.extents.end() <= base)) {
    const bool only_more = change.append && node.content->sending.empty();
    Change before = BeforeWrite(node, transport::Extent{offset, length});
    if (!change.append) change.append = transport::Extent{offset, 0};
    if (change.append->end() == offset) {
      change.append->length += length;
      node.content->present.Add(transport::Extent{offset, length});
      change.attributes.mtime = transport::TimeChange{false, SandboxNow()};
      change.attributes.mtime_is_implied = true;
      node.content->untried = true;
      dirty_.insert(node.id);
      if (NoteMore(node, only_more, transport::Extent{offset, length}, true)) return true;
      NotWritten(node, transport::Extent{offset, length}, std::move(before));
      return false;
    }
  }
  return RecordWrite(node, offset, length);
}

void CachedFsImpl::RecordTruncate(Node& node, int64_t size) {
  Content& content = *node.content;
  Change& change = content.current;
  const int64_t before = node.size();
  if (content.early && size < content.early->claimed()) EndEarly(node);
  NoteBase(node);
  change.AppendBecomesExtent();
  if (size <= before) {
    change.extents.ClipTo(size);
    content.sending.AppendBecomesExtent();
    content.sending.extents.ClipTo(size);
    content.present.ClipTo(size);
    change.cut = std::min(change.cut.value_or(size), size);
  }
  change.size = size;
  change.attributes.mtime = transport::TimeChange{false, SandboxNow()};
  change.attributes.mtime_is_implied = true;
  node.content->untried = true;
  dirty_.insert(node.id);
  ChargeSpool(node);
}

Result<std::shared_ptr<SpoolFile>> CachedFsImpl::SpoolOf(const NodePtr& node) {
  {
    Lock lock(mutex_);
    if (node->content->spool) {
      node->content->being_written = true;
      return node->content->spool;
    }
  }
  auto made = spool_.NewFile();
  if (!made) return made;
  Lock lock(mutex_);
  node->content->spool = *made;
  node->content->being_written = true;
  return *made;
}

Result<void> CachedFsImpl::MakeRoom(const OpenFile& file, int64_t bytes, const OpContext& ctx) {
  for (int tries = 1;; ++tries) {
    auto made = TryToMakeRoom(file, bytes, ctx);
    if (!made) return Forward(made.error());
    if (*made) return {};
    if (tries == kMostTriesForRoom) return Errno(ENOSPC, "the spool directory is full");
    std::this_thread::sleep_for(kPauseForRoom);  // what was sent may be held for a moment by the thread that sent it
  }
}

Result<bool> CachedFsImpl::TryToMakeRoom(const OpenFile& file, int64_t bytes, const OpContext& ctx) {
  if (spool_.HasRoom(bytes)) return true;
  // First what is only kept for faster reading, then this file, then the others.
  {
    Lock lock(mutex_);
    for (const auto& [handle, open] : files_) {
      if (!open->node->content->dirty()) DropSentBytes(*open->node);
    }
  }
  if (spool_.HasRoom(bytes)) return true;
  const NodePtr& node = file.node;
  std::vector<NodePtr> order{node};
  {
    Lock lock(mutex_);
    for (NodeId id : dirty_) {
      if (NodePtr other = tree_.Find(id); other && other != node) order.push_back(std::move(other));
    }
  }
  std::optional<Error> first;
  for (const NodePtr& dirty : order) {
    bool deleted;
    {
      Lock lock(mutex_);
      deleted = dirty->deleted;
    }
    if (deleted) continue;
    // The writer is told by what this function returns.
    if (auto sent = Send(dirty, &file, ctx); !sent && !first) first = sent.error();
    {
      Lock lock(mutex_);
      DropSentBytes(*dirty);
    }
    if (spool_.HasRoom(bytes)) return true;
  }
  if (first) return Errno(ENOSPC, "the spool directory is full, and: " + ToString(*first));
  return false;
}

Result<size_t> CachedFsImpl::Write(FileHandle handle, int64_t offset, std::string_view bytes,
                                   const OpContext& context) {
  std::shared_ptr<OpenFile> file;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
  }
  if (!file->flags.write) return Errno(EBADF, "not open for writing");
  if (offset < 0) return Errno(EINVAL, "write");
  if (bytes.empty()) return 0;
  if (auto refused = RefusedOpen(*file->node)) return Forward(*refused);
  auto written = WriteToSpool(*file, offset, bytes, context);
  if (!written || !file->direct) return written;
  // The kernel's own files take or refuse each write as it comes.
  if (auto sent = Send(file->node, file.get(), ForTransfer(context)); !sent) {
    std::lock_guard writing(file->node->content->write_mutex);
    Lock lock(mutex_);
    DiscardUnsent(*file->node);
    return Forward(sent.error());
  }
  return written;
}

Result<size_t> CachedFsImpl::WriteToSpool(OpenFile& file, int64_t offset, std::string_view bytes, const OpContext& context) {
  const NodePtr& node = file.node;
  const auto length = static_cast<int64_t>(bytes.size());
  // Of an append that begins within a page that it has not whole, the kernel sends what goes into that page first.
  static const int64_t page = sysconf(_SC_PAGESIZE);
  const bool is_cut = file.flags.append && offset % page != 0 && (offset + length) % page == 0 && length < page;
  for (int attempt = 0;; ++attempt) {
    if (auto room = MakeRoom(file, length, ForTransfer(context)); !room) return Forward(room.error());
    {
      std::lock_guard writing(node->content->write_mutex);
      auto spool = SpoolOf(node);
      if (!spool) return Forward(spool.error());
      for (bool recorded = false; !recorded;) {
        if (file.flags.append) {
          Lock lock(mutex_);
          offset = node->size();
        }
        Result<void> written = offset > INT64_MAX - length
                                   ? Result<void>(Errno(EFBIG, "write"))
                                   : (*spool)->WriteAt(offset, bytes.data(), bytes.size());
        Lock lock(mutex_);
        // The file may have grown on the other side while we wrote.
        if (written && file.flags.append && offset != node->size()) continue;
        node->content->being_written = false;
        recorded = true;
        file.flushed = false;
        file.wrote = file.has_written = true;
        if (!written && (written.error().errno_value != ENOSPC || attempt > 0)) return Forward(written.error());
        if (!written) break;
        const bool noted = file.flags.append ? RecordAppend(*node, offset, length) : RecordWrite(*node, offset, length);
        if (!noted && attempt > 0) return Errno(ENOSPC, "what is unsent cannot be noted");
        if (!noted) break;
        if (std::exchange(node->content->rest_of, is_cut ? &file : nullptr) != nullptr) node->content->stored.notify_all();
        ClearSetIds(*node, context);
        return bytes.size();
      }
    }
    // This machine's disk is full before our limit is reached: what is unsent goes out first.
    if (auto sent = FlushAll(ForTransfer(context), nullptr); !sent) return Errno(ENOSPC, ToString(sent.error()));
    Lock lock(mutex_);
    for (const auto& [number, other] : files_) {
      if (!other->node->content->dirty()) DropSentBytes(*other->node);
    }
  }
}

}  // namespace e2bfs::cache
