#include "transport/base/error.h"

#include <fmt/core.h>

#include <cstring>

namespace e2bfs {

std::string_view ToString(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kErrno: return "errno";
    case ErrorKind::kBadRequest: return "bad request";
    case ErrorKind::kUnauthorized: return "unauthorized";
    case ErrorKind::kNotRunning: return "sandbox not running";
    case ErrorKind::kRateLimited: return "rate limited";
    case ErrorKind::kUnavailable: return "unavailable";
    case ErrorKind::kConnect: return "no connection";
    case ErrorKind::kBroken: return "connection lost";
    case ErrorKind::kTimeout: return "timeout";
    case ErrorKind::kProtocol: return "bad answer";
    case ErrorKind::kCancelled: return "cancelled";
    case ErrorKind::kLocal: return "local failure";
  }
  return "unknown";
}

std::string ErrnoName(int errno_value) {
  const char* name = strerrorname_np(errno_value);
  return name != nullptr ? std::string(name) : fmt::format("E#{}", errno_value);
}

tl::unexpected<Error> Errno(int errno_value, std::string_view context) {
  std::string text = strerrordesc_np(errno_value) != nullptr ? strerrordesc_np(errno_value) : ErrnoName(errno_value);
  Error error;
  error.errno_value = errno_value;
  error.message = context.empty() ? text : fmt::format("{}: {}", context, text);
  return tl::unexpected<Error>(std::move(error));
}

tl::unexpected<Error> Failure(ErrorKind kind, int errno_value, std::string message) {
  Error error;
  error.errno_value = errno_value;
  error.kind = kind;
  error.message = std::move(message);
  return tl::unexpected<Error>(std::move(error));
}

std::string ToString(const Error& error) {
  std::string text = ErrnoName(error.errno_value);
  if (error.kind != ErrorKind::kErrno) text += fmt::format(" ({})", ToString(error.kind));
  if (!error.message.empty()) text += ": " + error.message;
  if (error.http_status != 0) text += fmt::format(" [HTTP {}]", error.http_status);
  if (!error.rpc_code.empty()) text += fmt::format(" [{}]", error.rpc_code);
  return text;
}

}  // namespace e2bfs
