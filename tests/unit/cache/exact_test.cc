// What programs that know Unix well rely on: files that lose their names, ranges, extended attributes, and what it costs.
#include <fcntl.h>
#include <linux/falloc.h>

#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

using transport::SeekTarget;

class ExactTest : public CacheFixture {
 protected:
  static constexpr OpenFlags kReadWrite{true, true, false, false};
  static constexpr OpenFlags kAppend{false, true, true, false};
  static constexpr OpenFlags kOverwrite{false, true, false, true};
  uint32_t Links(NodeId node) {
    auto attributes = fs().GetAttributes(node, Ctx());
    return attributes ? attributes->attributes.link_count : 999;
  }
  static transport::AttributeChange Mode(uint32_t permissions) {
    transport::AttributeChange change;
    change.permissions = permissions;
    return change;
  }
  int64_t Seek(FileHandle handle, int64_t offset, SeekTarget target) {
    auto found = fs().Seek(handle, offset, target, Ctx());
    return found ? *found : -found.error().errno_value;
  }
  int Allocate(FileHandle handle, uint32_t mode, int64_t offset, int64_t length) {
    return Errno(fs().Allocate(handle, mode, {offset, length}, Ctx()));
  }
};

// --- costs

TEST_F(ExactTest, ASmallFileIsReadOverwrittenAndAppendedToInOneCallEach) {
  for (const bool opens_soon : {true, false}) {
    testing::MemoryRemoteFsOptions options;
    options.opens_soon = opens_soon;
    UseRemote(options);
    remote_->InsideWrite("a", "old content");
    const NodeId a = Find("a");
    remote_->ResetCalls();
    EXPECT_EQ(Content("a"), "old content");
    EXPECT_EQ(remote_->total_calls(), 1) << opens_soon;
    FileHandle handle = OpenFor(a, kOverwrite);
    Write(handle, 0, "new");
    EXPECT_EQ(Close(handle), 0);
    EXPECT_EQ(remote_->total_calls(), 2) << opens_soon;
    EXPECT_EQ(Inside("a"), "new");
    handle = OpenFor(a, kAppend);
    Write(handle, 0, " and more");
    EXPECT_EQ(Close(handle), 0);
    EXPECT_EQ(Size(a), 12);
    EXPECT_EQ(remote_->total_calls(), 3) << opens_soon;
    EXPECT_EQ(Inside("a"), "new and more");
    EXPECT_TRUE(Eventually([&] { return remote_->open_handles() == 0; }));
  }
}

TEST_F(ExactTest, AChangeOfNamesIsOneCall) {
  remote_->InsideWrite("f", "1");
  List(kRoot);
  const NodeId f = Find("f");
  remote_->ResetCalls();
  int64_t expected = 0;
  const auto one_more = [&](const char* what) {
    for (const NodeId node : {kRoot, f}) EXPECT_EQ(Errno(fs().GetAttributes(node, Ctx())), 0) << what;
    EXPECT_EQ(remote_->total_calls(), ++expected) << what;
  };
  auto d = fs().MakeDirectory(kRoot, "d", 0755, Ctx());
  one_more("mkdir");
  EXPECT_EQ(Errno(fs().Lookup(d->node, "not there", Ctx())), ENOENT);
  EXPECT_TRUE(List(d->node).empty());
  EXPECT_EQ(Errno(fs().MakeLink(f, d->node, "g", Ctx())), 0);
  one_more("link");
  EXPECT_EQ(Links(f), 2u);
  EXPECT_EQ(Errno(fs().MakeSymlink(d->node, "s", "../f", Ctx())), 0);
  one_more("symlink");
  EXPECT_EQ(Errno(fs().Rename(d->node, "g", kRoot, "h", 0, Ctx())), 0);
  one_more("rename");
  EXPECT_EQ(Errno(fs().GetAttributes(d->node, Ctx())), 0);
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "h", Ctx())), 0);
  one_more("unlink");
  EXPECT_EQ(Links(f), 1u);
  EXPECT_EQ(Errno(fs().SetAttributes(f, 0, Mode(0600), Ctx())), 0);
  one_more("chmod");
  EXPECT_EQ(Errno(fs().Unlink(d->node, "s", Ctx())), 0);
  one_more("unlink of a symlink");
  EXPECT_EQ(Errno(fs().RemoveDirectory(kRoot, "d", Ctx())), 0);
  one_more("rmdir");
  EXPECT_EQ(List(kRoot), std::vector<std::string>{"f"});
  EXPECT_EQ(remote_->total_calls(), expected);
}

// --- files that lose their names

TEST_F(ExactTest, AFileRemovedInTheSandboxIsReadWrittenAndChangedWhileItIsOpen) {
  options_.attribute_ttl = kNoTtl;
  remote_->InsideWrite("a", "0123456789");
  const NodeId a = Find("a");
  const FileHandle handle = OpenFor(a, kReadWrite);
  remote_->InsideRemove("a");
  remote_->InsideWrite("a", "another file");
  EXPECT_EQ(ReadAt(handle, 0, 100), "0123456789");
  EXPECT_EQ(Links(a), 0u);
  EXPECT_EQ(Size(a), 10);
  Write(handle, 2, "xx");
  EXPECT_EQ(Truncate(a, handle, 6), 0);
  EXPECT_EQ(fs().SetAttributes(a, handle, Mode(0640), Ctx())->attributes.permissions, 0640u);
  EXPECT_EQ(Flush(handle), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), "01xx45");
  EXPECT_EQ(fs().GetAttributes(a, Ctx())->attributes.permissions, 0640u);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a"), "another file");
  EXPECT_NE(Find("a"), a);
  EXPECT_TRUE(Eventually([&] { return remote_->open_handles() == 0; }));
}

TEST_F(ExactTest, AFileRenamedInTheSandboxIsReadWrittenAndChangedWhileItIsOpen) {
  options_.attribute_ttl = kNoTtl;
  remote_->InsideWrite("a", "0123456789");
  const NodeId a = Find("a");
  const FileHandle handle = OpenFor(a, kReadWrite);
  remote_->InsideRename("a", "b");
  EXPECT_EQ(ReadAt(handle, 0, 100), "0123456789");
  Write(handle, 10, "ab");
  EXPECT_EQ(Size(a), 12);
  EXPECT_EQ(Flush(handle), 0);
  EXPECT_EQ(Links(a), 1u);
  EXPECT_EQ(Errno(fs().SetAttributes(a, handle, Mode(0600), Ctx())), 0);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("b"), "0123456789ab");
  EXPECT_EQ(remote_->InsideStat("b")->permissions, 0600u);
  EXPECT_EQ(Find("b"), a);
}

TEST_F(ExactTest, AFileRenamedHereWhileItIsOpenNeedsNoOpenToBeWaitedFor) {
  remote_->InsideWrite("a", "text");
  const NodeId a = Find("a");
  const FileHandle handle = OpenFor(a, kReadWrite);
  remote_->ResetCalls();
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(remote_->total_calls(), 1);
  EXPECT_EQ(ReadAt(handle, 0, 100), "text");
  EXPECT_EQ(Links(a), 0u);
  EXPECT_EQ(Close(handle), 0);
}

TEST_F(ExactTest, AnOpenThatFailedLaterShowsAtItsFirstUseAndIsTriedAgain) {
  remote_->InsideWrite("a", "text");
  remote_->InsideWrite("b", "text");
  const NodeId a = Find("a"), b = Find("b");
  // Not seen here: known attributes are an hour old.
  remote_->InsideReplace("a", "other");
  remote_->InsideSetPermissions("b", 0);
  remote_->InsideSetOwner("b", 1000, 1000);
  const FileHandle stale = OpenFor(a, {});
  EXPECT_EQ(ReadAt(stale, 0, 10), "error ESTALE");
  fs().Release(stale, Ctx());
  const FileHandle denied = OpenFor(b, kReadWrite);
  EXPECT_EQ(ReadAt(denied, 0, 10), "error EACCES");
  Write(denied, 0, "TEXT");
  EXPECT_EQ(Flush(denied), EACCES);
  remote_->InsideSetPermissions("b", 0600);
  EXPECT_EQ(Flush(denied), 0);
  EXPECT_EQ(Inside("b"), "TEXT");
  EXPECT_EQ(Close(denied), 0);
  EXPECT_TRUE(Eventually([&] { return remote_->open_handles() == 0; }));
}

TEST_F(ExactTest, AppendsThroughTwoHandlesAndATruncationThroughAThird) {
  remote_->InsideWrite("a", "0");
  const NodeId a = Find("a");
  const FileHandle one = OpenFor(a, kAppend), two = OpenFor(a, kAppend), cutter = OpenFor(a, kReadWrite);
  Write(one, 0, "1");
  Write(two, 0, "2");
  Write(one, 0, "3");
  EXPECT_EQ(ReadAt(cutter, 0, 10), "0123");
  EXPECT_EQ(Truncate(a, cutter, 2), 0);
  Write(two, 0, "4");
  EXPECT_EQ(ReadAt(cutter, 0, 10), "014");
  EXPECT_EQ(Close(one), 0);
  EXPECT_EQ(Close(two), 0);
  EXPECT_EQ(Close(cutter), 0);
  EXPECT_EQ(Inside("a"), "014");
}

// --- hard links

TEST_F(ExactTest, AllNamesOfAFileShowWhatWasChangedThroughOne) {
  remote_->InsideWrite("a", "1");
  remote_->InsideMakeDirectory("d");
  remote_->InsideMakeLink("a", "d/b");
  const NodeId a = Find("a");
  ASSERT_EQ(Find("d/b"), a);
  const FileHandle handle = OpenFor(a, kReadWrite);
  Write(handle, 0, "22");
  EXPECT_EQ(Content("d/b"), "22");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Links(a), 1u);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("d/b"), "22");
  EXPECT_EQ(fs().PathOf(a), "/home/user/d/b");
  ASSERT_TRUE(fs().MakeLink(a, kRoot, "c", Ctx()));
  EXPECT_EQ(Errno(fs().Rename(kRoot, "c", Find("d"), "b", 0, Ctx())), 0);  // two names of one file: nothing happens
  EXPECT_TRUE(remote_->InsideExists("c"));
  EXPECT_EQ(Links(a), 2u);
}

TEST_F(ExactTest, AFileIsFoundByItsOtherNameWhenOneWentInTheSandbox) {
  remote_->InsideWrite("a", "1");
  remote_->InsideMakeLink("a", "b");
  options_.attribute_ttl = kNoTtl;
  const NodeId a = Find("a");
  ASSERT_EQ(Find("b"), a);  // its path from now on
  remote_->InsideRemove("b");
  EXPECT_EQ(Links(a), 1u);
  EXPECT_EQ(Content("a"), "1");
  EXPECT_EQ(Errno(fs().SetAttributes(a, 0, Mode(0600), Ctx())), 0);
}

TEST_F(ExactTest, ANameThatLedToAnotherFileByNowTakesThatOne) {
  remote_->InsideWrite("a", "1");
  remote_->InsideMakeLink("a", "kept");
  remote_->InsideWrite("b", "other");
  const NodeId a = Find("a"), b = Find("b");
  const FileHandle handle = OpenFor(a, kReadWrite), other = OpenFor(b, kReadWrite);
  remote_->InsideRename("b", "a");  // not seen here
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Links(b), 0u);
  Write(handle, 1, "2");
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("kept"), "12");
  EXPECT_EQ(ReadAt(other, 0, 10), "other");
  EXPECT_EQ(Close(other), 0);
}

// --- ranges

TEST_F(ExactTest, HolesAreAskedForAfterWhatIsUnsentWasSent) {
  remote_->InsideWrite("a", "0123456789");
  const FileHandle handle = OpenWrite("a");
  Write(handle, 10, "ab");
  EXPECT_EQ(Seek(handle, 3, SeekTarget::kData), 3);
  EXPECT_EQ(Inside("a"), "0123456789ab");
  EXPECT_EQ(Seek(handle, 3, SeekTarget::kHole), 12);
  EXPECT_EQ(Seek(handle, 12, SeekTarget::kData), -ENXIO);
  EXPECT_EQ(remote_->calls("Seek"), 3);
  EXPECT_EQ(Close(handle), 0);
}

TEST_F(ExactTest, WhereHolesCannotBeToldAllIsData) {
  testing::MemoryRemoteFsOptions plain;
  plain.ranges = false;
  UseRemote(plain);
  remote_->InsideWrite("a", "0123456789");
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(Seek(handle, 3, SeekTarget::kData), 3);
  EXPECT_EQ(Seek(handle, 3, SeekTarget::kHole), 10);
  EXPECT_EQ(Seek(handle, 10, SeekTarget::kHole), -ENXIO);
  EXPECT_EQ(Seek(handle, -1, SeekTarget::kData), -ENXIO);
  EXPECT_EQ(Allocate(handle, 0, 0, 100), EOPNOTSUPP);
  EXPECT_EQ(Errno(fs().CopyRange(handle, 0, handle, {20, 5}, Ctx())), EOPNOTSUPP);
  Write(handle, 0, "x");
  EXPECT_EQ(Size(Find("a")), 10);
  EXPECT_EQ(Close(handle), 0);
}

TEST_F(ExactTest, AllocationIsDoneInTheSandboxAndSeenHere) {
  remote_->InsideWrite("a", "0123456789");
  const NodeId a = Find("a");
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(ReadAt(handle, 0, 100), "0123456789");
  Write(handle, 0, "ABCD");
  EXPECT_EQ(Allocate(handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 4), 0);
  EXPECT_EQ(ReadAt(handle, 0, 100), std::string("AB\0\0\0\0" "6789", 10));
  EXPECT_EQ(Inside("a"), std::string("AB\0\0\0\0" "6789", 10));
  EXPECT_EQ(Allocate(handle, FALLOC_FL_ZERO_RANGE, 9, 3), 0);
  EXPECT_EQ(Size(a), 12);
  EXPECT_EQ(Allocate(handle, 0, 0, 20), 0);
  EXPECT_EQ(Size(a), 20);
  EXPECT_EQ(Allocate(handle, FALLOC_FL_KEEP_SIZE, 0, 30), 0);
  EXPECT_EQ(Size(a), 20);
  EXPECT_EQ(ReadAt(handle, 8, 100), std::string("8\0\0\0\0\0\0\0\0\0\0\0", 12));
  Write(handle, 20, "end");
  EXPECT_EQ(Allocate(handle, 0, 0, 0), EINVAL);
  EXPECT_EQ(Allocate(handle, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP);
  EXPECT_EQ(Allocate(OpenRead("a"), 0, 0, 30), EBADF);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(Inside("a").size(), 23u);
}

TEST_F(ExactTest, ARemovedFileIsAllocatedHere) {
  const auto made = Made("a");
  Write(made.handle, 0, "0123456789");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Allocate(made.handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5, 100), 0);
  EXPECT_EQ(ReadAt(made.handle, 0, 100), std::string("01234\0\0\0\0\0", 10));
  EXPECT_EQ(Allocate(made.handle, 0, 0, 12), 0);
  EXPECT_EQ(Size(made.attributes.node), 12);
  EXPECT_EQ(Seek(made.handle, 0, SeekTarget::kHole), 12);
  EXPECT_EQ(Close(made.handle), 0);
}

TEST_F(ExactTest, CopiesAreMadeInTheSandboxOfWhatWasWrittenHere) {
  remote_->InsideWrite("a", "0123456789");
  remote_->InsideWrite("b", "bbbb");
  const FileHandle a = OpenWrite("a"), b = OpenWrite("b");
  EXPECT_EQ(ReadAt(b, 0, 10), "bbbb");
  Write(a, 0, "A");
  Write(b, 0, "B");
  EXPECT_EQ(fs().CopyRange(a, 0, b, {2, 6}, Ctx()).value_or(0), 6u);
  EXPECT_EQ(Inside("b"), "BbA12345");
  EXPECT_EQ(ReadAt(b, 0, 100), "BbA12345");
  EXPECT_EQ(Size(Find("b")), 8);
  EXPECT_EQ(remote_->calls("Read"), 1 + 1);
  EXPECT_EQ(fs().CopyRange(a, 8, b, {0, 100}, Ctx()).value_or(0), 2u);  // as much as there is
  EXPECT_EQ(fs().CopyRange(a, 10, b, {0, 100}, Ctx()).value_or(99), 0u);
  EXPECT_EQ(fs().CopyRange(a, 0, a, {20, 4}, Ctx()).value_or(0), 4u);
  EXPECT_EQ(ReadAt(a, 18, 100), std::string("\0\0A123", 6));
  EXPECT_EQ(Errno(fs().CopyRange(a, 0, OpenRead("b"), {0, 4}, Ctx())), EBADF);
  EXPECT_EQ(Close(a), 0);
  EXPECT_EQ(Close(b), 0);
}

TEST_F(ExactTest, AnAnswerThatWasLostLeavesNothingOldBehind) {
  remote_->InsideWrite("a", "0123456789");
  const NodeId a = Find("a");
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(ReadAt(handle, 0, 100), "0123456789");
  const uint64_t before = fs().GetAttributes(a, Ctx())->content_generation;
  testing::RemoteFault lost;
  lost.function = "Allocate";
  lost.action = testing::RemoteFault::kDoAndFail;
  faulty_->Add(lost);
  EXPECT_EQ(Allocate(handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 5), EIO);
  EXPECT_NE(fs().GetAttributes(a, Ctx())->content_generation, before);
  EXPECT_EQ(ReadAt(handle, 0, 100), std::string("\0\0\0\0\0" "56789", 10));
  EXPECT_EQ(Close(handle), 0);
}

// --- extended attributes

TEST_F(ExactTest, WhichExtendedAttributesThereAreIsKnownWithTheOthers) {
  remote_->InsideWrite("a", "1");
  List(kRoot);
  const NodeId a = Find("a");
  remote_->ResetCalls();
  EXPECT_TRUE(fs().ListXattrs(a, Ctx())->empty());
  EXPECT_EQ(Errno(fs().GetXattr(a, "user.x", Ctx())), ENODATA);
  EXPECT_EQ(remote_->total_calls(), 0);
  EXPECT_EQ(Errno(fs().SetXattr(a, "user.x", "value", 0, Ctx())), 0);
  EXPECT_EQ(*fs().ListXattrs(a, Ctx()), std::vector<std::string>{"user.x"});
  EXPECT_EQ(remote_->total_calls(), 1);
  EXPECT_EQ(fs().GetXattr(a, "user.x", Ctx()).value_or("?"), "value");
  EXPECT_EQ(Errno(fs().RemoveXattr(a, "user.x", Ctx())), 0);
  EXPECT_EQ(Errno(fs().GetXattr(a, "user.x", Ctx())), ENODATA);
  EXPECT_EQ(remote_->total_calls(), 3);
  // Its ctime came with the answers.
  EXPECT_EQ(fs().GetAttributes(a, Ctx())->attributes.ctime.tv_nsec, remote_->InsideStat("a")->ctime.tv_nsec);
  EXPECT_EQ(remote_->total_calls(), 3);
}

TEST_F(ExactTest, ExtendedAttributesOfAnOpenFileWithoutAName) {
  remote_->InsideWrite("a", "1");
  const NodeId a = Find("a");
  auto opened = fs().Open(a, OpenFlags{true, true}, Ctx());
  ASSERT_TRUE(opened);
  EXPECT_EQ(Errno(fs().SetXattr(a, "user.x", "1", 0, Ctx())), 0);
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "a", Ctx())), 0);
  EXPECT_EQ(Errno(fs().SetXattr(a, "user.y", "2", 0, Ctx())), 0);
  EXPECT_EQ(fs().GetXattr(a, "user.x", Ctx()).value_or("?"), "1");
  EXPECT_EQ(fs().ListXattrs(a, Ctx())->size(), 2u);
  EXPECT_EQ(Errno(fs().RemoveXattr(a, "user.x", Ctx())), 0);
  EXPECT_EQ(Close(opened->handle), 0);
}

TEST_F(ExactTest, WithoutNamesEachExtendedAttributeIsAskedFor) {
  testing::MemoryRemoteFsOptions plain;
  plain.attributes_carry_xattr_names = false;
  UseRemote(plain);
  remote_->InsideWrite("a", "1");
  const NodeId a = Find("a");
  EXPECT_EQ(Errno(fs().SetXattr(a, "user.x", "value", 0, Ctx())), 0);
  EXPECT_EQ(*fs().ListXattrs(a, Ctx()), std::vector<std::string>{"user.x"});
  EXPECT_EQ(fs().GetXattr(a, "user.x", Ctx()).value_or("?"), "value");
  EXPECT_EQ(Errno(fs().GetXattr(a, "user.y", Ctx())), ENODATA);
  EXPECT_EQ(remote_->calls("ListXattrs"), 1);
  EXPECT_EQ(remote_->calls("GetXattr"), 2);
}

TEST_F(ExactTest, TheDirectoryOfANodeIsKnown) {
  remote_->InsideMakeDirectory("d");
  remote_->InsideWrite("d/f", "1");
  const NodeId f = Find("d/f");
  EXPECT_EQ(fs().ParentOf(f), Find("d"));
  EXPECT_EQ(fs().ParentOf(Find("d")), kRoot);
  EXPECT_EQ(fs().ParentOf(kRoot), kRoot);
  EXPECT_EQ(fs().ParentOf(123456), 0u);
}

}  // namespace
}  // namespace e2bfs::cache
