// Values that envd::Client takes and gives. Everything that came from the server was validated (messages.h says how).
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "transport/remote_fs.h"

namespace e2bfs::transport::envd {

// One object as envd describes it (EntryInfo), with PROTOCOL.md's traps 4 and 5 resolved: type and permissions are the
// object's own, taken from the letters, never a link's target's.
struct EntryInfo {
  std::string name;            // 1..255 bytes, no '/' or NUL, not "." or ".." ("/" itself: empty)
  std::string path;            // as the server says; absolute
  std::string relative_path;   // ListDir: below the listed directory, each component checked; else empty
  FileType type = FileType::kRegular;
  uint32_t permissions = 0;    // 07777; of a link always 0777
  int64_t size = 0;            // >= 0; of a link: its text's length
  std::string owner, group;    // names, or decimal numbers where the sandbox has no name
  timespec mtime{};            // of the object itself; nanoseconds
  // False: the server sent only name, type and path (MakeDir of old envds): what is above from permissions on is not known.
  bool complete = true;
  // Links only. The fully resolved path (not the link's text!), the link's own path if it dangles; absent from old envds' dangling ones.
  std::optional<std::string> resolved_target;
  std::map<std::string, std::string> metadata;
};

enum class WatchEventType { kCreate, kWrite, kRemove, kRename, kChmod, kUnknown };

struct WatchEvent {
  WatchEventType type = WatchEventType::kUnknown;
  // Relative to the watched directory, components checked; "." is the directory itself.
  std::string name;
  std::optional<EntryInfo> entry;  // where asked for, and there
};

struct WatchRequest {
  std::string path;                // absolute
  bool recursive = false;          // ENOTSUP/kBadRequest where the envd cannot; likewise the next two
  bool include_entry = false;
  bool allow_network_mounts = false;
};

// A process by pid, or by the tag that it was started with.
struct ProcessSelector {
  uint32_t pid = 0;
  std::string tag;  // used when not empty
};

struct ProcessConfig {
  std::string command;
  std::vector<std::string> arguments;            // one at most 128 KiB - 1, all together about 2 MiB
  std::map<std::string, std::string> environment;  // added to the template's
  std::string working_directory;                 // empty: envd's choice (the user's home)
};

struct StartRequest {
  ProcessConfig process;
  std::string tag;        // optional
  bool stdin_open = false;  // keep standard input open for input; else it is empty. Before 0.3.0 it is always open.
  // The process is killed by envd when it has run so long (Connect-Timeout-Ms); 0: never.
  int64_t kill_after_ms = 0;
};

struct ProcessInfo {
  uint32_t pid = 0;
  std::string tag;
  ProcessConfig config;
};

struct ProcessEnd {
  int exit_code = 0;      // -1 when it did not exit by itself
  bool exited = false;    // false: killed by a signal
  std::string status;     // "exit status 3", "signal: killed"
  std::string error;      // what envd adds
};

struct ProcessEvent {
  enum class Kind { kStart, kStdout, kStderr, kEnd };
  Kind kind = Kind::kStart;
  uint32_t pid = 0;       // kStart
  std::string data;       // kStdout, kStderr: raw bytes, envd's chunks of up to 32 KiB
  ProcessEnd end;         // kEnd
};

// Bytes of the sandbox's root file system, memory, and processors; absent fields are 0 (they differ by version).
struct SandboxMetrics {
  int64_t timestamp_seconds = 0;
  int64_t disk_used = 0, disk_total = 0;
  int64_t mem_used = 0, mem_total = 0, mem_cache = 0;
  int cpu_count = 0;
  double cpu_used_percent = 0;
};

// What POST /files and /files/compose answer for each file.
struct WrittenFile {
  std::string name, path;
  std::map<std::string, std::string> metadata;
};

}  // namespace e2bfs::transport::envd
