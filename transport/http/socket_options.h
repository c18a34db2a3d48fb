// What every TCP connection of the pool is set to.
#pragma once

namespace e2bfs::transport::http {

// No delay, keep-alive, and a bound on how long sent bytes may stay unacknowledged: a network that went away without a
// word is noticed in half a minute, also by a stream that only waits.
void SetSocketOptions(int descriptor);

}  // namespace e2bfs::transport::http
