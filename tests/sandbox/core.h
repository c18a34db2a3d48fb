// Core: what every connection of one Server shares.
#pragma once

#include <atomic>
#include <cstdint>

#include "tests/sandbox/counts.h"
#include "tests/sandbox/fault_book.h"
#include "tests/sandbox/server.h"
#include "tests/sandbox/threads.h"

namespace e2bfs::sandbox {

struct Core {
  Core(Server& its_server, ServerOptions its_options, Handler its_handler)
      : server(its_server),
        options(std::move(its_options)),
        handler(std::move(its_handler)),
        latency_ms(options.latency_ms) {}

  Server& server;
  const ServerOptions options;
  const Handler handler;
  FaultBook faults;
  CountBook counts;
  std::atomic<int64_t> latency_ms;
  ThreadGroup threads;  // last: joined before the rest goes
};

// Requests to these are served by HandleTestRequest, and neither counted nor given faults.
inline bool IsTestPath(const std::string& path) { return path.rfind("/_test/", 0) == 0; }

}  // namespace e2bfs::sandbox
