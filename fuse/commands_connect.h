// From the environment to a control plane that can be asked, and to a sandbox's files: what `mount`, `list` and `recover` begin with. Errors are
// lines for people.
#pragma once

#include <memory>
#include <optional>

#include "fuse/cli.h"
#include "fuse/exit_status.h"
#include "fuse/options.h"
#include "fuse/sandbox_spec.h"
#include "transport/base/error.h"
#include "transport/control_plane.h"
#include "transport/envd/client.h"
#include "transport/environment.h"
#include "transport/http/client.h"
#include "transport/remote_fs.h"

namespace e2bfs::fuse {

// The process's environment, with the key of a systemd credential (e2b_api_key) where E2B_API_KEY is not set. Wipes E2B_API_KEY
// from the process's own environment, which /proc shows to this user's other processes.
transport::Environment TakeEnvironment();

// With the key that is found. `http` outlives it.
Result<std::unique_ptr<transport::ControlPlane>> OpenControlPlane(transport::http::HttpClient& http,
                                                                  const transport::Environment& environment);

// An error and the exit status that goes with it.
struct CommandFailure {
  std::string text;
  ExitStatus status = ExitStatus::kFailure;
};
template <typename T>
using CommandStep = tl::expected<T, CommandFailure>;
tl::unexpected<CommandFailure> Stop(ExitStatus status, std::string text);

// What has to be known of a sandbox to get at its files, whatever is done with them.
struct SandboxRequest {
  SandboxSpec spec;
  OptionValues options;
  transport::Environment environment;
  transport::http::ClientOptions http;
};

// Of --option and --debug, checked.
CommandStep<OptionValues> ReadMountOptions(const CommandLine& line);
CommandStep<transport::http::ClientOptions> HttpOptions(const OptionValues& options);

// How the sandbox is reached, once it is known to run.
struct SandboxWay {
  std::shared_ptr<transport::SandboxEndpoint> endpoint;
  std::unique_ptr<transport::ControlPlane> control_plane;  // null in debug mode
  std::string envd_version = "debug";
  std::string template_id;
};
// Resumes it if it is paused. `http` outlives what is returned, here and below.
CommandStep<SandboxWay> FindSandbox(const SandboxRequest& request, transport::http::HttpClient& http, const OpContext& ctx);
// Which sandbox it is, among all. Ids are one platform's: another one, and each envd that is named by its address alone, has its own.
std::string SandboxScope(const transport::SandboxEndpoint& endpoint);
std::shared_ptr<transport::envd::Client> MakeClient(const SandboxRequest& request, transport::http::HttpClient& http, const SandboxWay& way);
// The directory spec.path on the best tier that the sandbox can do, or the one that was asked for. `why` gets the reason where it is not the best.
CommandStep<std::unique_ptr<transport::RemoteFs>> OpenRemote(const SandboxRequest& request, const std::shared_ptr<transport::envd::Client>& client,
                                                             const OpContext& ctx, std::string* why);

// The exit status that tells a script what kind of thing went wrong with the other side.
ExitStatus RemoteExitStatus(const Error& error);

}  // namespace e2bfs::fuse
