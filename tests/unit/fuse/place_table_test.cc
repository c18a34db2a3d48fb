#include "fuse/place_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace e2bfs::fuse {
namespace {

using Found = PlaceTable::Found;
using std::chrono::seconds;
using ::testing::ElementsAre;

constexpr cache::NodeId kLeft = 2, kRight = 3, kMoved = 10, kOther = 11;

class PlaceTableTest : public ::testing::Test {
 protected:
  cache::NodeId In(cache::NodeId parent, cache::NodeId node, Found found = Found::kLookedUp, seconds later = seconds(0)) {
    return table_.Referenced(parent, node, found, Clock::now() + later);
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

TEST_F(PlaceTableTest, ARenameThroughTheMountMovesThePlace) {
  In(kLeft, kMoved);
  table_.Moved(kMoved, kLeft, kRight);
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

}  // namespace
}  // namespace e2bfs::fuse
