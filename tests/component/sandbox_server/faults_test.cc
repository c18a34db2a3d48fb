// Every fault of server.h, over HTTP/1.1 in clear and HTTP/2, as a client sees it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "tests/component/sandbox_server/server_clients.h"
#include "tests/sandbox/server.h"

namespace e2bfs::sandbox::test {
namespace {

enum class FaultProtocol { kHttp1, kHttp2 };

// "GET /bytes?n=N": N bytes by their length; with "&chunked=1" without one. "POST /count": the body's size as text.
// "GET /wait": nothing until the client is gone.
class FaultsTest : public testing::TestWithParam<FaultProtocol> {
 protected:
  static ServerOptions Options() {
    ServerOptions options;
    options.tls_listen = "127.0.0.1:0";
    return options;
  }

  void Serve(Exchange& exchange) {
    ++handlers_run_;
    if (exchange.path() == "/bytes") {
      const size_t size = std::stoul(exchange.Query("n").value_or("0"));
      HeaderList headers;
      if (!exchange.Query("chunked")) {
        headers.emplace_back("content-length", std::to_string(size));
      }
      exchange.SendHead(200, headers);
      for (size_t sent = 0; sent < size; sent += std::min<size_t>(1000, size - sent)) {
        if (!exchange.Write(std::string(std::min<size_t>(1000, size - sent), 'b'))) {
          return;
        }
      }
    } else if (exchange.path() == "/count") {
      char buffer[1000];
      size_t total = 0;
      for (;;) {
        const std::optional<size_t> got = exchange.ReadBody(buffer, sizeof buffer);
        if (!got) {
          torn_at_ = static_cast<int64_t>(total);
          exchange.Abort();
          return;
        }
        if (*got == 0) {
          break;
        }
        total += *got;
      }
      exchange.Reply(200, {}, std::to_string(total));
    } else {
      exchange.Reply(200, {{"content-type", "text/plain"}}, "served");
    }
  }

  void AddFault(const std::string& action, int64_t at_byte = 0, const std::string& match = "", int skip = 0,
                int count = 1) {
    Fault fault;
    fault.match = match;
    fault.action = action;
    fault.at_byte = at_byte;
    fault.skip = skip;
    fault.count = count;
    server_.AddFault(fault);
  }

  // On a connection of its own.
  Answer Ask(const std::string& method, const std::string& target, const std::string& body = "") {
    if (GetParam() == FaultProtocol::kHttp1) {
      RawClient client(server_.port());
      client.SendRequest(method, target, body);
      return client.ReadAnswer();
    }
    H2Client client(server_.tls_port());
    return client.Finish(client.Start(method, target, body));
  }

  bool http2() const { return GetParam() == FaultProtocol::kHttp2; }

  std::atomic<int> handlers_run_{0};
  std::atomic<int64_t> torn_at_{-1};
  Server server_{Options(), [this](Exchange& exchange) { Serve(exchange); }};
};

INSTANTIATE_TEST_SUITE_P(Protocols, FaultsTest, testing::Values(FaultProtocol::kHttp1, FaultProtocol::kHttp2),
                         [](const auto& info) { return info.param == FaultProtocol::kHttp1 ? "http1" : "http2"; });

TEST_P(FaultsTest, SkipsThenActsThenIsGone) {
  Fault fault;
  fault.match = "GET /b";
  fault.action = "status";
  fault.status = 503;
  fault.body = "{\"code\":503}";
  fault.skip = 1;
  fault.count = 2;
  server_.AddFault(fault);
  EXPECT_EQ(Ask("GET", "/a").status, 200);
  EXPECT_EQ(Ask("GET", "/b").status, 200);
  EXPECT_EQ(handlers_run_, 2);
  for (int i = 0; i < 2; ++i) {
    const Answer answer = Ask("GET", "/b?x=1");
    EXPECT_EQ(answer.status, 503);
    EXPECT_EQ(answer.body, fault.body);
    EXPECT_EQ(answer.headers.at("content-type"), "application/json");
    EXPECT_EQ(answer.end, AnswerEnd::kWhole);
  }
  EXPECT_EQ(handlers_run_, 2);
  EXPECT_EQ(Ask("GET", "/b").status, 200);
}

TEST_P(FaultsTest, OneActionForARequestTheNextOneWaits) {
  for (const int status : {500, 429}) {
    Fault fault;
    fault.action = "status";
    fault.status = status;
    server_.AddFault(fault);
  }
  EXPECT_EQ(Ask("GET", "/a").status, 500);
  EXPECT_EQ(Ask("GET", "/a").status, 429);
  EXPECT_EQ(Ask("GET", "/a").status, 200);
}

TEST_P(FaultsTest, MatchesTargetsAsSentAndDecoded) {
  AddFault("reset", -1, "path=/a b");
  EXPECT_EQ(Ask("GET", "/files?path=%2Fa%20b").end, AnswerEnd::kReset);
}

TEST_P(FaultsTest, DelayComesBeforeTheHandler) {
  Fault fault;
  fault.action = "delay";
  fault.delay_ms = 60;
  server_.AddFault(fault);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Ask("GET", "/a").status, 200);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(60));
}

TEST_P(FaultsTest, ReplaceBodyStandsInForTheHandler) {
  Fault fault;
  fault.action = "replace_body";
  fault.body = "<html>";
  fault.content_type = "text/html";
  server_.AddFault(fault);
  const Answer answer = Ask("GET", "/a");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "<html>");
  EXPECT_EQ(answer.headers.at("content-type"), "text/html");
  EXPECT_EQ(handlers_run_, 0);
}

TEST_P(FaultsTest, ResetAndCloseAfterBytesOfTheBody) {
  for (const char* target : {"/bytes?n=100000", "/bytes?n=100000&chunked=1"}) {
    for (const int64_t at : {0, 1, 70'001}) {
      AddFault("reset", at);
      Answer answer = Ask("GET", target);
      EXPECT_EQ(answer.status, 200) << target << " " << at;
      EXPECT_EQ(answer.body, std::string(static_cast<size_t>(at), 'b')) << target << " " << at;
      EXPECT_EQ(answer.end, AnswerEnd::kReset) << target << " " << at;
      AddFault("close", at);
      answer = Ask("GET", target);
      EXPECT_EQ(answer.status, 200) << target << " " << at;
      EXPECT_EQ(answer.body, std::string(static_cast<size_t>(at), 'b')) << target << " " << at;
      EXPECT_EQ(answer.end, AnswerEnd::kClosed) << target << " " << at;
    }
  }
  EXPECT_EQ(server_.counts().connections_closed_busy, 0);
}

TEST_P(FaultsTest, ResetBeforeTheHeadWithoutAndAfterTheWork) {
  AddFault("reset", -1);
  Answer answer = Ask("POST", "/count", "12345");
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(answer.end, AnswerEnd::kReset);
  EXPECT_EQ(handlers_run_, 0);
  AddFault("reset", -2);
  answer = Ask("POST", "/count", "12345");
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(answer.end, AnswerEnd::kReset);
  EXPECT_EQ(handlers_run_, 1);
  EXPECT_EQ(server_.counts().request_body_bytes, 5);
  AddFault("close", -2);
  answer = Ask("POST", "/count", "12345");
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(answer.end, AnswerEnd::kClosed);
  EXPECT_EQ(handlers_run_, 2);
}

TEST_P(FaultsTest, CutLooksComplete) {
  AddFault("cut", 5000);
  Answer answer = Ask("GET", "/bytes?n=100000&chunked=1");
  EXPECT_EQ(answer.body.size(), 5000u);
  EXPECT_EQ(answer.end, AnswerEnd::kWhole);
  AddFault("cut", 5000);
  answer = Ask("GET", "/bytes?n=100000");
  EXPECT_EQ(answer.headers.at("content-length"), "100000");
  EXPECT_EQ(answer.body.size(), 5000u);
  EXPECT_EQ(answer.end, http2() ? AnswerEnd::kWhole : AnswerEnd::kClosed);
}

TEST_P(FaultsTest, StallsUntilFaultsAreCleared) {
  for (const int64_t at : {-1, 0, 3000}) {
    AddFault("stall", at);
    const size_t expected = at > 0 ? static_cast<size_t>(at) : 0;
    Answer answer;
    if (http2()) {
      H2Client client(server_.tls_port());
      const int32_t id = client.Start("GET", "/bytes?n=100000");
      ASSERT_TRUE(client.RunUntil([&] {
        return client.answer(id).body.size() >= expected && (at < 0 || client.answer(id).status == 200);
      }));
      // The rest of the connection lives.
      EXPECT_EQ(client.Finish(client.Start("GET", "/other")).body, "served");
      ASSERT_EQ(client.answer(id).end, AnswerEnd::kNone);
      server_.ClearFaults();
      answer = client.Finish(id);
    } else {
      RawClient client(server_.port());
      client.SendRequest("GET", "/bytes?n=100000");
      ASSERT_TRUE(EventuallyTrue([&] { return handlers_run_ > 0; }));
      if (at >= 0) {
        client.ReadHeadInto(answer);
        client.ReadBodyInto(answer, expected);
      }
      ASSERT_EQ(answer.end, AnswerEnd::kNone);
      server_.ClearFaults();
      if (at < 0) {
        client.ReadHeadInto(answer);
      } else {
        client.ReadBodyInto(answer, SIZE_MAX);
      }
    }
    EXPECT_EQ(answer.status, at < 0 ? 0 : 200) << at;
    EXPECT_EQ(answer.body.size(), expected) << at;
    EXPECT_EQ(answer.end, AnswerEnd::kClosed) << at;
    EXPECT_TRUE(EventuallyTrue([&] { return server_.counts().requests_now == 0; }));
    handlers_run_ = 0;
  }
  EXPECT_EQ(server_.counts().connections_closed_busy, 0);
}

TEST_P(FaultsTest, AStalledRequestIsGivenUpByTheClient) {
  AddFault("stall", 10);
  if (http2()) {
    H2Client client(server_.tls_port());
    const int32_t id = client.Start("GET", "/bytes?n=100");
    ASSERT_TRUE(client.RunUntil([&] { return client.answer(id).body.size() == 10; }));
    client.ResetStream(id, NGHTTP2_CANCEL);
    EXPECT_TRUE(EventuallyTrue([&] { return server_.counts().requests_now == 0; }));
    // Cancelled is not closed.
    client.Close();
    EXPECT_TRUE(EventuallyTrue([&] { return server_.counts().connections_now == 0; }));
    EXPECT_EQ(server_.counts().connections_closed_busy, 0);
  } else {
    RawClient client(server_.port());
    client.SendRequest("GET", "/bytes?n=100");
    Answer answer;
    client.ReadHeadInto(answer);
    client.ReadBodyInto(answer, 10);
    client.Close();
    EXPECT_TRUE(EventuallyTrue([&] { return server_.counts().connections_now == 0; }));
    EXPECT_EQ(server_.counts().connections_closed_busy, 1);
  }
}

TEST_P(FaultsTest, StallRequestReadsNoFurther) {
  AddFault("stall_request", 1500);
  const std::string body(400'000, 'u');
  if (http2()) {
    H2Client client(server_.tls_port());
    const int32_t id = client.Start("POST", "/count", body);
    ASSERT_TRUE(client.RunUntil([&] { return client.body_sent(id) >= 65535; }));
    ASSERT_TRUE(EventuallyTrue([&] { return server_.counts().request_body_bytes == 1500; }));
    // One window and no more, while another stream's body passes.
    EXPECT_EQ(client.Finish(client.Start("POST", "/count", body)).body, "400000");
    EXPECT_EQ(client.body_sent(id), 65535u);
    server_.ClearFaults();
    EXPECT_EQ(client.Finish(id).end, AnswerEnd::kClosed);
  } else {
    RawClient client(server_.port());
    client.SendRequest("POST", "/count", body.substr(0, 10'000));
    ASSERT_TRUE(EventuallyTrue([&] { return server_.counts().request_body_bytes == 1500; }));
    server_.ClearFaults();
    EXPECT_EQ(client.ReadAnswer().end, AnswerEnd::kClosed);
  }
  EXPECT_TRUE(EventuallyTrue([&] { return torn_at_ == 1500; }));
}

TEST_P(FaultsTest, ResetRequestTearsTheBody) {
  AddFault("reset_request", 1500);
  const Answer answer = Ask("POST", "/count", std::string(10'000, 'u'));
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(answer.end, AnswerEnd::kReset);
  EXPECT_TRUE(EventuallyTrue([&] { return torn_at_ == 1500; }));
}

TEST_P(FaultsTest, RefusedWithoutAHandler) {
  AddFault("refuse");
  const Answer answer = Ask("POST", "/count", "12345");
  EXPECT_EQ(answer.status, 0);
  EXPECT_EQ(answer.end, http2() ? AnswerEnd::kRefused : AnswerEnd::kClosed);
  EXPECT_EQ(Ask("POST", "/count", "12345").body, "5");
  EXPECT_EQ(handlers_run_, 1);
}

TEST_P(FaultsTest, GoAwayServesThisRequest) {
  AddFault("goaway");
  if (http2()) {
    H2Client client(server_.tls_port());
    const int32_t id = client.Start("GET", "/bytes?n=5000");
    EXPECT_EQ(client.Finish(id).body.size(), 5000u);
    EXPECT_EQ(client.goaway_last_stream(), id);
    client.RunUntil([] { return false; });
    EXPECT_EQ(client.connection_end(), AnswerEnd::kClosed);
  } else {
    RawClient client(server_.port());
    client.SendRequest("GET", "/bytes?n=5000");
    const Answer answer = client.ReadAnswer();
    EXPECT_EQ(answer.body.size(), 5000u);
    EXPECT_EQ(answer.headers.at("connection"), "close");
    EXPECT_EQ(client.ReadEnd(), AnswerEnd::kClosed);
  }
  EXPECT_EQ(server_.counts().connections_closed_busy, 0);
}

TEST_P(FaultsTest, GoAwayRefuseServesTheOthersOnly) {
  AddFault("goaway_refuse", 0, "/second");
  if (http2()) {
    H2Client client(server_.tls_port());
    const int32_t first = client.Start("POST", "/count", "1", true);
    ASSERT_TRUE(client.RunUntil([&] { return server_.counts().request_body_bytes == 1; }));
    const int32_t second = client.Start("GET", "/second");
    ASSERT_TRUE(client.RunUntil([&] { return client.goaway_last_stream().has_value(); }));
    EXPECT_EQ(client.goaway_last_stream(), first);
    EXPECT_EQ(client.answer(second).status, 0);
    EXPECT_EQ(client.connection_end(), AnswerEnd::kNone);
    client.ResetStream(first, NGHTTP2_CANCEL);
    client.RunUntil([] { return false; });
    EXPECT_EQ(client.connection_end(), AnswerEnd::kClosed);
    EXPECT_EQ(handlers_run_, 1);
  } else {
    EXPECT_EQ(Ask("GET", "/second").end, AnswerEnd::kClosed);
    EXPECT_EQ(handlers_run_, 0);
  }
}

TEST_P(FaultsTest, NothingAboveAGoAwayIsActedOn) {
  if (!http2()) {
    return;
  }
  for (const char* action : {"goaway", "goaway_refuse"}) {
    AddFault(action, 0, "/second");
    AddFault("goaway_refuse", 0, "/fourth");
    H2Client client(server_.tls_port());
    // All of them come in one piece: the server has read the last before its GOAWAY goes out.
    const int32_t first = client.Start("GET", "/first");
    const int32_t second = client.Start("GET", "/second");
    const int32_t third = client.Start("POST", "/count", "12345");
    const int32_t fourth = client.Start("POST", "/fourth", "12345");
    client.RunUntil([] { return false; });
    EXPECT_EQ(client.connection_end(), AnswerEnd::kClosed);
    const bool refused = action == std::string("goaway_refuse");
    EXPECT_EQ(client.goaway_last_stream(), refused ? first : second);
    EXPECT_EQ(client.answer(first).body, "served");
    EXPECT_EQ(client.answer(second).body, refused ? "" : "served");
    EXPECT_EQ(client.answer(third).end, AnswerEnd::kRefused);
    EXPECT_EQ(client.answer(fourth).end, AnswerEnd::kRefused);
    EXPECT_EQ(handlers_run_, refused ? 1 : 2);
    EXPECT_EQ(server_.counts().total_requests, 2);
    EXPECT_EQ(server_.counts().requests_now, 0);
    EXPECT_EQ(server_.counts().connections_closed_busy, 0);
    handlers_run_ = 0;
    server_.ClearFaults();
    server_.ResetCounts();
  }
}

TEST_P(FaultsTest, FrozenUntilTheClientCloses) {
  AddFault("freeze", 0, "/frozen");
  if (http2()) {
    H2Client client(server_.tls_port());
    ASSERT_EQ(client.Finish(client.Start("GET", "/a")).body, "served");
    const int32_t id = client.Start("GET", "/frozen");
    ASSERT_TRUE(client.RunUntil([&] { return server_.counts().total_requests == 2; }));
    client.Ping();
    const int32_t other = client.Start("GET", "/b");
    // Somebody else is served meanwhile, so the silence is this connection's.
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(Ask("GET", "/a").body, "served");
      int turns = 0;
      client.RunUntil([&] { return ++turns > 2; });
    }
    EXPECT_EQ(client.pings_answered(), 0);
    EXPECT_EQ(client.answer(id).end, AnswerEnd::kNone);
    EXPECT_EQ(client.answer(other).end, AnswerEnd::kNone);
    client.Close();
  } else {
    RawClient client(server_.port());
    client.SendRequest("GET", "/frozen");
    ASSERT_TRUE(EventuallyTrue([&] { return server_.counts().total_requests == 1; }));
    EXPECT_EQ(Ask("GET", "/a").body, "served");
    client.Close();
  }
  EXPECT_TRUE(EventuallyTrue([&] { return server_.counts().connections_now == 0; }));
  EXPECT_EQ(server_.counts().connections_closed_busy, 1);
}

TEST_P(FaultsTest, ClearingEndsAFrozenConnection) {
  AddFault("freeze");
  if (http2()) {
    H2Client client(server_.tls_port());
    const int32_t id = client.Start("GET", "/a");
    ASSERT_TRUE(client.RunUntil([&] { return server_.counts().total_requests == 1; }));
    server_.ClearFaults();
    EXPECT_EQ(client.Finish(id).end, AnswerEnd::kClosed);
  } else {
    RawClient client(server_.port());
    client.SendRequest("GET", "/a");
    ASSERT_TRUE(EventuallyTrue([&] { return server_.counts().total_requests == 1; }));
    server_.ClearFaults();
    EXPECT_EQ(client.ReadAnswer().end, AnswerEnd::kClosed);
  }
  EXPECT_EQ(server_.counts().connections_closed_busy, 0);
}

TEST_P(FaultsTest, AreSetAndClearedOverHttp) {
  Answer answer = Ask("POST", "/_test/faults",
                      R"([{"match":"GET /a","action":"status","status":418,"body":"pot","count":-1},
                          {"action":"delay","delay_ms":1}])");
  EXPECT_EQ(answer.status, 204);
  answer = Ask("GET", "/a");
  EXPECT_EQ(answer.status, 418);
  EXPECT_EQ(answer.body, "pot");
  EXPECT_EQ(Ask("DELETE", "/_test/faults").status, 204);
  EXPECT_EQ(Ask("GET", "/a").status, 200);
  EXPECT_EQ(Ask("POST", "/_test/faults", R"([{"action":"explode"}])").status, 400);
  EXPECT_EQ(Ask("POST", "/_test/faults", "[").status, 400);
  answer = Ask("GET", "/_test/counts");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, testing::HasSubstr("\"GET /a\":2"));
  EXPECT_THAT(answer.body, testing::HasSubstr("\"total_requests\":2"));
  EXPECT_EQ(Ask("POST", "/_test/counts").status, 204);
  EXPECT_EQ(server_.counts().total_requests, 0);
  EXPECT_EQ(Ask("POST", "/_test/latency?ms=1").status, 204);
  EXPECT_EQ(Ask("POST", "/_test/latency?ms=soon").status, 400);
  EXPECT_EQ(Ask("GET", "/a").status, 200);
  EXPECT_EQ(Ask("GET", "/_test/nothing").status, 404);
  EXPECT_EQ(Ask("POST", "/_test/goaway").status, 204);
  EXPECT_EQ(Ask("POST", "/_test/reset").status, 204);
}

}  // namespace
}  // namespace e2bfs::sandbox::test
