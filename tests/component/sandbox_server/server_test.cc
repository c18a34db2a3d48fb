// The server core as such: framing, flow control, counts, hostile clients, its end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "tests/component/sandbox_server/server_clients.h"
#include "tests/sandbox/server.h"

namespace e2bfs::sandbox::test {
namespace {

// "/echo": the body back, as it comes. "/size": its size. "/endless": bytes for ever. "/watch": nothing until the
// client is gone. "/gate": answers when the gate opens. Else method and target.
class ServerCoreTest : public testing::Test {
 protected:
  static ServerOptions Options() {
    ServerOptions options;
    options.tls_listen = "127.0.0.1:0";
    return options;
  }

  void Serve(Exchange& exchange) {
    if (exchange.path() == "/echo") {
      exchange.SendHead(200, {});
      char buffer[5000];
      while (const std::optional<size_t> got = exchange.ReadBody(buffer, sizeof buffer)) {
        if (*got == 0) {
          return;
        }
        if (!exchange.Write({buffer, *got})) {
          break;
        }
      }
      ++torn_;
      exchange.Abort();
    } else if (exchange.path() == "/size") {
      const std::optional<std::string> body = exchange.ReadWholeBody();
      exchange.Reply(200, {}, body ? std::to_string(body->size()) : "torn");
    } else if (exchange.path() == "/endless") {
      exchange.SendHead(200, {});
      while (exchange.Write(std::string(10'000, 'e'))) {
      }
      ++gone_;
    } else if (exchange.path() == "/watch") {
      exchange.SendHead(200, {});
      EventuallyTrue([&] { return exchange.ClientGone(); });
      ++gone_;
    } else if (exchange.path() == "/gate") {
      EventuallyTrue([&] { return gate_.load(); });
      exchange.Reply(200, {}, "open");
    } else {
      exchange.Reply(200, {}, exchange.method() + " " + exchange.path() + "?" + exchange.raw_query());
    }
  }

  std::atomic<int> torn_{0};
  std::atomic<int> gone_{0};
  std::atomic<bool> gate_{false};
  std::unique_ptr<Server> server_ =
      std::make_unique<Server>(Options(), [this](Exchange& exchange) { Serve(exchange); });
};

TEST_F(ServerCoreTest, KeepsAnHttp1ConnectionAndTakesPipelinedRequests) {
  RawClient client(server_->port());
  client.Send("\r\nGET /a%20b?c=%2F HTTP/1.1\r\nHost: x\r\n\r\nPOST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_EQ(client.ReadAnswer().body, "GET /a b?c=%2F");
  EXPECT_EQ(client.ReadAnswer().body, "3");
  // A body that no handler reads does not become the next request.
  client.SendRequest("POST", "/unread", "GET /x HTTP/1.1\r\n\r\n");
  EXPECT_EQ(client.ReadAnswer().body, "POST /unread?");
  client.SendRequest("GET", "/last", "", "Connection: close\r\n");
  const Answer answer = client.ReadAnswer();
  EXPECT_EQ(answer.body, "GET /last?");
  EXPECT_EQ(answer.headers.at("connection"), "close");
  EXPECT_EQ(client.ReadEnd(), AnswerEnd::kClosed);
  EXPECT_EQ(server_->counts().connections_opened, 1);
  EXPECT_EQ(server_->counts().total_requests, 4);
  EXPECT_EQ(server_->counts().connections_closed_busy, 0);
}

TEST_F(ServerCoreTest, ReadsChunkedBodiesAndAsksForExpectedOnes) {
  RawClient client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n00b\r\nhello world\r\n0\r\nTrailer: t\r\n\r\n");
  Answer answer = client.ReadAnswer();
  EXPECT_EQ(answer.body, "abchello world");
  EXPECT_EQ(answer.headers.at("transfer-encoding"), "chunked");
  client.Send("POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  Answer interim;
  client.ReadHeadInto(interim);
  EXPECT_EQ(interim.status, 100);
  client.Send("12345");
  EXPECT_EQ(client.ReadAnswer().body, "5");
}

TEST_F(ServerCoreTest, TearsWhatBreaksTheFraming) {
  for (const char* body : {"zz\r\nabc\r\n", "3\r\nabcd\r\n", "3\nabc\r\n", "-1\r\n", "fffffffffffffffff\r\n"}) {
    RawClient client(server_->port());
    client.Send("POST /size HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + std::string(body));
    EXPECT_EQ(client.ReadAnswer().body, "torn") << body;
    EXPECT_EQ(client.ReadEnd(), AnswerEnd::kClosed) << body;
  }
}

TEST_F(ServerCoreTest, RefusesBadHeads) {
  const std::string length_and_chunks = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::pair<std::string, int> cases[] = {
      {"GET /\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
      {"GET / HTTP/1.1\nHost: x\n\n", 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: \rb\r\n\r\n", 400},
      {"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
      {length_and_chunks, 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(70'000, 'a') + "\r\n\r\n", 431},
  };
  for (const auto& [text, status] : cases) {
    RawClient client(server_->port());
    client.Send(text);
    EXPECT_EQ(client.ReadAnswer().status, status) << text.substr(0, 100);
  }
  EXPECT_EQ(server_->counts().total_requests, 0);
}

TEST_F(ServerCoreTest, ServesBothProtocolsOverTls) {
  H2Client client(server_->tls_port());
  const int32_t id = client.Start("POST", "/echo", std::string(300'000, 'z'), false, {{"e2b-sandbox-id", "box"}});
  EXPECT_EQ(client.Finish(id).body, std::string(300'000, 'z'));
  EXPECT_EQ(client.Finish(client.Start("GET", "/a?b")).body, "GET /a?b");
  EXPECT_EQ(client.Finish(client.Start("HEAD", "/a")).body, "");
  const ServerCounts counts = server_->counts();
  EXPECT_EQ(counts.http2_requests, 3);
  EXPECT_EQ(counts.requests.at("POST /echo"), 1);
  EXPECT_EQ(counts.by_sandbox.at("box"), 1);
  EXPECT_EQ(counts.request_body_bytes, 300'000);
  EXPECT_EQ(counts.response_body_bytes, 300'008);
  EXPECT_THAT(server_->certificate_pem(), testing::StartsWith("-----BEGIN CERTIFICATE-----"));
}

TEST_F(ServerCoreTest, AnHttp2ClientThatDoesNotReadGetsOneWindow) {
  H2Client client(server_->tls_port(), 20'000, false);
  const int32_t id = client.Start("GET", "/endless");
  ASSERT_TRUE(client.RunUntil([&] { return client.answer(id).body.size() == 20'000; }));
  EXPECT_EQ(client.Finish(client.Start("GET", "/a")).body, "GET /a?");
  EXPECT_EQ(client.answer(id).body.size(), 20'000u);
  client.ResetStream(id, NGHTTP2_CANCEL);
  EXPECT_TRUE(EventuallyTrue([&] { return gone_ == 1; }));
}

TEST_F(ServerCoreTest, HandlersSeeThatTheirClientIsGone) {
  {
    RawClient by_fin(server_->port());
    RawClient by_reset(server_->port());
    H2Client by_stream(server_->tls_port());
    H2Client by_connection(server_->tls_port());
    by_fin.SendRequest("GET", "/watch");
    by_reset.SendRequest("GET", "/watch");
    const int32_t stream = by_stream.Start("GET", "/watch");
    by_connection.Start("GET", "/watch");
    by_connection.RunUntil([&] { return server_->counts().requests_now >= 3; });
    by_stream.RunUntil([&] { return server_->counts().requests_now == 4; });
    by_fin.Close();
    by_reset.Reset();
    by_stream.ResetStream(stream, NGHTTP2_CANCEL);
    by_connection.Close();
    EXPECT_TRUE(EventuallyTrue([&] { return gone_ == 4; }));
    EXPECT_EQ(by_stream.Finish(by_stream.Start("GET", "/a")).status, 200);
  }
  EXPECT_TRUE(EventuallyTrue([&] { return server_->counts().connections_now == 0; }));
  // All but the one that reset its stream first.
  EXPECT_EQ(server_->counts().connections_closed_busy, 3);
}

TEST_F(ServerCoreTest, TornRequestBodiesAreSeen) {
  RawClient http1(server_->port());
  http1.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  Answer answer;
  http1.ReadHeadInto(answer);
  http1.Close();
  EXPECT_TRUE(EventuallyTrue([&] { return torn_ == 1; }));
  H2Client http2(server_->tls_port());
  const int32_t id = http2.Start("POST", "/echo", "abc", true);
  ASSERT_TRUE(http2.RunUntil([&] { return http2.answer(id).body == "abc"; }));
  http2.ResetStream(id, NGHTTP2_CANCEL);
  EXPECT_TRUE(EventuallyTrue([&] { return torn_ == 2; }));
}

TEST_F(ServerCoreTest, AnsweredConnectionsMayBeClosed) {
  for (int i = 0; i < 20; ++i) {
    RawClient http1(server_->port());
    http1.SendRequest("POST", "/echo", "abc");
    EXPECT_EQ(http1.ReadAnswer().body, "abc");
    H2Client http2(server_->tls_port());
    EXPECT_EQ(http2.Finish(http2.Start("POST", "/echo", "abc")).body, "abc");
  }
  EXPECT_TRUE(EventuallyTrue([&] { return server_->counts().connections_now == 0; }));
  EXPECT_EQ(server_->counts().connections_closed_busy, 0);
  EXPECT_EQ(server_->counts().connections_opened, 40);
}

TEST_F(ServerCoreTest, ServesManyConnectionsAtOnce) {
  constexpr int kConnections = 300;
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < kConnections; ++i) {
    clients.push_back(std::make_unique<RawClient>(server_->port()));
    clients.back()->SendRequest("GET", "/gate");
  }
  EXPECT_TRUE(EventuallyTrue([&] { return server_->counts().requests_now == kConnections; }));
  gate_ = true;
  for (const auto& client : clients) {
    EXPECT_EQ(client->ReadAnswer().body, "open");
  }
  EXPECT_EQ(server_->counts().max_connections, kConnections);
}

TEST_F(ServerCoreTest, ServesManyStreamsAtOnce) {
  std::vector<std::unique_ptr<H2Client>> clients;
  std::vector<std::pair<H2Client*, int32_t>> streams;
  for (int i = 0; i < 5; ++i) {
    clients.push_back(std::make_unique<H2Client>(server_->tls_port()));
    H2Client* client = clients.back().get();
    EXPECT_EQ(client->Finish(client->Start("GET", "/a")).status, 200);
    EXPECT_EQ(client->max_concurrent_streams(), 100u);
    for (int stream = 0; stream < 100; ++stream) {
      streams.emplace_back(client, client->Start("GET", "/gate"));
    }
    EXPECT_TRUE(client->RunUntil([&] { return server_->counts().requests_now == 100 * (i + 1); }));
  }
  gate_ = true;
  for (const auto& [client, id] : streams) {
    EXPECT_EQ(client->Finish(id).body, "open");
  }
  EXPECT_EQ(server_->counts().max_requests, 500);
}

TEST_F(ServerCoreTest, GoAwayAllLetsRequestsEnd) {
  RawClient idle(server_->port());
  RawClient busy(server_->port());
  H2Client http2(server_->tls_port());
  EXPECT_TRUE(idle.SendRequest("GET", "/a"));
  EXPECT_EQ(idle.ReadAnswer().status, 200);
  busy.SendRequest("GET", "/gate");
  const int32_t id = http2.Start("GET", "/gate");
  ASSERT_TRUE(http2.RunUntil([&] { return server_->counts().total_requests == 3; }));
  server_->GoAwayAll();
  EXPECT_EQ(idle.ReadEnd(), AnswerEnd::kClosed);
  ASSERT_TRUE(http2.RunUntil([&] { return http2.goaway_last_stream().has_value(); }));
  gate_ = true;
  EXPECT_EQ(http2.Finish(id).body, "open");
  const Answer answer = busy.ReadAnswer();
  EXPECT_EQ(answer.body, "open");
  EXPECT_EQ(answer.headers.at("connection"), "close");
  EXPECT_EQ(busy.ReadEnd(), AnswerEnd::kClosed);
  http2.RunUntil([] { return false; });
  EXPECT_EQ(http2.connection_end(), AnswerEnd::kClosed);
}

TEST_F(ServerCoreTest, ResetAllResets) {
  RawClient http1(server_->port());
  H2Client http2(server_->tls_port());
  http1.SendRequest("GET", "/watch");
  http2.Start("GET", "/watch");
  ASSERT_TRUE(http2.RunUntil([&] { return server_->counts().requests_now == 2; }));
  server_->ResetAll();
  Answer answer;
  http1.ReadHeadInto(answer);
  EXPECT_EQ(http1.ReadEnd(), AnswerEnd::kReset);
  http2.RunUntil([] { return false; });
  EXPECT_EQ(http2.connection_end(), AnswerEnd::kReset);
  EXPECT_TRUE(EventuallyTrue([&] { return server_->counts().connections_now == 0; }));
  EXPECT_EQ(server_->counts().connections_closed_busy, 0);
}

TEST_F(ServerCoreTest, EndsWithEverythingInFlight) {
  RawClient watch(server_->port());
  RawClient unread(server_->port());
  RawClient half_head(server_->port());
  RawClient half_body(server_->port());
  RawClient no_handshake(server_->tls_port());
  H2Client http2(server_->tls_port(), 1000, false);
  Fault stall;
  stall.match = "/stalled";
  stall.action = "stall";
  server_->AddFault(stall);
  watch.SendRequest("GET", "/watch");
  unread.SendRequest("GET", "/endless");
  half_head.Send("GET / HT");
  half_body.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  no_handshake.Send("\x16\x03");
  http2.Start("GET", "/watch");
  http2.Start("GET", "/endless");
  http2.Start("GET", "/stalled");
  http2.Start("POST", "/echo", "abc", true);
  ASSERT_TRUE(http2.RunUntil([&] { return server_->counts().requests_now == 7; }));
  server_.reset();
  EXPECT_EQ(gone_, 4);
  EXPECT_EQ(torn_, 2);
}

TEST_F(ServerCoreTest, LimitsConnections) {
  ServerOptions options;
  options.max_connections = 1;
  Server server(options, [this](Exchange& exchange) { Serve(exchange); });
  RawClient first(server.port());
  first.SendRequest("GET", "/a");
  EXPECT_EQ(first.ReadAnswer().status, 200);
  RawClient second(server.port());
  EXPECT_NE(second.ReadEnd(), AnswerEnd::kNone);
  EXPECT_EQ(server.counts().connections_opened, 1);
}

TEST_F(ServerCoreTest, LatencyComesBeforeEachHead) {
  server_->set_latency_ms(40);
  RawClient client(server_->port());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 2; ++i) {
    client.SendRequest("GET", "/a");
    EXPECT_EQ(client.ReadAnswer().status, 200);
  }
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(80));
}

TEST(ServerListenTest, TakesLoopbackOnly) {
  const Handler nothing = [](Exchange&) {};
  for (const char* listen : {"0.0.0.0:0", "192.0.2.1:0", "[::]:0", "localhost", ":80", "127.0.0.1:http", "host:1"}) {
    ServerOptions options;
    options.listen = listen;
    EXPECT_THROW(Server(options, nothing), std::runtime_error) << listen;
  }
  Server server(ServerOptions(), nothing);
  ServerOptions taken;
  taken.listen = "127.0.0.1:" + std::to_string(server.port());
  EXPECT_THROW(Server(taken, nothing), std::runtime_error);
}

}  // namespace
}  // namespace e2bfs::sandbox::test
