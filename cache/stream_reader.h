// StreamReader: content of one open file from the other side.
//
// Sequential reading is a Stream: bounded Range requests one behind the other, opened ahead of the reader up to a window that grows
// with what was used, so that the way is full whatever its delay. Several of them may read at different places of the file. What is on its way is
// charged to a budget that all readers share. Bytes that are skipped, since the kernel asks for several pieces at once and in any order,
// are kept until they are read. Reading backwards and in strides is recognised and fetched ahead in pieces of its own; other reads fetch exactly
// what they want.
//
// Any thread may call any of it; one at a time takes bytes from a stream, the others wait within their contexts.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cache/memory_budget.h"
#include "cache/job_threads.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

// What content belongs to. A range of another version is never read to its end.
struct ReadVersion {
  transport::Attributes attributes;
  uint64_t epoch = 0;
};

class StreamReader : public std::enable_shared_from_this<StreamReader> {
 public:
  using OpenRange = std::function<Result<std::unique_ptr<transport::ByteStream>>(
      const transport::Attributes* version, transport::Extent range, const OpContext& ctx)>;
  // `memory` outlives this object, and `prefetcher` whoever calls it. max_window_bytes bounds what one stream has on its way.
  StreamReader(OpenRange open_range, MemoryBudget& memory, JobThreads& prefetcher, int64_t max_window_bytes);
  ~StreamReader();
  StreamReader(const StreamReader&) = delete;
  StreamReader& operator=(const StreamReader&) = delete;

  // Bytes [offset, offset+length) of the version, fewer only at the end of the file. A transfer that breaks is resumed where it
  // stopped, some times. Errors: ESTALE when it is another version now, those of the transfer, EINTR, ETIMEDOUT.
  Result<size_t> Read(const ReadVersion& version, int64_t offset, char* buffer, size_t length, const OpContext& ctx);
  // The same of whatever is there now, without reading ahead.
  Result<size_t> ReadUnchecked(int64_t offset, char* buffer, size_t length, const OpContext& ctx);
  // Of a file whose size nobody knows (/proc): one transfer from `offset` to the end of the file, taken as it is read.
  Result<size_t> ReadToTheEnd(int64_t offset, char* buffer, size_t length, const OpContext& ctx);
  // Ends all transfers and gives memory back, unless it was read from since `since`.
  void ReleaseIfIdle(TimePoint since);

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Range;
  using RangePtr = std::shared_ptr<Range>;
  struct Stream;
  using StreamPtr = std::shared_ptr<Stream>;
  // Ranges that nobody wants any more: ended when it goes, which has to be without the lock.
  struct Discarded;

  // All with mutex_ held; those that take the lock let go of it meanwhile.
  bool IsVersion(const ReadVersion& version) const;
  bool IsBusy() const;
  size_t TakeKept(int64_t offset, char* buffer, size_t length);
  bool Keep(Range& range, std::string bytes);
  void DropKept();
  void Uncharge(Range& range, int64_t left);
  void DropRanges(Stream& stream, Discarded& old);
  bool InReach(const Stream& stream, int64_t offset) const;
  StreamPtr StreamAt(int64_t offset) const;
  StreamPtr NewStream(int64_t offset, int64_t window, Discarded& old);
  static int64_t RangeLength(const Stream& stream);
  void PushRange(Stream& stream, int64_t least);
  void Prefetch(const RangePtr& range);
  void OpenAhead(Stream& stream);
  void FollowSteps(int64_t offset, int64_t length);
  void AddPiece(int64_t begin, int64_t end);
  void Open(Lock& lock, const RangePtr& range, const OpContext& ctx);
  Result<size_t> Step(Lock& lock, const StreamPtr& stream, int64_t offset, char* buffer, size_t length, const OpContext& ctx, Discarded& old);
  Result<size_t> Pull(Lock& lock, const StreamPtr& stream, int64_t offset, char* buffer, size_t length, const OpContext& ctx, Discarded& old);
  // No lock.
  Result<size_t> FetchExactly(const transport::Attributes* version, int64_t offset, char* buffer, size_t length, const OpContext& ctx);

  const OpenRange open_range_;
  MemoryBudget& memory_;
  JobThreads& prefetcher_;
  const int64_t max_window_;

  std::mutex mutex_;  // level 3: below CachedFsImpl's; not held while a transfer is waited for
  std::condition_variable_any changed_;
  std::optional<ReadVersion> version_;
  std::vector<StreamPtr> streams_;       // the longest unused first
  std::map<int64_t, std::string> kept_;  // skipped bytes by offset
  int64_t kept_bytes_ = 0;
  TimePoint last_read_{};

  // Reads that belong to no stream.
  std::array<int64_t, 4> ends_;   // of the last ones
  size_t last_end_ = 0;
  int near_ = 0;                  // in a row that were close to the one before
  int near_wanted_ = 3;           // so many are taken for sequential reading in some order
  int64_t last_begin_ = 0, step_ = 0;
  int equal_steps_ = 0;           // in a row
  int64_t fetched_down_to_ = 0;   // of a file that is read backwards

  // ReadToTheEnd.
  std::unique_ptr<transport::ByteStream> whole_;  // empty while a thread has it
  int64_t whole_position_ = 0;
  bool whole_busy_ = false;
  std::optional<int64_t> seen_end_;
};

}  // namespace e2bfs::cache
