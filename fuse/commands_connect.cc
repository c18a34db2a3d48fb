#include "fuse/commands_connect.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "fuse/daemon.h"
#include "fuse/message.h"
#include "transport/base/log.h"
#include "transport/credentials.h"
#include "transport/service_fs.h"
#include "transport/syscall/syscall_fs.h"

namespace e2bfs::fuse {
namespace {

using transport::Secret;
namespace envd = transport::envd;
namespace http = transport::http;

constexpr size_t kMaxCredentialBytes = 4096;

// The file e2b_api_key of $CREDENTIALS_DIRECTORY, without white space at its end; empty if there is none.
Secret ReadSystemdCredential() {
  const char* directory = getenv("CREDENTIALS_DIRECTORY");
  if (directory == nullptr || directory[0] != '/') return Secret();
  const int file = open((std::string(directory) + "/e2b_api_key").c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return Secret();
  std::string text(kMaxCredentialBytes, '\0');
  const ssize_t count = read(file, text.data(), text.size());
  close(file);
  size_t length = count > 0 ? static_cast<size_t>(count) : 0;
  while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == ' ' || text[length - 1] == '\r')) --length;
  Secret secret(std::string_view(text).substr(0, length));
  Secret::Wipe(text);
  return secret;
}

std::string AbsolutePath(const std::string& path) {
  if (path.empty() || path[0] == '/') return path;
  char* here = get_current_dir_name();
  std::string result = here != nullptr ? std::string(here) + "/" + path : path;
  free(here);
  return result;
}

// Why the syscall tier does not work in this sandbox; empty if it is about the path, the network or the key, which are the same in the other tier.
std::string WhyNoSyscallTier(const Error& error) {
  if (error.errno_value == ENOEXEC) return fmt::format("{} (it needs a /usr/bin/perl that works)", error.message);
  if (error.kind == ErrorKind::kTimeout) return fmt::format("the syscall server did not answer: {}", ErrorText(error));
  return error.errno_value == ENOTSUP || error.kind == ErrorKind::kProtocol ? ErrorText(error) : "";
}

// The best tier that the sandbox can do, or the one that was asked for. `why` gets the reason where it is not the best.
Result<std::unique_ptr<transport::RemoteFs>> OpenTier(const SandboxRequest& request, const std::shared_ptr<envd::Client>& client, const OpContext& ctx,
                                                      std::string* why) {
  if (request.options.tier != "service") {
    auto remote = transport::SyscallFs::Create(client, {.channel = {.root = request.spec.path}, .read_only = request.options.read_only}, ctx);
    if (remote) return remote;
    *why = WhyNoSyscallTier(remote.error());
    if (why->empty() || request.options.tier == "syscall") return remote;
    log::Info("mount", "the service tier is used: {}", *why);
  } else {
    *why = "asked for";
  }
  return transport::ServiceFs::Create(client, {.root = request.spec.path, .read_only = request.options.read_only}, ctx);
}

}  // namespace

transport::Environment TakeEnvironment() {
  transport::Environment environment = transport::Environment::FromProcess();
  if (environment.api_key.empty()) environment.api_key = ReadSystemdCredential();
  WipeVariable("E2B_API_KEY");
  return environment;
}

Result<std::unique_ptr<transport::ControlPlane>> OpenControlPlane(transport::http::HttpClient& http,
                                                                  const transport::Environment& environment) {
  auto key = transport::FindApiKey(environment);
  if (!key) return Forward(key.error());
  return transport::ControlPlane::Create(http, environment, std::move(*key));
}

ExitStatus RemoteExitStatus(const Error& error) {
  switch (error.kind) {
    case ErrorKind::kUnauthorized: return ExitStatus::kCredentials;
    case ErrorKind::kNotRunning: return ExitStatus::kSandbox;
    case ErrorKind::kConnect:
    case ErrorKind::kBroken:
    case ErrorKind::kTimeout:
    case ErrorKind::kUnavailable:
    case ErrorKind::kRateLimited:
    case ErrorKind::kProtocol: return ExitStatus::kNetwork;
    case ErrorKind::kBadRequest:  // EACCES: a key or token would travel in clear
      return error.errno_value == EINVAL || error.errno_value == EACCES ? ExitStatus::kUsage : ExitStatus::kFailure;
    case ErrorKind::kErrno:
    case ErrorKind::kCancelled:
    case ErrorKind::kLocal: break;
  }
  return ExitStatus::kFailure;
}

tl::unexpected<CommandFailure> Stop(ExitStatus status, std::string text) {
  return tl::unexpected<CommandFailure>(CommandFailure{std::move(text), status});
}

CommandStep<OptionValues> ReadMountOptions(const CommandLine& line) {
  OptionValues options;
  for (const std::string& argument : line.Values("--option")) {
    if (auto applied = ApplyMountOptions(argument, options); !applied) return Stop(ExitStatus::kUsage, applied.error().message);
  }
  if (auto checked = CheckMountOptions(options, geteuid() == 0); !checked) return Stop(ExitStatus::kUsage, checked.error().message);
  if (line.Has("--debug")) options.log_level = "debug";
  options.log_file = AbsolutePath(options.log_file);
  options.spool_directory = AbsolutePath(options.spool_directory);
  if (options.cache_directory != kNoCache) options.cache_directory = AbsolutePath(options.cache_directory);
  return options;
}

CommandStep<http::ClientOptions> HttpOptions(const OptionValues& options) {
  auto from_environment = http::ClientOptions::FromEnvironment();
  if (!from_environment) return Stop(ExitStatus::kUsage, from_environment.error().message);
  http::ClientOptions result = *from_environment;
  auto set_number = [](int& target, const std::optional<int64_t>& value) {
    if (value) target = static_cast<int>(*value);  // the table bounds it
  };
  set_number(result.max_connections, options.max_connections);
  set_number(result.max_connections_per_origin, options.max_connections_per_host);
  set_number(result.max_idle_connections, options.max_idle_connections);
  set_number(result.max_streams_per_connection, options.max_streams);
  set_number(result.max_requests, options.max_requests);
  set_number(result.rate_limit_requests, options.rate_limit);
  result.idle_expiry = options.idle_expiry.value_or(result.idle_expiry);
  result.connect_timeout = options.connect_timeout.value_or(result.connect_timeout);
  result.head_timeout = options.head_timeout.value_or(result.head_timeout);
  result.idle_timeout = options.idle_timeout.value_or(result.idle_timeout);
  if (options.protocol == "http1") result.protocol = http::ProtocolChoice::kHttp1Only;
  return result;
}

std::string SandboxScope(const transport::SandboxEndpoint& endpoint) {
  return fmt::format("{} at {}{}", endpoint.sandbox_id(), endpoint.origin(), endpoint.path_prefix());
}

CommandStep<SandboxWay> FindSandbox(const SandboxRequest& request, http::HttpClient& http, const OpContext& ctx) {
  SandboxWay way;
  const transport::Environment& environment = request.environment;
  if (environment.debug) {
    if (request.spec.sandbox_id != transport::kDebugSandboxId) {
      return Stop(ExitStatus::kSandbox, fmt::format("no such sandbox: {} (E2B_DEBUG is set: there is {} alone)", request.spec.sandbox_id, transport::kDebugSandboxId));
    }
    auto endpoint = transport::SandboxEndpoint::Create(std::string(transport::kDebugSandboxId), "", environment, {});
    if (!endpoint) return Stop(RemoteExitStatus(endpoint.error()), ErrorText(endpoint.error()));
    way.endpoint = std::move(*endpoint);
    return way;
  }
  auto control_plane = OpenControlPlane(http, environment);
  if (!control_plane) return Stop(RemoteExitStatus(control_plane.error()), ErrorText(control_plane.error()));
  way.control_plane = std::move(*control_plane);
  const std::string& id = request.spec.sandbox_id;
  auto connection = way.control_plane->Connect(id, {.extend_to_seconds = request.options.sandbox_timeout_s.value_or(0)}, ctx);
  if (!connection) {
    const Error& error = connection.error();
    if (error.errno_value == ENOENT) return Stop(ExitStatus::kSandbox, fmt::format("no such sandbox: {} (see e2bfs list)", id));
    return Stop(RemoteExitStatus(error), fmt::format("sandbox {}: {}", id, ErrorText(error)));
  }
  way.envd_version = connection->envd_version;
  way.template_id = connection->template_id;
  auto endpoint = transport::SandboxEndpoint::Create(id, connection->domain, environment, connection->tokens);
  if (!endpoint) return Stop(RemoteExitStatus(endpoint.error()), ErrorText(endpoint.error()));
  way.endpoint = std::move(*endpoint);
  way.endpoint->SetTokenSource([plane = way.control_plane.get(), id](const OpContext& asked) -> Result<transport::SandboxTokens> {
    auto detail = plane->Get(id, asked);
    if (!detail) return Forward(detail.error());
    return detail->tokens;
  });
  return way;
}

std::shared_ptr<envd::Client> MakeClient(const SandboxRequest& request, http::HttpClient& http, const SandboxWay& way) {
  return std::make_shared<envd::Client>(http, way.endpoint, envd::Capabilities::ForVersion(way.envd_version),
                                        envd::ClientOptions{.user = request.options.user, .compress = request.options.compress == "auto"});
}

CommandStep<std::unique_ptr<transport::RemoteFs>> OpenRemote(const SandboxRequest& request, const std::shared_ptr<envd::Client>& client,
                                                           const OpContext& ctx, std::string* why) {
  auto remote = OpenTier(request, client, ctx, why);
  if (remote) return std::move(*remote);
  const Error& error = remote.error();
  if (request.options.tier == "syscall" && !why->empty()) {
    return Stop(RemoteExitStatus(error), fmt::format("mount option tier=syscall does not work in this sandbox: {}", *why));
  }
  if (error.kind == ErrorKind::kUnauthorized && !request.options.user.empty() && error.message.find("invalid username") != std::string::npos) {
    return Stop(ExitStatus::kUsage, fmt::format("mount option user={}: the sandbox has no such user", request.options.user));
  }
  const bool of_the_path = error.kind == ErrorKind::kErrno && (error.errno_value == ENOENT || error.errno_value == ENOTDIR || error.errno_value == EACCES);
  if (of_the_path) {
    return Stop(ExitStatus::kRemotePath, fmt::format("path {} in the sandbox: {}", request.spec.path.empty() ? "(home)" : request.spec.path, strerrordesc_np(error.errno_value)));
  }
  return Stop(RemoteExitStatus(error), fmt::format("sandbox {}: {}", request.spec.sandbox_id, ErrorText(error)));
}

}  // namespace e2bfs::fuse
