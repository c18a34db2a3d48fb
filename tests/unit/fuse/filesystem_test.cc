#include "fuse/filesystem.h"

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "tests/support/memory_remote_fs.h"

namespace e2bfs::fuse {
namespace {

using ::testing::ElementsAre;

class FilesystemTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-fuse-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    spool_ = pattern;
    Start({});
  }
  void TearDown() override {
    filesystem_.reset();
    cached_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(spool_, ignored);
  }

  void Start(FilesystemOptions options, std::chrono::milliseconds ttl = std::chrono::hours(1)) {
    filesystem_.reset();
    cached_.reset();
    cache::CachedFsOptions cache_options;
    cache_options.spool_directory = spool_;
    cache_options.attribute_ttl = ttl;
    cache_options.negative_ttl = ttl;
    auto cached = cache::CachedFs::Create(memory_, cache_options, ctx_);
    ASSERT_TRUE(cached) << ToString(cached.error());
    cached_ = std::move(*cached);
    options.identity.uid = 4711;
    options.identity.gid = 4712;
    options.mount_point = "/mnt/box";
    filesystem_ = std::make_unique<Filesystem>(*cached_, options, [this](const Outdated& outdated) {
      if (outdated.pages) invalidated_.push_back(outdated.node);
    });
  }

  NodeId Find(const std::string& name, NodeId parent = cache::kRoot) {
    auto found = filesystem_->Lookup(parent, name, ctx_);
    EXPECT_TRUE(found) << name;
    return found ? found->node : 0;
  }
  std::string ReadAll(NodeId node) {
    auto opened = filesystem_->Open(node, O_RDONLY, ctx_);
    if (!opened) return "open: " + ErrnoName(opened.error().errno_value);
    char buffer[4096];
    auto got = filesystem_->Read(opened->handle, 0, buffer, sizeof buffer, ctx_);
    filesystem_->Release(opened->handle, ctx_);
    return got ? std::string(buffer, *got) : "read: " + ErrnoName(got.error().errno_value);
  }
  template <typename T>
  static int ErrnoOf(const Result<T>& result) {
    return result ? 0 : result.error().errno_value;
  }

  OpContext ctx_ = OpContext::Within(std::chrono::minutes(5));
  testing::MemoryRemoteFs memory_;
  std::string spool_;
  std::unique_ptr<cache::CachedFs> cached_;
  std::unique_ptr<Filesystem> filesystem_;
  std::vector<NodeId> invalidated_;
};

TEST_F(FilesystemTest, AttributesAreShownAsTheMountingUsers) {
  memory_.InsideWrite("f", std::string(1000, 'x'));
  memory_.InsideSetPermissions("f", 04751);
  memory_.InsideMakeSymlink("s", "f");
  FilesystemOptions options;
  options.identity.umask = 0007;
  Start(options);
  const auto file = filesystem_->Lookup(cache::kRoot, "f", ctx_);
  ASSERT_TRUE(file);
  EXPECT_EQ(file->attributes.st_mode, S_IFREG | 04750u);
  EXPECT_EQ(file->attributes.st_uid, 4711u);
  EXPECT_EQ(file->attributes.st_gid, 4712u);
  EXPECT_EQ(file->attributes.st_size, 1000);
  EXPECT_EQ(file->attributes.st_ino, file->node);
  EXPECT_GE(file->attributes.st_blocks, 2);
  EXPECT_GT(file->valid_for.count(), 0);
  const auto link = filesystem_->Lookup(cache::kRoot, "s", ctx_);
  ASSERT_TRUE(link);
  EXPECT_EQ(link->attributes.st_mode, S_IFLNK | 0777u);
  const auto root = filesystem_->GetAttr(cache::kRoot, false, ctx_);
  ASSERT_TRUE(root);
  EXPECT_TRUE(S_ISDIR(root->attributes.st_mode));
  EXPECT_EQ(root->attributes.st_ino, cache::kRoot);
}

TEST_F(FilesystemTest, ChownToTheShownOwnerCostsNothing) {
  memory_.InsideWrite("f", "x");
  const NodeId node = Find("f");
  memory_.ResetCalls();
  SetAttrRequest request;
  request.uid = 4711;
  request.gid = 4712;
  EXPECT_EQ(ErrnoOf(filesystem_->SetAttr(node, 0, request, ctx_)), 0);
  EXPECT_EQ(memory_.total_calls(), 0);
  request.uid = 0;
  EXPECT_EQ(ErrnoOf(filesystem_->SetAttr(node, 0, request, ctx_)), EPERM);
  request.uid.reset();
  request.mode = S_IFREG | 0600;
  EXPECT_EQ(ErrnoOf(filesystem_->SetAttr(node, 0, request, ctx_)), 0);
  EXPECT_EQ(memory_.InsideStat("f")->permissions, 0600u);
}

TEST_F(FilesystemTest, SetAttrChangesSizeAndTimes) {
  memory_.InsideWrite("f", "hello");
  const NodeId node = Find("f");
  SetAttrRequest request;
  request.size = 2;
  request.mtime = transport::TimeChange{false, {12345, 678}};
  const auto changed = filesystem_->SetAttr(node, 0, request, ctx_);
  ASSERT_TRUE(changed);
  EXPECT_EQ(changed->attributes.st_size, 2);
  EXPECT_EQ(changed->attributes.st_mtim.tv_sec, 12345);
  EXPECT_EQ(changed->attributes.st_mtim.tv_nsec, 678);
  EXPECT_EQ(memory_.InsideRead("f"), "he");
  request = {};
  request.size = -1;
  EXPECT_EQ(ErrnoOf(filesystem_->SetAttr(node, 0, request, ctx_)), EINVAL);
}

TEST_F(FilesystemTest, AccessIsWhatTheSandboxsUserMayDo) {
  memory_.InsideWrite("f", "x");
  memory_.InsideSetPermissions("f", 0400);
  const NodeId node = Find("f");
  EXPECT_EQ(ErrnoOf(filesystem_->Access(node, F_OK, ctx_)), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->Access(node, R_OK, ctx_)), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->Access(node, W_OK, ctx_)), EACCES);
  EXPECT_EQ(ErrnoOf(filesystem_->Access(node, X_OK, ctx_)), EACCES);
}

TEST_F(FilesystemTest, ListingsBeginWithTheDotsAndGoOnWhereTheyStopped) {
  for (const char* name : {"a", "b", "c"}) memory_.InsideWrite(name, name);
  const auto directory = filesystem_->OpenDir(cache::kRoot, ctx_);
  ASSERT_TRUE(directory);
  // One entry for each call, as with a tiny buffer.
  std::vector<std::string> names;
  std::set<uint64_t> positions;
  uint64_t position = 0;
  for (int calls = 0; calls < 10; ++calls) {
    bool one = false;
    const uint64_t before = position;
    ASSERT_TRUE(filesystem_->ReadDir(
        cache::kRoot, *directory, position, true,
        [&](const DirectoryItem& item) {
          if (one) return false;
          one = true;
          names.push_back(item.name);
          position = item.next;
          EXPECT_EQ(item.node.node == 0, item.name.front() == '.');
          if (item.node.node != 0) filesystem_->Forget(item.node.node, 1);
          return true;
        },
        ctx_));
    if (!one) break;
    EXPECT_TRUE(positions.insert(position).second);
    EXPECT_NE(position, before);
  }
  EXPECT_THAT(names, ElementsAre(".", "..", "a", "b", "c"));
  filesystem_->ReleaseDir(*directory);
}

TEST_F(FilesystemTest, LinksAreShownByThePolicyWhereTheyAreNow) {
  memory_.InsideMakeDirectory("d");
  memory_.InsideMakeSymlink("d/up", "../f");
  memory_.InsideMakeSymlink("out", "/etc/passwd");
  memory_.InsideMakeSymlink("d/abs", "/home/user/f");
  const NodeId d = Find("d");
  const NodeId up = Find("up", d);
  EXPECT_EQ(filesystem_->ReadLink(up, ctx_).value(), "../f");
  EXPECT_EQ(filesystem_->ReadLink(Find("out"), ctx_).value(), ".e2bfs-outside/%2Fetc%2Fpasswd");
  EXPECT_EQ(filesystem_->ReadLink(Find("abs", d), ctx_).value(), "../f");
  // Moved to the root, the same text leads out.
  ASSERT_TRUE(filesystem_->Rename(d, "up", cache::kRoot, "up", 0, ctx_));
  EXPECT_EQ(filesystem_->ReadLink(up, ctx_).value(), ".e2bfs-outside/..%2Ff");
  // What is made here.
  ASSERT_TRUE(filesystem_->Symlink("/mnt/box/d", cache::kRoot, "made", ctx_));
  EXPECT_EQ(memory_.InsideRead("made"), "/home/user/d");
  ASSERT_TRUE(filesystem_->Symlink(".e2bfs-outside/%2Fetc", cache::kRoot, "restored", ctx_));
  EXPECT_EQ(memory_.InsideRead("restored"), "/etc");
}

TEST_F(FilesystemTest, NoMoveInsideMakesALinkLeadOut) {
  for (const char* path : {"D", "a", "a/b", "a/b/c", "a/b/c/E"}) memory_.InsideMakeDirectory(path);
  memory_.InsideMakeSymlink("D/out", "../../secret");
  memory_.InsideMakeSymlink("a/b/c/E/in", "../../../../f");
  const NodeId d = Find("D"), out = Find("out", d);
  const NodeId c = Find("c", Find("b", Find("a"))), e = Find("E", c), in = Find("in", e);
  EXPECT_EQ(filesystem_->ReadLink(out, ctx_).value(), ".e2bfs-outside/..%2F..%2Fsecret");
  EXPECT_EQ(filesystem_->ReadLink(in, ctx_).value(), "../../../../f");
  // Somebody is in D: the kernel keeps it where it was, whatever it is told.
  memory_.InsideRename("D", "a/b/c/D");
  memory_.InsideTell("D");
  memory_.InsideTell("a/b/c/D");
  EXPECT_EQ(filesystem_->ReadLink(out, ctx_).value(), ".e2bfs-outside/..%2F..%2Fsecret");
  for (int i = 0; i < 3; ++i) Find("D", c);
  EXPECT_EQ(filesystem_->ReadLink(out, ctx_).value(), ".e2bfs-outside/..%2F..%2Fsecret");
  // And a text that was read is not overtaken by a move of its directory.
  memory_.InsideRename("a/b/c/E", "E");
  memory_.InsideTell("a/b/c/E");
  memory_.InsideTell("E");
  EXPECT_NE(Find("E"), e);
}

TEST_F(FilesystemTest, ARenameHereCountsForLinksFromBeforeItIsDone) {
  for (const char* path : {"a", "a/b", "a/b/D"}) memory_.InsideMakeDirectory(path);
  memory_.InsideMakeSymlink("a/b/D/l", "../../../f");
  const NodeId a = Find("a"), b = Find("b", a), l = Find("l", Find("D", b));
  EXPECT_EQ(filesystem_->ReadLink(l, ctx_).value(), "../../../f");
  ASSERT_TRUE(filesystem_->Rename(b, "D", cache::kRoot, "D", 0, ctx_));
  // Back inside at once, while the kernel has it at the root.
  memory_.InsideRename("D", "a/b/D");
  memory_.InsideTell("D");
  memory_.InsideTell("a/b/D");
  EXPECT_EQ(filesystem_->ReadLink(l, ctx_).value(), ".e2bfs-outside/..%2F..%2F..%2Ff");
}

TEST_F(FilesystemTest, AHardLinkNearerToTheRootMakesALinkLeadOut) {
  memory_.InsideMakeDirectory("d");
  memory_.InsideMakeSymlink("d/l", "../f");
  ASSERT_TRUE(memory_.InsideMakeLink("d/l", "l"));
  const NodeId deep = Find("l", Find("d"));
  EXPECT_EQ(filesystem_->ReadLink(deep, ctx_).value(), "../f");
  const NodeId near = Find("l");
  EXPECT_EQ(near, deep);  // one inode: the kernel asks about it without saying by which name it came
  EXPECT_EQ(filesystem_->ReadLink(near, ctx_).value(), ".e2bfs-outside/..%2Ff");
}

TEST_F(FilesystemTest, CreatingAndWritingAndReadingBack) {
  const auto created = filesystem_->Create(cache::kRoot, "f", 0644, O_RDWR | O_CREAT | O_EXCL, ctx_);
  ASSERT_TRUE(created);
  EXPECT_FALSE(created->file.no_flush);
  EXPECT_EQ(memory_.InsideRead("f"), "");  // there, and empty
  EXPECT_EQ(filesystem_->Write(created->file.handle, 0, "content", ctx_).value(), 7u);
  EXPECT_EQ(filesystem_->GetAttr(created->node.node, false, ctx_)->attributes.st_size, 7);
  EXPECT_EQ(ErrnoOf(filesystem_->Flush(created->file.handle, ctx_)), 0);
  EXPECT_EQ(memory_.InsideRead("f"), "content");
  filesystem_->Release(created->file.handle, ctx_);
  EXPECT_EQ(ErrnoOf(filesystem_->Create(cache::kRoot, "f", 0644, O_RDWR | O_CREAT | O_EXCL, ctx_)), EEXIST);
  EXPECT_EQ(ReadAll(created->node.node), "content");
  const auto truncated = filesystem_->Open(created->node.node, O_WRONLY | O_TRUNC, ctx_);
  ASSERT_TRUE(truncated);
  EXPECT_EQ(ErrnoOf(filesystem_->Flush(truncated->handle, ctx_)), 0);
  filesystem_->Release(truncated->handle, ctx_);
  EXPECT_EQ(memory_.InsideRead("f"), "");
}

TEST_F(FilesystemTest, TheKernelKeepsPagesOfUnchangedContentOnly) {
  memory_.InsideWrite("f", "old");
  Start({}, std::chrono::milliseconds(0));
  const NodeId node = Find("f");
  const auto first = filesystem_->Open(node, O_RDONLY, ctx_);
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->keep_cache);
  EXPECT_TRUE(first->no_flush);
  filesystem_->Release(first->handle, ctx_);
  const auto second = filesystem_->Open(node, O_RDONLY, ctx_);
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->keep_cache);
  EXPECT_TRUE(invalidated_.empty());
  memory_.AdvanceClock(1'000'000'000);
  memory_.InsideWrite("f", "new");
  ASSERT_TRUE(filesystem_->GetAttr(node, false, ctx_));
  EXPECT_THAT(invalidated_, ElementsAre(node));  // told once
  ASSERT_TRUE(filesystem_->GetAttr(node, false, ctx_));
  EXPECT_THAT(invalidated_, ElementsAre(node));
  const auto third = filesystem_->Open(node, O_RDONLY, ctx_);
  ASSERT_TRUE(third);
  EXPECT_FALSE(third->keep_cache);
  filesystem_->Release(second->handle, ctx_);
  filesystem_->Release(third->handle, ctx_);
}

TEST_F(FilesystemTest, NamesBeyondTheLimitAndUnknownFlagsAreRefusedHere) {
  memory_.InsideWrite("f", "x");
  memory_.ResetCalls();
  const std::string name(256, 'n');
  EXPECT_EQ(ErrnoOf(filesystem_->Lookup(cache::kRoot, name, ctx_)), ENAMETOOLONG);
  EXPECT_EQ(ErrnoOf(filesystem_->Mkdir(cache::kRoot, name, 0755, ctx_)), ENAMETOOLONG);
  EXPECT_EQ(ErrnoOf(filesystem_->Rename(cache::kRoot, "f", cache::kRoot, name, 0, ctx_)), ENAMETOOLONG);
  EXPECT_EQ(ErrnoOf(filesystem_->Rename(cache::kRoot, "f", cache::kRoot, "g", 4, ctx_)), EINVAL);
  EXPECT_EQ(ErrnoOf(filesystem_->Rename(cache::kRoot, "f", cache::kRoot, "g", 3, ctx_)), EINVAL);
  EXPECT_EQ(ErrnoOf(filesystem_->Mknod(cache::kRoot, "d", S_IFDIR | 0755, 0, ctx_)), EINVAL);
  EXPECT_EQ(memory_.total_calls(), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->Mknod(cache::kRoot, "regular", S_IFREG | 0640, 0, ctx_)), 0);
  EXPECT_EQ(memory_.InsideStat("regular")->permissions, 0640u);
}

TEST_F(FilesystemTest, SecurityAttributesAndAccessListsNeverCostARoundTrip) {
  memory_.InsideWrite("f", "x");
  const NodeId node = Find("f");
  memory_.ResetCalls();
  EXPECT_EQ(ErrnoOf(filesystem_->GetXattr(node, "security.capability", ctx_)), ENODATA);
  EXPECT_EQ(ErrnoOf(filesystem_->GetXattr(node, "system.posix_acl_access", ctx_)), ENODATA);
  EXPECT_EQ(ErrnoOf(filesystem_->RemoveXattr(node, "system.posix_acl_access", ctx_)), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->SetXattr(node, "system.posix_acl_access", "x", 0, ctx_)), EOPNOTSUPP);
  EXPECT_EQ(ErrnoOf(filesystem_->GetXattr(node, "unknown.one", ctx_)), ENOTSUP);
  EXPECT_EQ(ErrnoOf(filesystem_->SetXattr(node, "security.selinux", "x", 0, ctx_)), EOPNOTSUPP);
  EXPECT_EQ(ErrnoOf(filesystem_->RemoveXattr(node, "security.capability", ctx_)), ENODATA);
  EXPECT_EQ(memory_.total_calls(), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->SetXattr(node, "user.one", "1", 0, ctx_)), 0);
  EXPECT_EQ(ErrnoOf(filesystem_->SetXattr(node, "user.two", std::string("\0x", 2), 0, ctx_)), 0);
  EXPECT_EQ(filesystem_->GetXattr(node, "user.two", ctx_).value(), std::string("\0x", 2));
  EXPECT_EQ(filesystem_->ListXattr(node, ctx_).value(), std::string("user.one\0user.two\0", 18));
}

TEST(KernelErrno, IsWhatTheKernelTakes) {
  const auto of = [](int value, bool dying = false) {
    return KernelErrno(Error{value, ErrorKind::kErrno, "", 0, ""}, dying);
  };
  EXPECT_EQ(of(ENOENT), ENOENT);
  EXPECT_EQ(of(ENOTSUP), EOPNOTSUPP);
  EXPECT_EQ(of(0), EIO);
  EXPECT_EQ(of(-2), EIO);
  EXPECT_EQ(of(512), EIO);
  EXPECT_EQ(of(1 << 30), EIO);
  EXPECT_EQ(of(ENOSYS), EIO);
  EXPECT_EQ(of(EINTR), EIO);
  EXPECT_EQ(of(EINTR, true), EINTR);
}

}  // namespace
}  // namespace e2bfs::fuse
