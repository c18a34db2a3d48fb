#include "tests/component/sandbox_server/server_clients.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

namespace e2bfs::sandbox::test {
namespace {

constexpr int kDeadlineMs = 60'000;

int ConnectToLoopback(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error(std::string("cannot connect: ") + strerror(errno));
  }
  const timeval limit{kDeadlineMs / 1000, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  return fd;
}

std::string LowerCase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

bool EventuallyTrue(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kDeadlineMs);
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

RawClient::RawClient(int port) : fd_(ConnectToLoopback(port)) {}
RawClient::~RawClient() { Close(); }

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void RawClient::Reset() {
  const linger at_once{1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  Close();
}

void RawClient::Close() {
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
  }
}

bool RawClient::SendRequest(const std::string& method, const std::string& target, std::string_view body,
                            const std::string& more_headers) {
  std::string text = method + " " + target + " HTTP/1.1\r\nHost: localhost\r\n" + more_headers;
  if (!body.empty()) {
    text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  }
  text += "\r\n";
  text += body;
  return Send(text);
}

bool RawClient::More() {
  if (end_ != AnswerEnd::kNone) {
    return false;  // a reset is told only once
  }
  char buffer[16384];
  const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
  if (got > 0) {
    buffer_.append(buffer, static_cast<size_t>(got));
    return true;
  }
  if (got == 0) {
    end_ = AnswerEnd::kClosed;
  } else if (errno == ECONNRESET || errno == EPIPE) {
    end_ = AnswerEnd::kReset;
  }
  return false;
}

void RawClient::ReadHeadInto(Answer& answer) {
  size_t end = std::string::npos;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!More()) {
      answer.end = end_;
      return;
    }
  }
  const std::string head = buffer_.substr(0, end + 2);
  buffer_.erase(0, end + 4);
  answer.status = std::stoi(head.substr(9, 3));
  for (size_t at = head.find("\r\n") + 2; at < head.size();) {
    const size_t line_end = head.find("\r\n", at);
    const size_t colon = head.find(':', at);
    answer.headers[LowerCase(head.substr(at, colon - at))] = head.substr(colon + 2, line_end - colon - 2);
    at = line_end + 2;
  }
}

void RawClient::ReadBodyInto(Answer& answer, size_t body_bytes) {
  const auto need = [&](size_t size) {
    while (buffer_.size() < size) {
      if (!More()) {
        answer.end = end_;
        return false;
      }
    }
    return true;
  };
  const auto take = [&](size_t size) {
    // Byte for byte what came, also where the rest never does.
    while (size > 0 && answer.body.size() < body_bytes) {
      if (!need(1)) {
        return false;
      }
      const size_t part = std::min(size, buffer_.size());
      answer.body += buffer_.substr(0, part);
      buffer_.erase(0, part);
      size -= part;
    }
    return true;
  };
  if (answer.status == 204 || answer.status == 304) {
    answer.end = AnswerEnd::kWhole;
  } else if (answer.headers.count("content-length") != 0) {
    const size_t length = std::stoul(answer.headers["content-length"]);
    take(length);
    if (answer.body.size() == length) {
      answer.end = AnswerEnd::kWhole;
    }
  } else {
    while (answer.body.size() < body_bytes) {
      size_t line = std::string::npos;
      while ((line = buffer_.find("\r\n")) == std::string::npos) {
        if (!need(buffer_.size() + 1)) {
          return;
        }
      }
      const size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
      buffer_.erase(0, line + 2);
      if (!take(size) || !need(2)) {
        return;
      }
      buffer_.erase(0, 2);
      if (size == 0) {
        answer.end = AnswerEnd::kWhole;
        return;
      }
    }
  }
}

Answer RawClient::ReadAnswer() {
  Answer answer;
  ReadHeadInto(answer);
  if (answer.status != 0) {
    ReadBodyInto(answer, SIZE_MAX);
  }
  return answer;
}

AnswerEnd RawClient::ReadEnd() {
  while (buffer_.empty() && More()) {
  }
  return buffer_.empty() ? end_ : AnswerEnd::kNone;
}

H2Client::H2Client(int port, int window, bool reading) : fd_(ConnectToLoopback(port)), reading_(reading) {
  signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  context_ = SSL_CTX_new(TLS_client_method());
  SSL_CTX_clear_mode(context_, SSL_MODE_AUTO_RETRY);  // or a session ticket alone would make SSL_read wait for more
  ssl_ = SSL_new(context_);
  static constexpr unsigned char kH2[] = "\x02h2";
  SSL_set_alpn_protos(ssl_, kH2, 3);
  SSL_set_fd(ssl_, fd_);
  if (SSL_connect(ssl_) != 1) {
    throw std::runtime_error("TLS handshake failed");
  }
  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(
      callbacks, [](nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                    const uint8_t* value, size_t value_size, uint8_t, void* self) {
        Answer& answer = static_cast<H2Client*>(self)->answers_[frame->hd.stream_id].answer;
        const std::string key(reinterpret_cast<const char*>(name), name_size);
        const std::string text(reinterpret_cast<const char*>(value), value_size);
        if (key == ":status") {
          answer.status = std::stoi(text);
        } else {
          answer.headers[key] = text;
        }
        return 0;
      });
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
      callbacks, [](nghttp2_session*, uint8_t, int32_t id, const uint8_t* bytes, size_t size, void* self) {
        static_cast<H2Client*>(self)->answers_[id].answer.body.append(reinterpret_cast<const char*>(bytes), size);
        return 0;
      });
  nghttp2_session_callbacks_set_on_frame_recv_callback(
      callbacks, [](nghttp2_session*, const nghttp2_frame* frame, void* self) {
        H2Client& client = *static_cast<H2Client*>(self);
        if (frame->hd.type == NGHTTP2_GOAWAY) {
          client.goaway_ = frame->goaway.last_stream_id;
        } else if (frame->hd.type == NGHTTP2_PING && (frame->hd.flags & NGHTTP2_FLAG_ACK) != 0) {
          ++client.pings_;
        } else if ((frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) &&
                   (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
          client.answers_[frame->hd.stream_id].answer.end = AnswerEnd::kWhole;
        }
        return 0;
      });
  nghttp2_session_callbacks_set_on_stream_close_callback(
      callbacks, [](nghttp2_session*, int32_t id, uint32_t error_code, void* self) {
        Answer& answer = static_cast<H2Client*>(self)->answers_[id].answer;
        answer.error_code = error_code;
        if (answer.end == AnswerEnd::kNone) {
          answer.end = error_code == NGHTTP2_REFUSED_STREAM ? AnswerEnd::kRefused : AnswerEnd::kReset;
        }
        return 0;
      });
  nghttp2_option* option = nullptr;
  nghttp2_option_new(&option);
  nghttp2_option_set_no_auto_window_update(option, reading ? 0 : 1);
  // A body shorter than its content-length is for the tests to find, not for nghttp2.
  nghttp2_option_set_no_http_messaging(option, 1);
  nghttp2_session_client_new2(&session_, callbacks, this, option);
  nghttp2_option_del(option);
  nghttp2_session_callbacks_del(callbacks);
  const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<uint32_t>(window)}};
  nghttp2_submit_settings(session_, 0, settings, 1);
}

H2Client::~H2Client() {
  Close();
  nghttp2_session_del(session_);
  SSL_free(ssl_);
  SSL_CTX_free(context_);
}

void H2Client::Close() {
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
    ConnectionEnded(AnswerEnd::kClosed);
  }
}

int32_t H2Client::Start(const std::string& method, const std::string& target, std::string body, bool open,
                        const std::map<std::string, std::string>& headers) {
  std::vector<std::pair<std::string, std::string>> all = {
      {":method", method}, {":scheme", "https"}, {":authority", "localhost"}, {":path", target}};
  all.insert(all.end(), headers.begin(), headers.end());
  std::vector<nghttp2_nv> fields;
  for (const auto& [name, value] : all) {
    fields.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
                      reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(), 0});
  }
  nghttp2_data_provider provider{};
  provider.read_callback = [](nghttp2_session*, int32_t id, uint8_t* buffer, size_t size, uint32_t* flags,
                              nghttp2_data_source*, void* self) -> ssize_t {
    Stream& stream = static_cast<H2Client*>(self)->answers_[id];
    const size_t taken = std::min(size, stream.body.size() - stream.sent);
    memcpy(buffer, stream.body.data() + stream.sent, taken);
    stream.sent += taken;
    if (stream.sent == stream.body.size() && !stream.open) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
    } else if (taken == 0) {
      return NGHTTP2_ERR_DEFERRED;
    }
    return static_cast<ssize_t>(taken);
  };
  const bool has_body = open || !body.empty();
  const int32_t id = nghttp2_submit_request(session_, nullptr, fields.data(), fields.size(),
                                            has_body ? &provider : nullptr, nullptr);
  answers_[id].body = std::move(body);
  answers_[id].open = open;
  return id;
}

void H2Client::ResetStream(int32_t id, uint32_t error_code) {
  nghttp2_submit_rst_stream(session_, 0, id, error_code);
  while (end_ == AnswerEnd::kNone && nghttp2_session_want_write(session_)) {
    Turn(0);
  }
}

void H2Client::Ping() { nghttp2_submit_ping(session_, 0, nullptr); }

uint32_t H2Client::max_concurrent_streams() {
  return nghttp2_session_get_remote_settings(session_, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

void H2Client::ConnectionEnded(AnswerEnd how) {
  if (end_ == AnswerEnd::kNone) {
    end_ = how;
  }
  for (auto& [id, stream] : answers_) {
    if (stream.answer.end == AnswerEnd::kNone) {
      stream.answer.end = AnswerEnd::kClosed;
    }
  }
}

// The socket blocks, so that OpenSSL needs no second tries; poll says when there is something to read.
bool H2Client::Turn(int timeout_ms) {
  const uint8_t* bytes = nullptr;
  for (ssize_t size; (size = nghttp2_session_mem_send(session_, &bytes)) > 0;) {
    if (SSL_write(ssl_, bytes, static_cast<int>(size)) <= 0) {
      write_was_reset_ = write_was_reset_ || errno == ECONNRESET;  // it is told only once
      break;  // what the server sent before it closed is still to be read
    }
  }
  pollfd readable{fd_, POLLIN, 0};
  if (SSL_pending(ssl_) == 0 && poll(&readable, 1, timeout_ms) <= 0) {
    return true;
  }
  char buffer[16384];
  const int got = SSL_read(ssl_, buffer, sizeof buffer);
  if (got <= 0) {
    const int number = errno;
    const int error = SSL_get_error(ssl_, got);
    if (error == SSL_ERROR_WANT_READ) {
      return true;
    }
    const bool reset = write_was_reset_ || (error == SSL_ERROR_SYSCALL && number == ECONNRESET);
    ConnectionEnded(reset ? AnswerEnd::kReset : AnswerEnd::kClosed);
    return false;
  }
  if (nghttp2_session_mem_recv(session_, reinterpret_cast<uint8_t*>(buffer), static_cast<size_t>(got)) < 0) {
    ConnectionEnded(AnswerEnd::kClosed);
    return false;
  }
  return true;
}

bool H2Client::RunUntil(const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kDeadlineMs);
  while (!done()) {
    if (end_ != AnswerEnd::kNone || std::chrono::steady_clock::now() > deadline || !Turn(10)) {
      return done();
    }
  }
  return true;
}

Answer H2Client::Finish(int32_t id) {
  RunUntil([&] { return answers_[id].answer.end != AnswerEnd::kNone; });
  return answers_[id].answer;
}

}  // namespace e2bfs::sandbox::test
