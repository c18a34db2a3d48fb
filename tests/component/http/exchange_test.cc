// One request at a time: bodies, heads, ends, refusals. By every protocol.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <thread>

#include "tests/component/http/http_fixture.h"

namespace e2bfs::http_test {
namespace {

using transport::http::HttpClient;
using transport::http::Protocol;
using transport::http::Request;

class ExchangeTest : public WireTest {};
INSTANTIATE_TEST_SUITE_P(Wires, ExchangeTest, ::testing::Values(Wire::kHttp1Clear, Wire::kHttp1Tls, Wire::kHttp2), WireName);

class TlsExchangeTest : public ExchangeTest {};
INSTANTIATE_TEST_SUITE_P(Wires, TlsExchangeTest, ::testing::Values(Wire::kHttp1Tls, Wire::kHttp2), WireName);

TEST_P(ExchangeTest, GivesHeadAndBodyAsSent) {
  auto client = MakeClient();
  for (size_t size : {0u, 1u, 100'000u, 5'000'000u}) {
    auto response = client->Fetch(Get("/bytes?n=" + std::to_string(size)), Soon(), 10'000'000);
    ASSERT_TRUE(response) << ToString(response.error());
    EXPECT_EQ(response->head.status, 200);
    EXPECT_EQ(response->head.protocol, http2() ? Protocol::kHttp2 : Protocol::kHttp1);
    EXPECT_EQ(response->head.Find("content-length"), std::to_string(size));
    EXPECT_TRUE(response->body == Pattern(size)) << size;
  }
  EXPECT_EQ(server().counts().connections_opened, 1);
  EXPECT_EQ(client->protocol_of(origin()), http2() ? Protocol::kHttp2 : Protocol::kHttp1);
  EXPECT_EQ(client->statistics().bytes_received, 5'100'001);
}

TEST_P(ExchangeTest, GivesBodiesWithoutALength) {
  auto client = MakeClient();
  auto response = client->Fetch(Get("/stream?n=3000000"), Soon(), 3'000'000);
  ASSERT_TRUE(response) << ToString(response.error());
  EXPECT_EQ(response->body.size(), 3'000'000u);
}

TEST_P(ExchangeTest, SendsWholeBodies) {
  auto client = MakeClient();
  for (size_t size : {0u, 1u, 70'000u, 4'000'000u}) {
    auto response = client->Fetch(Post("/echo", Pattern(size)), Soon(), 10'000'000);
    ASSERT_TRUE(response) << ToString(response.error());
    EXPECT_TRUE(response->body == Pattern(size)) << size;
  }
}

TEST_P(ExchangeTest, SendsHeadersAsGiven) {
  auto client = MakeClient();
  Request request = Get("/headers");
  request.headers = {{"x-plain", "a b\tc"}, {"x-none", ""}, {"e2b-sandbox-id", "one"}};
  auto response = client->Fetch(request, Soon(), 100'000);
  ASSERT_TRUE(response) << ToString(response.error());
  EXPECT_THAT(response->body, ::testing::HasSubstr("x-plain=a b\tc\n"));
  EXPECT_THAT(response->body, ::testing::HasSubstr("x-none=\n"));
  EXPECT_THAT(response->body, ::testing::HasSubstr("user-agent=e2bfs\n"));
  EXPECT_EQ(response->head.Find("x-first"), "one");
  EXPECT_EQ(response->head.Find("x-missing"), "");
}

TEST_P(ExchangeTest, StreamsARequestWithAndWithoutALength) {
  auto client = MakeClient();
  const std::string piece = Pattern(100'000);
  for (bool with_length : {true, false}) {
    Request request = Post("/length", "");
    request.streamed_body = true;
    if (with_length) request.content_length = 30 * 100'000;
    auto exchange = client->Start(request, Soon());
    ASSERT_TRUE(exchange);
    for (int i = 0; i < 30; ++i) {
      const auto written = (*exchange)->Write(piece, Soon());
      ASSERT_TRUE(written) << ToString(written.error());
    }
    ASSERT_TRUE((*exchange)->FinishBody(Soon()));
    const auto head = (*exchange)->WaitHead(Soon());
    ASSERT_TRUE(head) << ToString(head.error());
    EXPECT_EQ(ReadAll(**exchange).value_or("?"), "3000000");
  }
}

TEST_P(ExchangeTest, HoldsAStreamedBodyToItsLength) {
  auto client = MakeClient();
  Request request = Post("/length", "");
  request.streamed_body = true;
  request.content_length = 10;
  auto exchange = client->Start(request, Soon());
  ASSERT_TRUE(exchange);
  ASSERT_TRUE((*exchange)->Write("12345", Soon()));
  EXPECT_EQ((*exchange)->Write("678901", Soon()).error().kind, ErrorKind::kBadRequest);
  EXPECT_EQ((*exchange)->FinishBody(Soon()).error().kind, ErrorKind::kBadRequest);
  EXPECT_FALSE((*exchange)->WaitHead(Soon()));
}

TEST_P(ExchangeTest, TalksBothWaysAtOnce) {
  auto client = MakeClient();
  Request request = Post("/talk", "");
  request.streamed_body = true;
  request.no_head_timeout = true;
  auto exchange = client->Start(request, Soon(ServiceClass::kStream));
  ASSERT_TRUE(exchange);
  char buffer[64];
  for (std::string word : {"one", "two", "three"}) {
    ASSERT_TRUE((*exchange)->Write(word, Soon()));
    ASSERT_TRUE((*exchange)->WaitHead(Soon()));
    const auto count = (*exchange)->Read(buffer, sizeof buffer, Soon());
    ASSERT_TRUE(count) << ToString(count.error());
    EXPECT_EQ(std::string(buffer, *count), word);
  }
  ASSERT_TRUE((*exchange)->FinishBody(Soon()));
  EXPECT_EQ((*exchange)->Read(buffer, sizeof buffer, Soon()).value_or(99), 0u);
}

TEST_P(ExchangeTest, AnswerBeforeTheRequestWasReadIsGiven) {
  auto client = MakeClient();
  Request request = Post("/ignore", "");
  request.streamed_body = true;
  auto exchange = client->Start(request, Soon());
  ASSERT_TRUE(exchange);
  const std::string piece = Pattern(100'000);
  Result<void> written;
  for (int i = 0; i < 1000 && written; ++i) written = (*exchange)->Write(piece, Soon());
  ASSERT_FALSE(written) << "100 MB went into a server that reads nothing";
  EXPECT_EQ(written.error().kind, ErrorKind::kBroken);
  const auto head = (*exchange)->WaitHead(Soon());
  ASSERT_TRUE(head) << ToString(head.error());
  EXPECT_EQ(head->status, 413);
}

TEST_P(ExchangeTest, HeadsWithoutBodies) {
  auto client = MakeClient();
  Request request = Get("/bytes?n=1000");
  request.method = "HEAD";
  auto response = client->Fetch(request, Soon(), 0);
  ASSERT_TRUE(response) << ToString(response.error());
  EXPECT_EQ(response->head.Find("content-length"), "1000");
  response = client->Fetch(Get("/empty"), Soon(), 0);
  ASSERT_TRUE(response) << ToString(response.error());
  EXPECT_EQ(response->head.status, 204);
}

TEST_P(ExchangeTest, EndlessAnswerEndsAtTheLimit) {
  auto client = MakeClient();
  EXPECT_TRUE(client->Fetch(Get("/stream?n=100000"), Soon(), 100'000));
  const auto response = client->Fetch(Get("/stream?n=100001"), Soon(), 100'000);
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().kind, ErrorKind::kProtocol);
  EXPECT_EQ(response.error().errno_value, EFBIG);
}

TEST_P(ExchangeTest, OversizedHeadIsRefused) {
  auto client = MakeClient();
  EXPECT_TRUE(client->Fetch(Get("/big-head?n=100"), Soon(), 0));
  const auto response = client->Fetch(Get("/big-head?n=1000"), Soon(), 0);
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().kind, ErrorKind::kProtocol) << ToString(response.error());
}

TEST_P(ExchangeTest, InflatesAndChecksGzip) {
  auto client = MakeClient();
  for (size_t size : {0u, 1u, 2'000'000u}) {
    auto response = client->Fetch(Get("/gzip?n=" + std::to_string(size)), Soon(), 2'000'000);
    ASSERT_TRUE(response) << ToString(response.error());
    EXPECT_TRUE(response->body == Pattern(size)) << size;
  }
  EXPECT_EQ(client->Fetch(Get("/gzip?n=2000000"), Soon(), 1'999'999).error().errno_value, EFBIG);
  for (const char* broken : {"/gzip-torn?n=100000", "/gzip-trailer?n=100000", "/gzip-more?n=100000"}) {
    const auto response = client->Fetch(Get(broken), Soon(), 2'000'000);
    ASSERT_FALSE(response) << broken;
    EXPECT_EQ(response.error().kind, ErrorKind::kProtocol) << broken;
  }
}

TEST_P(ExchangeTest, CancelEndsAWaitAndTheServersWork) {
  auto client = MakeClient();
  auto exchange = client->Start(Get("/hold"), Soon());
  ASSERT_TRUE(exchange);
  ASSERT_TRUE(Eventually([&] { return server().counts().requests_now == 1; }));
  std::thread canceller([&] { (*exchange)->Cancel(); });
  const auto head = (*exchange)->WaitHead(Soon());
  canceller.join();
  ASSERT_FALSE(head);
  EXPECT_EQ(head.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(head.error().errno_value, EINTR);
  EXPECT_TRUE(Eventually([&] { return server().counts().requests_now == 0; }));
  EXPECT_TRUE(client->Fetch(Get("/bytes?n=10"), Soon(), 100));
}

TEST_P(ExchangeTest, StopTokenAndDestructionGiveUp) {
  auto client = MakeClient();
  std::stop_source stop;
  OpContext ctx = Soon();
  ctx.stop = stop.get_token();
  {
    auto exchange = client->Start(Get("/silent"), ctx);
    ASSERT_TRUE(exchange);
    ASSERT_TRUE((*exchange)->WaitHead(ctx));
    char buffer[64];
    EXPECT_EQ((*exchange)->Read(buffer, sizeof buffer, ctx).value_or(0), 5u);
    std::thread stopper([&] { stop.request_stop(); });
    const auto count = (*exchange)->Read(buffer, sizeof buffer, ctx);
    stopper.join();
    ASSERT_FALSE(count);
    EXPECT_EQ(count.error().kind, ErrorKind::kCancelled);
    auto dropped = client->Start(Get("/silent"), Soon());
    ASSERT_TRUE(dropped && (*dropped)->WaitHead(Soon()));
  }
  EXPECT_TRUE(Eventually([&] { return server().counts().requests_now == 0; }));
  EXPECT_EQ(client->Start(Get("/bytes"), ctx).error().kind, ErrorKind::kCancelled);
}

TEST_P(ExchangeTest, DeadlineAndStopAreSeenWhileThereIsMore) {
  auto client = MakeClient();
  for (const bool by_stop : {false, true}) {
    auto exchange = client->Start(Get("/stream?n=100000000000"), Soon());
    ASSERT_TRUE(exchange);
    ASSERT_TRUE((*exchange)->WaitHead(Soon()));
    std::stop_source stop;
    OpContext ctx = OpContext::Within(std::chrono::milliseconds(by_stop ? 60'000 : 300));
    ctx.stop = stop.get_token();
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      if (by_stop) stop.request_stop();
    });
    const auto begun = Clock::now();
    char buffer[4];  // so that there is always more
    Result<size_t> got = size_t{0};
    while (got && Clock::now() < begun + std::chrono::seconds(10)) got = (*exchange)->Read(buffer, sizeof buffer, ctx);
    stopper.join();
    ASSERT_FALSE(got) << "it was read on and on";
    EXPECT_EQ(got.error().kind, by_stop ? ErrorKind::kCancelled : ErrorKind::kTimeout);
  }
  // What is here to its end is given, whatever the time.
  auto exchange = client->Start(Get("/bytes?n=10"), Soon());
  ASSERT_TRUE(exchange);
  ASSERT_TRUE((*exchange)->WaitHead(Soon()));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  char buffer[100];
  ASSERT_TRUE(Eventually([&] { return client->statistics().requests_now == 0; }));
  EXPECT_EQ((*exchange)->Read(buffer, sizeof buffer, OpContext::Within(std::chrono::milliseconds(-1))).value_or(0), 10u);
}

TEST_P(ExchangeTest, LoopbackInClearGoesPastEveryProxy) {
  // What listens there would see whatever secret the request carries.
  TestServer proxy;
  const std::string url = proxy.origin();
  for (const char* variable : {"http_proxy", "all_proxy", "ALL_PROXY"}) {
    setenv(variable, url.c_str(), 1);
    auto client = MakeClient();
    Request request = Get("/bytes?n=10");
    request.origin = test_server_.origin();
    for (const char* host : {"127.0.0.1", "localhost", "a.localhost"}) {
      request.origin = std::string("http://") + host + ":" + std::to_string(server().port());
      auto response = client->Fetch(request, Soon(), 100);
      EXPECT_TRUE(response && response->head.status == 200) << variable << " " << host;
    }
    unsetenv(variable);
  }
  EXPECT_EQ(proxy.server().counts().connections_opened, 0);
}

TEST_P(ExchangeTest, ClosingTheClientEndsWhatWaits) {
  auto client = MakeClient();
  auto held = client->Start(Get("/hold"), Soon());
  auto silent = client->Start(Get("/silent"), Soon());
  ASSERT_TRUE(held && silent && (*silent)->WaitHead(Soon()));
  Result<transport::http::ResponseHead> outcome;
  std::thread waiter([&] { outcome = (*held)->WaitHead(Soon()); });
  client.reset();
  waiter.join();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::kCancelled);
  EXPECT_FALSE(ReadAll(**silent));
}

TEST_P(ExchangeTest, NothingListensThere) {
  auto client = MakeClient();
  // A port that is taken, so that nobody else can come to listen there.
  const int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Request request = Get("/bytes");
  request.origin = (GetParam() == Wire::kHttp1Clear ? "http://127.0.0.1:" : "https://127.0.0.1:") +
                   std::to_string(ntohs(address.sin_port));
  const auto response = client->Fetch(request, Soon(), 100);
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().kind, ErrorKind::kConnect);
  EXPECT_EQ(response.error().errno_value, ECONNREFUSED) << ToString(response.error());
  close(taken);
}

TEST_P(ExchangeTest, UnknownNameIsNoConnection) {
  auto client = MakeClient();
  Request request = Get("/bytes");
  request.origin = (GetParam() == Wire::kHttp1Clear ? "http://" : "https://") + std::string("no-such-host.invalid");
  const auto response = client->Fetch(request, Soon(), 100);
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().kind, ErrorKind::kConnect) << ToString(response.error());
}

TEST_P(TlsExchangeTest, UntrustedAuthorityIsRefused) {
  auto client = MakeClient([](auto& options) { options.ca_file.clear(); });
  const auto response = client->Fetch(Get("/bytes?n=1"), Soon(), 100);
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().kind, ErrorKind::kConnect) << ToString(response.error());
  EXPECT_EQ(server().counts().total_requests, 0);
  EXPECT_LE(server().counts().connections_opened, 1) << "not tried again";
  // Trusted, but under another name.
  auto trusting = MakeClient();
  Request request = Get("/bytes?n=1");
  request.origin = "https://127.0.0.2:" + std::to_string(server().tls_port());
  EXPECT_FALSE(trusting->Fetch(request, Soon(), 100));
  EXPECT_EQ(server().counts().total_requests, 0);
}

TEST_P(ExchangeTest, BadRequestsAreNotSent) {
  auto client = MakeClient();
  const auto refused = [&](const std::function<void(Request&)>& change) {
    Request request = Get("/bytes?n=1");
    change(request);
    const auto exchange = client->Start(request, Soon());
    return !exchange && exchange.error().kind == ErrorKind::kBadRequest;
  };
  EXPECT_TRUE(refused([](Request& r) { r.headers = {{"x-a", "b\r\nx-c: d"}}; }));
  EXPECT_TRUE(refused([](Request& r) { r.headers = {{"x a", "b"}}; }));
  EXPECT_TRUE(refused([](Request& r) { r.headers = {{"content-length", "3"}}; }));
  EXPECT_TRUE(refused([](Request& r) { r.target = "/a b"; }));
  EXPECT_TRUE(refused([](Request& r) { r.target = "bytes"; }));
  EXPECT_TRUE(refused([](Request& r) { r.method = "GET /x"; }));
  EXPECT_TRUE(refused([](Request& r) { r.origin += "/path"; }));
  EXPECT_TRUE(refused([](Request& r) { r.origin = "ftp://localhost"; }));
  EXPECT_EQ(server().counts().connections_opened, 0);
}

}  // namespace
}  // namespace e2bfs::http_test
