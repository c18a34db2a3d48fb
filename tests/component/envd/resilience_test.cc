// What the client does when the server says "not now", "who are you", or nothing at all.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/component/envd/envd_fixture.h"
#include "transport/control_plane.h"

namespace e2bfs::transport::envd {
namespace {

class EnvdResilience : public EnvdProtocolTest {
 protected:
  static sandbox::Fault Fault(const std::string& match, const std::string& action, int count = 1) {
    sandbox::Fault fault;
    fault.match = match;
    fault.action = action;
    fault.count = count;
    return fault;
  }
  static sandbox::Fault Status(const std::string& match, int status, const std::string& body, int count = 1) {
    sandbox::Fault fault = Fault(match, "status", count);
    fault.status = status;
    fault.body = body;
    return fault;
  }
};
INSTANTIATE_TEST_SUITE_P(Both, EnvdResilience, testing::Bool(), EnvdProtocolName);

TEST_P(EnvdResilience, WaitsForRateLimitsAndUnavailability) {
  EnvdTestBench bench(GetParam());
  bench.server().AddFault(Status("Filesystem/MakeDir", 429, "", 2));
  auto made = bench.client().MakeDir(bench.Path("d"), Ctx());
  EXPECT_TRUE(made) << ToString(made.error());
  EXPECT_EQ(bench.Requests("POST /filesystem.Filesystem/MakeDir"), 3);
  bench.server().AddFault(Status("Filesystem/Stat", 503, R"({"code":"unavailable","message":"later"})", 2));
  EXPECT_TRUE(bench.client().Stat(bench.Path("d"), Ctx()));
  EXPECT_EQ(bench.Requests("POST /filesystem.Filesystem/Stat"), 3);
}

TEST_P(EnvdResilience, ReadsAreRepeatedAndChangesAreNot) {
  EnvdTestBench bench(GetParam());
  sandbox::Fault after = Fault("Filesystem/Stat", "reset");
  after.at_byte = -2;  // the handler did its work; its answer is lost
  bench.server().AddFault(after);
  auto entry = bench.client().Stat(bench.root(), Ctx());
  EXPECT_TRUE(entry) << ToString(entry.error());
  EXPECT_EQ(bench.Requests("POST /filesystem.Filesystem/Stat"), 2);

  after.match = "Filesystem/MakeDir";
  bench.server().AddFault(after);
  auto made = bench.client().MakeDir(bench.Path("once"), Ctx());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::kBroken) << ToString(made.error());
  EXPECT_EQ(made.error().errno_value, EIO);
  EXPECT_EQ(bench.Requests("POST /filesystem.Filesystem/MakeDir"), 1);
  EXPECT_TRUE(std::filesystem::is_directory(bench.Path("once")));
}

TEST_P(EnvdResilience, ARefusedTokenIsRenewedOnce) {
  EnvdTestOptions options;
  options.access_token = "right";
  options.client_token = "stale";
  EnvdTestBench bench(GetParam(), options);
  auto refused = bench.client().Stat(bench.root(), Ctx());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnauthorized);
  EXPECT_EQ(refused.error().errno_value, EACCES);
  int asked = 0;
  bench.endpoint().SetTokenSource([&](const OpContext&) -> Result<SandboxTokens> {
    ++asked;
    return SandboxTokens{Secret("right"), {}};
  });
  EXPECT_TRUE(bench.client().Stat(bench.root(), Ctx()));
  EXPECT_TRUE(bench.client().WriteFile(bench.Path("f"), "x", Ctx()));
  EXPECT_EQ(asked, 1);
}

TEST_P(EnvdResilience, AGoneSandboxIsTold) {
  EnvdTestOptions options;
  options.edge_routing = true;
  options.sandbox_id = "i1abc";
  EnvdTestBench bench(GetParam(), options);
  ASSERT_TRUE(bench.client().Stat(bench.root(), Ctx()));
  bench.sandbox().SetState("i1abc", "killed");
  auto entry = bench.client().Stat(bench.root(), Ctx());
  ASSERT_FALSE(entry);
  EXPECT_EQ(entry.error().kind, ErrorKind::kNotRunning) << ToString(entry.error());
  EXPECT_EQ(entry.error().errno_value, ENOTCONN);
  EXPECT_EQ(bench.client().Health(Ctx()).error().kind, ErrorKind::kNotRunning);
}

// The answer is lost, and the probe says why: the change is not repeated, but the reason is told.
TEST_P(EnvdResilience, ALostAnswerIsExamined) {
  EnvdTestBench bench(GetParam());
  sandbox::Fault after = Fault("Filesystem/MakeDir", "reset");
  after.at_byte = -2;
  bench.server().AddFault(after);
  bench.server().AddFault(Status("GET /health", 502, R"({"sandboxId":"x","message":"The sandbox was not found","code":502})"));
  auto made = bench.client().MakeDir(bench.Path("d"), Ctx());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::kNotRunning) << ToString(made.error());
  EXPECT_EQ(bench.Requests("GET /health"), 1);
}

TEST_P(EnvdResilience, ARedirectIsNotFollowed) {
  EnvdTestBench bench(GetParam());
  bench.server().AddFault(Status("Filesystem/Stat", 307, ""));
  auto entry = bench.client().Stat(bench.root(), Ctx());
  ASSERT_FALSE(entry);
  EXPECT_EQ(entry.error().kind, ErrorKind::kProtocol);
  EXPECT_EQ(bench.server().counts().total_requests, 1);
}

// --- the control plane

class PlatformBench {
 public:
  explicit PlatformBench(bool http2, std::vector<sandbox::SandboxOptions::Instance> instances) {
    char pattern[] = "/tmp/e2bfs-platform-XXXXXX";
    directory_ = mkdtemp(pattern);
    sandbox::SandboxOptions served;
    served.root = directory_;
    served.api_key = "e2b_right";
    served.access_token = "token";
    served.instances = std::move(instances);
    served.server.tls_listen = "127.0.0.1:0";
    sandbox_ = std::make_unique<sandbox::Sandbox>(served);
    const std::string ca_file = directory_ + "/ca.pem";
    std::ofstream(ca_file) << sandbox_->server().certificate_pem();
    http::ClientOptions http_options;
    http_options.ca_file = ca_file;
    http_ = std::move(*http::HttpClient::Create(http_options));
    url_ = http2 ? sandbox_->tls_base_url() : sandbox_->base_url();
  }
  ~PlatformBench() {
    http_.reset();
    sandbox_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  std::unique_ptr<ControlPlane> Platform(const char* key) {
    Environment environment;
    environment.api_url = url_;
    return std::move(*ControlPlane::Create(*http_, environment, Secret(key)));
  }
  sandbox::Server& server() { return sandbox_->server(); }
  http::HttpClient& http() { return *http_; }

 private:
  std::string directory_, url_;
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  std::unique_ptr<http::HttpClient> http_;
};

std::vector<sandbox::SandboxOptions::Instance> PlatformInstances(int count) {
  std::vector<sandbox::SandboxOptions::Instance> instances;
  for (int i = 0; i < count; ++i) {
    sandbox::SandboxOptions::Instance instance;
    instance.id = "sandbox" + std::to_string(i);
    instance.seconds_left = 3000;
    if (i % 3 == 0) instance.state = "paused";
    instance.metadata["owner"] = i % 2 == 0 ? "even" : "odd";
    instances.push_back(instance);
  }
  return instances;
}

class PlatformTest : public EnvdProtocolTest {};
INSTANTIATE_TEST_SUITE_P(Both, PlatformTest, testing::Bool(), EnvdProtocolName);

TEST_P(PlatformTest, ListsAllPages) {
  PlatformBench bench(GetParam(), PlatformInstances(250));
  auto all = bench.Platform("e2b_right")->List({}, Ctx());
  ASSERT_TRUE(all) << ToString(all.error());
  EXPECT_EQ(all->size(), 250U);
  EXPECT_EQ(bench.server().counts().total_requests, 3);
  ListSandboxes paused;
  paused.running = false;
  all = bench.Platform("e2b_right")->List(paused, Ctx());
  ASSERT_TRUE(all);
  EXPECT_EQ(all->size(), 84U);
  EXPECT_EQ(all->front().state, SandboxState::kPaused);
  ListSandboxes odd;
  odd.metadata["owner"] = "odd";
  EXPECT_EQ(bench.Platform("e2b_right")->List(odd, Ctx())->size(), 125U);
  ListSandboxes few;
  few.max_sandboxes = 10;
  EXPECT_EQ(bench.Platform("e2b_right")->List(few, Ctx()).error().kind, ErrorKind::kProtocol);
}

TEST_P(PlatformTest, ConnectNeverShortensALife) {
  PlatformBench bench(GetParam(), PlatformInstances(2));
  const auto platform = bench.Platform("e2b_right");
  const auto left = [&](const char* id) { return platform->Get(id, Ctx())->end_at.tv_sec - time(nullptr); };
  // Running, nothing wanted: as it was.
  auto connection = platform->Connect("sandbox1", {}, Ctx());
  ASSERT_TRUE(connection) << ToString(connection.error());
  EXPECT_FALSE(connection->resumed);
  EXPECT_EQ(connection->tokens.access.Reveal(), "token");
  EXPECT_EQ(connection->envd_version, "0.6.13");
  EXPECT_GT(left("sandbox1"), 2000);
  EXPECT_LT(left("sandbox1"), 3100);
  // Less than it has: as it was. More: extended.
  ConnectSandbox how;
  how.extend_to_seconds = 60;
  ASSERT_TRUE(platform->Connect("sandbox1", how, Ctx()));
  EXPECT_GT(left("sandbox1"), 2000);
  how.extend_to_seconds = 9000;
  ASSERT_TRUE(platform->Connect("sandbox1", how, Ctx()));
  EXPECT_GT(left("sandbox1"), 8000);
  // Paused: resumed with a life worth having, or left alone.
  how = {};
  how.resume = false;
  auto refused = platform->Connect("sandbox0", how, Ctx());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kNotRunning);
  EXPECT_EQ(platform->Get("sandbox0", Ctx())->state, SandboxState::kPaused);
  connection = platform->Connect("sandbox0", {}, Ctx());
  ASSERT_TRUE(connection);
  EXPECT_TRUE(connection->resumed);
  EXPECT_GT(left("sandbox0"), 100);
  EXPECT_TRUE(platform->SetTimeout("sandbox1", 500, Ctx()));
  EXPECT_LE(left("sandbox1"), 501);
}

TEST_P(PlatformTest, ErrorsAndRefusals) {
  PlatformBench bench(GetParam(), PlatformInstances(2));
  EXPECT_EQ(bench.Platform("e2b_right")->Get("nosuch", Ctx()).error().errno_value, ENOENT);
  const auto wrong = bench.Platform("e2b_wrong")->Get("sandbox1", Ctx());
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().kind, ErrorKind::kUnauthorized);
  EXPECT_EQ(wrong.error().message.find("e2b_wrong"), std::string::npos);
  EXPECT_EQ(bench.Platform("e2b_right")->Get("a/../b", Ctx()).error().errno_value, EINVAL);
  Environment clear;
  clear.api_url = "http://api.example.org";
  EXPECT_EQ(ControlPlane::Create(bench.http(), clear, Secret("e2b_x")).error().errno_value, EACCES);
}

}  // namespace
}  // namespace e2bfs::transport::envd
