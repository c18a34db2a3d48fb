#include "fuse/identity.h"

#include <unistd.h>

namespace e2bfs::fuse {

Identity::Identity(const IdentityOptions& options)
    : uid_(options.uid.value_or(getuid())), gid_(options.gid.value_or(getgid())), umask_(options.umask & 0777), real_(options.real) {}

ino_t Identity::Inode(const transport::Attributes& of, uint64_t node, uint64_t root_device) const {
  constexpr ino_t kMadeUp = ino_t{1} << 62;
  if (of.inode != 0 && of.device == root_device) return of.inode;
  return of.inode != 0 && node != 0 ? kMadeUp | node : node;
}

Result<void> Identity::CheckOwnerChange(std::optional<uid_t> uid, std::optional<gid_t> gid) const {
  const bool same = (!uid || *uid == uid_) && (!gid || *gid == gid_);
  if (!same) return Errno(EPERM, "chown to another owner than the one shown");
  return {};
}

}  // namespace e2bfs::fuse
