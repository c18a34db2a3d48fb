// What only the service tier promises: few requests, changes done once although answers are lost, nothing believed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/component/remote_fs_contract/backend.h"
#include "transport/service_scripts.h"

namespace e2bfs::testing {

using transport::AttributeChange;
using transport::Extent;
using transport::StoreRequest;

class ServiceTier : public ::testing::Test {
 protected:
  static transport::Node At(const std::string& path) { return {path, {}}; }
  static transport::Name In(const std::string& directory, const std::string& name) { return {{directory, {}}, name}; }
  transport::RemoteFs& fs() { return backend_.fs(); }

  int64_t Requests(const std::function<void()>& action) {
    backend_.sandbox()->server().ResetCounts();
    action();
    return backend_.sandbox()->server().counts().total_requests;
  }

  void AddServiceFault(const std::string& match, const std::string& action, int64_t at_byte, int count = 1) {
    sandbox::Fault fault;
    fault.match = match;
    fault.action = action;
    fault.at_byte = at_byte;
    fault.count = count;
    backend_.sandbox()->server().AddFault(fault);
  }

  OpContext ctx_ = ContractContext();
  ServiceBackend backend_;
};

TEST_F(ServiceTier, RequestsAreFew) {
  backend_.InsideMakeDirectory("dir");
  backend_.InsideWrite("dir/file", "x");
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().Stat(At("dir"), ctx_)); }), 1);
  // Two at once: one round trip.
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().List(At("dir"), ctx_)); }), 2);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().MakeSymlink(In("dir", "link"), "x", ctx_)); }), 1);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().List(At("dir"), ctx_)); }), 3);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().MakeDirectory(In("", "made"), 0755, ctx_)); }), 1);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().RemoveDirectory(In("", "made"), ctx_)); }), 1);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().Unlink(In("dir", "link"), ctx_)); }), 1);
  EXPECT_LE(Requests([&] { EXPECT_TRUE(fs().Rename(In("dir", "file"), In("", "f"), 0, ctx_)); }), 2);
  EXPECT_LE(Requests([&] { EXPECT_TRUE(fs().Rename(In("", "f"), In("dir", "file"), transport::kRenameNoReplace, ctx_)); }), 2);
  AttributeChange change;
  change.permissions = 0600;
  change.mtime = transport::TimeChange{true, {}};
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(fs().SetAttributes(At("dir/file"), 0, change, ctx_)); }), 1);

  StringSource source("new content");
  StoreRequest store;
  store.extents = {{0, 11}};
  store.source = &source;
  store.attributes = change;
  EXPECT_LE(Requests([&] {
              auto opened = fs().Create(In("", "new"), {0644, true}, ctx_);
              ASSERT_TRUE(opened);
              ASSERT_TRUE(fs().Store(opened->handle, {"new", opened->attributes.id}, store, ctx_));
              fs().Close(opened->handle, ctx_);
            }),
            3);
  EXPECT_LE(Requests([&] { ASSERT_TRUE(fs().Store(0, At("dir/file"), store, ctx_)); }), 2);
}

// A directory with so many files.
static std::vector<transport::NewObject> NewFiles(const std::string& directory, size_t count, transport::ContentSource& source, int64_t size) {
  std::vector<transport::NewObject> row(count + 1);
  row[0].name = directory;
  row[0].type = transport::FileType::kDirectory;
  row[0].permissions = 0755;
  for (size_t i = 1; i <= count; ++i) {
    row[i].name = "a file " + std::to_string(i);
    row[i].made_in = 0;
    row[i].permissions = 0644;
    row[i].size = size;
    row[i].source = &source;
  }
  return row;
}

static bool AllMade(const Result<transport::MadeObjects>& made) {
  return made && std::all_of(made->objects.begin(), made->objects.end(), [](const transport::MadeObject& object) { return object.attributes && !object.error; });
}

TEST_F(ServiceTier, ARowOfNewObjectsTakesFewRequests) {
  StringSource source(std::string(1'000, 'c'));
  // The upload, three commands that make, one for the directories, one that removes the staged file.
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(AllMade(fs().MakeObjects(NewFiles("large", 1'000, source, 1'000), ctx_))); }), 6);
  EXPECT_EQ(Requests([&] { EXPECT_TRUE(AllMade(fs().MakeObjects(NewFiles("small", 10, source, 0), ctx_))); }), 2);
  EXPECT_EQ(backend_.InsideRun("ls -- \"$1\" | wc -l", {backend_.home() + "/large"}), "1000\n");
  EXPECT_EQ(backend_.InsideRead("large/a file 1000").value_or(""), std::string(1'000, 'c'));
}

// busybox' stat knows whole seconds: envd is asked for the rest, by a listing of each directory.
TEST_F(ServiceTier, NewObjectsHaveTheirTimesAlthoughStatDoesNotTellThem) {
  namespace fs = std::filesystem;
  ASSERT_EQ(access("/usr/bin/busybox", X_OK), 0) << "test.sh installs it";
  const std::string applets = backend_.home() + "/applets";
  fs::create_directory(applets);
  std::istringstream names(backend_.InsideRun("/usr/bin/busybox --list", {}));
  for (std::string name; std::getline(names, name);) fs::create_symlink("/usr/bin/busybox", applets + "/" + name);
  ServiceBackendOptions options;
  options.command_path = applets;
  ServiceBackend busybox(options);
  StringSource source("content");
  auto row = NewFiles("d", 300, source, 7);
  row.push_back(row.back());
  row.back().name = "top";
  row.back().made_in.reset();
  row[0].attributes.permissions = 0700;
  busybox.sandbox()->server().ResetCounts();
  const auto made = busybox.fs().MakeObjects(row, ctx_);
  EXPECT_EQ(busybox.sandbox()->server().counts().total_requests, 6);
  ASSERT_TRUE(AllMade(made)) << (made ? "" : ToString(made.error()));
  for (const auto& [index, path] : {std::pair<size_t, std::string>{0, "d"}, {300, "d/a file 300"}, {301, "top"}}) {
    const auto now = busybox.fs().Stat(At(path), ctx_);
    ASSERT_TRUE(now);
    const auto& told = *made->objects[index].attributes;
    EXPECT_EQ(told.id, now->id) << path;
    EXPECT_EQ(told.mtime.tv_sec, now->mtime.tv_sec) << path;
    EXPECT_EQ(told.mtime.tv_nsec, now->mtime.tv_nsec) << path;
    EXPECT_EQ(told.permissions, now->permissions) << path;
    EXPECT_EQ(told.size, now->size) << path;
  }
}

TEST_F(ServiceTier, NewObjectsAreMadeOnceAlthoughAnswersAreLost) {
  StringSource source("content");
  AddServiceFault("POST /process.Process/Start", "reset", -2, 2);
  EXPECT_TRUE(AllMade(fs().MakeObjects(NewFiles("d", 500, source, 7), ctx_)));
  AddServiceFault("POST /process.Process/Start", "cut", 30);
  AddServiceFault("POST /files", "reset_request", 300);
  EXPECT_TRUE(AllMade(fs().MakeObjects(NewFiles("e", 100, source, 7), ctx_)));
  EXPECT_EQ(backend_.InsideRead("e/a file 100").value_or(""), "content");
  // Never answered: nobody knows.
  AddServiceFault("POST /process.Process/Start", "reset", -2, -1);
  auto made = fs().MakeObjects(NewFiles("f", 10, source, 7), ctx_);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::kBroken);
  backend_.sandbox()->server().ClearFaults();
}

// Some are known to be made then, and of the others nobody knows.
TEST_F(ServiceTier, WhatWasMadeIsToldAlthoughALaterCommandIsLost) {
  StringSource source("");
  auto row = NewFiles("d", 900, source, 0);
  row.push_back(row[0]);
  row.back().name = "not tried";
  auto ask = [&](int answered) {
    sandbox::Fault fault;
    fault.match = "POST /process.Process/Start";
    fault.action = "reset";
    fault.at_byte = -2;
    fault.skip = answered;
    fault.count = -1;
    backend_.sandbox()->server().AddFault(fault);
    auto made = fs().MakeObjects(row, ctx_);
    backend_.sandbox()->server().ClearFaults();
    return made;
  };
  const auto made = ask(1);
  ASSERT_TRUE(made) << ToString(made.error());
  for (size_t i = 0; i < row.size(); ++i) {
    const transport::MadeObject& object = made->objects[i];
    EXPECT_EQ(object.attributes.has_value(), i < 400) << i;
    ASSERT_EQ(object.error.has_value(), i >= 400) << i;
    if (i >= 400) {
      EXPECT_EQ(object.error->kind, i < 800 ? ErrorKind::kBroken : ErrorKind::kUnavailable) << i;
    }
  }
  EXPECT_TRUE(backend_.InsideExists("d/a file 399"));
  EXPECT_FALSE(backend_.InsideExists("not tried"));
  // Only what directories get at last is lost.
  row[0].name = "e";
  row[0].attributes.permissions = 0700;
  const auto unset = ask(3);
  ASSERT_TRUE(unset) << ToString(unset.error());
  for (size_t i = 0; i < row.size(); ++i) EXPECT_TRUE(unset->objects[i].attributes) << i;
  ASSERT_TRUE(unset->objects[0].error);
  EXPECT_EQ(unset->objects[0].error->kind, ErrorKind::kBroken);
  EXPECT_FALSE(unset->objects[1].error);
  EXPECT_FALSE(unset->objects.back().error);
}

TEST_F(ServiceTier, AShellThatIsKilledMayHaveMadeAll) {
  const std::string tools = backend_.home() + "/tools";
  std::filesystem::create_directory(tools);
  std::filesystem::create_symlink("/bin/sh", tools + "/sh");
  std::ofstream(tools + "/stat") << "#!/bin/sh\ncase $* in *doomed*) kill -9 $PPID; exit 1 ;; esac\nexec /usr/bin/stat \"$@\"\n";
  std::filesystem::permissions(tools + "/stat", std::filesystem::perms(0755));
  ServiceBackendOptions options;
  options.command_path = tools;
  ServiceBackend other(options);
  StringSource source("");
  auto row = NewFiles("d", 1, source, 0);
  row[1].name = "doomed";
  const auto made = other.fs().MakeObjects(row, ctx_);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::kBroken) << ToString(made.error());
  EXPECT_TRUE(other.InsideExists("d/doomed"));
}

// They were made, which is all that their maker has to know.
TEST_F(ServiceTier, NewObjectsThatAreTakenAwayAtOnceWereMade) {
  StringSource source("content");
  auto row = NewFiles("d", 300, source, 7);
  for (transport::NewObject& object : row) object.attributes.mtime = transport::TimeChange{false, {1'000'000'000, 0}};
  row[0].attributes.permissions = 0700;
  const std::string first = backend_.home() + "/d/a file 1";
  std::thread consumer([&] {
    while (access(first.c_str(), F_OK) != 0 || unlink(first.c_str()) != 0) usleep(1'000);
  });
  auto made = fs().MakeObjects(row, ctx_);
  consumer.join();
  ASSERT_TRUE(AllMade(made)) << (made ? ToString(made->objects[1].error.value_or(Error{})) : ToString(made.error()));
  EXPECT_EQ(made->objects[1].attributes->size, 7);
  EXPECT_EQ(made->objects[1].attributes->permissions, 0644u);
  EXPECT_EQ(made->objects[1].attributes->mtime.tv_sec, 1'000'000'000);
  EXPECT_EQ(made->objects[1].attributes->uid, fs().description().uid);
  EXPECT_EQ(fs().Stat(At("d/a file 1"), ctx_).error().errno_value, ENOENT);
  // Another one by that name is another one.
  backend_.InsideWrite("d/a file 1", "another");
  const auto another = fs().Stat(At("d/a file 1"), ctx_);
  ASSERT_TRUE(another);
  EXPECT_NE(another->id, made->objects[1].attributes->id);
  // The whole directory, before it gets its attributes.
  sandbox::Fault slow;
  slow.match = "POST /process.Process/Start";
  slow.action = "delay";
  slow.delay_ms = 1'000;
  slow.skip = 1;
  backend_.sandbox()->server().AddFault(slow);
  row = NewFiles("e", 3, source, 0);
  row[0].attributes.permissions = 0700;
  const std::string last = backend_.home() + "/e/a file 3";
  std::thread remover([&] {
    while (access(last.c_str(), F_OK) != 0) usleep(1'000);
    usleep(200'000);
    std::filesystem::rename(backend_.home() + "/e", backend_.home() + "/elsewhere");
  });
  made = fs().MakeObjects(row, ctx_);
  remover.join();
  ASSERT_TRUE(AllMade(made)) << (made ? ToString(made->objects[0].error.value_or(Error{})) : ToString(made.error()));
  EXPECT_EQ(made->objects[0].attributes->type, transport::FileType::kDirectory);
  EXPECT_EQ(fs().Stat(At("e"), ctx_).error().errno_value, ENOENT);
}

TEST_F(ServiceTier, NoContentAndNoStagingShows) {
  StringSource source("SECRETCONTENT");
  EXPECT_TRUE(AllMade(fs().MakeObjects(NewFiles("d", 3, source, 13), ctx_)));
  ASSERT_TRUE(fs().Rename(In("", "d"), In("", "file"), 0, ctx_));
  backend_.InsideRun("rm -r -- \"$1\"", {backend_.home() + "/file"});
  StoreRequest store;
  store.extents = {{0, 13}};
  store.source = &source;
  auto opened = fs().Create(In("", "file"), {0644, true}, ctx_);
  ASSERT_TRUE(opened);
  ASSERT_TRUE(fs().Store(opened->handle, At("file"), store, ctx_));
  auto listing = fs().List(At(""), ctx_);
  ASSERT_TRUE(listing);
  EXPECT_EQ(listing->entries.size(), 1u);
  std::string staging = backend_.InsideRun("ls -d \"$1\"/.e2bfs-stage-*", {backend_.home()});
  ASSERT_FALSE(staging.empty());
  staging.pop_back();
  EXPECT_EQ(fs().Lookup(In("", staging.substr(staging.rfind('/') + 1)), ctx_).error().errno_value, ENOENT);
  EXPECT_EQ(backend_.InsideRun("stat -c %a \"$1\"; find \"$1\" -name 'd*'", {staging}), "700\n");
  EXPECT_EQ(backend_.sandbox()->log_text().find("SECRETCONTENT"), std::string::npos);
  // A mount's end takes its directory along; reading only, it makes none.
  {
    transport::ServiceFsOptions options;
    options.read_only = true;
    auto reader = backend_.Mount(options);
    ASSERT_TRUE(reader);
    EXPECT_EQ((*reader)->Unlink(In("", "file"), ctx_).error().errno_value, EROFS);
    auto other = backend_.Mount({});
    ASSERT_TRUE(other);
    EXPECT_EQ(backend_.InsideRun("ls -d \"$1\"/.e2bfs-stage-* | wc -l", {backend_.home()}), "2\n");
  }
  EXPECT_EQ(backend_.InsideRun("ls -d \"$1\"/.e2bfs-stage-* | wc -l", {backend_.home()}), "1\n");
}

TEST_F(ServiceTier, ALostAnswerIsAskedForAgainAndNothingIsDoneTwice) {
  const std::string start = "POST /process.Process/Start";
  // Done, and the connection dies before the head: the repeat hears the first one's answer instead of EEXIST or ENOENT.
  AddServiceFault(start, "reset", -2);
  auto made = fs().MakeDirectory(In("", "dir"), 0755, ctx_);
  EXPECT_TRUE(made) << ToString(made.error());
  AddServiceFault(start, "reset", -2);
  auto opened = fs().Create(In("dir", "file"), {0644, true}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  EXPECT_TRUE(opened->created);
  StringSource source("abc");
  StoreRequest store;
  store.append = Extent{0, 3};
  store.source = &source;
  AddServiceFault(start, "reset", -2, 2);
  auto stored = fs().Store(opened->handle, At("dir/file"), store, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->size, 3);
  EXPECT_EQ(backend_.InsideRead("dir/file").value_or("none"), "abc");
  // Torn in the middle of the answer.
  AddServiceFault(start, "cut", 30);
  auto renamed = fs().Rename(In("dir", "file"), In("", "moved"), 0, ctx_);
  EXPECT_TRUE(renamed) << ToString(renamed.error());
  AddServiceFault(start, "reset", -2);
  auto removed = fs().Unlink(In("", "moved"), ctx_);
  EXPECT_TRUE(removed) << ToString(removed.error());
  EXPECT_FALSE(backend_.InsideExists("moved"));
}

// Each name is a file of its own here: who removes one is told of the others, so that nobody takes the file for gone.
TEST_F(ServiceTier, ARemovedNameTellsWhetherTheFileHasOthers) {
  ServiceBackendOptions plain;
  plain.plain_tools = true;  // envd's Move in place of perl's rename
  ServiceBackend other(plain);
  for (ServiceBackend* backend : {&backend_, &other}) {
    SCOPED_TRACE(backend == &other ? "plain tools" : "all tools");
    transport::RemoteFs& fs = backend->fs();
    backend->InsideWrite("a", "1");
    backend->InsideRun("cd -- \"$1\" && ln a b && ln a c && ln a d", {backend->home()});
    auto before = fs.Stat(At("a"), ctx_);
    ASSERT_TRUE(before);
    auto removed = fs.Unlink(In("", "a"), ctx_);
    ASSERT_TRUE(removed) << ToString(removed.error());
    ASSERT_TRUE(removed->object);
    EXPECT_EQ(removed->object->id, before->id);
    EXPECT_EQ(removed->object->link_count, 3u);
    // Two names of one file: both stay.
    before = fs.Stat(At("c"), ctx_);
    ASSERT_TRUE(before);
    auto renamed = fs.Rename(In("", "b"), In("", "c"), 0, ctx_);
    ASSERT_TRUE(renamed) << ToString(renamed.error());
    ASSERT_TRUE(renamed->object && renamed->replaced);
    EXPECT_EQ(renamed->object->id, before->id);
    EXPECT_EQ(renamed->replaced->id, before->id);
    EXPECT_TRUE(backend->InsideExists("b") && backend->InsideExists("c"));
    backend->InsideWrite("new", "2");
    renamed = fs.Rename(In("", "new"), In("", "c"), 0, ctx_);
    ASSERT_TRUE(renamed) << ToString(renamed.error());
    ASSERT_TRUE(renamed->replaced);
    EXPECT_EQ(renamed->replaced->id, before->id);
    EXPECT_EQ(renamed->replaced->link_count, 2u);
    if (renamed->object) {
      EXPECT_NE(renamed->object->id, before->id);
    }
    // The last name, and a directory.
    removed = fs.Unlink(In("", "c"), ctx_);
    ASSERT_TRUE(removed) << ToString(removed.error());
    EXPECT_FALSE(removed->object);
    backend->InsideMakeDirectory("d1");
    backend->InsideMakeDirectory("d2");
    renamed = fs.Rename(In("", "d1"), In("", "d2"), 0, ctx_);
    ASSERT_TRUE(renamed) << ToString(renamed.error());
    EXPECT_FALSE(renamed->replaced);
  }
}

TEST_F(ServiceTier, ATornUploadDestroysNothing) {
  backend_.InsideWrite("file", "the old content");
  std::string bytes(5 << 20, 'n');
  StringSource source(bytes);
  StoreRequest store;
  store.extents = {{0, 5 << 20}};
  store.cut_to = 0;
  store.source = &source;
  AddServiceFault("POST /files", "reset_request", 1 << 20, -1);
  auto stored = fs().Store(0, At("file"), store, ctx_);
  EXPECT_FALSE(stored);
  EXPECT_EQ(backend_.InsideRead("file").value_or("none"), "the old content");
  backend_.sandbox()->server().ClearFaults();
  AddServiceFault("POST /files", "reset_request", 1 << 20);
  stored = fs().Store(0, At("file"), store, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(backend_.InsideRead("file").value_or("none"), bytes);
}

// The server may have answered before the writer says that it is done: all that was declared is there.
TEST_F(ServiceTier, AnUploadAnsweredBeforeItsEndIsWhole) {
  transport::envd::UploadRequest request;
  request.path = backend_.home() + "/file";
  request.length = 5;
  backend_.sandbox()->server().ResetCounts();
  auto upload = backend_.client().OpenUpload(request, ctx_);
  ASSERT_TRUE(upload) << ToString(upload.error());
  ASSERT_TRUE((*upload)->Write("12345", ctx_));
  auto& server = backend_.sandbox()->server();
  TimePoint give_up = Clock::now() + std::chrono::seconds(60);
  while (server.counts().response_body_bytes == 0 && Clock::now() < give_up) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  auto finished = (*upload)->Finish(ctx_);
  EXPECT_TRUE(finished) << ToString(finished.error());
  EXPECT_EQ(backend_.InsideRead("file").value_or("none"), "12345");
}

TEST_F(ServiceTier, RubbishIsAnErrorAndNoCrash) {
  backend_.InsideWrite("file", "x");
  for (const char* body : {"", "{}", "\0\0\0\0", "not json", "{\"entry\":{\"name\":\"..\",\"path\":\"/x\"}}", "[[[[[[[[", "{\"entries\":[{\"name\":\"a/b\"}]}"}) {
    sandbox::Fault fault;
    fault.match = "POST /";
    fault.action = "replace_body";
    fault.body = body;
    fault.count = -1;
    backend_.sandbox()->server().AddFault(fault);
    OpContext soon = OpContext::Within(std::chrono::seconds(60));
    EXPECT_FALSE(fs().Stat(At("file"), soon)) << body;
    auto listing = fs().List(At(""), soon);
    EXPECT_FALSE(listing) << body;
    EXPECT_FALSE(fs().MakeDirectory(In("", "d"), 0755, soon)) << body;
    EXPECT_FALSE(fs().ReadLink(At("file"), soon)) << body;
    backend_.sandbox()->server().ClearFaults();
  }
  EXPECT_TRUE(fs().Stat(At("file"), ctx_));
}

// A sandbox must not take the memory of the machine that mounts it.
TEST_F(ServiceTier, AHugeAnswerIsRefused) {
  backend_.InsideWrite("file", "x");
  sandbox::Fault fault;
  fault.match = "POST /filesystem.Filesystem/ListDir";
  fault.action = "status";
  fault.status = 200;
  fault.body = "{\"entries\":[" + std::string(transport::envd::kMaxListingBytes, ' ') + "]}";
  fault.count = -1;
  backend_.sandbox()->server().AddFault(fault);
  auto listing = fs().List(At(""), ctx_);
  ASSERT_FALSE(listing);
  EXPECT_EQ(listing.error().errno_value, EFBIG) << ToString(listing.error());
  backend_.sandbox()->server().ClearFaults();
  EXPECT_TRUE(fs().List(At(""), ctx_));
  EXPECT_LE(transport::envd::kMaxListingBytes, size_t{64} << 20);
  EXPECT_LE(transport::envd::kMaxListingEntries, 300'000u);
}

// A request could resume a sandbox that was paused, which costs its owner.
TEST_F(ServiceTier, ASandboxThatDoesNotRunIsLeftAlone) {
  auto other = backend_.Mount({});
  ASSERT_TRUE(other);
  sandbox::Fault fault;
  fault.action = "status";
  fault.status = 502;
  fault.body = R"({"sandboxId":"x","message":"The sandbox was not found","code":502})";
  fault.count = -1;
  backend_.sandbox()->server().AddFault(fault);
  auto gone = (*other)->Stat(At(""), ctx_);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().kind, ErrorKind::kNotRunning);
  EXPECT_EQ(Requests([&] { other->reset(); }), 0);
  backend_.sandbox()->server().ClearFaults();
}

// Last-Modified has a grain of a second, and a file that is renamed over another may have any time.
TEST_F(ServiceTier, RangesOfTwoVersionsAreToldApartByNanoseconds) {
  backend_.InsideWrite("file", std::string(100'000, 'a'));
  backend_.InsideRun("touch -d @1700000000.111111111 -- \"$1\"", {backend_.home() + "/file"});
  auto before = fs().Stat(At("file"), ctx_);
  ASSERT_TRUE(before);
  auto begin = fs().Read(0, At("file"), &*before, {0, 50'000}, ctx_);
  ASSERT_TRUE(begin) << ToString(begin.error());
  auto further = fs().Read(0, At("file"), &*before, {50'000, 50'000}, ctx_);
  EXPECT_TRUE(further) << ToString(further.error());
  backend_.InsideWrite("other", std::string(100'000, 'b'));
  backend_.InsideRun("touch -d @1700000000.222222222 -- \"$1\" && mv -f -- \"$1\" \"$2\"", {backend_.home() + "/other", backend_.home() + "/file"});
  further = fs().Read(0, At("file"), &*before, {50'000, 50'000}, ctx_);
  ASSERT_FALSE(further);
  EXPECT_EQ(further.error().errno_value, ESTALE);
}

// A transfer that gets on has no limit on the whole, one whose time is said to be hard has.
TEST_F(ServiceTier, AnUploadTakesAsLongAsItGetsOn) {
  class SlowSource : public transport::ContentSource {
   public:
    Result<void> ReadAt(int64_t, char* buffer, size_t length) override {
      std::fill_n(buffer, length, 's');
      std::this_thread::sleep_for(std::chrono::milliseconds(150));
      return {};
    }
  } source;
  auto opened = fs().Create(In("", "file"), {0644, true}, ctx_);
  ASSERT_TRUE(opened);
  StoreRequest store;
  store.extents = {{0, 5 << 20}};  // twenty parts: three seconds
  store.source = &source;
  OpContext hard = OpContext::Within(std::chrono::milliseconds(1500));
  auto stored = fs().Store(opened->handle, At("file"), store, hard);
  ASSERT_FALSE(stored);
  EXPECT_EQ(stored.error().errno_value, ETIMEDOUT) << ToString(stored.error());
  OpContext renewed = OpContext::Within(std::chrono::milliseconds(1500));
  renewed.renewal = std::chrono::milliseconds(1500);
  stored = fs().Store(opened->handle, At("file"), store, renewed);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->size, 5 << 20);
}

TEST_F(ServiceTier, TheRootIsResolvedAndRefusedClearly) {
  backend_.InsideMakeDirectory("sub");
  backend_.InsideWrite("file", "x");
  backend_.InsideMakeSymlink("link", "sub");
  transport::ServiceFsOptions options;
  options.root = "link";
  auto mounted = backend_.Mount(options);
  ASSERT_TRUE(mounted) << ToString(mounted.error());
  EXPECT_EQ((*mounted)->description().root, backend_.home() + "/sub");
  options.root = "file";
  EXPECT_EQ(backend_.Mount(options).error().errno_value, ENOTDIR);
  options.root = backend_.home() + "/nothing";
  auto missing = backend_.Mount(options);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().errno_value, ENOENT);
  EXPECT_NE(missing.error().message.find(options.root), std::string::npos);
}

TEST_F(ServiceTier, FilesWhoseSizeLiesAreReadToTheirEnd) {
  transport::ServiceFsOptions options;
  options.root = "/proc/sys/kernel";
  options.read_only = true;
  auto proc = backend_.Mount(options);
  ASSERT_TRUE(proc) << ToString(proc.error());
  auto opened = (*proc)->Open(At("ostype"), {}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  EXPECT_TRUE(opened->attributes.size_unreliable);
  std::string all;
  char buffer[100];
  auto stream = (*proc)->Read(opened->handle, At("ostype"), &opened->attributes, {0, 1 << 20}, ctx_);
  ASSERT_TRUE(stream) << ToString(stream.error());
  while (true) {
    auto got = (*stream)->Read(buffer, sizeof buffer, ctx_);
    ASSERT_TRUE(got) << ToString(got.error());
    if (*got == 0) break;
    all.append(buffer, *got);
  }
  EXPECT_EQ(all, "Linux\n");
  stream = (*proc)->Read(opened->handle, At("ostype"), &opened->attributes, {2, 2}, ctx_);
  ASSERT_TRUE(stream);
  auto got = (*stream)->Read(buffer, sizeof buffer, ctx_);
  ASSERT_TRUE(got);
  EXPECT_EQ(std::string(buffer, *got), "nu");
}

}  // namespace e2bfs::testing
