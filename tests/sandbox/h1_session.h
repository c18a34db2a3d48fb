// HTTP/1.1 on one connection.
#pragma once

#include "tests/sandbox/connection.h"
#include "tests/sandbox/core.h"

namespace e2bfs::sandbox {

// Serves requests, one after the other, until either side wants no more; then the connection is closed.
void ServeHttp1(Core& core, Connection& connection);

}  // namespace e2bfs::sandbox
