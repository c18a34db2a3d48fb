// Reading: what is spooled laid over what the other side has.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

constexpr int kTriesOfAVersion = 4;
constexpr int64_t kMostRescued = 8 << 20;
constexpr auto kHeldFor = std::chrono::seconds(10);  // content that nobody read yet

// A part of a read and where it comes from.
struct ReadPiece {
  enum class From { kSpool, kRemote, kZeros } from;
  transport::Extent extent;
};

std::vector<ReadPiece> PlanRead(const Node& node, transport::Extent wanted) {
  std::vector<ReadPiece> pieces;
  auto add_base = [&](int64_t begin, int64_t end) {
    const int64_t middle = std::clamp(node.base_limit(), begin, end);
    if (begin < middle) pieces.push_back({ReadPiece::From::kRemote, {begin, middle - begin}});
    if (middle < end) pieces.push_back({ReadPiece::From::kZeros, {middle, end - middle}});
  };
  int64_t at = wanted.offset;
  for (const transport::Extent& spooled : node.content->present.Within(wanted)) {
    add_base(at, spooled.offset);
    pieces.push_back({ReadPiece::From::kSpool, spooled});
    at = spooled.end();
  }
  add_base(at, wanted.end());
  return pieces;
}

bool HasSome(BlockStore::File& stored, const std::vector<ReadPiece>& pieces) {
  return std::any_of(pieces.begin(), pieces.end(), [&](const ReadPiece& piece) {
    return piece.from == ReadPiece::From::kRemote && stored.HasAnEndOf(piece.extent.offset, static_cast<size_t>(piece.extent.length));
  });
}

// What the store has at the beginning and at the end, and what is between from the other side, at once.
Result<size_t> ReadThrough(BlockStore::File* stored, StreamReader& reader, const ReadVersion& version, int64_t offset, char* buffer, size_t length,
                           const OpContext& ctx) {
  static Counter& hits = Metrics::Get("cache.store_hits_count");
  static Counter& misses = Metrics::Get("cache.store_misses_count");
  static Counter& served = Metrics::Get("cache.store_read_bytes");
  size_t front = 0, back = 0;
  if (stored != nullptr) {
    front = stored->ReadFront(offset, buffer, length);
    if (front < length) back = stored->ReadBack(offset + static_cast<int64_t>(front), buffer + front, length - front);
    served.Add(static_cast<int64_t>(front + back));
    (front + back == length ? hits : misses).Add();
    if (front + back == length) return length;
  }
  auto read = reader.Read(version, offset + static_cast<int64_t>(front), buffer + front, length - front - back, ctx);
  if (!read) return read;
  return front + *read == length - back ? length : front + *read;
}

// Tells what comes to be known of the file while it is read.
class NotedStream final : public transport::ByteStream {
 public:
  NotedStream(std::unique_ptr<transport::ByteStream> stream, std::function<void(const transport::Attributes&)> note)
      : stream_(std::move(stream)), note_(std::move(note)) {}

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    auto got = stream_->Read(buffer, capacity, ctx);
    if (const transport::Attributes* read = noted_ ? nullptr : stream_->attributes()) {
      noted_ = true;
      note_(*read);
    }
    return got;
  }
  void Cancel() override { stream_->Cancel(); }

 private:
  const std::unique_ptr<transport::ByteStream> stream_;
  const std::function<void(const transport::Attributes&)> note_;
  bool noted_ = false;
};

}  // namespace

std::shared_ptr<StreamReader> CachedFsImpl::MakeReader(const NodePtr& node) {
  return std::make_shared<StreamReader>(
      [this, node](const transport::Attributes* version, transport::Extent range,
                   const OpContext& ctx) -> Result<std::unique_ptr<transport::ByteStream>> {
        return WithHandle(node, false, ctx, [&](transport::Handle handle, const transport::Node& at) {
          uint64_t asked_stamp;
          {
            Lock lock(mutex_);
            asked_stamp = stamp_;
          }
          const TimePoint asked = Clock::now();
          auto stream = remote_.Read(handle, at, version, range, ctx);
          if (!stream) return stream;
          if (version != nullptr) stream = KeepRange(std::move(*stream), *version, range, asked);
          auto note = [this, node, asked_stamp](const transport::Attributes& read) { NoteAccess(node, read, asked_stamp); };
          stream = std::make_unique<NotedStream>(std::move(*stream), std::move(note));
          return stream;
        });
      },
      memory_, prefetcher_, options_.max_window_bytes);
}

void CachedFsImpl::NoteAccess(const NodePtr& node, const transport::Attributes& read, uint64_t asked_stamp) {
  Lock lock(mutex_);
  if (asked_stamp < node->stamp || node->changes_in_flight > 0 || read.id != node->file_id) return;
  node->attributes.atime = read.atime;
}

std::shared_ptr<StreamReader> CachedFsImpl::ReaderOf(const std::shared_ptr<OpenFile>& file) {
  if (!file->reader) file->reader = MakeReader(file->node);
  return file->reader;
}

void CachedFsImpl::RescueContent(const NodePtr& node, const OpContext& ctx) {
  std::vector<transport::Extent> missing;
  ReadVersion version;
  int64_t bytes = 0;
  std::mutex* write_mutex;
  {
    Lock lock(mutex_);
    for (const ReadPiece& piece : PlanRead(*node, transport::Extent{0, node->base_limit()})) {
      if (piece.from != ReadPiece::From::kRemote) continue;
      missing.push_back(piece.extent);
      bytes += piece.extent.length;
    }
    if (node->open_files == 0 || bytes == 0 || bytes > kMostRescued) return;
    version = ReadVersion{node->attributes, node->content->base_epoch};
    write_mutex = &node->content->write_mutex;
  }
  if (!memory_.TryTake(bytes)) return;
  std::string content(static_cast<size_t>(bytes), 0);
  auto reader = MakeReader(node);
  bool complete = true;
  size_t at = 0;
  for (const transport::Extent& extent : missing) {
    const auto length = static_cast<size_t>(extent.length);
    auto read = reader->Read(version, extent.offset, content.data() + at, length, ctx);
    complete = complete && read && *read == length;
    at += length;
  }
  reader.reset();
  if (complete) {
    std::lock_guard writing(*write_mutex);
    if (auto spool = SpoolOf(node)) {
      // What was written here meanwhile stays.
      ExtentMap fill;
      {
        Lock lock(mutex_);
        if (node->content->base_epoch == version.epoch) {
          for (const transport::Extent& extent : missing) fill.Add(extent);
          for (const transport::Extent& newer : node->content->present.extents()) fill.Remove(newer);
        }
      }
      at = 0;
      for (const transport::Extent& extent : missing) {
        for (const transport::Extent& part : fill.Within(extent)) {
          const char* from = content.data() + at + (part.offset - extent.offset);
          complete = complete && (*spool)->WriteAt(part.offset, from, static_cast<size_t>(part.length));
        }
        at += static_cast<size_t>(extent.length);
      }
      Lock lock(mutex_);
      node->content->being_written = false;
      if (complete) node->content->present.Add(fill);
      ChargeSpool(*node);
    }
  }
  memory_.Give(bytes);
}

void CachedFsImpl::ReleaseIdleReaders() {
  std::vector<std::shared_ptr<StreamReader>> readers;
  std::vector<std::shared_ptr<BlockStore::File>> stored;  // closed without the lock
  const TimePoint since = Clock::now() - options_.reader_idle;
  {
    Lock lock(mutex_);
    for (const auto& [handle, file] : files_) {
      if (file->reader) readers.push_back(file->reader);
      if (file->stored && file->stored_used < since) {
        stored.push_back(std::move(file->stored));
        file->stored_version.reset();
      }
    }
  }
  {
    Lock lock(mutex_);
    DropOldHeld(Clock::now() - std::min<std::chrono::milliseconds>(kHeldFor, options_.reader_idle));
  }
  for (const auto& reader : readers) reader->ReleaseIfIdle(since);
}

Result<size_t> CachedFsImpl::Read(FileHandle handle, int64_t offset, char* buffer, size_t length,
                                  const OpContext& context) {
  OpContext ctx = ForTransfer(context);
  ctx.service_class = ServiceClass::kForeground;
  std::shared_ptr<OpenFile> file;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return Forward(found.error());
    file = *found;
  }
  if (!file->flags.read) return Errno(EBADF, "not open for reading");
  if (offset < 0) return Errno(EINVAL, "read");
  const NodePtr& node = file->node;
  bool asked_ahead = false, asked_again = false, use_store = true;
  for (int attempt = 0;; ++attempt) {
    std::vector<ReadPiece> pieces;
    std::shared_ptr<const HeldContent> held;
    int64_t remote = 0;
    ReadVersion version;
    std::shared_ptr<SpoolFile> spool;
    std::shared_ptr<StreamReader> reader;
    std::shared_ptr<BlockStore::File> stored;
    bool outdated = false;  // the attributes by which the store would serve
    transport::Handle opened_there = 0;
    size_t wanted = length;
    {
      Lock lock(mutex_);
      if (!WaitWithin(node->content->stored, lock, ctx, [&] { return !node->content->moving; })) return WaitEnded(ctx, "reading");
      if (!WaitWithin(ahead_arrived_, lock, ctx, [&] { return !read_ahead_.contains(node->id); })) return WaitEnded(ctx, "reading");
      reader = ReaderOf(file);
      if (!file->direct || node->content->dirty()) {
        wanted = static_cast<size_t>(std::clamp<int64_t>(node->size() - offset, 0, static_cast<int64_t>(length)));
        pieces = PlanRead(*node, transport::Extent{offset, static_cast<int64_t>(wanted)});
      }
      version = ReadVersion{node->attributes, node->content->base_epoch};
      spool = node->content->spool;
      for (const ReadPiece& piece : pieces) remote += piece.from == ReadPiece::From::kRemote ? piece.extent.length : 0;
      if (remote > 0) held = UseHeld(*node, remote);
      if (attempt < kTriesOfAVersion && use_store && !held) stored = StoredContent(*file);
      // What this read has asked for is as good as what is fresh, however long the answer took.
      outdated = stored && !asked_again && !MayServeStored(*node);
      // Of what is written here attributes are not asked for.
      if (outdated && node->content->dirty()) stored.reset();
      opened_there = node->read_handle;
    }
    // An open that was not waited for, and was refused: reading tells.
    if (stored && opened_there != 0 && remote_.OpenFailure(opened_there)) stored.reset();
    if (stored && outdated && HasSome(*stored, pieces)) {
      asked_again = true;
      use_store = Refresh(node, false, ForNames(context)).has_value();
      --attempt;
      continue;
    }
    if (outdated) stored.reset();
    if (remote > 0 && !held && offset == 0 && !asked_ahead && !(stored && HasSome(*stored, pieces))) {
      asked_ahead = true;
      std::optional<FilesQuestion> ahead;
      {
        Lock lock(mutex_);
        ahead = AskFilesAhead(node);
      }
      if (ahead) {
        FetchFiles(*ahead, ctx);
        --attempt;
        continue;
      }
    }
    if (file->direct && pieces.empty()) return reader->ReadToTheEnd(offset, buffer, length, ctx);
    // After some tries the file is one that changes all the time: what is there then has to do.
    const bool checked = attempt < kTriesOfAVersion;
    std::optional<Error> failed;
    bool moved = false;
    for (const ReadPiece& piece : pieces) {
      char* to = buffer + (piece.extent.offset - offset);
      const auto bytes = static_cast<size_t>(piece.extent.length);
      if (piece.from == ReadPiece::From::kZeros) {
        std::memset(to, 0, bytes);
      } else if (piece.from == ReadPiece::From::kSpool) {
        if (auto read = spool->ReadAt(piece.extent.offset, to, bytes); !read) return Forward(read.error());
        // What was sent meanwhile may have been dropped from it, or moved in it, before it was read.
        Lock lock(mutex_);
        const Content& content = *node->content;
        const auto still = content.present.Within(piece.extent);
        if (content.spool != spool || content.moving || still != std::vector<transport::Extent>{piece.extent}) moved = true;
        if (moved) break;
      } else if (held) {
        std::memcpy(to, held->bytes.data() + piece.extent.offset, bytes);
      } else {
        auto read = checked ? ReadThrough(stored.get(), *reader, version, piece.extent.offset, to, bytes, ctx)
                            : reader->ReadUnchecked(piece.extent.offset, to, bytes, ctx);
        if (!read) {
          failed = read.error();
          break;
        }
        if (*read == bytes) continue;
        // Only without a version: the file is shorter than its attributes say.
        if (&piece == &pieces.back()) return static_cast<size_t>(piece.extent.offset - offset) + *read;
        std::memset(to + *read, 0, bytes - *read);
      }
    }
    if (moved) {
      --attempt;
      continue;
    }
    if (!failed) {
      if (held && wanted == held->bytes.size()) KeepWhole(held->version, held->bytes, held->asked);
      return wanted;
    }
    if (failed->errno_value != ESTALE || !checked) {
      Lock lock(mutex_);
      NoteError(tree_.PathOf(*node), *failed);
      return Forward(*failed);
    }
    // Another version: its attributes, and from the start. A handle may know the file where the path does not.
    auto refreshed = Refresh(node, true, ForNames(context));
    if (!refreshed && refreshed.error().errno_value != ESTALE && refreshed.error().errno_value != ENOENT) {
      return Forward(refreshed.error());
    }
    if (!refreshed) {
      Lock lock(mutex_);
      if (attempt == 0) DropHandle(*node, node->read_handle);
      if (attempt > 0) return Forward(*failed);
    }
  }
}

}  // namespace e2bfs::cache
