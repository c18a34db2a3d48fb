// What cache/ knows of one object: its names, its attributes, and what was changed here and not sent yet.
// Everything is guarded by CachedFsImpl's mutex (level 2 in cache/DESIGN.md) unless it says otherwise.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache/cached_fs.h"
#include "cache/change.h"
#include "cache/early_send.h"
#include "cache/extent_map.h"
#include "cache/memory_budget.h"
#include "cache/spool.h"

namespace e2bfs::cache {

// The end of freshness of what is watched: until it is told otherwise.
inline constexpr TimePoint kWatched = TimePoint::max();

struct Place {
  NodeId parent = 0;
  std::string name;
  friend auto operator<=>(const Place&, const Place&) = default;
};

// The names of one object: a file may have tens of thousands, so each step of this takes little time.
class Places {
 public:
  bool empty() const { return all_.empty(); }
  size_t size() const { return all_.size(); }
  bool contains(const Place& place) const { return all_.contains(place); }
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }
  // The one that its path is made of. Not where there is none.
  const Place& current() const { return *current_; }
  void Add(Place place) { current_ = all_.insert(std::move(place)).first; }  // and it is current
  void Remove(const Place& place);  // which is there; if it was current, another one is
  void UseNext();
  void Clear() { all_.clear(); }

 private:
  std::set<Place> all_;
  std::set<Place>::const_iterator current_;  // of none: not used
};

// A name in a directory, as far as it is known.
struct Child {
  NodeId node = 0;            // 0: not there (until fresh_until), or not known
  TimePoint fresh_until{};    // of the name; the node's attributes have their own
  uint64_t stamp = 0;         // of the last change made here; older answers say nothing about the name
  TimePoint replaced_until{};  // somebody else puts other files in its place
};

// What was accepted here, and has yet to be made in the sandbox (-o writeback). Its node is pinned, and all that it is in is made or unmade, too.
struct Unmade {
  UnsentMaking making;
  uint64_t order = 0;          // its place among all that is unmade: what it is in comes before it
  bool being_made = false;     // a question that makes it is on its way
  bool maybe_made = false;     // by one whose answer was lost
  bool overtaken = false;      // by news, which may be newer than the answer that is on its way
  bool wanted = false;         // somebody waits for it
  timespec sent_mtime{};       // what the last question set
  std::string wanted_name;     // where it has another one, since that was taken
  int names_tried = 0;         // instead of it
  uint64_t tries = 0;          // that failed
  uint64_t refusals = 0;       // of them: what time does not mend
  std::optional<Error> error;  // of the last of them
  TimePoint retry_at{};
};

struct Content {
  // Serialises writers of the spool and whoever drops spooled bytes. Level 1: taken before CachedFsImpl's mutex, held
  // over local disk I/O only.
  std::mutex write_mutex;

  std::shared_ptr<SpoolFile> spool;
  ExtentMap present;   // valid in the spool: what is unsent, and what was sent and is still the file's content
  Change current;
  Change sending;      // not empty while a store runs; clipped by truncates that happen meanwhile
  bool storing = false;
  std::atomic<TimePoint::rep> store_progress{0};  // when the store that runs last took bytes; no lock
  std::string saved;                   // where a copy of all that is unsent was put aside while it was being sent: that counts, and the note says nothing
  bool removing = false;               // the file's name is being removed: whoever finds the note and not the file need not make it again
  bool moving = false;                 // a store's success moves bytes in the spool; they are not to be read then
  UnsentBase base;                     // the file before what is unsent, as it was known then
  bool base_moves = false;             // by changes of ours that were on their way then
  int64_t since = 0;                   // when the first of it was written: seconds since 1970
  bool being_written = false;          // bytes go into the spool that are not recorded yet; under write_mutex too
  std::condition_variable_any stored;  // with CachedFsImpl's mutex
  bool accepted = false;               // what is in `current` was promised to be sent (-o writeback)
  bool sending_accepted = false;       // the same of `sending`
  const void* rest_of = nullptr;       // the open file by which a part of one write(2) was appended, if its rest has yet to come; only compared
  uint64_t order = 0;                  // of what is accepted
  uint64_t failures = 0;               // since something was sent
  TimePoint retry_at{};                // after a failure: not sent behind anybody's back before
  TimePoint send_by = TimePoint::max();  // what is accepted, although somebody writes on: who wrote of it has closed
  bool untried = false;                // changed since the last store began
  bool fresh = false;                  // made by this mount, nothing but our stores was ever in it
  int64_t begun_bytes = 0;             // -o writeback, while it is `fresh`: at most so long is what stores of ours that did not end left there
  std::optional<UnsentRecord> beside;  // what a late send said last of what it began, until something is stored
  std::shared_ptr<EarlySend> early;    // sends the content while it is written; counted in the node's changes_in_flight
  std::shared_ptr<std::optional<bool>> stat_send;  // a send that a stat waits for, until it has ended: whether it succeeded
  std::weak_ptr<EarlySend> given_up;   // the last one that ended without a store, until nothing of it can arrive any more
  bool not_early = false;              // it was changed where it had been sent already: not before the next store
  std::optional<Error> last_error;     // of the last store, if it failed
  std::optional<Error> unreported;     // failed when no handle was open that could be told
  // Bumped whenever bytes of the remote file may have changed, also by our own stores: read-ahead of older ones goes.
  uint64_t base_epoch = 1;

  bool dirty() const { return !current.empty() || !sending.empty(); }
  int64_t unsent_bytes() const;
};

// Made when it is first changed: most nodes are never opened.
class LazyContent {
 public:
  const Content& operator*() const { return content_ ? *content_ : Nothing(); }
  const Content* operator->() const { return &**this; }
  Content& operator*() {
    if (!content_) content_ = std::make_unique<Content>();
    return *content_;
  }
  Content* operator->() { return &**this; }
  bool exists() const { return content_ != nullptr; }

 private:
  static const Content& Nothing();
  std::unique_ptr<Content> content_;
};

// The whole content of a small file, asked for ahead: the file's, as long as the node has it. It goes with any news of the file and any change here.
struct HeldContent {
  HeldContent(std::string content, MemoryBudget& own, MemoryBudget& all, int64_t charged)
      : bytes(std::move(content)), own_memory(own), all_memory(all), charge(charged) {}
  ~HeldContent() {
    own_memory.Give(charge);
    all_memory.Give(charge);
  }
  HeldContent(const HeldContent&) = delete;
  HeldContent& operator=(const HeldContent&) = delete;

  transport::Attributes version;
  const std::string bytes;
  uint32_t run = 0;       // whose guess it was, until it is used; 0: it was wanted
  int64_t served = 0;     // bytes; once it was all, the kernel has it
  TimePoint since{};      // it is here
  TimePoint asked{};
  MemoryBudget& own_memory;
  MemoryBudget& all_memory;
  const int64_t charge;  // of both
};

// A time of the sandbox, and what is shown for it: when the change was accepted here.
struct TimeShown {
  timespec there{}, here{};
};

struct Node {
  NodeId id = 0;
  transport::FileId file_id;
  uint64_t references = 0;   // the kernel's
  uint32_t pins = 0;         // open files and directories, operations
  // Names that lead here. Never empty but for the root: the last one stays when the name is gone, with linked = false.
  Places places;
  bool linked = true;
  bool deleted = false;      // removed here, and no other name is known: it cannot be reached by name any more
  bool linked_elsewhere = false;  // with `deleted`: the sandbox has other names of it, which nobody here knows (the service tier)
  // What is unsent has nobody left to see it.
  bool is_gone() const { return deleted && !linked_elsewhere; }
  std::unique_ptr<Unmade> unmade;  // null: it is in the sandbox, or was
  bool has_unsent() const { return unmade || content->dirty(); }

  transport::Attributes attributes;
  std::optional<TimeShown> ctime_shown;
  TimePoint fresh_until{};
  uint64_t stamp = 0;        // of the last change made here
  uint32_t changes_in_flight = 0;
  uint64_t content_generation = 1;
  uint64_t opened_generation = 0;   // content_generation at the last open: the kernel may have pages of it
  TimePoint xattr_names_until{};    // attributes.xattr_names are right until then; they are not part of attributes' own freshness
  std::optional<std::string> link_text;
  TimePoint link_fresh_until{};

  // Directories.
  bool ours = false;                // made by this mount, and nothing in it was seen to be made, moved or removed by anybody else
  bool watched = false;             // changes of it, and in it, are told: what is known needs no asking (fresh_until is kWatched)
  TimePoint names_move_until{};     // somebody else changes names in it: what was found by one is not for the kernel to keep
  uint64_t watched_stamp = 0;       // answers to questions asked before were not covered by the watch
  uint64_t unwatched_stamp = 0;     // answers to questions asked before may be older than a time without a watch
  std::map<std::string, Child> children;
  uint32_t linked_children = 0;     // children with a node
  uint32_t unmade_directories = 0;  // of them: links that the sandbox does not count yet
  TimePoint listed_until{};         // until then what is not in `children` does not exist
  uint64_t forgotten_stamp = 0;     // the newest stamp of a child entry that was dropped
  uint32_t guess = 0;               // its listing was asked for ahead by that walk, and nobody used it yet
  TimePoint read_at{};              // a program read its names
  TimePoint walked_at{};            // one of its directories was listed that was not known
  uint32_t walked = 0;              // so many, one soon after the other
  uint64_t parked_children = 0;     // nodes whose only place is here but that the name no longer leads to

  // Regular files.
  LazyContent content;
  std::shared_ptr<HeldContent> held;
  uint32_t open_files = 0, open_writers = 0;
  bool writing_ended = false;  // the other side was told so of write_handle (RemoteFs::EndWriting)
  transport::Handle read_handle = 0, write_handle = 0;  // may be the same; of the other side, opened when needed

  bool is_directory() const { return attributes.type == transport::FileType::kDirectory; }
  bool is_regular() const { return attributes.type == transport::FileType::kRegular; }
  int64_t size() const { return content->current.SizeAfter(content->sending.SizeAfter(attributes.size)); }
  // Bytes from here on are not the remote file's any more.
  int64_t base_limit() const;
};
using NodePtr = std::shared_ptr<Node>;

}  // namespace e2bfs::cache
