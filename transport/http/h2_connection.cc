#include "transport/http/h2_connection.h"

#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "transport/base/log.h"
#include "transport/http/h2_callbacks.h"
#include "transport/http/h2_stream.h"
#include "transport/http/tls.h"

namespace e2bfs::transport::http {
namespace {

constexpr size_t kMaxH2HeadBytes = size_t{64} << 10;
constexpr int kMaxH2InformationalHeads = 16;
// Before the peer's SETTINGS have told its own limit; most servers' come with the end of the handshake.
constexpr int kStreamsBeforeSettings = 4;
constexpr int kSmallestWindow = 65535;  // what a stream has before we say anything (RFC 9113, 6.9.2)
constexpr size_t kOutputChunkBytes = size_t{64} << 10;
constexpr int kReadsPerTurn = 16;

// Shares of the upload when several streams have something to send.
int H2Weight(ServiceClass service_class) {
  switch (service_class) {
    case ServiceClass::kMetadata: return 256;
    case ServiceClass::kForeground: return 128;
    case ServiceClass::kStream: return 256;
    case ServiceClass::kBulk: break;
  }
  return 8;
}

Error BrokenError(std::string text) { return Failure(ErrorKind::kBroken, EIO, std::move(text)).value(); }

}  // namespace

H2Connection::H2Connection(EventLoop& loop, const ClientOptions& options, std::shared_ptr<SharedCounters> counters,
                           Listener& listener, OriginPool& home, std::string authority, int descriptor, ssl_st* tls)
    : loop_(loop),
      options_(options),
      counters_(std::move(counters)),
      listener_(listener),
      home_(home),
      authority_(std::move(authority)),
      descriptor_(descriptor),
      tls_(tls) {
  counters_->connections_opened.fetch_add(1, std::memory_order_relaxed);
  counters_->connections_now.fetch_add(1, std::memory_order_relaxed);
}

H2Connection::~H2Connection() {
  if (!closed_) Close(Failure(ErrorKind::kCancelled, EINTR, "the client was closed").value());
  nghttp2_session_del(session_);
  SSL_free(tls_);
  close(descriptor_);
  counters_->connections_now.fetch_sub(1, std::memory_order_relaxed);
}

bool H2Connection::Begin() {
  session_ = NewH2Session(*this);
  // The streams' windows together never exceed half of the connection's (StreamWindow), so a reader that stops cannot
  // stop the others, whatever nghttp2 holds back before it sends an update (half a window).
  const int64_t all_streams = options_.connection_window_bytes + int64_t{kSmallestWindow} * options_.max_streams_per_connection;
  const int32_t window = static_cast<int32_t>(std::min<int64_t>(2 * all_streams, (int64_t{1} << 31) - 1));
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kSmallestWindow},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kMaxH2HeadBytes},
  };
  watch_ = loop_.Watch(descriptor_, EPOLLIN, [this](uint32_t events) { OnIo(events); });
  if (session_ == nullptr || watch_ == 0 ||
      nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, std::size(settings)) != 0 ||
      nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, window) != 0) {
    Close(Failure(ErrorKind::kLocal, ENOMEM, "HTTP/2 could not be set up").value());
    return false;
  }
  ScheduleFlush();
  // What came with the end of the handshake is in OpenSSL's buffer, of which epoll knows nothing.
  loop_.Defer([this, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired() && !closed_) OnIo(EPOLLIN);
  });
  return true;
}

int H2Connection::stream_limit() const {
  if (!settings_received_) return std::min(options_.max_streams_per_connection, kStreamsBeforeSettings);
  const uint32_t remote = nghttp2_session_get_remote_settings(session_, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
  return static_cast<int>(std::min<uint32_t>(static_cast<uint32_t>(options_.max_streams_per_connection), remote));
}

bool H2Connection::HasRoom(ServiceClass service_class) const {
  if (!usable()) return false;
  const int limit = stream_limit();
  const int reserved = service_class == ServiceClass::kMetadata ? 0 : std::min(options_.reserved_streams, limit / 2);
  return streams() < limit - reserved;
}

int64_t H2Connection::upload_window_bytes() const {
  return nghttp2_session_get_remote_settings(session_, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE);
}

int H2Connection::StreamWindow(const Request& request) const {
  const int64_t asked = request.window_bytes > 0 ? request.window_bytes : options_.stream_window_bytes;
  const int64_t left = (options_.connection_window_bytes - committed_window_) / 2;
  return static_cast<int>(std::max<int64_t>(std::min(asked, left), kSmallestWindow));
}

void H2Connection::Start(const ExchangePtr& exchange) {
  const Request& request = exchange->request();
  auto stream = std::make_unique<Stream>();
  stream->exchange = exchange;
  stream->service_class = exchange->service_class();
  stream->written_before = written_bytes_;
  stream->window = StreamWindow(request);
  exchange->LimitReadBatch(static_cast<size_t>(stream->window) / 2);
  const bool with_body = exchange->has_request_body();
  stream->upload_ended = !with_body;

  std::string_view authority = authority_;
  for (const auto& [name, value] : request.headers) {
    if (name == "host") authority = value;
  }
  std::vector<nghttp2_nv> fields;
  const auto add = [&fields](std::string_view name, std::string_view value) {
    // nghttp2 copies both.
    fields.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
                      reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
                      NGHTTP2_NV_FLAG_NONE});
  };
  add(":method", request.method);
  add(":scheme", "https");
  add(":authority", authority);
  add(":path", request.target);
  bool has_agent = false;
  for (const auto& [name, value] : request.headers) {
    if (name == "host") continue;
    has_agent = has_agent || name == "user-agent";
    add(name, value);
  }
  if (!has_agent) add("user-agent", options_.user_agent);
  const int64_t length = exchange->request_body_length();
  const std::string length_text = std::to_string(length);
  const bool says_length = length > 0 || (length == 0 && (request.streamed_body || request.method == "POST" ||
                                                          request.method == "PUT" || request.method == "PATCH"));
  if (says_length) add("content-length", length_text);

  nghttp2_priority_spec priority;
  nghttp2_priority_spec_init(&priority, 0, H2Weight(stream->service_class), 0);
  nghttp2_data_provider body{};
  body.source.ptr = stream.get();
  body.read_callback = &ReadH2RequestBody;
  const int32_t id = nghttp2_submit_request(session_, &priority, fields.data(), fields.size(), with_body ? &body : nullptr,
                                            nullptr);
  if (id < 0) {
    // Stream numbers can run out; then the connection has served its time.
    draining_ = true;
    TryOutcome outcome{TryOutcome::Reach::kNeverSent,
                       Failure(ErrorKind::kConnect, EIO, std::string("HTTP/2: ") + nghttp2_strerror(id)).value()};
    listener_.OnTryEnded(exchange, std::move(outcome));
    ScheduleFlush();
    return;
  }
  exchange->carrier = this;
  exchange->stream_id = static_cast<uint64_t>(id);
  committed_window_ += stream->window;
  ++class_streams_[static_cast<size_t>(stream->service_class)];
  streams_.emplace(id, std::move(stream));
  ScheduleFlush();
}

H2Connection::Stream* H2Connection::Find(int32_t stream_id) {
  auto found = streams_.find(stream_id);
  return found == streams_.end() ? nullptr : found->second.get();
}

void H2Connection::Forget(int32_t stream_id) {
  auto found = streams_.find(stream_id);
  if (found == streams_.end()) return;
  committed_window_ -= found->second->window;
  --class_streams_[static_cast<size_t>(found->second->service_class)];
  // What its reader never took no longer counts against the others.
  if (found->second->unconsumed > 0) nghttp2_session_consume_connection(session_, found->second->unconsumed);
  streams_.erase(found);
  if (streams_.empty()) idle_since_ = Clock::now();
  listener_.OnCapacity(*this);
}

void H2Connection::EndTry(Stream& stream, TryOutcome outcome) {
  if (stream.exchange == nullptr) return;
  const ExchangePtr exchange = std::move(stream.exchange);
  stream.exchange = nullptr;
  exchange->carrier = nullptr;
  listener_.OnTryEnded(exchange, std::move(outcome));
}

// --- from the caller

void H2Connection::OnConsumed(const ExchangePtr& exchange, size_t bytes) {
  const auto id = static_cast<int32_t>(exchange->stream_id);
  Stream* stream = Find(id);
  if (stream == nullptr || closed_) return;
  bytes = std::min(bytes, stream->unconsumed);
  stream->unconsumed -= bytes;
  nghttp2_session_consume(session_, id, bytes);
  ScheduleFlush();
}

void H2Connection::OnRequestBodyReady(const ExchangePtr& exchange) {
  const auto id = static_cast<int32_t>(exchange->stream_id);
  Stream* stream = Find(id);
  if (stream == nullptr || !stream->upload_deferred || closed_) return;
  stream->upload_deferred = false;
  nghttp2_session_resume_data(session_, id);
  ScheduleFlush();
}

void H2Connection::OnAbandoned(const ExchangePtr& exchange, Abandon why) {
  const auto id = static_cast<int32_t>(exchange->stream_id);
  if (Stream* stream = Find(id)) {
    EndTry(*stream, TryOutcome{});
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
  }
  if (why == Abandon::kTimeout) Suspect();
  ScheduleFlush();
}

void H2Connection::Suspect() {
  if (suspect_ || closed_) return;
  suspect_ = true;
  nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
  ping_timer_ = loop_.AddTimer(Clock::now() + options_.ping_timeout, [this] {
    ping_timer_ = 0;
    Close(BrokenError("the connection to " + authority_ + " no longer answers"));
  });
  ScheduleFlush();
}

// --- from nghttp2

void H2Connection::OnPong() {
  if (!suspect_) return;
  suspect_ = false;
  loop_.CancelTimer(ping_timer_);
  listener_.OnCapacity(*this);
}

void H2Connection::OnGoAway() {
  // nghttp2 closes the streams that the server did not act on as refused; the others go on.
  draining_ = true;
  listener_.OnCapacity(*this);
}

void H2Connection::OnSettings() {
  settings_received_ = true;
  listener_.OnCapacity(*this);
}

void H2Connection::BeginHead(Stream& stream) {
  if (stream.final_head) return;  // trailers
  stream.head = ResponseHead{};
  stream.head.protocol = Protocol::kHttp2;
  ++stream.heads;
}

bool H2Connection::AddHeader(Stream& stream, std::string_view name, std::string_view value) {
  stream.head_bytes += name.size() + value.size() + 32;
  if (stream.head_bytes > kMaxH2HeadBytes || stream.heads > kMaxH2InformationalHeads) {
    stream.violation = "the answer's head is too long";
    return false;
  }
  if (stream.final_head) return true;
  if (name == ":status") {
    std::from_chars(value.data(), value.data() + value.size(), stream.head.status);  // nghttp2 has checked it
  } else if (!name.starts_with(':')) {
    stream.head.headers.emplace_back(name, value);
  }
  return true;
}

bool H2Connection::EndHead(Stream& stream) {
  if (stream.final_head || stream.head.status < 200) return true;
  if (stream.head.status > 599) {
    stream.violation = "the answer's status is not readable";
    return false;
  }
  stream.final_head = true;
  if (stream.exchange != nullptr) stream.exchange->PublishHead(std::move(stream.head));
  return true;
}

void H2Connection::EndOfResponse(Stream& stream) {
  // nghttp2 comes here only when a declared content-length was met and a final head was there.
  if (!stream.final_head) return;
  if (!stream.upload_ended && stream.exchange != nullptr) stream.exchange->CloseUpload();
  EndTry(stream, TryOutcome{});
}

void H2Connection::HeadersSent(Stream& stream) {
  stream.headers_sent = true;
  if (stream.exchange == nullptr) return;
  stream.exchange->MarkSent();
  if (stream.window > kSmallestWindow) {
    nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, static_cast<int32_t>(stream.exchange->stream_id),
                                          stream.window);
  }
}

void H2Connection::OnNotSent(int32_t stream_id) {
  if (Stream* stream = Find(stream_id)) {
    EndTry(*stream, {TryOutcome::Reach::kNeverSent,
                     Failure(ErrorKind::kConnect, EIO, "the connection takes no more requests").value()});
    Forget(stream_id);
  }
}

void H2Connection::OnStreamClosed(int32_t stream_id, uint32_t code) {
  using Reach = TryOutcome::Reach;
  Stream* stream = Find(stream_id);
  if (stream == nullptr) return;
  const std::string reason = nghttp2_http2_strerror(code);
  if (stream->violation) {
    EndTry(*stream, {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, *stream->violation).value()});
  } else if (code == NGHTTP2_REFUSED_STREAM && !stream->final_head) {
    EndTry(*stream, {stream->reset_by_peer ? Reach::kRefused : Reach::kUnsent,
                     Failure(ErrorKind::kUnavailable, EIO, "the server refused the request").value()});
  } else if (stream->reset_by_peer || code == NGHTTP2_NO_ERROR) {
    EndTry(*stream, {Reach::kMaybeActedOn, BrokenError("the server broke the answer off: " + reason)});
  } else {
    // nghttp2 itself reset it: a wrong length, a header that may not be.
    EndTry(*stream, {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, "the answer breaks HTTP/2: " + reason).value()});
  }
  Forget(stream_id);
}

// --- bytes

void H2Connection::ScheduleFlush() {
  if (flush_scheduled_ || closed_) return;
  flush_scheduled_ = true;
  loop_.Defer([this, alive = std::weak_ptr<int>(alive_)] {
    if (alive.expired()) return;
    flush_scheduled_ = false;
    Flush();
  });
}

void H2Connection::OnIo(uint32_t events) {
  if (closed_) return;
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !ReceiveSome(false)) return;
  Flush();
}

bool H2Connection::ReceiveSome(bool all) {
  uint8_t buffer[16384];
  for (int i = 0; i < kReadsPerTurn; ++i) {
    ERR_clear_error();
    const int count = SSL_read(tls_, buffer, sizeof buffer);
    if (count > 0) {
      const ssize_t used = nghttp2_session_mem_recv(session_, buffer, static_cast<size_t>(count));
      if (used < 0) {
        Flush();  // nghttp2's GOAWAY, if there is one, says why
        if (!closed_) {
          Close(Failure(ErrorKind::kProtocol, EIO,
                        std::string("the server breaks HTTP/2: ") + nghttp2_strerror(static_cast<int>(used))).value());
        }
        return false;
      }
      if (!all && SSL_has_pending(tls_) == 0) return true;  // epoll tells of what is not in OpenSSL's buffer yet
      continue;
    }
    const int kind = SSL_get_error(tls_, count);
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) return true;
    ERR_clear_error();
    Close(BrokenError("the connection to " + authority_ + " was closed by the other side"));
    return false;
  }
  // There may be more in OpenSSL's buffer, of which epoll knows nothing.
  if (SSL_has_pending(tls_) == 1) {
    loop_.Defer([this, alive = std::weak_ptr<int>(alive_)] {
      if (!alive.expired()) OnIo(EPOLLIN);
    });
  }
  return true;
}

bool H2Connection::FillOutput() {
  output_.clear();
  output_sent_ = 0;
  while (output_.size() < kOutputChunkBytes) {
    const uint8_t* data = nullptr;
    const ssize_t count = nghttp2_session_mem_send(session_, &data);
    if (count < 0) return false;
    if (count == 0) break;
    output_.append(reinterpret_cast<const char*>(data), static_cast<size_t>(count));
  }
  return true;
}

void H2Connection::Flush() {
  if (closed_) return;
  want_write_ = false;
  while (true) {
    if (output_sent_ == output_.size()) {
      if (!FillOutput()) return Close(Failure(ErrorKind::kLocal, ENOMEM, "HTTP/2: out of memory").value());
      if (output_.empty()) break;
    }
    ERR_clear_error();
    const int count = SSL_write(tls_, output_.data() + output_sent_, static_cast<int>(output_.size() - output_sent_));
    if (count > 0) {
      output_sent_ += static_cast<size_t>(count);
      written_bytes_ += static_cast<uint64_t>(count);
      continue;
    }
    const int kind = SSL_get_error(tls_, count);
    if (kind == SSL_ERROR_WANT_WRITE) {
      want_write_ = true;
      break;
    }
    if (kind == SSL_ERROR_WANT_READ) break;
    ERR_clear_error();
    // What the server still said (GOAWAY, answers) is read first; that ends in Close too.
    if (!ReceiveSome(true) || closed_) return;
    return Close(BrokenError("the connection to " + authority_ + " was closed by the other side"));
  }
  UpdateWatch();
  const bool nothing_left = output_sent_ == output_.size();
  if (nothing_left && nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0) {
    Close(BrokenError("the connection to " + authority_ + " has ended"));
  }
}

void H2Connection::UpdateWatch() { loop_.ChangeWatch(watch_, want_write_ ? EPOLLIN | EPOLLOUT : EPOLLIN); }

void H2Connection::CloseIdle() {
  if (closed_ || !streams_.empty()) return;
  nghttp2_session_terminate_session(session_, NGHTTP2_NO_ERROR);
  Flush();  // closes, once GOAWAY went out
  if (!closed_) Close(BrokenError("closed"));
}

void H2Connection::Close(Error error) {
  if (closed_) return;
  closed_ = true;
  loop_.CancelTimer(ping_timer_);
  if (watch_ != 0) loop_.Unwatch(watch_);
  watch_ = 0;
  ERR_clear_error();
  SSL_shutdown(tls_);  // says close_notify if there is room for it
  ERR_clear_error();
  auto streams = std::move(streams_);
  streams_.clear();
  class_streams_.fill(0);
  committed_window_ = 0;
  int sent = 0;
  for (auto& [id, stream] : streams) {
    // Not a byte has left since it was submitted: the server cannot have seen it.
    if (!stream->headers_sent || stream->written_before == written_bytes_) {
      EndTry(*stream, {TryOutcome::Reach::kNeverSent, Failure(ErrorKind::kConnect, error.errno_value, error.message).value()});
    } else {
      ++sent;
      EndTry(*stream, {TryOutcome::Reach::kMaybeActedOn, error});
    }
  }
  log::Debug("http", "connection to {} ended with {} requests, {} of them sent: {}", authority_, streams.size(), sent,
             error.message);
  listener_.OnClosed(*this);
}

}  // namespace e2bfs::transport::http
