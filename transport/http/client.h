// HttpClient: requests to many origins over one pool of connections. The public header of this folder.
//
// HTTP/2 (own connections: OpenSSL and nghttp2) where the origin is https and ALPN agrees, HTTP/1.1 (libcurl multi) elsewhere,
// through proxies, and when asked for. One event-loop thread moves all bytes; callers block in Exchange with deadlines
// and a stop token. Nothing is buffered beyond one window per stream: back-pressure is flow control.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"

namespace e2bfs::transport::http {

// Names lower case. Values never hold CR, LF or NUL (such a request fails with kBadRequest and is not sent).
using Headers = std::vector<std::pair<std::string, std::string>>;

enum class Protocol { kUnknown, kHttp1, kHttp2 };
enum class ProtocolChoice { kAuto, kHttp1Only };

// All configurable by options and by the environment names that the official SDKs use (see FromEnvironment).
struct ClientOptions {
  int max_connections = 2000;             // in all; E2B_MAX_CONNECTIONS
  int max_connections_per_origin = 21;    // HTTP/1.1 and HTTP/2; HTTP/1.1 requests wait in the queue beyond it
  int max_idle_connections = 20;          // kept for reuse, over all origins; E2B_MAX_KEEPALIVE_CONNECTIONS
  std::chrono::milliseconds idle_expiry{300'000};        // E2B_KEEPALIVE_EXPIRY (seconds)
  int max_streams_per_connection = 100;   // or less, if the peer's SETTINGS say so
  int reserved_streams = 8;               // per connection, for kMetadata; bulk never takes them
  int max_requests = 2000;                // in flight, in all; further ones wait
  int rate_limit_requests = 50'000;       // per 60 s, kept below the public edge's 60,000 (PROTOCOL.md 2); 0: none
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds head_timeout{60'000};        // from the request's last byte (or, streaming, its start) to the response's head
  std::chrono::milliseconds idle_timeout{60'000};        // between chunks, counted only while we wait on the network
  std::chrono::milliseconds ping_timeout{5'000};         // after a missed deadline, for the PING that decides over the connection
  int stream_window_bytes = 1 << 20;      // HTTP/2 receive window of a stream: what the server can send ahead of its consumer
  int connection_window_bytes = 64 << 20; // HTTP/2: of all streams of a connection together
  ProtocolChoice protocol = ProtocolChoice::kAuto;
  std::string ca_file;                    // private authority; default: SSL_CERT_FILE / SSL_CERT_DIR, then the system's
  std::string ca_directory;
  std::string user_agent = "e2bfs";       // never browser-like: the edge would answer HTML
  // Proxies: http_proxy, https_proxy, all_proxy, no_proxy (and upper case but HTTP_PROXY) as curl reads them; origins
  // behind a proxy go by HTTP/1.1 through libcurl. Never for http:// to this machine.

  // The defaults with the environment applied. Error: kBadRequest/EINVAL naming the variable whose value is no number or out of range.
  static Result<ClientOptions> FromEnvironment();
};

struct Request {
  std::string method = "GET";
  std::string origin;       // "https://host[:port]" or "http://host[:port]": scheme, host and port only
  std::string target = "/"; // path and query, percent-encoded
  Headers headers;
  // The body as a whole; repeatable. Ignored when streamed_body.
  std::string body;
  // The body comes by Exchange::Write until FinishBody. content_length, if known, is declared (and enforced).
  bool streamed_body = false;
  std::optional<int64_t> content_length;
  // Sent again on another connection when its connection died after it was sent and before a head came. A request that
  // provably did not reach the server (nothing sent, GOAWAY below it, REFUSED_STREAM) is always sent again, silently
  // (a streamed body: only while Write has not been called). Never more than 3 tries; connections that the server gave up
  // before it acted on the request do not count, up to 10.
  bool idempotent = false;
  // Overrides of the client's deadlines; zero: the client's.
  std::chrono::milliseconds head_timeout{0};
  std::chrono::milliseconds idle_timeout{0};
  // The response's head may come while the request's body is still open and long after (StreamInput): no head deadline.
  bool no_head_timeout = false;
  // Receive window of this response, HTTP/2 (bytes); 0: the client's.
  int window_bytes = 0;
  // Exchange::Read waits a moment for so many bytes, or as many as it has room for: waking a thread for each frame costs more than the frame.
  size_t read_batch_bytes = 0;
  // Of the answer's body, as far as the caller knows: a large one may go by a connection of its own.
  int64_t expected_bytes = 0;
};

struct ResponseHead {
  int status = 0;
  Headers headers;
  Protocol protocol = Protocol::kUnknown;
  std::string_view Find(std::string_view lower_case_name) const;  // first value, or empty
};

// One request and its response. One thread at a time for the reading side and one for the writing side; Cancel from any.
// Destruction cancels what is not finished (RST_STREAM; for HTTP/1.1 the connection is closed) and never blocks.
class Exchange {
 public:
  virtual ~Exchange() = default;

  // Blocks until the final head is here. Errors: kConnect (nothing sent), kBroken, kTimeout, kProtocol, kCancelled (stop or
  // ctx.deadline passed → ETIMEDOUT/kTimeout). The status is not judged. After an error the exchange is over.
  virtual Result<ResponseHead> WaitHead(const OpContext& ctx) = 0;

  // The next bytes of the body: blocks until at least one is here, 0 at the end. The end is only reported when the
  // body is complete by the protocol's own measure (Content-Length met, last chunk, END_STREAM without RST; a torn body is kProtocol/kBroken with EIO).
  // HTTP/1.1 without length or chunks (read to close) cannot be proved complete: kProtocol at its end.
  // An idle timeout counts only while this call waits. Before the body's end is here, ctx's deadline and stop end it although bytes are.
  virtual Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) = 0;

  // Instead of waiting in Read: `readable` is called by the client's loop thread whenever TryRead has something to tell, and once at first. It must
  // not block. Null ends it: no call is under way when this returns; not from inside of it. No idle timeout applies.
  virtual void Listen(std::function<void()> readable) = 0;
  // As Read, but nullopt where that would wait.
  virtual Result<std::optional<size_t>> TryRead(char* buffer, size_t capacity) = 0;

  // Streamed request body. Blocks while the peer takes no more (bounded by idle_timeout and ctx). If the server has already
  // answered finally without reading all, returns kBroken... with the response available through WaitHead: the caller asks WaitHead after any error here.
  virtual Result<void> Write(std::string_view bytes, const OpContext& ctx) = 0;
  virtual Result<void> FinishBody(const OpContext& ctx) = 0;

  // Ends it; a thread blocked in any call above returns kCancelled/EINTR.
  virtual void Cancel() = 0;
};

struct Response {
  ResponseHead head;
  std::string body;
};

// What the pool did and holds; for status and tests. Counted since construction.
struct PoolStatistics {
  int64_t requests = 0;
  int64_t requests_now = 0;
  int64_t retries = 0;
  int64_t connections_opened = 0;
  int64_t connections_now = 0;
  int64_t idle_connections = 0;
  int64_t bytes_sent = 0;       // bodies
  int64_t bytes_received = 0;   // bodies, as on the wire
  int64_t rate_limit_waits = 0;
};

// Any thread may call it. Destruction cancels everything in flight and joins the loop; exchanges may outlive it (they fail).
class HttpClient {
 public:
  // Starts the loop thread (call after fork). kLocal if that fails, kBadRequest for a CA file that cannot be read.
  static Result<std::unique_ptr<HttpClient>> Create(ClientOptions options);
  virtual ~HttpClient() = default;

  // Queues the request and returns at once; connection errors come out of WaitHead. kBadRequest for an origin, target, method or header that cannot be sent.
  virtual Result<std::unique_ptr<Exchange>> Start(Request request, const OpContext& ctx) = 0;

  // Start, WaitHead and the whole body, which must be at most `max_body_bytes` (else kProtocol, EFBIG: a hostile server's endless answer).
  // Inflates Content-Encoding: gzip (on the caller's thread; the limit is for inflated bytes) and checks its trailer. Redirects are not followed.
  Result<Response> Fetch(Request request, const OpContext& ctx, size_t max_body_bytes);

  virtual PoolStatistics statistics() const = 0;
  // The protocol last used with the origin.
  virtual Protocol protocol_of(std::string_view origin) const = 0;
};

// Streaming inflate of a gzip body, for callers that read in pieces.
class GzipReader {
 public:
  explicit GzipReader(Exchange& exchange);
  ~GzipReader();
  // As Exchange::Read; 0 only after the gzip trailer was checked and the body ended there, kProtocol otherwise.
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "localhost", *.localhost, 127.0.0.0/8, ::1 (lower case, no brackets). Requests to http:// there go past every proxy and never leave this
// machine, so it is where a key may go unencrypted.
bool IsLoopbackHost(std::string_view host);

// "a b/ü" → "a%20b/%C3%BC": everything but unreserved characters and '/', for paths and queries.
std::string PercentEncode(std::string_view text);

// gzip-compresses a request body, level 1.
std::string GzipCompress(std::string_view bytes);

// The same for one that comes in pieces.
class GzipWriter {
 public:
  GzipWriter();
  ~GzipWriter();
  // What these bytes, and those before, give by now; with `last` all of it, trailer included. ENOMEM.
  Result<std::string> Compress(std::string_view bytes, bool last);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace e2bfs::transport::http
