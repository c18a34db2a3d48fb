// Prefetch: what is asked for ahead of a program.
#include "cache/prefetch.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "cache/cached_fs_impl.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

// A program reads a directory and goes on to those in it; a person takes longer.
constexpr auto kSoon = std::chrono::seconds(1);
constexpr auto kWalkPause = std::chrono::seconds(30);  // it may work on what it finds
constexpr size_t kMostWalks = 8;
constexpr int64_t kLookupsBefore = 2;    // directories listed for lookups in them, before more is guessed
constexpr int64_t kAloneBefore = 8;      // listings after guesses that failed
constexpr int64_t kFewListings = 4;
constexpr size_t kMostOpenGuesses = 64;  // not used and not passed by
constexpr uint32_t kDeep = 250;
// A question's directories by name, and names looked at for them.
constexpr size_t kMostPathBytes = 20 << 10;
constexpr size_t kMostLookedAt = 50'000;
constexpr size_t kMostInVain = 500;  // of them, as long as none of them is good for it
constexpr size_t kMostUnknown = 4096;
constexpr int64_t kAbsorbedAtOnce = 64;

struct WalkSize {
  size_t directories, entries;
};
// By Walk::level. The first costs little more than what is wanted; the last is some MB at most.
constexpr WalkSize kWalkSizes[] = {{1, 0}, {17, 2'000}, {4'096, 20'000}};

// Files of up to so many bytes are small. The kernel asks for one with one or two requests.
constexpr int64_t kSmallFile = 128 << 10;
constexpr size_t kMostRuns = 8;
constexpr int64_t kFilesAloneBefore = 16;  // small files read after guesses that failed; the first guess is made at the second file
constexpr int64_t kHeldOverhead = 512;

struct RunSize {
  size_t files;
  int64_t bytes;
};
// By ReadRun::level.
constexpr RunSize kRunSizes[] = {{1, 0}, {33, 256 << 10}, {257, 1 << 20}, {513, 2 << 20}};
constexpr int kMostRunLevel = 3;

std::string PathBelow(std::string path, const std::string& above) {
  if (!above.empty()) path.erase(0, above.size() + 1);
  return path;
}

}  // namespace

bool ComesBefore(std::string_view path, std::string_view other) {
  // What is in a directory comes before its neighbours, whatever their names.
  auto rank = [](char c) { return c == '/' ? 0 : 1 + static_cast<unsigned char>(c); };
  return std::lexicographical_compare(path.begin(), path.end(), other.begin(), other.end(), [&](char a, char b) { return rank(a) < rank(b); });
}

void CachedFsImpl::JudgeWalk(Walk& walk, const std::string* reached) {
  const TimePoint now = Clock::now();
  int64_t passed = 0, used = 0;
  std::erase_if(walk.guessed, [&](const std::pair<std::string, NodeId>& guess) {
    const NodePtr node = tree_.Find(guess.second);
    const bool unused = node && node->guess == walk.number;
    if (!node || (unused && node->listed_until <= now)) return true;  // it cannot be used any more
    const bool over = !unused || !reached || ComesBefore(guess.first, *reached);
    passed += over;
    used += !unused;
    return over;
  });
  walk.used += used;
  walk.passed += passed;
  if (walk.passed == 0) return;
  const bool came_true = 2 * walk.used >= walk.passed;
  if (reached && came_true && walk.used < std::min(walk.fetched, kFewListings)) return;  // too few to tell
  trust_in_walks_.Judge(walk.passed, walk.used);
  walk.level = came_true ? 2 : std::max(walk.level - 1, 0);
  if (!came_true) walk.in_order = false;
  walk.used = walk.passed = walk.fetched = walk.alone = 0;
}

Walk* CachedFsImpl::WalkAbove(const Node& directory) {
  const TimePoint now = Clock::now();
  std::erase_if(walks_, [&](Walk& walk) {
    const bool over = now - walk.last > kWalkPause || !tree_.Find(walk.top);
    if (over) JudgeWalk(walk, nullptr);
    return over;
  });
  NodePtr at = tree_.Find(directory.id);
  for (int depth = 0; at && depth < 4096; ++depth) {
    for (Walk& walk : walks_) {
      if (walk.top == at->id) return &walk;
    }
    if (at->id == kRoot || at->places.empty()) break;
    at = tree_.Find(at->places.current().parent);
  }
  return nullptr;
}

CachedFsImpl::ListedAhead::ListedAhead(CachedFsImpl& owner, WalkQuestion asked) : fs(owner), ahead(std::move(asked)) {
  fs.listed_ahead_.insert(ahead.asked.begin(), ahead.asked.end());
  ++ahead.top->pins;
}

CachedFsImpl::ListedAhead::~ListedAhead() {
  Lock lock(fs.mutex_);
  --ahead.top->pins;
  for (const NodeId id : ahead.asked) fs.listed_ahead_.erase(id);
  fs.ahead_arrived_.notify_all();
}

std::optional<WalkQuestion> CachedFsImpl::AskAhead(Node& directory, ListedFor why) {
  if (!options_.prefetch || options_.attribute_ttl.count() == 0 || directory.id == kRoot || directory.places.empty() || !directory.file_id.known()) return std::nullopt;
  const NodePtr parent = tree_.Find(directory.places.current().parent);
  const TimePoint now = Clock::now();
  if (!parent || !parent->file_id.known() || parent->listed_until <= now) return std::nullopt;
  if ((directory.attributes.access & 5) != 5 || directory.attributes.device != parent->attributes.device) return std::nullopt;
  Walk* walk = WalkAbove(*parent);
  if (!walk) {
    if (now - parent->walked_at > kSoon) parent->walked = 0;
    parent->walked_at = now;
    const bool goes_on = why != ListedFor::kLookups && now - parent->read_at <= kSoon;
    const int64_t before = (goes_on ? 0 : kLookupsBefore) + trust_in_walks_.Patience(1) - 1;
    if (parent->walked++ < before) return std::nullopt;
    if (walks_.size() == kMostWalks) {
      const auto oldest = std::min_element(walks_.begin(), walks_.end(), [](const Walk& a, const Walk& b) { return a.last < b.last; });
      JudgeWalk(*oldest, nullptr);
      walks_.erase(oldest);
    }
    walk = &walks_.emplace_back();
    walk->number = ++last_walk_;
    walk->top = parent->id;
  }
  walk->last = now;
  const NodePtr top = tree_.Find(walk->top);
  const std::string path = PathBelow(tree_.PathOf(directory), tree_.PathOf(*top));
  const bool again = !walk->guessed.empty() || walk->asked;
  JudgeWalk(*walk, &path);
  if (top != parent) walk->descends = true;
  // Whoever takes the first of several at each step, and goes down at once, means all of it.
  size_t others = 0;
  walk->in_order = walk->in_order && IsNextIn(*parent, directory, &others);
  walk->chose = walk->chose || others > 0;
  const bool trusted = trust_in_walks_.Patience(1) == 1;
  if (again && walk->level == 1 && walk->descends && walk->in_order && walk->chose && trusted) walk->level = 2;
  walk->asked = true;
  if (walk->guessed.size() >= kMostOpenGuesses) return std::nullopt;  // what was asked for has yet to prove itself
  if (walk->level == 0) {
    if (++walk->alone < trust_in_walks_.Patience(kAloneBefore)) return std::nullopt;
    walk->level = 1;
  }
  WalkQuestion ahead;
  ahead.top = top;
  ahead.wanted = path;
  ahead.walk = walk->number;
  ahead.question.depth = walk->descends ? kDeep : 0;
  const WalkSize& size = kWalkSizes[walk->level];
  ahead.question.max_directories = size.directories;
  ahead.question.max_entries = size.entries;
  AddFrontier(*ahead.top, directory, walk->descends, ahead);
  // Nothing but itself: List does that.
  if (ahead.question.directories.size() < 2 && ahead.question.depth == 0) return std::nullopt;
  return ahead;
}

// Whether there is no directory in `in` that comes before this one and has to be listed, too. `others`: how many come after it, as far as that matters.
bool CachedFsImpl::IsNextIn(const Node& in, const Node& directory, size_t* others) const {
  const TimePoint now = Clock::now();
  bool before = true;
  size_t looked_at = 0;
  for (const auto& [name, child] : in.children) {
    if (child.node == directory.id) {
      before = false;
      continue;
    }
    if (++looked_at > kMostLookedAt || *others > 0) break;
    const NodePtr node = child.node != 0 ? tree_.Find(child.node) : nullptr;
    if (!node || !node->is_directory()) continue;
    if (before && node->listed_until <= now) return false;
    if (!before) ++*others;
  }
  return true;
}

// The directory, and those that come after it below the top and have to be listed, as far as they are known.
void CachedFsImpl::AddFrontier(const Node& top, const Node& first, bool descends, WalkQuestion& ahead) const {
  const TimePoint now = Clock::now();
  std::string path = ahead.wanted;
  ahead.question.directories = {path};
  size_t bytes = path.size(), looked_at = 0;
  auto full = [&] {
    return ahead.question.directories.size() >= ahead.question.max_directories || bytes >= kMostPathBytes || looked_at >= kMostLookedAt;
  };
  // The directories of `in`, whose path is `prefix`, after that name.
  std::function<void(const Node&, const std::string&, const std::string*, int)> add = [&](const Node& in, const std::string& prefix, const std::string* after, int depth) {
    for (auto at = after ? in.children.upper_bound(*after) : in.children.begin(); at != in.children.end() && !full(); ++at) {
      ++looked_at;
      const NodePtr child = at->second.node != 0 && at->second.fresh_until > now ? tree_.Find(at->second.node) : nullptr;
      if (!child || !child->is_directory() || child->attributes.device != top.attributes.device || (child->attributes.access & 5) != 5) continue;
      const std::string below = prefix.empty() ? at->first : prefix + "/" + at->first;
      if (child->listed_until > now) {
        if (descends && depth < int{kDeep}) add(*child, below, nullptr, depth + 1);
      } else if (child->changes_in_flight == 0 && !listed_ahead_.contains(child->id)) {
        ahead.question.directories.push_back(below);
        ahead.asked.push_back(child->id);
        bytes += below.size() + 2;
      }
    }
  };
  NodePtr at = tree_.Find(first.id);
  while (at && at->id != top.id && !at->places.empty() && !full()) {
    const std::string name = at->places.current().name;
    at = tree_.Find(at->places.current().parent);
    const size_t slash = path.rfind('/');
    path = slash == std::string::npos ? std::string() : path.substr(0, slash);
    if (at) add(*at, path, &name, 0);
  }
}

// Null where a name on the way was changed since.
NodePtr CachedFsImpl::FindBelow(const NodePtr& top, const std::string& path, uint64_t asked_stamp) const {
  NodePtr at = top;
  for (size_t from = 0; at && from < path.size();) {
    const size_t slash = std::min(path.find('/', from), path.size());
    const Child* child = Tree::FindChild(*at, path.substr(from, slash - from));
    if (!child || child->node == 0 || child->stamp > asked_stamp) return nullptr;
    at = tree_.Find(child->node);
    from = slash + 1;
  }
  return at;
}

void CachedFsImpl::AbsorbAhead(Lock& lock, const WalkQuestion& ahead, const std::vector<transport::DeepListing>& listings, uint64_t asked_stamp, TimePoint asked) {
  static Counter& fetched = Metrics::Get("cache.prefetched_listings_count");
  int64_t taken = 0, at_once = 0;
  for (const transport::DeepListing& each : listings) {
    if (each.path == ahead.wanted) continue;
    if (++at_once % kAbsorbedAtOnce == 0) {  // others have something to do, too
      lock.unlock();
      lock.lock();
    }
    const TimePoint now = Clock::now();
    const NodePtr node = FindBelow(ahead.top, each.path, asked_stamp);
    const transport::FileId& id = each.listing.directory.id;
    // Of another object, or of one that was listed meanwhile; and what was said of it while nobody knew it here is newer.
    if (!node || !node->is_directory() || !id.known() || node->file_id != id || node->listed_until > now || IsOvertaken(id, asked_stamp)) continue;
    AbsorbListing(*node, each.listing, asked_stamp, asked);
    if (node->listed_until <= now) continue;
    node->guess = ahead.walk;
    ++taken;
    for (Walk& walk : walks_) {
      if (walk.number != ahead.walk) continue;
      ++walk.fetched;
      walk.guessed.emplace_back(each.path, node->id);
    }
  }
  fetched.Add(taken);
  if (2 * taken < static_cast<int64_t>(listings.size()) - 1) WalkFailed(ahead);  // outdated when they came
}

void CachedFsImpl::WalkFailed(const WalkQuestion& question) {
  trust_in_walks_.Judge(1, 0);
  for (Walk& walk : walks_) {
    if (walk.number == question.walk) walk.level = 0;
  }
}

void CachedFsImpl::ListingUsed(Node& directory) {
  static Counter& used = Metrics::Get("cache.prefetched_listings_used_count");
  const uint32_t number = std::exchange(directory.guess, 0);
  if (number == 0) return;
  used.Add();
  for (Walk& walk : walks_) {
    if (walk.number == number) walk.last = Clock::now();
  }
}

// --- content

bool CachedFsImpl::MayHold(const Node& node) const {
  if (!node.is_regular() || node.fresh_until != kWatched || !node.linked || node.deleted || node.places.size() != 1 || !node.file_id.known()) return false;
  if (node.changes_in_flight > 0 || node.open_writers > 0 || node.has_unsent() || node.content->storing) return false;
  const transport::Attributes& attributes = node.attributes;
  return attributes.size > 0 && attributes.size <= kSmallFile && !attributes.size_unreliable && !attributes.being_written && (attributes.access & 4) != 0;
}

bool CachedFsImpl::JudgeRun(ReadRun& run, const std::string* reached) {
  // What is passed by in another directory says nothing: several programs may read in a tree.
  const size_t name = reached ? reached->rfind('/') + 1 : 0;
  run.passed += static_cast<int64_t>(std::erase_if(run.guessed, [&](const auto& guess) {
    const NodePtr node = tree_.Find(guess.first);
    if (!reached || !node || !node->held) return true;
    const bool beside = guess.second.rfind('/') + 1 == name && guess.second.compare(0, name, *reached, 0, name) == 0;
    return beside && !ComesBefore(*reached, guess.second);
  }));
  if (run.fetched == 0) return true;
  const bool came_true = 2 * run.used >= run.fetched;
  const bool failed = !reached || 2 * run.passed > run.fetched || ++run.alone >= trust_in_runs_.Patience(kFilesAloneBefore);
  if (!came_true && !failed) return false;
  trust_in_runs_.Judge(run.fetched, run.used);
  run.level = came_true ? std::min(run.level + 1, kMostRunLevel) : 0;
  run.fetched = run.used = run.passed = run.alone = 0;
  return true;
}

std::optional<FilesQuestion> CachedFsImpl::AskFilesAhead(const NodePtr& node) {
  if (!options_.prefetch || !MayHold(*node)) return std::nullopt;
  const NodePtr parent = tree_.Find(node->places.current().parent);
  if (!parent) return std::nullopt;
  const TimePoint now = Clock::now();
  Walk* walk = WalkAbove(*parent);
  if (walk) walk->last = now;
  const NodeId top_id = walk ? walk->top : parent->id;
  std::erase_if(runs_, [&](ReadRun& run) {
    const bool over = now - run.last > kWalkPause || !tree_.Find(run.top);
    if (over) JudgeRun(run, nullptr);
    return over;
  });
  auto run = std::find_if(runs_.begin(), runs_.end(), [&](const ReadRun& each) { return each.top == top_id; });
  if (run == runs_.end()) {
    if (runs_.size() == kMostRuns) {
      const auto oldest = std::min_element(runs_.begin(), runs_.end(), [](const ReadRun& a, const ReadRun& b) { return a.last < b.last; });
      JudgeRun(*oldest, nullptr);
      runs_.erase(oldest);
    }
    run = runs_.insert(runs_.end(), ReadRun{});
    run->number = ++last_run_;
    run->top = top_id;
    // On its way through a tree a program that has just read a directory reads what is in it.
    const bool goes_on = walk && now - parent->read_at <= kSoon;
    run->alone = trust_in_runs_.Patience(kFilesAloneBefore) - trust_in_runs_.Patience(goes_on ? 1 : 2);
  }
  run->last = now;
  const NodePtr top = tree_.Find(top_id);
  const std::string path = PathBelow(tree_.PathOf(*node), tree_.PathOf(*top));
  if (!JudgeRun(*run, &path)) return std::nullopt;
  if (run->level == 0) {
    if (++run->alone < trust_in_runs_.Patience(kFilesAloneBefore)) return std::nullopt;
    run->level = 1;
  }
  FilesQuestion question;
  question.run = run->number;
  question.asked_stamp = stamp_;
  AddFiles(*top, node, kRunSizes[run->level].files, std::min(kRunSizes[run->level].bytes, held_memory_.limit_bytes() / 2), question);
  if (question.asked.size() < 2) return std::nullopt;
  read_ahead_.insert(question.asked.begin(), question.asked.end());
  return question;
}

// The file, and those that come after it below the top, as far as they are known.
void CachedFsImpl::AddFiles(const Node& top, const NodePtr& first, size_t most_files, int64_t most_bytes, FilesQuestion& question) const {
  const TimePoint now = Clock::now();
  size_t request_bytes = 0, looked_at = 0;
  int64_t bytes = 0;
  const Node* last_directory = nullptr;
  auto add_file = [&](const Node& in, const std::string& name, const NodePtr& node, const std::string& below) {
    if (last_directory != &in) {
      last_directory = &in;
      question.files.push_back({tree_.Address(in), {}});
      question.nodes.emplace_back();
      question.below_top.emplace_back();
      request_bytes += question.files.back().directory.path.size() + 50;
    }
    question.files.back().files.push_back({name, node->attributes});
    question.nodes.back().push_back(node);
    question.below_top.back().push_back(below);
    question.asked.push_back(node->id);
    bytes += node->attributes.size;
    request_bytes += name.size() + 6;
  };
  auto full = [&] {
    const size_t most_looked_at = question.asked.size() < 2 ? kMostInVain : kMostLookedAt;
    return question.asked.size() >= most_files || bytes >= most_bytes || request_bytes >= kMostPathBytes || looked_at >= most_looked_at;
  };
  std::function<void(const Node&, const std::string&, const std::string*, bool, int)> add = [&](const Node& in, const std::string& prefix, const std::string* after,
                                                                                               bool descends, int depth) {
    for (auto at = after ? in.children.upper_bound(*after) : in.children.begin(); at != in.children.end() && !full(); ++at) {
      ++looked_at;
      const NodePtr child = at->second.node != 0 && at->second.fresh_until > now ? tree_.Find(at->second.node) : nullptr;
      if (!child) continue;
      const std::string below = prefix.empty() ? at->first : prefix + "/" + at->first;
      if (child->is_directory()) {
        if (descends && depth < int{kDeep} && child->listed_until > now) add(*child, below, nullptr, true, depth + 1);
      } else if (MayHold(*child) && !child->held && child->open_files == 0 && child->opened_generation != child->content_generation &&
                 !read_ahead_.contains(child->id) && bytes + child->attributes.size <= most_bytes) {
        add_file(in, at->first, child, below);
      }
    }
  };
  std::string path = PathBelow(tree_.PathOf(*first), tree_.PathOf(top));
  NodePtr at = tree_.Find(first->places.current().parent);
  add_file(*at, first->places.current().name, first, path);
  std::string name = first->places.current().name;
  const bool descends = at->id != top.id || std::any_of(walks_.begin(), walks_.end(), [&](const Walk& walk) { return walk.top == top.id; });
  while (at && !full()) {
    const size_t slash = path.rfind('/');
    path = slash == std::string::npos ? std::string() : path.substr(0, slash);
    add(*at, path, &name, descends, 0);
    if (at->id == top.id || at->places.empty()) break;
    name = at->places.current().name;
    at = tree_.Find(at->places.current().parent);
  }
}

CachedFsImpl::FilesAhead::~FilesAhead() {
  Lock lock(fs.mutex_);
  for (const NodeId id : question.asked) fs.read_ahead_.erase(id);
  fs.ahead_arrived_.notify_all();
}

void CachedFsImpl::FetchFiles(const FilesQuestion& question, const OpContext& ctx) {
  static Counter& fetched_files = Metrics::Get("cache.prefetched_files_count");
  static Counter& fetched_bytes = Metrics::Get("cache.prefetched_files_bytes");
  const FilesAhead ahead{*this, question};
  const TimePoint asked = Clock::now();
  auto contents = remote_.ReadFiles(question.files, ctx);
  Lock lock(mutex_);
  const auto run = std::find_if(runs_.begin(), runs_.end(), [&](const ReadRun& each) { return each.number == question.run; });
  if (!contents) {
    trust_in_runs_.Judge(1, 0);
    if (run != runs_.end()) run->level = run->alone = 0;
    if (run != runs_.end()) run->fetched = run->used = run->passed = 0;
  } else {
    for (transport::FileContent& content : *contents) {
      const NodePtr& node = question.nodes[content.directory][content.file];
      const bool wanted = content.directory == 0 && content.file == 0;
      // What was asked before a change, or while nobody would have told of one, says nothing.
      const NodePtr directory = node->places.empty() ? nullptr : tree_.Find(node->places.current().parent);
      const bool told = directory && directory->watched && question.asked_stamp >= directory->watched_stamp;
      if (tree_.Find(node->id) != node || !told || !MayHold(*node) || question.asked_stamp < node->stamp || node->held) continue;
      if (!transport::IsSameVersion(content.attributes, node->attributes) || content.attributes.being_written) continue;
      if (static_cast<int64_t>(content.bytes.size()) != node->attributes.size) continue;
      if (!wanted) {
        fetched_files.Add();
        fetched_bytes.Add(node->attributes.size);
        if (run != runs_.end() && ++run->fetched > 0) run->guessed[node->id] = question.below_top[content.directory][content.file];
      }
      Hold(node, std::move(content), wanted ? 0 : question.run, asked);
    }
  }
}

void CachedFsImpl::Hold(const NodePtr& node, transport::FileContent content, uint32_t run, TimePoint asked) {
  const int64_t charge = static_cast<int64_t>(content.bytes.size()) + kHeldOverhead;
  auto take = [&] {
    if (!held_memory_.TryTake(charge)) return false;
    if (memory_.TryTake(charge)) return true;
    held_memory_.Give(charge);
    return false;
  };
  bool taken = take();
  while (!taken && !held_.empty() && held_.front().second < asked) {  // not what came with it, and is wanted before it
    const auto [id, since] = held_.front();
    held_.pop_front();
    const NodePtr old = tree_.Find(id);
    if (old && old->held && old->held->since == since) old->held.reset();
    taken = take();
  }
  if (!taken) return;
  const TimePoint now = Clock::now();
  auto held = std::make_shared<HeldContent>(std::move(content.bytes), held_memory_, memory_, charge);
  held->version = std::move(content.attributes);
  held->run = run;
  held->since = now;
  held->asked = asked;
  node->held = std::move(held);
  held_.emplace_back(node->id, now);
}

void CachedFsImpl::DropOldHeld(TimePoint before) {
  while (!held_.empty() && held_.front().second <= before) {
    const auto [id, since] = held_.front();
    held_.pop_front();
    const NodePtr old = tree_.Find(id);
    if (old && old->held && old->held->since == since) old->held.reset();
  }
}

std::shared_ptr<const HeldContent> CachedFsImpl::UseHeld(Node& node, int64_t bytes) {
  static Counter& used_files = Metrics::Get("cache.prefetched_files_used_count");
  static Counter& used_bytes = Metrics::Get("cache.prefetched_files_used_bytes");
  if (!node.held || !MayHold(node) || !transport::IsSameVersion(node.held->version, node.attributes)) return nullptr;
  std::shared_ptr<HeldContent> held = node.held;
  if (const uint32_t number = std::exchange(held->run, 0); number != 0) {
    used_files.Add();
    used_bytes.Add(node.attributes.size);
    for (ReadRun& run : runs_) {
      if (run.number != number) continue;
      run.guessed.erase(node.id);
      ++run.used;
      run.last = Clock::now();
    }
  }
  node.attributes.atime = held->version.atime;
  held->served += bytes;
  if (held->served >= node.attributes.size) node.held.reset();
  return held;
}

void CachedFsImpl::NoteUnknown(const transport::FileId& id) {
  ++stamp_;
  if (news_of_unknown_.size() >= kMostUnknown) {
    news_of_unknown_.clear();
    unknown_stamp_ = stamp_;
  }
  news_of_unknown_[id.value] = stamp_;
}

bool CachedFsImpl::IsOvertaken(const transport::FileId& id, uint64_t asked_stamp) const {
  const auto found = news_of_unknown_.find(id.value);
  return asked_stamp < unknown_stamp_ || (found != news_of_unknown_.end() && asked_stamp < found->second);
}

}  // namespace e2bfs::cache
