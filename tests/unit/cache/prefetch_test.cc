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
  MakeTree("top", {4, 3, 3});
  Find("top");
  List(Find("top"));
  List(Find("top/d100"));
  const NodeId first = Find("top/d100/d100");
  StallNextAnswer();
  std::thread walking([&] { List(first); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  // In a directory that nobody here knows yet.
  ASSERT_TRUE(remote_->InsideWrite("top/d102/d101/d100/new", "new"));
  remote_->InsideTell("top/d102/d101/d100/new");
  ASSERT_TRUE(remote_->InsideRemove("top/d102/d102/d101/file"));
  remote_->InsideTell("top/d102/d102/d101/file");
  faulty_->Clear();
  walking.join();
  EXPECT_THAT(List(Find("top/d102/d101/d100")), ElementsAre("file", "new"));
  EXPECT_THAT(List(Find("top/d102/d102/d101")), IsEmpty());
}

// The same where there is no walk: of a directory that is looked up, or made, while somebody inside uses it.
TEST_F(WalkTest, NewsOvertakeWhatIsLookedUpAndMade) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("looked"));
  RemoteFault fault;
  fault.function = "Lookup";
  fault.action = RemoteFault::kStallAfter;
  faulty_->Add(fault);
  std::thread looking([&] { Find("looked"); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  ASSERT_TRUE(remote_->InsideWrite("looked/new", "new"));
  remote_->listener()->DirectoryChanged(*remote_->InsideStat("looked"));
  faulty_->Clear();
  looking.join();
  const auto found = fs().GetAttributes(Find("looked"), Ctx());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->attributes.mtime.tv_nsec, remote_->InsideStat("looked")->mtime.tv_nsec);

  fault.function = "MakeDirectory";
  faulty_->Add(fault);
  std::thread making([&] { EXPECT_TRUE(fs().MakeDirectory(kRoot, "made", 0755, Ctx())); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  ASSERT_TRUE(remote_->InsideWrite("made/new", "new"));
  remote_->InsideTell("made/new");
  faulty_->Clear();
  making.join();
  EXPECT_THAT(List(Find("made")), ElementsAre("new"));
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

TEST_F(WalkTest, AListingOfWhatTookItsPlaceIsNotTaken) {
  MakeTree("top", {30});
  Find("top");
  List(Find("top"));
  ASSERT_TRUE(remote_->InsideRename("top/d103", "old"));
  ASSERT_TRUE(remote_->InsideMakeDirectory("top/d103"));
  List(Find("top/d100"));  // before the news come
  ASSERT_EQ(remote_->calls("ListDeep"), 1);
  remote_->InsideTell("old");
  remote_->InsideTell("top/d103");
  EXPECT_THAT(List(Find("old")), ElementsAre("file"));
  EXPECT_THAT(List(Find("top/d103")), IsEmpty());
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

// --- content of small files

class FilesTest : public WalkTest {
 protected:
  std::string Name(int i) const { return "dir/f" + std::to_string(10'000 + i); }
  void MakeFiles(int count, size_t size = 100) {
    ASSERT_TRUE(remote_->InsideMakeDirectory("dir"));
    for (int i = 0; i < count; ++i) ASSERT_TRUE(remote_->InsideWrite(Name(i), Name(i) + std::string(size, 'x')));
    List(Find("dir"));
    remote_->ResetCalls();
    fetched_ = Counted("files");
    used_ = Counted("files_used");
  }
  // The first of a row, so that those behind it are here.
  void ReadTwo() {
    EXPECT_EQ(Content(Name(0)), Inside(Name(0)));
    EXPECT_EQ(Content(Name(1)), Inside(Name(1)));
    ASSERT_EQ(remote_->calls("ReadFiles"), 1);
    ASSERT_GT(Fetched(), 20);
  }
  int64_t Fetched() const { return Counted("files") - fetched_; }
  int64_t Used() const { return Counted("files_used") - used_; }
  int64_t Reads() const { return remote_->calls("Read") + remote_->calls("ReadFiles"); }
  int64_t fetched_ = 0, used_ = 0;
};

TEST_F(FilesTest, ARowOfFilesIsAFewQuestions) {
  MakeFiles(600);
  for (int i = 0; i < 600; ++i) ASSERT_EQ(Content(Name(i)), Inside(Name(i)));
  EXPECT_LE(Reads(), 5);
  EXPECT_EQ(remote_->total_calls(), Reads());
  EXPECT_EQ(Fetched(), 600 - Reads());
  EXPECT_EQ(Used(), Fetched());
  EXPECT_EQ(fs().Status().memory_bytes, 0);
}

TEST_F(FilesTest, OneFileIsOneFile) {
  MakeFiles(100);
  EXPECT_EQ(Content(Name(50)), Inside(Name(50)));
  EXPECT_EQ(remote_->calls("Read"), 1);
  EXPECT_EQ(remote_->calls("ReadFiles"), 0);
}

TEST_F(FilesTest, FilesOnTheWayThroughATree) {
  MakeTree("top", {10, 10});
  int read = 0;
  std::function<void(const std::string&)> grep = [&](const std::string& path) {
    for (const std::string& name : List(Find(path))) {
      if (name.starts_with("d")) {
        grep(path + "/" + name);
      } else {
        ASSERT_EQ(Content(path + "/" + name), path);
        ++read;
      }
    }
  };
  grep("top");
  EXPECT_EQ(read, 100);
  EXPECT_LE(Reads(), 4);
  EXPECT_LE(Questions(), 4);
}

TEST_F(FilesTest, WhereNobodyTellsNothingIsHeld) {
  UseRemote({});
  MakeFiles(100);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(Content(Name(i)), Inside(Name(i)));
  EXPECT_EQ(remote_->calls("ReadFiles"), 0);
}

TEST_F(FilesTest, WhatTheOtherSideCannotDoIsReadOneByOne) {
  testing::MemoryRemoteFsOptions options;
  options.watches = true;
  options.reads_files = false;
  UseRemote(options);
  MakeFiles(100);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(Content(Name(i)), Inside(Name(i)));
  EXPECT_LE(remote_->calls("ReadFiles"), 3);
  EXPECT_EQ(remote_->calls("Read"), 100);
}

TEST_F(FilesTest, ChangesInsideAreSeen) {
  MakeFiles(40);
  ReadTwo();
  ASSERT_TRUE(remote_->InsideWrite(Name(2), "changed"));
  remote_->InsideTell(Name(2));
  ASSERT_TRUE(remote_->InsideReplace(Name(3), "another"));
  remote_->InsideTell(Name(3));
  ASSERT_TRUE(remote_->InsideRename(Name(4), Name(5)));
  remote_->InsideTell(Name(4));
  remote_->InsideTell(Name(5));
  for (int i : {2, 3, 5}) EXPECT_EQ(Content(Name(i)), Inside(Name(i)));
  EXPECT_EQ(Errno(fs().Lookup(Find("dir"), "f10004", Ctx())), ENOENT);
}

// Two writes within a tick of the sandbox's clock leave the same times.
TEST_F(FilesTest, NewsOfAChangeThatNoAttributeShows) {
  MakeFiles(40);
  ReadTwo();
  const int64_t reads = remote_->calls("Read");
  transport::Entry entry{"f10002", *remote_->InsideStat(Name(2)), std::nullopt};
  remote_->listener()->NameChanged(remote_->InsideStat("dir")->id, entry.name, entry, false);
  EXPECT_EQ(Content(Name(2)), Inside(Name(2)));
  EXPECT_EQ(remote_->calls("Read") + remote_->calls("ReadFiles"), reads + 2);
}

TEST_F(FilesTest, OwnChangesAreSeen) {
  MakeFiles(40);
  ReadTwo();
  const FileHandle writing = OpenWrite(Name(2));
  Write(writing, 0, "own");
  EXPECT_EQ(Content(Name(2)).substr(0, 5), "own/f");
  EXPECT_EQ(Close(writing), 0);
  EXPECT_EQ(Content(Name(2)), Inside(Name(2)));
  EXPECT_EQ(Truncate(Find(Name(3)), 0, 4), 0);
  EXPECT_EQ(Content(Name(3)), "dir/");
  EXPECT_EQ(Errno(fs().Rename(Find("dir"), "f10004", Find("dir"), "f10005", 0, Ctx())), 0);
  EXPECT_EQ(Content(Name(5)).substr(0, 10), Name(4));
  EXPECT_EQ(Errno(fs().Rename(kRoot, "dir", kRoot, "moved", 0, Ctx())), 0);
  EXPECT_EQ(Content("moved/f10006").substr(0, 10), Name(6));
  ASSERT_TRUE(remote_->InsideWrite("moved/f10007", "changed"));
  remote_->InsideTell("moved/f10007");
  EXPECT_EQ(Content("moved/f10007"), "changed");
}

TEST_F(FilesTest, NewsOvertakeAnAnswer) {
  for (const bool lost : {false, true}) {
    UseWatched();
    MakeFiles(40);
    Content(Name(0));
    const FileHandle second = OpenRead(Name(1));
    RemoteFault fault;
    fault.function = "ReadFiles";
    fault.action = RemoteFault::kStallAfter;
    faulty_->Add(fault);
    std::thread reading([&] { ReadAll(second); });
    ASSERT_TRUE(faulty_->WaitForStalled(1));
    const auto before = *remote_->InsideStat(Name(2));
    ASSERT_TRUE(remote_->InsideWrite(Name(2), Name(2) + std::string(100, 'y')));
    ASSERT_TRUE(remote_->InsideSetTimes(Name(2), before.mtime));
    if (lost) {
      remote_->listener()->ChangesLost();
    } else {
      remote_->InsideTell(Name(2));
    }
    faulty_->Clear();
    reading.join();
    EXPECT_EQ(Content(Name(2)), Inside(Name(2))) << lost;
    fs().Release(second, Ctx());
  }
}

// News that show in no attribute, and a watch that was interrupted, while an answer is on its way: it is not taken.
TEST_F(FilesTest, WhatNoAttributeShowsOvertakesAnAnswer) {
  for (const bool unwatched : {false, true}) {
    UseWatched();
    MakeFiles(40);
    Content(Name(0));
    const FileHandle second = OpenRead(Name(1));
    RemoteFault fault;
    fault.function = "ReadFiles";
    fault.action = RemoteFault::kStallAfter;
    faulty_->Add(fault);
    std::thread reading([&] { ReadAll(second); });
    ASSERT_TRUE(faulty_->WaitForStalled(1));
    const transport::FileId directory = remote_->InsideStat("dir")->id;
    if (unwatched) {
      remote_->listener()->Unwatched(directory);
      remote_->listener()->ChangesLost();
      List(Find("dir"));  // and watched again
    } else {
      remote_->listener()->NameChanged(directory, "f10002", transport::Entry{"f10002", *remote_->InsideStat(Name(2)), std::nullopt}, false);
    }
    faulty_->Clear();
    reading.join();
    remote_->ResetCalls();
    EXPECT_EQ(Content(Name(2)), Inside(Name(2)));
    EXPECT_GE(Reads(), 1) << unwatched;
    fs().Release(second, Ctx());
  }
}

TEST_F(FilesTest, UnwatchedDirectoriesHoldNothing) {
  MakeFiles(40);
  ReadTwo();
  EXPECT_GT(fs().Status().memory_bytes, 0);
  remote_->listener()->Unwatched(remote_->InsideStat("dir")->id);
  EXPECT_EQ(fs().Status().memory_bytes, 0);
  remote_->ResetCalls();
  EXPECT_EQ(Content(Name(2)), Inside(Name(2)));
  EXPECT_EQ(remote_->calls("Read"), 1);
}

TEST_F(FilesTest, AnOpenFileIsReadAfterItsNameIsGone) {
  MakeFiles(40);
  ReadTwo();
  const FileHandle removed = OpenRead(Name(2)), replaced = OpenRead(Name(3)), removed_here = OpenRead(Name(4));
  const std::string second = Inside(Name(2)), third = Inside(Name(3)), fourth = Inside(Name(4));
  ASSERT_TRUE(remote_->InsideRemove(Name(2)));
  remote_->InsideTell(Name(2));
  ASSERT_TRUE(remote_->InsideReplace(Name(3), "another"));
  remote_->InsideTell(Name(3));
  EXPECT_EQ(Errno(fs().Unlink(Find("dir"), "f10004", Ctx())), 0);
  EXPECT_EQ(ReadAll(removed), second);
  EXPECT_EQ(ReadAll(replaced), third);
  EXPECT_EQ(ReadAll(removed_here), fourth);
  for (const FileHandle handle : {removed, replaced, removed_here}) fs().Release(handle, Ctx());
}

TEST_F(FilesTest, RandomReadsFetchLittle) {
  MakeFiles(3'000);
  for (int i = 0; i < 1'000; ++i) Content(Name((i * 1'237) % 3'000));
  EXPECT_LE(Fetched(), 32 * 8);
}

TEST_F(FilesTest, TwoFilesOfEachOfManyDirectoriesAreNoRow) {
  for (int i = 0; i < 200; ++i) {
    const std::string path = "p" + std::to_string(100 + i);
    ASSERT_TRUE(remote_->InsideMakeDirectory(path));
    for (int j = 0; j < 40; ++j) ASSERT_TRUE(remote_->InsideWrite(path + "/f" + std::to_string(100 + j), "content"));
  }
  fetched_ = Counted("files");
  for (int i = 0; i < 200; ++i) {
    const std::string path = "p" + std::to_string(100 + i);
    Content(path + "/f100");
    Content(path + "/f101");
  }
  EXPECT_LE(Fetched(), 32 * 20);
}

TEST_F(FilesTest, MemoryIsBoundedAndGivenBack) {
  options_.memory_bytes = 4 << 20;
  MakeFiles(200, 60'000);
  int64_t most = 0;
  for (int i = 0; i < 200; ++i) {
    Content(Name(i));
    most = std::max(most, fs().Status().memory_bytes);
  }
  EXPECT_LE(most, 1 << 20);
  EXPECT_GT(most, 100'000);
  EXPECT_LT(Reads(), 60);
}

TEST_F(FilesTest, WhatIsHeldOfManyRowsIsBounded) {
  options_.memory_bytes = 4 << 20;
  int64_t most = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string path = "p" + std::to_string(i);
    ASSERT_TRUE(remote_->InsideMakeDirectory(path));
    for (int j = 0; j < 10; ++j) ASSERT_TRUE(remote_->InsideWrite(path + "/f" + std::to_string(j), std::string(60'000, 'x')));
    List(Find(path));
    for (int j = 0; j < 2; ++j) Content(path + "/f" + std::to_string(j));
    most = std::max(most, fs().Status().memory_bytes);
  }
  EXPECT_GE(remote_->calls("ReadFiles"), 6);
  EXPECT_LE(most, 1 << 20);
}

TEST_F(FilesTest, ContentThatNobodyReadsIsDropped) {
  options_.reader_idle = std::chrono::milliseconds(100);
  MakeFiles(40);
  ReadTwo();
  EXPECT_GT(fs().Status().memory_bytes, 0);
  EXPECT_TRUE(Eventually([&] { return fs().Status().memory_bytes == 0; }));
}

TEST_F(FilesTest, WhoeverWantsAFileThatIsOnItsWayWaitsForIt) {
  MakeFiles(40);
  Content(Name(0));
  const FileHandle second = OpenRead(Name(1));
  RemoteFault fault;
  fault.function = "ReadFiles";
  fault.action = RemoteFault::kStallAfter;
  faulty_->Add(fault);
  std::thread reading([&] { ReadAll(second); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  std::thread waiting([&] { EXPECT_EQ(Content(Name(2)), Inside(Name(2))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  faulty_->Clear();
  reading.join();
  waiting.join();
  EXPECT_EQ(Reads(), 2);
  fs().Release(second, Ctx());
}

TEST_F(FilesTest, TwoReadersOfARowAskForNothingTwice) {
  MakeFiles(400);
  std::atomic<int> next{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&] {
      for (int i; (i = next++) < 400;) EXPECT_EQ(Content(Name(i)), Inside(Name(i)));
    });
  }
  for (auto& reader : readers) reader.join();
  int64_t bytes = 0;
  for (int i = 0; i < 400; ++i) bytes += static_cast<int64_t>(Inside(Name(i)).size());
  EXPECT_EQ(remote_->bytes_read(), bytes);
}

}  // namespace
}  // namespace e2bfs::cache
