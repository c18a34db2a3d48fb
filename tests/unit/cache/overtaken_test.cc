// What is on its way, and overtaken before it is taken in or begun.
#include <gmock/gmock.h>

#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {
using ::testing::ElementsAre;
using testing::RemoteFault;

class OvertakenTest : public CacheFixture {
 protected:
  OvertakenTest() {
    testing::MemoryRemoteFsOptions options;
    options.watches = true;
    options.lists_deep = true;
    UseRemote(options);
  }
  void Tree() {
    ASSERT_TRUE(remote_->InsideMakeDirectory("top"));
    for (int i = 100; i < 130; ++i) {
      ASSERT_TRUE(remote_->InsideMakeDirectory("top/d" + std::to_string(i)));
      ASSERT_TRUE(remote_->InsideWrite("top/d" + std::to_string(i) + "/file", "x"));
    }
  }
  void Stall(RemoteFault::Action action) {
    RemoteFault fault;
    fault.function = "ListDeep";
    fault.action = action;
    faulty_->Add(fault);
  }
};

// A guess that takes longer than the operation may must not fail the listing that was asked for.
TEST_F(OvertakenTest, ASlowGuessDoesNotFailTheListing) {
  Tree();
  Find("top");
  List(Find("top"));
  const NodeId first = Find("top/d100");
  Stall(RemoteFault::kStall);
  auto handle = fs().OpenDirectory(first, Ctx());
  ASSERT_TRUE(handle);
  auto read = fs().ReadDirectory(*handle, 0, false, [](const DirectoryEntry&, uint64_t) { return true; }, OpContext::Within(std::chrono::seconds(2)));
  EXPECT_EQ(Errno(read), 0);
  EXPECT_EQ(remote_->calls("List"), 2);
  fs().CloseDirectory(*handle);
}

// The watch was lost and taken up again while an answer is on its way: what happened in between is in neither.
TEST_F(OvertakenTest, AGapInTheWatchOvertakesAnAnswer) {
  options_.attribute_ttl = std::chrono::milliseconds(1);
  Tree();
  Find("top");
  List(Find("top"));
  List(Find("top/d103"));
  for (int i = 104; i < 109; ++i) List(Find("top/d" + std::to_string(i)));
  ASSERT_EQ(remote_->calls("ListDeep"), 1);
  const auto wanted = remote_->InsideStat("top/d109")->id, guess = remote_->InsideStat("top/d110")->id;
  const NodeId wanted_node = Find("top/d109"), guess_node = Find("top/d110");
  remote_->listener()->Unwatched(wanted);
  remote_->listener()->Unwatched(guess);
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  Stall(RemoteFault::kStallAfter);
  std::thread walking([&] { List(wanted_node); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  remote_->listener()->Unwatched(guess);
  ASSERT_TRUE(remote_->InsideWrite("top/d110/new", "new"));  // nobody tells
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(fs().GetAttributes(guess_node, Ctx()));  // and watched again
  faulty_->Clear();
  walking.join();
  ASSERT_EQ(remote_->calls("ListDeep"), 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_THAT(List(guess_node), ElementsAre("file", "new"));
}

// What was right to send when somebody looked is not when its turn comes: the file was cut meanwhile, and its writer has not closed it.
TEST_F(OvertakenTest, WhatWasCutMeanwhileIsNotSentForAStat) {
  testing::MemoryRemoteFsOptions options;
  UseRemote(options);
  const OpenedFile made = Made("a");
  const NodeId node = made.attributes.node;
  Write(made.handle, 0, "old content");
  RemoteFault fault;
  fault.function = "Store";
  fault.action = RemoteFault::kStallAfter;
  faulty_->Add(fault);
  std::thread flushing([&] { EXPECT_EQ(Flush(made.handle), 0); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  Write(made.handle, 0, "OLD");
  std::thread looking([&] { EXPECT_TRUE(fs().Stat(node, Ctx())); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(Truncate(node, made.handle, 0), 0);
  Write(made.handle, 0, "ha");
  faulty_->Clear();
  flushing.join();
  looking.join();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(Inside("a"), "old content");
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "ha");
}

}  // namespace
}  // namespace e2bfs::cache
