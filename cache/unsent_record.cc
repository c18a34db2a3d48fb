#include "cache/unsent_record.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <utility>

#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

constexpr std::string_view kNoteMagic = "e2bfs-unsent ";
constexpr uint64_t kNoteVersion = 1;
constexpr size_t kRangesOfASlot = 64;
constexpr int64_t kLongLogBytes = 64 << 10;
constexpr int64_t kHeldBytes = 4 << 10;
constexpr int64_t kLongestLine = 64;
constexpr int64_t kHeaderBytes = 80;  // and less
constexpr int64_t kImpliedTimeGrainNs = 1'000'000'000;
constexpr off_t kMostNoteBytes = off_t{1} << 30;
constexpr uint64_t kChecksumBegin = 0xcbf29ce484222325;

// FNV-1a: tells what is torn, not what is forged. Whoever could forge it owns the directory.
uint64_t Checksum(uint64_t begin, std::string_view bytes) {
  for (const char c : bytes) begin = (begin ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return begin;
}

void AppendNumber(std::string& text, int64_t number) {
  std::array<char, 24> digits{};
  const auto end = std::to_chars(digits.begin(), digits.end(), number).ptr;
  text.append(digits.begin(), end);
}

void AppendFixed(std::string& text, uint64_t number, int base, size_t width) {
  std::array<char, 24> digits{};
  const auto end = std::to_chars(digits.begin(), digits.end(), number, base).ptr;
  const auto length = static_cast<size_t>(end - digits.begin());
  text.append(width - std::min(width, length), '0').append(digits.begin(), end);
}

void AppendLine(std::string& text, std::string_view key, int64_t number) {
  text.append(key) += ' ';
  AppendNumber(text, number);
  text += '\n';
}

void AppendLine(std::string& text, std::string_view key, const transport::Extent& extent) {
  text.append(key) += ' ';
  AppendNumber(text, extent.offset);
  text += ' ';
  AppendNumber(text, extent.length);
  text += '\n';
}

void AppendLine(std::string& text, std::string_view key, const timespec& time) {
  text.append(key) += ' ';
  AppendNumber(text, time.tv_sec);
  text += ' ';
  AppendNumber(text, time.tv_nsec);
  text += '\n';
}

void AppendLine(std::string& text, std::string_view key, const transport::TimeChange& time) {
  if (time.now) {
    text.append(key) += " now\n";
  } else {
    AppendLine(text, key, time.value);
  }
}

void AppendEncoded(std::string& text, std::string_view bytes) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (const char c : bytes) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '-' && c <= '9') || c == '_' || c == '~';  // '-', '.', '/' and digits
    if (plain) {
      text += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      text += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
}

void AppendText(std::string& text, std::string_view key, std::string_view bytes) {
  if (bytes.empty()) return;
  text.append(key) += ' ';
  AppendEncoded(text, bytes);
  text += '\n';
}

void AppendFlag(std::string& text, std::string_view key, bool flag) {
  if (flag) text.append(key) += '\n';
}

std::string_view TypeWord(transport::FileType type) {
  switch (type) {
    case transport::FileType::kDirectory: return "directory";
    case transport::FileType::kSymlink: return "symlink";
    default: return "file";
  }
}

std::string DescribeMaking(const UnsentMaking& make) {
  switch (make.type) {
    case transport::FileType::kDirectory: return "a new directory";
    case transport::FileType::kSymlink: return "a link to " + PrintableName(make.target);
    default: return "a new file";
  }
}

// The record's lines; the time that writes imply is the last, and begins at `*implied`.
std::string EncodeBody(const UnsentRecord& record, size_t* implied) {
  std::string text;
  text.reserve(512);
  if (record.nothing) {
    text = "nothing\n";
    *implied = text.size();
    return text;
  }
  AppendText(text, "id", record.id);
  AppendText(text, "sandbox", record.sandbox_id);
  AppendText(text, "scope", record.scope);
  AppendText(text, "user", record.user);
  AppendText(text, "root", record.root);
  AppendText(text, "path", record.path);
  AppendLine(text, "since", record.since);
  AppendFlag(text, "content", record.has_content);
  AppendFlag(text, "fresh", record.fresh);
  AppendFlag(text, "being_sent", record.being_sent);
  if (record.begun_bytes != 0) AppendLine(text, "begun_bytes", record.begun_bytes);
  AppendFlag(text, "removing", record.removing);
  AppendFlag(text, "moving", record.moving);
  AppendFlag(text, "accepted", record.accepted);
  if (record.order != 0) AppendLine(text, "order", static_cast<int64_t>(record.order));
  if (record.make) {
    AppendText(text, "make", TypeWord(record.make->type));
    AppendLine(text, "make_permissions", int64_t{record.make->permissions});
    if (record.make->creator) AppendLine(text, "make_creator", transport::Extent{record.make->creator->uid, record.make->creator->gid});
    AppendText(text, "make_target", record.make->target);
  }
  AppendText(text, "error", record.last_error);
  AppendText(text, "base_id", record.base.id.value);
  AppendLine(text, "base_size", record.base.size);
  AppendLine(text, "base_mtime", record.base.mtime);
  AppendLine(text, "base_ctime", record.base.ctime);
  AppendLine(text, "base_permissions", int64_t{record.base.permissions});
  const Change& change = record.change;
  for (const transport::Extent& extent : change.extents.extents()) AppendLine(text, "range", extent);
  if (change.append) AppendLine(text, "append", *change.append);
  if (change.cut) AppendLine(text, "cut", *change.cut);
  if (change.size) AppendLine(text, "size", *change.size);
  const transport::AttributeChange& set = change.attributes;
  if (set.permissions) AppendLine(text, "permissions", int64_t{*set.permissions});
  if (set.uid) AppendLine(text, "uid", int64_t{*set.uid});
  if (set.gid) AppendLine(text, "gid", int64_t{*set.gid});
  if (set.atime) AppendLine(text, "atime", *set.atime);
  if (set.mtime && !set.mtime_is_implied) AppendLine(text, "mtime", *set.mtime);
  *implied = text.size();
  if (set.mtime && set.mtime_is_implied) AppendLine(text, "implied_mtime", *set.mtime);
  return text;
}

// "e2bfs-unsent 1 slot 00000000000000000007 00000312 0123456789abcdef\n", and what the checksum covers but for the body.
std::string NoteHeader(bool log, uint64_t number, const std::string& body, uint64_t* checksum) {
  std::string header(kNoteMagic);
  header.reserve(80);
  AppendNumber(header, static_cast<int64_t>(kNoteVersion));
  header += log ? " log  " : " slot ";
  AppendFixed(header, number, 10, 20);
  header += ' ';
  AppendFixed(header, body.size(), 10, 10);
  header += ' ';
  *checksum = Checksum(Checksum(kChecksumBegin, header), body);
  AppendFixed(header, *checksum, 16, 16);
  return header += '\n';
}

// Takes words off the front of a line.
class NoteWords {
 public:
  explicit NoteWords(std::string_view line) : rest_(line) {}
  std::string_view Next() {
    const size_t end = std::min(rest_.find(' '), rest_.size());
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return word;
  }
  // All digits, with a minus where `least` is below 0; not less than `least`. Notes that it is no such number in good().
  int64_t Number(int64_t least = 0, int base = 10) {
    const std::string_view word = Next();
    int64_t number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, base);
    good_ = good_ && error == std::errc() && end == word.data() + word.size() && number >= least;
    return number;
  }
  uint64_t Unsigned(int base) {
    const std::string_view word = Next();
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, base);
    good_ = good_ && error == std::errc() && end == word.data() + word.size();
    return number;
  }
  std::string Text() {
    auto bytes = DecodeBytes(Next());
    good_ = good_ && bytes;
    return bytes.value_or("");
  }
  transport::Extent Range() {
    transport::Extent extent;
    extent.offset = Number();
    extent.length = Number();
    good_ = good_ && extent.offset <= INT64_MAX - extent.length;
    return extent;
  }
  timespec Time() {
    timespec time{};
    time.tv_sec = Number(INT64_MIN);
    time.tv_nsec = Number();
    good_ = good_ && time.tv_nsec < 1'000'000'000;
    return time;
  }
  transport::TimeChange TimeOrNow() {
    if (rest_ == "now") {
      rest_ = {};
      return {true, {}};
    }
    return {false, Time()};
  }
  uint32_t Small() {
    const int64_t number = Number();
    good_ = good_ && number <= UINT32_MAX;
    return static_cast<uint32_t>(number);
  }
  // Nothing is left, and all that was asked for was there.
  bool AllGood() const { return good_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool good_ = true;
};

bool DecodeMake(NoteWords& words, UnsentRecord& record) {
  const std::string word = words.Text();
  for (const auto type : {transport::FileType::kRegular, transport::FileType::kDirectory, transport::FileType::kSymlink}) {
    if (word == TypeWord(type)) record.make.emplace().type = type;
  }
  return record.make && words.AllGood();
}

bool DecodeOfMake(std::string_view key, NoteWords& words, UnsentMaking& make) {
  if (key == "make_permissions") {
    make.permissions = words.Small();
  } else if (key == "make_creator") {
    make.creator.emplace().uid = words.Small();
    make.creator->gid = words.Small();
  } else if (key == "make_target") {
    make.target = words.Text();
  } else {
    return false;
  }
  return words.AllGood();
}

bool DecodeLine(std::string_view line, UnsentRecord& record) {
  NoteWords words(line);
  const std::string_view key = words.Next();
  Change& change = record.change;
  transport::AttributeChange& set = change.attributes;
  if (key == "nothing") record.nothing = true;
  else if (key == "id") record.id = words.Text();
  else if (key == "sandbox") record.sandbox_id = words.Text();
  else if (key == "scope") record.scope = words.Text();
  else if (key == "user") record.user = words.Text();
  else if (key == "root") record.root = words.Text();
  else if (key == "path") record.path = words.Text();
  else if (key == "since") record.since = words.Number(INT64_MIN);
  else if (key == "content") record.has_content = true;
  else if (key == "fresh") record.fresh = true;
  else if (key == "being_sent") record.being_sent = true;
  else if (key == "begun_bytes") record.begun_bytes = words.Number();
  else if (key == "removing") record.removing = true;
  else if (key == "moving") record.moving = true;
  else if (key == "accepted") record.accepted = true;
  else if (key == "order") record.order = static_cast<uint64_t>(words.Number());
  else if (key == "make") return DecodeMake(words, record);
  else if (key.starts_with("make_")) return record.make && DecodeOfMake(key, words, *record.make);
  else if (key == "error") record.last_error = words.Text();
  else if (key == "base_id") record.base.id.value = words.Text();
  else if (key == "base_size") record.base.size = words.Number();
  else if (key == "base_mtime") record.base.mtime = words.Time();
  else if (key == "base_ctime") record.base.ctime = words.Time();
  else if (key == "base_permissions") record.base.permissions = words.Small();
  else if (key == "range") change.extents.Add(words.Range());
  else if (key == "append") change.append = words.Range();
  else if (key == "cut") change.cut = words.Number();
  else if (key == "size") change.size = words.Number();
  else if (key == "permissions") set.permissions = words.Small();
  else if (key == "uid") set.uid = words.Small();
  else if (key == "gid") set.gid = words.Small();
  else if (key == "atime") set.atime = words.TimeOrNow();
  else if (key == "mtime") set.mtime = words.TimeOrNow();
  else if (key == "implied_mtime") set.mtime = words.TimeOrNow(), set.mtime_is_implied = true;
  else return false;
  return words.AllGood();
}

// False: it does not belong to this record.
bool AddRange(Change& change, bool appended, const transport::Extent& extent) {
  if (appended) {
    if (!change.append || change.append->end() != extent.offset) return false;
    change.append->length += extent.length;
    return true;
  }
  change.extents.Add(extent);
  if (change.size) change.size = std::max(*change.size, extent.end());
  return true;
}

// "+ OFFSET LENGTH " and the checksum, which goes on from the one before.
std::string AddedLine(bool appended, const transport::Extent& extent, uint64_t* chain) {
  std::string line = appended ? "a " : "+ ";
  AppendNumber(line, extent.offset);
  line += ' ';
  AppendNumber(line, extent.length);
  line += ' ';
  *chain = Checksum(*chain, line);
  AppendFixed(line, *chain, 16, 16);
  return line += '\n';
}

struct ParsedNote {
  UnsentRecord record;
  uint64_t number = 0;
};

tl::unexpected<Error> NoteError(std::string message) { return Failure(ErrorKind::kProtocol, EIO, std::move(message)); }

// The record that begins with `text`.
Result<ParsedNote> ParseOneRecord(std::string_view text) {
  if (!text.starts_with(kNoteMagic)) return NoteError("its record is none of e2bfs, or torn");
  const std::string_view header = text.substr(0, std::min(text.find('\n'), text.size()));
  NoteWords words(header.substr(kNoteMagic.size()));
  const uint64_t version = words.Unsigned(10);
  if (version > kNoteVersion && version < 1'000) return NoteError("its record is of a newer version of e2bfs (format " + std::to_string(version) + ")");
  const bool log = words.Next() == "log";
  if (log) words.Next();  // two spaces
  ParsedNote parsed;
  parsed.number = words.Unsigned(10);
  const uint64_t length = words.Unsigned(10);
  const uint64_t checksum = words.Unsigned(16);
  text.remove_prefix(std::min(header.size() + 1, text.size()));
  if (!words.AllGood() || length > text.size()) return NoteError("its record is torn");
  const std::string body(text.substr(0, length));
  uint64_t right = 0;
  const std::string again = NoteHeader(log, parsed.number, body, &right);
  if (right != checksum || std::string_view(again).substr(0, again.size() - 1) != header) return NoteError("its record is torn");
  text.remove_prefix(length);
  parsed.record.has_content = false;
  for (std::string_view rest = body; !rest.empty();) {
    const size_t newline = rest.find('\n');
    if (newline == std::string_view::npos || !DecodeLine(rest.substr(0, newline), parsed.record)) {
      return NoteError("its record has a line that this version of e2bfs does not know");
    }
    rest.remove_prefix(newline + 1);
  }
  for (uint64_t chain = right;;) {
    const size_t newline = text.substr(0, kLongestLine).find('\n');
    if (newline == std::string_view::npos) break;
    const std::string_view line = text.substr(0, newline + 1);
    NoteWords added(line.substr(0, newline));
    const bool appended = added.Next() == "a";
    const transport::Extent extent = added.Range();
    if (added.Next(); !added.AllGood() || AddedLine(appended, extent, &chain) != line || !AddRange(parsed.record.change, appended, extent)) break;
    text.remove_prefix(newline + 1);
  }
  return parsed;
}

bool WriteAllAt(int fd, std::string_view bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    offset += done;
    bytes.remove_prefix(static_cast<size_t>(done));
  }
  return true;
}

// What was said before of the same file: all its bytes are there, at their places. (Their values may be newer ones; what else was changed since is not in it.)
bool IsStillTrue(const UnsentRecord& before, const UnsentRecord& now) {
  if (now.nothing || before.nothing || now.moving || before.moving) return false;
  ExtentMap old = before.change.extents, there = now.change.extents;
  if (before.change.append) old.Add(*before.change.append);
  if (now.change.append) there.Add(*now.change.append);
  const int64_t bytes = there.bytes();
  there.Add(old);
  return there.bytes() == bytes;
}

int64_t SteadyNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

bool UnsentRecord::IsWhole() const {
  if (change.cut == 0 || base.size == 0) return true;
  if (change.append) return false;
  const int64_t end = change.SizeAfter(base.size);
  return change.extents.bytes() == end && change.extents.end() == end && end > 0;
}

std::string EncodeBytes(std::string_view bytes) {
  std::string text;
  AppendEncoded(text, bytes);
  return text;
}

std::optional<std::string> DecodeBytes(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    if (text[0] != '%') {
      bytes += text[0];
      text.remove_prefix(1);
      continue;
    }
    unsigned value = 0;
    if (text.size() < 3) return std::nullopt;
    const auto [end, error] = std::from_chars(text.data() + 1, text.data() + 3, value, 16);
    if (error != std::errc() || end != text.data() + 3) return std::nullopt;
    bytes += static_cast<char>(value);
    text.remove_prefix(3);
  }
  return bytes;
}

std::string PrintableName(std::string_view name) {
  static constexpr char kDigits[] = "01234567";
  std::string text;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f && byte != '\\') {
      text += c;
    } else {
      text += {'\\', kDigits[byte >> 6], kDigits[byte >> 3 & 7], kDigits[byte & 7]};
    }
  }
  return text;
}

std::string DescribeUnsent(const UnsentRecord& record, const std::string& content_file) {
  const Change& change = record.change;
  std::string text = "file in the sandbox: " + PrintableName(record.path);
  if (record.make) text += "\nwhat it is:          " + DescribeMaking(*record.make);
  text += "\nwhat was written:    " + PrintableName(content_file) + "\nits ranges:         ";
  for (const transport::Extent& extent : change.extents.extents()) {
    text += ' ' + std::to_string(extent.offset) + '+' + std::to_string(extent.length);
  }
  if (change.append) text += " appended " + std::to_string(change.append->offset) + '+' + std::to_string(change.append->length);
  if (change.cut) text += "; cut to " + std::to_string(*change.cut) + " bytes before";
  if (change.size) text += "; size " + std::to_string(*change.size);
  if (record.being_sent) text += "\nwhy:                 it was being sent when the mount ended, and may have arrived";
  if (record.moving) text += "\nwhy:                 its bytes were being moved when the mount ended, and may be at either place";
  if (!record.last_error.empty()) text += "\nwhy:                 " + PrintableName(record.last_error);
  return text + "\n\n";
}

Result<void> AppendUnsentText(const std::string& directory, std::string_view text) {
  const std::string path = directory + "/UNSENT.txt";
  const int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  const bool written = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const int error = written ? 0 : errno;
  if (fd >= 0) ::close(fd);
  if (!written) return Failure(ErrorKind::kLocal, error == 0 ? EIO : error, "writing " + path);
  return {};
}

std::string NewUnsentId() {
  // Without what is easily mistaken for something else.
  static constexpr std::string_view kLetters = "abcdefghijkmnpqrstuvwxyz23456789";
  std::array<unsigned char, 8> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    const int64_t now = SteadyNs() ^ (int64_t{::getpid()} << 40);
    for (size_t i = 0; i < random.size(); ++i) random[i] = static_cast<unsigned char>(now >> (5 * i));
  }
  std::string id;
  for (const unsigned char byte : random) id += kLetters[byte % kLetters.size()];
  return id;
}

Result<UnsentRecord> ParseUnsentNote(std::string_view text) {
  auto first = ParseOneRecord(text);
  auto second = text.size() > size_t{kNoteSlotBytes} ? ParseOneRecord(text.substr(kNoteSlotBytes)) : Result<ParsedNote>(Forward(first ? Error{} : first.error()));
  if (first && second) return first->number > second->number ? first->record : second->record;
  if (first) return first->record;
  if (second) return second->record;
  return Forward(first.error());
}

Result<UnsentRecord> ReadUnsentNote(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);  // of a fifo that somebody put there, too
  if (fd < 0) return Failure(errno == ENOENT ? ErrorKind::kErrno : ErrorKind::kLocal, errno, "reading " + path);
  struct stat status {};
  std::string text;
  int error = ::fstat(fd, &status) != 0 ? errno : 0;
  if (error == 0 && (!S_ISREG(status.st_mode) || status.st_size > kMostNoteBytes)) error = EFBIG;
  if (error == 0) text.resize(static_cast<size_t>(status.st_size));
  for (size_t done = 0; error == 0 && done < text.size();) {
    const ssize_t got = ::pread(fd, text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno != EINTR) error = errno;
    if (got == 0) text.resize(done);
    if (got > 0) done += static_cast<size_t>(got);
  }
  ::close(fd);
  if (error != 0) return Failure(ErrorKind::kLocal, error, "reading " + path);
  return ParseUnsentNote(text);
}

Result<void> WriteUnsentNote(const std::string& path, const UnsentRecord& record) {
  size_t implied = 0;
  uint64_t checksum = 0;
  const std::string body = EncodeBody(record, &implied);
  const std::string text = NoteHeader(true, 1, body, &checksum) + body;
  const std::string temporary = path.substr(0, path.size() - std::min(path.size(), sizeof kUnsentNoteSuffix - 1)) + kUnsentNoteTemporarySuffix;
  const int fd = ::open(temporary.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return Failure(ErrorKind::kLocal, errno, "writing " + temporary);
  const bool written = WriteAllAt(fd, text, 0) && ::fsync(fd) == 0;
  int error = written ? 0 : errno;
  ::close(fd);
  if (written && ::rename(temporary.c_str(), path.c_str()) == 0) return {};
  if (error == 0) error = errno;
  ::unlink(temporary.c_str());
  return Failure(ErrorKind::kLocal, error, "writing " + path);
}

UnsentNote::~UnsentNote() {
  if (fd_ >= 0) ::close(fd_);
}

void UnsentNote::Unlink() {
  if (fd_ >= 0 || log_) ::unlink(path_.c_str());
}

void UnsentNote::Warn() {
  if (!std::exchange(failed_, true)) log::Warning("cache", "{} cannot be written: {}", path_, ErrnoName(errno));
}

void UnsentNote::Invalidate() {
  said_.clear();
  end_ = 0;
  log_ = false;
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  ::unlink(path_.c_str());
  ::unlink((path_ + ".new").c_str());
}

bool UnsentNote::Write(const UnsentRecord& record) {
  size_t implied = 0;
  const std::string body = EncodeBody(record, &implied);
  const std::string_view said = std::string_view(body).substr(0, implied);
  const int64_t now = SteadyNs();
  if (said == said_ && (implied == body.size() || now - said_at_ns_ < kImpliedTimeGrainNs)) return true;
  if (!WriteAnew(record, body)) {
    Warn();
    const auto on_disk = ReadUnsentNote(path_);
    if (on_disk && on_disk->accepted && IsStillTrue(*on_disk, record)) {
      said_.clear();
      end_ = 0;
      return on_disk->change.bytes() == record.change.bytes();
    }
    const bool freed = fd_ >= 0 || log_;  // its space may do
    Invalidate();
    if (!freed || !WriteAnew(record, body)) {
      Invalidate();
      return true;
    }
  }
  if (record.nothing) end_ = 0;  // nothing to add to
  failed_ = false;
  said_ = said;
  said_at_ns_ = now;
  lines_ = 0;
  return true;
}

bool UnsentNote::WriteAnew(const UnsentRecord& record, const std::string& body) {
  const bool is_short = record.change.extents.count() <= kRangesOfASlot && static_cast<int64_t>(body.size()) + kHeaderBytes <= kNoteSlotBytes / 2;
  ++number_;
  if (is_short ? WriteSlot(body) : WriteLog(body)) return true;
  --number_;
  return false;
}

bool UnsentNote::WriteSlot(const std::string& body) {
  const std::string text = NoteHeader(false, number_, body, &chain_) + body;
  const int64_t slot = number_ % 2 == 0 ? 0 : kNoteSlotBytes;
  // What a log says stays until a slot says more: the new file is filled before it gets the name.
  const std::string target = log_ ? path_ + ".new" : path_;
  if (log_ || fd_ < 0) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = ::open(target.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
    // The other slot's beginning, so that the next record has a place on a disk that is full by then; where the file system cannot, it may have none.
    if (fd_ >= 0) ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, kNoteSlotBytes - slot, kHeldBytes);
  }
  if (fd_ < 0 || !WriteAllAt(fd_, text, slot) || (log_ && ::rename(target.c_str(), path_.c_str()) != 0)) {
    if (log_ && fd_ >= 0) {
      const int error = errno;
      ::close(std::exchange(fd_, -1));
      ::unlink(target.c_str());
      errno = error;
    }
    return false;
  }
  log_ = false;
  end_ = slot + static_cast<int64_t>(text.size());
  most_lines_ = slot + kNoteSlotBytes - end_ - kLongestLine;
  return true;
}

bool UnsentNote::WriteLog(const std::string& body) {
  const std::string temporary = path_ + ".new";
  const int fd = ::open(temporary.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return false;
  const std::string text = NoteHeader(true, number_, body, &chain_) + body;
  if (!WriteAllAt(fd, text, 0) || ::rename(temporary.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::close(fd);
    ::unlink(temporary.c_str());
    errno = error;
    return false;
  }
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
  log_ = true;
  end_ = static_cast<int64_t>(text.size());
  most_lines_ = std::max(kLongLogBytes, end_);
  return true;
}

bool UnsentNote::Add(const transport::Extent& extent, bool appended) {
  if (end_ == 0 || lines_ >= most_lines_) return false;
  const bool in_time = SteadyNs() - said_at_ns_ < kImpliedTimeGrainNs;
  if (extent.length == 0 || (!log_ && !in_time)) return in_time;
  uint64_t chain = chain_;
  const std::string line = AddedLine(appended, extent, &chain);
  if (!WriteAllAt(fd_, line, end_)) return false;  // it is torn, which is the end of what counts; the other slot may have a place
  chain_ = chain;
  end_ += static_cast<int64_t>(line.size());
  lines_ += static_cast<int64_t>(line.size());
  said_.clear();
  return true;
}

}  // namespace e2bfs::cache
