#include "tests/sandbox/envd_versions.h"

#include <array>
#include <cstdio>

namespace e2bfs::sandbox {

EnvdCapabilities EnvdCapabilities::Of(const std::string& version) {
  std::array<int, 3> has{};
  EnvdCapabilities can;
  if (std::sscanf(version.c_str(), "%d.%d.%d", &has[0], &has[1], &has[2]) != 3) {
    return can;
  }
  const auto since = [&](int major, int minor, int patch) {
    return has >= std::array<int, 3>{major, minor, patch};
  };
  can.recursive_watch = since(0, 1, 4);
  can.entry_attributes = since(0, 2, 5);
  can.default_user = since(0, 4, 0);
  can.content_disposition = since(0, 5, 1);
  can.close_stdin = since(0, 5, 2);
  can.gzip_files = since(0, 5, 3);
  can.wrapped_commands = since(0, 5, 4);
  can.modern_entries = since(0, 5, 5);
  can.compose = since(0, 5, 5);
  can.raw_upload = since(0, 5, 7);
  can.output_logged = !since(0, 5, 27);
  can.metadata = since(0, 6, 2);
  can.watch_entries = since(0, 6, 3);
  can.network_watches = since(0, 6, 4);
  can.retained_exits = since(0, 6, 12);
  return can;
}

}  // namespace e2bfs::sandbox
