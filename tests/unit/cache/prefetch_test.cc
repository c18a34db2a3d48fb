// What is asked for ahead of a program: recognised, bounded, never older than what is known, and given up when it was wrong.
#include <gmock/gmock.h>

#include "cache/prefetch.h"
#include "tests/unit/cache/cache_fixture.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::RemoteFault;

class WalkTest : public CacheFixture {
 protected:
  WalkTest() { UseWatched(); }
  void UseWatched(bool lists_deep = true) {
    testing::MemoryRemoteFsOptions options;
    options.watches = true;
    options.lists_deep = lists_deep;
    UseRemote(options);
  }
  void MakeTree(const std::string& top, const std::vector<int>& shape, size_t level = 0) {
    ASSERT_TRUE(remote_->InsideMakeDirectory(top));
    if (level == shape.size()) {
      ASSERT_TRUE(remote_->InsideWrite(top + "/file", top));
      return;
    }
    for (int i = 0; i < shape[level]; ++i) MakeTree(top + "/d" + std::to_string(100 + i), shape, level + 1);
  }
  // As find does: each directory before what is in it. Stops after so many directories.
  int Walk(const std::string& path, int most = INT32_MAX) {
    if (most <= 0) return 0;
    int seen = 1;
    for (const std::string& name : List(Find(path))) {
      if (name.starts_with("d")) seen += Walk(path + "/" + name, most - seen);
    }
    return seen;
  }
  void StallNextAnswer() {
    RemoteFault fault;
    fault.function = "ListDeep";
    fault.action = RemoteFault::kStallAfter;
    faulty_->Add(fault);
  }
  // The first directory of a walk is listed; `happens` when the answer was given, and not taken in.
  void Meanwhile(const std::function<void()>& happens) {
    MakeTree("top", {30});
    Find("top");
    List(Find("top"));
    const NodeId first = Find("top/d100");
    StallNextAnswer();
    std::thread walking([&] { List(first); });
    ASSERT_TRUE(faulty_->WaitForStalled(1));
    happens();
    faulty_->Clear();
    walking.join();
    ASSERT_EQ(remote_->calls("ListDeep"), 1);
  }
  int64_t Questions() const { return remote_->calls("List") + remote_->calls("ListDeep"); }
  static int64_t Counted(const std::string& name) { return Metrics::Get("cache.prefetched_" + name + "_count").value(); }
};

TEST(ComesBeforeTest, WhatIsInADirectoryComesBeforeItsNeighbours) {
  EXPECT_TRUE(ComesBefore("a", "a/b"));
  EXPECT_TRUE(ComesBefore("a/b", "a-b"));
  EXPECT_TRUE(ComesBefore("a/z", "b"));
  EXPECT_TRUE(ComesBefore("a", "\xff"));
  EXPECT_FALSE(ComesBefore("a/b", "a"));
  EXPECT_FALSE(ComesBefore("a", "a"));
}

TEST_F(WalkTest, AWalkIsAFewQuestions) {
  for (const auto& shape : std::vector<std::vector<int>>{{1000}, {10, 10, 10}, {3, 3, 3, 3, 3}}) {
    const std::string top = "top" + std::to_string(shape.size());
    MakeTree(top, shape);
    Find(top);
    remote_->ResetCalls();
    const int64_t fetched = Counted("listings"), used = Counted("listings_used");
    const int seen = Walk(top);
    EXPECT_LE(Questions(), 3) << seen;
    EXPECT_EQ(Counted("listings") - fetched, seen - Questions());
    EXPECT_EQ(Counted("listings_used") - used, seen - Questions());
    EXPECT_EQ(remote_->total_calls(), Questions());
    remote_->ResetCalls();
    EXPECT_EQ(Walk(top), seen);
    EXPECT_EQ(remote_->total_calls(), 0);
  }
}

TEST_F(WalkTest, NothingIsListedTwice) {
  MakeTree("top", {300});
  Find("top");
  const int64_t fetched = Counted("listings");
  remote_->ResetCalls();
  Walk("top", 100);
  Walk("top");
  EXPECT_EQ(Counted("listings") - fetched + Questions(), 301);
}

TEST_F(WalkTest, OneDirectoryAfterItsOwnIsNoTree) {
  MakeTree("top", {40, 40});
  Find("top");
  remote_->ResetCalls();
  List(Find("top"));
  EXPECT_EQ(remote_->calls("ListDeep"), 0);
  const int64_t fetched = Counted("listings");
  List(Find("top/d100"));
  EXPECT_EQ(Questions(), 2);
  EXPECT_LE(Counted("listings") - fetched, 16);
}

TEST_F(WalkTest, ADirectoryInTheMiddleIsNoWalkToAll) {
  MakeTree("top", {20, 20, 3});
  Find("top");
  List(Find("top"));
  const int64_t fetched = Counted("listings");
  List(Find("top/d107"));
  List(Find("top/d107/d110"));
  EXPECT_LE(Counted("listings") - fetched, 32);
}

// One directory in each of many, and never what is beside it.
TEST_F(WalkTest, WrongGuessesBecomeFewer) {
  for (int i = 0; i < 300; ++i) {
    const std::string top = "t" + std::to_string(100 + i);
    ASSERT_TRUE(remote_->InsideMakeDirectory(top));
    for (int j = 0; j < 20; ++j) MakeTree(top + "/d" + std::to_string(100 + j), {});
  }
  const int64_t fetched = Counted("listings");
  for (int i = 0; i < 300; ++i) {
    const std::string top = "t" + std::to_string(100 + i);
    List(Find(top));
    List(Find(top + "/d110"));
  }
  EXPECT_LE(Counted("listings") - fetched, 10 * 20);
}

// As `*/one` of a shell does: it looks like a walk to everything, until it does not.
TEST_F(WalkTest, WhatIsPassedByInAWalkIsNotAskedForAgain) {
  for (int i = 0; i < 600; ++i) {
    const std::string top = "d" + std::to_string(100 + i);
    ASSERT_TRUE(remote_->InsideMakeDirectory(top));
    for (int j = 0; j < 20; ++j) MakeTree(top + "/d" + std::to_string(100 + j), {});
  }
  List(kRoot);
  const int64_t fetched = Counted("listings");
  for (int i = 0; i < 600; ++i) {
    const std::string top = "d" + std::to_string(100 + i);
    List(Find(top));
    List(Find(top + "/d100"));
  }
  EXPECT_LE(Counted("listings") - fetched, 4'096 + 600);  // of 12,600
}

TEST_F(WalkTest, WhatTheOtherSideCannotDoIsAskedOneByOne) {
  UseWatched(false);
  MakeTree("top", {30});
  Find("top");
  remote_->ResetCalls();
  EXPECT_EQ(Walk("top"), 31);
  EXPECT_EQ(remote_->calls("List"), 31);
  EXPECT_LE(remote_->calls("ListDeep"), 3);
}

TEST_F(WalkTest, WithoutATimeToLiveNothingIsAskedAhead) {
  options_.attribute_ttl = options_.negative_ttl = kNoTtl;
  MakeTree("top", {30});
  EXPECT_EQ(Walk("top"), 31);
  EXPECT_EQ(remote_->calls("ListDeep"), 0);
}

TEST_F(WalkTest, WhatAProgramMayNotReadIsLeftOut) {
  MakeTree("top", {30});
  ASSERT_TRUE(remote_->InsideSetPermissions("top/d105", 0));
  ASSERT_TRUE(remote_->InsideSetOwner("top/d105", 0, 0));
  EXPECT_EQ(Walk("top"), 31);
  EXPECT_THAT(List(Find("top/d105")), ElementsAre("error EACCES"));
}

// --- never older than what is known

TEST_F(WalkTest, NewsOfANameOvertakeAnAnswer) {
  Meanwhile([&] {
    remote_->InsideWrite("top/d103/new", "new");
    remote_->InsideTell("top/d103/new");
    remote_->InsideRemove("top/d104/file");
    remote_->InsideTell("top/d104/file");
  });
  EXPECT_THAT(List(Find("top/d103")), ElementsAre("file", "new"));
  EXPECT_THAT(List(Find("top/d104")), IsEmpty());
}

TEST_F(WalkTest, NewsOfWhatNobodyKnewYetOvertakeAnAnswer) {
  MakeTree("top", {4, 3});
  Find("top");
  List(Find("top"));
  List(Find("top/d100"));
  const NodeId first = Find("top/d100/d100");
  StallNextAnswer();
  std::thread walking([&] { List(first); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  // In a directory that nobody here knows yet.
  ASSERT_TRUE(remote_->InsideWrite("top/d102/d101/new", "new"));
  remote_->InsideTell("top/d102/d101/new");
  ASSERT_TRUE(remote_->InsideRemove("top/d102/d102/file"));
  remote_->InsideTell("top/d102/d102/file");
  faulty_->Clear();
  walking.join();
  EXPECT_THAT(List(Find("top/d102/d101")), ElementsAre("file", "new"));
  EXPECT_THAT(List(Find("top/d102/d102")), IsEmpty());
}

TEST_F(WalkTest, OwnChangesOvertakeAnAnswer) {
  Meanwhile([&] {
    Made("new", Find("top/d103"));
    EXPECT_EQ(Errno(fs().Unlink(Find("top/d104"), "file", Ctx())), 0);
    EXPECT_EQ(Errno(fs().Rename(Find("top"), "d105", Find("top"), "moved", 0, Ctx())), 0);
    EXPECT_TRUE(fs().MakeDirectory(Find("top"), "d105", 0755, Ctx()));
  });
  EXPECT_THAT(List(Find("top/d103")), ElementsAre("file", "new"));
  EXPECT_THAT(List(Find("top/d104")), IsEmpty());
  EXPECT_THAT(List(Find("top/d105")), IsEmpty());
  EXPECT_THAT(List(Find("top/moved")), ElementsAre("file"));
}

TEST_F(WalkTest, AnotherDirectoryOfTheNameIsNotTakenForIt) {
  Meanwhile([&] {
    remote_->InsideRename("top/d103", "top/old");
    remote_->InsideMakeDirectory("top/d103");
    remote_->InsideTell("top/old");
    remote_->InsideTell("top/d103");
  });
  EXPECT_THAT(List(Find("top/d103")), IsEmpty());
  EXPECT_THAT(List(Find("top/old")), ElementsAre("file"));
}

TEST_F(WalkTest, ADirectoryAboveIsRenamedMeanwhile) {
  Meanwhile([&] { EXPECT_EQ(Errno(fs().Rename(kRoot, "top", kRoot, "moved", 0, Ctx())), 0); });
  remote_->ResetCalls();
  EXPECT_THAT(List(Find("moved/d103")), ElementsAre("file"));
  ASSERT_TRUE(remote_->InsideWrite("moved/d110/new", "new"));
  remote_->InsideTell("moved/d110/new");
  EXPECT_THAT(List(Find("moved/d110")), ElementsAre("file", "new"));
}

TEST_F(WalkTest, LossesOvertakeAnAnswer) {
  options_.attribute_ttl = std::chrono::milliseconds(1);
  Meanwhile([&] {
    remote_->InsideWrite("top/d103/new", "new");
    remote_->listener()->ChangesLost();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_THAT(List(Find("top/d103")), ElementsAre("file", "new"));
}

TEST_F(WalkTest, WhoeverWantsWhatIsOnItsWayWaitsForIt) {
  MakeTree("top", {10});
  Find("top");
  List(Find("top"));
  const NodeId first = Find("top/d100"), other = Find("top/d105");
  StallNextAnswer();
  std::thread walking([&] { List(first); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  std::thread waiting([&] { EXPECT_THAT(List(other), ElementsAre("file")); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  faulty_->Clear();
  walking.join();
  waiting.join();
  EXPECT_EQ(Questions(), 2);  // the top, and one for all
}

}  // namespace
}  // namespace e2bfs::cache
