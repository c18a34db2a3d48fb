#include "transport/envd/client_core.h"

#include <algorithm>

#include "transport/base/log.h"
#include "transport/base/metrics.h"
#include "transport/envd/base64.h"
#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

constexpr std::chrono::seconds kProbeValidity{2};
constexpr size_t kGzipRequestBytes = size_t{16} << 10;  // larger unary requests are compressed: arguments and inputs of size
constexpr std::string_view kStreamContentType = "application/connect+json";

bool IsStreamContentType(std::string_view value) { return value.substr(0, value.find(';')) == kStreamContentType; }

}  // namespace

ClientCore::ClientCore(http::HttpClient& http_client, std::shared_ptr<SandboxEndpoint> sandbox, Capabilities can, ClientOptions how)
    : http(http_client),
      endpoint(std::move(sandbox)),
      capabilities(std::move(can)),
      options(std::move(how)),
      // envd < 0.4.0 knows no default user (PROTOCOL.md 2).
      user(options.user.empty() && !capabilities.default_user ? "user" : options.user),
      compression(options.compress && capabilities.octet_stream_upload && capabilities.gzip_upload) {}

http::Request ClientCore::MakeRequest(const char* method, std::string target) const {
  http::Request request;
  request.method = method;
  request.origin = endpoint->origin();
  request.target = endpoint->path_prefix() + std::move(target);
  request.headers = endpoint->RequestHeaders();
  return request;
}

http::Request ClientCore::MakeRpcRequest(const char* procedure, const char* content_type) const {
  http::Request request = MakeRequest("POST", procedure);
  request.headers.emplace_back("content-type", content_type);
  request.headers.emplace_back("connect-protocol-version", "1");
  if (!user.empty()) request.headers.emplace_back("authorization", "Basic " + Base64Encode(user + ":"));
  return request;
}

std::string ClientCore::FilesTarget(std::string_view path) const {
  std::string target = "/files?path=" + http::PercentEncode(path);
  if (!user.empty()) target += "&username=" + http::PercentEncode(user);
  return target;
}

Error ClientCore::AnswerError(const http::ResponseHead& head, std::string_view body, Answer& answer) {
  if (const auto value = head.Find("retry-after"); !value.empty()) {
    answer.retry_after = ParseRetryAfter(value, std::chrono::system_clock::now());
  }
  return FromHttpAnswer(head, body);
}

Error ClientCore::ReadError(http::Exchange& exchange, const http::ResponseHead& head, Answer& answer, const OpContext& ctx) const {
  std::string body;
  char buffer[4096];
  while (body.size() < kMaxErrorBytes) {
    const auto count = exchange.Read(buffer, sizeof buffer, ctx);
    if (!count || *count == 0) break;
    body.append(buffer, *count);
  }
  return AnswerError(head, body, answer);
}

Result<std::string> ClientCore::Unary(const char* procedure, const std::string& body, Repeat repeat, const OpContext& ctx,
                                      size_t max_bytes) {
  return Try(repeat, ctx, [&](Answer& answer) -> Result<std::string> {
    http::Request request = MakeRpcRequest(procedure, "application/json");
    request.headers.emplace_back("accept-encoding", "gzip");
    request.idempotent = repeat == Repeat::kIdempotent;
    if (body.size() >= kGzipRequestBytes) {
      request.body = http::GzipCompress(body);
      request.headers.emplace_back("content-encoding", "gzip");
    } else {
      request.body = body;
    }
    auto response = http.Fetch(std::move(request), ctx, max_bytes);
    if (!response) return Forward(std::move(response.error()));
    if (response->head.status != 200) return Forward(AnswerError(response->head, response->body, answer));
    return std::move(response->body);
  });
}

Result<std::unique_ptr<MessageStream>> ClientCore::OpenStream(const char* procedure, const std::string& message, Repeat repeat,
                                                              int64_t kill_after_ms, const OpContext& ctx) {
  return Try(repeat, ctx, [&](Answer& answer) { return OpenStreamOnce(procedure, message, repeat, kill_after_ms, answer, ctx); });
}

Result<std::unique_ptr<MessageStream>> ClientCore::OpenStreamOnce(const char* procedure, const std::string& message, Repeat repeat,
                                                                  int64_t kill_after_ms, Answer& answer, const OpContext& ctx) {
  http::Request request = MakeRpcRequest(procedure, "application/connect+json");
  request.headers.emplace_back("keepalive-ping-interval", std::to_string(options.keepalive_seconds));
  if (kill_after_ms > 0) request.headers.emplace_back("connect-timeout-ms", std::to_string(kill_after_ms));
  request.idempotent = repeat == Repeat::kIdempotent;
  request.body = EncodeEnvelope(message);
  // Two missed keep-alives and some more: then nobody is there.
  request.idle_timeout = std::chrono::seconds(2 * options.keepalive_seconds + 20);
  auto exchange = http.Start(std::move(request), ctx);
  if (!exchange) return Forward(std::move(exchange.error()));
  auto head = (*exchange)->WaitHead(ctx);
  if (!head) return Forward(std::move(head.error()));
  if (head->status != 200) return Forward(ReadError(**exchange, *head, answer, ctx));
  if (!IsStreamContentType(head->Find("content-type"))) {
    return Failure(ErrorKind::kProtocol, EIO, "envd's answer: not a stream of messages");
  }
  return std::make_unique<MessageStream>(shared_from_this(), std::move(*exchange));
}

bool ClientCore::IsRefusedToken(const Error& error) {
  // An unknown user is "unauthenticated" too; asking for the token again then finds the same one, and that is the end of it.
  return error.kind == ErrorKind::kUnauthorized && error.http_status == 401;
}

bool ClientCore::RefreshTokens(uint64_t generation, const OpContext& ctx) const {
  const auto fresh = endpoint->RefreshTokens(generation, ctx);
  if (!fresh) log::Warning("envd", "cannot refresh the sandbox's token: {}", ToString(fresh.error()));
  return fresh && *fresh;
}

Result<void> ClientCore::Health(const OpContext& ctx) const {
  http::Request request = MakeRequest("GET", "/health");
  request.headers.emplace_back("accept", "application/json");
  request.idempotent = true;
  auto response = http.Fetch(std::move(request), ctx, kMaxErrorBytes);
  if (!response) return Forward(std::move(response.error()));
  if (response->head.status >= 200 && response->head.status < 300) return {};
  Answer ignored;
  return Forward(AnswerError(response->head, response->body, ignored));
}

Error ClientCore::Examine(Error error, const OpContext& ctx) {
  const bool lost = error.kind == ErrorKind::kBroken || error.kind == ErrorKind::kTimeout || error.kind == ErrorKind::kConnect;
  // What envd itself said needs no probe: it is there.
  if (!lost || !error.rpc_code.empty() || ctx.stop.stop_requested() || Clock::now() >= ctx.deadline) return error;
  {
    const std::lock_guard lock(probe_mutex_);
    if (probed_at_ && Clock::now() - *probed_at_ < kProbeValidity) return not_running_.value_or(std::move(error));
    if (probing_) return error;
    probing_ = true;
  }
  static Counter& probes = Metrics::Get("envd.health_probes_count");
  probes.Add();
  OpContext probe = ctx;
  probe.deadline = std::min(ctx.deadline, Clock::now() + options.health_timeout);
  probe.service_class = ServiceClass::kMetadata;
  const auto health = Health(probe);
  const std::lock_guard lock(probe_mutex_);
  probing_ = false;
  probed_at_ = Clock::now();
  not_running_.reset();
  if (!health && health.error().kind == ErrorKind::kNotRunning) not_running_ = health.error();
  return not_running_.value_or(std::move(error));
}

Result<std::optional<std::string>> MessageStream::Next(const OpContext& ctx) {
  if (error_) return Forward(*error_);
  if (ended_) return std::nullopt;
  auto message = Pull(ctx);
  if (!message) {
    error_ = probes_ ? core_->Examine(std::move(message.error()), ctx) : std::move(message.error());
    exchange_->Cancel();
    return Forward(*error_);
  }
  return message;
}

void MessageStream::Listen(std::function<void(Result<std::optional<std::string>>)> take) {
  if (!take) return exchange_->Listen(nullptr);
  exchange_->Listen([this, take = std::move(take)] {
    while (!error_ && !ended_) {
      auto message = TryPull();
      if (!message) {
        error_ = message.error();
        exchange_->Cancel();
      } else if (!*message && !ended_) {
        return;  // not there yet
      }
      take(std::move(message));
    }
  });
}

// What is decoded already; nullopt: more bytes are needed.
Result<std::optional<std::string>> MessageStream::Decode() {
  auto envelope = decoder_.Next();
  if (!envelope) return Forward(std::move(envelope.error()));
  if (!*envelope) return std::nullopt;
  if (!(*envelope)->end_of_stream) return std::move((*envelope)->payload);
  auto end = DecodeEndOfStream((*envelope)->payload);
  if (!end) return Forward(std::move(end.error()));
  if (*end) return Forward(FromRpcError(200, (*end)->rpc_code, (*end)->message));
  // The body ends here and nowhere else; reading to its end also gives the connection back.
  end_told_ = true;
  return std::nullopt;
}

// The body's next bytes, none at its end.
Result<void> MessageStream::Take(std::string_view bytes) {
  decoder_.Feed(bytes);
  if (!bytes.empty() && !end_told_) return {};
  if (auto finished = decoder_.Finish(); !finished) return finished;
  ended_ = true;
  return {};
}

Result<std::optional<std::string>> MessageStream::Pull(const OpContext& ctx) {
  char buffer[16384];
  while (true) {
    auto message = Decode();
    if (!message || *message) return message;
    auto count = exchange_->Read(buffer, sizeof buffer, ctx);
    if (!count) return Forward(std::move(count.error()));
    if (auto taken = Take(std::string_view(buffer, *count)); !taken) return Forward(std::move(taken.error()));
    if (ended_) return std::nullopt;
  }
}

// nullopt: nothing yet, or ended_.
Result<std::optional<std::string>> MessageStream::TryPull() {
  char buffer[16384];
  while (true) {
    auto message = Decode();
    if (!message || *message) return message;
    auto count = exchange_->TryRead(buffer, sizeof buffer);
    if (!count) return Forward(std::move(count.error()));
    if (!*count) return std::nullopt;
    if (auto taken = Take(std::string_view(buffer, **count)); !taken) return Forward(std::move(taken.error()));
    if (ended_) return std::nullopt;
  }
}

}  // namespace e2bfs::transport::envd
