#include "fuse/place_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace e2bfs::fuse {
namespace {

using Found = PlaceTable::Found;
using std::chrono::seconds;
using ::testing::ElementsAre;

constexpr cache::NodeId kLeft = 2, kRight = 3, kOne = 4, kTwo = 5, kMoved = 10, kOther = 11, kLink = 12;

class PlaceTableTest : public ::testing::Test {
 protected:
  cache::NodeId In(cache::NodeId parent, cache::NodeId node, Found found = Found::kLookedUp, seconds later = seconds(0)) {
    return table_.Referenced(parent, Name(node), node, found, Clock::now() + later);
  }
  static std::string Name(cache::NodeId node) { return "n" + std::to_string(node); }
  void Rename(cache::NodeId node, cache::NodeId from, cache::NodeId to) {
    table_.Renaming(from, Name(node), to, Name(node), false);
    table_.Renamed(from, Name(node), to, Name(node), false);
  }
  // root/left, root/one/two/right, and the directory kMoved in the one that is given.
  void MakeDeep(cache::NodeId parent) {
    In(cache::kRoot, kLeft);
    In(cache::kRoot, kOne);
    In(kOne, kTwo);
    In(kTwo, kRight);
    In(parent, kMoved);
  }

  PlaceTable table_;
};

TEST_F(PlaceTableTest, ADirectoryIsKnownByItsOwnNumberHoweverOftenItIsFound) {
  EXPECT_EQ(In(kLeft, kMoved), kMoved);
  EXPECT_EQ(In(kLeft, kMoved), kMoved);
  EXPECT_EQ(In(kLeft, kMoved, Found::kListed), kMoved);
  EXPECT_THAT(table_.NumbersOf(kMoved), ElementsAre(kMoved));
  EXPECT_EQ(table_.NodeOf(kMoved), kMoved);
}

TEST_F(PlaceTableTest, TheKernelMovesADirectoryThatWasMovedInside) {
  In(kLeft, kMoved);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
  EXPECT_EQ(In(kRight, kMoved, Found::kListed), kMoved);  // no sign that it could not
  EXPECT_EQ(In(kRight, kMoved, Found::kLookedUp, seconds(5)), kMoved);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
}

TEST_F(PlaceTableTest, AListingDoesNotTellWhetherTheKernelCould) {
  In(kLeft, kMoved);
  EXPECT_EQ(In(kRight, kMoved, Found::kListed), kMoved);
  EXPECT_EQ(In(kRight, kMoved, Found::kLookedUp, seconds(5)), kMoved);  // its first try
  EXPECT_NE(In(kRight, kMoved), kMoved);                                // and its second
}

TEST_F(PlaceTableTest, AskedAgainAtOnceItGetsAnotherNumber) {
  In(kLeft, kMoved);
  In(kRight, kMoved);
  const cache::NodeId second = In(kRight, kMoved);
  EXPECT_NE(second, kMoved);
  EXPECT_EQ(table_.NodeOf(second), kMoved);
  EXPECT_THAT(table_.NumbersOf(kMoved), ElementsAre(kMoved, second));
  EXPECT_EQ(In(kRight, kMoved), second);
}

TEST_F(PlaceTableTest, WhileTheKernelMayBeTryingItGetsNothingElseToTry) {
  In(kLeft, kMoved);
  In(kLeft, kOther);
  In(kRight, kMoved);
  const cache::NodeId second = In(kRight, kOther);
  EXPECT_NE(second, kOther);
  EXPECT_EQ(In(kRight, kOther), second);
}

TEST_F(PlaceTableTest, WhatWasMadeJustNowIsNeverForTheKernelToMove) {
  In(kLeft, kMoved, Found::kListed);
  EXPECT_NE(In(kRight, kMoved, Found::kMade), kMoved);
}

// Seen in e2e/rename_storm: EEXIST for a mkdir that the kernel repeated, since it could not use the first answer.
TEST_F(PlaceTableTest, WhatWasMadeJustNowIsFoundElsewhereByAnotherNumber) {
  for (const auto& [node, found] : {std::pair(kMoved, Found::kListed), std::pair(kOther, Found::kLookedUp)}) {
    In(kLeft, node, Found::kMade);
    EXPECT_NE(In(kRight, node, found), node);
    EXPECT_EQ(In(kLeft, node), node);
  }
}

TEST_F(PlaceTableTest, ARenameThroughTheMountMovesThePlace) {
  In(kLeft, kMoved);
  Rename(kMoved, kLeft, kRight);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
}

TEST_F(PlaceTableTest, ForgottenNumbersAreGone) {
  In(kLeft, kMoved);
  In(kRight, kMoved);
  const cache::NodeId second = In(kRight, kMoved);
  In(kRight, kMoved);
  table_.Forgotten(second, 1);
  EXPECT_EQ(table_.NodeOf(second), kMoved);
  table_.Forgotten(second, 1);
  EXPECT_THAT(table_.NumbersOf(kMoved), ElementsAre(kMoved));
  EXPECT_EQ(table_.NodeOf(second), second);  // CachedFs knows no such node
  table_.Forgotten(kMoved, 2);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
}

TEST_F(PlaceTableTest, TheSpotNearestToTheRootCounts) {
  MakeDeep(kLeft);
  EXPECT_EQ(table_.DepthOf(kLeft), 0u);
  EXPECT_EQ(table_.DepthOf(kMoved), 1u);
  table_.LinkReferenced(kMoved, "link", kLink);
  EXPECT_EQ(table_.DepthOf(kLink), 2u);
  // Moved inside: the kernel is told, and may have it in either place.
  EXPECT_EQ(In(kRight, kMoved), kMoved);
  EXPECT_EQ(table_.DepthOf(kLink), 2u);
  EXPECT_EQ(In(kRight, kMoved, Found::kLookedUp, seconds(5)), kMoved);
  EXPECT_EQ(table_.DepthOf(kLink), 2u);
  // A link has several names.
  table_.LinkReferenced(cache::kRoot, "link", kLink);
  EXPECT_EQ(table_.DepthOf(kLink), 0u);
  EXPECT_EQ(table_.DepthOf(999), 0u);
}

TEST_F(PlaceTableTest, ASecondNumberHasAPlaceOfItsOwn) {
  MakeDeep(kLeft);
  In(kRight, kMoved);
  const cache::NodeId second = In(kRight, kMoved);
  ASSERT_NE(second, kMoved);
  EXPECT_EQ(table_.DepthOf(kMoved), 1u);
  EXPECT_EQ(table_.DepthOf(second), 3u);
}

TEST_F(PlaceTableTest, WhatTheSandboxSaysBringsNothingNearerToTheRoot) {
  MakeDeep(kRight);
  EXPECT_EQ(table_.DepthOf(kMoved), 3u);
  for (const Found found : {Found::kLookedUp, Found::kListed}) EXPECT_NE(In(kLeft, kMoved, found), kMoved);
  EXPECT_EQ(table_.DepthOf(kMoved), 3u);
  EXPECT_EQ(table_.DepthOf(In(kLeft, kMoved)), 1u);
  EXPECT_EQ(In(kRight, kMoved), kMoved);
}

TEST_F(PlaceTableTest, ARenameThroughTheMountCountsFromBeforeItIsAskedFor) {
  MakeDeep(kRight);
  table_.LinkReferenced(kMoved, "link", kLink);
  table_.Renaming(kRight, Name(kMoved), cache::kRoot, "near", false);
  EXPECT_EQ(table_.DepthOf(kLink), 1u);
  table_.Renamed(kRight, Name(kMoved), cache::kRoot, "near", false);
  EXPECT_EQ(table_.DepthOf(kLink), 1u);
  // Of what it is in, and of links themselves.
  Rename(kRight, kTwo, cache::kRoot);
  EXPECT_EQ(table_.DepthOf(kRight), 0u);
  table_.Renaming(kMoved, "link", cache::kRoot, "link", false);
  EXPECT_EQ(table_.DepthOf(kLink), 0u);
}

TEST_F(PlaceTableTest, WhatTheKernelRenamesIsWhatItWasToldByThatName) {
  MakeDeep(kRight);
  In(kRight, kOther);
  // By the sandbox's word another directory has the name; the kernel may still have the first.
  table_.Referenced(kRight, Name(kMoved), kOther, Found::kLookedUp, Clock::now());
  Rename(kMoved, kRight, cache::kRoot);
  EXPECT_EQ(table_.DepthOf(kMoved), 0u);
  EXPECT_EQ(table_.DepthOf(kOther), 0u);
}

TEST_F(PlaceTableTest, AwayFromTheRootOnlyAfterTheKernelHasDoneIt) {
  MakeDeep(kLeft);
  Rename(kMoved, kLeft, kRight);
  EXPECT_EQ(table_.DepthOf(kMoved), 1u);
  while (table_.DepthOf(kMoved) == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(table_.DepthOf(kMoved), 3u);
  // It was told of a file by that name since: what it renames then is that.
  In(kLeft, kOther);
  table_.OtherReferenced(kLeft, Name(kOther));
  Rename(kOther, kLeft, kRight);
  std::this_thread::sleep_for(seconds(3));
  EXPECT_EQ(table_.DepthOf(kOther), 1u);
}

TEST_F(PlaceTableTest, ARenameThatTheKernelDoesNotKnowOfMayLeaveItWhereItWas) {
  MakeDeep(kLeft);
  Rename(kMoved, kLeft, kRight);
  table_.Renaming(kRight, Name(kMoved), kLeft, Name(kMoved), false);  // as Filesystem::RenameNotTaken says it
  std::this_thread::sleep_for(seconds(3));
  EXPECT_EQ(table_.DepthOf(kMoved), 1u);
}

TEST_F(PlaceTableTest, AnExchangeMovesBoth) {
  MakeDeep(kLeft);
  In(kRight, kOther);
  table_.Renaming(kLeft, Name(kMoved), kRight, Name(kOther), true);
  table_.Renamed(kLeft, Name(kMoved), kRight, Name(kOther), true);
  EXPECT_EQ(table_.DepthOf(kOther), 1u);
  EXPECT_EQ(table_.Referenced(kLeft, Name(kMoved), kOther, Found::kMade, Clock::now()), kOther);
  EXPECT_EQ(table_.Referenced(kRight, Name(kOther), kMoved, Found::kMade, Clock::now()), kMoved);
}

TEST_F(PlaceTableTest, NothingIsInADirectoryThatTheKernelForgot) {
  MakeDeep(kLeft);
  table_.LinkReferenced(kLeft, "link", kLink);
  table_.LinkReferenced(kMoved, "link", kLink);
  EXPECT_EQ(table_.DepthOf(kLink), 1u);
  table_.Forgotten(kLeft, 1);
  EXPECT_EQ(table_.DepthOf(kLink), 0u);  // nor is kMoved anywhere
  In(kRight, kMoved);
  EXPECT_EQ(table_.DepthOf(kLink), 4u);
}

TEST_F(PlaceTableTest, TooManySpotsAreAnywhere) {
  MakeDeep(kLeft);
  for (int i = 0; i < 100; ++i) table_.LinkReferenced(kRight, std::to_string(i), kLink);
  EXPECT_EQ(table_.DepthOf(kLink), 0u);
  cache::NodeId last = kMoved;
  for (int i = 0; i < 100; ++i) last = table_.Referenced(kLeft, std::to_string(i), kMoved, Found::kLookedUp, Clock::now());
  EXPECT_NE(last, kMoved);
}

}  // namespace
}  // namespace e2bfs::fuse
