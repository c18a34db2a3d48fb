// The mounts of e2bfs on this machine that this user may ask: found by their control sockets, whether or not they are still
// in the kernel's table (one that was just unmounted may still be sending).
//
// What a socket is asked and answers is described in mount_control.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "fuse/control_socket.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

struct RunningMount {
  std::string directory;
  std::string sandbox_id;
  std::string path;         // in the sandbox
  std::string state;        // "starting", "mounted", "unmounting"
  int64_t process_id = 0;
  int64_t dirty_bytes = 0;
  std::string socket;
};

// Those of `user`'s that answer within a second each.
std::vector<RunningMount> FindRunningMounts(unsigned user);

// The running mount on `directory` (canonical): the one that is not ending, if there are several. ENOENT: none answers.
Result<RunningMount> FindRunningMount(unsigned user, const std::string& directory);

// Sends `request` and gives the connection for the answers.
Result<ControlClient> AskMount(const RunningMount& mount, const std::string& request);

// Whether the kernel has it and nobody serves it any more. Asks the mount, within two seconds; one that does not answer is not dead.
bool IsDeadMount(const std::string& directory);

// The mount that `directory`, as a person gave it, is: the errors are for people, with errno ENOENT (no such directory),
// EINVAL (nothing of ours is mounted there), ENOTCONN (stale: its process is gone), EHOSTUNREACH (it has one, which does not answer from here), or as CanonicalDirectory.
struct NamedMount {
  std::string directory;  // canonical
  bool in_mount_table = false;
  RunningMount running;
};
Result<NamedMount> FindNamedMount(const std::string& directory);

}  // namespace e2bfs::fuse
