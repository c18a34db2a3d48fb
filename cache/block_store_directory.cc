#include "cache/block_store_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

constexpr char kMarkerName[] = "e2bfs-cache";
constexpr char kMarkerText[] = "e2bfs block store 1\n";
constexpr char kNewMarkerName[] = "new-marker";
constexpr char kLimitName[] = "limit";
constexpr char kEntriesName[] = "entries";
constexpr char kAsideName[] = "set-aside";
constexpr char kNewPrefix[] = "new-";
constexpr time_t kLongGone = 3600;  // making a file takes moments

tl::unexpected<Error> Refused(int errno_value, std::string message) { return Failure(ErrorKind::kLocal, errno_value, std::move(message)); }

bool IsDigits(const char* text, size_t count) {
  if (std::strlen(text) != count) return false;
  return std::all_of(text, text + count, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsOurs(const struct stat& status) { return status.st_uid == ::geteuid() && (status.st_mode & 077) == 0; }

Result<Descriptor> OpenDirectory(int at, const char* name, const std::string& path) {
  Descriptor opened(::openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status {};
  if (!opened.is_open() || ::fstat(opened.get(), &status) != 0) {
    if (errno == ENOTDIR || errno == ELOOP) return Refused(ENOTDIR, path + ": is not a directory");
    return Errno(errno, path);
  }
  if (!IsOurs(status)) {
    return Refused(EACCES, fmt::format("{}: other users own it or may enter it (user {}, mode {:o}); refusing to keep content there", path, status.st_uid,
                                       status.st_mode & 07777));
  }
  return opened;
}

// Calls see(name) for what is in the directory, but for "." and "..".
template <typename See>
void ForEachName(int directory, See see) {
  const int again = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);  // a position of its own
  DIR* listed = again < 0 ? nullptr : ::fdopendir(again);
  if (listed == nullptr) {
    if (again >= 0) ::close(again);
    return;
  }
  while (const dirent* entry = ::readdir(listed)) {
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) see(entry->d_name);
  }
  ::closedir(listed);
}

int64_t BytesOf(const struct stat& status) { return int64_t{status.st_blocks} * 512; }

// see(directory's descriptor, its two digits) for each of the 256 that are there.
template <typename See>
void ForEachPart(int entries, See see) {
  ForEachName(entries, [&](const char* name) {
    if (!IsDigits(name, 2)) return;
    const Descriptor part(::openat(entries, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (part.is_open()) see(part.get(), name);
  });
}

}  // namespace

std::string StoreDirectory::Entry::name() const { return std::string(digits.data(), 2) + "/" + std::string(digits.data() + 2, digits.size() - 2); }

int StoreDirectory::OpenOurs(int directory, const char* name, int flags) {
  const int opened = ::openat(directory, name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (opened < 0) return errno == ELOOP || errno == EISDIR ? -EPERM : -errno;
  struct stat status {};
  if (::fstat(opened, &status) == 0 && S_ISREG(status.st_mode) && IsOurs(status)) return opened;
  ::close(opened);
  return -EPERM;
}

Result<std::unique_ptr<StoreDirectory>> StoreDirectory::Open(const std::string& path, bool make) {
  std::unique_ptr<StoreDirectory> directory(new StoreDirectory(path));
  auto top = OpenDirectory(AT_FDCWD, path.c_str(), path);
  if (!top) return Forward(top.error());
  directory->top_ = std::move(*top);
  // Two mounts may begin at once. Where that cannot be locked, both make the same.
  const bool locked = make && ::flock(directory->top(), LOCK_EX) == 0;
  auto checked = directory->Check(make);
  if (locked) ::flock(directory->top(), LOCK_UN);
  if (!checked) return Forward(checked.error());
  return directory;
}

Result<void> StoreDirectory::Check(bool make) {
  bool of_ours = false;
  const Descriptor marker(OpenOurs(top(), kMarkerName, O_RDONLY));
  if (!marker.is_open()) {
    if (-marker.get() != ENOENT) return Refused(EACCES, fmt::format("{}/{}: is not a file of ours alone", path_, kMarkerName));
    bool empty = true;
    ForEachName(top(), [&](const char* name) { empty = empty && std::strcmp(name, kNewMarkerName) == 0; });
    if (!empty) return Refused(ENOTEMPTY, fmt::format("{}: has something else in it than a cache of e2bfs; name an empty or new directory", path_));
    if (!make) return Errno(ENOENT, path_);
  } else {
    char text[sizeof kMarkerText] = "";
    const ssize_t got = ::pread(marker.get(), text, sizeof text, 0);
    of_ours = got == ssize_t{sizeof kMarkerText - 1} && std::memcmp(text, kMarkerText, sizeof kMarkerText - 1) == 0;
    if (!of_ours && !make) return Refused(EINVAL, fmt::format("{}: a cache of another format", path_));
  }
  if (!make) {
    auto entries = OpenDirectory(top(), kEntriesName, path_ + "/" + kEntriesName);
    auto aside = OpenDirectory(top(), kAsideName, path_ + "/" + kAsideName);
    if (!entries || !aside) return Forward((entries ? aside : entries).error());
    entries_ = std::move(*entries);
    aside_ = std::move(*aside);
    return {};
  }
  // The marker first: whoever dies in between leaves a directory that is known for what it is.
  if (!marker.is_open()) {
    if (auto written = WriteMarker(); !written) return written;
  }
  for (const char* name : {kEntriesName, kAsideName}) {
    if (::mkdirat(top(), name, 0700) != 0 && errno != EEXIST) return Errno(errno, path_ + "/" + name);
  }
  auto aside = OpenDirectory(top(), kAsideName, path_ + "/" + kAsideName);
  if (!aside) return Forward(aside.error());
  aside_ = std::move(*aside);
  if (marker.is_open() && !of_ours) {
    const std::string kept = fmt::format("entries-{}-{}", ::time(nullptr), ::getpid());
    if (::renameat(top(), kEntriesName, aside_.get(), kept.c_str()) != 0 || ::mkdirat(top(), kEntriesName, 0700) != 0) {
      return Errno(errno, fmt::format("{}: a cache of another format, which cannot be set aside", path_));
    }
    log::Warning("cache", "{}: a cache of another format, or its marker is damaged: its files are set aside in {}/{}, and nothing of them is used", path_,
                 kAsideName, kept);
    if (auto written = WriteMarker(); !written) return written;
  }
  auto entries = OpenDirectory(top(), kEntriesName, path_ + "/" + kEntriesName);
  if (!entries) return Forward(entries.error());
  entries_ = std::move(*entries);
  return {};
}

bool StoreDirectory::WriteSmall(const char* name, const std::string& text) const {
  ::unlinkat(top(), kNewMarkerName, 0);  // of a process that died
  const Descriptor file(::openat(top(), kNewMarkerName, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.is_open()) return false;
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    if (errno == 0) errno = EIO;
    return false;
  }
  return ::renameat(top(), kNewMarkerName, top(), name) == 0;
}

Result<void> StoreDirectory::WriteMarker() {
  if (!WriteSmall(kMarkerName, kMarkerText)) return Errno(errno, path_ + "/" + kMarkerName);
  return {};
}

void StoreDirectory::SetLimit(int64_t bytes) const {
  if (limit() == bytes) return;
  const bool locked = ::flock(top(), LOCK_EX) == 0;
  WriteSmall(kLimitName, fmt::format("{}\n", bytes));  // it is for people
  if (locked) ::flock(top(), LOCK_UN);
}

int64_t StoreDirectory::limit() const {
  const Descriptor file(OpenOurs(top(), kLimitName, O_RDONLY));
  char text[32] = "";
  if (!file.is_open() || ::pread(file.get(), text, sizeof text - 1, 0) <= 0) return 0;
  return std::max(0LL, std::strtoll(text, nullptr, 10));
}

int64_t StoreDirectory::FreeBytes() const {
  struct statvfs status {};
  if (::fstatvfs(top(), &status) != 0) return -1;
  return static_cast<int64_t>(status.f_bavail * status.f_frsize);
}

std::vector<StoreDirectory::Entry> StoreDirectory::Walk() const {
  std::vector<Entry> found;
  const time_t now = ::time(nullptr);
  ForEachPart(entries(), [&](int part, const char* digits) {
    ForEachName(part, [&](const char* name) {
      struct stat status {};
      const bool is_new = std::strncmp(name, kNewPrefix, sizeof kNewPrefix - 1) == 0;
      if (!is_new && !IsDigits(name, kEntryNameDigits - 2)) return;
      if (::fstatat(part, name, &status, AT_SYMLINK_NOFOLLOW) != 0) return;
      if (is_new) {
        if (S_ISREG(status.st_mode) && IsOurs(status) && status.st_mtim.tv_sec < now - kLongGone) ::unlinkat(part, name, 0);
        return;
      }
      Entry entry;
      std::memcpy(entry.digits.data(), digits, 2);
      std::memcpy(entry.digits.data() + 2, name, kEntryNameDigits - 2);
      entry.bytes = BytesOf(status);
      entry.used = status.st_mtim;
      found.push_back(entry);
    });
  });
  return found;
}

bool StoreDirectory::Remove(const Entry& entry) const { return ::unlinkat(entries(), entry.name().c_str(), 0) == 0 || errno == ENOENT; }

// "<digits>.<when>"
std::string StoreDirectory::PutAside(const std::string& name) const {
  static std::atomic<int> count{0};
  const std::string kept = fmt::format("{}{}.{}-{}-{}", name.substr(0, 2), name.substr(3), ::time(nullptr), ::getpid(), ++count);
  if (::renameat(entries(), name.c_str(), aside_.get(), kept.c_str()) != 0) return "";
  return fmt::format("{}/{}/{}", path_, kAsideName, kept);
}

namespace {

struct Aside {
  std::string name;
  int64_t bytes;
  timespec used;
};

// Files that PutAside left, by age, the oldest first.
std::vector<Aside> AsideFiles(int directory) {
  std::vector<Aside> found;
  ForEachName(directory, [&](const char* name) {
    struct stat status {};
    if (!IsDigits(std::string(name).substr(0, kEntryNameDigits).c_str(), kEntryNameDigits) || name[kEntryNameDigits] != '.') return;
    if (::fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(status.st_mode)) found.push_back({name, BytesOf(status), status.st_ctim});
  });
  std::sort(found.begin(), found.end(), [](const Aside& a, const Aside& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  return found;
}

}  // namespace

std::vector<StoreDirectory::Entry> StoreDirectory::SetAside() const {
  std::vector<Entry> found;
  for (const Aside& file : AsideFiles(aside_.get())) {
    Entry entry;
    file.name.copy(entry.digits.data(), kEntryNameDigits);
    entry.bytes = file.bytes;
    entry.used = file.used;
    found.push_back(entry);
  }
  return found;
}

void StoreDirectory::TrimSetAside(size_t most) const {
  const auto files = AsideFiles(aside_.get());
  for (size_t i = 0; i + most < files.size(); ++i) ::unlinkat(aside_.get(), files[i].name.c_str(), 0);
}

int64_t StoreDirectory::RemoveSetAside() const {
  int64_t bytes = 0;
  for (const Aside& file : AsideFiles(aside_.get())) {
    if (::unlinkat(aside_.get(), file.name.c_str(), 0) == 0) bytes += file.bytes;
  }
  // Whole stores of another format: what looks as ours does.
  ForEachName(aside_.get(), [&](const char* name) {
    if (std::strncmp(name, "entries-", 8) != 0) return;
    const Descriptor store(::openat(aside_.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!store.is_open()) return;
    ForEachPart(store.get(), [&](int part, const char* digits) {
      ForEachName(part, [&](const char* file) {
        struct stat status {};
        if (!IsDigits(file, kEntryNameDigits - 2) || ::fstatat(part, file, &status, AT_SYMLINK_NOFOLLOW) != 0) return;
        if (::unlinkat(part, file, 0) == 0) bytes += BytesOf(status);
      });
      ::unlinkat(store.get(), digits, AT_REMOVEDIR);
    });
    ::unlinkat(aside_.get(), name, AT_REMOVEDIR);  // not if something else is in it
  });
  return bytes;
}

}  // namespace e2bfs::cache
