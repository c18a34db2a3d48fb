// Directories, the mount table, the control socket, readiness: what the command keeps on this machine.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "cache/unsent_record.h"
#include "fuse/control_socket.h"
#include "fuse/daemon.h"
#include "fuse/directories.h"
#include "fuse/mount_table.h"

namespace e2bfs::fuse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::chrono::seconds kPatience{60};

// A scratch directory, and variables that are put back.
class CommandPlaces : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = "/tmp/e2bfs-places-XXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    top_ = path;
    for (const char* name : kNames) {
      const char* value = getenv(name);
      if (value != nullptr) kept_[name] = value;
      unsetenv(name);
    }
  }
  void TearDown() override {
    for (const char* name : kNames) {
      auto found = kept_.find(name);
      found == kept_.end() ? unsetenv(name) : setenv(name, found->second.c_str(), 1);
    }
    RemoveTree(top_);
  }

  static constexpr const char* kNames[] = {"XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "HOME", "NOTIFY_SOCKET"};
  std::string top_;
  std::map<std::string, std::string> kept_;
};

mode_t ModeOf(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

TEST_F(CommandPlaces, PrivateDirectoriesAreMadeAndChecked) {
  const std::string path = top_ + "/a/b/c";
  ASSERT_TRUE(MakePrivateDirectory(path));
  EXPECT_EQ(ModeOf(path), 0700u);
  ASSERT_TRUE(MakePrivateDirectory(path));
  ASSERT_EQ(chmod(path.c_str(), 0750), 0);
  auto open_to_others = MakePrivateDirectory(path);
  ASSERT_FALSE(open_to_others);
  EXPECT_EQ(open_to_others.error().errno_value, EACCES);
  ASSERT_EQ(symlink("a/b", (top_ + "/link").c_str()), 0);
  EXPECT_EQ(MakePrivateDirectory(top_ + "/link").error().errno_value, ENOTDIR);
  if (geteuid() == 0) {
    ASSERT_EQ(chmod(path.c_str(), 0700), 0);
    ASSERT_EQ(chown(path.c_str(), 12345, 12345), 0);
    EXPECT_EQ(MakePrivateDirectory(path).error().errno_value, EACCES);
  }
}

TEST_F(CommandPlaces, StateAndRuntimeDirectoriesFollowTheEnvironment) {
  setenv("XDG_STATE_HOME", (top_ + "/state").c_str(), 1);
  setenv("XDG_RUNTIME_DIR", top_.c_str(), 1);
  EXPECT_EQ(StateDirectory().value(), top_ + "/state/e2bfs");
  EXPECT_EQ(RuntimeDirectory().value(), top_ + "/e2bfs");
  EXPECT_THAT(RuntimeDirectoriesOf(geteuid()), testing::Contains(top_ + "/e2bfs"));
  setenv("XDG_STATE_HOME", "relative/is/ignored", 1);
  setenv("HOME", top_.c_str(), 1);
  EXPECT_EQ(StateDirectory().value(), top_ + "/.local/state/e2bfs");
}

// However old it is: the next mount may come after any time.
TEST_F(CommandPlaces, TheCacheIsWhereTheEnvironmentSays) {
  EXPECT_EQ(DefaultCacheDirectory(), "/var/tmp/e2bfs-cache-" + std::to_string(geteuid()));
  setenv("HOME", top_.c_str(), 1);
  EXPECT_EQ(DefaultCacheDirectory(), top_ + "/.cache/e2bfs");
  setenv("XDG_CACHE_HOME", "relative/is/ignored", 1);
  EXPECT_EQ(DefaultCacheDirectory(), top_ + "/.cache/e2bfs");
  setenv("XDG_CACHE_HOME", (top_ + "/cache").c_str(), 1);
  EXPECT_EQ(DefaultCacheDirectory(), top_ + "/cache/e2bfs");
}

TEST_F(CommandPlaces, WhatTheDeadLeftUnsentIsKeptAndTheRestCleared) {
  const std::string parent = top_ + "/spool", unsent = UnsentParent(top_ + "/state");
  ASSERT_TRUE(MakePrivateDirectory(parent));
  for (const char* name : {"/mount-empty", "/mount-sent", "/mount-full"}) {
    ASSERT_EQ(mkdir((parent + name).c_str(), 0700), 0);
    std::ofstream(parent + name + "/.lock") << "";
    const timespec old[2] = {{1, 0}, {1, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, (parent + name + "/.lock").c_str(), old, 0), 0);
  }
  for (const char* name : {"/mount-sent/unsent-1", "/mount-full/unsent-1"}) {
    std::ofstream(parent + name) << "bytes";
    cache::UnsentRecord nothing;
    nothing.nothing = true;
    ASSERT_TRUE(cache::WriteUnsentNote(parent + name + cache::kUnsentNoteSuffix, nothing));
  }
  std::ofstream(parent + "/mount-full/unsent-2") << "unsent";
  cache::UnsentRecord record;
  record.path = "a/b";
  ASSERT_TRUE(cache::WriteUnsentNote(parent + "/mount-full/unsent-2" + cache::kUnsentNoteSuffix, record));
  std::ofstream(parent + "/mount-full/unsent-4") << "torn";
  std::ofstream(parent + "/mount-full/unsent-4" + cache::kUnsentNoteSuffix) << "e2bfs-unsent 1 slot 0000000";
  std::ofstream(parent + "/mount-full/unsent-4" + cache::kUnsentNoteTemporarySuffix) << "e2bfs";
  std::ofstream(parent + "/mount-full/unsent-3") << "without a word";
  auto mine = MakeSpoolDirectory(parent, unsent);
  ASSERT_TRUE(mine);
  for (const char* name : {"/mount-empty", "/mount-sent", "/mount-full"}) EXPECT_NE(access((parent + name).c_str(), F_OK), 0) << name;
  std::string kept;
  for (const auto& entry : std::filesystem::directory_iterator(unsent)) kept = entry.path().string();
  EXPECT_THAT(kept, HasSubstr("left-behind-"));
  const auto content = [&](const std::string& name) {
    std::ifstream file(kept + "/" + name);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(content("unsent-2"), "unsent");
  EXPECT_EQ(content("unsent-3"), "without a word");
  EXPECT_THAT(content("UNSENT.txt"), HasSubstr("file in the sandbox: a/b\n"));
  EXPECT_EQ(content("unsent-4"), "torn");
  EXPECT_THAT(content("UNSENT.txt"), HasSubstr("its record is torn"));
  EXPECT_NE(access((kept + "/unsent-1").c_str(), F_OK), 0);
  auto second = MakeSpoolDirectory(parent, unsent);  // the first is locked: its owner lives
  ASSERT_TRUE(second);
  EXPECT_EQ(access(mine->c_str(), F_OK), 0);
  RemoveSpoolDirectory(*second);
  EXPECT_NE(access(second->c_str(), F_OK), 0);
  std::ofstream(*mine + "/data") << "unsent";
  RemoveSpoolDirectory(*mine);
  EXPECT_EQ(access((*mine + "/data").c_str(), F_OK), 0);
}

// A mount that was made with other environment variables is found all the same.
// Across file systems it is copied. One that was killed meanwhile left what it had.
TEST_F(CommandPlaces, WhatADeadCopyLeftIsCleared) {
  std::string other = "/dev/shm/e2bfs-places-XXXXXX";
  if (mkdtemp(other.data()) == nullptr) GTEST_SKIP();
  const std::string parent = top_ + "/spool", unsent = UnsentParent(other + "/state"), spool = parent + "/mount-abcdef";
  ASSERT_TRUE(MakePrivateDirectory(spool));
  ASSERT_TRUE(MakePrivateDirectory(unsent + "/.moving-left-behind-20251130-023709-mount-abcdef"));
  ASSERT_TRUE(MakePrivateDirectory(unsent + "/.moving-left-behind-20251130-023709-mount-ghijkl"));  // it may live
  std::ofstream(unsent + "/.moving-left-behind-20251130-023709-mount-abcdef/unsent-1") << "unse";
  std::ofstream(spool + "/.lock") << "";
  std::ofstream(spool + "/unsent-1") << "unsent";
  CleanLeftovers(parent, unsent);
  std::vector<std::string> moving, kept;
  for (const auto& entry : std::filesystem::directory_iterator(unsent)) (entry.path().filename().string()[0] == '.' ? moving : kept).push_back(entry.path());
  EXPECT_THAT(moving, ElementsAre(HasSubstr("ghijkl")));
  EXPECT_THAT(kept, ElementsAre(HasSubstr("left-behind-")));
  if (!kept.empty()) {
    EXPECT_EQ(std::filesystem::file_size(kept[0] + "/unsent-1"), 6u);
  }
  EXPECT_NE(access(spool.c_str(), F_OK), 0);
  RemoveTree(other);
}

TEST_F(CommandPlaces, WhoeverSendsIsNotWaitedForWithoutEnd) {
  auto held = LockUnsent(top_, std::nullopt, [] {});
  ASSERT_TRUE(held);
  int told = 0;
  auto second = LockUnsent(top_, std::chrono::milliseconds(100), [&] { ++told; });
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().errno_value, EWOULDBLOCK);
  EXPECT_EQ(told, 1);
  held = cache::Descriptor(-1);
  EXPECT_TRUE(LockUnsent(top_, std::chrono::milliseconds(100), [] {}));
}

TEST_F(CommandPlaces, SocketsAreFoundWhereverTheyAre) {
  const std::string elsewhere = top_ + "/elsewhere/e2bfs";
  ASSERT_TRUE(MakePrivateDirectory(elsewhere));
  EXPECT_THAT(RuntimeDirectoriesOf(geteuid()), testing::Not(testing::Contains(elsewhere)));
  auto server = ControlServer::Create(elsewhere + "/" + ControlSocketName("/some/mount", 7), [](const std::string&, const ControlServer::SendLine&) {});
  ASSERT_TRUE(server);
  EXPECT_THAT(RuntimeDirectoriesOf(geteuid()), testing::Contains(elsewhere));
  chmod(elsewhere.c_str(), 0777);  // anybody could have put it there
  EXPECT_THAT(RuntimeDirectoriesOf(geteuid()), testing::Not(testing::Contains(elsewhere)));
}

TEST_F(CommandPlaces, ALongDirectoryIsNoObstacle) {
  const std::string directory = top_ + "/" + std::string(120, 'l');
  ASSERT_TRUE(MakePrivateDirectory(directory));
  const std::string path = directory + "/" + ControlSocketName("/some/mount", 7);
  auto server = ControlServer::Create(path, [](const std::string&, const ControlServer::SendLine& send) { EXPECT_TRUE(send("here")); });
  ASSERT_TRUE(server) << server.error().message;
  EXPECT_EQ(ModeOf(path), 0600u);
  auto client = ControlClient::Connect(path);
  ASSERT_TRUE(client && client->Send("?"));
  EXPECT_EQ(client->ReadLine(kPatience).value(), "here");
}

TEST(MountTable, IsReadAsTheKernelWritesIt) {
  const auto table = ParseMountInfo(
      "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
      "36 22 0:52 / /mnt/with\\040space rw,nosuid shared:9 master:3 - fuse.e2bfs e2bfs:abc:/home/user rw,user_id=1000,group_id=7\n"
      "rubbish\n"
      "40 22 0:53 / /mnt rw - tmpfs tmpfs rw\n"
      "41 22 0:54 / /mnt rw - fuse.e2bfs e2bfs:two:/ rw,xuser_id=5,user_id=3\n");
  ASSERT_EQ(table.size(), 4u);
  EXPECT_EQ(table[1].directory, "/mnt/with space");
  EXPECT_EQ(table[1].user_id, 1000u);
  EXPECT_TRUE(table[1].is_e2bfs());
  EXPECT_FALSE(table[0].is_e2bfs());
  ASSERT_TRUE(FindMount(table, "/mnt"));
  EXPECT_EQ(FindMount(table, "/mnt")->source, "e2bfs:two:/");
  EXPECT_EQ(FindMount(table, "/mnt")->user_id, 3u);
  EXPECT_FALSE(FindMount(table, "/mnt/with"));
}

TEST_F(CommandPlaces, CanonicalDirectories) {
  ASSERT_EQ(mkdir((top_ + "/real").c_str(), 0700), 0);
  ASSERT_EQ(symlink("real", (top_ + "/link").c_str()), 0);
  EXPECT_EQ(CanonicalDirectory(top_ + "/link/", {}).value(), top_ + "/real");
  EXPECT_EQ(CanonicalDirectory(top_ + "/real/../real/.", {}).value(), top_ + "/real");
  EXPECT_EQ(CanonicalDirectory(top_ + "/missing", {}).error().errno_value, ENOENT);
  // A mount point that nobody answers for any more: only the table knows it.
  MountEntry dead;
  dead.directory = top_ + "/dead";
  EXPECT_EQ(CanonicalDirectory(top_ + "/link/../dead", {dead}).value(), top_ + "/dead");
}

TEST_F(CommandPlaces, ControlSocketCarriesLines) {
  const std::string path = top_ + "/" + ControlSocketName("/some/mount", 7);
  EXPECT_THAT(path, HasSubstr(ControlSocketPrefix("/some/mount") + "7.sock"));
  std::atomic<int> asked{0};
  {
    auto server = ControlServer::Create(path, [&](const std::string& request, const ControlServer::SendLine& send) {
      ++asked;
      EXPECT_TRUE(send("one " + request));
      EXPECT_TRUE(send(std::string(100'000, 'x')));
    });
    ASSERT_TRUE(server) << server.error().message;
    EXPECT_EQ(ModeOf(path), 0600u);
    EXPECT_EQ(ControlServer::Create(path, nullptr).error().errno_value, EADDRINUSE);
    auto client = ControlClient::Connect(path);
    ASSERT_TRUE(client);
    ASSERT_TRUE(client->Send("hello"));
    EXPECT_EQ(client->ReadLine(kPatience).value(), "one hello");
    EXPECT_EQ(client->ReadLine(kPatience).value()->size(), 100'000u);
    EXPECT_EQ(client->ReadLine(kPatience).value(), std::nullopt);
    auto silent = ControlClient::Connect(path);  // says nothing, and must not hold up the end
    ASSERT_TRUE(silent);
  }
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(ControlClient::Connect(path).error().errno_value, ENOENT);
}

TEST_F(CommandPlaces, ASocketThatNobodyAnswersOnIsReplaced) {
  const std::string path = top_ + "/left.sock";
  const int left = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strcpy(address.sun_path, path.c_str());
  ASSERT_EQ(bind(left, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  close(left);
  auto server = ControlServer::Create(path, [](const std::string&, const ControlServer::SendLine& send) { EXPECT_TRUE(send("here")); });
  ASSERT_TRUE(server);
  auto client = ControlClient::Connect(path);
  ASSERT_TRUE(client && client->Send("?"));
  EXPECT_EQ(client->ReadLine(kPatience).value(), "here");
  EXPECT_EQ(ControlServer::Create(top_ + "/" + std::string(120, 'l'), nullptr).error().errno_value, ENAMETOOLONG);
}

TEST_F(CommandPlaces, TheServiceManagerIsTold) {
  EXPECT_FALSE(NotifyServiceManager("READY=1"));
  const std::string path = top_ + "/notify";
  const int listener = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strcpy(address.sun_path, path.c_str());
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  setenv("NOTIFY_SOCKET", path.c_str(), 1);
  EXPECT_TRUE(NotifyServiceManager("READY=1\nSTATUS=x"));
  char text[64] = "";
  const ssize_t length = recv(listener, text, sizeof text, MSG_DONTWAIT);
  EXPECT_EQ(std::string(text, length > 0 ? static_cast<size_t>(length) : 0), "READY=1\nSTATUS=x");
  close(listener);
}

TEST_F(CommandPlaces, AVariableIsWipedWhereProcShowsIt) {
  setenv("E2BFS_TEST_SECRET", "value", 1);
  const char* place = getenv("E2BFS_TEST_SECRET");
  const std::string before = place;
  WipeVariable("E2BFS_TEST_SECRET");
  EXPECT_EQ(getenv("E2BFS_TEST_SECRET"), nullptr);
  EXPECT_EQ(before, "value");
  WipeVariable("E2BFS_TEST_SECRET");  // nothing there: nothing happens
}

TEST_F(CommandPlaces, OpenFilesAreLimitedByTheHardLimitOnly) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  RaiseDescriptorLimit();
  rlimit after{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, std::min<rlim_t>(before.rlim_max, 1 << 20));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

// In a process without threads of its own (death tests fork): the parent's answer is what the child made of itself.
TEST_F(CommandPlaces, TheBackgroundAnswersWhenItIsReadyOrWithItsFailure) {
  const std::string mark = top_ + "/mark";
  EXPECT_EQ(RunInBackground("test", [](const BecomeReady&) -> int { _exit(6); }), 6);
  EXPECT_EQ(RunInBackground("test", [](const BecomeReady&) -> int { _exit(0); }), 1);
  const int inherited = open("/dev/null", O_RDONLY);  // as a shell's: not closed on exec
  const int status = RunInBackground("test", [&](const BecomeReady& ready) -> int {
    ready("");
    const int file = open(mark.c_str(), O_WRONLY | O_CREAT, 0600);
    const bool away = getsid(0) == getpid() && isatty(STDERR_FILENO) == 0 && fcntl(inherited, F_GETFD) < 0;
    if (away && write(file, "x", 1) != 1) _exit(1);
    _exit(0);
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(close(inherited), 0);
  const auto end = std::chrono::steady_clock::now() + kPatience;
  struct stat there {};
  while ((stat(mark.c_str(), &there) != 0 || there.st_size == 0) && std::chrono::steady_clock::now() < end) usleep(10'000);
  EXPECT_EQ(there.st_size, 1);
}

}  // namespace
}  // namespace e2bfs::fuse
