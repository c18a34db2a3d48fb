#include "fuse/mount_table.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <climits>
#include <cstdlib>

namespace e2bfs::fuse {
namespace {

// The kernel writes space, tab, newline and backslash as three octal digits.
std::string UnescapeMountField(std::string_view field) {
  std::string text;
  for (size_t i = 0; i < field.size(); ++i) {
    if (field[i] == '\\' && i + 3 < field.size()) {
      unsigned value = 0;
      auto [end, error] = std::from_chars(field.data() + i + 1, field.data() + i + 4, value, 8);
      if (error == std::errc() && end == field.data() + i + 4) {
        text += static_cast<char>(value);
        i += 3;
        continue;
      }
    }
    text += field[i];
  }
  return text;
}

std::vector<std::string_view> Words(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t space = line.find(' ');
    words.push_back(line.substr(0, space));
    if (space == std::string_view::npos) break;
    line.remove_prefix(space + 1);
  }
  return words;
}

unsigned UserIdOf(std::string_view options) {
  constexpr std::string_view kKey = "user_id=";
  for (size_t at = options.find(kKey); at != std::string_view::npos; at = options.find(kKey, at + 1)) {
    if (at != 0 && options[at - 1] != ',') continue;
    unsigned value = 0;
    std::from_chars(options.data() + at + kKey.size(), options.data() + options.size(), value);
    return value;
  }
  return 0;
}

Result<std::string> RealPath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return Errno(errno, path);
  std::string text = resolved;
  free(resolved);
  return text;
}

}  // namespace

std::vector<MountEntry> ParseMountInfo(std::string_view text) {
  // 36 35 98:0 /root /mount/point rw,noatime shared:1 - fuse.e2bfs source rw,user_id=0
  std::vector<MountEntry> table;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::vector<std::string_view> words = Words(text.substr(0, newline));
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    size_t dash = 6;
    while (dash < words.size() && words[dash] != "-") ++dash;
    if (dash + 3 >= words.size()) continue;
    MountEntry entry;
    entry.directory = UnescapeMountField(words[4]);
    entry.type = UnescapeMountField(words[dash + 1]);
    entry.source = UnescapeMountField(words[dash + 2]);
    entry.user_id = UserIdOf(words[dash + 3]);
    table.push_back(std::move(entry));
  }
  return table;
}

Result<std::vector<MountEntry>> ReadMountTable() {
  const int file = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
  if (file < 0) return Errno(errno, "/proc/self/mountinfo");
  std::string text;
  char buffer[16384];
  ssize_t count = 0;
  while ((count = read(file, buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(count));
  const int reason = errno;
  close(file);
  if (count < 0) return Errno(reason, "/proc/self/mountinfo");
  return ParseMountInfo(text);
}

std::optional<MountEntry> FindMount(const std::vector<MountEntry>& table, std::string_view directory) {
  for (auto entry = table.rbegin(); entry != table.rend(); ++entry) {
    if (entry->directory == directory) return *entry;
  }
  return std::nullopt;
}

Result<std::string> CanonicalDirectory(const std::string& directory, const std::vector<MountEntry>& table) {
  if (directory.empty()) return Errno(ENOENT, "''");
  std::string path = directory;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  // The parent first: resolving the last component of a mount asks the mounted file system, which may be stuck or dead.
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (!name.empty() && name != "." && name != "..") {
    auto parent = RealPath(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
    if (parent) {
      const std::string whole = (*parent == "/" ? "" : *parent) + "/" + name;
      if (FindMount(table, whole)) return whole;
    }
  }
  return RealPath(path);
}

bool MayBeMounted(std::string_view directory) {
  const auto table = ReadMountTable();
  if (!table) return true;
  const auto entry = FindMount(*table, directory);
  return entry && entry->is_e2bfs();
}

}  // namespace e2bfs::fuse
