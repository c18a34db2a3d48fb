#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "transport/credentials.h"
#include "transport/environment.h"
#include "transport/platform_messages.h"
#include "transport/sandbox_endpoint.h"

namespace e2bfs::transport {
namespace {

std::string EndpointHeader(const http::Headers& headers, std::string_view name) {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return "(none)";
}

// A home directory of its own, gone at the end.
class LoginFile {
 public:
  LoginFile() {
    char pattern[] = "/tmp/e2bfs-login-XXXXXX";
    home_ = mkdtemp(pattern);
    mkdir((home_ + "/.e2b").c_str(), 0700);
  }
  ~LoginFile() {
    unlink((home_ + "/.e2b/config.json").c_str());
    rmdir((home_ + "/.e2b/config.json").c_str());
    rmdir((home_ + "/.e2b").c_str());
    rmdir(home_.c_str());
  }
  void Write(const std::string& text) const { std::ofstream(home_ + "/.e2b/config.json") << text; }
  Environment Env() const {
    Environment environment;
    environment.home = home_;
    return environment;
  }
  const std::string& home() const { return home_; }

 private:
  std::string home_;
};

TEST(Credentials, EnvironmentComesFirst) {
  LoginFile login;
  login.Write(R"({"version":2,"projectApiKey":"e2b_file"})");
  Environment environment = login.Env();
  EXPECT_EQ(FindApiKey(environment)->Reveal(), "e2b_file");
  environment.api_key = Secret("e2b_0123abcdef");
  EXPECT_EQ(FindApiKey(environment)->Reveal(), "e2b_0123abcdef");
}

TEST(Credentials, LoginFileByVersion) {
  const struct {
    const char* text;
    const char* key;  // null: EACCES
  } cases[] = {
      {R"({"version":2,"projectApiKey":"e2b_two","teamApiKey":"e2b_one"})", "e2b_two"},
      {R"({"version":1,"projectApiKey":"e2b_two","teamApiKey":"e2b_one"})", "e2b_one"},
      {R"({"teamApiKey":"e2b_one"})", "e2b_one"},
      {R"({"version":2,"teamApiKey":"e2b_one"})", nullptr},
      {R"({"version":2,"projectApiKey":7})", nullptr},
      {R"({"version":2,"projectApiKey":"wrong"})", nullptr},
      {"{", nullptr},
      {"", nullptr},
      {"[]", nullptr},
  };
  for (const auto& c : cases) {
    LoginFile login;
    login.Write(c.text);
    const auto key = FindApiKey(login.Env());
    ASSERT_EQ(key.has_value(), c.key != nullptr) << c.text;
    if (key) {
      EXPECT_EQ(key->Reveal(), c.key);
    } else {
      EXPECT_EQ(key.error().kind, ErrorKind::kUnauthorized) << c.text;
      EXPECT_EQ(key.error().message.find("wrong"), std::string::npos) << "the key is not shown";
    }
  }
}

TEST(Credentials, NoLoginIsSaid) {
  LoginFile login;
  const auto key = FindApiKey(login.Env());
  ASSERT_FALSE(key);
  EXPECT_EQ(key.error().errno_value, EACCES);
  EXPECT_NE(key.error().message.find("E2B_API_KEY"), std::string::npos);
  // A directory or a fifo in its place is an error, not a wait.
  ASSERT_EQ(mkfifo((login.home() + "/.e2b/config.json").c_str(), 0600), 0);
  EXPECT_FALSE(FindApiKey(login.Env()));
}

TEST(Credentials, KeyFormat) {
  for (const char* good : {"e2b_0123456789abcdef", "e2b_x", "e2b_a-b_c"}) EXPECT_TRUE(CheckApiKeyFormat(Secret(good), true)) << good;
  for (const char* bad : {"", "e2b_", "sk-123", "e2b_a b", "e2b_a\n", "e2b_\xff", "E2B_1"}) EXPECT_FALSE(CheckApiKeyFormat(Secret(bad), true)) << bad;
  EXPECT_TRUE(CheckApiKeyFormat(Secret("sk-123"), false));
  for (const char* bad : {"", "a b", "a\r\nx: y"}) EXPECT_FALSE(CheckApiKeyFormat(Secret(bad), false)) << bad;
}

TEST(EnvironmentUrls, Parse) {
  const struct {
    const char* url;
    const char* origin;  // null: refused
    const char* path;
  } cases[] = {
      {"https://api.e2b.app", "https://api.e2b.app", ""},
      {"HTTPS://API.e2b.app:443/", "https://api.e2b.app", ""},
      {"http://localhost:3000/base/v1/", "http://localhost:3000", "/base/v1"},
      {"http://[::1]:80", "http://[::1]", ""},
      {"https://[::1]:49983/x", "https://[::1]:49983", "/x"},
      {"ftp://x", nullptr, nullptr},
      {"localhost:3000", nullptr, nullptr},
      {"https://", nullptr, nullptr},
      {"https://user:pass@host", nullptr, nullptr},
      {"https://host?x=1", nullptr, nullptr},
      {"https://host/#f", nullptr, nullptr},
      {"https://host:", nullptr, nullptr},
      {"https://host:0", nullptr, nullptr},
      {"https://host:65536", nullptr, nullptr},
      {"https://host:99999999999999999999", nullptr, nullptr},
      {"https://host:8x", nullptr, nullptr},
      {"https://ho st", nullptr, nullptr},
      {"https://host\r\nx: y", nullptr, nullptr},
      {"https://host/a b", nullptr, nullptr},
      {"https://[::1", nullptr, nullptr},
      {"https://[::1]x", nullptr, nullptr},
      {"https://[g]", nullptr, nullptr},
      {"", nullptr, nullptr},
  };
  for (const auto& c : cases) {
    const auto parsed = ParseUrl(c.url, "E2B_API_URL");
    ASSERT_EQ(parsed.has_value(), c.origin != nullptr) << c.url;
    if (parsed) {
      EXPECT_EQ(parsed->origin, c.origin);
      EXPECT_EQ(parsed->path, c.path);
    } else {
      EXPECT_EQ(parsed.error().errno_value, EINVAL);
      EXPECT_NE(parsed.error().message.find("E2B_API_URL"), std::string::npos);
    }
  }
  for (const char* yes : {"localhost", "a.localhost", "127.0.0.1", "127.1.2.3", "::1"}) EXPECT_TRUE(http::IsLoopbackHost(yes)) << yes;
  for (const char* no : {"", "localhost.evil.com", "127.evil.com", "127.0.0.1.evil.com", "10.0.0.1", "127.0.0", "::2"}) EXPECT_FALSE(http::IsLoopbackHost(no)) << no;
}

TEST(SandboxEndpointRules, Origins) {
  const struct {
    const char* id;
    const char* domain;
    const char* environment_domain;
    const char* sandbox_url;
    bool debug;
    const char* origin;
  } cases[] = {
      {"i1abc", "", "e2b.app", "", false, "https://sandbox.e2b.app"},
      {"i1abc", "e2b.dev", "e2b.app", "", false, "https://sandbox.e2b.dev"},
      {"i1abc", "e2b.pro", "e2b.app", "", false, "https://sandbox.e2b.pro"},
      {"i1abc", "e2b-staging.dev", "e2b.app", "", false, "https://sandbox.e2b-staging.dev"},
      {"i1abc", "", "example.org", "", false, "https://49983-i1abc.example.org"},
      {"i1abc", "evil-e2b.app", "e2b.app", "", false, "https://49983-i1abc.evil-e2b.app"},
      {"debug_sandbox_id", "", "e2b.app", "", true, "http://localhost:49983"},
      {"i1abc", "e2b.app", "e2b.app", "https://edge.example.org:8443/x", false, "https://edge.example.org:8443"},
      {"debug_sandbox_id", "", "e2b.app", "http://127.0.0.1:1234", true, "http://127.0.0.1:1234"},
  };
  for (const auto& c : cases) {
    Environment environment;
    environment.domain = c.environment_domain;
    environment.sandbox_url = c.sandbox_url;
    environment.debug = c.debug;
    const auto endpoint = SandboxEndpoint::Create(c.id, c.domain, environment, {Secret("token"), Secret("traffic")});
    ASSERT_TRUE(endpoint) << ToString(endpoint.error());
    EXPECT_EQ((*endpoint)->origin(), c.origin);
    const auto headers = (*endpoint)->RequestHeaders();
    EXPECT_EQ(EndpointHeader(headers, "e2b-sandbox-id"), c.id);
    EXPECT_EQ(EndpointHeader(headers, "e2b-sandbox-port"), "49983");
    EXPECT_EQ(EndpointHeader(headers, "x-access-token"), "token");
    EXPECT_EQ(EndpointHeader(headers, "e2b-traffic-access-token"), "traffic");
  }
}

TEST(SandboxEndpointRules, Refusals) {
  const Environment environment;
  for (const char* id : {"", "a/b", "a.b", "a b", "a\r\nx", "a@b"}) {
    EXPECT_EQ(SandboxEndpoint::Create(id, "", environment, {}).error().errno_value, EINVAL) << id;
  }
  for (const char* domain : {"evil.com/", "evil.com:1", "a@evil.com", "evil.com?", "e vil"}) {
    EXPECT_FALSE(SandboxEndpoint::Create("i1", domain, environment, {})) << domain;
  }
  Environment clear;
  clear.sandbox_url = "http://sandbox.example.org";
  EXPECT_EQ(SandboxEndpoint::Create("i1", "", clear, {Secret("token"), {}}).error().errno_value, EACCES);
  EXPECT_TRUE(SandboxEndpoint::Create("i1", "", clear, {}));  // nothing to lose
  EXPECT_FALSE(SandboxEndpoint::Create("i1", "", environment, {Secret("a\r\nx: y"), {}}));
  const auto bare = SandboxEndpoint::Create("i1", "", environment, {});
  EXPECT_EQ(EndpointHeader((*bare)->RequestHeaders(), "x-access-token"), "(none)");
}

TEST(SandboxEndpointRules, TokensAreRefreshedOnceForAll) {
  const auto endpoint = *SandboxEndpoint::Create("i1", "", Environment(), {Secret("old"), {}});
  EXPECT_FALSE(*endpoint->RefreshTokens(0, OpContext())) << "nobody to ask";
  int asked = 0;
  endpoint->SetTokenSource([&](const OpContext&) -> Result<SandboxTokens> {
    ++asked;
    return SandboxTokens{Secret("new"), {}};
  });
  EXPECT_TRUE(*endpoint->RefreshTokens(0, OpContext()));
  EXPECT_TRUE(*endpoint->RefreshTokens(0, OpContext())) << "a second one who saw the old token";
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(EndpointHeader(endpoint->RequestHeaders(), "x-access-token"), "new");
  EXPECT_FALSE(*endpoint->RefreshTokens(1, OpContext())) << "refused again at once: no second question";
  EXPECT_EQ(asked, 1);
}

TEST(SandboxEndpointRules, ManyRefusedThreadsAskOnce) {
  const auto endpoint = *SandboxEndpoint::Create("i1", "", Environment(), {Secret("old"), {}});
  std::atomic<int> asked = 0, renewed = 0;
  endpoint->SetTokenSource([&](const OpContext&) -> Result<SandboxTokens> {
    ++asked;
    return SandboxTokens{Secret("new"), {}};
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const auto fresh = endpoint->RefreshTokens(0, OpContext());
      if (fresh && *fresh) ++renewed;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(renewed, 8);
  EXPECT_EQ(endpoint->token_generation(), 1U);
}

TEST(PlatformMessages, Sandboxes) {
  const auto page = DecodeSandboxPage(
      R"([{"sandboxID":"i1","templateID":"base","alias":"a","state":"running","startedAt":"2026-11-21T14:00:00Z","endAt":"2026-11-21T15:00:00Z",)"
      R"("envdVersion":"0.6.13","metadata":{"k":"v"},"clientID":"c"},{"sandboxID":"i2","state":"paused"}])");
  ASSERT_TRUE(page) << ToString(page.error());
  ASSERT_EQ(page->size(), 2U);
  EXPECT_EQ((*page)[0].end_at.tv_sec - (*page)[0].started_at.tv_sec, 3600);
  EXPECT_EQ((*page)[0].metadata.at("k"), "v");
  EXPECT_EQ((*page)[1].state, SandboxState::kPaused);
  const auto detail = DecodeSandboxDetail(R"({"sandboxID":"i1","state":"running","envdAccessToken":"t","domain":null})");
  ASSERT_TRUE(detail);
  EXPECT_EQ(detail->tokens.access.Reveal(), "t");
  EXPECT_EQ(detail->domain, "");
  const auto connection = DecodeSandboxConnection(R"({"sandboxID":"i1","envdVersion":"0.6.13","trafficAccessToken":"x","domain":"e2b.dev"})");
  ASSERT_TRUE(connection);
  EXPECT_EQ(connection->tokens.traffic.Reveal(), "x");
  for (const char* bad : {"", "{}", "[1]", R"([{"sandboxID":"a/b"}])", R"([{"sandboxID":7}])", R"([{}])"}) {
    EXPECT_FALSE(DecodeSandboxPage(bad)) << bad;
    EXPECT_FALSE(DecodeSandboxDetail(bad)) << bad;
  }
  EXPECT_EQ(DecodePlatformMessage(R"({"code":404,"message":"gone"})"), "gone");
  EXPECT_EQ(DecodePlatformMessage("rubbish"), "");
}

}  // namespace
}  // namespace e2bfs::transport
