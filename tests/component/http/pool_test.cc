// The pool: many requests at once, limits, connections that die, classes of service.
#include <gmock/gmock.h>

#include <thread>
#include <vector>

#include "tests/component/http/http_fixture.h"

namespace e2bfs::http_test {
namespace {

using transport::http::Exchange;
using transport::http::HttpClient;
using transport::http::Request;

class PoolTest : public WireTest {
 protected:
  // Starts `count` requests over 64 sandboxes' names, all before the first answer is waited for, and reads every answer.
  // How many failed; the first error is in `first_error_`.
  int Burst(HttpClient& client, int count, const std::string& target, bool idempotent = true) {
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < count; ++i) {
      Request request = Get(target + "&i=" + std::to_string(i) + "&");
      request.idempotent = idempotent;
      request.headers = {{"e2b-sandbox-id", "sandbox" + std::to_string(i % 64)}, {"e2b-sandbox-port", "49983"}};
      auto exchange = client.Start(std::move(request), Soon(i % 4 == 0 ? ServiceClass::kMetadata : ServiceClass::kForeground));
      if (exchange) exchanges.push_back(std::move(*exchange));
    }
    int failed = count - static_cast<int>(exchanges.size());
    for (auto& exchange : exchanges) {
      const auto head = exchange->WaitHead(Soon());
      Result<std::string> body = head ? ReadAll(*exchange) : Forward(head.error());
      if (body && head->status == 200 && body->size() == 100) continue;
      ++failed;
      if (!body && first_error_.empty()) first_error_ = ToString(body.error());
    }
    return failed;
  }

  std::string first_error_;
};
INSTANTIATE_TEST_SUITE_P(Wires, PoolTest, ::testing::Values(Wire::kHttp1Clear, Wire::kHttp2), WireName);

// What HTTP/1.1 has no word for, and what needs both protocols at once.
class Http2PoolTest : public PoolTest {};
INSTANTIATE_TEST_SUITE_P(Wires, Http2PoolTest, ::testing::Values(Wire::kHttp2), WireName);

TEST_P(PoolTest, ManyAtOnceStayWithinTheLimits) {
  for (int count : {64, 250, 2000}) {
    server().ResetCounts();
    auto client = MakeClient();
    server().set_latency_ms(20);  // so that they are really there together
    EXPECT_EQ(Burst(*client, count, "/bytes?n=100"), 0) << count << ": " << first_error_;
    const auto counts = server().counts();
    EXPECT_EQ(counts.total_requests, count);
    EXPECT_EQ(counts.by_sandbox.size(), 64u);
    EXPECT_LE(counts.max_connections, 21) << count;
    EXPECT_EQ(counts.connections_closed_busy, 0) << count;
    if (http2()) {
      EXPECT_GT(counts.max_requests, 21) << "streams were not used";
    }
    // What is kept afterwards is within the keep-alive slots.
    EXPECT_TRUE(Eventually([&] { return server().counts().connections_now <= 20; }));
    EXPECT_GE(server().counts().connections_now, 1);
    client.reset();
    EXPECT_TRUE(Eventually([&] { return server().counts().connections_now == 0; }));
    server().set_latency_ms(0);
  }
}

TEST_P(PoolTest, WavesReuseConnectionsAndCloseNoBusyOne) {
  // With few keep-alive slots every wave closes what the one before had opened, while requests are being given out.
  auto client = MakeClient([](auto& options) {
    options.max_idle_connections = 2;
    options.max_streams_per_connection = 4;
    options.reserved_streams = 1;
  });
  for (int wave = 0; wave < 15; ++wave) ASSERT_EQ(Burst(*client, 60, "/bytes?n=100"), 0) << first_error_;
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
  EXPECT_EQ(server().counts().total_requests, 900);
  // The server sees a connection end a little later than we closed it.
  EXPECT_LE(server().counts().max_connections, 2 * 21);
  EXPECT_TRUE(Eventually([&] { return server().counts().connections_now <= 2; }));
}

TEST_P(PoolTest, SeveralThreadsShareIt) {
  auto client = MakeClient();
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 25; ++round) {
        const auto response = client->Fetch(Post("/echo", std::string(2000, 'x')), Soon(), 2000);
        if (!response || response->body.size() != 2000) ++failed;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(server().counts().total_requests, 200);
  EXPECT_LE(server().counts().connections_opened, http2() ? 1 : 8);
  EXPECT_EQ(client->statistics().requests, 200);
  EXPECT_TRUE(Eventually([&] { return client->statistics().requests_now == 0; }));
}

TEST_P(PoolTest, OneConnectionServesWhenOnlyOneIsAllowed) {
  auto client = MakeClient([](auto& options) { options.max_connections = 1; });
  EXPECT_EQ(Burst(*client, 150, "/bytes?n=100"), 0) << first_error_;
  EXPECT_EQ(server().counts().max_connections, 1);
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
}

TEST_P(Http2PoolTest, LargeUploadsBesideManyRequestsStayWithinTheLimits) {
  auto client = MakeClient([](auto& options) {
    options.max_connections_per_origin = 6;
    options.max_streams_per_connection = 9;
    options.reserved_streams = 1;
  });
  EXPECT_EQ(Burst(*client, 1, "/bytes?n=100"), 0) << first_error_;  // the protocol is known
  server().set_latency_ms(20);
  constexpr int kUploads = 4;
  const std::string piece(256 << 10, 'u');
  std::vector<std::unique_ptr<Exchange>> uploads;
  for (int i = 0; i < kUploads; ++i) {
    Request request = Post("/length", "");
    request.streamed_body = true;
    request.content_length = 4 << 20;
    auto begun = client->Start(std::move(request), Soon(ServiceClass::kBulk));
    ASSERT_TRUE(begun) << ToString(begun.error());
    ASSERT_TRUE((*begun)->Write(piece, Soon()));
    uploads.push_back(std::move(*begun));
  }
  ASSERT_TRUE(Eventually([&] { return server().counts().connections_now == kUploads + 1; }));
  // As many as need more HTTP/2 connections than are left.
  EXPECT_EQ(Burst(*client, 200, "/bytes?n=100"), 0) << first_error_;
  for (auto& upload : uploads) {
    for (int i = 1; i < 16; ++i) ASSERT_TRUE(upload->Write(piece, Soon()));
    ASSERT_TRUE(upload->FinishBody(Soon()));
    const auto head = upload->WaitHead(Soon());
    ASSERT_TRUE(head) << ToString(head.error());
    EXPECT_EQ(head->protocol, transport::http::Protocol::kHttp1);
  }
  EXPECT_LE(server().counts().max_connections, 6);
  // What the uploads leave idle gives way, which the server sees a little later.
  EXPECT_EQ(Burst(*client, 200, "/bytes?n=100"), 0) << first_error_;
  EXPECT_TRUE(Eventually([&] { return server().counts().connections_now <= 6; }));
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
}

TEST_P(Http2PoolTest, LargeDownloadsHaveAConnectionOfTheirOwnWithoutFrames) {
  auto client = MakeClient();
  EXPECT_EQ(Burst(*client, 1, "/bytes?n=100"), 0) << first_error_;  // the protocol is known
  const auto protocol_of = [&](int64_t bytes, int64_t expected, ServiceClass service_class) {
    Request request = Get("/bytes?n=" + std::to_string(bytes));
    request.expected_bytes = expected;
    const OpContext ctx = Soon(service_class);
    auto begun = client->Start(std::move(request), ctx);
    EXPECT_TRUE(begun) << ToString(begun.error());
    const auto head = (*begun)->WaitHead(ctx);
    EXPECT_TRUE(head) << ToString(head.error());
    char buffer[65536];
    int64_t got = 0;
    while (true) {
      const auto count = (*begun)->Read(buffer, sizeof buffer, ctx);
      EXPECT_TRUE(count) << ToString(count.error());
      if (!count || *count == 0) break;
      got += static_cast<int64_t>(*count);
    }
    EXPECT_EQ(got, bytes);
    return head->protocol;
  };
  constexpr int64_t kLarge = 3 << 20;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(protocol_of(kLarge, kLarge, ServiceClass::kBulk), transport::http::Protocol::kHttp1);
  EXPECT_EQ(server().counts().connections_opened, 2) << "kept, and used again";
  // Small, of a length that nobody knows, or waited for.
  EXPECT_EQ(protocol_of(1000, 1000, ServiceClass::kBulk), transport::http::Protocol::kHttp2);
  EXPECT_EQ(server().counts().connections_opened, 2);
  EXPECT_EQ(protocol_of(kLarge, 0, ServiceClass::kBulk), transport::http::Protocol::kHttp2);
  EXPECT_EQ(protocol_of(kLarge, kLarge, ServiceClass::kForeground), transport::http::Protocol::kHttp2);
  // What fails goes by HTTP/2; where HTTP/1.1 never worked, all do for a while.
  server().AddFault(MakeFault("GET /bytes", "close", 0, 1, -1));
  EXPECT_EQ(protocol_of(kLarge, kLarge, ServiceClass::kBulk), transport::http::Protocol::kHttp2);
  EXPECT_EQ(protocol_of(kLarge, kLarge, ServiceClass::kBulk), transport::http::Protocol::kHttp1);
  client = MakeClient();
  EXPECT_EQ(Burst(*client, 1, "/bytes?n=100"), 0) << first_error_;
  server().AddFault(MakeFault("GET /bytes", "close", 0, 1, -1));
  for (int i = 0; i < 2; ++i) EXPECT_EQ(protocol_of(kLarge, kLarge, ServiceClass::kBulk), transport::http::Protocol::kHttp2);
}

TEST_P(PoolTest, RequestsInFlightAreBounded) {
  auto client = MakeClient([](auto& options) { options.max_requests = 7; });
  server().set_latency_ms(5);
  EXPECT_EQ(Burst(*client, 60, "/bytes?n=100"), 0) << first_error_;
  EXPECT_LE(server().counts().max_requests, 7);
}

TEST_P(PoolTest, GoAwayUnderLoadFailsNothing) {
  auto client = MakeClient();
  server().set_latency_ms(5);
  // Twice while the requests are on their way: more often could be once too often for one of them.
  std::thread shaker([&] {
    for (const int64_t requests : {100, 300}) {
      Eventually([&] { return server().counts().total_requests >= requests; });
      server().GoAwayAll();
    }
  });
  // In HTTP/2 nothing may be lost or done twice. HTTP/1.1 cannot tell a request that met the end of an idle connection
  // from one that was acted on: what is idempotent is sent again.
  const int failed = Burst(*client, 500, "/bytes?n=100", !http2());
  shaker.join();
  EXPECT_EQ(failed, 0) << first_error_;
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
  EXPECT_LE(server().counts().max_connections, 2 * 21) << "those that end may overlap with their successors";
}

TEST(PoolOfNothing, AServerThatTakesNoStreamsIsNotDialledForEver) {
  sandbox::ServerOptions options;
  options.max_concurrent_streams = 0;
  TestServer server(options);
  for (const int idle : {20, 0}) {
    server.server().ResetCounts();
    transport::http::ClientOptions client_options;
    client_options.ca_file = server.ca_file();
    client_options.max_idle_connections = idle;
    auto client = HttpClient::Create(client_options);
    ASSERT_TRUE(client);
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < 30; ++i) {
      Request request;
      request.origin = server.tls_origin();
      request.target = "/bytes?n=10";
      auto exchange = (*client)->Start(request, Soon());
      ASSERT_TRUE(exchange);
      exchanges.push_back(std::move(*exchange));
    }
    std::this_thread::sleep_for(std::chrono::seconds(3));
    EXPECT_LE(server.server().counts().connections_opened, 5) << idle;
    EXPECT_GE(server.server().counts().connections_opened, 1) << idle;
  }
}

TEST_P(Http2PoolTest, RefusedStreamsAreSentAgain) {
  auto client = MakeClient();
  for (int i = 0; i < 250; i += 10) {
    server().AddFault(MakeFault("&i=" + std::to_string(i) + "&", "refuse", 0, 2));
  }
  EXPECT_EQ(Burst(*client, 250, "/bytes?n=100", false), 0) << first_error_;
  EXPECT_EQ(client->statistics().retries, 50);
  // A third refusal is the last: nothing was done, and the caller may ask again.
  server().AddFault(MakeFault("&i=0&", "refuse", 0, 3));
  EXPECT_EQ(Burst(*client, 10, "/bytes?n=100", false), 1);
  EXPECT_THAT(first_error_, ::testing::HasSubstr("unavailable"));
}

TEST_P(Http2PoolTest, RequestsAboveAGoAwayAreSentElsewhere) {
  auto client = MakeClient();
  // So far apart that they meet different connections.
  server().AddFault(MakeFault("GET /bytes", "goaway_refuse", 60));
  server().AddFault(MakeFault("GET /bytes", "goaway_refuse", 250));
  EXPECT_EQ(Burst(*client, 400, "/bytes?n=100", false), 0) << first_error_;
  EXPECT_GE(client->statistics().retries, 2);
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
}

TEST_P(Http2PoolTest, GoAwayIsNoTryOfWhatIsAboveIt) {
  auto client = MakeClient();
  // A server that turns its connections over can meet the same request again and again; nothing of it was acted on.
  server().AddFault(MakeFault("GET /bytes", "goaway_refuse", 0, 6));
  EXPECT_EQ(Burst(*client, 3, "/bytes?n=100", false), 0) << first_error_;
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
  // But not for ever.
  server().AddFault(MakeFault("GET /bytes", "goaway_refuse", 0, -1));
  EXPECT_EQ(Burst(*client, 1, "/bytes?n=100", false), 1);
  EXPECT_THAT(first_error_, ::testing::HasSubstr("unavailable"));
}

TEST_P(PoolTest, ConnectionsThatDiedIdleAreReplaced) {
  auto client = MakeClient();
  for (int round = 0; round < 4; ++round) {
    ASSERT_EQ(Burst(*client, 100, "/bytes?n=100", false), 0) << round << ": " << first_error_;
    // Again and again: one that was still being opened when the last answer came is accepted only after the first time.
    ASSERT_TRUE(Eventually([&] {
      if (round % 2 == 0) {
        server().ResetAll();
      } else {
        server().GoAwayAll();
      }
      return server().counts().connections_now == 0;
    }));
  }
}

TEST_P(PoolTest, IdempotentRequestsOutliveResetsUnderLoad) {
  auto client = MakeClient();
  server().set_latency_ms(10);
  // Twice, each time with all that is on the connection: a third could be one too many for a request.
  server().AddFault(MakeFault("GET /bytes", "close", 50, 1, -1));
  server().AddFault(MakeFault("GET /bytes", "close", 200, 1, -1));
  EXPECT_EQ(Burst(*client, 300, "/bytes?n=100"), 0) << first_error_;
  EXPECT_GE(client->statistics().retries, 2);
}

TEST_P(PoolTest, IdleConnectionsExpire) {
  auto client = MakeClient([](auto& options) { options.idle_expiry = std::chrono::milliseconds(1000); });
  ASSERT_EQ(Burst(*client, 30, "/bytes?n=100"), 0);
  EXPECT_TRUE(Eventually([&] { return server().counts().connections_now == 0; }));
  ASSERT_EQ(Burst(*client, 30, "/bytes?n=100"), 0);
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
}

TEST_P(PoolTest, IdleConnectionsExpireBesideABusyOne) {
  auto client = MakeClient([](auto& options) { options.idle_expiry = std::chrono::milliseconds(1000); });
  auto held = client->Start(Get("/hold"), Soon());
  ASSERT_TRUE(held);
  ASSERT_TRUE(Eventually([&] { return server().counts().requests_now == 1; }));
  ASSERT_EQ(Burst(*client, 30, "/bytes?n=100"), 0);
  EXPECT_TRUE(Eventually([&] { return server().counts().connections_now == 1; }));
  EXPECT_EQ(server().counts().requests_now, 1);
}

TEST_P(Http2PoolTest, AnIdleConnectionMakesRoomForAnotherOrigin) {
  auto client = MakeClient([](auto& options) { options.max_connections = 1; });
  for (int round = 0; round < 3; ++round) {
    for (const std::string& origin : {test_server_.origin(), test_server_.tls_origin()}) {
      Request request = Get("/bytes?n=100");
      request.origin = origin;
      const auto response = client->Fetch(std::move(request), Soon(), 100);
      ASSERT_TRUE(response) << origin << ": " << ToString(response.error());
    }
  }
  EXPECT_EQ(server().counts().connections_opened, 6);
  EXPECT_EQ(server().counts().connections_closed_busy, 0);
}

TEST_P(PoolTest, RateLimitHoldsBack) {
  auto client = MakeClient([](auto& options) { options.rate_limit_requests = 20; });
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int i = 0; i < 25; ++i) exchanges.push_back(std::move(*client->Start(Get("/bytes?n=100"), Soon())));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(exchanges[static_cast<size_t>(i)]->WaitHead(Soon()));
  // The next is due in a minute; its own deadline ends the wait, and it is never sent.
  const auto head = exchanges[20]->WaitHead(OpContext::Within(std::chrono::milliseconds(300)));
  ASSERT_FALSE(head);
  EXPECT_EQ(head.error().kind, ErrorKind::kTimeout);
  EXPECT_EQ(server().counts().total_requests, 20);
  EXPECT_GE(client->statistics().rate_limit_waits, 1);
}

TEST_P(PoolTest, MetadataPassesBulkAndStreams) {
  // Everything that bulk and streams may take is taken, for good; small requests still go through.
  auto client = MakeClient([](auto& options) {
    options.max_connections_per_origin = 8;
    options.max_streams_per_connection = 4;
    options.reserved_streams = 1;
  });
  std::vector<std::unique_ptr<Exchange>> held;
  for (int i = 0; i < 60; ++i) {
    const ServiceClass service_class = i % 2 == 0 ? ServiceClass::kBulk : ServiceClass::kStream;
    held.push_back(std::move(*client->Start(Get("/hold"), Soon(service_class))));
  }
  const int most = http2() ? 8 * 3 : 7;
  ASSERT_TRUE(Eventually([&] { return server().counts().requests_now == most; })) << server().counts().requests_now;
  for (int i = 0; i < 20; ++i) {
    const auto response = client->Fetch(Get("/bytes?n=100"), Soon(), 100);
    ASSERT_TRUE(response) << ToString(response.error());
  }
  EXPECT_LE(server().counts().max_connections, 8);
  held.clear();
  EXPECT_TRUE(Eventually([&] { return server().counts().requests_now == 0; }));
}

}  // namespace
}  // namespace e2bfs::http_test
