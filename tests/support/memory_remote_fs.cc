#include "tests/support/memory_remote_fs.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

namespace e2bfs::testing {

using transport::AttributeChange;
using transport::Attributes;
using transport::Changed;
using transport::Extent;
using transport::FileId;
using transport::FileType;
using transport::Handle;
using transport::Listing;
using transport::Name;
using transport::Node;
using transport::Opened;
using transport::StoreRequest;

namespace {

constexpr uint32_t kMemoryPermissionBits = 07777;

// Permissions of a file after a change that takes the set-id bits away.
uint32_t WithoutSetId(uint32_t permissions) {
  permissions &= ~uint32_t{S_ISUID};
  return (permissions & S_IXGRP) != 0 ? permissions & ~uint32_t{S_ISGID} : permissions;
}

bool SameMemoryTime(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

// Not in the unnamed namespace: they are members of Tree, which has linkage.
struct MemoryInode;

struct MemoryEntry {
  std::shared_ptr<MemoryInode> inode;
  uint64_t name_id = 0;  // identity of this name, where names have their own
};

struct MemoryInode {
  uint64_t number = 0;
  FileType type = FileType::kRegular;
  uint32_t permissions = 0644;
  uint32_t uid = 0, gid = 0;
  uint32_t links = 1;
  uint32_t major = 0, minor = 0;
  bool sizeless = false;
  std::string content;  // or a link's text
  std::map<std::string, MemoryEntry> children;
  std::weak_ptr<MemoryInode> parent;  // of a directory
  std::map<std::string, std::string> xattrs;
  timespec atime{}, mtime{}, ctime{};
};

struct MemoryRemoteFs::Tree {
  struct OpenFile {
    std::shared_ptr<MemoryInode> inode;
    uint64_t name_id = 0;
    bool read = false, write = false;
    int failed = 0;  // of an open that was not waited for: the errno of each use
  };
  struct Place {
    std::shared_ptr<MemoryInode> parent;  // null for the root
    std::string name;
    MemoryEntry entry;                    // inode null: the name is free
  };

  mutable std::mutex mutex;  // innermost; guards all below
  MemoryRemoteFsOptions options;
  transport::Description description;
  MemoryEntry root;
  uint64_t last_number = 0;
  uint64_t last_name_id = 0;
  Handle last_handle = 0;
  int64_t clock_ns = 0;
  std::map<Handle, OpenFile> handles;
  std::map<std::string, int64_t> calls;
  std::vector<StoreRecord> stores;
  int64_t bytes_read = 0;
  int64_t early_bytes = 0, early_stores = 0;

  timespec Tick() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    clock_ns = std::max<int64_t>(clock_ns + 1, int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec);
    return {static_cast<time_t>(clock_ns / 1'000'000'000), static_cast<long>(clock_ns % 1'000'000'000)};
  }

  MemoryEntry NewEntry(FileType type, uint32_t permissions, bool inside) {
    auto inode = std::make_shared<MemoryInode>();
    inode->number = ++last_number;
    inode->type = type;
    inode->permissions = permissions & kMemoryPermissionBits;
    inode->uid = inside ? 1000 : options.uid;
    inode->gid = inside ? 1000 : options.gid;
    inode->links = type == FileType::kDirectory ? 2 : 1;
    inode->atime = inode->mtime = inode->ctime = Tick();
    return {inode, ++last_name_id};
  }

  // A new object in `directory`: its creator's, and the directory's group where that is setgid.
  MemoryEntry NewEntryIn(const MemoryInode& directory, FileType type, uint32_t permissions, const OpContext& ctx) {
    MemoryEntry entry = NewEntry(type, permissions, false);
    if (ctx.creator) {
      entry.inode->uid = ctx.creator->uid;
      entry.inode->gid = ctx.creator->gid;
    }
    if ((directory.permissions & S_ISGID) != 0) {
      entry.inode->gid = directory.gid;
      if (type == FileType::kDirectory) entry.inode->permissions |= S_ISGID;
    }
    return entry;
  }

  FileId IdOf(const MemoryEntry& entry) const {
    if (options.hard_links_share_identity && options.identities_survive_renames) {
      return {"inode-" + std::to_string(entry.inode->number)};
    }
    if (options.hard_links_share_identity && entry.inode->links > 1 && entry.inode->type != FileType::kDirectory) {
      return {"inode-" + std::to_string(entry.inode->number)};
    }
    return {"name-" + std::to_string(entry.name_id)};
  }

  uint32_t AccessOf(const MemoryInode& inode) const {
    if (!options.enforce_permissions) return 7;
    if (options.uid == 0) {
      bool executable = inode.type == FileType::kDirectory || (inode.permissions & 0111) != 0;
      return executable ? 7 : 6;
    }
    if (inode.uid == options.uid) return (inode.permissions >> 6) & 7;
    if (inode.gid == options.gid) return (inode.permissions >> 3) & 7;
    return inode.permissions & 7;
  }

  Attributes AttributesOf(const MemoryEntry& entry) const {
    const MemoryInode& inode = *entry.inode;
    Attributes result;
    result.id = IdOf(entry);
    result.type = inode.type;
    result.permissions = inode.permissions;
    bool sized = inode.type == FileType::kRegular || inode.type == FileType::kSymlink;
    result.size = inode.type == FileType::kDirectory ? 4096 : sized && !inode.sizeless ? int64_t(inode.content.size()) : 0;
    result.size_unreliable = inode.sizeless;
    result.lasting = options.versions_are_lasting;
    result.blocks = (result.size + 511) / 512;
    result.watched = options.watches && inode.type == FileType::kDirectory;
    result.link_count = inode.links;
    result.uid = inode.uid;
    result.gid = inode.gid;
    result.owner = inode.uid == 0 ? "root" : inode.uid == 1000 ? "user" : std::to_string(inode.uid);
    result.group = inode.gid == 0 ? "root" : inode.gid == 1000 ? "user" : std::to_string(inode.gid);
    result.atime = inode.atime;
    result.mtime = inode.mtime;
    result.ctime = inode.ctime;
    result.device = 1;
    result.inode = inode.number;
    result.rdev_major = inode.major;
    result.rdev_minor = inode.minor;
    result.access = AccessOf(inode);
    if (options.xattrs && options.attributes_carry_xattr_names) {
      static const auto none = std::make_shared<const std::vector<std::string>>();
      std::vector<std::string> names;
      for (const auto& [name, value] : inode.xattrs) names.push_back(name);
      result.xattr_names = names.empty() ? none : std::make_shared<const std::vector<std::string>>(std::move(names));
    }
    return result;
  }

  // Where `path` leads; the last component may be missing (entry.inode is null then).
  Result<Place> Walk(const std::string& path, bool check) const {
    Place place{nullptr, "", root};
    if (path.empty()) return place;
    size_t start = 0;
    while (true) {
      size_t slash = path.find('/', start);
      std::string name = path.substr(start, slash == std::string::npos ? slash : slash - start);
      if (name.empty() || name == "." || name == "..") return Errno(EINVAL, "path '" + path + "'");
      if (name.size() > 255) return Errno(ENAMETOOLONG, path);
      const std::shared_ptr<MemoryInode> directory = place.entry.inode;
      if (!directory) return Errno(ENOENT, path);
      if (directory->type != FileType::kDirectory) return Errno(ENOTDIR, path);
      if (check && (AccessOf(*directory) & 1) == 0) return Errno(EACCES, path);
      auto found = directory->children.find(name);
      place = {directory, name, found == directory->children.end() ? MemoryEntry{} : found->second};
      if (slash == std::string::npos) return place;
      start = slash + 1;
    }
  }

  Result<Place> Find(const Node& node) const {
    auto place = Walk(node.path, true);
    if (!place) return place;
    if (!place->entry.inode) return Errno(ENOENT, node.path);
    if (node.id.known() && !(IdOf(place->entry) == node.id)) return Errno(ESTALE, node.path);
    return place;
  }

  Result<Place> Find(const Name& name, bool for_change) const {
    if (name.name.empty() || name.name == "." || name.name == ".." || name.name.find('/') != std::string::npos) {
      return Errno(EINVAL, "name '" + name.name + "'");
    }
    if (name.name.size() > 255) return Errno(ENAMETOOLONG, name.name);
    auto parent = Find(name.parent);
    if (!parent) return parent;
    auto place = Walk(name.parent.path.empty() ? name.name : name.parent.path + "/" + name.name, true);
    if (!place) return place;
    if (for_change && (AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
    return place;
  }

  // The sticky bit: only the owner of the object or of the directory removes and renames.
  bool MayRemove(const Place& place) const {
    if (!options.enforce_permissions || options.uid == 0 || (place.parent->permissions & S_ISVTX) == 0) return true;
    return place.parent->uid == options.uid || place.entry.inode->uid == options.uid;
  }

  void Put(const std::shared_ptr<MemoryInode>& directory, const std::string& name, const MemoryEntry& entry) {
    directory->children[name] = entry;
    if (entry.inode->type == FileType::kDirectory) {
      entry.inode->parent = directory;
      ++directory->links;
    }
    directory->mtime = directory->ctime = Tick();
  }

  // A new file with its content, a directory, or a link with its text.
  Result<Place> Make(const Name& name, FileType type, uint32_t permissions, const std::string& content, const OpContext& ctx) {
    auto place = Find(name, false);
    if (!place) return place;
    if (place->entry.inode) return Errno(EEXIST, name.name);
    if ((AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
    if (type == FileType::kSymlink && content.empty()) return Errno(ENOENT, "symlink");
    place->entry = NewEntryIn(*place->parent, type, permissions, ctx);
    if (auto space = CheckSpace(*place->entry.inode, static_cast<int64_t>(content.size())); !space) return Forward(space.error());
    place->entry.inode->content = content;
    Put(place->parent, name.name, place->entry);
    return place;
  }

  void Drop(const std::shared_ptr<MemoryInode>& directory, const std::string& name) {
    auto found = directory->children.find(name);
    MemoryInode& inode = *found->second.inode;
    if (inode.type == FileType::kDirectory) {
      inode.links = 0;
      --directory->links;
    } else {
      --inode.links;
    }
    inode.ctime = Tick();
    directory->children.erase(found);
    directory->mtime = directory->ctime = Tick();
  }

  void RenewNameIds(MemoryEntry& entry) {
    entry.name_id = ++last_name_id;
    for (auto& [name, child] : entry.inode->children) RenewNameIds(child);
  }

  void Move(const Place& from, const std::shared_ptr<MemoryInode>& directory, const std::string& name) {
    MemoryEntry moved = from.entry;
    from.parent->children.erase(from.name);
    if (moved.inode->type == FileType::kDirectory) --from.parent->links;
    from.parent->mtime = from.parent->ctime = Tick();
    if (!options.identities_survive_renames) RenewNameIds(moved);
    Put(directory, name, moved);
    moved.inode->ctime = Tick();
  }

  MemoryEntry EntryOf(const std::shared_ptr<MemoryInode>& directory) const {
    if (directory == root.inode) return root;
    std::shared_ptr<MemoryInode> above = directory->parent.lock();
    if (above) {
      for (const auto& [name, entry] : above->children) {
        if (entry.inode == directory) return entry;
      }
    }
    return {directory, 0};
  }

  Changed Report(const MemoryEntry& object, const std::shared_ptr<MemoryInode>& parent) const {
    Changed changed;
    if (!options.changed_carries_attributes) return changed;
    if (object.inode) changed.object = AttributesOf(object);
    if (parent) changed.parent = AttributesOf(EntryOf(parent));
    return changed;
  }

  Listing ListingOf(const MemoryEntry& directory) const {
    Listing listing;
    listing.directory = AttributesOf(directory);
    for (const auto& [name, child] : directory.inode->children) {
      transport::Entry entry{name, AttributesOf(child), std::nullopt};
      if (child.inode->type == FileType::kSymlink && options.listings_carry_link_targets) entry.link_target = child.inode->content;
      listing.entries.push_back(std::move(entry));
    }
    return listing;
  }

  int64_t UsedBytes() const {
    int64_t used = 0;
    std::function<void(const MemoryInode&)> add = [&](const MemoryInode& inode) {
      used += int64_t(inode.content.size());
      for (const auto& [name, child] : inode.children) add(*child.inode);
    };
    add(*root.inode);
    return used;
  }

  Result<void> CheckSpace(const MemoryInode& inode, int64_t new_size) const {
    if (options.space_bytes == INT64_MAX) return {};
    if (UsedBytes() - int64_t(inode.content.size()) + new_size > options.space_bytes) return Errno(ENOSPC, "memory");
    return {};
  }

  Result<void> MayChange(const MemoryInode& inode, const AttributeChange& change, bool by_handle) const {
    if (!options.enforce_permissions || options.uid == 0) return {};
    bool owner = inode.uid == options.uid;
    if (change.permissions && !owner) return Errno(EPERM, "chmod");
    if (change.uid && *change.uid != inode.uid) return Errno(EPERM, "chown");
    if (change.uid && !owner) return Errno(EPERM, "chown");
    if (change.gid && (!owner || (*change.gid != inode.gid && *change.gid != options.gid))) return Errno(EPERM, "chown");
    bool explicit_time = (change.atime && !change.atime->now) || (change.mtime && !change.mtime->now);
    if (explicit_time && !owner) return Errno(EPERM, "utimes");
    if ((change.atime || change.mtime) && !owner && (AccessOf(inode) & 2) == 0) return Errno(EACCES, "utimes");
    if (change.size && !by_handle && (AccessOf(inode) & 2) == 0) return Errno(EACCES, "truncate");
    return {};
  }

  void Apply(MemoryInode& inode, const AttributeChange& change) {
    timespec now = Tick();
    if (change.uid) inode.uid = *change.uid;
    if (change.gid) inode.gid = *change.gid;
    if ((change.uid || change.gid) && inode.type != FileType::kDirectory) inode.permissions = WithoutSetId(inode.permissions);
    if (change.permissions) inode.permissions = *change.permissions & kMemoryPermissionBits;
    if (change.atime) inode.atime = change.atime->now ? now : change.atime->value;
    if (change.mtime) inode.mtime = change.mtime->now ? now : change.mtime->value;
    inode.ctime = now;
  }

  // Of what was made in a row.
  Result<void> SetNew(MemoryInode& inode, AttributeChange change) {
    change.size.reset();
    if (change.empty()) return {};
    if (auto may = MayChange(inode, change, false); !may) return may;
    if (change.permissions && inode.type == FileType::kSymlink) return Errno(EOPNOTSUPP, "chmod");
    Apply(inode, change);
    return {};
  }

  Result<MemoryEntry> Target(Handle handle, const Node& node) {
    if (handle != 0) {
      auto open = handles.find(handle);
      if (open == handles.end()) return Errno(EBADF, node.path);
      if (open->second.failed != 0) return Errno(open->second.failed, node.path);
      if (options.handles_survive) return MemoryEntry{open->second.inode, open->second.name_id};
    }
    auto place = Find(node);
    if (!place) return Forward(place.error());
    return place->entry;
  }

  Opened OpenEntry(const MemoryEntry& entry, bool read, bool write) {
    handles[++last_handle] = {entry.inode, entry.name_id, read, write};
    Opened opened;
    opened.handle = last_handle;
    opened.attributes = AttributesOf(entry);
    return opened;
  }

  Result<Opened> OpenPlace(const Place& place, bool read, bool write, bool truncate) {
    MemoryInode& inode = *place.entry.inode;
    if (inode.type == FileType::kSymlink) return Errno(ELOOP, "open");
    if (inode.type == FileType::kDirectory) return Errno(EISDIR, "open");
    if (inode.type != FileType::kRegular) return Errno(ENXIO, "open");
    uint32_t access = AccessOf(inode);
    if ((read && (access & 4) == 0) || (write && (access & 2) == 0)) return Errno(EACCES, "open");
    if (write && truncate) {
      inode.content.clear();
      inode.mtime = inode.ctime = Tick();
    }
    return OpenEntry(place.entry, read, write);
  }

  std::optional<MemoryEntry> Inside(const std::string& path) const {
    auto place = Walk(path, false);
    if (!place || !place->entry.inode) return std::nullopt;
    return place->entry;
  }

  bool InsideMake(const std::string& path, FileType type, uint32_t permissions, const std::string& content, bool sizeless = false) {
    auto place = Walk(path, false);
    if (!place || !place->parent || place->entry.inode) return false;
    MemoryEntry entry = NewEntry(type, permissions, true);
    entry.inode->content = content;
    entry.inode->sizeless = sizeless;
    Put(place->parent, place->name, entry);
    return true;
  }
};

namespace {

class MemoryStream : public transport::ByteStream {
 public:
  using ReadFunction = std::function<Result<size_t>(int64_t offset, char* buffer, size_t capacity)>;
  MemoryStream(Extent range, ReadFunction read, Attributes attributes)
      : next_(range.offset), end_(range.end()), read_(std::move(read)), attributes_(std::move(attributes)) {}
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext&) override {
    if (cancelled_) return Failure(ErrorKind::kCancelled, EINTR, "stream cancelled");
    size_t wanted = size_t(std::min<int64_t>(end_ - next_, int64_t(std::min<size_t>(capacity, INT32_MAX))));
    auto got = read_(next_, buffer, wanted);
    if (got) next_ += int64_t(*got);
    return got;
  }
  void Cancel() override { cancelled_ = true; }
  const Attributes* attributes() const override { return &attributes_; }

 private:
  int64_t next_, end_;
  ReadFunction read_;
  const Attributes attributes_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace

MemoryRemoteFs::MemoryRemoteFs(MemoryRemoteFsOptions options) : tree_(std::make_shared<Tree>()) {
  tree_->options = std::move(options);
  tree_->root = tree_->NewEntry(FileType::kDirectory, 0755, false);
  auto& description = tree_->description;
  description.tier = "memory";
  description.user = tree_->options.uid == 0 ? "root" : "user";
  description.uid = tree_->options.uid;
  description.gid = tree_->options.gid;
  description.root = description.home = tree_->options.root;
  description.server_version = "0.0.0";
  description.hard_links_share_identity = tree_->options.hard_links_share_identity;
  description.clears_set_ids = true;
  description.clock_seconds = tree_->options.clock_seconds;
  description.identities_survive_renames = tree_->options.identities_survive_renames;
  description.tells_ctime = true;
}

MemoryRemoteFs::~MemoryRemoteFs() = default;

#define E2BFS_MEMORY_ENTER(function)             \
  std::lock_guard<std::mutex> lock(tree_->mutex); \
  ++tree_->calls[function];                       \
  Tree& tree = *tree_

int64_t MemoryRemoteFs::calls(const std::string& function) const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto found = tree_->calls.find(function);
  return found == tree_->calls.end() ? 0 : found->second;
}

int64_t MemoryRemoteFs::total_calls() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  int64_t total = 0;
  for (const auto& [name, count] : tree_->calls) {
    if (name != "ReadChunk" && name != "OpenSoon" && name != "Close") total += count;
  }
  return total;
}

std::map<std::string, int64_t> MemoryRemoteFs::all_calls() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->calls;
}

void MemoryRemoteFs::ResetCalls() {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  tree_->calls.clear();
  tree_->stores.clear();
  tree_->bytes_read = 0;
}

int64_t MemoryRemoteFs::bytes_read() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->bytes_read;
}

std::vector<StoreRecord> MemoryRemoteFs::stores() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->stores;
}

int64_t MemoryRemoteFs::open_handles() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return int64_t(tree_->handles.size());
}

int64_t MemoryRemoteFs::early_bytes() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->early_bytes;
}

int64_t MemoryRemoteFs::early_stores() const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->early_stores;
}

// --- the sandbox's side

bool MemoryRemoteFs::InsideWrite(const std::string& path, const std::string& content) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry) return tree_->InsideMake(path, FileType::kRegular, 0644, content);
  if (entry->inode->type != FileType::kRegular) return false;
  entry->inode->content = content;
  entry->inode->mtime = entry->inode->ctime = tree_->Tick();
  return true;
}

bool MemoryRemoteFs::InsideReplace(const std::string& path, const std::string& content) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto place = tree_->Walk(path, false);
  if (!place || !place->parent || (place->entry.inode && place->entry.inode->type == FileType::kDirectory)) return false;
  if (place->entry.inode) tree_->Drop(place->parent, place->name);
  return tree_->InsideMake(path, FileType::kRegular, 0644, content);
}

bool MemoryRemoteFs::InsideMakeDirectory(const std::string& path, uint32_t permissions) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->InsideMake(path, FileType::kDirectory, permissions, "");
}

bool MemoryRemoteFs::InsideMakeSymlink(const std::string& path, const std::string& target) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->InsideMake(path, FileType::kSymlink, 0777, target);
}

bool MemoryRemoteFs::InsideMakeFifo(const std::string& path) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->InsideMake(path, FileType::kFifo, 0644, "");
}

bool MemoryRemoteFs::InsideMakeSizeless(const std::string& path, const std::string& content) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->InsideMake(path, FileType::kRegular, 0444, content, true);
}

bool MemoryRemoteFs::InsideMakeLink(const std::string& existing, const std::string& path) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(existing);
  auto place = tree_->Walk(path, false);
  if (!entry || !place || !place->parent || place->entry.inode || entry->inode->type == FileType::kDirectory) return false;
  ++entry->inode->links;
  entry->inode->ctime = tree_->Tick();
  tree_->Put(place->parent, place->name, {entry->inode, ++tree_->last_name_id});
  return true;
}

bool MemoryRemoteFs::InsideRemove(const std::string& path) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto place = tree_->Walk(path, false);
  if (!place || !place->parent || !place->entry.inode) return false;
  tree_->Drop(place->parent, place->name);
  return true;
}

bool MemoryRemoteFs::InsideRename(const std::string& from, const std::string& to) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto source = tree_->Walk(from, false);
  auto target = tree_->Walk(to, false);
  if (!source || !source->parent || !source->entry.inode || !target || !target->parent) return false;
  if (target->entry.inode) tree_->Drop(target->parent, target->name);
  tree_->Move(*source, target->parent, target->name);
  return true;
}

bool MemoryRemoteFs::InsideSetPermissions(const std::string& path, uint32_t permissions) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry) return false;
  AttributeChange change;
  change.permissions = permissions;
  tree_->Apply(*entry->inode, change);
  return true;
}

bool MemoryRemoteFs::InsideSetOwner(const std::string& path, uint32_t uid, uint32_t gid) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry) return false;
  AttributeChange change;
  change.uid = uid;
  change.gid = gid;
  tree_->Apply(*entry->inode, change);
  return true;
}

bool MemoryRemoteFs::InsideSetTimes(const std::string& path, timespec mtime) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry) return false;
  entry->inode->mtime = mtime;
  entry->inode->ctime = tree_->Tick();
  return true;
}

bool MemoryRemoteFs::InsideExists(const std::string& path) const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  return tree_->Inside(path).has_value();
}

std::optional<std::string> MemoryRemoteFs::InsideRead(const std::string& path) const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry || entry->inode->type == FileType::kDirectory) return std::nullopt;
  return entry->inode->content;
}

std::vector<std::string> MemoryRemoteFs::InsideList(const std::string& path) const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  std::vector<std::string> names;
  auto entry = tree_->Inside(path);
  if (entry) {
    for (const auto& [name, child] : entry->inode->children) names.push_back(name);
  }
  return names;
}

std::optional<Attributes> MemoryRemoteFs::InsideStat(const std::string& path) const {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  auto entry = tree_->Inside(path);
  if (!entry) return std::nullopt;
  return tree_->AttributesOf(*entry);
}

void MemoryRemoteFs::InsideTell(const std::string& path) {
  transport::ChangeListener* listener = listener_;
  if (listener == nullptr) return;
  const size_t slash = path.rfind('/');
  const auto directory = InsideStat(slash == std::string::npos ? "" : path.substr(0, slash));
  if (!directory) return;
  const std::string name = path.substr(slash + 1);
  const auto attributes = InsideStat(path);
  std::optional<transport::Entry> now;
  if (attributes) now = transport::Entry{name, *attributes, std::nullopt};
  listener->NameChanged(directory->id, name, now, !attributes);
}

void MemoryRemoteFs::AdvanceClock(int64_t nanoseconds) {
  std::lock_guard<std::mutex> lock(tree_->mutex);
  tree_->Tick();
  tree_->clock_ns += nanoseconds;
}

// --- RemoteFs

const transport::Description& MemoryRemoteFs::description() const { return tree_->description; }

Result<Attributes> MemoryRemoteFs::Stat(const Node& node, const OpContext&) {
  E2BFS_MEMORY_ENTER("Stat");
  auto place = tree.Find(node);
  if (!place) return Forward(place.error());
  return tree.AttributesOf(place->entry);
}

Result<Attributes> MemoryRemoteFs::Lookup(const Name& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("Lookup");
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (!place->entry.inode) return Errno(ENOENT, name.name);
  return tree.AttributesOf(place->entry);
}

Result<Listing> MemoryRemoteFs::List(const Node& directory, const OpContext&) {
  E2BFS_MEMORY_ENTER("List");
  auto place = tree.Find(directory);
  if (!place) return Forward(place.error());
  const MemoryInode& inode = *place->entry.inode;
  if (inode.type != FileType::kDirectory) return Errno(ENOTDIR, directory.path);
  if ((tree.AccessOf(inode) & 4) == 0) return Errno(EACCES, directory.path);
  return tree.ListingOf(place->entry);
}

Result<std::vector<transport::DeepListing>> MemoryRemoteFs::ListDeep(const Node& directory, const transport::DeepQuestion& question, const OpContext&) {
  E2BFS_MEMORY_ENTER("ListDeep");
  if (!tree.options.lists_deep) return Errno(ENOTSUP, "listings at once");
  auto base = tree.Find(directory);
  if (!base) return Forward(base.error());
  std::vector<transport::DeepListing> listings;
  size_t guessed = 0;
  std::function<void(const std::string&, uint32_t)> add = [&](const std::string& path, uint32_t depth) {
    const std::string whole = path.empty() ? directory.path : directory.path.empty() ? path : directory.path + "/" + path;
    auto place = tree.Walk(whole, true);
    if (listings.size() >= question.max_directories || !place || !place->entry.inode || place->entry.inode->type != FileType::kDirectory) return;
    if ((tree.AccessOf(*place->entry.inode) & 5) != 5) return;
    Listing listing = tree.ListingOf(place->entry);
    if (path != question.directories.front() && (guessed += listing.entries.size()) > question.max_entries) return;
    listings.push_back({path, listing});
    for (const transport::Entry& entry : listing.entries) {
      if (depth > 0 && entry.attributes.type == FileType::kDirectory) add(path.empty() ? entry.name : path + "/" + entry.name, depth - 1);
    }
  };
  for (const std::string& path : question.directories) add(path, question.depth);
  return listings;
}

Result<std::string> MemoryRemoteFs::ReadLink(const Node& node, const OpContext&) {
  E2BFS_MEMORY_ENTER("ReadLink");
  auto place = tree.Find(node);
  if (!place) return Forward(place.error());
  if (place->entry.inode->type != FileType::kSymlink) return Errno(EINVAL, node.path);
  return place->entry.inode->content;
}

Result<transport::FsStatistics> MemoryRemoteFs::StatFs(const OpContext&) {
  E2BFS_MEMORY_ENTER("StatFs");
  transport::FsStatistics statistics;
  int64_t used = (tree.UsedBytes() + 4095) / 4096;
  int64_t total = std::min<int64_t>(tree.options.space_bytes, int64_t{1} << 40) / 4096;
  statistics.blocks = uint64_t(total);
  statistics.blocks_free = statistics.blocks_available = uint64_t(std::max<int64_t>(0, total - used));
  statistics.files = 1'000'000;
  statistics.files_free = 999'000;
  return statistics;
}

Result<Changed> MemoryRemoteFs::MakeDirectory(const Name& name, uint32_t permissions, const OpContext& ctx) {
  E2BFS_MEMORY_ENTER("MakeDirectory");
  auto made = tree.Make(name, FileType::kDirectory, permissions, "", ctx);
  if (!made) return Forward(made.error());
  return tree.Report(made->entry, made->parent);
}

Result<Changed> MemoryRemoteFs::MakeNode(const Name& name, FileType type, uint32_t permissions, uint32_t major, uint32_t minor,
                                         const OpContext& ctx) {
  E2BFS_MEMORY_ENTER("MakeNode");
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (place->entry.inode) return Errno(EEXIST, name.name);
  if ((tree.AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
  if (type == FileType::kDirectory || type == FileType::kSymlink) return Errno(EINVAL, "mknod");
  bool device = type == FileType::kCharDevice || type == FileType::kBlockDevice;
  if (device && tree.options.uid != 0) return Errno(EPERM, "mknod");
  MemoryEntry entry = tree.NewEntryIn(*place->parent, type, permissions, ctx);
  entry.inode->major = major;
  entry.inode->minor = minor;
  tree.Put(place->parent, name.name, entry);
  return tree.Report(entry, place->parent);
}

Result<Changed> MemoryRemoteFs::MakeSymlink(const Name& name, const std::string& target, const OpContext& ctx) {
  E2BFS_MEMORY_ENTER("MakeSymlink");
  auto made = tree.Make(name, FileType::kSymlink, 0777, target, ctx);
  if (!made) return Forward(made.error());
  return tree.Report(made->entry, made->parent);
}

Result<Changed> MemoryRemoteFs::MakeLink(const Node& existing, const Name& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("MakeLink");
  auto source = tree.Find(existing);
  if (!source) return Forward(source.error());
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (place->entry.inode) return Errno(EEXIST, name.name);
  if ((tree.AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
  if (source->entry.inode->type == FileType::kDirectory) return Errno(EPERM, existing.path);
  MemoryEntry entry{source->entry.inode, ++tree.last_name_id};
  ++entry.inode->links;
  entry.inode->ctime = tree.Tick();
  tree.Put(place->parent, name.name, entry);
  return tree.Report(entry, place->parent);
}

Result<Changed> MemoryRemoteFs::Unlink(const Name& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("Unlink");
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (!place->entry.inode) return Errno(ENOENT, name.name);
  if ((tree.AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
  if (place->entry.inode->type == FileType::kDirectory) return Errno(EISDIR, name.name);
  if (!tree.MayRemove(*place)) return Errno(EPERM, name.name);
  const FileId id = tree.IdOf(place->entry);
  tree.Drop(place->parent, name.name);
  Changed changed = tree.Report(place->entry, place->parent);
  if (changed.object) changed.object->id = id;
  return changed;
}

Result<Changed> MemoryRemoteFs::RemoveDirectory(const Name& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("RemoveDirectory");
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (!place->entry.inode) return Errno(ENOENT, name.name);
  if ((tree.AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
  if (place->entry.inode->type != FileType::kDirectory) return Errno(ENOTDIR, name.name);
  if (!place->entry.inode->children.empty()) return Errno(ENOTEMPTY, name.name);
  if (!tree.MayRemove(*place)) return Errno(EPERM, name.name);
  tree.Drop(place->parent, name.name);
  return tree.Report({}, place->parent);
}

Result<Changed> MemoryRemoteFs::Rename(const Name& from, const Name& to, uint32_t flags, const OpContext&) {
  E2BFS_MEMORY_ENTER("Rename");
  bool exchange = (flags & transport::kRenameExchange) != 0;
  bool no_replace = (flags & transport::kRenameNoReplace) != 0;
  if ((flags & ~3U) != 0 || (exchange && no_replace)) return Errno(EINVAL, "rename flags");
  auto source = tree.Find(from, false);
  if (!source) return Forward(source.error());
  auto target = tree.Find(to, false);
  if (!target) return Forward(target.error());
  if (!source->entry.inode) return Errno(ENOENT, from.name);
  const std::shared_ptr<MemoryInode> moved = source->entry.inode;
  const std::shared_ptr<MemoryInode> over = target->entry.inode;
  if (no_replace && over) return Errno(EEXIST, to.name);
  if (exchange && !over) return Errno(ENOENT, to.name);
  if ((tree.AccessOf(*source->parent) & 2) == 0 || (tree.AccessOf(*target->parent) & 2) == 0) return Errno(EACCES, to.name);
  if (!tree.MayRemove(*source) || (over && !tree.MayRemove(*target))) return Errno(EPERM, from.name);
  const FileId replaced_id = over ? tree.IdOf(target->entry) : FileId{};
  auto below = [](std::shared_ptr<MemoryInode> directory, const std::shared_ptr<MemoryInode>& top) {
    for (; directory; directory = directory->parent.lock()) {
      if (directory == top) return true;
    }
    return false;
  };
  if (moved->type == FileType::kDirectory && below(target->parent, moved)) return Errno(EINVAL, "into itself");
  if (over && over->type == FileType::kDirectory && below(source->parent, over)) {
    return Errno(exchange ? EINVAL : ENOTEMPTY, "onto its own ancestor");
  }
  // Two links of one file: nothing happens.
  const auto same = [&] {
    Changed changed = tree.Report(target->entry, target->parent);
    changed.replaced = changed.object;
    return changed;
  };
  if (!exchange && over) {
    if (over == moved) return same();
    if (over->type == FileType::kDirectory && moved->type != FileType::kDirectory) return Errno(EISDIR, to.name);
    if (over->type != FileType::kDirectory && moved->type == FileType::kDirectory) return Errno(ENOTDIR, to.name);
    if (!over->children.empty()) return Errno(ENOTEMPTY, to.name);
    tree.Drop(target->parent, to.name);
  }
  if (exchange) {
    if (over == moved) return same();
    // The other one is parked under a name that no caller can use.
    tree.Move(*target, target->parent, "/");
    Tree::Place parked{target->parent, "/", target->parent->children["/"]};
    source->entry = source->parent->children[from.name];
    tree.Move(*source, target->parent, to.name);
    parked.entry = target->parent->children["/"];
    tree.Move(parked, source->parent, from.name);
  } else {
    tree.Move(*source, target->parent, to.name);
  }
  Changed changed = tree.Report(target->parent->children[to.name], target->parent);
  if (tree.options.changed_carries_attributes) {
    changed.replaced = over ? tree.AttributesOf(target->entry) : Attributes{};
    changed.replaced->id = exchange ? tree.IdOf(source->parent->children[from.name]) : replaced_id;
  }
  if (source->parent != target->parent && tree.options.changed_carries_attributes) {
    changed.old_parent = tree.AttributesOf(tree.EntryOf(source->parent));
  }
  return changed;
}

Result<Changed> MemoryRemoteFs::SetAttributes(const Node& node, Handle handle, const AttributeChange& change, const OpContext&) {
  E2BFS_MEMORY_ENTER("SetAttributes");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  MemoryInode& inode = *entry->inode;
  bool by_handle = handle != 0 && tree.handles[handle].write;
  if (auto may = tree.MayChange(inode, change, by_handle); !may) return Forward(may.error());
  if (change.permissions && inode.type == FileType::kSymlink) return Errno(EOPNOTSUPP, "chmod");
  if (change.size) {
    if (inode.type == FileType::kDirectory) return Errno(EISDIR, node.path);
    if (inode.type != FileType::kRegular || *change.size < 0) return Errno(EINVAL, node.path);
    if (auto space = tree.CheckSpace(inode, *change.size); !space) return Forward(space.error());
    inode.content.resize(size_t(*change.size));
    inode.mtime = tree.Tick();
  }
  tree.Apply(inode, change);
  return tree.Report(*entry, nullptr);
}

Result<transport::MadeObjects> MemoryRemoteFs::MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext&) {
  {
    E2BFS_MEMORY_ENTER("MakeObjects");
    if (!tree.options.makes_objects) return Errno(ENOTSUP, "several new objects at once");
  }
  if (auto sane = transport::CheckRow(objects); !sane) return Forward(sane.error());
  // Outside the lock: the source may take locks of its own.
  std::vector<std::string> contents;
  for (const transport::NewObject& object : objects) {
    auto content = object.type == FileType::kRegular ? transport::ContentOf(object) : object.target;
    if (!content) return Forward(content.error());
    contents.push_back(std::move(*content));
  }
  std::lock_guard<std::mutex> lock(tree_->mutex);
  Tree& tree = *tree_;
  transport::MadeObjects made;
  made.objects.resize(objects.size());
  std::vector<std::string> paths(objects.size());
  std::vector<Tree::Place> places(objects.size());
  std::vector<std::shared_ptr<MemoryInode>> old;
  for (size_t i = 0; i < objects.size(); ++i) {
    const transport::NewObject& object = objects[i];
    Name name{object.directory, object.name};
    if (object.made_in) name.parent = {paths[*object.made_in], {}};
    paths[i] = name.parent.path.empty() ? name.name : name.parent.path + "/" + name.name;
    OpContext as;
    as.creator = object.creator;
    const bool lost = object.made_in && !places[*object.made_in].entry.inode;
    auto place = lost ? Errno(ENOENT, paths[i]) : tree.Make(name, object.type, object.permissions, contents[i], as);
    if (!place) {
      made.objects[i].error = place.error();
      continue;
    }
    places[i] = *place;
    if (!object.made_in && std::find(old.begin(), old.end(), place->parent) == old.end()) old.push_back(place->parent);
  }
  for (size_t i = objects.size(); i-- > 0;) {  // what is in a directory comes after it
    if (!places[i].entry.inode) continue;
    if (auto set = tree.SetNew(*places[i].entry.inode, objects[i].attributes); !set) made.objects[i].error = set.error();
  }
  for (size_t i = 0; i < objects.size(); ++i) {
    if (places[i].entry.inode) made.objects[i].attributes = tree.AttributesOf(places[i].entry);
  }
  if (tree.options.changed_carries_attributes) {
    for (const auto& directory : old) made.directories.push_back(tree.AttributesOf(tree.EntryOf(directory)));
  }
  return made;
}

Result<std::string> MemoryRemoteFs::GetXattr(const Node& node, Handle handle, const std::string& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("GetXattr");
  if (!tree.options.xattrs) return Errno(ENOTSUP, name);
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  auto found = entry->inode->xattrs.find(name);
  if (found == entry->inode->xattrs.end()) return Errno(ENODATA, name);
  return found->second;
}

Result<std::vector<std::string>> MemoryRemoteFs::ListXattrs(const Node& node, Handle handle, const OpContext&) {
  E2BFS_MEMORY_ENTER("ListXattrs");
  if (!tree.options.xattrs) return Errno(ENOTSUP, node.path);
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  std::vector<std::string> names;
  for (const auto& [name, value] : entry->inode->xattrs) names.push_back(name);
  return names;
}

Result<Changed> MemoryRemoteFs::SetXattr(const Node& node, Handle handle, const std::string& name, const std::string& value, int flags,
                                      const OpContext&) {
  E2BFS_MEMORY_ENTER("SetXattr");
  if (!tree.options.xattrs) return Errno(ENOTSUP, name);
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  auto& xattrs = entry->inode->xattrs;
  bool there = xattrs.count(name) != 0;
  if ((flags & XATTR_CREATE) != 0 && there) return Errno(EEXIST, name);
  if ((flags & XATTR_REPLACE) != 0 && !there) return Errno(ENODATA, name);
  xattrs[name] = value;
  entry->inode->ctime = tree.Tick();
  return tree.Report(*entry, nullptr);
}

Result<Changed> MemoryRemoteFs::RemoveXattr(const Node& node, Handle handle, const std::string& name, const OpContext&) {
  E2BFS_MEMORY_ENTER("RemoveXattr");
  if (!tree.options.xattrs) return Errno(ENOTSUP, name);
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  if (entry->inode->xattrs.erase(name) == 0) return Errno(ENODATA, name);
  entry->inode->ctime = tree.Tick();
  return tree.Report(*entry, nullptr);
}

Result<Opened> MemoryRemoteFs::Open(const Node& node, const transport::OpenRequest& request, const OpContext&) {
  E2BFS_MEMORY_ENTER("Open");
  auto place = tree.Find(node);
  if (!place) return Forward(place.error());
  return tree.OpenPlace(*place, request.read, request.write, request.truncate);
}

Handle MemoryRemoteFs::OpenSoon(const Node& node, const transport::OpenRequest& request) {
  E2BFS_MEMORY_ENTER("OpenSoon");
  if (!tree.options.opens_soon) return 0;
  auto place = tree.Find(node);
  Result<Opened> opened = place ? tree.OpenPlace(*place, request.read, request.write, request.truncate) : Forward(place.error());
  if (opened) return opened->handle;
  Tree::OpenFile failed;
  failed.failed = opened.error().errno_value;
  tree.handles[++tree.last_handle] = failed;
  return tree.last_handle;
}

Result<Opened> MemoryRemoteFs::Create(const Name& name, const transport::CreateRequest& request, const OpContext& ctx) {
  E2BFS_MEMORY_ENTER("Create");
  auto place = tree.Find(name, false);
  if (!place) return Forward(place.error());
  if (place->entry.inode) {
    if (request.exclusive) return Errno(EEXIST, name.name);
    // How it will be used is not said; as little as one right is enough.
    if ((tree.AccessOf(*place->entry.inode) & 6) == 0) return Errno(EACCES, name.name);
    auto opened = tree.OpenPlace(*place, false, false, false);
    if (opened) tree.handles[opened->handle].write = (opened->attributes.access & 2) != 0;
    return opened;
  }
  if ((tree.AccessOf(*place->parent) & 2) == 0) return Errno(EACCES, name.name);
  MemoryEntry entry = tree.NewEntryIn(*place->parent, FileType::kRegular, request.permissions, ctx);
  tree.Put(place->parent, name.name, entry);
  Opened opened = tree.OpenEntry(entry, true, true);
  opened.created = true;
  if (tree.options.changed_carries_attributes) opened.parent = tree.AttributesOf(tree.EntryOf(place->parent));
  return opened;
}

Result<std::unique_ptr<transport::ByteStream>> MemoryRemoteFs::Read(Handle handle, const Node& node, const Attributes* version,
                                                                    Extent range, const OpContext&) {
  E2BFS_MEMORY_ENTER("Read");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  if (range.offset < 0 || range.length < 0) return Errno(EINVAL, "range");
  const std::shared_ptr<MemoryInode> inode = entry->inode;
  if (inode->type != FileType::kRegular) return Errno(EINVAL, node.path);
  if (handle == 0 && (tree.AccessOf(*inode) & 4) == 0) return Errno(EACCES, node.path);
  if (version && !inode->sizeless &&
      (version->size != int64_t(inode->content.size()) || !SameMemoryTime(version->mtime, inode->mtime))) {
    return Errno(ESTALE, node.path);
  }
  timespec begun = inode->mtime;
  auto read = [shared = tree_, inode, begun](int64_t offset, char* buffer, size_t capacity) -> Result<size_t> {
    std::lock_guard<std::mutex> stream_lock(shared->mutex);
    ++shared->calls["ReadChunk"];
    if (!SameMemoryTime(begun, inode->mtime)) return Errno(ESTALE, "stream");
    if (offset >= int64_t(inode->content.size())) return size_t{0};
    size_t count = std::min({capacity, inode->content.size() - size_t(offset), shared->options.read_chunk_bytes});
    memcpy(buffer, inode->content.data() + offset, count);
    shared->bytes_read += int64_t(count);
    return count;
  };
  return std::unique_ptr<transport::ByteStream>(std::make_unique<MemoryStream>(range, read, tree.AttributesOf(*entry)));
}

Result<std::vector<transport::FileContent>> MemoryRemoteFs::ReadFiles(const std::vector<transport::KnownFiles>& files, const OpContext&) {
  E2BFS_MEMORY_ENTER("ReadFiles");
  if (!tree.options.reads_files) return Errno(ENOTSUP, "files at once");
  std::vector<transport::FileContent> contents;
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t j = 0; j < files[i].files.size(); ++j) {
      auto place = tree.Find(Name{files[i].directory, files[i].files[j].name}, false);
      if (!place || !place->entry.inode || place->entry.inode->type != FileType::kRegular) continue;
      const Attributes attributes = tree.AttributesOf(place->entry);
      if (!IsSameVersion(attributes, files[i].files[j].version) || attributes.size_unreliable || (attributes.access & 4) == 0) continue;
      contents.push_back({i, j, attributes, place->entry.inode->content});
      tree.bytes_read += int64_t(place->entry.inode->content.size());
    }
  }
  return contents;
}

// Bytes that are kept aside until a Store takes them.
class MemoryRemoteFs::Early final : public transport::EarlyStore {
 public:
  explicit Early(std::shared_ptr<Tree> tree) : tree_(std::move(tree)) {}
  ~Early() override {
    std::lock_guard<std::mutex> lock(tree_->mutex);
    tree_->early_bytes -= static_cast<int64_t>(bytes_.size());
    --tree_->early_stores;
  }
  Result<void> Write(std::string_view bytes, const OpContext&) override {
    std::lock_guard<std::mutex> lock(tree_->mutex);
    ++tree_->calls["EarlyWrite"];
    bytes_ += bytes;
    tree_->early_bytes += static_cast<int64_t>(bytes.size());
    return {};
  }
  const std::string& bytes() const { return bytes_; }

 private:
  const std::shared_ptr<Tree> tree_;
  std::string bytes_;
};

Result<std::unique_ptr<transport::EarlyStore>> MemoryRemoteFs::BeginStore(Handle handle, const Node& node, bool, const OpContext&) {
  E2BFS_MEMORY_ENTER("BeginStore");
  if (!tree.options.early_stores) return std::unique_ptr<transport::EarlyStore>();
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  ++tree.early_stores;
  return std::unique_ptr<transport::EarlyStore>(std::make_unique<Early>(tree_));
}

Result<Attributes> MemoryRemoteFs::Store(Handle handle, const Node& node, const StoreRequest& request, const OpContext&) {
  std::string early;
  {
    E2BFS_MEMORY_ENTER("Store");
    if (request.early) early = static_cast<Early&>(*request.early).bytes();
    tree.stores.push_back({node.path, request.extents, request.size, request.cut_to, request.append, request.attributes, request.fresh,
                           static_cast<int64_t>(early.size()), tree.early_stores - (request.early ? 1 : 0)});
  }
  // Everything is fetched before anything changes, and outside the lock: the source may take locks of its own.
  std::vector<std::string> pieces;
  std::string appended;
  auto fetch = [&](const Extent& extent, std::string& bytes) -> Result<void> {
    bytes.resize(size_t(extent.length));
    if (extent.length == 0) return {};
    if (!request.source) return Errno(EINVAL, "store without a source");
    return request.source->ReadAt(extent.offset, bytes.data(), bytes.size());
  };
  int64_t last_end = 0;
  for (const Extent& extent : request.extents) {
    if (extent.offset < last_end || extent.length <= 0) return Errno(EINVAL, "extents");
    if (request.size && extent.end() > *request.size) return Errno(EINVAL, "extent beyond size");
    last_end = extent.end();
  }
  for (const Extent& extent : request.extents) {
    pieces.emplace_back();
    if (auto fetched = fetch(extent, pieces.back()); !fetched) return Forward(fetched.error());
  }
  if (request.early) {
    if (pieces.size() != 1 || last_end < int64_t(early.size()) || request.append) return Errno(EINVAL, "sent early, and not the beginning of it all");
    pieces[0].replace(0, early.size(), early);
  }
  if (request.append) {
    if (auto fetched = fetch(*request.append, appended); !fetched) return Forward(fetched.error());
  }
  std::lock_guard<std::mutex> lock(tree_->mutex);
  Tree& tree = *tree_;
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  MemoryInode& inode = *entry->inode;
  if (inode.type != FileType::kRegular) return Errno(EINVAL, node.path);
  bool by_handle = handle != 0 && tree.handles[handle].write;
  if (!by_handle && (tree.AccessOf(inode) & 2) == 0) return Errno(EACCES, node.path);
  AttributeChange attributes = request.attributes;
  attributes.size.reset();
  AttributeChange implied;
  if (attributes.mtime_is_implied) implied.mtime = attributes.mtime;
  if (!tree.MayChange(inode, implied, by_handle)) attributes.mtime.reset();
  std::string content = inode.content;
  if (request.cut_to && int64_t(content.size()) > *request.cut_to) content.resize(size_t(*request.cut_to));
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Extent& extent = request.extents[i];
    if (int64_t(content.size()) < extent.end()) content.resize(size_t(extent.end()));
    content.replace(size_t(extent.offset), size_t(extent.length), pieces[i]);
  }
  if (request.size) content.resize(size_t(*request.size));
  content += appended;
  if (auto space = tree.CheckSpace(inode, int64_t(content.size())); !space) return Forward(space.error());
  bool touched = !pieces.empty() || request.append || content.size() != inode.content.size();
  inode.content = std::move(content);
  if (touched && tree.options.uid != 0) inode.permissions = WithoutSetId(inode.permissions);
  if (touched) inode.mtime = inode.ctime = tree.Tick();
  if (auto may = tree.MayChange(inode, attributes, by_handle); !may) {
    Error refused = may.error();
    refused.content_stored = true;
    return Forward(std::move(refused));
  }
  if (!attributes.empty()) tree.Apply(inode, attributes);
  return tree.AttributesOf(*entry);
}

Result<int64_t> MemoryRemoteFs::Seek(Handle handle, const Node& node, int64_t offset, transport::SeekTarget target,
                                     const OpContext&) {
  E2BFS_MEMORY_ENTER("Seek");
  if (!tree.options.ranges) return Errno(ENOTSUP, "Seek");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  const auto size = static_cast<int64_t>(entry->inode->content.size());
  if (offset < 0 || offset >= size) return Errno(ENXIO, node.path);
  return target == transport::SeekTarget::kData ? offset : size;
}

Result<Attributes> MemoryRemoteFs::Allocate(Handle handle, const Node& node, uint32_t mode, Extent range, const OpContext&) {
  E2BFS_MEMORY_ENTER("Allocate");
  if (!tree.options.ranges) return Errno(ENOTSUP, "Allocate");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  MemoryInode& inode = *entry->inode;
  if (inode.type != FileType::kRegular) return Errno(ENODEV, node.path);
  if (range.offset < 0 || range.length <= 0) return Errno(EINVAL, node.path);
  const bool keep_size = (mode & FALLOC_FL_KEEP_SIZE) != 0, zeros = (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0;
  if ((mode & ~uint32_t{FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE}) != 0) return Errno(ENOTSUP, node.path);
  if ((mode & FALLOC_FL_PUNCH_HOLE) != 0 && !keep_size) return Errno(EOPNOTSUPP, node.path);
  const auto size = static_cast<int64_t>(inode.content.size());
  if (auto space = tree.CheckSpace(inode, std::max(size, range.end())); !space) return Forward(space.error());
  if (!keep_size && range.end() > size) inode.content.resize(static_cast<size_t>(range.end()));
  const int64_t end = std::min(range.end(), static_cast<int64_t>(inode.content.size()));
  if (zeros && range.offset < end) {
    std::fill(inode.content.begin() + range.offset, inode.content.begin() + end, '\0');
  }
  inode.mtime = inode.ctime = tree.Tick();
  return tree.AttributesOf(*entry);
}

Result<transport::Copied> MemoryRemoteFs::CopyRange(Handle from, const Node& from_node, int64_t from_offset, Handle to,
                                                    const Node& to_node, Extent target, const OpContext&) {
  E2BFS_MEMORY_ENTER("CopyRange");
  if (!tree.options.ranges) return Errno(ENOTSUP, "CopyRange");
  auto source = tree.Target(from, from_node);
  if (!source) return Forward(source.error());
  auto entry = tree.Target(to, to_node);
  if (!entry) return Forward(entry.error());
  if (from_offset < 0 || target.offset < 0 || target.length < 0) return Errno(EINVAL, to_node.path);
  const std::string& content = source->inode->content;
  const auto at = std::min(static_cast<size_t>(from_offset), content.size());
  const std::string bytes = content.substr(at, static_cast<size_t>(std::min(target.length, tree.options.copy_bytes)));
  MemoryInode& inode = *entry->inode;
  const int64_t end = target.offset + static_cast<int64_t>(bytes.size());
  if (auto space = tree.CheckSpace(inode, end); !space) return Forward(space.error());
  if (!bytes.empty()) {
    if (static_cast<int64_t>(inode.content.size()) < end) inode.content.resize(static_cast<size_t>(end));
    inode.content.replace(static_cast<size_t>(target.offset), bytes.size(), bytes);
    inode.mtime = inode.ctime = tree.Tick();
  }
  return transport::Copied{static_cast<int64_t>(bytes.size()), tree.AttributesOf(*entry)};
}

Result<Attributes> MemoryRemoteFs::StatHandle(Handle handle, const Node& node, const OpContext&) {
  E2BFS_MEMORY_ENTER("StatHandle");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  return tree.AttributesOf(*entry);
}

Result<void> MemoryRemoteFs::Sync(Handle handle, const Node& node, const OpContext&) {
  E2BFS_MEMORY_ENTER("Sync");
  auto entry = tree.Target(handle, node);
  if (!entry) return Forward(entry.error());
  return {};
}

void MemoryRemoteFs::Close(Handle handle, const OpContext&) {
  E2BFS_MEMORY_ENTER("Close");
  tree.handles.erase(handle);
}

std::vector<std::pair<std::string, std::string>> MemoryRemoteFs::Status() const { return {{"tier", "memory"}}; }

#undef E2BFS_MEMORY_ENTER

}  // namespace e2bfs::testing
