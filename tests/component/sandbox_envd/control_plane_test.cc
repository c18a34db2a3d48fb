// The control plane's calls and the edge's routing: what the recorded answers of an envd say nothing about.
#include <gmock/gmock.h>

#include "tests/component/sandbox_envd/envd_client.h"

namespace e2bfs::sandbox::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kKey = {"X-API-KEY: e2b_0123"};

class SandboxControlPlane : public SandboxEnvdTest {
 protected:
  SandboxControlPlane() {
    options_.api_key = "e2b_0123";
    options_.access_token = "secret-token";
    options_.instances = {{"one", "running", "base", {{"team", "a"}}, 300},
                          {"two", "paused", "base", {{"team", "b"}}, 300},
                          {"three", "running", "base", {{"team", "a"}}, 300}};
    Begin();
  }
};

TEST_F(SandboxControlPlane, RefusesAMissingAndAWrongKey) {
  EXPECT_EQ(Get("/v2/sandboxes").status, 401);
  const EnvdAnswer wrong = Get("/sandboxes/one", {"X-API-KEY: e2b_9999"});
  EXPECT_EQ(wrong.status, 401);
  EXPECT_THAT(wrong.body, HasSubstr("\"code\":401"));
}

TEST_F(SandboxControlPlane, ListsByStateAndMetadataInPages) {
  const EnvdAnswer all = Get("/v2/sandboxes?state=running,paused", kKey);
  ASSERT_EQ(all.status, 200);
  EXPECT_THAT(all.body, HasSubstr("\"sandboxID\":\"one\""));
  EXPECT_THAT(all.body, HasSubstr("\"state\":\"paused\""));
  EXPECT_THAT(all.body, Not(HasSubstr("secret-token")));
  EXPECT_EQ(all.headers.count("x-next-token"), 0U);

  const EnvdAnswer first = Get("/v2/sandboxes?limit=2", kKey);
  EXPECT_THAT(first.body, HasSubstr("\"three\""));
  EXPECT_THAT(first.body, Not(HasSubstr("\"two\"")));
  const EnvdAnswer rest = Get("/v2/sandboxes?limit=2&nextToken=" + first.headers.at("x-next-token"), kKey);
  EXPECT_THAT(rest.body, HasSubstr("\"two\""));
  EXPECT_THAT(rest.body, Not(HasSubstr("\"one\"")));
  EXPECT_EQ(rest.headers.count("x-next-token"), 0U);

  const EnvdAnswer team = Get("/v2/sandboxes?metadata=team%3Db", kKey);
  EXPECT_THAT(team.body, HasSubstr("\"two\""));
  EXPECT_THAT(team.body, Not(HasSubstr("\"one\"")));
}

TEST_F(SandboxControlPlane, ConnectResumesAndNeverShortens) {
  const std::string before = Get("/sandboxes/one", kKey).body;
  const EnvdAnswer running = Post("/sandboxes/one/connect", R"({"timeout":1})", kKey);
  EXPECT_EQ(running.status, 200);
  EXPECT_THAT(running.body, HasSubstr("\"envdAccessToken\":\"secret-token\""));
  EXPECT_EQ(Get("/sandboxes/one", kKey).body, before);  // endAt included
  EXPECT_EQ(Post("/sandboxes/two/connect", R"({"timeout":60})", kKey).status, 201);
  EXPECT_THAT(Get("/sandboxes/two", kKey).body, HasSubstr("\"state\":\"running\""));
  EXPECT_EQ(Post("/sandboxes/none/connect", R"({"timeout":60})", kKey).status, 404);
  EXPECT_EQ(Post("/sandboxes/one/connect", "{}", kKey).status, 400);
}

TEST_F(SandboxControlPlane, SetsTheTimeoutOutright) {
  const std::string before = Get("/sandboxes/one", kKey).body;
  EXPECT_EQ(Post("/sandboxes/one/timeout", R"({"timeout":3600})", kKey).status, 204);
  EXPECT_NE(Get("/sandboxes/one", kKey).body, before);
  EXPECT_EQ(Post("/sandboxes/one/timeout", R"({"timeout":99999999})", kKey).status, 400);
}

TEST_F(SandboxControlPlane, AKilledSandboxIsGone) {
  sandbox_->SetState("one", "killed");
  EXPECT_EQ(Get("/sandboxes/one", kKey).status, 404);
  EXPECT_THAT(Get("/v2/sandboxes", kKey).body, Not(HasSubstr("\"one\"")));
}

class SandboxEdge : public SandboxEnvdTest {
 protected:
  SandboxEdge() {
    options_.edge_routing = true;
    options_.instances = {{"alive", "running", "base", {}, 300}, {"asleep", "paused", "base", {}, 300}};
    Begin();
  }
};

TEST_F(SandboxEdge, RoutesByHeadersOnASharedHostAndByTheHostsNameElsewhere) {
  EXPECT_EQ(Get("/health", {"E2b-Sandbox-Id: alive", "E2b-Sandbox-Port: 49983"}).status, 204);
  EXPECT_EQ(
      Get("/health", {"Host: sandbox.e2b.test", "E2b-Sandbox-Id: alive", "E2b-Sandbox-Port: 49983"}).status,
      204);
  EXPECT_EQ(Get("/health", {"Host: 49983-alive.e2b.test"}).status, 204);
  // On a host of its own the headers say nothing.
  EXPECT_EQ(
      Get("/health", {"Host: 49983-asleep.e2b.test", "E2b-Sandbox-Id: alive", "E2b-Sandbox-Port: 49983"})
          .status,
      502);
  EXPECT_EQ(Get("/health", {"E2b-Sandbox-Id: alive"}).status, 400);
  EXPECT_EQ(Get("/health").status, 400);
}

TEST_F(SandboxEdge, Answers502InJsonForWhatDoesNotRun) {
  for (const char* id : {"asleep", "unknown"}) {
    const EnvdAnswer answer =
        Get("/health", {std::string("E2b-Sandbox-Id: ") + id, "E2b-Sandbox-Port: 49983"});
    EXPECT_EQ(answer.status, 502);
    EXPECT_EQ(answer.body, std::string("{\"sandboxId\":\"") + id +
                               "\",\"message\":\"The sandbox was not found\",\"code\":502}");
  }
  const EnvdAnswer page =
      Get("/health", {"E2b-Sandbox-Id: asleep", "E2b-Sandbox-Port: 49983", "User-Agent: Mozilla/5.0"});
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  sandbox_->SetState("asleep", "running");
  EXPECT_EQ(Get("/health", {"E2b-Sandbox-Id: asleep", "E2b-Sandbox-Port: 49983"}).status, 204);
}

}  // namespace
}  // namespace e2bfs::sandbox::test
