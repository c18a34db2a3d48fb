// Origins, options, the rate limit, gzip: what needs no connection.
#include <gmock/gmock.h>

#include <cstdlib>

#include "transport/http/client.h"
#include "transport/http/origin.h"
#include "transport/http/rate_limit.h"

namespace e2bfs::transport::http {
namespace {

// Sets variables for one test and puts the old values back.
class ScopedEnvironment {
 public:
  void Set(const std::string& name, const char* value) {
    const char* old = std::getenv(name.c_str());
    saved_.emplace_back(name, old != nullptr ? std::optional<std::string>(old) : std::nullopt);
    if (value != nullptr) {
      setenv(name.c_str(), value, 1);
    } else {
      unsetenv(name.c_str());
    }
  }
  ~ScopedEnvironment() {
    for (auto next = saved_.rbegin(); next != saved_.rend(); ++next) {
      if (next->second) {
        setenv(next->first.c_str(), next->second->c_str(), 1);
      } else {
        unsetenv(next->first.c_str());
      }
    }
  }

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> saved_;
};

TEST(Origin, IsReadAndMadeCanonical) {
  const auto plain = ParseOrigin("https://Sandbox.E2B.app");
  ASSERT_TRUE(plain);
  EXPECT_TRUE(plain->tls);
  EXPECT_EQ(plain->host, "sandbox.e2b.app");
  EXPECT_EQ(plain->port, 443);
  EXPECT_EQ(plain->text, "https://sandbox.e2b.app");
  EXPECT_EQ(plain->authority, "sandbox.e2b.app");
  EXPECT_EQ(ParseOrigin("https://sandbox.e2b.app:443")->text, plain->text);
  EXPECT_EQ(ParseOrigin("http://localhost:49983")->authority, "localhost:49983");
  const auto six = ParseOrigin("http://[::1]:8080");
  ASSERT_TRUE(six);
  EXPECT_EQ(six->host, "::1");
  EXPECT_EQ(six->authority, "[::1]:8080");
}

TEST(Origin, NothingElseIsTaken) {
  for (const char* text : {"", "localhost", "https://", "https://a/", "https://a/b", "https://a?b", "https://user@a", "https://a:",
                           "https://a:0", "https://a:65536", "https://a:1x", "https://a b", "https://[::1", "https://[::1]x",
                           "ftp://a", "https://a\r\nb", "https://[::g]"}) {
    const auto origin = ParseOrigin(text);
    ASSERT_FALSE(origin) << text;
    EXPECT_EQ(origin.error().kind, ErrorKind::kBadRequest) << text;
  }
}

TEST(Origin, ProxyVariablesAreReadAsCurlDoes) {
  ScopedEnvironment environment;
  for (const char* name : {"http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"}) {
    environment.Set(name, nullptr);
  }
  const Origin tls = *ParseOrigin("https://api.e2b.app");
  const Origin clear = *ParseOrigin("http://sandbox.example:49983");
  EXPECT_FALSE(MayUseProxy(tls));
  environment.Set("HTTP_PROXY", "http://proxy:3128");  // could come from a CGI's client
  EXPECT_FALSE(MayUseProxy(clear));
  environment.Set("https_proxy", "http://proxy:3128");
  EXPECT_TRUE(MayUseProxy(tls));
  EXPECT_FALSE(MayUseProxy(clear));
  environment.Set("no_proxy", "localhost, .e2b.app");
  EXPECT_FALSE(MayUseProxy(tls));
  environment.Set("no_proxy", "2b.app,example.com");
  EXPECT_TRUE(MayUseProxy(tls)) << "part of a label is no domain";
  environment.Set("no_proxy", "*");
  EXPECT_FALSE(MayUseProxy(tls));
}

TEST(Origin, LoopbackInClearGoesPastEveryProxy) {
  ScopedEnvironment environment;
  for (const char* name : {"https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"}) environment.Set(name, nullptr);
  for (const char* name : {"http_proxy", "all_proxy", "ALL_PROXY"}) environment.Set(name, "http://proxy:3128");
  for (const char* text : {"http://localhost:49983", "http://a.localhost", "http://127.0.0.1:3000", "http://[::1]:3000"}) {
    EXPECT_FALSE(MayUseProxy(*ParseOrigin(text))) << text;
  }
  // Nothing of what TLS carries is seen by a proxy.
  for (const char* text : {"https://localhost", "http://127.evil.com", "http://10.0.0.1"}) EXPECT_TRUE(MayUseProxy(*ParseOrigin(text))) << text;
}

TEST(Options, ComeFromTheEnvironmentOfTheSdks) {
  ScopedEnvironment environment;
  environment.Set("E2B_MAX_CONNECTIONS", "50");
  environment.Set("E2B_MAX_KEEPALIVE_CONNECTIONS", "0");
  environment.Set("E2B_KEEPALIVE_EXPIRY", "12.5");
  auto options = ClientOptions::FromEnvironment();
  ASSERT_TRUE(options) << ToString(options.error());
  EXPECT_EQ(options->max_connections, 50);
  EXPECT_EQ(options->max_idle_connections, 0);
  EXPECT_EQ(options->idle_expiry, std::chrono::seconds(12));
  for (const char* wrong : {"many", "-1", "0", "1e3", "99999999999999999999", "5 "}) {
    environment.Set("E2B_MAX_CONNECTIONS", wrong);
    options = ClientOptions::FromEnvironment();
    ASSERT_FALSE(options) << wrong;
    EXPECT_EQ(options.error().kind, ErrorKind::kBadRequest);
    EXPECT_THAT(options.error().message, ::testing::HasSubstr("E2B_MAX_CONNECTIONS"));
  }
  environment.Set("E2B_MAX_CONNECTIONS", "");
  EXPECT_EQ(ClientOptions::FromEnvironment()->max_connections, ClientOptions().max_connections);
}

TEST(Options, AuthorityThatCannotBeReadIsRefused) {
  ClientOptions options;
  options.ca_file = "/nowhere/authority.pem";
  const auto client = HttpClient::Create(options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().kind, ErrorKind::kBadRequest);
}

TEST(RateLimit, HoldsInEveryMinute) {
  // Asks as fast as it may for five minutes; no window of 60 s may hold more than the limit.
  RateLimit limit(100);
  TimePoint now = TimePoint(std::chrono::seconds(5000)) + std::chrono::milliseconds(700);
  const TimePoint end = now + std::chrono::minutes(5);
  std::vector<TimePoint> taken;
  while (now < end) {
    if (const auto until = limit.Take(now)) {
      ASSERT_GT(*until, now);
      ASSERT_LE(*until, now + std::chrono::seconds(62));
      now = *until;
      continue;
    }
    taken.push_back(now);
    now += std::chrono::milliseconds(37);
  }
  EXPECT_GE(taken.size(), 400u);
  for (size_t i = 100; i < taken.size(); ++i) EXPECT_GE(taken[i] - taken[i - 100], std::chrono::seconds(60)) << i;
}

TEST(RateLimit, ZeroIsNone) {
  RateLimit limit(0);
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(limit.Take(TimePoint()));
}

// An exchange that gives its bytes in pieces.
class PiecewiseExchange final : public Exchange {
 public:
  PiecewiseExchange(std::string bytes, size_t piece) : bytes_(std::move(bytes)), piece_(piece) {}
  Result<ResponseHead> WaitHead(const OpContext&) override { return ResponseHead{}; }
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext&) override {
    const size_t count = std::min({capacity, piece_, bytes_.size() - position_});
    bytes_.copy(buffer, count, position_);
    position_ += count;
    return count;
  }
  void Listen(std::function<void()>) override {}
  Result<std::optional<size_t>> TryRead(char* buffer, size_t capacity) override { return *Read(buffer, capacity, OpContext{}); }
  Result<void> Write(std::string_view, const OpContext&) override { return {}; }
  Result<void> FinishBody(const OpContext&) override { return {}; }
  void Cancel() override {}

 private:
  const std::string bytes_;
  const size_t piece_;
  size_t position_ = 0;
};

TEST(Gzip, GoesThereAndBackInAnyPieces) {
  std::string text;
  for (int i = 0; i < 50'000; ++i) text += std::to_string(i * 7919);
  for (const std::string& original : {std::string(), std::string("a"), text}) {
    const std::string packed = GzipCompress(original);
    ASSERT_FALSE(packed.empty());
    for (const auto& [piece, capacity] : {std::pair<size_t, size_t>{1, 3}, {1000, 7}, {1 << 20, 1 << 20}}) {
      PiecewiseExchange source(packed, piece);
      GzipReader reader(source);
      std::string result;
      std::string buffer(capacity, '\0');
      while (true) {
        const auto count = reader.Read(buffer.data(), buffer.size(), OpContext{});
        ASSERT_TRUE(count) << ToString(count.error());
        if (*count == 0) break;
        result.append(buffer, 0, *count);
      }
      EXPECT_TRUE(result == original);
    }
  }
}

TEST(Gzip, EveryCutIsNoticed) {
  const std::string packed = GzipCompress("some text that is packed");
  for (size_t length = 0; length < packed.size(); ++length) {
    PiecewiseExchange source(packed.substr(0, length), 5);
    GzipReader reader(source);
    char buffer[100];
    Result<size_t> count;
    do {
      count = reader.Read(buffer, sizeof buffer, OpContext{});
    } while (count && *count > 0);
    ASSERT_FALSE(count) << length;
    EXPECT_EQ(count.error().kind, ErrorKind::kProtocol);
  }
}

}  // namespace
}  // namespace e2bfs::transport::http
