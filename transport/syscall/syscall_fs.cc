#include "transport/syscall/syscall_fs.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "transport/base/log.h"
#include "transport/base/waiting.h"
#include "transport/http/rate_limit.h"
#include "transport/retry.h"
#include "transport/service_names.h"
#include "transport/service_stream.h"
#include "transport/stage_upload.h"
#include "transport/syscall/new_objects.h"
#include "transport/syscall/staging.h"

namespace e2bfs::transport {

using syscall::Arguments;
using syscall::Call;
using syscall::Effect;
using syscall::Fields;
using syscall::Operation;
using syscall::Outcomes;

namespace {

// Content up to this goes within the request; more is staged.
constexpr int64_t kInlineStoreBytes = 24 << 10;
constexpr size_t kMaxInlineExtents = 256;
constexpr int64_t kInlineRowBytes = int64_t{syscall::kMaxRequestBytes} - 100;  // of new objects, with what is around it
constexpr int64_t kCopiedBytes = 1 << 20;  // of a new file: more is not staged, but sent into it (the server copies more by a child)
constexpr int kStoreTries = 3;
constexpr size_t kMaxEntries = 500'000;
// A queue of events overflows after thousands of them: whoever tells it more often wants us to be busy.
constexpr int64_t kLossesPerMinute = 300;
constexpr std::chrono::milliseconds kOpenTime{60'000};
constexpr std::chrono::milliseconds kUnwrittenTime{10'000};
constexpr std::chrono::milliseconds kStatisticsTime{1'000};
constexpr size_t kStatisticsBytes = 88;

tl::unexpected<Error> Nonsense(const char* what) {
  return Failure(ErrorKind::kProtocol, EIO, std::string("the syscall server's answer makes no sense: ") + what);
}

// Bytes that are already here.
class HeldStream final : public ByteStream {
 public:
  HeldStream(std::string bytes, Attributes attributes) : bytes_(std::move(bytes)), attributes_(std::move(attributes)) {}
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext&) override {
    const size_t count = bytes_.copy(buffer, capacity, taken_);
    taken_ += count;
    return count;
  }
  void Cancel() override {}
  const Attributes* attributes() const override { return &attributes_; }

 private:
  const std::string bytes_;
  const Attributes attributes_;
  size_t taken_ = 0;
};

constexpr int64_t kEarlyPieceBytes = 256 << 10;

bool SameTimes(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

bool IsVersion(const Attributes& attributes, const Attributes& version) {
  return attributes.size == version.size && SameTimes(attributes.mtime, version.mtime);
}

// What a file is asked for while it is already read from.
struct Inquiry {
  std::mutex mutex;  // a leaf
  std::condition_variable_any changed;
  std::optional<Result<Attributes>> answer;  // set once
};

// A range of `length` bytes, not empty, of a file that is to be `version`. Its attributes are asked for when the files API has it open; reading does not wait for
// them, but for the last bytes of the range.
class InquiredStream final : public ByteStream {
 public:
  InquiredStream(std::unique_ptr<ByteStream> stream, std::shared_ptr<Inquiry> inquiry, const Attributes& version, int64_t length)
      : stream_(std::move(stream)), inquiry_(std::move(inquiry)), version_(version), left_(length) {}

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    auto got = stream_->Read(buffer, capacity, ctx);
    if (!got) return got;
    left_ -= static_cast<int64_t>(*got);
    if (auto same = Check(*got == 0 || left_ <= 0, ctx); !same) return Forward(same.error());
    return got;
  }
  void Cancel() override { stream_->Cancel(); }
  const Attributes* attributes() const override {
    std::lock_guard lock(inquiry_->mutex);
    return inquiry_->answer && *inquiry_->answer ? &**inquiry_->answer : nullptr;
  }

 private:
  Result<void> Check(bool wait, const OpContext& ctx) {
    std::unique_lock lock(inquiry_->mutex);
    if (wait && !WaitWithin(inquiry_->changed, lock, ctx, [this] { return inquiry_->answer.has_value(); })) return WaitEnded(ctx, "reading");
    if (!inquiry_->answer) return {};
    const Result<Attributes>& now = *inquiry_->answer;
    // kBroken: another range is opened, and if that is refused its error tells why.
    if (!now) return Failure(ErrorKind::kBroken, EIO, "nobody knows whether it is still that version: " + now.error().message);
    if (!IsVersion(*now, version_)) return Errno(ESTALE, "another version");
    return {};
  }

  const std::unique_ptr<ByteStream> stream_;
  const std::shared_ptr<Inquiry> inquiry_;
  const Attributes version_;
  int64_t left_;
};

class SyscallFsImpl;

// Of a file whose size nobody knows: one request after the other, to the end.
class SizelessStream final : public ByteStream {
 public:
  SizelessStream(SyscallFsImpl& fs, Handle handle, Node node, Extent range) : fs_(fs), handle_(handle), node_(std::move(node)), range_(range) {}
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override;
  void Cancel() override {}

 private:
  SyscallFsImpl& fs_;
  const Handle handle_;
  const Node node_;
  Extent range_;
};

struct OpenHandle {
  enum class State { kOpening, kOpen, kFailed };
  State state = State::kOpening;
  Node node;             // as it was opened
  uint8_t flags = 0;     // OpenFlag, without truncation
  uint32_t server_pid = 0, descriptor = 0;  // where it is open
  std::optional<Error> error;
  bool ours_only = false;  // a stage: cannot be opened again
};

class SyscallFsImpl final : public RemoteFs {
 public:
  class Early;

  SyscallFsImpl(std::shared_ptr<envd::Client> client, SyscallFsOptions options) : client_(std::move(client)), options_(std::move(options)) {}

  Result<void> Start(const OpContext& ctx) {
    auto channel = syscall::Channel::Open(
        client_, options_.channel, [this](uint32_t old_pid, uint32_t new_pid, const syscall::Channel::Transact& transact) { return Reopen(old_pid, new_pid, transact); },
        [this](const std::string* news) { return Tell(news); }, ctx);
    if (!channel) return Forward(channel.error());
    channel_ = std::move(*channel);
    const syscall::ServerFacts facts = channel_->facts();
    actor_ = facts.actor;
    {
      std::lock_guard lock(mutex_);
      server_pid_ = facts.pid;
    }
    description_.tier = "syscall";
    description_.user = facts.user;
    description_.uid = facts.actor.uid;
    description_.gid = facts.actor.gid;
    description_.root = facts.root;
    description_.home = facts.home;
    description_.server_version = client_->capabilities().version_text;
    description_.hard_links_share_identity = true;
    description_.identities_survive_renames = true;
    description_.tells_ctime = true;
    description_.clock_seconds = facts.clock_seconds;
    description_.clears_set_ids = true;
    perl_version_ = facts.perl_version;
    channel_->Begin();
    return {};
  }

  const Description& description() const override { return description_; }

  void SetListener(ChangeListener* listener) override {
    std::lock_guard lock(listener_mutex_);
    listener_ = listener;
  }

  // --- names and attributes

  Result<Attributes> Stat(const Node& node, const OpContext& ctx) override {
    return AskAttributes(Operation::kStat, Arguments().Object(node), Effect::kNone, ctx);
  }

  Result<Attributes> StatHandle(Handle handle, const Node& node, const OpContext& ctx) override {
    return Explain(handle, AskAttributes(Operation::kStat, Arguments().Object(handle, node), Effect::kNone, ctx));
  }

  Result<Attributes> Lookup(const Name& name, const OpContext& ctx) override {
    auto result = Ask(Operation::kLookup, Arguments().Place(name), Effect::kNone, ctx);
    if (!result) return Forward(result.error());
    Fields fields(*result);
    auto attributes = syscall::DecodeAttributes(fields, actor_);
    if (!attributes) return Nonsense("lookup");
    return std::move(*attributes);
  }

  Result<Listing> List(const Node& directory, const OpContext& ctx) override {
    // Whoever goes through directories asks about their file system, too.
    std::vector<Call> calls = {{Operation::kList, Arguments().Text(directory.path).Text(directory.id.value).bytes()}};
    const uint64_t changes = changes_;
    const bool with_statistics = !statistics_refused_ && !KnownStatistics();
    if (with_statistics) calls.push_back({Operation::kStatFs, {}});
    const TimePoint asked = Clock::now();
    auto outcomes = channel_->Do(calls, Effect::kNone, ctx);
    if (!outcomes) return Forward(outcomes.error());
    if (with_statistics && outcomes->size() > 1) {
      // An error is the listing's, or theirs: then it is asked for without them from now on.
      if (outcomes->back().errno_value != 0) {
        statistics_refused_ = true;
        return List(directory, ctx);
      }
      if (NoteStatistics(outcomes->back().result, asked, changes)) outcomes->pop_back();
    }
    Listing listing;
    for (size_t i = 0; i < outcomes->size(); ++i) {
      const syscall::Reply::Outcome& piece = (*outcomes)[i];
      if (piece.errno_value != 0) return Errno(piece.errno_value, directory.path);
      Fields fields(piece.result);
      if (i == 0) {
        auto attributes = syscall::DecodeAttributes(fields, actor_);
        if (!attributes) return Nonsense("listing");
        listing.directory = std::move(*attributes);
      }
      const uint32_t count = fields.U32();
      if (listing.entries.size() + count > kMaxEntries) return Failure(ErrorKind::kProtocol, EFBIG, "a listing without an end");
      for (uint32_t j = 0; j < count; ++j) {
        auto entry = DecodeEntry(fields);
        if (!entry) return Nonsense("entry");
        listing.entries.push_back(std::move(*entry));
      }
      if (!fields.ok() || !fields.ended()) return Nonsense("entries");
      (*outcomes)[i].result = {};  // not held twice
    }
    DropRepeatedNames(listing.entries);
    return listing;
  }

  Result<std::vector<DeepListing>> ListDeep(const Node& directory, const DeepQuestion& question, const OpContext& ctx) override {
    Arguments arguments;
    arguments.Text(directory.path).Text(directory.id.value).U8(static_cast<uint8_t>(std::min<uint32_t>(question.depth, 255)));
    arguments.U32(static_cast<uint32_t>(std::min<size_t>(question.max_directories, kMaxEntries)));
    arguments.U32(static_cast<uint32_t>(std::min<size_t>(question.max_entries, kMaxEntries)));
    Arguments paths;
    uint16_t count = 0;
    for (const std::string& path : question.directories) {
      if (arguments.bytes().size() + paths.bytes().size() + path.size() + 100 > syscall::kMaxRequestBytes || count == UINT16_MAX) break;
      paths.ShortText(path);
      ++count;
    }
    if (count == 0) return Errno(ENAMETOOLONG, directory.path);
    const auto outcomes = channel_->Do({{Operation::kListDeep, arguments.U16(count).Raw(paths.bytes()).bytes()}}, Effect::kNone, ctx);
    if (!outcomes) return Forward(outcomes.error());
    return DecodeDeep(*outcomes, directory.path, question);
  }

  Result<std::string> ReadLink(const Node& node, const OpContext& ctx) override {
    auto text = Ask(Operation::kReadLink, Arguments().Object(node), Effect::kNone, ctx);
    if (text && (text->empty() || text->size() > 4096 || text->find('\0') != std::string::npos)) return Nonsense("a link's text");
    return text;
  }

  Result<FsStatistics> StatFs(const OpContext& ctx) override {
    if (const auto known = KnownStatistics()) return *known;
    auto result = Ask(Operation::kStatFs, Arguments(), Effect::kNone, ctx);
    if (!result) return Forward(result.error());
    auto statistics = DecodeStatistics(*result);
    if (!statistics) return Nonsense("statfs");
    return *statistics;
  }

  // --- changes of names

  Result<Changed> MakeDirectory(const Name& name, uint32_t permissions, const OpContext& ctx) override {
    return Change(Operation::kMakeDirectory, Arguments().Place(name).U32(permissions).Owner(ctx.creator), ctx);
  }

  Result<Changed> MakeNode(const Name& name, FileType type, uint32_t permissions, uint32_t major, uint32_t minor,
                           const OpContext& ctx) override {
    uint32_t bits = 0;
    switch (type) {
      case FileType::kRegular: bits = 0100000; break;
      case FileType::kFifo: bits = 0010000; break;
      case FileType::kSocket: bits = 0140000; break;
      case FileType::kCharDevice: bits = 0020000; break;
      case FileType::kBlockDevice: bits = 0060000; break;
      default: return Errno(EINVAL, "mknod");
    }
    return Change(Operation::kMakeNode, Arguments().Place(name).U32(bits | permissions).U32(major).U32(minor).Owner(ctx.creator), ctx);
  }

  Result<Changed> MakeSymlink(const Name& name, const std::string& target, const OpContext& ctx) override {
    if (target.size() > 4095) return Errno(ENAMETOOLONG, "link text");
    return Change(Operation::kMakeSymlink, Arguments().Place(name).Text(target).Owner(ctx.creator), ctx);
  }

  Result<Changed> MakeLink(const Node& existing, const Name& name, const OpContext& ctx) override {
    return Change(Operation::kMakeLink, Arguments().Object(existing).Place(name), ctx);
  }

  Result<Changed> Unlink(const Name& name, const OpContext& ctx) override { return Change(Operation::kUnlink, Arguments().Place(name), ctx); }

  Result<Changed> RemoveDirectory(const Name& name, const OpContext& ctx) override {
    return Change(Operation::kRemoveDirectory, Arguments().Place(name), ctx);
  }

  Result<Changed> Rename(const Name& from, const Name& to, uint32_t flags, const OpContext& ctx) override {
    if ((flags & ~uint32_t{kRenameNoReplace | kRenameExchange}) != 0) return Errno(EINVAL, "rename flags");
    auto changed = Change(Operation::kRename, Arguments().Place(from).Place(to).U32(flags), ctx);
    if (changed && !changed->replaced) changed->replaced.emplace();  // there was nothing
    return changed;
  }

  Result<Changed> SetAttributes(const Node& node, Handle handle, const AttributeChange& change, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, node.path);
    return ChangeObject(Operation::kSetAttributes, handle, Arguments().Object(handle, node).Change(change), ctx);
  }

  Result<MadeObjects> MakeObjects(const std::vector<NewObject>& objects, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS);
    auto row = syscall::EncodeRow(objects);
    if (!row) return Forward(row.error());
    if (objects.empty()) return MadeObjects{};
    const OpContext whole = ctx.Uninterruptible();
    for (int tries = 1;; ++tries) {
      bool asked = false;
      auto made = MakeRow(*row, objects, asked, whole);
      if (made || asked || !IsWorthATry(made.error().kind) || tries == kStoreTries || Clock::now() >= ctx.deadline) return made;
      log::Info("syscall", "staging failed, trying again: {}", ToString(made.error()));
    }
  }

  // --- extended attributes

  Result<std::string> GetXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) override {
    return Explain(handle, Ask(Operation::kGetXattr, Arguments().Object(handle, node).Text(name), Effect::kNone, ctx));
  }

  Result<std::vector<std::string>> ListXattrs(const Node& node, Handle handle, const OpContext& ctx) override {
    auto result = Explain(handle, Ask(Operation::kListXattrs, Arguments().Object(handle, node), Effect::kNone, ctx));
    if (!result) return Forward(result.error());
    std::vector<std::string> names;
    std::string_view rest = *result;
    for (size_t end; (end = rest.find('\0')) != std::string_view::npos; rest.remove_prefix(end + 1)) {
      if (end > 0 && end <= 255) names.emplace_back(rest.substr(0, end));
    }
    return names;
  }

  Result<Changed> SetXattr(const Node& node, Handle handle, const std::string& name, const std::string& value, int flags,
                           const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, node.path);
    // A value that no frame holds is more than any file system of a sandbox takes.
    if (value.size() + node.path.size() + name.size() + 200 > syscall::kMaxRequestBytes) return Errno(ENOSPC, name);
    return ChangeObject(Operation::kSetXattr, handle,
                        Arguments().Object(handle, node).Text(name).Text(value).U32(static_cast<uint32_t>(flags)), ctx);
  }

  Result<Changed> RemoveXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, node.path);
    return ChangeObject(Operation::kRemoveXattr, handle, Arguments().Object(handle, node).Text(name), ctx);
  }

  // --- open files

  Result<Opened> Open(const Node& node, const OpenRequest& request, const OpContext& ctx) override {
    if (request.write && options_.read_only) return Errno(EROFS, node.path);
    const Handle handle = NewHandle(node, FlagsOf(request));
    uint32_t pid = 0;
    auto result = Ask(Operation::kOpen, OpenArguments(handle, node, FlagsOf(request) | (request.truncate ? syscall::kOpenTruncate : 0)),
                      request.truncate ? Effect::kChange : Effect::kNone, ctx, &pid);
    if (!result) {
      DropRecord(handle);
      // It may have been opened there all the same.
      if (result.error().kind != ErrorKind::kErrno) channel_->Post({{Operation::kClose, Arguments().U64(handle).bytes()}}, {});
      return Forward(result.error());
    }
    Fields fields(*result);
    const uint32_t descriptor = fields.U32();
    fields.U32();
    auto attributes = syscall::DecodeAttributes(fields, actor_);
    if (!attributes) return Nonsense("open");
    if (auto confirmed = Confirm(handle, pid, descriptor, attributes->id, {}, ctx); !confirmed) return Forward(confirmed.error());
    Opened opened;
    opened.handle = handle;
    opened.attributes = std::move(*attributes);
    return opened;
  }

  Handle OpenSoon(const Node& node, const OpenRequest& request) override {
    if ((request.write && options_.read_only) || request.truncate) return 0;
    const Handle handle = NewHandle(node, FlagsOf(request));
    channel_->Post({{Operation::kOpen, OpenArguments(handle, node, FlagsOf(request))}}, [this, handle](Result<Outcomes> outcomes) {
      Result<std::string> result = outcomes ? FirstResult(*outcomes) : Result<std::string>(Forward(outcomes.error()));
      if (!result) return Refuse(handle, result.error());
      Fields fields(*result);
      const uint32_t descriptor = fields.U32();
      fields.U32();
      auto attributes = syscall::DecodeAttributes(fields, actor_);
      if (!attributes) return Refuse(handle, Nonsense("open").value());
      // Called in order with what happens to servers: it is the one of now.
      if (!TryConfirm(handle, channel_->server_pid(), descriptor, attributes->id, {})) {
        Refuse(handle, Failure(ErrorKind::kBroken, EIO, "the syscall server was lost").value());
      }
    });
    return handle;
  }

  std::optional<Error> OpenFailure(Handle handle) const override {
    std::lock_guard lock(mutex_);
    auto found = handles_.find(handle);
    return found == handles_.end() ? std::nullopt : found->second.error;
  }

  Result<Opened> Create(const Name& name, const CreateRequest& request, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, name.name);
    Node node{JoinPath(name.parent.path, name.name), {}};
    const Handle handle = NewHandle(node, syscall::kOpenRead | syscall::kOpenWrite);
    uint32_t pid = 0;
    auto result = Ask(Operation::kCreate,
                      Arguments().U64(handle).U8(request.exclusive ? 1 : 0).Place(name).U32(request.permissions).Owner(ctx.creator).bytes(),
                      Effect::kChange, ctx, &pid);
    if (!result) {
      DropRecord(handle);
      if (result.error().kind != ErrorKind::kErrno) channel_->Post({{Operation::kClose, Arguments().U64(handle).bytes()}}, {});
      return Forward(result.error());
    }
    Fields fields(*result);
    const uint32_t descriptor = fields.U32();
    const uint32_t rights = fields.U32();
    Opened opened;
    opened.created = fields.U8() != 0;
    auto attributes = syscall::DecodeAttributes(fields, actor_);
    auto parent = attributes ? syscall::DecodeAttributes(fields, actor_) : std::nullopt;
    if (!parent || !fields.ended()) return Nonsense("create");
    if (auto confirmed = Confirm(handle, pid, descriptor, attributes->id, static_cast<uint8_t>(rights & 3), ctx); !confirmed) {
      return Forward(confirmed.error());
    }
    opened.handle = handle;
    opened.attributes = std::move(*attributes);
    opened.parent = std::move(*parent);
    return opened;
  }

  Result<std::unique_ptr<ByteStream>> Read(Handle handle, const Node& node, const Attributes* version, Extent range,
                                           const OpContext& ctx) override {
    if (range.offset < 0 || range.length < 0 || range.length > INT64_MAX - range.offset) return Errno(EINVAL, "range");
    if (version && version->size_unreliable) return std::unique_ptr<ByteStream>(std::make_unique<SizelessStream>(*this, handle, node, range));
    if (version) range.length = std::clamp<int64_t>(version->size - range.offset, 0, range.length);
    if (range.length <= static_cast<int64_t>(syscall::kMaxReadBytes)) {
      Attributes now;
      auto bytes = ReadPiece(handle, node, range.offset, static_cast<size_t>(range.length), &now, ctx);
      if (!bytes) return Forward(bytes.error());
      if (version && !IsVersion(now, *version)) return Errno(ESTALE, node.path);
      return std::unique_ptr<ByteStream>(std::make_unique<HeldStream>(std::move(*bytes), std::move(now)));
    }
    if (!version) {
      // Whether its size is to be trusted is not known yet.
      Attributes now;
      auto attributes = StatHandle(handle, node, ctx);
      if (!attributes) return Forward(attributes.error());
      if (attributes->size_unreliable) return std::unique_ptr<ByteStream>(std::make_unique<SizelessStream>(*this, handle, node, range));
    }
    return ReadByFiles(handle, node, version, range, ctx);
  }

  Result<std::vector<FileContent>> ReadFiles(const std::vector<KnownFiles>& files, const OpContext& ctx) override {
    Arguments groups;
    uint16_t count = 0;
    std::vector<std::pair<size_t, size_t>> asked;  // by the server's numbers
    bool full = false;
    for (size_t i = 0; i < files.size() && !full; ++i) {
      Arguments names;
      uint16_t in_directory = 0;
      for (size_t j = 0; j < files[i].files.size(); ++j) {
        const KnownFiles::File& file = files[i].files[j];
        full = groups.bytes().size() + files[i].directory.path.size() + names.bytes().size() + file.name.size() + 200 > syscall::kMaxRequestBytes;
        if (full) break;
        if (file.version.type != FileType::kRegular || file.version.size_unreliable || file.version.size > int64_t{syscall::kMaxReadBytes}) continue;
        names.ShortText(file.name).U32(static_cast<uint32_t>(file.version.size));
        asked.emplace_back(i, j);
        ++in_directory;
      }
      if (in_directory == 0) continue;
      groups.Text(files[i].directory.path).Text(files[i].directory.id.value).U16(in_directory).Raw(names.bytes());
      ++count;
    }
    std::vector<FileContent> contents;
    if (count == 0) return contents;
    const auto outcomes = channel_->Do({{Operation::kReadFiles, Arguments().U16(count).Raw(groups.bytes()).bytes()}}, Effect::kNone, ctx);
    if (!outcomes) return Forward(outcomes.error());
    std::vector<bool> found(asked.size());
    for (const syscall::Reply::Outcome& piece : *outcomes) {
      if (piece.errno_value != 0) return Errno(piece.errno_value, "reading several files");
      Fields fields(piece.result);
      while (!fields.ended()) {
        const uint32_t number = fields.U32();
        if (!fields.ok() || number >= asked.size() || found[number]) return Nonsense("a file that was not asked for");
        found[number] = true;
        FileContent content;
        std::tie(content.directory, content.file) = asked[number];
        const Attributes& version = files[content.directory].files[content.file].version;
        auto attributes = syscall::DecodeAttributes(fields, actor_);
        if (!attributes) return Nonsense("a file's attributes");
        content.attributes = std::move(*attributes);
        content.bytes = std::string(fields.Text());
        if (!fields.ok() || static_cast<int64_t>(content.bytes.size()) != version.size) return Nonsense("a file's content");
        if (IsSameVersion(content.attributes, version) && !content.attributes.size_unreliable) contents.push_back(std::move(content));
      }
    }
    return contents;
  }

  // Bytes of one request, and the attributes after them.
  Result<std::string> ReadPiece(Handle handle, const Node& node, int64_t offset, size_t length, Attributes* now, const OpContext& ctx) {
    auto result = Explain(handle, Ask(Operation::kRead, Arguments().Object(handle, node).I64(offset).U32(static_cast<uint32_t>(length)),
                                      Effect::kNone, ctx));
    if (!result) return result;
    Fields fields(*result);
    auto attributes = syscall::DecodeAttributes(fields, actor_);
    if (!attributes) return Nonsense("read");
    const std::string_view bytes = fields.Rest();
    if (bytes.size() > length) return Nonsense("more bytes than were asked for");
    if (now) *now = std::move(*attributes);
    return std::string(bytes);
  }

  Result<Attributes> Store(Handle handle, const Node& node, const StoreRequest& request, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, node.path);
    auto plan = syscall::PlanStage(request);
    if (!plan) return Forward(plan.error());
    // Nothing is given up half-way because a program dies.
    const OpContext whole = ctx.Uninterruptible();
    if (request.early) {
      auto stored = FinishEarly(handle, node, request, *plan, whole);
      if (stored || stored.error().kind == ErrorKind::kErrno) return stored;
      log::Info("syscall", "what was sent early is sent again: {}", ToString(stored.error()));
    }
    if (plan->bytes <= kInlineStoreBytes && request.extents.size() <= kMaxInlineExtents) return StoreInline(handle, node, request, whole);
    for (int tries = 1;; ++tries) {
      auto stored = StoreStaged(handle, node, request, *plan, whole);
      if (stored || tries == kStoreTries || Clock::now() >= ctx.deadline) return stored;
      // Writing the same bytes to the same place twice is once; appending is not.
      if (!IsWorthATry(stored.error().kind) || stored.error().rpc_code.starts_with(kCommitted)) return stored;
      log::Info("syscall", "staging failed, trying again: {}", ToString(stored.error()));
    }
  }

  Result<std::unique_ptr<EarlyStore>> BeginStore(Handle handle, const Node& node, bool fresh, const OpContext& ctx) override;

  void EndWriting(Handle handle) override {
    if (handle != 0) channel_->Post({{Operation::kEndWriting, Arguments().U64(handle).bytes()}}, {});
  }

  Result<int64_t> Seek(Handle handle, const Node& node, int64_t offset, SeekTarget target, const OpContext& ctx) override {
    auto result = Explain(handle, Ask(Operation::kSeek, Arguments().Object(handle, node).I64(offset).U8(target == SeekTarget::kData ? 3 : 4),
                                      Effect::kNone, ctx));
    if (!result) return Forward(result.error());
    Fields fields(*result);
    const int64_t found = fields.I64();
    if (!fields.ok() || found < 0) return Nonsense("lseek");
    return found;
  }

  Result<Attributes> Allocate(Handle handle, const Node& node, uint32_t mode, Extent range, const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, node.path);
    return Explain(handle, AskAttributes(Operation::kAllocate,
                                         Arguments().Object(handle, node).U32(mode).I64(range.offset).I64(range.length), Effect::kChange, ctx));
  }

  Result<Copied> CopyRange(Handle from, const Node& from_node, int64_t from_offset, Handle to, const Node& to_node, Extent target,
                           const OpContext& ctx) override {
    if (options_.read_only) return Errno(EROFS, to_node.path);
    auto result = Explain(to, Explain(from, Ask(Operation::kCopyRange,
                                                Arguments().Object(from, from_node).I64(from_offset).Object(to, to_node).I64(target.offset)
                                                    .I64(target.length),
                                                Effect::kChange, ctx)));
    if (!result) return Forward(result.error());
    Fields fields(*result);
    Copied copied;
    copied.bytes = fields.I64();
    auto attributes = syscall::DecodeAttributes(fields, actor_);
    if (!attributes || copied.bytes < 0 || copied.bytes > target.length) return Nonsense("copy_file_range");
    copied.target = std::move(*attributes);
    return copied;
  }

  Result<void> Sync(Handle handle, const Node& node, const OpContext& ctx) override {
    auto result = Explain(handle, Ask(Operation::kSync, Arguments().Object(handle, node), Effect::kNone, ctx));
    if (!result) return Forward(result.error());
    return {};
  }

  void Close(Handle handle, const OpContext&) override {
    if (handle == 0 || !DropRecord(handle)) return;
    channel_->Post({{Operation::kClose, Arguments().U64(handle).bytes()}}, {});
  }

  std::vector<std::pair<std::string, std::string>> Status() const override {
    const syscall::ChannelCounts counts = channel_->counts();
    size_t open;
    {
      std::lock_guard lock(mutex_);
      open = handles_.size();
    }
    return {{"tier", "syscall"},
            {"syscall server", "perl " + perl_version_ + ", pid " + std::to_string(channel_->server_pid())},
            {"round trips", std::to_string(counts.round_trips)},
            {"frames", std::to_string(counts.requests)},
            {"servers started", std::to_string(counts.servers)},
            {"reattached", std::to_string(counts.reattached)},
            {"open files there", std::to_string(open)}};
  }

 private:
  // In Error::rpc_code: the content may be in the file already.
  static constexpr std::string_view kCommitted = "commit";

  // Of staging.
  static bool IsWorthATry(ErrorKind kind) {
    return kind == ErrorKind::kUnavailable || kind == ErrorKind::kConnect || kind == ErrorKind::kRateLimited || kind == ErrorKind::kBroken;
  }

  static uint8_t FlagsOf(const OpenRequest& request) {
    return static_cast<uint8_t>((request.read ? syscall::kOpenRead : 0) | (request.write ? syscall::kOpenWrite : 0));
  }

  // struct statfs of 64-bit machines, little-endian.
  static std::optional<FsStatistics> DecodeStatistics(std::string_view bytes) {
    if (bytes.size() < kStatisticsBytes) return std::nullopt;
    auto word = [&](size_t index) {
      uint64_t value = 0;
      for (size_t i = 8; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[index * 8 + i]);
      return value;
    };
    FsStatistics statistics;
    statistics.block_bytes = word(9) != 0 ? word(9) : word(1);  // f_frsize counts the blocks
    statistics.blocks = word(2);
    statistics.blocks_free = word(3);
    statistics.blocks_available = word(4);
    statistics.files = word(5);
    statistics.files_free = word(6);
    statistics.name_max = static_cast<uint32_t>(std::min<uint64_t>(word(8), 255));
    return statistics;
  }

  // What a listing brought a moment ago, if nothing was changed here since.
  std::optional<FsStatistics> KnownStatistics() const {
    std::lock_guard lock(mutex_);
    const bool good = statistics_ && Clock::now() < statistics_until_ && statistics_changes_ == changes_;
    return good ? statistics_ : std::nullopt;
  }
  // False: that is something else.
  bool NoteStatistics(std::string_view bytes, TimePoint asked, uint64_t changes) {
    auto statistics = bytes.size() == kStatisticsBytes ? DecodeStatistics(bytes) : std::nullopt;
    if (!statistics) return false;
    std::lock_guard lock(mutex_);
    statistics_ = statistics;
    statistics_until_ = asked + kStatisticsTime;
    statistics_changes_ = changes;
    return true;
  }

  static std::string OpenArguments(Handle handle, const Node& node, uint8_t flags, uint32_t old_pid = 0, uint32_t old_descriptor = 0) {
    return Arguments().U64(handle).U8(flags).Text(node.path).Text(node.id.value).Text(node.parent.value).U32(old_pid).U32(old_descriptor).bytes();
  }

  static Result<std::string> FirstResult(Outcomes& outcomes) {
    if (outcomes[0].errno_value != 0) {
      Error error = Errno(outcomes[0].errno_value).value();
      Fields more(outcomes[0].result);
      switch (more.U8()) {  // as server.pl says it
        case 1: error.content_stored = true; break;
        case 2: error.appended = std::max<int64_t>(more.I64(), 0); break;
        default: break;
      }
      return Forward(std::move(error));
    }
    return std::move(outcomes[0].result);
  }

  static bool ReadsOnly(Operation operation) {
    switch (operation) {
      case Operation::kStat:
      case Operation::kLookup:
      case Operation::kReadLink:
      case Operation::kStatFs:
      case Operation::kGetXattr:
      case Operation::kListXattrs:
      case Operation::kRead:
      case Operation::kSeek: return true;
      default: return false;
    }
  }

  Result<std::string> Ask(Operation operation, const std::string& arguments, Effect effect, const OpContext& ctx, uint32_t* server_pid = nullptr) {
    const bool only_reads = ReadsOnly(operation);
    if (!only_reads) ++changes_;
    auto outcomes = channel_->Do({{operation, arguments}}, effect, ctx, server_pid);
    if (!only_reads) ++changes_;
    if (!outcomes) return Forward(outcomes.error());
    return FirstResult(*outcomes);
  }
  Result<std::string> Ask(Operation operation, const Arguments& arguments, Effect effect, const OpContext& ctx) {
    return Ask(operation, arguments.bytes(), effect, ctx);
  }

  Result<Attributes> AskAttributes(Operation operation, const Arguments& arguments, Effect effect, const OpContext& ctx) {
    return AttributesOf(Ask(operation, arguments, effect, ctx), actor_);
  }

  static Result<Attributes> AttributesOf(const Result<std::string>& result, const syscall::Actor& actor) {
    if (!result) return Forward(result.error());
    Fields fields(*result);
    auto attributes = syscall::DecodeAttributes(fields, actor);
    if (!attributes || !fields.ended()) return Nonsense("attributes");
    return std::move(*attributes);
  }

  Result<Changed> Change(Operation operation, const Arguments& arguments, const OpContext& ctx) {
    if (options_.read_only) return Errno(EROFS);
    auto result = Ask(operation, arguments, Effect::kChange, ctx);
    if (!result) return Forward(result.error());
    Fields fields(*result);
    auto changed = syscall::DecodeChanged(fields, actor_);
    if (!changed) return Nonsense("change");
    return std::move(*changed);
  }

  Result<Changed> ChangeObject(Operation operation, Handle handle, const Arguments& arguments, const OpContext& ctx) {
    auto attributes = Explain(handle, AskAttributes(operation, arguments, Effect::kChange, ctx));
    if (!attributes) return Forward(attributes.error());
    Changed changed;
    changed.object = std::move(*attributes);
    return changed;
  }

  std::optional<Entry> DecodeEntry(Fields& fields) const {
    Entry entry;
    entry.name = std::string(fields.ShortText());
    if (!syscall::DecodeEntryBody(fields, actor_, entry) || CheckName(entry.name) != 0) return std::nullopt;
    return entry;
  }

  // The parts of each listing come in order; one that is not whole at the end is left out.
  Result<std::vector<DeepListing>> DecodeDeep(const Outcomes& outcomes, const std::string& path, const DeepQuestion& question) const {
    const AskedPaths asked(question);
    struct Partial {
      Listing listing;
      uint32_t parts = 0;
      bool ended = false;
    };
    std::map<std::string, Partial> found;
    std::vector<std::string> order;
    size_t guessed = 0;
    for (const syscall::Reply::Outcome& piece : outcomes) {
      if (piece.errno_value != 0) return Errno(piece.errno_value, path);
      Fields fields(piece.result);
      while (!fields.ended()) {
        std::string below(fields.ShortText());
        const uint32_t part = fields.U32();
        const bool ended = fields.U8() != 0;
        if (!fields.ok() || CheckPath(below) != 0 || !asked.contains(below)) return Nonsense("a listing that was not asked for");
        const bool wanted = below == question.directories.front();
        auto [at, fresh] = found.try_emplace(below);
        Partial& partial = at->second;
        if (fresh) order.push_back(below);
        if (order.size() > question.max_directories) return Nonsense("more listings than were asked for");
        if (part == 0) {
          if (!fresh) return Nonsense("a listing told twice");
          auto attributes = syscall::DecodeAttributes(fields, actor_);
          if (!attributes || attributes->type != FileType::kDirectory) return Nonsense("listing");
          partial.listing.directory = std::move(*attributes);
        }
        if (partial.ended || part != partial.parts++) return Nonsense("a listing's parts");
        const uint32_t count = fields.U32();
        if (!wanted) guessed += count;
        const bool endless = wanted ? partial.listing.entries.size() + count > kMaxEntries : guessed > question.max_entries;
        if (endless) return Failure(ErrorKind::kProtocol, EFBIG, "a listing without an end");
        for (uint32_t j = 0; j < count; ++j) {
          auto entry = DecodeEntry(fields);
          if (!entry) return Nonsense("entry");
          partial.listing.entries.push_back(std::move(*entry));
        }
        if (!fields.ok()) return Nonsense("entries");
        partial.ended = ended;
      }
    }
    std::vector<DeepListing> listings;
    for (std::string& below : order) {
      Partial& partial = found[below];
      if (!partial.ended) continue;
      DropRepeatedNames(partial.listing.entries);
      listings.push_back({std::move(below), std::move(partial.listing)});
    }
    return listings;
  }

  bool Tell(const std::string* news) {
    std::lock_guard lock(listener_mutex_);
    if (!news) {
      if (listener_) listener_->ChangesLost();
      return true;
    }
    bool lost = false;
    if (!syscall::DecodeNews(*news, actor_, listener_, &lost)) return false;
    return !lost || !losses_.Take(Clock::now());
  }

  // readdir may give a name twice while entries come and go; the later one is the newer.
  static void DropRepeatedNames(std::vector<Entry>& entries) {
    std::map<std::string_view, size_t> last;
    for (size_t i = 0; i < entries.size(); ++i) last[entries[i].name] = i;
    if (last.size() == entries.size()) return;
    std::vector<Entry> kept;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (last[entries[i].name] == i) kept.push_back(entries[i]);
    }
    entries = std::move(kept);
  }

  // --- handles

  Handle NewHandle(const Node& node, uint8_t flags) {
    std::lock_guard lock(mutex_);
    const Handle handle = next_handle_++;
    OpenHandle& opened = handles_[handle];
    opened.node = node;
    opened.flags = flags;
    return handle;
  }

  // False: that server is gone, and its successor did not know of the handle.
  bool TryConfirm(Handle handle, uint32_t pid, uint32_t descriptor, const FileId& id, std::optional<uint8_t> flags) {
    std::lock_guard lock(mutex_);
    auto found = handles_.find(handle);
    if (found == handles_.end()) return true;
    found->second.node.id = id;
    if (flags) found->second.flags = *flags;
    if (pid != server_pid_) return false;
    found->second.state = OpenHandle::State::kOpen;
    found->second.server_pid = pid;
    found->second.descriptor = descriptor;
    confirmed_.notify_all();
    return true;
  }

  Result<void> Confirm(Handle handle, uint32_t pid, uint32_t descriptor, const FileId& id, std::optional<uint8_t> flags, const OpContext& ctx) {
    for (int tries = 1; !TryConfirm(handle, pid, descriptor, id, flags); ++tries) {
      Node node;
      uint8_t wanted = 0;
      {
        std::lock_guard lock(mutex_);
        auto found = handles_.find(handle);
        if (found == handles_.end()) return {};
        node = found->second.node;
        wanted = found->second.flags;
      }
      Result<std::string> result = Failure(ErrorKind::kBroken, EIO, "the syscall server was lost");
      if (tries <= kStoreTries) result = Ask(Operation::kOpen, OpenArguments(handle, node, wanted, pid, descriptor), Effect::kNone, ctx, &pid);
      Fields fields(result ? std::string_view(*result) : std::string_view());
      descriptor = fields.U32();
      if (result && !fields.ok()) result = Nonsense("open");
      if (!result) {
        DropRecord(handle);
        channel_->Post({{Operation::kClose, Arguments().U64(handle).bytes()}}, {});
        return Forward(result.error());
      }
    }
    return {};
  }

  void Refuse(Handle handle, const Error& error) {
    std::lock_guard lock(mutex_);
    auto found = handles_.find(handle);
    if (found == handles_.end()) return;
    found->second.state = OpenHandle::State::kFailed;
    found->second.error = error;
    confirmed_.notify_all();
  }

  bool DropRecord(Handle handle) {
    std::lock_guard lock(mutex_);
    return handles_.erase(handle) != 0;
  }

  // EBADF from the server: why the open failed.
  template <typename T>
  Result<T> Explain(Handle handle, Result<T> result) const {
    if (result || handle == 0 || result.error().errno_value != EBADF) return result;
    std::lock_guard lock(mutex_);
    auto found = handles_.find(handle);
    if (found != handles_.end() && found->second.error) return Forward(*found->second.error);
    return result;
  }

  // The path by which the files API gets at the open file.
  Result<std::string> PathOfHandle(Handle handle, const OpContext& ctx) {
    std::unique_lock lock(mutex_);
    const TimePoint until = std::min(ctx.deadline, Clock::now() + kOpenTime);
    OpenHandle* opened = nullptr;
    confirmed_.wait_until(lock, ctx.stop, until, [&] {
      auto found = handles_.find(handle);
      opened = found == handles_.end() ? nullptr : &found->second;
      return !opened || opened->state != OpenHandle::State::kOpening;
    });
    if (!opened) return Errno(EBADF, "not an open file");
    if (opened->error) return Forward(*opened->error);
    if (opened->state == OpenHandle::State::kOpening) {
      if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, "interrupted");
      return Failure(ErrorKind::kTimeout, ETIMEDOUT, "opening takes too long");
    }
    return DescriptorPath(opened->server_pid, opened->descriptor);
  }

  static std::string DescriptorPath(uint32_t pid, uint32_t descriptor) {
    return "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(descriptor);
  }

  // A new server has to open what the old one had open. Until it is known whether it takes over, what the old one has opened is not
  // confirmed: Confirm asks again, and is answered by the one that goes on.
  std::function<void(bool)> Reopen(uint32_t old_pid, uint32_t new_pid, const syscall::Channel::Transact& transact) {
    std::vector<Handle> numbers;
    std::vector<Call> calls;
    {
      std::lock_guard lock(mutex_);
      server_pid_ = new_pid;
      for (const auto& [handle, opened] : handles_) {
        if (opened.state != OpenHandle::State::kOpen) continue;  // its open is still in flight, and sent again
        numbers.push_back(handle);
        calls.push_back({Operation::kOpen, OpenArguments(handle, opened.node, opened.flags, opened.server_pid, opened.descriptor)});
      }
    }
    auto outcomes = std::make_shared<Result<Outcomes>>(transact(calls));
    return [this, old_pid, new_pid, numbers = std::move(numbers), outcomes](bool took_over) {
      if (!took_over) {
        std::lock_guard lock(mutex_);
        server_pid_ = old_pid;
        return;
      }
      for (size_t i = 0; i < numbers.size(); ++i) {
        syscall::Reply::Outcome& outcome = (**outcomes)[i];
        auto result = outcome.errno_value == 0 ? Result<std::string>(std::move(outcome.result))
                                               : Errno(outcome.errno_value == ENOENT ? ESTALE : outcome.errno_value);
        if (!result) {
          Refuse(numbers[i], result.error());
          continue;
        }
        Fields fields(*result);
        const uint32_t descriptor = fields.U32();
        fields.U32();
        auto attributes = syscall::DecodeAttributes(fields, actor_);
        if (attributes) {
          TryConfirm(numbers[i], new_pid, descriptor, attributes->id, {});
        } else {
          Refuse(numbers[i], Nonsense("reopen").value());
        }
      }
    };
  }

  // --- content

  Result<std::unique_ptr<ByteStream>> ReadByFiles(Handle handle, const Node& node, const Attributes* version, Extent range,
                                                  const OpContext& ctx) {
    Handle own = 0;
    if (handle == 0) {
      auto opened = Open(node, {}, ctx);
      if (!opened) return Forward(opened.error());
      handle = own = opened->handle;
    }
    auto stream = OpenByFiles(handle, node, version, range, ctx);
    // The files API has the file open by itself from its head on.
    if (own != 0) Close(own, ctx);
    return stream;
  }

  Result<std::unique_ptr<ByteStream>> OpenByFiles(Handle handle, const Node& node, const Attributes* version, Extent range,
                                                  const OpContext& ctx) {
    auto path = PathOfHandle(handle, ctx);
    if (!path) return Forward(path.error());
    auto stream = OpenServiceStream(*client_, *path, version, range, false, ctx);
    if (!stream) {
      const int code = stream.error().errno_value;
      // The process that had it open is gone, and there will be another.
      if (stream.error().kind == ErrorKind::kErrno && (code == ENOENT || code == ENOTDIR || code == ESRCH)) {
        return Failure(ErrorKind::kBroken, EIO, "the syscall server was lost");
      }
      return stream;
    }
    if (!version) return stream;
    // Last-Modified has whole seconds only.
    auto inquiry = std::make_shared<Inquiry>();
    auto answered = [asked = std::weak_ptr(inquiry), actor = actor_](Result<Outcomes> outcomes) {
      const auto inquiry = asked.lock();
      if (!inquiry) return;  // the stream has gone
      auto now = AttributesOf(outcomes ? FirstResult(*outcomes) : Result<std::string>(Forward(outcomes.error())), actor);
      std::lock_guard lock(inquiry->mutex);
      inquiry->answer = std::move(now);
      inquiry->changed.notify_all();
    };
    channel_->Post({{Operation::kStat, Arguments().Object(handle, node).bytes()}}, std::move(answered), inquiry);
    return std::unique_ptr<ByteStream>(std::make_unique<InquiredStream>(std::move(*stream), std::move(inquiry), *version, range.length));
  }

  Result<Attributes> StoreInline(Handle handle, const Node& node, const StoreRequest& request, const OpContext& ctx) {
    if (auto alone = AwaitUnwritten(handle, node, ctx); !alone) return Forward(alone.error());
    auto fetch = [&](const Extent& extent) -> Result<std::string> {
      std::string bytes(static_cast<size_t>(extent.length), '\0');
      if (extent.length == 0) return bytes;
      if (!request.source) return Errno(EINVAL, "store without a source");
      if (auto read = request.source->ReadAt(extent.offset, bytes.data(), bytes.size()); !read) return Forward(read.error());
      return bytes;
    };
    Arguments arguments;
    arguments.Object(handle, node).U8(request.last ? 1 : 0).I64(request.cut_to.value_or(-1)).I64(request.size.value_or(-1)).U32(static_cast<uint32_t>(request.extents.size()));
    for (const Extent& extent : request.extents) {
      auto bytes = fetch(extent);
      if (!bytes) return Forward(bytes.error());
      arguments.I64(extent.offset).Text(*bytes);
    }
    auto appended = fetch(request.append.value_or(Extent{}));
    if (!appended) return Forward(appended.error());
    AttributeChange attributes = request.attributes;
    attributes.size.reset();
    arguments.Text(*appended).Change(attributes);
    // Done twice it is the same, but for an append.
    return Explain(handle, AskAttributes(Operation::kStore, arguments, request.append ? Effect::kChange : Effect::kNone, ctx));
  }

  void Discard(Handle handle) {
    if (DropRecord(handle)) channel_->Post({{Operation::kClose, Arguments().U64(handle).bytes()}}, {});
  }

  // `asked`: something may have been made.
  Result<MadeObjects> MakeRow(const syscall::EncodedRow& row, const std::vector<NewObject>& objects, bool& asked, OpContext ctx) {
    const auto length = static_cast<int64_t>(row.bytes.size());
    Stage stage;
    Arguments arguments;
    if (length <= kInlineRowBytes) {
      arguments.U64(0).I64(length).Raw(row.bytes);
    } else {
      auto made = AskStage(Operation::kStage, Arguments().Text(objects[0].directory.path).Text(objects[0].directory.id.value), ctx);
      if (!made) return Forward(made.error());
      stage = std::move(*made);
      HeldSource source(row.bytes);
      if (auto uploaded = UploadRanges(*client_, stage.path, {{0, length}}, source, {}, ctx); !uploaded) {
        Discard(stage.handle);
        return Forward(UploadError(uploaded.error()));
      }
      arguments.U64(stage.handle).I64(length);
    }
    ++changes_;
    auto outcomes = channel_->Do({{Operation::kMakeObjects, arguments.bytes()}}, Effect::kChange, ctx.Renewed());
    ++changes_;
    asked = true;
    Result<void> failed;
    if (!outcomes) failed = Forward(outcomes.error());
    std::vector<std::string_view> pieces;
    for (size_t i = 0; failed && i < outcomes->size(); ++i) {
      const syscall::Reply::Outcome& piece = (*outcomes)[i];
      if (piece.errno_value == EIO) failed = Failure(ErrorKind::kBroken, EIO, "the syscall server does not know what it made");
      else if (piece.errno_value != 0) failed = Errno(piece.errno_value, "several new objects");
      pieces.push_back(piece.result);
    }
    if (failed) {
      DropRecord(stage.handle);
      return syscall::DecodeMade(pieces, objects, row.directories, actor_);
    }
    Discard(stage.handle);
    if (failed.error().kind == ErrorKind::kErrno && failed.error().errno_value == ENODEV) {
      asked = false;
      return Failure(ErrorKind::kBroken, EIO, "an upload that arrived torn");
    }
    return Forward(failed.error());
  }

  // What the files API fills: its handle, and the path by which it gets at it.
  struct Stage {
    Handle handle = 0;
    std::string path;
    bool into = false;  // it is the file itself
  };
  // A nameless file beside the node, or one with a name that is swept later.
  Result<Stage> NewStage(const Node& node, const OpContext& ctx) {
    return AskStage(Operation::kStage, Arguments().Text(ParentPath(node.path)).Text({}), ctx);
  }
  // The file itself, which is fresh. `again`: what is in it is of an earlier try. Another errno than of the nameless one: it cannot be.
  Result<Stage> StageInto(Handle handle, const Node& node, bool again, const OpContext& ctx) {
    auto stage = AskStage(Operation::kStageInto, Arguments().U8(again ? 1 : 0).Object(handle, node), ctx);
    if (stage) stage->into = true;
    if (!stage && stage.error().kind == ErrorKind::kErrno) return NewStage(node, ctx);
    return stage;
  }
  Result<Stage> AskStage(Operation operation, const Arguments& arguments, const OpContext& ctx) {
    Stage stage;
    stage.handle = NewHandle({}, syscall::kOpenRead | syscall::kOpenWrite);
    uint32_t pid = 0;
    auto result = Ask(operation, Arguments().U64(stage.handle).Raw(arguments.bytes()).bytes(), Effect::kChange, ctx, &pid);
    if (!result) {
      Discard(stage.handle);
      return Forward(result.error());
    }
    Fields fields(*result);
    stage.path = DescriptorPath(pid, fields.U32());
    return stage;
  }

  // An upload into the file itself was given up: envd may not know yet, and what it still has of it would be written over what comes now.
  void MarkWritten(const Node& node) {
    std::lock_guard lock(mutex_);
    written_by_others_.insert(node.id.value);
  }
  // Whether there was anything to wait for.
  Result<bool> AwaitUnwritten(Handle handle, const Node& node, const OpContext& ctx) {
    {
      std::lock_guard lock(mutex_);
      if (!written_by_others_.contains(node.id.value)) return false;
    }
    const TimePoint until = std::min(ctx.deadline, Clock::now() + kUnwrittenTime);
    for (std::chrono::milliseconds pause{5};; pause = std::min(2 * pause, std::chrono::milliseconds(500))) {
      auto unwritten = Explain(handle, Ask(Operation::kUnwritten, Arguments().Object(handle, node), Effect::kNone, ctx));
      if (!unwritten) return Forward(unwritten.error());
      if (*unwritten == std::string(1, '\1')) break;
      if (Clock::now() + pause >= until) {
        // Said as what it is: nothing to be tried again at once.
        return Failure(ErrorKind::kErrno, EIO, node.path + " is open for writing in the sandbox, perhaps by an upload that broke off");
      }
      if (auto slept = SleepUntil(Clock::now() + pause, ctx); !slept) return Forward(slept.error());
    }
    std::lock_guard lock(mutex_);
    written_by_others_.erase(node.id.value);
    return true;
  }

  // The descriptor's process is gone, and there will be another.
  static Error UploadError(Error error) {
    if (error.kind == ErrorKind::kErrno && error.errno_value == ENOENT) return {EIO, ErrorKind::kBroken, "the syscall server was lost", 0, ""};
    return error;
  }

  Result<Attributes> StoreStaged(Handle handle, const Node& node, const StoreRequest& request, const syscall::StagePlan& plan, const OpContext& ctx) {
    auto again = AwaitUnwritten(handle, node, ctx);
    if (!again) return Forward(again.error());
    const bool into = request.fresh && plan.bytes > kCopiedBytes && IsWhole(request, plan) && node.id.known();
    auto stage = into ? StageInto(handle, node, *again, ctx) : NewStage(node, ctx);
    if (!stage) return Forward(stage.error());
    auto uploaded = syscall::UploadStage(*client_, stage->path, plan, request, ctx);
    if (!uploaded) {
      if (stage->into) MarkWritten(node);
      Discard(stage->handle);
      return Forward(UploadError(uploaded.error()));
    }
    if (request.before_changing && !stage->into) {
      if (auto may = request.before_changing(); !may) {
        Discard(stage->handle);
        return Forward(may.error());
      }
    }
    return Commit(*stage, handle, node, request, plan, ctx);
  }

  // The file's content as it will be, from its first byte on.
  static bool IsWhole(const StoreRequest& request, const syscall::StagePlan& plan) {
    return request.extents.size() == 1 && request.extents[0].offset == 0 && !request.append && plan.table_at < 0;
  }

  // Copies what was staged into its place, unless it is there. The stage is gone afterwards.
  Result<Attributes> Commit(const Stage& stage, Handle handle, const Node& node, const StoreRequest& request, const syscall::StagePlan& plan, const OpContext& ctx) {
    if (!stage.into) {
      if (auto alone = AwaitUnwritten(handle, node, ctx); !alone) {
        Discard(stage.handle);
        return Forward(alone.error());
      }
    }
    Arguments arguments;
    arguments.U64(stage.handle).I64(plan.staged_bytes).Object(handle, node).U8(request.last ? 1 : 0).I64(request.cut_to.value_or(-1));
    arguments.I64(request.size.value_or(-1));
    if (plan.table_at >= 0) {
      arguments.U32(0xffffffff).I64(plan.table_at).U32(static_cast<uint32_t>(request.extents.size()));
    } else {
      arguments.U32(static_cast<uint32_t>(request.extents.size()));
      for (const std::string& row : syscall::StageTable(request)) arguments.Raw(row);
    }
    arguments.I64(request.append ? request.append->length : 0).I64(plan.append_at);
    AttributeChange attributes = request.attributes;
    attributes.size.reset();
    arguments.Change(attributes);
    auto stored = Explain(handle, AskAttributes(Operation::kCommit, arguments, Effect::kChange, ctx.Renewed()));
    if (stored) {
      DropRecord(stage.handle);
      return stored;
    }
    if (stage.into) MarkWritten(node);
    Discard(stage.handle);
    Error error = stored.error();
    if (error.kind == ErrorKind::kErrno && error.errno_value == ENODEV) return Failure(ErrorKind::kBroken, EIO, "an upload that arrived torn");
    if (error.kind != ErrorKind::kErrno && request.append) error.rpc_code = kCommitted;
    return Forward(std::move(error));
  }

  // Sends the rest of request.early, which is of no use afterwards.
  Result<Attributes> FinishEarly(Handle handle, const Node& node, const StoreRequest& request, const syscall::StagePlan& plan, const OpContext& ctx);
  Result<Attributes> SendRest(Early& early, Handle handle, const Node& node, const StoreRequest& request, const syscall::StagePlan& plan,
                              const OpContext& ctx);

  const std::shared_ptr<envd::Client> client_;
  const SyscallFsOptions options_;
  Description description_;
  syscall::Actor actor_;
  std::string perl_version_;

  mutable std::mutex mutex_;  // innermost
  std::condition_variable_any confirmed_;
  std::map<Handle, OpenHandle> handles_;
  std::optional<FsStatistics> statistics_;
  TimePoint statistics_until_{};
  uint64_t statistics_changes_ = 0;  // changes_, when they were asked for
  std::atomic<uint64_t> changes_{0};  // begun and ended
  std::atomic<bool> statistics_refused_{false};
  std::set<std::string> written_by_others_;  // identities: see MarkWritten
  Handle next_handle_ = 1;
  uint32_t server_pid_ = 0;  // of the server that knows of all handles, or will

  std::mutex listener_mutex_;  // held while the listener is told
  ChangeListener* listener_ = nullptr;
  http::RateLimit losses_{kLossesPerMinute};

  std::unique_ptr<syscall::Channel> channel_;  // last: its thread uses the others
};

// An upload whose length is told at its end, into a stage or, `into` it, a fresh file itself: that has a descriptor of its own then, so that a request
// which comes late finds none, and what a request that is under way still writes is waited for (AwaitUnwritten).
class SyscallFsImpl::Early final : public EarlyStore {
 public:
  Early(SyscallFsImpl& fs, Node node, Stage stage) : fs_(fs), node_(std::move(node)), stage_(std::move(stage)) {}
  ~Early() override { GiveUp(); }

  void GiveUp() {
    const Stage stage = TakeStage();
    if (stage.handle == 0) return;
    if (stage.into) fs_.MarkWritten(node_);
    if (upload_) upload_->Cancel();
    fs_.Discard(stage.handle);
  }

  Result<void> Write(std::string_view bytes, const OpContext& ctx) override {
    if (!upload_) {
      envd::UploadRequest request;
      request.path = stage_.path;
      request.beginning = bytes;
      auto opened = fs_.client_->OpenUpload(request, ctx);
      if (!opened) return Forward(opened.error());
      upload_ = std::move(*opened);
    }
    auto written = upload_->Write(bytes, ctx);
    if (!written) return Forward(UploadError(written.error()));
    sent_ += static_cast<int64_t>(bytes.size());
    return {};
  }
  Result<void> Finish(const OpContext& ctx) {
    if (!upload_) return Failure(ErrorKind::kUnavailable, EAGAIN, "nothing was sent early");
    auto finished = upload_->Finish(ctx);
    if (!finished) return Forward(UploadError(finished.error()));
    return {};
  }
  // The upload is complete: whoever asks disposes of the stage.
  Stage TakeStage() { return std::exchange(stage_, {}); }
  int64_t sent_bytes() const { return sent_; }

 private:
  SyscallFsImpl& fs_;
  const Node node_;
  Stage stage_;
  std::unique_ptr<envd::Upload> upload_;  // from the first bytes on
  int64_t sent_ = 0;
};

Result<std::unique_ptr<EarlyStore>> SyscallFsImpl::BeginStore(Handle handle, const Node& node, bool fresh, const OpContext& ctx) {
  if (options_.read_only || !client_->capabilities().octet_stream_upload) return std::unique_ptr<EarlyStore>();
  {
    std::lock_guard lock(mutex_);
    fresh = fresh && node.id.known() && !written_by_others_.contains(node.id.value);
  }
  auto stage = fresh ? StageInto(handle, node, false, ctx) : NewStage(node, ctx);
  if (!stage) return Forward(stage.error());
  return std::unique_ptr<EarlyStore>(std::make_unique<Early>(*this, node, std::move(*stage)));
}

Result<Attributes> SyscallFsImpl::FinishEarly(Handle handle, const Node& node, const StoreRequest& request, const syscall::StagePlan& plan,
                                              const OpContext& ctx) {
  auto& early = static_cast<Early&>(*request.early);
  auto stored = SendRest(early, handle, node, request, plan, ctx);
  early.GiveUp();  // nothing, once its stage was taken
  return stored;
}

Result<Attributes> SyscallFsImpl::SendRest(Early& early, Handle handle, const Node& node, const StoreRequest& request,
                                           const syscall::StagePlan& plan, const OpContext& context) {
  OpContext ctx = context;
  if (!IsWhole(request, plan) || early.sent_bytes() > request.extents[0].length) return Failure(ErrorKind::kUnavailable, EAGAIN, "it does not fit what is to be stored");
  const int64_t length = request.extents[0].length;
  std::string piece;
  while (early.sent_bytes() < length) {
    piece.resize(static_cast<size_t>(std::min(length - early.sent_bytes(), kEarlyPieceBytes)));
    if (auto read = request.source->ReadAt(early.sent_bytes(), piece.data(), piece.size()); !read) return Forward(read.error());
    if (auto written = early.Write(piece, ctx); !written) return Forward(written.error());
    ctx = ctx.Renewed();
  }
  if (auto finished = early.Finish(ctx); !finished) return Forward(finished.error());
  return Commit(early.TakeStage(), handle, node, request, plan, ctx);
}

Result<size_t> SizelessStream::Read(char* buffer, size_t capacity, const OpContext& ctx) {
  const auto wanted = static_cast<size_t>(std::min<int64_t>({static_cast<int64_t>(capacity), range_.length, int64_t{syscall::kMaxReadBytes}}));
  if (wanted == 0) return size_t{0};
  auto bytes = fs_.ReadPiece(handle_, node_, range_.offset, wanted, nullptr, ctx);
  if (!bytes) return Forward(bytes.error());
  bytes->copy(buffer, wanted);
  range_.offset += static_cast<int64_t>(bytes->size());
  range_.length -= static_cast<int64_t>(bytes->size());
  return bytes->size();
}

}  // namespace

Result<std::unique_ptr<RemoteFs>> SyscallFs::Create(std::shared_ptr<envd::Client> client, SyscallFsOptions options, const OpContext& ctx) {
  if (!client->capabilities().private_streams) {
    return Errno(ENOTSUP, "envd " + client->capabilities().version_text + " logs what a process is told (0.5.27 does not)");
  }
  auto fs = std::make_unique<SyscallFsImpl>(std::move(client), std::move(options));
  if (auto started = fs->Start(ctx); !started) return Forward(started.error());
  return fs;
}

}  // namespace e2bfs::transport
