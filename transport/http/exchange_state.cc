#include "transport/http/exchange_state.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace e2bfs::transport::http {
namespace {

// Of a body that waits for its reader.
constexpr size_t kPieceBytes = size_t{16} << 10;
constexpr auto kBatchTime = std::chrono::milliseconds(2);
// What Write takes ahead of the network. Small: the program above has its own copy, and pushing back early is the point.
constexpr size_t kUploadBufferBytes = size_t{1} << 20;

}  // namespace

ExchangeState::ExchangeState(Request request, Settings settings, std::shared_ptr<LoopQueue> queue,
                             std::shared_ptr<SharedCounters> counters)
    : request_(std::move(request)), settings_(settings), queue_(std::move(queue)), counters_(std::move(counters)) {}

int64_t ExchangeState::request_body_length() const {
  if (!request_.streamed_body) return static_cast<int64_t>(request_.body.size());
  return request_.content_length.value_or(-1);
}

bool ExchangeState::has_request_body() const { return request_.streamed_body || !request_.body.empty(); }

template <typename Ready>
ExchangeState::Wake ExchangeState::WaitLocked(Lock& lock, const OpContext& ctx, TimePoint deadline, Ready ready) {
  if (deadline == TimePoint::max()) {
    changed_.wait(lock, ctx.stop, ready);
  } else {
    changed_.wait_until(lock, ctx.stop, deadline, ready);
  }
  if (ready()) return Wake::kReady;
  return ctx.stop.stop_requested() ? Wake::kStop : Wake::kTimeout;
}

void ExchangeState::KickLocked(Lock&) {
  if (kicked_) return;
  kicked_ = queue_->Post([self = shared_from_this()] { self->OnKick(); });
}

void ExchangeState::OnKick() {
  size_t consumed = 0;
  bool upload = false;
  Abandon why = Abandon::kNone;
  {
    std::lock_guard lock(mutex_);
    kicked_ = false;
    consumed = std::exchange(consumed_bytes_, 0);
    upload = std::exchange(upload_news_, false);
    if (abandoned_ != Abandon::kNone && !abandon_told_) {
      abandon_told_ = true;
      why = abandoned_;
    }
  }
  const ExchangePtr self = shared_from_this();
  if (why != Abandon::kNone) TellListener();
  // Each call may end the exchange and with it the carrier.
  if (consumed > 0 && carrier != nullptr) carrier->OnConsumed(self, consumed);
  if (why != Abandon::kNone && carrier != nullptr) {
    carrier->OnAbandoned(self, why);
  } else if (upload && carrier != nullptr) {
    carrier->OnRequestBodyReady(self);
  }
}

Error ExchangeState::GiveUpLocked(Lock& lock, Abandon why, Error error) {
  if (!error_) error_ = std::move(error);
  if (abandoned_ == Abandon::kNone) abandoned_ = why;
  body_.clear();
  body_front_ = body_bytes_ = 0;
  KickLocked(lock);
  changed_.notify_all();
  return *error_;
}

Error ExchangeState::StopErrorLocked(Lock& lock, Wake wake, bool own_deadline, std::string_view what) {
  if (wake == Wake::kStop) {
    return GiveUpLocked(lock, Abandon::kCancelled, Failure(ErrorKind::kCancelled, EINTR, "cancelled").value());
  }
  std::string text = own_deadline ? "no " : "the operation's deadline passed; no ";
  text += what;
  return GiveUpLocked(lock, Abandon::kTimeout, Failure(ErrorKind::kTimeout, ETIMEDOUT, std::move(text)).value());
}

Result<ResponseHead> ExchangeState::WaitHead(const OpContext& ctx) {
  Lock lock(mutex_);
  while (true) {
    if (head_) return *head_;
    if (error_) return Forward(*error_);
    const auto seen = head_deadline_;
    const TimePoint own = seen && !request_.no_head_timeout ? *seen : TimePoint::max();
    const Wake wake = WaitLocked(lock, ctx, std::min(own, ctx.deadline),
                                 [&] { return head_ || error_ || head_deadline_ != seen; });
    if (wake != Wake::kReady) return Forward(StopErrorLocked(lock, wake, own < ctx.deadline, "answer in time"));
  }
}

Result<size_t> ExchangeState::Read(char* buffer, size_t capacity, const OpContext& ctx) {
  Lock lock(mutex_);
  if (!ReadableLocked()) {
    const TimePoint own = Clock::now() + settings_.idle_timeout;
    const Wake wake = WaitLocked(lock, ctx, std::min(own, ctx.deadline), [&] { return ReadableLocked(); });
    if (wake != Wake::kReady) {
      return Forward(StopErrorLocked(lock, wake, own < ctx.deadline, "more of the answer in time"));
    }
  } else if (!complete_ && !error_) {
    // A server that always has more to say outlasts neither.
    if (ctx.stop.stop_requested()) return Forward(StopErrorLocked(lock, Wake::kStop, false, ""));
    if (ctx.deadline <= Clock::now()) {
      return Forward(GiveUpLocked(lock, Abandon::kCancelled,
                                  Failure(ErrorKind::kTimeout, ETIMEDOUT, "the operation's deadline passed before the answer's end").value()));
    }
  }
  wanted_bytes_ = std::min(capacity, read_batch_bytes_);
  if (body_bytes_ < wanted_bytes_) {
    WaitLocked(lock, ctx, std::min(ctx.deadline, Clock::now() + kBatchTime), [&] { return body_bytes_ >= wanted_bytes_ || complete_ || error_; });
  }
  wanted_bytes_ = 1;
  return TakeBodyLocked(lock, buffer, capacity);
}

Result<std::optional<size_t>> ExchangeState::TryRead(char* buffer, size_t capacity) {
  Lock lock(mutex_);
  if (!ReadableLocked()) return std::nullopt;
  auto taken = TakeBodyLocked(lock, buffer, capacity);
  if (!taken) return Forward(taken.error());
  return *taken;
}

void ExchangeState::Listen(std::function<void()> readable) {
  const std::lock_guard calling(listener_mutex_);
  listener_ = std::move(readable);
  has_listener_ = listener_ != nullptr;
  if (listener_) queue_->Post([self = shared_from_this()] { self->TellListener(); });
}

void ExchangeState::TellListener() {
  if (!has_listener_) return;
  const std::lock_guard calling(listener_mutex_);
  if (listener_) listener_();
}

// What came before the end or the error is given first.
Result<size_t> ExchangeState::TakeBodyLocked(Lock& lock, char* buffer, size_t capacity) {
  size_t given = 0;
  while (given < capacity && body_bytes_ > 0) {
    const std::string& front = body_.front();
    const size_t part = std::min(capacity - given, front.size() - body_front_);
    std::memcpy(buffer + given, front.data() + body_front_, part);
    given += part;
    body_front_ += part;
    body_bytes_ -= part;
    if (body_front_ == front.size()) {
      body_.pop_front();
      body_front_ = 0;
    }
  }
  if (given > 0) {
    consumed_bytes_ += given;
    if (!complete_ && !error_ && consumed_bytes_ >= settings_.consumed_step) KickLocked(lock);
    return given;
  }
  if (error_) return Forward(*error_);
  return size_t{0};
}

Result<void> ExchangeState::Write(std::string_view bytes, const OpContext& ctx) {
  Lock lock(mutex_);
  if (!request_.streamed_body || upload_finished_) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "a request body that is not open was written to");
  }
  if (request_.content_length && static_cast<int64_t>(bytes.size()) > *request_.content_length - uploaded_bytes_) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "more request body than was declared");
  }
  const auto ended = [&]() -> std::optional<Error> {
    if (error_) return error_;
    // A server that has all that was declared may answer before FinishBody, even before this call returns.
    const bool all_sent = request_.content_length && uploaded_bytes_ == *request_.content_length && upload_bytes_ == 0;
    if ((upload_closed_ || complete_) && !all_sent) {
      return Failure(ErrorKind::kBroken, EPIPE, "the server answered without reading the whole request").value();
    }
    return std::nullopt;
  };
  while (true) {
    if (auto error = ended()) return Forward(*error);
    if (bytes.empty()) return {};
    if (upload_bytes_ < kUploadBufferBytes) {
      const size_t part = std::min(bytes.size(), kUploadBufferBytes - upload_bytes_);
      upload_.emplace_back(bytes.substr(0, part));
      upload_bytes_ += part;
      bytes.remove_prefix(part);
      uploaded_bytes_ += static_cast<int64_t>(part);
      upload_news_ = true;
      KickLocked(lock);
      continue;
    }
    const TimePoint own = Clock::now() + settings_.idle_timeout;
    const Wake wake = WaitLocked(lock, ctx, std::min(own, ctx.deadline), [&] {
      return upload_bytes_ < kUploadBufferBytes || ended().has_value();
    });
    if (wake != Wake::kReady) {
      return Forward(StopErrorLocked(lock, wake, own < ctx.deadline, "progress in sending the request"));
    }
  }
}

Result<void> ExchangeState::FinishBody(const OpContext&) {
  Lock lock(mutex_);
  if (!request_.streamed_body) return Failure(ErrorKind::kBadRequest, EINVAL, "the request body is not streamed");
  if (error_) return Forward(*error_);
  if (upload_finished_) return {};
  if (request_.content_length && uploaded_bytes_ != *request_.content_length) {
    return Forward(GiveUpLocked(lock, Abandon::kCancelled,
                                Failure(ErrorKind::kBadRequest, EINVAL, "less request body than was declared").value()));
  }
  upload_finished_ = true;
  upload_news_ = true;
  const bool all_sent = request_.content_length && upload_bytes_ == 0;
  if (complete_ && all_sent) return {};
  if ((upload_closed_ || complete_) && !all_sent) {
    return Failure(ErrorKind::kBroken, EPIPE, "the server answered without reading the whole request");
  }
  KickLocked(lock);
  return {};
}

void ExchangeState::Cancel() {
  Lock lock(mutex_);
  if (complete_ || error_) return;
  GiveUpLocked(lock, Abandon::kCancelled, Failure(ErrorKind::kCancelled, EINTR, "cancelled").value());
}

void ExchangeState::MarkSent() {
  std::lock_guard lock(mutex_);
  head_deadline_ = Clock::now() + settings_.head_timeout;
  changed_.notify_all();
}

bool ExchangeState::over() {
  std::lock_guard lock(mutex_);
  return error_.has_value() || complete_;
}

bool ExchangeState::has_head() {
  std::lock_guard lock(mutex_);
  return head_.has_value();
}

int ExchangeState::status() {
  std::lock_guard lock(mutex_);
  return head_ ? head_->status : 0;
}

void ExchangeState::PublishHead(ResponseHead head) {
  std::lock_guard lock(mutex_);
  if (error_) return;
  head_ = std::move(head);
  changed_.notify_all();
}

void ExchangeState::AppendBody(std::string_view bytes) {
  counters_->bytes_received.fetch_add(static_cast<int64_t>(bytes.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    if (error_ || bytes.empty()) return;
    // Small pieces share a string, or a server that sends single bytes would cost a string for each.
    if (body_.empty() || body_.back().size() + bytes.size() > kPieceBytes) {
      body_.emplace_back();
      if (bytes.size() > kPieceBytes / 4) body_.back().reserve(kPieceBytes);  // or appending the little that is missing would double it
    }
    body_.back().append(bytes);
    body_bytes_ += bytes.size();
    if (body_bytes_ >= wanted_bytes_) changed_.notify_all();
  }
  TellListener();
}

void ExchangeState::LimitReadBatch(size_t bytes) {
  std::lock_guard lock(mutex_);
  read_batch_bytes_ = std::min(read_batch_bytes_, bytes);
}

size_t ExchangeState::buffered_bytes() {
  std::lock_guard lock(mutex_);
  return body_bytes_;
}

void ExchangeState::CloseUpload() {
  std::lock_guard lock(mutex_);
  upload_closed_ = true;
  changed_.notify_all();
}

void ExchangeState::Complete() {
  {
    std::lock_guard lock(mutex_);
    if (error_) return;
    complete_ = true;
    changed_.notify_all();
  }
  TellListener();
}

void ExchangeState::Fail(Error error) {
  {
    std::lock_guard lock(mutex_);
    if (error_ || complete_) return;
    error_ = std::move(error);
    changed_.notify_all();
  }
  TellListener();
}

ExchangeState::BodyPart ExchangeState::TakeRequestBody(char* buffer, size_t capacity, size_t* taken) {
  std::lock_guard lock(mutex_);
  *taken = 0;
  if (!request_.streamed_body) {
    const size_t part = std::min(capacity, request_.body.size() - taken_bytes_);
    std::memcpy(buffer, request_.body.data() + taken_bytes_, part);
    taken_bytes_ += part;
    *taken = part;
  } else {
    while (*taken < capacity && upload_bytes_ > 0) {
      const std::string& front = upload_.front();
      const size_t part = std::min(capacity - *taken, front.size() - upload_front_);
      std::memcpy(buffer + *taken, front.data() + upload_front_, part);
      *taken += part;
      upload_front_ += part;
      upload_bytes_ -= part;
      if (upload_front_ == front.size()) {
        upload_.pop_front();
        upload_front_ = 0;
      }
    }
    taken_bytes_ += *taken;
    // Whoever writes is woken when it is worth it.
    if (*taken > 0 && upload_bytes_ <= kUploadBufferBytes / 2) changed_.notify_all();
  }
  counters_->bytes_sent.fetch_add(static_cast<int64_t>(*taken), std::memory_order_relaxed);
  const bool ended = request_.streamed_body ? upload_finished_ && upload_bytes_ == 0
                                            : taken_bytes_ == request_.body.size();
  const bool idle = request_.streamed_body && *taken == 0;
  // The wait for the answer begins anew with each part of the body that goes out.
  if (*taken > 0 || ended) {
    head_deadline_ = Clock::now() + settings_.head_timeout;
    changed_.notify_all();
  }
  if (ended) return BodyPart::kEnd;
  return idle ? BodyPart::kEmpty : BodyPart::kMore;
}

bool ExchangeState::RewindRequestBody() {
  std::lock_guard lock(mutex_);
  head_deadline_.reset();
  if (!request_.streamed_body) {
    taken_bytes_ = 0;
    return true;
  }
  return taken_bytes_ == 0;
}

}  // namespace e2bfs::transport::http
