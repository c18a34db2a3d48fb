// StreamReader: content of one open file from the other side.
//
// Sequential reading goes through one transfer (a bounded Range request) that stays open between reads; its ranges double
// with each one that was used up. What is on its way ahead of the reader is bounded by the transport's window for the stream, so
// reading ahead needs neither a thread nor memory here. Bytes that are skipped, since the kernel asks for several
// pieces at once and in any order, are kept until they are read. Other reads fetch exactly what they want.
//
// Any thread may call any of it; one at a time takes bytes from the transfer, the others wait within their contexts.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "cache/memory_budget.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

// What content belongs to. Bytes of two versions are never given by one Read.
struct ReadVersion {
  transport::Attributes attributes;
  uint64_t epoch = 0;
};

class StreamReader {
 public:
  using OpenRange = std::function<Result<std::unique_ptr<transport::ByteStream>>(
      const transport::Attributes* version, transport::Extent range, const OpContext& ctx)>;
  // `memory` outlives this object. max_window_bytes bounds what is skipped and kept; the longest range is some times that.
  StreamReader(OpenRange open_range, MemoryBudget& memory, int64_t max_window_bytes);
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
  // Ends the transfer and gives memory back, unless it was read from since `since`.
  void ReleaseIfIdle(TimePoint since);

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Transfer {
    std::unique_ptr<transport::ByteStream> stream;
    int64_t position = 0;  // of the next byte
    int64_t end = 0;
  };

  size_t TakeKept(int64_t offset, char* buffer, size_t length);  // mutex_ held
  void DropKept();                                               // mutex_ held
  std::optional<Transfer> Reset();                               // mutex_ held; the transfer is destroyed without it
  bool InReach(int64_t offset) const;                            // mutex_ held
  Result<void> OpenNext(Lock& lock, int64_t offset, size_t length, const OpContext& ctx);
  Result<size_t> Pull(Lock& lock, int64_t offset, char* buffer, size_t length, const OpContext& ctx);
  Result<size_t> FetchExactly(const transport::Attributes* version, int64_t offset, char* buffer, size_t length,
                              const OpContext& ctx);

  const OpenRange open_range_;
  MemoryBudget& memory_;
  const int64_t max_window_;

  std::mutex mutex_;  // level 3: below CachedFsImpl's; not held while a transfer is waited for
  std::condition_variable_any changed_;
  std::optional<ReadVersion> version_;
  std::optional<Transfer> transfer_;   // empty while `busy_` has it
  bool busy_ = false;                  // a thread opens or takes from the transfer
  int64_t busy_position_ = 0;          // where its transfer stands
  int64_t next_ = 0;                   // where sequential reading goes on
  int64_t range_bytes_;                // of the next range
  int64_t random_end_ = -1;            // the end of the last read that was not sequential
  int near_ = 0;                       // reads in a row that were close to the one before
  int near_wanted_ = 3;                // so many are taken for sequential reading in some order
  std::optional<int64_t> seen_end_;    // ReadToTheEnd came to it
  std::map<int64_t, std::string> kept_;  // skipped bytes by offset
  int64_t kept_bytes_ = 0;
  int64_t wasted_ = 0, delivered_ = 0;   // skipped and never read; read from transfers
  TimePoint last_read_{};
};

}  // namespace e2bfs::cache
