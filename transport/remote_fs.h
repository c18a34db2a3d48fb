// RemoteFs: a file system on the other side, in POSIX terms. The seam between cache/ and transport/, and the public header
// of transport/.
//
// Nothing above it knows how an operation is done (envd's services, a process making system calls, later volumes).
// All calls block the calling thread, within ctx; any thread may call any of them at any time.
//
// Addresses. A bare path is not an address: directories above it may be renamed meanwhile. So an object is named by Node (where
// the caller last knew it, and which object it has to be) and a name by Name (its directory as a Node, and the last component).
// Where the implementation can tell that the path now leads to another object it answers ESTALE, and the caller asks again
// with the path as it is now. Paths are relative to the mounted directory ("" is that directory), '/'-separated raw bytes
// without ".", ".." or empty components. Names are raw bytes, 1..255, without '/' and NUL.
//
// Identity. FileId is opaque and equal only for the same object; it survives renames where the implementation can tell (else a
// rename through this interface reports the new one), and is not reused. Content, dirty data and attributes are keyed by it.
//
// Changes are done at most once. When the connection is lost after a change was sent, the implementation finds out
// what happened, or reports EIO/kBroken; it never repeats what is not idempotent. ctx.stop never abandons a change that was sent.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::transport {

// Opaque; empty means "not known".
struct FileId {
  std::string value;
  bool known() const { return !value.empty(); }
  friend bool operator==(const FileId&, const FileId&) = default;
  friend auto operator<=>(const FileId&, const FileId&) = default;
};

struct Node {
  std::string path;
  FileId id;        // unknown: whatever is there
  FileId parent{};  // the directory that it is in, where known: with it the object is found although a directory above was moved
};

struct Name {
  Node parent;
  std::string name;
};

enum class FileType { kRegular, kDirectory, kSymlink, kFifo, kSocket, kCharDevice, kBlockDevice };

struct Attributes {
  FileId id;
  FileType type = FileType::kRegular;
  uint32_t permissions = 0;      // 07777
  int64_t size = 0;              // bytes; of a symlink: its text's length (0 if not known)
  int64_t blocks = 0;            // of 512 bytes
  uint32_t link_count = 1;
  uint32_t uid = 0, gid = 0;     // the sandbox's numbers; 65534 where only a name is known
  std::string owner, group;      // the sandbox's names, may be empty
  timespec atime{}, mtime{}, ctime{};  // the sandbox's clock; ctime and atime are mtime where not known
  uint64_t device = 0, inode = 0;      // 0 where not known
  uint32_t rdev_major = 0, rdev_minor = 0;
  // What the acting user may do, by the permission bits or better knowledge: 4 read, 2 write, 1 execute/search.
  uint32_t access = 7;
  // What whoever wants to write is told, whatever the permissions say: EROFS, EPERM (immutable); 0: they decide.
  int write_refusal = 0;
  bool appends_only = false;  // writing anything but an append is EPERM
  // Size is not what reading gives (/proc and /sys): read to the end instead.
  bool size_unreliable = false;
  // Of a directory: from before these attributes were taken, the listener is told of what changes in it, its own attributes included.
  bool watched = false;
  // Of a regular file: some program in the sandbox writes to it, as far as the implementation knows, so this is true for the moment only.
  bool being_written = false;
  // The id means this object to any other mount of the sandbox, too, and ctime is its file system's own: no other content of any object, before
  // or later, has this id, mtime, ctime and size.
  bool lasting = false;
  // Names of its extended attributes; null: not known. Shared, since most objects have none.
  std::shared_ptr<const std::vector<std::string>> xattr_names;
};

// What the permission bits give to whom (Attributes::access). Root may all but execute what nobody may.
uint32_t AccessByMode(const Attributes& attributes, uint32_t uid, uint32_t gid, const std::vector<uint32_t>& groups);

struct Entry {
  std::string name;
  Attributes attributes;
  std::optional<std::string> link_target;  // raw text of a symlink, where the listing carries it
  bool only_type = false;  // the directory may be listed, but not searched: nothing but type, device and inode is known
};

struct Listing {
  Attributes directory;
  std::vector<Entry> entries;  // without "." and ".."; no name twice
};

// A question for several listings at once. Paths are relative to the directory that it is asked of, and "" is that directory.
struct DeepQuestion {
  // Not empty. The first one is wanted whatever it costs, the others are guesses.
  std::vector<std::string> directories;
  // So many levels below each of them, too; as a program goes through them: each directory before what is in it, names in the order of their bytes.
  uint32_t depth = 0;
  size_t max_directories = 0;
  size_t max_entries = 0;  // of all but the first
};

struct DeepListing {
  std::string path;
  Listing listing;
};

// Some files of a directory, with the versions that are known of them.
struct KnownFiles {
  struct File {
    std::string name;
    Attributes version;
  };
  Node directory;
  std::vector<File> files;
};

struct FileContent {
  size_t directory = 0, file = 0;  // which one of those that were asked for
  Attributes attributes;           // after it was read
  std::string bytes;               // all of it
};

bool SameTime(const timespec& a, const timespec& b);
bool IsSameVersion(const Attributes& attributes, const Attributes& other);  // of one object: identity, size, mtime, ctime

// Whether a listing of that path is an answer to the question, which outlives this.
class AskedPaths {
 public:
  explicit AskedPaths(const DeepQuestion& question);
  bool contains(std::string_view path) const;

 private:
  std::set<std::string_view> directories_;
  uint32_t depth_;
};

// What a change left behind, so that nobody has to ask again. Absent where the implementation does not know.
struct Changed {
  std::optional<Attributes> object;      // what was made, moved, linked, unlinked (then with the links that it still has) or changed
  std::optional<Attributes> parent;      // its directory afterwards
  std::optional<Attributes> old_parent;  // rename: the directory it left, if another
  // Rename: what had the new name before (with the links that it still has; after an exchange it has the old name). Its id is not known if
  // there was nothing.
  std::optional<Attributes> replaced;
};

struct TimeChange {
  bool now = false;  // the sandbox's clock; `value` is ignored
  timespec value{};
};

struct AttributeChange {
  std::optional<uint32_t> permissions;  // 07777
  std::optional<uint32_t> uid, gid;
  std::optional<int64_t> size;          // truncate or extend with zeros
  std::optional<TimeChange> atime, mtime;
  bool mtime_is_implied = false;  // of a write: a refusal of it is no error
  bool empty() const { return !permissions && !uid && !gid && !size && !atime && !mtime; }
};

struct FsStatistics {  // as statfs(2), of the file system below the mounted directory
  uint64_t block_bytes = 4096;
  uint64_t blocks = 0, blocks_free = 0, blocks_available = 0;
  uint64_t files = 0, files_free = 0;
  uint32_t name_max = 255;
};

enum RenameFlag : uint32_t { kRenameNoReplace = 1, kRenameExchange = 2 };

enum class SeekTarget { kData, kHole };

// What a copy inside the sandbox did.
struct Copied {
  int64_t bytes = 0;      // fewer than asked for at the end of the source, or where the sandbox's kernel stops early; 0 only at the end
  Attributes target;      // afterwards
};

// An open file on the other side. 0 is never one. Survives renames and unlinks where the implementation says so.
using Handle = uint64_t;

struct Opened {
  Handle handle = 0;
  Attributes attributes;              // at the open
  std::optional<Attributes> parent;   // creation: its directory afterwards
  bool created = false;
};

struct OpenRequest {
  bool read = true, write = false;
  bool truncate = false;  // with write: old content goes at once (only when the program asked for O_TRUNC and it is sent now)
};

struct CreateRequest {
  uint32_t permissions = 0644;  // umask already applied
  bool exclusive = true;        // EEXIST if the name exists (also as a dangling link); else what is there is opened, not truncated
};

// A range of an open file as it comes. Destroying it early cancels the transfer.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Blocks until at least one byte is here; 0 at the end of the range or of the file, whichever is first. Neither that nor the range's last
  // byte comes before completeness and, where one was asked for, the version were proved. ESTALE: the file is no longer the version that the stream began with. EIO/kBroken, ETIMEDOUT: lost on
  // the way; the caller opens a new one where it stopped.
  virtual Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) = 0;
  virtual void Cancel() = 0;  // from any thread
  // The file as it was after reading had begun, once that is known; else null.
  virtual const Attributes* attributes() const { return nullptr; }
};

// Where the bytes of a store come from (the spool). Called by the thread that calls Store, possibly several times over
// the same range (a repeat).
class ContentSource {
 public:
  virtual ~ContentSource() = default;
  // Exactly `length` bytes at `offset` of the file, or an error.
  virtual Result<void> ReadAt(int64_t offset, char* buffer, size_t length) = 0;
};

struct Extent {
  int64_t offset = 0;
  int64_t length = 0;
  int64_t end() const { return offset + length; }
  friend bool operator==(const Extent&, const Extent&) = default;
};

// The first bytes of a large Store, brought while the rest is still being written. One thread at a time. Its end gives them up: a file that is
// `fresh` may have some of them, another one has nothing of them before the Store.
class EarlyStore {
 public:
  virtual ~EarlyStore() = default;
  // The next ones, from the file's first on. Blocks while the other side takes no more, bounded by the transport's idle timeout and ctx. An error ends it.
  virtual Result<void> Write(std::string_view bytes, const OpContext& ctx) = 0;
};

// Everything that one flush brings, declared: the implementation picks the safest cheap way. Old content that is not covered
// stays; old content is never replaced by half of the new; inode, owner, mode, links and metadata stay.
struct StoreRequest {
  // Dirty ranges, sorted, disjoint, not touching, below `size`.
  std::vector<Extent> extents;
  // The file's size afterwards; unset: what the extents make of it (never shrinks).
  std::optional<int64_t> size;
  // As if the file had been cut to this size before the extents are written (the smallest size it had meanwhile): what was beyond reads as zeros.
  std::optional<int64_t> cut_to;
  // Bytes [append_from, append_from+append_length) of the source are appended, once, to whatever the file has then.
  std::optional<Extent> append;
  ContentSource* source = nullptr;
  // Set with it, after the content: permissions, owner, times (size is ignored).
  AttributeChange attributes;
  // The object is known to be a new one with no content to lose (created by this client): may be written in place.
  bool fresh = false;
  // No more is expected to be written by this handle: EndWriting with it, should it succeed.
  bool last = false;
  // What BeginStore made for this file, if anything, all of it bytes of the source. It is of no use afterwards.
  EarlyStore* early = nullptr;
  // Asked when what was sent ahead of the change has arrived, and nothing of the file is changed yet; its error ends the Store. Not where nothing is sent
  // ahead, nor of a file that is `fresh`.
  std::function<Result<void>()> before_changing;
};

// Something new. A row of them is made by one question, in its order; those that fail keep no other from being made.
struct NewObject {
  std::optional<size_t> made_in;       // the directory of the same row that it goes into; unset: `directory`
  Node directory;                      // which is there; ESTALE if its identity is known, and another one is there
  std::string name;                    // EEXIST if it is taken, by whatever
  FileType type = FileType::kRegular;  // or kDirectory, kSymlink
  uint32_t permissions = 0;            // of a file or directory; umask already applied
  std::optional<Creator> creator{};    // as OpContext::creator, which does not count here
  std::string target{};                // of a link
  int64_t size = 0;                    // of a file
  ContentSource* source = nullptr;     // all of its bytes; not needed for an empty file
  AttributeChange attributes{};        // set at last: of a file after its content, of a directory after all of the row was made; size is ignored
};

// What became of it:
//   attributes             it was made, with its content. They are as after the whole row; as it was made, if somebody took it away or replaced it since:
//                          the next look finds that, and whoever made it has nothing to make again
//   attributes and error   it was made, but for NewObject::attributes: they were refused (ESTALE: it was not found again to set them), or, if the error's kind
//                          is not kErrno, may be set or not
//   error                  nothing of it is there, unless its kind leaves open what was done (kBroken, kTimeout, kProtocol...): it may be there, or the beginning of its content
struct MadeObject {
  std::optional<Attributes> attributes;
  std::optional<Error> error;
};

struct MadeObjects {
  std::vector<MadeObject> objects;      // one for each of the row
  std::vector<Attributes> directories;  // that were there before and were made in, afterwards, as far as they are known
};

// Bounds of a row, for whoever asks.
inline constexpr size_t kMostNewObjects = 2000;
inline constexpr int64_t kMostNewBytes = 4 << 20;  // of content, in all

// For implementations: EINVAL/kBadRequest for a row that is beyond its bounds, or not as NewObject has it.
Result<void> CheckRow(const std::vector<NewObject>& objects);
Result<std::string> ContentOf(const NewObject& object);  // kLocal: it cannot be read

struct Description {
  std::string tier;             // "service", "syscall"
  std::string user;             // who the operations act as
  uint32_t uid = 0, gid = 0;    // of that user in the sandbox
  std::string root;             // the mounted directory, absolute in the sandbox
  std::string home;
  std::string server_version;   // envd's
  std::vector<std::string> cannot;  // what it cannot do, a line each, for `status`
  bool hard_links_share_identity = false;
  bool tells_ctime = false;  // Attributes::ctime is the object's own
  bool clears_set_ids = false;  // what is written and truncated loses its set-id bits as it does by the acting user's programs
  bool identities_survive_renames = false;  // so that another identity is another object, whoever renamed what
  int64_t clock_seconds = 0;  // of the sandbox, when it was asked for all this (since 1970); 0: not known
};

// Told of what changes in watched directories, by whomever: this client's own changes may be left out, since their answers say
// it. Called by a thread of the implementation, one call at a time, in the order in which things happened, and before an answer that may
// know of them is given. Must not block, nor call the RemoteFs.
class ChangeListener {
 public:
  virtual ~ChangeListener() = default;
  // `now`: what the name leads to; unset with `gone` false: it has to be asked for.
  virtual void NameChanged(const FileId& directory, const std::string& name, const std::optional<Entry>& now, bool gone) = 0;
  virtual void DirectoryChanged(const Attributes& now) = 0;
  // It is watched no longer: what is known of it may be outdated from now on.
  virtual void Unwatched(const FileId& directory) = 0;
  // Changes may have been missed: all directories are unwatched until an answer says otherwise to a question asked after this.
  virtual void ChangesLost() = 0;
};

class RemoteFs {
 public:
  virtual ~RemoteFs() = default;

  virtual const Description& description() const = 0;
  // At most one; null ends it: no call is under way when this returns. Implementations that cannot watch ignore it.
  virtual void SetListener(ChangeListener* /*listener*/) {}

  // --- names and attributes. lstat semantics: the last component is never followed.
  virtual Result<Attributes> Stat(const Node& node, const OpContext& ctx) = 0;
  virtual Result<Attributes> Lookup(const Name& name, const OpContext& ctx) = 0;
  virtual Result<Listing> List(const Node& directory, const OpContext& ctx) = 0;
  // Several listings by one question, each as good as List's own; asked ahead of a program that goes through a tree. What could not be listed, or is
  // beyond the limits, is absent, and any may be; no path twice. ENOTSUP: only List can be asked.
  virtual Result<std::vector<DeepListing>> ListDeep(const Node& /*directory*/, const DeepQuestion& /*question*/, const OpContext& /*ctx*/) {
    return Errno(ENOTSUP, "several listings at once");
  }
  virtual Result<std::string> ReadLink(const Node& node, const OpContext& ctx) = 0;
  virtual Result<FsStatistics> StatFs(const OpContext& ctx) = 0;

  // --- changes of names; exact as the system calls are (no recursion, no implicit parents, no silent replacement of another type)
  virtual Result<Changed> MakeDirectory(const Name& name, uint32_t permissions, const OpContext& ctx) = 0;
  virtual Result<Changed> MakeNode(const Name& name, FileType type, uint32_t permissions, uint32_t major, uint32_t minor,
                                   const OpContext& ctx) = 0;
  virtual Result<Changed> MakeSymlink(const Name& name, const std::string& target, const OpContext& ctx) = 0;
  virtual Result<Changed> MakeLink(const Node& existing, const Name& name, const OpContext& ctx) = 0;
  virtual Result<Changed> Unlink(const Name& name, const OpContext& ctx) = 0;           // EISDIR for a directory
  virtual Result<Changed> RemoveDirectory(const Name& name, const OpContext& ctx) = 0;  // ENOTEMPTY, ENOTDIR
  // flags: RenameFlag. EINVAL where the implementation cannot do a flag.
  virtual Result<Changed> Rename(const Name& from, const Name& to, uint32_t flags, const OpContext& ctx) = 0;
  // `handle`: an open handle of the same object if there is one, else 0; it finds an unlinked object too where handles can.
  virtual Result<Changed> SetAttributes(const Node& node, Handle handle, const AttributeChange& change, const OpContext& ctx) = 0;

  // At most kMostNewObjects and kMostNewBytes. An error of the whole says nothing of any: each may have been made, or the beginning of its content, unless
  // the error's kind tells that nothing was done (kErrno too). Once some are known to be made, the others have errors of their own. ENOTSUP: they have to be made one by one.
  virtual Result<MadeObjects> MakeObjects(const std::vector<NewObject>& /*objects*/, const OpContext& /*ctx*/) {
    return Errno(ENOTSUP, "several new objects at once");
  }

  // --- extended attributes; ENOTSUP where the implementation has none. `handle` as in SetAttributes.
  virtual Result<std::string> GetXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) = 0;
  virtual Result<std::vector<std::string>> ListXattrs(const Node& node, Handle handle, const OpContext& ctx) = 0;
  virtual Result<Changed> SetXattr(const Node& node, Handle handle, const std::string& name, const std::string& value, int flags,
                                   const OpContext& ctx) = 0;
  virtual Result<Changed> RemoveXattr(const Node& node, Handle handle, const std::string& name, const OpContext& ctx) = 0;

  // --- open files. Regular files only (others: ENXIO/EOPNOTSUPP: they are opened here, not there); a link is ELOOP.
  virtual Result<Opened> Open(const Node& node, const OpenRequest& request, const OpContext& ctx) = 0;
  // Sends an open and does not wait for it: the handle's number, or 0 where the implementation cannot. It is carried out before anything
  // that is asked after this returned, so that the file is held from here on, whatever happens to its names. If it fails, each use
  // of the handle fails with its error (ESTALE: another file is there now); it has to be closed all the same. Never blocks for the network.
  virtual Handle OpenSoon(const Node& /*node*/, const OpenRequest& /*request*/) { return 0; }
  // Why the open that was sent failed, as far as that is known by now. Never blocks for the network.
  virtual std::optional<Error> OpenFailure(Handle /*handle*/) const { return std::nullopt; }
  virtual Result<Opened> Create(const Name& name, const CreateRequest& request, const OpContext& ctx) = 0;
  // The node's path as it is now is given with each use, for implementations whose handles are paths. Where the caller holds no handle, 0 means
  // that the implementation opens the node for this one use, in the same round trip: EACCES and ESTALE as Open.
  // `version`: attributes (mtime, size) that the content has to belong to, ESTALE otherwise; null: whatever is there.
  virtual Result<std::unique_ptr<ByteStream>> Read(Handle handle, const Node& node, const Attributes* version, Extent range,
                                                   const OpContext& ctx) = 0;
  // The content of several small files by one question, asked ahead of a program that reads one after the other. Each is a regular file of that
  // version (identity, size, mtime, ctime), and was from before the first byte was read until after the last. Others are absent, and any may be.
  // It is as large as their sizes together. ENOTSUP: only Read can be asked.
  virtual Result<std::vector<FileContent>> ReadFiles(const std::vector<KnownFiles>& /*files*/, const OpContext& /*ctx*/) {
    return Errno(ENOTSUP, "several files at once");
  }
  // Afterwards the sandbox has it all (attributes as they then are are returned), or the old content is untouched, or, on an error of a file that is
  // `fresh`, it may be torn. ENOSPC, EDQUOT, EACCES, ESTALE, EIO. Where the content is in place and only `attributes` were refused,
  // the error says content_stored; where a part of the append is there all the same, it says how much (appended).
  virtual Result<Attributes> Store(Handle handle, const Node& node, const StoreRequest& request, const OpContext& ctx) = 0;
  // For a Store that will bring all of the file's content. `fresh`: as StoreRequest's. Null where it has to wait for the whole.
  virtual Result<std::unique_ptr<EarlyStore>> BeginStore(Handle /*handle*/, const Node& /*node*/, bool /*fresh*/, const OpContext& /*ctx*/) {
    return std::unique_ptr<EarlyStore>();
  }
  // No more is expected to be written by this handle, which stays open: the file is no longer busy there for who wants to run it (ETXTBSY).
  // What is written all the same is stored as before. Never blocks for the network.
  virtual void EndWriting(Handle /*handle*/) {}
  // lseek(2) with SEEK_DATA and SEEK_HOLE. ENXIO: beyond the end, or only a hole follows. ENOTSUP where the implementation cannot know.
  virtual Result<int64_t> Seek(Handle handle, const Node& node, int64_t offset, SeekTarget target, const OpContext& ctx) = 0;
  // fallocate(2) with its mode bits; the attributes afterwards. ENOTSUP, ENOSPC, EINVAL.
  virtual Result<Attributes> Allocate(Handle handle, const Node& node, uint32_t mode, Extent range, const OpContext& ctx) = 0;
  // copy_file_range(2), done there. Both handles are open as it needs; the files may be one. Done at most once. ENOTSUP.
  virtual Result<Copied> CopyRange(Handle from, const Node& from_node, int64_t from_offset, Handle to, const Node& to_node,
                                   Extent target, const OpContext& ctx) = 0;
  // fstat(2): the open file's attributes, wherever its names are now.
  virtual Result<Attributes> StatHandle(Handle handle, const Node& node, const OpContext& ctx) = 0;
  // Content of the file is on the sandbox's disk.
  virtual Result<void> Sync(Handle handle, const Node& node, const OpContext& ctx) = 0;
  // Never blocks for the network longer than ctx; the handle is gone whatever is returned.
  virtual void Close(Handle handle, const OpContext& ctx) = 0;

  // --- for `status`: values by name, text
  virtual std::vector<std::pair<std::string, std::string>> Status() const = 0;
};

}  // namespace e2bfs::transport
