#include "tests/sandbox/gzip.h"

#include <zlib.h>

#include <vector>

namespace e2bfs::sandbox {
namespace {

constexpr int kGzipWindowBits = 15 + 16;
constexpr size_t kGzipChunk = size_t{128} << 10;

Bytef* GzipBytes(std::string_view text) { return reinterpret_cast<Bytef*>(const_cast<char*>(text.data())); }

}  // namespace

struct GzipWriter::State {
  z_stream stream{};
  std::vector<char> output = std::vector<char>(kGzipChunk);
};

GzipWriter::GzipWriter(Sink sink) : state_(std::make_unique<State>()), sink_(std::move(sink)) {
  deflateInit2(&state_->stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kGzipWindowBits, 8, Z_DEFAULT_STRATEGY);
}

GzipWriter::~GzipWriter() { deflateEnd(&state_->stream); }

bool GzipWriter::Pump(std::string_view plain, bool finish) {
  z_stream& stream = state_->stream;
  stream.next_in = GzipBytes(plain);
  stream.avail_in = static_cast<uInt>(plain.size());
  int result = Z_OK;
  do {
    stream.next_out = reinterpret_cast<Bytef*>(state_->output.data());
    stream.avail_out = static_cast<uInt>(state_->output.size());
    result = deflate(&stream, finish ? Z_FINISH : Z_NO_FLUSH);
    const size_t produced = state_->output.size() - stream.avail_out;
    if (produced > 0 && !sink_(std::string_view(state_->output.data(), produced))) {
      return false;
    }
  } while (stream.avail_out == 0 || (finish && result == Z_OK));
  return true;
}

bool GzipWriter::Write(std::string_view plain) { return plain.empty() || Pump(plain, false); }
bool GzipWriter::Finish() { return Pump({}, true); }

struct GzipReader::State {
  z_stream stream{};
  gz_header header{};
  std::vector<char> input = std::vector<char>(kGzipChunk);
  bool source_ended = false;
  bool source_broken = false;
  bool in_member = false;
};

GzipReader::GzipReader(Source source) : state_(std::make_unique<State>()), source_(std::move(source)) {
  inflateInit2(&state_->stream, kGzipWindowBits);
}

GzipReader::~GzipReader() { inflateEnd(&state_->stream); }

bool GzipReader::Fill() {
  State& state = *state_;
  if (state.stream.avail_in > 0 || state.source_ended) {
    return state.stream.avail_in > 0;
  }
  const auto got = source_(state.input.data(), state.input.size());
  if (!got) {
    state.source_broken = true;
  }
  if (got.value_or(0) == 0) {
    state.source_ended = true;
    return false;
  }
  state.stream.next_in = reinterpret_cast<Bytef*>(state.input.data());
  state.stream.avail_in = static_cast<uInt>(*got);
  return true;
}

bool GzipReader::Begin() {
  gz_header& header = state_->header;
  inflateGetHeader(&state_->stream, &header);
  char nothing = 0;
  while (header.done == 0) {
    if (!Fill()) {
      return false;
    }
    state_->stream.next_out = reinterpret_cast<Bytef*>(&nothing);
    state_->stream.avail_out = 0;
    const int result = inflate(&state_->stream, Z_BLOCK);
    if (result != Z_OK && result != Z_BUF_ERROR) {
      return false;
    }
  }
  state_->in_member = true;
  return header.done == 1;
}

std::optional<size_t> GzipReader::Read(char* buffer, size_t capacity) {
  State& state = *state_;
  state.stream.next_out = reinterpret_cast<Bytef*>(buffer);
  state.stream.avail_out = static_cast<uInt>(capacity);
  while (state.stream.avail_out == capacity) {
    if (!Fill() && !state.in_member) {
      return state.source_broken ? std::nullopt : std::optional<size_t>(0);
    }
    if (!state.in_member) {  // another member follows
      inflateReset(&state.stream);
      state.in_member = true;
    }
    const int result = inflate(&state.stream, Z_NO_FLUSH);
    if (result == Z_STREAM_END) {
      state.in_member = false;
    } else if (result == Z_BUF_ERROR && state.source_ended) {
      return std::nullopt;
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      return std::nullopt;
    }
  }
  return capacity - state.stream.avail_out;
}

std::string GzipCompress(std::string_view plain) {
  std::string compressed;
  GzipWriter writer([&](std::string_view piece) {
    compressed += piece;
    return true;
  });
  (void)writer.Write(plain);
  (void)writer.Finish();
  return compressed;
}

std::optional<std::string> GzipExpand(std::string_view compressed, size_t limit) {
  GzipReader reader([&](char* buffer, size_t capacity) -> std::optional<size_t> {
    const size_t n = std::min(capacity, compressed.size());
    compressed.copy(buffer, n);
    compressed.remove_prefix(n);
    return n;
  });
  if (!reader.Begin()) {
    return std::nullopt;
  }
  std::string plain;
  std::vector<char> buffer(kGzipChunk);
  while (true) {
    const auto got = reader.Read(buffer.data(), buffer.size());
    if (!got || plain.size() + *got > limit) {
      return std::nullopt;
    }
    if (*got == 0) {
      return plain;
    }
    plain.append(buffer.data(), *got);
  }
}

}  // namespace e2bfs::sandbox
