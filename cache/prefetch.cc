// Prefetch: what is asked for ahead of a program.
#include "cache/prefetch.h"

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
constexpr uint32_t kDeep = 250;
// A question's directories by name, and names looked at for them.
constexpr size_t kMostPathBytes = 20 << 10;
constexpr size_t kMostLookedAt = 50'000;
constexpr size_t kMostUnknown = 4096;

struct WalkSize {
  size_t directories, entries;
};
// By Walk::level. The first costs little more than what is wanted; the last is some MB at most.
constexpr WalkSize kWalkSizes[] = {{1, 0}, {17, 2'000}, {4'096, 20'000}};

}  // namespace

bool ComesBefore(std::string_view path, std::string_view other) {
  // What is in a directory comes before its neighbours, whatever their names.
  auto rank = [](char c) { return c == '/' ? 0 : 1 + static_cast<unsigned char>(c); };
  return std::lexicographical_compare(path.begin(), path.end(), other.begin(), other.end(), [&](char a, char b) { return rank(a) < rank(b); });
}

void CachedFsImpl::JudgeWalk(Walk& walk, const std::string* reached) {
  int64_t passed = 0, used = 0;
  std::erase_if(walk.guessed, [&](const std::pair<std::string, NodeId>& guess) {
    const NodePtr node = tree_.Find(guess.second);
    const bool unused = node && node->guess == walk.number;
    const bool over = !unused || !reached || ComesBefore(guess.first, *reached);
    passed += over;
    used += !unused;
    return over;
  });
  if (passed == 0) return;
  const bool came_true = trust_in_walks_.Judge(passed, used);
  walk.level = came_true ? 2 : walk.level - 1;
  if (!came_true) walk.in_order = false;
  walk.alone = 0;
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
  if (options_.attribute_ttl.count() == 0 || directory.id == kRoot || directory.places.empty() || !directory.file_id.known()) return std::nullopt;
  const NodePtr parent = tree_.Find(directory.places.current().parent);
  const TimePoint now = Clock::now();
  if (!parent || !parent->file_id.known() || parent->listed_until <= now) return std::nullopt;
  Walk* walk = WalkAbove(*parent);
  if (!walk) {
    if (now - parent->walked_at > kSoon) parent->walked = 0;
    parent->walked_at = now;
    const bool goes_on = why == ListedFor::kReading && now - parent->read_at <= kSoon;
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
  std::string path = tree_.PathOf(directory);
  if (const std::string above = tree_.PathOf(*top); !above.empty()) path.erase(0, above.size() + 1);
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

void CachedFsImpl::AbsorbAhead(const WalkQuestion& ahead, const std::vector<transport::DeepListing>& listings, uint64_t asked_stamp, TimePoint asked) {
  static Counter& fetched = Metrics::Get("cache.prefetched_listings_count");
  const TimePoint now = Clock::now();
  int64_t taken = 0;
  const auto walk = std::find_if(walks_.begin(), walks_.end(), [&](const Walk& each) { return each.number == ahead.walk; });
  for (const transport::DeepListing& each : listings) {
    if (each.path == ahead.wanted) continue;
    const NodePtr node = FindBelow(ahead.top, each.path, asked_stamp);
    const transport::FileId& id = each.listing.directory.id;
    // Of another object, or of one that was listed meanwhile; and what was said of it while nobody knew it here is newer.
    if (!node || !node->is_directory() || !id.known() || node->file_id != id || node->listed_until > now || IsOvertaken(id, asked_stamp)) continue;
    AbsorbListing(*node, each.listing, asked_stamp, asked);
    if (node->listed_until <= now) continue;
    node->guess = ahead.walk;
    ++taken;
    if (walk != walks_.end()) walk->guessed.emplace_back(each.path, node->id);
  }
  fetched.Add(taken);
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
