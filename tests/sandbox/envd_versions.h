// What an envd of a given version can do, as far as the double plays it. Taken from the history of
// packages/envd in e2b-dev/infra: the version in which a change was first released.
#pragma once

#include <string>

namespace e2bfs::sandbox {

struct EnvdCapabilities {
  bool recursive_watch = true;      // 0.1.4
  bool default_user = true;         // 0.4.0: a request may leave the user out
  bool close_stdin = true;          // 0.5.2
  bool content_disposition = true;  // 0.5.1
  bool gzip_files = true;        // 0.5.3: both ways; Last-Modified is the file's time and not the request's
  bool wrapped_commands = true;  // 0.5.4: run by /bin/sh and nice: a missing command is exit 127
  bool modern_entries = true;  // 0.5.5: dangling links have a target and no mode, MakeDir answers attributes
  bool entry_attributes = true;  // 0.2.5: size, mode, owner, times
  bool compose = true;           // 0.5.5
  bool raw_upload = true;        // 0.5.7: application/octet-stream
  bool output_logged = false;    // before 0.5.27
  bool metadata = true;          // 0.6.2
  bool watch_entries = true;     // 0.6.3
  bool network_watches = true;   // 0.6.4: can be allowed; refused before
  bool retained_exits = true;    // 0.6.12: Connect within 30 s of the end still tells it

  // `version` is "major.minor.patch"; what cannot be read counts as the newest.
  static EnvdCapabilities Of(const std::string& version);
};

}  // namespace e2bfs::sandbox
