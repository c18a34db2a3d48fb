#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/log.h"

namespace e2bfs::cache {

Result<std::unique_ptr<CachedFs>> CachedFs::Create(transport::RemoteFs& remote, CachedFsOptions options,
                                                   const OpContext& ctx) {
  OpContext limited = ctx;
  if (limited.deadline == TimePoint::max()) limited.deadline = Clock::now() + options.operation_timeout;
  const TimePoint asked = Clock::now();
  auto root = remote.Stat(transport::Node{}, limited);
  if (!root) return Forward(root.error());
  if (root->type != transport::FileType::kDirectory) return Errno(ENOTDIR, remote.description().root);
  return std::make_unique<CachedFsImpl>(remote, std::move(options), *root, asked);
}

namespace {

// Each has two files open, and others need some, too.
size_t MostUnsent() {
  constexpr size_t kMost = 20'000, kForOthers = 1'000;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kForOthers;
  return std::min<size_t>(kMost, std::max<size_t>(limit.rlim_cur, 2 * kForOthers) / 2 - kForOthers / 2);
}

// No two mounts have the same.
std::string NewSession() {
  std::random_device random;
  std::string session;
  for (int i = 0; i < 4; ++i) session += std::to_string(random()) + "-";
  return session + std::to_string(::getpid());
}

}  // namespace

CachedFsImpl::CachedFsImpl(transport::RemoteFs& remote, CachedFsOptions options, const transport::Attributes& root,
                           TimePoint asked)
    : remote_(remote),
      options_(std::move(options)),
      memory_(options_.memory_bytes),
      held_memory_(std::min(kMostHeldBytes, options_.memory_bytes / 4)),
      spool_(options_.spool_directory, options_.spool_bytes),
      store_session_(NewSession()),
      tree_(root),
      most_unsent_(MostUnsent()) {
  tree_.root()->watched = root.watched;
  tree_.root()->fresh_until = NodeUntil(*tree_.root(), stamp_, asked, false);
  closer_.SetTick([this] { ReleaseIdleReaders(); });
  remote_.SetListener(this);
  if (root.watched) ChangesLost();  // what came before it listened
  if (!options_.writeback) return;
  committer_.SetTick([this] {
    if (unsynced_.exchange(false) && !spool_.Sync()) unsynced_ = true;
  });
  maker_ = std::jthread([this](std::stop_token stop) { MakeBehind(stop); });
  sender_ = std::jthread([this](std::stop_token stop) { SendBehind(stop); });
}

CachedFsImpl::~CachedFsImpl() {
  remote_.SetListener(nullptr);
  for (std::jthread* thread : {&maker_, &sender_}) {
    thread->request_stop();
    if (thread->joinable()) thread->join();
  }
  committer_.Stop();
  prefetcher_.Stop();
  senders_.Stop();
  stat_senders_.Stop();
  // What is unsent stays in the spool directory, and what is open on the other side is closed.
  Lock lock(mutex_);
  for (const auto& [id, node] : tree_.nodes()) {
    if (node->content.exists() && node->has_unsent() && node->content->spool && !node->is_gone()) node->content->spool->Keep();
    node->open_files = 0;
    if (node->content.exists()) {
      node->content->storing = false;
      EndEarly(*node);
    }
    CloseHandlesIfUnused(*node);
  }
  files_.clear();
}

OpContext CachedFsImpl::ForNames(const OpContext& ctx) const {
  OpContext limited = ctx;
  if (limited.deadline == TimePoint::max()) limited.deadline = Clock::now() + options_.operation_timeout;
  return limited;
}

OpContext CachedFsImpl::ForTransfer(const OpContext& ctx) const {
  OpContext limited = ctx;
  if (limited.deadline == TimePoint::max()) {
    limited.deadline = Clock::now() + options_.transfer_timeout;
    limited.renewal = options_.transfer_timeout;
  }
  return limited;
}

Result<NodePtr> CachedFsImpl::FindNode(NodeId id) const {
  NodePtr node = tree_.Find(id);
  if (!node) return Errno(ESTALE, "a node that was forgotten");
  return node;
}

Result<NodePtr> CachedFsImpl::FindDirectory(NodeId id) const {
  auto node = FindNode(id);
  if (node && !(*node)->is_directory()) return Errno(ENOTDIR, tree_.PathOf(**node));
  return node;
}

Result<std::shared_ptr<OpenFile>> CachedFsImpl::FindFile(FileHandle handle) const {
  auto at = files_.find(handle);
  if (at == files_.end()) return Errno(EBADF, "not an open file");
  return at->second;
}

Result<void> CachedFsImpl::MayChange() const {
  if (options_.read_only) return Errno(EROFS, "mounted read-only");
  return {};
}

bool CachedFsImpl::MovedMeanwhile(const NodePtr& node, const std::string& used, const Error& error, size_t attempt,
                                  const OpContext& ctx) {
  if (error.errno_value != ESTALE && error.errno_value != ENOENT) return false;
  Lock lock(mutex_);
  auto being_moved = [&] {
    for (const std::string& path : moving_) {
      if (used.starts_with(path) && (used.size() == path.size() || used[path.size()] == '/')) return true;
    }
    return false;
  };
  if (!WaitWithin(moved_, lock, ctx, [&] { return !being_moved(); })) return false;
  // One of several names may be gone in the sandbox, and the file be there by another.
  return tree_.PathOf(*node) != used || (attempt + 1 < node->places.size() && Tree::UseOtherPlace(*node));
}

void CachedFsImpl::NoteError(const std::string& path, const Error& error) {
  last_error_ = path + ": " + ToString(error);
}

Result<transport::FsStatistics> CachedFsImpl::StatFs(const OpContext& ctx) { return remote_.StatFs(ForNames(ctx)); }

namespace {

// Of extended attributes that any object may have.
bool IsKnownNamespace(std::string_view name) {
  return name.starts_with("user.") || name.starts_with("trusted.") || name.starts_with("security.");
}

}  // namespace

Result<std::string> CachedFsImpl::GetXattr(NodeId id, const std::string& name, const OpContext& ctx) {
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    if (const auto* names = FreshXattrNames(*node); names && std::find(names->begin(), names->end(), name) == names->end()) {
      return Errno(IsKnownNamespace(name) ? ENODATA : ENOTSUP, name);
    }
  }
  return AtObject(node, ForNames(ctx), [&](transport::Handle handle, const transport::Node& at) {
    return remote_.GetXattr(at, handle, name, ForNames(ctx));
  });
}

Result<std::vector<std::string>> CachedFsImpl::ListXattrs(NodeId id, const OpContext& ctx) {
  NodePtr node;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    if (const auto* names = FreshXattrNames(*node)) return *names;
  }
  return AtObject(node, ForNames(ctx), [&](transport::Handle handle, const transport::Node& at) {
    return remote_.ListXattrs(at, handle, ForNames(ctx));
  });
}

const std::vector<std::string>* CachedFsImpl::FreshXattrNames(const Node& node) const {
  const bool fresh = node.attributes.xattr_names && node.xattr_names_until > Clock::now();
  return fresh ? node.attributes.xattr_names.get() : nullptr;
}

Result<void> CachedFsImpl::SetXattr(NodeId id, const std::string& name, const std::string& value, int flags,
                                    const OpContext& context) {
  const OpContext ctx = ForNames(context);
  return ChangeXattr(id, name, true, ctx, [&](transport::Handle handle, const transport::Node& at) {
    return remote_.SetXattr(at, handle, name, value, flags, ctx);
  });
}

Result<void> CachedFsImpl::RemoveXattr(NodeId id, const std::string& name, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  return ChangeXattr(id, name, false, ctx, [&](transport::Handle handle, const transport::Node& at) {
    return remote_.RemoveXattr(at, handle, name, ctx);
  });
}

Result<void> CachedFsImpl::ChangeXattr(NodeId id, const std::string& name, bool is_there, const OpContext& ctx,
                                       const std::function<Result<transport::Changed>(transport::Handle, const transport::Node&)>& call) {
  if (auto may = MayChange(); !may) return may;
  NodePtr node;
  uint64_t asked_stamp;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    BeginChange(*node);
    asked_stamp = stamp_;
  }
  const TimePoint asked = Clock::now();
  auto done = AtObject(node, ctx, call);
  Lock lock(mutex_);
  EndChange(*node, done ? done->object : std::nullopt, asked_stamp, asked);
  XattrChanged(*node, name, done, is_there);
  if (!done) return Forward(done.error());
  return {};
}

// Which names there are is known even where the answer does not carry them, or could not be taken in.
void CachedFsImpl::XattrChanged(Node& node, const std::string& name, const Result<transport::Changed>& done, bool is_there) {
  if (!FreshXattrNames(node)) return;
  if (!done) {
    if (done.error().kind != ErrorKind::kErrno) node.xattr_names_until = {};
    return;
  }
  auto names = std::make_shared<std::vector<std::string>>(*node.attributes.xattr_names);
  std::erase(*names, name);
  if (is_there) names->push_back(name);
  node.attributes.xattr_names = std::move(names);
}

CacheStatus CachedFsImpl::Status() const {
  Lock lock(mutex_);
  CacheStatus status;
  const std::string root = remote_.description().root;
  for (NodeId id : dirty_) {
    NodePtr node = tree_.Find(id);
    if (!node || !node->has_unsent() || node->is_gone()) continue;
    UnsentFile file;
    file.path = (root == "/" ? "" : root) + "/" + tree_.PathOf(*node);
    file.bytes = node->content->unsent_bytes();
    if (node->content->spool) file.spool_file = node->content->spool->path();
    if (node->content->last_error) file.last_error = ToString(*node->content->last_error);
    if (node->unmade && node->unmade->error) file.last_error = ToString(*node->unmade->error);
    status.dirty_bytes += file.bytes;
    ++status.dirty_files;
    status.unsent.push_back(std::move(file));
  }
  status.open_files = static_cast<int64_t>(files_.size());
  status.known_nodes = static_cast<int64_t>(tree_.size());
  status.memory_bytes = memory_.used_bytes();
  status.last_error = last_error_;
  if (options_.store != nullptr) {
    status.store_directory = options_.store->directory();
    status.store_limit_bytes = options_.store->limit_bytes();
  }
  return status;
}

NodeId CachedFsImpl::ParentOf(NodeId id) const {
  Lock lock(mutex_);
  NodePtr node = tree_.Find(id);
  if (!node) return 0;
  return node->places.empty() ? kRoot : node->places.current().parent;
}

bool CachedFsImpl::HasName(NodeId id) const {
  Lock lock(mutex_);
  const NodePtr node = tree_.Find(id);
  return node && node->linked;
}

std::string CachedFsImpl::PathOf(NodeId id) const {
  Lock lock(mutex_);
  const std::string& root = remote_.description().root;
  NodePtr node = tree_.Find(id);
  const std::string path = node ? tree_.PathOf(*node) : "(forgotten)";
  if (path.empty()) return root;
  return (root == "/" ? "" : root) + "/" + path;
}

}  // namespace e2bfs::cache
