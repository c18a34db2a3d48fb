// The commands of the service tier: constant sh scripts, and the reading of what they print. Pure: nothing is sent from here.
//
// Each script works with coreutils or busybox, in dash, bash and busybox's sh, under LC_ALL=C. Names come as arguments
// (EncodeArgument), never as part of a script. No argument ever holds content: envd logs command lines.
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

// What runs in the sandbox. "Changes" are done at most once: they first make a claim, an empty file named by the caller in the stage
// directory, and leave their answer beside it. Started again with the same claim, such a script only repeats the answer.
enum class ServiceScript {
  // Not changes; arguments, then output:
  kInitialize,  // root, stage name (empty: none) -> fields, see ServiceFacts
  kStat,        // path -> object line
  kList,        // path, "g" or "p", "a" (all) or "l" (links only) -> see ParseServiceListing
  kReadLink,    // path -> text
  kStatFs,      // path -> numbers
  kSync,        // path
  kStage,       // stage directory: makes it again if somebody removed it
  kCleanUp,     // stage directory: removed with all in it
  kDiscard,     // stage directory, names: removes these files there
  kProbe,       // stage directory, bytes, a new name: fails as a write of so many bytes there would
  // Changes; object lines of what is named in brackets:
  kUnlink,      // path, parent -> [path as it was, parent]
  kRemoveDirectory,  // path, parent -> [parent]
  kMakeDirectory,    // path, parent, umask, special mode or "-" -> [path, parent]
  kCreate,      // path, parent, umask, mode with execute or special bits or "-", "x" for exclusive -> "NEW" or "OLD", [path, parent]
  kMakeSymlink,  // path, parent, text -> [path, parent]
  kMakeLink,    // path, parent, existing -> [path, parent]
  kMakeNode,    // path, parent, umask, mode or "-", "p", "c" or "b", major, minor -> [path, parent]
  // from, to, parent of from, parent of to, "n" (no replace) or "-", "p" (perl may do it) or "-"
  //   -> "OVER" and [what is replaced] if something is, [to, parent of to, parent of from], or "MOVE": checked, nothing but an empty target directory
  //   removed; Move is next. "SAME", [to, both parents]: two names of one file, which both stay
  kRename,
  // path, size, owner, mode, atime, mtime (each "-" if not set, "i" before an implied one), "w" if it was opened for writing -> [path]
  kSetAttributes,
  // path, stage file, its size, final size ("-" if not set), "w", owner, mode, atime, mtime, "b" or "p",
  //   extents "offset:length:place in the stage file", offset "a" for an append, place "z" for zeros over what is there
  //   -> "STORED" once the content is in place, [path]; "APPENDED bytes" of an append that failed half-way and could not be cut off
  kStore,
  // stage file with the contents ("" for none), its size, where the contents of this command begin in it; then of each step a path and
  //   "kind,parent,size,umask,special mode,owner,mode,atime,mtime,text". Kind: d, f or l is made; s is told of. Parent: the number of the step that makes
  //   the directory that it goes into, or "-"; "x" fails. -> "F step text" of what was not made, "T step" of a file that stays torn, "R step text" of what is there but for its attributes;
  //   [what was made but directories, and what is told of], where "G number" tells that it is gone
  kMakeObjects,
};

bool IsServiceChange(ServiceScript script);
// The whole text for `sh -c`.
const std::string& ServiceScriptText(ServiceScript script);

// The environment of every script.
const std::map<std::string, std::string>& ServiceScriptEnvironment();

// The errno that a failed command speaks of, from its standard error: coreutils', busybox' and the shells' messages with
// glibc's or musl's texts, or a script's own "E NAME" line; the last line that says something counts. EIO if none does.
int ErrnoFromCommandOutput(std::string_view text);

// lstat of one object, as the scripts print it.
struct ServiceStat {
  FileType type = FileType::kRegular;
  uint32_t permissions = 0;
  uint32_t link_count = 1;
  uint32_t uid = 0, gid = 0;
  int64_t size = 0;
  timespec mtime{};
  bool nanoseconds = false;  // false: busybox told whole seconds only
  std::string owner, group;
};

// One line "A mode links uid gid size mtime owner group" (mode in hexadecimal).
std::optional<ServiceStat> ParseServiceStat(std::string_view line);

// The answer of a change.
struct ServiceChangeAnswer {
  int status = 0;                  // the script's own; 0: done
  std::vector<ServiceStat> objects;
  std::vector<std::string> words;  // "NEW", "OLD", "MOVE", "OVER", "SAME", "STORED"
  int64_t appended = 0;            // "APPENDED bytes"
  std::string messages;            // everything else that was printed
};

// nullopt: torn or rubbish.
std::optional<ServiceChangeAnswer> ParseServiceChange(std::string_view output);

struct ServiceListedEntry {
  std::string name;
  ServiceStat stat;         // kList "a"
  std::string link_target;  // of a link
};

struct ServiceListing {
  std::optional<ServiceStat> directory;  // kList "a"
  std::vector<ServiceListedEntry> entries;
};

// nullopt: torn or rubbish, or with names that cannot be, or the same twice.
std::optional<ServiceListing> ParseServiceListing(std::string_view output, bool links_only);

// What kInitialize tells.
struct ServiceFacts {
  std::string home, root;      // absolute; root without links in it
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;
  std::string user;
  std::string stage;           // absolute; empty: none could be made
  bool dd_bytes = false;       // dd takes offsets in bytes
  bool find_prints = false;    // find has -printf
  bool perl = false;
  bool full_times = false;     // stat tells nanoseconds
  int64_t clock_seconds = 0;   // 0: not known
  std::map<std::string, uint32_t> users, group_numbers;  // by name
};

std::optional<ServiceFacts> ParseServiceFacts(std::string_view output);

// "seconds.nanoseconds" as touch's "@" takes it, "now", or "-".
std::string ServiceTimeArgument(const std::optional<TimeChange>& change);
// The same of the time of modification, which may be implied.
std::string ServiceMtimeArgument(const AttributeChange& change);

}  // namespace e2bfs::transport
