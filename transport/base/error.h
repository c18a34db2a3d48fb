// Error and Result: how every function of this project says that it failed.
//
// An error is an errno for the program above the mount, a kind for decisions inside the client (retry, refresh a
// token, ask whether the sandbox is gone), and text for people. Values only: no exception crosses a public function.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace e2bfs {

enum class ErrorKind {
  kErrno,         // the operation itself failed there: ENOENT, EEXIST, ENOSPC...; final
  kBadRequest,    // we asked for what the other side does not understand; final
  kUnauthorized,  // token, key or user refused
  kNotRunning,    // the sandbox is paused, killed or unknown; the network is fine
  kRateLimited,   // 429: wait and ask again
  kUnavailable,   // 5xx, refused stream: nothing was done, ask again
  kConnect,       // no connection, or a request of which nothing was sent: safe to repeat
  kBroken,        // the connection died after the request went out: it may or may not have been done
  kTimeout,       // a deadline passed
  kProtocol,      // the answer is not what the protocol allows: torn, lying, too long
  kCancelled,     // the caller gave up
  kLocal,         // this machine failed: disk, memory, descriptors
};

std::string_view ToString(ErrorKind kind);

struct Error {
  int errno_value = EIO;  // positive; what a program sees
  ErrorKind kind = ErrorKind::kErrno;
  std::string message;    // for people; never holds a secret
  int http_status = 0;    // as received, 0 if no head came
  std::string rpc_code;   // Connect's code ("not_found"), empty if none
  // Of a store: the content is in place as a whole, only its attributes were refused. Never send the content again.
  bool content_stored = false;
  // Of a store that appends: so many bytes of the append are in place, and could not be cut off again. The rest is still to be sent.
  int64_t appended = 0;
};

template <typename T>
using Result = tl::expected<T, Error>;

// An error that is only an errno, with `context` in front of the system's text for it.
[[nodiscard]] tl::unexpected<Error> Errno(int errno_value, std::string_view context = {});

// An error of another kind. `errno_value` is what a program gets if nothing above handles the kind.
[[nodiscard]] tl::unexpected<Error> Failure(ErrorKind kind, int errno_value, std::string message);

// "ENOENT: stat /x: No such file or directory"; for logs and the command's stderr.
std::string ToString(const Error& error);

// "ENOENT", or "E#123" for a number that has no name here.
std::string ErrnoName(int errno_value);

// Passes an error on unchanged where the value types differ.
[[nodiscard]] inline tl::unexpected<Error> Forward(Error error) { return tl::unexpected<Error>(std::move(error)); }

}  // namespace e2bfs
