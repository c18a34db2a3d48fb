// The kernel's table of mounts, as far as e2bfs is concerned. Reading it never touches a mounted file system, so it
// does not hang on one that is stuck.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/error.h"

namespace e2bfs::fuse {

struct MountEntry {
  std::string directory;  // absolute, as the kernel shows it
  std::string source;     // for e2bfs: "e2bfs:<sandbox>:<path>"
  std::string type;       // "fuse.e2bfs"
  unsigned user_id = 0;   // who mounted it (a FUSE mount's user_id=)
  bool is_e2bfs() const { return type == "fuse.e2bfs"; }
};

// The text of /proc/self/mountinfo, in its order: later entries cover earlier ones of the same directory.
std::vector<MountEntry> ParseMountInfo(std::string_view text);

// The mounts that this process sees. The errno of reading /proc/self/mountinfo.
Result<std::vector<MountEntry>> ReadMountTable();

// The topmost mount on exactly this directory.
std::optional<MountEntry> FindMount(const std::vector<MountEntry>& table, std::string_view directory);

// By an e2bfs, in this process's mount namespace. True also where that cannot be found out.
bool MayBeMounted(std::string_view directory);

// `directory` as the kernel would show it: absolute, links resolved. A mount point itself is not touched. ENOENT, ENOTDIR...
Result<std::string> CanonicalDirectory(const std::string& directory, const std::vector<MountEntry>& table);

}  // namespace e2bfs::fuse
