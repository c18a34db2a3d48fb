#include "cache/stream_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "transport/base/waiting.h"

namespace e2bfs::cache {
namespace {

// What the kernel asks for at a time, and so the smallest range that is worth a request.
constexpr int64_t kFirstRange = 128 << 10;
// The kernel's pieces come at most so far out of order: two windows of its read-ahead (1 MiB, see RaiseReadAhead) and two reads of
// as much, with room to spare.
constexpr int64_t kMostAhead = 4 << 20;
constexpr int64_t kMostKept = 4 << 20;
// Skipped and never asked for: beyond it the reading is not sequential, whatever it looked like.
constexpr int64_t kMostWasted = 4 << 20;
// Ranges grow further than the window: between two of them there is a round trip in which nothing flows.
constexpr int64_t kRangeOverWindow = 16;
constexpr int kBrokenInARow = 3;

// Whether another request may do better.
bool WorthResuming(const Error& error, const OpContext& ctx) {
  if (ctx.stop.stop_requested() || Clock::now() >= ctx.deadline) return false;
  switch (error.kind) {
    case ErrorKind::kBroken:
    case ErrorKind::kConnect:
    case ErrorKind::kUnavailable:
    case ErrorKind::kTimeout:
    case ErrorKind::kProtocol:
    case ErrorKind::kCancelled:  // the transfer was opened by a thread that gave up; this one did not
      return true;
    default:
      return false;
  }
}

}  // namespace

StreamReader::StreamReader(OpenRange open_range, MemoryBudget& memory, int64_t max_window_bytes)
    : open_range_(std::move(open_range)),
      memory_(memory),
      max_window_(std::max(max_window_bytes, kFirstRange)),
      range_bytes_(kFirstRange) {}

StreamReader::~StreamReader() { DropKept(); }

size_t StreamReader::TakeKept(int64_t offset, char* buffer, size_t length) {
  auto at = kept_.upper_bound(offset);
  if (at == kept_.begin()) return 0;
  --at;
  std::string& bytes = at->second;
  const auto skip = static_cast<size_t>(offset - at->first);
  if (skip >= bytes.size()) return 0;
  const size_t now = std::min(length, bytes.size() - skip);
  std::memcpy(buffer, bytes.data() + skip, now);
  // The kernel keeps what it was given.
  if (skip == 0) {
    std::string rest = bytes.substr(now);
    const int64_t from = at->first + static_cast<int64_t>(now);
    kept_.erase(at);
    if (!rest.empty()) kept_.emplace(from, std::move(rest));
  } else if (skip + now == bytes.size()) {
    bytes.resize(skip);
    bytes.shrink_to_fit();
  } else {
    return now;
  }
  memory_.Give(static_cast<int64_t>(now));
  kept_bytes_ -= static_cast<int64_t>(now);
  return now;
}

void StreamReader::DropKept() {
  kept_.clear();
  memory_.Give(kept_bytes_);
  kept_bytes_ = 0;
}

std::optional<StreamReader::Transfer> StreamReader::Reset() {
  DropKept();
  range_bytes_ = kFirstRange;
  wasted_ = 0;
  delivered_ = 0;
  return std::exchange(transfer_, std::nullopt);
}

bool StreamReader::InReach(int64_t offset) const {
  const int64_t position = busy_ ? busy_position_ : next_;
  if (offset < position || offset - position > std::min(max_window_, kMostAhead)) return false;
  // Between two ranges of a reader that is known to be sequential, the same as within one.
  return offset == position || busy_ || transfer_ || range_bytes_ > 2 * kFirstRange;
}

Result<void> StreamReader::OpenNext(Lock& lock, int64_t offset, size_t length, const OpContext& ctx) {
  const transport::Attributes version = version_->attributes;
  const int64_t wanted = std::max(range_bytes_, static_cast<int64_t>(length));
  Transfer transfer;
  transfer.position = offset;
  const int64_t file_end = std::max(version.size, offset + static_cast<int64_t>(length));
  // A small rest is not worth a request of its own.
  transfer.end = file_end - offset <= 2 * wanted ? file_end : offset + wanted;
  busy_ = true;
  busy_position_ = offset;
  lock.unlock();
  auto stream = open_range_(&version, transport::Extent{offset, transfer.end - offset}, ctx);
  lock.lock();
  busy_ = false;
  changed_.notify_all();
  if (!stream) return Forward(stream.error());
  transfer.stream = std::move(*stream);
  transfer_ = std::move(transfer);
  next_ = offset;
  range_bytes_ = std::min(range_bytes_ * 2, max_window_ * kRangeOverWindow);
  return {};
}

// One step towards `offset`: bytes before it are kept, bytes from it on go into the buffer. 0: nothing for the buffer yet.
Result<size_t> StreamReader::Pull(Lock& lock, int64_t offset, char* buffer, size_t length, const OpContext& ctx) {
  Transfer transfer = std::move(*transfer_);
  transfer_.reset();
  busy_ = true;
  busy_position_ = transfer.position;
  const int64_t gap = offset - transfer.position;
  std::string skipped;
  bool charged = false;
  if (gap > 0) {
    const int64_t now = std::min({gap, kFirstRange, transfer.end - transfer.position});
    charged = memory_.TryTake(now);
    skipped.resize(static_cast<size_t>(now));
  }
  lock.unlock();
  const size_t wanted = gap > 0 ? skipped.size()
                                : static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(length),
                                                                        transfer.end - transfer.position));
  auto got = transfer.stream->Read(gap > 0 ? skipped.data() : buffer, wanted, ctx);
  std::unique_ptr<transport::ByteStream> ended;
  lock.lock();
  busy_ = false;
  changed_.notify_all();
  const size_t bytes = got ? *got : 0;
  if (gap > 0 && charged) {
    memory_.Give(static_cast<int64_t>(skipped.size() - bytes));
    if (bytes > 0) {
      skipped.resize(bytes);
      kept_bytes_ += static_cast<int64_t>(bytes);
      kept_.emplace(transfer.position, std::move(skipped));
      while (kept_bytes_ > std::min(max_window_, kMostKept)) {  // the oldest
        const auto size = static_cast<int64_t>(kept_.begin()->second.size());
        kept_.erase(kept_.begin());
        memory_.Give(size);
        kept_bytes_ -= size;
        wasted_ += size;
      }
    }
  }
  transfer.position += static_cast<int64_t>(bytes);
  next_ = transfer.position;
  if (gap <= 0) delivered_ += static_cast<int64_t>(bytes);
  const bool scattered = wasted_ > kMostWasted && wasted_ > delivered_ / 8;
  if (scattered) {
    DropKept();
    range_bytes_ = kFirstRange;
    wasted_ = 0;
    next_ = -1;
    near_wanted_ = std::min(2 * near_wanted_, 1000);
  }
  if (got && bytes > 0 && transfer.position < transfer.end && !scattered) {
    transfer_ = std::move(transfer);
  } else {
    ended = std::move(transfer.stream);
  }
  lock.unlock();
  ended.reset();
  lock.lock();
  if (!got) return Forward(got.error());
  // The end of the file before the range's: the file is shorter than its version says.
  if (bytes == 0) return Errno(ESTALE, "shorter than it was");
  return gap > 0 ? 0 : bytes;
}

Result<size_t> StreamReader::Read(const ReadVersion& version, int64_t offset, char* buffer, size_t length,
                                  const OpContext& ctx) {
  size_t done = 0;
  int broken = 0;
  std::optional<Transfer> old;  // destroyed after the lock
  Lock lock(mutex_);
  last_read_ = Clock::now();
  while (done < length) {
    const bool other_version = !version_ || version_->epoch != version.epoch ||
                               version_->attributes.size != version.attributes.size ||
                               version_->attributes.mtime.tv_sec != version.attributes.mtime.tv_sec ||
                               version_->attributes.mtime.tv_nsec != version.attributes.mtime.tv_nsec;
    if (other_version) {
      if (busy_) {
        if (!WaitWithin(changed_, lock, ctx, [this] { return !busy_; })) return WaitEnded(ctx, "reading");
        continue;
      }
      const bool first = !version_;
      old = Reset();
      version_ = version;
      if (first) next_ = 0;
    }
    const int64_t at = offset + static_cast<int64_t>(done);
    const size_t left = length - done;
    if (const size_t kept = TakeKept(at, buffer + done, left); kept > 0) {
      done += kept;
      continue;
    }
    Result<size_t> got = 0;
    if (InReach(at)) {
      if (busy_) {
        if (!WaitWithin(changed_, lock, ctx, [this] { return !busy_; })) return WaitEnded(ctx, "reading");
        continue;
      }
      if (transfer_ || at == next_) {
        Result<void> opened;
        if (!transfer_) opened = OpenNext(lock, at, left, ctx);
        if (!opened) {
          got = Forward(opened.error());
        } else if (!transfer_) {
          continue;  // another thread has it already
        } else {
          got = Pull(lock, at, buffer + done, left, ctx);
        }
      } else {
        // A little ahead, and nothing on its way: sequential reading that arrived in another order.
        const auto first = static_cast<size_t>(at - next_);
        auto opened = OpenNext(lock, next_, first + left, ctx);
        if (!opened) got = Forward(opened.error());
      }
    } else if (!busy_ && (at == random_end_ || near_ >= near_wanted_)) {
      // The second of two that belong together, or one of several that keep close: sequential from here.
      old = Reset();
      // Those that come in another order need room in one transfer.
      if (at != random_end_) range_bytes_ = 4 * kFirstRange;
      near_ = 0;
      next_ = at;
      continue;
    } else {
      const int64_t piece = std::max(kFirstRange, static_cast<int64_t>(length));
      const bool near = random_end_ >= 0 && at - random_end_ <= piece && random_end_ - at <= 2 * piece;
      near_ = near ? near_ + 1 : 0;
      random_end_ = std::max(offset + static_cast<int64_t>(length), near_ > 0 ? random_end_ : 0);
      const transport::Attributes attributes = version.attributes;
      lock.unlock();
      got = FetchExactly(&attributes, at, buffer + done, left, ctx);
      lock.lock();
      if (got && *got < left) return Errno(ESTALE, "shorter than it was");
    }
    if (got) {
      if (*got > 0) broken = 0;
      done += *got;
    } else if (!WorthResuming(got.error(), ctx) || ++broken > kBrokenInARow) {
      return got;
    }
  }
  last_read_ = Clock::now();
  return done;
}

Result<size_t> StreamReader::FetchExactly(const transport::Attributes* version, int64_t offset, char* buffer,
                                          size_t length, const OpContext& ctx) {
  size_t done = 0;
  for (int broken = 0;;) {
    const int64_t at = offset + static_cast<int64_t>(done);
    auto stream = open_range_(version, transport::Extent{at, static_cast<int64_t>(length - done)}, ctx);
    std::optional<Error> error;
    if (!stream) error = stream.error();
    while (!error && done < length) {
      auto got = (*stream)->Read(buffer + done, length - done, ctx);
      if (!got) {
        error = got.error();
      } else if (*got == 0) {
        return done;
      } else {
        done += *got;
        broken = 0;
      }
    }
    if (!error) return done;
    // Without a version a second request could be of another one.
    if (!WorthResuming(*error, ctx) || ++broken > kBrokenInARow) return Forward(*error);
    if (version == nullptr) done = 0;
  }
}

Result<size_t> StreamReader::ReadUnchecked(int64_t offset, char* buffer, size_t length, const OpContext& ctx) {
  return FetchExactly(nullptr, offset, buffer, length, ctx);
}

Result<size_t> StreamReader::ReadToTheEnd(int64_t offset, char* buffer, size_t length, const OpContext& ctx) {
  Lock lock(mutex_);
  if (!WaitWithin(changed_, lock, ctx, [this] { return !busy_; })) return WaitEnded(ctx, "reading");
  last_read_ = Clock::now();
  if (std::exchange(seen_end_, std::nullopt) == offset) return 0;
  std::optional<Transfer> transfer = std::exchange(transfer_, std::nullopt);
  busy_ = true;
  lock.unlock();
  Result<size_t> result = 0;
  if (!transfer || transfer->position != offset) {
    transfer.reset();
    auto stream = open_range_(nullptr, transport::Extent{offset, std::numeric_limits<int64_t>::max() - offset}, ctx);
    if (stream) {
      transfer = Transfer{std::move(*stream), offset, std::numeric_limits<int64_t>::max()};
    } else {
      result = Forward(stream.error());
    }
  }
  bool ended = false;
  while (result && *result < length && !ended) {
    auto got = transfer->stream->Read(buffer + *result, length - *result, ctx);
    if (!got) {
      // What came is given; the error shows at the next read if it is one that stays.
      if (*result == 0) result = Forward(got.error());
      transfer.reset();
      break;
    }
    ended = *got == 0;
    *result += *got;
    transfer->position += static_cast<int64_t>(*got);
  }
  if (!result || ended) transfer.reset();
  lock.lock();
  busy_ = false;
  changed_.notify_all();
  transfer_ = std::move(transfer);
  if (result && ended && *result > 0) seen_end_ = offset + static_cast<int64_t>(*result);
  return result;
}

void StreamReader::ReleaseIfIdle(TimePoint since) {
  std::optional<Transfer> old;  // destroyed after the lock
  Lock lock(mutex_);
  if (busy_ || last_read_ >= since) return;
  DropKept();
  old = std::exchange(transfer_, std::nullopt);
  range_bytes_ = kFirstRange;
}

}  // namespace e2bfs::cache
