// gzip in one piece and as a stream, over zlib.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace e2bfs::sandbox {

std::string GzipCompress(std::string_view plain);
// Nullopt if it is not one whole gzip stream, or longer than `limit` when plain.
std::optional<std::string> GzipExpand(std::string_view compressed, size_t limit = size_t{256} << 20);

// Compresses piece by piece; each piece of output goes to `sink`, which returns false to stop.
class GzipWriter {
 public:
  using Sink = std::function<bool(std::string_view)>;
  explicit GzipWriter(Sink sink);
  ~GzipWriter();
  GzipWriter(const GzipWriter&) = delete;
  GzipWriter& operator=(const GzipWriter&) = delete;
  bool Write(std::string_view plain);
  bool Finish();

 private:
  bool Pump(std::string_view plain, bool finish);
  struct State;
  std::unique_ptr<State> state_;
  Sink sink_;
};

// Expands what `source` gives; members that follow one another are joined, as Go's reader does.
class GzipReader {
 public:
  // Up to `capacity` bytes, 0 at the end; nullopt: broken.
  using Source = std::function<std::optional<size_t>(char* buffer, size_t capacity)>;
  explicit GzipReader(Source source);
  ~GzipReader();
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;
  // Reads the first header: false if the data does not begin as gzip.
  bool Begin();
  // Like Source. Nullopt: the source broke, or the data is damaged or ends early.
  std::optional<size_t> Read(char* buffer, size_t capacity);

 private:
  bool Fill();
  struct State;
  std::unique_ptr<State> state_;
  Source source_;
};

}  // namespace e2bfs::sandbox
