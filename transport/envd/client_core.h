// ClientCore: what all calls of envd::Client share: request heads, tries, token refresh, the health probe, opening of streams. Private to
// this folder.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/envd/client.h"
#include "transport/envd/compression.h"
#include "transport/envd/connect_codec.h"
#include "transport/envd/errors.h"
#include "transport/http/client.h"
#include "transport/retry.h"
#include "transport/sandbox_endpoint.h"

namespace e2bfs::transport::envd {

inline constexpr size_t kMaxUnaryBytes = size_t{4} << 20;   // answers but listings
inline constexpr size_t kMaxErrorBytes = size_t{64} << 10;

// A body of messages: an exchange and the decoder behind it. One thread at a time; Cancel from any.
class MessageStream {
 public:
  MessageStream(std::shared_ptr<ClientCore> core, std::unique_ptr<http::Exchange> exchange)
      : core_(std::move(core)), exchange_(std::move(exchange)) {}
  ~MessageStream() { exchange_->Listen(nullptr); }
  // The next message's payload; nullopt at the proven end without an error. An error is given again by every later call.
  Result<std::optional<std::string>> Next(const OpContext& ctx);
  // Instead of Next: the messages as they come, and at last nullopt or an error. As http::Exchange::Listen.
  void Listen(std::function<void(Result<std::optional<std::string>>)> take);
  // A lost connection is no reason to ask for the sandbox's health.
  void SkipProbes() { probes_ = false; }
  void Cancel() { exchange_->Cancel(); }

 private:
  Result<std::optional<std::string>> Decode();
  Result<void> Take(std::string_view bytes);
  Result<std::optional<std::string>> Pull(const OpContext& ctx);
  Result<std::optional<std::string>> TryPull();

  const std::shared_ptr<ClientCore> core_;
  const std::unique_ptr<http::Exchange> exchange_;
  EnvelopeDecoder decoder_;
  bool end_told_ = false;  // by the end-of-stream envelope
  bool ended_ = false;     // and the body with it
  bool probes_ = true;
  std::optional<Error> error_;
};

class ClientCore : public std::enable_shared_from_this<ClientCore> {
 public:
  ClientCore(http::HttpClient& http, std::shared_ptr<SandboxEndpoint> endpoint, Capabilities capabilities, ClientOptions options);

  // One try's way to tell more than its error.
  struct Answer {
    std::optional<std::chrono::milliseconds> retry_after;
  };

  // Calls `once(answer)` until it succeeds, must not be repeated, or no time is left; refreshes a refused token once; asks for the
  // sandbox's health when the connection was lost.
  template <typename Call>
  auto Try(Repeat repeat, const OpContext& ctx, Call once) -> decltype(once(std::declval<Answer&>())) {
    Retrier retrier(repeat, ctx);
    bool refreshed = false;
    while (true) {
      const uint64_t generation = endpoint->token_generation();
      Answer answer;
      auto result = once(answer);
      if (result) return result;
      Error error = std::move(result.error());
      if (IsRefusedToken(error) && !refreshed) {
        refreshed = true;
        if (RefreshTokens(generation, ctx)) continue;
        return Forward(std::move(error));
      }
      error = Examine(std::move(error), ctx);
      if (auto again = retrier.WaitToRepeat(error, answer.retry_after); !again) return Forward(std::move(again.error()));
    }
  }

  // POST /<procedure> with a JSON body; the answer's body, status 200 assured.
  Result<std::string> Unary(const char* procedure, const std::string& body, Repeat repeat, const OpContext& ctx,
                            size_t max_bytes = kMaxUnaryBytes);
  // Server streaming: returns when a good head is here. `kill_after_ms`: Connect-Timeout-Ms, if > 0.
  Result<std::unique_ptr<MessageStream>> OpenStream(const char* procedure, const std::string& message, Repeat repeat,
                                                    int64_t kill_after_ms, const OpContext& ctx);
  // One try of it, for callers with tries of their own.
  Result<std::unique_ptr<MessageStream>> OpenStreamOnce(const char* procedure, const std::string& message, Repeat repeat,
                                                        int64_t kill_after_ms, Answer& answer, const OpContext& ctx);

  // Method, origin, routing headers and tokens. `target` begins with '/'.
  http::Request MakeRequest(const char* method, std::string target) const;
  // As MakeRequest, for an RPC: POST, user, protocol version.
  http::Request MakeRpcRequest(const char* procedure, const char* content_type) const;
  // "/files?path=…&username=…"
  std::string FilesTarget(std::string_view path) const;

  // What a failed head means, its body read (bounded, best effort).
  Error ReadError(http::Exchange& exchange, const http::ResponseHead& head, Answer& answer, const OpContext& ctx) const;
  static Error AnswerError(const http::ResponseHead& head, std::string_view body, Answer& answer);

  // A lost or missing answer is followed by a health probe: kNotRunning if the edge says that the sandbox does not run; otherwise the
  // error as it is. At most one probe at a time, and its answer serves for a while.
  Error Examine(Error error, const OpContext& ctx);
  Result<void> Health(const OpContext& ctx) const;

  static bool IsRefusedToken(const Error& error);
  // True if there are other tokens than those of `generation` now.
  bool RefreshTokens(uint64_t generation, const OpContext& ctx) const;

  http::HttpClient& http;
  const std::shared_ptr<SandboxEndpoint> endpoint;
  const Capabilities capabilities;
  const ClientOptions options;
  const std::string user;  // as sent; empty: the template's default
  Compression compression;

 private:
  std::mutex probe_mutex_;  // guards the following; nothing is called under it
  bool probing_ = false;
  std::optional<TimePoint> probed_at_;
  std::optional<Error> not_running_;  // what the last probe found
};

}  // namespace e2bfs::transport::envd
