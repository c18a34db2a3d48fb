// Rows of new objects by the syscall tier: what they cost, what is done once, and what nobody is told.
#include "transport/syscall/new_objects.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/component/syscall/channel_rig.h"
#include "tests/component/syscall/server_process.h"

namespace e2bfs::testing::rows {
namespace {

using namespace std::chrono_literals;
using namespace transport;
using namespace transport::syscall;
namespace fs = std::filesystem;

OpContext Ctx(std::chrono::milliseconds time = 60s) { return OpContext::Within(time); }

// As many letters as are asked for, by the place.
class LetterSource : public ContentSource {
 public:
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    for (size_t i = 0; i < length; ++i) buffer[i] = static_cast<char>('a' + (offset + static_cast<int64_t>(i)) % 26);
    return {};
  }
  std::string Content(int64_t size) {
    std::string bytes(static_cast<size_t>(size), '\0');
    (void)ReadAt(0, bytes.data(), bytes.size());
    return bytes;
  }
};

LetterSource& Letters() {
  static LetterSource letters;
  return letters;
}

NewObject New(const std::string& name, FileType type, std::optional<size_t> made_in = {}) {
  NewObject object;
  object.name = name;
  object.type = type;
  object.permissions = type == FileType::kDirectory ? 0755 : 0644;
  object.made_in = made_in;
  return object;
}

NewObject NewFile(const std::string& name, int64_t size, std::optional<size_t> made_in = {}) {
  NewObject object = New(name, FileType::kRegular, made_in);
  object.size = size;
  object.source = &Letters();
  return object;
}

// A directory with so many files.
std::vector<NewObject> Files(const std::string& directory, size_t count, int64_t size) {
  std::vector<NewObject> row = {New(directory, FileType::kDirectory)};
  for (size_t i = 0; i < count; ++i) row.push_back(NewFile("f" + std::to_string(i), size, 0));
  return row;
}

size_t CountOf(const fs::path& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

bool AllMade(const Result<MadeObjects>& made) {
  return made && std::all_of(made->objects.begin(), made->objects.end(), [](const MadeObject& object) { return object.attributes && !object.error; });
}

// --- through envd

class SyscallRows : public ::testing::Test {
 protected:
  std::unique_ptr<ChannelRig> Rig() {
    ChannelOptions options;
    options.quiet_time = 5s;
    options.echo_timeout = 30s;
    return std::make_unique<ChannelRig>(ChannelRigOptions{false, false, options});
  }
};

TEST_F(SyscallRows, ASmallRowIsOneRoundTrip) {
  auto rig = Rig();
  const int64_t trips = rig->Status("round trips"), frames = rig->Status("frames"), posts = rig->Requests("POST /files");
  EXPECT_TRUE(AllMade(rig->fs().MakeObjects(Files("d", 50, 500), Ctx())));
  EXPECT_EQ(rig->Status("round trips"), trips + 1);
  EXPECT_EQ(rig->Status("frames"), frames + 1);
  EXPECT_EQ(rig->Requests("POST /files"), posts);
  EXPECT_EQ(rig->Content("d/f49"), Letters().Content(500));
}

TEST_F(SyscallRows, ALargeRowIsThreeRoundTrips) {
  auto rig = Rig();
  int round = 0;
  for (const auto& [count, size] : {std::pair<size_t, int64_t>{1000, 1000}, {kMostNewObjects - 1, 0}, {1000, 4000}}) {
    const std::string directory = "d" + std::to_string(round++);
    const int64_t trips = rig->Status("round trips"), frames = rig->Status("frames"), posts = rig->Requests("POST /files");
    EXPECT_TRUE(AllMade(rig->fs().MakeObjects(Files(directory, count, size), Ctx())));
    EXPECT_EQ(rig->Requests("POST /files"), posts + 1);
    EXPECT_EQ(rig->Status("round trips"), trips + 2);
    EXPECT_EQ(rig->Status("frames"), frames + 2);
    EXPECT_EQ(rig->Content(directory + "/f999"), Letters().Content(size));
    EXPECT_EQ(CountOf(rig->Path(directory)), count);
  }
  EXPECT_EQ(rig->Status("open files there"), 0);
}

// The same server is found each time, and says what it did.
TEST_F(SyscallRows, ACutWayMakesEachOnce) {
  auto rig = Rig();
  int round = 0;
  for (const char* stream : {"StreamInput", "Process/Connect"}) {
    for (const int64_t at : {30, 400, 3'000, 60'000, 150'000}) {
      for (const int64_t size : {0, 2'000}) {
        SCOPED_TRACE(fmt::format("{} {} {}", stream, at, size));
        const std::string directory = "d" + std::to_string(round++);
        rig->Fault(stream, std::string(stream) == "StreamInput" ? "reset_request" : "reset", at);
        rig->CutAll();
        auto made = rig->fs().MakeObjects(Files(directory, 500, size), Ctx());
        ASSERT_TRUE(AllMade(made)) << (made ? "" : ToString(made.error()));
        EXPECT_EQ(CountOf(rig->Path(directory)), 500U);
        EXPECT_EQ(rig->Content(directory + "/f499"), Letters().Content(size));
        rig->sandbox().server().ClearFaults();
      }
    }
  }
  EXPECT_EQ(rig->Servers(), 1);
}

TEST_F(SyscallRows, AnUploadThatBreaksOffIsTriedAgain) {
  auto rig = Rig();
  rig->Fault("POST /files", "reset_request", 100'000);
  EXPECT_TRUE(AllMade(rig->fs().MakeObjects(Files("d", 500, 2'000), Ctx())));
  EXPECT_EQ(rig->Content("d/f499"), Letters().Content(2'000));
}

TEST_F(SyscallRows, AServerThatIsKilledIsToldOf) {
  auto rig = Rig();
  int failed = 0;
  for (int round = 0; round < 6; ++round) {
    const std::string directory = "d" + std::to_string(round);
    std::thread killer([&] {
      if (round % 2 == 0) ChannelRig::Eventually([&] { return fs::exists(rig->Path(directory)); });  // it is at work
      usleep(static_cast<useconds_t>(round) * 20'000);
      kill(rig->ServerPid(), SIGKILL);
    });
    auto made = rig->fs().MakeObjects(Files(directory, kMostNewObjects - 1, 100), Ctx());
    killer.join();
    if (!made) {
      ++failed;
      EXPECT_EQ(made.error().kind, ErrorKind::kBroken) << ToString(made.error());
    } else {
      EXPECT_TRUE(AllMade(made));
      EXPECT_EQ(CountOf(rig->Path(directory)), kMostNewObjects - 1);
    }
  }
  EXPECT_GT(failed, 0);
}

// --- the server alone

// Names that news told of; not those that a kernel gives to nameless files.
class Heard : public ChangeListener {
 public:
  void NameChanged(const FileId&, const std::string& name, const std::optional<Entry>&, bool) override {
    if (name[0] != '#') names.push_back(name);
  }
  void DirectoryChanged(const Attributes&) override { names.push_back("/"); }
  void Unwatched(const FileId&) override { names.push_back("unwatched"); }
  void ChangesLost() override { names.push_back("lost"); }
  std::vector<std::string> names;
};

class SyscallServerRows : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "e2bfs-rows-XXXXXX").string();
    ASSERT_TRUE(mkdtemp(pattern.data()));
    root_ = fs::canonical(pattern).string();
    server_ = std::make_unique<ServerProcess>(ServerProcessOptions{root_});
  }
  void TearDown() override {
    server_.reset();
    if (mounted_) umount2(Path("small").c_str(), MNT_DETACH);
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }
  ServerProcess& server() { return *server_; }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }

  std::string Request(const std::vector<NewObject>& row, bool staged) {
    const std::string bytes = EncodeRow(row)->bytes;
    const auto length = static_cast<int64_t>(bytes.size());
    if (!staged) return EncodeOperations(0, {{Operation::kMakeObjects, Arguments().U64(0).I64(length).Raw(bytes).bytes()}});
    std::string descriptor;
    EXPECT_EQ(server().Ask(Operation::kStage, Arguments().U64(7000).Text("").Text(""), &descriptor), 0);
    std::ofstream("/proc/" + std::to_string(server().pid()) + "/fd/" + std::to_string(Fields(descriptor).U32())) << bytes;
    return EncodeOperations(0, {{Operation::kMakeObjects, Arguments().U64(7000).I64(length).bytes()}});
  }
  static Result<MadeObjects> Take(const std::vector<Reply>& replies, const std::vector<NewObject>& row) {
    std::vector<std::string_view> pieces;
    for (const Reply& reply : replies) {
      EXPECT_EQ(reply.outcomes.size(), 1U);
      EXPECT_EQ(reply.outcomes.at(0).errno_value, 0);
      EXPECT_LE(reply.outcomes.at(0).result.size(), kMaxBodyBytes);
      pieces.push_back(reply.outcomes.at(0).result);
    }
    return DecodeMade(pieces, row, EncodeRow(row)->directories, {});
  }
  Result<MadeObjects> Make(const std::vector<NewObject>& row, bool staged = false) {
    const uint64_t number = server().NextNumber();
    server().Send(number, Request(row, staged));
    return Take(server().Receive(number), row);
  }

  std::vector<std::string> HeardNow() {
    usleep(50'000);
    EXPECT_TRUE(server().Echo());
    Heard heard;
    while (server().HasReply(0)) {
      for (const Reply& news : server().Receive(0)) EXPECT_TRUE(DecodeNews(news.rest, {}, &heard));
    }
    return heard.names;
  }

  std::string root_;
  std::unique_ptr<ServerProcess> server_;
  bool mounted_ = false;
};

TEST_F(SyscallServerRows, AFileWithoutSpaceIsNotThere) {
  if (geteuid() != 0) GTEST_SKIP() << "mounting a small file system needs root";
  ASSERT_TRUE(fs::create_directory(Path("small")));
  ASSERT_EQ(mount("small", Path("small").c_str(), "tmpfs", 0, "size=1m"), 0) << std::strerror(errno);
  mounted_ = true;
  struct statvfs now {};
  ASSERT_EQ(statvfs(Path("small").c_str(), &now), 0);
  std::ofstream(Path("small/filler")) << std::string(now.f_bavail * now.f_bsize - 12'288, 'f');
  std::vector<NewObject> row = {NewFile("first", 4'000), NewFile("too large", 20'000), NewFile("last", 4'000), New("d", FileType::kDirectory), NewFile("in it", 9'000, 3)};
  for (NewObject& object : row) object.directory = {"small", {}};
  const auto made = Make(row);
  ASSERT_TRUE(made);
  for (const size_t index : {1, 4}) {
    ASSERT_TRUE(made->objects[index].error) << index;
    EXPECT_EQ(made->objects[index].error->errno_value, ENOSPC) << index;
    EXPECT_FALSE(made->objects[index].attributes) << index;
  }
  for (const size_t index : {0, 2, 3}) EXPECT_TRUE(made->objects[index].attributes && !made->objects[index].error) << index;
  EXPECT_FALSE(fs::exists(Path("small/too large")));
  EXPECT_TRUE(fs::is_empty(Path("small/d")));
  EXPECT_EQ(fs::file_size(Path("small/last")), 4'000U);
}

TEST_F(SyscallServerRows, WhomTheyBelongTo) {
  if (geteuid() != 0) GTEST_SKIP() << "only root gives away";
  fs::create_directory(Path("shared"));
  ASSERT_EQ(chown(Path("shared").c_str(), 0, 4712), 0);
  fs::permissions(Path("shared"), fs::perms(02777));
  std::vector<NewObject> row = {New("d", FileType::kDirectory), NewFile("f", 10, 0), New("l", FileType::kSymlink, 0), NewFile("shared", 10)};
  row[2].target = "f";
  for (NewObject& object : row) object.creator = Creator{4711, 4711};
  row[3].directory = {"shared", {}};
  const auto made = Make(row);
  ASSERT_TRUE(made);
  for (size_t i = 0; i < row.size(); ++i) {
    ASSERT_TRUE(made->objects[i].attributes && !made->objects[i].error) << i;
    EXPECT_EQ(made->objects[i].attributes->uid, 4711U) << i;
    EXPECT_EQ(made->objects[i].attributes->gid, i == 3 ? 4712U : 4711U) << i;
  }
  EXPECT_EQ(made->objects[0].attributes->permissions, 0755U);
  EXPECT_TRUE(made->objects[0].attributes->watched);
  EXPECT_TRUE(made->objects[1].attributes->xattr_names);
}

// Others' are, and all directories are watched from before anything is in them.
TEST_F(SyscallServerRows, OurOwnAreNoNews) {
  fs::create_directory(Path("old"));
  EXPECT_EQ(server().Ask(Operation::kLookup, Arguments().Place({{}, "old"})), 0);
  EXPECT_THAT(HeardNow(), ::testing::Not(::testing::IsEmpty()));
  int round = 0;
  for (const bool staged : {false, true}) {
    SCOPED_TRACE(staged);
    auto row = Files("d" + std::to_string(round), staged ? kMostNewObjects - 4 : 200, staged ? 10 : 0);
    row[0].attributes.permissions = 0750;
    row[5].attributes.mtime = TimeChange{false, {1'000'000'000, 0}};
    row.push_back(New("link" + std::to_string(round), FileType::kSymlink));
    row.back().target = "nowhere";
    row.push_back(NewFile("f" + std::to_string(round), 100));
    row.push_back(New("link" + std::to_string(round), FileType::kDirectory));
    row[0].directory = row[row.size() - 3].directory = row[row.size() - 1].directory = {"old", {}};
    const auto made = Make(row, staged);
    ASSERT_TRUE(made);
    EXPECT_TRUE(made->objects.back().error);
    EXPECT_EQ(CountOf(Path("old/d" + std::to_string(round))), row.size() - 4);
    EXPECT_THAT(HeardNow(), ::testing::IsEmpty());
    EXPECT_TRUE(made->objects[0].attributes->watched);
    ++round;
  }
  std::ofstream(Path("old/d1/f7")) << "another's";
  EXPECT_THAT(HeardNow(), ::testing::AllOf(::testing::Not(::testing::IsEmpty()), ::testing::Each("f7")));  // its close may be told by itself
}

TEST_F(SyscallServerRows, ARowIsNeverInAnothersWay) {
  const auto row = Files("d", kMostNewObjects - 1, 1'000);
  const std::string request = Request(row, true);
  const uint64_t number = server().NextNumber(), stat = server().NextNumber();
  server().Send(number, request);
  server().Send(stat, EncodeOperations(0, {{Operation::kStat, Arguments().Object(Node{}).bytes()}}));
  EXPECT_EQ(server().Receive(stat).size(), 1U);
  EXPECT_FALSE(server().HasReply(number));
  const auto replies = server().Receive(number);
  EXPECT_GT(replies.size(), 1U);
  EXPECT_TRUE(AllMade(Take(replies, row)));
}

// Nor are the attributes of its directories, which come at last.
TEST_F(SyscallServerRows, TheEndOfARowIsInNobodysWay) {
  int echoes = 0;  // while all of them are there; this process may be too slow for one
  for (int round = 0; round < 20 && echoes == 0; ++round) {
    std::vector<NewObject> row;
    for (size_t i = 0; i < kMostNewObjects; ++i) row.push_back(New("d" + std::to_string(round) + "." + std::to_string(i), FileType::kDirectory));
    for (NewObject& object : row) object.attributes.permissions = 0700;
    const std::string request = Request(row, true), last = Path(row.back().name);
    const uint64_t number = server().NextNumber();
    server().Send(number, request);
    while (true) {
      const bool all = access(last.c_str(), F_OK) == 0;
      ASSERT_TRUE(server().Echo());
      if (server().HasReply(number)) break;
      if (all) ++echoes;
    }
    const auto made = Take(server().Receive(number), row);
    ASSERT_TRUE(AllMade(made));
    for (const MadeObject& object : made->objects) ASSERT_EQ(object.attributes->permissions, 0700U);
  }
  EXPECT_GT(echoes, 0);
}

// Among so many it is not held any more when it gets its attributes.
TEST_F(SyscallServerRows, AMovedDirectoryLacksItsAttributesAndIsToldSo) {
  std::vector<NewObject> row;
  for (size_t i = 0; i < kMostNewObjects; ++i) row.push_back(New("d" + std::to_string(i), FileType::kDirectory));
  row[0].attributes.permissions = 0700;
  const std::string request = Request(row, true);
  const uint64_t number = server().NextNumber();
  server().Send(number, request);
  ASSERT_TRUE(ChannelRig::Eventually([&] { return fs::exists(Path("d1")); }));
  kill(server().pid(), SIGSTOP);
  fs::rename(Path("d0"), Path("moved"));
  fs::rename(Path("d1"), Path("moved, too"));
  const bool in_time = !fs::exists(Path(row.back().name));
  kill(server().pid(), SIGCONT);
  const auto made = Take(server().Receive(number), row);
  ASSERT_TRUE(made);
  if (!in_time) GTEST_SKIP() << "the server was faster";
  ASSERT_TRUE(made->objects[0].attributes);
  ASSERT_TRUE(made->objects[0].error);
  EXPECT_EQ(made->objects[0].error->errno_value, ESTALE);
  EXPECT_EQ(made->objects[0].attributes->permissions, 0755U);
  for (size_t i = 1; i < row.size(); ++i) EXPECT_TRUE(made->objects[i].attributes && !made->objects[i].error) << i;
  struct stat moved {};
  ASSERT_EQ(stat(Path("moved").c_str(), &moved), 0);
  EXPECT_EQ(moved.st_mode & 0777U, 0755U);
}

// A link has only its name to be found by. What was put in its place stays as it is, and the other objects are made.
TEST_F(SyscallServerRows, LinksThatAreReplacedAtOnce) {
  std::vector<NewObject> row;
  for (size_t i = 0; i < 400; ++i) {
    row.push_back(New("l" + std::to_string(i), FileType::kSymlink));
    row.back().target = "nowhere";
    row.back().attributes.mtime = TimeChange{false, {1'000'000'000, 0}};
    std::ofstream(Path("another" + std::to_string(i))) << "another's";
  }
  std::thread somebody([&] {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string path = Path(row[i].name);
      struct stat now {};
      while (lstat(path.c_str(), &now) != 0) {}
      rename(Path("another" + std::to_string(i)).c_str(), path.c_str());
    }
  });
  const auto made = Make(row, true);
  somebody.join();
  ASSERT_TRUE(made) << ToString(made.error());
  for (size_t i = 0; i < row.size(); ++i) {
    const MadeObject& object = made->objects[i];
    if (object.attributes) {
      EXPECT_EQ(object.attributes->type, FileType::kSymlink) << i;
      continue;
    }
    ASSERT_TRUE(object.error) << i;
    EXPECT_EQ(object.error->errno_value, ESTALE) << i;
  }
  for (const NewObject& object : row) {
    struct stat now {};
    ASSERT_EQ(lstat(Path(object.name).c_str(), &now), 0);
    EXPECT_TRUE(S_ISREG(now.st_mode));
    EXPECT_NE(now.st_mtime, 1'000'000'000) << object.name;
  }
}

TEST_F(SyscallServerRows, ARepeatGetsTheKeptReplies) {
  const auto row = Files("d", kMostNewObjects - 1, 0);
  const std::string request = Request(row, true);
  const uint64_t number = server().NextNumber();
  server().Send(number, request);
  server().Send(number, request);  // while it is done
  const auto first = server().Receive(number);
  EXPECT_TRUE(AllMade(Take(first, row)));
  EXPECT_TRUE(server().Echo());
  EXPECT_FALSE(server().HasReply(number));
  fs::remove_all(Path("d"));
  server().Send(number, request);
  const auto second = server().Receive(number);
  ASSERT_EQ(second.size(), first.size());
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(second[i].outcomes.at(0).result, first[i].outcomes.at(0).result);
  EXPECT_FALSE(fs::exists(Path("d")));
  // Done with, they are nobody's.
  EXPECT_TRUE(server().Echo(number));
  server().Send(number, request);
  EXPECT_TRUE(server().Echo(number));
  EXPECT_FALSE(server().HasReply(number));
}

TEST_F(SyscallServerRows, ARowThatIsGivenUpEndsAndIsALoss) {
  const std::string request = Request(Files("d", kMostNewObjects - 1, 2'000), true);
  const uint64_t number = server().NextNumber();
  server().Send(number, request);
  ASSERT_TRUE(ChannelRig::Eventually([&] { return fs::exists(Path("d/f0")); }));
  server().Send(server().NextNumber(), EncodeCancel(0, {number}));
  EXPECT_TRUE(server().Echo());
  EXPECT_TRUE(server().Echo());
  EXPECT_FALSE(server().HasReply(number));
  EXPECT_THAT(HeardNow(), ::testing::Contains("lost"));
  const size_t count = CountOf(Path("d"));
  EXPECT_LT(count, kMostNewObjects - 1);
  for (const auto& entry : fs::directory_iterator(Path("d"))) EXPECT_EQ(entry.file_size(), 2'000U);
  EXPECT_TRUE(server().Echo());
  EXPECT_EQ(CountOf(Path("d")), count);
}

TEST_F(SyscallServerRows, RowsThatLieMakeNothing) {
  const auto row = Files("d", 3, 10);
  const std::string bytes = EncodeRow(row)->bytes;
  auto ask = [&](const std::string& bad) { return server().Ask(Operation::kMakeObjects, Arguments().U64(0).I64(0).Raw(bad)); };
  for (size_t length = 0; length < bytes.size(); ++length) EXPECT_EQ(ask(bytes.substr(0, length)), EINVAL) << length;
  EXPECT_EQ(ask(bytes + "x"), EINVAL);
  EXPECT_EQ(server().Ask(Operation::kMakeObjects, Arguments().U64(4711).I64(10)), EBADF);
  std::string descriptor;
  EXPECT_EQ(server().Ask(Operation::kStage, Arguments().U64(7000).Text("").Text(""), &descriptor), 0);
  EXPECT_EQ(server().Ask(Operation::kMakeObjects, Arguments().U64(7000).I64(10)), ENODEV);
  EXPECT_TRUE(fs::is_empty(root_));
}

}  // namespace
}  // namespace e2bfs::testing::rows
