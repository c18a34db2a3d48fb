// Mount: from a CachedFs to a directory on this machine, and back.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>

#include "fuse/filesystem.h"
#include "transport/base/error.h"

namespace e2bfs::cache {
class CachedFs;
}

namespace e2bfs::fuse {

struct MountOptions {
  std::string mount_point;            // an existing directory, absolute
  std::string source = "e2bfs";       // first column of the mount table; commas and backslashes are escaped
  bool read_only = false;             // nosuid and nodev are always set
  bool allow_other = false;           // as a user these two need user_allow_other in /etc/fuse.conf
  bool allow_root = false;
  bool default_permissions = false;   // the kernel checks the shown mode bits instead of asking Access
  bool debug = false;                 // libfuse's own trace in the log
  FilesystemOptions filesystem;       // its mount_point is filled in
  // What could not be sent when the mount ends is moved into it. Made (0700) when needed.
  std::string unsent_directory;
  std::chrono::milliseconds drain_timeout{120'000};  // for sending what is unsent, when the mount ends
  std::optional<std::chrono::milliseconds> stop_drain_timeout;  // the same where `stop` ends it, if another
  std::chrono::milliseconds finish_timeout{10'000};  // for operations that are still under way after that
  // Reading and writing each may have so many threads waiting for the sandbox; operations on names as many again, and closing too.
  int max_waiting_operations = 256;
  // As SIGTERM: flush, unmount, return. For the control socket's `umount`.
  std::stop_token stop;
  // Called now and then while draining after a signal or stop, with the bytes left.
  std::function<void(int64_t)> on_drain_progress;
};

struct MountEnd {
  int signal = 0;               // the signal that ended it; 0: unmounted from outside, or stop
  int unsent_files = 0;         // what could not be sent: saved in the directory `saved_in`
  std::string saved_in;
  std::string error;            // why it could not be sent (or, worse, not even saved); empty if all was
  // Threads still wait for the sandbox and use `cached`: do not destroy it; leave by _exit (all that matters is on disk).
  bool operations_left = false;
};

// The canonical path of a directory that can be mounted on. Errors: everything that libfuse or fusermount3 would say less clearly, or only
// after a fork. RunMount asks it first; whoever has to ask a network before that may do so too.
Result<std::string> UsableMountPoint(const std::string& mount_point);

// Mounts, calls `on_ready` once (from another thread) when the mount answers, serves until it is unmounted (`umount`, `fusermount3 -u`),
// SIGTERM, SIGINT or SIGHUP arrives, or stop is requested; then sends everything that is unsent, and unmounts. A second signal cuts the
// sending short. Returns within the two timeouts after the end began, whatever the sandbox does.
// Call it after any fork (it starts threads), once at a time in a process: it owns the three signals' handlers meanwhile, ignores SIGPIPE.
// Errors (before on_ready): kLocal with a line for people: no /dev/fuse, no fusermount3, mount point missing or busy.
Result<MountEnd> RunMount(const MountOptions& options, cache::CachedFs& cached, const std::function<void()>& on_ready);

// Unmounts what is mounted there: umount2 as root, fusermount3 -u otherwise. lazy: also when in use (the name is gone at once).
// EBUSY, EINVAL (not mounted); text for people in the message. Starts a process; any thread.
Result<void> Unmount(const std::string& mount_point, bool lazy);

}  // namespace e2bfs::fuse
