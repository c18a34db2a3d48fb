#include "transport/http/origin.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace e2bfs::transport::http {
namespace {

tl::unexpected<Error> BadRequestText(std::string message) {
  return Failure(ErrorKind::kBadRequest, EINVAL, std::move(message));
}

bool IsHostCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

// RFC 9110: token.
bool IsTokenCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

std::string_view ProxyVariable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::string_view(value) : std::string_view();
}

}  // namespace

std::string ToLowerAscii(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

Result<Origin> ParseOrigin(std::string_view text) {
  const std::string lower = ToLowerAscii(text);
  std::string_view rest = lower;
  Origin origin;
  if (rest.starts_with("https://")) {
    origin.tls = true;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    return BadRequestText("an origin has to begin with https:// or http://");
  }
  const int default_port = origin.tls ? 443 : 80;
  origin.port = default_port;
  std::string_view port_text;
  const bool bracketed = rest.starts_with('[');
  if (bracketed) {
    const size_t end = rest.find(']');
    if (end == std::string_view::npos) return BadRequestText("an origin's host is not readable");
    origin.host = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    if (!std::all_of(origin.host.begin(), origin.host.end(), [](char c) {
          return (c >= 'a' && c <= 'f') || (c >= '0' && c <= '9') || c == ':' || c == '.';
        })) {
      return BadRequestText("an origin's host is not readable");
    }
  } else {
    const size_t end = rest.find(':');
    origin.host = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end);
    if (!std::all_of(origin.host.begin(), origin.host.end(), IsHostCharacter)) {
      return BadRequestText("an origin's host is not readable");
    }
  }
  if (origin.host.empty() || origin.host.size() > 253) return BadRequestText("an origin's host is not readable");
  if (!rest.empty()) {
    port_text = rest.substr(1);
    const auto [end, problem] = std::from_chars(port_text.data(), port_text.data() + port_text.size(), origin.port);
    if (rest.front() != ':' || problem != std::errc() || end != port_text.data() + port_text.size() ||
        origin.port < 1 || origin.port > 65535) {
      return BadRequestText("an origin's port is not readable");
    }
  }
  origin.authority = bracketed ? "[" + origin.host + "]" : origin.host;
  if (origin.port != default_port) origin.authority += ":" + std::to_string(origin.port);
  origin.text = (origin.tls ? "https://" : "http://") + origin.authority;
  return origin;
}

std::string PercentEncode(std::string_view text) {
  static constexpr char kHexDigits[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
                       c == '_' || c == '~' || c == '/';
    if (plain) {
      encoded += c;
    } else {
      encoded += '%';
      encoded += kHexDigits[byte >> 4];
      encoded += kHexDigits[byte & 15];
    }
  }
  return encoded;
}

Result<void> CheckRequest(const Request& request) {
  if (request.method.empty() || request.method.size() > 32 ||
      !std::all_of(request.method.begin(), request.method.end(), IsTokenCharacter) || request.method == "CONNECT") {
    return BadRequestText("a request's method cannot be sent");
  }
  const bool target_ok = std::all_of(request.target.begin(), request.target.end(),
                                     [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '#'; });
  if (!request.target.starts_with('/') || !target_ok) return BadRequestText("a request's target cannot be sent");
  for (const auto& [name, value] : request.headers) {
    const bool name_ok = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return IsTokenCharacter(c) && !(c >= 'A' && c <= 'Z');
    });
    if (!name_ok) return BadRequestText("a header's name cannot be sent");
    for (std::string_view reserved : {"connection", "content-length", "transfer-encoding", "keep-alive", "upgrade", "te",
                                      "proxy-connection", "expect", "trailer", "http2-settings"}) {
      if (name == reserved) return BadRequestText("the header " + name + " is not the caller's to set");
    }
    const bool value_ok = std::all_of(value.begin(), value.end(),
                                      [](unsigned char c) { return (c >= 0x20 && c != 0x7f) || c == '\t'; });
    if (!value_ok) return BadRequestText("the value of the header " + name + " cannot be sent");
  }
  if (request.content_length && (*request.content_length < 0 || !request.streamed_body)) {
    return BadRequestText("a content length needs a streamed body and may not be negative");
  }
  return {};
}

bool IsLoopbackHost(std::string_view host) {
  if (host == "localhost" || host.ends_with(".localhost") || host == "::1") return true;
  // 127.a.b.c, not a name that begins so.
  return host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string_view::npos &&
         std::count(host.begin(), host.end(), '.') == 3;
}

bool GoesPastProxies(const Origin& origin) { return !origin.tls && IsLoopbackHost(origin.host); }

bool MayUseProxy(const Origin& origin) {
  if (GoesPastProxies(origin)) return false;
  // HTTP_PROXY in capitals is not read: a CGI's client could set it (curl does the same).
  const bool has_proxy = origin.tls ? !ProxyVariable("https_proxy").empty() || !ProxyVariable("HTTPS_PROXY").empty()
                                    : !ProxyVariable("http_proxy").empty();
  if (!has_proxy && ProxyVariable("all_proxy").empty() && ProxyVariable("ALL_PROXY").empty()) return false;
  std::string_view list = ProxyVariable("no_proxy");
  if (list.empty()) list = ProxyVariable("NO_PROXY");
  const std::string lower = ToLowerAscii(list);
  if (lower == "*") return false;
  // Only what curl surely matches too: the name itself, or a domain above it.
  for (std::string_view rest = lower; !rest.empty();) {
    const size_t end = rest.find_first_of(", ");
    std::string_view entry = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (entry.starts_with('.')) entry.remove_prefix(1);
    if (entry.empty()) continue;
    if (origin.host == entry) return false;
    if (origin.host.size() > entry.size() && origin.host.ends_with(entry) &&
        origin.host[origin.host.size() - entry.size() - 1] == '.' && entry.find(':') == std::string_view::npos) {
      return false;
    }
  }
  return true;
}

}  // namespace e2bfs::transport::http
