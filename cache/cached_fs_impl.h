// CachedFsImpl: CachedFs, one .cc per concern: names, attributes, directories, opening, reading, writing, unsent.
// States, freshness rules and the order of locks are in cache/DESIGN.md. mutex_ is never held across a call of RemoteFs.
#pragma once

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "cache/block_store.h"
#include "cache/cached_fs.h"
#include "cache/memory_budget.h"
#include "cache/job_threads.h"
#include "cache/prefetch.h"
#include "cache/single_flight.h"
#include "cache/spool.h"
#include "cache/stream_reader.h"
#include "cache/tree.h"

namespace e2bfs::cache {

struct UnsentEntry;

struct OpenFile {
  NodePtr node;
  OpenFlags flags;
  bool created = false;                  // by this handle: changes of its attributes travel with its content
  // Flushed since its last use for writing. The kernel releases a file some time after close(2), so a flushed handle may be a
  // closed one: what a path names then (utimensat, truncate) must not wait for a flush that never comes.
  bool flushed = false;
  bool wrote = false;                    // content, since it was opened or flushed: who only has it open keeps nothing from being sent
  bool has_written = false;              // the same, ever
  bool direct = false;
  std::shared_ptr<StreamReader> reader;  // made by the first read that needs the other side; locks itself
  std::optional<Error> unreported;       // a failed store that this handle was not told of
  std::shared_ptr<BlockStore::File> stored;  // of the version stored_version; null: none is kept
  std::optional<transport::Attributes> stored_version;
  TimePoint stored_used{};
};

// What a directory handle shows: names in an order that stays. Attributes are the nodes', as they are when they are shown.
struct DirectorySnapshot {
  struct Entry {
    std::string name;
    NodeId node = 0;  // 0: the name led to something else already when the listing came
    transport::FileType type = transport::FileType::kRegular;
    uint64_t device = 0, inode = 0;
  };
  std::vector<Entry> entries;
};

struct OpenDirectoryState {
  NodePtr node;
  std::shared_ptr<const DirectorySnapshot> snapshot;
};

class CachedFsImpl final : public CachedFs, private transport::ChangeListener {
 public:
  CachedFsImpl(transport::RemoteFs& remote, CachedFsOptions options, const transport::Attributes& root,
               TimePoint asked);
  ~CachedFsImpl() override;

  Result<NodeAttributes> Lookup(NodeId parent, const std::string& name, const OpContext& ctx) override;
  void Forget(NodeId node, uint64_t count) override;
  Result<NodeAttributes> GetAttributes(NodeId node, const OpContext& ctx) override;
  Result<NodeAttributes> Stat(NodeId node, const OpContext& ctx) override;
  Result<NodeAttributes> SetAttributes(NodeId node, FileHandle handle, const transport::AttributeChange& change,
                                       const OpContext& ctx) override;
  Result<std::string> ReadLink(NodeId node, const OpContext& ctx) override;
  Result<NodeAttributes> MakeDirectory(NodeId parent, const std::string& name, uint32_t permissions,
                                       const OpContext& ctx) override;
  Result<NodeAttributes> MakeNode(NodeId parent, const std::string& name, transport::FileType type,
                                  uint32_t permissions, uint32_t major, uint32_t minor, const OpContext& ctx) override;
  Result<NodeAttributes> MakeSymlink(NodeId parent, const std::string& name, const std::string& target,
                                     const OpContext& ctx) override;
  Result<NodeAttributes> MakeLink(NodeId existing, NodeId parent, const std::string& name,
                                  const OpContext& ctx) override;
  Result<void> Unlink(NodeId parent, const std::string& name, const OpContext& ctx) override;
  Result<void> RemoveDirectory(NodeId parent, const std::string& name, const OpContext& ctx) override;
  Result<void> Rename(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name,
                      uint32_t flags, const OpContext& ctx) override;
  Result<transport::FsStatistics> StatFs(const OpContext& ctx) override;
  Result<std::string> GetXattr(NodeId node, const std::string& name, const OpContext& ctx) override;
  Result<std::vector<std::string>> ListXattrs(NodeId node, const OpContext& ctx) override;
  Result<void> SetXattr(NodeId node, const std::string& name, const std::string& value, int flags,
                        const OpContext& ctx) override;
  Result<void> RemoveXattr(NodeId node, const std::string& name, const OpContext& ctx) override;
  Result<DirectoryHandle> OpenDirectory(NodeId node, const OpContext& ctx) override;
  Result<void> ReadDirectory(DirectoryHandle handle, uint64_t position, bool with_references,
                             const std::function<bool(const DirectoryEntry&, uint64_t next)>& emit,
                             const OpContext& ctx) override;
  void CloseDirectory(DirectoryHandle handle) override;
  Result<OpenedFile> Open(NodeId node, OpenFlags flags, const OpContext& ctx) override;
  Result<OpenedFile> CreateFile(NodeId parent, const std::string& name, uint32_t permissions, bool exclusive,
                                OpenFlags flags, const OpContext& ctx) override;
  Result<size_t> Read(FileHandle handle, int64_t offset, char* buffer, size_t length, const OpContext& ctx) override;
  Result<size_t> Write(FileHandle handle, int64_t offset, std::string_view bytes, const OpContext& ctx) override;
  Result<int64_t> Seek(FileHandle handle, int64_t offset, transport::SeekTarget target, const OpContext& ctx) override;
  Result<void> Allocate(FileHandle handle, uint32_t mode, transport::Extent range, const OpContext& ctx) override;
  Result<size_t> CopyRange(FileHandle from, int64_t from_offset, FileHandle to, transport::Extent target,
                           const OpContext& ctx) override;
  Result<void> Flush(FileHandle handle, const OpContext& ctx) override;
  Result<void> Sync(FileHandle handle, const OpContext& ctx) override;
  void Release(FileHandle handle, const OpContext& ctx) override;
  Result<void> SyncDirectory(NodeId node, const OpContext& ctx) override;
  Result<void> FlushAll(const OpContext& ctx, const std::function<void(int64_t bytes_left)>& progress) override;
  Result<int> SaveUnsent(const std::string& directory) override;
  CacheStatus Status() const override;
  NodeId ParentOf(NodeId node) const override;
  std::string PathOf(NodeId node) const override;
  bool HasName(NodeId node) const override;
  transport::RemoteFs& remote() override { return remote_; }
  void SetKernel(std::function<void(const std::vector<KernelNews>&)> tell) override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  enum class Origin { kAsked, kOwnChange };

  // --- cached_fs.cc
  OpContext ForNames(const OpContext& ctx) const;      // deadlines filled in
  OpContext ForTransfer(const OpContext& ctx) const;
  Result<NodePtr> FindNode(NodeId id) const;           // mutex_ held; ESTALE
  Result<NodePtr> FindDirectory(NodeId id) const;      // mutex_ held; ESTALE, ENOTDIR
  Result<std::shared_ptr<OpenFile>> FindFile(FileHandle handle) const;  // mutex_ held; EBADF
  Result<void> MayChange() const;                      // EROFS
  // Calls remote(address of the node as it now is); again when the node or a directory above it was moved meanwhile, which somebody
  // may do again and again.
  static constexpr size_t kMostMoves = 50;
  template <typename Call>
  auto AtNode(const NodePtr& node, const OpContext& ctx, Call call)
      -> decltype(call(std::declval<const transport::Node&>()));
  // Calls remote(handle, address) with a handle that is open there, if there is one: it leads to the object also when its names do not.
  template <typename Call>
  auto AtObject(const NodePtr& node, const OpContext& ctx, Call call) -> decltype(call(transport::Handle{}, std::declval<const transport::Node&>()));
  // No lock. Whether the failed call has to be repeated, since `used` is no longer the node's path, or since it has other names; waits for
  // moves above it.
  bool MovedMeanwhile(const NodePtr& node, const std::string& used, const Error& error, size_t attempt, const OpContext& ctx);
  void NoteError(const std::string& path, const Error& error);  // mutex_ held

  // --- attributes.cc; all with mutex_ held, but Refresh
  // The only way attributes get to the kernel: unsent changes laid over what the other side said.
  NodeAttributes BuildAttributes(const Node& node, TimePoint now) const;
  // The same, as what a name in that directory leads to.
  NodeAttributes BuildEntry(const Node& directory, const Node& node, TimePoint now) const;
  // Takes an answer into the cache: false if it is older than a change made here (asked_stamp: stamp_ when it was asked).
  // by_directory: the question was asked of the directory that the node is in, which the other side watched before it answered.
  bool Absorb(Node& node, const transport::Attributes& attributes, uint64_t asked_stamp, TimePoint asked, Origin origin,
              bool by_directory = false);
  // Until when an answer is fresh: about a name in the directory, or about the node.
  TimePoint NameUntil(const Node& directory, uint64_t asked_stamp, TimePoint asked, std::chrono::milliseconds ttl) const;
  TimePoint NodeUntil(const Node& node, uint64_t asked_stamp, TimePoint asked, bool by_directory) const;
  // For the kernel, which keeps nothing for longer than the time to live, watched or not.
  std::chrono::milliseconds Remaining(TimePoint fresh_until, TimePoint now) const;
  void TakeAttributes(Node& node, const transport::Attributes& attributes, TimePoint asked);
  void ContentChanged(Node& node, bool for_the_kernel);
  void BeginChange(Node& node);
  void EndChange(Node& node, const std::optional<transport::Attributes>& after, uint64_t asked_stamp, TimePoint asked);
  bool Fresh(const Node& node, TimePoint now) const;
  // mutex_ held: the permissions that are left when ctx's program changes the content, or the owner; unset where that changes nothing.
  std::optional<uint32_t> SetIdsCleared(const Node& node, const OpContext& ctx, bool of_owner) const;
  // mutex_ held: the kernel, before a write or with a truncation, takes the set-id bits off what the acting user may write but does not own,
  // who may not change its mode. The sandbox does it when the content arrives.
  bool IsClearedBySandbox(const Node& node, const transport::AttributeChange& change, const OpContext& ctx) const;
  // What the acting user may do by a mode or an owner that is not in the sandbox yet; unset where none waits, and where more than that decides.
  std::optional<uint32_t> AccessToCome(const Node& node) const;
  static uint32_t AccessThere(const Node& node);  // running a file here asks nothing of the sandbox
  uint32_t AccessShown(const Node& node) const;   // by both: attributes.access where nothing waits
  bool ClosesSoon(const Node& node) const;        // a directory: nothing in it can be reached when its mode is there
  Result<void> MayChangeNames(const Node& directory) const;  // EACCES by a mode that is not in the sandbox yet; all else is said there
  void ClearSetIds(Node& node, const OpContext& ctx);  // mutex_ held: with the content that was just recorded
  // The names of its extended attributes, if they are known and fresh; else null.
  const std::vector<std::string>* FreshXattrNames(const Node& node) const;
  void XattrChanged(Node& node, const std::string& name, const Result<transport::Changed>& done, bool is_there);
  Result<void> ChangeXattr(NodeId id, const std::string& name, bool is_there, const OpContext& ctx,
                           const std::function<Result<transport::Changed>(transport::Handle, const transport::Node&)>& call);
  // What the other side says of the node: by an open handle, which knows it without a name, else by its path. No lock.
  Result<transport::Attributes> AskAttributes(const NodePtr& node, const OpContext& ctx);
  // Asks for the node's attributes if they are not fresh. No lock.
  Result<void> Refresh(const NodePtr& node, bool even_if_fresh, const OpContext& ctx);
  timespec SandboxNow() const;
  bool MayDeferAttributes(const Node& node) const;  // mutex_ held: what is set is accepted, and sent with what is unsent (-o writeback)
  Result<NodeAttributes> SendAttributes(const NodePtr& node, transport::AttributeChange change, const OpContext& ctx);

  // --- watching.cc: transport::ChangeListener
  void NameChanged(const transport::FileId& directory, const std::string& name, const std::optional<transport::Entry>& now,
                   bool gone) override;
  void DirectoryChanged(const transport::Attributes& now) override;
  void Unwatched(const transport::FileId& directory) override;
  void ChangesLost() override;
  void NotWatched(Node& directory, TimePoint until);  // mutex_ held
  void Outdated(Node& node);                          // mutex_ held
  void TellKernel(Lock& lock);                        // mutex_ held; not while it tells

  // --- names.cc
  struct NameChange {           // a change of one name on its way
    NodePtr parent;
    std::string name;
    uint64_t stamp = 0;
    TimePoint asked{};
    bool overtaken = false;     // by news of the name: its answer may be older than they
  };
  Result<NameChange> BeginName(NodeId parent, const std::string& name);
  // mutex_ held: what became of it.
  void EndParent(const NameChange& change, const std::optional<transport::Attributes>& parent);
  NodePtr EndMade(NameChange& change, const transport::Attributes& object);
  void EndUnknown(const NameChange& change);
  // making: what it is, where it may be made here first; null: only there.
  Result<NodeAttributes> Make(NodeId parent, const std::string& name, const OpContext& ctx,
                              const std::function<Result<transport::Changed>(const transport::Name&)>& call,
                              const UnsentMaking* making);
  // mutex_ held: the node that lost its name, when `known` is what we took it for and `told` what the other side says of it. Null if none.
  NodePtr WhatLostItsName(const NodePtr& known, const std::optional<transport::Attributes>& told);
  void NodeRemoved(const NodePtr& node, const std::optional<transport::Attributes>& after, const NameChange& change);
  bool WorthListing(const NodePtr& directory) const;  // no lock
  // Of a directory whose attributes are not fresh: asked for by its first listing, in the same round trip, since whoever looks at a directory
  // often lists it next. False: they have to be asked for by themselves. No lock; the node is pinned.
  bool RefreshedByListing(const NodePtr& node, const OpContext& ctx);
  Result<NodePtr> LookupRemote(const NodePtr& parent, const std::string& name, const OpContext& ctx);
  // Its open files keep the object on the other side, if its name or its mode may soon not lead to it any more.
  void OpenHandlesInUse(const NodePtr& node, const OpContext& ctx);
  // Before the name of `node` goes: its open files keep the object, and other links get what is unsent.
  void BeforeRemoval(const NodePtr& node, const OpContext& ctx);
  // Of what is unsent: that its name goes. The node whose note says so, or null. No lock.
  NodePtr NoteRemoving(const NodePtr& node);
  struct Pinned;                // holds a node in the tree

  // --- directories.cc
  Result<std::shared_ptr<const DirectorySnapshot>> TakeSnapshot(const NodePtr& node, ListedFor why, const OpContext& ctx);
  // What the other side says, with more than was asked for where a program seems to go through a tree. No lock.
  Result<std::shared_ptr<const DirectorySnapshot>> AskListing(const NodePtr& node, ListedFor why, const OpContext& ctx);
  // mutex_ held: what is not in the sandbox yet is in no listing of it.
  void AddUnmade(const Node& directory, DirectorySnapshot& snapshot) const;
  DirectorySnapshot::Entry EntryOf(const std::string& name, const Node& node) const;  // mutex_ held
  void AbsorbListing(Node& directory, const transport::Listing& listing, uint64_t asked_stamp, TimePoint asked);

  // --- prefetch.cc
  // mutex_ held: what to ask for when the directory has to be listed; nothing but itself where no walk is recognised.
  std::optional<WalkQuestion> AskAhead(Node& directory, ListedFor why);
  Walk* WalkAbove(const Node& directory);
  bool IsNextIn(const Node& in, const Node& directory, size_t* others) const;
  // Of what was guessed, what the program has passed by that path; null: all.
  void JudgeWalk(Walk& walk, const std::string* reached);
  struct ListedAhead {  // a question on its way: who wants what was asked in it waits
    ListedAhead(CachedFsImpl& owner, WalkQuestion asked);  // mutex_ held
    ~ListedAhead();                                        // mutex_ not held
    ListedAhead(const ListedAhead&) = delete;
    ListedAhead& operator=(const ListedAhead&) = delete;
    CachedFsImpl& fs;
    WalkQuestion ahead;
  };
  void AddFrontier(const Node& top, const Node& first, bool descends, WalkQuestion& question) const;
  // mutex_ held, not all the time: takes all in but the wanted one. The names on the way are those that led there when it was asked.
  void AbsorbAhead(Lock& lock, const WalkQuestion& question, const std::vector<transport::DeepListing>& listings, uint64_t asked_stamp, TimePoint asked);
  void WalkFailed(const WalkQuestion& question);  // it cannot be asked there
  NodePtr FindBelow(const NodePtr& top, const std::string& path, uint64_t asked_stamp) const;
  void ListingUsed(Node& directory);  // mutex_ held
  // mutex_ held: what to ask for together with the small file that has to be read; nothing where no row of them is recognised. Counts it as read.
  std::optional<FilesQuestion> AskFilesAhead(const NodePtr& node);
  void AddFiles(const Node& top, const NodePtr& first, size_t most_files, int64_t most_bytes, FilesQuestion& question) const;
  // The file is small, and its content is the sandbox's, which tells when it changes.
  bool MayHold(const Node& node) const;
  bool JudgeRun(ReadRun& run, const std::string* reached);  // false: the last question has yet to prove itself
  void FetchFiles(const FilesQuestion& question, const OpContext& ctx);  // no lock
  void Hold(const NodePtr& node, transport::FileContent content, uint32_t run, TimePoint asked);  // mutex_ held
  std::shared_ptr<const HeldContent> UseHeld(Node& node, int64_t bytes);         // mutex_ held: so many are read from it; null if there is none
  void DropOldHeld(TimePoint before);                                            // mutex_ held
  struct FilesAhead {  // a question on its way: who wants one of the files waits until it ends
    ~FilesAhead();     // mutex_ not held
    CachedFsImpl& fs;
    const FilesQuestion& question;
  };
  // mutex_ held: news came of a directory that nobody knew here, so that an answer which is on its way says nothing of it.
  void NoteUnknown(const transport::FileId& id);
  bool IsOvertaken(const transport::FileId& id, uint64_t asked_stamp) const;

  // --- opening.cc
  void EndOpen(Lock& lock, const NodePtr& node);  // mutex_ held, and released meanwhile: one less has it open
  OpenedFile Register(const NodePtr& node, OpenFlags flags, bool created);  // mutex_ held
  // The other side's handle for reading or writing; opened if there is none. The node is pinned or open. No lock.
  Result<transport::Handle> RemoteHandle(const NodePtr& node, bool write, const OpContext& ctx);
  // The same without waiting for the open. 0 where the other side cannot do that: it then opens the node for each use.
  Result<transport::Handle> HandleToUse(const NodePtr& node, bool write);
  // Calls remote(handle, address) with HandleToUse; once more without the handle if its open had failed.
  template <typename Call>
  auto WithHandle(const NodePtr& node, bool write, const OpContext& ctx, Call call)
      -> decltype(call(transport::Handle{}, std::declval<const transport::Node&>()));
  // mutex_ held: `handle` serves for reading, writing or both from now on, unless there is one; then it is closed.
  void TakeHandle(Node& node, transport::Handle handle, bool read, bool write);
  // Why the node was refused to be opened for writing, if that is known by now; the next use opens it anew.
  std::optional<Error> RefusedOpen(Node& node);
  void DropHandle(Node& node, transport::Handle handle);  // mutex_ held: that one is no good any more
  void CloseHandlesIfUnused(Node& node);              // mutex_ held
  void CloseLater(transport::Handle handle, transport::Node address);

  // --- reading.cc
  static constexpr size_t kPrefetchThreads = 8;  // each opens a range in one or two round trips
  static constexpr int64_t kMostHeldBytes = 8 << 20;
  static constexpr size_t kSenderThreads = 4;    // each has a file; others wait for their close
  static constexpr size_t kStatThreads = 16;     // each stores a small file for who waits
  std::shared_ptr<StreamReader> ReaderOf(const std::shared_ptr<OpenFile>& file);  // mutex_ held
  std::shared_ptr<StreamReader> MakeReader(const NodePtr& node);
  // Into the spool what an open file has only on the other side, if it is not much: where handles are paths, it could not be
  // read any more after its name is gone. Best effort.
  void RescueContent(const NodePtr& node, const OpContext& ctx);
  void ReleaseIdleReaders();
  // No lock. Reading sets the time of access, of which nobody tells.
  void NoteAccess(const NodePtr& node, const transport::Attributes& read, uint64_t asked_stamp);

  // --- stored.cc: what the block store has
  // mutex_ held. Where the store may have the file's content as its attributes say it is now; null: nowhere.
  std::shared_ptr<BlockStore::File> StoredContent(OpenFile& file) const;
  // mutex_ held: attributes that were told so long ago have to be asked for before the store may serve by them.
  bool MayServeStored(const Node& node) const;
  // Where content of that version, asked for then, may be kept: null if the version cannot be told from the next.
  std::shared_ptr<BlockStore::File> PlaceOf(const transport::Attributes& version, TimePoint asked) const;
  // The range of that version, asked for then; what comes of it is kept too.
  std::unique_ptr<transport::ByteStream> KeepRange(std::unique_ptr<transport::ByteStream> stream, const transport::Attributes& version,
                                                   transport::Extent range, TimePoint asked) const;
  void KeepWhole(const transport::Attributes& version, std::string_view bytes, TimePoint asked) const;
  BlockStore::Key StoreKey(const transport::Attributes& version) const;

  // --- writing.cc
  Result<std::shared_ptr<SpoolFile>> SpoolOf(const NodePtr& node);
  Result<size_t> WriteToSpool(OpenFile& file, int64_t offset, std::string_view bytes, const OpContext& ctx);  // bytes are not empty
  Result<void> MakeRoom(const OpenFile& file, int64_t bytes, const OpContext& ctx);
  // Sends what may be sent. False: all of it is, and there is no room yet.
  Result<bool> TryToMakeRoom(const OpenFile& file, int64_t bytes, const OpContext& ctx);
  // mutex_ held: a file whose content is all new, and large, is sent while it is written.
  void SendEarly(Node& node);
  void EndEarly(Node& node);  // of no use any more
  // mutex_ held. False: it was not written, since the note is a promise and cannot be made to say it.
  bool RecordWrite(Node& node, int64_t offset, int64_t length);
  bool RecordAppend(Node& node, int64_t offset, int64_t length);
  // mutex_ held: what NotWritten takes to make `current` again what it is now; of its extents, those within `extent`.
  static Change BeforeWrite(const Node& node, const transport::Extent& extent);
  void NotWritten(Node& node, const transport::Extent& extent, Change before);  // mutex_ held
  void RecordTruncate(Node& node, int64_t size);                  // mutex_ held
  void ChargeSpool(Node& node);                                   // mutex_ held: what `present` now holds, and the note
  void ChargePresent(Node& node);                                 // mutex_ held: without the note
  // mutex_ held. only_more: nothing but this range is new since the last note, and content was unsent then.
  bool NoteMore(Node& node, bool only_more, const transport::Extent& extent, bool appended);
  void NoteBase(Node& node);                                      // mutex_ held: before each unsent change
  void DropSentBytes(Node& node);                                 // mutex_ held: only what is unsent stays spooled
  bool NoteUnsent(Node& node);                                    // mutex_ held: for whoever finds the spool file alone; as UnsentNote::Write

  // --- ranges.cc
  // Where the other side does not act as who asks.
  Result<void> ClearSetIdsNow(const NodePtr& node, const OpContext& ctx);
  // Of a file that was removed here, and whose changes therefore stay here.
  Result<void> AllocateRemoved(const std::shared_ptr<OpenFile>& file, uint32_t mode, transport::Extent range, const OpContext& ctx);
  // mutex_ held: the other side has changed the content of a node for which BeginChange was called.
  void EndContentChange(Node& node, const Result<transport::Attributes>& after, uint64_t asked_stamp, TimePoint asked);

  // --- unsent.cc
  enum class SendWhat {
    kAll,
    kAccepted,    // nothing, if what was accepted was sent meanwhile
    kBeforeStat,  // what MaySendBeforeStat allows; an error that leaves all to be sent by the next flush is told by that
  };
  // Sends what is unsent, after a store that is under way. Its error is also latched for the open handles but `teller`. No lock.
  Result<void> Send(const NodePtr& node, const OpenFile* teller, const OpContext& ctx, SendWhat what = SendWhat::kAll);
  bool IsToBeSent(const Node& node, SendWhat what) const;                             // mutex_ held
  Result<void> WaitForOtherStore(Lock& lock, Node& node, const OpContext& ctx);       // mutex_ held before and after
  // mutex_ held: the kernel may have cut a write(2) of an appender at the end of a page, and the rest of it comes at once. Not of the teller, whose write has ended.
  static bool IsCut(const Node& node, const OpenFile* teller) { return node.content->rest_of != nullptr && node.content->rest_of != teller; }
  void BeginStore(Node& node);                                                        // mutex_ held: all that is unsent is `sending` from now on
  Result<void> SendOnce(const NodePtr& node, const OpenFile* teller, const std::shared_ptr<EarlySend>& early, const OpContext& ctx, SendWhat what);
  // Before its attributes are told: whether the send was waited for to its end, so that they are as new as the question. No lock.
  bool SendBeforeStat(const NodePtr& node, const OpContext& ctx);
  bool MaySendBeforeStat(const Node& node) const;  // mutex_ held
  bool WritingEnded(const Node& node) const;    // mutex_ held; everything that may write it was flushed
  bool IsBeingWritten(const Node& node) const;  // mutex_ held; something that wrote it was not flushed since
  Result<transport::Attributes> CallStore(const NodePtr& node, const Change& change, bool fresh, const std::shared_ptr<SpoolFile>& spool,
                                          transport::EarlyStore* early, const OpContext& ctx);
  void StoreSucceeded(const NodePtr& node, const Change& sent, const transport::Attributes& after, uint64_t asked_stamp,
                      TimePoint asked);
  void StoreFailed(Node& node, const OpenFile* teller, const Error& error, bool tried);  // mutex_ held
  // The content arrived, its attributes did not: that is told, and nothing is sent again.
  void AttributesRefused(const NodePtr& node, const OpenFile* teller, const Change& sent, const Error& error,
                         uint64_t asked_stamp, TimePoint asked);
  // A store failed that had put new content in the old one's place, and the old one back: the times are not somebody else's. No lock.
  void NoteOwnTrace(const NodePtr& node);
  // A store failed, and so many bytes of its append are there: only the rest is sent again.
  void AppendedInPart(Node& node, int64_t done);  // mutex_ held
  // The error of what cannot be sent any more: its names are not known.
  Result<void> CannotReach(Node& node, const OpenFile* teller);  // mutex_ held
  void TellWriters(const Node& node, const OpenFile* teller, const Error& error);  // mutex_ held
  std::optional<Error> TakeUnreported(OpenFile& file);  // mutex_ held
  void DiscardUnsent(Node& node);                       // mutex_ held
  enum class SaveWhen { kAlways, kFailed, kRefused };  // kFailed: unless it is being sent again, since whoever does that sees what comes of it
  // One file's share of SaveUnsent; false: nothing was unsent, or it is not so. What was accepted is told by the next FlushAll, if there is a reason `why`.
  Result<bool> SaveUnsentOf(const NodePtr& node, const std::string& directory, SaveWhen when, const std::string& why);
  // mutex_ held: the copy that SaveUnsentOf made of what was being sent is no longer what is unsent, which the note says again.
  void DropSavedCopy(Node& node);
  UnsentRecord RecordOf(const Node& node) const;  // mutex_ held: of what is unsent
  // What can never be sent since its file is gone there, and which nobody has open, leaves the mount: no lock.
  void PutAsideIfRefused(const NodePtr& node);
  bool IsRefused(const Node& node) const;      // mutex_ held
  // mutex_ held: what was accepted belongs to a file that lost its name to another one: it can lie beside that.
  bool IsReplaced(const Node& node, const Error& error) const;
  static bool IsRefusal(const Error& error);  // of bytes: the sandbox would say the same tomorrow
  // Sends before a rename or link; also fails with an error that nobody was told of.
  Result<void> SendForName(const NodePtr& node, const OpContext& ctx);

  // Sends those nodes, several at once, then the directories among them. The first error.
  Result<void> SendAll(std::vector<NodePtr> nodes, const OpContext& ctx, const std::function<void(int64_t)>& progress, SendWhat what = SendWhat::kAll);

  // --- writeback.cc: what is accepted here, and sent behind the programs' backs
  // More of it may follow at once, so what was accepted waits so long for company.
  static constexpr std::chrono::milliseconds kQuiet{100};
  static constexpr std::chrono::seconds kMostDelay{3};
  static constexpr std::chrono::seconds kFirstRetry{1};
  static constexpr std::chrono::seconds kMostRetry{30};
  static std::chrono::milliseconds RetryAfter(uint64_t tries);
  static bool IsForNow(const Error& error);  // time may help
  // mutex_ held: nothing else can have that name, and what is made in the directory may be told to the sandbox later.
  bool MayMakeHere(Node& parent, const std::string& name) const;
  // Makes it here, in the journal, with a reference for the kernel. Null: it has to be made there.
  Result<NodePtr> MakeHere(NodeId parent, const std::string& name, const UnsentMaking& making, const OpContext& ctx);
  transport::Attributes AttributesOfNew(const Node& parent, const UnsentMaking& making) const;  // mutex_ held
  void NameChangedHere(Node& directory);  // mutex_ held: its times
  // Removes what is not in the sandbox yet, unless it is on its way there: then it is there when this returns. False: it has to be removed there.
  Result<bool> RemoveHere(NodeId parent, const std::string& name, bool directory, const OpContext& ctx);
  // mutex_ held: what is unsent of it is promised to be sent; it is in the journal now. False: the journal cannot take it.
  bool Accept(Node& node);
  // The same, not while a rename moves it. No lock.
  Result<bool> AcceptFile(const NodePtr& node, const OpContext& ctx);
  // mutex_ held: waits while the path, or one above it, is moved.
  bool WaitUntilUnmoved(Lock& lock, const Node& node, const OpContext& ctx);
  bool IsUnmoved(const Node& node) const;  // mutex_ held
  // While it lives nothing is accepted at or below those paths: what the journal says of them would not be true.
  struct Unmoved {
    Unmoved(CachedFsImpl& owner, std::vector<std::string> moved) : fs(owner), paths(std::move(moved)) {
      Lock lock(fs.mutex_);
      fs.unmoved_.insert(paths.begin(), paths.end());
    }
    ~Unmoved() {
      Lock lock(fs.mutex_);
      for (const std::string& path : paths) fs.unmoved_.erase(fs.unmoved_.find(path));
      fs.moved_.notify_all();
    }
    Unmoved(const Unmoved&) = delete;
    Unmoved& operator=(const Unmoved&) = delete;
    CachedFsImpl& fs;
    const std::vector<std::string> paths;
  };
  void Accepted();                          // mutex_ held: something was
  void SomethingToSend();                   // mutex_ held: the two threads may look again
  void SendInTime(const OpenFile& closed);  // mutex_ held: what it wrote waits no longer than that for others who write
  uint64_t NextOrder();                     // mutex_ held
  void EndUnmade(Node& node);               // mutex_ held
  // It is in the sandbox when this returns, or why it cannot be made there. No lock.
  Result<void> Settle(const NodePtr& node, const OpContext& ctx);
  Result<void> SettleName(NodeId parent, const std::string& name, const OpContext& ctx);
  Result<void> SettleAll(const std::vector<NodePtr>& nodes, const OpContext& ctx);
  // What was accepted of it and of what is below it is in the sandbox. No lock.
  Result<void> SendBelow(const NodePtr& node, const OpContext& ctx);
  bool IsBelow(const Node& node, const Node& top) const;  // mutex_ held; also the same
  void SendBehind(std::stop_token stop);                  // a thread's
  // mutex_ held: what was accepted, is made, and need not wait; retry_at: when more can be sent.
  std::vector<NodePtr> SendableBehind(TimePoint* retry_at) const;
  bool WaitsForBelow(const Node& directory) const;  // mutex_ held: something in it is to be sent first, and did not fail
  // Send of what was accepted, by whoever does not wait for this file.
  Result<void> SendLate(const NodePtr& node, const OpContext& ctx, SendWhat what = SendWhat::kAll);

  // --- making.cc: what was made here is made in the sandbox
  // Content up to this size goes with the file's making; longer one follows by itself.
  static constexpr int64_t kMostInRow = 256 << 10;
  struct Row;                             // of new objects, on their way
  void MakeBehind(std::stop_token stop);  // a thread's
  Row CollectRow(TimePoint* retry_at);    // mutex_ held: what can be made now; retry_at: when more can
  bool AddToRow(Row& row, std::unordered_map<NodeId, size_t>& in_row, const NodePtr& node, TimePoint* retry_at);  // mutex_ held; false: it is full
  void MakeRow(Row& row, std::stop_token stop);
  void Made(Row& row, size_t at, const transport::Attributes& attributes, const std::optional<Error>& refused);
  void NotMade(Row& row, size_t at, const Error& answered, std::stop_token stop);
  static void TriedToMake(Unmade& unmade, const Error& error);          // mutex_ held
  void TriedToMakeBelow(const NodePtr& directory, const Error& error);  // mutex_ held

  // --- conflicts.cc: somebody in the sandbox was there first
  static constexpr int kMostConflictNames = 100;
  // What was accepted of it is older than what somebody else wrote. No lock.
  Result<bool> ChangedThere(const NodePtr& node, const OpContext& ctx);
  static bool MayLoseTheirs(const Change& change);  // not by what goes behind whatever is there, nor by attributes
  // The sandbox's file is not what the unsent change was made to. Asks. No lock.
  Result<bool> IsNotItsBase(const NodePtr& node, const OpContext& ctx);
  // Something else has the name of what is unmade. True: it is no longer in the way. No lock.
  bool ResolveTaken(const NodePtr& node, const OpContext& ctx);
  bool TakeForOurs(const NodePtr& node, const transport::Attributes& there);
  bool RenameAside(const NodePtr& node);  // here, since it is nowhere else
  bool IsBegunThere(const NodePtr& node, const transport::Attributes& there, const transport::Name& name, const OpContext& ctx);
  // Beside what is in its way, as what a dead mount left would be sent. False: it waits. No lock.
  bool SendBeside(const NodePtr& node, const std::string& why);
  std::optional<UnsentEntry> BeginBeside(Node& node);  // no lock
  // What such a send begins and has done is noted by the living note, which has what is accepted meanwhile, too. No lock.
  Result<void> NoteBeside(Node& node, const UnsentRecord& said);
  // mutex_ held, and released: it has ended; `copy` is the name beside it, and what is there. False: something is still to be sent.
  bool EndBeside(Lock& lock, const NodePtr& node, const std::string& copy, const std::optional<transport::Attributes>& there);
  // The copy, if what was written was not made by its own name.
  std::optional<transport::Attributes> LookUpBeside(const NodePtr& node, const std::string& name);
  // What was not made is that one from now on. mutex_ held; false: it cannot be.
  bool GoOnAs(Node& node, const std::string& name, const transport::Attributes& there);
  void GiveUpName(Node& node);  // mutex_ held: of what was not made
  // Into the directory for what is unsent; the next FlushAll says so. No lock.
  void PutAside(const NodePtr& node, const std::string& why);

  transport::RemoteFs& remote_;
  const CachedFsOptions options_;
  MemoryBudget memory_;
  MemoryBudget held_memory_;  // of content that was asked for ahead; taken from memory_, too
  Spool spool_;
  const std::string store_session_;  // in the keys of what another mount could not rely on
  const TimePoint made_ = Clock::now();
  SingleFlight<NodePtr> lookups_;
  SingleFlight<bool> refreshes_;
  SingleFlight<std::shared_ptr<const DirectorySnapshot>> listings_;

  mutable std::mutex mutex_;  // level 2: after Content::write_mutex, before the leaves (flights, readers, budget, closer)
  Tree tree_;
  uint64_t stamp_ = 1;        // grows with each change made here
  uint64_t generation_ = 1;
  uint64_t lost_stamp_ = 0;   // answers to questions asked before are covered by no watch
  std::vector<Walk> walks_;                   // the last used first
  uint32_t last_walk_ = 0;
  Trust trust_in_walks_;
  std::set<NodeId> listed_ahead_;             // directories whose listings are on their way as guesses
  std::condition_variable_any ahead_arrived_;
  std::vector<ReadRun> runs_;
  uint32_t last_run_ = 0;
  Trust trust_in_runs_;
  std::set<NodeId> read_ahead_;               // files whose content is on its way as a guess
  std::deque<std::pair<NodeId, TimePoint>> held_;  // the oldest first; what was used or dropped is still named
  std::unordered_map<std::string, uint64_t> news_of_unknown_;  // identity -> stamp
  uint64_t unknown_stamp_ = 0;                // answers to questions asked before may be overtaken by news of anything unknown
  std::vector<KernelNews> kernel_news_;       // for kernel_, which is called without this lock
  std::mutex kernel_mutex_;                   // a leaf: held while the kernel's notifier is told
  std::function<void(const std::vector<KernelNews>&)> kernel_;
  std::unordered_map<FileHandle, std::shared_ptr<OpenFile>> files_;
  std::unordered_map<DirectoryHandle, std::shared_ptr<OpenDirectoryState>> directories_;
  uint64_t next_handle_ = 1;
  std::multiset<std::string> moving_;         // paths that a rename is moving now
  std::condition_variable_any moved_;
  std::set<NodeId> dirty_;                    // nodes that may have something unsent
  std::map<uint64_t, NodeId> unmade_;         // in the order in which they have to be made
  std::unordered_set<NodeId> made_here_;      // their inode numbers are made up, and stay so
  uint64_t last_order_ = 0;
  uint64_t behind_count_ = 0;                 // grows when something more may be sent
  TimePoint first_accepted_{}, last_accepted_{};  // of what no thread has begun to send
  bool plain_rows_ = false;                   // a large one was refused as a whole
  size_t single_rows_ = 0;                    // so many more: one hinders the others
  uint64_t row_failures_ = 0;                 // since one was answered
  const size_t most_unsent_;                  // objects; each has files of the spool open
  int wanted_ = 0;                            // so many wait for what is unmade
  std::condition_variable_any behind_;        // for the two threads
  std::condition_variable_any settled_;
  std::multiset<std::string> unmoved_;        // paths at and below which nothing is accepted now
  std::atomic<bool> unsynced_{false};         // something was accepted since the journal was on the disk for sure
  std::optional<Error> untold_;               // something was put aside, and no FlushAll has said so yet
  std::string last_error_;
  std::chrono::nanoseconds clock_offset_{0};  // sandbox minus here

  JobThreads closer_{1, JobThreads::AtEnd::kRun};  // last: their threads use the others
  JobThreads prefetcher_{kPrefetchThreads, JobThreads::AtEnd::kDrop};
  JobThreads senders_{kSenderThreads, JobThreads::AtEnd::kDrop};  // of files that are being written
  JobThreads stat_senders_{kStatThreads, JobThreads::AtEnd::kDrop};
  JobThreads committer_{1, JobThreads::AtEnd::kDrop};  // of the journal
  std::jthread maker_, sender_;                        // of writeback.cc
};

// The open that a handle stands for was not waited for, and had failed.
inline bool OpenHadFailed(const Error& error) {
  switch (error.errno_value) {
    case EACCES:
    case EBADF:
    case ENOENT: return error.kind == ErrorKind::kErrno;
    default: return false;
  }
}

template <typename Call>
auto CachedFsImpl::WithHandle(const NodePtr& node, bool write, const OpContext& ctx, Call call)
    -> decltype(call(transport::Handle{}, std::declval<const transport::Node&>())) {
  if (auto settled = Settle(node, ctx); !settled) return Forward(settled.error());
  auto handle = HandleToUse(node, write);
  if (!handle) return Forward(handle.error());
  auto result = AtNode(node, ctx, [&](const transport::Node& at) { return call(*handle, at); });
  if (result || *handle == 0 || !OpenHadFailed(result.error())) return result;
  {
    Lock lock(mutex_);
    if (node->deleted) return result;
    DropHandle(*node, *handle);
  }
  return AtNode(node, ctx, [&](const transport::Node& at) { return call(transport::Handle{0}, at); });
}

template <typename Call>
auto CachedFsImpl::AtObject(const NodePtr& node, const OpContext& ctx, Call call)
    -> decltype(call(transport::Handle{}, std::declval<const transport::Node&>())) {
  transport::Handle handle;
  {
    Lock lock(mutex_);
    handle = node->write_handle != 0 ? node->write_handle : node->read_handle;
  }
  auto result = AtNode(node, ctx, [&](const transport::Node& at) { return call(handle, at); });
  if (result || handle == 0 || !OpenHadFailed(result.error()) || result.error().errno_value == EACCES) return result;
  // The other side may have lost it.
  return AtNode(node, ctx, [&](const transport::Node& at) { return call(transport::Handle{0}, at); });
}

template <typename Call>
auto CachedFsImpl::AtNode(const NodePtr& node, const OpContext& ctx, Call call)
    -> decltype(call(std::declval<const transport::Node&>())) {
  for (size_t attempt = 0;; ++attempt) {
    if (auto settled = Settle(node, ctx); !settled) return Forward(settled.error());
    transport::Node address;
    {
      Lock lock(mutex_);
      address = tree_.Address(*node);
    }
    auto result = call(address);
    if (result || attempt >= kMostMoves || !MovedMeanwhile(node, address.path, result.error(), attempt, ctx)) return result;
  }
}

}  // namespace e2bfs::cache
