// The directory of a BlockStore: what it has to look like, who may own what in it, and walking through it.
//
//   e2bfs-cache            the marker: that it is one, and of which format
//   limit                  bytes, of the mount that was made last
//   entries/ab/0123...     the files of the store; new-* are being made
//   set-aside/...          what was found broken, and stores of another format as a whole
#pragma once

#include <unistd.h>

#include <array>
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache/descriptor.h"
#include "transport/base/error.h"

namespace e2bfs::cache {

inline constexpr size_t kEntryNameDigits = 32;

class StoreDirectory {
 public:
  struct Entry {
    std::array<char, kEntryNameDigits> digits;
    int64_t bytes = 0;  // on the disk
    timespec used{};
    std::string name() const;  // below entries()
  };

  // `make`: what is missing is made; else ENOENT. ENOTEMPTY, EACCES, ENOTDIR as BlockStore::Open.
  static Result<std::unique_ptr<StoreDirectory>> Open(const std::string& path, bool make);

  const std::string& path() const { return path_; }
  int top() const { return top_.get(); }
  int entries() const { return entries_.get(); }

  // A file that is ours alone, not followed where it is a link; a negative errno, -EPERM where it is not ours.
  static int OpenOurs(int directory, const char* name, int flags);

  // Every entry. Removes what was being made by a process that is long gone.
  std::vector<Entry> Walk() const;
  std::vector<Entry> SetAside() const;  // names are below the directory of what was set aside
  bool Remove(const Entry& entry) const;
  // Renames an entry; the path that it has now, "" where that did not succeed.
  std::string PutAside(const std::string& name) const;
  // Keeps the newest ones of what was set aside.
  void TrimSetAside(size_t most) const;
  int64_t RemoveSetAside() const;  // the bytes
  void SetLimit(int64_t bytes) const;
  int64_t limit() const;           // 0: not known
  // Bytes that are free for this user; -1 if nobody knows.
  int64_t FreeBytes() const;

 private:
  explicit StoreDirectory(std::string path) : path_(std::move(path)) {}
  Result<void> Check(bool make);
  Result<void> WriteMarker();
  bool WriteSmall(const char* name, const std::string& text) const;

  const std::string path_;
  Descriptor top_, entries_, aside_;
};

}  // namespace e2bfs::cache
