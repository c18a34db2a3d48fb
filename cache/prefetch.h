// What is asked for ahead of a program: listings of a walk, and content of small files. Guarded by CachedFsImpl's mutex; prefetch.cc decides, and says how.
//
// A walk begins when a program that has just read a directory reads one in it which has to be listed. A few of its neighbours come with that listing, by the same
// question. If the program uses them, the next question brings all that it comes to, to some thousand directories, and their directories, too, once
// it has gone deeper. What is not used makes the next questions smaller, and the next walks begin later.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/node.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

// Why a directory is listed: a program reads its names, looks at its attributes (which were old), or looks for some names in it.
enum class ListedFor { kReading, kAttributes, kLookups };

// Whether guesses come true. Each failure doubles what has to be seen before the next one; that is forgotten with time.
class Trust {
 public:
  // Of what was fetched, and would have been used by now. Whether it came true.
  bool Judge(int64_t fetched, int64_t used) {
    if (fetched == 0) return true;
    const bool came_true = 2 * used >= fetched;
    failures_ = came_true ? 0 : std::min(failures() + 1, kMostFailures);
    if (!came_true) failed_at_ = Clock::now();
    return came_true;
  }
  int64_t Patience(int64_t usual) const { return usual << failures(); }

 private:
  static constexpr int kMostFailures = 8;
  static constexpr auto kForgottenAfter = std::chrono::seconds(30);  // one failure
  int failures() const {
    if (failures_ == 0) return 0;
    return static_cast<int>(std::max<int64_t>(0, failures_ - (Clock::now() - failed_at_) / kForgottenAfter));
  }
  int failures_ = 0;
  TimePoint failed_at_{};
};

// Whether a program that goes through a tree meets the one path before the other.
bool ComesBefore(std::string_view path, std::string_view other);

// One program's way through a tree, as far as it looks like one.
struct Walk {
  uint32_t number = 0;
  NodeId top = 0;
  TimePoint last{};
  bool descends = false;      // it went below the directories of the top
  bool in_order = true;       // and always to the first one that it had not read
  bool chose = false;         // where there were others
  int level = 1;              // of the next question's size; 0: nothing is asked ahead
  bool asked = false;         // something was asked ahead, or would have been if there was more
  int64_t alone = 0;          // listings since it was 0
  int64_t fetched = 0, used = 0, passed = 0;  // guesses since the last judgement; passed by, the used ones included
  std::vector<std::pair<std::string, NodeId>> guessed;  // below the top; not judged yet
};

// A program that reads one small file after the other: in one directory, or on its way through a tree.
struct ReadRun {
  uint32_t number = 0;
  NodeId top = 0;
  TimePoint last{};
  int level = 0;             // of the next question's size; 0: nothing is asked ahead
  int64_t alone = 0;         // files read since the last question, or since the level was 0
  int64_t fetched = 0, used = 0, passed = 0;  // guesses of the last question; passed by without being used
  std::map<NodeId, std::string> guessed;  // not used yet: paths below the top
};

struct FilesQuestion {
  std::vector<transport::KnownFiles> files;
  std::vector<std::vector<NodePtr>> nodes;         // theirs; the first is wanted
  std::vector<std::vector<std::string>> below_top;
  std::vector<NodeId> asked;
  uint32_t run = 0;
  uint64_t asked_stamp = 0;
};

struct WalkQuestion {
  NodePtr top;
  std::string wanted;                  // its path below the top
  transport::DeepQuestion question;
  uint32_t walk = 0;
  std::vector<NodeId> asked;           // those of question.directories but the wanted
};

}  // namespace e2bfs::cache
