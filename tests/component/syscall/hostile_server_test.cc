// A syscall server that is somebody else's: what it says may be anything, and the mount goes on.
#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "tests/component/syscall/scripted_envd.h"
#include "transport/syscall/syscall_fs.h"

namespace e2bfs::testing::hostile {
namespace {

using namespace std::chrono_literals;
using namespace transport;
using syscall::Operation;
using Server = ScriptedEnvd::Server;
using Request = ScriptedEnvd::Request;

OpContext Ctx(std::chrono::milliseconds time = 60s) { return OpContext::Within(time); }
Node At(const std::string& path) { return {path, {}}; }

template <typename T>
int Code(const Result<T>& result) {
  return result ? 0 : result.error().errno_value;
}

bool Eventually(const std::function<bool()>& condition) {
  for (const auto end = Clock::now() + 60s; Clock::now() < end;) {
    if (condition()) return true;
    std::this_thread::sleep_for(5ms);
  }
  return condition();
}

std::unique_ptr<RemoteFs> Mount(ScriptedEnvd& envd, syscall::ChannelOptions options = {}) {
  auto fs = SyscallFs::Create(envd.client(), {.channel = options}, Ctx());
  if (!fs) throw std::runtime_error(ToString(fs.error()));
  return std::move(*fs);
}

std::string Stats() { return ScriptedEnvd::RootAttributes(); }

class CountingListener : public ChangeListener {
 public:
  void NameChanged(const FileId&, const std::string&, const std::optional<Entry>&, bool) override { ++others; }
  void DirectoryChanged(const Attributes&) override { ++others; }
  void Unwatched(const FileId&) override { ++others; }
  void ChangesLost() override { ++lost; }
  std::atomic<int> lost{0}, others{0};
};

// --- news

TEST(HostileServer, AFrameFullOfLossesIsNoSanityAndNoWork) {
  ScriptedEnvd envd([](Server& server, const Request& request) { server.Reply(request.number, 0, {Stats()}); });
  auto fs = Mount(envd);
  CountingListener listener;
  fs->SetListener(&listener);
  envd.latest()->News(std::string(500'000, '\4'));
  ASSERT_TRUE(Eventually([&] { return envd.latest()->dead() || listener.lost > 0; }));
  EXPECT_TRUE(fs->Stat(At("x"), Ctx()));
  EXPECT_EQ(envd.started(), 2);
  EXPECT_LE(listener.lost, 3);  // what the loss of the way itself tells
  fs->SetListener(nullptr);
}

TEST(HostileServer, LossesWithoutEndAreNoSanity) {
  ScriptedEnvd envd([](Server& server, const Request& request) { server.Reply(request.number, 0, {Stats()}); });
  auto fs = Mount(envd);
  CountingListener listener;
  fs->SetListener(&listener);
  const auto first = envd.latest();
  for (int i = 0; i < 3'000; ++i) first->News("\4");
  EXPECT_TRUE(Eventually([&] { return fs->Stat(At("x"), Ctx()) && envd.started() == 2; }));
  EXPECT_LE(listener.lost, 400);
  fs->SetListener(nullptr);
}

// --- answers

TEST(HostileServer, MoreOutcomesThanCallsAreRefused) {
  ScriptedEnvd envd([](Server& server, const Request& request) {
    if (request.operation == Operation::kList) {
      for (int i = 0; i < 3; ++i) server.Reply(request.number, 1, std::vector<std::string>(65'000));  // and more follows
    } else {
      server.Reply(request.number, 0, {Stats(), Stats()});
    }
  });
  auto fs = Mount(envd);
  for (int i = 0; i < 2; ++i) {
    auto list = fs->List(At(""), Ctx(20s));
    EXPECT_EQ(Code(list), EIO);
    auto stat = fs->Stat(At(""), Ctx(20s));
    EXPECT_EQ(Code(stat), EIO);
    EXPECT_EQ(stat.error().kind, ErrorKind::kProtocol);
  }
}

TEST(HostileServer, PiecesOfNothingAreCounted) {
  ScriptedEnvd envd([](Server& server, const Request& request) {
    for (int i = 0; i < 200; ++i) server.Reply(request.number, 1, {""});  // and more follows
  });
  syscall::ChannelOptions options;
  options.answer_bytes = 4'000;
  auto fs = Mount(envd, options);
  EXPECT_EQ(Code(fs->List(At(""), Ctx(20s))), EFBIG);
}

// 100 entries, some 35 KB.
std::string Piece(int from) {
  syscall::Arguments entries;
  entries.U32(100);
  for (int i = from; i < from + 100; ++i) {
    const std::string name = std::to_string(1000 + i) + std::string(200, 'n');
    entries.Raw(std::string("\0", 1) + char(name.size())).Raw(name).Raw(Stats()).U8(0);
  }
  return entries.bytes();
}

TEST(HostileServer, LongAnswersAreHeldOneAtATime) {
  std::mutex mutex;
  std::vector<uint64_t> numbers;
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    std::lock_guard lock(mutex);
    numbers.push_back(request.number);
    const auto begin = [&](int pieces) {
      for (int i = 0; i < pieces; ++i) server.Reply(request.number, 1, {i == 0 ? Stats() + Piece(0) : Piece(100 * i)});
    };
    begin(numbers.size() == 2 ? 1 : 4);
    if (numbers.size() == 2) server.Reply(numbers[0], 0, {Piece(400)});  // the other gives way and is asked for again
    if (numbers.size() == 3) server.Reply(request.number, 0, {Piece(400)});
  });
  syscall::ChannelOptions options;
  options.held_bytes = size_t{64} << 10;
  auto fs = Mount(envd, options);
  std::vector<std::thread> callers;
  for (size_t i = 1; i <= 2; ++i) {
    callers.emplace_back([&] {
      auto listing = fs->List(At(""), Ctx());
      ASSERT_TRUE(listing) << ToString(listing.error());
      EXPECT_EQ(listing->entries.size(), 500U);
    });
    ASSERT_TRUE(Eventually([&] {
      std::lock_guard lock(mutex);
      return numbers.size() >= i;
    }));
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(numbers.size(), 3U);
}

// A part of one listing: `names` entries.
std::string Part(const std::string& path, uint32_t part, bool ended, const std::vector<std::string>& names) {
  syscall::Arguments bytes;
  bytes.ShortText(path).U32(part).U8(ended ? 1 : 0);
  if (part == 0) bytes.Raw(Stats());
  bytes.U32(static_cast<uint32_t>(names.size()));
  for (const std::string& name : names) bytes.ShortText(name).Raw(Stats()).U8(0);
  return bytes.bytes();
}

TEST(HostileServer, ListingsAreThoseThatWereAskedFor) {
  std::string answer;
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    server.Reply(request.number, 0, {request.operation == Operation::kListDeep ? answer : Stats()});
  });
  auto fs = Mount(envd);
  auto ask = [&](std::string pieces, uint32_t depth = 1) {
    answer = std::move(pieces);
    return fs->ListDeep(At(""), {{"a", "b"}, depth, 3, 2}, Ctx(20s));
  };
  const auto good = ask(Part("a", 0, false, {"x"}) + Part("b", 0, true, {}) + Part("a", 1, true, {"y", "x"}));
  ASSERT_TRUE(good);
  ASSERT_EQ(good->size(), 2U);
  EXPECT_EQ((*good)[0].listing.entries.size(), 2U);
  // What is not whole is nothing.
  const auto torn = ask(Part("a", 0, true, {"x"}) + Part("b", 0, false, {"y"}));
  ASSERT_TRUE(torn);
  EXPECT_EQ(torn->size(), 1U);
  const std::pair<const char*, std::string> bad[] = {
      {"not asked for", Part("c", 0, true, {})},
      {"the directory itself", Part("", 0, true, {})},
      {"deeper", Part("a/b/c", 0, true, {})},
      {"no path", Part("a/../b", 0, true, {})},
      {"another's", Part("/a", 0, true, {})},
      {"no name", Part("a", 0, true, {"x/y"})},
      {"dots", Part("a", 0, true, {".."})},
      {"a part without the first", Part("a", 1, true, {})},
      {"parts in the wrong order", Part("a", 0, false, {}) + Part("a", 2, true, {})},
      {"after its end", Part("a", 0, true, {}) + Part("a", 1, true, {"x"})},
      {"twice", Part("a", 0, true, {}) + Part("a", 0, true, {})},
      {"too many", Part("a", 0, true, {}) + Part("a/1", 0, true, {}) + Part("a/2", 0, true, {}) + Part("a/3", 0, true, {})},
      {"more guesses than asked for", Part("b", 0, true, {"1", "2", "3"})},
      {"cut", Part("a", 0, true, {"x"}).substr(0, 200)},
      {"a count that lies", Part("a", 0, true, {}).replace(Part("a", 0, true, {}).size() - 4, 4, "\x7f\xff\xff\xff")},
      {"rubbish", "rubbish"},
  };
  for (const auto& [what, pieces] : bad) {
    const auto found = ask(pieces);
    EXPECT_FALSE(found) << what;
    EXPECT_EQ(found ? ErrorKind::kErrno : found.error().kind, ErrorKind::kProtocol) << what;
  }
}

TEST(HostileServer, FilesAreThoseThatWereAskedFor) {
  // As the decoder reads the attributes of a regular file of so many bytes.
  auto stats = [](size_t size) {
    std::string bytes = Stats();
    bytes[29] = static_cast<char>(0100000 >> 8);
    for (size_t i = 0; i < 8; ++i) bytes[40 + i] = static_cast<char>(size >> (8 * i));
    return bytes;
  };
  auto file = [&](uint32_t number, const std::string& content) { return syscall::Arguments().U32(number).Raw(stats(content.size())).Text(content).bytes(); };
  std::string answer;
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    server.Reply(request.number, 0, {request.operation == Operation::kReadFiles ? answer : stats(4)});
  });
  auto fs = Mount(envd);
  const auto version = fs->Stat(At("f"), Ctx());
  ASSERT_TRUE(version);
  ASSERT_EQ(version->type, FileType::kRegular);
  Attributes other = *version;
  other.mtime.tv_sec += 1;
  auto ask = [&](std::string pieces) {
    answer = std::move(pieces);
    return fs->ReadFiles({{At("d"), {{"a", *version}, {"b", *version}, {"other", other}}}}, Ctx(20s));
  };
  const auto good = ask(file(1, "good") + file(0, "also"));
  ASSERT_TRUE(good) << ToString(good.error());
  ASSERT_EQ(good->size(), 2U);
  EXPECT_EQ((*good)[0].bytes, "good");
  EXPECT_EQ((*good)[0].file, 1U);
  // Another version is nobody's.
  const auto another = ask(file(2, "some"));
  ASSERT_TRUE(another);
  EXPECT_TRUE(another->empty());
  const std::pair<const char*, std::string> bad[] = {
      {"not asked for", file(3, "some")}, {"twice", file(0, "some") + file(0, "some")}, {"longer", file(0, "longer")}, {"shorter", file(0, "a")},
      {"cut", file(0, "some").substr(0, 150)}, {"rubbish", "rubbish"},
  };
  for (const auto& [what, pieces] : bad) {
    const auto found = ask(pieces);
    EXPECT_FALSE(found) << what;
    EXPECT_EQ(found ? ErrorKind::kErrno : found.error().kind, ErrorKind::kProtocol) << what;
  }
}

TEST(HostileServer, NewObjectsAreThoseThatWereAskedFor) {
  auto stats = [](uint32_t type, char inode) {
    std::string bytes = Stats();
    bytes[29] = static_cast<char>(type >> 8);
    bytes[32] = inode;
    return bytes;
  };
  const std::string file = stats(0100000, 101), directory = stats(0040000, 102), link = stats(0120000, 103);
  auto there = [](const std::string& attributes, uint32_t error = 0) { return syscall::Arguments().U32(error).U8(1).Raw(attributes).bytes(); };
  auto failed = [](uint32_t error) { return syscall::Arguments().U32(error).U8(0).bytes(); };
  const std::string parent = "\1" + stats(0040000, 104);
  std::vector<std::string> answer;
  uint32_t fail_with = 0;
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    if (fail_with != 0) return server.Fail(request.number, fail_with);
    for (size_t i = 0; i < answer.size(); ++i) server.Reply(request.number, i + 1 < answer.size() ? 1 : 0, {answer[i]});
  });
  auto fs = Mount(envd);
  std::vector<NewObject> row(2);
  row[0].name = "f";
  row[1].name = "d";
  row[1].type = FileType::kDirectory;
  auto ask = [&](std::vector<std::string> pieces) {
    answer = std::move(pieces);
    return fs->MakeObjects(row, Ctx(20s));
  };
  for (const auto& good : {ask({there(file), there(directory, EPERM) + parent}), ask({there(file) + there(directory, EPERM) + parent})}) {
    ASSERT_TRUE(good) << ToString(good.error());
    EXPECT_TRUE(good->objects[0].attributes && !good->objects[0].error);
    EXPECT_TRUE(good->objects[1].attributes && good->objects[1].error);
    EXPECT_EQ(good->directories.size(), 1U);
  }
  const auto none = ask({failed(EEXIST) + failed(ENOSPC) + std::string(1, '\0')});
  ASSERT_TRUE(none);
  EXPECT_EQ(none->objects[1].error->errno_value, ENOSPC);
  EXPECT_EQ(none->objects[1].error->kind, ErrorKind::kErrno);
  const auto half = ask({there(file) + syscall::Arguments().U32(ENOSPC).U8(2).bytes() + parent});
  ASSERT_TRUE(half);
  EXPECT_FALSE(half->objects[1].attributes);
  EXPECT_EQ(half->objects[1].error->kind, ErrorKind::kBroken);
  EXPECT_EQ(half->objects[1].error->errno_value, ENOSPC);
  // What is wrong with one says nothing of the others.
  const std::tuple<const char*, std::string, size_t> one_wrong[] = {
      {"a link for a file", there(link) + there(directory) + parent, 0},
      {"a file for a directory", there(file) + there(stats(0100000, 105)) + parent, 1},
      {"one object twice", there(file) + there(stats(0040000, 101)) + parent, 1},
      {"the directory that it goes into", there(file) + there(stats(0040000, 104)) + parent, 1},
  };
  for (const auto& [what, piece, wrong] : one_wrong) {
    const auto made = ask({piece});
    ASSERT_TRUE(made) << what;
    EXPECT_TRUE(made->objects[1 - wrong].attributes && !made->objects[1 - wrong].error) << what;
    EXPECT_FALSE(made->objects[wrong].attributes) << what;
    ASSERT_TRUE(made->objects[wrong].error) << what;
    EXPECT_EQ(made->objects[wrong].error->kind, ErrorKind::kProtocol) << what;
    EXPECT_EQ(made->directories.size(), 1U) << what;
  }
  const auto no_parent = ask({there(file) + there(directory) + "\1" + stats(0100000, 104)});
  ASSERT_TRUE(no_parent);
  EXPECT_TRUE(no_parent->directories.empty());
  // It died in the middle, or has forgotten what it did.
  fail_with = EIO;
  const auto forgotten = ask({""});
  ASSERT_FALSE(forgotten);
  EXPECT_EQ(forgotten.error().kind, ErrorKind::kBroken);
  fail_with = EINVAL;
  const auto refused = ask({""});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kErrno);
  fail_with = 0;
  const std::pair<const char*, std::string> bad[] = {
      {"nothing", ""},
      {"one too few", there(file)},
      {"no directory", there(file) + there(directory)},
      {"one too many", there(file) + there(directory) + parent + parent},
      {"neither there nor refused", there(file) + failed(0) + parent},
      {"no errno", there(file) + failed(4096) + parent},
      {"neither yes nor no", there(file) + syscall::Arguments().U32(0).U8(3).Raw(directory).bytes() + parent},
      {"perhaps, for no reason", there(file) + syscall::Arguments().U32(0).U8(2).bytes() + parent},
      {"a parent that is perhaps", there(file) + there(directory) + "\2"},
      {"cut", (there(file) + there(directory)).substr(0, 200)},
      {"rubbish", "rubbish"},
  };
  for (const auto& [what, piece] : bad) {
    const auto made = ask({piece});
    EXPECT_FALSE(made) << what;
    EXPECT_EQ(made ? ErrorKind::kErrno : made.error().kind, ErrorKind::kProtocol) << what;
  }
}

// --- requests that kill

TEST(HostileServer, ARequestThatKillsIsNotSentForEver) {
  std::atomic<int> asked{0};
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    if (request.operation == Operation::kStatFs) {
      ++asked;
      server.Die();
    } else {
      server.Reply(request.number, 0, {Stats()});
    }
  });
  auto fs = Mount(envd);
  for (int i = 1; i <= 5; ++i) {
    const auto killer = fs->StatFs(Ctx(20s));
    EXPECT_EQ(Code(killer), EIO);
    EXPECT_EQ(killer.error().kind, ErrorKind::kBroken);
    EXPECT_EQ(asked, 2 * i);
    EXPECT_TRUE(fs->Stat(At("x"), Ctx()));
  }
  EXPECT_EQ(envd.started(), 11);
}

TEST(HostileServer, WhatWaitsBehindARequestThatKillsIsDone) {
  std::atomic<int> asked{0};
  ScriptedEnvd envd([&](Server& server, const Request& request) {
    if (request.operation == Operation::kStatFs) {
      ++asked;
      std::this_thread::sleep_for(200ms);
      server.Die();
    } else if (!server.dead()) {
      server.Reply(request.number, 0, {Stats()});
    }
  });
  auto fs = Mount(envd);
  std::thread killer([&] { EXPECT_EQ(Code(fs->StatFs(Ctx())), EIO); });
  EXPECT_TRUE(Eventually([&] { return asked == 1; }));
  auto behind = fs->Stat(At("x"), Ctx());
  EXPECT_TRUE(behind) << ToString(behind.error());
  killer.join();
  EXPECT_EQ(envd.started(), 3);
}

TEST(HostileServer, ServersThatDieYoungAreReplacedSlowly) {
  ScriptedEnvd envd([&](Server& server, const Request&) { server.Die(); });
  auto fs = Mount(envd);
  const auto end = Clock::now() + 3s;
  while (Clock::now() < end) EXPECT_EQ(Code(fs->StatFs(Ctx(20s))), EIO);
  EXPECT_LE(envd.started(), 12);
}

// --- time

TEST(HostileServer, AServerThatNeverStopsTalkingIsLeft) {
  ScriptedEnvd envd([](Server& server, const Request&) { server.Die(); });
  envd.OnInitialize(2, [](Server& server, const Request&) {
    while (!server.dead()) server.Reply(77'777'777, 0, {""});
  });
  syscall::ChannelOptions options;
  options.start_timeout = 10min;
  auto fs = Mount(envd, options);
  EXPECT_EQ(Code(fs->StatFs(Ctx(1s))), ETIMEDOUT);
  EXPECT_EQ(envd.started(), 2);
  const auto begun = Clock::now();
  fs.reset();
  EXPECT_LT(Clock::now() - begun, 10s);
}

}  // namespace
}  // namespace e2bfs::testing::hostile
