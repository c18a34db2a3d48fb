#include "transport/credentials.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>

#include "transport/platform_messages.h"

namespace e2bfs::transport {
namespace {

constexpr size_t kMaxLoginFileBytes = size_t{1} << 20;

// The file's content; ENOENT, EACCES, EFBIG. A fifo or a device in its place is EINVAL rather than a wait.
Result<std::string> ReadLoginFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Errno(errno, path);
  std::string text;
  int error = 0;
  struct stat attributes {};
  if (fstat(fd, &attributes) != 0) {
    error = errno;
  } else if (!S_ISREG(attributes.st_mode)) {
    error = EINVAL;
  }
  char buffer[4096];
  while (error == 0) {
    const ssize_t count = read(fd, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) error = errno;
    if (count <= 0) break;
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > kMaxLoginFileBytes) error = EFBIG;
  }
  explicit_bzero(buffer, sizeof buffer);
  close(fd);
  if (error != 0) {
    Secret::Wipe(text);
    return Errno(error, path);
  }
  return text;
}

}  // namespace

Result<void> CheckApiKeyFormat(const Secret& key, bool validate) {
  const std::string_view text = key.Reveal();
  const bool printable = !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > ' ' && c < 0x7f; });
  if (!printable) {
    return Failure(ErrorKind::kUnauthorized, EACCES, "the API key is empty or holds spaces or control characters");
  }
  if (!validate) return {};
  constexpr std::string_view kPrefix = "e2b_";
  const bool plain = text.starts_with(kPrefix) && text.size() > kPrefix.size() &&
                     std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; });
  if (plain) return {};
  return Failure(ErrorKind::kUnauthorized, EACCES,
                 "the API key does not look like one (e2b_...); for a self-hosted platform with other keys set E2B_VALIDATE_API_KEY=false");
}

Result<Secret> FindApiKey(const Environment& environment) {
  if (!environment.api_key.empty()) {
    if (auto good = CheckApiKeyFormat(environment.api_key, environment.validate_api_key); !good) {
      return Failure(ErrorKind::kUnauthorized, EACCES, "E2B_API_KEY: " + good.error().message);
    }
    return environment.api_key;
  }
  constexpr const char* kHowTo = "set E2B_API_KEY, or log in with the E2B CLI (e2b auth login)";
  if (environment.home.empty()) {
    return Failure(ErrorKind::kUnauthorized, EACCES, std::string("no API key: ") + kHowTo);
  }
  const std::string path = environment.home + "/.e2b/config.json";
  auto text = ReadLoginFile(path);
  if (!text) {
    const int error = text.error().errno_value;
    if (error == ENOENT || error == ENOTDIR) {
      return Failure(ErrorKind::kUnauthorized, EACCES, std::string("no API key: ") + kHowTo);
    }
    return Failure(ErrorKind::kUnauthorized, EACCES, "no API key: " + text.error().message + "; " + kHowTo);
  }
  auto key = DecodeLoginFile(*text);
  Secret::Wipe(*text);
  if (!key) return Failure(ErrorKind::kUnauthorized, EACCES, "no API key: " + path + " is not valid JSON; " + kHowTo);
  if (key->empty()) return Failure(ErrorKind::kUnauthorized, EACCES, "no API key in " + path + ": " + kHowTo);
  if (auto good = CheckApiKeyFormat(*key, environment.validate_api_key); !good) {
    return Failure(ErrorKind::kUnauthorized, EACCES, path + ": " + good.error().message);
  }
  return key;
}

}  // namespace e2bfs::transport
