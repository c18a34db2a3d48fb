#include "cache/recovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>

#include "cache/cached_fs.h"
#include "cache/descriptor.h"
#include "transport/base/context.h"
#include "transport/base/fault_point.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

using transport::Attributes;
using transport::Extent;

constexpr size_t kComparedBytes = 1 << 20;
constexpr size_t kLongestName = 255;
constexpr int kMostConflictCopies = 100;
constexpr uint32_t kWritableByOwner = 0200;
constexpr int kMostTries = 4;
constexpr std::chrono::milliseconds kFirstRetryAfter{250};  // and twice as long each time
constexpr std::string_view kUnsentText = "UNSENT.txt";

std::vector<std::string> EntriesOf(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path.c_str());
  if (directory == nullptr) return names;
  while (const dirent* entry = ::readdir(directory)) {
    // What begins with a dot is a lock, or a copy that is not finished.
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  ::closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

// Of what has no record that says it: the random part of a spool file's name, or a number made of its place.
std::string IdOfPlace(const std::string& directory, const std::string& name) {
  constexpr std::string_view kSpooled = "unsent-";
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  if (name.starts_with(kSpooled) && name.size() > kSpooled.size() && name.find_first_not_of(kPlain, kSpooled.size()) == std::string::npos) {
    return name.substr(kSpooled.size());
  }
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : directory.substr(directory.rfind('/') + 1) + "/" + name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  std::string id;
  for (int i = 0; i < 8; ++i, hash >>= 5) id += "abcdefghijkmnpqrstuvwxyz23456789"[hash & 31];
  return id;
}

bool IsRelativePath(const std::string& path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (!IsName(std::string_view(path).substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

// What the record, if there is one, and the content file make of the entry.
void Examine(UnsentEntry& entry, Result<UnsentRecord> record) {
  struct stat status {};
  entry.content_is_there = ::lstat(entry.content.c_str(), &status) == 0 && S_ISREG(status.st_mode);
  if (entry.content_is_there) {
    entry.bytes = std::min<int64_t>(status.st_size, int64_t{status.st_blocks} * 512);
    entry.since = status.st_mtim.tv_sec;
  }
  if (!record) {
    entry.problem = record.error().errno_value == ENOENT ? "there is no record of what it is" : record.error().message;
    return;
  }
  const Change& change = record->change;
  if (!record->id.empty()) entry.id = record->id;
  entry.bytes = change.bytes();
  entry.since = record->since;
  const int64_t end = std::max(change.extents.end(), change.append ? change.append->end() : 0);
  if (!IsRelativePath(record->path)) {
    entry.problem = "its record has no path that can be used";
  } else if (record->moving) {
    entry.problem = "its bytes were being moved when the mount ended, and may be at either place";
  } else if (record->has_content && !entry.content_is_there) {
    entry.problem = "its content is missing";
  } else if (record->has_content && status.st_size < end) {
    entry.problem = "its content is shorter than its record says";
  }
  entry.record = std::move(*record);
}

void RemoveIfOver(const std::string& directory) {
  DIR* names = ::opendir(directory.c_str());
  if (names == nullptr) return;
  bool over = true;
  while (const dirent* entry = over ? ::readdir(names) : nullptr) over = entry->d_name[0] == '.' || entry->d_name == kUnsentText;
  ::closedir(names);
  if (!over) return;
  // If a mount puts something there meanwhile, the directory stays.
  ::unlink((directory + "/" + std::string(kUnsentText)).c_str());
  ::rmdir(directory.c_str());
}

bool SameInstant(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

bool IsGone(const Error& error) {
  return error.kind == ErrorKind::kErrno && (error.errno_value == ENOENT || error.errno_value == ENOTDIR);
}

bool IsTaken(const Error& error) { return error.kind == ErrorKind::kErrno && error.errno_value == EEXIST; }

// It would say nothing to the next question either.
bool IsUnreachable(const Error& error) {
  switch (error.kind) {
    case ErrorKind::kUnauthorized:
    case ErrorKind::kNotRunning:
    case ErrorKind::kRateLimited:
    case ErrorKind::kUnavailable:
    case ErrorKind::kConnect:
    case ErrorKind::kTimeout:
    case ErrorKind::kCancelled: return true;
    default: return false;
  }
}

// It may pass by itself within seconds.
bool MayPass(const Error& error) {
  return error.kind == ErrorKind::kRateLimited || error.kind == ErrorKind::kUnavailable || error.kind == ErrorKind::kTimeout;
}

// All of it is so already. An atime does not count: readers change it.
bool Holds(const Attributes& now, const transport::AttributeChange& set) {
  return set.mtime && !set.mtime->now && SameInstant(now.mtime, set.mtime->value) && (!set.permissions || now.permissions == *set.permissions) &&
         (!set.uid || now.uid == *set.uid) && (!set.gid || now.gid == *set.gid);
}

// The sandbox would say the same tomorrow.
bool IsRefusedForGood(const Error& error) {
  if (error.kind != ErrorKind::kErrno) return false;
  return error.errno_value == EACCES || error.errno_value == EPERM || error.errno_value == ETXTBSY;
}

// The file as the change leaves it, of which what is not known here reads as zeros.
class ChangedContent final : public transport::ContentSource {
 public:
  ChangedContent(int fd, const Change& change) : fd_(fd), known_(change.extents) {
    if (change.append) known_.Add(*change.append);
  }
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    std::fill_n(buffer, length, '\0');
    for (const Extent& part : known_.Within(Extent{offset, static_cast<int64_t>(length)})) {
      if (auto read = ReadPart(part, buffer + (part.offset - offset)); !read) return read;
    }
    return {};
  }
  const ExtentMap& known() const { return known_; }

 private:
  Result<void> ReadPart(const Extent& part, char* buffer) const {
    for (int64_t done = 0; done < part.length;) {
      const ssize_t got = ::pread(fd_, buffer + done, static_cast<size_t>(part.length - done), part.offset + done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return Failure(ErrorKind::kLocal, got < 0 ? errno : EIO, "reading the content that was put aside");
      done += got;
    }
    return {};
  }
  const int fd_;
  ExtentMap known_;
};

// A file without a name.
int OpenTemporary(const std::string& directory) {
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  // The file system, or the kernel, has none.
  std::string path = directory + "/.temporary-XXXXXX";
  const int named = ::mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(path.c_str());
  return named;
}

// One entry on its way.
class LateSend {
 public:
  LateSend(transport::RemoteFs& remote, const UnsentEntry& entry, bool same_sandbox, const SendTimes& times, NoteOfLateSend note)
      : remote_(remote), entry_(entry), record_(*entry.record), times_(times), same_sandbox_(same_sandbox), note_(std::move(note)),
        file_(OpenContent(entry)), ours_(file_.get(), record_.change) {
    identities_count_ = same_sandbox && remote.description().identities_survive_renames && record_.base.id.known();
    begun_ = same_sandbox && record_.being_sent;  // there, not here
  }

  SendReport Run() {
    if (record_.has_content && file_.get() < 0) return Failed("its content cannot be opened");
    if (record_.make) return RunMaking();
    if (making_again_ && making_again_->begun_) return making_again_->MakeFile();
    const transport::Node at{record_.path, {}};
    auto now = remote_.Stat(at, Short());
    if (!now) {
      if (!IsGone(now.error())) return Failed(now.error());
      if (record_.removing) return {SendOutcome::kWasThere, {}, "it was being removed, and is gone"};
      return SendToMissing();
    }
    if (record_.removing && identities_count_ && now->id != record_.base.id) return {SendOutcome::kWasThere, {}, "it was being removed, and another file has its name"};
    if (!record_.change.touches_content()) return SendAttributes(*now);
    if (now->type != transport::FileType::kRegular) return MakeConflictCopy("something else has its name now", nullptr);
    if (IsBase(*now)) return Store(*now, record_.change);
    auto there = IsThere(*now);
    if (!there) return Failed(there.error());
    if (*there) return AttributesOfWhatIsThere(*now);
    auto rest = RestOfAppend(*now);
    if (!rest) return Failed(rest.error());
    if (*rest) return Store(*now, **rest);
    if (record_.fresh && record_.IsWhole() && (!identities_count_ || now->id == record_.base.id)) {
      // A store of ours that did not end.
      auto part = now->size <= record_.begun_bytes && identities_count_ ? Result<bool>(true) : IsBeginning(*now);
      if (!part) return Failed(part.error());
      if (*part) return Store(*now, WholeChange());
    }
    const bool replaced = identities_count_ && now->id != record_.base.id;
    return MakeConflictCopy(replaced ? "another file has its name now" : "it was changed in the sandbox", nullptr);
  }

  static int OpenContent(const UnsentEntry& entry) {
    return entry.record->has_content ? ::open(entry.content.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
  }

  SendReport MakeDirectory() {
    FaultPoint("replay.directory");
    return MakeSomewhere("replay.directory.made", [&](const transport::Name& name) { return remote_.MakeDirectory(name, record_.make->permissions, Making()); },
                         [&](const std::string& path) -> Result<bool> {
                           auto now = remote_.Stat(transport::Node{path, {}}, Short());
                           if (!now) return Forward(now.error());
                           return now->type == transport::FileType::kDirectory;
                         });
  }

 private:
  OpContext Short() const { return OpContext::Within(times_.operation); }
  OpContext Long() const {
    OpContext ctx = OpContext::Within(times_.transfer, ServiceClass::kBulk);
    ctx.renewal = times_.transfer;
    return ctx;
  }
  OpContext Making() const {
    OpContext ctx = Short();
    ctx.creator = record_.make->creator;
    return ctx;
  }
  static SendReport Failed(std::string text) { return {SendOutcome::kFailed, {}, std::move(text)}; }
  static SendReport Failed(const Error& error) {
    SendReport report = Failed(ToString(error));
    report.unreachable = IsUnreachable(error);
    report.may_pass = MayPass(error);
    return report;
  }

  bool IsBase(const Attributes& now) const {
    const UnsentBase& base = record_.base;
    return (!identities_count_ || now.id == base.id) && now.size == base.size && SameInstant(now.mtime, base.mtime);
  }

  // All of the file, of which all is known here.
  Change WholeChange() const {
    Change whole;
    const int64_t size = record_.change.SizeAfter(record_.base.size);
    whole.extents = ours_.known();
    whole.size = size;
    whole.attributes = AttributesToSet();
    return whole;
  }

  // Whether the range of the file there is what we have, zeros where we have nothing.
  Result<bool> Equal(const Attributes& now, const Extent& range) {
    return EqualAt(transport::Node{record_.path, now.id}, now, range, ours_);
  }
  Result<bool> EqualAt(const transport::Node& node, const Attributes& now, const Extent& range, transport::ContentSource& source) {
    std::string mine;
    bool equal = true;
    auto read = ReadThere(node, now, range, [&](int64_t offset, std::string_view bytes) -> Result<bool> {
      mine.resize(bytes.size());
      if (auto got = source.ReadAt(offset, mine.data(), mine.size()); !got) return Forward(got.error());
      equal = mine == bytes;
      return equal;
    });
    if (!read) return Forward(read.error());
    return equal;
  }

  // Whether it is the beginning of ours, or all of it.
  Result<bool> IsBeginning(const Attributes& now) {
    if (now.size > record_.change.SizeAfter(0)) return false;
    return Equal(now, Extent{0, now.size});
  }

  // The range of the file as it is by `now`, piece by piece, until `take` returns false.
  Result<void> ReadThere(const transport::Node& node, const Attributes& now, const Extent& range,
                         const std::function<Result<bool>(int64_t, std::string_view)>& take) {
    if (range.length == 0) return {};
    auto stream = remote_.Read(0, node, &now, range, Long());
    if (!stream) return Forward(stream.error());
    std::string piece(kComparedBytes, '\0');
    for (int64_t done = 0; done < range.length;) {
      const auto wanted = static_cast<size_t>(std::min<int64_t>(range.length - done, static_cast<int64_t>(piece.size())));
      auto got = (*stream)->Read(piece.data(), wanted, Long());
      if (!got) return Forward(got.error());
      if (*got == 0) return Errno(ESTALE, "the file became shorter");
      auto more = take(range.offset + done, std::string_view(piece).substr(0, *got));
      if (!more) return Forward(more.error());
      if (!*more) break;
      done += static_cast<int64_t>(*got);
    }
    return {};
  }

  // The answer of a store may have been lost: then all of ours is there, whatever the file's times say.
  Result<bool> IsThere(const Attributes& now) {
    const Change& change = record_.change;
    const bool only_append = change.append && change.extents.empty() && !change.size && !change.cut;
    const int64_t expected = change.SizeAfter(record_.base.size);
    // Others may have appended since.
    const bool size_fits = now.size == expected || (only_append && identities_count_ && now.id == record_.base.id && now.size > expected);
    if (!size_fits) return false;
    ExtentMap to_compare = ours_.known();
    const int64_t zeros = std::min(record_.base.size, change.cut.value_or(record_.base.size));
    if (!only_append && expected > zeros) to_compare.Add(Extent{zeros, expected - zeros});
    for (const Extent& extent : to_compare.extents()) {
      auto equal = Equal(now, extent);
      if (!equal || !*equal) return equal;
    }
    return true;
  }

  // What is still to be appended to a file that is the same one and ends where our append begins, or within it, with our bytes. Nothing
  // is overwritten by that, whatever else was changed.
  Result<std::optional<Change>> RestOfAppend(const Attributes& now) {
    const Change& change = record_.change;
    if (!change.append || !change.extents.empty() || change.size || change.cut) return std::optional<Change>();
    if (!identities_count_ || now.id != record_.base.id) return std::optional<Change>();
    const Extent& append = *change.append;
    if (now.size < append.offset || now.size >= append.end()) return std::optional<Change>();
    auto equal = Equal(now, Extent{append.offset, now.size - append.offset});
    if (!equal) return Forward(equal.error());
    if (!*equal) return std::optional<Change>();
    Change rest = change;
    rest.append = Extent{now.size, append.end() - now.size};
    return std::optional<Change>(std::move(rest));
  }

  Result<Attributes> CallStore(const transport::Node& node, const Change& change, bool fresh, transport::ContentSource& source) {
    transport::StoreRequest request = RequestOf(change, source);
    request.fresh = fresh;
    request.last = true;
    auto stored = remote_.Store(0, node, request, Long());
    if (stored && node.id.known() && stored->id.known() && stored->id != node.id) return Errno(ESTALE, "the sandbox stored into another file");
    return stored;
  }

  SendReport Store(const Attributes& now, const Change& change) {
    const transport::Node at{record_.path, now.id};
    FaultPoint("replay.store");
    auto stored = CallStore(at, change, record_.fresh && now.size == 0, ours_);
    FaultPoint("replay.stored");
    if (stored) return {SendOutcome::kSent, {}, {}};
    const Error& error = stored.error();
    if (error.content_stored) return {SendOutcome::kSent, {}, "its attributes were refused: " + ToString(error)};
    if (change.append) return AfterFailedAppend(at, change, error);
    if (IsRefusedForGood(error)) return MakeConflictCopy("the sandbox refused it (" + ToString(error) + ")", &now);
    return Failed(error);
  }

  // Appending again what arrived would double it: what is there now tells, and the record says from where the next try has to go on.
  SendReport AfterFailedAppend(const transport::Node& at, const Change& change, const Error& error) {
    auto now = remote_.Stat(at, Short());
    if (now && now->size == change.append->end() && error.kind != ErrorKind::kErrno) return {SendOutcome::kSent, {}, {}};
    if (error.appended > 0 && now && same_sandbox_) {
      UnsentRecord rest = record_;
      const int64_t done = std::min(error.appended, change.append->length);
      rest.change = change;
      rest.change.append = Extent{change.append->offset + done, change.append->length - done};
      rest.base = UnsentBase{rest.base.id, now->size, now->mtime, now->ctime, now->permissions};
      if (auto noted = Note(rest); !noted) return Failed(ToString(error) + "; " + ToString(noted.error()));
      return Failed(ToString(error) + " after a part of it had arrived");
    }
    if (IsRefusedForGood(error)) return now ? MakeConflictCopy("the sandbox refused it (" + ToString(error) + ")", &*now) : Failed(error);
    SendReport report = Failed(error);
    report.may_pass = false;  // it may still be under way: another one now could double it
    if (now) report.unreachable = false;
    return report;
  }

  SendReport SendAttributes(const Attributes& now) {
    // A directory's size and times change with what goes into it.
    const bool is_it = identities_count_ ? now.id == record_.base.id : now.type == transport::FileType::kDirectory || IsBase(now);
    if (!is_it && !identities_count_ && now.size == record_.base.size && Holds(now, record_.change.attributes)) return {SendOutcome::kWasThere, {}, {}};
    if (!is_it) return Failed("another file may have its name now, and only attributes were to be set");
    FaultPoint("replay.attributes");
    auto set = remote_.SetAttributes(transport::Node{record_.path, now.id}, 0, record_.change.attributes, Short());
    FaultPoint("replay.attributes.set");
    if (!set) return Failed(set.error());
    return {SendOutcome::kSent, {}, {}};
  }

  SendReport AttributesOfWhatIsThere(const Attributes& now) {
    transport::AttributeChange set = AttributesToSet();
    if (set.mtime_is_implied && !record_.make) set.mtime.reset();
    return WithAttributes({SendOutcome::kWasThere, {}, "its content had arrived"}, transport::Node{record_.path, now.id}, set);
  }

  // It is there, and then its attributes are set. A refusal is told, and it is done all the same.
  SendReport WithAttributes(SendReport report, const transport::Node& node, const transport::AttributeChange& set) {
    if (set.empty()) return report;
    FaultPoint("replay.attributes");
    auto done = remote_.SetAttributes(node, 0, set, Short());
    FaultPoint("replay.attributes.set");
    if (!done && done.error().kind != ErrorKind::kErrno) return Failed(done.error());
    const bool only_implied = set.mtime_is_implied && !set.permissions && !set.uid && !set.gid && !set.atime;
    if (!done && !only_implied) report.text += std::string(report.text.empty() ? "" : "; ") + "its attributes were refused: " + ToString(done.error());
    return report;
  }

  transport::Name NameOf(const std::string& name) const {
    const size_t slash = record_.path.rfind('/');
    return {transport::Node{slash == std::string::npos ? std::string() : record_.path.substr(0, slash), {}}, name};
  }
  std::string OwnName() const { return record_.path.substr(record_.path.rfind('/') + 1); }
  std::string PathBeside(const std::string& name) const {
    const size_t slash = record_.path.rfind('/');
    return slash == std::string::npos ? name : record_.path.substr(0, slash + 1) + name;
  }
  uint32_t NewPermissions() const {
    if (record_.make) return record_.make->permissions;
    return record_.change.attributes.permissions.value_or(record_.base.permissions) & 0777;
  }
  // Whose mode lets nobody write to it gets that with its content.
  bool IsOpenUntilFull() const { return record_.change.touches_content() && (NewPermissions() & kWritableByOwner) == 0; }
  uint32_t PermissionsUntilFull() const { return NewPermissions() | (IsOpenUntilFull() ? kWritableByOwner : 0); }
  transport::AttributeChange AttributesToSet() const {
    transport::AttributeChange set = record_.change.attributes;
    if (record_.make && IsOpenUntilFull() && !set.permissions) set.permissions = NewPermissions();
    return set;
  }

  SendReport SendToMissing() {
    if (!record_.change.touches_content()) return Failed("it is not there any more, and only attributes were to be set");
    if (!record_.IsWhole()) return MakeConflictCopy("it is not there any more", nullptr);
    again_ = entry_;
    again_->record->make = UnsentMaking{transport::FileType::kRegular, NewPermissions(), {}, {}};
    again_->record->fresh = true;
    again_->record->being_sent = false;
    again_->record->base = UnsentBase{{}, 0, {}, {}, record_.base.permissions};
    again_->record->change = WholeChange();
    making_again_ = std::make_unique<LateSend>(remote_, *again_, same_sandbox_, times_, note_);
    making_again_->unbegun_ = &record_;
    SendReport report = making_again_->MakeFile();
    if (report.outcome == SendOutcome::kSent && report.text.empty()) report.text = "it was not there any more, and was made again";
    return report;
  }

  // --- what was made here, and has to be made there

  SendReport RunMaking() {
    switch (record_.make->type) {
      case transport::FileType::kRegular: return MakeFile();
      case transport::FileType::kSymlink: return MakeLink();
      case transport::FileType::kDirectory: break;
      default: return Failed("nothing of its kind can be made");
    }
    auto now = remote_.Stat(transport::Node{record_.path, {}}, Short());
    if (!now) return Failed(now.error());
    if (now->type != transport::FileType::kDirectory) return Failed("it is no directory any more");
    return WithAttributes({SendOutcome::kSent, {}, {}}, transport::Node{record_.path, now->id}, record_.change.attributes);
  }

  SendReport CannotMake(const Error& error) const {
    return IsGone(error) ? Failed("its directory is not there any more (make it there, or use --export)") : Failed(error);
  }

  SendReport MakeFile() {
    FaultPoint("replay.file");
    const bool begun = begun_;
    if (auto noted = NoteBegun(); !noted) return Failed(noted.error());
    FaultPoint("replay.file.noted");
    auto made = remote_.Create(NameOf(OwnName()), {PermissionsUntilFull(), true}, Making());
    FaultPoint("replay.file.created");
    if (made) {
      if (made->handle != 0) remote_.Close(made->handle, Short());
      return StoreMade(made->attributes);
    }
    if (!begun && made.error().kind == ErrorKind::kErrno) NoteNotBegun();
    if (!IsTaken(made.error())) return CannotMake(made.error());
    auto now = remote_.Stat(transport::Node{record_.path, {}}, Short());
    if (!now) return Failed(now.error());
    if (now->type != transport::FileType::kRegular) return MakeConflictCopy("something else has its name now", nullptr);
    auto part = IsBeginning(*now);
    if (!part) return Failed(part.error());
    if (*part && begun) return now->size == record_.change.SizeAfter(0) ? AttributesOfWhatIsThere(*now) : StoreMade(*now);
    if (*part && now->size == record_.change.SizeAfter(0)) return {SendOutcome::kWasThere, {}, {}};  // whoever made it
    return MakeConflictCopy("another file has its name now", nullptr);
  }

  Result<void> Note(const UnsentRecord& record) { return note_ ? note_(record) : WriteUnsentNote(entry_.note, record); }

  // From now on what is there by the name, with no content or the beginning of ours, was made by us: so says the note.
  Result<void> NoteBegun() {
    if (begun_) return {};
    if (same_sandbox_) {  // what another sandbox has says nothing of this one
      UnsentRecord beginning = record_;
      beginning.being_sent = true;
      if (auto noted = Note(beginning); !noted) return noted;
    }
    begun_ = true;
    return {};
  }
  // Nothing was made, the sandbox says: what comes there later is not ours.
  void NoteNotBegun() {
    begun_ = false;
    if (!same_sandbox_) return;
    if (auto noted = Note(*unbegun_); !noted) log::Warning("cache", "{}", ToString(noted.error()));
  }

  SendReport StoreMade(const Attributes& now) {
    const transport::Node at{record_.path, now.id};
    if (!record_.change.touches_content()) return WithAttributes({SendOutcome::kSent, {}, {}}, at, record_.change.attributes);
    FaultPoint("replay.store");
    auto stored = CallStore(at, WholeChange(), true, ours_);
    FaultPoint("replay.stored");
    if (stored) return {SendOutcome::kSent, {}, {}};
    if (stored.error().content_stored) return {SendOutcome::kSent, {}, "its attributes were refused: " + ToString(stored.error())};
    return Failed(stored.error());
  }

  SendReport MakeLink() {
    FaultPoint("replay.link");
    const bool begun = begun_;
    if (auto noted = NoteBegun(); !noted) return Failed(noted.error());
    SendReport report = MakeSomewhere("replay.link.made", [&](const transport::Name& name) { return remote_.MakeSymlink(name, record_.make->target, Making()); },
                                      [&](const std::string& path) -> Result<bool> {
                                        auto target = remote_.ReadLink(transport::Node{path, {}}, Short());
                                        if (!target && target.error().kind == ErrorKind::kErrno && target.error().errno_value == EINVAL) return false;  // no link
                                        if (!target) return Forward(target.error());
                                        return *target == record_.make->target;
                                      });
    if (report.outcome == SendOutcome::kFailed || (report.outcome == SendOutcome::kWasThere && !begun)) return report;
    const std::string path = report.path.empty() ? record_.path : report.path;
    return WithAttributes(std::move(report), transport::Node{path, {}}, record_.change.attributes);
  }

  // By its own name, or by a conflict name where others have that.
  SendReport MakeSomewhere(std::string_view fault_point, const std::function<Result<transport::Changed>(const transport::Name&)>& make,
                           const std::function<Result<bool>(const std::string&)>& is_it) {
    for (int number = 0; number <= kMostConflictCopies; ++number) {
      const std::string name = number == 0 ? OwnName() : ConflictName(OwnName(), record_.since, record_.id, number);
      const std::string path = PathBeside(name);
      auto made = make(NameOf(name));
      FaultPoint(fault_point);
      bool was_there = false;
      if (!made) {
        if (!IsTaken(made.error())) return CannotMake(made.error());
        auto same = is_it(path);
        if (!same) return Failed(same.error());
        if (!*same) continue;
        was_there = true;
      }
      if (number > 0) return {SendOutcome::kConflictCopy, path, "something else has its name now"};
      return {was_there ? SendOutcome::kWasThere : SendOutcome::kSent, {}, {}};
    }
    return Failed("something else has its name now, and there are too many conflict copies");
  }

  // `base`: the file that the change was made to is still there, as this.
  SendReport MakeConflictCopy(const std::string& why, const Attributes* base) {
    if (!record_.change.touches_content() && !record_.make) return Failed(why + ", and only attributes were to be set");
    Change whole = WholeChange();
    const bool complete = record_.IsWhole() || base != nullptr;
    whole.attributes = {};
    if (IsOpenUntilFull()) whole.attributes.permissions = NewPermissions();
    if (record_.change.attributes.mtime) whole.attributes.mtime = record_.change.attributes.mtime;
    whole.attributes.mtime_is_implied = true;
    if (!complete) whole.size = whole.extents.end();
    if (!complete && whole.extents.empty()) return Failed(why + ", and nothing but its length was changed");
    std::optional<Descriptor> laid_over;
    std::optional<ChangedContent> source;
    if (!record_.IsWhole() && base != nullptr) {
      laid_over.emplace(OpenTemporary(entry_.directory));
      if (auto copied = LayOver(laid_over->get(), *base, whole); !copied) return Failed(copied.error());
      whole.extents.Clear();
      whole.extents.Add(Extent{0, *whole.size});
      source.emplace(laid_over->get(), whole);
    }
    transport::ContentSource& content = source ? static_cast<transport::ContentSource&>(*source) : ours_;
    for (int number = 1; number <= kMostConflictCopies; ++number) {
      const std::string name = ConflictName(OwnName(), record_.since, record_.id, number);
      auto placed = PlaceNew(name, whole, content);
      if (!placed) {
        SendReport report = Failed(placed.error());
        report.text = why + ", and no conflict copy could be made: " + report.text;
        return report;
      }
      if (!*placed) continue;  // there is another one
      return {SendOutcome::kConflictCopy, PathBeside(name),
              why + (complete ? "" : "; the copy has nothing but the ranges that were written, and zeros elsewhere")};
    }
    return Failed(why + ", and there are too many conflict copies");
  }

  // The file there, with our change over it, into a file here.
  Result<void> LayOver(int fd, const Attributes& base, const Change& whole) {
    if (fd < 0) return Failure(ErrorKind::kLocal, errno, "a temporary file in " + entry_.directory);
    const auto write = [fd](int64_t offset, std::string_view bytes) -> Result<bool> {
      for (size_t done = 0; done < bytes.size();) {
        const ssize_t put = ::pwrite(fd, bytes.data() + done, bytes.size() - done, offset + static_cast<int64_t>(done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return Failure(ErrorKind::kLocal, put < 0 ? errno : EIO, "a temporary file");
        done += static_cast<size_t>(put);
      }
      return true;
    };
    const int64_t kept = std::min({base.size, record_.change.cut.value_or(base.size), *whole.size});
    if (auto read = ReadThere(transport::Node{record_.path, base.id}, base, Extent{0, kept}, write); !read) return read;
    std::string piece;
    for (const Extent& extent : whole.extents.extents()) {
      for (int64_t done = 0; done < extent.length;) {
        piece.resize(static_cast<size_t>(std::min<int64_t>(extent.length - done, kComparedBytes)));
        if (auto got = ours_.ReadAt(extent.offset + done, piece.data(), piece.size()); !got) return got;
        if (auto put = write(extent.offset + done, piece); !put) return Forward(put.error());
        done += static_cast<int64_t>(piece.size());
      }
    }
    if (::ftruncate(fd, *whole.size) != 0) return Failure(ErrorKind::kLocal, errno, "a temporary file");
    return {};
  }

  // A new file of that name with that content. Also true if it is there from an earlier try, which may not have ended; false if
  // another one has the name.
  Result<bool> PlaceNew(const std::string& name, const Change& whole, transport::ContentSource& content) {
    auto made = remote_.Create(NameOf(name), {PermissionsUntilFull(), true}, record_.make ? Making() : Short());
    FaultPoint("replay.copy.created");
    transport::FileId id;
    if (made) {
      if (made->handle != 0) remote_.Close(made->handle, Short());
      id = made->attributes.id;
    } else {
      if (!IsTaken(made.error())) return Forward(made.error());
      auto now = remote_.Stat(transport::Node{PathBeside(name), {}}, Short());
      if (!now) return Forward(now.error());
      if (now->type != transport::FileType::kRegular || now->size > *whole.size) return false;
      auto equal = EqualAt(transport::Node{PathBeside(name), now->id}, *now, Extent{0, now->size}, content);
      if (!equal || !*equal || now->size == *whole.size) return equal;
      id = now->id;
    }
    auto stored = CallStore(transport::Node{PathBeside(name), id}, whole, true, content);
    FaultPoint("replay.copy.stored");
    if (!stored && !stored.error().content_stored) return Forward(stored.error());
    return true;
  }

  transport::RemoteFs& remote_;
  const UnsentEntry& entry_;
  const UnsentRecord& record_;
  const SendTimes times_;
  const bool same_sandbox_;
  const NoteOfLateSend note_;
  const Descriptor file_;
  ChangedContent ours_;
  bool identities_count_ = false;
  bool begun_ = false;                          // it may have been made by us
  const UnsentRecord* unbegun_ = &record_;      // what the note says if it was not
  std::optional<UnsentEntry> again_;            // of what was there, and has to be made now
  std::unique_ptr<LateSend> making_again_;
};

// What is under way goes on, and what passes by itself is waited for.
SendReport SendWithRetries(const SendTimes& times, const std::function<SendReport()>& send) {
  const auto until = std::chrono::steady_clock::now() + times.retrying;
  auto after = kFirstRetryAfter;
  for (int tries = 1;; ++tries, after *= 2) {
    SendReport report = send();
    if (report.outcome != SendOutcome::kFailed || !report.may_pass || times.retrying.count() == 0 || tries == kMostTries) return report;
    if (tries > 1 && std::chrono::steady_clock::now() > until) return report;
    std::this_thread::sleep_for(after);
  }
}

// All that lies there.
std::vector<UnsentEntry> FindEntries(const std::string& parent) {
  std::vector<UnsentEntry> entries;
  const std::string_view suffix = kUnsentNoteSuffix;
  for (const std::string& sub : EntriesOf(parent)) {
    const std::string directory = parent + "/" + sub;
    std::set<std::string> contents;  // names, whether the file or only its note is there
    for (const std::string& name : EntriesOf(directory)) {
      struct stat status {};
      if (name == kUnsentText || name.ends_with(kUnsentNoteTemporarySuffix)) continue;
      if (::lstat((directory + "/" + name).c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
      contents.insert(name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : name);
    }
    for (const std::string& name : contents) {
      UnsentEntry entry;
      entry.id = IdOfPlace(directory, name);
      entry.directory = directory;
      entry.content = directory + "/" + name;
      entry.note = entry.content + kUnsentNoteSuffix;
      auto record = ReadUnsentNote(entry.note);
      if (record && record->nothing) continue;
      Examine(entry, std::move(record));
      entries.push_back(std::move(entry));
    }
  }
  return entries;
}

// Takes out those that say the same as another one, which can be sent: a mount that died while it put something aside left both.
std::vector<UnsentEntry> TakeDoubles(std::vector<UnsentEntry>& entries) {
  const auto key = [](const UnsentEntry& entry) { return std::tie(entry.record->sandbox_id, entry.record->user, entry.record->root, entry.record->path, entry.record->id); };
  const auto is_named = [](const UnsentEntry& entry) { return entry.record && !entry.record->id.empty(); };
  std::map<decltype(key(entries[0])), const UnsentEntry*> kept;
  for (const UnsentEntry& entry : entries) {
    if (is_named(entry) && entry.problem.empty()) kept.try_emplace(key(entry), &entry);
  }
  std::vector<UnsentEntry> singles, doubles;
  for (const UnsentEntry& entry : entries) {
    const auto found = is_named(entry) ? kept.find(key(entry)) : kept.end();
    (found == kept.end() || found->second == &entry ? singles : doubles).push_back(entry);
  }
  entries = std::move(singles);
  return doubles;
}

}  // namespace

std::vector<UnsentEntry> ListUnsent(const std::string& parent) {
  std::vector<UnsentEntry> entries = FindEntries(parent);
  TakeDoubles(entries);
  std::ranges::stable_sort(entries, {}, &UnsentEntry::since);
  std::set<std::string> ids;
  for (UnsentEntry& entry : entries) {
    const std::string wanted = entry.id;
    for (int n = 2; !ids.insert(entry.id).second; ++n) entry.id = wanted + "-" + std::to_string(n);
  }
  return entries;
}

Result<void> RemoveUnsent(const UnsentEntry& entry) {
  FaultPoint("replay.remove");
  if (entry.content_is_there) {
    UnsentRecord nothing;
    nothing.nothing = true;
    if (auto noted = WriteUnsentNote(entry.note, nothing); !noted) return noted;
    FaultPoint("replay.remove.noted");
    if (::unlink(entry.content.c_str()) != 0 && errno != ENOENT) return Failure(ErrorKind::kLocal, errno, "removing " + entry.content);
    FaultPoint("replay.remove.content");
  }
  if (::unlink(entry.note.c_str()) != 0 && errno != ENOENT) return Failure(ErrorKind::kLocal, errno, "removing " + entry.note);
  FaultPoint("replay.removed");
  RemoveIfOver(entry.directory);
  return {};
}

void ClearRemoved(const std::string& parent) {
  const std::string_view suffix = kUnsentNoteSuffix;
  for (const std::string& sub : EntriesOf(parent)) {
    const std::string directory = parent + "/" + sub;
    for (const std::string& name : EntriesOf(directory)) {
      if (!name.ends_with(suffix)) continue;
      const std::string note = directory + "/" + name;
      if (const auto record = ReadUnsentNote(note); !record || !record->nothing) continue;
      ::unlink(note.substr(0, note.size() - suffix.size()).c_str());
      ::unlink(note.c_str());
    }
    RemoveIfOver(directory);
  }
  std::vector<UnsentEntry> entries = FindEntries(parent);
  for (const UnsentEntry& twice : TakeDoubles(entries)) {
    if (auto removed = RemoveUnsent(twice); !removed) log::Warning("cache", "{}", ToString(removed.error()));
  }
}

std::string ConflictName(const std::string& name, int64_t since, const std::string& id, int number) {
  char when[32] = "";
  const auto seconds = static_cast<time_t>(since);
  tm utc{};
  if (::gmtime_r(&seconds, &utc) != nullptr) ::strftime(when, sizeof when, "%Y%m%d-%H%M%S", &utc);
  const std::string suffix = std::string(".e2bfs-conflict-") + when + (id.empty() ? "" : "-" + id) + (number > 1 ? "-" + std::to_string(number) : "");
  std::string kept = name;
  if (kept.size() + suffix.size() > kLongestName) {
    kept.resize(kLongestName - suffix.size());
    while (!kept.empty() && (static_cast<unsigned char>(kept.back()) & 0xc0) == 0x80) kept.pop_back();  // no half character
    if (!kept.empty() && static_cast<unsigned char>(kept.back()) >= 0xc0) kept.pop_back();
  }
  return kept + suffix;
}

Result<std::string> ContentOfNewFile(const UnsentEntry& entry) {
  const UnsentRecord& record = *entry.record;
  const Descriptor file(LateSend::OpenContent(entry));
  if (record.has_content && !file.is_open()) return Failure(ErrorKind::kLocal, errno, "opening " + entry.content);
  std::string content(static_cast<size_t>(record.change.SizeAfter(0)), '\0');
  ChangedContent source(file.get(), record.change);
  if (auto read = source.ReadAt(0, content.data(), content.size()); !read) return Forward(read.error());
  return content;
}

SendReport MakeUnsentDirectory(transport::RemoteFs& remote, const UnsentEntry& entry, bool same_sandbox, const SendTimes& times) {
  LateSend sending(remote, entry, same_sandbox, times, {});
  return SendWithRetries(times, [&] { return sending.MakeDirectory(); });
}

SendReport SendUnsent(transport::RemoteFs& remote, const UnsentEntry& entry, bool same_sandbox, const SendTimes& times, const NoteOfLateSend& note) {
  LateSend sending(remote, entry, same_sandbox, times, note);
  return SendWithRetries(times, [&] { return sending.Run(); });
}

}  // namespace e2bfs::cache
