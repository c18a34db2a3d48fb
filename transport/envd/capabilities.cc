#include "transport/envd/capabilities.h"

#include <charconv>

namespace e2bfs::transport::envd {
namespace {

struct CapabilityRow {
  const char* name;
  bool Capabilities::*flag;
  Version since;
};

// The table. Where the SDKs have no constant, the version is the one that infra's commit set (gzip: #1811, compose: #2043).
constexpr CapabilityRow kCapabilityTable[] = {
    {"recursive-watch", &Capabilities::recursive_watch, {0, 1, 4}},
    {"start-without-stdin", &Capabilities::start_without_stdin, {0, 3, 0}},
    {"default-user", &Capabilities::default_user, {0, 4, 0}},
    {"close-stdin", &Capabilities::close_stdin, {0, 5, 2}},
    {"gzip-upload", &Capabilities::gzip_upload, {0, 5, 3}},
    {"gzip-download", &Capabilities::gzip_download, {0, 5, 3}},
    {"compose", &Capabilities::compose, {0, 5, 5}},
    {"octet-stream-upload", &Capabilities::octet_stream_upload, {0, 5, 7}},
    {"private-streams", &Capabilities::private_streams, {0, 5, 27}},
    {"metadata", &Capabilities::metadata, {0, 6, 2}},
    {"watch-entry", &Capabilities::watch_entry, {0, 6, 3}},
    {"watch-network-mounts", &Capabilities::watch_network_mounts, {0, 6, 4}},
};

constexpr int kNewest = 999'999;

}  // namespace

Version Version::Parse(std::string_view text) {
  if (text == "debug") return {kNewest, 0, 0};
  if (!text.empty() && text.front() == 'v') text.remove_prefix(1);
  int parts[3] = {0, 0, 0};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (int i = 0; i < 3; ++i) {
    const auto [next, error] = std::from_chars(at, end, parts[i]);
    if (error != std::errc() || parts[i] < 0) return {};
    at = next;
    if (i < 2) {
      if (at == end || *at != '.') return {};
      ++at;
    }
  }
  if (at != end && *at != '-' && *at != '+') return {};
  return {parts[0], parts[1], parts[2]};
}

Capabilities Capabilities::ForVersion(std::string_view version) {
  Capabilities capabilities;
  capabilities.version_text = version;
  capabilities.version = Version::Parse(version);
  for (const auto& row : kCapabilityTable) capabilities.*row.flag = capabilities.version >= row.since;
  return capabilities;
}

std::vector<std::string> Capabilities::Names(bool available) const {
  std::vector<std::string> names;
  for (const auto& row : kCapabilityTable) {
    if (this->*row.flag == available) names.emplace_back(row.name);
  }
  return names;
}

}  // namespace e2bfs::transport::envd
