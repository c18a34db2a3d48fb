#include "cache/spool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cache/descriptor.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

tl::unexpected<Error> SpoolError(int errno_value, const std::string& what, const std::string& path) {
  Error error;
  error.errno_value = errno_value;
  error.kind = ErrorKind::kLocal;
  error.message = what + " the spool file " + path;
  return tl::unexpected<Error>(std::move(error));
}

}  // namespace

SpoolFile::SpoolFile(Spool& spool, int fd, std::string path) : spool_(spool), fd_(fd), path_(std::move(path)), note_(path_ + kUnsentNoteSuffix) {}

SpoolFile::~SpoolFile() {
  spool_.used_ -= charged_.load();
  ::close(fd_);
  if (keep_) return;
  ::unlink(path_.c_str());
  note_.Unlink();
}

void SpoolFile::Charge(int64_t bytes) {
  charged_ += bytes;
  spool_.used_ += bytes;
}

Result<void> SpoolFile::WriteAt(int64_t offset, const char* bytes, size_t length) {
  while (length > 0) {
    const ssize_t done = ::pwrite(fd_, bytes, length, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return SpoolError(errno, "writing", path_);
    if (done == 0) return SpoolError(EIO, "writing", path_);
    bytes += done;
    offset += done;
    length -= static_cast<size_t>(done);
  }
  return {};
}

Result<void> SpoolFile::ReadAt(int64_t offset, char* bytes, size_t length) const {
  while (length > 0) {
    const ssize_t done = ::pread(fd_, bytes, length, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return SpoolError(errno, "reading", path_);
    if (done == 0) {  // beyond the end
      std::fill_n(bytes, length, '\0');
      return {};
    }
    bytes += done;
    offset += done;
    length -= static_cast<size_t>(done);
  }
  return {};
}

Result<void> SpoolFile::MoveRange(int64_t from, int64_t to, int64_t length) {
  constexpr int64_t kPiece = 1 << 20;
  std::vector<char> piece(static_cast<size_t>(std::min(length, kPiece)));
  for (int64_t done = 0; done < length;) {
    const int64_t now = std::min(kPiece, length - done);
    // Overlapping ranges: from the end when moving up.
    const int64_t at = to > from ? length - done - now : done;
    if (auto read = ReadAt(from + at, piece.data(), static_cast<size_t>(now)); !read) return read;
    if (auto written = WriteAt(to + at, piece.data(), static_cast<size_t>(now)); !written) return written;
    done += now;
  }
  return {};
}

Result<void> SpoolFile::CopyTo(const std::string& target) const { return CopySparse(fd_, target); }

Result<void> CopySparse(int from, const std::string& target) {
  const int to = ::open(target.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (to < 0) return SpoolError(errno, "copying", target);
  std::vector<char> piece(1 << 20);
  int64_t at = 0;
  int error = 0;
  while (error == 0) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0) {
      if (errno != ENXIO) error = errno;
      break;
    }
    const ssize_t got = ::pread(from, piece.data(), piece.size(), data);
    if (got <= 0) {
      error = got < 0 ? errno : 0;
      break;
    }
    for (ssize_t done = 0; done < got && error == 0;) {
      const ssize_t put = ::pwrite(to, piece.data() + done, static_cast<size_t>(got - done), data + done);
      if (put < 0) error = errno;
      if (put > 0) done += put;
    }
    at = data + got;
  }
  struct stat status {};
  if (error == 0 && (::fstat(from, &status) != 0 || ::ftruncate(to, status.st_size) != 0)) error = errno;
  if (error == 0 && ::fsync(to) != 0) error = errno;
  ::close(to);
  if (error != 0) return SpoolError(error, "copying", target);
  return {};
}

void SpoolFile::Discard(int64_t offset, int64_t length) {
  if (length > 0) ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

Spool::Spool(std::string directory, int64_t limit_bytes)
    : directory_(std::move(directory)), limit_bytes_(limit_bytes) {}

Result<std::shared_ptr<SpoolFile>> Spool::NewFile() {
  std::string path = directory_ + "/unsent-XXXXXX";
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);  // 0600
  if (fd < 0) return SpoolError(errno, "creating", path);
  return std::make_shared<SpoolFile>(*this, fd, path);
}

bool Spool::Sync() const {
  const Descriptor directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const bool done = directory.get() >= 0 && ::syncfs(directory.get()) == 0;
  if (!done) log::Warning("cache", "syncing {}: {}", directory_, std::strerror(errno));
  return done;
}

}  // namespace e2bfs::cache
