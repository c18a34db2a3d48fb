// EntryInfo: how envd describes a file.
#pragma once

#include <string>
#include <unordered_map>

#include "tests/sandbox/envd.h"

namespace e2bfs::sandbox {

// Names of users and groups, looked up once each. One request's.
class OwnerNames {
 public:
  const std::string& User(uid_t uid);
  const std::string& Group(gid_t gid);

 private:
  std::unordered_map<uid_t, std::string> users_;
  std::unordered_map<gid_t, std::string> groups_;
};

// Appends the EntryInfo of what is at `path` (a link is described itself, with its target's type and mode),
// shown with the path `shown`. Errors: not_found, internal.
RpcResult<void> AppendEntry(JsonText& json, const std::string& path, const std::string& shown,
                            const EnvdCapabilities& can, OwnerNames& names);
// The short form that old versions' MakeDir answers: name, type and path of a directory.
void AppendDirectoryName(JsonText& json, const std::string& path);
// User metadata (xattrs user.e2b.*) as a JSON object; "" if there is none.
std::string MetadataJson(const std::string& path);
// Go's FileMode.String of a mode as stat(2) gives it.
std::string GoPermissions(mode_t mode);

}  // namespace e2bfs::sandbox
