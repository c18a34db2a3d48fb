// Filesystem: what each operation of the kernel means. The public header of fuse/, and the only part of it that a test
// needs: no libfuse type occurs here.
//
// NodeIds here are the kernel's numbers, CachedFs's but for some directories (place_table.h).
// Operations keep the kernel's words (Lookup, SetAttr, ReadDirPlus), so one search finds the way from bridge to cache. Each blocks within
// ctx and may be called by any thread. Errors are CachedFs's and a few of its own; KernelErrno makes them fit for the kernel.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cache/cached_fs.h"
#include "fuse/identity.h"
#include "fuse/kernel_notify.h"
#include "fuse/place_table.h"
#include "fuse/symlinks.h"
#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

class NodeTable;

using cache::DirectoryHandle;
using cache::FileHandle;
using cache::NodeId;

struct FilesystemOptions {
  IdentityOptions identity;
  SymlinkPolicy symlinks = SymlinkPolicy::kInside;
  std::string mount_point;  // where it will be mounted, absolute; for links made with absolute paths
};

// A node with its attributes. The receiver holds one reference and gives it back by Forget.
struct NodeReply {
  NodeId node = 0;
  struct stat attributes {};
  std::chrono::milliseconds valid_for{0};  // for the name and for the attributes
};

struct AttributeReply {
  struct stat attributes {};
  std::chrono::milliseconds valid_for{0};
};

struct OpenReply {
  FileHandle handle = 0;
  bool keep_cache = false;  // the kernel's pages of this file are still its content
  bool direct_io = false;
  bool no_flush = false;    // close(2) need not ask: nothing can have been written through this handle
};

struct CreateReply {
  NodeReply node;
  OpenReply file;
};

// What SetAttr was asked to change; unset means untouched.
struct SetAttrRequest {
  std::optional<mode_t> mode;  // only the bits of 07777 count
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::optional<int64_t> size;
  std::optional<transport::TimeChange> atime, mtime;
};

// One entry of a listing. `node` is 0 for "." and "..", and unless references were asked for.
struct DirectoryItem {
  const std::string& name;
  uint64_t next;  // position after it: what the kernel asks with to go on
  const NodeReply& node;
};

// What may be answered for an error: 1..511 (the kernel drops an answer with another number, and its caller waits for ever), never
// ENOSYS (it would switch the operation off for the rest of the mount), EINTR only where the caller is dying. EIO instead.
int KernelErrno(const Error& error, bool caller_dying);

class Filesystem {
 public:
  // `cached` outlives this object. `invalidate` is called, by any thread and inside operations, with what is outdated
  // in the kernel: it must only queue the work (telling the kernel from inside a request can deadlock).
  Filesystem(cache::CachedFs& cached, FilesystemOptions options, std::function<void(Outdated)> invalidate);
  ~Filesystem();

  Result<NodeReply> Lookup(NodeId parent, const std::string& name, const OpContext& ctx);
  void Forget(NodeId node, uint64_t count);
  // for_size: the kernel's own question (of a seek, or a read at the end), which nobody is told anything of but the size.
  Result<AttributeReply> GetAttr(NodeId node, bool for_size, const OpContext& ctx);
  // `file`: the open file that the program gave (ftruncate), else 0.
  Result<AttributeReply> SetAttr(NodeId node, FileHandle file, const SetAttrRequest& request, const OpContext& ctx);
  // mask: R_OK, W_OK, X_OK, or F_OK. EACCES by what the sandbox's user may do.
  Result<void> Access(NodeId node, int mask, const OpContext& ctx);
  Result<struct statvfs> StatFs(const OpContext& ctx);

  Result<std::string> ReadLink(NodeId node, const OpContext& ctx);
  Result<NodeReply> Symlink(const std::string& text, NodeId parent, const std::string& name, const OpContext& ctx);
  Result<NodeReply> Mkdir(NodeId parent, const std::string& name, mode_t mode, const OpContext& ctx);
  // Device numbers pass on; what the sandbox's user may not make is EPERM there.
  Result<NodeReply> Mknod(NodeId parent, const std::string& name, mode_t mode, dev_t device, const OpContext& ctx);
  Result<NodeReply> Link(NodeId node, NodeId parent, const std::string& name, const OpContext& ctx);
  Result<void> Unlink(NodeId parent, const std::string& name, const OpContext& ctx);
  Result<void> Rmdir(NodeId parent, const std::string& name, const OpContext& ctx);
  // flags as of renameat2(2); others than NOREPLACE and EXCHANGE are EINVAL.
  Result<void> Rename(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, unsigned flags,
                      const OpContext& ctx);
  // It was done, and the kernel, whose caller died, does not know.
  void RenameNotTaken(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, unsigned flags);

  // flags as of open(2). Where ids are real, ctx.creator is whoever opens.
  Result<OpenReply> Open(NodeId node, int flags, const OpContext& ctx);
  Result<CreateReply> Create(NodeId parent, const std::string& name, mode_t mode, int flags, const OpContext& ctx);
  // Fills `buffer`; short only at the end of the file.
  Result<size_t> Read(FileHandle file, int64_t offset, char* buffer, size_t length, const OpContext& ctx);
  Result<size_t> Write(FileHandle file, int64_t offset, std::string_view bytes, const OpContext& ctx);
  // whence: SEEK_DATA or SEEK_HOLE.
  Result<off_t> Lseek(FileHandle file, int64_t offset, int whence, const OpContext& ctx);
  // mode as of fallocate(2).
  Result<void> Fallocate(FileHandle file, int mode, int64_t offset, int64_t length, const OpContext& ctx);
  Result<size_t> CopyFileRange(FileHandle from, int64_t from_offset, FileHandle to, int64_t to_offset, size_t length,
                               const OpContext& ctx);
  Result<void> Flush(FileHandle file, const OpContext& ctx);
  Result<void> Fsync(FileHandle file, const OpContext& ctx);
  Result<void> FsyncDir(NodeId directory, const OpContext& ctx);
  void Release(FileHandle file, const OpContext& ctx);

  Result<DirectoryHandle> OpenDir(NodeId node, const OpContext& ctx);
  // From `position` on (0: the beginning, then an item's `next`), "." and ".." first, until `emit` returns false.
  // with_references: each emitted item but "." and ".." holds a reference.
  Result<void> ReadDir(NodeId node, DirectoryHandle directory, uint64_t position, bool with_references,
                       const std::function<bool(const DirectoryItem&)>& emit, const OpContext& ctx);
  void ReleaseDir(DirectoryHandle directory);

  // Attributes that are answered here, always and at once: what the kernel asks for by itself.
  static bool IsLocalXattr(std::string_view name);
  // The whole value or list (names each ended by a NUL): the bridge knows what size was asked for.
  Result<std::string> GetXattr(NodeId node, const std::string& name, const OpContext& ctx);
  Result<std::string> ListXattr(NodeId node, const OpContext& ctx);
  Result<void> SetXattr(NodeId node, const std::string& name, const std::string& value, int flags, const OpContext& ctx);
  Result<void> RemoveXattr(NodeId node, const std::string& name, const OpContext& ctx);

  bool real_ids() const { return identity_.real(); }
  // For messages.
  std::string PathOf(NodeId node) const { return cached_.PathOf(places_.NodeOf(node)); }
  bool HasName(NodeId node) const { return cached_.HasName(places_.NodeOf(node)); }
  // Makes the kernel forget what news from the other side made outdated.
  void Tell(const cache::KernelNews& news);

 private:
  ino_t InodeOf(NodeId node, const OpContext& ctx);
  Result<bool> HasXattr(NodeId node, const std::string& name, const OpContext& ctx);
  struct stat ToStat(const cache::NodeAttributes& from) const;
  NodeId At(NodeId number) const { return places_.NodeOf(number); }
  NodeReply ToReply(NodeId parent, const std::string& name, const cache::NodeAttributes& from, PlaceTable::Found found, TimePoint asked);
  // Of what was made in `parent` by that name just now.
  NodeReply Made(NodeId parent, const std::string& name, const cache::NodeAttributes& made);
  // The number by which the kernel gets a reference to the node that has this name in `parent`.
  NodeId Referenced(NodeId parent, const std::string& name, const cache::NodeAttributes& attributes, PlaceTable::Found found, TimePoint asked);
  void Unreferenced(NodeId number, uint64_t count);
  // A name in a directory was changed by the kernel's request: it knows that itself, but for the directory's other numbers.
  void NameChanged(NodeId parent, const std::string& name);
  // The same of a directory's attributes.
  void AttributesChanged(NodeId number);
  AttributeReply ToAttributeReply(const cache::NodeAttributes& from);
  OpenReply ToOpenReply(const cache::OpenedFile& opened, bool writable);
  // The link's directory relative to the mounted one, and how many ".." from it are certainly inside.
  std::pair<std::string, size_t> PlaceOfLink(NodeId link) const;
  const std::string& root() const;

  cache::CachedFs& cached_;
  const FilesystemOptions options_;
  const Identity identity_;
  const std::function<void(Outdated)> invalidate_;
  const std::unique_ptr<NodeTable> nodes_;
  PlaceTable places_;
  uint64_t root_device_ = 0;
};

}  // namespace e2bfs::fuse
