// The process service of envd::Client.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <system_error>
#include <thread>

#include "transport/envd/client.h"
#include "transport/envd/client_core.h"
#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

constexpr size_t kInputMessageBytes = size_t{32} << 10;  // as envd's own chunks
// Less than a pipe holds: envd's write of it cannot block on a program that does not read.
constexpr size_t kInlineInputBytes = size_t{32} << 10;
constexpr std::chrono::milliseconds kKillTime{5'000};
constexpr std::chrono::milliseconds kAnswerTime{5'000};

class EnvdProcessStream final : public ProcessStream {
 public:
  explicit EnvdProcessStream(std::unique_ptr<MessageStream> messages) : messages_(std::move(messages)) {}

  Result<std::optional<ProcessEvent>> Next(const OpContext& ctx) override {
    if (error_) return Forward(*error_);
    while (true) {
      auto payload = messages_->Next(ctx);
      if (!payload) return Forward(std::move(payload.error()));
      if (!*payload) return std::nullopt;
      auto event = DecodeProcessMessage(**payload);
      if (!event) {
        error_ = event.error();
        messages_->Cancel();
        return event;
      }
      if (*event) return event;
    }
  }
  void Listen(std::function<void(Result<std::optional<ProcessEvent>>)> take) override {
    if (!take) return messages_->Listen(nullptr);
    messages_->Listen([this, take = std::move(take)](Result<std::optional<std::string>> payload) {
      if (error_) return;
      if (!payload) return take(Forward(std::move(payload.error())));
      if (!*payload) return take(std::nullopt);
      auto event = DecodeProcessMessage(**payload);
      if (!event) {
        error_ = event.error();
        messages_->Cancel();
      } else if (!*event) {
        return;  // a keep-alive
      }
      take(std::move(event));
    });
  }
  void SkipProbes() override { messages_->SkipProbes(); }
  void Cancel() override { messages_->Cancel(); }

 private:
  const std::unique_ptr<MessageStream> messages_;
  std::optional<Error> error_;
};

class EnvdInputStream final : public InputStream {
 public:
  EnvdInputStream(std::shared_ptr<ClientCore> core, std::unique_ptr<http::Exchange> exchange)
      : core_(std::move(core)), exchange_(std::move(exchange)) {}

  Result<void> Write(std::string_view bytes, const OpContext& ctx) override {
    while (!bytes.empty()) {
      const std::string_view part = bytes.substr(0, kInputMessageBytes);
      if (auto sent = Send(EncodeInputData(part), ctx); !sent) return sent;
      bytes.remove_prefix(part.size());
    }
    return {};
  }

  Result<void> KeepAlive(const OpContext& ctx) override { return Send(EncodeInputKeepAlive(), ctx); }
  Result<void> Check() override { return exchange_->Write({}, OpContext{}); }

  Result<void> Send(const std::string& message, const OpContext& ctx) {
    auto sent = exchange_->Write(EncodeEnvelope(message), ctx);
    return sent ? sent : WhyRefused(std::move(sent.error()), ctx);
  }

  Result<void> Finish(const OpContext& ctx) override {
    if (auto finished = exchange_->FinishBody(ctx); !finished) return WhyRefused(std::move(finished.error()), ctx);
    auto head = exchange_->WaitHead(ctx);
    if (!head) return Forward(core_->Examine(std::move(head.error()), ctx));
    return ReadAnswer(*head, ctx);
  }

  void Cancel() override { exchange_->Cancel(); }

 private:
  // A server that answers before the input's end says more by its answer than by not taking more.
  Result<void> WhyRefused(Error error, const OpContext& ctx) {
    OpContext soon = ctx;
    soon.deadline = std::min(ctx.deadline, Clock::now() + kAnswerTime);
    auto head = exchange_->WaitHead(soon);
    if (!head) return Forward(core_->Examine(std::move(error), ctx));
    if (auto answer = ReadAnswer(*head, soon); !answer) return answer;
    return Forward(std::move(error));  // an answer of success to half of the input
  }

  Result<void> ReadAnswer(const http::ResponseHead& head, const OpContext& ctx) {
    ClientCore::Answer ignored;
    if (head.status != 200) {
      Error error = core_->ReadError(*exchange_, head, ignored, ctx);
      if (ClientCore::IsRefusedToken(error) && core_->RefreshTokens(generation_, ctx)) {
        return Failure(ErrorKind::kUnavailable, EAGAIN, "the sandbox's token was renewed: begin again");
      }
      return Forward(std::move(error));
    }
    EnvelopeDecoder decoder;
    char buffer[4096];
    while (true) {
      auto envelope = decoder.Next();
      if (!envelope) return Forward(std::move(envelope.error()));
      if (*envelope && (*envelope)->end_of_stream) {
        auto end = DecodeEndOfStream((*envelope)->payload);
        if (!end) return Forward(std::move(end.error()));
        if (*end) return Forward(FromRpcError(200, (*end)->rpc_code, (*end)->message));
      }
      if (*envelope) continue;
      auto count = exchange_->Read(buffer, sizeof buffer, ctx);
      if (!count) return Forward(std::move(count.error()));
      if (*count == 0) return decoder.Finish();
      decoder.Feed(std::string_view(buffer, *count));
    }
  }

  const std::shared_ptr<ClientCore> core_;
  const std::unique_ptr<http::Exchange> exchange_;
  const uint64_t generation_ = core_->endpoint->token_generation();
};

Result<std::unique_ptr<InputStream>> OpenInput(const std::shared_ptr<ClientCore>& core, const ProcessSelector& process,
                                               const OpContext& ctx) {
  auto start = EncodeInputStart(process);
  if (!start) return Forward(std::move(start.error()));
  http::Request request = core->MakeRpcRequest("/process.Process/StreamInput", "application/connect+json");
  request.headers.emplace_back("keepalive-ping-interval", std::to_string(core->options.keepalive_seconds));
  request.streamed_body = true;
  request.no_head_timeout = true;
  auto exchange = core->http.Start(std::move(request), ctx);
  if (!exchange) return Forward(std::move(exchange.error()));
  auto stream = std::make_unique<EnvdInputStream>(core, std::move(*exchange));
  if (auto sent = stream->Send(*start, ctx); !sent) return Forward(std::move(sent.error()));
  return stream;
}

Result<void> CloseInput(ClientCore& core, const ProcessSelector& process, const OpContext& ctx) {
  auto request = EncodeSelector(process);
  if (!request) return Forward(std::move(request.error()));
  // Twice does no harm.
  auto answer = core.Unary("/process.Process/CloseStdin", *request, Repeat::kIdempotent, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEmptyAnswer(*answer);
}

// All bytes to the process's standard input, then its end.
Result<void> FeedInput(const std::shared_ptr<ClientCore>& core, uint32_t pid, std::string_view bytes, const OpContext& ctx) {
  if (!bytes.empty()) {
    auto input = OpenInput(core, {pid, {}}, ctx);
    if (!input) return Forward(std::move(input.error()));
    if (auto written = (*input)->Write(bytes, ctx); !written) return written;
    if (auto finished = (*input)->Finish(ctx); !finished) return finished;
  }
  return CloseInput(*core, {pid, {}}, ctx);
}

// One run of a command. Collects output, feeds input.
class CommandRun {
 public:
  CommandRun(std::shared_ptr<ClientCore> core, const RunRequest& request, const OpContext& ctx)
      : core_(std::move(core)), request_(request), ctx_(ctx) {}

  Result<RunResult> Go(const std::string& message, int64_t kill_after_ms, ClientCore::Answer& answer) {
    auto messages = core_->OpenStreamOnce("/process.Process/Start", message, Repeat::kOnce, kill_after_ms, answer, ctx_);
    if (!messages) return Forward(std::move(messages.error()));
    events_ = std::make_unique<EnvdProcessStream>(std::move(*messages));
    auto result = Collect();
    input_stop_.request_stop();
    if (feeder_.joinable()) feeder_.join();
    if (result) return result;
    Error error = input_error_ ? *input_error_ : std::move(result.error());
    if (pid_ == 0) return Forward(std::move(error));
    // It was started: whatever is said from here on, it may have had its effect.
    if (error.kind == ErrorKind::kConnect || error.kind == ErrorKind::kUnavailable || error.kind == ErrorKind::kRateLimited) {
      error.kind = ErrorKind::kBroken;
    }
    if (error.kind == ErrorKind::kCancelled || error.kind == ErrorKind::kTimeout || error.kind == ErrorKind::kProtocol) Kill();
    return Forward(std::move(error));
  }

 private:
  Result<RunResult> Collect() {
    RunResult result;
    bool ended = false;
    while (true) {
      auto event = events_->Next(ctx_);
      if (!event) return Forward(std::move(event.error()));
      if (!*event) {
        if (!ended) return Failure(ErrorKind::kProtocol, EIO, "envd's answer: a process without an end");
        return result;
      }
      ProcessEvent& what = **event;
      switch (what.kind) {
        case ProcessEvent::Kind::kStart:
          if (pid_ != 0) return Failure(ErrorKind::kProtocol, EIO, "envd's answer: a process that starts twice");
          pid_ = what.pid;
          if (request_.stdin_bytes) {
            if (auto fed = Feed(); !fed) return Forward(std::move(fed.error()));
          }
          break;
        case ProcessEvent::Kind::kStdout:
          if (what.data.size() > request_.max_stdout_bytes - result.out.size()) {
            return Failure(ErrorKind::kProtocol, EFBIG, "more output than expected");
          }
          result.out += what.data;
          break;
        case ProcessEvent::Kind::kStderr:
          result.err.append(what.data, 0, std::min(what.data.size(), request_.max_stderr_bytes - result.err.size()));
          break;
        case ProcessEvent::Kind::kEnd:
          if (pid_ == 0 || ended) return Failure(ErrorKind::kProtocol, EIO, "envd's answer: a process's impossible end");
          ended = true;
          result.end = std::move(what.end);
          break;
      }
    }
  }

  Result<void> Feed() {
    if (request_.stdin_bytes->size() <= kInlineInputBytes) {
      auto fed = FeedInput(core_, pid_, *request_.stdin_bytes, ctx_);
      return fed || IsItsOwnAffair(fed.error()) ? Result<void>() : fed;
    }
    // More than a pipe holds has to go while the output is being read, or both sides could wait for each other.
    OpContext input_ctx = ctx_;
    input_ctx.stop = input_stop_.get_token();
    try {
      feeder_ = std::thread([this, input_ctx] {
        auto fed = FeedInput(core_, pid_, *request_.stdin_bytes, input_ctx);
        if (fed || IsItsOwnAffair(fed.error()) || input_ctx.stop.stop_requested()) return;
        input_error_ = std::move(fed.error());
        events_->Cancel();  // or it would wait for its input for ever
      });
    } catch (const std::system_error&) {
      return Failure(ErrorKind::kLocal, EAGAIN, "no thread to feed a command");
    }
    return {};
  }

  // A process that ended before it took all of its input: its end event tells.
  static bool IsItsOwnAffair(const Error& error) { return error.kind == ErrorKind::kErrno; }

  void Kill() {
    const auto message = EncodeSignal({pid_, {}}, SIGKILL);
    // Best effort: envd kills it at the deadline anyway, if there was one.
    if (message) (void)core_->Unary("/process.Process/SendSignal", *message, Repeat::kOnce, OpContext::Within(kKillTime));
  }

  const std::shared_ptr<ClientCore> core_;
  const RunRequest& request_;
  const OpContext& ctx_;
  std::unique_ptr<EnvdProcessStream> events_;
  uint32_t pid_ = 0;
  std::stop_source input_stop_;
  std::optional<Error> input_error_;  // written by the feeder, read after its join
  std::thread feeder_;
};

}  // namespace

Result<std::unique_ptr<ProcessStream>> Client::StartProcess(const StartRequest& request, const OpContext& ctx) {
  auto message = EncodeStart(request);
  if (!message) return Forward(std::move(message.error()));
  auto messages = core_->OpenStream("/process.Process/Start", *message, Repeat::kOnce, request.kill_after_ms, ctx);
  if (!messages) return Forward(std::move(messages.error()));
  return std::make_unique<EnvdProcessStream>(std::move(*messages));
}

Result<RunResult> Client::Run(const RunRequest& request, const OpContext& ctx) {
  if (request.stdin_bytes && !core_->capabilities.close_stdin) {
    return Failure(ErrorKind::kBadRequest, ENOTSUP, "closing a command's input is not offered by envd " + core_->capabilities.version_text);
  }
  StartRequest start;
  start.process = request.process;
  start.stdin_open = request.stdin_bytes.has_value();
  auto message = EncodeStart(start);
  if (!message) return Forward(std::move(message.error()));
  return core_->Try(request.repeat, ctx, [&](ClientCore::Answer& answer) -> Result<RunResult> {
    int64_t kill_after_ms = 0;
    if (ctx.deadline != TimePoint::max()) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(ctx.deadline - Clock::now());
      kill_after_ms = std::max<int64_t>(1, left.count());
    }
    CommandRun run(core_, request, ctx);
    return run.Go(*message, kill_after_ms, answer);
  });
}

Result<std::unique_ptr<ProcessStream>> Client::ConnectProcess(const ProcessSelector& process, const OpContext& ctx) {
  auto message = EncodeSelector(process);
  if (!message) return Forward(std::move(message.error()));
  auto messages = core_->OpenStream("/process.Process/Connect", *message, Repeat::kIdempotent, 0, ctx);
  if (!messages) return Forward(std::move(messages.error()));
  return std::make_unique<EnvdProcessStream>(std::move(*messages));
}

Result<std::vector<ProcessInfo>> Client::ListProcesses(const OpContext& ctx) {
  auto answer = core_->Unary("/process.Process/List", "{}", Repeat::kIdempotent, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeProcessList(*answer);
}

Result<void> Client::SendInput(const ProcessSelector& process, std::string_view bytes, const OpContext& ctx) {
  auto message = EncodeSendInput(process, bytes);
  if (!message) return Forward(std::move(message.error()));
  auto answer = core_->Unary("/process.Process/SendInput", *message, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEmptyAnswer(*answer);
}

Result<std::unique_ptr<InputStream>> Client::StreamInput(const ProcessSelector& process, const OpContext& ctx) {
  OpContext stream_ctx = ctx;
  stream_ctx.service_class = ServiceClass::kStream;
  return OpenInput(core_, process, stream_ctx);
}

Result<void> Client::CloseStdin(const ProcessSelector& process, const OpContext& ctx) {
  if (!core_->capabilities.close_stdin) {
    return Failure(ErrorKind::kBadRequest, ENOTSUP, "closing a command's input is not offered by envd " + core_->capabilities.version_text);
  }
  return CloseInput(*core_, process, ctx);
}

Result<void> Client::SendSignal(const ProcessSelector& process, int signal_number, const OpContext& ctx) {
  auto message = EncodeSignal(process, signal_number);
  if (!message) return Forward(std::move(message.error()));
  auto answer = core_->Unary("/process.Process/SendSignal", *message, Repeat::kOnce, ctx);
  if (!answer) return Forward(std::move(answer.error()));
  return DecodeEmptyAnswer(*answer);
}

}  // namespace e2bfs::transport::envd
