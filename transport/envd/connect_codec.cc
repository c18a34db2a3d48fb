#include "transport/envd/connect_codec.h"

namespace e2bfs::transport::envd {
namespace {

tl::unexpected<Error> BadEnvelope(const char* what) {
  return Failure(ErrorKind::kProtocol, EIO, std::string("stream: ") + what);
}

}  // namespace

std::string EncodeEnvelope(std::string_view payload, uint8_t flags) {
  const auto size = static_cast<uint32_t>(payload.size());
  std::string bytes;
  bytes.reserve(kEnvelopeHeadBytes + payload.size());
  bytes += static_cast<char>(flags);
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(size >> shift & 0xff);
  bytes += payload;
  return bytes;
}

Result<std::optional<Envelope>> EnvelopeDecoder::Next() {
  if (failed_) return BadEnvelope("failed before");
  const size_t there = buffer_.size() - taken_;
  if (ended_) {
    if (there == 0) return std::nullopt;
    failed_ = true;
    return BadEnvelope("bytes behind its end");
  }
  if (there < kEnvelopeHeadBytes) return std::nullopt;
  const auto* head = reinterpret_cast<const unsigned char*>(buffer_.data() + taken_);
  const uint8_t flags = head[0];
  const size_t size = size_t{head[1]} << 24 | size_t{head[2]} << 16 | size_t{head[3]} << 8 | size_t{head[4]};
  if ((flags & ~kEnvelopeEndOfStream) != 0) {
    failed_ = true;
    return BadEnvelope((flags & kEnvelopeCompressed) != 0 ? "a compressed message that was not asked for" : "unknown flags");
  }
  if (size > limits_.max_message_bytes || size > limits_.max_total_bytes - total_bytes_) {
    failed_ = true;
    return BadEnvelope("longer than allowed");
  }
  if (there - kEnvelopeHeadBytes < size) return std::nullopt;
  Envelope envelope;
  envelope.end_of_stream = (flags & kEnvelopeEndOfStream) != 0;
  envelope.payload = buffer_.substr(taken_ + kEnvelopeHeadBytes, size);
  taken_ += kEnvelopeHeadBytes + size;
  total_bytes_ += size;
  ended_ = envelope.end_of_stream;
  // What was handed out is dropped when it is at least half of the buffer: each byte is moved once on average.
  if (taken_ * 2 >= buffer_.size()) {
    buffer_.erase(0, taken_);
    taken_ = 0;
  }
  return std::optional<Envelope>(std::move(envelope));
}

Result<void> EnvelopeDecoder::Finish() const {
  if (failed_) return BadEnvelope("failed before");
  if (buffer_.size() != taken_) return BadEnvelope(ended_ ? "bytes behind its end" : "torn in the middle of a message");
  if (!ended_) return BadEnvelope("ended without its end-of-stream message");
  return {};
}

}  // namespace e2bfs::transport::envd
