// Whose files they are, as shown here. The mount acts as one user of the sandbox, whose numbers mean nothing on this
// machine; so everything is shown as owned by the user who mounted, unless told otherwise. With -o ids=real the sandbox's own
// numbers are shown instead: owner, group and inode, and the kernel decides by them who may do what.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::fuse {

struct IdentityOptions {
  std::optional<uid_t> uid;  // shown owner; default: the real user of this process (under sudo: root)
  std::optional<gid_t> gid;
  uint32_t umask = 0;        // bits taken away from the shown permissions (0777)
  bool real = false;         // the sandbox's numbers; the others do not count then
};

// Immutable; any thread.
class Identity {
 public:
  explicit Identity(const IdentityOptions& options);

  bool real() const { return real_; }
  uid_t uid() const { return uid_; }  // of everything, where ids are not real
  gid_t gid() const { return gid_; }
  uid_t uid(const transport::Attributes& of) const { return real_ ? of.uid : uid_; }
  gid_t gid(const transport::Attributes& of) const { return real_ ? of.gid : gid_; }
  // `node`: the made-up number of the object, `root_device` the device of the mounted directory. The sandbox's own numbers are
  // unique on one device only, so elsewhere made-up ones are shown, from a range of their own. 0: `node` is 0, and it is not known.
  ino_t Inode(const transport::Attributes& of, uint64_t node, uint64_t root_device) const;
  // `permissions` (07777) as shown.
  uint32_t Shown(uint32_t permissions) const { return real_ ? permissions : permissions & ~umask_; }

  // chown(2) where ids are not real: success for the owner and group already shown (there is nothing to do), EPERM for any other.
  Result<void> CheckOwnerChange(std::optional<uid_t> uid, std::optional<gid_t> gid) const;

 private:
  const uid_t uid_;
  const gid_t gid_;
  const uint32_t umask_;
  const bool real_;
};

}  // namespace e2bfs::fuse
