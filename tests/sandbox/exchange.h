// Exchange: one HTTP request and its response, as a handler of the test sandbox sees it, whatever the protocol below.
//
// A handler is a plain blocking function with a thread of its own; the server core (server.h) implements Exchange for
// HTTP/1.1 and HTTP/2, applies latency and faults, and counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace e2bfs::sandbox {

// Names are lower case. Order is as received or sent.
using HeaderList = std::vector<std::pair<std::string, std::string>>;

class Exchange {
 public:
  virtual ~Exchange() = default;

  // --- the request; its head is complete before the handler starts
  virtual const std::string& method() const = 0;
  virtual const std::string& path() const = 0;   // percent-decoded, without the query
  virtual const std::string& raw_query() const = 0;
  virtual const HeaderList& headers() const = 0;
  // The first header of that (lower-case) name.
  std::optional<std::string> Header(std::string_view name) const;
  // The first query parameter of that name, percent-decoded ('+' is a space, as in Go).
  std::optional<std::string> Query(std::string_view name) const;
  // The next bytes of the body, blocking until some are there: at most `capacity`, 0 at its end. Nullopt when the
  // client went away or broke the framing before the end. Reads only what it is asked for: an unread body stops the
  // client by TCP or by the stream's window.
  virtual std::optional<size_t> ReadBody(char* buffer, size_t capacity) = 0;
  // Whole body; nullopt if torn or longer than `limit`.
  std::optional<std::string> ReadWholeBody(size_t limit = size_t{64} << 20);

  // --- the response
  // Once. Without a content-length header the body is chunked (HTTP/1.1) or ends with END_STREAM (HTTP/2).
  virtual void SendHead(int status, const HeaderList& headers) = 0;
  // Blocks while the client does not take more. False when nobody will: the handler should clean up and return.
  [[nodiscard]] virtual bool Write(std::string_view bytes) = 0;
  // A response in one go, content-length included. After it the handler returns.
  void Reply(int status, HeaderList headers, std::string_view body);
  // The connection or stream is torn down without a proper end when the handler returns (an aborting Go handler).
  virtual void Abort() = 0;
  // True once the client has gone away (reset, closed); watched without reading. For handlers that stream events.
  virtual bool ClientGone() = 0;

  // What came in for a process by StreamInput, to be counted.
  virtual void CountInput(int64_t bytes, int64_t frames) { (void)bytes, (void)frames; }
  // Of the connection that the request came by; 0 if there is none.
  virtual uint64_t connection_id() const { return 0; }
};

// Returning ends the response. Must not throw.
using Handler = std::function<void(Exchange&)>;

}  // namespace e2bfs::sandbox
