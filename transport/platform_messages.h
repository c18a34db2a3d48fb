// JSON of the control plane and of the E2B CLI's login file: pure, no I/O. As with envd's messages, nothing is believed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "transport/base/error.h"
#include "transport/control_plane.h"

namespace e2bfs::transport {

// EIO/kProtocol for what is no such answer.
Result<std::vector<SandboxSummary>> DecodeSandboxPage(std::string_view json);
Result<SandboxDetail> DecodeSandboxDetail(std::string_view json);
Result<SandboxConnection> DecodeSandboxConnection(std::string_view json);
// {"timeout": seconds}
std::string EncodeTimeout(int64_t seconds);
// {"code":…, "message":…}; empty if it is none.
std::string DecodePlatformMessage(std::string_view body);

// The key in ~/.e2b/config.json; empty if there is none. kProtocol if it is not JSON.
Result<Secret> DecodeLoginFile(std::string_view json);

// The id may become a part of a host name, a header and a path: letters, digits, '-' and '_', at most 128.
bool IsSandboxId(std::string_view id);

}  // namespace e2bfs::transport
