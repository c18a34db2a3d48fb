// The server side of the Connect protocol with the JSON codec, as connect-go speaks it: unary calls, one
// request with a stream of answers, and a stream of requests with one answer.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>

#include "tests/sandbox/envd_log.h"
#include "tests/sandbox/exchange.h"
#include "tests/sandbox/json_text.h"

namespace e2bfs::sandbox {

struct RpcError {
  std::string code;  // Connect's name of it, "not_found"
  std::string message;
};
template <typename T>
using RpcResult = tl::expected<T, RpcError>;

inline tl::unexpected<RpcError> RpcFailure(std::string code, std::string message) {
  return tl::make_unexpected(RpcError{std::move(code), std::move(message)});
}

// {"code":…,"message":…}
std::string RpcErrorJson(const RpcError& error);
// The message's text, or `internal` if a string in it is not UTF-8, as protobuf's encoder says.
RpcResult<std::string> EncodedMessage(JsonText&& json);

// Go reads what is left of a request's body, up to 256 KiB, before it sends a response's head: so nothing is
// answered while a client holds its request open.
void DrainRequestBody(Exchange& exchange);

// Replies with `body`: with a length if it is short, chunked otherwise, as Go does.
void ReplyAsGo(Exchange& exchange, int status, HeaderList headers, std::string_view body);

// Answers one unary call; `method` gets the request and returns the response's JSON. Whole request and
// response are logged. `procedure` is "/filesystem.Filesystem/Stat".
void ServeUnary(Exchange& exchange, EnvdLog& log, const std::string& procedure,
                const std::function<RpcResult<std::string>(const JsonMessage&)>& method);

// A streaming call: envelopes in, envelopes out. One handler's thread.
class RpcStream {
 public:
  // Of a server stream the request is logged, of a client stream only that it began and ended.
  enum class Kind { kServerStream, kClientStream };
  RpcStream(Exchange& exchange, EnvdLog& log, std::string procedure, Kind kind);
  // False if the request was refused as a whole (wrong media type, method, compression) and answered.
  bool Open();
  // The next message of the request. Nullopt at its end: *torn tells whether it broke off instead; *error is
  // set if the message is no JSON object.
  std::optional<JsonMessage> Receive(bool* torn, std::optional<RpcError>* error);
  // Receive for the one request of a server stream; ends the stream with an error if there is none.
  std::optional<JsonMessage> ReceiveRequest();
  // Sends a message; false when nobody listens any more.
  [[nodiscard]] bool Send(std::string_view json);
  // The last envelope.
  void End(const std::optional<RpcError>& error);
  // When Connect-Timeout-Ms passes; nullopt without that header.
  std::optional<std::chrono::steady_clock::time_point> deadline() const { return deadline_; }
  // Seconds between keep-alive events: Keepalive-Ping-Interval, 90 without it; 0 and less kill a real envd.
  int64_t keepalive_seconds() const { return keepalive_seconds_; }
  bool ClientGone() { return exchange_.ClientGone(); }
  void Abort() { exchange_.Abort(); }
  EnvdLog& log() { return log_; }

 private:
  bool SendEnvelope(uint8_t flags, std::string_view payload);
  void SendHeadOnce();
  Exchange& exchange_;
  EnvdLog& log_;
  std::string procedure_;
  Kind kind_;
  bool head_sent_ = false;
  bool gzip_in_ = false;
  bool gzip_out_ = false;
  std::optional<std::chrono::steady_clock::time_point> deadline_;
  int64_t keepalive_seconds_ = 90;
};

}  // namespace e2bfs::sandbox
