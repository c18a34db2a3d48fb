// The channel when everything around it fails: cut, late, silent, killed, stopped, paused. What was reported is what was done, once.
#include "tests/component/syscall/channel_rig.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "transport/envd/base64.h"

namespace e2bfs::testing {
namespace {

using namespace std::chrono_literals;
using namespace transport;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class TextSource : public ContentSource {
 public:
  explicit TextSource(std::string text) : text_(std::move(text)) {}
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override {
    text_.copy(buffer, length, size_t(offset));
    return {};
  }

 private:
  const std::string text_;
};

Node At(const std::string& path) { return {path, {}}; }
Name In(const std::string& directory, const std::string& name) { return {{directory, {}}, name}; }
OpContext Ctx(std::chrono::milliseconds time = 60s) { return OpContext::Within(time); }

template <typename T>
int Code(const Result<T>& result) {
  return result ? 0 : result.error().errno_value;
}

Result<Attributes> Append(RemoteFs& fs, const std::string& path, const std::string& text, const OpContext& ctx) {
  TextSource source(text);
  StoreRequest request;
  request.append = Extent{0, int64_t(text.size())};
  request.source = &source;
  return fs.Store(0, At(path), request, ctx);
}

Result<std::string> ReadAll(RemoteFs& fs, Handle handle, const Node& node, Extent range, const OpContext& ctx) {
  auto stream = fs.Read(handle, node, nullptr, range, ctx);
  if (!stream) return Forward(stream.error());
  std::string all;
  std::string buffer(1 << 16, '\0');
  while (true) {
    auto got = (*stream)->Read(buffer.data(), buffer.size(), ctx);
    if (!got) return Forward(got.error());
    if (*got == 0) return all;
    all.append(buffer, 0, *got);
  }
}

// Of the processes that the sandbox knows, soon.
bool OnlyOneServer(ChannelRig& rig) {
  return ChannelRig::Eventually([&] { return rig.Processes() == std::vector<pid_t>{rig.ServerPid()}; });
}

// Short, so that tests need not wait; long enough for two loaded cores.
syscall::ChannelOptions Impatient() {
  syscall::ChannelOptions options;
  options.quiet_time = 300ms;
  options.echo_timeout = 1500ms;
  options.pulse = 10min;
  return options;
}

// Cuts are noticed by themselves: nobody may be taken for dead here.
syscall::ChannelOptions Patient() {
  syscall::ChannelOptions options;
  options.quiet_time = 5s;
  options.echo_timeout = 30s;
  return options;
}

// Changes from several threads, and whether each was done as often as was said.
class Workers {
 public:
  Workers(ChannelRig& rig, int threads) : rig_(rig) {
    for (int i = 0; i < threads; ++i) {
      const std::string name = "t" + std::to_string(i);
      std::filesystem::create_directory(rig.Path(name));
      rig.Write(name + ".log", "");
    }
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { Work("t" + std::to_string(i)); });
  }
  ~Workers() { Stop(); }

  void Stop() {
    stop_ = true;
    for (auto& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }
  int64_t done() const { return done_; }
  int64_t failed() const { return failed_; }
  // Rounds of every thread since construction; for waiting until the load has gone on.
  bool WentOn(int64_t since) const { return done_ + failed_ >= since + int64_t(threads_.size()); }

  void Check() {
    Stop();
    for (const std::string& wrong : wrong_) ADD_FAILURE() << wrong;
    for (const auto& [path, expected] : exists_) {
      EXPECT_EQ(std::filesystem::exists(std::filesystem::symlink_status(rig_.Path(path))), expected) << path;
    }
    std::map<std::string, int> lines;
    for (size_t i = 0; i < threads_.size(); ++i) {
      const std::string text = rig_.Content("t" + std::to_string(i) + ".log");
      for (size_t at = 0; at < text.size();) {
        const size_t end = text.find('\n', at);
        ASSERT_NE(end, std::string::npos) << "a torn record";
        ++lines[text.substr(at, end - at)];
        at = end + 1;
      }
    }
    for (const auto& [record, ok] : records_) {
      const int times = lines[record];
      lines.erase(record);
      EXPECT_TRUE(ok ? times == 1 : times <= 1) << record << " " << (ok ? "reported done" : "reported failed") << " is there " << times << " times";
    }
    EXPECT_THAT(lines, IsEmpty());
  }

 private:
  // What may have been done, or not: nobody knows.
  static bool Unknown(const Error& error) {
    return error.kind == ErrorKind::kBroken || error.kind == ErrorKind::kTimeout || error.kind == ErrorKind::kNotRunning;
  }

  // `undone`: the errno that says that an earlier try, or a repeat, did it.
  template <typename T>
  bool Note(const char* what, const std::string& path, const Result<T>& result) {
    if (result) {
      ++done_;
      return true;
    }
    ++failed_;
    if (!Unknown(result.error())) {
      std::lock_guard lock(mutex_);
      wrong_.push_back(std::string(what) + " " + path + ": " + ToString(result.error()));
    }
    return false;
  }

  void Expect(const std::string& path, bool exists) {
    std::lock_guard lock(mutex_);
    exists_[path] = exists;
  }

  void Work(const std::string& mine) {
    RemoteFs& fs = rig_.fs();
    for (int i = 0; !stop_; ++i) {
      const std::string n = std::to_string(i);
      if (Note("mkdir", mine + "/d" + n, fs.MakeDirectory(In(mine, "d" + n), 0755, Ctx()))) {
        Expect(mine + "/d" + n, true);
        // Twice would be ENOENT.
        if (Note("rename", mine + "/d" + n, fs.Rename(In(mine, "d" + n), In(mine, "e" + n), 0, Ctx()))) {
          Expect(mine + "/d" + n, false);
          Expect(mine + "/e" + n, true);
        } else {
          std::lock_guard lock(mutex_);
          exists_.erase(mine + "/d" + n);
        }
      }
      auto created = fs.Create(In(mine, "f" + n), {0644, true}, Ctx());
      if (Note("create", mine + "/f" + n, created)) {
        Expect(mine + "/f" + n, true);
        if (!created->created) wrong_.push_back("created without being created");
        fs.Close(created->handle, Ctx());
      }
      const std::string record = mine + " record " + n + std::string(size_t(i % 7) * 100, '.');
      const bool appended = Note("append", record, Append(fs, mine + ".log", record + "\n", Ctx()));
      std::lock_guard lock(mutex_);
      records_[record] = appended;
    }
  }

  ChannelRig& rig_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> done_{0}, failed_{0};
  std::mutex mutex_;
  std::vector<std::string> wrong_;
  std::map<std::string, bool> exists_;   // after what was reported done
  std::map<std::string, bool> records_;  // whether it was reported done
  std::vector<std::thread> threads_;
};

class SyscallChannel : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<ChannelRig> Rig(syscall::ChannelOptions channel = Impatient()) {
    return std::make_unique<ChannelRig>(ChannelRigOptions{GetParam(), false, std::move(channel)});
  }
  // What one thread does, a request each, in a directory that is there: every result and what is there at the end are certain, if each is done
  // exactly once. `after` is called after each.
  static void Script(ChannelRig& rig, const std::string& top, const std::function<void()>& after) {
    RemoteFs& fs = rig.fs();
    Handle handle = 0;
    const std::vector<std::function<int()>> steps = {
        [&] { return Code(fs.MakeDirectory(In(top, "d"), 0755, Ctx())); },
        [&] { return Code(fs.Rename(In(top, "d"), In(top, "e"), 0, Ctx())); },
        [&] {
          auto created = fs.Create(In(top, "f"), {0644, true}, Ctx());
          handle = created ? created->handle : 0;
          return created && !created->created ? EEXIST : Code(created);
        },
        [&] { return Code(Append(fs, top + "/f", "one\n", Ctx())); },
        [&] { return Code(Append(fs, top + "/f", std::string(3000, 't') + "\n", Ctx())); },
        [&] { return Code(fs.Rename(In(top, "f"), In(top, "g"), 0, Ctx())); },
        [&] { return Code(fs.RemoveDirectory(In(top, "e"), Ctx())); },
    };
    for (size_t step = 0; step < steps.size(); ++step) {
      EXPECT_EQ(steps[step](), 0) << "step " << step;
      after();
    }
    if (handle != 0) fs.Close(handle, Ctx());
    EXPECT_EQ(rig.Content(top + "/g"), "one\n" + std::string(3000, 't') + "\n");
    EXPECT_FALSE(std::filesystem::exists(rig.Path(top + "/d")) || std::filesystem::exists(rig.Path(top + "/e")) ||
                 std::filesystem::exists(rig.Path(top + "/f")));
  }

  // Cuts the way before, at and after each end of a frame, and in each frame's middle. A first run tells where they are: what is counted less what
  // the two other requests of finding the way take.
  void CutAtEachFrame(const std::string& stream, const std::string& action, int64_t sandbox::ServerCounts::*bytes) {
    auto rig = Rig(Patient());
    auto counted = [&] { return rig->sandbox().server().counts().*bytes; };
    auto directory = [&](int round) {
      const std::string name = fmt::format("r{:04}", round);
      std::filesystem::create_directory(rig->Path(name));
      EXPECT_TRUE(rig->fs().Stat(At(name), Ctx()));
      return name;
    };
    int round = 0;
    std::string top = directory(round);
    int64_t before = counted();
    ASSERT_TRUE(rig->client().ListProcesses(Ctx()));
    int64_t others = counted() - before;
    if (bytes == &sandbox::ServerCounts::request_body_bytes) {
      before = counted();
      auto listener = rig->client().ConnectProcess({uint32_t(rig->ServerPid()), {}}, Ctx());
      ASSERT_TRUE(listener);
      others += counted() - before;
    }
    rig->CutAll();
    before = counted();
    std::vector<int64_t> ends;
    Script(*rig, top, [&] { ends.push_back(counted() - before - others); });
    ASSERT_EQ(rig->Reattached(), 1);
    std::vector<int64_t> places;
    for (size_t i = 0; i < ends.size(); ++i) {
      const int64_t begin = i == 0 ? 0 : ends[i - 1];
      ASSERT_GT(ends[i], begin + 2);
      for (const int64_t place : {begin + (ends[i] - begin) / 2, ends[i] - 1, ends[i], ends[i] + 1}) places.push_back(place);
    }
    for (const int64_t place : places) {
      SCOPED_TRACE(place);
      const int64_t reattached = rig->Reattached();
      top = directory(++round);
      rig->Fault(stream, action, place);
      rig->CutAll();
      Script(*rig, top, [] {});
      // The first place is in the way's own first words, which are then tried again; the last is behind the last frame.
      const bool within = place != places.front() && place < ends.back();
      EXPECT_GE(rig->Reattached(), reattached + (within ? 2 : 1));
      rig->sandbox().server().ClearFaults();
    }
    EXPECT_EQ(rig->Servers(), 1);
    EXPECT_TRUE(OnlyOneServer(*rig));
  }

  // Cuts the way at many places of one stream's body, under load.
  void CutAtMany(const std::string& stream, const std::string& action) {
    auto rig = Rig(Patient());
    Workers workers(*rig, 3);
    std::vector<int64_t> places;
    for (int64_t at = 0; at < 400; at += 37) places.push_back(at);       // around the first frames
    for (int64_t at = 5; at < 3000; at += 211) places.push_back(at);
    for (int64_t at : {5'000, 9'999, 20'000}) places.push_back(at);
    for (const int64_t at : places) {
      SCOPED_TRACE(at);
      const int64_t before = rig->Reattached();
      rig->Fault(stream, action, at);
      rig->CutAll();
      ASSERT_TRUE(ChannelRig::Eventually([&] { return rig->Reattached() > before; }));
      const int64_t since = workers.done() + workers.failed();
      ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.WentOn(since); }));
      rig->sandbox().server().ClearFaults();
    }
    workers.Check();
    EXPECT_EQ(workers.failed(), 0);  // the same server is found each time, and says what it did
    EXPECT_EQ(rig->Servers(), 1);
    EXPECT_GE(rig->Reattached(), int64_t(places.size()));
    EXPECT_TRUE(OnlyOneServer(*rig));
  }
};

INSTANTIATE_TEST_SUITE_P(Protocols, SyscallChannel, ::testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "Http2" : "Http1"); });

// --- cut

TEST_P(SyscallChannel, InputCutAnywhere) { CutAtMany("StreamInput", "reset_request"); }
TEST_P(SyscallChannel, OutputCutAnywhere) { CutAtMany("Process/Connect", "reset"); }

TEST_P(SyscallChannel, InputCutAtEachFrame) { CutAtEachFrame("StreamInput", "reset_request", &sandbox::ServerCounts::request_body_bytes); }
TEST_P(SyscallChannel, OutputCutAtEachFrame) { CutAtEachFrame("Process/Connect", "reset", &sandbox::ServerCounts::response_body_bytes); }

TEST_P(SyscallChannel, TheFirstStreamCut) {
  // Start cannot be had again: its output goes on by Connect.
  for (const int64_t at : {200, 1000, 3000}) {
    SCOPED_TRACE(at);
    auto rig = Rig(Patient());
    rig->Fault("Process/Start", "reset", at);
    bool mounted = true;
    try {
      rig->Mount();
    } catch (const std::runtime_error&) {
      mounted = false;  // cut before the server said anything
      rig->Mount();
    }
    Workers workers(*rig, 2);
    ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.done() > 30; }));
    workers.Check();
    EXPECT_EQ(workers.failed(), 0);
    EXPECT_EQ(rig->Reattached(), mounted ? 1 : 0);
    EXPECT_TRUE(OnlyOneServer(*rig));
  }
}

// --- late

TEST_P(SyscallChannel, LateInputIsNotDoneAgain) {
  auto rig = Rig();
  rig->Write("log", "");
  // The way that is used next passes a kilobyte, and holds back the rest until it was given up.
  rig->Fault("StreamInput", "late_request", 1000, 1, 1000);
  rig->CutAll();
  std::vector<std::string> expected;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(Append(rig->fs(), "log", "record " + std::to_string(i) + "\n", Ctx())) << i;
    expected.push_back("record " + std::to_string(i));
    ASSERT_TRUE(rig->fs().MakeDirectory(In("", "d"), 0755, Ctx())) << i;
    ASSERT_TRUE(rig->fs().RemoveDirectory(In("", "d"), Ctx())) << i;
  }
  EXPECT_GE(rig->Reattached(), 2);
  const std::string text = rig->Content("log");
  usleep(1'500'000);  // by now it has come
  EXPECT_EQ(rig->sandbox().server().counts().requests_now, 2);
  EXPECT_EQ(rig->Content("log"), text);
  EXPECT_FALSE(std::filesystem::exists(rig->Path("d")));
  std::string all;
  for (const std::string& record : expected) all += record + "\n";
  EXPECT_EQ(text, all);
  EXPECT_EQ(rig->Servers(), 1);
}

TEST_P(SyscallChannel, LateInputOfWhatWasGivenUpIsNeverDone) {
  auto rig = Rig();
  rig->Fault("StreamInput", "late_request", 600, 1, 1500);
  rig->CutAll();
  std::set<std::string> failed;
  for (int i = 0; i < 30; ++i) {
    const std::string name = "d" + std::to_string(i);
    auto made = rig->fs().MakeDirectory(In("", name), 0755, Ctx(150ms));
    if (!made) failed.insert(name);
  }
  EXPECT_THAT(failed, Not(IsEmpty()));
  // The way is found again while the old one's bytes are still on their way.
  ASSERT_TRUE(rig->fs().MakeDirectory(In("", "after"), 0755, Ctx()));
  // On a loaded machine one may have been done before its deadline passed, its answer too late: that one was done in time.
  std::erase_if(failed, [&](const std::string& name) { return std::filesystem::exists(rig->Path(name)); });
  EXPECT_THAT(failed, Not(IsEmpty()));
  usleep(2'500'000);
  ASSERT_TRUE(rig->fs().Stat(At("after"), Ctx()));
  for (const std::string& name : failed) EXPECT_FALSE(std::filesystem::exists(rig->Path(name))) << name;
  EXPECT_EQ(rig->Servers(), 1);
}

// --- a listener that does not read

TEST_P(SyscallChannel, AListenerThatNeverReadsIsOvercome) {
  auto rig = Rig();
  std::string content(size_t{64} << 20, '\0');
  for (size_t i = 0; i < content.size(); i += 8) content.replace(i, 8, fmt::format("{:08x}", i / 8));
  rig->Write("file", content);
  auto opened = rig->fs().Open(At("file"), {}, Ctx());
  ASSERT_TRUE(opened);
  auto listener = rig->client().ConnectProcess({uint32_t(rig->ServerPid()), {}}, Ctx());
  ASSERT_TRUE(listener);
  constexpr int64_t kPiece = 128 << 10;
  for (int64_t at = 0; at < int64_t(content.size()); at += kPiece) {
    auto got = ReadAll(rig->fs(), opened->handle, At("file"), {at, kPiece}, Ctx(30s));
    ASSERT_TRUE(got) << at << ": " << ToString(got.error());
    ASSERT_TRUE(*got == content.substr(size_t(at), kPiece)) << at;
  }
  EXPECT_GE(rig->Servers(), 2);
  listener->reset();
  EXPECT_TRUE(OnlyOneServer(*rig));
}

// --- killed and stopped

TEST_P(SyscallChannel, ServersKilledUnderLoad) {
  auto rig = Rig();
  Workers workers(*rig, 4);
  std::mt19937 random(4);
  for (int round = 0; round < 12; ++round) {
    usleep(random() % 30'000);
    const int64_t servers = rig->Servers();
    kill(rig->ServerPid(), SIGKILL);
    ASSERT_TRUE(ChannelRig::Eventually([&] { return rig->Servers() > servers; })) << round;
    const int64_t since = workers.done();
    ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.done() > since + 4; })) << round;
  }
  workers.Check();
  EXPECT_LE(workers.failed(), 12 * 4);
  EXPECT_TRUE(OnlyOneServer(*rig));
}

TEST_P(SyscallChannel, StoppedForAWhileOrForEver) {
  auto rig = Rig();
  Workers workers(*rig, 3);
  // A while: nothing is lost, whether another server was begun or not.
  for (int round = 0; round < 3; ++round) {
    const pid_t pid = rig->ServerPid();
    kill(pid, SIGSTOP);
    usleep(200'000);
    kill(pid, SIGCONT);
    const int64_t since = workers.done();
    ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.done() > since + 3; })) << round;
  }
  EXPECT_EQ(workers.failed(), 0);
  for (int round = 0; round < 2; ++round) {
    const int64_t servers = rig->Servers();
    kill(rig->ServerPid(), SIGSTOP);
    ASSERT_TRUE(ChannelRig::Eventually([&] { return rig->Servers() > servers; })) << round;
    const int64_t since = workers.done();
    ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.done() > since + 3; })) << round;
  }
  workers.Check();
  EXPECT_TRUE(OnlyOneServer(*rig));
}

TEST_P(SyscallChannel, ReadsAreNeverWrongWhileServersDie) {
  auto rig = Rig();
  for (int i = 0; i < 4; ++i) rig->Write("file" + std::to_string(i), std::string(300'000, char('a' + i)));
  std::atomic<bool> stop{false};
  std::atomic<int> good{0}, wrong{0}, failed{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&, i] {
      const std::string name = "file" + std::to_string(i);
      while (!stop) {
        auto opened = rig->fs().Open(At(name), {}, Ctx());
        if (!opened) {
          ++failed;
          continue;
        }
        // By a request, and by the files API on the server's descriptor.
        for (const int64_t length : {1000, 300'000}) {
          auto got = ReadAll(rig->fs(), opened->handle, At(name), {0, length}, Ctx());
          if (!got) {
            ++failed;
          } else if (*got == std::string(size_t(length), char('a' + i))) {
            ++good;
          } else {
            ++wrong;
          }
        }
        rig->fs().Close(opened->handle, Ctx());
      }
    });
  }
  for (int round = 0; round < 8; ++round) {
    const int64_t servers = rig->Servers();
    kill(rig->ServerPid(), round % 2 == 0 ? SIGKILL : SIGSTOP);
    EXPECT_TRUE(ChannelRig::Eventually([&] { return rig->Servers() > servers; })) << round;
    const int since = good;
    EXPECT_TRUE(ChannelRig::Eventually([&] { return good > since + 8; })) << round;
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(failed, 8 * 4);  // a transfer by the files API dies with the server
}

TEST_P(SyscallChannel, OpenFilesSurviveTheirServer) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    SCOPED_TRACE(signal);
    auto rig = Rig();
    rig->Write("kept", "kept content");
    rig->Write("replaced", "old");
    rig->Write("unlinked", "nameless");
    rig->Write("moved", "moved content");
    std::map<std::string, Opened> open;
    for (const char* name : {"kept", "replaced", "unlinked", "moved"}) {
      auto opened = rig->fs().Open(At(name), {true, true, false}, Ctx());
      ASSERT_TRUE(opened);
      open[name] = *opened;
    }
    std::filesystem::remove(rig->Path("unlinked"));
    rig->Write("new", "new");
    std::filesystem::rename(rig->Path("new"), rig->Path("replaced"));
    std::filesystem::rename(rig->Path("moved"), rig->Path("moved away"));
    kill(rig->ServerPid(), signal);
    auto read = [&](const char* name) {
      return ReadAll(rig->fs(), open[name].handle, {name, open[name].attributes.id}, {0, 100}, Ctx());
    };
    EXPECT_EQ(read("kept").value_or("?"), "kept content");
    EXPECT_EQ(rig->Servers(), 2);
    if (signal == SIGSTOP) {
      // Had from the old one, which was still there.
      EXPECT_EQ(read("unlinked").value_or("?"), "nameless");
      EXPECT_EQ(read("replaced").value_or("?"), "old");
      EXPECT_EQ(read("moved").value_or("?"), "moved content");
    } else {
      EXPECT_EQ(Code(read("unlinked")), ESTALE);
      EXPECT_EQ(Code(read("replaced")), ESTALE);
      EXPECT_EQ(Code(read("moved")), ESTALE);
    }
    EXPECT_EQ(rig->Content("replaced"), "new");
    EXPECT_TRUE(OnlyOneServer(*rig));
  }
}

TEST_P(SyscallChannel, AServerThatIsFoundAgainAfterATakeOverFailedGoesOn) {
  auto rig = Rig();
  rig->Write("before", "before");
  rig->Write("soon", std::string(300'000, 's'));
  auto before = rig->fs().Open(At("before"), {true, true, false}, Ctx());
  ASSERT_TRUE(before);
  // The old one is silent and cannot be killed: the new one is ready, and must not work beside it.
  sandbox::Fault refused;
  refused.match = "SendSignal";
  refused.action = "status";
  refused.status = 503;
  refused.body = R"({"code":"unavailable","message":"not now"})";
  refused.count = -1;
  rig->sandbox().server().AddFault(refused);
  rig->sandbox().server().ResetCounts();
  const pid_t pid = rig->ServerPid();
  kill(pid, SIGSTOP);
  std::thread caller([&] { EXPECT_TRUE(rig->fs().Stat(At("before"), Ctx())); });
  EXPECT_TRUE(ChannelRig::Eventually([&] { return rig->Requests("SendSignal") > 0; }));
  kill(pid, SIGCONT);
  EXPECT_TRUE(ChannelRig::Eventually([&] { return rig->Reattached() > 0; }));
  caller.join();
  rig->sandbox().server().ClearFaults();
  EXPECT_EQ(rig->ServerPid(), pid);
  auto opened = rig->fs().Open(At("before"), {}, Ctx());
  ASSERT_TRUE(opened) << ToString(opened.error());
  auto created = rig->fs().Create(In("", "created"), {0644, true}, Ctx());
  ASSERT_TRUE(created) << ToString(created.error());
  // By the files API, which needs to know where it is open.
  const Handle soon = rig->fs().OpenSoon(At("soon"), {});
  EXPECT_EQ(ReadAll(rig->fs(), soon, At("soon"), {0, 300'000}, Ctx(20s)).value_or("?").size(), 300'000U);
  for (const Handle handle : {before->handle, opened->handle}) {
    EXPECT_EQ(ReadAll(rig->fs(), handle, At("before"), {0, 100}, Ctx()).value_or("?"), "before");
  }
  // And a take-over that goes well takes all of them along.
  kill(pid, SIGSTOP);
  for (const Handle handle : {before->handle, opened->handle}) {
    EXPECT_EQ(ReadAll(rig->fs(), handle, At("before"), {0, 100}, Ctx()).value_or("?"), "before");
  }
  EXPECT_EQ(ReadAll(rig->fs(), soon, At("soon"), {0, 300'000}, Ctx()).value_or("?").size(), 300'000U);
  EXPECT_NE(rig->ServerPid(), pid);
  EXPECT_TRUE(OnlyOneServer(*rig));
}

// --- nonsense

TEST_P(SyscallChannel, NonsenseEndsTheServerNotTheMount) {
  auto rig = Rig();
  Workers workers(*rig, 2);
  for (const std::string& rubbish : {std::string("rubbish that is no frame at all, and long enough for a header"), std::string(100, '\0'),
                                     std::string("e2R1\xff\xff\xff\xff") + std::string(40, 'x'), std::string("x")}) {
    const int64_t servers = rig->Servers();
    const pid_t pid = rig->ServerPid();
    // Into its standard output, as a process below it could.
    const int fd = open(("/proc/" + std::to_string(pid) + "/fd/1").c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(write(fd, rubbish.data(), rubbish.size()), ssize_t(rubbish.size()));
    close(fd);
    ASSERT_TRUE(ChannelRig::Eventually([&] { return rig->Servers() > servers; }));
    EXPECT_TRUE(ChannelRig::Eventually([&] { return kill(pid, 0) != 0; }));
    const int64_t since = workers.done();
    ASSERT_TRUE(ChannelRig::Eventually([&] { return workers.done() > since + 2; }));
  }
  workers.Check();
  EXPECT_TRUE(OnlyOneServer(*rig));
}

// --- paused

TEST_P(SyscallChannel, APausedSandboxIsLeftAlone) {
  ChannelRig rig({GetParam(), true, Impatient()});
  rig.Write("file", "content");
  auto opened = rig.fs().Open(At("file"), {}, Ctx());
  ASSERT_TRUE(opened);
  // Nobody waits for what a stream asked that is gone.
  rig.Write("large", std::string(1 << 20, 'x'));
  auto large = rig.fs().Open(At("large"), {}, Ctx());
  ASSERT_TRUE(large);
  const pid_t pid = rig.ServerPid();
  kill(pid, SIGSTOP);
  ASSERT_TRUE(rig.fs().Read(large->handle, At("large"), &large->attributes, {0, 1 << 20}, Ctx()));
  rig.sandbox().SetState("i1abc", "paused");
  rig.sandbox().server().ResetCounts();
  rig.CutAll();
  usleep(700'000);
  EXPECT_EQ(rig.sandbox().server().counts().total_requests, 0);
  // Nobody waits for a close.
  rig.fs().Close(opened->handle, Ctx());
  usleep(300'000);
  EXPECT_EQ(rig.sandbox().server().counts().total_requests, 0);
  const auto begun = Clock::now();
  for (int i = 0; i < 3; ++i) {
    auto stat = rig.fs().Stat(At("file"), Ctx());
    EXPECT_EQ(Code(stat), ENOTCONN);
    EXPECT_EQ(stat.error().kind, ErrorKind::kNotRunning);
    EXPECT_EQ(Code(rig.fs().MakeDirectory(In("", "d"), 0755, Ctx())), ENOTCONN);
  }
  EXPECT_LT(Clock::now() - begun, 20s);
  EXPECT_LE(rig.sandbox().server().counts().total_requests, 6 * 2);
  const int64_t asked = rig.sandbox().server().counts().total_requests;
  usleep(500'000);
  EXPECT_EQ(rig.sandbox().server().counts().total_requests, asked);
  rig.sandbox().SetState("i1abc", "running");
  kill(pid, SIGCONT);
  EXPECT_TRUE(rig.fs().Stat(At("file"), Ctx()));
  EXPECT_TRUE(rig.fs().MakeDirectory(In("", "d"), 0755, Ctx()));
  EXPECT_EQ(rig.Servers(), 1);
  rig.fs().Close(large->handle, Ctx());
  EXPECT_TRUE(ChannelRig::Eventually([&] { return rig.Status("open files there") == 0; }));
}

// --- interrupts and deadlines

TEST_P(SyscallChannel, InterruptsEndReadsAndNeverSentChanges) {
  syscall::ChannelOptions options;  // nobody is taken for dead
  auto rig = Rig(options);
  const pid_t pid = rig->ServerPid();
  kill(pid, SIGSTOP);
  std::stop_source stop;
  OpContext ctx = Ctx();
  ctx.stop = stop.get_token();
  std::atomic<int> change_ended{0};
  Result<Changed> made = Errno(EIO);
  std::thread changer([&] {
    made = rig->fs().MakeDirectory(In("", "d"), 0755, ctx);
    ++change_ended;
  });
  std::thread interrupter([&] {
    usleep(100'000);
    stop.request_stop();
  });
  const auto begun = Clock::now();
  EXPECT_EQ(Code(rig->fs().Stat(At(""), ctx)), EINTR);
  EXPECT_LT(Clock::now() - begun, 5s);
  EXPECT_EQ(Code(rig->fs().Stat(At(""), ctx)), EINTR);  // asked for before
  usleep(300'000);
  EXPECT_EQ(change_ended, 0);
  kill(pid, SIGCONT);
  changer.join();
  interrupter.join();
  EXPECT_TRUE(made) << ToString(made.error());
  EXPECT_TRUE(std::filesystem::exists(rig->Path("d")));
  EXPECT_EQ(rig->Servers(), 1);
}

// Its attributes are asked for while it is read; only its end waits for them.
TEST_P(SyscallChannel, ARangeEndsWhenItsVersionIsKnown) {
  auto rig = Rig(syscall::ChannelOptions());
  constexpr int64_t kBytes = 1 << 20;
  rig->Write("large", std::string(kBytes, 'x'));
  auto opened = rig->fs().Open(At("large"), {}, Ctx());
  ASSERT_TRUE(opened);
  const pid_t pid = rig->ServerPid();
  std::vector<char> buffer(64 << 10);
  for (const bool answers : {false, true}) {
    kill(pid, SIGSTOP);
    auto stream = rig->fs().Read(opened->handle, At("large"), &opened->attributes, {0, kBytes}, Ctx());
    if (answers) kill(pid, SIGCONT);
    ASSERT_TRUE(stream) << ToString(stream.error());
    int64_t all = 0;
    int code = 0;
    while (code == 0 && all < kBytes) {
      auto got = (*stream)->Read(buffer.data(), buffer.size(), answers ? Ctx() : Ctx(2s));
      code = Code(got);
      if (got) all += static_cast<int64_t>(*got);
    }
    kill(pid, SIGCONT);
    EXPECT_EQ(code, answers ? 0 : ETIMEDOUT);
    EXPECT_EQ(all == kBytes, answers);
    EXPECT_GT(all, 0);
  }
  EXPECT_EQ(rig->Servers(), 1);
}

TEST_P(SyscallChannel, DeadlinesEndStalledCalls) {
  auto rig = Rig(syscall::ChannelOptions());
  const pid_t pid = rig->ServerPid();
  rig->Write("file", "x");
  kill(pid, SIGSTOP);
  const auto begun = Clock::now();
  std::vector<std::thread> callers;
  std::atomic<int> timed_out{0};
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&, i] {
      // More than the window holds, too.
      const std::string text(i % 2 == 0 ? 10 : 20'000, 'x');
      const int code = i == 0 ? Code(rig->fs().Stat(At(""), Ctx(300ms))) : Code(Append(rig->fs(), "file", text, Ctx(300ms)));
      if (code == ETIMEDOUT) ++timed_out;
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(timed_out, 8);
  EXPECT_LT(Clock::now() - begun, 5s);
  kill(pid, SIGCONT);
  EXPECT_TRUE(rig->fs().Stat(At(""), Ctx()));
  EXPECT_EQ(rig->Servers(), 1);
}

TEST_P(SyscallChannel, ANetworkThatStallsIsNoHang) {
  auto rig = Rig();
  // The way and whatever comes after it: nothing is read any more.
  rig->Fault("StreamInput", "stall_request", 300, -1);
  rig->CutAll();
  const auto begun = Clock::now();
  EXPECT_EQ(Code(rig->fs().MakeDirectory(In("", std::string(200, 'd')), 0755, Ctx(3s))), ETIMEDOUT);
  EXPECT_LT(Clock::now() - begun, 15s);
  rig->sandbox().server().ClearFaults();
  EXPECT_TRUE(rig->fs().MakeDirectory(In("", "after"), 0755, Ctx()));
  EXPECT_TRUE(OnlyOneServer(*rig));
}

// --- what is told to others, and when nothing happens

// A text, and what of its base64 is the same wherever it stands: at each of the three places within a group of three bytes.
std::vector<std::string> FormsOf(const std::string& text) {
  std::vector<std::string> forms = {text};
  for (size_t before = 0; before < 3; ++before) {
    const size_t from = (before * 8 + 5) / 6, to = (before + text.size()) * 8 / 6;
    forms.push_back(envd::Base64Encode(std::string(before, '\0') + text).substr(from, to - from));
  }
  return forms;
}

TEST_P(SyscallChannel, TheLogHoldsNoContentAndNoProgram) {
  auto rig = Rig();
  const std::string marker = "A MARKER IN CONTENT";
  rig->Write("file", marker);
  ASSERT_TRUE(Append(rig->fs(), "file", marker, Ctx()));
  auto created = rig->fs().Create(In("", "big"), {0644, true}, Ctx());
  ASSERT_TRUE(created);
  std::string large;
  while (large.size() < 500'000) large += marker;
  TextSource source(large);
  StoreRequest store;
  store.extents = {{0, int64_t(large.size())}};
  store.source = &source;
  ASSERT_TRUE(rig->fs().Store(created->handle, At("big"), store, Ctx()));
  EXPECT_EQ(ReadAll(rig->fs(), created->handle, At("big"), {0, 1 << 20}, Ctx()).value_or("").size(), large.size());
  for (const int64_t size : {int64_t(marker.size()), int64_t(large.size())}) {
    NewObject object;
    object.name = marker + std::to_string(size);
    object.permissions = 0644;
    object.size = size;
    object.source = &source;
    ASSERT_TRUE(rig->fs().MakeObjects({object}, Ctx()));
    EXPECT_EQ(int64_t(rig->Content(object.name).size()), size);
  }
  kill(rig->ServerPid(), SIGKILL);
  ASSERT_EQ(ReadAll(rig->fs(), 0, At("file"), {0, 100}, Ctx()).value_or(""), marker + marker);
  rig->Unmount();
  const std::string log = rig->sandbox().log_text();
  EXPECT_THAT(log, HasSubstr("/usr/bin/perl"));
  EXPECT_THAT(log, Not(HasSubstr("SendInput")));
  for (const std::string& form : FormsOf(marker)) EXPECT_EQ(log.find(form), std::string::npos) << form;
  const std::string program = syscall::kServerProgram;
  int lines = 0;
  for (size_t at = 0; at < program.size();) {
    const size_t end = std::min(program.find('\n', at), program.size());
    std::string line = program.substr(at, end - at);
    at = end + 1;
    line.erase(0, line.find_first_not_of(' ') == std::string::npos ? line.size() : line.find_first_not_of(' '));
    if (line.size() < 25) continue;
    ++lines;
    for (const std::string& form : FormsOf(line)) ASSERT_EQ(log.find(form), std::string::npos) << line;
  }
  EXPECT_GT(lines, 300);
}

TEST_P(SyscallChannel, APulseKeepsAnIdleChannelAlive) {
  syscall::ChannelOptions options = Impatient();
  options.pulse = 100ms;
  auto rig = Rig(options);
  rig->sandbox().server().ResetCounts();
  // Each is a frame on the stream that is there, and no request.
  EXPECT_TRUE(ChannelRig::Eventually([&] { return rig->sandbox().server().counts().request_body_bytes > 500; }));
  EXPECT_EQ(rig->sandbox().server().counts().total_requests, 0);
  EXPECT_EQ(rig->Servers(), 1);
  EXPECT_EQ(rig->Reattached(), 0);
}

TEST_P(SyscallChannel, ADeadWayIsNoticedByThePulseAndNotLookedFor) {
  syscall::ChannelOptions options = Impatient();
  options.pulse = 100ms;
  auto rig = Rig(options);
  const pid_t pid = rig->ServerPid();
  kill(pid, SIGSTOP);
  rig->sandbox().server().ResetCounts();
  EXPECT_TRUE(ChannelRig::Eventually([&] { return rig->sandbox().server().counts().requests_now == 0; }));
  usleep(300'000);
  EXPECT_EQ(rig->sandbox().server().counts().total_requests, 0);
  kill(pid, SIGCONT);
  EXPECT_TRUE(rig->fs().Stat(At(""), Ctx()));
  EXPECT_EQ(rig->Servers(), 1);
  EXPECT_EQ(rig->Reattached(), 1);
}

TEST_P(SyscallChannel, TheServerEndsWithTheMount) {
  auto rig = Rig();
  for (int round = 0; round < 5; ++round) {
    const pid_t pid = rig->ServerPid();
    {
      Workers workers(*rig, round % 3);
      usleep(20'000);
    }
    if (round == 4) rig->CutAll();
    rig->Unmount();
    if (round < 4) {
      EXPECT_TRUE(ChannelRig::Eventually([&] { return kill(pid, 0) != 0; }));
      EXPECT_THAT(rig->Processes(), IsEmpty());
    }
    for (const auto& entry : std::filesystem::directory_iterator(rig->root())) std::filesystem::remove_all(entry);
    rig->Mount();
  }
}

TEST_P(SyscallChannel, EndingWhileTheWayIsLostIsNoHang) {
  for (int round = 0; round < 6; ++round) {
    auto rig = Rig();
    std::atomic<bool> begun{false};
    std::thread caller([&] {
      begun = true;
      (void)rig->fs().Stat(At(""), Ctx(2s));
    });
    while (!begun) usleep(100);
    if (round % 2 == 0) rig->CutAll();
    if (round % 3 == 0) kill(rig->ServerPid(), SIGKILL);
    caller.join();
    rig->CutAll();
    rig->Unmount();
  }
}

}  // namespace
}  // namespace e2bfs::testing
