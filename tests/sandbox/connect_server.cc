#include "tests/sandbox/connect_server.h"

#include <array>
#include <charconv>
#include <utility>

#include "tests/sandbox/gzip.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kDrainLimit = size_t{256} << 10;
constexpr size_t kShortBody = 2048;  // what Go's response writer buffers before it decides for chunks
constexpr size_t kMessageLimit = size_t{256} << 20;

int RpcStatusCode(std::string_view code) {
  static constexpr std::pair<std::string_view, int> kStatus[] = {
      {"canceled", 499},           {"invalid_argument", 400},    {"deadline_exceeded", 504},
      {"not_found", 404},          {"already_exists", 409},      {"permission_denied", 403},
      {"resource_exhausted", 429}, {"failed_precondition", 400}, {"aborted", 409},
      {"out_of_range", 400},       {"unimplemented", 501},       {"unavailable", 503},
      {"unauthenticated", 401},
  };
  for (const auto& [name, status] : kStatus) {
    if (name == code) {
      return status;
    }
  }
  return 500;
}

// connect-go looks for the exact token: "gzip;q=1" is not "gzip".
bool ListsGzipToken(std::string_view header) {
  size_t at = 0;
  while (at < header.size()) {
    const size_t end = std::min(header.find_first_of(", ", at), header.size());
    if (header.substr(at, end - at) == "gzip") {
      return true;
    }
    at = end + 1;
  }
  return false;
}

std::string MediaTypeOf(const Exchange& exchange) {
  std::string type = exchange.Header("content-type").value_or("");
  for (char& c : type) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return type;
}

// 405 and 415, as connect-go's handler answers them. True if the request may go on.
bool AcceptRpcRequest(Exchange& exchange, std::initializer_list<std::string_view> media_types) {
  if (exchange.method() != "POST") {
    exchange.Reply(405, {{"allow", "POST"}}, "");
    return false;
  }
  const std::string type = MediaTypeOf(exchange);
  for (const std::string_view accepted : media_types) {
    if (type == accepted) {
      return true;
    }
  }
  DrainRequestBody(exchange);
  exchange.Reply(
      415, {{"accept-post", "application/json, application/json; charset=utf-8, application/connect+json"}},
      "");
  return false;
}

std::string ServiceAndMethod(std::string_view procedure) {
  const size_t dot = procedure.find('.');
  const size_t slash = procedure.rfind('/');
  if (dot == std::string_view::npos || slash == std::string_view::npos || slash <= dot) {
    return std::string(procedure);
  }
  std::string text(procedure.substr(dot + 1, slash - dot - 1));
  std::string method(procedure.substr(slash + 1));
  if (!method.empty()) {
    method[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(method[0])));
  }
  return text + " " + method;
}

void ReplyRpcError(Exchange& exchange, const RpcError& error) {
  exchange.Reply(RpcStatusCode(error.code),
                 {{"content-type", "application/json"}, {"accept-encoding", "gzip"}}, RpcErrorJson(error));
}

RpcResult<std::string> ReadUnaryBody(Exchange& exchange) {
  auto body = exchange.ReadWholeBody(kMessageLimit);
  if (!body) {
    return RpcFailure("invalid_argument", "read message: unexpected EOF");
  }
  const std::string encoding = exchange.Header("content-encoding").value_or("");
  if (encoding.empty() || encoding == "identity") {
    return std::move(*body);
  }
  if (encoding != "gzip") {
    return RpcFailure("unimplemented",
                      "unknown compression \"" + encoding + "\": supported encodings are gzip");
  }
  if (body->empty()) {
    return std::string();
  }
  auto plain = GzipExpand(*body, kMessageLimit);
  if (!plain) {
    return RpcFailure("invalid_argument", "decompress: gzip: invalid data");
  }
  return std::move(*plain);
}

}  // namespace

std::string RpcErrorJson(const RpcError& error) {
  std::string message = error.message;
  if (!IsUtf8(message)) {
    for (char& c : message) {
      c = static_cast<unsigned char>(c) >= 0x80 ? '?' : c;
    }
  }
  JsonText json;
  json.BeginObject().Field("code", error.code).Field("message", message).EndObject();
  return json.TakeText();
}

RpcResult<std::string> EncodedMessage(JsonText&& json) {
  if (!json.valid()) {
    return RpcFailure("internal", "marshal message: string field contains invalid UTF-8");
  }
  return json.TakeText();
}

void DrainRequestBody(Exchange& exchange) {
  std::array<char, 16384> scrap;
  size_t total = 0;
  while (total < kDrainLimit) {
    const auto got = exchange.ReadBody(scrap.data(), scrap.size());
    if (!got || *got == 0) {
      return;
    }
    total += *got;
  }
}

void ReplyAsGo(Exchange& exchange, int status, HeaderList headers, std::string_view body) {
  if (body.size() <= kShortBody) {
    exchange.Reply(status, std::move(headers), body);
    return;
  }
  exchange.SendHead(status, headers);
  (void)exchange.Write(body);
}

void ServeUnary(Exchange& exchange, EnvdLog& log, const std::string& procedure,
                const std::function<RpcResult<std::string>(const JsonMessage&)>& method) {
  if (!AcceptRpcRequest(exchange, {"application/json", "application/json; charset=utf-8"})) {
    return;
  }
  const auto body = ReadUnaryBody(exchange);
  if (!body) {
    ReplyRpcError(exchange, body.error());
    return;
  }
  std::string parse_error;
  const auto request = JsonMessage::Parse(*body, &parse_error);
  if (!request) {
    ReplyRpcError(exchange, {"invalid_argument", "unmarshal message: " + parse_error});
    return;
  }
  auto response = method(*request);
  if (!request->error().empty()) {
    ReplyRpcError(exchange, {"invalid_argument", "unmarshal message: " + request->error()});
    return;
  }
  std::vector<std::pair<std::string, std::string>> fields = {{"method", LogString("POST " + procedure)},
                                                             {"request", *body}};
  if (response) {
    fields.emplace_back("response", *response);
  } else {
    fields.emplace_back("error", LogString(response.error().code + ": " + response.error().message));
  }
  log.Line(ServiceAndMethod(procedure), fields);
  if (!response) {
    ReplyRpcError(exchange, response.error());
    return;
  }
  HeaderList headers = {
      {"content-type", "application/json"}, {"accept-encoding", "gzip"}, {"vary", "Origin"}};
  if (ListsGzipToken(exchange.Header("accept-encoding").value_or(""))) {
    headers.emplace_back("content-encoding", "gzip");
    ReplyAsGo(exchange, 200, std::move(headers), GzipCompress(*response));
  } else {
    ReplyAsGo(exchange, 200, std::move(headers), *response);
  }
}

RpcStream::RpcStream(Exchange& exchange, EnvdLog& log, std::string procedure, Kind kind)
    : exchange_(exchange), log_(log), procedure_(std::move(procedure)), kind_(kind) {}

bool RpcStream::Open() {
  if (!AcceptRpcRequest(exchange_, {"application/connect+json"})) {
    return false;
  }
  gzip_out_ = ListsGzipToken(exchange_.Header("connect-accept-encoding").value_or(""));
  const std::string encoding = exchange_.Header("connect-content-encoding").value_or("identity");
  if (encoding == "gzip") {
    gzip_in_ = true;
  } else if (!encoding.empty() && encoding != "identity") {
    gzip_out_ = false;
    End(RpcError{"unimplemented", "unknown compression \"" + encoding + "\": supported encodings are gzip"});
    return false;
  }
  if (const auto timeout = exchange_.Header("connect-timeout-ms"); timeout && !timeout->empty()) {
    int64_t milliseconds = 0;
    const auto [end, ec] = std::from_chars(timeout->data(), timeout->data() + timeout->size(), milliseconds);
    if (ec != std::errc() || end != timeout->data() + timeout->size() || timeout->size() > 10) {
      End(RpcError{"invalid_argument", "parse timeout: \"" + *timeout + "\""});
      return false;
    }
    deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
  }
  if (const auto interval = exchange_.Header("keepalive-ping-interval")) {
    int64_t seconds = 0;
    const auto [end, ec] = std::from_chars(interval->data(), interval->data() + interval->size(), seconds);
    if (ec == std::errc() && end == interval->data() + interval->size()) {
      keepalive_seconds_ = seconds;
    }
  }
  return true;
}

std::optional<JsonMessage> RpcStream::Receive(bool* torn, std::optional<RpcError>* error) {
  *torn = false;
  const auto read_exactly = [&](char* into, size_t size) {
    size_t have = 0;
    while (have < size) {
      const auto got = exchange_.ReadBody(into + have, size - have);
      if (!got || *got == 0) {
        *torn = !got || have > 0;
        return false;
      }
      have += *got;
    }
    return true;
  };
  std::array<char, 5> head;
  if (!read_exactly(head.data(), head.size())) {
    return std::nullopt;
  }
  size_t size = 0;
  for (int i = 1; i < 5; ++i) {
    size = size << 8 | static_cast<unsigned char>(head[i]);
  }
  if (size > kMessageLimit) {
    *error = RpcError{"resource_exhausted", "message size " + std::to_string(size) + " exceeds the limit"};
    return std::nullopt;
  }
  std::string payload(size, '\0');
  if (size > 0 && !read_exactly(payload.data(), size)) {
    *torn = true;
    return std::nullopt;
  }
  if ((head[0] & 1) != 0) {
    auto plain = gzip_in_ ? GzipExpand(payload, kMessageLimit) : std::nullopt;
    if (!plain) {
      *error = RpcError{gzip_in_ ? "invalid_argument" : "internal",
                        "protocol error: compressed message cannot be expanded"};
      return std::nullopt;
    }
    payload = std::move(*plain);
  }
  std::string reason;
  auto message = JsonMessage::Parse(payload, &reason);
  if (!message) {
    *error = RpcError{"invalid_argument", "unmarshal message: " + reason};
  } else if (kind_ == Kind::kServerStream) {
    log_.Line(ServiceAndMethod(procedure_) + " (server stream start)",
              {{"method", LogString("POST " + procedure_)}, {"request", payload}});
  }
  return message;
}

std::optional<JsonMessage> RpcStream::ReceiveRequest() {
  bool torn = false;
  std::optional<RpcError> error;
  auto request = Receive(&torn, &error);
  if (error) {
    End(error);
    return std::nullopt;
  }
  if (!request) {
    End(torn ? RpcError{"invalid_argument", "protocol error: incomplete envelope: unexpected EOF"}
             : RpcError{"unimplemented", "unary request has zero messages"});
  }
  return request;
}

void RpcStream::SendHeadOnce() {
  if (head_sent_) {
    return;
  }
  head_sent_ = true;
  DrainRequestBody(exchange_);
  HeaderList headers = {
      {"content-type", "application/connect+json"}, {"connect-accept-encoding", "gzip"}, {"vary", "Origin"}};
  if (gzip_out_) {
    headers.emplace_back("connect-content-encoding", "gzip");
  }
  exchange_.SendHead(200, headers);
}

bool RpcStream::SendEnvelope(uint8_t flags, std::string_view payload) {
  SendHeadOnce();
  std::string compressed;
  if (gzip_out_) {
    compressed = GzipCompress(payload);
    payload = compressed;
    flags |= 1;
  }
  std::string envelope;
  envelope.reserve(5 + payload.size());
  envelope += static_cast<char>(flags);
  for (int shift = 24; shift >= 0; shift -= 8) {
    envelope += static_cast<char>(payload.size() >> shift & 0xFF);
  }
  envelope += payload;
  return exchange_.Write(envelope);
}

bool RpcStream::Send(std::string_view json) { return SendEnvelope(0, json); }

void RpcStream::End(const std::optional<RpcError>& error) {
  std::string payload = "{}";
  std::vector<std::pair<std::string, std::string>> fields = {{"method", LogString("POST " + procedure_)}};
  if (error) {
    payload = "{\"error\":" + RpcErrorJson(*error) + "}";
    fields.emplace_back("error", LogString(error->code + ": " + error->message));
  }
  log_.Line(ServiceAndMethod(procedure_) +
                (kind_ == Kind::kServerStream ? " (server stream end)" : " (client stream end)"),
            fields);
  (void)SendEnvelope(2, payload);
}

}  // namespace e2bfs::sandbox
