// Two small clients that see exactly what a server does: raw sockets for HTTP/1.1, nghttp2 for HTTP/2.
#pragma once

#include <nghttp2/nghttp2.h>
#include <openssl/ssl.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace e2bfs::sandbox::test {

// How an answer came to its end.
enum class AnswerEnd {
  kNone,     // not yet, or nobody answered before the deadline
  kWhole,    // as the protocol ends it
  kReset,    // TCP reset, RST_STREAM
  kClosed,   // the connection was closed before the proper end
  kRefused,  // HTTP/2: RST_STREAM with REFUSED_STREAM
};

struct Answer {
  int status = 0;  // 0: no head came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  AnswerEnd end = AnswerEnd::kNone;
  uint32_t error_code = 0;  // HTTP/2
};

// A TCP socket to 127.0.0.1 with deadlines of 60 s.
class RawClient {
 public:
  explicit RawClient(int port);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  int fd() const { return fd_; }
  bool Send(std::string_view bytes);
  void Reset();  // closes by RST
  void Close();  // closes by FIN
  // Sends "METHOD TARGET" with `body` by its length.
  bool SendRequest(const std::string& method, const std::string& target, std::string_view body = "",
                   const std::string& more_headers = "");
  // The next answer's head, then its body to the end.
  Answer ReadAnswer();
  // At least until `body_bytes` of the body are there.
  void ReadHeadInto(Answer& answer);
  void ReadBodyInto(Answer& answer, size_t body_bytes);
  // True if the connection ends without a further byte.
  AnswerEnd ReadEnd();

 private:
  bool More();
  int fd_;
  std::string buffer_;
  AnswerEnd end_ = AnswerEnd::kNone;  // of the connection
};

// One HTTP/2 connection. Bytes move only inside of RunUntil.
class H2Client {
 public:
  // `window`: of the client's streams. With `reading` false the windows are never opened again.
  explicit H2Client(int port, int window = 65535, bool reading = true);
  ~H2Client();
  H2Client(const H2Client&) = delete;
  H2Client& operator=(const H2Client&) = delete;

  // Starts a request; its body ends with `body`, unless `open`.
  int32_t Start(const std::string& method, const std::string& target, std::string body = "", bool open = false,
                const std::map<std::string, std::string>& headers = {});
  void ResetStream(int32_t id, uint32_t error_code);
  void Ping();
  // Until `done` holds; false when the connection ended or the deadline (60 s) passed first.
  bool RunUntil(const std::function<bool()>& done);
  Answer Finish(int32_t id);  // runs until the stream's end
  const Answer& answer(int32_t id) { return answers_[id].answer; }
  size_t body_sent(int32_t id) { return answers_[id].sent; }
  // How the connection ended, and what was said before.
  AnswerEnd connection_end() const { return end_; }
  std::optional<int32_t> goaway_last_stream() const { return goaway_; }
  int pings_answered() const { return pings_; }
  uint32_t max_concurrent_streams();
  void Close();

 private:
  struct Stream {
    Answer answer;
    std::string body;
    size_t sent = 0;
    bool open = false;
  };
  bool Turn(int timeout_ms);
  void ConnectionEnded(AnswerEnd how);

  int fd_ = -1;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
  nghttp2_session* session_ = nullptr;
  std::string unsent_;
  bool reading_;
  AnswerEnd end_ = AnswerEnd::kNone;
  bool write_was_reset_ = false;
  std::optional<int32_t> goaway_;
  int pings_ = 0;
  std::map<int32_t, Stream> answers_;
};

// Until `done` holds, looking again every few milliseconds; false after 60 s.
bool EventuallyTrue(const std::function<bool()>& done);

}  // namespace e2bfs::sandbox::test
