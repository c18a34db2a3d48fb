// What was put aside is sent late: onto what it was made to, and never over anything else.
#include "cache/recovery.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <fstream>

#include "cache/unsent_export.h"
#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

using testing::RemoteFault;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr SendTimes kTimes{std::chrono::seconds(20), std::chrono::seconds(20)};

class RecoveryTest : public CacheFixture {
 protected:
  RecoveryTest() {
    unsent_ = spool_ + "-unsent";
    options_.unsent_directory = unsent_ + "/of-this-mount";
    options_.sandbox_id = "sandbox-1";
  }
  ~RecoveryTest() override { std::filesystem::remove_all(unsent_); }

  // What the sandbox has no way to take, with the mount gone afterwards.
  void PutAside() {
    EXPECT_TRUE(fs().SaveUnsent(options_.unsent_directory));
    faulty_->Clear();
    fs_.reset();
  }
  void FailStores() {
    RemoteFault fault;
    fault.function = "Store";
    fault.count = -1;
    faulty_->Add(fault);
  }
  // One write to a file there, put aside.
  void WriteAndPutAside(const std::string& path, int64_t offset, std::string_view bytes, OpenFlags flags = {true, true, false, false}) {
    const FileHandle handle = OpenFor(Find(path), flags);
    Write(handle, offset, bytes);
    FailStores();
    EXPECT_EQ(Close(handle), EIO);
    PutAside();
  }
  UnsentEntry Only() {
    auto entries = ListUnsent(unsent_);
    EXPECT_EQ(entries.size(), 1u);
    return entries.empty() ? UnsentEntry{} : entries[0];
  }
  SendReport Send(const UnsentEntry& entry, bool same_sandbox = true) {
    if (!entry.record) {
      ADD_FAILURE() << entry.problem;
      return {};
    }
    EXPECT_EQ(entry.problem, "");
    return SendUnsent(*faulty_, entry, same_sandbox, kTimes);
  }
  void ExpectSent(const UnsentEntry& entry) {
    const SendReport report = Send(entry);
    EXPECT_EQ(report.outcome, SendOutcome::kSent) << report.text;
  }
  // Sends it and expects a copy; its content.
  std::string ConflictCopy(const std::string& why) {
    const SendReport report = Send(Only());
    EXPECT_EQ(report.outcome, SendOutcome::kConflictCopy) << report.text;
    EXPECT_THAT(report.text, HasSubstr(why));
    EXPECT_THAT(report.path, HasSubstr(".e2bfs-conflict-2"));
    return Inside(report.path);
  }

  std::string unsent_;
};

TEST_F(RecoveryTest, WhatIsPutAsideIsListedUntilItIsRemoved) {
  EXPECT_TRUE(ListUnsent(unsent_).empty());
  ASSERT_TRUE(remote_->InsideWrite("a\n.note", "old"));
  WriteAndPutAside("a\n.note", 1, "new");
  const UnsentEntry entry = Only();
  EXPECT_EQ(entry.record->path, "a\n.note");
  EXPECT_EQ(entry.record->sandbox_id, "sandbox-1");
  EXPECT_EQ(entry.bytes, 3);
  EXPECT_EQ(entry.problem, "");
  EXPECT_GT(entry.since, 1'700'000'000);
  for (const auto& file : std::filesystem::directory_iterator(options_.unsent_directory)) {
    EXPECT_EQ(file.status().permissions() & std::filesystem::perms(0077), std::filesystem::perms::none) << file.path();
  }
  ASSERT_TRUE(RemoveUnsent(entry));
  EXPECT_TRUE(ListUnsent(unsent_).empty());
  EXPECT_FALSE(std::filesystem::exists(options_.unsent_directory));
}

TEST_F(RecoveryTest, WhatCannotBeReadIsListedAndNotSent) {
  ASSERT_TRUE(remote_->InsideWrite("a", "old"));
  WriteAndPutAside("a", 1, "new");
  const UnsentEntry good = Only();
  std::filesystem::resize_file(good.content, 2);
  EXPECT_THAT(Only().problem, HasSubstr("shorter"));
  std::filesystem::resize_file(good.note, 50);
  EXPECT_THAT(Only().problem, HasSubstr("torn"));
  EXPECT_FALSE(Only().record);
  std::filesystem::remove(good.note);
  EXPECT_THAT(Only().problem, HasSubstr("no record"));
  ASSERT_TRUE(WriteUnsentNote(good.note, *good.record));
  std::filesystem::remove(good.content);
  EXPECT_THAT(Only().problem, HasSubstr("missing"));
  for (const char* path : {"../a", "/a", "a/../../b", "", "a//b", "."}) {
    UnsentRecord hostile = *good.record;
    hostile.path = path;
    ASSERT_TRUE(WriteUnsentNote(good.note, hostile));
    EXPECT_THAT(Only().problem, HasSubstr("no path")) << path;
  }
  UnsentRecord moving = *good.record;
  moving.moving = true;
  ASSERT_TRUE(WriteUnsentNote(good.note, moving));
  EXPECT_THAT(Only().problem, HasSubstr("being moved"));
  ASSERT_TRUE(RemoveUnsent(Only()));  // all of it can be dropped
  EXPECT_TRUE(ListUnsent(unsent_).empty());
}

TEST_F(RecoveryTest, AChangeGoesOntoWhatItWasMadeTo) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  EXPECT_EQ(Inside("a"), "0123456789");
  const auto id = remote_->InsideStat("a")->id;
  const UnsentEntry entry = Only();
  ExpectSent(entry);
  EXPECT_EQ(Inside("a"), "012xyz6789");
  EXPECT_EQ(remote_->InsideStat("a")->id, id);
  const auto store = remote_->stores().back();
  EXPECT_THAT(store.extents, ElementsAre(transport::Extent{3, 3}));
  EXPECT_FALSE(store.fresh);
  // A crash before it left the list: it is found there.
  const SendReport again = Send(entry);
  EXPECT_EQ(again.outcome, SendOutcome::kWasThere) << again.text;
  EXPECT_EQ(remote_->InsideList("").size(), 1u);
}

TEST_F(RecoveryTest, TruncationsAndTheirAttributesGoAlong) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  const FileHandle handle = OpenWrite("a");
  EXPECT_EQ(Truncate(Find("a"), handle, 4), 0);
  Write(handle, 6, "zz");
  transport::AttributeChange mode;
  mode.permissions = 0600;
  mode.mtime = transport::TimeChange{false, {1'600'000'000, 5}};
  EXPECT_EQ(Errno(fs().SetAttributes(Find("a"), handle, mode, Ctx())), 0);
  FailStores();
  EXPECT_EQ(Close(handle), EIO);
  PutAside();
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), std::string("0123\0\0zz", 8));
  EXPECT_EQ(remote_->InsideStat("a")->permissions, 0600u);
  EXPECT_EQ(remote_->InsideStat("a")->mtime.tv_sec, 1'600'000'000);
  EXPECT_EQ(remote_->InsideStat("a")->mtime.tv_nsec, 5);
  const SendReport again = Send(Only());
  EXPECT_EQ(again.outcome, SendOutcome::kWasThere) << again.text;
}

TEST_F(RecoveryTest, WhatChangedMeanwhileStaysAndOursLiesBesideIt) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  ASSERT_TRUE(remote_->InsideWrite("a", "abcdefghij"));  // same size, same object
  EXPECT_EQ(ConflictCopy("changed in the sandbox; the copy has nothing but the ranges"), std::string("\0\0\0xyz", 6));
  EXPECT_EQ(Inside("a"), "abcdefghij");
  // The second time it finds the copy.
  EXPECT_EQ(ConflictCopy("changed"), std::string("\0\0\0xyz", 6));
  EXPECT_EQ(remote_->InsideList("").size(), 2u);
  // And if somebody changed that, another one is made.
  ASSERT_TRUE(remote_->InsideWrite(remote_->InsideList("")[1], "edited"));
  EXPECT_EQ(ConflictCopy("changed"), std::string("\0\0\0xyz", 6));
  EXPECT_EQ(remote_->InsideList("").size(), 3u);
  EXPECT_EQ(Inside("a"), "abcdefghij");
}

TEST_F(RecoveryTest, EachOfIdentityTimeAndSizeIsCompared) {
  const auto change = [&](const std::function<void(timespec)>& how) {
    UseRemote({});
    ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
    WriteAndPutAside("a", 3, "xyz");
    how(remote_->InsideStat("a")->mtime);
    const std::string now = Inside("a");
    EXPECT_EQ(Send(Only()).outcome, SendOutcome::kConflictCopy);
    EXPECT_EQ(Inside("a"), now);
    ASSERT_TRUE(RemoveUnsent(Only()));
  };
  change([&](timespec mtime) {  // another object, of the same size and time
    remote_->InsideReplace("a", "abcdefghij");
    remote_->InsideSetTimes("a", mtime);
  });
  change([&](timespec mtime) {  // another size
    remote_->InsideWrite("a", "0123456789+");
    remote_->InsideSetTimes("a", mtime);
  });
  change([&](timespec mtime) {  // a nanosecond later
    mtime.tv_nsec += mtime.tv_nsec == 999'999'999 ? -1 : 1;
    remote_->InsideSetTimes("a", mtime);
  });
}

// What the mount learns of the file meanwhile is not what the change was made to.
TEST_F(RecoveryTest, AChangeThatTheMountSawAfterTheFirstWriteIsOne) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  const FileHandle handle = OpenWrite("a");
  Write(handle, 3, "x");
  ASSERT_TRUE(remote_->InsideWrite("a", "abcdefghij"));
  remote_->InsideTell("a");
  EXPECT_TRUE(fs().GetAttributes(Find("a"), Ctx()));
  Write(handle, 4, "yz");
  FailStores();
  EXPECT_EQ(Close(handle), EIO);
  PutAside();
  EXPECT_EQ(ConflictCopy("changed"), std::string("\0\0\0xyz", 6));
  EXPECT_EQ(Inside("a"), "abcdefghij");
}

// What is written while a store is on its way starts from what that leaves.
TEST_F(RecoveryTest, WhatCameDuringAStoreGoesOntoItsResult) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  const FileHandle handle = OpenWrite("a");
  Write(handle, 0, "first");
  RemoteFault stall;
  stall.function = "Store";
  stall.action = RemoteFault::kStall;
  faulty_->Add(stall);
  std::jthread flush([&] { EXPECT_EQ(Flush(handle), 0); });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  Write(handle, 8, "Z");
  faulty_->Release();
  flush.join();
  FailStores();
  EXPECT_EQ(Close(handle), EIO);
  PutAside();
  EXPECT_EQ(Only().record->change.extents.extents(), (std::vector<transport::Extent>{{8, 1}}));
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), "first567Z9");
}

TEST_F(RecoveryTest, InAnotherSandboxIdentitiesDoNotCount) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  const timespec mtime = remote_->InsideStat("a")->mtime;
  remote_->InsideReplace("a", "0123456789");
  remote_->InsideSetTimes("a", mtime);
  EXPECT_EQ(Send(Only(), false).outcome, SendOutcome::kSent);
  EXPECT_EQ(Inside("a"), "012xyz6789");
}

TEST_F(RecoveryTest, WhatIsGoneIsMadeAgainIfAllOfItIsHere) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  const auto made = Made("a", Find("d"));
  Write(made.handle, 2, "text");
  transport::AttributeChange mode;
  mode.permissions = 0640;
  EXPECT_EQ(Errno(fs().SetAttributes(Find("d/a"), made.handle, mode, Ctx())), 0);
  FailStores();
  EXPECT_EQ(Close(made.handle), EIO);
  PutAside();
  ASSERT_TRUE(remote_->InsideRemove("d"));
  SendReport report = Send(Only());
  EXPECT_EQ(report.outcome, SendOutcome::kFailed);
  EXPECT_THAT(report.text, HasSubstr("directory"));
  EXPECT_FALSE(remote_->InsideExists("d"));
  EXPECT_FALSE(Only().record->make || Only().record->being_sent);  // nothing was made
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  // It is made, and then the connection is lost: the next try knows it for ours.
  faulty_->FailNth("Store", 1, EIO, ErrorKind::kBroken);
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kFailed);
  EXPECT_EQ(Inside("d/a"), "");
  ExpectSent(Only());
  EXPECT_EQ(Inside("d/a"), std::string("\0\0text", 6));
  EXPECT_EQ(remote_->InsideStat("d/a")->permissions, 0640u);
  EXPECT_EQ(remote_->InsideList("d").size(), 1u);
}

TEST_F(RecoveryTest, OfWhatIsGoneARangeIsKeptBesideItsName) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  ASSERT_TRUE(remote_->InsideRemove("a"));
  EXPECT_EQ(ConflictCopy("not there any more; the copy has nothing but the ranges"), std::string("\0\0\0xyz", 6));
  EXPECT_FALSE(remote_->InsideExists("a"));
}

TEST_F(RecoveryTest, AWholeFileThatIsGoneIsMadeAgain) {
  ASSERT_TRUE(remote_->InsideWrite("a", "old content"));
  WriteAndPutAside("a", 0, "new", {true, true, false, true});
  ASSERT_TRUE(remote_->InsideRemove("a"));
  faulty_->FailNth("Create", 1, ENOSPC);
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kFailed);
  EXPECT_EQ(Only().record->base.size, 11);  // as long as nothing was made, it is a change of what was there
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), "new");
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kWasThere);
}

TEST_F(RecoveryTest, AFileOfOursThatIsAnotherOneNowStays) {
  const auto made = Made("a");
  Write(made.handle, 0, "ours");
  FailStores();
  EXPECT_EQ(Close(made.handle), EIO);
  PutAside();
  ASSERT_TRUE(remote_->InsideReplace("a", ""));  // also when it is empty
  EXPECT_EQ(ConflictCopy("another file has its name now"), "ours");
  EXPECT_EQ(Inside("a"), "");
}

TEST_F(RecoveryTest, AFileOfOursThatATornStoreBeganIsFinished) {
  const auto made = Made("a");
  Write(made.handle, 0, "our content");
  FailStores();
  EXPECT_EQ(Close(made.handle), EIO);
  PutAside();
  ASSERT_TRUE(remote_->InsideWrite("a", "our c"));
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), "our content");
  ASSERT_TRUE(remote_->InsideWrite("a", "our x"));
  EXPECT_EQ(ConflictCopy("changed"), "our content");
  EXPECT_EQ(Inside("a"), "our x");
}

// Where identities are made up for each mount: time and size tell, and content of a new file.
TEST_F(RecoveryTest, WithoutIdentitiesThatLast) {
  testing::MemoryRemoteFsOptions paths;
  paths.hard_links_share_identity = paths.identities_survive_renames = paths.handles_survive = false;
  UseRemote(paths);
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  EXPECT_FALSE(Only().record->base.id.known());
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), "012xyz6789");
  ASSERT_TRUE(remote_->InsideWrite("a", "something else"));
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kConflictCopy);
  EXPECT_EQ(Inside("a"), "something else");
}

TEST_F(RecoveryTest, AnAppendIsDoneOnce) {
  ASSERT_TRUE(remote_->InsideWrite("log", "one\n"));
  WriteAndPutAside("log", 0, "two\n", {true, true, true, false});
  ASSERT_TRUE(Only().record->change.append);
  // Done, and the answer lost: the size tells.
  RemoteFault lost;
  lost.function = "Store";
  lost.action = RemoteFault::kDoAndFail;
  faulty_->Add(lost);
  ExpectSent(Only());
  EXPECT_EQ(Inside("log"), "one\ntwo\n");
  // And as if this process had died before it knew.
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kWasThere);
  ASSERT_TRUE(remote_->InsideWrite("log", "one\ntwo\nthree\n"));
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kWasThere);
  EXPECT_EQ(Inside("log"), "one\ntwo\nthree\n");
  // A part of it arrived.
  ASSERT_TRUE(remote_->InsideWrite("log", "one\ntw"));
  ExpectSent(Only());
  EXPECT_EQ(Inside("log"), "one\ntwo\n");
  // Others appended: whether ours is among it cannot be told.
  ASSERT_TRUE(remote_->InsideWrite("log", "one\nTHREE\n"));
  EXPECT_EQ(ConflictCopy("changed"), std::string("\0\0\0\0two\n", 8));
  EXPECT_EQ(Inside("log"), "one\nTHREE\n");
}

TEST_F(RecoveryTest, OfAnAppendThatFailedHalfWayTheRestIsSent) {
  ASSERT_TRUE(remote_->InsideWrite("log", "one\n"));
  WriteAndPutAside("log", 0, "two\n", {true, true, true, false});
  ASSERT_TRUE(remote_->InsideWrite("log", "one\n"));  // by somebody else: another time, the same size
  RemoteFault half;
  half.function = "Store";
  half.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  half.error.appended = 2;
  faulty_->Add(half);
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kFailed);
  ASSERT_TRUE(remote_->InsideWrite("log", "one\ntw"));
  EXPECT_EQ(Only().record->change.append, (transport::Extent{6, 2}));
  ExpectSent(Only());
  EXPECT_EQ(Inside("log"), "one\ntwo\n");
}

TEST_F(RecoveryTest, WhatIsRefusedLiesBesideWithTheRestOfTheFile) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  ASSERT_TRUE(remote_->InsideSetPermissions("a", 0444));
  EXPECT_EQ(ConflictCopy("refused"), "012xyz6789");
  EXPECT_EQ(Inside("a"), "0123456789");
}

TEST_F(RecoveryTest, WhatFailsStaysListedAsItWas) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  for (const char* function : {"Stat", "Store"}) {
    faulty_->FailNth(function, 1, ENOTCONN, ErrorKind::kNotRunning);
    const SendReport report = Send(Only());
    EXPECT_EQ(report.outcome, SendOutcome::kFailed) << function;
    EXPECT_THAT(report.text, HasSubstr("ENOTCONN"));
  }
  EXPECT_EQ(Inside("a"), "0123456789");
  // What could not be compared is not taken for another file.
  ASSERT_TRUE(remote_->InsideWrite("a", "012xyz6789"));
  faulty_->FailNth("Read", 1, EIO, ErrorKind::kBroken);
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kFailed);
  EXPECT_EQ(remote_->InsideList("").size(), 1u);
  EXPECT_EQ(Send(Only()).outcome, SendOutcome::kWasThere);
}

TEST_F(RecoveryTest, AttributesThatAreRefusedAreToldOnce) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  WriteAndPutAside("a", 3, "xyz");
  UnsentEntry entry = Only();
  entry.record->change.attributes.uid = 4711;
  const SendReport report = Send(entry);
  EXPECT_EQ(report.outcome, SendOutcome::kSent);
  EXPECT_THAT(report.text, HasSubstr("attributes were refused"));
  EXPECT_EQ(Inside("a"), "012xyz6789");
}

TEST_F(RecoveryTest, SomethingElseByItsNameStays) {
  ASSERT_TRUE(remote_->InsideWrite("a", "old"));
  WriteAndPutAside("a", 0, "new", {true, true, false, true});
  for (const auto& make : std::vector<std::function<bool()>>{[&] { return remote_->InsideMakeDirectory("a"); },
                                                            [&] { return remote_->InsideWrite("b", "kept") && remote_->InsideMakeSymlink("a", "b"); }}) {
    ASSERT_TRUE(remote_->InsideRemove("a"));
    ASSERT_TRUE(make());
    EXPECT_EQ(ConflictCopy("something else"), "new");
  }
  EXPECT_EQ(Inside("b"), "kept");
}

TEST_F(RecoveryTest, ALongNameIsCutForItsCopy) {
  std::string name;
  while (name.size() + 2 < 255) name += "\xc3\xa9";
  ASSERT_TRUE(remote_->InsideWrite(name, "old"));
  WriteAndPutAside(name, 0, "new", {true, true, false, true});
  ASSERT_TRUE(remote_->InsideWrite(name, "changed"));
  const SendReport report = Send(Only());
  EXPECT_EQ(report.outcome, SendOutcome::kConflictCopy) << report.text;
  EXPECT_EQ(Inside(report.path), "new");
  EXPECT_EQ(report.path.find(".e2bfs") % 2, 0u);  // no half character
}

// --- export

TEST_F(RecoveryTest, ExportKeepsToItsDirectory) {
  ASSERT_TRUE(remote_->InsideMakeDirectory("d"));
  ASSERT_TRUE(remote_->InsideWrite("d/a", "0123456789"));
  WriteAndPutAside("d/a", 3, "xyz");
  const UnsentEntry entry = Only();
  const std::string target = unsent_ + "/../" + std::filesystem::path(unsent_).filename().string() + "-export";
  const auto read = [&](const std::string& path) {
    std::ifstream file(target + "/" + path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  auto exported = UnsentExport::Open(target);
  ASSERT_TRUE(exported);
  EXPECT_EQ((*exported)->Add(entry).value_or("?"), "sandbox-1/home/user/d/a");
  EXPECT_EQ(read("sandbox-1/home/user/d/a"), std::string("\0\0\0xyz\0\0\0\0", 10));
  EXPECT_EQ((*exported)->Add(entry).value_or("?"), "sandbox-1/home/user/d/a.e2bfs-" + entry.id);  // never over a file
  EXPECT_EQ((*exported)->Add(entry).value_or("?"), "sandbox-1/home/user/d/a.e2bfs-" + entry.id + "-2");
  struct stat status {};
  ASSERT_EQ(::stat((target + "/sandbox-1/home/user/d/a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  ASSERT_EQ(::stat((target + "/sandbox-1").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
  UnsentEntry hostile = entry;
  for (const char* root : {"/..", "/home/../../..", "/."}) {
    hostile.record->root = root;
    EXPECT_FALSE((*exported)->Add(hostile)) << root;
  }
  hostile.record->root = "/";
  for (const char* path : {"..", "../../x", "d/../../x"}) {
    hostile.record->path = path;
    EXPECT_FALSE((*exported)->Add(hostile)) << path;
  }
  hostile = entry;
  hostile.record->sandbox_id = "..";
  EXPECT_EQ((*exported)->Add(hostile).value_or("?"), "unknown/home/user/d/a");
  // Links in the directory are not followed, neither on the way nor at its end.
  std::filesystem::remove_all(target + "/sandbox-1");
  std::filesystem::create_directory(unsent_ + "/elsewhere");
  std::filesystem::create_directory_symlink(unsent_ + "/elsewhere", target + "/sandbox-1");
  EXPECT_FALSE((*exported)->Add(entry));
  std::filesystem::remove(target + "/sandbox-1");
  std::filesystem::create_directories(target + "/sandbox-1/home/user/d");
  std::filesystem::create_symlink(unsent_ + "/elsewhere/new", target + "/sandbox-1/home/user/d/a");
  EXPECT_EQ((*exported)->Add(entry).value_or("?"), "sandbox-1/home/user/d/a.e2bfs-" + entry.id);
  EXPECT_TRUE(std::filesystem::is_empty(unsent_ + "/elsewhere"));
  EXPECT_EQ((*exported)->WriteText().value_or("?"), "E2BFS-EXPORT.txt");
  EXPECT_THAT(read("E2BFS-EXPORT.txt"), HasSubstr("file in the sandbox: d/a\nwhat was written:    sandbox-1/home/user/d/a\nits ranges:          3+3"));
  EXPECT_EQ((*exported)->WriteText().value_or("?"), "E2BFS-EXPORT-2.txt");
  // Of what nothing is known, all of the content.
  std::filesystem::remove(entry.note);
  EXPECT_EQ((*exported)->Add(Only()).value_or("?"), "unknown/" + Only().id);
  EXPECT_EQ(read("unknown/" + Only().id), std::string("\0\0\0xyz", 6));
  std::filesystem::remove_all(target);
}


// The part of an append that arrived is known here no longer.
TEST_F(RecoveryTest, TheRestOfAnAppendToANewFileIsNotAllOfIt) {
  const auto made = Made("log", kRoot, {true, true, true, false});
  Write(made.handle, 0, "one\ntwo\n");
  RemoteFault half;
  half.function = "Store";
  half.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  half.error.appended = 4;
  faulty_->Add(half);
  EXPECT_EQ(Close(made.handle), ENOSPC);
  PutAside();
  const UnsentEntry entry = Only();
  ASSERT_TRUE(remote_->InsideRemove("log"));
  EXPECT_NE(Send(entry).outcome, SendOutcome::kSent);
  EXPECT_FALSE(remote_->InsideExists("log"));
}

TEST_F(RecoveryTest, AFileOfOursThatOthersFilledIsNotAllOurs) {
  options_.attribute_ttl = options_.negative_ttl = std::chrono::milliseconds(0);
  const auto made = Made("f");
  EXPECT_EQ(Close(made.handle), 0);
  ASSERT_TRUE(remote_->InsideWrite("f", "0123456789"));
  const FileHandle handle = OpenFor(Find("f"), {true, true, false, false});
  Write(handle, 12, "xy");
  FailStores();
  EXPECT_EQ(Close(handle), EIO);
  EXPECT_FALSE(remote_->stores().empty() ? false : remote_->stores().back().fresh);
  PutAside();
  const UnsentEntry entry = Only();
  EXPECT_FALSE(entry.record->fresh);
  ASSERT_TRUE(remote_->InsideRemove("f"));
  EXPECT_NE(Send(entry).outcome, SendOutcome::kSent);
  EXPECT_FALSE(remote_->InsideExists("f"));
}

// A mount that died while it put something aside: the note is there twice, and the content at either place, or at both.
TEST_F(RecoveryTest, WhatWasBeingPutAsideIsListedOnce) {
  ASSERT_TRUE(remote_->InsideWrite("a", "0123456789"));
  for (const bool moved : {false, true}) {
    for (const bool both : {false, true}) {
      WriteAndPutAside("a", 3, "xyz");
      const UnsentEntry entry = Only();
      const std::string other = unsent_ + "/left-behind";
      std::filesystem::create_directory(other);
      std::filesystem::copy(entry.note, other + "/unsent-x.note");
      std::filesystem::copy(entry.content, other + "/unsent-x");
      if (!both) std::filesystem::remove(moved ? other + "/unsent-x" : entry.content);
      EXPECT_EQ(Only().problem, "");
      ClearRemoved(unsent_);
      EXPECT_EQ(Only().problem, "");
      ASSERT_TRUE(RemoveUnsent(Only()));
      EXPECT_TRUE(ListUnsent(unsent_).empty());
      EXPECT_FALSE(std::filesystem::exists(other));
    }
  }
}

// What another sandbox has says nothing of the one that the change was made to.
TEST_F(RecoveryTest, WhatFailedElsewhereIsSentHereAllTheSame) {
  ASSERT_TRUE(remote_->InsideWrite("a", "old content"));
  WriteAndPutAside("a", 0, "new", {true, true, false, true});
  {
    testing::MemoryRemoteFs other{testing::MemoryRemoteFsOptions{}};
    testing::FaultyRemoteFs faulty(other);
    faulty.FailNth("Store", 1, EIO, ErrorKind::kBroken);
    EXPECT_EQ(SendUnsent(faulty, Only(), false, kTimes).outcome, SendOutcome::kFailed);
  }
  ExpectSent(Only());
  EXPECT_EQ(Inside("a"), "new");
}

TEST_F(RecoveryTest, APartOfAnAppendThatAnotherSandboxTookIsNotMissingHere) {
  ASSERT_TRUE(remote_->InsideWrite("log", "one\n"));
  WriteAndPutAside("log", 0, "two\n", {true, true, true, false});
  RemoteFault half;
  half.function = "Store";
  half.error = Error{ENOSPC, ErrorKind::kErrno, "no space", 0, ""};
  half.error.appended = 2;
  faulty_->Add(half);
  EXPECT_EQ(Send(Only(), false).outcome, SendOutcome::kFailed);
  ExpectSent(Only());
  EXPECT_EQ(Inside("log"), "one\ntwo\n");
}

TEST_F(RecoveryTest, WhatWasRemovedHereIsNotUnsent) {
  const auto made = Made("tmp");
  Write(made.handle, 0, "secret");
  EXPECT_EQ(Errno(fs().Unlink(kRoot, "tmp", Ctx())), 0);
  int notes = 0;
  for (const auto& file : std::filesystem::directory_iterator(spool_)) {
    const std::string name = file.path().string();
    if (!name.ends_with(kUnsentNoteSuffix)) continue;
    const auto note = ReadUnsentNote(name);
    ASSERT_TRUE(note);
    EXPECT_TRUE(note->nothing) << note->path;
    ++notes;
  }
  EXPECT_EQ(notes, 1);
}

}  // namespace
}  // namespace e2bfs::cache
