#include "transport/sandbox_endpoint.h"

#include <algorithm>
#include <array>
#include <utility>

#include "transport/platform_messages.h"

namespace e2bfs::transport {
namespace {

// Domains with a shared edge host (the SDKs' list, PROTOCOL.md 2): one origin and one pool of connections for all sandboxes.
constexpr std::array<std::string_view, 4> kSharedHostDomains = {"e2b.app", "e2b.dev", "e2b.pro", "e2b-staging.dev"};

// A sandbox that refuses the same tokens over and over does not make us ask for them more often than this.
constexpr std::chrono::seconds kLeastRefreshInterval{5};
// Without a deadline, another thread's question is waited for this long.
constexpr std::chrono::seconds kLongestRefreshWait{60};

bool IsHeaderValue(const Secret& token) {
  const std::string_view text = token.Reveal();
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > ' ' && c < 0x7f; });
}

}  // namespace

Result<std::shared_ptr<SandboxEndpoint>> SandboxEndpoint::Create(std::string sandbox_id, std::string domain,
                                                                 const Environment& environment, SandboxTokens tokens) {
  if (!IsSandboxId(sandbox_id)) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "not a sandbox id (letters, digits, '-' and '_')");
  }
  if (!IsHeaderValue(tokens.access) || !IsHeaderValue(tokens.traffic)) {
    return Failure(ErrorKind::kProtocol, EIO, "the sandbox's access token holds characters that no token has");
  }
  if (domain.empty()) domain = environment.domain;
  std::string url = environment.sandbox_url;
  const char* what = "E2B_SANDBOX_URL";
  if (url.empty() && environment.debug) {
    url = "http://localhost:" + std::to_string(kEnvdPort);
  } else if (url.empty()) {
    what = "the sandbox's domain";
    if (domain.find_first_of("/@:?#") != std::string::npos) {
      return Failure(ErrorKind::kBadRequest, EINVAL, "the sandbox's domain is not a domain");
    }
    const bool shared = std::find(kSharedHostDomains.begin(), kSharedHostDomains.end(), domain) != kSharedHostDomains.end();
    url = shared ? "https://sandbox." + domain : "https://" + std::to_string(kEnvdPort) + "-" + sandbox_id + "." + domain;
  }
  auto parsed = ParseUrl(url, what);
  if (!parsed) return Forward(parsed.error());
  std::shared_ptr<SandboxEndpoint> endpoint(new SandboxEndpoint());
  endpoint->token_may_travel_ = parsed->https || http::IsLoopbackHost(parsed->host);
  if (!endpoint->token_may_travel_ && (!tokens.access.empty() || !tokens.traffic.empty())) {
    return Failure(ErrorKind::kBadRequest, EACCES,
                   std::string(what) + ": the sandbox's token would travel unencrypted over http:// to another machine; use https://");
  }
  endpoint->sandbox_id_ = std::move(sandbox_id);
  endpoint->origin_ = std::move(parsed->origin);
  endpoint->path_prefix_ = std::move(parsed->path);
  endpoint->tokens_ = std::move(tokens);
  return endpoint;
}

http::Headers SandboxEndpoint::RequestHeaders() const {
  http::Headers headers = {{"e2b-sandbox-id", sandbox_id_}, {"e2b-sandbox-port", std::to_string(kEnvdPort)}};
  const std::lock_guard lock(mutex_);
  if (!tokens_.access.empty()) headers.emplace_back("x-access-token", tokens_.access.Reveal());
  if (!tokens_.traffic.empty()) headers.emplace_back("e2b-traffic-access-token", tokens_.traffic.Reveal());
  return headers;
}

uint64_t SandboxEndpoint::token_generation() const {
  const std::lock_guard lock(mutex_);
  return generation_;
}

void SandboxEndpoint::SetTokenSource(TokenSource source) { source_ = std::move(source); }

Result<bool> SandboxEndpoint::RefreshTokens(uint64_t seen_generation, const OpContext& ctx) {
  if (!source_) return false;
  {
    std::unique_lock lock(mutex_);
    const TimePoint until = std::min(ctx.deadline, Clock::now() + kLongestRefreshWait);
    if (!refreshed_.wait_until(lock, ctx.stop, until, [this] { return !refreshing_; })) {
      if (ctx.stop.stop_requested()) return Failure(ErrorKind::kCancelled, EINTR, "waiting for the sandbox's new token");
      return Failure(ErrorKind::kTimeout, ETIMEDOUT, "waiting for the sandbox's new token");
    }
    if (generation_ != seen_generation) return true;
    if (last_refresh_ && Clock::now() - *last_refresh_ < kLeastRefreshInterval) return false;
    refreshing_ = true;
  }
  auto fresh = source_(ctx);
  const std::lock_guard lock(mutex_);
  refreshing_ = false;
  refreshed_.notify_all();
  if (!fresh) return Forward(std::move(fresh.error()));
  last_refresh_ = Clock::now();
  if (!IsHeaderValue(fresh->access) || !IsHeaderValue(fresh->traffic)) {
    return Failure(ErrorKind::kProtocol, EIO, "the sandbox's access token holds characters that no token has");
  }
  if (!token_may_travel_ && (!fresh->access.empty() || !fresh->traffic.empty())) return false;
  if (fresh->access == tokens_.access && fresh->traffic == tokens_.traffic) return false;
  tokens_ = std::move(*fresh);
  ++generation_;
  return true;
}

}  // namespace e2bfs::transport
