#include "transport/environment.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <vector>

namespace e2bfs::transport {
namespace {

std::string EnvironmentText(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

std::string HomeDirectory() {
  if (std::string home = EnvironmentText("HOME"); !home.empty()) return home;
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  if (getpwuid_r(getuid(), &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) return {};
  return found->pw_dir == nullptr ? std::string() : std::string(found->pw_dir);
}

bool IsHostText(std::string_view host) {
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
  });
}

}  // namespace

Environment Environment::FromProcess() {
  Environment environment;
  if (const char* key = std::getenv("E2B_API_KEY"); key != nullptr) environment.api_key = Secret(key);
  if (std::string domain = EnvironmentText("E2B_DOMAIN"); !domain.empty()) environment.domain = domain;
  environment.api_url = EnvironmentText("E2B_API_URL");
  environment.sandbox_url = EnvironmentText("E2B_SANDBOX_URL");
  environment.debug = LowerCase(EnvironmentText("E2B_DEBUG")) == "true";
  environment.validate_api_key = LowerCase(EnvironmentText("E2B_VALIDATE_API_KEY")) != "false";
  environment.home = HomeDirectory();
  return environment;
}

Result<ParsedUrl> ParseUrl(std::string_view url, std::string_view what) {
  // The value itself is not shown: people paste keys into the wrong variable.
  const auto bad = [&](const char* why) {
    return Failure(ErrorKind::kBadRequest, EINVAL, std::string(what) + ": " + why + " (expected http[s]://host[:port][/path])");
  };
  ParsedUrl parsed;
  std::string_view rest;
  const std::string lower = LowerCase(url.substr(0, 8));
  if (lower.starts_with("https://")) {
    parsed.https = true;
    rest = url.substr(8);
  } else if (lower.starts_with("http://")) {
    rest = url.substr(7);
  } else {
    return bad("not an http or https URL");
  }
  if (rest.find_first_of("?#") != std::string_view::npos) return bad("has a query or a fragment");
  const size_t slash = rest.find('/');
  std::string_view authority = rest.substr(0, slash);
  if (slash != std::string_view::npos) {
    parsed.path = rest.substr(slash);
    while (!parsed.path.empty() && parsed.path.back() == '/') parsed.path.pop_back();
    if (std::any_of(parsed.path.begin(), parsed.path.end(), [](unsigned char c) { return c <= ' ' || c >= 0x7f; })) {
      return bad("its path holds a character that needs encoding");
    }
  }
  if (authority.find('@') != std::string_view::npos) return bad("has user information");
  std::string_view host = authority, port;
  bool bracketed = false;
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad("no valid host");
    host = authority.substr(1, close - 1);
    const std::string_view behind = authority.substr(close + 1);
    if (!behind.empty() && behind.front() != ':') return bad("no valid host");
    if (!behind.empty()) port = behind.substr(1);
    if (behind == ":") return bad("no valid port");
    bracketed = true;
    if (host.empty() || !std::all_of(host.begin(), host.end(), [](unsigned char c) { return std::isxdigit(c) != 0 || c == ':' || c == '.'; })) {
      return bad("no valid host");
    }
  } else {
    const size_t colon = authority.find(':');
    host = authority.substr(0, colon);
    if (colon != std::string_view::npos) {
      port = authority.substr(colon + 1);
      if (port.empty()) return bad("no valid port");
    }
    if (!IsHostText(host)) return bad("no valid host");
  }
  int number = 0;
  for (const char c : port) {
    if (c < '0' || c > '9' || number > 65535) return bad("no valid port");
    number = number * 10 + (c - '0');
  }
  if (!port.empty() && (number < 1 || number > 65535)) return bad("no valid port");
  parsed.host = LowerCase(host);
  parsed.origin = std::string(parsed.https ? "https://" : "http://") + (bracketed ? "[" + parsed.host + "]" : parsed.host);
  if (number != 0 && number != (parsed.https ? 443 : 80)) parsed.origin += ":" + std::to_string(number);
  return parsed;
}

}  // namespace e2bfs::transport
