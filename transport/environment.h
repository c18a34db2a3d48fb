// Environment: the E2B_* variables, read once, with the meanings that the official SDKs give them (PROTOCOL.md 1 and 2).
#pragma once

#include <string>
#include <string_view>

#include "transport/base/error.h"
#include "transport/secret.h"

namespace e2bfs::transport {

struct Environment {
  Secret api_key;                  // E2B_API_KEY
  std::string domain = "e2b.app";  // E2B_DOMAIN
  std::string api_url;             // E2B_API_URL; empty: made of the domain
  std::string sandbox_url;         // E2B_SANDBOX_URL; empty: made of the domain and the sandbox's id
  bool debug = false;              // E2B_DEBUG=true: no control plane, no key, envd on this machine
  bool validate_api_key = true;    // E2B_VALIDATE_API_KEY, anything but "false"
  std::string home;                // HOME, else the password file's; may be empty

  // Never fails: what is malformed shows when it is used.
  static Environment FromProcess();
};

// An http or https URL cut into what requests need.
struct ParsedUrl {
  std::string origin;   // "https://host[:port]", lower case, without a default port
  std::string host;     // lower case, IPv6 without brackets
  std::string path;     // prefix of every request's path, without a slash at its end; often empty
  bool https = false;
};

// kBadRequest/EINVAL, naming `what` (a variable), for another scheme, user information, a query, a fragment, or a host that is none.
Result<ParsedUrl> ParseUrl(std::string_view url, std::string_view what);

}  // namespace e2bfs::transport
