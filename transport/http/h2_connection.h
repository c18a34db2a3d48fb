// H2Connection: one TLS socket and its nghttp2 session. Loop thread only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "transport/http/carrier.h"
#include "transport/http/event_loop.h"
#include "transport/http/exchange_state.h"

struct nghttp2_session;
struct ssl_st;

namespace e2bfs::transport::http {

class H2Connection final : public Carrier {
 public:
  // Called from within the connection's own work: an implementation may not destroy the connection, nor call Start or
  // CloseIdle, before the loop's turn is over (EventLoop::Defer).
  class Listener {
   public:
    // The exchange is no longer carried here.
    virtual void OnTryEnded(const ExchangePtr& exchange, TryOutcome outcome) = 0;
    // It can take more, or its ability to take requests changed.
    virtual void OnCapacity(H2Connection& connection) = 0;
    // It is over; nothing is carried any more.
    virtual void OnClosed(H2Connection& connection) = 0;

   protected:
    ~Listener() = default;
  };

  // Takes over the connected socket and its TLS state; they are freed with this object.
  H2Connection(EventLoop& loop, const ClientOptions& options, std::shared_ptr<SharedCounters> counters, Listener& listener,
               OriginPool& home, std::string authority, int descriptor, ssl_st* tls);
  ~H2Connection();
  H2Connection(const H2Connection&) = delete;
  H2Connection& operator=(const H2Connection&) = delete;

  // Sends the preface. False (and closed) if that is not possible.
  bool Begin();

  OriginPool& home() const { return home_; }
  bool closed() const { return closed_; }
  // False while it is not yet known how many streams the peer takes.
  bool settled() const { return settings_received_; }
  // Neither going away nor suspected dead.
  bool usable() const { return !closed_ && !draining_ && !suspect_; }
  // How many requests it takes at one time: the peer can say 0.
  int stream_limit() const;
  // Has a stream for a request of this class: by the peer's SETTINGS, by our limit, and less the reserved ones.
  bool HasRoom(ServiceClass service_class) const;
  int streams() const { return static_cast<int>(streams_.size()); }
  int streams_of(ServiceClass service_class) const { return class_streams_[static_cast<size_t>(service_class)]; }
  // What the server takes of a request's body ahead of its reader.
  int64_t upload_window_bytes() const;
  bool idle() const { return !closed_ && streams_.empty(); }
  TimePoint idle_since() const { return idle_since_; }

  void Start(const ExchangePtr& exchange);
  // Says GOAWAY and closes. Only when idle.
  void CloseIdle();
  // Ends at once with everything on it.
  void Close(Error error);

  void OnConsumed(const ExchangePtr& exchange, size_t bytes) override;
  void OnRequestBodyReady(const ExchangePtr& exchange) override;
  void OnAbandoned(const ExchangePtr& exchange, Abandon why) override;

 private:
  struct Stream;
  friend struct H2Callbacks;  // nghttp2's view of the private parts

  void OnIo(uint32_t events);
  // all: also what epoll would tell of again. False when the connection is over.
  bool ReceiveSome(bool all);
  void Flush();
  bool FillOutput();
  void ScheduleFlush();
  void UpdateWatch();
  void Suspect();
  void OnPong();
  void OnGoAway();
  void OnSettings();
  Stream* Find(int32_t stream_id);
  void BeginHead(Stream& stream);
  // False: the stream has to be reset.
  bool AddHeader(Stream& stream, std::string_view name, std::string_view value);
  bool EndHead(Stream& stream);
  void EndOfResponse(Stream& stream);
  void OnStreamClosed(int32_t stream_id, uint32_t code);
  void OnNotSent(int32_t stream_id);
  void HeadersSent(Stream& stream);
  // Tells the listener and lets go of the exchange; the stream's record stays until nghttp2 has closed the stream.
  void EndTry(Stream& stream, TryOutcome outcome);
  void Forget(int32_t stream_id);
  int StreamWindow(const Request& request) const;

  EventLoop& loop_;
  const ClientOptions& options_;
  const std::shared_ptr<SharedCounters> counters_;
  Listener& listener_;
  OriginPool& home_;
  const std::string authority_;
  const int descriptor_;
  ssl_st* const tls_;
  nghttp2_session* session_ = nullptr;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // expires with this object: for deferred jobs
  EventLoop::WatchId watch_ = 0;
  EventLoop::TimerId ping_timer_ = 0;
  std::unordered_map<int32_t, std::unique_ptr<Stream>> streams_;
  std::array<int, 4> class_streams_{};
  std::string output_;
  size_t output_sent_ = 0;
  uint64_t written_bytes_ = 0;
  int64_t committed_window_ = 0;  // sum of the streams' windows
  TimePoint idle_since_ = Clock::now();
  bool flush_scheduled_ = false;
  bool want_write_ = false;
  bool settings_received_ = false;
  bool draining_ = false;
  bool suspect_ = false;
  bool closed_ = false;
};

}  // namespace e2bfs::transport::http
