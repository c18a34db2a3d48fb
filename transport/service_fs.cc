#include "transport/service_fs.h"

#include <algorithm>
#include <cstdio>
#include <future>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

#include "transport/base/log.h"
#include "transport/envd/errors.h"
#include "transport/service_new_objects.h"
#include "transport/service_session.h"
#include "transport/service_store.h"
#include "transport/service_stream.h"

namespace e2bfs::transport {

namespace {

// Of listings that nobody asked for yet: envd cannot be told to stop, so levels and bytes are few.
constexpr uint32_t kMostGuessedLevels = 4;
constexpr size_t kMostGuessedBytes = size_t{8} << 20;
constexpr size_t kMostLinkCommands = 8;

struct ServiceHandle {
  std::string path;  // at the open, for messages
  FileId id;
  bool write = false;
};

// EISDIR, ELOOP, ENXIO for what is no regular file.
int ErrnoOfOpenedType(FileType type) {
  switch (type) {
    case FileType::kRegular: return 0;
    case FileType::kDirectory: return EISDIR;
    case FileType::kSymlink: return ELOOP;
    default: return ENXIO;
  }
}

class ServiceFsImpl : public RemoteFs {
 public:
  ServiceFsImpl(std::unique_ptr<ServiceSession> session, bool read_only) : session_(std::move(session)), read_only_(read_only) {
    const ServiceFacts& facts = session_->facts();
    description_.tier = "service";
    description_.user = facts.user;
    description_.uid = facts.uid;
    description_.gid = facts.gid;
    description_.root = facts.root;
    description_.home = facts.home;
    description_.clock_seconds = facts.clock_seconds;
    description_.server_version = session_->client().capabilities().version_text;
    description_.cannot = {
        "extended attributes",
        "exchanging two names; renaming without replacing where a hard link is refused, as of directories",
        "reading content of a file that was unlinked while open, unless it was read before",
        "noticing that a file was removed, replaced or renamed inside the sandbox",
        "two names of a file as one file: what is changed by one is seen by the other after attr_timeout",
        "link counts, inode numbers, device numbers, access and change times; st_blocks is made from the size",
        "allocating, punching holes, telling where holes are",
        "asking for search permission of directories: envd looks as root",
        "writing a file of another user that has set-id bits: clearing them is EPERM",
        "making sockets; paths of more than 4095 bytes in the sandbox",
    };
    if (!facts.perl) description_.cannot.push_back("renaming what has a name that is not UTF-8 (no perl in the sandbox)");
    if (facts.stage.empty() && !read_only) description_.cannot.push_back("changing content: no writable directory for staging");
  }

  const Description& description() const override { return description_; }

  // --- names and attributes

  Result<Attributes> Stat(const Node& node, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    return session_->Stat(node, ctx);
  }

  Result<Attributes> Lookup(const Name& name, const OpContext& ctx) override {
    const std::string path = JoinPath(name.parent.path, name.name);
    auto held = session_->path_locks().Use({path}, ctx);
    if (!held) return Forward(held.error());
    auto absolute = session_->Locate(name, nullptr);
    if (!absolute) return Forward(absolute.error());
    return session_->Stat(path, ctx);
  }

  Result<Listing> List(const Node& directory, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({directory.path}, ctx);
    if (!held) return Forward(held.error());
    auto absolute = session_->Locate(directory);
    if (!absolute) return Forward(absolute.error());
    auto listing = IsUtf8Text(*absolute) ? ListByService(directory.path, *absolute, ctx)
                                         : ListByCommand(directory.path, *absolute, ctx);
    if (!session_->identities().Leads(directory)) return Errno(ESTALE, directory.path);
    return listing;
  }

  Result<std::vector<DeepListing>> ListDeep(const Node& directory, const DeepQuestion& question, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({directory.path}, ctx);
    if (!held) return Forward(held.error());
    auto absolute = session_->Locate(directory);
    if (!absolute) return Forward(absolute.error());
    if (!IsUtf8Text(*absolute)) return Errno(ENOTSUP, "a listing by commands");
    auto listings = ListSubtree(directory.path, *absolute, question, ctx);
    if (!session_->identities().Leads(directory)) return Errno(ESTALE, directory.path);
    return listings;
  }

  Result<std::string> ReadLink(const Node& node, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    auto absolute = session_->Locate(node);
    if (!absolute) return absolute;
    auto text = session_->Ask(ServiceScript::kReadLink, {EncodeArgument(*absolute)}, ctx);
    if (text && (text->empty() || text->size() > 4096 || text->find('\0') != std::string::npos)) {
      return Failure(ErrorKind::kProtocol, EIO, "rubbish as a link's text");
    }
    return text;
  }

  Result<FsStatistics> StatFs(const OpContext& ctx) override {
    auto output = session_->Ask(ServiceScript::kStatFs, {EncodeArgument(session_->facts().root)}, ctx);
    if (output) {
      if (auto statistics = ParseServiceStatFs(*output)) return *statistics;
    } else if (output.error().kind != ErrorKind::kErrno) {
      return Forward(output.error());
    }
    auto metrics = session_->client().Metrics(ctx);
    if (!metrics) return Forward(metrics.error());
    FsStatistics statistics;
    int64_t total = std::max<int64_t>(metrics->disk_total, 0);
    statistics.blocks = uint64_t(total) / statistics.block_bytes;
    statistics.blocks_free = uint64_t(std::clamp<int64_t>(total - metrics->disk_used, 0, total)) / statistics.block_bytes;
    statistics.blocks_available = statistics.blocks_free;
    return statistics;
  }

  // --- changes of names

  Result<Changed> MakeDirectory(const Name& name, uint32_t permissions, const OpContext& ctx) override {
    return Make(ServiceScript::kMakeDirectory, name, {UmaskArgument(permissions), ModeBeyondCreation(permissions, 0777)}, ctx);
  }

  Result<Changed> MakeNode(const Name& name, FileType type, uint32_t permissions, uint32_t major, uint32_t minor,
                           const OpContext& ctx) override {
    std::string letter;
    switch (type) {
      case FileType::kRegular:
        return Make(ServiceScript::kCreate, name, {UmaskArgument(permissions), ModeBeyondCreation(permissions, 0666), "x"}, ctx);
      case FileType::kFifo: letter = "p"; break;
      case FileType::kCharDevice: letter = "c"; break;
      case FileType::kBlockDevice: letter = "b"; break;
      case FileType::kSocket: return Errno(EPERM, "no command makes a socket");
      default: return Errno(EINVAL, "mknod");
    }
    return Make(ServiceScript::kMakeNode, name,
                {UmaskArgument(permissions), ModeBeyondCreation(permissions, 0666), letter, std::to_string(major), std::to_string(minor)},
                ctx);
  }

  Result<Changed> MakeSymlink(const Name& name, const std::string& target, const OpContext& ctx) override {
    if (int wrong = CheckLinkText(target)) return Errno(wrong, "link text");
    return Make(ServiceScript::kMakeSymlink, name, {EncodeArgument(target)}, ctx);
  }

  Result<Changed> MakeLink(const Node& existing, const Name& name, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS, name.name);
    auto held = session_->path_locks().Use({existing.path, JoinPath(name.parent.path, name.name)}, ctx);
    if (!held) return Forward(held.error());
    auto source = session_->Locate(existing);
    if (!source) return Forward(source.error());
    return MakeHeld(ServiceScript::kMakeLink, name, {EncodeArgument(*source)}, ctx);
  }

  Result<Changed> Unlink(const Name& name, const OpContext& ctx) override { return Remove(ServiceScript::kUnlink, name, ctx); }

  Result<Changed> RemoveDirectory(const Name& name, const OpContext& ctx) override {
    return Remove(ServiceScript::kRemoveDirectory, name, ctx);
  }

  Result<Changed> Rename(const Name& from, const Name& to, uint32_t flags, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS, "rename");
    // Only the system call itself exchanges.
    if ((flags & ~uint32_t{kRenameNoReplace}) != 0) return Errno(EINVAL, "rename flags");
    std::string from_path = JoinPath(from.parent.path, from.name), to_path = JoinPath(to.parent.path, to.name);
    auto held = session_->path_locks().Change({from_path, to_path}, ctx);
    if (!held) return Forward(held.error());
    std::string from_parent, to_parent;
    auto source = session_->Locate(from, &from_parent);
    if (!source) return Forward(source.error());
    auto target = session_->Locate(to, &to_parent);
    if (!target) return Forward(target.error());
    bool no_replace = (flags & kRenameNoReplace) != 0;
    auto answer = session_->Change(ServiceScript::kRename,
                                   {EncodeArgument(*source), EncodeArgument(*target), EncodeArgument(from_parent), EncodeArgument(to_parent),
                                    no_replace ? "n" : "-", session_->facts().perl ? "p" : "-"},
                                   ctx);
    if (!answer) return Forward(answer.error());
    auto said = [&](const char* word) { return std::find(answer->words.begin(), answer->words.end(), word) != answer->words.end(); };
    if (said("SAME")) {
      Changed same = ChangedFrom(*answer, to_path, to.parent.path, nullptr);
      if (!answer->objects.empty()) same.object = same.replaced = session_->From(answer->objects[0], to_path);
      return same;
    }
    std::optional<ServiceStat> over;
    if (said("OVER") && answer->objects.size() == (said("MOVE") ? 1 : 4)) {
      over = std::move(answer->objects.front());
      answer->objects.erase(answer->objects.begin());
    }
    auto left = over ? WithOtherNames(*over, to_path) : std::nullopt;
    Result<Changed> changed;
    if (said("MOVE")) {
      changed = Move(*source, *target, from, to, over, ctx);
    } else {
      session_->identities().Renamed(from_path, to_path, said("OVER"));
      changed = ChangedFrom(*answer, to_path, to.parent.path, &from.parent.path);
    }
    if (changed) changed->replaced = std::move(left);
    return changed;
  }

  Result<Changed> SetAttributes(const Node& node, Handle handle, const AttributeChange& change, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS, node.path);
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    auto absolute = session_->Locate(node);
    if (!absolute) return Forward(absolute.error());
    if (change.size && *change.size < 0) return Errno(EINVAL, "size");
    auto answer = session_->Change(ServiceScript::kSetAttributes,
                                   {EncodeArgument(*absolute), change.size ? std::to_string(*change.size) : "-", OwnerArgument(change),
                                    ModeArgument(change.permissions), ServiceTimeArgument(change.atime), ServiceMtimeArgument(change),
                                    IsWriter(handle, node) ? "w" : "-"},
                                   ctx);
    if (!answer) return Forward(answer.error());
    Changed changed;
    if (answer->objects.size() == 1) {
      auto attributes = session_->Complete(answer->objects[0], node.path, ctx);
      if (attributes) changed.object = std::move(*attributes);
    }
    return changed;
  }

  Result<MadeObjects> MakeObjects(const std::vector<NewObject>& objects, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS);
    return MakeNewObjects(*session_, objects, ctx);
  }

  // --- extended attributes: no service and no tool that every image has

  Result<std::string> GetXattr(const Node&, Handle, const std::string&, const OpContext&) override { return Errno(ENOTSUP, "xattr"); }
  Result<std::vector<std::string>> ListXattrs(const Node&, Handle, const OpContext&) override { return Errno(ENOTSUP, "xattr"); }
  Result<Changed> SetXattr(const Node&, Handle, const std::string&, const std::string&, int, const OpContext&) override {
    return Errno(ENOTSUP, "xattr");
  }
  Result<Changed> RemoveXattr(const Node&, Handle, const std::string&, const OpContext&) override { return Errno(ENOTSUP, "xattr"); }

  // --- open files

  Result<Opened> Open(const Node& node, const OpenRequest& request, const OpContext& ctx) override {
    if (request.write && read_only_) return Errno(EROFS, node.path);
    auto attributes = Stat(node, ctx);
    if (!attributes) return Forward(attributes.error());
    if (int wrong = ErrnoOfOpenedType(attributes->type)) return Errno(wrong, node.path);
    bool denied = (request.read && (attributes->access & 4) == 0) || (request.write && (attributes->access & 2) == 0);
    if (denied) return Errno(EACCES, node.path);
    if (request.write && request.truncate) {
      AttributeChange cut;
      cut.size = 0;
      auto changed = SetAttributes({node.path, attributes->id}, 0, cut, ctx);
      if (!changed) return Forward(changed.error());
      if (changed->object) *attributes = *changed->object;
    }
    return Register(node.path, std::move(*attributes), request.write);
  }

  Result<Opened> Create(const Name& name, const CreateRequest& request, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS, name.name);
    std::string path = JoinPath(name.parent.path, name.name);
    auto held = session_->path_locks().Use({path}, ctx);
    if (!held) return Forward(held.error());
    std::string parent;
    auto absolute = session_->Locate(name, &parent);
    if (!absolute) return Forward(absolute.error());
    uint32_t permissions = request.permissions;
    auto answer = session_->Change(ServiceScript::kCreate,
                                   {EncodeArgument(*absolute), EncodeArgument(parent), UmaskArgument(permissions),
                                    ModeBeyondCreation(permissions, 0666), request.exclusive ? "x" : "-"},
                                   ctx);
    if (!answer) return Forward(answer.error());
    bool made = answer->words == std::vector<std::string>{"NEW"};
    if (made) session_->identities().Created(path);
    Result<Attributes> attributes = answer->objects.size() == 2 ? session_->Complete(answer->objects[0], path, ctx) : session_->Stat(path, ctx);
    if (!attributes) return Forward(attributes.error());
    if (!made) {
      if (int wrong = ErrnoOfOpenedType(attributes->type)) return Errno(wrong, path);
      if ((attributes->access & 6) == 0) return Errno(EACCES, path);
    }
    Opened opened = Register(path, std::move(*attributes), made || (attributes->access & 2) != 0);
    opened.created = made;
    if (answer->objects.size() == 2 && answer->objects[1].nanoseconds) {
      opened.parent = session_->From(answer->objects[1], name.parent.path);
    }
    return opened;
  }

  Result<std::unique_ptr<ByteStream>> Read(Handle handle, const Node& node, const Attributes* version, Extent range,
                                           const OpContext& ctx) override {
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    auto located = LocateOpen(handle, node);
    if (!located) return Forward(located.error());
    bool unreliable = version && version->size_unreliable;
    if (!version && handle == 0) {
      // A fifo would never answer, and envd reads what the user may not.
      auto attributes = session_->Stat(node, ctx);
      if (!attributes) return Forward(attributes.error());
      if (int wrong = ErrnoOfOpenedType(attributes->type)) return Errno(wrong, node.path);
      if ((attributes->access & 4) == 0) return Errno(EACCES, node.path);
      unreliable = attributes->size_unreliable;
    } else if (!version) {
      std::string_view path = *located;
      unreliable = path.substr(0, 6) == "/proc/" || path.substr(0, 5) == "/sys/";
    } else if (version->type != FileType::kRegular) {
      return Errno(EINVAL, node.path);
    }
    auto stream = OpenServiceStream(session_->client(), *located, version, range, unreliable, ctx);
    // What was opened tells its time in seconds only. A further range has to be of the version that the ranges before it are of.
    const bool told_time = session_->client().capabilities().gzip_download;  // as in OpenServiceStream
    if (stream && version && !unreliable && (range.offset > 0 || !told_time) && range.length > 0) {
      auto now = session_->Stat(node.path, ctx);
      if (!now) return Forward(now.error());
      const bool same = now->size == version->size && now->mtime.tv_sec == version->mtime.tv_sec && now->mtime.tv_nsec == version->mtime.tv_nsec;
      if (!same) return Errno(ESTALE, node.path);
    }
    return stream;
  }

  Result<Attributes> Store(Handle handle, const Node& node, const StoreRequest& request, const OpContext& ctx) override {
    if (read_only_) return Errno(EROFS, node.path);
    auto located = LocateOpen(handle, node);
    if (!located) return Forward(located.error());
    return StoreContent(*session_, node, IsWriter(handle, node), request, ctx);
  }

  // No tool that every image has does these.
  Result<int64_t> Seek(Handle, const Node&, int64_t, SeekTarget, const OpContext&) override { return Errno(ENOTSUP, "lseek"); }
  Result<Attributes> Allocate(Handle, const Node&, uint32_t, Extent, const OpContext&) override { return Errno(ENOTSUP, "fallocate"); }
  Result<Copied> CopyRange(Handle, const Node&, int64_t, Handle, const Node&, Extent, const OpContext&) override {
    return Errno(ENOTSUP, "copy_file_range");
  }

  Result<Attributes> StatHandle(Handle handle, const Node& node, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    auto located = LocateOpen(handle, node);
    if (!located) return Forward(located.error());
    return session_->Stat(node, ctx);
  }

  Result<void> Sync(Handle handle, const Node& node, const OpContext& ctx) override {
    auto held = session_->path_locks().Use({node.path}, ctx);
    if (!held) return Forward(held.error());
    auto located = LocateOpen(handle, node);
    if (!located) return Forward(located.error());
    auto synced = session_->Ask(ServiceScript::kSync, {EncodeArgument(*located)}, ctx);
    if (!synced) return Forward(synced.error());
    return {};
  }

  void Close(Handle handle, const OpContext&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    handles_.erase(handle);
  }

  std::vector<std::pair<std::string, std::string>> Status() const override {
    const ServiceFacts& facts = session_->facts();
    size_t open = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open = handles_.size();
    }
    return {{"tier", "service"},
            {"commands run", std::to_string(session_->commands())},
            {"open files there", std::to_string(open)},
            {"identities kept", std::to_string(session_->identities().exceptions())},
            {"staging directory", facts.stage.empty() ? "none" : facts.stage},
            {"renames", facts.perl ? "perl" : "envd's Move after a check"},
            {"tools", facts.full_times ? "coreutils" : "busybox"}};
  }

 private:
  // --- listings

  Result<Listing> ListByService(const std::string& path, const std::string& absolute, const OpContext& ctx) {
    // Both at once: one round trip.
    std::future<Result<Attributes>> own;
    try {
      own = std::async(std::launch::async, [&] { return session_->Stat(path, ctx); });
    } catch (const std::system_error&) {
      // No thread to be had: one after the other.
    }
    auto entries = session_->client().ListDir(absolute, 1, ctx);
    Result<Attributes> attributes = own.valid() ? own.get() : session_->Stat(path, ctx);
    if (!attributes) return Forward(attributes.error());
    // envd follows a link at the end, and reads what the user may not.
    if (attributes->type != FileType::kDirectory) return Errno(ENOTDIR, path);
    if ((attributes->access & 4) == 0) return Errno(EACCES, path);
    if (!entries) {
      if (envd::IsInvalidUtf8Failure(entries.error())) return ListByCommand(path, absolute, ctx);
      return Forward(entries.error());
    }
    Listing listing;
    listing.directory = std::move(*attributes);
    listing.entries.reserve(entries->size());
    bool links = false;
    for (envd::EntryInfo& entry : *entries) {
      if (session_->IsHidden(JoinPath(absolute, entry.name))) continue;
      if (!entry.complete) return Failure(ErrorKind::kProtocol, EIO, "an entry without attributes");
      links |= entry.type == FileType::kSymlink;
      Entry& added = listing.entries.emplace_back();
      added.attributes = session_->From(entry, JoinPath(path, entry.name));
      added.name = std::move(entry.name);
    }
    if (links) AddLinkTexts(absolute, listing, ctx);
    return listing;
  }

  // envd lists whole subtrees, and all of one or nothing: so deep that what was asked for is in it.
  Result<std::vector<DeepListing>> ListSubtree(const std::string& path, const std::string& absolute, const DeepQuestion& question, const OpContext& ctx) {
    uint32_t levels = 1;
    for (const std::string& below : question.directories) {
      const auto steps = static_cast<uint32_t>(std::count(below.begin(), below.end(), '/')) + (below.empty() ? 0 : 1);
      levels = std::max(levels, 1 + steps);
    }
    levels += std::min(question.depth, kMostGuessedLevels);
    auto entries = session_->client().ListDir(absolute, levels, ctx, kMostGuessedBytes);
    if (!entries) return Forward(entries.error());
    const AskedPaths asked(question);
    std::map<std::string, DeepListing> found;
    std::vector<std::string> order;
    auto parent_of = [](const std::string& below) { return below.substr(0, std::max<size_t>(below.rfind('/') + 1, 1) - 1); };
    for (const envd::EntryInfo& entry : *entries) {
      const std::string& below = entry.relative_path;
      if (!entry.complete) return Failure(ErrorKind::kProtocol, EIO, "an entry without attributes");
      const auto depth = static_cast<uint32_t>(std::count(below.begin(), below.end(), '/')) + 1;
      if (entry.type != FileType::kDirectory || depth == levels || session_->IsHidden(JoinPath(absolute, below))) continue;
      const std::string parent = parent_of(below);
      if (!parent.empty() && found.count(parent) == 0) continue;  // below what the user may not look into
      Attributes attributes = session_->From(entry, JoinPath(path, below));
      if ((attributes.access & 5) != 5) continue;
      found[below] = {below, {std::move(attributes), {}}};
      order.push_back(below);
    }
    for (envd::EntryInfo& entry : *entries) {
      const std::string& below = entry.relative_path;
      const auto above = found.find(parent_of(below));
      if (above == found.end() || session_->IsHidden(JoinPath(absolute, below))) continue;
      Entry& added = above->second.listing.entries.emplace_back();
      added.attributes = session_->From(entry, JoinPath(path, below));
      added.name = std::move(entry.name);
    }
    std::vector<DeepListing> listings;
    size_t guessed = 0;
    for (const std::string& below : order) {
      DeepListing& listing = found[below];
      if (!asked.contains(below) || listings.size() == question.max_directories) continue;
      if (below != question.directories.front()) {
        if (guessed + listing.listing.entries.size() > question.max_entries) continue;
        guessed += listing.listing.entries.size();
      }
      listings.push_back(std::move(listing));
    }
    // Texts of links cost a command for each directory that has some: of a few, at once. The others are left out.
    size_t with_links = 0;
    std::erase_if(listings, [&](const DeepListing& listing) {
      const auto& all = listing.listing.entries;
      const bool links = std::any_of(all.begin(), all.end(), [](const Entry& entry) { return entry.attributes.type == FileType::kSymlink; });
      return links && ++with_links > kMostLinkCommands;
    });
    std::vector<std::future<void>> texts;
    for (DeepListing& listing : listings) {
      const auto& all = listing.listing.entries;
      if (std::none_of(all.begin(), all.end(), [](const Entry& entry) { return entry.attributes.type == FileType::kSymlink; })) continue;
      auto add = [this, &listing, &ctx, place = JoinPath(absolute, listing.path)] { AddLinkTexts(place, listing.listing, ctx); };
      try {
        texts.push_back(std::async(std::launch::async, add));
      } catch (const std::system_error&) {
        add();
      }
    }
    for (std::future<void>& each : texts) each.get();
    return listings;
  }

  // All links of a directory in one command. Without the texts the listing is as good: they are asked for one by one.
  void AddLinkTexts(const std::string& absolute, Listing& listing, const OpContext& ctx) {
    auto output = session_->Ask(ServiceScript::kList, {EncodeArgument(absolute), session_->facts().find_prints ? "g" : "p", "l"}, ctx);
    if (!output) {
      log::Debug("service", "link texts of {}: {}", absolute, ToString(output.error()));
      return;
    }
    auto links = ParseServiceListing(*output, true);
    if (!links) return;
    std::map<std::string_view, const std::string*> texts;
    for (const ServiceListedEntry& link : links->entries) texts[link.name] = &link.link_target;
    for (Entry& entry : listing.entries) {
      if (entry.attributes.type != FileType::kSymlink) continue;
      auto text = texts.find(entry.name);
      if (text != texts.end() && !text->second->empty()) entry.link_target = *text->second;
    }
  }

  Result<Listing> ListByCommand(const std::string& path, const std::string& absolute, const OpContext& ctx) {
    auto output = session_->Ask(ServiceScript::kList, {EncodeArgument(absolute), session_->facts().find_prints ? "g" : "p", "a"}, ctx);
    if (!output) return Forward(output.error());
    // Three fields an entry.
    if (std::count(output->begin(), output->end(), '\0') > int64_t{3} * int64_t(envd::kMaxListingEntries)) return Errno(EFBIG, path);
    auto found = ParseServiceListing(*output, false);
    if (!found) return Failure(ErrorKind::kProtocol, EIO, "rubbish as a listing");
    Listing listing;
    listing.directory = session_->From(*found->directory, path);
    for (ServiceListedEntry& entry : found->entries) {
      if (session_->IsHidden(JoinPath(absolute, entry.name))) continue;
      Entry& added = listing.entries.emplace_back();
      added.attributes = session_->From(entry.stat, JoinPath(path, entry.name));
      added.name = std::move(entry.name);
      if (entry.stat.type == FileType::kSymlink && !entry.link_target.empty()) added.link_target = std::move(entry.link_target);
    }
    return listing;
  }

  static std::optional<FsStatistics> ParseServiceStatFs(const std::string& output) {
    FsStatistics result;
    unsigned long long v[6] = {};
    if (std::sscanf(output.c_str(), "V %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]) != 6) return std::nullopt;
    if (v[0] == 0 || v[0] > (1U << 30)) return std::nullopt;
    result.block_bytes = v[0];
    result.blocks = v[1];
    result.blocks_free = v[2];
    result.blocks_available = v[3];
    result.files = v[4];
    result.files_free = v[5];
    return result;
  }

  // --- changes

  // `old_parent`: null where there is none.
  Changed ChangedFrom(const ServiceChangeAnswer& answer, const std::string& path, const std::string& parent, const std::string* old_parent) {
    Changed changed;
    size_t expected = old_parent ? 3 : 2;
    // Where stat knows no nanoseconds the caller asks again when it needs them.
    if (answer.objects.size() < expected || !answer.objects[0].nanoseconds) return changed;
    changed.object = session_->From(answer.objects[0], path);
    changed.parent = session_->From(answer.objects[1], parent);
    if (old_parent && *old_parent != parent) changed.old_parent = session_->From(answer.objects[2], *old_parent);
    return changed;
  }

  Result<Changed> Make(ServiceScript script, const Name& name, std::vector<std::string> more, const OpContext& ctx) {
    if (read_only_) return Errno(EROFS, name.name);
    auto held = session_->path_locks().Use({JoinPath(name.parent.path, name.name)}, ctx);
    if (!held) return Forward(held.error());
    return MakeHeld(script, name, std::move(more), ctx);
  }

  Result<Changed> MakeHeld(ServiceScript script, const Name& name, std::vector<std::string> more, const OpContext& ctx) {
    std::string parent;
    auto absolute = session_->Locate(name, &parent);
    if (!absolute) return Forward(absolute.error());
    std::vector<std::string> arguments = {EncodeArgument(*absolute), EncodeArgument(parent)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto answer = session_->Change(script, std::move(arguments), ctx);
    if (!answer) return Forward(answer.error());
    std::string path = JoinPath(name.parent.path, name.name);
    session_->identities().Created(path);
    return ChangedFrom(*answer, path, name.parent.path, nullptr);
  }

  Result<Changed> Remove(ServiceScript script, const Name& name, const OpContext& ctx) {
    if (read_only_) return Errno(EROFS, name.name);
    const std::string path = JoinPath(name.parent.path, name.name);
    auto held = session_->path_locks().Change({path}, ctx);
    if (!held) return Forward(held.error());
    std::string parent;
    auto absolute = session_->Locate(name, &parent);
    if (!absolute) return Forward(absolute.error());
    auto answer = session_->Change(script, {EncodeArgument(*absolute), EncodeArgument(parent)}, ctx);
    if (!answer) return Forward(answer.error());
    Changed changed;
    if (answer->objects.size() == 2) {
      changed.object = WithOtherNames(answer->objects.front(), path);
      answer->objects.erase(answer->objects.begin());
    }
    session_->identities().Removed(path);
    if (answer->objects.size() == 1 && answer->objects[0].nanoseconds) changed.parent = session_->From(answer->objects[0], name.parent.path);
    return changed;
  }

  // What `path` led to before it was removed, if it has other names: with the links that are left. To be asked before the path's identity changes.
  std::optional<Attributes> WithOtherNames(const ServiceStat& before, const std::string& path) {
    if (before.type == FileType::kDirectory || before.link_count < 2) return std::nullopt;
    Attributes left = session_->From(before, path);
    left.link_count = before.link_count - 1;
    return left;
  }

  // The second half of a rename without perl: checked, and an empty directory in the way already removed.
  Result<Changed> Move(const std::string& source, const std::string& target, const Name& from, const Name& to,
                       const std::optional<ServiceStat>& over, const OpContext& ctx) {
    if (!IsUtf8Text(source) || !IsUtf8Text(target)) return Errno(ENOTSUP, "rename of a name that is not UTF-8, without perl");
    OpContext whole = ctx.Uninterruptible();
    auto moved = session_->client().Move(source, target, whole);
    bool done = moved.has_value();
    if (!done && (moved.error().kind == ErrorKind::kBroken || moved.error().kind == ErrorKind::kTimeout)) {
      // Was it done? Only if the one name is gone and the other there.
      auto old_name = session_->client().Stat(source, whole);
      auto new_name = session_->client().Stat(target, whole);
      done = !old_name && old_name.error().kind == ErrorKind::kErrno && old_name.error().errno_value == ENOENT && new_name;
      if (done && new_name->complete) moved = std::move(new_name);
    }
    if (!done) {
      if (over && over->type == FileType::kDirectory) {
        const uint32_t permissions = over->permissions;
        auto again = MakeHeld(ServiceScript::kMakeDirectory, to, {UmaskArgument(permissions), ModeBeyondCreation(permissions, 0777)}, whole);
        if (!again) log::Warning("service", "the empty directory {} is gone after a failed rename", target);
      }
      return Forward(moved.error());
    }
    std::string to_path = JoinPath(to.parent.path, to.name);
    session_->identities().Renamed(JoinPath(from.parent.path, from.name), to_path, over.has_value());
    Changed changed;
    if (moved && moved->complete) changed.object = session_->From(*moved, to_path);
    return changed;
  }

  // --- handles

  Opened Register(const std::string& path, Attributes attributes, bool write) {
    Opened opened;
    std::lock_guard<std::mutex> lock(mutex_);
    opened.handle = ++last_handle_;
    handles_[opened.handle] = {path, attributes.id, write};
    opened.attributes = std::move(attributes);
    return opened;
  }

  bool IsWriter(Handle handle, const Node& node) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = handles_.find(handle);
    return found != handles_.end() && found->second.write && (!node.id.known() || found->second.id == node.id);
  }

  // The absolute path of an open file: EBADF, or ESTALE where the path has become another object's.
  Result<std::string> LocateOpen(Handle handle, const Node& node) const {
    FileId id = node.id;
    if (handle != 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = handles_.find(handle);
      if (found == handles_.end()) return Errno(EBADF, node.path);
      id = found->second.id;
    }
    return session_->Locate(Node{node.path, id});
  }

  std::unique_ptr<ServiceSession> session_;
  const bool read_only_;
  Description description_;
  mutable std::mutex mutex_;  // innermost; guards what follows
  std::map<Handle, ServiceHandle> handles_;
  Handle last_handle_ = 0;
};

}  // namespace

Result<std::unique_ptr<RemoteFs>> ServiceFs::Create(std::shared_ptr<envd::Client> client, ServiceFsOptions options, const OpContext& ctx) {
  bool read_only = options.read_only;
  auto session = ServiceSession::Create(std::move(client), options, ctx);
  if (!session) return Forward(session.error());
  return std::unique_ptr<RemoteFs>(std::make_unique<ServiceFsImpl>(std::move(*session), read_only));
}

}  // namespace e2bfs::transport
