// Spool: the local files that hold what was written and is not (or no longer needs to be) in the sandbox.
//
// A SpoolFile is sparse: a byte of the file lies at its own offset. It has a name in the spool directory while it lives, so
// that unsent data outlives a crash of this process; the name goes when the object goes, unless Keep was called.
// Any thread may use any of it. Concurrent I/O on one file is as on any file.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "cache/unsent_record.h"
#include "transport/base/error.h"

namespace e2bfs::cache {

class Spool;

// All of an open file, sparse where that is, into a new file, 0600, on the disk when it returns.
Result<void> CopySparse(int from, const std::string& target);

class SpoolFile {
 public:
  SpoolFile(Spool& spool, int fd, std::string path);
  ~SpoolFile();
  SpoolFile(const SpoolFile&) = delete;
  SpoolFile& operator=(const SpoolFile&) = delete;

  // All of it or an error: ENOSPC, EDQUOT, EIO of this machine (kLocal).
  Result<void> WriteAt(int64_t offset, const char* bytes, size_t length);
  // All of it or an error; what was never written reads as zeros.
  Result<void> ReadAt(int64_t offset, char* bytes, size_t length) const;
  // Moves bytes inside the file; the ranges may overlap.
  Result<void> MoveRange(int64_t from, int64_t to, int64_t length);
  // A copy, sparse where this is: a new file, 0600.
  Result<void> CopyTo(const std::string& target) const;
  // Gives the disk space of the range back; it reads as zeros. Best effort.
  void Discard(int64_t offset, int64_t length);
  // What the file beside it (path() + kUnsentNoteSuffix) says of this one, for whoever finds both after a crash.
  UnsentNote& note() { return note_; }
  // The name stays when the object goes, and the note's too.
  void Keep() { keep_ = true; }
  const std::string& path() const { return path_; }
  // The random part of its name: what is unsent is called so.
  std::string id() const { return path_.substr(path_.size() - kIdLength); }
  // Bytes that the owner accounts for with Spool::Reserve; given back when the object goes.
  void Charge(int64_t bytes);
  int64_t charged() const { return charged_.load(); }

 private:
  static constexpr size_t kIdLength = 6;
  Spool& spool_;
  const int fd_;
  const std::string path_;
  UnsentNote note_;
  std::atomic<bool> keep_{false};
  std::atomic<int64_t> charged_{0};
};

class Spool {
 public:
  // `directory` exists and is ours. limit_bytes bounds what all files together are charged.
  Spool(std::string directory, int64_t limit_bytes);
  Result<std::shared_ptr<SpoolFile>> NewFile();
  // Whether `bytes` more may be charged now.
  bool HasRoom(int64_t bytes) const { return used_.load() + bytes <= limit_bytes_; }
  int64_t used_bytes() const { return used_.load(); }
  // All files and notes are on the disk when it returns, as far as the disk tells. False: they may not be. May take seconds.
  bool Sync() const;
  const std::string& directory() const { return directory_; }

 private:
  friend class SpoolFile;
  const std::string directory_;
  const int64_t limit_bytes_;
  std::atomic<int64_t> used_{0};
};

}  // namespace e2bfs::cache
