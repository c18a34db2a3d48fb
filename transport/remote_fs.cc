#include "transport/remote_fs.h"

#include <algorithm>

namespace e2bfs::transport {

uint32_t AccessByMode(const Attributes& attributes, uint32_t uid, uint32_t gid, const std::vector<uint32_t>& groups) {
  const uint32_t bits = attributes.permissions;
  if (uid == 0) return attributes.type == FileType::kDirectory || (bits & 0111) != 0 ? 7 : 6;
  if (attributes.uid == uid) return (bits >> 6) & 7;
  const bool in_group = attributes.gid == gid || std::find(groups.begin(), groups.end(), attributes.gid) != groups.end();
  return in_group ? (bits >> 3) & 7 : bits & 7;
}

bool SameTime(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

bool IsSameVersion(const Attributes& attributes, const Attributes& other) {
  return attributes.id == other.id && attributes.type == other.type && attributes.size == other.size && SameTime(attributes.mtime, other.mtime) &&
         SameTime(attributes.ctime, other.ctime);
}

AskedPaths::AskedPaths(const DeepQuestion& question) : directories_(question.directories.begin(), question.directories.end()), depth_(question.depth) {}

bool AskedPaths::contains(std::string_view path) const {
  for (uint32_t level = 0;; ++level) {
    if (directories_.contains(path)) return true;
    if (level == depth_ || path.empty()) return false;
    const size_t slash = path.rfind('/');
    path = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
  }
}

Result<void> CheckRow(const std::vector<NewObject>& objects) {
  if (objects.size() > kMostNewObjects) return Failure(ErrorKind::kBadRequest, EINVAL, "too many new objects at once");
  int64_t bytes = 0;
  for (size_t i = 0; i < objects.size(); ++i) {
    const NewObject& object = objects[i];
    const bool known = object.type == FileType::kRegular || object.type == FileType::kDirectory || object.type == FileType::kSymlink;
    const bool placed = !object.made_in || (*object.made_in < i && objects[*object.made_in].type == FileType::kDirectory);
    const bool fits = object.size >= 0 && object.size <= kMostNewBytes - bytes;
    if (!known || !placed || !fits) return Failure(ErrorKind::kBadRequest, EINVAL, "a new object that cannot be: " + object.name);
    bytes += object.size;
  }
  return {};
}

Result<std::string> ContentOf(const NewObject& object) {
  std::string bytes(static_cast<size_t>(object.size), '\0');
  if (bytes.empty()) return bytes;
  if (!object.source) return Failure(ErrorKind::kBadRequest, EINVAL, "a file without a source");
  if (auto read = object.source->ReadAt(0, bytes.data(), bytes.size()); !read) {
    return Failure(ErrorKind::kLocal, read.error().errno_value, "what is to be stored cannot be read: " + read.error().message);
  }
  return bytes;
}

}  // namespace e2bfs::transport
