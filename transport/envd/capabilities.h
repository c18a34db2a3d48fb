// What an envd can do, by its version: the one table. Templates keep the envd that they were built with, so old ones are in the
// field for years. Sources: the SDKs' versions.ts, infra's history, and the recorded answers of 0.2.11 and 0.6.13 (PROTOCOL.md).
#pragma once

#include <compare>
#include <string>
#include <string_view>
#include <vector>

namespace e2bfs::transport::envd {

struct Version {
  int major = 0, minor = 0, patch = 0;
  friend auto operator<=>(const Version&, const Version&) = default;

  // "0.6.13", "v0.6.13", "0.6.13-rc1"; "debug" is newer than all. What cannot be read is 0.0.0: the least is assumed.
  static Version Parse(std::string_view text);
};

struct Capabilities {
  std::string version_text;        // as the platform said
  Version version;
  bool recursive_watch = false;    // 0.1.4
  bool start_without_stdin = false;  // 0.3.0: `"stdin": false` is understood
  bool default_user = false;       // 0.4.0: requests may name no user
  bool close_stdin = false;        // 0.5.2
  bool octet_stream_upload = false;  // 0.5.7; before: multipart
  bool gzip_upload = false;        // 0.5.3
  bool gzip_download = false;      // 0.5.3: GET with Accept-Encoding: gzip is compressed (and so works for /proc)
  bool compose = false;            // 0.5.5: POST /files/compose
  bool private_streams = false;    // 0.5.27: standard output is not logged, a lost listener blocks nobody (the syscall tier needs it)
  bool metadata = false;           // 0.6.2
  bool watch_entry = false;        // 0.6.3: includeEntry
  bool watch_network_mounts = false;  // 0.6.4

  // `version`: as the control plane reports it, or "debug" (newest).
  static Capabilities ForVersion(std::string_view version);
  // Names of what it can do and of what it cannot, in the table's order; for status.
  std::vector<std::string> Names(bool available) const;
};

}  // namespace e2bfs::transport::envd
