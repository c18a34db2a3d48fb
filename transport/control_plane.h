// ControlPlane: the platform's REST API, as far as mounting needs it (PROTOCOL.md 1): which sandboxes there are, resuming one, its
// tokens and its time to live.
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/environment.h"
#include "transport/http/client.h"
#include "transport/sandbox_endpoint.h"
#include "transport/secret.h"

namespace e2bfs::transport {

enum class SandboxState { kRunning, kPaused, kUnknown };
std::string_view ToString(SandboxState state);

struct SandboxSummary {
  std::string id;
  std::string template_id;
  std::string alias;       // the template's; may be empty
  SandboxState state = SandboxState::kUnknown;
  timespec started_at{};   // zero where not said
  timespec end_at{};       // when its time to live is over; zero where not said
  std::string envd_version;
  std::map<std::string, std::string> metadata;
};

struct SandboxDetail : SandboxSummary {
  std::string domain;      // empty: the environment's
  SandboxTokens tokens;
};

struct SandboxConnection {
  std::string id;
  std::string template_id;
  std::string envd_version;
  std::string domain;      // empty: the environment's
  SandboxTokens tokens;
  bool resumed = false;    // it was paused
};

struct ListSandboxes {
  bool running = true;
  bool paused = true;
  std::map<std::string, std::string> metadata;  // all of these
  int max_sandboxes = 100'000;                  // a hostile or endless answer: EIO/kProtocol beyond
};

struct ConnectSandbox {
  // At least this much time to live from now on, in seconds; 0: leave it as it is. A sandbox that has to be resumed gets this or, with 0,
  // kResumeSeconds. The platform only ever extends by this call.
  int64_t extend_to_seconds = 0;
  bool resume = true;      // false: a paused one is ENOTCONN/kNotRunning and stays paused
};
// The official SDKs' default.
inline constexpr int64_t kResumeSeconds = 300;

// Errors of every call: 401 and 403 kUnauthorized/EACCES, 404 kErrno/ENOENT ("no such sandbox"), 409 kUnavailable/EAGAIN (state is changing),
// 429 kRateLimited, 5xx kUnavailable, rubbish kProtocol/EIO; connection errors as http/client.h. Reads and Connect are repeated as
// retry.h says, within ctx. Any thread.
class ControlPlane {
 public:
  // Base URL: E2B_API_URL, http://localhost:3000 in debug, else https://api.<domain>. `http` outlives this object.
  // kBadRequest/EINVAL: malformed URL or domain; kBadRequest/EACCES: http:// to another machine (the key would travel in clear).
  static Result<std::unique_ptr<ControlPlane>> Create(http::HttpClient& http, const Environment& environment, Secret api_key);

  // All pages.
  Result<std::vector<SandboxSummary>> List(const ListSandboxes& what, const OpContext& ctx);
  Result<SandboxDetail> Get(const std::string& sandbox_id, const OpContext& ctx);
  // Looks at the state first, so that a running sandbox's time to live is neither shortened nor, unless wanted, extended: it is asked
  // for the smallest timeout, which the platform ignores where more is left.
  Result<SandboxConnection> Connect(const std::string& sandbox_id, const ConnectSandbox& how, const OpContext& ctx);
  // Sets the time to live outright: can shorten it.
  Result<void> SetTimeout(const std::string& sandbox_id, int64_t seconds, const OpContext& ctx);

 private:
  ControlPlane(http::HttpClient& http, Secret api_key) : http_(http), api_key_(std::move(api_key)) {}
  Result<http::Response> Ask(const char* method, std::string target, std::string body, bool idempotent, const OpContext& ctx);
  Result<SandboxConnection> PostConnect(const std::string& sandbox_id, int64_t seconds, const OpContext& ctx);

  http::HttpClient& http_;
  const Secret api_key_;
  std::string origin_, path_prefix_;
};

}  // namespace e2bfs::transport
