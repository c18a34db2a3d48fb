#include "fuse/commands_connect.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "fuse/daemon.h"
#include "transport/credentials.h"

namespace e2bfs::fuse {
namespace {

using transport::Secret;

constexpr size_t kMaxCredentialBytes = 4096;

// The file e2b_api_key of $CREDENTIALS_DIRECTORY, without white space at its end; empty if there is none.
Secret ReadSystemdCredential() {
  const char* directory = getenv("CREDENTIALS_DIRECTORY");
  if (directory == nullptr || directory[0] != '/') return Secret();
  const int file = open((std::string(directory) + "/e2b_api_key").c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return Secret();
  std::string text(kMaxCredentialBytes, '\0');
  const ssize_t count = read(file, text.data(), text.size());
  close(file);
  size_t length = count > 0 ? static_cast<size_t>(count) : 0;
  while (length > 0 && (text[length - 1] == '\n' || text[length - 1] == ' ' || text[length - 1] == '\r')) --length;
  Secret secret(std::string_view(text).substr(0, length));
  Secret::Wipe(text);
  return secret;
}

}  // namespace

transport::Environment TakeEnvironment() {
  transport::Environment environment = transport::Environment::FromProcess();
  if (environment.api_key.empty()) environment.api_key = ReadSystemdCredential();
  WipeVariable("E2B_API_KEY");
  return environment;
}

Result<std::unique_ptr<transport::ControlPlane>> OpenControlPlane(transport::http::HttpClient& http,
                                                                  const transport::Environment& environment) {
  auto key = transport::FindApiKey(environment);
  if (!key) return Forward(key.error());
  return transport::ControlPlane::Create(http, environment, std::move(*key));
}

ExitStatus RemoteExitStatus(const Error& error) {
  switch (error.kind) {
    case ErrorKind::kUnauthorized: return ExitStatus::kCredentials;
    case ErrorKind::kNotRunning: return ExitStatus::kSandbox;
    case ErrorKind::kConnect:
    case ErrorKind::kBroken:
    case ErrorKind::kTimeout:
    case ErrorKind::kUnavailable:
    case ErrorKind::kRateLimited:
    case ErrorKind::kProtocol: return ExitStatus::kNetwork;
    case ErrorKind::kBadRequest:  // EACCES: a key or token would travel in clear
      return error.errno_value == EINVAL || error.errno_value == EACCES ? ExitStatus::kUsage : ExitStatus::kFailure;
    case ErrorKind::kErrno:
    case ErrorKind::kCancelled:
    case ErrorKind::kLocal: break;
  }
  return ExitStatus::kFailure;
}

}  // namespace e2bfs::fuse
