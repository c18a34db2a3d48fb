// Open files, here and on the other side.
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/log.h"

namespace e2bfs::cache {
namespace {

constexpr auto kCloseTimeout = std::chrono::seconds(10);
constexpr auto kCloseTimeoutAtEnd = std::chrono::milliseconds(200);

Result<void> CheckAccess(const transport::Attributes& attributes, uint32_t access, const OpenFlags& flags, const std::string& path) {
  const bool write = flags.write || flags.append || flags.truncate;
  if (write && attributes.write_refusal != 0) return Errno(attributes.write_refusal, path);
  if (write && attributes.appends_only && (!flags.append || flags.truncate)) return Errno(EPERM, path);
  if ((flags.read && (access & 4) == 0) || (write && (access & 2) == 0)) {
    return Errno(EACCES, path);
  }
  return {};
}

}  // namespace

OpenedFile CachedFsImpl::Register(const NodePtr& node, OpenFlags flags, bool created) {
  auto file = std::make_shared<OpenFile>();
  file->node = node;
  file->flags = flags;
  file->created = created;
  file->wrote = file->has_written = flags.truncate && !created;
  file->direct = node->attributes.size_unreliable;
  ++node->open_files;
  if (flags.write) ++node->open_writers;
  OpenedFile opened;
  opened.handle = next_handle_++;
  opened.direct = file->direct;
  opened.keep_kernel_pages = !created && node->opened_generation == node->content_generation;
  node->opened_generation = node->content_generation;
  opened.attributes = BuildAttributes(*node, Clock::now());
  files_.emplace(opened.handle, std::move(file));
  return opened;
}

Result<OpenedFile> CachedFsImpl::Open(NodeId id, OpenFlags flags, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (flags.append || flags.truncate) flags.write = true;  // O_RDONLY|O_TRUNC has something to send, too
  if (flags.write) {
    if (auto may = MayChange(); !may) return Forward(may.error());
  }
  NodePtr node;
  std::mutex* write_mutex;
  {
    Lock lock(mutex_);
    auto found = FindNode(id);
    if (!found) return Forward(found.error());
    node = *found;
    switch (node->attributes.type) {
      case transport::FileType::kRegular: break;
      case transport::FileType::kDirectory: return Errno(EISDIR, tree_.PathOf(*node));
      case transport::FileType::kSymlink: return Errno(ELOOP, tree_.PathOf(*node));
      default: return Errno(ENXIO, tree_.PathOf(*node));
    }
    write_mutex = &node->content->write_mutex;
  }
  if (auto refreshed = Refresh(node, false, ctx); !refreshed) {
    // The name is gone, or leads elsewhere: the kernel looks again, and knows then whether to make it.
    if (refreshed.error().kind == ErrorKind::kErrno && refreshed.error().errno_value == ENOENT) return Errno(ESTALE, refreshed.error().message);
    return Forward(refreshed.error());
  }
  // What was accepted does not go before it is sent.
  if (options_.writeback && flags.truncate) {
    bool accepted = false;
    {
      Lock lock(mutex_);
      accepted = node->content->accepted || node->content->sending_accepted;
    }
    if (accepted) {
      if (auto sent = SendLate(node, ForTransfer(context)); !sent) return Forward(sent.error());
    }
  }
  if (flags.write) RefusedOpen(*node);  // an earlier one
  transport::OpenRequest request;
  transport::Node address;
  bool is_replaced = false;
  {
    Lock lock(mutex_);
    if (auto may = CheckAccess(node->attributes, AccessShown(*node), flags, tree_.PathOf(*node)); !may) return Forward(may.error());
    ++node->open_files;  // what is open there stays so, although another file is released meanwhile
    const bool there = !node->deleted && !node->unmade;
    request.read = flags.read && node->read_handle == 0 && there;
    request.write = flags.write && node->write_handle == 0 && there;
    address = tree_.Address(*node);
    // What others replace by renames may be another file by now. Then the kernel looks for the name again, as it can no longer when it reads.
    const NodePtr parent = node->places.empty() ? nullptr : tree_.Find(node->places.current().parent);
    const Child* name = parent ? Tree::FindChild(*parent, node->places.current().name) : nullptr;
    is_replaced = name && name->replaced_until > Clock::now() && remote_.description().identities_survive_renames;
  }
  // Sent before the file counts as open, and so before any removal that anybody here may ask for.
  transport::Handle sent = 0;
  if (is_replaced && (request.read || request.write)) {
    auto opened = remote_.Open(address, request, ctx);
    if (!opened && opened.error().kind == ErrorKind::kErrno && opened.error().errno_value == ESTALE) {
      Lock lock(mutex_);
      node->fresh_until = {};
      const NodePtr parent = tree_.Find(node->places.current().parent);
      if (Child* name = parent ? Tree::FindChild(*parent, node->places.current().name) : nullptr) name->fresh_until = {};
      EndOpen(lock, node);
      return Forward(opened.error());
    }
    if (opened) sent = opened->handle;
  } else if (request.read || request.write) {
    sent = remote_.OpenSoon(address, request);
  }
  std::unique_lock writing(*write_mutex);
  Lock lock(mutex_);
  TakeHandle(*node, sent, request.read, request.write);
  --node->open_files;
  if (flags.truncate) {
    RecordTruncate(*node, 0);
    ClearSetIds(*node, ctx);
  }
  return Register(node, flags, false);
}

Result<OpenedFile> CachedFsImpl::CreateFile(NodeId parent_id, const std::string& name, uint32_t permissions,
                                            bool exclusive, OpenFlags flags, const OpContext& context) {
  const OpContext ctx = ForNames(context);
  if (flags.append || flags.truncate) flags.write = true;  // O_RDONLY|O_TRUNC has something to send, too
  if (auto may = MayChange(); !may) return Forward(may.error());
  auto here = MakeHere(parent_id, name, {transport::FileType::kRegular, permissions, ctx.creator, {}}, ctx);
  if (!here) return Forward(here.error());
  if (*here) {
    Lock lock(mutex_);
    return Register(*here, flags, true);
  }
  if (auto settled = SettleName(parent_id, name, ctx); !settled) return Forward(settled.error());
  auto begun = BeginName(parent_id, name);
  if (!begun) return Forward(begun.error());
  const auto began = std::chrono::system_clock::now();
  auto opened = AtNode(begun->parent, ctx, [&](const transport::Node& at) {
    return remote_.Create(transport::Name{at, name}, transport::CreateRequest{permissions, exclusive}, ctx);
  });
  NodePtr node;
  uint64_t asked_stamp;
  std::mutex* write_mutex;
  {
    Lock lock(mutex_);
    if (!opened) {
      EndUnknown(*begun);
      EndParent(*begun, std::nullopt);
      return Forward(opened.error());
    }
    asked_stamp = stamp_;
    node = EndMade(*begun, opened->attributes);
    EndParent(*begun, opened->parent);
    ++node->pins;
    write_mutex = &node->content->write_mutex;
    if (opened->created) {
      const auto half = (std::chrono::system_clock::now() - began) / 2;
      const timespec& made = opened->attributes.mtime;
      if (made.tv_sec != 0) {
        clock_offset_ = std::chrono::seconds(made.tv_sec) + std::chrono::nanoseconds(made.tv_nsec) -
                        std::chrono::duration_cast<std::chrono::nanoseconds>((began + half).time_since_epoch());
      }
    }
  }
  std::unique_lock writing(*write_mutex);
  Lock lock(mutex_);
  --node->pins;
  Absorb(*node, opened->attributes, asked_stamp, begun->asked,
         opened->created ? Origin::kOwnChange : Origin::kAsked, true);
  if (begun->overtaken) node->fresh_until = {};
  const bool created = opened->created;
  // A new file's handle serves for both; the other's was opened as far as its mode allows.
  TakeHandle(*node, opened->handle, created || flags.read, created || flags.write);
  if (created) node->content->fresh = true;
  if (!created) {
    Result<void> may = node->is_regular() ? CheckAccess(node->attributes, AccessShown(*node), flags, tree_.PathOf(*node))
                                          : Errno(EISDIR, tree_.PathOf(*node));
    if (!may) {
      CloseHandlesIfUnused(*node);
      return Forward(may.error());
    }
    if (flags.truncate) {
      RecordTruncate(*node, 0);
      ClearSetIds(*node, ctx);
    }
  }
  ++node->references;
  OpenedFile made = Register(node, flags, created);
  made.attributes = BuildEntry(*begun->parent, *node, Clock::now());
  return made;
}

Result<transport::Handle> CachedFsImpl::RemoteHandle(const NodePtr& node, bool write, const OpContext& ctx) {
  {
    Lock lock(mutex_);
    const transport::Handle handle = write ? node->write_handle : node->read_handle;
    if (handle != 0) return handle;
    if (node->deleted) return Errno(ESTALE, tree_.PathOf(*node) + ": removed, and not opened there before");
  }
  transport::OpenRequest request;
  request.read = !write;
  request.write = write;
  auto opened = AtNode(node, ctx, [&](const transport::Node& at) { return remote_.Open(at, request, ctx); });
  if (!opened) return Forward(opened.error());
  Lock lock(mutex_);
  if (opened->attributes.id.known() && node->file_id.known() && opened->attributes.id != node->file_id) {
    CloseLater(opened->handle, tree_.Address(*node));
    return Errno(ESTALE, tree_.PathOf(*node));
  }
  TakeHandle(*node, opened->handle, !write, write);
  return write ? node->write_handle : node->read_handle;
}

Result<transport::Handle> CachedFsImpl::HandleToUse(const NodePtr& node, bool write) {
  transport::OpenRequest request;
  request.read = !write;
  request.write = write;
  transport::Node address;
  {
    Lock lock(mutex_);
    const transport::Handle handle = write ? node->write_handle : node->read_handle;
    if (handle != 0) return handle;
    if (node->deleted) return Errno(ESTALE, tree_.PathOf(*node) + ": removed, and not opened there before");
    address = tree_.Address(*node);
  }
  const transport::Handle sent = remote_.OpenSoon(address, request);
  Lock lock(mutex_);
  TakeHandle(*node, sent, !write, write);
  return write ? node->write_handle : node->read_handle;
}

void CachedFsImpl::TakeHandle(Node& node, transport::Handle handle, bool read, bool write) {
  if (handle == 0) return;
  bool used = false;
  for (const bool for_writing : {true, false}) {
    transport::Handle& slot = for_writing ? node.write_handle : node.read_handle;
    if (slot != 0 || !(for_writing ? write : read)) continue;
    slot = handle;
    used = true;
    if (for_writing) node.writing_ended = false;
  }
  if (!used) CloseLater(handle, tree_.Address(node));
}

std::optional<Error> CachedFsImpl::RefusedOpen(Node& node) {
  transport::Handle handle;
  {
    Lock lock(mutex_);
    handle = node.write_handle;
  }
  std::optional<Error> failure = remote_.OpenFailure(handle);
  if (!failure || !IsRefusal(*failure)) return std::nullopt;
  Lock lock(mutex_);
  DropHandle(node, handle);
  return failure;
}

void CachedFsImpl::DropHandle(Node& node, transport::Handle handle) {
  if (handle == 0 || (node.read_handle != handle && node.write_handle != handle)) return;
  if (node.read_handle == handle) node.read_handle = 0;
  if (node.write_handle == handle) node.write_handle = 0;
  CloseLater(handle, tree_.Address(node));
}

void CachedFsImpl::CloseHandlesIfUnused(Node& node) {
  if (node.read_handle == 0 && node.write_handle == 0) return;
  if (node.open_files > 0 || node.content->storing) return;
  // What was accepted gets to a file that was closed to its user by this handle alone.
  if (node.content->accepted && (node.attributes.access & 2) == 0) return;
  DropHandle(node, node.write_handle);
  DropHandle(node, node.read_handle);
}

void CachedFsImpl::CloseLater(transport::Handle handle, transport::Node address) {
  if (handle == 0) return;
  closer_.Add([this, handle, address = std::move(address)](std::stop_token stop) {
    OpContext ctx = OpContext::Within(stop.stop_requested() ? kCloseTimeoutAtEnd : kCloseTimeout);
    ctx.stop = stop;
    remote_.Close(handle, ctx);
  });
}

void CachedFsImpl::Release(FileHandle handle, const OpContext& context) {
  std::shared_ptr<OpenFile> file;
  bool send = false;
  {
    Lock lock(mutex_);
    auto found = FindFile(handle);
    if (!found) return;
    file = *found;
    // What failed at the flush is not tried again here; what came after it (stores through mmap) is. Not what another handle is about to write:
    // the release comes some time after the close, and its O_TRUNC alone would take the old content away.
    send = file->flags.write && file->node->content->dirty() && file->node->content->untried && !file->node->is_gone() &&
           (!file->flushed || file->node->open_writers == 1);
  }
  const NodePtr& node = file->node;
  if (send) {
    const auto accepted = AcceptFile(node, ForTransfer(context));
    send = !accepted || !*accepted;
  }
  if (send) {
    if (auto sent = Send(node, file.get(), ForTransfer(context)); !sent) {
      log::Error("cache", "{}: not sent at the last close: {}", PathOf(node->id), ToString(sent.error()));
      Lock lock(mutex_);
      if (!node->content->unreported) node->content->unreported = sent.error();
    }
  }
  Lock lock(mutex_);
  files_.erase(handle);
  if (file->reader) {
    closer_.Add([reader = std::move(file->reader)](std::stop_token) mutable {
      reader->ReleaseIfIdle(TimePoint::max());  // what is being opened in the background holds it
      reader.reset();
    });
  }
  if (options_.writeback) SendInTime(*file);
  if (file->unreported && !node->content->unreported) node->content->unreported = file->unreported;
  if (file->flags.write) --node->open_writers;
  EndOpen(lock, node);
}

void CachedFsImpl::EndOpen(Lock& lock, const NodePtr& node) {
  if (--node->open_files > 0) return;
  if (node->is_gone()) DiscardUnsent(*node);
  DropSentBytes(*node);
  if (!node->content->dirty()) node->content->unreported.reset();
  CloseHandlesIfUnused(*node);
  ++node->pins;
  lock.unlock();
  PutAsideIfRefused(node);
  lock.lock();
  --node->pins;
}

}  // namespace e2bfs::cache
