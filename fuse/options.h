// The mount options: one table that parsing, `e2bfs mount --help` and the manual page are made from.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/error.h"

namespace e2bfs::fuse {

inline constexpr std::string_view kNoCache = "none";  // as OptionValues::cache_directory

// Values of -o, in the words of the table. What is unset takes the default of the layer it belongs to (or the
// environment's value of the official SDKs' variables).
struct OptionValues {
  // who may do what
  bool read_only = false;
  bool allow_other = false;
  bool allow_root = false;
  bool default_permissions = false;
  std::optional<int64_t> uid, gid;
  std::optional<int64_t> umask;  // 0..0777
  std::string user;              // the sandbox's user; empty: the template's default
  std::string ids = "shown";     // or "real": the sandbox's owners, groups and inode numbers
  std::string symlinks = "inside";

  // freshness
  std::chrono::milliseconds attribute_timeout{1000};
  std::chrono::milliseconds negative_timeout{1000};

  // time limits
  std::chrono::milliseconds operation_timeout{60'000};
  std::chrono::milliseconds transfer_timeout{600'000};
  std::chrono::milliseconds drain_timeout{60'000};
  std::chrono::milliseconds reader_idle{60'000};
  std::optional<std::chrono::milliseconds> connect_timeout, head_timeout, idle_timeout;

  // how the sandbox is asked
  std::string tier = "auto";     // or "service", "syscall"
  std::string compress = "auto"; // or "off"

  // connections
  std::string protocol = "auto";
  std::optional<int64_t> max_connections, max_connections_per_host, max_idle_connections, max_streams, max_requests,
      rate_limit;
  std::optional<std::chrono::milliseconds> idle_expiry;

  // memory and disk, in bytes
  int64_t memory = int64_t{48} << 20;
  std::string prefetch = "auto";  // or "off"
  int64_t read_ahead = int64_t{32} << 20;
  int64_t spool_size = int64_t{10} << 30;
  std::string spool_directory;
  bool writeback = false;
  std::string cache_directory;   // empty: the default one; "none": no cache on the disk
  int64_t cache_size = int64_t{2} << 30;
  std::chrono::milliseconds cache_after{60'000};

  // the sandbox's time to live
  std::optional<int64_t> sandbox_timeout_s;
  bool keep_alive = false;

  // messages
  std::string log_file;
  std::string log_level = "warning";
};

// Applies one -o argument: options separated by commas ("\," is a comma inside a value), later ones win. The error
// (kBadRequest, EINVAL) is one clear sentence that names the option.
[[nodiscard]] Result<void> ApplyMountOptions(std::string_view argument, OptionValues& options);

// What no single option can be blamed for: allow_other with allow_root, keep_alive without a time, ids=real without what it needs.
// `as_root`: whether this process is root's.
[[nodiscard]] Result<void> CheckMountOptions(const OptionValues& options, bool as_root);

// One line of the table as people read it.
struct OptionHelp {
  std::string section;  // "Who may do what"
  std::string syntax;   // "umask=OCTAL"
  std::string text;     // what it does, with unit and range
  std::string initial;  // the default, "" for flags
};

// The whole table in its order.
std::vector<OptionHelp> MountOptionHelp();

// "90", "1.5", "500ms", "2m", "1h" as a duration, plain numbers being seconds; nullopt if it is none of these.
std::optional<std::chrono::milliseconds> ParseDuration(std::string_view text);
// "4096", "64K", "64M", "10G", "1T" (powers of 1024) as bytes.
std::optional<int64_t> ParseByteCount(std::string_view text);
// Decimal digits only.
std::optional<int64_t> ParseWholeNumber(std::string_view text);

}  // namespace e2bfs::fuse
