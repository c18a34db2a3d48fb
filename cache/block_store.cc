#include "cache/block_store.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <system_error>

#include "cache/block_store_directory.h"
#include "transport/base/log.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

// --- the format of an entry. Numbers are the machine's own: nobody else reads it. Never change one without another number of the format.
//
//   8 bytes     kMagic
//   u32         kFormat
//   u32         kBlockBytes
//   i64         the file's size
//   u32, bytes  Key::sandbox
//   u32, bytes  Key::object
//   u64         checksum of all this
//   u64...      the index, from the next multiple of 8: for each block its checksum, or 0 where it is not there
//   bytes       the content, each block at its place; from the next multiple of 4096 where it is not small
constexpr char kMagic[] = "e2bfsblk";
constexpr uint32_t kFormat = 1;
constexpr int64_t kLeastAligned = 64 << 10;

constexpr int64_t kBufferBytes = 256 << 10;
// A look at the whole directory comes after so much of the limit has been written; as much is then made free, so that mounts beside this one have room, too.
constexpr int64_t kLookShare = 16;
constexpr size_t kMostSetAside = 8;
constexpr auto kUseEvery = std::chrono::seconds(60);
constexpr auto kPauseOfFull = std::chrono::seconds(10);
constexpr auto kPauseOfBroken = std::chrono::seconds(60);
constexpr auto kIdle = std::chrono::seconds(1);
constexpr size_t kManyFiles = 1024;
// Those who read wait for room in the queue a twentieth of the time: enough for writers that a busy machine left behind, and nothing to speak of
// where the disk is slower than the network.
constexpr int kPatienceShare = 20;
constexpr std::chrono::nanoseconds kMostPatience = std::chrono::milliseconds(250);
// One copies 1 GB/s to the kernel's pages, which a fast network can do too.
constexpr size_t kThreads = 2;

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

template <typename Number>
void Put(std::string& bytes, Number number) {
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void PutText(std::string& bytes, const std::string& text) {
  Put(bytes, static_cast<uint32_t>(text.size()));
  bytes += text;
}

std::string HeaderOf(const BlockStore::Key& key) {
  std::string header(kMagic, sizeof kMagic - 1);
  Put(header, kFormat);
  Put(header, static_cast<uint32_t>(BlockStore::kBlockBytes));
  Put(header, key.size);
  PutText(header, key.sandbox);
  PutText(header, key.object);
  Put(header, static_cast<uint64_t>(XXH3_64bits(header.data(), header.size())));
  return header;
}

// The sandbox that an entry is of; nothing if that cannot be read.
std::optional<std::string> SandboxOf(int file) {
  constexpr size_t kBefore = sizeof kMagic - 1 + 16;
  std::array<char, kBefore + 4 + 1024> bytes;
  const ssize_t got = ::pread(file, bytes.data(), bytes.size(), 0);
  uint32_t length = 0;
  if (got < static_cast<ssize_t>(kBefore + 4) || std::memcmp(bytes.data(), kMagic, sizeof kMagic - 1) != 0) return std::nullopt;
  std::memcpy(&length, bytes.data() + kBefore, 4);
  if (kBefore + 4 + length > static_cast<size_t>(got)) return std::nullopt;
  return std::string(bytes.data() + kBefore + 4, length);
}

// A name tells nothing of the sandbox. It need not be hard to find another key for: the whole key is in the file, and compared.
std::string NameOf(const std::string& header) {
  const XXH128_hash_t hash = XXH3_128bits(header.data(), header.size());
  const std::string digits = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  return digits.substr(0, 2) + "/" + digits.substr(2);
}

// All of it; false with errno, 0 at the file's end.
bool ReadAt(int file, int64_t offset, void* buffer, size_t length) {
  auto* to = static_cast<char*>(buffer);
  while (length > 0) {
    const ssize_t done = ::pread(file, to, length, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = 0;
    if (done <= 0) return false;
    to += done;
    offset += done;
    length -= static_cast<size_t>(done);
  }
  return true;
}

bool WriteAt(int file, int64_t offset, const void* bytes, size_t length) {
  const auto* from = static_cast<const char*>(bytes);
  while (length > 0) {
    const ssize_t done = ::pwrite(file, from, length, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;
    if (done <= 0) return false;
    from += done;
    offset += done;
    length -= static_cast<size_t>(done);
  }
  return true;
}

// Whether the file has no name any more: evicted or cleared, by whomever.
bool IsRemoved(int file) {
  struct stat status {};
  return ::fstat(file, &status) != 0 || status.st_nlink == 0;
}

}  // namespace

struct BlockStore::File::Opened {
  Descriptor file;
};

// What one Filling has brought, and what of it is written.
struct BlockStore::Pending {
  explicit Pending(std::shared_ptr<File> of) : file(std::move(of)) {}

  const std::shared_ptr<File> file;
  std::mutex mutex;  // a leaf
  int64_t queued = 0;  // jobs that are not done
  bool proved = false;
  // Blocks that are written, and their checksums; and where.
  std::vector<std::pair<int64_t, uint64_t>> written;
  File::OpenedPtr opened;
};

struct BlockStore::Job {
  std::shared_ptr<Pending> pending;
  std::unique_ptr<char[]> bytes;  // null: all of it is proved
  int64_t begin = 0, length = 0, capacity = 0;
};

// --- one version

BlockStore::File::File(BlockStore& store, const Key& key, std::string header, std::string name)
    : store_(store),
      header_(std::move(header)),
      name_(std::move(name)),
      seed_(XXH3_64bits(header_.data(), header_.size())),
      size_(key.size),
      lasting_(key.lasting),
      index_(RoundUp(static_cast<int64_t>(header_.size()), 8)),
      data_(RoundUp(index_ + RoundUp(size_, kBlockBytes) / kBlockBytes * 8, size_ < kLeastAligned ? 8 : kBlockBytes)) {}

uint64_t BlockStore::File::ChecksumOf(int64_t block, const char* bytes) const {
  const std::array<uint64_t, 3> all = {XXH3_64bits(bytes, static_cast<size_t>(BlockLength(block))), seed_, static_cast<uint64_t>(block)};
  const uint64_t sum = XXH3_64bits(all.data(), sizeof all);
  return sum == 0 ? 1 : sum;
}

// Null and `problem`: ENOENT, or what went wrong; 0 where it was set aside.
BlockStore::File::OpenedPtr BlockStore::File::OpenNow(int* problem) {
  const int entries = store_.directory_->entries();
  int number = StoreDirectory::OpenOurs(entries, name_.c_str(), O_RDWR | O_NOATIME);
  if (number == -EROFS) number = StoreDirectory::OpenOurs(entries, name_.c_str(), O_RDONLY);
  *problem = number < 0 ? -number : 0;
  if (number == -EPERM) {
    *problem = 0;
    store_.SetAside(name_, "it is not a file of ours alone");
  }
  if (number < 0) return nullptr;
  auto opened = std::make_shared<Opened>(Opened{Descriptor(number)});
  struct stat status {};
  std::string found(header_.size(), '\0');
  const char* wrong = nullptr;
  if (::fstat(number, &status) != 0 || status.st_size != data_ + size_) {
    wrong = "it is cut, or too long";
  } else if (!ReadAt(number, 0, found.data(), found.size()) || found != header_) {
    wrong = "it does not begin as it has to";
  }
  if (wrong == nullptr) return opened_ = std::move(opened);
  store_.SetAside(name_, wrong);
  return nullptr;
}

BlockStore::File::OpenedPtr BlockStore::File::Get() {
  std::lock_guard lock(mutex_);
  int problem = 0;
  return opened_ ? opened_ : OpenNow(&problem);
}

BlockStore::File::OpenedPtr BlockStore::File::GetOrMake(int* problem) {
  std::lock_guard lock(mutex_);
  *problem = 0;
  if (opened_ && !IsRemoved(opened_->file.get())) return opened_;
  opened_.reset();
  if (auto opened = OpenNow(problem)) return opened;
  if (*problem != ENOENT && *problem != 0) return nullptr;
  *problem = 0;
  // Under a name of its own first: nobody sees a file whose header is not whole.
  static std::atomic<uint64_t> made{0};
  const int entries = store_.directory_->entries();
  const std::string part = name_.substr(0, 2);
  const std::string temporary = fmt::format("{}/new-{}-{}", part, ::getpid(), ++made);
  if (::mkdirat(entries, part.c_str(), 0700) != 0 && errno != EEXIST) {
    *problem = errno;
    return nullptr;
  }
  ::unlinkat(entries, temporary.c_str(), 0);  // of a process of this number that died
  auto opened = std::make_shared<Opened>(Opened{Descriptor(::openat(entries, temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600))});
  const int file = opened->file.get();
  if (file < 0) {
    *problem = errno;
    return nullptr;
  }
  bool named = false;
  if (WriteAt(file, 0, header_.data(), header_.size()) && ::ftruncate(file, data_ + size_) == 0) {
    named = ::linkat(entries, temporary.c_str(), entries, name_.c_str(), 0) == 0;
    if (!named && errno == EEXIST) {  // another mount was faster
      ::unlinkat(entries, temporary.c_str(), 0);
      auto other = OpenNow(problem);
      if (*problem == ENOENT) *problem = 0;  // and removed it again: nothing is wrong with the disk
      return other;
    }
    // No links there: whoever has the other one open goes on with it, and only what that one has is lost.
    if (!named) named = ::renameat(entries, temporary.c_str(), entries, name_.c_str()) == 0;
  }
  if (!named) *problem = errno;
  ::unlinkat(entries, temporary.c_str(), 0);
  if (!named) return nullptr;
  if (!lasting_) {
    std::lock_guard store_lock(store_.mutex_);
    store_.passing_.insert(name_);
  }
  used_ = Clock::now();
  return opened_ = std::move(opened);
}

bool BlockStore::File::Use(const OpenedPtr& opened) {
  {
    std::lock_guard lock(mutex_);
    const TimePoint now = Clock::now();
    if (used_ + kUseEvery > now) return true;
    used_ = now;
  }
  // The time of modification is what tells who was not used for longest.
  if (::futimens(opened->file.get(), nullptr) != 0) log::Debug("cache", "the time of {}", name_);
  if (!IsRemoved(opened->file.get())) return true;
  Forget(opened);  // or its space would be taken as long as somebody has the file open
  return false;
}

void BlockStore::File::Forget(const OpenedPtr& opened) {
  std::lock_guard lock(mutex_);
  if (opened_ == opened) opened_.reset();
}

void BlockStore::File::Broken(const OpenedPtr& opened, const std::string& why) {
  Forget(opened);
  // Another thread or mount may have seen it, too, and begun a new one.
  struct stat mine {}, named {};
  if (::fstat(opened->file.get(), &mine) != 0 ||
      ::fstatat(store_.directory_->entries(), name_.c_str(), &named, AT_SYMLINK_NOFOLLOW) != 0 || mine.st_ino != named.st_ino) {
    return;
  }
  store_.SetAside(name_, why);
}

std::vector<uint64_t> BlockStore::File::ReadIndex(const OpenedPtr& opened, int64_t first, int64_t count) {
  std::vector<uint64_t> index(static_cast<size_t>(count));
  if (ReadAt(opened->file.get(), IndexPlace(first), index.data(), index.size() * 8)) return index;
  Broken(opened, errno == 0 ? "it is cut" : fmt::format("reading it failed: {}", strerrordesc_np(errno)));
  return {};
}

// Bytes of blocks that the index says are there, as far as they are what it says. `index` begins with block `first`.
size_t BlockStore::File::ReadBlocks(const OpenedPtr& opened, const std::vector<uint64_t>& index, int64_t first, int64_t offset, char* buffer, size_t length) {
  const int file = opened->file.get();
  std::array<char, kBlockBytes> whole;
  size_t done = 0;
  const auto check = [&](int64_t block, char* bytes) {
    if (ChecksumOf(block, bytes) == index[static_cast<size_t>(block - first)]) return true;
    // It may just have been written by another mount: a read beside a write can see half of it.
    uint64_t again = 0;
    if (ReadAt(file, IndexPlace(block), &again, 8) && ReadAt(file, data_ + block * kBlockBytes, bytes, static_cast<size_t>(BlockLength(block))) &&
        ChecksumOf(block, bytes) == again) {
      return true;
    }
    Broken(opened, fmt::format("block {} is not what its checksum says", block));
    return false;
  };
  while (done < length) {
    const int64_t at = offset + static_cast<int64_t>(done);
    const int64_t block = at / kBlockBytes;
    const int64_t within = at - block * kBlockBytes;
    const int64_t left = static_cast<int64_t>(length - done);
    // As many whole blocks as are wanted, at once, to where they belong.
    int64_t whole_bytes = 0;
    if (within == 0) {
      whole_bytes = at + left == size_ ? left : left / kBlockBytes * kBlockBytes;
    }
    if (whole_bytes == 0) {
      const auto bytes = static_cast<size_t>(BlockLength(block));
      if (!ReadAt(file, data_ + block * kBlockBytes, whole.data(), bytes)) break;
      if (!check(block, whole.data())) return done;
      const size_t now = std::min(length - done, bytes - static_cast<size_t>(within));
      std::memcpy(buffer + done, whole.data() + within, now);
      done += now;
      continue;
    }
    if (!ReadAt(file, data_ + at, buffer + done, static_cast<size_t>(whole_bytes))) break;
    for (int64_t each = block; whole_bytes > 0; ++each) {
      if (!check(each, buffer + done)) return done;
      done += static_cast<size_t>(BlockLength(each));
      whole_bytes -= BlockLength(each);
    }
  }
  if (done < length) Broken(opened, errno == 0 ? "it is cut" : fmt::format("reading it failed: {}", strerrordesc_np(errno)));
  return done;
}

size_t BlockStore::File::ReadFront(int64_t offset, char* buffer, size_t length) {
  length = static_cast<size_t>(std::clamp<int64_t>(size_ - offset, 0, static_cast<int64_t>(length)));
  const auto opened = length > 0 ? Get() : nullptr;
  if (!opened || !Use(opened)) return 0;
  const int64_t first = offset / kBlockBytes;
  const int64_t end = offset + static_cast<int64_t>(length);
  const auto index = ReadIndex(opened, first, (end - 1) / kBlockBytes + 1 - first);
  const auto missing = std::find(index.begin(), index.end(), uint64_t{0});
  const int64_t there = std::min(end, (first + (missing - index.begin())) * kBlockBytes);
  if (there <= offset) return 0;
  return ReadBlocks(opened, index, first, offset, buffer, static_cast<size_t>(there - offset));
}

size_t BlockStore::File::ReadBack(int64_t offset, char* buffer, size_t length) {
  if (offset + static_cast<int64_t>(length) > size_ || length == 0) return 0;
  const auto opened = Get();
  if (!opened) return 0;
  const int64_t first = offset / kBlockBytes;
  const int64_t end = offset + static_cast<int64_t>(length);
  const auto index = ReadIndex(opened, first, (end - 1) / kBlockBytes + 1 - first);
  const auto missing = std::find(index.rbegin(), index.rend(), uint64_t{0});
  const int64_t from = std::max(offset, (first + (index.rend() - missing)) * kBlockBytes);
  if (from >= end) return 0;
  const auto bytes = static_cast<size_t>(end - from);
  return ReadBlocks(opened, index, first, from, buffer + (from - offset), bytes) == bytes ? bytes : 0;
}

bool BlockStore::File::HasAnEndOf(int64_t offset, size_t length) {
  if (offset + static_cast<int64_t>(length) > size_ || length == 0) return false;
  const auto opened = Get();
  if (!opened) return false;
  for (const int64_t at : {offset, offset + static_cast<int64_t>(length) - 1}) {
    const auto index = ReadIndex(opened, at / kBlockBytes, 1);
    if (!index.empty() && index[0] != 0) return true;
  }
  return false;
}

// --- what comes

BlockStore::Filling::Filling(BlockStore& store, std::shared_ptr<File> file, int64_t offset, int64_t length)
    : store_(store), pending_(std::make_shared<Pending>(std::move(file))), position_(offset), end_(std::min(offset + length, pending_->file->size_)) {}

BlockStore::Filling::~Filling() {
  if (buffer_) store_.GiveBuffer(std::move(buffer_), capacity_);
}

void BlockStore::Filling::Add(std::string_view bytes) {
  if (position_ + static_cast<int64_t>(bytes.size()) > end_) bytes = bytes.substr(0, static_cast<size_t>(std::max<int64_t>(0, end_ - position_)));
  while (!bytes.empty()) {
    if (!buffer_) {
      // From where a block begins; the one that began before is not all here.
      const auto skipped = static_cast<size_t>(std::min<int64_t>(RoundUp(position_, kBlockBytes) - position_, static_cast<int64_t>(bytes.size())));
      position_ += static_cast<int64_t>(skipped);
      bytes.remove_prefix(skipped);
      if (bytes.empty()) return;
      begin_ = position_;
      filled_ = 0;
      capacity_ = std::min(kBufferBytes, end_ - begin_);
      buffer_ = store_.TakeBuffer(capacity_);
      if (!buffer_) {
        static Counter& dropped = Metrics::Get("cache.store_dropped_bytes");
        dropped.Add(static_cast<int64_t>(bytes.size()));
        position_ += static_cast<int64_t>(bytes.size());
        return;
      }
    }
    const auto now = static_cast<size_t>(std::min<int64_t>(capacity_ - filled_, static_cast<int64_t>(bytes.size())));
    std::memcpy(buffer_.get() + filled_, bytes.data(), now);
    filled_ += static_cast<int64_t>(now);
    position_ += static_cast<int64_t>(now);
    bytes.remove_prefix(now);
    if (filled_ == capacity_) Submit();
  }
}

// The whole blocks of the buffer, and the file's last one.
void BlockStore::Filling::Submit() {
  if (!buffer_) return;
  Job job;
  job.pending = pending_;
  job.begin = begin_;
  job.length = begin_ + filled_ == pending_->file->size_ ? filled_ : filled_ / kBlockBytes * kBlockBytes;
  job.capacity = capacity_;
  job.bytes = std::move(buffer_);
  if (job.length > 0) {
    store_.Queue(std::move(job));
  } else {
    store_.GiveBuffer(std::move(job.bytes), job.capacity);
  }
}

void BlockStore::Filling::Done() {
  Submit();
  Job job;
  job.pending = pending_;
  store_.Queue(std::move(job));
}

// --- the store

Result<std::unique_ptr<BlockStore>> BlockStore::Open(BlockStoreOptions options) {
  auto directory = StoreDirectory::Open(options.directory, true);
  if (!directory) return Forward(directory.error());
  (*directory)->SetLimit(options.limit_bytes);
  return std::unique_ptr<BlockStore>(new BlockStore(std::move(options), std::move(*directory)));
}

BlockStore::BlockStore(BlockStoreOptions options, std::unique_ptr<StoreDirectory> directory)
    : options_(std::move(options)), directory_(std::move(directory)), patience_(kMostPatience) {}

BlockStore::~BlockStore() {
  threads_.clear();  // they write what is queued
  for (const std::string& name : passing_) ::unlinkat(directory_->entries(), name.c_str(), 0);
}

std::shared_ptr<BlockStore::File> BlockStore::Find(const Key& key) {
  if (key.size <= 0 || key.size > kMostFileBytes) return nullptr;
  std::string header = HeaderOf(key);
  std::string name = NameOf(header);
  std::lock_guard lock(mutex_);
  auto& known = files_[name];
  if (auto file = known.lock()) return file;
  auto file = std::make_shared<File>(*this, key, std::move(header), std::move(name));
  known = file;
  if (files_.size() > kManyFiles && files_.size() % kManyFiles == 0) {
    std::erase_if(files_, [](const auto& each) { return each.second.expired(); });
  }
  return file;
}

std::unique_ptr<BlockStore::Filling> BlockStore::Fill(std::shared_ptr<File> file, int64_t offset, int64_t length) {
  return std::unique_ptr<Filling>(new Filling(*this, std::move(file), offset, length));
}

std::unique_ptr<char[]> BlockStore::TakeBuffer(int64_t bytes) {
  {
    std::unique_lock lock(mutex_);
    const TimePoint now = Clock::now();
    patience_ = std::min(kMostPatience, patience_ + (now - patience_at_) / kPatienceShare);
    patience_at_ = now;
    const auto has_room = [&] { return queued_bytes_ + bytes <= (full_ ? options_.queue_bytes / 2 : options_.queue_bytes); };
    if (!full_ && !has_room() && patience_.count() > 0) {
      given_.wait_for(lock, patience_, has_room);
      patience_ -= Clock::now() - now;
      patience_at_ = Clock::now();
    }
    full_ = !has_room();
    if (full_) return nullptr;
    queued_bytes_ += bytes;
    if (bytes == kBufferBytes && !free_.empty()) {
      auto buffer = std::move(free_.back());
      free_.pop_back();
      return buffer;
    }
  }
  return std::unique_ptr<char[]>(new char[static_cast<size_t>(bytes)]);
}

void BlockStore::GiveBuffer(std::unique_ptr<char[]> buffer, int64_t bytes) {
  std::lock_guard lock(mutex_);
  queued_bytes_ -= bytes;
  if (bytes == kBufferBytes) free_.push_back(std::move(buffer));
  given_.notify_one();
}

void BlockStore::Queue(Job job) {
  {
    std::lock_guard pending_lock(job.pending->mutex);
    ++job.pending->queued;
  }
  std::lock_guard lock(mutex_);
  if (working_ + jobs_.size() >= threads_.size() && threads_.size() < kThreads) {
    try {
      threads_.emplace_back([this](const std::stop_token& stop) { Run(stop); });
    } catch (const std::system_error&) {  // the other one does it, or it waits until there can be one
    }
  }
  jobs_.push_back(std::move(job));
  queued_.notify_one();
}

void BlockStore::Settle() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return jobs_.empty() && working_ == 0; });
}

void BlockStore::Run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (true) {
    while (jobs_.empty()) {
      if (stop.stop_requested()) return;
      if (free_.empty()) {
        queued_.wait(lock, stop, [this] { return !jobs_.empty(); });
      } else if (!queued_.wait_for(lock, stop, kIdle, [this] { return !jobs_.empty(); })) {
        free_.clear();
      }
    }
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    ++working_;
    lock.unlock();
    Work(job);
    if (job.bytes) GiveBuffer(std::move(job.bytes), job.capacity);
    job = {};
    lock.lock();
    --working_;
    if (jobs_.empty() && working_ == 0) idle_.notify_all();
  }
}

void BlockStore::Work(Job& job) {
  Pending& pending = *job.pending;
  if (job.bytes && !Write(pending, job.begin, {job.bytes.get(), static_cast<size_t>(job.length)})) {
    static Counter& dropped = Metrics::Get("cache.store_dropped_bytes");
    dropped.Add(job.length);
  }
  std::unique_lock lock(pending.mutex);
  if (!job.bytes) pending.proved = true;
  const bool whole = --pending.queued == 0 && pending.proved;
  lock.unlock();
  if (whole) Commit(pending);
}

bool BlockStore::TakeRoom(int64_t bytes) {
  std::lock_guard lock(space_mutex_);
  if (Clock::now() < paused_until_) return false;
  if (!looked_ || bytes > room_) MakeRoom();
  if (bytes > room_) return false;
  room_ -= bytes;
  taken_ += bytes;
  return true;
}

// The bytes only: no index tells of them yet.
bool BlockStore::Write(Pending& pending, int64_t begin, std::string_view bytes) {
  // What the file system takes for it, with a page for the header and one for the index.
  const int64_t room = RoundUp(static_cast<int64_t>(bytes.size()), kBlockBytes) + 2 * kBlockBytes;
  if (!TakeRoom(room)) return false;
  int64_t written_bytes = 0;
  const bool written = WriteInto(pending, begin, bytes, &written_bytes);
  static Counter& counter = Metrics::Get("cache.store_written_bytes");
  counter.Add(written_bytes);
  std::lock_guard lock(space_mutex_);
  taken_ -= room;
  if (written_bytes == 0) room_ += room;
  return written;
}

bool BlockStore::WriteInto(Pending& pending, int64_t begin, std::string_view bytes, int64_t* written_bytes) {
  const auto length = static_cast<int64_t>(bytes.size());
  File& file = *pending.file;
  int problem = 0;
  const auto opened = file.GetOrMake(&problem);
  if (!opened) {
    if (problem != 0 && problem != EFBIG) CannotWrite(problem, "making a file");
    return false;
  }
  struct stat status {};
  if (::fstat(opened->file.get(), &status) != 0) return false;
  {
    std::lock_guard lock(space_mutex_);
    if (int64_t{status.st_blocks} * 512 + length > most_of_one_) return false;
  }
  const int64_t first = begin / kBlockBytes;
  const int64_t count = RoundUp(length, kBlockBytes) / kBlockBytes;
  const auto index = file.ReadIndex(opened, first, count);
  if (index.empty()) return false;
  std::vector<std::pair<int64_t, uint64_t>> written;
  int failed = 0;
  for (int64_t i = 0; i < count && failed == 0;) {
    if (index[static_cast<size_t>(i)] != 0) {
      ++i;
      continue;
    }
    const int64_t from = i;
    while (i < count && index[static_cast<size_t>(i)] == 0) ++i;
    const int64_t at = from * kBlockBytes;
    const int64_t run = std::min(i * kBlockBytes, length) - at;
    if (!WriteAt(opened->file.get(), file.data_ + begin + at, bytes.data() + at, static_cast<size_t>(run))) {
      failed = errno;
      break;
    }
    for (int64_t each = from; each < i; ++each) written.emplace_back(first + each, file.ChecksumOf(first + each, bytes.data() + each * kBlockBytes));
    *written_bytes += run;
  }
  {
    std::lock_guard lock(pending.mutex);
    if (pending.opened != opened) pending.written.clear();  // another file by now: what was written to that one is of no use
    pending.opened = opened;
    pending.written.insert(pending.written.end(), written.begin(), written.end());
  }
  if (failed != 0) CannotWrite(failed, "writing");
  return failed == 0;
}

// Nobody else has it any more.
void BlockStore::Commit(Pending& pending) {
  auto& written = pending.written;
  std::sort(written.begin(), written.end());
  std::vector<uint64_t> run;
  for (size_t i = 0; i < written.size();) {
    const size_t from = i;
    run.clear();
    for (; i < written.size() && written[i].first == written[from].first + static_cast<int64_t>(i - from); ++i) run.push_back(written[i].second);
    if (!WriteAt(pending.opened->file.get(), pending.file->IndexPlace(written[from].first), run.data(), run.size() * 8)) {
      CannotWrite(errno, "writing");
      return;
    }
  }
}

void BlockStore::MakeRoom() {
  const StoreDirectory& directory = *directory_;
  looked_ = true;
  auto entries = directory.Walk();
  directory.TrimSetAside(kMostSetAside);
  int64_t used = taken_;
  for (const auto& entry : entries) used += entry.bytes;
  for (const auto& entry : directory.SetAside()) used += entry.bytes;
  const int64_t free = directory.FreeBytes();
  const int64_t limit = free < 0 ? options_.limit_bytes : std::min(options_.limit_bytes, (used + free) / kMostShareOfDisk);
  const int64_t step = std::max(limit / kLookShare, std::min(limit, 2 * kBufferBytes));
  most_of_one_ = limit / kMostShareOfOne;
  if (used + step > limit) {
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
      return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
    });
    static Counter& evicted = Metrics::Get("cache.store_evicted_count");
    for (const auto& entry : entries) {
      if (used + 2 * step <= limit) break;
      if (!directory.Remove(entry)) continue;
      evicted.Add();
      used -= entry.bytes;
    }
  }
  room_ = std::clamp<int64_t>(limit - used, 0, step);
}

void BlockStore::CannotWrite(int errno_value, const std::string& what) {
  const bool full = errno_value == ENOSPC || errno_value == EDQUOT;
  std::lock_guard lock(space_mutex_);
  if (full) MakeRoom();
  paused_until_ = Clock::now() + (full ? kPauseOfFull : kPauseOfBroken);
  const auto say = fmt::format("{}: {} failed: {}; files are read without a cache on the disk", options_.directory, what, strerrordesc_np(errno_value));
  if (!std::exchange(told_, true)) {
    log::Warning("cache", "{}", say);
  } else {
    log::Debug("cache", "{}", say);
  }
}

void BlockStore::SetAside(const std::string& name, const std::string& why) {
  static Counter& broken = Metrics::Get("cache.store_broken_count");
  broken.Add();
  const std::string kept = directory_->PutAside(name);
  log::Warning("cache", "{}/{}: not used, since {}; {}", options_.directory, name, why, kept.empty() ? "it cannot be set aside" : "set aside as " + kept);
}

// --- for people

Result<BlockStoreSummary> BlockStore::Inspect(const std::string& path) {
  auto directory = StoreDirectory::Open(path, false);
  if (!directory) return Forward(directory.error());
  BlockStoreSummary summary;
  for (const auto& entry : (*directory)->Walk()) {
    ++summary.entries;
    summary.bytes += entry.bytes;
    const Descriptor file(StoreDirectory::OpenOurs((*directory)->entries(), entry.name().c_str(), O_RDONLY | O_NOATIME));
    auto& [entries, bytes] = summary.sandboxes[file.is_open() ? SandboxOf(file.get()).value_or("?") : "?"];
    ++entries;
    bytes += entry.bytes;
  }
  for (const auto& entry : (*directory)->SetAside()) {
    ++summary.set_aside;
    summary.set_aside_bytes += entry.bytes;
  }
  summary.limit_bytes = (*directory)->limit();
  return summary;
}

Result<int64_t> BlockStore::Clear(const std::string& path) {
  auto directory = StoreDirectory::Open(path, false);
  if (!directory) return Forward(directory.error());
  int64_t bytes = (*directory)->RemoveSetAside();
  for (const auto& entry : (*directory)->Walk()) {
    if ((*directory)->Remove(entry)) bytes += entry.bytes;
  }
  return bytes;
}

}  // namespace e2bfs::cache
