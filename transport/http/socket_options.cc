#include "transport/http/socket_options.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace e2bfs::transport::http {

void SetSocketOptions(int descriptor) {
  const auto set = [&](int level, int name, int value) {
    // A kernel that does not know one of them carries the connection without it.
    return setsockopt(descriptor, level, name, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
  // A bulk upload must not fill the kernel's buffer ahead of a small request on the same connection.
  set(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 128 << 10);
}

}  // namespace e2bfs::transport::http
