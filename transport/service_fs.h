// ServiceFs: RemoteFs over the services that every envd has: any version, any image. The service tier.
//
// Asked of envd's Filesystem and files services: attributes, listings, content. Those act as root, so who may read is decided here from the
// permission bits. Everything that changes something is one command that runs as the mount's user (service_scripts.h) and
// prints the attributes afterwards. It is exact as the system call is: the tools that it uses are thin shells around one call.
//
// Content goes first into a file in a staging directory of ours (mode 0700, in the user's home, hidden from listings), whose size is
// verified, and then, by one command, into the existing inode. The order there keeps the old content when space runs out: what lies beyond the old end is written
// first, holes are allocated, and only then old bytes are overwritten. A lost connection does not stop that command; each change leaves its answer in the
// staging directory, so that a repeat finds it and does nothing twice. Not covered: the sandbox itself dying in the middle of that copy; the caller still has the new content then.
//
// Identity is the path, plus an epoch (service_names.h): what is renamed or replaced inside the sandbox is not noticed as such.
// Handles are paths: content of a file that was unlinked cannot be read any more (ENOENT, ESTALE).
// Attributes are uniform, whatever they came from: link_count is 1, ctime and atime are mtime, inode and device are 0.
#pragma once

#include <memory>
#include <string>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

namespace envd {
class Client;
}

struct ServiceFsOptions {
  std::string root;        // absolute, or relative to the user's home; empty: the home
  bool read_only = false;  // no staging directory is made; every change is EROFS
  // For tests: do without what only some images have.
  bool use_perl = true;
  bool use_find = true;
  bool use_dd_bytes = true;
};

class ServiceFs {
 public:
  // The user is the client's. Two requests. ENOENT, ENOTDIR, EACCES for the root; EIO/kProtocol if the sandbox's answers make no sense.
  // The destructor of what is returned removes the staging directory, within five seconds.
  static Result<std::unique_ptr<RemoteFs>> Create(std::shared_ptr<envd::Client> client, ServiceFsOptions options, const OpContext& ctx);
};

}  // namespace e2bfs::transport
