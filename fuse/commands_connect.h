// From the environment to a control plane that can be asked: what `mount` and `list` both begin with. Errors are lines for people.
#pragma once

#include <memory>
#include <optional>

#include "fuse/exit_status.h"
#include "transport/base/error.h"
#include "transport/control_plane.h"
#include "transport/environment.h"
#include "transport/http/client.h"

namespace e2bfs::fuse {

// The process's environment, with the key of a systemd credential (e2b_api_key) where E2B_API_KEY is not set. Wipes E2B_API_KEY
// from the process's own environment, which /proc shows to this user's other processes.
transport::Environment TakeEnvironment();

// With the key that is found. `http` outlives it.
Result<std::unique_ptr<transport::ControlPlane>> OpenControlPlane(transport::http::HttpClient& http,
                                                                  const transport::Environment& environment);

// The exit status that tells a script what kind of thing went wrong with the other side.
ExitStatus RemoteExitStatus(const Error& error);

}  // namespace e2bfs::fuse
