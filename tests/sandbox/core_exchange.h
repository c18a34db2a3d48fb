// CoreExchange: what an exchange does whatever the protocol: latency, faults, the proper end. HTTP/1.1 and HTTP/2 add
// how bytes come and go.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tests/sandbox/core.h"
#include "tests/sandbox/exchange.h"
#include "tests/sandbox/fault_book.h"

namespace e2bfs::sandbox {

struct RequestHead {
  std::string method;
  std::string target;     // as sent
  std::string path;       // decoded
  std::string raw_query;
  HeaderList headers;
  int64_t place = 0;      // in the sequence of requests, see ServerCounts

  void SetTarget(std::string text);  // fills target, path and raw_query
};

// Lives on the handler's thread; nothing here is thread-safe.
class CoreExchange : public Exchange {
 public:
  // `taken` has the faults that the protocol side did not serve itself (refuse, goaway, goaway_refuse, freeze).
  CoreExchange(Core& core, const RequestHead& head, TakenFault taken);

  // Serves the request from here to the end of its response.
  void Run();

  const std::string& method() const override { return head_.method; }
  const std::string& path() const override { return head_.path; }
  const std::string& raw_query() const override { return head_.raw_query; }
  const HeaderList& headers() const override { return head_.headers; }
  std::optional<size_t> ReadBody(char* buffer, size_t capacity) override;
  void SendHead(int status, const HeaderList& headers) override;
  [[nodiscard]] bool Write(std::string_view bytes) override;
  void Abort() override { aborted_ = true; }
  bool ClientGone() override { return torn_ || RawGone(); }
  void CountInput(int64_t bytes, int64_t frames) override { core_.counts.Input(bytes, frames); }

 protected:
  enum class Tear {
    kReset,  // TCP reset or RST_STREAM
    kClose,  // the whole connection, by FIN
    kAbort,  // what a Go server does when a handler panics: closes the connection, or RST_STREAM
  };
  enum class Ending {
    kWhole,  // the response is complete
    kShort,  // the handler wrote less than it promised: the client must be able to tell
    kCut,    // the "cut" fault: looks as complete as the protocol lets it
  };
  // All of these block, and end when the client is gone or the server stops.
  virtual std::optional<size_t> RawRead(char* buffer, size_t capacity) = 0;
  // `length`: of the body, if promised; `has_body` false: no Write follows, whatever the length.
  virtual void RawHead(int status, const HeaderList& headers, std::optional<int64_t> length, bool has_body) = 0;
  virtual bool RawWrite(std::string_view bytes) = 0;
  // Until what was written is on its way to the client.
  virtual void RawFlush() = 0;
  virtual void RawEnd(Ending ending) = 0;
  // After a RawFlush where the client is to get what was written before.
  virtual void RawTear(Tear how) = 0;
  // Until faults are cleared, the client is gone, or the server stops.
  virtual void RawStall(uint64_t generation) = 0;
  virtual bool RawGone() = 0;
  virtual void RawSleep(int64_t ms) = 0;

 private:
  bool Is(const char* action) const { return taken_.fault.action == action; }
  void Finish();
  std::optional<size_t> ReadLate(char* buffer, size_t capacity);
  void TearNow(Tear how);
  bool ActAtByte();

  Core& core_;
  const RequestHead& head_;
  const TakenFault taken_;
  const bool is_test_;
  bool head_sent_ = false;
  bool has_body_ = true;
  std::optional<int64_t> length_;
  int64_t written_ = 0;     // response body
  int64_t body_read_ = 0;   // request body
  std::optional<std::string> late_;  // what "late_request" held back and did not give yet
  bool late_whole_ = false;          // the client ended it properly
  bool aborted_ = false;
  bool torn_ = false;       // the response is over, properly or not
  bool swallow_ = false;    // "reset" and "close" at -2: the handler's response goes nowhere
};

}  // namespace e2bfs::sandbox
