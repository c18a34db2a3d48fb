// SandboxEndpoint: how one sandbox's envd is reached: origin, routing headers, tokens (PROTOCOL.md 2).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/environment.h"
#include "transport/http/client.h"
#include "transport/secret.h"

namespace e2bfs::transport {

inline constexpr int kEnvdPort = 49983;
inline constexpr std::string_view kDebugSandboxId = "debug_sandbox_id";

struct SandboxTokens {
  Secret access;   // X-Access-Token; empty: the sandbox is not secured
  Secret traffic;  // e2b-traffic-access-token; empty: public traffic is not restricted
};

// Any thread may call it. Shared by every client of the sandbox.
class SandboxEndpoint {
 public:
  // Asks for the tokens as they are now (the control plane's Get); called by the thread whose request was refused.
  using TokenSource = std::function<Result<SandboxTokens>(const OpContext&)>;

  // `domain`: as the control plane said; empty: the environment's.
  // Origin: E2B_SANDBOX_URL; in debug http://localhost:49983; the shared host https://sandbox.<domain> for e2b.app, e2b.dev,
  // e2b.pro and e2b-staging.dev; https://49983-<id>.<domain> elsewhere.
  // Errors, kBadRequest/EINVAL: an id that is not letters, digits, '-' and '_' (it becomes a host name and a header), a domain
  // that is no domain, a malformed E2B_SANDBOX_URL; EACCES where tokens would leave this machine over http://.
  static Result<std::shared_ptr<SandboxEndpoint>> Create(std::string sandbox_id, std::string domain,
                                                         const Environment& environment, SandboxTokens tokens);

  const std::string& origin() const { return origin_; }
  const std::string& path_prefix() const { return path_prefix_; }  // of E2B_SANDBOX_URL, mostly empty
  const std::string& sandbox_id() const { return sandbox_id_; }

  // E2b-Sandbox-Id and E2b-Sandbox-Port always, and the tokens. They belong to requests to origin() only.
  http::Headers RequestHeaders() const;
  // Which tokens RequestHeaders now gives: changes with each successful refresh.
  uint64_t token_generation() const;

  // Set before the first request; without one a refused token is final.
  void SetTokenSource(TokenSource source);
  // After a 401: asks the source, unless another thread did since `seen_generation`. True if the tokens are others than those, so that
  // asking again makes sense. Concurrent callers ask one after the other, and the later ones find the answer there.
  Result<bool> RefreshTokens(uint64_t seen_generation, const OpContext& ctx);

 private:
  SandboxEndpoint() = default;
  std::string sandbox_id_, origin_, path_prefix_;
  bool token_may_travel_ = true;  // https or loopback
  TokenSource source_;
  // Guards what follows; nothing is called under it.
  mutable std::mutex mutex_;
  std::condition_variable_any refreshed_;
  bool refreshing_ = false;                // one thread asks the source for all who were refused
  std::optional<TimePoint> last_refresh_;  // the last answer of the source
  SandboxTokens tokens_;
  uint64_t generation_ = 0;
};

}  // namespace e2bfs::transport
