// ExchangeState: one request and its response between the thread that called and the loop that carries it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "transport/http/carrier.h"
#include "transport/http/client.h"
#include "transport/http/event_loop.h"

namespace e2bfs::transport::http {

// Counted by several threads; read by HttpClient::statistics.
struct SharedCounters {
  std::atomic<int64_t> requests{0};
  std::atomic<int64_t> requests_now{0};
  std::atomic<int64_t> retries{0};
  std::atomic<int64_t> connections_opened{0};
  std::atomic<int64_t> connections_now{0};
  std::atomic<int64_t> idle_connections{0};
  std::atomic<int64_t> bytes_sent{0};
  std::atomic<int64_t> bytes_received{0};
  std::atomic<int64_t> rate_limit_waits{0};
};

struct OriginPool;  // pool.h

class ExchangeState : public std::enable_shared_from_this<ExchangeState> {
 public:
  struct Settings {
    std::chrono::milliseconds head_timeout;
    std::chrono::milliseconds idle_timeout;
    ServiceClass service_class;
    // The loop is told of what was read when it is so many bytes: at most a quarter of the window, or the server could wait for ever.
    size_t consumed_step;
  };
  ExchangeState(Request request, Settings settings, std::shared_ptr<LoopQueue> queue,
                std::shared_ptr<SharedCounters> counters);

  const Request& request() const { return request_; }
  ServiceClass service_class() const { return settings_.service_class; }

  // --- the caller's threads: as in client.h
  Result<ResponseHead> WaitHead(const OpContext& ctx);
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx);
  void Listen(std::function<void()> readable);
  Result<std::optional<size_t>> TryRead(char* buffer, size_t capacity);
  Result<void> Write(std::string_view bytes, const OpContext& ctx);
  Result<void> FinishBody(const OpContext& ctx);
  void Cancel();

  // --- the loop's thread
  // The request's head went out (and, without a body, all of it): the wait for the answer begins.
  void MarkSent();
  bool over();  // failed, cancelled or complete: nothing more of it is wanted
  bool has_head();
  int status();  // of its head; 0: there is none
  void PublishHead(ResponseHead head);
  void AppendBody(std::string_view bytes);
  size_t buffered_bytes();
  // The other side can send no more than twice that ahead: the reader does not wait for more.
  void LimitReadBatch(size_t bytes);
  // The server wants no more of the request's body; a writer gets an error.
  void CloseUpload();
  void Complete();
  void Fail(Error error);

  enum class BodyPart { kMore, kEmpty, kEnd };  // bytes were given, none are there now, and these (maybe 0) were the last
  BodyPart TakeRequestBody(char* buffer, size_t capacity, size_t* taken);
  // Nothing of the body has been taken yet or it can be taken again; then it starts from its beginning.
  bool RewindRequestBody();
  // -1: unknown (streamed without a length)
  int64_t request_body_length() const;
  bool has_request_body() const;

  // The loop's own notes; no lock.
  Carrier* carrier = nullptr;
  uint64_t stream_id = 0;  // the carrier's
  int tries = 0;         // on which the server may have acted, or which it refused
  int unsent_tries = 0;  // connections that ended before that
  OriginPool* home = nullptr;  // the pool's
  TimePoint queued_at{};
  bool in_flight = false;
  bool on_http1 = false;

 private:
  using Lock = std::unique_lock<std::mutex>;
  // Waits until `ready()` or the deadline; what ended the wait.
  enum class Wake { kReady, kTimeout, kStop };
  template <typename Ready>
  Wake WaitLocked(Lock& lock, const OpContext& ctx, TimePoint deadline, Ready ready);
  void KickLocked(Lock& lock);
  void OnKick();
  Error GiveUpLocked(Lock& lock, Abandon why, Error error);
  Error StopErrorLocked(Lock& lock, Wake wake, bool own_deadline, std::string_view what);
  bool ReadableLocked() const { return body_bytes_ > 0 || complete_ || error_; }
  Result<size_t> TakeBodyLocked(Lock& lock, char* buffer, size_t capacity);
  void TellListener();

  const Request request_;
  const Settings settings_;
  const std::shared_ptr<LoopQueue> queue_;
  const std::shared_ptr<SharedCounters> counters_;

  std::mutex listener_mutex_;  // held while the listener is called; before mutex_
  std::function<void()> listener_;
  std::atomic<bool> has_listener_{false};

  std::mutex mutex_;  // a leaf but for the queue's own (taken inside by Post)
  std::condition_variable_any changed_;
  // All below: under mutex_.
  std::optional<ResponseHead> head_;
  std::optional<TimePoint> head_deadline_;
  std::optional<Error> error_;
  bool complete_ = false;
  std::deque<std::string> body_;
  size_t body_front_ = 0;      // bytes of body_.front() that were taken
  size_t body_bytes_ = 0;      // in body_, not yet taken
  size_t consumed_bytes_ = 0;  // taken since the last kick
  size_t read_batch_bytes_ = request_.read_batch_bytes;
  size_t wanted_bytes_ = 1;    // the reader is not woken for fewer
  std::deque<std::string> upload_;  // streamed request body, not yet taken by the loop
  size_t upload_front_ = 0;         // bytes of upload_.front() that were taken
  size_t upload_bytes_ = 0;         // in upload_, not yet taken
  int64_t uploaded_bytes_ = 0;  // given by Write in all
  size_t taken_bytes_ = 0;      // taken by the loop from request_.body or upload_
  bool upload_finished_ = false;
  bool upload_closed_ = false;
  bool upload_news_ = false;    // the loop has not been told of the upload's last change
  Abandon abandoned_ = Abandon::kNone;
  bool abandon_told_ = false;
  bool kicked_ = false;
};

// The caller's end: its destruction gives the exchange up.
class ExchangeHandle final : public Exchange {
 public:
  explicit ExchangeHandle(ExchangePtr state) : state_(std::move(state)) {}
  ~ExchangeHandle() override { state_->Cancel(); }
  Result<ResponseHead> WaitHead(const OpContext& ctx) override { return state_->WaitHead(ctx); }
  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    return state_->Read(buffer, capacity, ctx);
  }
  void Listen(std::function<void()> readable) override { state_->Listen(std::move(readable)); }
  Result<std::optional<size_t>> TryRead(char* buffer, size_t capacity) override { return state_->TryRead(buffer, capacity); }
  Result<void> Write(std::string_view bytes, const OpContext& ctx) override { return state_->Write(bytes, ctx); }
  Result<void> FinishBody(const OpContext& ctx) override { return state_->FinishBody(ctx); }
  void Cancel() override { state_->Cancel(); }

 private:
  const ExchangePtr state_;
};

}  // namespace e2bfs::transport::http
