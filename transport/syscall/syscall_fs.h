// SyscallFs: RemoteFs by real system calls in the sandbox, made by the syscall server as the mount's user: results are exact. The syscall
// tier, and the default wherever it starts.
//
// Names, attributes, small content: one request to the server, one round trip. Large content: the files API, on the path /proc/<pid>/fd/<n>
// of a file that the server has open, so that it is the very file, whatever its names are by then. Large changes are uploaded into a
// nameless file, checked, and copied into the target inside the sandbox; POST never goes to a file that has content.
//
// Identity is device, inode number and birth time. An object is found by its path and checked by its identity (ESTALE: another one is
// there); a directory that the server has open is found by identity alone. Handles are descriptors of the server; when it is lost, a new one
// takes them over from /proc of the old, or reopens them by path and identity (ESTALE where that is impossible).
#pragma once

#include <memory>
#include <string>

#include "transport/remote_fs.h"
#include "transport/syscall/channel.h"

namespace e2bfs::transport {

struct SyscallFsOptions {
  syscall::ChannelOptions channel;
  bool read_only = false;  // every change is EROFS
};

class SyscallFs {
 public:
  // The user is the client's. ENOENT, ENOTDIR, EACCES (kErrno) for the root; ENOTSUP where envd is too old (before 0.5.27 it logs what goes
  // over the channel); ENOEXEC where the server does not run.
  static Result<std::unique_ptr<RemoteFs>> Create(std::shared_ptr<envd::Client> client, SyscallFsOptions options, const OpContext& ctx);
};

}  // namespace e2bfs::transport
