// What programs rely on, through the kernel: the same system calls on the mount and in a local directory, and what they cost.
#include <dirent.h>
#include <linux/falloc.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <set>

#include "tests/component/fuse_mount/mount_fixture.h"

namespace e2bfs::fuse {
namespace {

// A line of what calls returned: errno names, numbers, bytes.
class Said {
 public:
  Said& Call(const char* what, int64_t result) {
    text_ += what;
    text_ += result < 0 ? std::string(" ") + strerrorname_np(errno) : " " + std::to_string(result);
    text_ += '\n';
    return *this;
  }
  Said& Bytes(const char* what, int fd, int64_t offset = 0) {
    char buffer[256];
    const ssize_t got = pread(fd, buffer, sizeof buffer, offset);
    text_ += what;
    text_ += ' ';
    for (ssize_t i = 0; i < got; ++i) text_ += buffer[i] == '\0' ? '_' : buffer[i];
    if (got < 0) text_ += strerrorname_np(errno);
    text_ += '\n';
    return *this;
  }
  Said& Mode(const char* what, const char* path) {
    struct stat status {};
    const int failed = lstat(path, &status);
    char mode[16];
    snprintf(mode, sizeof mode, "%o", status.st_mode);
    text_ += what;
    text_ += failed != 0 ? std::string(" ") + strerrorname_np(errno) : std::string(" ") + mode;
    text_ += '\n';
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

int64_t LinksOf(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 ? static_cast<int64_t>(status.st_nlink) : -1;
}
int64_t SizeOf(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 ? status.st_size : -1;
}

class ExactMount : public MountFixture {
 protected:
  void SetUp() override {
    MountFixture::SetUp();
    ASSERT_TRUE(fs::create_directory(base_ / "local"));
    fs::permissions(base_, fs::perms::all);
  }
  // The same on a local disk and on the mount.
  void ExpectSame(const std::function<std::string()>& work, uid_t user = 0) {
    const std::string local = InProcess((base_ / "local").string(), work, user);
    EXPECT_EQ(OnMount(work, user), local);
    EXPECT_EQ(local.find("(status"), std::string::npos) << local;
  }
  void LongMemory() { cache_options_.attribute_ttl = cache_options_.negative_ttl = std::chrono::hours(1); }
  // Calls that a program waited for.
  int64_t CallsOf(const std::function<std::string()>& work) {
    memory_->ResetCalls();
    const std::string said = OnMount(work);
    EXPECT_EQ(said, "");
    return memory_->total_calls();
  }
  static void StatAll(std::initializer_list<const char*> paths) {
    struct stat status {};
    for (const char* path : paths) (void)lstat(path, &status);
  }
};

TEST_F(ExactMount, RangesOfFiles) {
  StartMount();
  ExpectSame([] {
    Said said;
    const int fd = open("f", O_RDWR | O_CREAT, 0644);
    said.Call("write", pwrite(fd, "0123456789", 10, 0));
    said.Call("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 4)).Bytes("content", fd);
    said.Call("extend", fallocate(fd, 0, 0, 15)).Call("size", SizeOf(fd));
    said.Call("keep", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100)).Call("size", SizeOf(fd)).Bytes("content", fd);
    said.Call("punch and grow", fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4));
    said.Call("nothing", fallocate(fd, 0, 0, 0));
    said.Call("posix", posix_fallocate(fd, 0, 20)).Call("size", SizeOf(fd));
    said.Call("data", lseek(fd, 0, SEEK_DATA)).Call("beyond", lseek(fd, 100, SEEK_DATA)).Call("hole beyond", lseek(fd, 20, SEEK_HOLE));
    const int reader = open("f", O_RDONLY);
    said.Call("reader", fallocate(reader, 0, 0, 100));
    // Through the kernel's pages.
    char* pages = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    pages[0] = 'M';
    said.Call("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7, 2));
    said.Call("mapped", pages[0]).Call("hole", pages[7]).Call("after", pages[9]);
    munmap(pages, 4096);
    said.Call("close", close(fd)).Bytes("content", reader);
    return said.text();
  });
}

TEST_F(ExactMount, CopiesOfRanges) {
  StartMount();
  const auto copy = [] {
    Said said;
    const int a = open("a", O_RDWR | O_CREAT, 0644), b = open("b", O_RDWR | O_CREAT, 0644);
    said.Call("write", write(a, "0123456789", 10)).Call("write", write(b, "bbbb", 4)).Bytes("cached", b);
    loff_t from = 2, to = 1;
    said.Call("copy", copy_file_range(a, &from, b, &to, 5, 0)).Call("from", from).Call("to", to).Bytes("content", b);
    from = 8, to = 6;
    said.Call("short", copy_file_range(a, &from, b, &to, 100, 0)).Bytes("content", b);
    said.Call("at the end", copy_file_range(a, &from, b, &to, 100, 0)).Call("size", SizeOf(b));
    from = 0, to = 20;
    said.Call("same file", copy_file_range(a, &from, a, &to, 4, 0)).Bytes("content", a);
    from = 0, to = 2;
    said.Call("overlapping", copy_file_range(a, &from, a, &to, 4, 0));
    const int appender = open("b", O_WRONLY | O_APPEND);
    said.Call("appending", copy_file_range(a, &from, appender, nullptr, 4, 0));
    return said.text();
  };
  ExpectSame(copy);
  EXPECT_EQ(memory_->InsideRead("b"), "b2345689");
  EXPECT_GE(memory_->calls("CopyRange"), 3);
}

TEST_F(ExactMount, WhereTheSandboxCannotTheKernelCopies) {
  testing::MemoryRemoteFsOptions plain;
  plain.ranges = false;
  UseRemote(plain);
  StartMount();
  EXPECT_EQ(OnMount([] {
              Said said;
              const int a = open("a", O_RDWR | O_CREAT, 0644), b = open("b", O_RDWR | O_CREAT, 0644);
              said.Call("write", write(a, "0123456789", 10));
              for (int i = 0; i < 2; ++i) {  // the kernel does not remember that it was refused
                said.Call("fallocate", fallocate(a, 0, 0, 20)).Call("posix", posix_fallocate(a, 0, 12));
                loff_t from = 0, to = i;
                said.Call("copy", copy_file_range(a, &from, b, &to, 10, 0)).Bytes("content", b);
                said.Call("data", lseek(a, 3, SEEK_DATA)).Call("hole", lseek(a, 3, SEEK_HOLE));
              }
              return said.text();
            }),
            "write 10\n"
            "fallocate EOPNOTSUPP\nposix 0\ncopy 10\ncontent 0123456789\ndata 3\nhole 12\n"
            "fallocate EOPNOTSUPP\nposix 0\ncopy 10\ncontent 00123456789\ndata 3\nhole 12\n");
}

TEST_F(ExactMount, FilesThatLostTheirNames) {
  StartMount();
  ExpectSame([] {
    Said said;
    const int fd = open("f", O_RDWR | O_CREAT, 0644);
    said.Call("write", write(fd, "0123456789", 10));
    said.Call("unlink", unlink("f")).Call("links", LinksOf(fd)).Bytes("content", fd);
    said.Call("write", pwrite(fd, "ab", 2, 10)).Call("size", SizeOf(fd)).Call("truncate", ftruncate(fd, 5));
    said.Call("chmod", fchmod(fd, 0600)).Bytes("content", fd);
    char* pages = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    pages[1] = 'M';
    said.Call("sync", msync(pages, 4096, MS_SYNC)).Bytes("content", fd);
    munmap(pages, 4096);
    struct stat status {};
    fstat(fd, &status);
    said.Call("mode", status.st_mode).Call("fsync", fsync(fd)).Call("there", access("f", F_OK)).Call("close", close(fd));
    return said.text();
  });
}

TEST_F(ExactMount, FilesThatLostTheirNamesInTheSandbox) {
  cache_options_.attribute_ttl = cache_options_.negative_ttl = std::chrono::milliseconds(50);
  memory_->InsideWrite("gone", "0123456789");
  memory_->InsideWrite("moved", "0123456789");
  StartMount();
  const std::string ready = (base_ / "ready").string(), go = (base_ / "go").string();
  std::thread sandbox([&] {
    Soon([&] { return fs::exists(ready); });
    memory_->InsideRemove("gone");
    memory_->InsideWrite("gone", "another");
    memory_->InsideRename("moved", "elsewhere");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    std::ofstream(go) << "go";
  });
  EXPECT_EQ(OnMount([&] {
              Said said;
              const int gone = open("gone", O_RDWR), moved = open("moved", O_RDWR);
              close(open(ready.c_str(), O_CREAT | O_WRONLY, 0600));
              while (access(go.c_str(), F_OK) != 0) usleep(1000);
              said.Call("links", LinksOf(gone)).Bytes("content", gone).Call("write", pwrite(gone, "XX", 2, 0));
              said.Call("truncate", ftruncate(gone, 5)).Call("chmod", fchmod(gone, 0600)).Bytes("content", gone);
              said.Call("links", LinksOf(moved)).Call("write", pwrite(moved, "YY", 2, 10)).Call("close", close(moved));
              said.Call("close", close(gone)).Call("there", access("moved", F_OK));
              const int other = open("gone", O_RDONLY), there = open("elsewhere", O_RDONLY);
              said.Bytes("other", other).Bytes("elsewhere", there);
              return said.text();
            }),
            "links 0\ncontent 0123456789\nwrite 2\ntruncate 0\nchmod 0\ncontent XX234\nlinks 1\nwrite 2\nclose 0\nclose 0\n"
            "there ENOENT\nother another\nelsewhere 0123456789YY\n");
  sandbox.join();
  EXPECT_EQ(memory_->InsideRead("gone"), "another");
}

TEST_F(ExactMount, HardLinks) {
  StartMount();
  ExpectSame([] {
    Said said;
    const auto inode = [](const char* path) {
      struct stat status {};
      return lstat(path, &status) == 0 ? status.st_ino : 0;
    };
    const auto links = [](const char* path) {
      struct stat status {};
      return lstat(path, &status) == 0 ? static_cast<int64_t>(status.st_nlink) : -1;
    };
    said.Call("mkdir", mkdir("d", 0755)).Call("links", links("d"));
    const int fd = open("a", O_RDWR | O_CREAT, 0644);
    said.Call("write", write(fd, "one", 3)).Call("link", link("a", "d/b")).Call("link", link("a", "c"));
    said.Call("links", links("a")).Call("links", links("d/b")).Call("links", LinksOf(fd));
    said.Call("one inode", inode("a") == inode("d/b") && inode("a") == inode("c"));
    said.Call("write", pwrite(fd, "TWO", 3, 3));
    const int other = open("d/b", O_RDWR);
    said.Bytes("seen", other).Call("chmod", chmod("c", 0600)).Mode("mode", "a").Mode("mode", "d/b");
    said.Call("rename onto itself", rename("a", "c")).Call("both", access("a", F_OK) + access("c", F_OK));
    said.Call("unlink", unlink("a")).Call("links", links("c")).Call("links", LinksOf(fd)).Call("links", LinksOf(other));
    said.Call("unlink", unlink("c")).Call("links", links("d/b")).Call("unlink", unlink("d/b"));
    said.Call("links", LinksOf(fd)).Call("links", LinksOf(other)).Bytes("content", fd);
    said.Call("subdirectory", mkdir("d/e", 0755)).Call("links", links("d"));
    said.Call("link of a directory", link("d", "f"));
    return said.text();
  });
}

TEST_F(ExactMount, SeveralHandles) {
  StartMount();
  ExpectSame([] {
    Said said;
    const int one = open("f", O_RDWR | O_CREAT | O_APPEND, 0644), two = open("f", O_WRONLY | O_APPEND);
    said.Call("write", write(one, "1", 1)).Call("write", write(two, "22", 2)).Call("write", write(one, "3", 1)).Bytes("content", one);
    const int cutter = open("f", O_RDWR);
    said.Call("truncate", ftruncate(cutter, 2)).Call("size", SizeOf(one)).Call("write", write(two, "4", 1)).Bytes("content", one);
    const int emptier = open("f", O_WRONLY | O_TRUNC);
    said.Call("size", SizeOf(one)).Call("write", write(one, "5", 1)).Bytes("content", cutter);
    said.Call("grow", ftruncate(cutter, 4)).Bytes("content", one).Call("close", close(emptier));
    said.Call("exclusive", open("f", O_CREAT | O_EXCL | O_RDWR, 0644));
    return said.text();
  });
}

TEST_F(ExactMount, ErrorsOfNamesAndOpens) {
  StartMount();
  ExpectSame([] {
    Said said;
    mkdir("d", 0755);
    close(open("f", O_CREAT | O_WRONLY, 0644));
    (void)!symlink("f", "s");
    (void)!symlink("loop", "loop");
    said.Call("unlink a directory", unlink("d")).Call("rmdir a file", rmdir("f")).Call("rmdir nothing", rmdir("x"));
    said.Call("directory", open("f", O_RDONLY | O_DIRECTORY)).Call("link", open("s", O_RDONLY | O_NOFOLLOW));
    said.Call("loop", open("loop", O_RDONLY)).Call("write a directory", open("d", O_WRONLY)).Call("below a file", open("f/x", O_RDONLY));
    said.Call("rename over a directory", rename("f", "d")).Call("rename a directory over a file", rename("d", "f"));
    mkdir("d/sub", 0755);
    said.Call("into itself", rename("d", "d/sub/x")).Call("full", rmdir("d")).Call("over full", rename("d/sub", "d"));
    said.Call("no replace", renameat2(AT_FDCWD, "f", AT_FDCWD, "s", RENAME_NOREPLACE));
    said.Call("exchange", renameat2(AT_FDCWD, "f", AT_FDCWD, "s", RENAME_EXCHANGE)).Mode("swapped", "f");
    said.Call("exchange with nothing", renameat2(AT_FDCWD, "f", AT_FDCWD, "x", RENAME_EXCHANGE));
    said.Call("both", renameat2(AT_FDCWD, "f", AT_FDCWD, "s", RENAME_NOREPLACE | RENAME_EXCHANGE));
    said.Call("dot", rmdir("d/sub/.")).Call("dot dot", rmdir("d/sub/.."));
    said.Call("fifo", mkfifo("p", 0644)).Call("nobody reads", open("p", O_WRONLY | O_NONBLOCK)).Call("nobody writes", open("p", O_RDONLY | O_NONBLOCK) >= 0);
    said.Call("fifo's mode", 0).Mode("p", "p").Call("socket", mknod("sock", S_IFSOCK | 0600, 0)).Mode("sock", "sock");
    said.Call("open of a socket", open("sock", O_RDWR));
    said.Call("long name", mkdir(std::string(256, 'n').c_str(), 0755)).Call("longest", mkdir(std::string(255, 'n').c_str(), 0755));
    for (const char* name : {"new\nline", "back\\slash", "-dash", "\xff\xfe bytes", "quote'\"", " ", "..."}) said.Call("name", mkdir(name, 0755)).Mode("mode", name);
    return said.text();
  });
  EXPECT_TRUE(memory_->InsideExists("\xff\xfe bytes"));
}

TEST_F(ExactMount, WhatFuseCannotDoIsRefusedForGood) {
  StartMount();
  EXPECT_EQ(OnMount([] {
              Said said;
              for (int i = 0; i < 2; ++i) said.Call("nameless", open(".", O_TMPFILE | O_RDWR, 0600));
              return said.text();
            }),
            "nameless EOPNOTSUPP\nnameless EOPNOTSUPP\n");
}

TEST_F(ExactMount, SizelessFilesAreReadAtAnyOffset) {
  std::string content;
  for (int i = 0; i < 3000; ++i) content += std::to_string(i) + "\n";
  memory_->InsideMakeSizeless("cpuinfo", content);
  StartMount();
  EXPECT_TRUE(In("cat cpuinfo").output == content);
  EXPECT_EQ(OnMount([] {
              Said said;
              const int fd = open("cpuinfo", O_RDONLY);
              char buffer[4];
              said.Call("read", pread(fd, buffer, 4, 10)).Call("same", memcmp(buffer, "5\n6\n", 4));
              said.Call("read", pread(fd, buffer, 4, 2)).Call("same", memcmp(buffer, "1\n2\n", 4));
              said.Call("beyond", pread(fd, buffer, 4, 1 << 20)).Call("read", read(fd, buffer, 4)).Call("same", memcmp(buffer, "0\n1\n", 4));
              return said.text();
            }),
            "read 4\nsame 0\nread 4\nsame 0\nbeyond 0\nread 4\nsame 0\n");
}

TEST_F(ExactMount, ExtendedAttributes) {
  LongMemory();
  memory_->InsideWrite("f", "content");
  StartMount();
  const auto work = [] {
    Said said;
    char buffer[64];
    close(open("f", O_CREAT | O_WRONLY, 0644));
    said.Call("none", listxattr("f", buffer, sizeof buffer)).Call("get", getxattr("f", "user.x", buffer, 64));
    said.Call("set", setxattr("f", "user.x", "value", 5, 0)).Call("again", setxattr("f", "user.x", "v", 1, XATTR_CREATE));
    said.Call("size", getxattr("f", "user.x", nullptr, 0)).Call("small", getxattr("f", "user.x", buffer, 2));
    said.Call("get", getxattr("f", "user.x", buffer, 64)).Call("same", memcmp(buffer, "value", 5)).Call("list", listxattr("f", buffer, 64));
    said.Call("replace", setxattr("f", "user.y", "v", 1, XATTR_REPLACE)).Call("remove", removexattr("f", "user.x"));
    said.Call("remove", removexattr("f", "user.x")).Call("none", listxattr("f", nullptr, 0));
    said.Call("capability", getxattr("f", "security.capability", buffer, 64));
    said.Call("trusted", setxattr("f", "trusted.x", "t", 1, 0)).Call("get", getxattr("f", "trusted.x", buffer, 64));
    return said.text();
  };
  ExpectSame(work);
  OnMount([] { return StatAll({"f"}), ""; });
  EXPECT_EQ(CallsOf([] {
              char buffer[64];
              for (const char* name : {"security.capability", "security.selinux", "system.posix_acl_access", "user.x"}) {
                if (getxattr("f", name, buffer, sizeof buffer) >= 0) return "there";
              }
              const ssize_t left = geteuid() == 0 ? sizeof "trusted.x" : 0;  // of what was set above
              return listxattr("f", buffer, sizeof buffer) == left ? "" : "list";
            }),
            0);
}

// --- costs, through the kernel

TEST_F(ExactMount, EachChangeOfNamesOrAttributesIsOneCall) {
  LongMemory();
  memory_->InsideWrite("f", "content");
  StartMount();
  In("ls -la . >/dev/null");
  const auto once = [&](const char* what, int (*change)()) {
    EXPECT_EQ(CallsOf([change]() -> std::string {
                if (change() != 0) return strerrorname_np(errno);
                StatAll({".", "f", "d", "d/l", "d/s", "d/m", "x"});
                return "";
              }),
              1)
        << what;
  };
  once("mkdir", [] { return mkdir("d", 0755); });
  once("link", [] { return link("f", "d/l"); });
  once("symlink", [] { return symlink("../f", "d/s"); });
  once("rename", [] { return rename("d/l", "d/m"); });
  once("chmod", [] { return chmod("f", 0600); });
  once("utimes", [] {
    const timespec times[2] = {{1, 2}, {3, 4}};
    return utimensat(AT_FDCWD, "f", times, 0);
  });
  once("touch", [] { return utimensat(AT_FDCWD, "d", nullptr, 0); });
  once("truncate", [] { return truncate("f", 3); });
  once("unlink", [] { return unlink("d/m"); });
  once("unlink of a symlink", [] { return unlink("d/s"); });
  once("rmdir", [] { return rmdir("d"); });
  once("mkfifo", [] { return mkfifo("x", 0600); });
}

TEST_F(ExactMount, SmallFilesCostWhatTheyMust) {
  LongMemory();
  memory_->InsideWrite("f", "content");
  StartMount();
  In("ls -la . >/dev/null");
  const auto all = [](int fd, const char* text) -> std::string {
    const auto length = static_cast<ssize_t>(strlen(text));
    if (fd < 0 || write(fd, text, static_cast<size_t>(length)) != length || SizeOf(fd) < 0 || close(fd) != 0) return "failed";
    StatAll({".", "f", "new"});
    return "";
  };
  EXPECT_EQ(CallsOf([] {
              char buffer[64];
              const int fd = open("f", O_RDONLY);
              return read(fd, buffer, sizeof buffer) == 7 && close(fd) == 0 ? "" : "failed";
            }),
            1)
      << "read";
  EXPECT_EQ(CallsOf([] {
              char buffer[64];
              const int fd = open("f", O_RDONLY);
              return read(fd, buffer, sizeof buffer) == 7 && close(fd) == 0 ? "" : "failed";
            }),
            0)
      << "read again";
  EXPECT_EQ(CallsOf([&] { return all(open("f", O_WRONLY | O_TRUNC), "new content"); }), 1) << "overwrite";
  EXPECT_EQ(CallsOf([&] { return all(open("f", O_WRONLY | O_APPEND), std::string(100, 'a').c_str()); }), 1) << "append";
  EXPECT_EQ(CallsOf([&]() -> std::string {
              const int fd = open("f", O_RDWR);
              return pwrite(fd, "X", 1, 5) == 1 ? all(fd, "Y") : "failed";
            }),
            1)
      << "change";
  EXPECT_EQ(CallsOf([&]() -> std::string {
              const int fd = open("new", O_CREAT | O_EXCL | O_WRONLY, 0600);
              const timespec times[2] = {{1, 2}, {3, 4}};
              if (write(fd, "text", 4) != 4 || fchmod(fd, 0640) != 0 || futimens(fd, times) != 0) return "failed";
              struct stat status {};
              if (fstat(fd, &status) != 0 || status.st_mtim.tv_nsec != 4 || close(fd) != 0) return "failed";
              StatAll({".", "new"});
              return lstat("new", &status) == 0 && status.st_mtim.tv_nsec == 4 && status.st_size == 4 ? "" : "attributes";
            }),
            2)
      << "create";
}

// --- directories

TEST_F(ExactMount, DirectoriesArePagedStablyWhileTheyChange) {
  for (int i = 0; i < 3000; ++i) memory_->InsideWrite("f" + std::to_string(i), "");
  StartMount();
  EXPECT_EQ(OnMount([]() -> std::string {
              DIR* directory = opendir(".");
              std::multiset<std::string> seen;
              long middle = -1;
              std::string after_middle;
              for (int i = 0; dirent* entry = readdir(directory); ++i) {
                seen.insert(entry->d_name);
                if (i == 1000) middle = telldir(directory);
                if (i == 1001) after_middle = entry->d_name;
                if (i == 1500) {
                  for (int gone = 0; gone < 500; ++gone) unlink(("f" + std::to_string(gone)).c_str());
                  for (int made = 0; made < 100; ++made) mkdir(("new" + std::to_string(made)).c_str(), 0755);
                }
              }
              for (int i = 500; i < 3000; ++i) {
                if (seen.count("f" + std::to_string(i)) != 1) return "missing or twice: " + std::to_string(i);
              }
              if (seen.count(".") != 1 || seen.count("..") != 1) return "dots";
              seekdir(directory, middle);
              dirent* entry = readdir(directory);
              if (entry == nullptr || after_middle != entry->d_name) return "seekdir leads elsewhere";
              rewinddir(directory);
              int count = 0;
              while (readdir(directory) != nullptr) ++count;
              closedir(directory);
              return std::to_string(count);
            }),
            "2602");
}

int64_t ResidentKiB() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stoll(line.substr(6));
  }
  return 0;
}

TEST_F(ExactMount, ADirectoryOfAHundredThousandEntries) {
  LongMemory();
  memory_->InsideMakeDirectory("d");
  for (int i = 0; i < 100'000; ++i) memory_->InsideWrite("d/a-name-of-usual-length-" + std::to_string(i), "");
  StartMount();
  const int64_t before = ResidentKiB();
  const auto begun = std::chrono::steady_clock::now();
  auto lap = [last = begun]() mutable {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now - std::exchange(last, now)).count();
  };
  EXPECT_EQ(In("ls -U d | wc -l").output, "100000\n");
  RecordProperty("ls_ms", static_cast<int>(lap()));
  EXPECT_EQ(In("ls -lU d | wc -l").output, "100001\n");
  RecordProperty("ls_l_ms", static_cast<int>(lap()));
  EXPECT_EQ(In("ls -lU d | wc -l").output, "100001\n");
  RecordProperty("again_ms", static_cast<int>(lap()));
  const int64_t grown = ResidentKiB() - before;
  RecordProperty("grown_kib", static_cast<int>(grown));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(grown, 200 << 10);
#endif
  EXPECT_EQ(memory_->calls("List"), 1);
  EXPECT_EQ(memory_->calls("Lookup") + memory_->calls("Stat"), 1 + 1);  // the two directories
}

TEST_F(ExactMount, NumbersOfEntriesAreThoseOfTheirFiles) {
  memory_->InsideMakeDirectory("d");
  memory_->InsideMakeDirectory("d/e");
  memory_->InsideWrite("d/e/f", "");
  StartMount();
  EXPECT_EQ(OnMount([]() -> std::string {
              std::string wrong;
              DIR* directory = opendir("d/e");
              while (dirent* entry = readdir(directory)) {
                struct stat status {};
                fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW);
                if (status.st_ino != entry->d_ino) wrong += std::string(entry->d_name) + " ";
              }
              return wrong;
            }),
            "");
}

// --- whose they are

class RealIds : public ExactMount {
 protected:
  static constexpr uid_t kOrdinary = 1234;
  void SetUp() override {
    ExactMount::SetUp();
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    testing::MemoryRemoteFsOptions root;
    root.uid = root.gid = 0;
    UseRemote(root);
    memory_->InsideSetPermissions("", 0777);
    fs::permissions(base_ / "local", fs::perms::all);
    options_.allow_other = options_.default_permissions = true;
    options_.filesystem.identity.real = true;
  }
  MountOptions options_;
};

// Owner, group and mode of `path`.
std::string Owner(const char* path) {
  struct stat status {};
  if (lstat(path, &status) != 0) return std::string(path) + " " + strerrorname_np(errno) + "\n";
  char text[128];
  snprintf(text, sizeof text, "%s %u %u %o %ju\n", path, status.st_uid, status.st_gid, status.st_mode, uintmax_t{status.st_nlink});
  return text;
}

TEST_F(RealIds, ObjectsBelongToWhoeverMakesThem) {
  StartMount(options_);
  const auto make = [](const std::string& name) {
    umask(027);
    Said said;
    close(open((name + "-file").c_str(), O_CREAT | O_WRONLY, 0666));
    mkdir((name + "-directory").c_str(), 02777);
    mkfifo((name + "-fifo").c_str(), 0666);
    (void)!symlink("x", (name + "-link").c_str());
    std::string text;
    for (const char* kind : {"-file", "-directory", "-fifo", "-link"}) text += Owner((name + kind).c_str());
    return text;
  };
  ExpectSame([&] { return make("root"); });
  ExpectSame([&] { return make("user"); }, kOrdinary);
  // A setgid directory hands its group on.
  ExpectSame([&] {
    mkdir("shared", 0777);
    chmod("shared", 02777);
    (void)!chown("shared", 0, 4321);
    chmod("shared", 02777);
    return Owner("shared");
  });
  ExpectSame([&] { return make("shared/user"); }, kOrdinary);
}

TEST_F(RealIds, TheKernelChecksEachLocalUser) {
  StartMount(options_);
  ExpectSame([] {
    close(open("secret", O_CREAT | O_WRONLY, 0600));
    close(open("theirs", O_CREAT | O_WRONLY, 0600));
    return std::to_string(chown("theirs", kOrdinary, kOrdinary)) + Owner("theirs");
  });
  ExpectSame([] {
    Said said;
    said.Call("secret", open("secret", O_RDONLY)).Call("chmod", chmod("secret", 0666)).Call("chown", chown("secret", kOrdinary, -1));
    said.Call("theirs", open("theirs", O_RDWR) >= 0).Call("give away", chown("theirs", 0, -1)).Call("same", chown("theirs", kOrdinary, -1));
    said.Call("chmod", chmod("theirs", 0640)).Call("utimes", utimensat(AT_FDCWD, "secret", nullptr, 0));
    said.Call("sticky", chmod(".", 0755));
    return said.text() + Owner("theirs") + Owner("secret");
  }, kOrdinary);
}

TEST_F(RealIds, SetIdBitsGoAndStayAsOnALocalDisk) {
  StartMount(options_);
  for (const uid_t user : {uid_t{0}, uid_t{kOrdinary}}) {
    ExpectSame([] {
      std::string text;
      for (const char* name : {"written", "appended", "truncated", "emptied", "given", "mapped", "holed", "nothing"}) {
        unlink(name);
        const int fd = open(name, O_CREAT | O_RDWR, 0777);
        if (write(fd, "content", 7) != 7) return std::string("write");
        close(fd);
        (void)!chown(name, kOrdinary, kOrdinary);
        if (chmod(name, 06777) != 0) return std::string("chmod");
        text += Owner(name);
      }
      return text;
    });
    ExpectSame([] {
      std::string text;
      const auto change = [&](const char* name, int flags, const std::function<int(int)>& how) {
        const int fd = open(name, flags);
        if (fd < 0 || how(fd) < 0 || close(fd) != 0) text += std::string(strerrorname_np(errno)) + " ";
        text += Owner(name);
      };
      change("written", O_WRONLY, [](int fd) { return static_cast<int>(pwrite(fd, "x", 1, 0)); });
      change("appended", O_WRONLY | O_APPEND, [](int fd) { return static_cast<int>(write(fd, "x", 1)); });
      change("truncated", O_RDWR, [](int fd) { return ftruncate(fd, 3); });
      change("emptied", O_RDWR | O_TRUNC, [](int) { return 0; });
      change("given", O_RDONLY, [](int fd) { return fchown(fd, -1, getegid()); });
      change("holed", O_RDWR, [](int fd) { return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2); });
      change("nothing", O_RDWR, [](int) { return 0; });
      return text;
    }, user);
  }
}

TEST_F(RealIds, InodeNumbersAreTheSandboxs) {
  memory_->InsideMakeDirectory("d");
  memory_->InsideWrite("d/f", "1");
  memory_->InsideSetOwner("d/f", 77, 88);
  StartMount(options_);
  const auto inside = memory_->InsideStat("d/f"), root = memory_->InsideStat("");
  EXPECT_EQ(In("stat -c '%i %u %g' d/f").output, std::to_string(inside->inode) + " 77 88\n");
  EXPECT_EQ(In("stat -c %i .").output, std::to_string(root->inode) + "\n");
  EXPECT_EQ(In("ls -ai d | awk '{print $1, $2}'").output,
            std::to_string(memory_->InsideStat("d")->inode) + " .\n" + std::to_string(root->inode) + " ..\n" +
                std::to_string(inside->inode) + " f\n");
}

}  // namespace
}  // namespace e2bfs::fuse
