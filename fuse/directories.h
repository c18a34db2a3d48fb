// The directories of this machine that e2bfs keeps things in: sockets of running mounts, unsent data, logs.
// Both hold what others must not read or replace, so a directory that somebody else owns or may enter is refused.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cache/descriptor.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

// Makes `path` (parents too, 0700) unless it is there, and checks that it is a directory, no link, owned by us, with
// nobody else allowed in. EACCES with a sentence that says what is wrong, or the errno of making it.
[[nodiscard]] Result<void> MakePrivateDirectory(const std::string& path);

// $XDG_STATE_HOME/e2bfs, else ~/.local/state/e2bfs, else /var/tmp/e2bfs-<uid>. Made and checked.
Result<std::string> StateDirectory();

// Where content is kept unless -o cache= says otherwise: $XDG_CACHE_HOME/e2bfs, else ~/.cache/e2bfs, else /var/tmp/e2bfs-cache-<uid>. Not made.
std::string DefaultCacheDirectory();

// Where this process puts its sockets: $XDG_RUNTIME_DIR/e2bfs, else /run/e2bfs for root, else /tmp/e2bfs-<uid>. Made and checked.
Result<std::string> RuntimeDirectory();

// Where sockets of mounts made by the user are or may be, from any session of theirs; not made. Those that are there and safe
// (owned by that user or root, nobody else allowed in).
std::vector<std::string> RuntimeDirectoriesOf(unsigned uid);

// "<state directory>/unsent": what could not be sent, until `e2bfs recover` sends it or is told to drop it.
std::string UnsentParent(const std::string& state_directory);
// "<state directory>/unsent/<sandbox>-<date>-<time>-<pid>": where the mount that begins now puts aside what it cannot send. Not made.
std::string UnsentDirectory(const std::string& state_directory, const std::string& sandbox_id);

// Whoever sends or drops what is below UnsentParent holds this. A mount that starts beside it moves in what is left of dead ones, and takes nothing away.
// `waiting` is called if another process holds it, which is waited for: at most so long, if that is said (kLocal/EWOULDBLOCK then).
Result<cache::Descriptor> LockUnsent(const std::string& state_directory, std::optional<std::chrono::milliseconds> at_most, const std::function<void()>& waiting);

// What mounts that died left behind in `parent` (of spool directories; it need not be there) is never removed unless it is known to hold nothing
// unsent: the rest is moved below `unsent_parent`, which the log says, with a text file about it. A living mount's is locked, and left alone.
void CleanLeftovers(const std::string& parent, const std::string& unsent_parent);
// A directory of this mount alone, below `parent` (made and checked), that is locked as long as this process lives. Cleans leftovers first.
Result<std::string> MakeSpoolDirectory(const std::string& parent, const std::string& unsent_parent);
// Removes a spool directory if nothing but its lock file is in it.
void RemoveSpoolDirectory(const std::string& path);

// Removes a tree without following links or leaving its file system. For scratch directories of our own.
void RemoveTree(const std::string& path);

}  // namespace e2bfs::fuse
