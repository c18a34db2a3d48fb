// Resolver: getaddrinfo away from the loop.
#pragma once

#include <sys/socket.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/base/error.h"
#include "transport/http/event_loop.h"

namespace e2bfs::transport::http {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

class Resolver {
 public:
  using Done = std::function<void(Result<std::vector<SocketAddress>>)>;

  explicit Resolver(std::shared_ptr<LoopQueue> queue) : queue_(std::move(queue)) {}

  // Calls `done` on the loop's thread, later (never from within this call), once, unless the loop has ended by then.
  // The addresses are in the system's order with the families taking turns (RFC 8305), never empty. Errors: kConnect,
  // EHOSTUNREACH. The system bounds how long it takes; a lookup that nobody waits for any more ends by itself.
  void Resolve(const std::string& host, int port, Done done);

 private:
  const std::shared_ptr<LoopQueue> queue_;
};

}  // namespace e2bfs::transport::http
