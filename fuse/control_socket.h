// The control socket: how `e2bfs status`, `umount` and `list` speak with the process behind a mount.
//
// A unix stream socket for each mount in the runtime directory (0600, and the peer's user is checked). The client sends one line of
// JSON, the server answers with lines of JSON and closes. What the lines mean is in commands_mount.cc; this file moves them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cache/descriptor.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

// What the names of all sockets of mounts on that directory begin with: 16 hexadecimal digits and '-'. (The directory's path
// may be longer than a socket's name. There can be several: a mount that still sends after it was unmounted, and the next.)
std::string ControlSocketPrefix(const std::string& mount_point);
// "<prefix><process id>.sock"
std::string ControlSocketName(const std::string& mount_point, int process_id);

class ControlServer {
 public:
  // One line (without newline) to the client. False when the client has gone.
  using SendLine = std::function<bool(const std::string& line)>;
  // Called on a thread of its own for each connection, with the request's line. May block; has to return soon after the
  // process decided to end (its own matter), since the destructor waits for it.
  using Handler = std::function<void(const std::string& request, const SendLine& send)>;

  // Listens at `path`, replacing a socket there that nobody answers on. EADDRINUSE: somebody does. ENAMETOOLONG: its last component is
  // beyond some 80 bytes.
  static Result<std::unique_ptr<ControlServer>> Create(const std::string& path, Handler handler);
  // Removes the socket, ends the connections and waits for the handlers.
  virtual ~ControlServer() = default;
};

class ControlClient {
 public:
  // ECONNREFUSED or ENOENT: no process behind it.
  static Result<ControlClient> Connect(const std::string& path);
  ControlClient(ControlClient&& other) noexcept;
  ControlClient& operator=(ControlClient&&) = delete;
  ~ControlClient();

  Result<void> Send(const std::string& line);
  // The next line; nullopt when the server has closed. ETIMEDOUT. Lines are at most 16 MiB.
  Result<std::optional<std::string>> ReadLine(std::chrono::milliseconds timeout);
  // The server's process has ended. False: not within that time. One that cannot be looked at (of another process namespace) is not waited for.
  bool WaitForExit(std::chrono::milliseconds timeout) const;

 private:
  explicit ControlClient(int descriptor);
  int descriptor_;
  cache::Descriptor process_;  // a pidfd; not open: it cannot be looked at
  std::string buffer_;
};

}  // namespace e2bfs::fuse
