// CachedFs: what fuse/ calls. Names, attributes, content and unsent changes of one mounted directory, kept near.
// The public header of cache/.
//
// Objects are named by NodeId, made by this class, never reused in a mount and stable for its life; names map to nodes, nodes to
// remote identities (FileId). fuse/ holds a node by a reference count that it gives back with Forget. kRoot is the
// mounted directory and always held.
//
// All calls may block within ctx; any thread may call any of them. Calls that would only use what is cached and fresh
// never wait for the network nor for a call that does. Errors are errno values for programs (Error::errno_value).
// A default-constructed deadline in ctx is filled in from the options.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

class BlockStore;

using NodeId = uint64_t;
inline constexpr NodeId kRoot = 1;

// What an entry of a directory can be called: 1..255 bytes, no '/' and NUL, neither "." nor "..".
bool IsName(std::string_view text);

struct CachedFsOptions {
  std::chrono::milliseconds attribute_ttl{1000};  // also listings and link texts; of what is not watched
  std::chrono::milliseconds negative_ttl{1000};
  std::chrono::milliseconds operation_timeout{60'000};   // for one operation on names or attributes
  std::chrono::milliseconds transfer_timeout{600'000};   // for one read(2), retries included, or for a store that does not get on; each wait inside has the transport's idle timeout too
  std::chrono::milliseconds reader_idle{60'000};         // a stream nobody reads from is cancelled after it
  int64_t memory_bytes = 48 << 20;          // read-ahead of the whole mount
  int64_t max_window_bytes = 32 << 20;      // read-ahead of one reader
  bool prefetch = true;                     // of listings and small files that a program seems to come to
  std::string spool_directory;              // must exist, 0700, ours; files in it are removed at exit unless they hold unsent data
  int64_t spool_bytes = int64_t{10} << 30;  // limit; a write beyond it sends dirty files first, then ENOSPC
  bool read_only = false;
  // close(2) returns when what was written is in the spool directory, with a note that says it, and so do calls that make something in a directory that
  // this mount made. It is sent soon after. Barriers: Sync, SyncDirectory, FlushAll, and each change of names that depends on it.
  bool writeback = false;
  // Content that was read is kept there and served from there; null: nowhere. It outlives this object.
  BlockStore* store = nullptr;
  std::string store_scope;                  // which sandbox, among all that the store has something of
  // A version goes into the store when its ctime is so old by the sandbox's clock. Two changes within one tick of a file system's clock have one ctime; and stores
  // through mmap set it for the first one in a page only, until that is on the disk (30 s and more).
  std::chrono::milliseconds settled_after{60'000};
  // Where the content of a file goes that is not there any more when it is to be sent; made when needed. Empty: it stays unsent.
  std::string unsent_directory;
  std::string sandbox_id;  // with store_scope, for what says of unsent data where it belongs
};

// The device of what was made here before the sandbox had it: its inode number is not the sandbox's, then and later.
inline constexpr uint64_t kMadeUpDevice = UINT64_MAX;

struct NodeAttributes {
  NodeId node = 0;
  transport::Attributes attributes;  // with unsent changes laid over: what fstat has to show
  // How long the kernel may keep them without asking; zero while changes are unsent or the answer is already old.
  std::chrono::milliseconds valid_for{0};
  // Changes when content may differ from what was read before: the kernel's pages of older ones must go.
  uint64_t content_generation = 0;
};

struct DirectoryEntry {
  std::string name;
  NodeId node = 0;                           // 0 unless a reference was asked for and could be given
  NodeAttributes attributes;                 // of a name that is gone meanwhile: what it was, as far as a listing shows it
};

using FileHandle = uint64_t;       // an open file; 0 is never one
using DirectoryHandle = uint64_t;  // an open directory: a snapshot with stable positions

struct OpenFlags {
  bool read = true;
  bool write = false;
  bool append = false;
  bool truncate = false;
};

struct OpenedFile {
  FileHandle handle = 0;
  NodeAttributes attributes;
  bool keep_kernel_pages = false;  // content is the same as at the last open
  bool direct = false;             // size cannot be trusted (/proc): read without the kernel's page cache
};

struct UnsentFile {
  std::string path;      // in the sandbox, as last known
  int64_t bytes = 0;
  std::string spool_file;
  std::string last_error;
};

struct CacheStatus {
  int64_t dirty_bytes = 0;
  int64_t dirty_files = 0;
  int64_t open_files = 0;
  int64_t known_nodes = 0;
  int64_t memory_bytes = 0;
  std::string store_directory;     // of the block store; empty: there is none
  int64_t store_limit_bytes = 0;
  std::string last_error;          // of a store or read, with the path; empty if none
  std::vector<UnsentFile> unsent;
};

// What the kernel may hold and is outdated, since the other side told of a change.
struct KernelNews {
  NodeId node = 0;       // its attributes, and pages of another generation than this; 0: none
  uint64_t content_generation = 0;
  NodeId directory = 0;  // and the name in it; 0: none
  std::string name{};
  NodeId left = 0;       // what it led to before; 0: to nothing that is known
};

class CachedFs {
 public:
  // `remote` outlives this object. Asks for the root's attributes: its errors (ENOENT, ENOTDIR, network) come out here.
  static Result<std::unique_ptr<CachedFs>> Create(transport::RemoteFs& remote, CachedFsOptions options,
                                                  const OpContext& ctx);
  // Does not send anything: call FlushAll before. What is unsent then stays in the spool directory (see SaveUnsent).
  virtual ~CachedFs() = default;

  // --- names. Each success that returns a node adds one reference for it (give back by Forget).
  virtual Result<NodeAttributes> Lookup(NodeId parent, const std::string& name, const OpContext& ctx) = 0;
  virtual void Forget(NodeId node, uint64_t count) = 0;
  virtual Result<NodeAttributes> GetAttributes(NodeId node, const OpContext& ctx) = 0;
  // stat(2) and fstat(2): as GetAttributes, but what little of the file is unsent is sent first, so that the ctime that is told stays
  // true. If that fails it is as it was, and sent again at close; nobody waits for it longer than for an operation on names.
  virtual Result<NodeAttributes> Stat(NodeId node, const OpContext& ctx) = 0;
  // handle: the program's open file if it gave one (ftruncate), else 0.
  virtual Result<NodeAttributes> SetAttributes(NodeId node, FileHandle handle, const transport::AttributeChange& change,
                                               const OpContext& ctx) = 0;
  virtual Result<std::string> ReadLink(NodeId node, const OpContext& ctx) = 0;
  virtual Result<NodeAttributes> MakeDirectory(NodeId parent, const std::string& name, uint32_t permissions, const OpContext& ctx) = 0;
  virtual Result<NodeAttributes> MakeNode(NodeId parent, const std::string& name, transport::FileType type, uint32_t permissions,
                                          uint32_t major, uint32_t minor, const OpContext& ctx) = 0;
  virtual Result<NodeAttributes> MakeSymlink(NodeId parent, const std::string& name, const std::string& target, const OpContext& ctx) = 0;
  virtual Result<NodeAttributes> MakeLink(NodeId existing, NodeId parent, const std::string& name, const OpContext& ctx) = 0;
  virtual Result<void> Unlink(NodeId parent, const std::string& name, const OpContext& ctx) = 0;
  virtual Result<void> RemoveDirectory(NodeId parent, const std::string& name, const OpContext& ctx) = 0;
  // Unsent data of the moved file is sent first; its failure fails the rename. flags: transport::RenameFlag.
  virtual Result<void> Rename(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, uint32_t flags,
                              const OpContext& ctx) = 0;
  virtual Result<transport::FsStatistics> StatFs(const OpContext& ctx) = 0;

  // --- extended attributes
  virtual Result<std::string> GetXattr(NodeId node, const std::string& name, const OpContext& ctx) = 0;
  virtual Result<std::vector<std::string>> ListXattrs(NodeId node, const OpContext& ctx) = 0;
  virtual Result<void> SetXattr(NodeId node, const std::string& name, const std::string& value, int flags, const OpContext& ctx) = 0;
  virtual Result<void> RemoveXattr(NodeId node, const std::string& name, const OpContext& ctx) = 0;

  // --- directories
  virtual Result<DirectoryHandle> OpenDirectory(NodeId node, const OpContext& ctx) = 0;
  // Entries from `position` on (0: the beginning; "." and ".." are fuse/'s), handed to `emit` in order with the position after
  // each, until it returns false. The snapshot is taken by the first call and again at position 0 (rewinddir). with_references: each emitted entry whose
  // `emit` returned true holds a reference, as Lookup gives.
  virtual Result<void> ReadDirectory(DirectoryHandle handle, uint64_t position, bool with_references,
                                     const std::function<bool(const DirectoryEntry&, uint64_t next)>& emit,
                                     const OpContext& ctx) = 0;
  virtual void CloseDirectory(DirectoryHandle handle) = 0;

  // --- files
  virtual Result<OpenedFile> Open(NodeId node, OpenFlags flags, const OpContext& ctx) = 0;
  // Creates it in the sandbox at once, empty. exclusive: EEXIST if there; else what is there is opened. A reference as by Lookup.
  virtual Result<OpenedFile> CreateFile(NodeId parent, const std::string& name, uint32_t permissions, bool exclusive, OpenFlags flags,
                                        const OpContext& ctx) = 0;
  // Into `buffer`: bytes read, short only at the end of the file. Unsent writes of any handle are seen.
  virtual Result<size_t> Read(FileHandle handle, int64_t offset, char* buffer, size_t length, const OpContext& ctx) = 0;
  // Into the spool; all of it or an error. With append, `offset` is ignored.
  virtual Result<size_t> Write(FileHandle handle, int64_t offset, std::string_view bytes, const OpContext& ctx) = 0;
  // lseek(2): what is unsent is sent first. Where the sandbox cannot tell, all is data and the hole is at the end.
  virtual Result<int64_t> Seek(FileHandle handle, int64_t offset, transport::SeekTarget target, const OpContext& ctx) = 0;
  // fallocate(2) with mode bits KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE. What is unsent is sent first, then it is done there. EOPNOTSUPP.
  virtual Result<void> Allocate(FileHandle handle, uint32_t mode, transport::Extent range, const OpContext& ctx) = 0;
  // copy_file_range(2), done in the sandbox after what is unsent of both was sent. May copy less; 0 at the source's end. EOPNOTSUPP.
  virtual Result<size_t> CopyRange(FileHandle from, int64_t from_offset, FileHandle to, transport::Extent target, const OpContext& ctx) = 0;
  // Flush, Sync and Release are never ended by a signal: ctx.stop is requested only when the mount ends, and what was not sent
  // stays unsent.
  // close(2): sends what is dirty; reports the first error that nobody was told of yet. Also before each close of a dup.
  virtual Result<void> Flush(FileHandle handle, const OpContext& ctx) = 0;
  virtual Result<void> Sync(FileHandle handle, const OpContext& ctx) = 0;
  // The last close; sends what came after the last flush (mmap). Errors are logged and latched. The handle is gone afterwards.
  virtual void Release(FileHandle handle, const OpContext& ctx) = 0;
  // fsync(2) of a directory: what was accepted in it and below is in the sandbox.
  virtual Result<void> SyncDirectory(NodeId node, const OpContext& ctx) = 0;

  // --- the mount's end, and people
  // Sends everything that is dirty, also of files that failed before; progress gets the bytes left, now and then. What could not be sent within ctx stays.
  virtual Result<void> FlushAll(const OpContext& ctx, const std::function<void(int64_t bytes_left)>& progress) = 0;
  // Moves what is unsent into `directory` (created 0700): content files, each with its note (unsent_record.h), and a text file for people. The number of files.
  virtual Result<int> SaveUnsent(const std::string& directory) = 0;
  virtual CacheStatus Status() const = 0;

  // The directory that a node is in, as now known; the root's is itself, and 0 is one that was forgotten.
  virtual NodeId ParentOf(NodeId node) const = 0;
  // The absolute path in the sandbox of a node, as now known; for messages.
  virtual std::string PathOf(NodeId node) const = 0;
  // Some name that is known here leads to it.
  virtual bool HasName(NodeId node) const = 0;
  virtual transport::RemoteFs& remote() = 0;
  // Called with what changed, by any thread, without locks; it must only queue the work. Unset again: no call is under way
  // when that returns.
  virtual void SetKernel(std::function<void(const std::vector<KernelNews>&)> tell) = 0;
};

}  // namespace e2bfs::cache
