// gzip in both directions, on the caller's thread.
#include <zlib.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "transport/http/client.h"

namespace e2bfs::transport::http {
namespace {

constexpr int kGzipWindowBits = 15 + 16;  // zlib: the largest window, in gzip's format
constexpr size_t kGzipChunkBytes = 65536;

}  // namespace

struct GzipReader::State {
  explicit State(Exchange& source) : exchange(source) {}
  ~State() {
    if (ready) inflateEnd(&stream);
  }

  Exchange& exchange;
  z_stream stream{};
  bool ready = false;
  bool finished = false;  // the trailer was right and the body ended
  std::vector<char> input = std::vector<char>(kGzipChunkBytes);
};

GzipReader::GzipReader(Exchange& exchange) : state_(std::make_unique<State>(exchange)) {}
GzipReader::~GzipReader() = default;

Result<size_t> GzipReader::Read(char* buffer, size_t capacity, const OpContext& ctx) {
  State& state = *state_;
  const auto torn = [](const char* text) { return Failure(ErrorKind::kProtocol, EIO, text); };
  if (state.finished || capacity == 0) return size_t{0};
  if (!state.ready) {
    if (inflateInit2(&state.stream, kGzipWindowBits) != Z_OK) return Failure(ErrorKind::kLocal, ENOMEM, "zlib has no memory");
    state.ready = true;
  }
  state.stream.next_out = reinterpret_cast<Bytef*>(buffer);
  state.stream.avail_out = static_cast<uInt>(std::min<size_t>(capacity, std::numeric_limits<uInt>::max()));
  const uInt room = state.stream.avail_out;
  while (true) {
    // Also with no input left: zlib may hold output back that did not fit last time.
    const int code = inflate(&state.stream, Z_NO_FLUSH);
    const size_t given = room - state.stream.avail_out;
    if (code == Z_STREAM_END) {
      if (state.stream.avail_in > 0) return torn("the answer goes on behind its gzip trailer");
      auto rest = state.exchange.Read(state.input.data(), state.input.size(), ctx);
      if (!rest) return Forward(rest.error());
      if (*rest > 0) return torn("the answer goes on behind its gzip trailer");
      state.finished = true;
      return given;
    }
    if (code == Z_MEM_ERROR) return Failure(ErrorKind::kLocal, ENOMEM, "zlib has no memory");
    if (code != Z_OK && code != Z_BUF_ERROR) return torn("the answer is not what gzip made");
    if (given > 0) return given;
    auto more = state.exchange.Read(state.input.data(), state.input.size(), ctx);
    if (!more) return Forward(more.error());
    if (*more == 0) return torn("the answer ends in the middle of its gzip data");
    state.stream.next_in = reinterpret_cast<Bytef*>(state.input.data());
    state.stream.avail_in = static_cast<uInt>(*more);
  }
}

struct GzipWriter::State {
  // Level 1: the network is what is slow, and the processor may be shared with a build.
  State() { ready = deflateInit2(&stream, 1, Z_DEFLATED, kGzipWindowBits, 8, Z_DEFAULT_STRATEGY) == Z_OK; }
  ~State() {
    if (ready) deflateEnd(&stream);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  z_stream stream{};
  bool ready = false;
};

GzipWriter::GzipWriter() : state_(std::make_unique<State>()) {}
GzipWriter::~GzipWriter() = default;

Result<std::string> GzipWriter::Compress(std::string_view bytes, bool last) {
  z_stream& stream = state_->stream;
  std::string result;
  std::vector<char> chunk(kGzipChunkBytes);
  int code = state_->ready ? Z_OK : Z_MEM_ERROR;
  while (code == Z_OK || code == Z_BUF_ERROR) {
    if (stream.avail_in == 0 && !bytes.empty()) {
      const size_t part = std::min(bytes.size(), size_t{1} << 30);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
      stream.avail_in = static_cast<uInt>(part);
      bytes.remove_prefix(part);
    }
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    code = deflate(&stream, last && bytes.empty() ? Z_FINISH : Z_NO_FLUSH);
    result.append(chunk.data(), chunk.size() - stream.avail_out);
    if (!last && bytes.empty() && stream.avail_in == 0 && stream.avail_out > 0) return result;
  }
  if (code != Z_STREAM_END) return Failure(ErrorKind::kLocal, ENOMEM, "zlib has no memory");
  return result;
}

std::string GzipCompress(std::string_view bytes) { return GzipWriter().Compress(bytes, true).value_or(""); }

}  // namespace e2bfs::transport::http
