// Compression: whether an upload's content is compressed on its way. Any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string_view>

namespace e2bfs::transport::envd {

class Compression {
 public:
  explicit Compression(bool enabled) : enabled_(enabled) {}
  // Whether content that begins so gets there sooner: a sample shrinks, and the network, as far as earlier uploads told, is slower than gzip.
  bool Pays(std::string_view beginning) const;
  // An upload that ended well: bytes on the wire, how long the network was waited for, how long it took to compress them.
  void Note(int64_t wire_bytes, std::chrono::nanoseconds waited, std::chrono::nanoseconds compressed);

 private:
  const bool enabled_;
  std::atomic<int64_t> wire_rate_{0};  // bytes a second; 0: not known yet
};

}  // namespace e2bfs::transport::envd
