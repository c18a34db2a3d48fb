#include "transport/http/h1_client.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <mutex>
#include <utility>

#include "transport/http/socket_options.h"

namespace e2bfs::transport::http {
namespace {

// A body from here on is read in larger pieces.
constexpr int kLargeBodyBytes = 256 << 10;
constexpr size_t kMaxHeadBytes = size_t{64} << 10;
constexpr int kMaxInformationalHeads = 16;

std::string_view TrimHeaderValue(std::string_view text) {
  while (!text.empty() && (text.back() == '\r' || text.back() == '\n' || text.back() == ' ' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  return text;
}

int ErrnoOfConnectFailure(CURLcode code, CURL* easy) {
  if (code == CURLE_OPERATION_TIMEDOUT) return ETIMEDOUT;
  if (code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY) return EHOSTUNREACH;
  long reason = 0;
  curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &reason);
  if (code == CURLE_COULDNT_CONNECT) return reason > 0 ? static_cast<int>(reason) : ECONNREFUSED;
  return EIO;
}

}  // namespace

struct H1Client::Transfer {
  Host* host;
  ExchangePtr exchange;
  CURL* easy = nullptr;
  curl_slist* headers = nullptr;
  ResponseHead head;
  size_t head_bytes = 0;   // all heads and trailers together
  int heads = 0;
  bool final_head = false;
  bool body_allowed = true;
  bool chunked = false;
  std::optional<int64_t> content_length;
  int64_t received = 0;
  size_t buffer_limit = 0;
  bool begun = false;      // a connection was chosen and the request goes out
  bool receive_paused = false;
  bool send_paused = false;
  bool upload_ended = false;
  std::optional<Error> failure;  // found by a callback, which then stopped the transfer
  char error_text[CURL_ERROR_SIZE] = {};

  ~Transfer() {
    curl_slist_free_all(headers);
    if (easy != nullptr) curl_easy_cleanup(easy);
  }
};

H1Client::H1Client(EventLoop& loop, const ClientOptions& options, std::shared_ptr<TlsContext> tls,
                   std::shared_ptr<SharedCounters> counters, Ended ended)
    : loop_(loop), options_(options), tls_(std::move(tls)), counters_(std::move(counters)), ended_(std::move(ended)) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  multi_ = curl_multi_init();
  curl_multi_setopt(multi_, CURLMOPT_SOCKETFUNCTION, &H1Client::OnSocket);
  curl_multi_setopt(multi_, CURLMOPT_SOCKETDATA, this);
  curl_multi_setopt(multi_, CURLMOPT_TIMERFUNCTION, &H1Client::OnTimer);
  curl_multi_setopt(multi_, CURLMOPT_TIMERDATA, this);
  curl_multi_setopt(multi_, CURLMOPT_PIPELINING, CURLPIPE_NOTHING);
  // The pool gives no more transfers than this; idle connections make room when a new one is needed.
  curl_multi_setopt(multi_, CURLMOPT_MAX_HOST_CONNECTIONS, static_cast<long>(options_.max_connections_per_origin));
  curl_multi_setopt(multi_, CURLMOPT_MAX_TOTAL_CONNECTIONS, static_cast<long>(options_.max_connections));
  // libcurl's own limit of what it keeps is looked at when a transfer ends, and then closes one at most, although many
  // transfers can end in one call; so it is never reached, and CloseIdle closes.
  curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(options_.max_connections));
}

H1Client::~H1Client() {
  for (auto& [key, transfer] : transfers_) {
    curl_multi_remove_handle(multi_, transfer->easy);
    transfer->exchange->carrier = nullptr;
  }
  transfers_.clear();
  curl_multi_cleanup(multi_);
  loop_.CancelTimer(timer_);
  for (const auto& [socket, watch] : watches_) loop_.Unwatch(watch);
}

std::optional<Error> H1Client::Start(const ExchangePtr& exchange, const Origin& origin) {
  Host& host = hosts_[origin.text];
  host.client = this;
  host.origin = origin;
  host.used_at = Clock::now();
  auto transfer = std::make_unique<Transfer>();
  transfer->host = &host;
  transfer->exchange = exchange;
  transfer->easy = curl_easy_init();
  if (transfer->easy == nullptr) return Failure(ErrorKind::kLocal, ENOMEM, "libcurl has no memory").value();
  Configure(*transfer);
  const CURLMcode code = curl_multi_add_handle(multi_, transfer->easy);
  if (code != CURLM_OK) {
    return Failure(ErrorKind::kLocal, ENOMEM, std::string("libcurl: ") + curl_multi_strerror(code)).value();
  }
  transfers_.emplace(exchange.get(), std::move(transfer));
  ++host.active;
  exchange->carrier = this;
  return std::nullopt;
}

void H1Client::ConfigureConnection(CURL* easy, Host& host) {
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);  // never wait on the loop for a name that is still being resolved
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(easy, CURLOPT_URL, host.origin.text.c_str());
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout.count()));
  if (GoesPastProxies(host.origin)) curl_easy_setopt(easy, CURLOPT_PROXY, "");  // else libcurl reads the environment
  const auto age = std::chrono::ceil<std::chrono::seconds>(options_.idle_expiry).count();
  curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, static_cast<long>(std::max<int64_t>(age, 1)));

  curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
  curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
  curl_easy_setopt(easy, CURLOPT_CAINFO, nullptr);
  curl_easy_setopt(easy, CURLOPT_CAPATH, nullptr);
  curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, &H1Client::OnSslContext);
  curl_easy_setopt(easy, CURLOPT_SSL_CTX_DATA, this);

  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, &H1Client::OnOpenSocket);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, &host);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, &H1Client::OnCloseSocket);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, &host);
}

void H1Client::Configure(Transfer& transfer) {
  CURL* easy = transfer.easy;
  const Request& request = transfer.exchange->request();
  transfer.buffer_limit = static_cast<size_t>(request.window_bytes > 0 ? request.window_bytes : options_.stream_window_bytes);
  transfer.exchange->LimitReadBatch(transfer.buffer_limit / 2);

  ConfigureConnection(easy, *transfer.host);
  curl_easy_setopt(easy, CURLOPT_PRIVATE, &transfer);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer.error_text);
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
  curl_easy_setopt(easy, CURLOPT_URL, (transfer.host->origin.text + request.target).c_str());
  curl_easy_setopt(easy, CURLOPT_USERAGENT, options_.user_agent.c_str());
  curl_easy_setopt(easy, CURLOPT_HTTP_CONTENT_DECODING, 0L);
  curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 65536L);
  curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 65536L);

  curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, &H1Client::OnPrerequest);
  curl_easy_setopt(easy, CURLOPT_PREREQDATA, &transfer);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &H1Client::OnHeader);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &H1Client::OnBody);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, &transfer);

  // After a try that failed, no idle connection is trusted: those that died together would use up the tries.
  if (transfer.exchange->tries > 1 || transfer.exchange->unsent_tries > 0) curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);

  bool has_type = false;
  for (const auto& [name, value] : request.headers) {
    has_type = has_type || name == "content-type";
    // "name;" is how libcurl is given an empty value; "name:" would remove the header.
    transfer.headers = curl_slist_append(transfer.headers, (value.empty() ? name + ";" : name + ": " + value).c_str());
  }
  const bool with_body = transfer.exchange->has_request_body() || request.method == "POST" || request.method == "PUT" ||
                         request.method == "PATCH";
  if (with_body) {
    const int64_t length = transfer.exchange->request_body_length();
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    // By a callback and with no way to rewind: libcurl then cannot repeat by itself what was sent (PROTOCOL.md trap 13).
    curl_easy_setopt(easy, CURLOPT_READFUNCTION, &H1Client::OnRead);
    curl_easy_setopt(easy, CURLOPT_READDATA, &transfer);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(length));
    if (length < 0 || length > kLargeBodyBytes) curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, long{kLargeBodyBytes});
    if (length < 0) transfer.headers = curl_slist_append(transfer.headers, "Transfer-Encoding: chunked");
    if (!has_type) transfer.headers = curl_slist_append(transfer.headers, "Content-Type:");
    transfer.headers = curl_slist_append(transfer.headers, "Expect:");
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  } else if (request.method == "HEAD") {
    curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
  } else {
    curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  transfer.upload_ended = !with_body;
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer.headers);
}

// --- libcurl's callbacks. None of them may call libcurl back.

int H1Client::OnSocket(CURL*, curl_socket_t socket, int what, void* self, void*) {
  auto* client = static_cast<H1Client*>(self);
  auto found = client->watches_.find(socket);
  if (what == CURL_POLL_REMOVE) {
    if (found != client->watches_.end()) {
      client->loop_.Unwatch(found->second);
      client->watches_.erase(found);
    }
    return 0;
  }
  uint32_t events = 0;
  if ((what & CURL_POLL_IN) != 0) events |= EPOLLIN;
  if ((what & CURL_POLL_OUT) != 0) events |= EPOLLOUT;
  if (found != client->watches_.end()) {
    client->loop_.ChangeWatch(found->second, events);
    return 0;
  }
  const EventLoop::WatchId watch = client->loop_.Watch(socket, events, [client, socket](uint32_t seen) {
    int action = 0;
    if ((seen & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) action |= CURL_CSELECT_IN;
    if ((seen & EPOLLOUT) != 0) action |= CURL_CSELECT_OUT;
    if ((seen & EPOLLERR) != 0) action |= CURL_CSELECT_ERR;
    client->Act(socket, action);
  });
  if (watch == 0) return -1;
  client->watches_.emplace(socket, watch);
  return 0;
}

int H1Client::OnTimer(CURLM*, long milliseconds, void* self) {
  auto* client = static_cast<H1Client*>(self);
  client->loop_.CancelTimer(client->timer_);
  if (milliseconds >= 0) {
    client->timer_ = client->loop_.AddTimer(Clock::now() + std::chrono::milliseconds(milliseconds), [client] {
      client->timer_ = 0;
      client->Act(CURL_SOCKET_TIMEOUT, 0);
    });
  }
  return 0;
}

curl_socket_t H1Client::OnOpenSocket(void* context, curlsocktype, curl_sockaddr* address) {
  auto* host = static_cast<Host*>(context);
  H1Client* client = host->client;
  const int descriptor = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  if (descriptor < 0) return CURL_SOCKET_BAD;
  SetSocketOptions(descriptor);
  ++host->open;
  ++client->open_connections_;
  client->counters_->connections_opened.fetch_add(1, std::memory_order_relaxed);
  client->counters_->connections_now.fetch_add(1, std::memory_order_relaxed);
  return descriptor;
}

int H1Client::OnCloseSocket(void* context, curl_socket_t socket) {
  auto* host = static_cast<Host*>(context);
  H1Client* client = host->client;
  // libcurl does not say of every socket that it no longer needs watching before it closes it.
  if (auto found = client->watches_.find(socket); found != client->watches_.end()) {
    client->loop_.Unwatch(found->second);
    client->watches_.erase(found);
  }
  --host->open;
  --client->open_connections_;
  client->counters_->connections_now.fetch_sub(1, std::memory_order_relaxed);
  return close(socket);
}

CURLcode H1Client::OnSslContext(CURL*, void* context, void* self) {
  static_cast<H1Client*>(self)->tls_->ShareTrust(static_cast<SSL_CTX*>(context));
  return CURLE_OK;
}

int H1Client::OnPrerequest(void* data, char*, char*, int, int) {
  auto* transfer = static_cast<Transfer*>(data);
  // A second call means that libcurl wants to send the request again on its own, since a connection that it had used
  // before died without an answer. Whether that may be done is decided by the pool.
  if (transfer->begun) return CURL_PREREQFUNC_ABORT;
  transfer->begun = true;
  transfer->exchange->MarkSent();
  return CURL_PREREQFUNC_OK;
}

size_t H1Client::OnHeader(char* data, size_t size, size_t count, void* context) {
  auto* transfer = static_cast<Transfer*>(context);
  const size_t bytes = size * count;
  const auto refuse = [&](std::string text) {
    transfer->failure = Failure(ErrorKind::kProtocol, EIO, std::move(text)).value();
    return size_t{0};
  };
  transfer->head_bytes += bytes + 32;  // as HTTP/2 counts: many tiny headers cost memory too
  if (transfer->head_bytes > kMaxHeadBytes) return refuse("the answer's head is too long");
  if (transfer->final_head) return bytes;  // trailers
  const std::string_view line(data, bytes);
  if (line.starts_with("HTTP/")) {
    transfer->head = ResponseHead{};
    transfer->head.protocol = Protocol::kHttp1;
    const size_t space = line.find(' ');
    const std::string_view digits = space == std::string_view::npos ? std::string_view() : line.substr(space + 1);
    std::from_chars(digits.data(), digits.data() + digits.size(), transfer->head.status);
    if (transfer->head.status < 100 || transfer->head.status > 599 || transfer->head.status == 101) {
      return refuse("the answer's status is not readable");
    }
    if (++transfer->heads > kMaxInformationalHeads) return refuse("the answer never came to its head");
    return bytes;
  }
  const std::string_view text = TrimHeaderValue(line);
  if (!text.empty()) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos || colon == 0) return refuse("a header of the answer is not readable");
    transfer->head.headers.emplace_back(ToLowerAscii(text.substr(0, colon)), TrimHeaderValue(text.substr(colon + 1)));
    return bytes;
  }
  if (transfer->head.status < 200) return bytes;  // informational; the head is still to come
  transfer->final_head = true;
  const int status = transfer->head.status;
  transfer->body_allowed = transfer->exchange->request().method != "HEAD" && status != 204 && status != 304;
  for (const auto& [name, value] : transfer->head.headers) {
    if (name == "transfer-encoding" && ToLowerAscii(value).ends_with("chunked")) transfer->chunked = true;
    if (name != "content-length") continue;
    int64_t length = -1;
    const auto [end, problem] = std::from_chars(value.data(), value.data() + value.size(), length);
    if (problem != std::errc() || end != value.data() + value.size() || length < 0 ||
        (transfer->content_length && *transfer->content_length != length)) {
      return refuse("the answer's length is not readable");
    }
    transfer->content_length = length;
  }
  transfer->exchange->PublishHead(std::move(transfer->head));
  // libcurl stops sending a body once an error was answered.
  if (status >= 300 && !transfer->upload_ended) transfer->exchange->CloseUpload();
  return bytes;
}

size_t H1Client::OnBody(char* data, size_t size, size_t count, void* context) {
  auto* transfer = static_cast<Transfer*>(context);
  const size_t bytes = size * count;
  if (bytes == 0) return 0;
  if (transfer->exchange->buffered_bytes() >= transfer->buffer_limit) {
    transfer->receive_paused = true;
    return CURL_WRITEFUNC_PAUSE;
  }
  transfer->received += static_cast<int64_t>(bytes);
  transfer->exchange->AppendBody({data, bytes});
  return bytes;
}

size_t H1Client::OnRead(char* buffer, size_t size, size_t count, void* context) {
  auto* transfer = static_cast<Transfer*>(context);
  size_t taken = 0;
  switch (transfer->exchange->TakeRequestBody(buffer, size * count, &taken)) {
    case ExchangeState::BodyPart::kMore: return taken;
    case ExchangeState::BodyPart::kEnd: transfer->upload_ended = true; return taken;
    case ExchangeState::BodyPart::kEmpty: break;
  }
  transfer->send_paused = true;
  return CURL_READFUNC_PAUSE;
}

// --- the loop's side

void H1Client::Act(curl_socket_t socket, int events) {
  int running = 0;
  curl_multi_socket_action(multi_, socket, events, &running);
  CollectEnded();
}

void H1Client::CollectEnded() {
  int left = 0;
  while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    void* data = nullptr;
    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &data);
    auto* transfer = static_cast<Transfer*>(data);
    TryOutcome outcome = Judge(*transfer, message->data.result);
    const ExchangePtr exchange = transfer->exchange;
    Remove(*transfer);
    ended_(exchange, std::move(outcome));  // may Start the next
  }
}

void H1Client::Remove(Transfer& transfer) {
  curl_multi_remove_handle(multi_, transfer.easy);
  transfer.exchange->carrier = nullptr;
  --transfer.host->active;
  transfer.host->used_at = Clock::now();
  transfers_.erase(transfer.exchange.get());
}

// --- connections without a request

bool H1Client::CloseOneIdle(Host& host) {
  // libcurl has no call for this. So a transfer is begun that can use a kept connection only, and is stopped before a
  // byte of it goes out; libcurl then closes the connection.
  CURL* easy = curl_easy_init();
  if (easy == nullptr) return false;
  const int open_before = host.open;
  bool found = false;
  ConfigureConnection(easy, host);
  curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
  curl_easy_setopt(easy, CURLOPT_PREREQDATA, &found);
  curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, +[](void* data, char*, char*, int, int) {
    *static_cast<bool*>(data) = true;
    return CURL_PREREQFUNC_ABORT;
  });
  curl_easy_setopt(easy, CURLOPT_RESOLVER_START_FUNCTION, +[](void*, void*, void*) { return 1; });
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION,
                   +[](void*, curlsocktype, curl_sockaddr*) -> curl_socket_t { return CURL_SOCKET_BAD; });
  if (curl_multi_add_handle(multi_, easy) == CURLM_OK) {
    int running = 0;
    curl_multi_socket_action(multi_, CURL_SOCKET_TIMEOUT, 0, &running);
    curl_multi_remove_handle(multi_, easy);
    // Others may have come to their ends in that call.
    if (!collect_scheduled_) {
      collect_scheduled_ = true;
      loop_.Defer([this, alive = std::weak_ptr<int>(alive_)] {
        if (alive.expired()) return;
        collect_scheduled_ = false;
        CollectEnded();
      });
    }
  }
  curl_easy_cleanup(easy);
  return found || host.open < open_before;  // it may also have found that one was dead
}

std::vector<H1Client::Host*> H1Client::LeastRecentlyUsed() {
  std::vector<Host*> hosts;
  for (auto& [name, host] : hosts_) {
    if (host.open > 0) hosts.push_back(&host);
  }
  std::sort(hosts.begin(), hosts.end(), [](const Host* a, const Host* b) { return a->used_at < b->used_at; });
  return hosts;
}

int H1Client::CloseIdle(int keep) {
  const int excess = idle_connections() - keep;
  int closed = 0;
  if (excess <= 0) return 0;
  for (Host* host : LeastRecentlyUsed()) {
    while (closed < excess && CloseOneIdle(*host)) ++closed;
  }
  return closed;
}

bool H1Client::CloseIdleTo(const Origin& origin) {
  return HasIdleTo(origin) && CloseOneIdle(hosts_.at(origin.text));
}

bool H1Client::HasIdleTo(const Origin& origin) const {
  const auto host = hosts_.find(origin.text);
  return host != hosts_.end() && host->second.open > host->second.active;
}

int H1Client::connections_to(const Origin& origin) const {
  const auto host = hosts_.find(origin.text);
  return host == hosts_.end() ? 0 : std::max(host->second.open, host->second.active);
}

TimePoint H1Client::idle_since() const {
  TimePoint since = TimePoint::max();
  for (const auto& [name, host] : hosts_) {
    if (host.open > host.active) since = std::min(since, host.used_at);
  }
  return since;
}

void H1Client::CloseIdleSince(TimePoint since) {
  for (Host* host : LeastRecentlyUsed()) {
    if (host->used_at > since) return;
    while (host->open > host->active && CloseOneIdle(*host)) {
    }
    host->used_at = Clock::now();  // whatever is left there (a proxy's connection, used for another origin) waits anew
  }
}

TryOutcome H1Client::Judge(Transfer& transfer, CURLcode code) {
  using Reach = TryOutcome::Reach;
  const auto text = [&] {
    return std::string(transfer.error_text[0] != '\0' ? transfer.error_text : curl_easy_strerror(code));
  };
  if (transfer.failure) return {Reach::kDone, std::move(transfer.failure)};
  if (code == CURLE_OK) {
    if (!transfer.final_head) return {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, "an answer without a head").value()};
    if (!transfer.body_allowed || transfer.chunked) return {Reach::kDone, std::nullopt};
    if (!transfer.content_length) {
      return {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, "the answer's end cannot be told from a loss").value()};
    }
    if (*transfer.content_length != transfer.received) {
      return {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, "the answer is shorter than was promised").value()};
    }
    return {Reach::kDone, std::nullopt};
  }
  if (code == CURLE_OUT_OF_MEMORY) return {Reach::kDone, Failure(ErrorKind::kLocal, ENOMEM, text()).value()};
  if (!transfer.begun) {
    const bool final = code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_URL_MALFORMAT ||
                       code == CURLE_SSL_CACERT_BADFILE || code == CURLE_UNSUPPORTED_PROTOCOL;
    const int reason = code == CURLE_PEER_FAILED_VERIFICATION ? EPROTO : ErrnoOfConnectFailure(code, transfer.easy);
    Error error = Failure(ErrorKind::kConnect, reason, text()).value();
    return {final ? Reach::kDone : Reach::kConnectFailed, std::move(error)};
  }
  long request_bytes = -1;
  curl_easy_getinfo(transfer.easy, CURLINFO_REQUEST_SIZE, &request_bytes);
  if (request_bytes == 0 && transfer.heads == 0) {
    return {Reach::kNeverSent, Failure(ErrorKind::kConnect, ECONNRESET, text()).value()};
  }
  if (code == CURLE_WEIRD_SERVER_REPLY || code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_BAD_CONTENT_ENCODING) {
    return {Reach::kDone, Failure(ErrorKind::kProtocol, EIO, text()).value()};
  }
  return {Reach::kMaybeActedOn, Failure(ErrorKind::kBroken, EIO, text()).value()};
}

void H1Client::OnConsumed(const ExchangePtr& exchange, size_t) {
  auto found = transfers_.find(exchange.get());
  if (found == transfers_.end() || !found->second->receive_paused) return;
  Transfer& transfer = *found->second;
  if (exchange->buffered_bytes() > transfer.buffer_limit / 2) return;
  transfer.receive_paused = false;
  curl_easy_pause(transfer.easy, transfer.send_paused ? CURLPAUSE_SEND : CURLPAUSE_CONT);
}

void H1Client::OnRequestBodyReady(const ExchangePtr& exchange) {
  auto found = transfers_.find(exchange.get());
  if (found == transfers_.end() || !found->second->send_paused) return;
  Transfer& transfer = *found->second;
  transfer.send_paused = false;
  curl_easy_pause(transfer.easy, transfer.receive_paused ? CURLPAUSE_RECV : CURLPAUSE_CONT);
}

void H1Client::OnAbandoned(const ExchangePtr& exchange, Abandon) {
  auto found = transfers_.find(exchange.get());
  if (found == transfers_.end()) return;
  const ExchangePtr keep = exchange;
  Remove(*found->second);  // closes the connection, since the answer was not read to its end
  ended_(keep, TryOutcome{TryOutcome::Reach::kDone, std::nullopt});
}

}  // namespace e2bfs::transport::http
