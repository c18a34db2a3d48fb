// BlockStore: content of the sandbox's files on this machine's disk. It outlives the mount, and mounts share it.
//
// One file in the store is one version of one remote file (a Key): a header with the whole key, an index with a checksum for each block that is
// there, and the blocks, sparse, each at its place. Nothing is ever brought to the disk on purpose (no fsync): a checksum covers the key,
// the block's number and its bytes, so whatever a crash, another process or a bad disk leaves is noticed when it is read, set aside and fetched
// again. docs/cache.md has the format, and why each step is safe.
//
// Any thread may call any of it. Reading is local disk I/O in the caller's thread; filling copies bytes and leaves them to two threads of this object,
// within a bounded memory: what comes faster than the disk takes it is not stored, after a wait of a twentieth of the time at most. No call waits for
// the network, and none fails for who reads: what cannot be read is not there, what cannot be written is not stored, and the log says so once.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::cache {

class StoreDirectory;

struct BlockStoreOptions {
  std::string directory;                    // exists; ours, and nobody else may enter it
  int64_t limit_bytes = int64_t{2} << 30;   // of the directory, whoever filled it
  int64_t queue_bytes = 16 << 20;           // copied and not written yet
};

// What is in a store, for people.
struct BlockStoreSummary {
  int64_t entries = 0, bytes = 0;            // bytes on the disk
  int64_t set_aside = 0, set_aside_bytes = 0;
  int64_t limit_bytes = 0;                   // of the mount that was made last; 0: not known
  std::map<std::string, std::pair<int64_t, int64_t>> sandboxes;  // entries and bytes, by Key::sandbox
};

class BlockStore {
 public:
  // The kernel's page: what is read at random is a block, too, and its checksum takes 8 bytes of 4096.
  static constexpr int64_t kBlockBytes = 4096;
  // No larger file is kept: its index alone would be 2 GiB.
  static constexpr int64_t kMostFileBytes = int64_t{1} << 40;
  // One version takes at most this share of the limit, so that one large file that is read once does not drive out all others.
  static constexpr int64_t kMostShareOfOne = 2;
  // The limit is never more than this share of what the file system has free, what the store holds counted as free.
  static constexpr int64_t kMostShareOfDisk = 4;

  struct Key {
    std::string sandbox;  // for people, too
    std::string object;   // which object, in which version: opaque bytes
    int64_t size = 0;     // of the file in that version
    bool lasting = true;  // else it goes with this BlockStore: nobody could find it later
  };

  class File;
  class Filling;

  // ENOTEMPTY: there is something else in the directory. EACCES: it is not ours alone. A store of another format in it is set aside.
  static Result<std::unique_ptr<BlockStore>> Open(BlockStoreOptions options);
  // Writes what is queued.
  ~BlockStore();
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;

  // The version's place, whether there is anything of it or not. No I/O. Null if no such file is kept. It must not outlive this object.
  std::shared_ptr<File> Find(const Key& key);
  // For bytes of [offset, offset+length) of the version, in order, as they come.
  std::unique_ptr<Filling> Fill(std::shared_ptr<File> file, int64_t offset, int64_t length);
  // Waits until what is queued has been written. For tests.
  void Settle();

  const std::string& directory() const { return options_.directory; }
  int64_t limit_bytes() const { return options_.limit_bytes; }

  // Of a store that may be in use. ENOENT: there is none.
  static Result<BlockStoreSummary> Inspect(const std::string& directory);
  // Removes what it holds, also what was set aside; the bytes that this gave back. Who uses it goes on, with an empty one.
  static Result<int64_t> Clear(const std::string& directory);

 private:
  friend class File;
  friend class Filling;
  struct Job;
  struct Pending;

  BlockStore(BlockStoreOptions options, std::unique_ptr<StoreDirectory> directory);
  void Queue(Job job);
  void Run(const std::stop_token& stop);
  void Work(Job& job);
  bool Write(Pending& pending, int64_t begin, std::string_view bytes);  // false: it may not be written
  void Commit(Pending& pending);
  bool TakeRoom(int64_t bytes);
  bool WriteInto(Pending& pending, int64_t begin, std::string_view bytes, int64_t* written_bytes);
  // space_mutex_ held. Looks how much there is, and removes what was not used for longest until there is room.
  void MakeRoom();
  void CannotWrite(int errno_value, const std::string& what);
  void SetAside(const std::string& name, const std::string& why);
  std::unique_ptr<char[]> TakeBuffer(int64_t bytes);  // null: not now
  void GiveBuffer(std::unique_ptr<char[]> buffer, int64_t bytes);

  const BlockStoreOptions options_;
  const std::unique_ptr<StoreDirectory> directory_;

  std::mutex space_mutex_;   // a leaf, of the threads that write; held while they look through the directory
  bool looked_ = false;
  int64_t room_ = 0;         // so much may be written until the next look
  int64_t taken_ = 0;        // of it, by what is being written now
  int64_t most_of_one_ = 0;
  TimePoint paused_until_{};
  bool told_ = false;        // that it cannot be written

  std::mutex mutex_;  // a leaf
  std::condition_variable_any queued_, idle_, given_;
  std::deque<Job> jobs_;
  size_t working_ = 0;  // threads that have a job
  int64_t queued_bytes_ = 0;
  std::chrono::nanoseconds patience_;  // so long may be waited for room in the queue
  TimePoint patience_at_{};
  bool full_ = false;  // from when there is no room in the queue until half of it is free: few long gaps are better than many short ones
  std::vector<std::unique_ptr<char[]>> free_;  // buffers of the largest size; none while nothing is queued for a while
  std::unordered_map<std::string, std::weak_ptr<File>> files_;
  std::set<std::string> passing_;  // names of what goes with this object
  std::vector<std::jthread> threads_;  // begin when there are jobs for them
};

// One version. Any thread.
class BlockStore::File {
 public:
  File(BlockStore& store, const Key& key, std::string header, std::string name);

  // The bytes at the beginning of the range that are here, into `buffer`: their number.
  size_t ReadFront(int64_t offset, char* buffer, size_t length);
  // The same of its end: the last bytes of the range, at the end of `buffer`.
  size_t ReadBack(int64_t offset, char* buffer, size_t length);
  // Whether the range's first byte, or its last one, is here: by the index alone.
  bool HasAnEndOf(int64_t offset, size_t length);

 private:
  friend class BlockStore;
  friend class Filling;
  struct Opened;
  using OpenedPtr = std::shared_ptr<const Opened>;

  int64_t BlockLength(int64_t block) const { return std::min(kBlockBytes, size_ - block * kBlockBytes); }
  int64_t IndexPlace(int64_t block) const { return index_ + 8 * block; }
  uint64_t ChecksumOf(int64_t block, const char* bytes) const;
  OpenedPtr Get();                 // null: there is none
  OpenedPtr GetOrMake(int* problem);
  OpenedPtr OpenNow(int* problem);   // mutex_ held
  bool Use(const OpenedPtr& opened);  // now and then tells that it is used; false: it was removed
  void Forget(const OpenedPtr& opened);
  void Broken(const OpenedPtr& opened, const std::string& why);
  // Entries of the index; empty if they cannot be read.
  std::vector<uint64_t> ReadIndex(const OpenedPtr& opened, int64_t first, int64_t count);
  size_t ReadBlocks(const OpenedPtr& opened, const std::vector<uint64_t>& index, int64_t first, int64_t offset, char* buffer, size_t length);

  BlockStore& store_;
  const std::string header_;  // as it is in the file
  const std::string name_;    // below the directory of entries
  const uint64_t seed_;       // of the key, into each checksum
  const int64_t size_;
  const bool lasting_;
  const int64_t index_, data_;  // where they begin in the file

  std::mutex mutex_;  // before BlockStore's; held over the opening of one local file
  OpenedPtr opened_;
  TimePoint used_{};
};

// A range that comes. One thread at a time. Its blocks can be read after Done: until then nobody knows whether they are the version's.
class BlockStore::Filling {
 public:
  ~Filling();
  Filling(const Filling&) = delete;
  Filling& operator=(const Filling&) = delete;

  void Add(std::string_view bytes);
  // All that was added is proved to be of the version.
  void Done();

 private:
  friend class BlockStore;
  Filling(BlockStore& store, std::shared_ptr<File> file, int64_t offset, int64_t length);
  void Submit();

  BlockStore& store_;
  std::shared_ptr<Pending> pending_;
  int64_t position_, end_;
  std::unique_ptr<char[]> buffer_;
  int64_t begin_ = 0, filled_ = 0, capacity_ = 0;  // of buffer_
};

}  // namespace e2bfs::cache
