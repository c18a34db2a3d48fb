#include "cache/stream_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "transport/base/waiting.h"

namespace e2bfs::cache {
namespace {

// The smallest range that is worth a request; small files come whole with it, since a rest of as much comes along.
constexpr int64_t kFirstRange = 64 << 10;
// What is read at a time of what is skipped, or backwards.
constexpr int64_t kPiece = 128 << 10;
// Between two ranges nothing has to stop, and each of them costs a request.
constexpr int64_t kMostRange = 8 << 20;
constexpr int64_t kGrowth = 2;  // a range is at most as long as that part of what was asked for before it
// Of a stream whose first range was used up; then the most. At once where the first read is so long, and at the file's beginning.
constexpr int64_t kSecondWindow = 2 << 20;
constexpr size_t kLongRead = 256 << 10;
// The kernel's pieces come at most so far out of order: two windows of its read-ahead (512 KiB, see RaiseReadAhead) and two reads of
// as much, with room to spare.
constexpr int64_t kMostAhead = 4 << 20;
constexpr int64_t kMostKept = 4 << 20;
// Skipped and never asked for: beyond it the reading is not sequential, whatever it looked like.
constexpr int64_t kMostWasted = 4 << 20;
constexpr size_t kMostStreams = 4;   // that grow
constexpr int kStepsOfAPattern = 2;  // equal ones, one after the other
constexpr int kMostPieces = 16;      // of a pattern, on their way at once
constexpr int64_t kMostBackwards = 1 << 20;
constexpr int kBrokenInARow = 3;
constexpr auto kOpenAheadTime = std::chrono::seconds(120);

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

// One request.
struct StreamReader::Range {
  Range(int64_t begin, int64_t range_end) : position(begin), end(range_end) {}
  enum class State { kQueued, kOpening, kOpen, kFailed };

  int64_t position;  // of the next byte
  int64_t end;
  State state = State::kQueued;
  std::unique_ptr<transport::ByteStream> stream;  // open, and no thread takes from it
  std::optional<Error> error;                     // failed
  int64_t charged = 0;                            // of memory_
  bool dropped = false;
  std::stop_source given_up;
};

struct StreamReader::Stream {
  Stream(int64_t offset, int64_t first_window) : begin(offset), next(offset), window(first_window) {}

  std::deque<RangePtr> ranges;  // the first is read from
  bool busy = false;            // a thread takes from it
  int64_t begin;                // where reading began
  int64_t next;                 // where reading goes on
  int64_t window;               // what may be on its way; 0: one range, opened when it is wanted
  bool is_piece = false;        // of a pattern: one range, nothing behind it
  int64_t wasted = 0, delivered = 0;  // skipped and never read; read

  int64_t end() const { return ranges.empty() ? next : ranges.back()->end; }
};

struct StreamReader::Discarded {
  std::vector<RangePtr> ranges;
  std::vector<std::unique_ptr<transport::ByteStream>> streams;
  ~Discarded() {
    for (const RangePtr& range : ranges) range->given_up.request_stop();
  }
};

StreamReader::StreamReader(OpenRange open_range, MemoryBudget& memory, JobThreads& prefetcher, int64_t max_window_bytes)
    : open_range_(std::move(open_range)),
      memory_(memory),
      prefetcher_(prefetcher),
      max_window_(std::max(max_window_bytes, kFirstRange)) {
  ends_.fill(-1);
}

StreamReader::~StreamReader() {
  Discarded old;
  Lock lock(mutex_);
  for (const StreamPtr& stream : streams_) DropRanges(*stream, old);
  DropKept();
}

bool StreamReader::IsVersion(const ReadVersion& version) const {
  if (!version_ || version_->epoch != version.epoch) return false;
  const transport::Attributes& known = version_->attributes;
  const transport::Attributes& wanted = version.attributes;
  return known.size == wanted.size && known.mtime.tv_sec == wanted.mtime.tv_sec && known.mtime.tv_nsec == wanted.mtime.tv_nsec;
}

bool StreamReader::IsBusy() const {
  return std::any_of(streams_.begin(), streams_.end(), [](const StreamPtr& stream) { return stream->busy; });
}

// --- what was skipped

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

// Bytes at the range's position. False: there is no memory for them.
bool StreamReader::Keep(Range& range, std::string bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  const int64_t from_range = std::min(range.charged, size);
  if (from_range < size && !memory_.TryTake(size - from_range)) return false;
  range.charged -= from_range;
  kept_bytes_ += size;
  kept_.emplace(range.position, std::move(bytes));
  return true;
}

void StreamReader::DropKept() {
  kept_.clear();
  memory_.Give(kept_bytes_);
  kept_bytes_ = 0;
}

// --- streams

// At most what is still to come of the range stays charged.
void StreamReader::Uncharge(Range& range, int64_t left) {
  const int64_t surplus = std::max<int64_t>(0, range.charged - left);
  range.charged -= surplus;
  memory_.Give(surplus);
}

void StreamReader::DropRanges(Stream& stream, Discarded& old) {
  for (const RangePtr& range : stream.ranges) {
    Uncharge(*range, 0);
    range->dropped = true;
    if (range->stream) old.streams.push_back(std::move(range->stream));
    old.ranges.push_back(range);
  }
  stream.ranges.clear();
  changed_.notify_all();
}

bool StreamReader::InReach(const Stream& stream, int64_t offset) const {
  if (offset < stream.next) return false;
  if (stream.is_piece) return offset < stream.end();
  if (offset == stream.next) return true;
  if (offset < stream.end() && stream.window > 0) return true;
  // Between two ranges of a reader that is known to be sequential, the same as within one.
  return offset - stream.next <= std::min(max_window_, kMostAhead) && (stream.busy || !stream.ranges.empty() || stream.window > 0);
}

StreamReader::StreamPtr StreamReader::StreamAt(int64_t offset) const {
  StreamPtr nearest;
  for (const StreamPtr& stream : streams_) {
    if (InReach(*stream, offset) && (!nearest || stream->next > nearest->next)) nearest = stream;
  }
  return nearest;
}

// Null where there are enough, all in use.
StreamReader::StreamPtr StreamReader::NewStream(int64_t offset, int64_t window, Discarded& old) {
  if (std::count_if(streams_.begin(), streams_.end(), [](const StreamPtr& stream) { return !stream->is_piece; }) >= ptrdiff_t{kMostStreams}) {
    const auto unused = std::find_if(streams_.begin(), streams_.end(), [](const StreamPtr& stream) { return !stream->is_piece && !stream->busy; });
    if (unused == streams_.end()) return nullptr;
    DropRanges(**unused, old);
    streams_.erase(unused);
  }
  streams_.push_back(std::make_shared<Stream>(offset, std::min(window, max_window_)));
  return streams_.back();
}

// At most half of what may be on its way: one range is read while the next one comes. And they grow: those that are on their way at once share it,
// so if they had begun together and were as long, they would end together, and nothing would come for a round trip.
int64_t StreamReader::RangeLength(const Stream& stream) {
  const int64_t grown = std::max((stream.end() - stream.begin) / kGrowth, kSecondWindow / 2);
  return std::clamp(std::min(stream.window / 2, grown), kFirstRange, kMostRange);
}

// The stream's next range, of at least so many bytes if the file has them.
void StreamReader::PushRange(Stream& stream, int64_t least) {
  const int64_t begin = stream.end();
  const int64_t rest = std::max(version_->attributes.size - begin, least);
  // A small rest is not worth a request of its own.
  auto of_rest = [rest](int64_t wanted) { return rest <= 2 * wanted ? rest : wanted; };
  int64_t length = of_rest(std::max(RangeLength(stream), least));
  const bool charged = memory_.TryTake(length);
  if (!charged) length = of_rest(std::max(kPiece, least));
  auto range = std::make_shared<Range>(begin, begin + length);
  if (charged) range->charged = length;
  stream.ranges.push_back(std::move(range));
}

// Opens it in the background.
void StreamReader::Prefetch(const RangePtr& range) {
  prefetcher_.Add([weak = weak_from_this(), range](std::stop_token stop) {
    const auto self = weak.lock();
    if (!self) return;
    const std::stop_callback ends(stop, [&range] { range->given_up.request_stop(); });
    OpContext ctx = OpContext::Within(kOpenAheadTime, ServiceClass::kBulk);
    ctx.stop = range->given_up.get_token();
    Lock lock(self->mutex_);
    if (range->state == Range::State::kQueued && !range->dropped) self->Open(lock, range, ctx);
  });
}

// As many ranges as the window and the memory have room for.
void StreamReader::OpenAhead(Stream& stream) {
  while (stream.end() < version_->attributes.size) {
    int64_t charged = 0;
    for (const RangePtr& range : stream.ranges) charged += range->charged;
    // What others may need is left to them.
    const int64_t window = std::min(stream.window, charged + memory_.free_bytes() / 2);
    const int64_t length = std::min(RangeLength(stream), version_->attributes.size - stream.end());
    if (stream.end() - stream.next + length > window || !memory_.TryTake(length)) return;
    auto range = std::make_shared<Range>(stream.end(), stream.end() + length);
    range->charged = length;
    stream.ranges.push_back(range);
    Prefetch(range);
  }
}

void StreamReader::Open(Lock& lock, const RangePtr& range, const OpContext& ctx) {
  range->state = Range::State::kOpening;
  const transport::Attributes version = version_->attributes;
  lock.unlock();
  auto stream = open_range_(&version, transport::Extent{range->position, range->end - range->position}, ctx);
  std::unique_ptr<transport::ByteStream> unwanted;
  lock.lock();
  if (!stream) {
    range->state = Range::State::kFailed;
    range->error = stream.error();
  } else if (range->dropped) {
    unwanted = std::move(*stream);
  } else {
    range->state = Range::State::kOpen;
    range->stream = std::move(*stream);
  }
  changed_.notify_all();
  if (!unwanted) return;
  lock.unlock();
  unwanted.reset();
  lock.lock();
}

// One step towards `offset`, which is in the stream's reach: the bytes that went into the buffer, maybe none yet.
Result<size_t> StreamReader::Step(Lock& lock, const StreamPtr& stream, int64_t offset, char* buffer, size_t length, const OpContext& ctx,
                                  Discarded& old) {
  const auto wait = [&](auto over) -> Result<size_t> {
    if (!WaitWithin(changed_, lock, ctx, over)) return WaitEnded(ctx, "reading");
    return 0;
  };
  if (stream->busy) return wait([&] { return !stream->busy; });
  if (streams_.back() != stream) {  // the last one used
    std::erase(streams_, stream);
    streams_.push_back(stream);
  }
  if (offset - stream->next > kMostAhead) {
    // A seek: what is in between is not read through.
    Stream passed(stream->next, 0);
    while (!stream->ranges.empty() && stream->ranges.front()->end <= offset) {
      passed.ranges.push_back(std::move(stream->ranges.front()));
      stream->ranges.pop_front();
    }
    DropRanges(passed, old);
    if (!stream->ranges.empty() && offset - stream->ranges.front()->position > kMostAhead) DropRanges(*stream, old);
    stream->next = stream->ranges.empty() ? offset : stream->ranges.front()->position;
  }
  if (stream->window == 0 && !stream->is_piece && offset == 0 && length >= kLongRead) stream->window = std::min(kSecondWindow, max_window_);
  if (stream->ranges.empty()) PushRange(*stream, offset - stream->next + static_cast<int64_t>(length));
  if (!stream->is_piece) OpenAhead(*stream);
  const RangePtr range = stream->ranges.front();
  switch (range->state) {
    case Range::State::kQueued:
      stream->busy = true;
      Open(lock, range, ctx);
      stream->busy = false;
      changed_.notify_all();
      return 0;
    case Range::State::kOpening:
      return wait([&] { return range->state != Range::State::kOpening || range->dropped; });
    case Range::State::kFailed: {
      const Error error = *range->error;
      DropRanges(*stream, old);
      if (stream->is_piece) std::erase(streams_, stream);
      return Forward(error);
    }
    case Range::State::kOpen:
      break;
  }
  return Pull(lock, stream, offset, buffer, length, ctx, old);
}

// Takes from the first range, which is open: bytes before `offset` are kept, bytes from it on go into the buffer.
Result<size_t> StreamReader::Pull(Lock& lock, const StreamPtr& stream, int64_t offset, char* buffer, size_t length, const OpContext& ctx,
                                  Discarded& old) {
  const RangePtr range = stream->ranges.front();
  std::unique_ptr<transport::ByteStream> source = std::move(range->stream);
  const int64_t left = range->end - range->position;
  const int64_t gap = std::min(offset - range->position, left);
  stream->busy = true;
  lock.unlock();
  std::string skipped;
  if (gap > 0) skipped.resize(static_cast<size_t>(std::min(gap, kPiece)));
  auto got = gap > 0 ? source->Read(skipped.data(), skipped.size(), ctx)
                     : source->Read(buffer, static_cast<size_t>(std::min(static_cast<int64_t>(length), left)), ctx);
  lock.lock();
  stream->busy = false;
  changed_.notify_all();
  const auto bytes = static_cast<int64_t>(got ? *got : 0);
  if (gap > 0 && bytes > 0) {
    skipped.resize(static_cast<size_t>(bytes));
    if (!Keep(*range, std::move(skipped))) stream->wasted += bytes;
    while (kept_bytes_ > std::min(max_window_, kMostKept)) {  // the oldest
      const auto size = static_cast<int64_t>(kept_.begin()->second.size());
      kept_.erase(kept_.begin());
      memory_.Give(size);
      kept_bytes_ -= size;
      stream->wasted += size;
    }
  }
  if (gap <= 0) stream->delivered += bytes;
  range->position += bytes;
  Uncharge(*range, range->end - range->position);
  stream->next = range->position;
  if (got && bytes > 0 && range->position < range->end) {
    range->stream = std::move(source);
  } else {
    old.streams.push_back(std::move(source));
  }
  if (!got || bytes == 0) {
    DropRanges(*stream, old);
    if (stream->is_piece) std::erase(streams_, stream);
    if (!got) return Forward(got.error());
    return Errno(ESTALE, "shorter than it was");  // the end of the file before the range's
  }
  if (range->position == range->end) {
    stream->ranges.pop_front();
    stream->window = std::min(stream->window == 0 ? kSecondWindow : max_window_, max_window_);
    if (stream->is_piece) std::erase(streams_, stream);
  }
  if (stream->wasted > kMostWasted && stream->wasted > stream->delivered / 8) {
    // Scattered reading.
    DropKept();
    DropRanges(*stream, old);
    std::erase(streams_, stream);
    near_wanted_ = std::min(2 * near_wanted_, 1000);
  }
  return gap > 0 ? 0 : static_cast<size_t>(bytes);
}

// --- patterns

// One range of a pattern, if nothing brings its bytes yet.
void StreamReader::AddPiece(int64_t begin, int64_t end) {
  begin = std::max<int64_t>(begin, 0);
  end = std::min(end, version_->attributes.size);
  const bool comes = std::any_of(streams_.begin(), streams_.end(), [&](const StreamPtr& stream) {
    return !stream->ranges.empty() && (begin == stream->next || (stream->is_piece && begin > stream->next && begin < stream->end()));
  });
  if (begin >= end || comes || kept_.contains(begin)) return;
  if (std::count_if(streams_.begin(), streams_.end(), [](const StreamPtr& stream) { return stream->is_piece; }) >= kMostPieces) return;
  if (!memory_.TryTake(end - begin)) return;
  auto stream = std::make_shared<Stream>(begin, 0);
  stream->is_piece = true;
  stream->ranges.push_back(std::make_shared<Range>(begin, end));
  stream->ranges.back()->charged = end - begin;
  Prefetch(stream->ranges.back());
  streams_.push_back(std::move(stream));
}

// Looks whether reads come in equal steps, backwards or with gaps between them, and fetches what the next ones will want.
void StreamReader::FollowSteps(int64_t offset, int64_t length) {
  const int64_t step = offset - last_begin_;
  equal_steps_ = step == step_ ? equal_steps_ + 1 : 0;
  step_ = step;
  last_begin_ = offset;
  if (equal_steps_ < kStepsOfAPattern) return;
  if (step == -length) {
    const int64_t block = std::min(kPiece << std::min(equal_steps_ / 8, 3), kMostBackwards);
    if (equal_steps_ == kStepsOfAPattern) fetched_down_to_ = offset;
    // The block that comes next, and when that is being read the one below it.
    while (fetched_down_to_ > 0 && offset - fetched_down_to_ < block) {
      AddPiece(fetched_down_to_ - block, fetched_down_to_);
      fetched_down_to_ -= block;
    }
  } else if (step < 0 || step > 2 * length) {
    const int ahead = std::min(1 << std::min(equal_steps_ - 1, 4), kMostPieces);
    for (int i = 1; i <= ahead; ++i) AddPiece(offset + i * step, offset + i * step + length);
  }
}

// --- reading

Result<size_t> StreamReader::Read(const ReadVersion& version, int64_t offset, char* buffer, size_t length, const OpContext& ctx) {
  size_t done = 0;
  int broken = 0;
  Discarded old;  // goes after the lock
  Lock lock(mutex_);
  last_read_ = Clock::now();
  bool followed = false;
  while (done < length) {
    if (!IsVersion(version)) {
      if (IsBusy()) {
        if (!WaitWithin(changed_, lock, ctx, [this] { return !IsBusy(); })) return WaitEnded(ctx, "reading");
        continue;
      }
      for (const StreamPtr& stream : streams_) DropRanges(*stream, old);
      std::erase_if(streams_, [](const StreamPtr& stream) { return stream->is_piece; });
      for (const StreamPtr& stream : streams_) *stream = Stream(stream->next, 0);
      DropKept();
      if (!version_) NewStream(0, 0, old);
      version_ = version;
      equal_steps_ = 0;
    }
    if (!std::exchange(followed, true)) FollowSteps(offset, static_cast<int64_t>(length));
    const int64_t at = offset + static_cast<int64_t>(done);
    const size_t left = length - done;
    if (const size_t kept = TakeKept(at, buffer + done, left); kept > 0) {
      done += kept;
      continue;
    }
    Result<size_t> got = 0;
    if (const StreamPtr stream = StreamAt(at)) {
      got = Step(lock, stream, at, buffer + done, left, ctx, old);
    } else {
      const bool follows = std::find(ends_.begin(), ends_.end(), at) != ends_.end();
      if (follows || near_ >= near_wanted_) {
        // The second of two that belong together, or one of several that keep close: sequential from here. Those that come in another
        // order need room in one range.
        near_ = 0;
        if (NewStream(at, follows ? 0 : 8 * kPiece, old)) continue;
      }
      const int64_t piece = std::max(kPiece, static_cast<int64_t>(length));
      const int64_t before = ends_[last_end_];
      const bool near = before >= 0 && at - before <= piece && before - at <= 2 * piece;
      near_ = near ? near_ + 1 : 0;
      const int64_t end = offset + static_cast<int64_t>(length);
      if (near) {
        ends_[last_end_] = std::max(before, end);
      } else {
        last_end_ = (last_end_ + 1) % ends_.size();
        ends_[last_end_] = end;
      }
      lock.unlock();
      got = FetchExactly(&version.attributes, at, buffer + done, left, ctx);
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
  if (!WaitWithin(changed_, lock, ctx, [this] { return !whole_busy_; })) return WaitEnded(ctx, "reading");
  last_read_ = Clock::now();
  if (std::exchange(seen_end_, std::nullopt) == offset) return 0;
  std::unique_ptr<transport::ByteStream> stream = std::move(whole_);
  const bool goes_on = stream && whole_position_ == offset;
  whole_busy_ = true;
  lock.unlock();
  Result<size_t> result = 0;
  if (!goes_on) {
    stream.reset();
    auto opened = open_range_(nullptr, transport::Extent{offset, std::numeric_limits<int64_t>::max() - offset}, ctx);
    if (opened) {
      stream = std::move(*opened);
    } else {
      result = Forward(opened.error());
    }
  }
  bool ended = false;
  while (result && *result < length && !ended) {
    auto got = stream->Read(buffer + *result, length - *result, ctx);
    if (!got) {
      // What came is given; the error shows at the next read if it is one that stays.
      if (*result == 0) result = Forward(got.error());
      stream.reset();
      break;
    }
    ended = *got == 0;
    *result += *got;
  }
  if (!result || ended) stream.reset();
  lock.lock();
  whole_busy_ = false;
  changed_.notify_all();
  whole_ = std::move(stream);
  if (result) whole_position_ = offset + static_cast<int64_t>(*result);
  if (result && ended && *result > 0) seen_end_ = whole_position_;
  return result;
}

void StreamReader::ReleaseIfIdle(TimePoint since) {
  Discarded old;  // goes after the lock
  Lock lock(mutex_);
  if (IsBusy() || whole_busy_ || last_read_ >= since) return;
  DropKept();
  for (const StreamPtr& stream : streams_) {
    DropRanges(*stream, old);
    stream->window = 0;
  }
  std::erase_if(streams_, [](const StreamPtr& stream) { return stream->is_piece; });
  if (whole_) old.streams.push_back(std::move(whole_));
}

}  // namespace e2bfs::cache
