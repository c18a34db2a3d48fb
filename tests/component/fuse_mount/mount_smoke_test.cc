// What a mount does at all: content, names, errors, its end.
#include "tests/component/fuse_mount/mount_fixture.h"

namespace e2bfs::fuse {
namespace {

using MountSmoke = MountFixture;

TEST_F(MountSmoke, ShowsWhatIsThere) {
  memory_->InsideMakeDirectory("dir");
  memory_->InsideWrite("dir/hello", "hello world\n");
  memory_->InsideWrite("empty", "");
  memory_->InsideSetPermissions("dir/hello", 0640);
  StartMount();
  EXPECT_EQ(In("cat dir/hello").output, "hello world\n");
  EXPECT_EQ(In("ls -a").output, ".\n..\ndir\nempty\n");
  EXPECT_EQ(In("stat -c '%u %g %s %a %F' dir/hello").output,
            std::to_string(getuid()) + " " + std::to_string(getgid()) + " 12 640 regular file\n");
  EXPECT_EQ(In("cat nothing 2>&1 >/dev/null | grep -c 'No such file'").output, "1\n");
  EXPECT_EQ(In("tail -c 6 dir/hello").output, "world\n");
  EXPECT_EQ(In("df . >/dev/null && echo fine").output, "fine\n");
  const auto table = ReadMountTable();
  ASSERT_TRUE(table);
  const auto mounted = FindMount(*table, mount_point_.string());
  ASSERT_TRUE(mounted);
  EXPECT_TRUE(mounted->is_e2bfs());
  EXPECT_EQ(In("grep -c ' fuse.e2bfs .*nosuid.*nodev\\| fuse.e2bfs .*nodev.*nosuid' /proc/self/mounts >/dev/null && echo set").output,
            "set\n");
}

TEST_F(MountSmoke, WhatProgramsWriteIsThereWhenTheyHaveClosedIt) {
  StartMount();
  EXPECT_EQ(In("echo one > f && echo two >> f && cat f").output, "one\ntwo\n");
  EXPECT_EQ(memory_->InsideRead("f"), "one\ntwo\n");
  EXPECT_EQ(In("mkdir -p a/b && mv f a/b/g && ln a/b/g a/h && ln -s b/g a/s && cat a/s && readlink a/s").output,
            "one\ntwo\nb/g\n");
  EXPECT_EQ(memory_->InsideRead("a/h"), "one\ntwo\n");
  EXPECT_FALSE(memory_->InsideExists("f"));
  EXPECT_EQ(memory_->InsideRead("a/s"), "b/g");
  EXPECT_EQ(In("chmod 600 a/h && touch -d '2001-02-03 04:05:06.789 UTC' a/h && stat -c %a a/h").output, "600\n");
  const auto attributes = memory_->InsideStat("a/h");
  ASSERT_TRUE(attributes);
  EXPECT_EQ(attributes->permissions, 0600u);
  EXPECT_EQ(attributes->mtime.tv_sec, 981173106);
  EXPECT_EQ(attributes->mtime.tv_nsec, 789'000'000);
  EXPECT_EQ(In("truncate -s 3 a/h && cat a/h && truncate -s 0 a/h && stat -c %s a/h").output, "one0\n");
  EXPECT_EQ(In("rmdir a 2>&1 | grep -c 'not empty'").output, "1\n");
  EXPECT_EQ(In("rm -r a && ls").output, "");
  EXPECT_TRUE(memory_->InsideList("").empty());
}

TEST_F(MountSmoke, LargeFilesArriveWhole) {
  StartMount();
  const std::string local = (base_ / "local").string();
  const auto copied = In("head -c 9000001 /dev/urandom > '" + local + "' && cp '" + local + "' big && cmp '" + local +
                         "' big && dd if=big of=again bs=64k status=none && cmp '" + local + "' again && echo same");
  EXPECT_EQ(copied.output, "same\n");
  std::ifstream file(local, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  EXPECT_TRUE(memory_->InsideRead("big") == content.str());
  EXPECT_TRUE(memory_->InsideRead("again") == content.str());
}

TEST_F(MountSmoke, ErrorsAreTheOnesOfALocalDisk) {
  memory_->InsideWrite("file", "x");
  StartMount();
  EXPECT_EQ(In("mkdir file 2>&1 | grep -c 'File exists'").output, "1\n");
  EXPECT_EQ(In("(set -C; echo y > file) 2>&1 | grep -ci 'exist'").output, "1\n");
  EXPECT_EQ(In("cat file/x 2>&1 | grep -c 'Not a directory'").output, "1\n");
  EXPECT_EQ(In("touch $(printf %0256d 0) 2>&1 | grep -c 'too long'").output, "1\n");
  EXPECT_EQ(In("touch $(printf %0255d 0) && ls | wc -l").output, "2\n");
  EXPECT_EQ(In("chown $(id -u):$(id -g) file && echo fine").output, "fine\n");
  EXPECT_NE(In("chown 12345 file 2>/dev/null").status, 0);
  EXPECT_EQ(memory_->InsideRead("file"), "x");
}

TEST_F(MountSmoke, LinksDoNotLeadOut) {
  memory_->InsideMakeDirectory("d");
  memory_->InsideWrite("d/f", "content");
  memory_->InsideMakeSymlink("out", "/etc/passwd");
  memory_->InsideMakeSymlink("d/up", "../../../../../../../../etc/passwd");
  memory_->InsideMakeSymlink("in", "/home/user/d/f");
  StartMount();
  EXPECT_EQ(In("readlink out d/up").output, ".e2bfs-outside/%2Fetc%2Fpasswd\n"
                                            ".e2bfs-outside/..%2F..%2F..%2F..%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd\n");
  EXPECT_EQ(In("cat out d/up 2>&1 | grep -c 'No such file'").output, "2\n");
  EXPECT_EQ(In("cat in").output, "content");
  EXPECT_EQ(In("cp -P out copy && readlink copy").output, ".e2bfs-outside/%2Fetc%2Fpasswd\n");
  EXPECT_EQ(memory_->InsideRead("copy"), "/etc/passwd");
}

TEST_F(MountSmoke, AMoveInTheSandboxDoesNotMakeALinkLeadOut) {
  for (const char* path : {"D", "a", "a/b", "a/b/c"}) memory_->InsideMakeDirectory(path);
  memory_->InsideMakeSymlink("D/link", "../../secret");
  std::ofstream(base_ / "secret") << "secret";
  StartMount();
  In("ls a/b/c");
  // Whoever is in D: the kernel goes on from there, wherever the sandbox says that D is.
  const std::string until_moved = "until test -e '" + (base_ / "moved").string() + "'; do sleep 0.02; done; ";
  ShellChild inside("cd '" + (mount_point_ / "D").string() + "' && touch '" + (base_ / "inside").string() + "' && " + until_moved +
                    "readlink link; cat link 2>/dev/null; ls '" + (mount_point_ / "a/b/c").string() +
                    "'; sleep 1.2; readlink link; cat link 2>/dev/null");
  ASSERT_TRUE(Soon([&] { return fs::exists(base_ / "inside"); }));
  memory_->InsideRename("D", "a/b/c/D");
  memory_->InsideTell("D");
  memory_->InsideTell("a/b/c/D");
  std::ofstream(base_ / "moved") << "";
  EXPECT_EQ(inside.Wait().output, ".e2bfs-outside/..%2F..%2Fsecret\nD\n.e2bfs-outside/..%2F..%2Fsecret\n");
}

TEST_F(MountSmoke, ChangesInTheSandboxAreSeenAfterTheTimeToLive) {
  memory_->InsideWrite("f", "old content");
  StartMount();
  EXPECT_EQ(In("cat f").output, "old content");
  memory_->AdvanceClock(5'000'000'000);
  memory_->InsideWrite("f", "new content");  // of the same length: only the time tells
  EXPECT_TRUE(Soon([&] { return In("cat f").output == "new content"; }));
  memory_->InsideRemove("f");
  EXPECT_TRUE(Soon([&] { return In("test -e f").status != 0; }));
}

TEST_F(MountSmoke, ReadOnlyIsReadOnly) {
  memory_->InsideWrite("f", "x");
  MountOptions options;
  options.read_only = true;
  StartMount(options);
  EXPECT_EQ(In("cat f; echo y > f 2>&1").output.find("x"), 0u);
  EXPECT_NE(In("touch g 2>/dev/null").status, 0);
  EXPECT_EQ(memory_->InsideRead("f"), "x");
}

TEST_F(MountSmoke, AStalledReadHoldsNobodyUpAndEndsWithItsCaller) {
  memory_->InsideWrite("stuck", std::string(1 << 20, 's'));
  memory_->InsideWrite("fine", "fine content");
  StartMount();
  EXPECT_EQ(In("cat fine").output, "fine content");
  testing::RemoteFault stall;
  stall.function = "ReadChunk";
  stall.count = -1;
  stall.action = testing::RemoteFault::kStall;
  remote_->Add(stall);
  ShellChild reader("exec cat '" + (mount_point_ / "stuck").string() + "' >/dev/null");
  ASSERT_TRUE(remote_->WaitForStalled(1));
  EXPECT_EQ(In("ls && echo new > written && cat fine").output, "fine\nstuck\nfine content");
  EXPECT_EQ(memory_->InsideRead("written"), "new\n");
  kill(reader.pid(), SIGINT);  // as Ctrl-C
  EXPECT_EQ(reader.Wait().status, 128 + SIGINT);
}

TEST_F(MountSmoke, AStalledLookupHoldsNobodyUpInItsDirectory) {
  memory_->InsideWrite("fine", "fine content");
  StartMount();
  testing::RemoteFault stall;
  stall.function = "Lookup";
  stall.count = 2;
  stall.action = testing::RemoteFault::kStall;
  remote_->Add(stall);
  ShellChild first("exec stat '" + (mount_point_ / "unknown").string() + "' 2>&1");
  ASSERT_TRUE(remote_->WaitForStalled(1));
  ShellChild second("exec stat '" + (mount_point_ / "another").string() + "' 2>&1");
  EXPECT_TRUE(remote_->WaitForStalled(2));
  EXPECT_EQ(In("cat fine").output, "fine content");
  kill(second.pid(), SIGINT);  // not the first, for which the second would wait in the kernel
  EXPECT_EQ(second.Wait().status, 128 + SIGINT);
  remote_->Clear();
  EXPECT_EQ(first.Wait().status, 1);
}

TEST_F(MountSmoke, AHarmlessSignalDoesNotEndARead) {
  const std::string content(100'000, 'x');
  memory_->InsideWrite("f", content);
  StartMount();
  testing::RemoteFault stall;
  stall.function = "ReadChunk";
  stall.action = testing::RemoteFault::kStall;
  remote_->Add(stall);
  // dd has a handler for SIGUSR1; a read that fails with EINTR it would repeat, so the count of requests tells.
  ShellChild reader("exec dd if='" + (mount_point_ / "f").string() + "' bs=100000 count=1 status=none | wc -c");
  ASSERT_TRUE(remote_->WaitForStalled(1));
  kill(-reader.pid(), SIGURG);
  kill(-reader.pid(), SIGWINCH);
  kill(-reader.pid(), SIGCHLD);
  remote_->Clear();
  EXPECT_EQ(reader.Wait().output, "100000\n");
}

TEST_F(MountSmoke, UnmountingFromOutsideEndsIt) {
  StartMount();
  EXPECT_EQ(In("echo kept > f").status, 0);
  const auto unmounted = Unmount(mount_point_.string(), false);
  ASSERT_TRUE(unmounted) << unmounted.error().message;
  const MountEnd end = WaitEnd();
  EXPECT_EQ(end.signal, 0);
  EXPECT_EQ(end.unsent_files, 0);
  EXPECT_EQ(end.error, "");
  EXPECT_FALSE(end.operations_left);
  EXPECT_FALSE(IsMounted());
  EXPECT_EQ(memory_->InsideRead("f"), "kept\n");
}

TEST_F(MountSmoke, ASignalSendsWhatIsUnsentAndUnmountsEvenWhenInUse) {
  StartMount();
  // Written, not closed.
  ShellChild writer("cd '" + mount_point_.string() + "' && exec 3>f && echo dirty >&3 && echo ok > written && exec sleep 1000");
  ASSERT_TRUE(Soon([&] { return memory_->InsideRead("written") == "ok\n"; }));
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  const MountEnd end = WaitEnd();
  EXPECT_EQ(end.signal, SIGTERM);
  EXPECT_EQ(end.unsent_files, 0) << end.error;
  EXPECT_FALSE(IsMounted());
  EXPECT_EQ(memory_->InsideRead("f"), "dirty\n");
}

TEST_F(MountSmoke, ASandboxThatStallsCannotHoldTheEndUp) {
  MountOptions options;
  options.drain_timeout = std::chrono::milliseconds(300);
  options.finish_timeout = std::chrono::seconds(60);
  StartMount(options);
  EXPECT_EQ(In("touch ready").status, 0);
  testing::RemoteFault stall;
  stall.function = "Store";
  stall.count = -1;
  stall.action = testing::RemoteFault::kStall;
  remote_->Add(stall);
  ShellChild writer("cd '" + mount_point_.string() + "' && echo precious | dd of=f status=none");  // its close waits
  ASSERT_TRUE(remote_->WaitForStalled(1));
  stop_.request_stop();
  const MountEnd end = WaitEnd();
  EXPECT_FALSE(end.operations_left);
  EXPECT_EQ(end.unsent_files, 1);
  EXPECT_NE(end.error, "");
  EXPECT_FALSE(IsMounted());
  EXPECT_NE(writer.Wait().status, 0);  // it was told
  bool found = false;
  for (const auto& entry : fs::recursive_directory_iterator(end.saved_in)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path());
    std::stringstream content;
    content << file.rdbuf();
    found = found || content.str() == "precious\n";
  }
  EXPECT_TRUE(found) << end.saved_in;
}

TEST_F(MountSmoke, ABusyMountPointIsSaidClearly) {
  StartMount();
  MountOptions options;
  options.mount_point = mount_point_.string();
  const auto second = RunMount(options, *cached_, [] {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().errno_value, EBUSY);
  options.mount_point = (base_ / "missing").string();
  const auto missing = RunMount(options, *cached_, [] {});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().errno_value, ENOENT);
}

}  // namespace
}  // namespace e2bfs::fuse
