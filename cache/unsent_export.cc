#include "cache/unsent_export.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/cached_fs.h"
#include "cache/descriptor.h"

namespace e2bfs::cache {
namespace {

constexpr size_t kCopyBytes = 1 << 20;
constexpr int kMostNames = 1000;  // that are tried
constexpr size_t kLongestKeptName = 200;

tl::unexpected<Error> ExportError(int errno_value, const std::string& what) { return Failure(ErrorKind::kLocal, errno_value, what + ": " + ErrnoName(errno_value)); }

// The parts of `path`, each one a name and nothing else.
Result<std::vector<std::string>> PartsOf(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    const size_t end = std::min(path.find('/'), path.size());
    if (end > 0) {
      if (!IsName(path.substr(0, end))) return ExportError(EINVAL, PrintableName(path.substr(0, end)) + " is no name of a file");
      parts.emplace_back(path.substr(0, end));
    }
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return parts;
}

// A range, at the same place.
Result<void> CopyPart(int from, int to, const transport::Extent& range) {
  std::vector<char> piece(kCopyBytes);
  for (int64_t at = range.offset; at < range.end();) {
    const ssize_t got = ::pread(from, piece.data(), static_cast<size_t>(std::min<int64_t>(range.end() - at, static_cast<int64_t>(piece.size()))), at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return ExportError(got < 0 ? errno : EIO, "reading the content");
    for (ssize_t done = 0; done < got;) {
      const ssize_t put = ::pwrite(to, piece.data() + done, static_cast<size_t>(got - done), at + done);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return ExportError(put < 0 ? errno : EIO, "writing");
      done += put;
    }
    at += got;
  }
  return {};
}

// All that is in the file, holes left out.
Result<void> CopyAllData(int from, int to) {
  for (off_t at = 0;;) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    const off_t hole = data < 0 ? -1 : ::lseek(from, data, SEEK_HOLE);
    if (hole < 0) return ExportError(errno, "reading the content");
    if (auto copied = CopyPart(from, to, {data, hole - data}); !copied) return copied;
    at = hole;
  }
  struct stat status {};
  if (::fstat(from, &status) != 0 || ::ftruncate(to, status.st_size) != 0) return ExportError(errno, "writing");
  return {};
}

Result<void> CopyContent(const UnsentEntry& entry, int from, int to) {
  if (!entry.record || !entry.problem.empty()) return CopyAllData(from, to);
  const Change& change = entry.record->change;
  for (const transport::Extent& extent : change.extents.extents()) {
    if (auto copied = CopyPart(from, to, extent); !copied) return copied;
  }
  if (change.append) {
    if (auto copied = CopyPart(from, to, *change.append); !copied) return copied;
  }
  if (::ftruncate(to, change.SizeAfter(entry.record->base.size)) != 0) return ExportError(errno, "writing");
  return {};
}

}  // namespace

Result<std::unique_ptr<UnsentExport>> UnsentExport::Open(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return ExportError(errno, directory);
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ExportError(errno, directory);
  return std::unique_ptr<UnsentExport>(new UnsentExport(directory, fd));
}

UnsentExport::~UnsentExport() { ::close(fd_); }

Result<std::string> UnsentExport::Place(const UnsentEntry& entry, int at, const std::string& wanted) {
  const UnsentMaking* make = entry.record && entry.record->make ? &*entry.record->make : nullptr;
  const transport::FileType type = make != nullptr ? make->type : transport::FileType::kRegular;
  std::string name = wanted;
  Descriptor to;
  for (int n = 1;; ++n) {
    int done = -1;
    if (type == transport::FileType::kDirectory) {
      struct stat status {};
      done = ::mkdirat(at, name.c_str(), 0700);
      if (done != 0 && errno == EEXIST && ::fstatat(at, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
        if (S_ISDIR(status.st_mode)) return name;
        errno = EEXIST;
      }
    } else if (type == transport::FileType::kSymlink) {
      done = ::symlinkat(make->target.c_str(), at, name.c_str());
    } else {
      done = ::openat(at, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
      to = Descriptor(done);
    }
    if (done >= 0) break;
    if (errno != EEXIST || n > kMostNames) return ExportError(errno, PrintableName(name));
    name = wanted.substr(0, kLongestKeptName) + ".e2bfs-" + entry.id + (n > 1 ? "-" + std::to_string(n) : "");
  }
  if (!to.is_open()) return name;
  Result<void> copied;
  if (entry.content_is_there) {
    const Descriptor from(::open(entry.content.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    copied = from.is_open() ? CopyContent(entry, from.get(), to.get()) : Result<void>(ExportError(errno, entry.content));
  }
  if (copied && ::fsync(to.get()) != 0) copied = ExportError(errno, "writing");
  if (copied) return name;
  ::unlinkat(at, name.c_str(), 0);
  return Failure(ErrorKind::kLocal, copied.error().errno_value, PrintableName(name) + ": " + copied.error().message);
}

Result<std::string> UnsentExport::Add(const UnsentEntry& entry) {
  std::string wanted = "unknown/" + entry.id;
  if (entry.record) {
    const std::string& sandbox = entry.record->sandbox_id;
    wanted = (IsName(sandbox) ? sandbox : "unknown") + "/" + entry.record->root + "/" + entry.record->path;
  }
  auto parts = PartsOf(wanted);
  if (!parts) return Forward(parts.error());
  std::string path;
  if (entry.content_is_there || (entry.record && entry.record->make)) {
    Descriptor at(::dup(fd_));
    for (size_t i = 0; i + 1 < parts->size(); ++i) {
      const std::string& name = (*parts)[i];
      if (::mkdirat(at.get(), name.c_str(), 0700) != 0 && errno != EEXIST) return ExportError(errno, PrintableName(path + name));
      Descriptor next(::openat(at.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (next.get() < 0) return ExportError(errno, PrintableName(path + name));
      at = std::move(next);
      path += name + "/";
    }
    auto name = Place(entry, at.get(), parts->back());
    if (!name) return Failure(ErrorKind::kLocal, name.error().errno_value, PrintableName(path) + name.error().message);
    path += *name;
  }
  if (entry.record) {
    text_ += DescribeUnsent(*entry.record, path.empty() ? "(no content)" : path);
    if (!entry.problem.empty()) text_.insert(text_.size() - 1, "but:                 " + PrintableName(entry.problem) + "\n");
  } else {
    text_ += "what was written:    " + PrintableName(path) + "\nwhat it is:          " + PrintableName(entry.problem) + "\n\n";
  }
  return path;
}

Result<std::string> UnsentExport::WriteText() {
  if (text_.empty()) return std::string();
  std::string name = "E2BFS-EXPORT.txt";
  int made = -1;
  for (int n = 2; n < kMostNames; ++n) {
    made = ::openat(fd_, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (made >= 0 || errno != EEXIST) break;
    name = "E2BFS-EXPORT-" + std::to_string(n) + ".txt";
  }
  if (made < 0) return ExportError(errno, directory_ + "/" + name);
  const Descriptor to(made);
  const std::string all = "Bytes that are in no range of a file were not written by this machine: they are zeros here, and what the sandbox has there.\n\n" + text_;
  const ssize_t put = ::pwrite(to.get(), all.data(), all.size(), 0);
  if (put != static_cast<ssize_t>(all.size()) || ::fsync(to.get()) != 0) return ExportError(put < 0 ? errno : EIO, directory_ + "/" + name);
  return name;
}

}  // namespace e2bfs::cache
