// The contract about content and attributes, on every RemoteFs.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include <map>

#include "tests/component/remote_fs_contract/contract_fixture.h"

namespace e2bfs::testing {

using ::testing::ElementsAre;
using transport::AttributeChange;
using transport::FileType;
using transport::StoreRequest;
using transport::TimeChange;

static std::string PatternBytes(size_t length, unsigned seed) {
  std::string bytes(length, '\0');
  for (char& c : bytes) {
    seed = seed * 1103515245U + 12345U;
    c = char(seed >> 16);
  }
  return bytes;
}

TEST_P(RemoteFsContract, SeveralFilesAtOnceAreTheVersionsThatAreKnown) {
  backend_->InsideMakeDirectory("a");
  backend_->InsideMakeDirectory("b");
  std::string large(100'000, 'x');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 7 + i / 256);
  const std::map<std::string, std::string> content = {{"a/one", "1"}, {"a/two", std::string("2\0\n", 3)}, {"b/large", large}, {"b/empty", ""}};
  for (const auto& [path, bytes] : content) backend_->InsideWrite(path, bytes);
  for (const char* path : {"a/changed", "a/replaced", "a/gone", "b/closed"}) backend_->InsideWrite(path, "before");
  backend_->InsideMakeFifo("b/fifo");
  backend_->InsideMakeSymlink("b/link", "large");
  std::vector<transport::KnownFiles> files;
  for (const std::string directory : {"a", "b"}) {
    auto listing = fs().List(At(directory), ctx_);
    ASSERT_TRUE(listing);
    files.push_back({{directory, listing->directory.id}, {}});
    for (const auto& entry : listing->entries) files.back().files.push_back({entry.name, entry.attributes});
    files.back().files.push_back({"missing", listing->entries[0].attributes});
  }
  backend_->InsideWrite("a/changed", "later");
  backend_->InsideReplace("a/replaced", "before");
  ASSERT_TRUE(fs().Unlink(In("a", "gone"), ctx_));
  backend_->InsideSetPermissions("b/closed", 0);
  auto contents = fs().ReadFiles(files, ctx_);
  if (fs().description().tier == "service") {
    EXPECT_EQ(Code(contents), ENOTSUP);
    return;
  }
  ASSERT_TRUE(contents) << ToString(contents.error());
  std::map<std::string, std::string> found;
  for (const auto& each : *contents) {
    const auto& file = files[each.directory].files[each.file];
    found[files[each.directory].directory.path + "/" + file.name] = each.bytes;
    EXPECT_TRUE(IsSameVersion(each.attributes, file.version)) << file.name;
  }
  if (fs().description().uid == 0) found.erase("b/closed");
  EXPECT_EQ(found, content);
  // A directory that was moved is still itself.
  ASSERT_TRUE(fs().Rename(In("", "a"), In("", "moved"), 0, ctx_));
  backend_->InsideMakeDirectory("a");
  backend_->InsideWrite("a/one", "9");
  contents = fs().ReadFiles(files, ctx_);
  ASSERT_TRUE(contents);
  for (const auto& each : *contents) {
    if (files[each.directory].files[each.file].name == "one") {
      EXPECT_EQ(each.bytes, "1");
    }
  }
  backend_->InsideSetPermissions("b/closed", 0644);
}

TEST_P(RemoteFsContract, CreateIsExclusiveAndExact) {
  backend_->InsideWrite("file", "old");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideMakeSymlink("dangling", "nowhere");
  backend_->InsideMakeFifo("fifo");
  for (const char* name : {"file", "dir", "dangling", "fifo"}) {
    EXPECT_EQ(Code(fs().Create(In("", name), {0644, true}, ctx_)), EEXIST) << name;
  }
  EXPECT_FALSE(backend_->InsideExists("nowhere"));
  EXPECT_EQ(Code(fs().Create(In("no/parents", "f"), {0644, true}, ctx_)), ENOENT);
  EXPECT_FALSE(backend_->InsideExists("no"));
  EXPECT_EQ(Code(fs().Create(In("file", "f"), {0644, true}, ctx_)), ENOTDIR);
  for (uint32_t permissions : {0644u, 0600u, 0777u, 0444u, 0000u, 0755u, 04755u}) {
    auto opened = MustCreate("dir", std::to_string(permissions), permissions);
    EXPECT_TRUE(opened.created);
    EXPECT_NE(opened.handle, 0u);
    EXPECT_EQ(opened.attributes.permissions, permissions);
    EXPECT_EQ(opened.attributes.size, 0);
    EXPECT_EQ(MustStat("dir/" + std::to_string(permissions)).permissions, permissions);
    if (traits().changed_is_full) {
      ASSERT_TRUE(opened.parent);
      EXPECT_TRUE(SameTime(opened.parent->mtime, MustStat("dir").mtime));
    }
    fs().Close(opened.handle, ctx_);
  }
  // Without O_EXCL what is there is opened, untouched.
  auto opened = fs().Create(In("", "file"), {0600, false}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  EXPECT_FALSE(opened->created);
  EXPECT_EQ(opened->attributes.size, 3);
  EXPECT_EQ(Content("file"), "old");
  EXPECT_EQ(Code(fs().Create(In("", "dir"), {0600, false}, ctx_)), EISDIR);
  EXPECT_EQ(Code(fs().Create(In("", "dangling"), {0600, false}, ctx_)), ELOOP);
  opened = fs().Create(In("", "fresh"), {0600, false}, ctx_);
  ASSERT_TRUE(opened);
  EXPECT_TRUE(opened->created);
}

TEST_P(RemoteFsContract, ANewObjectAtAnOldPathIsAnother) {
  auto first = MustCreate("", "f");
  ASSERT_TRUE(fs().Unlink(In("", "f"), ctx_));
  auto second = MustCreate("", "f");
  EXPECT_NE(first.attributes.id, second.attributes.id);
  EXPECT_EQ(Code(fs().Stat({"f", first.attributes.id}, ctx_)), ESTALE);
  EXPECT_EQ(Code(fs().Stat({"f", second.attributes.id}, ctx_)), 0);
  StringSource source("x");
  StoreRequest store;
  store.extents = {{0, 1}};
  store.source = &source;
  if (!traits().handles_survive_unlink) {
    EXPECT_EQ(Code(fs().Store(first.handle, {"f", first.attributes.id}, store, ctx_)), ESTALE);
    EXPECT_EQ(Content("f"), "");
  }
}

TEST_P(RemoteFsContract, OnlyRegularFilesAreOpened) {
  backend_->InsideWrite("file", "x");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideMakeSymlink("link", "file");
  backend_->InsideMakeFifo("fifo");
  EXPECT_EQ(Code(fs().Open(At("dir"), {}, ctx_)), EISDIR);
  EXPECT_EQ(Code(fs().Open(At("link"), {}, ctx_)), ELOOP);
  EXPECT_EQ(Code(fs().Open(At("fifo"), {}, ctx_)), ENXIO);
  EXPECT_EQ(Code(fs().Open(At("nothing"), {}, ctx_)), ENOENT);
  auto opened = fs().Open(At("file"), {}, ctx_);
  ASSERT_TRUE(opened);
  EXPECT_EQ(opened->attributes.size, 1);
  EXPECT_FALSE(opened->created);
  fs().Close(opened->handle, ctx_);
  opened = fs().Open(At("file"), {true, true, true}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  EXPECT_EQ(opened->attributes.size, 0);
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "");
}

TEST_P(RemoteFsContract, RangesAreRead) {
  const std::string content = PatternBytes(300'000, 1);
  backend_->InsideWrite("file", content);
  auto opened = fs().Open(At("file"), {}, ctx_);
  ASSERT_TRUE(opened);
  const transport::Node node{"file", opened->attributes.id};
  const transport::Attributes* version = &opened->attributes;
  EXPECT_EQ(ReadAll(opened->handle, node, version, {0, 300'000}).value_or(""), content);
  EXPECT_EQ(ReadAll(opened->handle, node, nullptr, {0, 1 << 30}).value_or(""), content);
  EXPECT_EQ(ReadAll(opened->handle, node, version, {100'001, 5}).value_or(""), content.substr(100'001, 5));
  EXPECT_EQ(ReadAll(opened->handle, node, version, {299'990, 500}).value_or(""), content.substr(299'990));
  EXPECT_EQ(ReadAll(opened->handle, node, version, {300'000, 10}).value_or("none"), "");
  EXPECT_EQ(ReadAll(opened->handle, node, version, {900'000, 10}).value_or("none"), "");
  EXPECT_EQ(ReadAll(opened->handle, node, version, {5, 0}).value_or("none"), "");
  backend_->InsideWrite("empty", "");
  EXPECT_EQ(Content("empty"), "");
  // Another version.
  backend_->InsideWrite("file", content + "!");
  EXPECT_EQ(Code(ReadAll(opened->handle, node, version, {0, 10})), ESTALE);
  EXPECT_EQ(ReadAll(opened->handle, node, nullptr, {300'000, 10}).value_or("none"), "!");
  fs().Close(opened->handle, ctx_);
  EXPECT_EQ(Code(ReadAll(opened->handle, node, nullptr, {0, 10})), EBADF);
}

TEST_P(RemoteFsContract, NoRangeOfAnotherVersionIsReadToItsEnd) {
  if (!traits().handles_survive_unlink) GTEST_SKIP() << "the files API alone tells a version by its size and second, which are the same here";
  constexpr size_t kBytes = 3 << 20;
  backend_->InsideWrite("file", PatternBytes(kBytes, 1));
  auto opened = fs().Open(At("file"), {}, ctx_);
  ASSERT_TRUE(opened);
  const transport::Node node{"file", opened->attributes.id};
  // The same length, and mostly the same second: what the files API tells is the same.
  backend_->InsideWrite("file", PatternBytes(kBytes, 2));
  auto stream = fs().Read(opened->handle, node, &opened->attributes, {0, kBytes}, ctx_);
  std::vector<char> buffer(64 << 10);
  size_t all = 0;
  int code = Code(stream);
  while (code == 0) {
    auto got = (*stream)->Read(buffer.data(), buffer.size(), ctx_);
    code = Code(got);
    ASSERT_TRUE(!got || *got > 0) << "it came to its end";
    if (got) all += *got;
  }
  EXPECT_EQ(code, ESTALE);
  EXPECT_LT(all, kBytes);
  fs().Close(opened->handle, ctx_);
}

TEST_P(RemoteFsContract, StoreWritesWhatItWasGivenAndKeepsTheRest) {
  std::string expected = PatternBytes(200'000, 2);
  backend_->InsideWrite("file", expected);
  backend_->InsideSetPermissions("file", 0640);
  auto before = MustStat("file");
  auto opened = fs().Open(At("file"), {true, true, false}, ctx_);
  ASSERT_TRUE(opened);
  const transport::Node node{"file", opened->attributes.id};
  auto store = [&](StoreRequest request, const std::string& bytes) {
    StringSource source(bytes);
    request.source = &source;
    auto stored = fs().Store(opened->handle, node, request, ctx_);
    ASSERT_TRUE(stored) << ToString(stored.error());
    EXPECT_EQ(stored->size, int64_t(expected.size()));
    EXPECT_EQ(stored->id, before.id);
    EXPECT_EQ(stored->permissions, 0640u);
    EXPECT_EQ(stored->uid, before.uid);
    EXPECT_EQ(backend_->InsideRead("file").value_or("none"), expected);
    EXPECT_TRUE(SameTime(stored->mtime, MustStat("file").mtime));
  };
  // Inside, in three places, one of them a single byte.
  std::string bytes = PatternBytes(500'000, 3);
  for (auto [offset, length] : {std::pair{7, 1}, {65'535, 2}, {150'000, 33'333}}) expected.replace(offset, length, bytes, offset, length);
  StoreRequest request;
  request.extents = {{7, 1}, {65'535, 2}, {150'000, 33'333}};
  store(request, bytes);
  // Across the end and beyond it, which leaves zeros between.
  expected.resize(400'000);
  expected.replace(199'990, 20, bytes, 199'990, 20);
  expected.replace(399'000, 1'000, bytes, 399'000, 1'000);
  request.extents = {{199'990, 20}, {399'000, 1'000}};
  store(request, bytes);
  // Made smaller, larger; cut and written again with a hole; cut and written whole.
  expected.resize(1'000);
  request.extents = {};
  request.size = 1'000;
  store(request, "");
  expected.resize(5'000);
  request.size = 5'000;
  store(request, "");
  expected.resize(100);
  expected.resize(5'000);
  expected.replace(200, 50, bytes, 200, 50);
  request.cut_to = 100;
  request.extents = {{200, 50}};
  store(request, bytes);
  expected = bytes.substr(0, 3'000);
  request.cut_to = 0;
  request.size = 3'000;
  request.extents = {{0, 3'000}};
  store(request, bytes);
  // More than one upload's chunk.
  expected = PatternBytes(3'000'001, 4);
  request.cut_to = 0;
  request.size.reset();
  request.extents = {{0, 3'000'001}};
  store(request, expected);
  // Appends go to the end that is there then.
  backend_->InsideWrite("file", "begin ");
  backend_->InsideSetPermissions("file", 0640);
  expected = "begin appended";
  request = {};
  request.append = transport::Extent{3, 8};
  store(request, "xxxappended");
  // Nothing at all.
  store({}, "");
}

TEST_P(RemoteFsContract, StoreSetsAttributesAfterwards) {
  auto opened = MustCreate("", "file", 0600);
  StringSource source("content");
  StoreRequest request;
  request.extents = {{0, 7}};
  request.source = &source;
  request.fresh = true;
  request.attributes.permissions = 0444;
  request.attributes.mtime = TimeChange{false, {1'234'567'890, 123'456'789}};
  request.attributes.atime = TimeChange{false, {1'000'000'000, 5}};
  auto stored = fs().Store(opened.handle, {"file", opened.attributes.id}, request, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->permissions, 0444u);
  EXPECT_EQ(stored->size, 7);
  EXPECT_EQ(stored->mtime.tv_sec, 1'234'567'890);
  EXPECT_TRUE(SameTime(stored->mtime, MustStat("file").mtime));
  // It was opened for writing: its mode does not matter now, and stays.
  request = {};
  request.extents = {{3, 1}};
  request.source = &source;
  stored = fs().Store(opened.handle, {"file", opened.attributes.id}, request, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->permissions, 0444u);
  EXPECT_TRUE(fs().Sync(opened.handle, {"file", opened.attributes.id}, ctx_));
  fs().Close(opened.handle, ctx_);
  if (fs().description().uid != 0) {
    EXPECT_EQ(Code(fs().Open(At("file"), {true, true, false}, ctx_)), EACCES);
    EXPECT_EQ(Code(fs().Store(0, At("file"), request, ctx_)), EACCES);
  }
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "content");
}

// Writing takes a right that setting times does not.
TEST_P(RemoteFsContract, AFileOfAnotherOwnerIsWrittenOnce) {
  backend_->InsideWrite("file", "old");
  backend_->InsideSetPermissions("file", 0666);
  if (!backend_->InsideGiveAway("file")) GTEST_SKIP() << "no file of another owner can be made here";
  auto opened = fs().Open(At("file"), {true, true, false}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  const transport::Node node{"file", opened->attributes.id};
  StringSource source("old+A");
  StoreRequest request;
  request.append = transport::Extent{3, 2};
  request.source = &source;
  request.attributes.mtime = TimeChange{false, {1'234'567'890, 123'456'789}};
  request.attributes.mtime_is_implied = true;
  auto stored = fs().Store(opened->handle, node, request, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->size, 5);
  EXPECT_NE(stored->mtime.tv_sec, 1'234'567'890);
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "old+A");
  // Asked for in so many words it is an error, which says that the content arrived.
  request.attributes.mtime_is_implied = false;
  stored = fs().Store(opened->handle, node, request, ctx_);
  ASSERT_EQ(Code(stored), EPERM);
  EXPECT_TRUE(stored.error().content_stored);
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "old+A+A");
  request = {};
  request.attributes.permissions = 0600;
  request.size = 2;
  stored = fs().Store(opened->handle, node, request, ctx_);
  ASSERT_EQ(Code(stored), EPERM);
  EXPECT_TRUE(stored.error().content_stored);
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "ol");
  fs().Close(opened->handle, ctx_);
}

// An error of the source is the store's, and nothing changes.
TEST_P(RemoteFsContract, AStoreThatFailsLeavesTheOldContent) {
  backend_->InsideWrite("file", "old content");
  StringSource source("short");
  StoreRequest request;
  request.extents = {{0, 100}};
  request.source = &source;
  request.cut_to = 0;
  EXPECT_EQ(Code(fs().Store(0, At("file"), request, ctx_)), EIO);
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "old content");
  request.extents = {{10, 10}, {5, 2}};
  EXPECT_EQ(Code(fs().Store(0, At("file"), request, ctx_)), EINVAL);
  request.extents = {{0, 1}};
  EXPECT_EQ(Code(fs().Store(0, At("nothing"), request, ctx_)), ENOENT);
  EXPECT_FALSE(backend_->InsideExists("nothing"));
  EXPECT_EQ(backend_->InsideRead("file").value_or("none"), "old content");
}

TEST_P(RemoteFsContract, AttributesAreSet) {
  backend_->InsideWrite("file", "0123456789");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideMakeSymlink("link", "file");
  auto set = [&](const std::string& path, const AttributeChange& change) {
    auto changed = fs().SetAttributes(At(path), 0, change, ctx_);
    if (changed && changed->object && traits().changed_is_full) {
      auto now = MustStat(path);
      EXPECT_EQ(changed->object->permissions, now.permissions);
      EXPECT_EQ(changed->object->size, now.size);
      EXPECT_TRUE(SameTime(changed->object->mtime, now.mtime));
    }
    return Code(changed);
  };
  AttributeChange mode;
  for (uint32_t permissions : {0600u, 04755u, 01777u, 0000u, 0644u}) {
    mode.permissions = permissions;
    EXPECT_EQ(set("file", mode), 0);
    EXPECT_EQ(MustStat("file").permissions, permissions);
    EXPECT_EQ(set("dir", mode), 0);
    EXPECT_EQ(MustStat("dir").permissions, permissions);
  }
  mode.permissions = 0755;
  EXPECT_EQ(set("dir", mode), 0);
  EXPECT_EQ(set("link", mode), EOPNOTSUPP);
  EXPECT_EQ(MustStat("file").permissions, 0644u);
  EXPECT_EQ(set("nothing", mode), ENOENT);

  AttributeChange times;
  times.mtime = TimeChange{false, {1'500'000'000, 987'654'321}};
  EXPECT_EQ(set("file", times), 0);
  EXPECT_EQ(MustStat("file").mtime.tv_sec, 1'500'000'000);
  EXPECT_EQ(MustStat("file").mtime.tv_nsec, 987'654'321);
  EXPECT_EQ(set("link", times), 0);
  EXPECT_EQ(MustStat("link").mtime.tv_sec, 1'500'000'000);
  times.mtime = TimeChange{false, {5, 0}};
  EXPECT_EQ(set("link", times), 0);
  EXPECT_EQ(MustStat("file").mtime.tv_sec, 1'500'000'000);
  times.mtime.reset();
  times.atime = TimeChange{true, {}};
  EXPECT_EQ(set("file", times), 0);
  EXPECT_EQ(MustStat("file").mtime.tv_nsec, 987'654'321);
  times.mtime = TimeChange{true, {}};
  EXPECT_EQ(set("file", times), 0);
  EXPECT_GT(MustStat("file").mtime.tv_sec, 1'500'000'000);

  AttributeChange size;
  size.size = 4;
  EXPECT_EQ(set("file", size), 0);
  EXPECT_EQ(backend_->InsideRead("file").value_or(""), "0123");
  size.size = 6;
  size.permissions = 0600;
  EXPECT_EQ(set("file", size), 0);
  EXPECT_EQ(backend_->InsideRead("file").value_or(""), std::string("0123\0\0", 6));
  EXPECT_EQ(MustStat("file").permissions, 0600u);
  size.permissions.reset();
  EXPECT_EQ(set("dir", size), EISDIR);
  AttributeChange owner;
  owner.uid = fs().description().uid;
  owner.gid = fs().description().gid;
  EXPECT_EQ(set("file", owner), 0);
}

// Two clients' worth of threads on one file system: nothing is lost, and every name is made once.
TEST_P(RemoteFsContract, ManyThreadsAtOnce) {
  constexpr int kThreads = 4, kEach = 5;
  std::atomic<int> created{0}, failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        auto opened = fs().Create(In("", "shared" + std::to_string(i)), {0644, true}, ctx_);
        if (opened) ++created;
        if (!opened && opened.error().errno_value != EEXIST) ++failed;
        std::string own = "own" + std::to_string(t) + std::to_string(i);
        if (!fs().MakeDirectory(In("", own), 0755, ctx_) || !fs().Rename(In("", own), In("", own + "r"), 0, ctx_)) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(created, kEach);
  EXPECT_EQ(NamesIn("").size(), size_t(kThreads * kEach + kEach));
}

static std::vector<ContractParameter> ContractParameters() {
  auto service = [](ServiceBackendOptions options) {
    return [options]() -> std::unique_ptr<ContractBackend> { return std::make_unique<ServiceBackend>(options); };
  };
  std::vector<ContractParameter> parameters = {{"Memory", MakeMemoryBackend}};
  ServiceBackendOptions options;
  parameters.push_back({"ServiceHttp1", service(options)});
  options.tls = true;
  parameters.push_back({"ServiceHttp2", service(options)});
  options.tls = false;
  options.plain_tools = true;
  parameters.push_back({"ServicePlainTools", service(options)});
  options.plain_tools = false;
  options.envd_version = "0.2.11";
  parameters.push_back({"ServiceOldEnvd", service(options)});
  if (const char* url = getenv("E2BFS_TEST_ENVD_URL")) {
    options = {};
    options.external_url = url;
    parameters.push_back({"ServiceExternal", service(options)});
    options.syscall_tier = true;
    parameters.push_back({"SyscallExternal", service(options)});
  }
  options = {};
  options.syscall_tier = true;
  parameters.push_back({"SyscallHttp1", service(options)});
  options.tls = true;
  parameters.push_back({"SyscallHttp2", service(options)});
  return parameters;
}

INSTANTIATE_TEST_SUITE_P(On, RemoteFsContract, ::testing::ValuesIn(ContractParameters()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace e2bfs::testing
