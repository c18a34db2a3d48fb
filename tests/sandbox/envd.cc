#include "tests/sandbox/envd.h"

#include "tests/sandbox/envd_files.h"
#include "tests/sandbox/envd_filesystem.h"
#include "tests/sandbox/envd_process.h"
#include "tests/sandbox/envd_watch.h"

namespace e2bfs::sandbox {
namespace {

// Open without the token: these check it themselves, or a signature, or nothing.
bool IsOpenPath(const Exchange& exchange) {
  const std::string& path = exchange.path();
  return (path == "/health" && exchange.method() == "GET") ||
         (path == "/files" && (exchange.method() == "GET" || exchange.method() == "POST"));
}

bool SameSecret(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  }
  return difference == 0;
}

}  // namespace

Envd::Envd(const EnvdOptions& options)
    : context_(std::make_unique<EnvdContext>(options)),
      filesystem_(std::make_unique<FilesystemService>(*context_)),
      watches_(std::make_unique<WatchService>(*context_)),
      processes_(std::make_unique<ProcessService>(*context_)),
      files_(std::make_unique<FilesApi>(*context_)) {}

Envd::~Envd() { Stop(); }

void Envd::Stop() {
  context_->stopping = true;
  processes_->Stop();
}

void Envd::Handle(Exchange& exchange) {
  if (context_->crashed) {
    exchange.Abort();
    return;
  }
  const std::string& token = context_->options().access_token;
  if (!token.empty() && !IsOpenPath(exchange) &&
      !SameSecret(exchange.Header("x-access-token").value_or(""), token)) {
    ReplyJsonError(exchange, 401,
                   "unauthorized access, please provide a valid access token or method signing if supported");
    return;
  }
  const std::string& path = exchange.path();
  if (const auto user = EnvdContext::BasicUser(exchange); user && !context_->FindAccount(*user)) {
    const RpcError error{"unauthenticated", "invalid username: '" + *user + "'"};
    if (exchange.Header("content-type").value_or("") == "application/connect+json") {
      RpcStream stream(exchange, context_->log(), path, RpcStream::Kind::kClientStream);
      if (stream.Open()) {
        stream.End(error);
      }
      return;
    }
    DrainRequestBody(exchange);
    exchange.Reply(401, {{"content-type", "application/json"}}, RpcErrorJson(error));
    return;
  }
  static constexpr std::string_view kFilesystem = "/filesystem.Filesystem/";
  static constexpr std::string_view kProcess = "/process.Process/";
  if (path.starts_with(kFilesystem)) {
    const std::string method = path.substr(kFilesystem.size());
    if (filesystem_->Handle(exchange, method) || watches_->Handle(exchange, method)) {
      return;
    }
  } else if (path.starts_with(kProcess)) {
    if (processes_->Handle(exchange, path.substr(kProcess.size()))) {
      return;
    }
  } else if (files_->Handle(exchange)) {
    return;
  }
  ReplyNotFound(exchange);
}

}  // namespace e2bfs::sandbox
