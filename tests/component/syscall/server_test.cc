// server.pl on pipes: what it refuses, what it does once, what ends it, what it answers.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "tests/component/syscall/server_process.h"

namespace e2bfs::testing {
namespace {

using namespace transport;
using namespace transport::syscall;
using ::testing::EndsWith;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class SyscallServer : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "e2bfs-server-XXXXXX").string();
    ASSERT_TRUE(mkdtemp(pattern.data()));
    root_ = fs::canonical(pattern).string();
    fs::permissions(root_, fs::perms(0777));
    server_ = std::make_unique<ServerProcess>(ServerProcessOptions{root_});
  }
  void TearDown() override {
    server_.reset();
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }

  ServerProcess& server() { return *server_; }
  std::string Path(const std::string& name) const { return root_ + "/" + name; }
  void Write(const std::string& name, const std::string& content) { std::ofstream(Path(name)) << content; }
  std::string Content(const std::string& name) const {
    std::ifstream file(Path(name));
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  static Node At(const std::string& path, FileId id = {}) { return {path, std::move(id)}; }
  static Name In(const std::string& directory, const std::string& name, FileId id = {}) { return {{directory, std::move(id)}, name}; }
  static Arguments Making(const Name& name, uint32_t mode = 0755) { return std::move(Arguments().Place(name).U32(mode).U8(0)); }
  static Arguments Opening(uint64_t handle, uint8_t flags, const Node& node, uint32_t old_pid = 0, uint32_t old_fd = 0) {
    return std::move(Arguments().U64(handle).U8(flags).Text(node.path).Text(node.id.value).Text(node.parent.value).U32(old_pid).U32(old_fd));
  }
  static Arguments Reading(uint64_t handle, const Node& node) { return std::move(Arguments().Object(handle, node).I64(0).U32(1000)); }
  static Arguments Appending(uint64_t handle, const Node& node, const std::string& bytes) {
    return std::move(Arguments().Object(handle, node).U8(0).I64(-1).I64(-1).U32(0).Text(bytes).U32(0));
  }
  static Arguments Copying(uint64_t from, uint64_t to) {
    return std::move(Arguments().Object(from, {}).I64(0).Object(to, {}).I64(0).I64(64 << 20));
  }
  FileId IdOf(const std::string& path) {
    std::string result;
    EXPECT_EQ(server().Ask(Operation::kStat, Arguments().Object(At(path)), &result), 0) << path;
    Fields fields(result);
    auto attributes = DecodeAttributes(fields, {});
    EXPECT_TRUE(attributes);
    return attributes ? attributes->id : FileId{};
  }
  // A copy whose child is stopped (SIGSTOP) before its first step: this process traces the fork.
  pid_t StoppedCopy(uint64_t* number) {
    Write("source", "x");
    Write("target", "");
    EXPECT_EQ(truncate(Path("source").c_str(), 64 << 20), 0);
    EXPECT_EQ(server().Ask(Operation::kOpen, Opening(901, kOpenRead, At("source"))), 0);
    EXPECT_EQ(server().Ask(Operation::kOpen, Opening(902, kOpenRead | kOpenWrite, At("target"))), 0);
    *number = server().NextNumber();
    return server().StopNextFork([&] { server().Send(*number, EncodeOperations(0, {{Operation::kCopyRange, Copying(901, 902).bytes()}})); });
  }

  std::string root_;
  std::unique_ptr<ServerProcess> server_;
};

TEST_F(SyscallServer, RunsWithPerlBaseAlone) {
  if (PerlBaseDirectory().empty()) {
    ASSERT_FALSE(fs::exists("/etc/debian_version")) << "Debian without perl-base's directory";
    GTEST_SKIP() << "only Debian has perl-base";
  }
  EXPECT_TRUE(fs::exists(PerlBaseDirectory() + "/strict.pm"));
  EXPECT_FALSE(fs::exists(PerlBaseDirectory() + "/Time/HiRes.pm"));
  EXPECT_TRUE(server().Echo());
  // One of each kind, so that what is loaded late is loaded here.
  Write("file", "content");
  EXPECT_EQ(server().Ask(Operation::kList, Arguments().Text("").Text("")), 0);
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In("", "d"))), 0);
  EXPECT_EQ(server().Ask(Operation::kStatFs, Arguments()), 0);
  EXPECT_EQ(server().Ask(Operation::kSync, Arguments().Object(At("file"))), 0);
}

// --- several directories at once

// The paths of the listings that came whole, in the pieces that came.
struct Deep {
  std::map<std::string, std::vector<std::string>> names;
  std::map<std::string, bool> watched;
  std::vector<std::string> order;
  size_t pieces = 0, bytes = 0;
  int error = 0;
};

Arguments Listing(const std::string& path, const std::vector<std::string>& below, uint8_t depth, uint32_t directories = 10'000, uint32_t entries = 100'000) {
  Arguments arguments;
  arguments.Text(path).Text("").U8(depth).U32(directories).U32(entries).U16(static_cast<uint16_t>(below.size()));
  for (const std::string& each : below) arguments.ShortText(each);
  return arguments;
}

Deep TakeDeep(const std::vector<Reply>& replies) {
  Deep deep;
  std::map<std::string, std::vector<std::string>> partial;
  for (const Reply& reply : replies) {
    for (const Reply::Outcome& outcome : reply.outcomes) {
      ++deep.pieces;
      deep.bytes += outcome.result.size();
      if (outcome.errno_value != 0) deep.error = outcome.errno_value;
      Fields fields(outcome.result);
      while (!fields.ended()) {
        const std::string path(fields.ShortText());
        const uint32_t part = fields.U32();
        const bool ended = fields.U8() != 0;
        if (part == 0) {
          const auto attributes = DecodeAttributes(fields, {});
          EXPECT_TRUE(attributes) << path;
          if (attributes) deep.watched[path] = attributes->watched;
        }
        for (uint32_t left = fields.U32(); left > 0 && fields.ok(); --left) {
          Entry entry;
          entry.name = std::string(fields.ShortText());
          EXPECT_TRUE(DecodeEntryBody(fields, {}, entry)) << path;
          partial[path].push_back(entry.name);
        }
        EXPECT_TRUE(fields.ok());
        if (!ended) continue;
        deep.order.push_back(path);
        deep.names[path] = std::move(partial[path]);
      }
    }
  }
  return deep;
}

TEST_F(SyscallServer, ListsSeveralDirectoriesAtOnce) {
  fs::create_directories(Path("t/a/x"));
  fs::create_directories(Path("t/b"));
  Write("t/a/1", "");
  Write("t/a/2", "");
  Write("t/a/x/3", "");
  const uint64_t number = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("t", {"a", "b"}, 200).bytes()}}));
  const Deep deep = TakeDeep(server().Receive(number));
  EXPECT_EQ(deep.order, (std::vector<std::string>{"a", "a/x", "b"}));
  EXPECT_EQ(deep.names.at("a"), (std::vector<std::string>{"1", "2", "x"}));
  EXPECT_TRUE(deep.watched.at("a/x"));
  // What happens in what was listed is told.
  Write("t/a/x/4", "");
  EXPECT_TRUE(server().Echo());
  EXPECT_TRUE(server().HasReply(0));
}

TEST_F(SyscallServer, ADeepListingIsNeverInAnothersWay) {
  for (int i = 0; i < 300; ++i) {
    const std::string directory = "t/d" + std::to_string(1000 + i);
    fs::create_directories(Path(directory));
    for (int j = 0; j < 60; ++j) Write(directory + "/f" + std::to_string(j), "");
  }
  const uint64_t number = server().NextNumber(), stat = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("t", {""}, 200).bytes()}}));
  server().Send(stat, EncodeOperations(0, {{Operation::kStat, Arguments().Object(At("t")).bytes()}}));
  EXPECT_EQ(server().Receive(stat).size(), 1U);
  EXPECT_TRUE(server().WaitForFirst(number));
  const Deep deep = TakeDeep(server().Receive(number));
  EXPECT_EQ(deep.order.size(), 301U);
  EXPECT_GT(deep.pieces, 5U);
  for (const auto& [path, names] : deep.names) EXPECT_EQ(names.size(), path.empty() ? 300U : 60U);
}

TEST_F(SyscallServer, ADeepListingThatNobodyWantsAnyMoreEnds) {
  for (int i = 0; i < 400; ++i) {
    fs::create_directories(Path("t/d" + std::to_string(1000 + i)));
    for (int j = 0; j < 50; ++j) Write("t/d" + std::to_string(1000 + i) + "/f" + std::to_string(j), "");
  }
  const uint64_t number = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("t", {""}, 200).bytes()}}));
  ASSERT_TRUE(server().WaitForFirst(number));
  server().Send(server().NextNumber(), EncodeCancel(0, {number}));
  EXPECT_TRUE(server().Echo());
  const Deep deep = TakeDeep(server().Receive(number, 1'000));
  EXPECT_LT(deep.order.size(), 300U);
  EXPECT_TRUE(server().Echo());
}

TEST_F(SyscallServer, GuessesReachIntoNothingElse) {
  fs::create_directories(Path("t/large"));
  fs::create_directories(Path("t/small"));
  for (int i = 0; i < 2'500; ++i) Write("t/large/f" + std::to_string(i), "");
  fs::create_directory_symlink("/etc", Path("t/link"));
  auto list = [&](const std::vector<std::string>& below, uint32_t directories = 100, uint32_t entries = 100'000) {
    const uint64_t number = server().NextNumber();
    server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("t", below, 200, directories, entries).bytes()}}));
    return TakeDeep(server().Receive(number));
  };
  EXPECT_EQ(list({"small", "large", "link", "missing", "large/f1"}).order, (std::vector<std::string>{"small"}));
  EXPECT_EQ(list({"large", "small"}).names.at("large").size(), 2'500U);
  EXPECT_EQ(list({"", "small"}, 2).order, (std::vector<std::string>{"", "small"}));
  EXPECT_EQ(list({"small", "large"}, 2, 10).order, (std::vector<std::string>{"small"}));
  EXPECT_EQ(list({"../t", "small"}).order, (std::vector<std::string>{"small"}));
  EXPECT_EQ(list({}).error, EINVAL);
  // Nothing reaches into /proc from outside; from inside it is the other way round.
  server_ = std::make_unique<ServerProcess>(ServerProcessOptions{"/"});
  const uint64_t number = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("", {"home", "proc", "proc/1", "sys"}, 0).bytes()}}));
  for (const std::string& path : TakeDeep(server().Receive(number)).order) EXPECT_FALSE(path.starts_with("proc") || path == "sys") << path;
}

int64_t CpuMilliseconds(pid_t pid) {
  clockid_t clock{};
  timespec used{};
  EXPECT_EQ(clock_getcpuclockid(pid, &clock), 0);
  EXPECT_EQ(clock_gettime(clock, &used), 0);
  return used.tv_sec * 1'000 + used.tv_nsec / 1'000'000;
}

TEST_F(SyscallServer, GuessesTakeNoWatchFromWhatWasAskedFor) {
  for (int i = 0; i < 5'000; ++i) fs::create_directories(Path("t/d" + std::to_string(10'000 + i)));
  const uint64_t number = server().NextNumber();
  const int64_t began = CpuMilliseconds(server().pid());
  server().Send(number, EncodeOperations(0, {{Operation::kListDeep, Listing("t", {""}, 200).bytes()}}));
  const Deep deep = TakeDeep(server().Receive(number, 60'000));
  EXPECT_EQ(deep.order.size(), 5'001U);
  // Steps end by size or by time, of which a fast machine needs less than a piece takes.
  EXPECT_GE(static_cast<int64_t>(deep.pieces), (CpuMilliseconds(server().pid()) - began) / 40);
  const auto watched = std::count_if(deep.watched.begin(), deep.watched.end(), [](const auto& each) { return each.second; });
  EXPECT_LE(watched, 4'096);
  EXPECT_GT(watched, 0);
  // The root was asked for before: it still is.
  std::string result;
  ASSERT_EQ(server().Ask(Operation::kStat, Arguments().Object(At("")), &result), 0);
  Fields fields(result);
  EXPECT_TRUE(DecodeAttributes(fields, {})->watched);
}

// --- several files at once

Arguments ReadingFiles(const std::string& directory, const std::vector<std::pair<std::string, uint32_t>>& files) {
  Arguments arguments;
  arguments.U16(1).Text(directory).Text("").U16(static_cast<uint16_t>(files.size()));
  for (const auto& [name, size] : files) arguments.ShortText(name).U32(size);
  return arguments;
}

std::map<uint32_t, std::string> TakeFiles(const std::vector<Reply>& replies) {
  std::map<uint32_t, std::string> contents;
  for (const Reply& reply : replies) {
    for (const Reply::Outcome& outcome : reply.outcomes) {
      EXPECT_EQ(outcome.errno_value, 0);
      Fields fields(outcome.result);
      while (!fields.ended()) {
        const uint32_t number = fields.U32();
        EXPECT_TRUE(DecodeAttributes(fields, {}));
        contents[number] = std::string(fields.Text());
        EXPECT_TRUE(fields.ok());
      }
    }
  }
  return contents;
}

TEST_F(SyscallServer, ReadsSeveralFilesAtOnce) {
  fs::create_directories(Path("t/directory"));
  Write("t/a", "content of a");
  Write("t/b", std::string(190'000, 'b'));
  Write("t/grown", "grown");
  Write("t/empty", "");
  fs::create_symlink("a", Path("t/link"));
  ASSERT_EQ(mkfifo(Path("t/fifo").c_str(), 0644), 0);
  Write("t/../outside", "outside");
  const uint64_t number = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kReadFiles,
                                              ReadingFiles("t", {{"a", 12}, {"b", 190'000}, {"grown", 4}, {"empty", 0}, {"link", 12}, {"fifo", 0}, {"directory", 0},
                                                                 {"../outside", 7}, {"..", 0}, {"", 0}, {"missing", 5}, {"a", 12}})
                                                  .bytes()}}));
  const auto contents = TakeFiles(server().Receive(number));
  EXPECT_EQ(contents, (std::map<uint32_t, std::string>{{0, "content of a"}, {1, std::string(190'000, 'b')}, {3, ""}, {11, "content of a"}}));
  // Nothing stays open.
  size_t open = 0;
  for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(server().pid()) + "/fd")) {
    std::error_code ignored;
    open += fs::read_symlink(entry, ignored).string().starts_with(root_) && fs::is_regular_file(entry, ignored);
  }
  EXPECT_EQ(open, 0U);
}

TEST_F(SyscallServer, FilesThatAreBeingWrittenSaySo) {
  Write("t1", "");
  EXPECT_EQ(server().Ask(Operation::kList, Arguments().Text("").Text("")), 0);
  std::ofstream writing(Path("t1"));
  writing << "half" << std::flush;
  const uint64_t number = server().NextNumber();
  ASSERT_TRUE(server().Echo());
  server().Send(number, EncodeOperations(0, {{Operation::kReadFiles, ReadingFiles("", {{"t1", 4}}).bytes()}}));
  for (const Reply& reply : server().Receive(number)) {
    for (const Reply::Outcome& outcome : reply.outcomes) {
      Fields fields(outcome.result);
      if (fields.ended()) continue;
      fields.U32();
      const auto attributes = DecodeAttributes(fields, {});
      ASSERT_TRUE(attributes);
      EXPECT_TRUE(attributes->being_written);
    }
  }
}

TEST_F(SyscallServer, AReadOfManyFilesIsNeverInAnothersWay) {
  fs::create_directories(Path("t"));
  std::vector<std::pair<std::string, uint32_t>> files;
  for (int i = 0; i < 1'000; ++i) {
    files.emplace_back("f" + std::to_string(i), 20'000);
    Write("t/f" + std::to_string(i), std::string(20'000, static_cast<char>('a' + i % 26)));
  }
  const uint64_t number = server().NextNumber(), stat = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kReadFiles, ReadingFiles("t", files).bytes()}}));
  server().Send(stat, EncodeOperations(0, {{Operation::kStat, Arguments().Object(At("t")).bytes()}}));
  EXPECT_EQ(server().Receive(stat).size(), 1U);
  EXPECT_FALSE(server().HasReply(number) && server().Receive(number, 0).size() > 100);
  EXPECT_EQ(TakeFiles(server().Receive(number)).size(), 1'000U);
}

// --- what ends it

TEST_F(SyscallServer, NonsenseEndsItBeforeAnythingFollows) {
  const std::string good = EncodeFrame(server().id(), 50, EncodeOperations(0, {{Operation::kMakeDirectory, Making(In("", "never")).bytes()}}));
  auto with = [&](size_t at, const std::string& bytes) { return std::string(good).replace(at, bytes.size(), bytes); };
  const std::vector<std::pair<const char*, std::string>> cases = {
      {"magic", with(0, "e2R1")},
      {"length 0", with(4, std::string(4, '\0'))},
      {"length beyond all", with(4, "\xff\xff\xff\xff")},
      {"length of 256 KiB and one", with(4, std::string("\0\4\0\1", 4))},
      {"checksum", with(8, "abcd")},
      {"foreign id", EncodeFrame("foreign!", 50, EncodeOperations(0, {}))},
      {"a flipped bit", with(good.size() - 1, "\x7f")},
      {"an unknown kind", EncodeFrame(server().id(), 50, std::string(8, '\0') + "\x07")},
      {"no count", EncodeFrame(server().id(), 50, std::string(9, '\0'))},
      {"no operations", EncodeFrame(server().id(), 50, EncodeOperations(0, {}))},
      {"fewer than counted", EncodeFrame(server().id(), 50, std::string(9, '\0') + std::string("\0\2\6\0\0\0\0", 7))},
      {"arguments that are not there", EncodeFrame(server().id(), 50, std::string(9, '\0') + std::string("\0\1\6\0\0\1\0", 7))},
      {"more than counted", EncodeFrame(server().id(), 50, EncodeOperations(0, {{Operation::kStatFs, ""}}) + "x")},
  };
  for (const auto& [name, bytes] : cases) {
    SCOPED_TRACE(name);
    ServerProcess server({root_});
    ASSERT_TRUE(server.Echo());
    server.SendBytes(bytes + good);
    EXPECT_EQ(server.WaitEnd(), 3);
    EXPECT_THAT(server.TakeWords(), HasSubstr("e2bfs: "));
    EXPECT_FALSE(fs::exists(Path("never")));
  }
}

TEST_F(SyscallServer, ArgumentsThatLieAreEinvalAndNothingWorse) {
  for (int operation = 1; operation <= 35; ++operation) {
    if (Operation(operation) == Operation::kInitialize) continue;
    for (const std::string& arguments : {std::string(), std::string("\0\0\0\xff", 4), std::string(40, '\xff'), std::string(200, '\0')}) {
      const int code = server().Ask(Operation(operation), Arguments().Raw(arguments));
      EXPECT_GE(code, 0) << operation;
    }
  }
  EXPECT_EQ(server().Ask(Operation(200), Arguments()), ENOSYS);
  EXPECT_EQ(server().Ask(Operation(0), Arguments()), ENOSYS);
  EXPECT_TRUE(server().Echo());
}

TEST_F(SyscallServer, EndOfInputEndsIt) {
  server().CloseInput();
  EXPECT_EQ(server().WaitEnd(), 0);
}

TEST_F(SyscallServer, LeaveEndsIt) {
  server().Send(server().NextNumber(), EncodeLeave());
  EXPECT_EQ(server().WaitEnd(), 0);
}

TEST_F(SyscallServer, SilenceEndsIt) {
  ServerProcess server({root_, 1});
  EXPECT_EQ(server.WaitEnd(), 0);
}

TEST_F(SyscallServer, ItsChildrenDieWithIt) {
  uint64_t number = 0;
  const pid_t child = StoppedCopy(&number);
  ASSERT_GT(child, 0);
  kill(server().pid(), SIGKILL);
  EXPECT_EQ(server().WaitEnd(), 128 + SIGKILL);
  kill(child, SIGCONT);  // it may have been stopped before it could ask to die with its parent; then it looks whether it is there
  bool gone = false;
  for (int i = 0; i < 5000 && !gone; ++i) {
    std::ifstream stat("/proc/" + std::to_string(child) + "/stat");
    std::string text;
    std::getline(stat, text);
    gone = text.empty() || text.find(") Z") != std::string::npos;
    usleep(1000);
  }
  EXPECT_TRUE(gone);
  if (!gone) kill(child, SIGKILL);
}

// --- at most once

TEST_F(SyscallServer, ARepeatOfAChangeGetsTheKeptReply) {
  const uint64_t number = server().NextNumber();
  const std::string make = EncodeOperations(0, {{Operation::kMakeDirectory, Making(In("", "once")).bytes()}});
  server().Send(number, make);
  const auto first = server().Receive(number);
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].outcomes.at(0).errno_value, 0);
  ASSERT_EQ(rmdir(Path("once").c_str()), 0);
  server().Send(number, make);
  const auto second = server().Receive(number);
  ASSERT_EQ(second.size(), 1U);
  EXPECT_EQ(second[0].outcomes.at(0).errno_value, 0);
  EXPECT_EQ(second[0].outcomes[0].result, first[0].outcomes[0].result);
  EXPECT_FALSE(fs::exists(Path("once")));
}

TEST_F(SyscallServer, AFailureIsKeptToo) {
  const uint64_t number = server().NextNumber();
  const std::string make = EncodeOperations(0, {{Operation::kUnlink, Arguments().Place(In("", "later")).bytes()}});
  server().Send(number, make);
  EXPECT_EQ(server().Receive(number).at(0).outcomes.at(0).errno_value, ENOENT);
  Write("later", "");
  server().Send(number, make);
  EXPECT_EQ(server().Receive(number).at(0).outcomes.at(0).errno_value, ENOENT);
  EXPECT_TRUE(fs::exists(Path("later")));
}

TEST_F(SyscallServer, AppendsAndOpensAreDoneOnce) {
  Write("log", "0\n");
  const uint64_t append = server().NextNumber();
  for (int i = 0; i < 5; ++i) server().Send(append, EncodeOperations(0, {{Operation::kStore, Appending(0, At("log"), "1\n").bytes()}}));
  EXPECT_TRUE(server().Echo());
  EXPECT_EQ(Content("log"), "0\n1\n");

  const uint64_t open = server().NextNumber();
  const std::string truncating = EncodeOperations(0, {{Operation::kOpen, Opening(7, kOpenRead | kOpenWrite | kOpenTruncate, At("log")).bytes()}});
  server().Send(open, truncating);
  const auto first = server().Receive(open);
  EXPECT_EQ(Content("log"), "");
  Write("log", "written since");
  server().Send(open, truncating);
  const auto second = server().Receive(open);
  EXPECT_EQ(Content("log"), "written since");
  // The same descriptor: the client has its number.
  EXPECT_EQ(first.at(0).outcomes.at(0).result.substr(0, 4), second.at(0).outcomes.at(0).result.substr(0, 4));
  Fields fields(first[0].outcomes[0].result);
  EXPECT_TRUE(fs::exists("/proc/" + std::to_string(server().pid()) + "/fd/" + std::to_string(fields.U32())));
}

TEST_F(SyscallServer, NumbersThatAreDoneWithAreRefused) {
  EXPECT_TRUE(server().Echo(100));
  server().Send(100, EncodeOperations(0, {{Operation::kMakeDirectory, Making(In("", "late")).bytes()}}));
  server().Send(57, EncodeOperations(0, {{Operation::kMakeDirectory, Making(In("", "later")).bytes()}}));
  server().Send(99, EncodeOperations(100, {{Operation::kMakeDirectory, Making(In("", "latest")).bytes()}}));
  EXPECT_TRUE(server().Echo());
  EXPECT_FALSE(server().HasReply(100) || server().HasReply(57) || server().HasReply(99));
  EXPECT_TRUE(fs::is_empty(root_));
  server().Send(101, EncodeOperations(100, {{Operation::kMakeDirectory, Making(In("", "in time")).bytes()}}));
  EXPECT_EQ(server().Receive(101).at(0).outcomes.at(0).errno_value, 0);
}

TEST_F(SyscallServer, WhatIsCancelledNeverComes) {
  server().Send(server().NextNumber(), EncodeCancel(0, {200, 202}));
  for (const uint64_t number : {200, 201, 202}) {
    server().Send(number, EncodeOperations(0, {{Operation::kMakeDirectory, Making(In("", std::to_string(number))).bytes()}}));
  }
  EXPECT_EQ(server().Receive(201).at(0).outcomes.at(0).errno_value, 0);
  EXPECT_TRUE(server().Echo());
  EXPECT_FALSE(server().HasReply(200) || server().HasReply(202));
  EXPECT_FALSE(fs::exists(Path("200")) || fs::exists(Path("202")));
}

TEST_F(SyscallServer, ForgottenRepliesAreNoSecondTry) {
  // More replies to changes than are kept, and none acknowledged.
  Write("file", "");
  const uint64_t first = server().NextNumber();
  const std::string append = EncodeOperations(0, {{Operation::kStore, Appending(0, At("file"), "x").bytes()}});
  server().Send(first, append);
  ASSERT_EQ(server().Receive(first).size(), 1U);
  const std::string names(60, 'a');
  for (int i = 0; i < 15; ++i) setxattr(Path("file").c_str(), ("user." + names + std::to_string(i)).c_str(), "", 0, 0);
  std::string many;
  uint64_t last = 0;
  const std::string change = EncodeOperations(0, std::vector<Call>(20, {Operation::kSetAttributes, Arguments().Object(At("file")).U32(0).bytes()}));
  for (int i = 0; i < 3000; ++i) {
    last = server().NextNumber();
    server().Send(last, change);
    if (i % 16 == 15) {
      ASSERT_EQ(server().Receive(last).size(), 1U);
    }
  }
  server().Send(first, append);
  EXPECT_EQ(server().Receive(first).at(0).outcomes.at(0).errno_value, EIO);
  EXPECT_EQ(Content("file"), "x");
}

// --- the loop

TEST_F(SyscallServer, LongCopiesHoldNobodyUp) {
  uint64_t number = 0;
  const pid_t child = StoppedCopy(&number);
  ASSERT_GT(child, 0);
  EXPECT_TRUE(server().Echo());
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In("", "meanwhile"))), 0);
  EXPECT_EQ(server().Ask(Operation::kSync, Arguments().Object(At("source"))), 0);
  // A repeat of what runs is not begun again.
  server().Send(number, EncodeOperations(0, {{Operation::kCopyRange, Copying(901, 902).bytes()}}));
  EXPECT_TRUE(server().Echo());
  EXPECT_EQ(server().Children().size(), 1U);
  EXPECT_FALSE(server().HasReply(number));
  kill(child, SIGCONT);
  const auto replies = server().Receive(number);
  ASSERT_EQ(replies.size(), 1U);
  EXPECT_EQ(replies[0].outcomes.at(0).errno_value, 0);
  Fields fields(replies[0].outcomes[0].result);
  EXPECT_EQ(fields.I64(), 64 << 20);
  EXPECT_EQ(fs::file_size(Path("target")), size_t{64} << 20);
}

TEST_F(SyscallServer, ADeadChildIsAnErrorNotASilence) {
  uint64_t number = 0;
  const pid_t child = StoppedCopy(&number);
  ASSERT_GT(child, 0);
  kill(child, SIGKILL);
  EXPECT_EQ(server().Receive(number).at(0).outcomes.at(0).errno_value, EIO);
  EXPECT_TRUE(server().Echo());
}

// The client takes silence for a lost server, and several long listings may be asked for at once.
TEST_F(SyscallServer, ALongListingIsSentAsItIsMade) {
  fs::create_directory(Path("many"));
  for (int i = 0; i < 30'000; ++i) Write("many/" + std::to_string(i), "");
  const uint64_t number = server().NextNumber();
  const auto begin = Clock::now();
  server().Send(number, EncodeOperations(0, {{Operation::kList, Arguments().Text("many").Text("").bytes()}}));
  ASSERT_TRUE(server().WaitForFirst(number));
  const auto first = Clock::now() - begin;
  const auto replies = server().Receive(number);
  EXPECT_GT(replies.size(), 10u);
  EXPECT_LT(first * 3, Clock::now() - begin);
}

// --- content, and no space for it

// A store of either kind: within the request, or staged.
struct Stored {
  int64_t cut = -1, size = -1;
  std::vector<std::pair<int64_t, std::string>> pieces = {};
  std::string append = "";
};

class SyscallServerStores : public SyscallServer {
 protected:
  void TearDown() override {
    if (mounted_) umount2(Path("small").c_str(), MNT_DETACH);
    SyscallServer::TearDown();
  }

  // A file system of 1 MiB at small/. False: not allowed here.
  bool MountSmall() {
    EXPECT_TRUE(fs::create_directory(Path("small")));
    mounted_ = mount("small", Path("small").c_str(), "tmpfs", 0, "size=1m") == 0;
    return mounted_;
  }
  int64_t FreeBytes() const {
    struct statvfs now {};
    EXPECT_EQ(statvfs(Path("small").c_str(), &now), 0);
    return static_cast<int64_t>(now.f_bavail * now.f_bsize);
  }
  // Fills the small one up, but for so many bytes.
  void LeaveFree(int64_t bytes) { Write("small/filler", std::string(static_cast<size_t>(FreeBytes() - bytes), 'f')); }

  static int Store(ServerProcess& server, const std::string& path, const Stored& store, bool staged, std::string* result = nullptr) {
    Arguments arguments;
    if (!staged) {
      arguments.Object(0, At(path)).U8(0).I64(store.cut).I64(store.size).U32(static_cast<uint32_t>(store.pieces.size()));
      for (const auto& [offset, bytes] : store.pieces) arguments.I64(offset).Text(bytes);
      return server.Ask(Operation::kStore, arguments.Text(store.append).U32(0), result);
    }
    std::string descriptor;
    EXPECT_EQ(server.Ask(Operation::kStage, Arguments().U64(7000).Text("").Text(""), &descriptor), 0);
    std::string all;
    for (const auto& [offset, bytes] : store.pieces) all += bytes;
    all += store.append;
    std::ofstream("/proc/" + std::to_string(server.pid()) + "/fd/" + std::to_string(Fields(descriptor).U32())) << all;
    arguments.U64(7000).I64(static_cast<int64_t>(all.size())).Object(0, At(path)).U8(0).I64(store.cut).I64(store.size);
    arguments.U32(static_cast<uint32_t>(store.pieces.size()));
    int64_t place = 0;
    for (const auto& [offset, bytes] : store.pieces) {
      arguments.I64(offset).I64(static_cast<int64_t>(bytes.size())).I64(place);
      place += static_cast<int64_t>(bytes.size());
    }
    return server.Ask(Operation::kCommit, arguments.I64(static_cast<int64_t>(store.append.size())).I64(place).U32(0), result);
  }

  bool mounted_ = false;
};

TEST_F(SyscallServerStores, WhatWasCutReadsAsZerosAlthoughItIsCutLast) {
  const size_t large = 3 << 20;  // zeros of that size are a child's work
  const std::vector<std::tuple<const char*, size_t, Stored, std::string>> cases = {
      {"a hole in the middle", 10'000, {0, 9'000, {{0, "ab"}, {8'000, "cd"}}}, "ab" + std::string(7'998, '\0') + "cd" + std::string(998, '\0')},
      {"behind what stays", 10'000, {10, 20, {{15, "x"}}}, std::string(10, 'o') + std::string(5, '\0') + "x" + std::string(4, '\0')},
      {"across the old end", 10, {4, 40, {{8, "12345"}, {20, "x"}}}, "oooo" + std::string(4, '\0') + "12345" + std::string(7, '\0') + "x" + std::string(19, '\0')},
      {"no size", 10'000, {5, -1, {{7, "x"}}}, "ooooo" + std::string(2, '\0') + "x"},
      {"cut alone", 10'000, {5, -1, {}}, "ooooo"},
      {"smaller and larger again", 10'000, {5, 10, {}}, "ooooo" + std::string(5, '\0')},
      {"cut beyond the end", 3, {5, -1, {}}, "ooo"},
      {"written whole", 10'000, {0, 3, {{0, "new"}}}, "new"},
      {"with an append", 10'000, {0, 5, {{2, "x"}}, "end"}, std::string(2, '\0') + "x" + std::string(2, '\0') + "end"},
      {"large", large, {1, static_cast<int64_t>(large) - 1, {{9, "x"}}}, "o" + std::string(8, '\0') + "x" + std::string(large - 11, '\0')},
  };
  ServerProcess plain({root_, 3600, false, true, {"fallocate", "copy_file_range"}});
  for (const auto& [name, old_size, store, expected] : cases) {
    for (ServerProcess* each : {&server(), &plain}) {
      for (const bool staged : {false, true}) {
        SCOPED_TRACE(std::string(name) + (staged ? ", staged" : "") + (each == &plain ? ", without fallocate" : ""));
        Write("file", std::string(old_size, 'o'));
        EXPECT_EQ(Store(*each, "file", store, staged), 0);
        EXPECT_TRUE(Content("file") == expected) << Content("file").size();
      }
    }
  }
}

TEST_F(SyscallServerStores, WithoutSpaceTheOldContentStaysAndNothingIsAppended) {
  if (geteuid() != 0) GTEST_SKIP() << "mounting a small file system needs root";
  ASSERT_TRUE(MountSmall()) << std::strerror(errno);
  const std::string old(100'000, 'o'), more(20'000, 'n'), much(400'000, 'n');
  const std::vector<std::tuple<const char*, Stored, std::string>> cases = {
      {"longer", {-1, -1, {{0, old + more}}}, old + more},
      {"written whole", {0, 120'000, {{0, more + old}}}, more + old},
      {"cut, with holes", {0, 200'000, {{0, "begin"}, {150'000, more}}}, "begin" + std::string(149'995, '\0') + more + std::string(30'000, '\0')},
      {"cut, with holes inside", {0, 120'000, {{30'000, more}, {100'000, more}}}, std::string(30'000, '\0') + more + std::string(50'000, '\0') + more},
      {"append", {-1, -1, {}, more}, old + more},
      {"much longer", {0, 400'000, {{0, much}}}, much},
      {"much appended", {-1, -1, {}, much}, old + much},
  };
  ServerProcess plain({root_, 3600, false, true, {"fallocate"}});
  for (const auto& [name, store, expected] : cases) {
    for (ServerProcess* each : {&server(), &plain}) {
      for (const bool staged : {false, true}) {
        if (!staged && std::string(name).find("much") == 0) continue;
        SCOPED_TRACE(std::string(name) + (staged ? ", staged" : "") + (each == &plain ? ", without fallocate" : ""));
        Write("small/file", old);
        LeaveFree(8'192);
        const int64_t before = FreeBytes();
        for (int i = 0; i < 2; ++i) {
          std::string result = "?";
          EXPECT_EQ(Store(*each, "small/file", store, staged, &result), ENOSPC);
          EXPECT_EQ(result, "");
          EXPECT_TRUE(Content("small/file") == old) << Content("small/file").size();
          EXPECT_EQ(FreeBytes(), before);
        }
        fs::remove(Path("small/filler"));
        EXPECT_EQ(Store(*each, "small/file", store, staged), 0);
        EXPECT_TRUE(Content("small/file") == expected) << Content("small/file").size();
      }
    }
  }
}

TEST_F(SyscallServerStores, AnAppendThatCannotBeCutOffSaysHowMuchIsThere) {
  if (geteuid() != 0) GTEST_SKIP() << "mounting a small file system needs root";
  ASSERT_TRUE(MountSmall()) << std::strerror(errno);
  ServerProcess server({root_, 3600, false, true, {"fallocate", "ftruncate"}});
  for (const size_t length : {20'000, 300'000, 2'000'000}) {
    const bool staged = length > 20'000;
    SCOPED_TRACE(length);
    Write("small/file", "old");
    LeaveFree(8'192);
    std::string bytes;
    for (size_t i = 0; bytes.size() < length; ++i) bytes += std::to_string(i) + " ";
    bytes.resize(length);
    std::string result;
    EXPECT_EQ(Store(server, "small/file", {-1, -1, {}, bytes}, staged, &result), ENOSPC);
    Fields fields(result);
    EXPECT_EQ(fields.U8(), 2);
    const int64_t done = fields.I64();
    EXPECT_TRUE(fields.ok() && fields.ended());
    EXPECT_EQ(done, 4'096 - 3 + 8'192);  // the rest of the first page, and what was free
    EXPECT_TRUE(Content("small/file") == "old" + bytes.substr(0, static_cast<size_t>(done)));
    fs::remove(Path("small/filler"));
    const std::string rest = bytes.substr(static_cast<size_t>(done)).substr(0, 20'000);
    EXPECT_EQ(Store(server, "small/file", {-1, -1, {}, rest}, staged), 0);
    EXPECT_TRUE(Content("small/file") == "old" + bytes.substr(0, static_cast<size_t>(done)) + rest);
  }
}

// A limit on the size of files: an error as any other, and nothing ends the server.
TEST_F(SyscallServerStores, AFileThatMayNotGrowKeepsItsContent) {
  const std::string old(5'000, 'o');
  Write("file", old);
  const rlimit limit{10'000, 10'000};
  ASSERT_EQ(prlimit(server().pid(), RLIMIT_FSIZE, &limit, nullptr), 0);
  const std::string bytes(20'000, 'n');
  for (const Stored& store : {Stored{-1, -1, {{0, bytes}}}, Stored{0, 20'000, {{0, bytes}}}, Stored{0, 20'000, {{0, "x"}, {9'000, "y"}}}, Stored{-1, -1, {}, bytes}}) {
    EXPECT_EQ(Store(server(), "file", store, false), EFBIG);
    EXPECT_TRUE(Content("file") == old) << Content("file").size();
  }
}

// --- addresses

TEST_F(SyscallServer, ADirectoryIsWhatItIsWhereverItWent) {
  ASSERT_TRUE(fs::create_directory(Path("a")));
  const FileId id = IdOf("a");
  // Held from here on.
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In("a", "one", id))), 0);
  fs::rename(Path("a"), Path("b"));
  ASSERT_TRUE(fs::create_directory(Path("a")));
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In("a", "two", id))), 0);
  EXPECT_TRUE(fs::exists(Path("b/two")));
  EXPECT_TRUE(fs::is_empty(Path("a")));
  // With the path alone it is the new one.
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In("a", "three"))), 0);
  EXPECT_TRUE(fs::exists(Path("a/three")));
}

TEST_F(SyscallServer, AnotherObjectIsStale) {
  ASSERT_TRUE(fs::create_directories(Path("in/a")));
  Write("file", "old");
  const FileId directory = IdOf("in/a"), file = IdOf("file");
  ServerProcess fresh({root_});  // holds nothing, and does not watch what it has not used
  fs::rename(Path("in/a"), Path("in/elsewhere"));
  fs::rename(Path("file"), Path("elsewhere file"));
  EXPECT_EQ(fresh.Ask(Operation::kMakeDirectory, Making(In("in/a", "x", directory))), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kStat, Arguments().Object(At("a/below", file))), ENOENT);
  ASSERT_TRUE(fs::create_directory(Path("in/a")));
  Write("file", "new");
  EXPECT_EQ(fresh.Ask(Operation::kMakeDirectory, Making(In("in/a", "x", directory))), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kUnlink, Arguments().Place(In("in/a", "x", directory))), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kList, Arguments().Text("in/a").Text(directory.value)), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kStat, Arguments().Object(At("file", file))), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kOpen, Opening(1, kOpenRead | kOpenWrite | kOpenTruncate, At("file", file))), ESTALE);
  EXPECT_EQ(fresh.Ask(Operation::kStore, Appending(0, At("file", file), "x")), ESTALE);
  EXPECT_EQ(Content("file"), "new");
  // A link in the way is not followed.
  fs::remove(Path("in/a"));
  fs::create_directory_symlink("elsewhere", Path("in/a"));
  EXPECT_EQ(fresh.Ask(Operation::kMakeDirectory, Making(In("in/a", "x", directory))), ESTALE);
  EXPECT_TRUE(fs::is_empty(Path("in/elsewhere")));
}

TEST_F(SyscallServer, OpenFilesAreTakenOverFromAServerThatIsStuck) {
  Write("file", "the very file");
  Write("other", "");
  std::string result;
  ASSERT_EQ(server().Ask(Operation::kOpen, Opening(5, kOpenRead | kOpenWrite, At("file")), &result), 0);
  Fields fields(result);
  const uint32_t descriptor = fields.U32();
  const FileId id = IdOf("file"), other = IdOf("other");
  fs::remove(Path("file"));
  kill(server().pid(), SIGSTOP);
  ServerProcess next({root_});
  EXPECT_EQ(next.Ask(Operation::kOpen, Opening(5, kOpenRead | kOpenWrite, At("file", id), uint32_t(server().pid()), descriptor)), 0);
  ASSERT_EQ(next.Ask(Operation::kRead, Reading(5, {}), &result), 0);
  EXPECT_THAT(result, HasSubstr("the very file"));
  EXPECT_EQ(next.Ask(Operation::kStore, Appending(5, {}, "!")), 0);
  // What is open there under that number is another one: by its path then.
  EXPECT_EQ(next.Ask(Operation::kOpen, Opening(6, kOpenRead, At("other", other), uint32_t(server().pid()), descriptor)), 0);
  EXPECT_EQ(next.Ask(Operation::kOpen, Opening(7, kOpenRead, At("gone", id), uint32_t(server().pid()), descriptor + 1)), ENOENT);
}

TEST_F(SyscallServer, WhatWasWrittenIsNotBusyAfterTheLastStore) {
  std::string result;
  auto rights = [&](uint32_t descriptor) {  // as F_GETFL has them, and O_PATH
    std::ifstream info("/proc/" + std::to_string(server().pid()) + "/fdinfo/" + std::to_string(descriptor));
    std::string word;
    while (info >> word && word != "flags:") {
    }
    info >> word;
    return std::stol(word, nullptr, 8) & (O_ACCMODE | O_PATH);
  };
  auto append = [](uint64_t handle, uint8_t last, const std::string& bytes) {
    return std::move(Arguments().Object(handle, {}).U8(last).I64(-1).I64(-1).U32(0).Text(bytes).U32(0));
  };
  ASSERT_EQ(server().Ask(Operation::kCreate, Arguments().U64(3).U8(1).Place(In("", "file")).U32(0644).U8(0), &result), 0);
  const uint32_t both = Fields(result).U32();
  ASSERT_EQ(server().Ask(Operation::kOpen, Opening(4, kOpenWrite, At("file")), &result), 0);
  const uint32_t writing = Fields(result).U32();
  EXPECT_EQ(server().Ask(Operation::kStore, append(3, 0, "1")), 0);
  EXPECT_EQ(rights(both), O_RDWR);
  EXPECT_EQ(server().Ask(Operation::kStore, append(3, 1, "2")), 0);
  EXPECT_EQ(rights(both), O_RDONLY);
  EXPECT_EQ(rights(writing), O_WRONLY);
  EXPECT_EQ(server().Ask(Operation::kEndWriting, Arguments().U64(4)), 0);
  EXPECT_EQ(rights(writing), O_PATH);
  EXPECT_EQ(server().Ask(Operation::kEndWriting, Arguments().U64(5)), 0);  // closed meanwhile
  // Neither the name nor the mode is needed for going on.
  fs::remove(Path("file"));
  for (const uint64_t handle : {3, 4}) {
    EXPECT_EQ(server().Ask(Operation::kStore, append(handle, 1, "3")), 0);
    EXPECT_EQ(server().Ask(Operation::kSync, Arguments().Object(handle, {})), 0);
    ASSERT_EQ(server().Ask(Operation::kRead, Reading(3, {}), &result), 0);
  }
  EXPECT_THAT(result, EndsWith("1233"));
  EXPECT_EQ(rights(both), O_RDONLY);
  EXPECT_EQ(server().Ask(Operation::kSetAttributes, Arguments().Object(3, {}).U32(1).U32(0444)), 0);
  const bool root = getuid() == 0;  // may write whatever the mode
  EXPECT_EQ(rights(both), root ? O_RDONLY : O_RDWR);
  EXPECT_EQ(rights(writing), root ? O_PATH : O_WRONLY);
}

TEST_F(SyscallServer, AProgramThatRunsIsStillReadAfterARestart) {
  fs::copy_file("/bin/sleep", Path("program"));
  std::string result;
  ASSERT_EQ(server().Ask(Operation::kOpen, Opening(5, kOpenRead | kOpenWrite, At("program")), &result), 0);
  const uint32_t descriptor = Fields(result).U32();
  const FileId id = IdOf("program");
  EXPECT_EQ(server().Ask(Operation::kEndWriting, Arguments().U64(5)), 0);
  const pid_t running = fork();
  if (running == 0) {
    execl(Path("program").c_str(), "sleep", "60", nullptr);
    _exit(1);
  }
  const std::string exe = "/proc/" + std::to_string(running) + "/exe";
  for (int i = 0; i < 1000 && fs::read_symlink(exe) != fs::canonical(Path("program")); ++i) usleep(10'000);
  ServerProcess next({root_});
  EXPECT_EQ(next.Ask(Operation::kOpen, Opening(5, kOpenRead | kOpenWrite, At("program", id), uint32_t(server().pid()), descriptor)), 0);
  EXPECT_EQ(next.Ask(Operation::kRead, Reading(5, {}), &result), 0);
  EXPECT_EQ(next.Ask(Operation::kStore, Appending(5, {}, "!")), ETXTBSY);
  kill(running, SIGKILL);
  waitpid(running, nullptr, 0);
  EXPECT_EQ(next.Ask(Operation::kStore, Appending(5, {}, "!")), 0);
}

TEST_F(SyscallServer, ANewFileIsItsOwnStage) {
  std::string result;
  auto fill = [&](const std::string& descriptor, const std::string& content) {
    std::ofstream("/proc/" + std::to_string(server().pid()) + "/fd/" + std::to_string(Fields(descriptor).U32())) << content;
  };
  auto into = [](uint64_t stage, uint8_t again, uint64_t handle, const Node& node) {
    return std::move(Arguments().U64(stage).U8(again).Object(handle, node));
  };
  auto commit = [](uint64_t stage, int64_t length) {
    return std::move(Arguments().U64(stage).I64(length).Object(3, {}).U8(0).I64(0).I64(length).U32(1).I64(0).I64(length).I64(0).I64(0).I64(length).U32(0));
  };
  ASSERT_EQ(server().Ask(Operation::kCreate, Arguments().U64(3).U8(1).Place(In("", "file")).U32(0644).U8(0), &result), 0);
  const FileId made = IdOf("file");
  ASSERT_EQ(server().Ask(Operation::kStageInto, into(10, 0, 3, {}), &result), 0);
  fill(result, "content");
  EXPECT_EQ(server().Ask(Operation::kCommit, commit(10, 8)), ENODEV);  // torn
  EXPECT_EQ(server().Ask(Operation::kCommit, commit(10, 7)), 0);
  EXPECT_EQ(Content("file"), "content");
  EXPECT_EQ(IdOf("file"), made);
  EXPECT_EQ(server().Ask(Operation::kCommit, commit(10, 7)), EBADF);  // it is gone with it

  // Of a try that broke off.
  EXPECT_EQ(server().Ask(Operation::kStageInto, into(11, 0, 3, {})), EOPNOTSUPP);
  EXPECT_EQ(server().Ask(Operation::kUnwritten, Arguments().Object(3, {}), &result), 0);
  EXPECT_EQ(result, std::string(1, '\1'));
  {
    std::ofstream late(Path("file"), std::ios::app);
    EXPECT_EQ(server().Ask(Operation::kUnwritten, Arguments().Object(3, {}), &result), 0);
    EXPECT_EQ(result, std::string(1, '\0'));
  }
  EXPECT_EQ(server().Ask(Operation::kUnwritten, Arguments().Object(3, {}), &result), 0);
  EXPECT_EQ(result, std::string(1, '\1'));
  EXPECT_EQ(server().Ask(Operation::kStageInto, into(11, 1, 3, {}), &result), 0);
  fill(result, "again");
  EXPECT_EQ(server().Ask(Operation::kCommit, commit(11, 5)), 0);
  EXPECT_EQ(Content("file"), "again");

  // envd would take away what they are.
  Write("set-uid", "");
  ASSERT_EQ(chmod(Path("set-uid").c_str(), 04755), 0);
  EXPECT_EQ(server().Ask(Operation::kStageInto, into(12, 0, 0, At("set-uid"))), EOPNOTSUPP);
  if (getuid() == 0) {
    Write("another's", "");
    ASSERT_EQ(chown(Path("another's").c_str(), 4711, 4712), 0);
    EXPECT_EQ(server().Ask(Operation::kStageInto, into(12, 0, 0, At("another's"))), EOPNOTSUPP);
  }
}

TEST_F(SyscallServer, PathsBeyondPathMax) {
  std::string path;
  const std::string name(240, 'n');
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(server().Ask(Operation::kMakeDirectory, Making(In(path, name))), 0) << i;
    path += (path.empty() ? "" : "/") + name;
  }
  ASSERT_GT(path.size(), 4096U);
  std::string result;
  EXPECT_EQ(server().Ask(Operation::kStat, Arguments().Object(At(path))), 0);
  EXPECT_EQ(server().Ask(Operation::kCreate, Arguments().U64(3).U8(1).Place(In(path, "file")).U32(0644).U8(0)), 0);
  EXPECT_EQ(server().Ask(Operation::kStore, Appending(3, {}, "deep")), 0);
  EXPECT_EQ(server().Ask(Operation::kRead, Reading(0, At(path + "/file")), &result), 0);
  EXPECT_THAT(result, HasSubstr("deep"));
  EXPECT_EQ(server().Ask(Operation::kList, Arguments().Text(path).Text("")), 0);
  EXPECT_EQ(server().Ask(Operation::kRename, Arguments().Place(In(path, "file")).Place(In("", "up")).U32(0)), 0);
  EXPECT_EQ(Content("up"), "deep");
  // A name that is too long is one, wherever.
  EXPECT_EQ(server().Ask(Operation::kMakeDirectory, Making(In(path, std::string(256, 'x')))), ENAMETOOLONG);
  EXPECT_EQ(server().Ask(Operation::kStat, Arguments().Object(At(std::string(5000, 'x')))), ENAMETOOLONG);
}

TEST_F(SyscallServer, ManyEntriesComeInPieces) {
  constexpr int kEntries = 32'000;
  ASSERT_TRUE(fs::create_directory(Path("many")));
  for (int i = 0; i < kEntries; ++i) ASSERT_EQ(mknod(Path("many/entry number " + std::to_string(i)).c_str(), S_IFREG | 0644, 0), 0);
  const uint64_t number = server().NextNumber();
  server().Send(number, EncodeOperations(0, {{Operation::kList, Arguments().Text("many").Text("").bytes()}}));
  const auto replies = server().Receive(number, 60'000);
  ASSERT_GT(replies.size(), 10U);
  std::set<std::string> names;
  for (size_t i = 0; i < replies.size(); ++i) {
    EXPECT_EQ(replies[i].more, i + 1 < replies.size());
    Fields fields(replies[i].outcomes.at(0).result);
    if (i == 0) {
      ASSERT_TRUE(DecodeAttributes(fields, {}));
    }
    const uint32_t count = fields.U32();
    for (uint32_t j = 0; j < count; ++j) {
      Entry entry;
      entry.name = std::string(fields.ShortText());
      ASSERT_TRUE(DecodeEntryBody(fields, {}, entry));
      EXPECT_TRUE(names.insert(entry.name).second);
    }
    EXPECT_TRUE(fields.ok() && fields.ended());
  }
  EXPECT_EQ(names.size(), size_t{kEntries});
}

TEST_F(SyscallServer, AFifoIsNeverOpened) {
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0666), 0);
  EXPECT_EQ(server().Ask(Operation::kOpen, Opening(1, kOpenRead, At("fifo"))), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kOpen, Opening(1, kOpenWrite, At("fifo"))), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kRead, Reading(0, At("fifo"))), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kStore, Appending(0, At("fifo"), "x")), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kSync, Arguments().Object(At("fifo"))), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kCreate, Arguments().U64(3).U8(0).Place(In("", "fifo")).U32(0644).U8(0)), ENXIO);
  EXPECT_EQ(server().Ask(Operation::kStat, Arguments().Object(At("fifo"))), 0);
  EXPECT_EQ(server().Ask(Operation::kList, Arguments().Text("").Text("")), 0);
  EXPECT_TRUE(server().Echo());
}

// --- errno of the obvious failures

TEST_F(SyscallServer, Errnos) {
  ASSERT_TRUE(fs::create_directories(Path("full/inner")));
  ASSERT_TRUE(fs::create_directory(Path("empty")));
  Write("file", "content");
  fs::create_symlink("nowhere", Path("link"));
  struct Case {
    const char* what;
    Operation operation;
    Arguments arguments;
    int expected;
  };
  const std::string nul("a\0b", 3);
  const Case cases[] = {
      {"stat of nothing", Operation::kStat, Arguments().Object(At("none")), ENOENT},
      {"stat below a file", Operation::kStat, Arguments().Object(At("file/x")), ENOTDIR},
      {"stat of an unknown handle", Operation::kStat, Arguments().Object(77, {}), EBADF},
      {"stat upwards", Operation::kStat, Arguments().Object(At("../x")), EINVAL},
      {"stat of an absolute path", Operation::kStat, Arguments().Object(At("/etc/passwd")), EINVAL},
      {"stat with a NUL", Operation::kStat, Arguments().Object(At(nul)), EINVAL},
      {"lookup of nothing", Operation::kLookup, Arguments().Place(In("", "none")), ENOENT},
      {"lookup of ..", Operation::kLookup, Arguments().Place(In("empty", "..")), EINVAL},
      {"lookup of a path", Operation::kLookup, Arguments().Place(In("", "full/inner")), EINVAL},
      {"lookup in a file", Operation::kLookup, Arguments().Place(In("file", "x")), ENOTDIR},
      {"list of nothing", Operation::kList, Arguments().Text("none").Text(""), ENOENT},
      {"list of a file", Operation::kList, Arguments().Text("file").Text(""), ENOTDIR},
      {"readlink of a file", Operation::kReadLink, Arguments().Object(At("file")), EINVAL},
      {"mkdir of what is there", Operation::kMakeDirectory, Making(In("", "file")), EEXIST},
      {"mkdir in nothing", Operation::kMakeDirectory, Making(In("none", "x")), ENOENT},
      {"mkdir through a link", Operation::kMakeDirectory, Making(In("link", "x")), ENOTDIR},
      {"mknod of what is there", Operation::kMakeNode, Arguments().Place(In("", "file")).U32(S_IFREG).U32(0).U32(0).U8(0), EEXIST},
      {"symlink of what is there", Operation::kMakeSymlink, Arguments().Place(In("", "link")).Text("x").U8(0), EEXIST},
      {"symlink to nothing at all", Operation::kMakeSymlink, Arguments().Place(In("", "new")).Text("").U8(0), ENOENT},
      {"link of a directory", Operation::kMakeLink, Arguments().Object(At("empty")).Place(In("", "new")), EPERM},
      {"link of nothing", Operation::kMakeLink, Arguments().Object(At("none")).Place(In("", "new")), ENOENT},
      {"link onto what is there", Operation::kMakeLink, Arguments().Object(At("file")).Place(In("", "link")), EEXIST},
      {"unlink of nothing", Operation::kUnlink, Arguments().Place(In("", "none")), ENOENT},
      {"unlink of a directory", Operation::kUnlink, Arguments().Place(In("", "empty")), EISDIR},
      {"rmdir of a file", Operation::kRemoveDirectory, Arguments().Place(In("", "file")), ENOTDIR},
      {"rmdir of what is full", Operation::kRemoveDirectory, Arguments().Place(In("", "full")), ENOTEMPTY},
      {"rmdir of nothing", Operation::kRemoveDirectory, Arguments().Place(In("", "none")), ENOENT},
      {"rename of nothing", Operation::kRename, Arguments().Place(In("", "none")).Place(In("", "x")).U32(0), ENOENT},
      {"rename onto what is full", Operation::kRename, Arguments().Place(In("", "empty")).Place(In("", "full")).U32(0), ENOTEMPTY},
      {"rename of a file onto a directory", Operation::kRename, Arguments().Place(In("", "file")).Place(In("", "empty")).U32(0), EISDIR},
      {"rename of a directory onto a file", Operation::kRename, Arguments().Place(In("", "empty")).Place(In("", "file")).U32(0), ENOTDIR},
      {"rename into itself", Operation::kRename, Arguments().Place(In("", "full")).Place(In("full/inner", "x")).U32(0), EINVAL},
      {"rename that replaces nothing", Operation::kRename, Arguments().Place(In("", "file")).Place(In("", "link")).U32(1), EEXIST},
      {"exchange with nothing", Operation::kRename, Arguments().Place(In("", "file")).Place(In("", "none")).U32(2), ENOENT},
      {"truncate of a directory", Operation::kSetAttributes, Arguments().Object(At("empty")).U32(8).I64(0), EISDIR},
      {"truncate of a link", Operation::kSetAttributes, Arguments().Object(At("link")).U32(8).I64(0), EINVAL},
      {"truncate to less than nothing", Operation::kSetAttributes, Arguments().Object(At("file")).U32(8).I64(-1), EINVAL},
      {"chmod of a link", Operation::kSetAttributes, Arguments().Object(At("link")).U32(1).U32(0600), EOPNOTSUPP},
      {"chmod of nothing", Operation::kSetAttributes, Arguments().Object(At("none")).U32(1).U32(0600), ENOENT},
      {"getxattr of what is not there", Operation::kGetXattr, Arguments().Object(At("file")).Text("user.none"), ENODATA},
      {"setxattr to replace nothing", Operation::kSetXattr, Arguments().Object(At("file")).Text("user.x").Text("v").U32(2), ENODATA},
      {"removexattr of nothing", Operation::kRemoveXattr, Arguments().Object(At("file")).Text("user.none"), ENODATA},
      {"open of nothing", Operation::kOpen, Opening(1, kOpenRead, At("none")), ENOENT},
      {"open of a directory", Operation::kOpen, Opening(1, kOpenRead, At("empty")), EISDIR},
      {"open of a link", Operation::kOpen, Opening(1, kOpenRead, At("link")), ELOOP},
      {"create exclusively", Operation::kCreate, Arguments().U64(1).U8(1).Place(In("", "file")).U32(0600).U8(0), EEXIST},
      {"create over a directory", Operation::kCreate, Arguments().U64(1).U8(0).Place(In("", "empty")).U32(0600).U8(0), EISDIR},
      {"create over a link", Operation::kCreate, Arguments().U64(1).U8(0).Place(In("", "link")).U32(0600).U8(0), ELOOP},
      {"create in nothing", Operation::kCreate, Arguments().U64(1).U8(0).Place(In("none", "x")).U32(0600).U8(0), ENOENT},
      {"read of a directory", Operation::kRead, Reading(0, At("empty")), EISDIR},
      {"read of an unknown handle", Operation::kRead, Reading(78, {}), EBADF},
      {"store into a directory", Operation::kStore, Appending(0, At("empty"), "x"), EISDIR},
      {"commit of an unknown stage", Operation::kCommit, Arguments().U64(79).I64(0).Object(At("file")), EBADF},
      {"sync of nothing", Operation::kSync, Arguments().Object(At("none")), ENOENT},
      {"seek beyond the end", Operation::kSeek, Arguments().Object(At("file")).I64(1000).U8(3), ENXIO},
      {"allocate of nothing", Operation::kAllocate, Arguments().Object(At("file")).U32(0).I64(0).I64(0), EINVAL},
      {"copy of an unknown handle", Operation::kCopyRange, Copying(80, 81), EBADF},
      {"close of an unknown handle", Operation::kClose, Arguments().U64(82), 0},
  };
  for (const Case& one : cases) EXPECT_EQ(server().Ask(one.operation, one.arguments), one.expected) << one.what;
  EXPECT_EQ(Content("file"), "content");
}

TEST_F(SyscallServer, ErrnosOfNobodySpecial) {
  if (getuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  fs::create_directory(Path("closed"));
  Write("closed/file", "x");
  Write("mine", "x");
  ASSERT_EQ(chmod(Path("closed").c_str(), 0700), 0);
  ASSERT_EQ(chmod(Path("mine").c_str(), 0600), 0);
  ServerProcess server({root_, 3600, true});
  EXPECT_EQ(server.Ask(Operation::kList, Arguments().Text("closed").Text("")), EACCES);
  EXPECT_EQ(server.Ask(Operation::kStat, Arguments().Object(At("closed/file"))), EACCES);
  EXPECT_EQ(server.Ask(Operation::kMakeDirectory, Making(In("closed", "x"))), EACCES);
  EXPECT_EQ(server.Ask(Operation::kOpen, Opening(1, kOpenRead, At("mine"))), EACCES);
  EXPECT_EQ(server.Ask(Operation::kOpen, Opening(1, kOpenWrite | kOpenTruncate, At("mine"))), EACCES);
  EXPECT_EQ(server.Ask(Operation::kStore, Appending(0, At("mine"), "x")), EACCES);
  EXPECT_EQ(server.Ask(Operation::kSetAttributes, Arguments().Object(At("mine")).U32(1).U32(0666)), EPERM);
  // The right to write that its mode gives nobody is kept.
  ASSERT_EQ(chmod(root_.c_str(), 0777), 0);
  ASSERT_EQ(server.Ask(Operation::kCreate, Arguments().U64(3).U8(1).Place(In("", "read only")).U32(0444).U8(0)), 0);
  EXPECT_EQ(server.Ask(Operation::kEndWriting, Arguments().U64(3)), 0);
  EXPECT_EQ(server.Ask(Operation::kStore, Appending(3, {}, "written")), 0);
  ASSERT_EQ(server.Ask(Operation::kCreate, Arguments().U64(4).U8(1).Place(In("", "made so")).U32(0644).U8(0)), 0);
  EXPECT_EQ(server.Ask(Operation::kEndWriting, Arguments().U64(4)), 0);
  EXPECT_EQ(server.Ask(Operation::kSetAttributes, Arguments().Object(4, {}).U32(1).U32(0444)), 0);
  EXPECT_EQ(server.Ask(Operation::kStore, Appending(4, {}, "written")), 0);
  EXPECT_EQ(Content("read only") + Content("made so"), "writtenwritten");
  EXPECT_EQ(server.Ask(Operation::kSetAttributes, Arguments().Object(At("mine")).U32(2).U32(65534)), EPERM);
  EXPECT_EQ(server.Ask(Operation::kMakeNode, Arguments().Place(In("", "device")).U32(S_IFCHR | 0600).U32(1).U32(3).U8(0)), EPERM);
  EXPECT_EQ(Content("mine"), "x");
}

TEST_F(SyscallServer, TheRootHasToBeADirectory) {
  Write("file", "");
  for (const auto& [root, expected] : std::vector<std::pair<std::string, int>>{
           {Path("none"), ENOENT}, {Path("file"), ENOTDIR}, {std::string("a\0b", 3), EINVAL}}) {
    ServerProcess server({root_, 3600, false, false});
    EXPECT_EQ(server.Ask(Operation::kInitialize, Arguments().Text(root).U32(60)), expected);
  }
}

}  // namespace
}  // namespace e2bfs::testing
