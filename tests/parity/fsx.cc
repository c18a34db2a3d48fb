// parity_fsx: random reads and writes of one file, its content checked against a copy in memory at each step.
//
// After the idea of fsx by Avadis Tevanian; nothing of its text. Writes through the mount go out at close and fsync, so the file in the sandbox itself
// (--inside) is compared after these.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "Usage: parity_fsx FILE [--ops N] [--seed N] [--max-size BYTES] [--inside PATH] [--flush COMMAND --remount COMMAND] [--mmap] [--verbose]\n"
    "  --ops N          operations, 1000 without it\n"
    "  --seed N         of the random numbers, 1 without it\n"
    "  --max-size BYTES the file's, 262144 without it\n"
    "  --inside PATH    the same file by another way: compared after each close and fsync\n"
    "  --flush COMMAND  what is closed is inside only after this (and after fsync); done now and then, also while the file is open\n"
    "  --remount COMMAND  the same, while it is closed\n"
    "  --mmap           maps it, too\n"
    "  --verbose        print every operation as it is done\n"
    "Prints what it did and which operations the file system has not. Exit status 1: the content was wrong or a call failed.\n";

class Exerciser {
 public:
  std::string path, inside, flush, remount;
  uint64_t seed = 1;
  int64_t operations = 1000;
  int64_t max_size = 256 * 1024;
  bool with_mmap = false, verbose = false;

  int Run() {
    random_.seed(seed);
    Open(O_CREAT | O_TRUNC);
    for (number_ = 0; number_ < operations; ++number_) {
      Step();
      CheckAll();
    }
    Note("close");
    Require(close(fd_), "close");
    Do(flush, "flush");
    CompareInside();
    std::printf("%" PRId64 " operations with seed %" PRIu64 ", %s mmap: as expected; fallocate: %s, copy_file_range: %s, SEEK_DATA: %s, holes: %" PRId64 "\n",
                operations, seed, with_mmap ? "with" : "without", can_punch_ ? "yes" : "no", can_copy_ ? "yes" : "no", can_seek_ ? "yes" : "no", holes_);
    return 0;
  }

 private:
  std::mt19937_64 random_;
  int fd_ = -1;
  int64_t number_ = 0;
  bool can_punch_ = true, can_copy_ = true, can_seek_ = true;
  int64_t holes_ = 0;  // that SEEK_DATA told of
  std::string shadow_;
  std::deque<std::string> log_;

  int64_t Below(int64_t limit) { return limit <= 0 ? 0 : static_cast<int64_t>(random_() % static_cast<uint64_t>(limit)); }
  int64_t Size() const { return static_cast<int64_t>(shadow_.size()); }
  // Mostly short, sometimes as long as it can be; offsets are often on the edges of pages.
  int64_t SomeLength() { return 1 + (Below(4) == 0 ? Below(max_size) : Below(8192)); }
  int64_t SomeOffset(int64_t limit) {
    const int64_t offset = Below(limit + 1);
    return Below(4) == 0 ? std::min(limit, offset / 4096 * 4096 + Below(3)) : offset;
  }

  template <typename... Arguments>
  void Note(const char* format, Arguments... arguments) {
    char line[200];
    const int length = std::snprintf(line, sizeof line, "%" PRId64 ": ", number_);
    std::snprintf(line + length, sizeof line - static_cast<size_t>(length), format, arguments...);
    if (verbose) std::puts(line);
    log_.push_back(line);
    if (log_.size() > 60) log_.pop_front();
  }
  void Note(const char* text) { Note("%s", text); }

  [[noreturn]] void Fail(const std::string& what) {
    for (const std::string& line : log_) std::printf("  %s\n", line.c_str());
    std::printf("FAILED at operation %" PRId64 ", seed %" PRIu64 ": %s\n", number_, seed, what.c_str());
    std::fflush(stdout);
    _exit(1);
  }
  void Require(int64_t outcome, const char* call) {
    if (outcome < 0) Fail(std::string(call) + ": " + std::strerror(errno));
  }

  void Open(int flags) {
    fd_ = open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0644);
    Require(fd_, "open");
  }
  void Resize(int64_t size) { shadow_.resize(static_cast<size_t>(size), '\0'); }

  void Compare(const std::string& got, int64_t offset, const char* where) {
    for (size_t i = 0; i < got.size(); ++i) {
      const char expected = shadow_[static_cast<size_t>(offset) + i];
      if (got[i] == expected) continue;
      size_t end = i;
      while (end < got.size() && got[end] != shadow_[static_cast<size_t>(offset) + end]) ++end;
      char text[200];
      std::snprintf(text, sizeof text, "%s: byte %zu is %02x in place of %02x (and on to %zu); the file has %zu bytes", where, static_cast<size_t>(offset) + i,
                    static_cast<unsigned char>(got[i]), static_cast<unsigned char>(expected), static_cast<size_t>(offset) + end, shadow_.size());
      Fail(text);
    }
  }
  // Reads as much as there is, whatever the pieces.
  std::string ReadAll(int fd, int64_t offset, int64_t length) {
    std::string got(static_cast<size_t>(length), '\0');
    int64_t done = 0;
    while (done < length) {
      const ssize_t part = pread(fd, got.data() + done, static_cast<size_t>(length - done), offset + done);
      Require(part, "pread");
      if (part == 0) break;
      done += part;
    }
    got.resize(static_cast<size_t>(done));
    return got;
  }
  void CheckAll() {
    struct stat status {};
    Require(fstat(fd_, &status), "fstat");
    if (status.st_size != Size()) Fail("fstat says " + std::to_string(status.st_size) + " bytes in place of " + std::to_string(Size()));
    const std::string got = ReadAll(fd_, 0, Size() + 1);
    if (static_cast<int64_t>(got.size()) != Size()) Fail("read ends after " + std::to_string(got.size()) + " bytes of " + std::to_string(Size()));
    Compare(got, 0, "the whole file");
  }
  void CompareInside() {
    if (inside.empty()) return;
    const int fd = open(inside.c_str(), O_RDONLY | O_CLOEXEC);
    Require(fd, "open inside");
    const std::string got = ReadAll(fd, 0, max_size + 1);
    if (static_cast<int64_t>(got.size()) != Size()) Fail("inside: " + std::to_string(got.size()) + " bytes in place of " + std::to_string(Size()));
    Compare(got, 0, "inside");
    close(fd);
  }
  void CompareStat() {
    struct stat status {};
    Require(stat(path.c_str(), &status), "stat");
    if (status.st_size != Size()) Fail("stat says " + std::to_string(status.st_size) + " bytes in place of " + std::to_string(Size()));
  }

  void Step() {
    switch (Below(20)) {
      case 0: case 1: case 2: case 3: return Write();
      case 4: return Append();
      case 5: case 6: case 7: return Read();
      case 8: return TruncateDown();
      case 9: return TruncateUp();
      case 10: return Punch();
      case 11: return Zero();
      case 12: case 13: return Copy();
      case 14: return Below(3) == 0 ? Reopen() : Read();
      case 15: return Below(4) == 0 ? Sync() : Write();
      case 16: case 17: return with_mmap ? MappedWrite() : Write();
      case 18: return with_mmap ? MappedRead() : Read();
      default: return Seek();
    }
  }
  std::string SomeData(int64_t length) {
    std::string data(static_cast<size_t>(length), '\0');
    const uint64_t start = random_();
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>('!' + (start + i * 7 + i / 93) % 90);
    return data;
  }
  void Store(int64_t offset, const std::string& data) {
    if (offset + static_cast<int64_t>(data.size()) > Size()) Resize(offset + static_cast<int64_t>(data.size()));
    shadow_.replace(static_cast<size_t>(offset), data.size(), data);
  }
  void WriteAt(int64_t offset, int64_t length, const char* name) {
    length = std::min(length, max_size - offset);
    if (length <= 0) return;
    Note("%s %" PRId64 "+%" PRId64, name, offset, length);
    const std::string data = SomeData(length);
    const ssize_t done = pwrite(fd_, data.data(), data.size(), offset);
    Require(done, "pwrite");
    if (done != length) Fail("pwrite wrote " + std::to_string(done));
    Store(offset, data);
  }
  void Write() { WriteAt(SomeOffset(Below(3) == 0 ? max_size - 1 : Size()), SomeLength(), "write"); }
  void Append() { WriteAt(Size(), SomeLength(), "append"); }
  void Read() {
    const int64_t offset = SomeOffset(Size() + 4096), length = SomeLength();
    Note("read %" PRId64 "+%" PRId64, offset, length);
    const std::string got = ReadAll(fd_, offset, length);
    const int64_t expected = std::clamp<int64_t>(Size() - offset, 0, length);
    if (static_cast<int64_t>(got.size()) != expected) Fail("read " + std::to_string(got.size()) + " bytes in place of " + std::to_string(expected));
    if (expected > 0) Compare(got, offset, "read");
  }
  void Truncate(int64_t size) {
    const bool by_name = Below(4) == 0;
    Note("%s %" PRId64, by_name ? "truncate" : "ftruncate", size);
    Require(by_name ? truncate(path.c_str(), size) : ftruncate(fd_, size), "truncate");
    Resize(size);
  }
  void TruncateDown() { Truncate(Below(10) == 0 ? 0 : SomeOffset(Size())); }
  void TruncateUp() { Truncate(std::min(max_size, Size() + SomeOffset(max_size - Size()))); }
  bool Allocate(int mode, int64_t offset, int64_t length, const char* name) {
    if (!can_punch_ || length <= 0) return false;
    Note("%s %" PRId64 "+%" PRId64, name, offset, length);
    if (fallocate(fd_, mode, offset, length) != 0) {
      if (errno != EOPNOTSUPP) Require(-1, name);
      can_punch_ = false;
      return false;
    }
    return true;
  }
  void Punch() {
    const int64_t offset = SomeOffset(Size()), length = SomeLength();
    if (Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length, "punch") && offset < Size())
      Store(offset, std::string(static_cast<size_t>(std::min(length, Size() - offset)), '\0'));
  }
  void Zero() {
    const int64_t offset = SomeOffset(Size()), length = std::min(SomeLength(), max_size - offset);
    if (Below(2) == 0) {
      if (Allocate(FALLOC_FL_ZERO_RANGE, offset, length, "zero")) Store(offset, std::string(static_cast<size_t>(length), '\0'));
    } else if (Allocate(0, offset, length, "allocate") && offset + length > Size()) {
      Resize(offset + length);
    }
  }
  void Copy() {
    if (!can_copy_ || Size() == 0) return;
    int64_t from = SomeOffset(Size() - 1), to = SomeOffset(max_size - 1), length = std::min(SomeLength(), max_size - to);
    if (from < to + length && to < from + length) {  // overlapping ranges are EINVAL
      length = std::min(length, from < to ? to - from : from - to);
      if (length <= 0) return;
    }
    Note("copy %" PRId64 "+%" PRId64 " to %" PRId64, from, length, to);
    off_t source = from, target = to;
    const ssize_t done = copy_file_range(fd_, &source, fd_, &target, static_cast<size_t>(length), 0);
    if (done < 0 && (errno == EOPNOTSUPP || errno == EXDEV || errno == ENOSYS)) {
      can_copy_ = false;
      return;
    }
    Require(done, "copy_file_range");
    if (done > std::min(length, Size() - from) || (done == 0 && from < Size())) Fail("copied " + std::to_string(done));
    Store(to, shadow_.substr(static_cast<size_t>(from), static_cast<size_t>(done)));
  }
  void Reopen() {
    Note("close and open");
    Require(close(fd_), "close");
    const int64_t then = flush.empty() ? 0 : Below(8);
    if (then == 1) Do(remount, "remount");
    if (then >= 2 && then < 5) Do(flush, "flush");
    if (flush.empty() || (then >= 1 && then < 5)) CompareInside();
    CompareStat();
    Open(0);
  }
  void Do(const std::string& command, const char* name) {
    if (command.empty()) return;
    Note(name);
    if (std::system(command.c_str()) != 0) Fail(std::string(name) + " failed");
  }
  void Sync() {
    if (!flush.empty() && Below(2) == 0) {
      Do(flush, "flush");
      return CompareInside();
    }
    Note("fsync");
    Require(fsync(fd_), "fsync");
    CompareInside();
    CompareStat();
  }
  char* Map(int64_t offset, int64_t length, int64_t& delta) {
    delta = offset % 4096;
    void* view = mmap(nullptr, static_cast<size_t>(length + delta), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, offset - delta);
    if (view == MAP_FAILED) Require(-1, "mmap");
    return static_cast<char*>(view);
  }
  void MappedWrite() {
    if (Size() == 0) return;
    const int64_t offset = SomeOffset(Size() - 1), length = std::min(SomeLength(), Size() - offset);
    Note("mapped write %" PRId64 "+%" PRId64, offset, length);
    int64_t delta = 0;
    char* view = Map(offset, length, delta);
    const std::string data = SomeData(length);
    std::memcpy(view + delta, data.data(), data.size());
    Store(offset, data);
    // What was stored without msync is only certain to be sent by a later fsync or by the kernel's own writing back, which munmap alone does not wait for.
    Require(msync(view, static_cast<size_t>(length + delta), MS_SYNC), "msync");
    Require(munmap(view, static_cast<size_t>(length + delta)), "munmap");
  }
  void MappedRead() {
    if (Size() == 0) return;
    const int64_t offset = SomeOffset(Size() - 1), length = std::min(SomeLength(), Size() - offset);
    Note("mapped read %" PRId64 "+%" PRId64, offset, length);
    int64_t delta = 0;
    char* view = Map(offset, length, delta);
    const std::string got(view + delta, static_cast<size_t>(length));
    Require(munmap(view, static_cast<size_t>(length + delta)), "munmap");
    Compare(got, offset, "mapped");
  }
  void Seek() {
    if (!can_seek_ || Size() == 0) return;
    const int64_t offset = SomeOffset(Size() - 1);
    Note("seek data %" PRId64, offset);
    const int64_t data = lseek(fd_, offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
      if (errno != EINVAL && errno != EOPNOTSUPP) Require(-1, "lseek");
      can_seek_ = false;
      return;
    }
    if (data != offset) ++holes_;
    // What is skipped as a hole has to read as zeros.
    const int64_t end = data < 0 ? Size() : data;
    if (end < offset || end > Size()) Fail("SEEK_DATA says " + std::to_string(data));
    for (int64_t i = offset; i < end; ++i)
      if (shadow_[static_cast<size_t>(i)] != '\0') Fail("SEEK_DATA skips the byte at " + std::to_string(i));
  }
};

}  // namespace

int main(int argc, char** argv) {
  Exerciser exerciser;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> const char* {
      if (++i < argc) return argv[i];
      std::fputs(kUsage, stderr);
      std::exit(2);
    };
    if (argument == "--ops") exerciser.operations = std::atoll(value());
    else if (argument == "--seed") exerciser.seed = std::strtoull(value(), nullptr, 10);
    else if (argument == "--max-size") exerciser.max_size = std::atoll(value());
    else if (argument == "--inside") exerciser.inside = value();
    else if (argument == "--flush") exerciser.flush = value();
    else if (argument == "--remount") exerciser.remount = value();
    else if (argument == "--mmap") exerciser.with_mmap = true;
    else if (argument == "--verbose") exerciser.verbose = true;
    else if (argument[0] != '-' && exerciser.path.empty()) exerciser.path = argument;
    else { std::fputs(kUsage, stderr); return argument == "--help" ? 0 : 2; }
  }
  if (exerciser.path.empty()) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  return exerciser.Run();
}
