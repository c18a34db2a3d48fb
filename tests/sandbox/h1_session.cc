#include "tests/sandbox/h1_session.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "tests/sandbox/core_exchange.h"
#include "tests/sandbox/h1_parse.h"
#include "tests/sandbox/text.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kMaxH1HeadBytes = size_t{64} << 10;
constexpr size_t kMaxChunkLineBytes = 4096;
constexpr size_t kH1ReadBytes = size_t{16} << 10;
// An unread rest of a request's body up to this size is read and thrown away to keep the connection, as Go does.
constexpr int64_t kMaxDrainedBytes = int64_t{256} << 10;

// "content-type" as "Content-Type", the way Go's server writes names.
std::string CanonicalHeaderName(std::string name) {
  bool upper = true;
  for (char& c : name) {
    if (upper && c >= 'a' && c <= 'z') {
      c = static_cast<char>(c - 'a' + 'A');
    }
    upper = c == '-';
  }
  return name;
}

// The buffered, blocking side of the connection, and what is to be known of the client at its end.
class H1Stream {
 public:
  explicit H1Stream(Connection& connection) : connection_(connection) {}

  Connection& connection() { return connection_; }
  bool empty() const { return begin_ == buffer_.size(); }
  std::string_view buffered() const { return std::string_view(buffer_).substr(begin_); }
  void Consume(size_t size) { begin_ += size; }

  // More bytes into the buffer. False at the end of the connection, or if `stop_for_goaway` and a GOAWAY came.
  bool Fill(bool stop_for_goaway) {
    if (empty()) {
      buffer_.clear();
      begin_ = 0;
    } else if (begin_ > kH1ReadBytes) {
      buffer_.erase(0, begin_);
      begin_ = 0;
    }
    const size_t old = buffer_.size();
    buffer_.resize(old + kH1ReadBytes);
    const size_t got = ReadSome(buffer_.data() + old, kH1ReadBytes, stop_for_goaway);
    buffer_.resize(old + got);
    return got > 0;
  }

  // 0 at the end of the connection.
  size_t ReadSome(char* to, size_t capacity, bool stop_for_goaway) {
    for (;;) {
      size_t moved = 0;
      switch (connection_.Read(to, capacity, moved)) {
        case IoStatus::kDone:
          return moved;
        case IoStatus::kEnded:
          return 0;
        case IoStatus::kBlocked:
          if (stop_for_goaway && (connection_.signals() & kSignalGoAway) != 0) {
            return 0;
          }
          connection_.Wait(true, false, false, -1);
      }
    }
  }

  // A line without its CRLF; nullopt at the end of the connection, or where it is too long or not ended by CRLF.
  std::optional<std::string> ReadLine() {
    for (;;) {
      const std::string_view have = buffered();
      const size_t end = have.find('\n');
      if (end != std::string_view::npos) {
        if (end == 0 || have[end - 1] != '\r') {
          return std::nullopt;
        }
        std::string line(have.substr(0, end - 1));
        Consume(end + 1);
        return line;
      }
      if (have.size() > kMaxChunkLineBytes || !Fill(false)) {
        return std::nullopt;
      }
    }
  }

 private:
  Connection& connection_;
  std::string buffer_;
  size_t begin_ = 0;
};

class H1Exchange : public CoreExchange {
 public:
  H1Exchange(Core& core, H1Stream& stream, const H1Head& head, TakenFault taken, bool close)
      : CoreExchange(core, head.request, std::move(taken)),
        core_(core),
        stream_(stream),
        connection_(stream.connection()),
        head_(head),
        is_test_(IsTestPath(head.request.path)),
        left_(head.chunked ? 0 : head.content_length),
        body_done_(!head.chunked && head.content_length == 0),
        close_(close || !head.keep_alive) {}

  uint64_t connection_id() const override { return connection_.id(); }
  bool client_left() const { return client_left_; }  // before it was fully answered
  bool torn_by_us() const { return torn_by_us_; }

  // Reads the rest of the body. True if the connection can serve another request.
  bool Reusable() {
    if (!ended_ || close_ || (connection_.signals() & kSignalGoAway) != 0) {
      return false;
    }
    char thrown_away[16384];
    for (int64_t drained = 0; !body_done_;) {
      if (head_.expect_continue && !continued_) {
        return false;  // it may or may not come: nobody could tell it from the next request
      }
      const std::optional<size_t> got = RawRead(thrown_away, sizeof thrown_away);
      drained += got ? static_cast<int64_t>(*got) : 0;
      if (!got || drained > kMaxDrainedBytes) {
        return false;
      }
    }
    return true;
  }

  // Silence, for the faults that stall.
  void RawStall(uint64_t generation) override {
    while (core_.faults.generation() == generation && !connection_.PeerGone()) {
      connection_.Wait(false, false, true, -1);
    }
    NoteClient();
    torn_by_us_ = torn_by_us_ || !client_left_;
  }

 protected:
  std::optional<size_t> RawRead(char* buffer, size_t capacity) override {
    if (body_broken_) {
      return std::nullopt;
    }
    if (body_done_) {
      return 0;
    }
    if (head_.expect_continue && !continued_ && !head_out_) {
      continued_ = true;
      Send("HTTP/1.1 100 Continue\r\n\r\n", 0, 0);
    }
    if (head_.chunked && left_ == 0 && !NextChunk()) {
      body_broken_ = !body_done_;
      return body_done_ ? std::optional<size_t>(0) : std::nullopt;
    }
    capacity = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(capacity), left_));
    size_t got = 0;
    if (!stream_.empty()) {
      got = std::min(capacity, stream_.buffered().size());
      memcpy(buffer, stream_.buffered().data(), got);
      stream_.Consume(got);
    } else {
      got = stream_.ReadSome(buffer, capacity, false);
    }
    left_ -= static_cast<int64_t>(got);
    body_broken_ = got == 0;
    if (left_ == 0 && !body_broken_) {
      if (head_.chunked) {
        const std::optional<std::string> line = stream_.ReadLine();
        body_broken_ = !line || !line->empty();
      } else {
        body_done_ = true;
      }
    }
    return got == 0 ? std::nullopt : std::optional<size_t>(got);
  }

  void RawHead(int status, const HeaderList& headers, std::optional<int64_t> length, bool has_body) override {
    chunked_ = has_body && !length && !head_.http10;
    bool says_close = false;
    held_ = "HTTP/1.1 " + std::to_string(status) + " ";
    held_ += ReasonPhrase(status);
    held_ += "\r\n";
    for (const auto& [name, value] : headers) {
      if (name == "transfer-encoding") {
        continue;  // the framing is ours
      }
      if (name == "connection") {
        says_close = LowerAscii(value) == "close";
        close_ = close_ || says_close;
      }
      held_ += CanonicalHeaderName(name) + ": " + value + "\r\n";
    }
    close_ = close_ || (connection_.signals() & kSignalGoAway) != 0 || (has_body && !length && !chunked_) ||
             (head_.expect_continue && !continued_ && !body_done_);
    if (chunked_) {
      held_ += "Transfer-Encoding: chunked\r\n";
    }
    if (close_ && !says_close) {
      held_ += "Connection: close\r\n";
    } else if (head_.http10 && !close_) {
      held_ += "Connection: keep-alive\r\n";
    }
    held_ += "\r\n";
    head_out_ = true;
    unsent_ = !has_body ? 0 : length.value_or(-1);
    // With a body of a known length the first piece of it goes out together with the head.
    if (unsent_ <= 0) {
      RawFlush();
    }
  }

  bool RawWrite(std::string_view bytes) override {
    while (!bytes.empty()) {
      const std::string_view piece = bytes.substr(0, size_t{64} << 10);
      bytes.remove_prefix(piece.size());
      std::string out = std::move(held_);
      held_.clear();
      if (chunked_) {
        char size[20];
        snprintf(size, sizeof size, "%zx\r\n", piece.size());
        out += size;
      }
      const size_t body_begin = out.size();
      out += piece;
      const size_t body_end = out.size();
      if (chunked_) {
        out += "\r\n";
      }
      if (!Send(out, body_begin, body_end)) {
        return false;
      }
      unsent_ -= unsent_ > 0 ? static_cast<int64_t>(piece.size()) : 0;
    }
    return true;
  }

  void RawFlush() override {
    const std::string out = std::move(held_);
    held_.clear();
    if (!out.empty()) {
      Send(out, 0, 0);
    }
  }

  void RawEnd(Ending ending) override {
    RawFlush();
    if (chunked_) {
      Send("0\r\n\r\n", 0, 0);
    }
    close_ = close_ || ending != Ending::kWhole || body_broken_;
    ended_ = true;
  }

  void RawTear(Tear how) override {
    NoteClient();
    torn_by_us_ = true;
    if (how == Tear::kReset) {
      connection_.Drain();
      connection_.CloseWithReset();
    } else {
      connection_.CloseCleanly();
    }
  }

  bool RawGone() override {
    NoteClient();
    return connection_.PeerGone();
  }

  void RawSleep(int64_t ms) override {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    for (;;) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      if (left.count() <= 0 || RawGone()) {
        return;
      }
      connection_.Wait(false, false, true, left.count());
    }
  }

 private:
  // The client's end of the connection is looked at only while it is not fully answered.
  void NoteClient() {
    const bool answered = ended_ || (head_out_ && held_.empty() && unsent_ == 0);
    if (!client_left_ && !answered && !torn_by_us_ && !is_test_) {
      client_left_ = connection_.PeerGone() && !connection_.must_end();
    }
  }

  // Bytes from `body_begin` to `body_end` are counted as the response's body.
  bool Send(std::string_view bytes, size_t body_begin, size_t body_end) {
    NoteClient();
    for (size_t sent = 0; sent < bytes.size();) {
      size_t moved = 0;
      IoStatus status;
      {
        const auto sending = core_.counts.Sending();
        status = connection_.Write(bytes.data() + sent, bytes.size() - sent, moved);
        const size_t from = std::clamp(sent, body_begin, body_end);
        const size_t to = std::clamp(sent + moved, body_begin, body_end);
        if (to > from && !is_test_) {
          core_.counts.ResponseBodyBytes(static_cast<int64_t>(to - from));
        }
      }
      sent += moved;
      if (status == IoStatus::kBlocked && !connection_.must_end()) {
        connection_.Wait(false, true, false, -1);
      } else if (status != IoStatus::kDone) {
        NoteClient();
        return false;
      }
    }
    return true;
  }

  // Reads a chunk's line, and the trailers after the last one. False at the end of the body (body_done_) or if torn.
  bool NextChunk() {
    const std::optional<std::string> line = stream_.ReadLine();
    const std::optional<int64_t> size = line ? ParseChunkSize(*line) : std::nullopt;
    if (!size) {
      return false;
    }
    left_ = *size;
    if (left_ > 0) {
      return true;
    }
    for (int trailers = 0; trailers < 64; ++trailers) {
      const std::optional<std::string> trailer = stream_.ReadLine();
      if (!trailer) {
        return false;
      }
      if (trailer->empty()) {
        body_done_ = true;
        return false;
      }
    }
    return false;
  }

  Core& core_;
  H1Stream& stream_;
  Connection& connection_;
  const H1Head& head_;
  const bool is_test_;
  int64_t left_;             // of the body or of the chunk
  bool body_done_;
  bool body_broken_ = false;
  bool continued_ = false;   // 100 Continue was sent
  bool close_;               // after this response
  bool head_out_ = false;
  bool chunked_ = false;
  int64_t unsent_ = -1;      // of the promised length; -1: none was promised
  std::string held_;         // the head, until the first piece of the body
  bool ended_ = false;       // the response has its proper end
  bool client_left_ = false;
  bool torn_by_us_ = false;
};

// The next head; `status` is an error to answer with, or 0 where there is nobody to answer.
std::optional<H1Head> ReadH1Head(H1Stream& stream, int& status, bool& started) {
  status = 0;
  started = false;
  size_t searched = 0;
  for (;;) {
    std::string_view have = stream.buffered();
    if (searched == 0 && have.substr(0, 2) == "\r\n") {
      stream.Consume(2);  // RFC 9112, 2.2: an empty line before a request is ignored
      continue;
    }
    const size_t end = have.find("\r\n\r\n", searched);
    const size_t newline = have.find('\n', searched);
    if ((end == std::string_view::npos ? have.size() : end) > kMaxH1HeadBytes) {
      status = 431;
      return std::nullopt;
    }
    if (newline != std::string_view::npos && (newline == 0 || have[newline - 1] != '\r')) {
      status = 400;  // or a client that ends its lines otherwise would wait for ever
      return std::nullopt;
    }
    if (end != std::string_view::npos) {
      H1ParseResult parsed = ParseH1Head(have.substr(0, end + 4));
      stream.Consume(end + 4);
      status = parsed.status;
      return std::move(parsed.head);
    }
    started = !have.empty();
    searched = have.size() < 3 ? 0 : have.size() - 3;
    if (!stream.Fill(!started)) {
      return std::nullopt;
    }
  }
}

void AnswerBadH1Head(Connection& connection, int status) {
  std::string answer = "HTTP/1.1 " + std::to_string(status) + " ";
  answer += ReasonPhrase(status);
  answer += "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
  size_t moved = 0;
  (void)connection.Write(answer.data(), answer.size(), moved);
}

}  // namespace

void ServeHttp1(Core& core, Connection& connection) {
  H1Stream stream(connection);
  bool client_left = false;
  for (bool more = true; more;) {
    int status = 0;
    bool started = false;
    std::optional<H1Head> head = ReadH1Head(stream, status, started);
    if (!head) {
      if (status != 0) {
        AnswerBadH1Head(connection, status);
      } else {
        client_left = started && !connection.must_end();
      }
      break;
    }
    RequestHead& request = head->request;
    const bool is_test = IsTestPath(request.path);
    TakenFault taken;
    if (!is_test) {
      std::string sandbox_id;
      for (const auto& [name, value] : request.headers) {
        if (name == "e2b-sandbox-id") {
          sandbox_id = value;
        }
      }
      request.place = core.counts.RequestBegun(request.method, request.path, sandbox_id, false);
      taken = core.faults.Take(request.method, request.target);
    }
    const std::string action = taken.fault.action;
    const uint64_t generation = taken.generation;
    H1Exchange exchange(core, stream, *head, std::move(taken), action == "goaway");
    if (action == "freeze") {
      exchange.RawStall(generation);
    } else if (action != "refuse" && action != "goaway_refuse") {
      exchange.Run();
    }
    if (!is_test) {
      core.counts.RequestEnded();
    }
    client_left = exchange.client_left() && !exchange.torn_by_us();
    more = !client_left && exchange.Reusable();
  }
  if (client_left) {
    core.counts.ConnectionClosedBusy();
  }
  if (!connection.must_end()) {
    connection.CloseCleanly();
  } else if ((connection.signals() & kSignalReset) != 0) {
    connection.CloseWithReset();
  }
}

}  // namespace e2bfs::sandbox
