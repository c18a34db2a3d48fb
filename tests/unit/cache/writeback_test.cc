// -o writeback: what is accepted here, how it gets to the sandbox, and what becomes of it when something is in its way.
#include <filesystem>
#include <map>

#include "cache/recovery.h"
#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

class WritebackTest : public CacheFixture {
 protected:
  WritebackTest() {
    options_.writeback = true;
    options_.unsent_directory = spool_ + ".unsent/mount";
    options_.sandbox_id = "sandbox";
  }
  ~WritebackTest() override {
    fs_.reset();
    std::filesystem::remove_all(spool_ + ".unsent");
  }
  NodeId MakeDirectory(NodeId parent, const std::string& name) {
    auto made = fs().MakeDirectory(parent, name, 0755, Ctx());
    EXPECT_TRUE(made) << name;
    return made ? made->node : 0;
  }
  void WriteNew(NodeId parent, const std::string& name, const std::string& content) {
    const OpenedFile made = Made(name, parent);
    if (!content.empty()) Write(made.handle, 0, content);
    EXPECT_EQ(Close(made.handle), 0);
  }
  int FlushAll() { return Errno(fs().FlushAll(Ctx(), nullptr)); }
  // Nothing is made until Clear.
  void MakeNothing(testing::RemoteFault::Action action = testing::RemoteFault::kStall) {
    testing::RemoteFault fault;
    fault.function = "MakeObjects";
    fault.action = action;
    fault.count = -1;
    faulty_->Add(fault);
  }
  void LoseOneAnswer() {
    testing::RemoteFault lost;
    lost.function = "MakeObjects";
    lost.action = testing::RemoteFault::kDoAndFail;
    faulty_->Add(lost);
  }
  std::vector<UnsentEntry> Journal() const {
    std::vector<UnsentEntry> found;
    for (UnsentEntry& entry : ListUnsent(std::filesystem::path(spool_).parent_path().string())) {
      if (entry.directory == spool_) found.push_back(std::move(entry));
    }
    return found;
  }
};

TEST_F(WritebackTest, ATreeIsMadeByOneQuestion) {
  const NodeId top = MakeDirectory(kRoot, "top");
  const NodeId deep = MakeDirectory(MakeDirectory(top, "a"), "b");
  for (int i = 0; i < 20; ++i) WriteNew(deep, "f" + std::to_string(i), "content " + std::to_string(i));
  ASSERT_TRUE(fs().MakeSymlink(top, "link", "a/b/f3", Ctx()));
  EXPECT_EQ(List(deep).size(), 20u);
  EXPECT_EQ(Content("top/a/b/f7"), "content 7");
  faulty_->ResetCalls();
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_EQ(faulty_->calls("Store") + faulty_->calls("Create") + faulty_->calls("MakeDirectory"), 0);
  EXPECT_LE(faulty_->calls("MakeObjects"), 2);
  EXPECT_EQ(remote_->InsideList("top/a/b").size(), 20u);
  EXPECT_EQ(Inside("top/a/b/f19"), "content 19");
  EXPECT_EQ(Inside("top/link"), "a/b/f3");
  EXPECT_EQ(fs().Status().dirty_files, 0);
  EXPECT_TRUE(Eventually([&] { return SpoolFiles() == 0; }));
}

TEST_F(WritebackTest, OnlyInDirectoriesThatThisMountMade) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("theirs"));
  WriteNew(Find("theirs"), "f", "");
  EXPECT_TRUE(remote_->InsideExists("theirs/f"));
  const NodeId ours = MakeDirectory(kRoot, "ours");
  MakeNothing();
  WriteNew(ours, "f", "");
  EXPECT_FALSE(remote_->InsideExists("ours/f"));
  faulty_->Clear();
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_TRUE(remote_->InsideExists("ours/f"));
}

TEST_F(WritebackTest, WhatIsInTheJournalSaysAllOfIt) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing();
  const NodeId in_it = MakeDirectory(top, "in");
  WriteNew(in_it, "f", "content");
  ASSERT_TRUE(fs().MakeSymlink(in_it, "l", "f", Ctx()));
  const std::vector<UnsentEntry> journal = Journal();
  ASSERT_EQ(journal.size(), 3u);
  std::map<uint64_t, const UnsentRecord*> in_order;
  for (const UnsentEntry& entry : journal) {
    ASSERT_TRUE(entry.record) << entry.problem;
    EXPECT_EQ(entry.problem, "");
    EXPECT_TRUE(entry.record->accepted && entry.record->make);
    in_order[entry.record->order] = &*entry.record;
  }
  std::vector<std::string> paths;
  for (const auto& [order, record] : in_order) paths.push_back(record->path);
  EXPECT_EQ(paths, (std::vector<std::string>{"top/in", "top/in/f", "top/in/l"}));
  faulty_->Clear();
}

TEST_F(WritebackTest, WhatWasCutOffIsNotMade) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing();
  WriteNew(top, "f", std::string(60, 'S'));
  for (const int64_t size : {10, 100}) {
    transport::AttributeChange cut;
    cut.size = size;
    ASSERT_TRUE(fs().SetAttributes(Find("top/f"), 0, cut, Ctx()));
  }
  faulty_->Clear();
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("top/f"), std::string(10, 'S') + std::string(90, '\0'));
}

TEST_F(WritebackTest, TheAnswerThatWasLostIsFoundOut) {
  const NodeId top = MakeDirectory(kRoot, "top");
  LoseOneAnswer();
  const NodeId in_it = MakeDirectory(top, "in");
  WriteNew(in_it, "f", "content");
  WriteNew(in_it, "empty", "");
  ASSERT_TRUE(fs().MakeSymlink(in_it, "l", "f", Ctx()));
  EXPECT_NE(FlushAll(), 0);
  EXPECT_TRUE(Eventually([&] { return FlushAll() == 0 && fs().Status().dirty_files == 0; }));
  EXPECT_EQ(remote_->InsideList("top/in"), (std::vector<std::string>{"empty", "f", "l"}));
  EXPECT_EQ(Inside("top/in/f"), "content");
  EXPECT_EQ(Content("top/in/f"), "content");
  EXPECT_EQ(List(top), std::vector<std::string>{"in"});
}

TEST_F(WritebackTest, SomethingElseHasItsName) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing();
  WriteNew(top, "f", "ours");
  ASSERT_TRUE(fs().MakeSymlink(top, "l", "ours", Ctx()));
  WriteNew(MakeDirectory(top, "d"), "below", "ours");
  WriteNew(MakeDirectory(top, "same"), "below", "ours");
  ASSERT_TRUE(remote_->InsideWrite("top/f", "theirs"));
  ASSERT_TRUE(remote_->InsideMakeSymlink("top/l", "theirs"));
  ASSERT_TRUE(remote_->InsideWrite("top/d", "theirs"));
  ASSERT_TRUE(remote_->InsideMakeDirectory("top/same"));
  faulty_->Clear();
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("top/f"), "theirs");
  EXPECT_EQ(Inside("top/l"), "theirs");
  EXPECT_EQ(Inside("top/d"), "theirs");
  EXPECT_EQ(Inside("top/same/below"), "ours");
  std::map<std::string, std::string> copies;
  for (const std::string& name : remote_->InsideList("top")) {
    if (const size_t at = name.find(".e2bfs-conflict-"); at != std::string::npos) copies[name.substr(0, at)] = "top/" + name;
  }
  ASSERT_EQ(copies.size(), 3u);
  EXPECT_EQ(Inside(copies["f"]), "ours");
  EXPECT_EQ(Inside(copies["l"]), "ours");
  EXPECT_EQ(Inside(copies["d"] + "/below"), "ours");
  EXPECT_TRUE(ListUnsent(spool_ + ".unsent").empty());
}

TEST_F(WritebackTest, AFileThatWasChangedThereMeanwhileIsNotOverwritten) {
  ASSERT_TRUE(remote_->InsideWrite("f", "old content"));
  testing::RemoteFault stalled;
  stalled.function = "Store";
  stalled.error = Error{EIO, ErrorKind::kUnavailable, "injected", 0, ""};
  stalled.count = 1;
  faulty_->Add(stalled);
  const FileHandle handle = OpenWrite("f");
  Write(handle, 0, "NEW");
  ASSERT_EQ(Close(handle), 0);
  EXPECT_NE(FlushAll(), 0);  // it failed, and is tried again
  ASSERT_TRUE(remote_->InsideWrite("f", "somebody else's"));
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("f"), "somebody else's");
  EXPECT_EQ(remote_->InsideList("").size(), 2u);
  for (const std::string& name : remote_->InsideList("")) EXPECT_TRUE(name == "f" || name.starts_with("f.e2bfs-conflict-")) << name;
}

TEST_F(WritebackTest, WhatIsRemovedBeforeItWasSentIsNeverSent) {
  const NodeId top = MakeDirectory(kRoot, "top");
  const OpenedFile open = Made("f", top);
  Write(open.handle, 0, "content");
  MakeDirectory(top, "d");
  ASSERT_EQ(Errno(fs().Unlink(top, "f", Ctx())), 0);
  ASSERT_EQ(Errno(fs().RemoveDirectory(top, "d", Ctx())), 0);
  EXPECT_EQ(ReadAll(open.handle), "content");
  EXPECT_EQ(List(top), std::vector<std::string>());
  EXPECT_EQ(Close(open.handle), 0);
  faulty_->ResetCalls();
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_EQ(faulty_->total_calls(), 0);
  EXPECT_EQ(remote_->InsideList("top"), std::vector<std::string>());
  EXPECT_EQ(SpoolFiles(), 0u);
}

TEST_F(WritebackTest, ADirectoryWithSomethingUnsentIsNotEmpty) {
  const NodeId d = MakeDirectory(kRoot, "d");
  MakeNothing();
  WriteNew(d, "f", "");
  EXPECT_EQ(Errno(fs().RemoveDirectory(kRoot, "d", Ctx())), ENOTEMPTY);
  faulty_->Clear();
}

TEST_F(WritebackTest, ARenameComesAfterTheContentThatItPublishes) {
  const NodeId top = MakeDirectory(kRoot, "top");
  WriteNew(top, "new", "content");
  ASSERT_TRUE(remote_->InsideWrite("there", "old"));
  ASSERT_EQ(Errno(fs().Rename(top, "new", kRoot, "there", 0, Ctx())), 0);
  EXPECT_EQ(Inside("there"), "content");
  WriteNew(MakeDirectory(top, "deep"), "f", "deep");
  ASSERT_EQ(Errno(fs().Rename(kRoot, "top", kRoot, "moved", 0, Ctx())), 0);
  EXPECT_EQ(Inside("moved/deep/f"), "deep");
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Content("moved/deep/f"), "deep");
}

TEST_F(WritebackTest, TimesOfADirectoryStayAlthoughItsFilesAreMadeLater) {
  const NodeId top = MakeDirectory(kRoot, "top");
  const NodeId in_it = MakeDirectory(top, "in");
  WriteNew(in_it, "f", "x");
  transport::AttributeChange times;
  times.mtime = transport::TimeChange{false, {1'000'000'001, 5}};
  times.permissions = 0700;
  for (const NodeId directory : {in_it, top}) ASSERT_TRUE(fs().SetAttributes(directory, 0, times, Ctx()));
  EXPECT_EQ(fs().GetAttributes(top, Ctx())->attributes.mtime.tv_sec, 1'000'000'001);
  ASSERT_EQ(FlushAll(), 0);
  for (const std::string path : {"top", "top/in"}) {
    EXPECT_EQ(remote_->InsideStat(path)->mtime.tv_sec, 1'000'000'001) << path;
    EXPECT_EQ(remote_->InsideStat(path)->permissions, 0700u) << path;
  }
}

TEST_F(WritebackTest, AForeignChangeMakesADirectoryTheSandboxsAgain) {
  testing::MemoryRemoteFsOptions watching;
  watching.watches = true;
  UseRemote(watching);
  const NodeId top = MakeDirectory(kRoot, "top");
  ASSERT_TRUE(remote_->InsideWrite("top/theirs", "x"));
  remote_->InsideTell("top/theirs");
  WriteNew(top, "f", "");
  EXPECT_TRUE(remote_->InsideExists("top/f"));
  EXPECT_EQ(Errno(fs().CreateFile(top, "theirs", 0644, true, {}, Ctx())), EEXIST);
}

TEST_F(WritebackTest, WhatBelongsIntoADirectoryThatIsGoneIsPutAside) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing(testing::RemoteFault::kFail);
  WriteNew(MakeDirectory(top, "in"), "f", "content");
  ASSERT_TRUE(remote_->InsideRemove("top"));
  faulty_->Clear();
  int told = 0;
  EXPECT_TRUE(Eventually([&] {
    told = FlushAll();
    return fs().Status().dirty_files == 0;
  }));
  EXPECT_NE(told, 0);  // that it is put aside
  EXPECT_EQ(FlushAll(), 0);
  std::vector<std::string> kept;
  for (const UnsentEntry& entry : ListUnsent(spool_ + ".unsent")) kept.push_back(entry.record ? entry.record->path : entry.problem);
  std::sort(kept.begin(), kept.end());
  EXPECT_EQ(kept, (std::vector<std::string>{"top/in", "top/in/f"}));
}

TEST_F(WritebackTest, AnOpenFileWhoseMakingsAnswerWasLostIsItsOwn) {
  const NodeId top = MakeDirectory(kRoot, "top");
  LoseOneAnswer();
  const OpenedFile log = Made("log", top);
  Write(log.handle, 0, "line 1\n");
  (void)fs().Sync(log.handle, Ctx());
  EXPECT_EQ(Errno(fs().Sync(log.handle, Ctx())), 0);
  Write(log.handle, 7, "line 2\n");
  EXPECT_EQ(Close(log.handle), 0);
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("top/log"), "line 1\nline 2\n");
  EXPECT_EQ(remote_->InsideList("top"), std::vector<std::string>{"log"});
}

TEST_F(WritebackTest, WhatMayBeThereIsRemovedThere) {
  const NodeId top = MakeDirectory(kRoot, "top");
  LoseOneAnswer();
  const NodeId d = MakeDirectory(top, "d");
  WriteNew(d, "temporary", "x");
  EXPECT_NE(FlushAll(), 0);
  EXPECT_EQ(Errno(fs().Unlink(d, "temporary", Ctx())), 0);
  EXPECT_EQ(Errno(fs().RemoveDirectory(top, "d", Ctx())), 0);
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(remote_->InsideList("top"), std::vector<std::string>());
}

TEST_F(WritebackTest, WhatIsWrittenAfterTheLastCloseIsNotAccepted) {
  ASSERT_TRUE(remote_->InsideWrite("f", "old"));
  testing::RemoteFault stalled;
  stalled.function = "Store";
  stalled.action = testing::RemoteFault::kStall;
  faulty_->Add(stalled);
  const FileHandle handle = OpenWrite("f");
  Write(handle, 0, "new");
  ASSERT_EQ(Flush(handle), 0);
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  ASSERT_EQ(Flush(handle), 0);  // while it is sent
  faulty_->Clear();
  ASSERT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("f"), "new");
  Write(handle, 3, "er");
  const std::vector<UnsentEntry> journal = Journal();
  ASSERT_EQ(journal.size(), 1u);
  ASSERT_TRUE(journal[0].record);
  EXPECT_FALSE(journal[0].record->accepted);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside("f"), "newer");
}

TEST_F(WritebackTest, WhoWaitsForWhatIsRemovedMeanwhileGoesOn) {
  const NodeId top = MakeDirectory(kRoot, "top");
  testing::RemoteFault failing;
  failing.function = "MakeObjects";
  failing.error = Error{EIO, ErrorKind::kErrno, "injected", 0, ""};
  failing.count = -1;
  faulty_->Add(failing);
  const OpenedFile made = Made("f", top);
  std::thread waits([&] {
    for (int i = 0; i < 20; ++i) (void)fs().Sync(made.handle, Ctx());
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(Errno(fs().Unlink(top, "f", Ctx())), 0);
  waits.join();
  EXPECT_EQ(Close(made.handle), 0);
  faulty_->Clear();
}

TEST_F(WritebackTest, WhatIsPutAsideWhileItIsMadeIsLeftAlone) {
  const NodeId top = MakeDirectory(kRoot, "top");
  testing::RemoteFault slow;
  slow.function = "MakeObjects";
  slow.action = testing::RemoteFault::kDelay;
  slow.delay_ms = 300;
  faulty_->Add(slow);
  MakeDirectory(top, "d");
  WriteNew(top, "f", "content");
  std::thread flush([&] { (void)FlushAll(); });
  ASSERT_TRUE(Eventually([&] { return faulty_->calls("MakeObjects") > 0; }));
  EXPECT_TRUE(fs().SaveUnsent(options_.unsent_directory));
  flush.join();
  fs_.reset();
  EXPECT_EQ(remote_->InsideList("top"), (std::vector<std::string>{"d", "f"}));
}

// It is being sent when it is put aside, which a mount's end does.
class PutAsideWhileSentTest : public WritebackTest, public ::testing::WithParamInterface<const char*> {
 protected:
  // Something old, or something new, begins to be sent, and a copy of it is put aside.
  void SaveWhileItIsSent() {
    const bool is_new = GetParam() == std::string("MakeObjects");
    const NodeId top = MakeDirectory(kRoot, "top");
    ASSERT_TRUE(is_new || remote_->InsideWrite("f", "old"));
    path_ = is_new ? "top/f" : "f";
    testing::RemoteFault stalled;
    stalled.function = GetParam();
    stalled.action = testing::RemoteFault::kStall;
    faulty_->Add(stalled);
    if (is_new) {
      WriteNew(top, "f", "new");
    } else {
      const FileHandle handle = OpenWrite(path_);
      Write(handle, 0, "new");
      ASSERT_EQ(Close(handle), 0);
    }
    ASSERT_TRUE(faulty_->WaitForStalled(1));
    for (const int saved : {1, 0}) {
      const auto done = fs().SaveUnsent(options_.unsent_directory);
      ASSERT_TRUE(done) << ToString(done.error());
      EXPECT_EQ(*done, saved);
    }
    ASSERT_EQ(Aside().size(), 1u);
    ASSERT_EQ(Journal().size(), 0u);
  }
  std::vector<UnsentEntry> Aside() const { return ListUnsent(spool_ + ".unsent"); }
  std::string path_;
};

TEST_P(PutAsideWhileSentTest, WhatFailsThenIsThereOnce) {
  options_.transfer_timeout = std::chrono::seconds(2);
  SaveWhileItIsSent();
  ASSERT_TRUE(Eventually([&] { return fs().Status().dirty_files == 0; }));  // the store has failed
  EXPECT_EQ(fs().SaveUnsent(options_.unsent_directory).value_or(-1), 0);
  EXPECT_NE(FlushAll(), 0);  // that it is put aside
  EXPECT_EQ(FlushAll(), 0);
  fs_.reset();
  EXPECT_EQ(Journal().size(), 0u);
  const std::vector<UnsentEntry> aside = Aside();
  ASSERT_EQ(aside.size(), 1u);
  EXPECT_EQ(aside[0].problem, "");
  EXPECT_EQ(aside[0].bytes, 3);
}

TEST_P(PutAsideWhileSentTest, WhatArrivesThenIsNotThereAnyMore) {
  SaveWhileItIsSent();
  faulty_->Clear();
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside(path_), "new");
  EXPECT_EQ(Aside().size(), 0u);
  EXPECT_EQ(Journal().size(), 0u);
}

TEST_P(PutAsideWhileSentTest, WhatIsWrittenThenIsInTheJournalWithAllOfIt) {
  SaveWhileItIsSent();
  const FileHandle handle = OpenWrite(path_);
  Write(handle, 3, "er");
  EXPECT_EQ(Aside().size(), 0u);
  ASSERT_EQ(Journal().size(), 1u);
  const UnsentEntry entry = Journal()[0];
  ASSERT_TRUE(entry.record) << entry.problem;
  EXPECT_TRUE(entry.record->accepted);
  EXPECT_EQ(entry.record->change.bytes(), 5);
  EXPECT_EQ(fs().SaveUnsent(options_.unsent_directory).value_or(-1), 1);
  EXPECT_EQ(Aside().size(), 1u);
  EXPECT_EQ(Journal().size(), 0u);
  faulty_->Clear();
  EXPECT_EQ(Close(handle), 0);
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(Inside(path_), "newer");
  EXPECT_EQ(Aside().size(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Ways, PutAsideWhileSentTest, ::testing::Values("Store", "MakeObjects"), [](const auto& info) { return std::string(info.param); });

TEST_F(WritebackTest, BarriersWaitForWhatIsSentBesideAnotherFile) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing();
  WriteNew(top, "f", "ours");
  ASSERT_TRUE(remote_->InsideWrite("top/f", "theirs"));
  faulty_->Clear();
  testing::RemoteFault slow;
  slow.function = "Create";
  slow.action = testing::RemoteFault::kDelay;
  slow.delay_ms = 300;
  slow.count = -1;
  faulty_->Add(slow);
  ASSERT_EQ(Errno(fs().SyncDirectory(top, Ctx())), 0);
  EXPECT_EQ(remote_->InsideList("top").size(), 2u);
  ASSERT_EQ(Errno(fs().Rename(kRoot, "top", kRoot, "moved", 0, Ctx())), 0);
  MakeDirectory(kRoot, "top");
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(remote_->InsideList("top"), std::vector<std::string>());
  EXPECT_EQ(remote_->InsideList("moved").size(), 2u);
}

// Says of everything that its name is taken.
class TakenRemoteFs : public testing::FaultyRemoteFs {
 public:
  using testing::FaultyRemoteFs::FaultyRemoteFs;
  Result<transport::MadeObjects> MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext&) override {
    ++rows;
    transport::MadeObjects made;
    made.objects.resize(objects.size());
    for (transport::MadeObject& object : made.objects) object.error = Error{EEXIST, ErrorKind::kErrno, "taken", 0, ""};
    return made;
  }
  Result<transport::Attributes> Lookup(const transport::Name& name, const OpContext& ctx) override {
    if (rows == 0) return FaultyRemoteFs::Lookup(name, ctx);
    transport::Attributes something;
    something.id.value = name.name;
    return something;
  }
  std::atomic<int> rows{0};
};

TEST_F(WritebackTest, NobodyIsAskedForEver) {
  fs_.reset();
  auto taken = std::make_unique<TakenRemoteFs>(*remote_);
  const TakenRemoteFs& remote = *taken;
  faulty_ = std::move(taken);
  MakeDirectory(MakeDirectory(kRoot, "top"), "d");
  (void)FlushAll();
  EXPECT_TRUE(Eventually([&] { return fs().Status().dirty_files == 0 || FlushAll() == 0; }));
  EXPECT_LE(remote.rows, 110);
}

// Has no room for directories, and finds nothing where one is missing.
class FullRemoteFs : public testing::FaultyRemoteFs {
 public:
  using testing::FaultyRemoteFs::FaultyRemoteFs;
  Result<transport::MadeObjects> MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext& ctx) override {
    if (!full) return FaultyRemoteFs::MakeObjects(objects, ctx);
    transport::MadeObjects made;
    made.objects.resize(objects.size());
    for (size_t i = 0; i < objects.size(); ++i) made.objects[i].error = Error{objects[i].made_in ? ENOENT : ENOSPC, ErrorKind::kErrno, "full", 0, ""};
    return made;
  }
  std::atomic<bool> full{true};
};

TEST_F(WritebackTest, WhatIsMoreThanARowIsToldWhyItsDirectoryCannotBeMade) {
  fs_.reset();
  auto made = std::make_unique<FullRemoteFs>(*remote_);
  FullRemoteFs& remote = *made;
  faulty_ = std::move(made);
  const NodeId top = MakeDirectory(kRoot, "top");
  const std::string content(250 << 10, 'x');
  const NodeId in_it = MakeDirectory(top, "in");
  for (int i = 0; i < 20; ++i) WriteNew(in_it, "f" + std::to_string(i), content);
  WriteNew(MakeDirectory(in_it, "deep"), "last", content);
  for (int i = 0; i < 5; ++i) {  // more often than a refusal
    EXPECT_EQ(FlushAll(), ENOSPC);
    EXPECT_EQ(Errno(fs().SyncDirectory(top, Ctx())), ENOSPC);
  }
  EXPECT_TRUE(ListUnsent(spool_ + ".unsent").empty());
  remote.full = false;
  EXPECT_EQ(FlushAll(), 0);
  EXPECT_EQ(remote_->InsideList("top/in").size(), 21u);
  EXPECT_EQ(Inside("top/in/deep/last"), content);
}

TEST_F(WritebackTest, MoreThanARowIsPutAsideWhereItsDirectoryIsGone) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing(testing::RemoteFault::kFail);
  const std::string content(250 << 10, 'x');
  const NodeId in_it = MakeDirectory(top, "in");
  for (int i = 0; i < 20; ++i) WriteNew(in_it, "f" + std::to_string(i), content);
  ASSERT_TRUE(remote_->InsideRemove("top"));
  faulty_->Clear();
  EXPECT_TRUE(Eventually([&] { return FlushAll() != ETIMEDOUT && fs().Status().dirty_files == 0; }));
  EXPECT_EQ(ListUnsent(spool_ + ".unsent").size(), 21u);
}

TEST_F(WritebackTest, AJournalThatCannotBeWrittenAcceptsNothing) {
  const NodeId top = MakeDirectory(kRoot, "top");
  std::filesystem::remove_all(spool_);
  WriteNew(top, "f", "");
  EXPECT_TRUE(remote_->InsideExists("top/f"));
  std::filesystem::create_directory(spool_);
}

TEST_F(WritebackTest, WhatCannotBeNotedIsNotWrittenToWhatWasAccepted) {
  const NodeId top = MakeDirectory(kRoot, "top");
  MakeNothing(testing::RemoteFault::kFail);
  WriteNew(top, "f", "content");
  const std::string note = Journal().at(0).note;
  ASSERT_TRUE(std::filesystem::create_directory(note + ".new"));  // no long one can be written
  const FileHandle handle = OpenWrite("top/f");
  std::string expected = "content";
  Result<size_t> written = 0;
  for (int64_t at = 10; at < 100'000; at += 10) {
    written = fs().Write(handle, at, "x", Ctx());
    if (!written) break;
    expected.resize(static_cast<size_t>(at), '\0');
    expected += 'x';
  }
  EXPECT_EQ(Errno(written), ENOSPC);
  Write(handle, 0, "C");  // that needs no new range
  expected[0] = 'C';
  EXPECT_EQ(ReadAll(handle), expected);
  ASSERT_EQ(Journal().size(), 1u);
  const UnsentEntry entry = Journal()[0];
  ASSERT_TRUE(entry.record) << entry.problem;
  EXPECT_TRUE(entry.record->accepted);
  EXPECT_EQ(entry.record->change.SizeAfter(0), static_cast<int64_t>(expected.size()));
  std::filesystem::remove(note + ".new");
  Write(handle, static_cast<int64_t>(expected.size()), "more");
  EXPECT_EQ(Close(handle), 0);
  faulty_->Clear();
  EXPECT_TRUE(Eventually([&] { return FlushAll() == 0; }));
  EXPECT_EQ(Inside("top/f"), expected + "more");
}

}  // namespace
}  // namespace e2bfs::cache
