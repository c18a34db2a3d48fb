#include "transport/envd/client.h"

#include "transport/envd/client_core.h"
#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

tl::unexpected<Error> NotOffered(const char* what, const ClientCore& core) {
  return Failure(ErrorKind::kBadRequest, ENOTSUP, std::string(what) + " is not offered by envd " + core.capabilities.version_text);
}

Result<void> CheckWatch(const WatchRequest& request, const ClientCore& core) {
  if (request.recursive && !core.capabilities.recursive_watch) return NotOffered("watching recursively", core);
  if (request.include_entry && !core.capabilities.watch_entry) return NotOffered("watching with entries", core);
  if (request.allow_network_mounts && !core.capabilities.watch_network_mounts) return NotOffered("watching network mounts", core);
  return {};
}

class EnvdWatchStream final : public WatchStream {
 public:
  explicit EnvdWatchStream(std::unique_ptr<MessageStream> messages) : messages_(std::move(messages)) {}
  ~EnvdWatchStream() override = default;

  // Waits for the start event: the watch is in place then.
  Result<void> AwaitStart(const OpContext& ctx) {
    auto payload = messages_->Next(ctx);
    if (!payload) return Forward(std::move(payload.error()));
    if (!*payload) return Failure(ErrorKind::kProtocol, EIO, "envd's answer: a watch that never started");
    auto message = DecodeWatchMessage(**payload);
    if (!message) return Forward(std::move(message.error()));
    if (!std::holds_alternative<StreamStarted>(*message)) {
      return Failure(ErrorKind::kProtocol, EIO, "envd's answer: a watch that did not start with its start");
    }
    return {};
  }

  Result<std::optional<WatchEvent>> Next(const OpContext& ctx) override {
    while (true) {
      if (error_) return Forward(*error_);
      auto payload = messages_->Next(ctx);
      if (!payload) return Forward(std::move(payload.error()));
      if (!*payload) return std::nullopt;
      auto message = DecodeWatchMessage(**payload);
      if (!message) {
        error_ = std::move(message.error());
        messages_->Cancel();
        continue;
      }
      if (auto* event = std::get_if<WatchEvent>(&*message)) return std::move(*event);
    }
  }

  void Cancel() override { messages_->Cancel(); }

 private:
  const std::unique_ptr<MessageStream> messages_;
  std::optional<Error> error_;
};

}  // namespace

Client::Client(http::HttpClient& http, std::shared_ptr<SandboxEndpoint> endpoint, Capabilities capabilities, ClientOptions options)
    : core_(std::make_shared<ClientCore>(http, std::move(endpoint), std::move(capabilities), std::move(options))) {}
Client::~Client() = default;

const Capabilities& Client::capabilities() const { return core_->capabilities; }
const SandboxEndpoint& Client::endpoint() const { return *core_->endpoint; }
const std::string& Client::user() const { return core_->user; }

Result<EntryInfo> Client::Stat(const std::string& path, const OpContext& ctx) {
  auto request = EncodePathRequest(path);
  if (!request) return Forward(std::move(request.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/Stat", *request, Repeat::kIdempotent, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  auto entry = DecodeEntryAnswer(*answer);
  if (entry && !entry->complete) return Failure(ErrorKind::kProtocol, EIO, "envd's answer: an entry without permissions");
  return entry;
}

Result<std::vector<EntryInfo>> Client::ListDir(const std::string& path, uint32_t depth, const OpContext& ctx, size_t max_bytes) {
  const std::string root = CleanAbsolutePath(path);
  if (root.empty() || depth == 0) return Failure(ErrorKind::kBadRequest, EINVAL, "a listing needs an absolute path and a depth");
  auto request = EncodeListDir(path, depth);
  if (!request) return Forward(std::move(request.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/ListDir", *request, Repeat::kIdempotent, ctx, max_bytes);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeListing(*answer, root, {kMaxListingEntries, depth});
}

Result<EntryInfo> Client::MakeDir(const std::string& path, const OpContext& ctx) {
  auto request = EncodePathRequest(path);
  if (!request) return Forward(std::move(request.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/MakeDir", *request, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEntryAnswer(*answer);
}

Result<EntryInfo> Client::Move(const std::string& source, const std::string& destination, const OpContext& ctx) {
  auto request = EncodeMove(source, destination);
  if (!request) return Forward(std::move(request.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/Move", *request, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEntryAnswer(*answer);
}

Result<void> Client::Remove(const std::string& path, const OpContext& ctx) {
  auto request = EncodePathRequest(path);
  if (!request) return Forward(std::move(request.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/Remove", *request, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEmptyAnswer(*answer);
}

Result<std::unique_ptr<WatchStream>> Client::WatchDir(const WatchRequest& request, const OpContext& ctx) {
  if (auto good = CheckWatch(request, *core_); !good) return Forward(std::move(good.error()));
  auto message = EncodeWatch(request);
  if (!message) return Forward(std::move(message.error()));
  OpContext stream_ctx = ctx;
  stream_ctx.service_class = ServiceClass::kStream;
  auto messages = core_->OpenStream("/filesystem.Filesystem/WatchDir", *message, Repeat::kIdempotent, 0, stream_ctx);
  if (!messages) return Forward(std::move(messages.error()));
  auto stream = std::make_unique<EnvdWatchStream>(std::move(*messages));
  if (auto started = stream->AwaitStart(ctx); !started) return Forward(std::move(started.error()));
  return stream;
}

Result<std::string> Client::CreateWatcher(const WatchRequest& request, const OpContext& ctx) {
  if (auto good = CheckWatch(request, *core_); !good) return Forward(std::move(good.error()));
  auto message = EncodeWatch(request);
  if (!message) return Forward(std::move(message.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/CreateWatcher", *message, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeWatcherId(*answer);
}

Result<std::vector<WatchEvent>> Client::GetWatcherEvents(const std::string& watcher_id, const OpContext& ctx) {
  auto message = EncodeWatcherId(watcher_id);
  if (!message) return Forward(std::move(message.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/GetWatcherEvents", *message, Repeat::kOnce, ctx, size_t{64} << 20);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeWatcherEvents(*answer);
}

Result<void> Client::RemoveWatcher(const std::string& watcher_id, const OpContext& ctx) {
  auto message = EncodeWatcherId(watcher_id);
  if (!message) return Forward(std::move(message.error()));
  auto answer = core_->Unary("/filesystem.Filesystem/RemoveWatcher", *message, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEmptyAnswer(*answer);
}

Result<void> Client::Health(const OpContext& ctx) { return core_->Health(ctx); }

Result<SandboxMetrics> Client::Metrics(const OpContext& ctx) {
  return core_->Try(Repeat::kIdempotent, ctx, [&](ClientCore::Answer& answer) -> Result<SandboxMetrics> {
    http::Request request = core_->MakeRequest("GET", "/metrics");
    request.headers.emplace_back("accept", "application/json");
    request.idempotent = true;
    auto response = core_->http.Fetch(std::move(request), ctx, kMaxUnaryBytes);
    if (!response) return Forward(std::move(response.error()));
    if (response->head.status != 200) return Forward(ClientCore::AnswerError(response->head, response->body, answer));
    return DecodeMetrics(response->body);
  });
}

}  // namespace e2bfs::transport::envd
