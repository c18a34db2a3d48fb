#include "tests/sandbox/h2_session.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tests/sandbox/core_exchange.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kMaxH2HeadBytes = size_t{64} << 10;
constexpr size_t kMaxUnsentBytes = size_t{64} << 10;  // of a stream's response ahead of the client's window; of frames

// A stream, shared by the session's thread and the handler's.
struct H2Stream {
  explicit H2Stream(int32_t its_id) : id(its_id) {}

  const int32_t id;
  RequestHead head;  // constant once the handler runs

  std::mutex mutex;  // innermost; guards what follows, up to `stalled`
  std::condition_variable changed;
  std::string in;    // of the request's body, not yet read by the handler, from in_begin on
  size_t in_begin = 0;
  bool in_end = false;
  std::string out;   // of the response's body, not yet in a frame, from out_begin on
  size_t out_begin = 0;
  bool out_end = false;
  bool deferred = false;  // nghttp2 waits for a word that there is more
  bool closed = false;    // nothing moves any more
  bool stalled = false;
  uint64_t stall_generation = 0;

  // The session's thread only.
  size_t head_bytes = 0;
  bool begun = false;        // the head was complete: it is counted
  bool is_test = false;
  bool request_ended = false;
  bool answered = false;
  bool reset_by_us = false;
};
using H2StreamPointer = std::shared_ptr<H2Stream>;

class H2Session {
 public:
  H2Session(Core& core, std::shared_ptr<Connection> connection);
  ~H2Session();
  void Run();

  Core& core() { return core_; }
  uint64_t connection_id() const { return connection_->id(); }

  // --- any thread
  // Runs `work` on the session's thread, if it still turns.
  void Post(std::function<void()> work);
  // The stream's handler has read so much. The session's thread is woken for it only when it is a part of the window that counts.
  void Consumed(int32_t id, size_t bytes);

  // --- for posted work
  nghttp2_session* session() { return session_; }
  // Takes all frames that can be sent now, then resets: a reset overtakes what still waits in nghttp2. Not from inside
  // of nghttp2's callbacks.
  void ResetStream(int32_t id, uint32_t error_code);
  void CloseConnection() { close_now_ = true; }
  void LookAtStalls() { look_at_stalls_ = true; }
  ssize_t ReadResponse(int32_t id, uint8_t* buffer, size_t size, uint32_t* flags);

 private:
  enum class Step { kGoOn, kWait, kEnd };
  Step TurnOnce();
  void RunPosted();
  bool StallsCleared();
  bool TakeFrames(size_t limit);
  void SendFrames();
  Step ReceiveFrames();
  void NoteClientLeft();
  void GoAway(int32_t last_stream_id);
  void Begin(const H2StreamPointer& stream);
  void RefuseStream(H2Stream& stream);
  void CloseStream(const H2StreamPointer& stream);
  H2StreamPointer Find(int32_t id) const;

  static int OnBeginHeaders(nghttp2_session*, const nghttp2_frame* frame, void* self);
  static int OnHeader(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                      const uint8_t* value, size_t value_size, uint8_t flags, void* self);
  static int OnFrameReceived(nghttp2_session*, const nghttp2_frame* frame, void* self);
  static int OnData(nghttp2_session*, uint8_t flags, int32_t id, const uint8_t* bytes, size_t size, void* self);
  static int OnFrameSent(nghttp2_session*, const nghttp2_frame* frame, void* self);
  static int OnStreamClosed(nghttp2_session*, int32_t id, uint32_t error_code, void* self);

  Core& core_;
  const std::shared_ptr<Connection> connection_;
  nghttp2_session* session_ = nullptr;
  std::map<int32_t, H2StreamPointer> streams_;
  std::string unsent_;  // frames, from unsent_begin_ on
  size_t unsent_begin_ = 0;
  bool more_frames_ = false;  // TakeFrames stopped at its limit
  bool write_dead_ = false;  // the client takes nothing more, but what it sent is still read
  bool close_now_ = false;
  bool goaway_sent_ = false;           // or given to nghttp2, which sends it after the frames that were just read
  int32_t last_served_ = INT32_MAX;    // what it said
  bool look_at_stalls_ = false;
  uint64_t seen_generation_ = 0;
  bool frozen_ = false;
  uint64_t freeze_generation_ = 0;

  std::mutex mutex_;  // innermost; guards what follows
  std::vector<std::function<void()>> posted_;
  std::map<int32_t, size_t> consumed_;
  size_t consumed_bytes_ = 0;  // all of it
  int handlers_ = 0;
  std::condition_variable no_handlers_;
};

class H2Exchange : public CoreExchange {
 public:
  H2Exchange(H2Session& session, H2StreamPointer stream, TakenFault taken)
      : CoreExchange(session.core(), stream->head, std::move(taken)), session_(session), stream_(std::move(stream)) {}

  uint64_t connection_id() const override { return session_.connection_id(); }

 protected:
  std::optional<size_t> RawRead(char* buffer, size_t capacity) override {
    std::unique_lock lock(stream_->mutex);
    H2Stream& stream = *stream_;
    stream.changed.wait(lock, [&] { return stream.in_begin < stream.in.size() || stream.in_end || stream.closed; });
    const size_t got = std::min(capacity, stream.in.size() - stream.in_begin);
    if (got == 0) {
      return stream.in_end ? std::optional<size_t>(0) : std::nullopt;
    }
    memcpy(buffer, stream.in.data() + stream.in_begin, got);
    stream.in_begin += got;
    if (stream.in_begin == stream.in.size()) {
      stream.in.clear();
      stream.in_begin = 0;
    }
    if (!stream.closed) {  // at its closing, the connection's window got back all that was unread
      session_.Consumed(stream.id, got);
    }
    return got;
  }

  void RawHead(int status, const HeaderList& headers, std::optional<int64_t> length, bool has_body) override {
    HeaderList all = {{":status", std::to_string(status)}};
    for (const auto& header : headers) {
      if (header.first != "connection" && header.first != "keep-alive" && header.first != "transfer-encoding" &&
          header.first != "upgrade") {
        all.push_back(header);
      }
    }
    const bool ends = !has_body || (length && *length == 0);
    session_.Post([session = &session_, id = stream_->id, all = std::move(all), ends] {
      std::vector<nghttp2_nv> fields;
      for (const auto& [name, value] : all) {
        fields.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
                          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
                          NGHTTP2_NV_FLAG_NONE});
      }
      nghttp2_data_provider provider{};
      provider.read_callback = [](nghttp2_session*, int32_t stream_id, uint8_t* buffer, size_t size, uint32_t* flags,
                                  nghttp2_data_source*, void* self) {
        return static_cast<H2Session*>(self)->ReadResponse(stream_id, buffer, size, flags);
      };
      nghttp2_submit_response(session->session(), id, fields.data(), fields.size(), ends ? nullptr : &provider);
    });
  }

  bool RawWrite(std::string_view bytes) override {
    while (!bytes.empty()) {
      std::unique_lock lock(stream_->mutex);
      H2Stream& stream = *stream_;
      stream.changed.wait(lock,
                          [&] { return stream.out.size() - stream.out_begin < kMaxUnsentBytes || stream.closed; });
      if (stream.closed) {
        return false;
      }
      const size_t room = kMaxUnsentBytes - (stream.out.size() - stream.out_begin);
      stream.out.erase(0, stream.out_begin);
      stream.out_begin = 0;
      stream.out += bytes.substr(0, room);
      bytes.remove_prefix(std::min(room, bytes.size()));
      Resume();
    }
    return true;
  }

  void RawFlush() override {
    std::unique_lock lock(stream_->mutex);
    stream_->changed.wait(lock, [&] { return stream_->out_begin == stream_->out.size() || stream_->closed; });
  }

  void RawEnd(Ending ending) override {
    if (ending == Ending::kShort) {
      RawFlush();
      RawTear(Tear::kAbort);
      return;
    }
    const std::lock_guard lock(stream_->mutex);
    stream_->out_end = true;
    Resume();
  }

  void RawTear(Tear how) override {
    session_.Post([session = &session_, id = stream_->id, how] {
      if (how == Tear::kClose) {
        session->CloseConnection();
      } else {
        session->ResetStream(id, NGHTTP2_INTERNAL_ERROR);
      }
    });
  }

  void RawStall(uint64_t generation) override {
    std::unique_lock lock(stream_->mutex);
    stream_->stalled = true;
    stream_->stall_generation = generation;
    session_.Post([session = &session_] { session->LookAtStalls(); });  // they may be cleared already
    stream_->changed.wait(lock, [&] { return stream_->closed; });
  }

  bool RawGone() override {
    const std::lock_guard lock(stream_->mutex);
    return stream_->closed;
  }

  void RawSleep(int64_t ms) override {
    std::unique_lock lock(stream_->mutex);
    stream_->changed.wait_for(lock, std::chrono::milliseconds(ms), [&] { return stream_->closed; });
  }

 private:
  // With the stream's mutex held.
  void Resume() {
    if (stream_->deferred) {
      stream_->deferred = false;
      session_.Post([session = &session_, id = stream_->id] { nghttp2_session_resume_data(session->session(), id); });
    }
  }

  H2Session& session_;
  const H2StreamPointer stream_;
};

H2Session::H2Session(Core& core, std::shared_ptr<Connection> connection)
    : core_(core), connection_(std::move(connection)), seen_generation_(core.faults.generation()) {
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, OnBeginHeaders);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, OnHeader);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, OnFrameReceived);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, OnData);
  nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, OnFrameSent);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, OnStreamClosed);
  nghttp2_option* option = nullptr;
  nghttp2_option_new(&option);
  nghttp2_option_set_no_auto_window_update(option, 1);
  nghttp2_session_server_new2(&session_, callbacks, this, option);
  nghttp2_option_del(option);
  nghttp2_session_callbacks_del(callbacks);
  const uint32_t window = static_cast<uint32_t>(core_.options.initial_window_bytes);
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, static_cast<uint32_t>(core_.options.max_concurrent_streams)},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kMaxH2HeadBytes}};
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, std::size(settings));
  // The connection's window is much larger than a stream's, so that a body that nobody reads stops only its own stream.
  const int64_t connection_window = std::clamp<int64_t>(int64_t{16} * window, 1 << 20, INT32_MAX);
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, static_cast<int32_t>(connection_window));
}

H2Session::~H2Session() { nghttp2_session_del(session_); }

H2StreamPointer H2Session::Find(int32_t id) const {
  const auto found = streams_.find(id);
  return found == streams_.end() ? nullptr : found->second;
}

void H2Session::Post(std::function<void()> work) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = posted_.empty();
    posted_.push_back(std::move(work));
  }
  if (first) {
    connection_->Signal(0);
  }
}

void H2Session::Consumed(int32_t id, size_t bytes) {
  bool much = false;
  {
    const std::lock_guard lock(mutex_);
    // nghttp2 gives back what is half of a window: the stream's, and the connection's, which is at least 16 of them.
    const size_t step = std::max<size_t>(static_cast<size_t>(core_.options.initial_window_bytes) / 4, 1);
    size_t& consumed = consumed_[id];
    const auto crosses = [bytes](size_t before, size_t limit) { return before < limit && before + bytes >= limit; };
    much = crosses(consumed, step) || crosses(consumed_bytes_, 16 * step);
    consumed += bytes;
    consumed_bytes_ += bytes;
  }
  if (much) {
    connection_->Signal(0);
  }
}

void H2Session::RunPosted() {
  std::vector<std::function<void()>> work;
  std::map<int32_t, size_t> consumed;
  {
    const std::lock_guard lock(mutex_);
    work.swap(posted_);
    consumed.swap(consumed_);
    consumed_bytes_ = 0;
  }
  for (const auto& [id, bytes] : consumed) {
    nghttp2_session_consume(session_, id, bytes);
  }
  for (const auto& piece : work) {
    piece();
  }
}

void H2Session::Run() {
  for (Step step = Step::kGoOn; step != Step::kEnd;) {
    step = TurnOnce();
    if (step == Step::kWait) {
      const bool unsent = unsent_begin_ < unsent_.size();
      connection_->Wait(!frozen_, unsent && !frozen_, frozen_, -1);
    }
  }
  while (!streams_.empty()) {
    CloseStream(streams_.begin()->second);
  }
  if (!connection_->must_end()) {
    connection_->CloseCleanly();
  } else if ((connection_->signals() & kSignalReset) != 0) {
    connection_->CloseWithReset();
  }
  std::unique_lock lock(mutex_);
  no_handlers_.wait(lock, [this] { return handlers_ == 0; });
}

H2Session::Step H2Session::TurnOnce() {
  RunPosted();
  if (connection_->must_end()) {
    return Step::kEnd;
  }
  if (frozen_) {
    if (core_.faults.generation() != freeze_generation_) {
      return Step::kEnd;
    }
    if (connection_->PeerGone()) {
      NoteClientLeft();
      return Step::kEnd;
    }
    return Step::kWait;
  }
  if (StallsCleared()) {
    return Step::kEnd;
  }
  if ((connection_->signals() & kSignalGoAway) != 0 && !goaway_sent_) {
    GoAway(nghttp2_session_get_last_proc_stream_id(session_));
  }
  if (!TakeFrames(kMaxUnsentBytes)) {
    return Step::kEnd;
  }
  SendFrames();
  const bool unsent = unsent_begin_ < unsent_.size();
  if (close_now_) {
    if (!unsent) {
      return Step::kEnd;
    }
    return connection_->PeerGone() ? Step::kEnd : ReceiveFrames();
  }
  if (!unsent && !nghttp2_session_want_read(session_) && !nghttp2_session_want_write(session_)) {
    return Step::kEnd;
  }
  const Step received = ReceiveFrames();
  // What was received may have something to send, or the end, for its consequence; mostly it has not.
  const bool consequence = nghttp2_session_want_write(session_) || !nghttp2_session_want_read(session_);
  return received == Step::kWait && !unsent && consequence ? Step::kGoOn : received;
}

bool H2Session::StallsCleared() {
  const uint64_t generation = core_.faults.generation();
  if (generation == seen_generation_ && !look_at_stalls_) {
    return false;
  }
  seen_generation_ = generation;
  look_at_stalls_ = false;
  return std::any_of(streams_.begin(), streams_.end(), [&](const auto& item) {
    const std::lock_guard lock(item.second->mutex);
    return item.second->stalled && item.second->stall_generation != generation;
  });
}

bool H2Session::TakeFrames(size_t limit) {
  more_frames_ = true;
  while (unsent_.size() - unsent_begin_ < limit) {
    const uint8_t* bytes = nullptr;
    const ssize_t size = nghttp2_session_mem_send(session_, &bytes);
    if (size < 0) {
      return false;
    }
    if (size == 0) {
      more_frames_ = false;
      break;
    }
    unsent_.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
  }
  return true;
}

void H2Session::SendFrames() {
  while (unsent_begin_ < unsent_.size()) {
    size_t moved = 0;
    const IoStatus status =
        write_dead_ ? IoStatus::kEnded
                    : connection_->Write(unsent_.data() + unsent_begin_, unsent_.size() - unsent_begin_, moved);
    if (status == IoStatus::kEnded) {
      write_dead_ = true;  // a reset of a stream may be among what is still to be read: so no end here
      moved = unsent_.size() - unsent_begin_;
    }
    unsent_begin_ += moved;
    if (status == IoStatus::kBlocked) {
      break;
    }
  }
  if (unsent_begin_ == unsent_.size()) {
    unsent_.clear();
    unsent_begin_ = 0;
  }
}

H2Session::Step H2Session::ReceiveFrames() {
  char buffer[16384];
  for (int reads = 0; reads < 16 && !frozen_; ++reads) {
    size_t got = 0;
    const IoStatus status = connection_->Read(buffer, sizeof buffer, got);
    if (status == IoStatus::kBlocked) {
      const bool unsent = unsent_begin_ < unsent_.size();
      return !unsent && more_frames_ ? Step::kGoOn : Step::kWait;
    }
    if (status == IoStatus::kEnded) {
      NoteClientLeft();
      return Step::kEnd;
    }
    if (nghttp2_session_mem_recv(session_, reinterpret_cast<const uint8_t*>(buffer), got) < 0) {
      TakeFrames(kMaxUnsentBytes);
      SendFrames();
      return Step::kEnd;
    }
  }
  return Step::kGoOn;
}

void H2Session::NoteClientLeft() {
  const bool busy = std::any_of(streams_.begin(), streams_.end(), [](const auto& item) {
    const H2Stream& stream = *item.second;
    return stream.begun && !stream.answered && !stream.reset_by_us && !stream.is_test;
  });
  if (busy && !connection_->must_end()) {
    core_.counts.ConnectionClosedBusy();
  }
}

void H2Session::ResetStream(int32_t id, uint32_t error_code) {
  TakeFrames(SIZE_MAX);
  if (const H2StreamPointer stream = Find(id)) {
    stream->reset_by_us = true;
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, error_code);
  }
}

void H2Session::GoAway(int32_t last_stream_id) {
  goaway_sent_ = true;
  last_served_ = last_stream_id;
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, last_stream_id, NGHTTP2_NO_ERROR, nullptr, 0);
}

ssize_t H2Session::ReadResponse(int32_t id, uint8_t* buffer, size_t size, uint32_t* flags) {
  const H2StreamPointer stream = Find(id);
  if (!stream) {
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  const std::lock_guard lock(stream->mutex);
  const size_t taken = std::min(size, stream->out.size() - stream->out_begin);
  memcpy(buffer, stream->out.data() + stream->out_begin, taken);
  stream->out_begin += taken;
  if (stream->out_begin == stream->out.size()) {
    stream->out.clear();
    stream->out_begin = 0;
    if (stream->out_end) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
    } else if (taken == 0) {
      stream->deferred = true;
      return NGHTTP2_ERR_DEFERRED;
    }
  }
  if (!stream->is_test) {
    core_.counts.ResponseBodyBytes(static_cast<int64_t>(taken));
  }
  stream->changed.notify_all();
  return static_cast<ssize_t>(taken);
}

void H2Session::Begin(const H2StreamPointer& stream) {
  if (stream->id > last_served_) {
    // It came together with the stream that GOAWAY answers. Nothing of it is acted on, and no second GOAWAY may name a
    // higher stream than the first (RFC 9113, 6.8). nghttp2 forgets it when GOAWAY goes out.
    return;
  }
  RequestHead& head = stream->head;
  stream->begun = true;
  stream->is_test = IsTestPath(head.path);
  TakenFault taken;
  if (!stream->is_test) {
    std::string sandbox_id;
    for (const auto& [name, value] : head.headers) {
      if (name == "e2b-sandbox-id") {
        sandbox_id = value;
      }
    }
    head.place = core_.counts.RequestBegun(head.method, head.path, sandbox_id, true);
    taken = core_.faults.Take(head.method, head.target);
  }
  const std::string& action = taken.fault.action;
  if (action == "refuse") {
    RefuseStream(*stream);
    return;
  }
  if (action == "goaway_refuse") {
    // nghttp2 closes the streams above the last one by itself.
    stream->reset_by_us = true;
    GoAway(std::max(0, stream->id - 2));
    return;
  }
  if (action == "goaway") {
    GoAway(nghttp2_session_get_last_proc_stream_id(session_));
  } else if (action == "freeze") {
    frozen_ = true;
    freeze_generation_ = taken.generation;
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ++handlers_;
  }
  const bool started = core_.threads.Spawn([this, stream, taken = std::move(taken)] {
    H2Exchange(*this, stream, taken).Run();
    const std::lock_guard lock(mutex_);
    --handlers_;
    no_handlers_.notify_all();
  });
  if (!started) {
    {
      const std::lock_guard lock(mutex_);
      --handlers_;
    }
    RefuseStream(*stream);
  }
}

void H2Session::RefuseStream(H2Stream& stream) {
  stream.reset_by_us = true;
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream.id, NGHTTP2_REFUSED_STREAM);
}

void H2Session::CloseStream(const H2StreamPointer& stream) {
  size_t unread = 0;
  {
    const std::lock_guard lock(stream->mutex);
    stream->closed = true;
    unread = stream->in.size() - stream->in_begin;
    stream->changed.notify_all();
  }
  if (unread > 0) {
    nghttp2_session_consume_connection(session_, unread);
  }
  if (stream->begun && !stream->is_test) {
    core_.counts.RequestEnded();
  }
  streams_.erase(stream->id);
}

int H2Session::OnBeginHeaders(nghttp2_session*, const nghttp2_frame* frame, void* self) {
  if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
    static_cast<H2Session*>(self)->streams_[frame->hd.stream_id] = std::make_shared<H2Stream>(frame->hd.stream_id);
  }
  return 0;
}

int H2Session::OnHeader(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                        const uint8_t* value, size_t value_size, uint8_t, void* self) {
  const H2StreamPointer stream = static_cast<H2Session*>(self)->Find(frame->hd.stream_id);
  if (!stream || stream->begun) {
    return 0;  // trailers
  }
  stream->head_bytes += name_size + value_size + 32;
  if (stream->head_bytes > kMaxH2HeadBytes) {
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  std::string key(reinterpret_cast<const char*>(name), name_size);
  std::string text(reinterpret_cast<const char*>(value), value_size);
  if (key == ":method") {
    stream->head.method = std::move(text);
  } else if (key == ":path") {
    stream->head.SetTarget(std::move(text));
  } else if (key == ":authority") {
    stream->head.headers.emplace_back("host", std::move(text));
  } else if (key.front() != ':') {
    stream->head.headers.emplace_back(std::move(key), std::move(text));
  }
  return 0;
}

int H2Session::OnFrameReceived(nghttp2_session*, const nghttp2_frame* frame, void* self) {
  H2Session& session = *static_cast<H2Session*>(self);
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
    return 0;
  }
  const H2StreamPointer stream = session.Find(frame->hd.stream_id);
  if (!stream) {
    return 0;
  }
  if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
    stream->request_ended = true;
    const std::lock_guard lock(stream->mutex);
    stream->in_end = true;
    stream->changed.notify_all();
  }
  if (!stream->begun) {
    session.Begin(stream);
  }
  return 0;
}

int H2Session::OnData(nghttp2_session* raw, uint8_t, int32_t id, const uint8_t* bytes, size_t size, void* self) {
  const H2StreamPointer stream = static_cast<H2Session*>(self)->Find(id);
  if (!stream) {
    nghttp2_session_consume_connection(raw, size);
    return 0;
  }
  const std::lock_guard lock(stream->mutex);
  stream->in.append(reinterpret_cast<const char*>(bytes), size);
  stream->changed.notify_all();
  return 0;
}

int H2Session::OnFrameSent(nghttp2_session*, const nghttp2_frame* frame, void* self) {
  H2Session& session = *static_cast<H2Session*>(self);
  const uint8_t type = frame->hd.type;
  const H2StreamPointer stream = session.Find(frame->hd.stream_id);
  if (!stream) {
    return 0;
  }
  if (type == NGHTTP2_RST_STREAM) {
    stream->reset_by_us = true;
  } else if ((type == NGHTTP2_DATA || type == NGHTTP2_HEADERS) &&
             (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
    stream->answered = true;
    if (!stream->request_ended) {
      // The rest of the request's body is not wanted (RFC 9113, 8.1).
      nghttp2_submit_rst_stream(session.session_, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_NO_ERROR);
    }
  }
  return 0;
}

int H2Session::OnStreamClosed(nghttp2_session*, int32_t id, uint32_t, void* self) {
  H2Session& session = *static_cast<H2Session*>(self);
  if (const H2StreamPointer stream = session.Find(id)) {
    session.CloseStream(stream);
  }
  return 0;
}

}  // namespace

void ServeHttp2(Core& core, const std::shared_ptr<Connection>& connection) {
  H2Session session(core, connection);
  session.Run();
}

}  // namespace e2bfs::sandbox
