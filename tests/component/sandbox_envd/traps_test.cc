// Tokens, versions, the fence, the log and limits of the test sandbox: what the recorded answers do not ask.
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/component/sandbox_envd/envd_client.h"

namespace e2bfs::sandbox::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kStat[] = "filesystem.Filesystem/Stat";

class SandboxTraps : public SandboxEnvdTest {};

std::string PathJson(const std::string& path) { return "{\"path\":\"" + path + "\"}"; }

bool EventuallyTrue(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

TEST_F(SandboxTraps, DemandsItsTokenEverywhereButForHealth) {
  options_.access_token = "the-token";
  Begin();
  std::ofstream(root_ + "/f") << "content";
  EXPECT_EQ(Get("/health").status, 204);
  EXPECT_EQ(Get("/metrics").status, 401);
  EXPECT_EQ(Rpc(kStat, PathJson("f")).status, 401);
  EXPECT_EQ(Rpc(kStat, PathJson("f"), {"X-Access-Token: the-token"}).status, 200);
  EXPECT_EQ(Get("/files?path=f").status, 401);
  EXPECT_EQ(Get("/files?path=f", {"X-Access-Token: other"}).status, 401);
  EXPECT_EQ(Get("/files?path=f", {"X-Access-Token: the-token"}).body, "content");
  // sha256("f:read::the-token"), base64 without padding: the official SDKs' signature of a URL.
  const std::string wrong = "/files?path=f&signature=v1_AAAA";
  EXPECT_EQ(Get(wrong).status, 401);
}

TEST_F(SandboxTraps, OldVersionsLackWhatCameLater) {
  options_.envd_version = "0.5.6";
  Begin();
  EXPECT_EQ(Post("/files?path=x", "data", {"Content-Type: application/octet-stream"}).status, 500);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/x"));
  EXPECT_EQ(Post("/files/compose", "{}", {"Content-Type: application/json"}).status, 400);
  options_.envd_version = "0.5.7";
  Begin();
  EXPECT_EQ(Post("/files?path=x", "data", {"Content-Type: application/octet-stream"}).status, 200);
  options_.envd_version = "0.3.9";
  Begin();
  EXPECT_EQ(Rpc(kStat, PathJson("x")).status, 401);  // no default user
  EXPECT_EQ(Post("/files/compose", "{}", {"Content-Type: application/json"}).status, 404);
}

TEST_F(SandboxTraps, FencesThePathsOfItsServicesIn) {
  Begin();
  ASSERT_EQ(symlink("/etc", (root_ + "/out").c_str()), 0);
  EXPECT_EQ(Rpc(kStat, PathJson("/etc/passwd")).status, 403);
  EXPECT_EQ(Rpc(kStat, PathJson(root_ + "/out/passwd")).status, 403);
  EXPECT_EQ(Rpc(kStat, PathJson(root_ + "/../x")).status, 403);
  EXPECT_EQ(Rpc(kStat, PathJson(root_ + "/out")).status, 200);  // the link itself
  EXPECT_EQ(Get("/files?path=/etc/passwd").status, 403);
  EXPECT_EQ(Get("/files?path=/proc/self/root/etc/passwd").status, 403);
  EXPECT_EQ(Post("/files?path=out/e2bfs-must-not-be", "x", {"Content-Type: application/octet-stream"}).status,
            403);
  ASSERT_EQ(symlink("/var/tmp/e2bfs-must-not-be", (root_ + "/dangling").c_str()), 0);
  EXPECT_EQ(Post("/files?path=dangling", "x", {"Content-Type: application/octet-stream"}).status, 403);
  EXPECT_EQ(Rpc("filesystem.Filesystem/Remove", PathJson("/etc/hostname")).status, 403);
  EXPECT_EQ(Get("/files?path=/proc/cpuinfo", {"Accept-Encoding: gzip"}).status, 200);
}

TEST_F(SandboxTraps, RemoveTakesWholeTreesAndSucceedsForNothing) {
  Begin();
  std::filesystem::create_directories(root_ + "/d/e");
  std::ofstream(root_ + "/d/e/f") << "x";
  EXPECT_EQ(Rpc("filesystem.Filesystem/Remove", PathJson("d")).status, 200);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/d"));
  EXPECT_EQ(Rpc("filesystem.Filesystem/Remove", PathJson("d")).status, 200);
}

TEST_F(SandboxTraps, LogsUnaryCallsWholeAndStreamedInputNot) {
  Begin();
  EnvdStream process(
      port(), "/process.Process/Start",
      R"({"process":{"cmd":"cat","args":[],"envs":{"SECRET":"in-the-environment"}},"stdin":true})");
  ASSERT_TRUE(process.ReadUntil("\"pid\":"));
  const size_t at = process.received().find("\"pid\":") + 6;
  const std::string pid = std::to_string(atoi(process.received().c_str() + at));
  const std::string selector = "\"process\":{\"pid\":" + pid + "}";
  // "streamed-input" and "unary--input!" in base64.
  const EnvdAnswer streamed = Post("/process.Process/StreamInput",
                                   EnvdEnvelope("{\"start\":{" + selector + "}}") +
                                       EnvdEnvelope(R"({"data":{"input":{"stdin":"c3RyZWFtZWQtaW5wdXQ="}}})"),
                                   {"Content-Type: application/connect+json"});
  EXPECT_EQ(streamed.status, 200);
  ASSERT_TRUE(process.ReadUntil("c3RyZWFtZWQtaW5wdXQ="));  // echoed
  EXPECT_EQ(Rpc("process.Process/SendInput", "{" + selector + R"(,"input":{"stdin":"dW5hcnktLWlucHV0IQ=="}})")
                .status,
            200);
  EXPECT_EQ(Rpc("process.Process/CloseStdin", "{" + selector + "}").status, 200);
  ASSERT_TRUE(process.ReadUntil("\"end\""));
  EXPECT_EQ(Rpc("process.Process/SendInput", "{" + selector + R"(,"input":{"stdin":"eA=="}})").status, 404);
  EXPECT_THAT(sandbox_->log_text(), HasSubstr("dW5hcnktLWlucHV0IQ=="));
  EXPECT_THAT(sandbox_->log_text(), HasSubstr("in-the-environment"));
  EXPECT_THAT(sandbox_->log_text(), Not(HasSubstr("c3RyZWFtZWQtaW5wdXQ=")));
}

TEST_F(SandboxTraps, AnEndedProcessIsRememberedForALateListener) {
  Begin();
  EnvdStream process(port(), "/process.Process/Start", R"({"process":{"cmd":"sh","args":["-c","exit 7"]}})");
  ASSERT_TRUE(process.ReadUntil("\"end\""));
  const int pid = atoi(process.received().c_str() + process.received().find("\"pid\":") + 6);
  EnvdStream late(port(), "/process.Process/Connect", "{\"process\":{\"pid\":" + std::to_string(pid) + "}}");
  EXPECT_TRUE(late.ReadUntil("\"exitCode\":7"));
}

TEST_F(SandboxTraps, TheEndDoesNotWaitForChildrenOfAKilledProcess) {
  Begin();
  EnvdStream process(port(), "/process.Process/Start",
                     R"({"process":{"cmd":"sh","args":["-c","sleep 600 & echo ready; wait"]}})");
  ASSERT_TRUE(process.ReadUntil("\"data\""));
  const int pid = atoi(process.received().c_str() + process.received().find("\"pid\":") + 6);
  const std::string signal =
      "{\"process\":{\"pid\":" + std::to_string(pid) + "},\"signal\":\"SIGNAL_SIGKILL\"}";
  EXPECT_EQ(Rpc("process.Process/SendSignal", signal).status, 200);
  EXPECT_TRUE(process.ReadUntil("signal: killed"));
  kill(-pid, SIGKILL);  // the double gives each command a process group
}

TEST_F(SandboxTraps, AKeepaliveIntervalOfZeroKillsEnvd) {
  Begin();
  EnvdStream process(port(), "/process.Process/Start", R"({"process":{"cmd":"sleep","args":["600"]}})",
                     {"Keepalive-Ping-Interval: 0"});
  EXPECT_FALSE(process.ReadUntil("\"keepalive\""));
  EXPECT_EQ(Get("/health").status, 0);
}

TEST_F(SandboxTraps, KeepalivesComeWithoutEvents) {
  Begin();
  EnvdStream watch(port(), "/filesystem.Filesystem/WatchDir", PathJson(root_),
                   {"Keepalive-Ping-Interval: 1"});
  EXPECT_TRUE(watch.ReadUntil("{\"keepalive\":{}}"));
}

TEST_F(SandboxTraps, RefusesWatchesBeyondTheLimit) {
  options_.max_watches = 1;
  Begin();
  EnvdStream first(port(), "/filesystem.Filesystem/WatchDir", PathJson(root_));
  ASSERT_TRUE(first.ReadUntil("\"start\""));
  EnvdStream second(port(), "/filesystem.Filesystem/WatchDir", PathJson(root_));
  EXPECT_TRUE(second.ReadUntil("too many open files"));
  EXPECT_THAT(Rpc("filesystem.Filesystem/CreateWatcher", PathJson(root_)).body,
              HasSubstr("too many open files"));
}

TEST_F(SandboxTraps, AWatchFollowsNewTreesAndReportsEachPathOnce) {
  Begin();
  EnvdStream watch(port(), "/filesystem.Filesystem/WatchDir",
                   "{\"path\":\"" + root_ + "\",\"recursive\":true}");
  ASSERT_TRUE(watch.ReadUntil("\"start\""));
  for (int i = 0; i < 20; ++i) {
    std::filesystem::create_directories(root_ + "/t" + std::to_string(i) + "/a/b");
    std::ofstream(root_ + "/t" + std::to_string(i) + "/a/b/file" + std::to_string(i)).flush();
  }
  ASSERT_TRUE(watch.ReadUntil("t19/a/b/file19"));
  std::ofstream(root_ + "/last").flush();
  ASSERT_TRUE(watch.ReadUntil("\"last\""));
  for (int i = 0; i < 20; ++i) {
    for (const char* below : {"", "/a", "/a/b", "/a/b/file"}) {
      std::string name = "t" + std::to_string(i) + below;
      if (name.ends_with("file")) {
        name += std::to_string(i);
      }
      const std::string event = "{\"name\":\"" + name + "\",\"type\":\"EVENT_TYPE_CREATE\"}";
      const size_t found = watch.received().find(event);
      EXPECT_NE(found, std::string::npos) << event;
      EXPECT_EQ(watch.received().find(event, found + 1), std::string::npos) << "twice: " << event;
    }
  }
}

TEST_F(SandboxTraps, AWatcherIsAskedForItsEvents) {
  Begin();
  const EnvdAnswer created = Rpc("filesystem.Filesystem/CreateWatcher",
                                 "{\"path\":\"" + root_ + "\",\"recursive\":true,\"includeEntry\":true}");
  ASSERT_EQ(created.status, 200);
  std::filesystem::create_directories(root_ + "/new/below");
  std::string events;
  EXPECT_TRUE(EventuallyTrue([&] {
    events += Rpc("filesystem.Filesystem/GetWatcherEvents", created.body).body;
    return events.find(
               "\"name\":\"new/below\",\"type\":\"EVENT_TYPE_CREATE\",\"entry\":{\"name\":\"below\"") !=
           std::string::npos;
  }));
  EXPECT_EQ(Rpc("filesystem.Filesystem/RemoveWatcher", created.body).status, 200);
  EXPECT_EQ(Rpc("filesystem.Filesystem/GetWatcherEvents", created.body).status, 404);
}

TEST_F(SandboxTraps, LongUnaryAnswersHaveNoLengthAndGzipNeedsTheExactToken) {
  Begin();
  for (int i = 0; i < 50; ++i) {
    std::ofstream(root_ + "/file" + std::to_string(i)).flush();
  }
  const EnvdAnswer plain =
      Rpc("filesystem.Filesystem/ListDir", PathJson(root_), {"Accept-Encoding: gzip;q=1"});
  EXPECT_EQ(plain.headers.count("content-length"), 0U);
  EXPECT_EQ(plain.headers.count("content-encoding"), 0U);
  EXPECT_THAT(plain.body, HasSubstr("\"file49\""));
  const EnvdAnswer zipped =
      Rpc("filesystem.Filesystem/ListDir", PathJson(root_), {"Accept-Encoding: deflate, gzip"});
  EXPECT_EQ(zipped.headers.at("content-encoding"), "gzip");
  EXPECT_LT(zipped.body.size(), plain.body.size() / 3);
}

}  // namespace
}  // namespace e2bfs::sandbox::test
