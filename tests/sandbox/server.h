// The server core of the test sandbox: listens, speaks HTTP/1.1 in clear and HTTP/1.1 or HTTP/2 (by ALPN) over TLS,
// gives each request to a handler, injects faults by count and position, and counts what happened.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sandbox/exchange.h"

namespace e2bfs::sandbox {

// What to do to requests; set by tests in process or over HTTP (POST /_test/faults, a JSON array of these fields).
// A fault applies to requests whose "METHOD path" starts with or contains `match` (see `match`), skips the first
// `skip` of them, then acts on the next `count`, and is gone. A request gets the delays of every fault that it matches
// and one other action: of several, the first added acts, and the others wait for the next request.
struct Fault {
  std::string match;        // substring of "POST /filesystem.Filesystem/Stat" or "GET /files?path=..." ; empty: every request
  int skip = 0;
  int count = 1;            // -1: for ever, until cleared
  std::string action;       // see kinds below
  int64_t at_byte = 0;      // for actions on a body: after how many body bytes
  int status = 0;           // for "status"
  std::string body;         // for "status" and "replace_body"
  std::string content_type = "application/json";
  int64_t delay_ms = 0;     // for "delay": before the head; for "late_request". For "status": Retry-After is not sent
  // Actions:
  //   "status"            answer with `status` and `body`, the handler is not run
  //   "delay"             wait delay_ms before the handler runs
  //   "stall"             the response stops for ever after at_byte body bytes (-1: before the head); the handler did run to there
  //   "stall_request"     the request body is not read beyond at_byte bytes
  //   "reset"             TCP reset (HTTP/1.1) or RST_STREAM (HTTP/2) after at_byte response body bytes (-1: before the head, handler
  //                       not run; -2: before the head, after the handler did all of its work)
  //   "close"             like "reset", but the whole connection is closed cleanly (FIN), whatever else is on it
  //   "cut"               the body ends at at_byte as if it were complete: HTTP/2 END_STREAM, HTTP/1.1 terminating chunk
  //                       (or close where a content-length was promised)
  //   "reset_request"     reset after at_byte bytes of the request's body were read; the handler sees a torn body
  //   "late_request"      what the request's body has beyond at_byte bytes is held back until the client has gone or ended it, and delay_ms more;
  //                       then the handler gets it, as bytes that a proxy still had
  //   "refuse"            HTTP/2 REFUSED_STREAM, handler not run (HTTP/1.1: close before reading the request)
  //   "goaway"            GOAWAY with the last stream that was begun; this request is still served
  //   "goaway_refuse"     GOAWAY below this stream, which is not served, then close when the others are done
  //   "freeze"            the whole connection goes silent (no reads, no writes, no PING answers) until the client closes it
  //   "replace_body"      200 with `body` and `content_type`, the handler is not run
  // A response that ends before at_byte is not touched. ClearFaults closes the whole connection of what is stalled.
};

struct ServerOptions {
  std::string listen = "127.0.0.1:0";  // HTTP/1.1 in clear; loopback addresses only; port 0: any; empty: none
  std::string tls_listen;              // TLS with ALPN h2 and http/1.1; empty: none
  std::string certificate_file;        // PEM; empty: a self-signed one is made (SANs: localhost, *.localhost, 127.0.0.1, ::1, extra names)
  std::string key_file;
  // More DNS names for the certificate, "*.e2b.localhost" for example: OpenSSL matches no wildcard with one label only.
  std::vector<std::string> extra_names;
  bool tls_http1_only = false;         // ALPN offers http/1.1 only
  int max_concurrent_streams = 100;
  int initial_window_bytes = 65535;
  int64_t latency_ms = 0;              // added before each response's head
  int max_connections = 0;             // beyond: closed at accept; 0: no limit
};

// Counted since start or the last reset. Requests to /_test/... are not counted.
struct ServerCounts {
  std::map<std::string, int64_t> requests;  // by "METHOD path", path without query; uploads and downloads as "GET /files"
  int64_t total_requests = 0;
  // The longest chain of requests each of which came after the answer to the one before it had begun: at least as many
  // as the round trips that somebody waited for one after the other.
  int64_t sequence = 0;
  int64_t connections_opened = 0;
  int64_t connections_now = 0;
  int64_t max_connections = 0;              // highest number at one time
  int64_t connections_closed_busy = 0;      // closed by the client with a request unanswered
  int64_t request_body_bytes = 0;
  int64_t response_body_bytes = 0;
  int64_t input_bytes = 0;                  // for processes, by StreamInput
  int64_t input_frames = 0;                 // that are the syscall server's (docs/syscall-tier.md)
  int64_t requests_now = 0;
  int64_t max_requests = 0;
  std::map<std::string, int64_t> by_sandbox;  // by E2b-Sandbox-Id header
  int64_t http2_requests = 0;
};

class Server {
 public:
  // Starts to listen and to serve at once. Throws std::runtime_error with a clear text if it cannot (port in use,
  // not a loopback address).
  Server(ServerOptions options, Handler handler);
  // Stops listening, ends every connection and waits for the handlers (their reads and writes fail at once).
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;       // of the clear listener, 0 if none
  int tls_port() const;   // of the TLS listener, 0 if none
  const std::string& certificate_pem() const;  // what a client has to trust

  void AddFault(Fault fault);
  void ClearFaults();     // also lets go what is stalled or frozen (such connections are closed)
  ServerCounts counts() const;
  void ResetCounts();
  void set_latency_ms(int64_t latency_ms);
  // GOAWAY (or "Connection: close" for HTTP/1.1) on every connection, now.
  void GoAwayAll();
  // Every connection is reset, now; but not the one of this id (see Exchange::connection_id).
  void ResetAll(uint64_t except_connection = 0);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Handles /_test/faults (POST adds, DELETE clears), /_test/counts (GET, POST resets), /_test/latency?ms=N, /_test/goaway,
// /_test/reset (of all other connections) for `server`, each done when it is answered; false if the path is not one of these. Called by the core before the handler.
bool HandleTestRequest(Server& server, Exchange& exchange);

}  // namespace e2bfs::sandbox
