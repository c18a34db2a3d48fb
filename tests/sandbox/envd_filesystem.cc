#include "tests/sandbox/envd_filesystem.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "tests/sandbox/envd_entry.h"
#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

struct DirectoryCloser {
  void operator()(DIR* directory) const { closedir(directory); }
};
using DirectoryStream = std::unique_ptr<DIR, DirectoryCloser>;

// os.RemoveAll: 0 or an errno. A missing name is a success.
int RemoveTree(int parent, const char* name) {
  if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) {
    return 0;
  }
  if (errno != EISDIR && errno != EPERM && errno != EACCES) {
    return errno;
  }
  const int unlink_error = errno;
  const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) {
    return errno == ENOENT ? 0 : errno == ENOTDIR ? unlink_error : errno;
  }
  int failure = 0;
  {
    DirectoryStream stream(fdopendir(fd));
    if (!stream) {
      close(fd);
      return errno;
    }
    bool removed_some = true;
    while (removed_some && failure == 0) {  // names can be skipped when a directory changes under its reader
      removed_some = false;
      rewinddir(stream.get());
      while (const dirent* entry = readdir(stream.get())) {
        const std::string_view child = entry->d_name;
        if (child == "." || child == "..") {
          continue;
        }
        if (const int error = RemoveTree(fd, entry->d_name); error != 0) {
          failure = error;
        } else {
          removed_some = true;
        }
      }
    }
  }
  if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
    return 0;
  }
  return failure != 0 ? failure : errno;
}

// One directory of a listing, in the order of filepath.WalkDir: sorted, depth first, links not followed.
// Directories at the last level are read too, though nothing of them is shown: one that vanishes fails the
// whole call.
class DirectoryWalk {
 public:
  DirectoryWalk(JsonText& json, const std::string& requested, const EnvdCapabilities& can, uint32_t depth)
      : json_(json), requested_(requested), can_(can), depth_(depth) {}

  RpcResult<void> Walk(const std::string& directory, const std::string& relative, uint32_t level) {
    struct Child {
      std::string name;
      unsigned char type;
    };
    std::vector<Child> children;
    {
      DirectoryStream stream(opendir(directory.c_str()));
      if (!stream) {
        return RpcFailure("internal", "error reading directory: " + PathErrorText("open", directory, errno));
      }
      errno = 0;
      while (const dirent* entry = readdir(stream.get())) {
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") {
          children.push_back({entry->d_name, entry->d_type});
        }
      }
      if (errno != 0) {
        return RpcFailure("internal",
                          "error reading directory: " + PathErrorText("readdirent", directory, errno));
      }
    }
    if (level > depth_) {
      return {};
    }
    std::sort(children.begin(), children.end(),
              [](const Child& a, const Child& b) { return a.name < b.name; });
    for (Child& child : children) {
      const std::string path = directory == "/" ? "/" + child.name : directory + "/" + child.name;
      const std::string below = relative.empty() ? child.name : relative + "/" + child.name;
      const auto entry = AppendEntry(json_, path, JoinPath(requested_, below), can_, names_);
      if (!entry) {
        if (entry.error().code == "not_found") {
          continue;
        }
        return RpcFailure("internal", "error reading directory " + directory + ": " + entry.error().message);
      }
      any_ = true;
      if (child.type == DT_UNKNOWN) {
        struct stat info {};
        child.type = lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) ? DT_DIR : DT_REG;
      }
      if (child.type == DT_DIR) {
        if (auto walked = Walk(path, below, level + 1); !walked) {
          return walked;
        }
      }
    }
    return {};
  }
  bool any() const { return any_; }

 private:
  JsonText& json_;
  const std::string& requested_;
  const EnvdCapabilities& can_;
  const uint32_t depth_;
  OwnerNames names_;
  bool any_ = false;
};

}  // namespace

bool FilesystemService::Handle(Exchange& exchange, const std::string& method) {
  using Method = RpcResult<std::string> (FilesystemService::*)(const JsonMessage&, const Account&);
  static constexpr std::pair<std::string_view, Method> kMethods[] = {
      {"Stat", &FilesystemService::Stat},       {"ListDir", &FilesystemService::ListDir},
      {"MakeDir", &FilesystemService::MakeDir}, {"Move", &FilesystemService::Move},
      {"Remove", &FilesystemService::Remove},
  };
  for (const auto& [name, function] : kMethods) {
    if (name != method) {
      continue;
    }
    ServeUnary(exchange, context_.log(), "/filesystem.Filesystem/" + method,
               [&, function = function](const JsonMessage& request) -> RpcResult<std::string> {
                 const auto account = context_.RpcAccount(exchange);
                 if (!account) {
                   return tl::make_unexpected(account.error());
                 }
                 return (this->*function)(request, *account);
               });
    return true;
  }
  return false;
}

RpcResult<std::string> FilesystemService::EntryMessage(const std::string& path) {
  JsonText json;
  OwnerNames names;
  json.BeginObject().Key("entry");
  if (auto entry = AppendEntry(json, path, path, context_.can(), names); !entry) {
    return tl::make_unexpected(entry.error());
  }
  json.EndObject();
  return EncodedMessage(std::move(json));
}

RpcResult<std::string> FilesystemService::Stat(const JsonMessage& request, const Account& account) {
  auto path = context_.FencedPath(request.String("path"), account, false);
  return path ? EntryMessage(*path) : std::move(path);
}

RpcResult<std::string> FilesystemService::ListDir(const JsonMessage& request, const Account& account) {
  const uint32_t depth = std::max(request.Uint32("depth"), uint32_t{1});
  auto path = context_.FencedPath(request.String("path"), account, true);
  if (!path) {
    return path;
  }
  char* real = realpath(path->c_str(), nullptr);
  if (real == nullptr) {
    const int error = errno;
    if (error == ENOENT) {
      return RpcFailure("not_found", "path not found: " + PathErrorText("lstat", *path, error));
    }
    if (error == ELOOP) {
      return RpcFailure("failed_precondition", "cyclic symlink or chain >255 links at \"" + *path + "\"");
    }
    return RpcFailure("internal", "error resolving symlink: " + PathErrorText("lstat", *path, error));
  }
  const std::string resolved(real);
  free(real);
  struct stat info {};
  if (stat(resolved.c_str(), &info) != 0) {
    const int error = errno;
    return RpcFailure(error == ENOENT ? "not_found" : "internal",
                      "directory not found: " + PathErrorText("stat", resolved, error));
  }
  if (!S_ISDIR(info.st_mode)) {
    return RpcFailure("invalid_argument", "path is not a directory: " + resolved);
  }
  JsonText json;
  json.BeginObject().Key("entries").BeginArray();
  DirectoryWalk walk(json, *path, context_.can(), depth);
  if (auto walked = walk.Walk(resolved, "", 1); !walked) {
    return tl::make_unexpected(walked.error());
  }
  if (!walk.any()) {
    return std::string("{}");
  }
  json.EndArray().EndObject();
  return EncodedMessage(std::move(json));
}

RpcResult<std::string> FilesystemService::MakeDir(const JsonMessage& request, const Account& account) {
  auto path = context_.FencedPath(request.String("path"), account, true);
  if (!path) {
    return path;
  }
  struct stat info {};
  if (stat(path->c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) {
      return RpcFailure("already_exists", "directory already exists: " + *path);
    }
    return RpcFailure("invalid_argument", "path already exists but it is not a directory: " + *path);
  }
  if (errno != ENOENT) {
    return RpcFailure("internal", "error getting file info: " + PathErrorText("stat", *path, errno));
  }
  if (auto made = context_.EnsureDirectories(*path, account); !made) {
    return tl::make_unexpected(made.error());
  }
  if (context_.can().modern_entries) {
    return EntryMessage(*path);
  }
  JsonText json;
  json.BeginObject().Key("entry");
  AppendDirectoryName(json, *path);
  json.EndObject();
  return EncodedMessage(std::move(json));
}

RpcResult<std::string> FilesystemService::Move(const JsonMessage& request, const Account& account) {
  auto source = context_.FencedPath(request.String("source"), account, false);
  if (!source) {
    return source;
  }
  auto destination = context_.FencedPath(request.String("destination"), account, false);
  if (!destination) {
    return destination;
  }
  if (auto made = context_.EnsureDirectories(ParentPath(*destination), account); !made) {
    return tl::make_unexpected(made.error());
  }
  // os.Rename refuses a directory at the destination before rename(2) could allow it.
  const std::string context = "rename " + *source + " " + *destination + ": ";
  struct stat there {};
  int error = 0;
  if (lstat(destination->c_str(), &there) == 0 && S_ISDIR(there.st_mode)) {
    struct stat from {};
    if (lstat(source->c_str(), &from) != 0) {
      error = errno;
    } else if (*source == *destination || from.st_dev != there.st_dev || from.st_ino != there.st_ino) {
      error = EEXIST;
    }
  }
  if (error == 0 && rename(source->c_str(), destination->c_str()) != 0) {
    error = errno;
  }
  if (error != 0) {
    const bool missing = error == ENOENT;
    return RpcFailure(
        missing ? "not_found" : "internal",
        (missing ? "source file not found: " : "error renaming: ") + context + ErrnoText(error));
  }
  return EntryMessage(*destination);
}

RpcResult<std::string> FilesystemService::Remove(const JsonMessage& request, const Account& account) {
  auto path = context_.FencedPath(request.String("path"), account, false);
  if (!path) {
    return path;
  }
  int error = 0;
  if (*path == "." || (path->size() > 1 && path->compare(path->size() - 2, 2, "/.") == 0)) {
    error = EINVAL;
  } else {
    std::string name = *path;
    while (name.size() > 1 && name.back() == '/') {
      name.pop_back();
    }
    error = RemoveTree(AT_FDCWD, name.c_str());
  }
  if (error != 0) {
    return RpcFailure("internal",
                      "error removing file or directory: " + PathErrorText("unlinkat", *path, error));
  }
  return std::string("{}");
}

}  // namespace e2bfs::sandbox
