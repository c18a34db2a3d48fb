// Words of the service tier about names: the identities of paths, and text that commands can carry.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "transport/remote_fs.h"

namespace e2bfs::transport {

// envd tells no inode number, so an object's identity is its path plus an epoch that grows when this client removes or replaces what
// had the path. A rename through this client takes the identity along, for the object and everything below it. What happens inside the
// sandbox is not noticed here. Each name of a hard link has its own identity. Thread-safe.
//
// Kept as exceptions: a path without one has its ancestor's identity plus the rest of the path. Their number is bounded by the
// objects that still exist, plus names that were there before this client removed them.
class PathIdentities {
 public:
  FileId IdOf(const std::string& path) const;
  bool Leads(const Node& node) const { return !node.id.known() || IdOf(node.path) == node.id; }
  // A new object is there.
  void Created(const std::string& path);
  // Unlinked, or removed as a directory.
  void Removed(const std::string& path);
  // replaced: something else was there before.
  void Renamed(const std::string& from, const std::string& to, bool replaced);
  size_t exceptions() const;

 private:
  struct Exception {
    std::string identity;
    // Nobody ever saw the identity that the path had without this exception: it can be forgotten with the object.
    bool forgettable = false;
  };
  std::string Identity(const std::string& path) const;
  std::string NewIdentity();
  void ForgetBelow(const std::string& path);

  mutable std::mutex mutex_;  // innermost
  std::map<std::string, Exception> exceptions_;
  uint64_t last_epoch_ = 0;
};

// Joined with '/', where one of them may be empty.
std::string JoinPath(const std::string& directory, const std::string& name);
// The directory of a path, "" for a name in the mounted directory.
std::string ParentPath(const std::string& path);
// 0, or the errno of a name or path as this interface takes it: EINVAL, ENAMETOOLONG.
int CheckName(std::string_view name);
int CheckPath(std::string_view path);
// The same of a link's text, as symlink(2) says.
int CheckLinkText(std::string_view text);

// What a JSON string and a command's argument can hold.
bool IsUtf8Text(std::string_view bytes);

// A command's argument that holds any bytes: "=text" as it is, or "%" and octal escapes where a JSON string could not carry it. The
// scripts' function d takes it apart.
std::string EncodeArgument(std::string_view bytes);

}  // namespace e2bfs::transport
