// ClientOptions from the environment.
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "transport/http/client.h"

namespace e2bfs::transport::http {
namespace {

// Leaves `value` alone when the variable is not set or empty.
Result<void> ReadNumberVariable(const char* name, int64_t least, int64_t most, int64_t* value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return {};
  int64_t number = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, problem] = std::from_chars(text, end, number);
  // The Python SDK reads its expiry as a number with a fraction; whole seconds are enough here.
  const bool fraction = stop != end && *stop == '.' && std::strspn(stop + 1, "0123456789") == std::strlen(stop + 1);
  if (problem != std::errc() || (stop != end && !fraction) || number < least || number > most) {
    return Failure(ErrorKind::kBadRequest, EINVAL,
                   std::string(name) + " has to be a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  *value = number;
  return {};
}

}  // namespace

Result<ClientOptions> ClientOptions::FromEnvironment() {
  ClientOptions options;
  int64_t connections = options.max_connections;
  int64_t idle = options.max_idle_connections;
  int64_t expiry_seconds = options.idle_expiry.count() / 1000;
  for (auto result : {ReadNumberVariable("E2B_MAX_CONNECTIONS", 1, 100'000, &connections),
                      ReadNumberVariable("E2B_MAX_KEEPALIVE_CONNECTIONS", 0, 100'000, &idle),
                      ReadNumberVariable("E2B_KEEPALIVE_EXPIRY", 0, 86'400, &expiry_seconds)}) {
    if (!result) return Forward(result.error());
  }
  options.max_connections = static_cast<int>(connections);
  options.max_idle_connections = static_cast<int>(idle);
  options.idle_expiry = std::chrono::milliseconds(expiry_seconds * 1000);
  return options;
}

}  // namespace e2bfs::transport::http
