// HTTP/2 on one connection.
#pragma once

#include <memory>

#include "tests/sandbox/connection.h"
#include "tests/sandbox/core.h"

namespace e2bfs::sandbox {

// Serves streams, each with a thread of its own, until either side wants no more; then the connection is closed.
// Returns when the last handler has returned.
void ServeHttp2(Core& core, const std::shared_ptr<Connection>& connection);

}  // namespace e2bfs::sandbox
