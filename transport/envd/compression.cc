#include "transport/envd/compression.h"

#include <algorithm>

#include "transport/http/client.h"

namespace e2bfs::transport::envd {
namespace {

constexpr size_t kSampleBytes = 4096;
// Of text, on one slow core beside others: less than zlib's level 1 does alone.
constexpr int64_t kGzipRate = 50 << 20;
constexpr int64_t kTellingBytes = 256 << 10;  // fewer tell of round trips, not of the rate

}  // namespace

bool Compression::Pays(std::string_view beginning) const {
  if (!enabled_ || beginning.size() < kSampleBytes || wire_rate_.load(std::memory_order_relaxed) >= kGzipRate) return false;
  const std::string_view sample = beginning.substr((beginning.size() - kSampleBytes) / 2, kSampleBytes);
  return http::GzipCompress(sample).size() < kSampleBytes * 7 / 10;
}

void Compression::Note(int64_t wire_bytes, std::chrono::nanoseconds waited, std::chrono::nanoseconds compressed) {
  // Where gzip was what was waited for, the network is the faster one, however fast.
  const bool network = waited >= compressed;
  if (network && wire_bytes < kTellingBytes) return;
  const double seconds = std::max(std::chrono::duration<double>(waited).count(), 1e-4);
  const int64_t rate = network ? std::max<int64_t>(static_cast<int64_t>(static_cast<double>(wire_bytes) / seconds), 1) : kGzipRate;
  const int64_t before = wire_rate_.load(std::memory_order_relaxed);
  wire_rate_.store(before == 0 ? rate : (before + rate) / 2, std::memory_order_relaxed);
}

}  // namespace e2bfs::transport::envd
