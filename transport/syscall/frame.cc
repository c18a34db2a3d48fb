#include "transport/syscall/frame.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace e2bfs::transport::syscall {
namespace {

constexpr std::string_view kRequestMagic = "e2Q1";
constexpr std::string_view kReplyMagic = "e2R1";
constexpr size_t kStatxBytes = 144;
constexpr size_t kCheckedFrom = 12;

enum AttributeFlag : uint8_t { kSizeless = 1, kXattrNames = 2, kAccess = 4, kWatched = 8, kOnlyType = 16, kBeingWritten = 32, kReadOnly = 64 };
enum StatxMark : uint64_t { kStatxImmutable = 0x10, kStatxAppend = 0x20 };
enum ReplyFlag : uint8_t { kMore = 1, kEchoed = 2, kNews = 4 };
enum NewsKind : uint8_t { kNameChanged = 1, kDirectoryChanged = 2, kUnwatched = 3, kLost = 4 };
enum NameState : uint8_t { kGone = 0, kThere = 1, kAsk = 2 };
constexpr size_t kIdentityBytes = 28;
// Of one frame: server.pl begins another after 96 KiB, and the shortest that it says more than once has 29 bytes.
constexpr size_t kMaxNewsRecords = 4096;

template <typename T>
void AppendBig(std::string& to, T value) {
  for (int shift = int(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) to.push_back(char(static_cast<uint64_t>(value) >> shift));
}

template <typename T>
T ReadBig(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes.substr(0, sizeof(T))) value = value << 8 | static_cast<uint8_t>(byte);
  return static_cast<T>(value);
}

// A field of the sandbox's struct statx.
template <typename T>
T ReadStatx(std::string_view statx, size_t offset) {
  uint64_t value = 0;
  for (size_t i = sizeof(T); i-- > 0;) value = value << 8 | static_cast<uint8_t>(statx[offset + i]);
  return static_cast<T>(value);
}

uint32_t Checksum(std::string_view bytes) {
  uint32_t sum = 0;
  size_t at = 0;
  for (; at + 4 <= bytes.size(); at += 4) sum += ReadBig<uint32_t>(bytes.substr(at, 4));
  if (at < bytes.size()) {
    std::string last(bytes.substr(at));
    last.resize(4);
    sum += ReadBig<uint32_t>(last);
  }
  return sum;
}

std::string RequestBody(uint64_t low_water, RequestKind kind) {
  std::string body;
  AppendBig(body, low_water);
  body.push_back(char(kind));
  return body;
}

std::optional<FileType> TypeOf(uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG: return FileType::kRegular;
    case S_IFDIR: return FileType::kDirectory;
    case S_IFLNK: return FileType::kSymlink;
    case S_IFIFO: return FileType::kFifo;
    case S_IFSOCK: return FileType::kSocket;
    case S_IFCHR: return FileType::kCharDevice;
    case S_IFBLK: return FileType::kBlockDevice;
    default: return std::nullopt;
  }
}

}  // namespace

Arguments& Arguments::U8(uint8_t value) {
  AppendBig(bytes_, value);
  return *this;
}

Arguments& Arguments::U16(uint16_t value) {
  AppendBig(bytes_, value);
  return *this;
}

Arguments& Arguments::U32(uint32_t value) {
  AppendBig(bytes_, value);
  return *this;
}

Arguments& Arguments::I64(int64_t value) {
  AppendBig(bytes_, value);
  return *this;
}

Arguments& Arguments::Text(std::string_view bytes) {
  AppendBig(bytes_, static_cast<uint32_t>(bytes.size()));
  bytes_.append(bytes);
  return *this;
}

Arguments& Arguments::ShortText(std::string_view bytes) {
  AppendBig(bytes_, static_cast<uint16_t>(bytes.size()));
  bytes_.append(bytes);
  return *this;
}

Arguments& Arguments::Raw(std::string_view bytes) {
  bytes_.append(bytes);
  return *this;
}

Arguments& Arguments::Object(const Node& node) { return U8(0).Text(node.path).Text(node.id.value).Text(node.parent.value); }

Arguments& Arguments::Object(uint64_t handle, const Node& node) { return handle == 0 ? Object(node) : U8(1).U64(handle); }

Arguments& Arguments::Place(const Name& name) { return Text(name.parent.path).Text(name.parent.id.value).Text(name.name); }

Arguments& Arguments::Owner(const std::optional<Creator>& creator) {
  return creator ? U8(1).U32(creator->uid).U32(creator->gid) : U8(0);
}

Arguments& Arguments::Change(const AttributeChange& change) {
  auto bit = [](bool set, uint32_t value) { return set ? value : 0U; };
  auto time_bits = [&](const std::optional<TimeChange>& time, uint32_t value) {
    return time ? (time->now ? value << 1 : value) : 0U;
  };
  U32(bit(change.permissions.has_value(), 1) | bit(change.uid.has_value(), 2) | bit(change.gid.has_value(), 4) |
      bit(change.size.has_value(), 8) | time_bits(change.atime, 16) | time_bits(change.mtime, 64) |
      bit(change.mtime && change.mtime_is_implied, 256));
  if (change.size) I64(*change.size);
  if (change.uid) U32(*change.uid);
  if (change.gid) U32(*change.gid);
  if (change.permissions) U32(*change.permissions);
  for (const auto* time : {&change.atime, &change.mtime}) {
    if (*time && !(*time)->now) I64((*time)->value.tv_sec).U32(static_cast<uint32_t>((*time)->value.tv_nsec));
  }
  return *this;
}

std::string EncodeFrame(std::string_view server_id, uint64_t number, std::string_view body) {
  std::string frame(kRequestMagic);
  frame.reserve(kFrameHeaderBytes + body.size());
  AppendBig(frame, static_cast<uint32_t>(body.size()));
  AppendBig(frame, uint32_t{0});
  frame.append(server_id);
  AppendBig(frame, number);
  frame.append(body);
  std::string sum;
  AppendBig(sum, Checksum(std::string_view(frame).substr(kCheckedFrom)));
  frame.replace(8, 4, sum);
  return frame;
}

std::string EncodeOperations(uint64_t low_water, const std::vector<Call>& calls) {
  std::string body = RequestBody(low_water, RequestKind::kOperations);
  AppendBig(body, static_cast<uint16_t>(calls.size()));
  for (const Call& call : calls) {
    body.push_back(char(call.operation));
    AppendBig(body, static_cast<uint32_t>(call.arguments.size()));
    body.append(call.arguments);
  }
  return body;
}

std::string EncodeEcho(uint64_t low_water, std::string_view bytes) {
  return RequestBody(low_water, RequestKind::kEcho).append(bytes);
}

std::string EncodeCancel(uint64_t low_water, const std::vector<uint64_t>& numbers) {
  std::string body = RequestBody(low_water, RequestKind::kCancel);
  for (const uint64_t number : numbers) AppendBig(body, number);
  return body;
}

std::string EncodeLeave() { return RequestBody(0, RequestKind::kLeave); }

void ReplyParser::Feed(std::string_view bytes) {
  if (broken_) return;
  if (taken_ > (size_t{64} << 10)) {
    buffer_.erase(0, taken_);
    taken_ = 0;
  }
  buffer_.append(bytes);
}

void ReplyParser::DiscardUntilEcho(std::string nonce) {
  broken_ = false;
  buffer_.clear();
  taken_ = 0;
  nonce_ = std::move(nonce);
}

// Whether the reply that echoes the nonce is here; everything before it is dropped then. Its body is known, so the frame is, but for its number: the
// same text inside of content is none.
bool ReplyParser::FindEcho() {
  constexpr size_t kBefore = kFrameHeaderBytes + 3;
  const std::string_view bytes(buffer_);
  size_t found = taken_;
  while ((found = bytes.find(nonce_, found)) != std::string_view::npos) {
    if (found >= taken_ + kBefore) {
      const std::string_view frame = bytes.substr(found - kBefore, kBefore + nonce_.size());
      if (frame.starts_with(kReplyMagic) && ReadBig<uint32_t>(frame.substr(4)) == 3 + nonce_.size() &&
          frame.substr(kCheckedFrom, kServerIdBytes) == server_id_ && (frame[kFrameHeaderBytes] & kEchoed) != 0 &&
          Checksum(frame.substr(kCheckedFrom)) == ReadBig<uint32_t>(frame.substr(8))) {
        taken_ = found - kBefore;
        nonce_.clear();
        return true;
      }
    }
    ++found;
  }
  // What can be the beginning of it stays.
  const size_t kept = kBefore + nonce_.size() - 1;
  if (buffer_.size() - taken_ > kept) taken_ = buffer_.size() - kept;
  return false;
}

Result<std::optional<Reply>> ReplyParser::Next() {
  auto rubbish = [this](const char* what) {
    broken_ = true;
    return Failure(ErrorKind::kProtocol, EIO, std::string("the syscall server's answer makes no sense: ") + what);
  };
  if (broken_) return rubbish("after what made none");
  if (!nonce_.empty() && !FindEcho()) return std::nullopt;
  const std::string_view rest = std::string_view(buffer_).substr(taken_);
  if (rest.size() < kFrameHeaderBytes) return std::nullopt;
  const auto length = ReadBig<uint32_t>(rest.substr(4));
  if (!rest.starts_with(kReplyMagic)) return rubbish("no frame");
  // A listing's piece may hold one long entry more than its bound.
  if (length < 3 || length > 2 * kMaxBodyBytes) return rubbish("length");
  if (rest.size() < kFrameHeaderBytes + length) return std::nullopt;
  const std::string_view frame = rest.substr(0, kFrameHeaderBytes + length);
  if (Checksum(frame.substr(kCheckedFrom)) != ReadBig<uint32_t>(frame.substr(8))) return rubbish("checksum");
  if (frame.substr(kCheckedFrom, kServerIdBytes) != server_id_) return rubbish("another server's");
  Reply reply;
  reply.number = ReadBig<uint64_t>(frame.substr(20));
  Fields fields(frame.substr(kFrameHeaderBytes));
  const uint8_t flags = fields.U8();
  const uint16_t count = fields.U16();
  reply.more = (flags & kMore) != 0;
  reply.echo = (flags & kEchoed) != 0;
  reply.news = (flags & kNews) != 0;
  if (reply.echo || reply.news) reply.rest = std::string(fields.Rest());
  for (uint16_t i = 0; !reply.echo && !reply.news && i < count; ++i) {
    Reply::Outcome outcome;
    outcome.errno_value = static_cast<int>(fields.U32());
    outcome.result = std::string(fields.Text());
    if (!fields.ok() || outcome.errno_value < 0 || outcome.errno_value >= 4096) return rubbish("outcome");
    reply.outcomes.push_back(std::move(outcome));
  }
  if (!fields.ok() || !fields.ended()) return rubbish("reply");
  taken_ += frame.size();
  return reply;
}

std::string_view Fields::Bytes(size_t count) {
  if (count > rest_.size()) {
    ok_ = false;
    rest_ = {};
    return {};
  }
  const std::string_view bytes = rest_.substr(0, count);
  rest_.remove_prefix(count);
  return bytes;
}

std::string_view Fields::Rest() { return Bytes(rest_.size()); }
uint8_t Fields::U8() { return ReadBig<uint8_t>(Bytes(1)); }
uint16_t Fields::U16() { return ReadBig<uint16_t>(Bytes(2)); }
uint32_t Fields::U32() { return ReadBig<uint32_t>(Bytes(4)); }
int64_t Fields::I64() { return ReadBig<int64_t>(Bytes(8)); }

std::optional<Attributes> DecodeAttributes(Fields& fields, const Actor& actor) {
  const std::string_view statx = fields.Bytes(kStatxBytes);
  const uint8_t flags = fields.U8();
  if (!fields.ok()) return std::nullopt;
  Attributes attributes;
  const auto mode = ReadStatx<uint16_t>(statx, 28);
  const auto type = TypeOf(mode);
  if (!type) return std::nullopt;
  attributes.type = *type;
  attributes.permissions = mode & 07777;
  attributes.link_count = ReadStatx<uint32_t>(statx, 16);
  attributes.uid = ReadStatx<uint32_t>(statx, 20);
  attributes.gid = ReadStatx<uint32_t>(statx, 24);
  attributes.inode = ReadStatx<uint64_t>(statx, 32);
  attributes.size = ReadStatx<int64_t>(statx, 40);
  attributes.blocks = ReadStatx<int64_t>(statx, 48);
  bool sane = attributes.size >= 0 && attributes.blocks >= 0;
  auto time_at = [&](size_t offset) {
    timespec time{};
    time.tv_sec = ReadStatx<int64_t>(statx, offset);
    time.tv_nsec = ReadStatx<uint32_t>(statx, offset + 8);
    sane = sane && time.tv_nsec < 1'000'000'000;
    return time;
  };
  attributes.atime = time_at(64);
  attributes.ctime = time_at(96);
  attributes.mtime = time_at(112);
  if (!sane) return std::nullopt;
  attributes.rdev_major = ReadStatx<uint32_t>(statx, 128);
  attributes.rdev_minor = ReadStatx<uint32_t>(statx, 132);
  attributes.device = uint64_t{ReadStatx<uint32_t>(statx, 136)} << 32 | ReadStatx<uint32_t>(statx, 140);
  // Device, inode number, birth time: inode numbers alone are used again at once. As server.pl's identity_of makes it.
  if ((flags & kOnlyType) == 0) attributes.id.value.append(statx.substr(136, 8)).append(statx.substr(32, 8)).append(statx.substr(80, 12));
  // File systems that know no birth time (FUSE's, mostly: buckets) give their inode numbers out anew when they are mounted again.
  attributes.lasting = attributes.id.known() && statx.substr(80, 12).find_first_not_of('\0') != std::string_view::npos;
  attributes.size_unreliable = (flags & kSizeless) != 0;
  attributes.watched = (flags & kWatched) != 0;
  attributes.being_written = (flags & kBeingWritten) != 0;
  const auto marks = ReadStatx<uint64_t>(statx, 8);
  attributes.appends_only = (marks & kStatxAppend) != 0;
  attributes.write_refusal = (flags & kReadOnly) != 0 ? EROFS : (marks & kStatxImmutable) != 0 ? EPERM : 0;
  attributes.access = AccessByMode(attributes, actor.uid, actor.gid, actor.groups);
  if ((flags & kXattrNames) != 0) {
    static const auto none = std::make_shared<const std::vector<std::string>>();
    std::string_view names = fields.ShortText();
    if (names.empty()) {
      attributes.xattr_names = none;
    } else {
      std::vector<std::string> all;
      for (size_t end; (end = names.find('\0')) != std::string_view::npos; names.remove_prefix(end + 1)) {
        if (end > 0 && end <= 255) all.emplace_back(names.substr(0, end));
      }
      attributes.xattr_names = std::make_shared<const std::vector<std::string>>(std::move(all));
    }
  }
  if ((flags & kAccess) != 0) attributes.access = fields.U8() & 7U;
  if (!fields.ok()) return std::nullopt;
  return attributes;
}

bool DecodeEntryBody(Fields& fields, const Actor& actor, Entry& entry) {
  auto attributes = DecodeAttributes(fields, actor);
  if (!attributes) return false;
  entry.attributes = std::move(*attributes);
  entry.only_type = !entry.attributes.id.known();
  if (fields.U8() != 0) {
    entry.link_target = std::string(fields.Text());
    if (entry.link_target->empty() || entry.link_target->find('\0') != std::string::npos) entry.link_target.reset();
  }
  return fields.ok();
}

namespace {

// As DecodeNews, but what comes before the nonsense is told, and no loss is.
bool WalkNews(std::string_view news, const Actor& actor, ChangeListener* listener, bool* lost) {
  Fields fields(news);
  for (size_t records = 0; !fields.ended(); ++records) {
    if (records == kMaxNewsRecords) return false;
    const uint8_t kind = fields.U8();
    if (kind == kNameChanged) {
      const FileId directory{std::string(fields.Bytes(kIdentityBytes))};
      Entry entry;
      entry.name = std::string(fields.ShortText());
      const uint8_t state = fields.U8();
      const bool named = !entry.name.empty() && entry.name != "." && entry.name != ".." && entry.name.find_first_of(std::string_view("/\0", 2)) == entry.name.npos;
      if (!fields.ok() || !named || state > kAsk || (state == kThere && !DecodeEntryBody(fields, actor, entry))) return false;
      if (listener) listener->NameChanged(directory, entry.name, state == kThere ? std::optional(entry) : std::nullopt, state == kGone);
    } else if (kind == kDirectoryChanged) {
      const auto attributes = DecodeAttributes(fields, actor);
      if (!attributes || attributes->type != FileType::kDirectory) return false;
      if (listener) listener->DirectoryChanged(*attributes);
    } else if (kind == kUnwatched) {
      const FileId directory{std::string(fields.Bytes(kIdentityBytes))};
      if (!fields.ok()) return false;
      if (listener) listener->Unwatched(directory);
    } else if (kind == kLost) {
      *lost = true;
    } else {
      return false;
    }
  }
  return fields.ok();
}

}  // namespace

bool DecodeNews(std::string_view news, const Actor& actor, ChangeListener* listener, bool* lost) {
  bool some_lost = false;
  if (!WalkNews(news, actor, nullptr, &some_lost)) return false;
  if (listener) {
    WalkNews(news, actor, listener, &some_lost);
    // What a loss undoes is all that was told before it: at the end, it can be told once.
    if (some_lost) listener->ChangesLost();
  }
  if (lost) *lost = some_lost;
  return true;
}

std::optional<Changed> DecodeChanged(Fields& fields, const Actor& actor) {
  const uint8_t present = fields.U8();
  Changed changed;
  std::optional<Attributes>* const slots[] = {&changed.object, &changed.parent, &changed.old_parent, &changed.replaced};
  for (int i = 0; i < 4; ++i) {
    if ((present & (1 << i)) == 0) continue;
    *slots[i] = DecodeAttributes(fields, actor);
    if (!*slots[i]) return std::nullopt;
  }
  if (!fields.ok() || !fields.ended()) return std::nullopt;
  return changed;
}

}  // namespace e2bfs::transport::syscall
