// The Connect protocol's stream framing: pure encode and decode, no I/O. Fuzzed.
//
// A stream's body is a row of envelopes: 1 flag byte (bit 0 compressed, bit 1 end of stream), 4 bytes of length (big endian), payload. The last
// one has bit 1 set; a body without it is torn, whatever HTTP says (PROTOCOL.md 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "transport/base/error.h"

namespace e2bfs::transport::envd {

inline constexpr size_t kEnvelopeHeadBytes = 5;
inline constexpr uint8_t kEnvelopeCompressed = 1;
inline constexpr uint8_t kEnvelopeEndOfStream = 2;

// payload < 4 GiB.
std::string EncodeEnvelope(std::string_view payload, uint8_t flags = 0);

struct Envelope {
  bool end_of_stream = false;
  std::string payload;
};

struct EnvelopeLimits {
  size_t max_message_bytes = size_t{4} << 20;    // payload of one envelope
  uint64_t max_total_bytes = UINT64_MAX;         // all payloads together
};

// One stream's body in, its messages out. Not shared between threads. All errors are EIO/kProtocol and final.
class EnvelopeDecoder {
 public:
  explicit EnvelopeDecoder(EnvelopeLimits limits = {}) : limits_(limits) {}

  // More bytes of the body. Holds at most one incomplete message and what was fed behind it.
  void Feed(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole message, nullopt if more bytes are needed. Errors: a flag that we did not agree to (compressed, reserved), a limit,
  // bytes behind the end-of-stream envelope.
  Result<std::optional<Envelope>> Next();
  // The body ended: an error unless the end-of-stream envelope was taken and nothing is left.
  Result<void> Finish() const;

 private:
  const EnvelopeLimits limits_;
  std::string buffer_;
  size_t taken_ = 0;  // bytes of buffer_ that were handed out
  uint64_t total_bytes_ = 0;
  bool ended_ = false;
  bool failed_ = false;
};

}  // namespace e2bfs::transport::envd
