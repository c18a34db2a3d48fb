#include "transport/control_plane.h"

#include <utility>

#include "transport/platform_messages.h"
#include "transport/retry.h"

namespace e2bfs::transport {
namespace {

constexpr size_t kMaxPlatformAnswerBytes = size_t{32} << 20;
constexpr int kPlatformPageSize = 100;
constexpr int64_t kLeastTimeoutSeconds = 1;

Error PlatformError(const http::Response& response) {
  Error error;
  error.http_status = response.head.status;
  const std::string said = DecodePlatformMessage(response.body);
  const auto set = [&](ErrorKind kind, int errno_value, const char* text) {
    error.kind = kind;
    error.errno_value = errno_value;
    error.message = said.empty() ? text : std::string(text) + ": " + said;
  };
  switch (error.http_status) {
    case 400: set(ErrorKind::kBadRequest, EINVAL, "the platform refused the request"); break;
    case 401: set(ErrorKind::kUnauthorized, EACCES, "the platform refused the API key"); break;
    case 403: set(ErrorKind::kUnauthorized, EACCES, "the API key may not do this"); break;
    case 404: set(ErrorKind::kErrno, ENOENT, "no such sandbox"); break;
    case 409: set(ErrorKind::kUnavailable, EAGAIN, "the sandbox's state is changing"); break;
    case 429: set(ErrorKind::kRateLimited, EAGAIN, "the platform's rate limit"); break;
    default:
      if (error.http_status >= 500) {
        set(ErrorKind::kUnavailable, EIO, "the platform is not available");
      } else {
        set(ErrorKind::kProtocol, EIO, "the platform's unexpected answer");
      }
  }
  return error;
}

Result<void> CheckSandboxId(const std::string& id) {
  if (IsSandboxId(id)) return {};
  return Failure(ErrorKind::kBadRequest, EINVAL, "not a sandbox id (letters, digits, '-' and '_')");
}

}  // namespace

std::string_view ToString(SandboxState state) {
  switch (state) {
    case SandboxState::kRunning: return "running";
    case SandboxState::kPaused: return "paused";
    case SandboxState::kUnknown: return "unknown";
  }
  return "unknown";
}

Result<std::unique_ptr<ControlPlane>> ControlPlane::Create(http::HttpClient& http, const Environment& environment, Secret api_key) {
  std::string url = environment.api_url;
  const char* what = "E2B_API_URL";
  if (url.empty() && environment.debug) {
    url = "http://localhost:3000";
  } else if (url.empty()) {
    what = "E2B_DOMAIN";
    if (environment.domain.find_first_of("/@:?#") != std::string::npos) {
      return Failure(ErrorKind::kBadRequest, EINVAL, "E2B_DOMAIN is not a domain");
    }
    url = "https://api." + environment.domain;
  }
  auto parsed = ParseUrl(url, what);
  if (!parsed) return Forward(parsed.error());
  if (!parsed->https && !http::IsLoopbackHost(parsed->host)) {
    return Failure(ErrorKind::kBadRequest, EACCES,
                   std::string(what) + ": the API key would travel unencrypted over http:// to another machine; use https://");
  }
  std::unique_ptr<ControlPlane> platform(new ControlPlane(http, std::move(api_key)));
  platform->origin_ = std::move(parsed->origin);
  platform->path_prefix_ = std::move(parsed->path);
  return platform;
}

Result<http::Response> ControlPlane::Ask(const char* method, std::string target, std::string body, bool idempotent,
                                         const OpContext& ctx) {
  Retrier retrier(idempotent ? Repeat::kIdempotent : Repeat::kOnce, ctx);
  while (true) {
    http::Request request;
    request.method = method;
    request.origin = origin_;
    request.target = path_prefix_ + target;
    request.idempotent = idempotent;
    request.body = body;
    request.headers = {{"accept", "application/json"}, {"accept-encoding", "gzip"}};
    if (!body.empty()) request.headers.emplace_back("content-type", "application/json");
    if (!api_key_.empty()) request.headers.emplace_back("x-api-key", api_key_.Reveal());
    auto response = http_.Fetch(std::move(request), ctx, kMaxPlatformAnswerBytes);
    if (response && response->head.status >= 200 && response->head.status < 300) return response;
    std::optional<std::chrono::milliseconds> retry_after;
    if (response) retry_after = ParseRetryAfter(response->head.Find("retry-after"), std::chrono::system_clock::now());
    const Error error = response ? PlatformError(*response) : std::move(response.error());
    if (auto again = retrier.WaitToRepeat(error, retry_after); !again) return Forward(std::move(again.error()));
  }
}

Result<std::vector<SandboxSummary>> ControlPlane::List(const ListSandboxes& what, const OpContext& ctx) {
  std::string states = what.running ? "running" : "";
  if (what.paused) states += states.empty() ? "paused" : ",paused";
  std::vector<SandboxSummary> all;
  if (states.empty()) return all;
  std::string query = "/v2/sandboxes?limit=" + std::to_string(kPlatformPageSize) + "&state=" + http::PercentEncode(states);
  if (!what.metadata.empty()) {
    std::string pairs;
    for (const auto& [key, value] : what.metadata) {
      if (!pairs.empty()) pairs += '&';
      pairs += http::PercentEncode(key) + "=" + http::PercentEncode(value);
    }
    query += "&metadata=" + http::PercentEncode(pairs);
  }
  std::string next_token;
  // A server that always has a next page is stopped by the count of pages too: an honest page but the last is full.
  for (int page = 0; page <= what.max_sandboxes; ++page) {
    auto response = Ask("GET", next_token.empty() ? query : query + "&nextToken=" + http::PercentEncode(next_token), {}, true, ctx);
    if (!response) return Forward(response.error());
    auto sandboxes = DecodeSandboxPage(response->body);
    if (!sandboxes) return Forward(sandboxes.error());
    if (all.size() + sandboxes->size() > static_cast<size_t>(what.max_sandboxes)) break;
    all.insert(all.end(), std::make_move_iterator(sandboxes->begin()), std::make_move_iterator(sandboxes->end()));
    const std::string token(response->head.Find("x-next-token"));
    if (token.empty()) return all;
    if (token == next_token || token.size() > 4096) break;
    next_token = token;
  }
  return Failure(ErrorKind::kProtocol, EIO, "the control plane's answer: a list without an end");
}

Result<SandboxDetail> ControlPlane::Get(const std::string& sandbox_id, const OpContext& ctx) {
  if (auto good = CheckSandboxId(sandbox_id); !good) return Forward(good.error());
  auto response = Ask("GET", "/sandboxes/" + sandbox_id, {}, true, ctx);
  if (!response) return Forward(response.error());
  return DecodeSandboxDetail(response->body);
}

Result<SandboxConnection> ControlPlane::PostConnect(const std::string& sandbox_id, int64_t seconds, const OpContext& ctx) {
  // Idempotent: doing it twice resumes once, and only ever extends.
  auto response = Ask("POST", "/sandboxes/" + sandbox_id + "/connect", EncodeTimeout(seconds), true, ctx);
  if (!response) return Forward(response.error());
  auto connection = DecodeSandboxConnection(response->body);
  if (connection) connection->resumed = response->head.status == 201;
  return connection;
}

Result<SandboxConnection> ControlPlane::Connect(const std::string& sandbox_id, const ConnectSandbox& how, const OpContext& ctx) {
  if (how.extend_to_seconds < 0) return Failure(ErrorKind::kBadRequest, EINVAL, "a negative time to live");
  auto detail = Get(sandbox_id, ctx);
  if (!detail) return Forward(detail.error());
  const bool paused = detail->state == SandboxState::kPaused;
  if (paused && !how.resume) {
    return Failure(ErrorKind::kNotRunning, ENOTCONN, "the sandbox is paused, and is not to be resumed");
  }
  const int64_t resume_seconds = how.extend_to_seconds > 0 ? how.extend_to_seconds : kResumeSeconds;
  const int64_t running_seconds = how.extend_to_seconds > 0 ? how.extend_to_seconds : kLeastTimeoutSeconds;
  // Only what is known to run is asked for the least: resumed with it, it would be over at once.
  const bool running = detail->state == SandboxState::kRunning;
  auto connection = PostConnect(sandbox_id, running ? running_seconds : resume_seconds, ctx);
  if (connection && connection->resumed && running && running_seconds < resume_seconds) {
    // It was paused between the two calls, and now has a second to live.
    connection = PostConnect(sandbox_id, resume_seconds, ctx);
    if (connection) connection->resumed = true;
  }
  if (!connection) return connection;
  if (connection->id != sandbox_id && detail->id != connection->id) {
    return Failure(ErrorKind::kProtocol, EIO, "the control plane's answer: another sandbox than asked for");
  }
  if (connection->domain.empty()) connection->domain = detail->domain;
  if (connection->envd_version.empty()) connection->envd_version = detail->envd_version;
  if (connection->template_id.empty()) connection->template_id = detail->template_id;
  if (connection->tokens.access.empty()) connection->tokens.access = detail->tokens.access;
  return connection;
}

Result<void> ControlPlane::SetTimeout(const std::string& sandbox_id, int64_t seconds, const OpContext& ctx) {
  if (auto good = CheckSandboxId(sandbox_id); !good) return Forward(good.error());
  if (seconds < 0) return Failure(ErrorKind::kBadRequest, EINVAL, "a negative time to live");
  auto response = Ask("POST", "/sandboxes/" + sandbox_id + "/timeout", EncodeTimeout(seconds), true, ctx);
  if (!response) return Forward(response.error());
  return {};
}

}  // namespace e2bfs::transport
