// Whose files they are, as shown here. The mount acts as one user of the sandbox, whose numbers mean nothing on this
// machine; so everything is shown as owned by the user who mounted, unless told otherwise.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "transport/base/error.h"

namespace e2bfs::fuse {

struct IdentityOptions {
  std::optional<uid_t> uid;  // shown owner; default: the real user of this process (under sudo: root)
  std::optional<gid_t> gid;
  uint32_t umask = 0;        // bits taken away from the shown permissions (0777)
};

// Immutable; any thread.
class Identity {
 public:
  explicit Identity(const IdentityOptions& options);

  uid_t uid() const { return uid_; }
  gid_t gid() const { return gid_; }
  // `permissions` (07777) as shown.
  uint32_t Shown(uint32_t permissions) const { return permissions & ~umask_; }

  // chown(2): success for the owner and group already shown (there is nothing to do), EPERM for any other.
  Result<void> CheckOwnerChange(std::optional<uid_t> uid, std::optional<gid_t> gid) const;

 private:
  const uid_t uid_;
  const gid_t gid_;
  const uint32_t umask_;
};

}  // namespace e2bfs::fuse
