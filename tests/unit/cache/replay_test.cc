// What dead mounts accepted is sent in the order in which it can be, once, whenever the one who sends it dies.
#include "cache/replay.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <fstream>
#include <map>
#include <set>

#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

using testing::RemoteFault;
using transport::FileType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr SendTimes kReplayTimes{std::chrono::seconds(20), std::chrono::seconds(20)};
constexpr int64_t kSince = 1'764'470'229;
constexpr char kConflict[] = ".e2bfs-conflict-20251130-023709-id";

class ReplayTest : public CacheFixture {
 protected:
  ReplayTest() : unsent_(spool_ + "-unsent") {}
  ~ReplayTest() override { std::filesystem::remove_all(unsent_); }

  // What lies beside it in the sandbox; "" if nothing does.
  std::string Beside(const std::string& name) {
    for (const std::string& each : remote_->InsideList("")) {
      if (each.starts_with(name + kConflict)) return each;
    }
    return "";
  }
  UnsentRecord Record(const std::string& path) {
    UnsentRecord record;
    record.id = "id" + std::to_string(++entries_);
    record.sandbox_id = owner_.sandbox_id;
    record.scope = owner_.scope;
    record.user = owner_.user;
    record.root = owner_.root;
    record.path = path;
    record.since = kSince;
    record.accepted = true;
    record.order = static_cast<uint64_t>(entries_);
    return record;
  }
  // As a mount that died left it.
  void Leave(UnsentRecord record, const std::string& content = "", const std::string& mount = "left-behind-1") {
    record.has_content = record.change.touches_content();
    const std::string directory = unsent_ + "/" + mount;
    std::filesystem::create_directories(directory);
    const std::string path = directory + "/unsent-" + record.id;
    if (record.has_content) std::ofstream(path, std::ios::binary) << content;
    ASSERT_TRUE(WriteUnsentNote(path + kUnsentNoteSuffix, record));
  }
  UnsentRecord NewDirectory(const std::string& path) {
    UnsentRecord record = Record(path);
    record.make = UnsentMaking{FileType::kDirectory, 0755, {}, {}};
    return record;
  }
  UnsentRecord NewLink(const std::string& path, const std::string& target) {
    UnsentRecord record = Record(path);
    record.make = UnsentMaking{FileType::kSymlink, 0777, {}, target};
    return record;
  }
  UnsentRecord NewFile(const std::string& path, size_t size) {
    UnsentRecord record = Record(path);
    record.make = UnsentMaking{FileType::kRegular, 0644, {}, {}};
    record.fresh = true;
    if (size > 0) record.change.extents.Add({0, static_cast<int64_t>(size)});
    record.change.attributes.mtime = transport::TimeChange{false, {1'600'000'000, 7}};
    record.change.attributes.mtime_is_implied = true;
    return record;
  }
  void LeaveFile(const std::string& path, const std::string& content) { Leave(NewFile(path, content.size()), content); }
  // A change of a range of what is there.
  UnsentRecord ChangeOf(const std::string& path, transport::Extent extent) {
    UnsentRecord record = Record(path);
    const auto now = remote_->InsideStat(path);
    EXPECT_TRUE(now) << path;
    if (now) record.base = UnsentBase{now->id, now->size, now->mtime, now->ctime, now->permissions};
    record.change.extents.Add(extent);
    return record;
  }

  ReplayReport ReplayAll() {
    told_.clear();
    return Replay(*faulty_, unsent_, owner_, kReplayTimes, [&](const UnsentEntry& entry, const SendReport& report) { told_[entry.record->path] = report; });
  }
  // All is sent one by one.
  void NoRows() {
    RemoteFault none;
    none.function = "MakeObjects";
    none.count = -1;
    none.error = Error{ENOTSUP, ErrorKind::kErrno, "several new objects at once", 0, ""};
    faulty_->Add(none);
  }
  // As recover does; no paths: all.
  void SendChosen(const std::set<std::string>& paths, bool same_sandbox = true) {
    told_.clear();
    auto entries = ListUnsent(unsent_);
    SendInOrder(*faulty_, entries, [&](const UnsentEntry& entry) { return paths.empty() || paths.contains(entry.record->path); }, [](const UnsentEntry&) { return true; },
                same_sandbox, kReplayTimes, [&](const UnsentEntry& entry, const SendReport& report) { told_[entry.record->path] = report; });
  }
  void ExpectAllSent(int count) {
    const ReplayReport report = ReplayAll();
    EXPECT_EQ(report.sent, count);
    EXPECT_EQ(report.failed, 0);
    EXPECT_EQ(report.conflicts, 0);
    for (const auto& [path, told] : told_) EXPECT_NE(told.outcome, SendOutcome::kFailed) << path << ": " << told.text;
    EXPECT_THAT(ListUnsent(unsent_), IsEmpty());
    EXPECT_FALSE(std::filesystem::exists(unsent_ + "/left-behind-1"));
  }
  // Everything there, a line each.
  std::vector<std::string> Tree(const std::string& directory = "") {
    std::vector<std::string> lines;
    for (const std::string& name : remote_->InsideList(directory)) {
      const std::string path = directory.empty() ? name : directory + "/" + name;
      const auto now = *remote_->InsideStat(path);
      std::string line = path + " " + std::to_string(now.permissions);
      if (now.type != FileType::kDirectory) line += " " + Inside(path);
      if (now.type != FileType::kSymlink) line += " " + (now.mtime.tv_sec < kSince ? std::to_string(now.mtime.tv_sec) : "new");
      lines.push_back(line);
      if (now.type == FileType::kDirectory) {
        for (std::string& below : Tree(path)) lines.push_back(std::move(below));
      }
    }
    return lines;
  }

  // Some of everything, in an order that is none.
  void LeaveATree() {
    ASSERT_TRUE(remote_->InsideMakeDirectory("there"));
    ASSERT_TRUE(remote_->InsideWrite("there/changed", "0123456789"));
    ASSERT_TRUE(remote_->InsideWrite("there/log", "one\n"));
    LeaveFile("d/e/f", "content of f");
    UnsentRecord deep = NewDirectory("d/e");
    deep.change.attributes.permissions = 0555;  // set before what goes into it, nothing would
    deep.change.attributes.mtime = transport::TimeChange{false, {1'500'000'001, 0}};
    Leave(deep);
    Leave(NewLink("d/link", "e/f"));
    UnsentRecord top = NewDirectory("d");
    top.change.attributes.mtime = transport::TimeChange{false, {1'500'000'002, 0}};
    Leave(top);
    LeaveFile("d/empty", "");
    LeaveFile("there/new", std::string(100'000, 'n'));
    UnsentRecord mode = NewFile("there/mode", 4);
    mode.change.attributes.permissions = 0400;
    Leave(mode, "mode", "left-behind-2");
    Leave(ChangeOf("there/changed", {3, 3}), std::string("\0\0\0xyz", 6));
    UnsentRecord append = ChangeOf("there/log", {0, 0});
    append.change.extents.Clear();
    append.change.append = transport::Extent{4, 4};
    Leave(append, std::string("\0\0\0\0two\n", 8), "left-behind-2");
    UnsentRecord attributes = Record("there");
    attributes.base.id = remote_->InsideStat("there")->id;
    attributes.change.attributes.permissions = 0700;
    attributes.change.attributes.mtime = transport::TimeChange{false, {1'500'000'003, 0}};
    Leave(attributes);
  }
  static constexpr int kEntriesOfTheTree = 10;
  static std::vector<std::string> WholeTree() {
    return {"d 493 1500000002",         "d/e 365 1500000001",         "d/e/f 420 content of f 1600000000",
            "d/empty 420  1600000000",  "d/link 511 e/f",             "there 448 1500000003",
            "there/changed 420 012xyz6789 new", "there/log 420 one\ntwo\n new", "there/mode 256 mode 1600000000",
            "there/new 420 " + std::string(100'000, 'n') + " 1600000000"};
  }

  const UnsentOwner owner_{"sandbox-1", "user", "/home/user", "sandbox-1 at http://envd"};
  const std::string unsent_;
  int entries_ = 0;
  std::map<std::string, SendReport> told_;
};

TEST_F(ReplayTest, DirectoriesComeFirstAndTheirAttributesLast) {
  LeaveATree();
  ExpectAllSent(kEntriesOfTheTree);
  EXPECT_EQ(Tree(), WholeTree());
}

TEST_F(ReplayTest, ADirectoryThatNobodyMayEnterIsClosedAfterWhatIsInIt) {
  UnsentRecord top = NewDirectory("d");
  top.change.attributes.permissions = 0;
  Leave(top);
  UnsentRecord below = NewDirectory("d/e");
  below.change.attributes.permissions = 0;
  Leave(below);
  LeaveFile("d/e/f", "content");
  ExpectAllSent(3);
  EXPECT_THAT(Tree(), ElementsAre("d 0 new", "d/e 0 new", "d/e/f 420 content 1600000000"));
}

// Whichever call is the last one that is carried out, or whose answer comes.
TEST_F(ReplayTest, WhatEndsAtAnyCallEndsTheSameTheNextTime) {
  for (const auto& [action, rows] : {std::pair(RemoteFault::kFail, true), std::pair(RemoteFault::kDoAndFail, true), std::pair(RemoteFault::kFail, false),
                                     std::pair(RemoteFault::kDoAndFail, false)}) {
    int64_t calls = INT64_MAX;
    for (int k = 0; k < calls; ++k) {
      UseRemote({});
      std::filesystem::remove_all(unsent_);
      LeaveATree();
      if (!rows) NoRows();
      RemoteFault fault;
      fault.skip = k;
      fault.count = -1;
      fault.action = RemoteFault::kFail;
      fault.error = Error{ENOTCONN, ErrorKind::kNotRunning, "injected", 0, ""};
      if (action == RemoteFault::kDoAndFail) {
        RemoteFault once = fault;
        once.action = action;
        once.count = 1;
        faulty_->Add(once);
      }
      faulty_->Add(fault);
      faulty_->ResetCalls();
      if (ReplayAll().failed == 0) calls = 0;
      ASSERT_LT(k, 200);
      faulty_->Clear();
      const ReplayReport report = ReplayAll();
      EXPECT_EQ(report.failed, 0) << k;
      EXPECT_EQ(report.conflicts, 0) << k;
      ASSERT_EQ(Tree(), WholeTree()) << k;
      ASSERT_THAT(ListUnsent(unsent_), IsEmpty()) << k;
    }
  }
}

// A power cut, or a kill, after the last one was sent and before its entry went.
TEST_F(ReplayTest, WhatIsDoneAgainIsDoneOnce) {
  LeaveATree();
  const std::string kept = unsent_ + "-kept";
  std::filesystem::copy(unsent_, kept, std::filesystem::copy_options::recursive);
  ExpectAllSent(kEntriesOfTheTree);
  std::filesystem::rename(kept + "/left-behind-1", unsent_ + "/left-behind-1");
  std::filesystem::rename(kept + "/left-behind-2", unsent_ + "/left-behind-2");
  std::filesystem::remove_all(kept);
  ExpectAllSent(kEntriesOfTheTree);
  EXPECT_EQ(Tree(), WholeTree());
}

TEST_F(ReplayTest, AFileThatADeadOneBeganIsFinished) {
  for (const char* there : {"", "our c"}) {
    UnsentRecord begun = NewFile("f", 11);
    begun.being_sent = true;
    Leave(begun, "our content");
    ASSERT_TRUE(remote_->InsideWrite("f", there));
    ExpectAllSent(1);
    EXPECT_THAT(Tree(), ElementsAre("f 420 our content 1600000000"));
  }
}

TEST_F(ReplayTest, AFileThatNobodyHereBeganIsAnother) {
  for (const char* there : {"", "our c", "other content", "OUR CONTENT"}) {
    LeaveFile("f", "our content");
    ASSERT_TRUE(remote_->InsideWrite("f", there));
    EXPECT_EQ(ReplayAll().conflicts, 1);
    EXPECT_EQ(Inside("f"), there);
    EXPECT_EQ(Inside(Beside("f")), "our content");
    EXPECT_EQ(remote_->InsideList("").size(), 2u);
    EXPECT_THAT(ListUnsent(unsent_), IsEmpty());
    ASSERT_TRUE(remote_->InsideRemove(Beside("f")));
  }
}

TEST_F(ReplayTest, AnEmptyFileLiesBesideToo) {
  LeaveFile("f", "");
  ASSERT_TRUE(remote_->InsideWrite("f", "other"));
  EXPECT_EQ(ReplayAll().conflicts, 1);
  EXPECT_EQ(Inside(Beside("f")), "");
  EXPECT_EQ(Inside("f"), "other");
}

TEST_F(ReplayTest, ADirectoryThatIsThereIsTakenAndALinkOfTheSameText) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  ASSERT_TRUE(remote_->InsideWrite("d/theirs", "kept"));
  ASSERT_TRUE(remote_->InsideMakeSymlink("l", "target"));
  Leave(NewDirectory("d"));
  LeaveFile("d/ours", "sent");
  Leave(NewLink("l", "target"));
  ExpectAllSent(3);
  EXPECT_EQ(remote_->InsideList("").size(), 2u);
  EXPECT_THAT(remote_->InsideList("d"), ElementsAre("ours", "theirs"));
}

TEST_F(ReplayTest, ALinkOfAnotherTextLiesBeside) {
  ASSERT_TRUE(remote_->InsideMakeSymlink("l", "theirs"));
  Leave(NewLink("l", "ours"));
  EXPECT_EQ(ReplayAll().conflicts, 1);
  EXPECT_EQ(Inside("l"), "theirs");
  EXPECT_EQ(Inside(Beside("l")), "ours");
  EXPECT_EQ(told_["l"].path, Beside("l"));
}

TEST_F(ReplayTest, WhatGoesIntoADirectoryGoesWhereItCouldBeMade) {
  for (const bool is_link : {false, true}) {  // a link to a directory is none
    UseRemote({});
    NoRows();
    ASSERT_TRUE(remote_->InsideMakeDirectory("elsewhere"));
    ASSERT_TRUE(is_link ? remote_->InsideMakeSymlink("d", "elsewhere") : remote_->InsideWrite("d", "a file"));
    Leave(NewDirectory("d"));
    Leave(NewDirectory("d/e"));
    LeaveFile("d/e/f", "content");
    LeaveFile("dd", "not below it");
    UnsentRecord open = NewFile("d/open", 4);
    open.accepted = false;
    Leave(open, "open");
    // It dies when the directory is made, and what is there goes meanwhile.
    RemoteFault lost;
    lost.function = "Create";
    lost.count = -1;
    lost.error = Error{ENOTCONN, ErrorKind::kNotRunning, "injected", 0, ""};
    faulty_->Add(lost);
    EXPECT_GT(ReplayAll().failed, 0);
    faulty_->Clear();
    ASSERT_TRUE(remote_->InsideRemove("d"));
    EXPECT_EQ(ReplayAll().failed, 0);
    const std::string beside = Beside("d");
    EXPECT_EQ(Inside(beside + "/e/f"), "content");
    EXPECT_EQ(Inside("dd"), "not below it");
    EXPECT_THAT(remote_->InsideList(""), ElementsAre(beside, "dd", "elsewhere"));
    EXPECT_THAT(remote_->InsideList("elsewhere"), IsEmpty());
    const auto left = ListUnsent(unsent_);
    ASSERT_EQ(left.size(), 1u);
    EXPECT_EQ(left[0].record->path, beside + "/open");
    ASSERT_TRUE(RemoveUnsent(left[0]));
  }
}

TEST_F(ReplayTest, ADirectoryStaysUntilAllThatGoesIntoItIsThere) {
  NoRows();
  UnsentRecord directory = NewDirectory("d");
  directory.change.attributes.permissions = 0555;
  Leave(directory);
  LeaveFile("d/f", "f");
  LeaveFile("d/g", "g");
  LeaveFile("h", "h");
  RemoteFault full;
  full.function = "Store";
  full.path_contains = "d/f";
  full.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  faulty_->Add(full);
  ReplayReport report = ReplayAll();
  EXPECT_EQ(report.sent, 2);
  EXPECT_EQ(report.failed, 2);
  EXPECT_EQ(remote_->InsideStat("d")->permissions, 0755u);
  EXPECT_THAT(told_["d"].text, HasSubstr("what goes into it"));
  report = ReplayAll();
  EXPECT_EQ(report.failed, 0);
  EXPECT_EQ(remote_->InsideStat("d")->permissions, 0555u);
  EXPECT_EQ(Inside("d/f") + Inside("d/g") + Inside("h"), "fgh");
}

TEST_F(ReplayTest, OneThatFailsKeepsNoOther) {
  NoRows();
  for (int i = 0; i < 30; ++i) LeaveFile("f" + std::to_string(i), "content");
  RemoteFault full;
  full.function = "Store";
  full.count = -1;
  full.path_contains = "f17";
  full.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  faulty_->Add(full);
  const ReplayReport report = ReplayAll();
  EXPECT_EQ(report.sent, 29);
  EXPECT_EQ(report.failed, 1);
  EXPECT_THAT(told_["f17"].text, HasSubstr("no space"));
  faulty_->Clear();
  ExpectAllSent(1);
  EXPECT_EQ(Inside("f17"), "content");
}

TEST_F(ReplayTest, ASandboxThatDoesNotAnswerIsAskedOnce) {
  for (int i = 0; i < 100; ++i) LeaveFile("f" + std::to_string(i), "content");
  RemoteFault gone;
  gone.count = -1;
  gone.error = Error{ETIMEDOUT, ErrorKind::kTimeout, "no answer", 0, ""};
  faulty_->Add(gone);
  EXPECT_EQ(ReplayAll().failed, 100);
  EXPECT_LE(faulty_->total_calls(), 1 + 16 * 4);  // those that were under way, which are tried again
  EXPECT_EQ(ListUnsent(unsent_).size(), 100u);
}

TEST_F(ReplayTest, ASandboxThatStandsStillEndsIt) {
  NoRows();
  for (int i = 0; i < 20; ++i) LeaveFile("f" + std::to_string(i), "content");
  RemoteFault stall;
  stall.function = "Create";
  stall.count = -1;
  stall.action = RemoteFault::kStall;
  faulty_->Add(stall);
  const auto began = std::chrono::steady_clock::now();
  const ReplayReport report = Replay(*faulty_, unsent_, owner_, {std::chrono::milliseconds(50), std::chrono::milliseconds(50)}, [](const auto&, const auto&) {});
  EXPECT_EQ(report.failed, 20);
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  faulty_->Clear();
  ExpectAllSent(20);
}

TEST_F(ReplayTest, SeveralAreOnTheirWayAtOnce) {
  NoRows();
  for (int i = 0; i < 20; ++i) LeaveFile("f" + std::to_string(i), "content");
  RemoteFault stall;
  stall.function = "Store";
  stall.count = -1;
  stall.action = RemoteFault::kStall;
  faulty_->Add(stall);
  std::jthread replay([&] { ReplayAll(); });
  EXPECT_TRUE(faulty_->WaitForStalled(16));
  faulty_->Clear();
  replay.join();
  EXPECT_EQ(remote_->InsideList("").size(), 20u);
}

// Of several mounts, as they were accepted: each change starts from what the one before it leaves.
TEST_F(ReplayTest, ChangesOfOneFileComeOneAfterTheOther) {
  ASSERT_TRUE(remote_->InsideWrite("log", "one\n"));
  std::vector<UnsentRecord> records;
  for (const int64_t offset : {4, 8}) {
    UnsentRecord append = ChangeOf("log", {0, 0});
    append.change.extents.Clear();
    append.change.append = transport::Extent{offset, 4};
    append.base.size = offset;
    records.push_back(append);
  }
  Leave(records[1], std::string(8, '\0') + "thr\n", "left-behind-1");
  Leave(records[0], std::string(4, '\0') + "two\n", "left-behind-2");
  RemoteFault slow;
  slow.function = "Store";
  slow.count = -1;
  slow.action = RemoteFault::kDelay;
  slow.delay_ms = 50;
  faulty_->Add(slow);
  ExpectAllSent(2);
  EXPECT_EQ(Inside("log"), "one\ntwo\nthr\n");
}

TEST_F(ReplayTest, WhatIsNotAcceptedOrNotOfThisMountStays) {
  UnsentRecord not_accepted = NewFile("a", 1);
  not_accepted.accepted = false;
  Leave(not_accepted, "a");
  const auto of = [&](const char* path, auto change) {
    UnsentRecord record = NewFile(path, 1);
    change(record);
    Leave(record, "x");
  };
  of("b", [](UnsentRecord& record) { record.sandbox_id = "sandbox-2"; });
  of("c", [](UnsentRecord& record) { record.user = "root"; });
  of("d", [](UnsentRecord& record) { record.root = "/"; });
  of("e", [](UnsentRecord& record) { record.scope = "sandbox-1 at another envd"; });
  of("f", [](UnsentRecord& record) { record.scope.clear(); });  // it does not say
  EXPECT_EQ(CountAccepted(unsent_, owner_), 0u);
  const ReplayReport report = ReplayAll();
  EXPECT_EQ(report.sent + report.failed, 0);
  EXPECT_EQ(faulty_->total_calls(), 0);
  EXPECT_EQ(ListUnsent(unsent_).size(), 6u);
}

TEST_F(ReplayTest, WhatIsTornOrForeignIsNeverServed) {
  LeaveFile("good", "content");
  const std::string directory = unsent_ + "/left-behind-1/";
  LeaveFile("torn", "content");
  std::filesystem::resize_file(directory + "unsent-id2.note", 90);
  LeaveFile("forged", "content");
  {
    std::fstream note(directory + "unsent-id3.note");
    note.seekp(120);
    note << "forged";
  }
  std::ofstream(directory + "unsent-foreign") << "bytes";
  std::ofstream(directory + "unsent-foreign.note") << "something else";
  std::ofstream(directory + "unsent-newer.note") << "e2bfs-unsent 2 slot";
  LeaveFile("short", "content");
  std::filesystem::resize_file(directory + "unsent-id4", 3);
  LeaveFile("missing", "content");
  std::filesystem::remove(directory + "unsent-id5");
  LeaveFile("../outside", "content");
  const ReplayReport report = ReplayAll();
  EXPECT_EQ(report.sent, 1);
  EXPECT_EQ(report.failed, 0);
  EXPECT_THAT(Tree(), ElementsAre("good 420 content 1600000000"));
  const auto left = ListUnsent(unsent_);
  EXPECT_EQ(left.size(), 7u);
  for (const UnsentEntry& entry : left) EXPECT_NE(entry.problem, "") << entry.id;
}

TEST_F(ReplayTest, AttributesOfADirectoryThatIsAnotherOneNowAreNotSet) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  UnsentRecord attributes = Record("d");
  attributes.base.id = remote_->InsideStat("d")->id;
  attributes.change.attributes.permissions = 0700;
  Leave(attributes);
  ASSERT_TRUE(remote_->InsideRemove("d"));
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  EXPECT_EQ(ReplayAll().failed, 1);
  EXPECT_EQ(remote_->InsideStat("d")->permissions, 0755u);
}

TEST_F(ReplayTest, WithoutIdentitiesThatLast) {
  testing::MemoryRemoteFsOptions paths;
  paths.hard_links_share_identity = paths.identities_survive_renames = paths.handles_survive = false;
  UseRemote(paths);
  LeaveATree();
  ExpectAllSent(kEntriesOfTheTree);
  EXPECT_EQ(Tree(), WholeTree());
}

TEST_F(ReplayTest, ItsCreatorIsWhoMadeIt) {
  testing::MemoryRemoteFsOptions root;
  root.uid = root.gid = 0;
  UseRemote(root);
  for (UnsentRecord record : {NewDirectory("d"), NewFile("f", 0), NewLink("l", "x")}) {
    record.make->creator = Creator{1234, 5678};
    Leave(record);
  }
  ExpectAllSent(3);
  for (const char* path : {"d", "f", "l"}) {
    EXPECT_EQ(remote_->InsideStat(path)->uid, 1234u) << path;
    EXPECT_EQ(remote_->InsideStat(path)->gid, 5678u) << path;
  }
}

// -o writeback: it was made, and the answer was lost.
TEST_F(ReplayTest, WhatALivingMountMadeWithoutAnAnswerIsItsOwn) {
  options_.writeback = true;
  options_.sandbox_id = owner_.sandbox_id;
  options_.unsent_directory = unsent_ + "/of-this-mount";
  auto directory = fs().MakeDirectory(kRoot, "d", 0755, Ctx());
  ASSERT_TRUE(directory);
  RemoteFault lost;
  lost.function = "MakeObjects";
  lost.action = RemoteFault::kDoAndFail;
  faulty_->Add(lost);
  const std::string content(300'000, 'x');  // too much to go with the making
  const auto made = Made("f", directory->node);
  Write(made.handle, 0, content);
  EXPECT_EQ(Close(made.handle), 0);
  EXPECT_TRUE(Eventually([&] { return faulty_->calls("MakeObjects") > 1; }));
  EXPECT_EQ(Errno(fs().FlushAll(Ctx(), {})), 0);
  EXPECT_THAT(remote_->InsideList("d"), ElementsAre("f"));
  EXPECT_EQ(Inside("d/f"), content);
}

// As recover does with --to: what another sandbox has says nothing of the one that it was accepted for.
TEST_F(ReplayTest, WhatIsSentElsewhereChangesNoNote) {
  ASSERT_TRUE(remote_->InsideWrite("d", "a file"));
  Leave(NewDirectory("d"));
  LeaveFile("d/f", "content");
  faulty_->FailNth("Store", 1, ENOSPC);
  SendChosen({}, false);
  EXPECT_TRUE(remote_->InsideExists(Beside("d")));
  std::set<std::string> paths;
  for (const UnsentEntry& entry : ListUnsent(unsent_)) {
    paths.insert(entry.record->path);
    EXPECT_FALSE(entry.record->being_sent);
  }
  EXPECT_THAT(paths, ElementsAre("d", "d/f"));
}

// That its own sandbox had begun it says nothing of another one: an empty file there is somebody's lock.
TEST_F(ReplayTest, WhatWasBegunInItsSandboxIsNotBegunElsewhere) {
  UnsentRecord begun = NewFile("f", 11);
  begun.being_sent = true;
  Leave(begun, "our content");
  ASSERT_TRUE(remote_->InsideWrite("f", ""));
  SendChosen({}, false);
  EXPECT_EQ(told_["f"].outcome, SendOutcome::kConflictCopy);
  EXPECT_EQ(Inside("f"), "");
  EXPECT_EQ(Inside(Beside("f")), "our content");
}

// recover --send of some: a directory's attributes and its entry are the last of its subtree, and it is made for what goes into it.
TEST_F(ReplayTest, ADirectoryThatIsChosenAloneWaits) {
  UnsentRecord directory = NewDirectory("d");
  directory.change.attributes.permissions = 0555;
  directory.change.attributes.mtime = transport::TimeChange{false, {1'500'000'001, 0}};
  Leave(directory);
  LeaveFile("d/f", "f");
  LeaveFile("d/g", "g");
  SendChosen({"d"});
  EXPECT_EQ(told_["d"].outcome, SendOutcome::kFailed);
  EXPECT_THAT(told_["d"].text, HasSubstr("waits for what goes into it: d/f"));
  EXPECT_THAT(Tree(), ElementsAre("d 493 new"));
  SendChosen({"d/f"});
  EXPECT_EQ(told_.size(), 1u);
  EXPECT_EQ(told_["d/f"].outcome, SendOutcome::kSent) << told_["d/f"].text;
  EXPECT_EQ(ListUnsent(unsent_).size(), 2u);
  SendChosen({"d/g"});
  EXPECT_EQ(told_["d"].outcome, SendOutcome::kWasThere) << told_["d"].text;
  EXPECT_THAT(Tree(), ElementsAre("d 365 1500000001", "d/f 420 f 1600000000", "d/g 420 g 1600000000"));
  EXPECT_THAT(ListUnsent(unsent_), IsEmpty());
}

TEST_F(ReplayTest, WhatIsChosenComesWithTheNewDirectoriesAboveIt) {
  Leave(NewDirectory("d"));
  Leave(NewDirectory("d/e"));
  Leave(NewDirectory("other"));
  LeaveFile("d/e/f", "f");
  LeaveFile("d/g", "g");
  SendChosen({"d/e/f"});
  EXPECT_EQ(told_["d/e/f"].outcome, SendOutcome::kSent) << told_["d/e/f"].text;
  std::set<std::string> paths;
  for (const UnsentEntry& entry : ListUnsent(unsent_)) paths.insert(entry.record->path);
  EXPECT_THAT(paths, ElementsAre("d", "d/g", "other"));
  EXPECT_FALSE(remote_->InsideExists("other"));
}

// Whoever made it: its mode and times are his.
TEST_F(ReplayTest, AnEqualFileOfAnotherKeepsItsAttributes) {
  ASSERT_TRUE(remote_->InsideWrite("f", "content"));
  ASSERT_TRUE(remote_->InsideMakeSymlink("l", "target"));
  const auto before = *remote_->InsideStat("f");
  for (const bool begun : {false, true}) {
    UnsentRecord file = NewFile("f", 7);
    file.change.attributes.permissions = 0600;
    file.being_sent = begun;
    Leave(file, "content");
    UnsentRecord link = NewLink("l", "target");
    link.change.attributes.mtime = transport::TimeChange{false, {1'500'000'001, 0}};
    link.being_sent = begun;
    Leave(link);
    ExpectAllSent(2);
    EXPECT_EQ(told_["f"].outcome, SendOutcome::kWasThere);
    EXPECT_EQ(remote_->InsideStat("f")->permissions, begun ? 0600u : before.permissions);
    EXPECT_EQ(remote_->InsideStat("f")->mtime.tv_sec, begun ? 1'600'000'000 : before.mtime.tv_sec);
    EXPECT_EQ(remote_->InsideStat("l")->mtime.tv_sec == 1'500'000'001, begun);
  }
}

// What the sandbox says nothing was made of is not begun, when it comes again.
TEST_F(ReplayTest, WhatWasRefusedWasNotBegun) {
  LeaveFile("f", "our content");
  ASSERT_TRUE(remote_->InsideWrite("f", "theirs"));
  RemoteFault full;
  full.function = "Create";
  full.path_contains = kConflict;
  full.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  faulty_->Add(full);
  EXPECT_EQ(ReplayAll().failed, 1);
  ASSERT_TRUE(remote_->InsideWrite("f", ""));  // a lock now
  EXPECT_EQ(ReplayAll().conflicts, 1);
  EXPECT_EQ(Inside("f"), "");
}

TEST_F(ReplayTest, WhatPassesByItselfIsWaitedFor) {
  for (const ErrorKind kind : {ErrorKind::kUnavailable, ErrorKind::kRateLimited, ErrorKind::kTimeout}) {
    for (const auto action : {RemoteFault::kFail, RemoteFault::kDoAndFail}) {
      UseRemote({});
      LeaveATree();
      NoRows();
      for (const char* function : {"MakeDirectory", "Create", "Store", "SetAttributes"}) {
        RemoteFault once;
        once.function = function;
        if (function == std::string("Store")) once.path_contains = "d/e/f";  // what is appended is not tried again
        once.action = action;
        once.error = Error{EAGAIN, kind, "injected", 0, ""};
        faulty_->Add(once);
      }
      ExpectAllSent(kEntriesOfTheTree);
      EXPECT_TRUE(Tree() == WholeTree());
    }
  }
}

// Only times were set, by paths alone: whoever did it was killed before he noted that.
TEST_F(ReplayTest, TimesThatAreSetAlreadyAreThere) {
  testing::MemoryRemoteFsOptions paths;
  paths.hard_links_share_identity = paths.identities_survive_renames = paths.handles_survive = false;
  UseRemote(paths);
  ASSERT_TRUE(remote_->InsideWrite("f", "content"));
  UnsentRecord times = ChangeOf("f", {0, 0});
  times.change.extents.Clear();
  times.base.id = {};
  times.change.attributes.mtime = transport::TimeChange{false, {1'500'000'001, 0}};
  times.change.attributes.permissions = 0600;
  for (const auto outcome : {SendOutcome::kSent, SendOutcome::kWasThere}) {
    Leave(times);
    ReplayAll();
    EXPECT_EQ(told_["f"].outcome, outcome) << told_["f"].text;
  }
  times.change.attributes.mtime->value.tv_sec += 1;
  Leave(times);
  EXPECT_EQ(ReplayAll().failed, 1);  // it may be another one
  EXPECT_EQ(remote_->InsideStat("f")->mtime.tv_sec, 1'500'000'001);
}

// What the mount showed of an empty file and of a link is what the sandbox has when another one sent them.
TEST_F(ReplayTest, TimesAreThoseThatTheMountShowed) {
  options_.writeback = true;
  options_.sandbox_id = owner_.sandbox_id;
  options_.store_scope = owner_.scope;
  auto directory = fs().MakeDirectory(kRoot, "d", 0755, Ctx());
  ASSERT_TRUE(directory);
  RemoteFault stall;
  stall.function = "MakeObjects";
  stall.count = -1;
  faulty_->Add(stall);
  EXPECT_EQ(Close(Made("stamp", directory->node).handle), 0);
  ASSERT_TRUE(fs().MakeSymlink(directory->node, "l", "x", Ctx()));
  std::map<std::string, int64_t> shown;
  for (const char* path : {"d/stamp", "d/l"}) {
    const auto mtime = fs().GetAttributes(Find(path), Ctx())->attributes.mtime;
    shown[path] = mtime.tv_sec * 1'000'000'000 + mtime.tv_nsec;
  }
  std::filesystem::create_directories(unsent_);
  std::filesystem::copy(spool_, unsent_ + "/left-behind-1", std::filesystem::copy_options::recursive);
  faulty_->Clear();
  fs_.reset();
  UseRemote({});
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  for (const UnsentEntry& entry : ListUnsent(unsent_)) {
    EXPECT_EQ(OwnerOf(entry).scope, owner_.scope);
    EXPECT_EQ(SendUnsent(*faulty_, entry, true, kReplayTimes).outcome, SendOutcome::kSent) << entry.record->path;
  }
  for (const auto& [path, mtime] : shown) {
    const auto now = remote_->InsideStat(path)->mtime;
    EXPECT_EQ(now.tv_sec * 1'000'000'000 + now.tv_nsec, mtime) << path;
  }
}

TEST_F(ReplayTest, SmallFilesAndLinksAreMadeByAFewQuestions) {
  Leave(NewDirectory("d"));
  for (int i = 0; i < 300; ++i) LeaveFile("d/f" + std::to_string(i), std::string(static_cast<size_t>(i), 'x'));
  for (int i = 0; i < 30; ++i) Leave(NewLink("l" + std::to_string(i), "target"));
  LeaveFile("large", std::string(100'000, 'x'));
  UnsentRecord mode = NewFile("mode", 4);
  mode.change.attributes.permissions = 0400;
  Leave(mode, "mode");
  ExpectAllSent(333);
  EXPECT_EQ(faulty_->calls("MakeObjects"), 1);
  EXPECT_EQ(faulty_->calls("Create"), 1);
  for (int i = 0; i < 300; ++i) ASSERT_EQ(Inside("d/f" + std::to_string(i)), std::string(static_cast<size_t>(i), 'x'));
  EXPECT_EQ(remote_->InsideStat("mode")->permissions, 0400u);
  EXPECT_EQ(remote_->InsideStat("mode")->mtime.tv_sec, 1'600'000'000);
  EXPECT_EQ(remote_->InsideList("").size(), 33u);
}

// Each of a row is its own: what was not made was not begun.
TEST_F(ReplayTest, OfARowWhatIsTakenLiesBeside) {
  for (const char* path : {"a", "b", "c", "gone/d"}) LeaveFile(path, "ours");
  ASSERT_TRUE(remote_->InsideWrite("b", ""));
  ASSERT_TRUE(remote_->InsideWrite("c", "ours"));
  const ReplayReport report = ReplayAll();
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.conflicts, 1);
  EXPECT_EQ(told_["c"].outcome, SendOutcome::kWasThere);
  EXPECT_EQ(Inside("a") + Inside("b") + Inside("c") + Inside(Beside("b")), "oursoursours");
  const auto left = ListUnsent(unsent_);
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].record->path, "gone/d");
  EXPECT_FALSE(left[0].record->being_sent);
}

// All was made, and the answer was lost: none is made twice.
TEST_F(ReplayTest, ARowWhoseAnswerIsLostIsGoneOnWith) {
  for (const char* path : {"a", "b"}) LeaveFile(path, std::string("content of ") + path);
  RemoteFault lost;
  lost.function = "MakeObjects";
  lost.action = RemoteFault::kDoAndFail;
  faulty_->Add(lost);
  ExpectAllSent(2);
  EXPECT_THAT(Tree(), ElementsAre("a 420 content of a 1600000000", "b 420 content of b 1600000000"));
}

// What became of one is not known: it is looked for.
TEST_F(ReplayTest, OfARowWhatIsOpenIsLookedFor) {
  for (const bool with_attributes : {false, true}) {
    class Open : public testing::FaultyRemoteFs {
     public:
      Open(transport::RemoteFs& inner, bool with_attributes) : FaultyRemoteFs(inner), with_attributes_(with_attributes) {}
      Result<transport::MadeObjects> MakeObjects(const std::vector<transport::NewObject>& objects, const OpContext& ctx) override {
        auto row = objects;
        for (transport::NewObject& object : row) object.attributes = {};
        auto made = FaultyRemoteFs::MakeObjects(row, ctx);
        made->objects[0].error = Error{EIO, ErrorKind::kBroken, "open", 0, ""};
        if (!with_attributes_) made->objects[0].attributes.reset();
        return made;
      }

     private:
      const bool with_attributes_;
    };
    UseRemote({});
    faulty_ = std::make_unique<Open>(*remote_, with_attributes);
    UnsentRecord mode = NewFile("a", 4);
    mode.change.attributes.permissions = 0400;
    Leave(mode, "ours");
    LeaveFile("b", "");
    ExpectAllSent(2);
    EXPECT_EQ(Tree()[0], "a 256 ours 1600000000");
    EXPECT_EQ(remote_->InsideList("").size(), 2u);
  }
}

TEST_F(ReplayTest, ANoteThatIsAFifoHoldsNobody) {
  LeaveFile("f", "content");
  const std::string note = unsent_ + "/left-behind-1/unsent-id1.note";
  std::filesystem::remove(note);
  ASSERT_EQ(::mkfifo(note.c_str(), 0600), 0);
  ClearRemoved(unsent_);
  const auto entries = ListUnsent(unsent_);
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_NE(entries[0].problem, "");
  EXPECT_FALSE(entries[0].record);
}

}  // namespace
}  // namespace e2bfs::cache
