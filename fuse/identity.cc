#include "fuse/identity.h"

#include <unistd.h>

namespace e2bfs::fuse {

Identity::Identity(const IdentityOptions& options)
    : uid_(options.uid.value_or(getuid())), gid_(options.gid.value_or(getgid())), umask_(options.umask & 0777) {}

Result<void> Identity::CheckOwnerChange(std::optional<uid_t> uid, std::optional<gid_t> gid) const {
  const bool same = (!uid || *uid == uid_) && (!gid || *gid == gid_);
  if (!same) return Errno(EPERM, "chown to another owner than the one shown");
  return {};
}

}  // namespace e2bfs::fuse
