#include "tests/sandbox/envd_entry.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <map>

#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

constexpr std::string_view kMetadataPrefix = "user.e2b.";

const char* EntryTypeName(mode_t mode) {
  return S_ISREG(mode) ? "FILE_TYPE_FILE" : S_ISDIR(mode) ? "FILE_TYPE_DIRECTORY" : "";
}

// A protobuf Timestamp: 0, 3, 6 or 9 digits of a second.
std::string TimestampText(const timespec& time) {
  tm utc{};
  gmtime_r(&time.tv_sec, &utc);
  std::array<char, 64> text;
  size_t length = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::string stamp(text.data(), length);
  if (time.tv_nsec != 0) {
    const int written = std::snprintf(text.data(), text.size(), ".%09ld", time.tv_nsec);
    std::string fraction(text.data(), static_cast<size_t>(written));
    while (fraction.size() > 4 && fraction.compare(fraction.size() - 3, 3, "000") == 0) {
      fraction.resize(fraction.size() - 3);
    }
    stamp += fraction;
  }
  return stamp + "Z";
}

void AppendMetadata(JsonText& json, const std::string& path) {
  std::array<char, 65536> names;
  const ssize_t size = listxattr(path.c_str(), names.data(), names.size());
  if (size <= 0) {
    return;
  }
  std::map<std::string, std::string> metadata;
  for (ssize_t at = 0; at < size;) {
    const std::string_view name(names.data() + at);
    at += static_cast<ssize_t>(name.size()) + 1;
    if (name.substr(0, kMetadataPrefix.size()) != kMetadataPrefix) {
      continue;
    }
    std::array<char, 65536> value;
    const ssize_t length = getxattr(path.c_str(), std::string(name).c_str(), value.data(), value.size());
    const std::string_view key = name.substr(kMetadataPrefix.size());
    if (length < 0 || !IsUtf8(key) || !IsUtf8(std::string_view(value.data(), static_cast<size_t>(length)))) {
      continue;
    }
    metadata.emplace(key, std::string(value.data(), static_cast<size_t>(length)));
  }
  if (metadata.empty()) {
    return;
  }
  json.Key("metadata").BeginObject();
  for (const auto& [key, value] : metadata) {
    json.Field(key, value);
  }
  json.EndObject();
}

}  // namespace

const std::string& OwnerNames::User(uid_t uid) {
  const auto [entry, fresh] = users_.try_emplace(uid, std::to_string(uid));
  if (fresh) {
    std::vector<char> buffer(16384);
    passwd account{};
    passwd* found = nullptr;
    if (getpwuid_r(uid, &account, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
      entry->second = found->pw_name;
    }
  }
  return entry->second;
}

const std::string& OwnerNames::Group(gid_t gid) {
  const auto [entry, fresh] = groups_.try_emplace(gid, std::to_string(gid));
  if (fresh) {
    std::vector<char> buffer(16384);
    group data{};
    group* found = nullptr;
    if (getgrgid_r(gid, &data, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
      entry->second = found->gr_name;
    }
  }
  return entry->second;
}

std::string GoPermissions(mode_t mode) {
  std::string text;
  if (S_ISDIR(mode)) text += 'd';
  if (S_ISLNK(mode)) text += 'L';
  if (S_ISCHR(mode) || S_ISBLK(mode)) text += 'D';
  if (S_ISFIFO(mode)) text += 'p';
  if (S_ISSOCK(mode)) text += 'S';
  if ((mode & S_ISUID) != 0) text += 'u';
  if ((mode & S_ISGID) != 0) text += 'g';
  if (S_ISCHR(mode)) text += 'c';
  if ((mode & S_ISVTX) != 0) text += 't';
  if (text.empty()) text += '-';
  static constexpr std::string_view kLetters = "rwxrwxrwx";
  for (int bit = 8; bit >= 0; --bit) {
    text += (mode >> bit & 1) != 0 ? kLetters[static_cast<size_t>(8 - bit)] : '-';
  }
  return text;
}

std::string MetadataJson(const std::string& path) {
  JsonText json;
  json.BeginObject();
  AppendMetadata(json, path);
  const std::string text = json.EndObject().TakeText();
  static constexpr std::string_view kLead = "{\"metadata\":";
  return text == "{}" ? "" : text.substr(kLead.size(), text.size() - kLead.size() - 1);
}

RpcResult<void> AppendEntry(JsonText& json, const std::string& path, const std::string& shown,
                            const EnvdCapabilities& can, OwnerNames& names) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    const int error = errno;
    const bool missing = error == ENOENT;
    return RpcFailure(
        missing ? "not_found" : "internal",
        (missing ? "file not found: " : "error getting file info: ") + PathErrorText("lstat", path, error));
  }
  mode_t mode = info.st_mode;
  std::optional<std::string> target;
  if (S_ISLNK(info.st_mode)) {
    if (char* real = realpath(path.c_str(), nullptr)) {
      target = real;
      free(real);
    }
    struct stat target_info {};
    if (target && stat(target->c_str(), &target_info) == 0) {
      mode = target_info.st_mode;
    } else if (can.modern_entries) {
      mode = 0;
      if (!target) {
        target = path;
      }
    } else {
      mode = 0777;
    }
  }
  json.BeginObject().Field("name", BaseName(path));
  if (const char* type = EntryTypeName(mode); *type != '\0') {
    json.Field("type", type);
  }
  json.Field("path", shown);
  if (can.entry_attributes) {
    if (info.st_size != 0) {
      json.Field("size", std::to_string(info.st_size));
    }
    if ((mode & 0777) != 0) {
      json.Field("mode", static_cast<int64_t>(mode & 0777));
    }
    json.Field("permissions", GoPermissions(info.st_mode));
    json.Field("owner", names.User(info.st_uid)).Field("group", names.Group(info.st_gid));
    if (info.st_mtim.tv_sec != 0 || info.st_mtim.tv_nsec != 0) {
      json.Field("modifiedTime", TimestampText(info.st_mtim));
    }
    if (target) {
      json.Field("symlinkTarget", *target);
    }
    if (can.metadata) {
      AppendMetadata(json, path);
    }
  }
  json.EndObject();
  return {};
}

void AppendDirectoryName(JsonText& json, const std::string& path) {
  json.BeginObject()
      .Field("name", BaseName(path))
      .Field("type", "FILE_TYPE_DIRECTORY")
      .Field("path", path)
      .EndObject();
}

}  // namespace e2bfs::sandbox
