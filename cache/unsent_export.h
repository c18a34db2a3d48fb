// UnsentExport: copies what was put aside into a directory that a person chose, laid out as in the sandbox: SANDBOX/ROOT/PATH.
//
// Names come from the sandbox and may be hostile, and so may be what lies in the directory: nothing is written outside of it, no link is followed, and
// no file that is there is touched. New directories are 0700, files 0600.
#pragma once

#include <memory>
#include <string>

#include "cache/recovery.h"

namespace e2bfs::cache {

class UnsentExport {
 public:
  // Makes the directory (0700) if it is not there.
  static Result<std::unique_ptr<UnsentExport>> Open(const std::string& directory);
  ~UnsentExport();
  UnsentExport(const UnsentExport&) = delete;
  UnsentExport& operator=(const UnsentExport&) = delete;

  // The path below the directory where its content is now, or the directory or link that was to be made; "" if it has none of these. Of an entry that
  // nothing is known of: all of the content file, as "unknown/ID". Another name (".e2bfs-ID" behind it) where something else is there already.
  Result<std::string> Add(const UnsentEntry& entry);
  // Writes what belongs where, and which parts of each file are ours, into a new text file. Its name, "" if there was nothing to say.
  Result<std::string> WriteText();

 private:
  // Makes the last part of a path, in the directory `at`: another name where it is taken.
  Result<std::string> Place(const UnsentEntry& entry, int at, const std::string& name);

  UnsentExport(std::string directory, int fd) : directory_(std::move(directory)), fd_(fd) {}

  const std::string directory_;
  const int fd_;
  std::string text_;
};

}  // namespace e2bfs::cache
