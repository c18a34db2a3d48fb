#include "fuse/filesystem.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "fuse/node_table.h"

namespace e2bfs::fuse {
namespace {

using transport::Attributes;
using transport::FileType;

// What a listing gives as number of an entry whose node it does not know. Programs take 0 for "deleted".
constexpr ino_t kUnknownInode = 0xffffffff;

// Programs size their buffers by it, and without the kernel's writeback cache each write(2) is a request.
constexpr blksize_t kPreferredBytes = 128 << 10;

constexpr size_t kNameMax = 255;

constexpr std::chrono::seconds kRootTime{60};

// Of one copy_file_range(2): the answer is a 32-bit number, and the caller goes on with the rest.
constexpr size_t kMostCopied = 1 << 30;

mode_t TypeBits(FileType type) {
  switch (type) {
    case FileType::kRegular: return S_IFREG;
    case FileType::kDirectory: return S_IFDIR;
    case FileType::kSymlink: return S_IFLNK;
    case FileType::kFifo: return S_IFIFO;
    case FileType::kSocket: return S_IFSOCK;
    case FileType::kCharDevice: return S_IFCHR;
    case FileType::kBlockDevice: return S_IFBLK;
  }
  return S_IFREG;
}

Result<FileType> TypeOfMode(mode_t mode) {
  switch (mode & S_IFMT) {
    case 0:
    case S_IFREG: return FileType::kRegular;
    case S_IFIFO: return FileType::kFifo;
    case S_IFSOCK: return FileType::kSocket;
    case S_IFCHR: return FileType::kCharDevice;
    case S_IFBLK: return FileType::kBlockDevice;
    default: return Errno(EINVAL);
  }
}

Result<void> CheckNewName(const std::string& name) {
  if (name.size() > kNameMax) return Errno(ENAMETOOLONG);
  return {};
}

// Looked for by the kernel and by `ls` again and again; what they say means nothing here, where nosuid holds.
bool IsKernelsXattr(std::string_view name) {
  return name == "security.capability" || name == "security.selinux" || name == "security.ima" || name == "security.evm";
}
bool IsAclXattr(std::string_view name) { return name.starts_with("system.posix_acl_"); }

cache::OpenFlags ToOpenFlags(int flags) {
  cache::OpenFlags open;
  const int mode = flags & O_ACCMODE;
  open.read = mode != O_WRONLY;
  open.write = mode == O_WRONLY || mode == O_RDWR;
  open.append = open.write && (flags & O_APPEND) != 0;
  open.truncate = (flags & O_TRUNC) != 0;
  return open;
}

}  // namespace

int KernelErrno(const Error& error, bool caller_dying) {
  const int value = error.errno_value;
  if (value <= 0 || value >= 512 || value == ENOSYS) return EIO;
  if (value == EINTR && !caller_dying) return EIO;
  return value;
}

Filesystem::Filesystem(cache::CachedFs& cached, FilesystemOptions options, std::function<void(Outdated)> invalidate)
    : cached_(cached),
      options_(std::move(options)),
      identity_(options_.identity),
      invalidate_(std::move(invalidate)),
      nodes_(std::make_unique<NodeTable>()) {
  // Known since CachedFs was made.
  if (auto root = cached_.GetAttributes(cache::kRoot, OpContext::Within(kRootTime))) root_device_ = root->attributes.device;
}

Filesystem::~Filesystem() = default;

const std::string& Filesystem::root() const { return cached_.remote().description().root; }

struct stat Filesystem::ToStat(const cache::NodeAttributes& from) const {
  const Attributes& in = from.attributes;
  struct stat out {};
  out.st_ino = identity_.Inode(in, from.node, root_device_);
  if (out.st_ino == 0) out.st_ino = kUnknownInode;
  out.st_mode = TypeBits(in.type) | (in.type == FileType::kSymlink ? 0777 : identity_.Shown(in.permissions & 07777));
  out.st_nlink = in.link_count;
  out.st_uid = identity_.uid(in);
  out.st_gid = identity_.gid(in);
  out.st_rdev = makedev(in.rdev_major, in.rdev_minor);
  out.st_size = std::max<int64_t>(in.size, 0);
  // Where the count is not known (nor is the inode's number then): 0 would mean "nothing but a hole", and tools then skip the content.
  const bool blocks_known = in.blocks > 0 || in.inode != 0 || in.type != FileType::kRegular;
  out.st_blocks = blocks_known ? in.blocks : (out.st_size + 511) / 512;
  out.st_blksize = kPreferredBytes;
  out.st_atim = in.atime;
  out.st_mtim = in.mtime;
  out.st_ctim = in.ctime;
  return out;
}

NodeReply Filesystem::ToReply(NodeId parent, const std::string& name, const cache::NodeAttributes& from, PlaceTable::Found found,
                              TimePoint asked) {
  const NodeId number = Referenced(parent, name, from, found, asked);
  return {number, ToStat(from), std::max(from.valid_for, std::chrono::milliseconds(0))};
}

NodeId Filesystem::Referenced(NodeId parent, const std::string& name, const cache::NodeAttributes& attributes, PlaceTable::Found found,
                              TimePoint asked) {
  const FileType type = attributes.attributes.type;
  if (attributes.node == cache::kRoot) return cache::kRoot;
  if (type == FileType::kDirectory) return places_.Referenced(parent, name, attributes.node, found, asked);
  if (type == FileType::kSymlink) {
    places_.LinkReferenced(parent, name, attributes.node);
  } else {
    places_.OtherReferenced(parent, name);
  }
  nodes_->Referenced(attributes.node);
  if (nodes_->PagesOutdated(attributes.node, attributes.content_generation)) invalidate_({attributes.node, true, {}});
  return attributes.node;
}

void Filesystem::Tell(const cache::KernelNews& news) {
  if (news.node != 0) {
    // A descriptor that stays open has pages that nothing else would ask about.
    const bool pages = nodes_->PagesOutdated(news.node, news.content_generation);
    for (const NodeId number : places_.NumbersOf(news.node)) invalidate_({number, pages, {}});
  }
  if (news.directory != 0) {
    for (const NodeId number : places_.NumbersOf(news.directory)) invalidate_({number, false, news.name, news.left});
  }
}

void Filesystem::NameChanged(NodeId parent, const std::string& name) {
  for (const NodeId number : places_.NumbersOf(At(parent))) {
    if (number != parent) invalidate_({number, false, name});  // the directory's attributes with it
  }
}

void Filesystem::AttributesChanged(NodeId number) {
  for (const NodeId other : places_.NumbersOf(At(number))) {
    if (other != number) invalidate_({other, false, {}});
  }
}

NodeReply Filesystem::Made(NodeId parent, const std::string& name, const cache::NodeAttributes& made) {
  NameChanged(parent, name);
  return ToReply(parent, name, made, PlaceTable::Found::kMade, Clock::now());
}

AttributeReply Filesystem::ToAttributeReply(const cache::NodeAttributes& from) {
  if (nodes_->PagesOutdated(from.node, from.content_generation)) invalidate_({from.node, true, {}});
  return {ToStat(from), std::max(from.valid_for, std::chrono::milliseconds(0))};
}

OpenReply Filesystem::ToOpenReply(const cache::OpenedFile& opened, bool writable) {
  OpenReply reply;
  reply.handle = opened.handle;
  reply.keep_cache = nodes_->MayKeepPages(opened.attributes.node, opened.attributes.content_generation,
                                          opened.keep_kernel_pages);
  reply.direct_io = opened.direct;
  reply.no_flush = !writable;
  return reply;
}

Result<NodeReply> Filesystem::Lookup(NodeId parent, const std::string& name, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  const TimePoint asked = Clock::now();
  auto found = cached_.Lookup(At(parent), name, ctx);
  if (!found) return Forward(std::move(found.error()));
  return ToReply(parent, name, *found, PlaceTable::Found::kLookedUp, asked);
}

void Filesystem::Unreferenced(NodeId number, uint64_t count) {
  nodes_->Forgotten(number, count);
  places_.Forgotten(number, count);
}

void Filesystem::Forget(NodeId node, uint64_t count) {
  if (node == cache::kRoot) return;
  const NodeId at = At(node);
  Unreferenced(node, count);
  cached_.Forget(at, count);
}

Result<AttributeReply> Filesystem::GetAttr(NodeId node, bool for_size, const OpContext& ctx) {
  auto attributes = for_size ? cached_.GetAttributes(At(node), ctx) : cached_.Stat(At(node), ctx);
  if (!attributes) return Forward(std::move(attributes.error()));
  return ToAttributeReply(*attributes);
}

Result<AttributeReply> Filesystem::SetAttr(NodeId node, FileHandle file, const SetAttrRequest& request,
                                           const OpContext& ctx) {
  transport::AttributeChange change;
  if (identity_.real()) {
    change.uid = request.uid;
    change.gid = request.gid;
  } else if (auto owner = identity_.CheckOwnerChange(request.uid, request.gid); !owner) {
    return Forward(std::move(owner.error()));
  }
  if (request.mode) change.permissions = *request.mode & 07777;
  if (request.size) {
    if (*request.size < 0) return Errno(EINVAL);
    change.size = request.size;
  }
  change.atime = request.atime;
  change.mtime = request.mtime;
  auto attributes = change.empty() ? cached_.GetAttributes(At(node), ctx)
                                   : cached_.SetAttributes(At(node), file, change, ctx);
  if (!attributes) return Forward(std::move(attributes.error()));
  if (!change.empty()) AttributesChanged(node);
  return ToAttributeReply(*attributes);
}

Result<void> Filesystem::Access(NodeId node, int mask, const OpContext& ctx) {
  auto attributes = cached_.GetAttributes(At(node), ctx);
  if (!attributes) return Forward(std::move(attributes.error()));
  static_assert(R_OK == 4 && W_OK == 2 && X_OK == 1, "Attributes::access has access(2)'s bits");
  const uint32_t wanted = static_cast<uint32_t>(mask) & 7;
  if ((wanted & W_OK) != 0 && attributes->attributes.write_refusal != 0) return Errno(attributes->attributes.write_refusal);
  if ((wanted & ~attributes->attributes.access) != 0) return Errno(EACCES);
  return {};
}

Result<struct statvfs> Filesystem::StatFs(const OpContext& ctx) {
  auto statistics = cached_.StatFs(ctx);
  if (!statistics) return Forward(std::move(statistics.error()));
  struct statvfs out {};
  out.f_bsize = std::clamp<uint64_t>(statistics->block_bytes, 512, 1 << 30);
  out.f_frsize = out.f_bsize;
  out.f_blocks = statistics->blocks;
  out.f_bfree = statistics->blocks_free;
  out.f_bavail = statistics->blocks_available;
  out.f_files = statistics->files;
  out.f_ffree = statistics->files_free;
  out.f_favail = statistics->files_free;
  out.f_namemax = std::min<size_t>(statistics->name_max, kNameMax);
  return out;
}

std::pair<std::string, size_t> Filesystem::PlaceOfLink(NodeId link) const {
  const std::string path = cached_.PathOf(link);
  const size_t slash = path.rfind('/');
  const auto directory =
      PathBelow(slash == std::string::npos ? std::string() : path.substr(0, std::max<size_t>(slash, 1)), root());
  if (!directory) return {"", 0};
  // The kernel goes by its own places, not by where the sandbox says that things are.
  return {*directory, std::min(PathDepth(*directory), places_.DepthOf(link))};
}

Result<std::string> Filesystem::ReadLink(NodeId node, const OpContext& ctx) {
  auto target = cached_.ReadLink(node, ctx);
  if (!target) return target;
  const auto [directory, safe_depth] = PlaceOfLink(node);
  return ShownLinkText(options_.symlinks, *target, root(), directory, safe_depth);
}

Result<NodeReply> Filesystem::Symlink(const std::string& text, NodeId parent, const std::string& name,
                                      const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  const std::string directory = PathBelow(PathOf(parent), root()).value_or("");
  auto stored = StoredLinkText(options_.symlinks, text, root(), options_.mount_point, directory);
  if (!stored) return Forward(std::move(stored.error()));
  auto made = cached_.MakeSymlink(At(parent), name, *stored, ctx);
  if (!made) return Forward(std::move(made.error()));
  return Made(parent, name, *made);
}

Result<NodeReply> Filesystem::Mkdir(NodeId parent, const std::string& name, mode_t mode, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  auto made = cached_.MakeDirectory(At(parent), name, mode & 07777, ctx);
  if (!made) return Forward(std::move(made.error()));
  return Made(parent, name, *made);
}

Result<NodeReply> Filesystem::Mknod(NodeId parent, const std::string& name, mode_t mode, dev_t device,
                                    const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  const auto type = TypeOfMode(mode);
  if (!type) return Forward(type.error());
  auto made = cached_.MakeNode(At(parent), name, *type, mode & 07777, major(device), minor(device), ctx);
  if (!made) return Forward(std::move(made.error()));
  return Made(parent, name, *made);
}

Result<NodeReply> Filesystem::Link(NodeId node, NodeId parent, const std::string& name, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  auto made = cached_.MakeLink(node, At(parent), name, ctx);
  if (!made) return Forward(std::move(made.error()));
  return Made(parent, name, *made);
}

Result<void> Filesystem::Unlink(NodeId parent, const std::string& name, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return checked;
  auto done = cached_.Unlink(At(parent), name, ctx);
  NameChanged(parent, name);
  return done;
}

Result<void> Filesystem::Rmdir(NodeId parent, const std::string& name, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return checked;
  auto done = cached_.RemoveDirectory(At(parent), name, ctx);
  NameChanged(parent, name);
  return done;
}

Result<void> Filesystem::Rename(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name,
                                unsigned flags, const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return checked;
  if (auto checked = CheckNewName(new_name); !checked) return checked;
  constexpr unsigned kKnown = transport::kRenameNoReplace | transport::kRenameExchange;
  if ((flags & ~kKnown) != 0 || flags == kKnown) return Errno(EINVAL);
  const bool exchange = (flags & transport::kRenameExchange) != 0;
  places_.Renaming(parent, name, new_parent, new_name, exchange);
  auto done = cached_.Rename(At(parent), name, At(new_parent), new_name, flags, ctx);
  if (done) places_.Renamed(parent, name, new_parent, new_name, exchange);
  NameChanged(parent, name);
  NameChanged(new_parent, new_name);
  return done;
}

void Filesystem::RenameNotTaken(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name, unsigned flags) {
  // It may have everything where it was.
  places_.Renaming(new_parent, new_name, parent, name, (flags & transport::kRenameExchange) != 0);
}

Result<OpenReply> Filesystem::Open(NodeId node, int flags, const OpContext& ctx) {
  const cache::OpenFlags open = ToOpenFlags(flags);
  auto opened = cached_.Open(node, open, ctx);
  if (!opened) return Forward(std::move(opened.error()));
  return ToOpenReply(*opened, open.write || open.truncate);
}

Result<CreateReply> Filesystem::Create(NodeId parent, const std::string& name, mode_t mode, int flags,
                                       const OpContext& ctx) {
  if (auto checked = CheckNewName(name); !checked) return Forward(std::move(checked.error()));
  const cache::OpenFlags open = ToOpenFlags(flags);
  auto opened = cached_.CreateFile(At(parent), name, mode & 07777, (flags & O_EXCL) != 0, open, ctx);
  if (!opened) return Forward(std::move(opened.error()));
  CreateReply reply;
  reply.node = Made(parent, name, opened->attributes);
  reply.file = ToOpenReply(*opened, open.write || open.truncate);
  return reply;
}

Result<size_t> Filesystem::Read(FileHandle file, int64_t offset, char* buffer, size_t length, const OpContext& ctx) {
  auto got = cached_.Read(file, offset, buffer, length, ctx);
  if (got && *got > length) return Failure(ErrorKind::kLocal, EIO, "read gave more than was asked for");
  return got;
}

Result<size_t> Filesystem::Write(FileHandle file, int64_t offset, std::string_view bytes, const OpContext& ctx) {
  return cached_.Write(file, offset, bytes, ctx);
}

Result<off_t> Filesystem::Lseek(FileHandle file, int64_t offset, int whence, const OpContext& ctx) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return Errno(EINVAL);
  return cached_.Seek(file, offset, whence == SEEK_DATA ? transport::SeekTarget::kData : transport::SeekTarget::kHole, ctx);
}

Result<void> Filesystem::Fallocate(FileHandle file, int mode, int64_t offset, int64_t length, const OpContext& ctx) {
  return cached_.Allocate(file, static_cast<uint32_t>(mode), {offset, length}, ctx);
}

Result<size_t> Filesystem::CopyFileRange(FileHandle from, int64_t from_offset, FileHandle to, int64_t to_offset,
                                         size_t length, const OpContext& ctx) {
  const auto most = static_cast<int64_t>(std::min<size_t>(length, kMostCopied));
  return cached_.CopyRange(from, from_offset, to, {to_offset, most}, ctx);
}

Result<void> Filesystem::Flush(FileHandle file, const OpContext& ctx) { return cached_.Flush(file, ctx); }

Result<void> Filesystem::Fsync(FileHandle file, const OpContext& ctx) { return cached_.Sync(file, ctx); }

Result<void> Filesystem::FsyncDir(NodeId directory, const OpContext& ctx) { return cached_.SyncDirectory(At(directory), ctx); }

void Filesystem::Release(FileHandle file, const OpContext& ctx) { cached_.Release(file, ctx); }

Result<DirectoryHandle> Filesystem::OpenDir(NodeId node, const OpContext& ctx) {
  return cached_.OpenDirectory(At(node), ctx);
}

Result<void> Filesystem::ReadDir(NodeId node, DirectoryHandle directory, uint64_t position, bool with_references,
                                 const std::function<bool(const DirectoryItem&)>& emit, const OpContext& ctx) {
  // Positions here: 0 is before ".", 1 before "..", and CachedFs's positions follow, shifted by 2.
  static const std::string kDots[] = {".", ".."};
  for (; position < 2; ++position) {
    NodeReply dot;
    dot.attributes.st_ino = InodeOf(position == 0 ? At(node) : cached_.ParentOf(At(node)), ctx);
    dot.attributes.st_mode = S_IFDIR;
    if (!emit({kDots[position], position + 1, dot})) return {};
  }
  return cached_.ReadDirectory(
      directory, position - 2, with_references,
      [&](const cache::DirectoryEntry& entry, uint64_t next) {
        const cache::NodeAttributes& attributes = entry.attributes;
        const NodeId number = entry.node != 0 ? Referenced(node, entry.name, attributes, PlaceTable::Found::kListed, {}) : 0;
        const NodeReply reply{number, ToStat(attributes), std::max(attributes.valid_for, std::chrono::milliseconds(0))};
        if (emit({entry.name, next + 2, reply})) return true;
        // CachedFs takes its own reference back.
        if (number != 0) Unreferenced(number, 1);
        return false;
      },
      ctx);
}

ino_t Filesystem::InodeOf(NodeId node, const OpContext& ctx) {
  if (node == 0) return kUnknownInode;
  const auto attributes = cached_.GetAttributes(node, ctx);
  return attributes ? ToStat(*attributes).st_ino : kUnknownInode;
}

void Filesystem::ReleaseDir(DirectoryHandle directory) { cached_.CloseDirectory(directory); }

bool Filesystem::IsLocalXattr(std::string_view name) { return IsKernelsXattr(name); }

Result<bool> Filesystem::HasXattr(NodeId node, const std::string& name, const OpContext& ctx) {
  const auto names = cached_.ListXattrs(At(node), ctx);
  if (!names) return Forward(names.error());
  return std::find(names->begin(), names->end(), name) != names->end();
}

Result<std::string> Filesystem::GetXattr(NodeId node, const std::string& name, const OpContext& ctx) {
  // Asked for by the kernel before every write and by `ls` for every file: never worth a round trip.
  if (IsKernelsXattr(name)) return Errno(ENODATA);
  if (IsAclXattr(name)) {  // access lists are not shown
    auto has = HasXattr(node, name, ctx);
    if (!has) return Forward(std::move(has.error()));
    return Errno(*has ? EOPNOTSUPP : ENODATA);
  }
  return cached_.GetXattr(At(node), name, ctx);
}

Result<std::string> Filesystem::ListXattr(NodeId node, const OpContext& ctx) {
  auto names = cached_.ListXattrs(At(node), ctx);
  if (!names) return Forward(std::move(names.error()));
  std::string list;
  for (const std::string& name : *names) {
    if (name.empty() || name.size() > kNameMax || name.find('\0') != std::string::npos) continue;
    if (IsKernelsXattr(name) || IsAclXattr(name)) continue;
    list.append(name).push_back('\0');
  }
  return list;
}

Result<void> Filesystem::SetXattr(NodeId node, const std::string& name, const std::string& value, int flags,
                                  const OpContext& ctx) {
  if (IsKernelsXattr(name) || IsAclXattr(name)) return Errno(EOPNOTSUPP);
  auto done = cached_.SetXattr(At(node), name, value, flags, ctx);
  AttributesChanged(node);
  return done;
}

Result<void> Filesystem::RemoveXattr(NodeId node, const std::string& name, const OpContext& ctx) {
  if (IsKernelsXattr(name)) return Errno(ENODATA);
  if (IsAclXattr(name)) {  // of what has none it succeeds
    auto has = HasXattr(node, name, ctx);
    if (!has) return Forward(std::move(has.error()));
    if (*has) return Errno(EOPNOTSUPP);
    return {};
  }
  auto done = cached_.RemoveXattr(At(node), name, ctx);
  AttributesChanged(node);
  return done;
}

}  // namespace e2bfs::fuse
