// Writing: what reaches the sandbox and when, and what happens when it does not.
#include <pthread.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <system_error>
#include <thread>

#include "cache/spool.h"
#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

std::string FileContent(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class WritingTest : public CacheFixture {
 protected:
  transport::AttributeChange Mode(uint32_t permissions) {
    transport::AttributeChange change;
    change.permissions = permissions;
    return change;
  }
  void FailStores(int count, int errno_value = EIO, int skip = 0) {
    testing::RemoteFault fault;
    fault.function = "Store";
    fault.count = count;
    fault.skip = skip;
    fault.error = Error{errno_value, ErrorKind::kErrno, "injected", 0, ""};
    faulty_->Add(fault);
  }
};

TEST_F(WritingTest, AClosedFileIsInTheSandbox) {
  const auto made = Made("a");
  EXPECT_EQ(Inside("a"), "");  // from the moment it was created
  Write(made.handle, 0, "hello ");
  Write(made.handle, 6, "world");
  EXPECT_EQ(Inside("a"), "");
  EXPECT_EQ(ReadAt(made.handle, 0, 100), "hello world");
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "hello world");
  ASSERT_EQ(remote_->stores().size(), 1u);
  EXPECT_TRUE(remote_->stores()[0].fresh);
  EXPECT_EQ(SpoolFiles(), 0u);
  EXPECT_EQ(fs().Status().dirty_files, 0);
}

TEST_F(WritingTest, CreateWriteSetModeAndTimeCloseIsTwoCalls) {
  fs();
  remote_->ResetCalls();
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  transport::AttributeChange change = Mode(0755);
  change.mtime = transport::TimeChange{false, {1'000'000'000, 5}};
  auto set = fs().SetAttributes(made.attributes.node, made.handle, change, Ctx());
  ASSERT_TRUE(set);
  EXPECT_EQ(set->attributes.permissions, 0755u);
  EXPECT_EQ(set->attributes.mtime.tv_sec, 1'000'000'000);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->total_calls(), 2);
  EXPECT_EQ(remote_->InsideStat("a")->permissions, 0755u);
  EXPECT_EQ(remote_->InsideStat("a")->mtime.tv_sec, 1'000'000'000);
  EXPECT_EQ(fs().GetAttributes(made.attributes.node, Ctx())->attributes.mtime.tv_nsec, 5);
  EXPECT_EQ(remote_->total_calls(), 2);
}

// Its ctime, too: the content is sent before it is told, and closing sends nothing more.
TEST_F(WritingTest, WhatStatSaysOfASmallUnsentFileIsWhatTheOtherSideSays) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  const int calls = remote_->total_calls();
  const auto told = fs().Stat(made.attributes.node, Ctx());
  ASSERT_TRUE(told);
  EXPECT_EQ(remote_->total_calls(), calls + 1);
  const auto inside = remote_->InsideStat("a");
  EXPECT_EQ(told->attributes.ctime.tv_sec, inside->ctime.tv_sec);
  EXPECT_EQ(told->attributes.ctime.tv_nsec, inside->ctime.tv_nsec);
  EXPECT_EQ(told->attributes.mtime.tv_nsec, inside->mtime.tv_nsec);
  EXPECT_EQ(remote_->InsideRead("a"), "text");
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->total_calls(), calls + 1);
  EXPECT_EQ(fs().Stat(made.attributes.node, Ctx())->attributes.ctime.tv_nsec, told->attributes.ctime.tv_nsec);
}

// A truncation waits for what comes in place of the old content, and what is set with it travels with it.
TEST_F(WritingTest, AStatSendsNeitherATruncationNorWhatIsBeingFurnished) {
  remote_->InsideWrite("old", "content");
  const auto opened = fs().Open(Find("old"), {.write = true, .truncate = true}, Ctx());
  ASSERT_TRUE(opened);
  EXPECT_EQ(fs().Stat(opened->attributes.node, Ctx())->attributes.size, 0);
  Write(opened->handle, 0, "ha");
  EXPECT_EQ(fs().Stat(opened->attributes.node, Ctx())->attributes.size, 2);
  EXPECT_EQ(remote_->InsideRead("old"), "content");
  EXPECT_EQ(Close(opened->handle), 0);
  EXPECT_EQ(remote_->InsideRead("old"), "ha");

  const auto made = Made("new");
  Write(made.handle, 0, "text");
  transport::AttributeChange change;
  change.mtime = transport::TimeChange{false, {5, 6}};
  ASSERT_TRUE(fs().SetAttributes(made.attributes.node, made.handle, change, Ctx()));
  const int64_t calls = remote_->total_calls();
  EXPECT_EQ(fs().Stat(made.attributes.node, Ctx())->attributes.mtime.tv_sec, 5);
  EXPECT_EQ(remote_->total_calls(), calls);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->total_calls(), calls + 1);
}

// Whoever only looked is told what is known here; close sends again, and tells what became of that.
TEST_F(WritingTest, AStatThatCannotSendLosesNothingAndTellsNobody) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  FailStores(1, ENOSPC);
  const auto told = fs().Stat(made.attributes.node, Ctx());
  ASSERT_TRUE(told);
  EXPECT_EQ(told->attributes.size, 4);
  // What failed is not tried for everybody who looks.
  const int calls = remote_->total_calls();
  EXPECT_TRUE(fs().Stat(made.attributes.node, Ctx()));
  EXPECT_EQ(remote_->total_calls(), calls);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->InsideRead("a"), "text");
}

TEST_F(WritingTest, WhatFstatSaidAfterTheLastWriteIsTrueAfterClose) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  const auto before = fs().GetAttributes(made.attributes.node, Ctx());
  EXPECT_EQ(before->valid_for.count(), 0);
  EXPECT_EQ(Close(made.handle), 0);
  const auto after = fs().GetAttributes(made.attributes.node, Ctx());
  EXPECT_EQ(after->attributes.size, before->attributes.size);
  EXPECT_EQ(after->attributes.mtime.tv_sec, before->attributes.mtime.tv_sec);
  EXPECT_EQ(after->attributes.mtime.tv_nsec, before->attributes.mtime.tv_nsec);
  EXPECT_EQ(after->attributes.mtime.tv_nsec, remote_->InsideStat("a")->mtime.tv_nsec);
  EXPECT_GT(after->valid_for.count(), 0);
  // Our own store does not make the kernel's pages old.
  EXPECT_EQ(after->content_generation, before->content_generation);
}

TEST_F(WritingTest, OnlyWhatWasWrittenIsSent) {
  std::string content(1 << 20, 'x');
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenWrite("big");
  Write(handle, 5000, "changed");
  EXPECT_EQ(ReadAt(handle, 4998, 11), "xxchangedxx");
  EXPECT_EQ(Close(handle), 0);
  ASSERT_EQ(remote_->stores().size(), 1u);
  EXPECT_EQ(remote_->stores()[0].extents, (std::vector<transport::Extent>{{5000, 7}}));
  EXPECT_FALSE(remote_->stores()[0].size.has_value());
  EXPECT_FALSE(remote_->stores()[0].fresh);
  content.replace(5000, 7, "changed");
  EXPECT_EQ(Inside("big"), content);
  EXPECT_LT(remote_->bytes_read(), 200 << 10);
}

TEST_F(WritingTest, TruncationByOpenKeepsTheOldContentUntilTheNewArrives) {
  remote_->InsideWrite("a", "old content");
  const FileHandle handle = OpenFor(Find("a"), {true, true, false, true});
  EXPECT_EQ(Size(Find("a")), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), "");
  Write(handle, 0, "new");
  EXPECT_EQ(Inside("a"), "old content");
  FailStores(1, ENOSPC);
  EXPECT_EQ(Flush(handle), ENOSPC);
  EXPECT_EQ(Inside("a"), "old content");
  EXPECT_EQ(ReadAt(handle, 0, 100), "new");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a"), "new");
}

TEST_F(WritingTest, TruncationsUpAndDown) {
  remote_->InsideWrite("a", "0123456789");
  const NodeId a = Find("a");
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(Truncate(a, handle, 4), 0);
  EXPECT_EQ(Truncate(a, handle, 8), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), std::string("0123\0\0\0\0", 8));
  Write(handle, 6, "ab");
  EXPECT_EQ(Truncate(a, handle, 7), 0);
  EXPECT_EQ(Truncate(a, handle, 9), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), std::string("0123\0\0a\0\0", 9));
  EXPECT_EQ(Inside("a"), "0123456789");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a"), std::string("0123\0\0a\0\0", 9));
  EXPECT_EQ(Content("a"), std::string("0123\0\0a\0\0", 9));
}

TEST_F(WritingTest, TruncationWithoutAHandleIsSentAtOnce) {
  remote_->InsideWrite("a", "0123456789");
  EXPECT_EQ(Truncate(Find("a"), 0, 4), 0);
  EXPECT_EQ(Inside("a"), "0123");
  EXPECT_EQ(Content("a"), "0123");
  EXPECT_EQ(Truncate(Find("a"), 0, 6), 0);
  EXPECT_EQ(Content("a"), std::string("0123\0\0", 6));
}

TEST_F(WritingTest, AppendsAreSentAsAppends) {
  remote_->InsideWrite("log", "one\n");
  const FileHandle handle = OpenFor(Find("log"), {true, true, true, false});
  Write(handle, 0, "two\n");
  Write(handle, 0, "three\n");
  EXPECT_EQ(Size(Find("log")), 14);
  remote_->InsideWrite("log", "one\nforeign\n");  // meanwhile, in the sandbox
  EXPECT_EQ(Flush(handle), 0);
  EXPECT_EQ(Inside("log"), "one\nforeign\ntwo\nthree\n");
  EXPECT_EQ(Size(Find("log")), 22);
  EXPECT_EQ(ReadAt(handle, 0, 100), "one\nforeign\ntwo\nthree\n");
  Write(handle, 0, "four\n");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("log"), "one\nforeign\ntwo\nthree\nfour\n");
  for (const auto& store : remote_->stores()) EXPECT_TRUE(store.append && store.extents.empty());
}

TEST_F(WritingTest, AppendsDuringAnAppendFollowIt) {
  remote_->InsideWrite("log", "base ");
  const FileHandle handle = OpenFor(Find("log"), {true, true, true, false});
  Write(handle, 0, "one ");
  testing::RemoteFault stall;
  stall.function = "Store";
  stall.action = testing::RemoteFault::kStall;
  faulty_->Add(stall);
  std::thread flusher([&] { EXPECT_EQ(Flush(handle), 0); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  Write(handle, 0, "two ");
  remote_->InsideWrite("log", "base foreign ");
  faulty_->Release();
  flusher.join();
  EXPECT_EQ(Inside("log"), "base foreign one ");
  EXPECT_EQ(ReadAt(handle, 0, 100), "base foreign one two ");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("log"), "base foreign one two ");
}

TEST_F(WritingTest, AnAppendWhoseAnswerWasLostIsNotDoneTwice) {
  remote_->InsideWrite("log", "one\n");
  const FileHandle handle = OpenFor(Find("log"), {true, true, true, false});
  Write(handle, 0, "two\n");
  testing::RemoteFault lost;
  lost.function = "Store";
  lost.action = testing::RemoteFault::kDoAndFail;
  faulty_->Add(lost);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("log"), "one\ntwo\n");
  EXPECT_EQ(remote_->stores().size(), 1u);
}

TEST_F(WritingTest, AFileOfAnotherOwnerIsWrittenOnce) {
  remote_->InsideWrite("log", "old");
  remote_->InsideSetPermissions("log", 0666);
  remote_->InsideSetOwner("log", 4711, 4711);
  const FileHandle handle = OpenFor(Find("log"), {true, true, true, false});
  Write(handle, 0, "+A");
  EXPECT_EQ(Flush(handle), 0);
  EXPECT_EQ(Errno(fs().Sync(handle, Ctx())), 0);
  EXPECT_EQ(Inside("log"), "old+A");
  // A time that was asked for is refused, and the content is not sent again for it.
  Write(handle, 0, "+B");
  transport::AttributeChange times;
  times.mtime = transport::TimeChange{false, {1'000'000'000, 0}};
  ASSERT_TRUE(fs().SetAttributes(Find("log"), handle, times, Ctx()));
  EXPECT_EQ(Flush(handle), EPERM);
  EXPECT_EQ(Flush(handle), 0);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("log"), "old+A+B");
  EXPECT_EQ(fs().Status().dirty_files, 0);
  EXPECT_EQ(Content("log"), "old+A+B");
}

TEST_F(WritingTest, AFailedStoreIsReportedOnceToEachHandleAndTriedAgain) {
  const auto made = Made("a");
  const FileHandle other = OpenWrite("a");
  const FileHandle reader = OpenRead("a");
  Write(made.handle, 0, "text");
  FailStores(2);
  EXPECT_EQ(Flush(made.handle), EIO);
  EXPECT_EQ(Flush(made.handle), EIO);  // tried again: failed again
  EXPECT_EQ(ReadAt(made.handle, 0, 10), "text");
  EXPECT_EQ(fs().Status().dirty_files, 1);
  EXPECT_FALSE(fs().Status().last_error.empty());
  EXPECT_EQ(Flush(reader), 0);
  EXPECT_EQ(Flush(other), EIO);  // the data arrives; that it had failed was not told yet
  EXPECT_EQ(Inside("a"), "text");
  EXPECT_EQ(Flush(other), 0);
  EXPECT_EQ(Flush(made.handle), 0);
  EXPECT_EQ(fs().Status().dirty_files, 0);
}

TEST_F(WritingTest, WhatFailedAtTheLastCloseStaysAndIsSentLater) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  FailStores(1);
  EXPECT_EQ(Close(made.handle), EIO);
  EXPECT_EQ(Inside("a"), "");
  ASSERT_EQ(fs().Status().unsent.size(), 1u);
  EXPECT_EQ(fs().Status().unsent[0].path, "/home/user/a");
  EXPECT_EQ(fs().Status().unsent[0].bytes, 4);
  EXPECT_TRUE(std::filesystem::exists(fs().Status().unsent[0].spool_file));
  EXPECT_EQ(Content("a"), "text");  // also for who opens it now
  EXPECT_EQ(Size(made.attributes.node), 4);
  EXPECT_EQ(Errno(fs().FlushAll(Ctx(), [](int64_t) {})), 0);
  EXPECT_EQ(Inside("a"), "text");
  EXPECT_EQ(fs().Status().dirty_files, 0);
  EXPECT_EQ(SpoolFiles(), 0u);
}

TEST_F(WritingTest, WritesAfterTheFlushGoWithTheRelease) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  EXPECT_EQ(Flush(made.handle), 0);
  Write(made.handle, 0, "mmap");
  fs().Release(made.handle, Ctx());
  EXPECT_EQ(Inside("a"), "mmap");
}

TEST_F(WritingTest, ALateReleaseDoesNotSendTheTruncationOfTheNextOpen) {
  remote_->InsideWrite("a", "old content");
  const FileHandle first = OpenFor(Find("a"), {true, true, false, false});
  Write(first, 0, "OLD");
  EXPECT_EQ(Flush(first), 0);  // close(2) has returned
  const FileHandle next = OpenFor(Find("a"), {true, true, false, true});
  fs().Release(first, Ctx());
  EXPECT_EQ(Inside("a"), "OLD content");
  Write(next, 0, "new");
  FailStores(1, ENOSPC);
  EXPECT_EQ(Flush(next), ENOSPC);
  EXPECT_EQ(Inside("a"), "OLD content");
  EXPECT_EQ(Close(next), 0);
  EXPECT_EQ(Inside("a"), "new");
}

TEST_F(WritingTest, AFailureOfTheLastReleaseIsToldToTheNext) {
  const auto made = Made("a");
  EXPECT_EQ(Flush(made.handle), 0);
  Write(made.handle, 0, "mmap");
  FailStores(1);
  fs().Release(made.handle, Ctx());
  EXPECT_EQ(Errno(fs().Rename(kRoot, "a", kRoot, "b", 0, Ctx())), EIO);
  EXPECT_EQ(Errno(fs().Rename(kRoot, "a", kRoot, "b", 0, Ctx())), 0);
  EXPECT_EQ(Inside("b"), "mmap");
}

TEST_F(WritingTest, TruncationThroughAReadOnlyOpenIsSent) {
  remote_->InsideWrite("a", "text");
  const FileHandle handle = OpenFor(Find("a"), {true, false, false, true});
  EXPECT_EQ(ReadAt(handle, 0, 10), "");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a"), "");
}

TEST_F(WritingTest, WritesDuringAStoreStayUnsentAfterIt) {
  const auto made = Made("a");
  Write(made.handle, 0, "first");
  testing::RemoteFault stall;
  stall.function = "Store";
  stall.action = testing::RemoteFault::kStallAfter;
  faulty_->Add(stall);
  std::thread flusher([&] { EXPECT_EQ(Flush(made.handle), 0); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  Write(made.handle, 3, "ND!!");
  EXPECT_EQ(Size(made.attributes.node), 7);
  EXPECT_EQ(ReadAt(made.handle, 0, 10), "firND!!");
  faulty_->Release();
  flusher.join();
  EXPECT_EQ(Size(made.attributes.node), 7);
  EXPECT_EQ(fs().Status().dirty_files, 1);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "firND!!");
  EXPECT_EQ(faulty_->max_calls_at_once("Store"), 1);
}

TEST_F(WritingTest, ATruncationDuringAStoreThatFailsIsKept) {
  testing::MemoryRemoteFsOptions small;
  small.space_bytes = 12;
  UseRemote(small);
  remote_->InsideWrite("a", "0123456789");
  const FileHandle handle = OpenWrite("a");
  Write(handle, 0, "abcdefghijklm");
  testing::RemoteFault stall;
  stall.function = "Store";
  stall.action = testing::RemoteFault::kStall;
  faulty_->Add(stall);
  std::thread flusher([&] { EXPECT_EQ(Flush(handle), ENOSPC); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  EXPECT_EQ(Truncate(Find("a"), handle, 3), 0);
  EXPECT_EQ(Truncate(Find("a"), handle, 5), 0);
  faulty_->Release();
  flusher.join();
  EXPECT_EQ(ReadAt(handle, 0, 100), std::string("abc\0\0", 5));
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a"), std::string("abc\0\0", 5));
}

TEST_F(WritingTest, OneStoreAtATimeAndAWaiterCanGiveUp) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  testing::RemoteFault stall;
  stall.function = "Store";
  stall.action = testing::RemoteFault::kStall;
  faulty_->Add(stall);
  std::thread flusher([&] { EXPECT_EQ(Flush(made.handle), 0); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  Write(made.handle, 4, "more");
  EXPECT_EQ(Errno(fs().Flush(made.handle, OpContext::Within(std::chrono::milliseconds(20)))), ETIMEDOUT);
  // Other files and cached answers do not wait for it.
  EXPECT_EQ(Close(Made("b").handle), 0);
  EXPECT_EQ(Size(made.attributes.node), 8);
  faulty_->Release();
  flusher.join();
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "textmore");
}

TEST_F(WritingTest, RenameSendsFirstAndFailsWithItsError) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  FailStores(1, ENOSPC);
  EXPECT_EQ(Errno(fs().Rename(kRoot, "a", kRoot, "b", 0, Ctx())), ENOSPC);
  EXPECT_TRUE(remote_->InsideExists("a"));
  EXPECT_EQ(Errno(fs().Rename(kRoot, "a", kRoot, "b", 0, Ctx())), 0);
  EXPECT_EQ(Inside("b"), "text");
  Write(made.handle, 4, "!");
  EXPECT_EQ(Errno(fs().MakeLink(made.attributes.node, kRoot, "c", Ctx())), 0);
  EXPECT_EQ(Inside("c"), "text!");
  fs().Release(made.handle, Ctx());
}

TEST_F(WritingTest, UnsentDataFollowsRenamesOfTheDirectoryAbove) {
  for (const bool survive : {true, false}) {
    testing::MemoryRemoteFsOptions remote;
    remote.identities_survive_renames = survive;
    remote.handles_survive = survive;
    fs_.reset();
    UseRemote(remote);
    const NodeId d = fs().MakeDirectory(kRoot, "d", 0755, Ctx())->node;
    const auto made = Made("f", d);
    Write(made.handle, 0, "text");
    EXPECT_EQ(Errno(fs().Rename(kRoot, "d", kRoot, "e", 0, Ctx())), 0);
    Write(made.handle, 4, " more");
    EXPECT_EQ(Close(made.handle), 0);
    EXPECT_EQ(Inside("e/f"), "text more");
  }
}

TEST_F(WritingTest, AFileReplacedByRenameIsReadableWhileItIsOpen) {
  remote_->InsideWrite("old", "old content");
  const FileHandle handle = OpenWrite("old");
  Write(handle, 0, "OLD");
  const auto made = Made("new");
  Write(made.handle, 0, "new content");
  EXPECT_EQ(Errno(fs().Rename(kRoot, "new", kRoot, "old", 0, Ctx())), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), "OLD content");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("old"), "new content");
}

TEST_F(WritingTest, ARemovedFileIsReadAndWrittenWhileItIsOpen) {
  testing::MemoryRemoteFsOptions plain;
  plain.handles_survive = false;  // also where the other side knows only paths
  UseRemote(plain);
  const auto made = Made("tmp");
  Write(made.handle, 0, "text");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "tmp", Ctx())), 0);
  EXPECT_FALSE(remote_->InsideExists("tmp"));
  Write(made.handle, 4, " more");
  EXPECT_EQ(ReadAt(made.handle, 0, 100), "text more");
  EXPECT_EQ(Size(made.attributes.node), 9);
  EXPECT_EQ(Truncate(made.attributes.node, made.handle, 2), 0);
  EXPECT_EQ(fs().GetAttributes(made.attributes.node, Ctx())->attributes.link_count, 0u);
  // Another file of that name is another file.
  const auto again = Made("tmp");
  Write(again.handle, 0, "second");
  EXPECT_EQ(Close(again.handle), 0);
  EXPECT_EQ(ReadAt(made.handle, 0, 100), "te");
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("tmp"), "second");
  EXPECT_EQ(SpoolFiles(), 0u);
  EXPECT_EQ(fs().Status().dirty_files, 0);
}

TEST_F(WritingTest, WhereHandlesArePathsTheContentOfARemovedOpenFileIsKeptHere) {
  testing::MemoryRemoteFsOptions plain;
  plain.handles_survive = false;
  plain.hard_links_share_identity = false;
  plain.identities_survive_renames = false;
  UseRemote(plain);
  const std::string content(300'000, 'x');
  remote_->InsideWrite("a", content);
  remote_->InsideWrite("b", "bbb");
  const FileHandle a = OpenRead("a");
  const FileHandle b = OpenWrite("b");
  Write(b, 1, "B");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Close(Made("c").handle), 0);
  EXPECT_EQ(Errno(fs().Rename(kRoot, "c", kRoot, "b", 0, Ctx())), 0);
  EXPECT_TRUE(ReadAll(a) == content);
  EXPECT_EQ(ReadAt(b, 0, 10), "bBb");
  EXPECT_EQ(Close(b), 0);
  fs().Release(a, Ctx());
  EXPECT_EQ(Inside("b"), "");
  EXPECT_EQ(SpoolFiles(), 0u);
}

TEST_F(WritingTest, ARemovedNameOfALinkedFileLosesNothing) {
  remote_->InsideWrite("a", "1");
  remote_->InsideMakeLink("a", "b");
  const FileHandle handle = OpenWrite("a");
  Write(handle, 0, "22");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  Write(handle, 2, "33");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("b"), "2233");
}

TEST_F(WritingTest, ExclusiveCreationIsAnsweredByTheSandbox) {
  EXPECT_EQ(Errno(fs().Lookup(kRoot, "lock", Ctx())), ENOENT);
  remote_->InsideWrite("lock", "theirs");  // not seen here yet
  EXPECT_EQ(Errno(fs().CreateFile(kRoot, "lock", 0644, true, {true, true, false, false}, Ctx())), EEXIST);
  auto opened = fs().CreateFile(kRoot, "lock", 0644, false, {true, true, false, false}, Ctx());
  ASSERT_TRUE(opened);
  EXPECT_EQ(ReadAt(opened->handle, 0, 10), "theirs");
  EXPECT_EQ(Close(opened->handle), 0);
  auto emptied = fs().CreateFile(kRoot, "lock", 0644, false, {true, true, false, true}, Ctx());
  ASSERT_TRUE(emptied);
  EXPECT_EQ(emptied->attributes.attributes.size, 0);
  EXPECT_EQ(Close(emptied->handle), 0);
  EXPECT_EQ(Inside("lock"), "");
}

TEST_F(WritingTest, AReadOnlyModeSetWhileItIsOpenDoesNotHurt) {
  const auto made = Made("a");
  EXPECT_EQ(fs().SetAttributes(made.attributes.node, made.handle, Mode(0400), Ctx())->attributes.permissions, 0400u);
  Write(made.handle, 0, "text");
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "text");
  remote_->InsideWrite("b", "");
  const FileHandle b = OpenWrite("b");
  EXPECT_EQ(Errno(fs().SetAttributes(Find("b"), b, Mode(0400), Ctx())), 0);
  Write(b, 0, "text");
  EXPECT_EQ(Close(b), 0);
  EXPECT_EQ(Inside("b"), "text");
  EXPECT_EQ(remote_->InsideStat("b")->permissions, 0400u);
}

TEST_F(WritingTest, SyncReachesTheDisk) {
  const auto made = Made("a");
  Write(made.handle, 0, "text");
  EXPECT_EQ(Errno(fs().Sync(made.handle, Ctx())), 0);
  EXPECT_EQ(Inside("a"), "text");
  EXPECT_EQ(remote_->calls("Sync"), 1);
  Write(made.handle, 4, "more");
  FailStores(1, EDQUOT);
  EXPECT_EQ(Errno(fs().Sync(made.handle, Ctx())), EDQUOT);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "textmore");
}

TEST_F(WritingTest, ASpoolThatIsFullSendsWhatItHolds) {
  options_.spool_bytes = 100'000;
  const auto made = Made("a");
  std::string content;
  for (int i = 0; i < 40; ++i) {
    const std::string piece(10'000, static_cast<char>('a' + i % 26));
    Write(made.handle, static_cast<int64_t>(content.size()), piece);
    content += piece;
  }
  EXPECT_GT(remote_->stores().size(), 2u);
  EXPECT_EQ(ReadAll(made.handle), content);
  FailStores(-1, EIO);
  int error = 0;
  for (int i = 0; i < 20 && error == 0; ++i) {
    error = Errno(fs().Write(made.handle, static_cast<int64_t>(content.size()), std::string(10'000, 'z'), Ctx()));
    if (error == 0) content += std::string(10'000, 'z');
  }
  EXPECT_EQ(error, ENOSPC);
  faulty_->Clear();
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), content);
}

TEST_F(WritingTest, UnsentFilesAreMovedAsideWithAWordAboutThem) {
  const auto made = Made("a");
  Write(made.handle, 3, "text");
  FailStores(-1);
  EXPECT_EQ(Close(made.handle), EIO);
  const std::string kept = spool_ + "/kept";
  EXPECT_EQ(fs().SaveUnsent(kept).value_or(-1), 1);
  std::ifstream list(kept + "/UNSENT.txt");
  const std::string text{std::istreambuf_iterator<char>(list), {}};
  EXPECT_NE(text.find("sandbox: a\n"), std::string::npos) << text;
  EXPECT_NE(text.find("3+4"), std::string::npos) << text;
  std::ifstream content(kept + "/" + std::to_string(made.attributes.node) + "-a", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(content), {}};
  EXPECT_EQ(bytes, std::string("\0\0\0text", 7));
  EXPECT_EQ(fs().SaveUnsent(kept).value_or(-1), 0);
}

TEST_F(WritingTest, UnsentSpoolFilesOutliveTheMountWithANote) {
  options_.sandbox_id = "sandbox-1";
  const auto made = Made("a\nb");
  Write(made.handle, 5, "text");
  FailStores(-1);
  EXPECT_EQ(Close(made.handle), EIO);
  const std::string spooled = fs().Status().unsent.at(0).spool_file;
  fs_.reset();
  EXPECT_EQ(SpoolFiles(), 2u);
  const auto record = ReadUnsentNote(spooled + kUnsentNoteSuffix);
  ASSERT_TRUE(record) << ToString(record.error());
  EXPECT_EQ(record->path, "a\nb");
  EXPECT_EQ(record->root, "/home/user");
  EXPECT_EQ(record->sandbox_id, "sandbox-1");
  EXPECT_EQ(record->id, spooled.substr(spooled.size() - 6));
  EXPECT_TRUE(record->fresh && record->has_content);
  EXPECT_EQ(record->change.extents.extents(), (std::vector<transport::Extent>{{5, 4}}));
  EXPECT_NE(record->last_error.find("EIO"), std::string::npos) << record->last_error;
  EXPECT_EQ(record->base.id, remote_->InsideStat("a\nb")->id);
  EXPECT_EQ(record->base.size, 0);
}

// A process that is killed leaves the note as it is: it has to be true after each step.
TEST_F(WritingTest, TheNoteOfASpoolFileIsTrueAtAnyTime) {
  const auto made = Made("a");
  const auto note = [&] {
    Result<UnsentRecord> found = e2bfs::Errno(ENOENT);
    for (const auto& entry : std::filesystem::directory_iterator(spool_)) {
      if (entry.path().extension() == kUnsentNoteSuffix) found = ReadUnsentNote(entry.path());
    }
    EXPECT_TRUE(found);
    return found.value_or(UnsentRecord{});
  };
  using Extents = std::vector<transport::Extent>;
  Write(made.handle, 0, "text");
  EXPECT_EQ(note().change.extents.extents(), (Extents{{0, 4}}));
  EXPECT_TRUE(note().fresh);
  EXPECT_EQ(Flush(made.handle), 0);
  EXPECT_TRUE(note().nothing);
  const auto stored = *remote_->InsideStat("a");
  // Also when there are many ranges, which are not all written anew with each.
  for (int i = 1; i <= 500; ++i) {
    Write(made.handle, 100 * i, "more");
    const UnsentRecord now = note();
    ASSERT_EQ(now.change.extents.count(), static_cast<size_t>(i));
    ASSERT_EQ(now.change.extents.bytes(), 4 * i);
    ASSERT_FALSE(now.fresh);
    ASSERT_EQ(now.base.size, 4);
    ASSERT_EQ(now.base.mtime.tv_nsec, stored.mtime.tv_nsec);
  }
  EXPECT_EQ(Truncate(made.attributes.node, made.handle, 150), 0);
  EXPECT_EQ(note().change.extents.extents(), (Extents{{100, 4}}));
  EXPECT_EQ(note().change.cut, 150);
  EXPECT_EQ(note().change.size, 150);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(SpoolFiles(), 0u);
}

TEST_F(WritingTest, TheNoteFollowsARenamedDirectory) {
  ASSERT_TRUE(fs().MakeDirectory(kRoot, "d", 0755, Ctx()));
  const auto made = Made("a", Find("d"));
  Write(made.handle, 0, "text");
  ASSERT_TRUE(fs().Rename(kRoot, "d", kRoot, "e", 0, Ctx()));
  const auto record = ReadUnsentNote(fs().Status().unsent.at(0).spool_file + kUnsentNoteSuffix);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->path, "e/a");
  EXPECT_EQ(Close(made.handle), 0);
}

// What can never be sent does not keep the mount for ever, nor is it lost.
TEST_F(WritingTest, WhatWasWrittenToAFileThatIsGoneIsPutAside) {
  options_.unsent_directory = spool_ + "-unsent/of-this-mount";
  testing::MemoryRemoteFsOptions paths;  // a handle that survives takes it all, as on a local disk
  paths.handles_survive = false;
  UseRemote(paths);
  remote_->InsideMakeDirectory("dir");
  remote_->InsideWrite("dir/a", "old");
  const FileHandle handle = OpenWrite("dir/a");
  Write(handle, 0, "text");
  remote_->InsideRemove("dir/a");
  EXPECT_EQ(Flush(handle), ENOENT);
  EXPECT_EQ(fs().Status().dirty_files, 1);  // somebody may still look at it here
  EXPECT_EQ(ReadAt(handle, 0, 10), "text");
  EXPECT_EQ(Close(handle), ENOENT);
  EXPECT_EQ(fs().Status().dirty_files, 0);
  EXPECT_EQ(Errno(fs().FlushAll(Ctx(), nullptr)), 0);
  const std::string list = FileContent(options_.unsent_directory + "/UNSENT.txt");
  EXPECT_NE(list.find("sandbox: dir/a\n"), std::string::npos) << list;
  bool kept = false;
  for (const auto& entry : std::filesystem::directory_iterator(options_.unsent_directory)) {
    kept = kept || FileContent(entry.path()) == "text";
  }
  EXPECT_TRUE(kept);
  EXPECT_EQ(SpoolFiles(), 0u);
  EXPECT_FALSE(remote_->InsideExists("dir/a"));
  std::filesystem::remove_all(spool_ + "-unsent");
}

// What will be refused tomorrow, too, is not shown as if it were there, nor is it lost.
TEST_F(WritingTest, WhatTheSandboxRefusesIsPutAside) {
  options_.unsent_directory = spool_ + "-unsent/of-this-mount";
  remote_->InsideWrite("a", "old content");
  const FileHandle reader = OpenFor(Find("a"), {true, false, false, false});
  for (const int refusal : {EROFS, EPERM, EACCES, ETXTBSY, EFBIG}) {
    SCOPED_TRACE(refusal);
    const FileHandle handle = OpenWrite("a");
    const FileHandle other = OpenWrite("a");
    Write(handle, 0, "new");
    FailStores(-1, refusal);
    EXPECT_EQ(Flush(handle), refusal);
    EXPECT_EQ(fs().Status().dirty_files, 1);  // the other one may be about to write more
    EXPECT_EQ(Close(other), refusal);
    EXPECT_EQ(fs().Status().dirty_files, 0);
    EXPECT_EQ(Flush(handle), refusal);  // of what it wrote
    faulty_->Clear();
    EXPECT_EQ(ReadAt(reader, 0, 100), "old content");
    EXPECT_EQ(Size(Find("a")), 11);
    Write(handle, 4, "CON");  // without what was refused
    EXPECT_EQ(Close(handle), 0);
    EXPECT_EQ(Inside("a"), "old CONtent");
    remote_->InsideWrite("a", "old content");
    const std::string list = FileContent(options_.unsent_directory + "/UNSENT.txt");
    EXPECT_NE(list.find("sandbox: a\n"), std::string::npos) << list;
    EXPECT_NE(list.find(" 0+3"), std::string::npos) << list;
    std::filesystem::remove_all(spool_ + "-unsent");
  }
  EXPECT_EQ(Close(reader), 0);
}

// Its stores answer with attributes of something else.
class LyingStores : public testing::FaultyRemoteFs {
 public:
  using FaultyRemoteFs::FaultyRemoteFs;
  Result<transport::Attributes> Store(transport::Handle handle, const transport::Node& node, const transport::StoreRequest& request,
                                      const OpContext& ctx) override {
    auto stored = FaultyRemoteFs::Store(handle, node, request, ctx);
    if (stored && lie) lie(*stored);
    return stored;
  }
  std::function<void(transport::Attributes&)> lie;
};

TEST_F(WritingTest, AStoresAnswerThatIsOfSomethingElseIsNotTakenIn) {
  auto lying = std::make_unique<LyingStores>(*remote_);
  LyingStores& stores = *lying;
  faulty_ = std::move(lying);
  const auto made = Made("a");
  const std::function<void(transport::Attributes&)> lies[] = {
      [](transport::Attributes& attributes) { attributes.type = transport::FileType::kDirectory; },
      [](transport::Attributes& attributes) { attributes.id.value += "other"; },
  };
  for (const auto& lie : lies) {
    stores.lie = lie;
    Write(made.handle, 0, "text");
    EXPECT_EQ(Flush(made.handle), ESTALE);
    const auto known = fs().GetAttributes(made.attributes.node, Ctx());
    ASSERT_TRUE(known);
    EXPECT_EQ(known->attributes.type, transport::FileType::kRegular);
    EXPECT_EQ(known->attributes.id, made.attributes.attributes.id);
    EXPECT_EQ(fs().Status().dirty_files, 1);  // nothing is dropped
  }
  stores.lie = {};
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("a"), "text");
}

TEST_F(WritingTest, WithoutMoreThreadsWhatIsUnsentIsSentAllTheSame) {
  std::vector<FileHandle> handles;
  for (const char* name : {"a", "b", "c"}) {
    handles.push_back(Made(name).handle);
    Write(handles.back(), 0, "text");
  }
  fs();  // its own thread is there
  pthread_attr_t before, huge;
  pthread_getattr_default_np(&before);
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, size_t{1} << 47);  // no thread can have it
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);
  EXPECT_THROW(std::thread([] {}), std::system_error);
  EXPECT_EQ(Errno(fs().FlushAll(Ctx(), {})), 0);
  pthread_setattr_default_np(&before);
  pthread_attr_destroy(&before);
  pthread_attr_destroy(&huge);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(Inside(name), "text");
  for (const FileHandle handle : handles) EXPECT_EQ(Close(handle), 0);
}

// Where names do not show that they lead to one file, one that was removed has others that are not known: they must not lose what was written.
TEST_F(WritingTest, WhatWasWrittenToAFileThatHasOtherNamesIsPutAside) {
  options_.unsent_directory = spool_ + "-unsent/of-this-mount";
  testing::MemoryRemoteFsOptions plain;
  plain.handles_survive = false;
  plain.hard_links_share_identity = false;
  plain.identities_survive_renames = false;
  UseRemote(plain);
  for (const bool by_rename : {false, true}) {
    const std::string name = by_rename ? "c" : "a";
    SCOPED_TRACE(name);
    remote_->InsideWrite(name, "0123");
    remote_->InsideMakeLink(name, "kept");
    const FileHandle handle = OpenWrite(name);
    Write(handle, 0, "AB");  // goes before the name does
    if (by_rename) {
      EXPECT_EQ(Close(Made("other").handle), 0);
      EXPECT_EQ(Errno(fs().Rename(kRoot, "other", kRoot, name, 0, Ctx())), 0);
    } else {
      EXPECT_EQ(Errno(fs().Unlink(kRoot, name, Ctx())), 0);
    }
    EXPECT_EQ(Inside("kept"), "AB23");
    EXPECT_EQ(Flush(handle), 0);  // nothing is unsent
    Write(handle, 2, "CDE");
    EXPECT_EQ(ReadAt(handle, 0, 10), "ABCDE");
    EXPECT_EQ(Flush(handle), ESTALE);
    EXPECT_EQ(Errno(fs().Sync(handle, Ctx())), ESTALE);
    EXPECT_EQ(fs().Status().dirty_files, 1);
    EXPECT_EQ(fs().Status().dirty_bytes, 3);
    EXPECT_EQ(Close(handle), ESTALE);
    EXPECT_EQ(fs().Status().dirty_files, 0);
    EXPECT_EQ(Inside("kept"), "AB23");
    const std::string list = FileContent(options_.unsent_directory + "/UNSENT.txt");
    EXPECT_NE(list.find("sandbox: " + name + "\n"), std::string::npos) << list;
    EXPECT_NE(list.find(" 2+3"), std::string::npos) << list;
    EXPECT_NE(list.find("other names"), std::string::npos) << list;
    bool kept = false;
    for (const auto& entry : std::filesystem::directory_iterator(options_.unsent_directory)) {
      kept = kept || FileContent(entry.path()).substr(2, 3) == "CDE";
    }
    EXPECT_TRUE(kept);
    EXPECT_EQ(SpoolFiles(), 0u);
    std::filesystem::remove_all(spool_ + "-unsent");
    remote_->InsideRemove("kept");
  }
  // What could not be sent before the name went, of a file that nobody has open.
  remote_->InsideWrite("b", "0123");
  remote_->InsideMakeLink("b", "kept");
  const FileHandle handle = OpenWrite("b");
  Write(handle, 0, "AB");
  FailStores(-1, ENOSPC);
  EXPECT_EQ(Close(handle), ENOSPC);
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "b", Ctx())), 0);
  EXPECT_NE(FileContent(options_.unsent_directory + "/UNSENT.txt").find("sandbox: b\n"), std::string::npos);
  EXPECT_EQ(fs().Status().dirty_files, 0);
  std::filesystem::remove_all(spool_ + "-unsent");
}

TEST_F(WritingTest, ALinkOfAFileMadeHereIsKeptUpToDate) {
  testing::MemoryRemoteFsOptions plain;
  plain.handles_survive = false;
  plain.hard_links_share_identity = false;
  plain.identities_survive_renames = false;
  UseRemote(plain);
  const auto made = Made("a");
  ASSERT_TRUE(fs().MakeLink(made.attributes.node, kRoot, "b", Ctx()));
  Write(made.handle, 0, "text");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(Inside("b"), "text");
}

TEST_F(WritingTest, OfAnAppendThatWasDoneInPartTheRestIsSent) {
  remote_->InsideWrite("log", "old ");
  const FileHandle handle = OpenFor(Find("log"), {true, true, true, false});
  Write(handle, 0, "0123456789");
  testing::RemoteFault fault;
  fault.function = "Store";
  fault.error = Error{ENOSPC, ErrorKind::kErrno, "injected", 0, ""};
  fault.error.appended = 4;
  faulty_->Add(fault);
  EXPECT_EQ(Flush(handle), ENOSPC);
  remote_->InsideWrite("log", "old 0123");
  EXPECT_EQ(fs().Status().dirty_bytes, 6);
  Write(handle, 0, "ab");
  EXPECT_EQ(ReadAt(handle, 0, 100), "old 0123456789ab");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("log"), "old 0123456789ab");
  EXPECT_EQ(remote_->stores().back().append.value_or(transport::Extent{}), (transport::Extent{8, 8}));
}

// Takes a byte now and then for a second before it stores.
class SlowStores : public testing::FaultyRemoteFs {
 public:
  using FaultyRemoteFs::FaultyRemoteFs;
  Result<transport::Attributes> Store(transport::Handle handle, const transport::Node& node, const transport::StoreRequest& request,
                                      const OpContext& ctx) override {
    for (int i = 0; i < 10; ++i) {
      char byte;
      if (auto read = request.source->ReadAt(0, &byte, 1); !read) return Forward(read.error());
      ++taken;
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    return FaultyRemoteFs::Store(handle, node, request, ctx);
  }
  std::atomic<int> taken{0};
};

TEST_F(WritingTest, AWaiterForAStoreWaitsAsLongAsItGetsOn) {
  options_.transfer_timeout = std::chrono::milliseconds(1000);
  auto slow = std::make_unique<SlowStores>(*remote_);
  const SlowStores& stores = *slow;
  faulty_ = std::move(slow);
  const auto made = Made("a");
  const FileHandle other = OpenWrite("a");
  Write(made.handle, 0, "text");
  std::thread flusher([&] { EXPECT_EQ(Errno(fs().Flush(made.handle, OpContext{})), 0); });
  ASSERT_TRUE(Eventually([&] { return stores.taken > 0; }));
  EXPECT_EQ(Errno(fs().Flush(other, OpContext{})), 0);
  EXPECT_EQ(stores.taken, 10);
  flusher.join();
  EXPECT_EQ(Inside("a"), "text");
}

TEST_F(WritingTest, HandlesOfTheOtherSideAreClosed) {
  remote_->InsideWrite("a", "text");
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(ReadAt(handle, 0, 2), "te");
  Write(handle, 0, "x");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Close(Made("b").handle), 0);
  EXPECT_TRUE(Eventually([&] { return remote_->open_handles() == 0; }));
}

TEST_F(WritingTest, AWriteOnlyOrReadOnlyHandleIsOnlyThat) {
  remote_->InsideWrite("a", "text");
  const FileHandle reader = OpenRead("a");
  EXPECT_EQ(Errno(fs().Write(reader, 0, "x", Ctx())), EBADF);
  const FileHandle writer = OpenFor(Find("a"), {false, true, false, false});
  char byte;
  EXPECT_EQ(Errno(fs().Read(writer, 0, &byte, 1, Ctx())), EBADF);
  EXPECT_EQ(Errno(fs().Write(999, 0, "x", Ctx())), EBADF);
}

// --- what is sent while it is written

constexpr int64_t kMiB = 1 << 20;

class EarlyTest : public WritingTest {
 protected:
  static std::string Bytes(int64_t length, unsigned seed = 0) {
    std::string bytes(static_cast<size_t>(length), '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>((i + seed) * 2654435761U >> 24);
    return bytes;
  }
  // In the order and the size in which the kernel gives them.
  void WriteAll(FileHandle handle, int64_t offset, std::string_view bytes) {
    for (size_t at = 0; at < bytes.size(); at += kMiB) Write(handle, offset + static_cast<int64_t>(at), bytes.substr(at, kMiB));
  }
  // So many bytes lie ready on the other side.
  void WaitForEarly(int64_t bytes) {
    ASSERT_TRUE(Eventually([&] { return remote_->early_bytes() >= bytes; })) << remote_->early_bytes();
  }
  // Of the only store, and the content that it left.
  void ExpectStored(const std::string& path, const std::string& content, int64_t early_bytes) {
    EXPECT_TRUE(Inside(path) == content);
    const auto stores = remote_->stores();
    ASSERT_EQ(stores.size(), 1u);
    EXPECT_EQ(stores[0].early_bytes, early_bytes);
    EXPECT_EQ(stores[0].beside, 0);
    EXPECT_EQ(remote_->early_stores(), 0);
  }
  static testing::RemoteFault Stall(const std::string& function, int skip = 0) {
    testing::RemoteFault stall;
    stall.function = function;
    stall.skip = skip;
    stall.action = testing::RemoteFault::kStall;
    return stall;
  }
};

TEST_F(EarlyTest, ALargeNewFileIsSentWhileItIsWritten) {
  const auto made = Made("a");
  const std::string content = Bytes(8 * kMiB);
  WriteAll(made.handle, 0, content.substr(0, 4 * kMiB - 1));
  EXPECT_EQ(remote_->calls("BeginStore"), 0);  // it may stay a smaller one
  WriteAll(made.handle, 4 * kMiB - 1, content.substr(4 * kMiB - 1));
  WaitForEarly(8 * kMiB - kMiB);  // less than that is not worth a thread's waking
  EXPECT_EQ(Inside("a"), "");
  EXPECT_EQ(remote_->stores().size(), 0u);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->calls("BeginStore"), 1);
  EXPECT_GE(remote_->stores().at(0).early_bytes, 7 * kMiB);
  ExpectStored("a", content, remote_->stores().at(0).early_bytes);
}

TEST_F(EarlyTest, SoIsWhatReplacesAllOfAFile) {
  remote_->InsideWrite("a", "old content");
  const FileHandle handle = OpenFor(Find("a"), {true, true, false, true});
  const std::string content = Bytes(6 * kMiB);
  WriteAll(handle, 0, content);
  WaitForEarly(5 * kMiB);
  EXPECT_EQ(Inside("a"), "old content");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_GE(remote_->stores().at(0).early_bytes, 5 * kMiB);
  ExpectStored("a", content, remote_->stores().at(0).early_bytes);
}

TEST_F(EarlyTest, NotWhatChangesAPartOfAFile) {
  std::string content = Bytes(8 * kMiB);
  remote_->InsideWrite("a", content);
  const FileHandle handle = OpenWrite("a");
  WriteAll(handle, 0, Bytes(6 * kMiB, 7));
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(remote_->calls("BeginStore"), 0);
  ExpectStored("a", content.replace(0, 6 * kMiB, Bytes(6 * kMiB, 7)), 0);
}

TEST_F(EarlyTest, WhereTheOtherSideCannotItGoesAtTheClose) {
  testing::MemoryRemoteFsOptions options;
  options.early_stores = false;
  UseRemote(options);
  const auto made = Made("a");
  const std::string content = Bytes(6 * kMiB);
  WriteAll(made.handle, 0, content);
  EXPECT_EQ(Close(made.handle), 0);
  ExpectStored("a", content, 0);
  EXPECT_LE(remote_->calls("BeginStore"), 1);  // not asked again and again
}

TEST_F(EarlyTest, WhatWasSentIsGivenUpWhenItChanges) {
  const std::function<void(const OpenedFile&, std::string&)> changes[] = {
      [&](const OpenedFile& made, std::string& content) {
        Write(made.handle, 0, "another beginning");
        content.replace(0, 17, "another beginning");
      },
      [&](const OpenedFile& made, std::string& content) {
        EXPECT_EQ(Truncate(made.attributes.node, made.handle, kMiB), 0);
        content.resize(kMiB);
      },
      [&](const OpenedFile& made, std::string& content) {
        EXPECT_EQ(Truncate(made.attributes.node, made.handle, 0), 0);
        content.clear();
      },
  };
  for (const auto& change : changes) {
    fs_.reset();
    UseRemote({});
    const auto made = Made("a");
    std::string content = Bytes(6 * kMiB);
    WriteAll(made.handle, 0, content);
    WaitForEarly(5 * kMiB);
    change(made, content);
    EXPECT_TRUE(Eventually([&] { return remote_->early_stores() == 0; }));
    WriteAll(made.handle, static_cast<int64_t>(content.size()), Bytes(6 * kMiB, 3));
    content += Bytes(6 * kMiB, 3);
    EXPECT_EQ(remote_->calls("BeginStore"), 1);  // a file that is written to and fro is not sent to and fro
    EXPECT_EQ(Close(made.handle), 0);
    ExpectStored("a", content, 0);
  }
}

TEST_F(EarlyTest, WhatComesAfterWhatWasSentIsNoChangeOfIt) {
  const auto made = Made("a");
  std::string content = Bytes(6 * kMiB);
  WriteAll(made.handle, 0, content);
  WaitForEarly(5 * kMiB);
  EXPECT_EQ(Truncate(made.attributes.node, made.handle, 9 * kMiB), 0);
  EXPECT_EQ(Truncate(made.attributes.node, made.handle, 6 * kMiB), 0);
  WriteAll(made.handle, 6 * kMiB, "the end");
  content += "the end";
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_GE(remote_->stores().at(0).early_bytes, 5 * kMiB);
  ExpectStored("a", content, remote_->stores().at(0).early_bytes);
}

TEST_F(EarlyTest, AFailureInTheMiddleMakesItAWholeStore) {
  for (const char* function : {"BeginStore", "EarlyWrite"}) {
    fs_.reset();
    UseRemote({});
    faulty_->FailNth(function, function[0] == 'B' ? 1 : 5, ENOSPC);
    const auto made = Made("a");
    const std::string content = Bytes(8 * kMiB);
    WriteAll(made.handle, 0, content);
    EXPECT_TRUE(Eventually([&] { return remote_->early_stores() == 0 && faulty_->calls(function) >= (function[0] == 'B' ? 1 : 5); }));
    EXPECT_EQ(Close(made.handle), 0);
    ExpectStored("a", content, 0);
    EXPECT_EQ(faulty_->calls("BeginStore"), 1);
    EXPECT_EQ(fs().Status().last_error, "");
  }
}

TEST_F(EarlyTest, AFlushInTheMiddleTakesWhatIsThere) {
  const auto made = Made("a");
  std::string content = Bytes(6 * kMiB);
  WriteAll(made.handle, 0, content);
  WaitForEarly(5 * kMiB);
  EXPECT_EQ(Flush(made.handle), 0);
  EXPECT_GE(remote_->stores().at(0).early_bytes, 5 * kMiB);
  ExpectStored("a", content, remote_->stores().at(0).early_bytes);
  WriteAll(made.handle, 6 * kMiB, Bytes(6 * kMiB, 3));  // no longer all of it
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_EQ(remote_->calls("BeginStore"), 1);
  EXPECT_EQ(remote_->stores().at(1).extents, (std::vector<transport::Extent>{{6 * kMiB, 6 * kMiB}}));
  EXPECT_TRUE(Inside("a") == content + Bytes(6 * kMiB, 3));
}

TEST_F(EarlyTest, AStoreWaitsForThePieceUnderWayAndNoLongerThanItMay) {
  const auto made = Made("a");
  const std::string content = Bytes(6 * kMiB);
  faulty_->Add(Stall("EarlyWrite", 2));
  WriteAll(made.handle, 0, content);
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  EXPECT_EQ(Errno(fs().Flush(made.handle, OpContext::Within(std::chrono::milliseconds(20)))), ETIMEDOUT);
  EXPECT_EQ(remote_->stores().size(), 0u);
  EXPECT_EQ(fs().Status().dirty_bytes, 6 * kMiB);
  EXPECT_TRUE(Eventually([&] { return remote_->early_stores() == 0; }));
  EXPECT_EQ(Close(made.handle), 0);
  ExpectStored("a", content, 0);
}

TEST_F(EarlyTest, ASlowPieceIsWaitedFor) {
  const auto made = Made("a");
  const std::string content = Bytes(6 * kMiB);
  faulty_->Add(Stall("EarlyWrite", 2));
  WriteAll(made.handle, 0, content);
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  std::thread closer([&] { EXPECT_EQ(Close(made.handle), 0); });
  EXPECT_EQ(remote_->stores().size(), 0u);
  faulty_->Release();
  closer.join();
  EXPECT_TRUE(Inside("a") == content);
  EXPECT_EQ(remote_->stores().at(0).beside, 0);
}

TEST_F(EarlyTest, ARemovedFileIsNotSentOn) {
  const auto made = Made("a");
  faulty_->Add(Stall("EarlyWrite", 2));
  WriteAll(made.handle, 0, Bytes(6 * kMiB));
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_TRUE(ReadAll(made.handle) == Bytes(6 * kMiB));
  fs().Release(made.handle, Ctx());
  EXPECT_TRUE(Eventually([&] { return remote_->early_stores() == 0 && remote_->open_handles() == 0 && SpoolFiles() == 0; }));
  EXPECT_EQ(faulty_->stalled(), 0);
  EXPECT_EQ(remote_->stores().size(), 0u);
}

TEST_F(EarlyTest, AMountEndsWhileItIsSent) {
  const auto made = Made("a");
  faulty_->Add(Stall("EarlyWrite", 2));
  WriteAll(made.handle, 0, Bytes(6 * kMiB));
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  fs_.reset();
  EXPECT_EQ(remote_->early_stores(), 0);
  EXPECT_EQ(SpoolFiles(), 2u);  // the content and its note: nothing is lost
}

// Its early stores do not end before they may, whoever gives them up.
class EndingLate : public testing::FaultyRemoteFs {
 public:
  using FaultyRemoteFs::FaultyRemoteFs;
  class Late : public transport::EarlyStore {
   public:
    Late(EndingLate& fs, std::unique_ptr<transport::EarlyStore> inner) : fs_(fs), inner_(std::move(inner)) {}
    ~Late() override {
      fs_.ending = true;
      fs_.may_end.wait(false);
    }
    Result<void> Write(std::string_view bytes, const OpContext& ctx) override { return inner_->Write(bytes, ctx); }

   private:
    EndingLate& fs_;
    std::unique_ptr<transport::EarlyStore> inner_;
  };
  Result<std::unique_ptr<transport::EarlyStore>> BeginStore(transport::Handle handle, const transport::Node& node, bool fresh, const OpContext& ctx) override {
    auto begun = FaultyRemoteFs::BeginStore(handle, node, fresh, ctx);
    if (!begun) return begun;
    return std::unique_ptr<transport::EarlyStore>(std::make_unique<Late>(*this, std::move(*begun)));
  }
  std::atomic<bool> ending{false}, may_end{false};
};

TEST_F(EarlyTest, NothingIsStoredBeforeWhatWasGivenUpHasEnded) {
  auto late = std::make_unique<EndingLate>(*remote_);
  EndingLate& ends = *late;
  faulty_ = std::move(late);
  const auto made = Made("a");
  WriteAll(made.handle, 0, Bytes(6 * kMiB));
  WaitForEarly(5 * kMiB);
  EXPECT_EQ(Truncate(made.attributes.node, made.handle, 0), 0);
  Write(made.handle, 0, "all that is left");
  ASSERT_TRUE(Eventually([&] { return ends.ending.load(); }));
  EXPECT_EQ(Errno(fs().Flush(made.handle, OpContext::Within(std::chrono::milliseconds(20)))), ETIMEDOUT);
  EXPECT_EQ(remote_->stores().size(), 0u);
  ends.may_end = true;
  ends.may_end.notify_all();
  EXPECT_EQ(Close(made.handle), 0);
  ExpectStored("a", "all that is left", 0);
}

}  // namespace
}  // namespace e2bfs::cache
