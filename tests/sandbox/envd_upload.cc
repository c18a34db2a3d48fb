#include "tests/sandbox/envd_upload.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <vector>

#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

constexpr std::string_view kUploadMetadataPrefix = "user.e2b.";
constexpr size_t kUploadPiece = size_t{256} << 10;

class UploadFile {
 public:
  explicit UploadFile(int fd) : fd_(fd) {}
  ~UploadFile() {
    if (fd_ >= 0) {
      close(fd_);
    }
  }
  UploadFile(const UploadFile&) = delete;
  UploadFile& operator=(const UploadFile&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

// 0 or an errno.
int ReplaceMetadata(int fd, const std::map<std::string, std::string>& metadata) {
  std::vector<char> names(65536);
  const ssize_t size = flistxattr(fd, names.data(), names.size());
  if (size < 0) {
    return errno;
  }
  for (ssize_t at = 0; at < size;) {
    const std::string name(names.data() + at);
    at += static_cast<ssize_t>(name.size()) + 1;
    if (name.compare(0, kUploadMetadataPrefix.size(), kUploadMetadataPrefix) == 0 &&
        metadata.count(name.substr(kUploadMetadataPrefix.size())) == 0 &&
        fremovexattr(fd, name.c_str()) != 0 && errno != ENODATA) {
      return errno;
    }
  }
  for (const auto& [key, value] : metadata) {
    if (fsetxattr(fd, (std::string(kUploadMetadataPrefix) + key).c_str(), value.data(), value.size(), 0) !=
        0) {
      return errno;
    }
  }
  return 0;
}

}  // namespace

std::string CheckMetadata(const std::map<std::string, std::string>& metadata) {
  size_t total = 0;
  for (const auto& [key, value] : metadata) {
    if (key.size() > 255 - kUploadMetadataPrefix.size()) {
      return "metadata key \"" + key + "\" exceeds 246 bytes";
    }
    for (const std::string* text : {&key, &value}) {
      for (const char c : *text) {
        if (c < 0x20 || c > 0x7E) {
          return "metadata contains a non-printable-ASCII byte";
        }
      }
    }
    total += kUploadMetadataPrefix.size() + key.size() + value.size();
  }
  return total > 4096 ? "total metadata size " + std::to_string(total) + " exceeds 4096 bytes" : "";
}

std::optional<UploadFailure> WriteUpload(EnvdContext& context, const Account& account,
                                         const std::string& path, const UploadSource& source,
                                         const std::map<std::string, std::string>& metadata,
                                         const std::string& broken_text) {
  if (auto made = context.EnsureDirectories(ParentPath(path), account); !made) {
    return UploadFailure{500, "error ensuring directories: " + made.error().message};
  }
  struct stat info {};
  bool exists = stat(path.c_str(), &info) == 0;
  if (!exists && errno != ENOENT) {
    return UploadFailure{500, "error getting file info: " + PathErrorText("stat", path, errno)};
  }
  if (exists && S_ISDIR(info.st_mode)) {
    return UploadFailure{400, "path is a directory: " + path};
  }
  if (exists) {
    const int error = context.ChownPath(path, account);
    if (error == ENOENT) {
      exists = false;
    } else if (error != 0) {
      return UploadFailure{500, "error changing file ownership: " + PathErrorText("chown", path, error)};
    }
  }
  // A fifo without a reader blocks an envd for ever; here only until the double is to end.
  const bool is_fifo = exists && S_ISFIFO(info.st_mode);
  int fd = open(path.c_str(),
                O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | (is_fifo ? O_NONBLOCK : 0), 0666);
  while (fd < 0 && is_fifo && errno == ENXIO && !context.stopping) {
    usleep(50000);
    fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK);
  }
  if (fd >= 0 && is_fifo) {
    fcntl(fd, F_SETFL, 0);
  }
  const UploadFile file(fd);
  if (file.fd() < 0) {
    const int error = errno;
    return UploadFailure{error == ENOSPC ? 507 : 500,
                         (error == ENOSPC ? "not enough inodes available: " : "error opening file: ") +
                             PathErrorText("open", path, error)};
  }
  if (!exists) {
    (void)fchmod(file.fd(), 0644);  // whatever the umask here: envd's is 022
    if (fchown(file.fd(), account.uid, account.gid) != 0) {
      return UploadFailure{500, "error changing file ownership: " + PathErrorText("chown", path, errno)};
    }
  }
  std::vector<char> buffer(kUploadPiece);
  while (true) {
    const auto got = source(buffer.data(), buffer.size());
    if (!got) {
      return UploadFailure{500, "error writing file: " + broken_text};
    }
    if (*got == 0) {
      break;
    }
    for (size_t done = 0; done < *got;) {
      const ssize_t written = write(file.fd(), buffer.data() + done, *got - done);
      if (written < 0 && errno == EINTR) {
        continue;
      }
      if (written < 0) {
        const int error = errno;
        return error == ENOSPC
                   ? UploadFailure{507, "not enough disk space available"}
                   : UploadFailure{500, "error writing file: " + PathErrorText("write", path, error)};
      }
      done += static_cast<size_t>(written);
    }
  }
  if (context.can().metadata) {
    const int error = ReplaceMetadata(file.fd(), metadata);
    if (error == ENOSPC || error == EDQUOT) {
      return UploadFailure{507, "not enough space for file metadata: " + ErrnoText(error)};
    }
    if (error != 0 && error != ENOTSUP) {
      return UploadFailure{500, "error writing file metadata: " + ErrnoText(error)};
    }
  }
  return std::nullopt;
}

}  // namespace e2bfs::sandbox
