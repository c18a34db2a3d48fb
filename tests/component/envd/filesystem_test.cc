#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/component/envd/envd_fixture.h"
#include "transport/envd/errors.h"

namespace e2bfs::transport::envd {
namespace {

class EnvdFilesystem : public EnvdProtocolTest {};
INSTANTIATE_TEST_SUITE_P(Both, EnvdFilesystem, testing::Bool(), EnvdProtocolName);

TEST_P(EnvdFilesystem, StatSaysWhatLstatSays) {
  EnvdTestBench bench(GetParam());
  bench.Write("f", "hello");
  chmod(bench.Path("f").c_str(), 04751);
  ASSERT_EQ(symlink("f", bench.Path("link").c_str()), 0);
  ASSERT_EQ(mkdir(bench.Path("d").c_str(), 0700), 0);
  chmod(bench.Path("d").c_str(), 01777);
  struct stat real {};
  ASSERT_EQ(lstat(bench.Path("f").c_str(), &real), 0);

  auto file = bench.client().Stat(bench.Path("f"), Ctx());
  ASSERT_TRUE(file) << ToString(file.error());
  EXPECT_EQ(file->type, FileType::kRegular);
  EXPECT_EQ(file->permissions, 04751U);
  EXPECT_EQ(file->size, 5);
  EXPECT_EQ(file->mtime.tv_sec, real.st_mtim.tv_sec);
  EXPECT_EQ(file->mtime.tv_nsec, real.st_mtim.tv_nsec);

  auto link = bench.client().Stat(bench.Path("link"), Ctx());
  ASSERT_TRUE(link) << ToString(link.error());
  EXPECT_EQ(link->type, FileType::kSymlink);
  EXPECT_EQ(link->resolved_target, bench.Path("f"));

  auto directory = bench.client().Stat(bench.Path("d"), Ctx());
  ASSERT_TRUE(directory);
  EXPECT_EQ(directory->type, FileType::kDirectory);
  EXPECT_EQ(directory->permissions, 01777U);

  EXPECT_EQ(bench.client().Stat(bench.Path("nope"), Ctx()).error().errno_value, ENOENT);
  EXPECT_EQ(bench.client().Stat(bench.Path("f/x"), Ctx()).error().errno_value, ENOTDIR);
  EXPECT_EQ(bench.client().Stat(bench.Path(std::string(300, 'n')), Ctx()).error().errno_value, ENAMETOOLONG);
  EXPECT_EQ(bench.client().Stat(bench.Path("\xff"), Ctx()).error().errno_value, EILSEQ);
  EXPECT_GT(bench.Requests("POST /filesystem.Filesystem/Stat"), 0);
  EXPECT_EQ(bench.server().counts().http2_requests > 0, GetParam());
}

TEST_P(EnvdFilesystem, ListingsOfTrees) {
  EnvdTestBench bench(GetParam());
  std::filesystem::create_directories(bench.Path("t/a/b"));
  bench.Write("t/a/b/deep", "x");
  bench.Write("t/new\nline", "x");
  bench.Write("t/-dash", "x");
  auto flat = bench.client().ListDir(bench.Path("t"), 1, Ctx());
  ASSERT_TRUE(flat) << ToString(flat.error());
  std::vector<std::string> names;
  for (const auto& entry : *flat) names.push_back(entry.relative_path);
  EXPECT_EQ(names, (std::vector<std::string>{"-dash", "a", "new\nline"}));
  auto deep = bench.client().ListDir(bench.Path("t"), 3, Ctx());
  ASSERT_TRUE(deep);
  names.clear();
  for (const auto& entry : *deep) names.push_back(entry.relative_path);
  EXPECT_EQ(names, (std::vector<std::string>{"-dash", "a", "a/b", "a/b/deep", "new\nline"}));

  EXPECT_EQ(bench.client().ListDir(bench.Path("t/-dash"), 1, Ctx()).error().errno_value, ENOTDIR);
  EXPECT_EQ(bench.client().ListDir(bench.Path("nope"), 1, Ctx()).error().errno_value, ENOENT);
  EXPECT_EQ(bench.client().ListDir("relative", 1, Ctx()).error().errno_value, EINVAL);

  // Trap 7: one bad name poisons a listing; the error is to be recognised.
  bench.Write("t/raw\xff", "x");
  auto poisoned = bench.client().ListDir(bench.Path("t"), 1, Ctx());
  ASSERT_FALSE(poisoned);
  EXPECT_EQ(poisoned.error().errno_value, EIO);
  EXPECT_TRUE(IsInvalidUtf8Failure(poisoned.error())) << ToString(poisoned.error());
}

TEST_P(EnvdFilesystem, MakeMoveRemove) {
  EnvdTestBench bench(GetParam());
  auto made = bench.client().MakeDir(bench.Path("x/y"), Ctx());
  ASSERT_TRUE(made) << ToString(made.error());
  EXPECT_EQ(made->type, FileType::kDirectory);
  EXPECT_EQ(bench.client().MakeDir(bench.Path("x/y"), Ctx()).error().errno_value, EEXIST);
  bench.Write("f", "1");
  EXPECT_EQ(bench.client().MakeDir(bench.Path("f"), Ctx()).error().errno_value, EEXIST);
  EXPECT_EQ(bench.client().MakeDir(bench.Path("f/z"), Ctx()).error().errno_value, ENOTDIR);

  auto moved = bench.client().Move(bench.Path("f"), bench.Path("g"), Ctx());
  ASSERT_TRUE(moved) << ToString(moved.error());
  EXPECT_EQ(moved->name, "g");
  EXPECT_EQ(bench.Read("g"), "1");
  EXPECT_EQ(bench.client().Move(bench.Path("nope"), bench.Path("h"), Ctx()).error().errno_value, ENOENT);
  EXPECT_EQ(bench.client().Move(bench.Path("g"), bench.Path("x"), Ctx()).error().errno_value, EEXIST);

  EXPECT_TRUE(bench.client().Remove(bench.Path("x"), Ctx()));
  EXPECT_FALSE(std::filesystem::exists(bench.Path("x")));
  EXPECT_TRUE(bench.client().Remove(bench.Path("nope"), Ctx()));
}

TEST_P(EnvdFilesystem, WatchesBothWays) {
  EnvdTestBench bench(GetParam());
  ASSERT_EQ(mkdir(bench.Path("w").c_str(), 0755), 0);
  WatchRequest request;
  request.path = bench.Path("w");
  request.recursive = true;
  auto stream = bench.client().WatchDir(request, Ctx());
  ASSERT_TRUE(stream) << ToString(stream.error());
  auto watcher = bench.client().CreateWatcher(request, Ctx());
  ASSERT_TRUE(watcher) << ToString(watcher.error());

  bench.Write("w/new", "x");
  auto event = (*stream)->Next(Ctx());
  ASSERT_TRUE(event && *event) << ToString(event ? Error() : event.error());
  EXPECT_EQ((*event)->name, "new");
  EXPECT_EQ((*event)->type, WatchEventType::kCreate);

  // The polling form gives it once. Another thread of the double fills its list: asked until it is there.
  std::vector<WatchEvent> events;
  for (const TimePoint until = Clock::now() + std::chrono::seconds(60); events.empty() && Clock::now() < until;) {
    auto more = bench.client().GetWatcherEvents(*watcher, Ctx());
    ASSERT_TRUE(more) << ToString(more.error());
    events = std::move(*more);
  }
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events[0].name, "new");
  EXPECT_TRUE(bench.client().RemoveWatcher(*watcher, Ctx()));
  EXPECT_FALSE(bench.client().GetWatcherEvents(*watcher, Ctx()));

  request.path = bench.Path("nope");
  EXPECT_EQ(bench.client().WatchDir(request, Ctx()).error().errno_value, ENOENT);
  request.path = bench.Path("w/new");
  EXPECT_FALSE(bench.client().WatchDir(request, Ctx()));
}

TEST_P(EnvdFilesystem, HealthAndMetrics) {
  EnvdTestBench bench(GetParam());
  EXPECT_TRUE(bench.client().Health(Ctx()));
  auto metrics = bench.client().Metrics(Ctx());
  ASSERT_TRUE(metrics) << ToString(metrics.error());
  EXPECT_GT(metrics->disk_total, 0);
  EXPECT_GE(metrics->disk_total, metrics->disk_used);
}

TEST_P(EnvdFilesystem, AnOldEnvdToo) {
  EnvdTestOptions options;
  options.version = "0.2.11";
  EnvdTestBench bench(GetParam(), options);
  auto made = bench.client().MakeDir(bench.Path("d"), Ctx());
  ASSERT_TRUE(made) << ToString(made.error());
  EXPECT_FALSE(made->complete);
  bench.Write("d/f", "x");
  auto listing = bench.client().ListDir(bench.Path("d"), 1, Ctx());
  ASSERT_TRUE(listing) << ToString(listing.error());
  EXPECT_EQ(listing->size(), 1U);
  WatchRequest request;
  request.path = bench.Path("d");
  request.include_entry = true;
  EXPECT_EQ(bench.client().WatchDir(request, Ctx()).error().errno_value, ENOTSUP);
}

// Answers of a hostile server: a clean errno each.
TEST_P(EnvdFilesystem, HostileAnswersAreEio) {
  EnvdTestBench bench(GetParam());
  ASSERT_EQ(mkdir(bench.Path("d").c_str(), 0755), 0);
  const char* const kStatBodies[] = {"", "rubbish", "[]", R"({"entry":{"name":"../x","path":"/x","permissions":"-rw-r--r--"}})"};
  for (const char* body : kStatBodies) {
    sandbox::Fault fault;
    fault.match = "Filesystem/Stat";
    fault.action = "replace_body";
    fault.body = body;
    bench.server().AddFault(fault);
    auto entry = bench.client().Stat(bench.Path("d"), Ctx());
    ASSERT_FALSE(entry) << body;
    EXPECT_EQ(entry.error().errno_value, EIO) << body;
    EXPECT_EQ(entry.error().kind, ErrorKind::kProtocol) << body;
  }
  sandbox::Fault outside;
  outside.match = "Filesystem/ListDir";
  outside.action = "replace_body";
  outside.body = R"({"entries":[{"name":"passwd","path":"/etc/passwd","permissions":"-rw-r--r--"}]})";
  bench.server().AddFault(outside);
  auto listing = bench.client().ListDir(bench.Path("d"), 1, Ctx());
  ASSERT_FALSE(listing);
  EXPECT_EQ(listing.error().kind, ErrorKind::kProtocol);
  // A success of a watch that is no stream.
  sandbox::Fault rubbish;
  rubbish.match = "Filesystem/WatchDir";
  rubbish.action = "replace_body";
  rubbish.body = "{}";
  bench.server().AddFault(rubbish);
  WatchRequest request;
  request.path = bench.Path("d");
  EXPECT_EQ(bench.client().WatchDir(request, Ctx()).error().kind, ErrorKind::kProtocol);
}

}  // namespace
}  // namespace e2bfs::transport::envd
