// Origins, and what may go on the wire: checked before a request is queued.
#pragma once

#include <string>
#include <string_view>

#include "transport/http/client.h"

namespace e2bfs::transport::http {

struct Origin {
  bool tls = false;
  std::string host;  // lower case; an IPv6 literal without its brackets
  int port = 0;
  std::string text;       // "https://host[:port]", the key of the pool; the default port left out
  std::string authority;  // "host[:port]" for Host and :authority
};

// "https://host[:port]" or "http://host[:port]" and nothing else. kBadRequest/EINVAL otherwise.
Result<Origin> ParseOrigin(std::string_view text);

// kBadRequest/EINVAL for a method, target or header that cannot be sent as it is, would change the framing, or could be
// read as something else by the server. The message holds no header's value.
Result<void> CheckRequest(const Request& request);

// In clear to this machine: such requests may carry secrets, and a proxy would be another machine.
bool GoesPastProxies(const Origin& origin);

// Whether curl's rules (http_proxy, https_proxy, all_proxy, no_proxy) could lead this origin through a proxy. In doubt yes:
// libcurl then decides, by HTTP/1.1.
bool MayUseProxy(const Origin& origin);

std::string ToLowerAscii(std::string_view text);

}  // namespace e2bfs::transport::http
