// What the other side does with ranges of a file itself: finding holes, allocating and punching, copying.
#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "cache/cached_fs_impl.h"

namespace e2bfs::cache {
namespace {

constexpr uint32_t kZeroing = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;

Result<void> CheckRange(const transport::Extent& range) {
  if (range.offset < 0 || range.length <= 0) return Errno(EINVAL, "a range");
  if (range.offset > std::numeric_limits<int64_t>::max() - range.length) return Errno(EFBIG, "a range");
  return {};
}

// It may have been done all the same.
bool PerhapsDone(const Error& error) { return error.kind != ErrorKind::kErrno && error.kind != ErrorKind::kConnect; }

}  // namespace

Result<int64_t> CachedFsImpl::Seek(FileHandle handle, int64_t offset, transport::SeekTarget target,
                                   const OpContext& context) {
  const OpContext ctx = ForNames(context);
  std::shared_ptr<OpenFile> file;
  bool ask;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
    ask = !file->direct && !file->node->deleted;
  }
  const NodePtr& node = file->node;
  // What is not there yet is data; an error of sending it shows at close.
  if (ask) ask = Send(node, nullptr, ForTransfer(context).Uninterruptible()).has_value();
  if (ask) {
    auto found = WithHandle(node, !file->flags.read, ctx, [&](transport::Handle at_handle, const transport::Node& at) {
      return remote_.Seek(at_handle, at, offset, target, ctx);
    });
    if (found && *found < offset) return Failure(ErrorKind::kProtocol, EIO, "lseek went backwards");
    if (found || found.error().errno_value != ENOTSUP) return found;
  }
  Lock lock(mutex_);
  const int64_t size = node->size();
  if (offset < 0 || offset >= size) return Errno(ENXIO, tree_.PathOf(*node));
  return target == transport::SeekTarget::kData ? offset : size;
}

void CachedFsImpl::EndContentChange(Node& node, const Result<transport::Attributes>& after, uint64_t asked_stamp,
                                    TimePoint asked) {
  // The kernel drops its pages of what succeeded.
  if (after || PerhapsDone(after.error())) {
    ContentChanged(node, !after);
    DropSentBytes(node);
    if (node.content.exists()) node.content->fresh = false;
  }
  EndChange(node, after ? std::optional(*after) : std::nullopt, asked_stamp, asked);
}

Result<void> CachedFsImpl::ClearSetIdsNow(const NodePtr& node, const OpContext& ctx) {
  transport::AttributeChange change;
  {
    Lock lock(mutex_);
    if (ctx.creator) change.permissions = SetIdsCleared(*node, ctx, false);
  }
  if (!change.permissions) return {};
  if (auto cleared = SetAttributes(node->id, 0, change, ctx); !cleared) return Forward(cleared.error());
  return {};
}

Result<void> CachedFsImpl::Allocate(FileHandle handle, uint32_t mode, transport::Extent range,
                                    const OpContext& context) {
  if (auto may = MayChange(); !may) return may;
  if (auto good = CheckRange(range); !good) return good;
  if ((mode & ~(FALLOC_FL_KEEP_SIZE | kZeroing)) != 0) return Errno(EOPNOTSUPP, "fallocate");
  if ((mode & FALLOC_FL_PUNCH_HOLE) != 0 && mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
    return Errno(EOPNOTSUPP, "fallocate");
  }
  const OpContext ctx = ForTransfer(context);
  std::shared_ptr<OpenFile> file;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
    if (!file->flags.write) return Errno(EBADF, "not open for writing");
  }
  const NodePtr& node = file->node;
  if (auto cleared = ClearSetIdsNow(node, ctx); !cleared) return cleared;
  if (auto sent = Send(node, file.get(), ctx); !sent) return sent;
  uint64_t asked_stamp = 0;
  bool removed = false;
  {
    Lock lock(mutex_);
    removed = node->deleted;
    if (!removed) {
      BeginChange(*node);
      asked_stamp = stamp_;
    }
  }
  if (removed) return AllocateRemoved(file, mode, range, ctx);
  const TimePoint asked = Clock::now();
  auto done = WithHandle(node, true, ctx, [&](transport::Handle at_handle, const transport::Node& at) {
    return remote_.Allocate(at_handle, at, mode, range, ctx);
  });
  Lock lock(mutex_);
  EndContentChange(*node, done, asked_stamp, asked);
  if (!done) return Forward(done.error());
  return {};
}

Result<void> CachedFsImpl::AllocateRemoved(const std::shared_ptr<OpenFile>& file, uint32_t mode,
                                           transport::Extent range, const OpContext& ctx) {
  constexpr int64_t kPiece = 1 << 20;
  const NodePtr& node = file->node;
  int64_t zeros_end = 0;
  {
    Lock lock(mutex_);
    if ((mode & kZeroing) != 0) zeros_end = std::min(range.end(), node->size());
  }
  if (auto room = MakeRoom(*file, std::max<int64_t>(zeros_end - range.offset, 0), ctx); !room) return room;
  std::lock_guard writing(node->content->write_mutex);
  for (int64_t at = range.offset; at < zeros_end;) {
    const std::string zeros(static_cast<size_t>(std::min(kPiece, zeros_end - at)), '\0');
    auto spool = SpoolOf(node);
    if (!spool) return Forward(spool.error());
    auto written = (*spool)->WriteAt(at, zeros.data(), zeros.size());
    Lock lock(mutex_);
    node->content->being_written = false;
    if (!written) return written;
    if (!RecordWrite(*node, at, static_cast<int64_t>(zeros.size()))) return Errno(ENOSPC, "what is unsent cannot be noted");
    at += static_cast<int64_t>(zeros.size());
  }
  Lock lock(mutex_);
  if ((mode & FALLOC_FL_KEEP_SIZE) == 0 && range.end() > node->size()) RecordTruncate(*node, range.end());
  return {};
}

Result<size_t> CachedFsImpl::CopyRange(FileHandle from, int64_t from_offset, FileHandle to, transport::Extent target,
                                       const OpContext& context) {
  if (auto may = MayChange(); !may) return Forward(may.error());
  if (target.length == 0) return 0;
  if (auto good = CheckRange(target); !good) return Forward(good.error());
  if (auto good = CheckRange({from_offset, target.length}); !good) return Forward(good.error());
  const OpContext ctx = ForTransfer(context);
  std::shared_ptr<OpenFile> source, written;
  {
    Lock lock(mutex_);
    auto found = FindFile(from);
    if (!found) return Forward(found.error());
    source = *found;
    found = FindFile(to);
    if (!found) return Forward(found.error());
    written = *found;
    if (!source->flags.read || !written->flags.write) return Errno(EBADF, "copy_file_range");
    // What is only here is copied by reading and writing.
    if (source->direct || source->node->deleted || written->node->deleted) return Errno(EOPNOTSUPP, "copy_file_range");
  }
  // As the kernel says it.
  if (written->flags.append) return Errno(EBADF, "copy_file_range to a file that is appended to");
  if (auto cleared = ClearSetIdsNow(written->node, ctx); !cleared) return Forward(cleared.error());
  if (auto sent = Send(source->node, nullptr, ctx); !sent) return Errno(EOPNOTSUPP, "copy_file_range of what could not be sent");
  if (auto sent = Send(written->node, written.get(), ctx); !sent) return Forward(sent.error());
  uint64_t asked_stamp;
  {
    Lock lock(mutex_);
    BeginChange(*written->node);
    asked_stamp = stamp_;
  }
  const TimePoint asked = Clock::now();
  auto from_handle = HandleToUse(source->node, false);
  auto to_handle = HandleToUse(written->node, true);
  Result<transport::Copied> done;
  if (!from_handle || !to_handle) {
    done = Forward((from_handle ? to_handle : from_handle).error());
  } else {
    done = AtNode(source->node, ctx, [&](const transport::Node& from_at) {
      return AtNode(written->node, ctx, [&](const transport::Node& to_at) {
        return remote_.CopyRange(*from_handle, from_at, from_offset, *to_handle, to_at, target, ctx);
      });
    });
  }
  Lock lock(mutex_);
  Result<transport::Attributes> after = done ? Result<transport::Attributes>(done->target) : Forward(done.error());
  EndContentChange(*written->node, after, asked_stamp, asked);
  // Reading and writing, which the caller does then, finds out what is wrong with an open.
  if (!done && OpenHadFailed(done.error())) return Errno(EOPNOTSUPP, ToString(done.error()));
  if (!done) return Forward(done.error());
  if (done->bytes < 0 || done->bytes > target.length) return Failure(ErrorKind::kProtocol, EIO, "copied more than was asked for");
  return static_cast<size_t>(done->bytes);
}

}  // namespace e2bfs::cache
