// Exit statuses of the e2bfs command. They are an interface: scripts read them, the manual page lists them.
#pragma once

namespace e2bfs::fuse {

enum class ExitStatus : int {
  kOk = 0,
  kFailure = 1,         // anything without a status of its own
  kUsage = 2,           // unknown command, option or value
  kCredentials = 3,     // no key, or the key was refused
  kSandbox = 4,         // unknown sandbox, or one that does not run and cannot be resumed
  kNetwork = 5,         // control plane or sandbox cannot be reached
  kMountPoint = 6,      // local directory missing, not a directory, busy, stale, or nothing of ours mounted there
  kFuseMissing = 7,     // no /dev/fuse or no fusermount3
  kUnsentData = 8,      // data could not be sent: nothing was unmounted (or it was put aside, with --force)
  kRemotePath = 9,      // the path in the sandbox is not there, or is not a directory
  kConflict = 10,       // all is sent, and some of it lies beside what others changed there
  kInterrupted = 130,   // SIGINT or SIGTERM before the work was done
};

}  // namespace e2bfs::fuse
