#include "fuse/options.h"

#include <fmt/core.h>
#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <variant>

namespace e2bfs::fuse {
namespace {

using std::chrono::milliseconds;

// How the text after '=' is read.
enum class Form { kFlag, kClearFlag, kAccepted, kNumber, kOctal, kUser, kGroup, kDuration, kBytes, kChoice, kText, kPath };

using OptionTarget =
    std::variant<std::monostate, bool OptionValues::*, int64_t OptionValues::*, std::optional<int64_t> OptionValues::*,
                 milliseconds OptionValues::*, std::optional<milliseconds> OptionValues::*, std::string OptionValues::*>;

struct OptionRow {
  const char* section;
  const char* name;
  Form form;
  const char* placeholder;  // for kChoice: the choices, separated by '|'
  OptionTarget target;
  int64_t low, high;        // numbers; bytes; milliseconds
  const char* initial;      // the default in words; null: read from a fresh OptionValues
  const char* text;
};

constexpr int64_t kMaxNumber = 1'000'000;
constexpr int64_t kHour = 3'600'000;
constexpr int64_t kDay = 24 * kHour;
constexpr int64_t kKiB = 1024;
constexpr int64_t kMaxBytes = int64_t{1} << 50;

constexpr char kWho[] = "Who may do what";
constexpr char kFresh[] = "Freshness";
constexpr char kTime[] = "Time limits (seconds, or with a unit: 500ms, 90s, 2m, 1h)";
constexpr char kConnections[] = "Connections";
constexpr char kSpace[] = "Memory and disk (bytes, or with a unit: 64M, 10G)";
constexpr char kLife[] = "The sandbox's time to live";
constexpr char kMessages[] = "Messages";

const std::vector<OptionRow>& Table() {
  using M = OptionValues;
  static const std::vector<OptionRow> rows = {
      {kWho, "ro", Form::kFlag, "", &M::read_only, 0, 0, "", "Nothing can be changed through the mount."},
      {kWho, "rw", Form::kClearFlag, "", &M::read_only, 0, 0, "", "The opposite, and the default."},
      {kWho, "allow_other", Form::kFlag, "", &M::allow_other, 0, 0, "",
       "Other local users may use the mount too. For an ordinary user, user_allow_other has to be set in /etc/fuse.conf."},
      {kWho, "allow_root", Form::kFlag, "", &M::allow_root, 0, 0, "",
       "root may use the mount too, and nobody else (others can find out which names there are, and attributes that the kernel knows). The kernel then asks for "
       "attributes each time. The same condition."},
      {kWho, "default_permissions", Form::kFlag, "", &M::default_permissions, 0, 0, "",
       "The kernel checks mode bits before it asks. Useful with allow_other."},
      {kWho, "uid", Form::kUser, "USER", &M::uid, 0, UINT32_MAX - 1, "the mounting user",
       "Name or number of the local user that files are shown as owned by."},
      {kWho, "gid", Form::kGroup, "GROUP", &M::gid, 0, UINT32_MAX - 1, "the mounting user's group",
       "Name or number of the local group that files are shown as owned by."},
      {kWho, "umask", Form::kOctal, "OCTAL", &M::umask, 0, 0777, "000",
       "Permission bits that are taken away from what is shown."},
      {kWho, "nosuid", Form::kAccepted, "", {}, 0, 0, "", "Always on: setuid bits have no effect here."},
      {kWho, "nodev", Form::kAccepted, "", {}, 0, 0, "", "Always on: device files do not work here."},
      {kWho, "user", Form::kText, "NAME", &M::user, 0, 0, "the template's default user",
       "The user of the sandbox that everything is done as."},
      {kWho, "ids", Form::kChoice, "shown|real", &M::ids, 0, 0, nullptr,
       "shown: everything is shown as owned by the mounting user (uid=, gid=), and chown to another owner is refused. real: the "
       "sandbox's own owners and groups; the kernel checks each local user's permissions by them, and new objects belong to "
       "whoever makes them. Needs user=root,allow_other,default_permissions, and root here."},
      {kWho, "symlinks", Form::kChoice, "inside|raw|refuse", &M::symlinks, 0, 0, nullptr,
       "What a symbolic link of the sandbox shows. inside: links that stay below the mount work here, others dangle "
       "visibly; raw: the text as it is, so that an absolute link leads into this machine's tree; refuse: reading a "
       "link fails."},

      {kFresh, "attr_timeout", Form::kDuration, "TIME", &M::attribute_timeout, 0, kHour, nullptr,
       "How long attributes, listings and link targets are believed without asking again."},
      {kFresh, "negative_timeout", Form::kDuration, "TIME", &M::negative_timeout, 0, kHour, nullptr,
       "How long a name that was not there is believed to be absent."},

      {kTime, "operation_timeout", Form::kDuration, "TIME", &M::operation_timeout, 100, kDay, nullptr,
       "For one operation on names or attributes, retries included."},
      {kTime, "transfer_timeout", Form::kDuration, "TIME", &M::transfer_timeout, 100, kDay, nullptr,
       "For one read of a file, retries included, or for an upload that does not get on; one that gets on has no limit in all."},
      {kTime, "connect_timeout", Form::kDuration, "TIME", &M::connect_timeout, 10, kHour, "10",
       "To reach the sandbox's host, TLS included."},
      {kTime, "head_timeout", Form::kDuration, "TIME", &M::head_timeout, 10, kHour, "60",
       "From a request to the head of its answer."},
      {kTime, "idle_timeout", Form::kDuration, "TIME", &M::idle_timeout, 10, kHour, "60",
       "Between two pieces of an answer, counted only while waiting for the network."},
      {kTime, "reader_idle", Form::kDuration, "TIME", &M::reader_idle, 10, kDay, nullptr,
       "A download that nobody reads from is dropped after it, and resumed when it is read again."},
      {kTime, "drain_timeout", Form::kDuration, "TIME", &M::drain_timeout, 0, kDay, nullptr,
       "At SIGTERM, or after a plain umount: how long unsent data may take. What then remains is put aside in the state directory, never dropped."},

      {kConnections, "tier", Form::kChoice, "auto|service|syscall", &M::tier, 0, 0, nullptr,
       "How operations are done in the sandbox. syscall: by a process there that makes the system calls, which is exact; needs perl there, and a "
       "recent envd. service: by envd's own services, which every sandbox has. auto: the first where it starts, else the second; "
       "e2bfs status says which, and why."},
      {kConnections, "compress", Form::kChoice, "auto|off", &M::compress, 0, 0, nullptr,
       "auto: content is compressed on its way to the sandbox where a sample of it shrinks, and the network is slower than gzip; off: never."},
      {kConnections, "protocol", Form::kChoice, "auto|http1", &M::protocol, 0, 0, nullptr,
       "auto: HTTP/2 where the other side offers it, and HTTP/1.1 beside it for large content; http1: no HTTP/2."},
      {kConnections, "max_connections", Form::kNumber, "N", &M::max_connections, 1, kMaxNumber,
       "E2B_MAX_CONNECTIONS, else 2000", "Connections in all."},
      {kConnections, "max_connections_per_host", Form::kNumber, "N", &M::max_connections_per_host, 1, kMaxNumber, "21",
       "Connections to one host."},
      {kConnections, "max_idle_connections", Form::kNumber, "N", &M::max_idle_connections, 0, kMaxNumber,
       "E2B_MAX_KEEPALIVE_CONNECTIONS, else 20", "Connections kept open for the next request."},
      {kConnections, "idle_expiry", Form::kDuration, "TIME", &M::idle_expiry, 0, kDay, "E2B_KEEPALIVE_EXPIRY, else 300",
       "An unused connection is closed after it."},
      {kConnections, "max_streams", Form::kNumber, "N", &M::max_streams, 1, 10'000, "100",
       "Requests at once on one HTTP/2 connection, or fewer if the other side says so."},
      {kConnections, "max_requests", Form::kNumber, "N", &M::max_requests, 1, kMaxNumber, "2000",
       "Requests at once in all; more of them wait."},
      {kConnections, "rate_limit", Form::kNumber, "N", &M::rate_limit, 0, 100 * kMaxNumber, "50000",
       "Requests in 60 seconds, kept below the platform's own limit; 0 for no limit."},

      {kSpace, "memory", Form::kBytes, "SIZE", &M::memory, int64_t{1} << 20, kMaxBytes, nullptr,
       "For content that was read ahead, all files together."},
      {kSpace, "read_ahead", Form::kBytes, "SIZE", &M::read_ahead, 128 * kKiB, int64_t{1} << 30, nullptr,
       "How far at most one file is read ahead."},
      {kSpace, "prefetch", Form::kChoice, "auto|off", &M::prefetch, 0, 0, nullptr,
       "auto: listings and small files that a program comes to next, as find and grep -r do, are asked for ahead, less so where they are not used; "
       "off: never. Small files are asked for on the syscall tier only."},
      {kSpace, "spool_dir", Form::kPath, "DIR", &M::spool_directory, 0, 0, "spool in the state directory",
       "Where data waits until it is sent. Has to belong to the mounting user, with nobody else allowed in."},
      {kSpace, "spool_size", Form::kBytes, "SIZE", &M::spool_size, int64_t{1} << 20, kMaxBytes, nullptr,
       "How much may wait there."},
      {kSpace, "writeback", Form::kFlag, "", &M::writeback, 0, 0, "",
       "close returns when what was written is in the spool directory, and what is made in directories that this mount made is answered here; all is sent soon after, many small "
       "files at once. A program in the sandbox sees it then. fsync and e2bfs flush wait for it. What was not sent when the mount was killed is sent by the next one."},
      {kSpace, "cache", Form::kPath, "DIR|none", &M::cache_directory, 0, 0, "$XDG_CACHE_HOME/e2bfs, else ~/.cache/e2bfs",
       "Where content that was read is kept, for this mount and the next ones. Mounts may share it. Has to belong to the mounting user, with nobody else allowed in; none: "
       "nothing is kept on this machine's disk. See e2bfs cache."},
      {kSpace, "cache_size", Form::kBytes, "SIZE", &M::cache_size, int64_t{1} << 20, kMaxBytes, nullptr,
       "How much is kept there at most, and never more than a quarter of what is free; what was not used for longest goes first."},
      {kSpace, "cache_after", Form::kDuration, "TIME", &M::cache_after, 2'000, kDay, nullptr,
       "Only files that have not changed for so long, as the sandbox's clock says, are kept. What a program in the sandbox stores through mmap may show in no time of the file for half a minute."},

      {kLife, "timeout", Form::kNumber, "SECONDS", &M::sandbox_timeout_s, 1, 30 * 86'400, "left as it is; 300 for a sandbox that has to be resumed",
       "Extends the sandbox's time to live to so many seconds from now. It is never shortened."},
      {kLife, "keep_alive", Form::kFlag, "", &M::keep_alive, 0, 0, "",
       "Goes on extending it by timeout= as long as the mount is there. That costs what a running sandbox costs."},

      {kMessages, "log_file", Form::kPath, "FILE", &M::log_file, 0, 0,
       "stderr with -f, e2bfs.log in the state directory otherwise", "Where messages go. Created with mode 0600."},
      {kMessages, "log_level", Form::kChoice, "error|warning|info|debug", &M::log_level, 0, 0, nullptr,
       "How much is said. -d is log_level=debug."},
  };
  return rows;
}

tl::unexpected<Error> BadOption(std::string message) {
  return Failure(ErrorKind::kBadRequest, EINVAL, std::move(message));
}

std::string SecondsText(milliseconds value) {
  if (value.count() % 1000 == 0) return fmt::format("{}", value.count() / 1000);
  return fmt::format("{}ms", value.count());
}

std::string BytesText(int64_t value) {
  constexpr const char* kUnits[] = {"", "K", "M", "G", "T"};
  int unit = 0;
  while (unit < 4 && value != 0 && value % 1024 == 0) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", value, kUnits[unit]);
}

std::optional<int64_t> UserNumber(const std::string& text) {
  if (auto number = ParseWholeNumber(text)) return number;
  const passwd* entry = getpwnam(text.c_str());  // before any thread starts
  if (entry == nullptr) return std::nullopt;
  return entry->pw_uid;
}

std::optional<int64_t> GroupNumber(const std::string& text) {
  if (auto number = ParseWholeNumber(text)) return number;
  const group* entry = getgrnam(text.c_str());
  if (entry == nullptr) return std::nullopt;
  return entry->gr_gid;
}

bool IsChoice(std::string_view choices, std::string_view value) {
  if (value.empty()) return false;
  while (!choices.empty()) {
    const size_t bar = choices.find('|');
    if (choices.substr(0, bar) == value) return true;
    if (bar == std::string_view::npos) break;
    choices.remove_prefix(bar + 1);
  }
  return false;
}

std::optional<int64_t> NumberOf(const OptionRow& row, const std::string& value) {
  switch (row.form) {
    case Form::kNumber: return ParseWholeNumber(value);
    case Form::kUser: return UserNumber(value);
    case Form::kGroup: return GroupNumber(value);
    case Form::kBytes: return ParseByteCount(value);
    case Form::kDuration: {
      auto duration = ParseDuration(value);
      if (!duration) return std::nullopt;
      return duration->count();
    }
    case Form::kOctal: {
      uint32_t number = 0;
      auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number, 8);
      if (value.empty() || error != std::errc() || end != value.data() + value.size()) return std::nullopt;
      return number;
    }
    default: return std::nullopt;
  }
}

std::string RangeText(const OptionRow& row) {
  switch (row.form) {
    case Form::kOctal: return "an octal number up to 777";
    case Form::kUser: return "a user of this machine, by name or number";
    case Form::kGroup: return "a group of this machine, by name or number";
    case Form::kDuration:
      return fmt::format("a time from {} to {} seconds, such as 30, 500ms or 2m", SecondsText(milliseconds(row.low)),
                         SecondsText(milliseconds(row.high)));
    case Form::kBytes: return fmt::format("a size from {} to {}, such as 64M", BytesText(row.low), BytesText(row.high));
    default: return fmt::format("a whole number from {} to {}", row.low, row.high);
  }
}

void StoreNumber(const OptionRow& row, int64_t number, OptionValues& options) {
  if (auto* plain = std::get_if<int64_t OptionValues::*>(&row.target)) options.*(*plain) = number;
  if (auto* maybe = std::get_if<std::optional<int64_t> OptionValues::*>(&row.target)) options.*(*maybe) = number;
  if (auto* time = std::get_if<milliseconds OptionValues::*>(&row.target)) options.*(*time) = milliseconds(number);
  if (auto* maybe = std::get_if<std::optional<milliseconds> OptionValues::*>(&row.target)) {
    options.*(*maybe) = milliseconds(number);
  }
}

Result<void> ApplyOne(const OptionRow& row, const std::optional<std::string>& value, OptionValues& options) {
  switch (row.form) {
    case Form::kFlag:
    case Form::kClearFlag:
    case Form::kAccepted:
      if (value) return BadOption(fmt::format("mount option {} takes no value", row.name));
      if (row.form != Form::kAccepted) options.*std::get<bool OptionValues::*>(row.target) = row.form == Form::kFlag;
      return {};
    default: break;
  }
  if (!value || value->empty()) {
    return BadOption(fmt::format("mount option {} needs a value: {}={}", row.name, row.name, row.placeholder));
  }
  switch (row.form) {
    case Form::kChoice:
      if (!IsChoice(row.placeholder, *value)) {
        return BadOption(fmt::format("mount option {}={}: must be one of {}", row.name, *value, row.placeholder));
      }
      [[fallthrough]];
    case Form::kText:
    case Form::kPath: options.*std::get<std::string OptionValues::*>(row.target) = *value; return {};
    default: break;
  }
  const std::optional<int64_t> number = NumberOf(row, *value);
  if (!number || *number < row.low || *number > row.high) {
    return BadOption(fmt::format("mount option {}={}: must be {}", row.name, *value, RangeText(row)));
  }
  StoreNumber(row, *number, options);
  return {};
}

std::string InitialText(const OptionRow& row) {
  if (row.initial != nullptr) return row.initial;
  const OptionValues fresh;
  if (auto* text = std::get_if<std::string OptionValues::*>(&row.target)) return fresh.*(*text);
  if (auto* time = std::get_if<milliseconds OptionValues::*>(&row.target)) return SecondsText(fresh.*(*time));
  if (auto* number = std::get_if<int64_t OptionValues::*>(&row.target)) {
    return row.form == Form::kBytes ? BytesText(fresh.*(*number)) : fmt::format("{}", fresh.*(*number));
  }
  return "";
}

// The pieces between commas, with "\," and "\\" resolved.
std::vector<std::string> SplitOptionList(std::string_view text) {
  std::vector<std::string> pieces(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() && (text[i + 1] == ',' || text[i + 1] == '\\')) {
      pieces.back() += text[++i];
    } else if (text[i] == ',') {
      pieces.emplace_back();
    } else {
      pieces.back() += text[i];
    }
  }
  return pieces;
}

}  // namespace

std::optional<int64_t> ParseWholeNumber(std::string_view text) {
  int64_t number = 0;
  if (text.empty() || text[0] == '-' || text[0] == '+') return std::nullopt;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<milliseconds> ParseDuration(std::string_view text) {
  double number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (text.empty() || text[0] == '-' || error != std::errc() || !std::isfinite(number)) return std::nullopt;
  const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  double factor = 0;
  if (unit.empty() || unit == "s") {
    factor = 1000;
  } else if (unit == "ms") {
    factor = 1;
  } else if (unit == "m" || unit == "min") {
    factor = 60'000;
  } else if (unit == "h") {
    factor = kHour;
  } else {
    return std::nullopt;
  }
  const double result = number * factor;
  if (result > 1e12) return std::nullopt;
  return milliseconds(static_cast<int64_t>(std::llround(result)));
}

std::optional<int64_t> ParseByteCount(std::string_view text) {
  int shift = 0;
  if (!text.empty()) {
    switch (text.back()) {
      case 'k': case 'K': shift = 10; break;
      case 'm': case 'M': shift = 20; break;
      case 'g': case 'G': shift = 30; break;
      case 't': case 'T': shift = 40; break;
      default: break;
    }
  }
  if (shift != 0) text.remove_suffix(1);
  const std::optional<int64_t> number = ParseWholeNumber(text);
  if (!number || *number > (INT64_MAX >> shift)) return std::nullopt;
  return *number << shift;
}

Result<void> ApplyMountOptions(std::string_view argument, OptionValues& options) {
  for (const std::string& piece : SplitOptionList(argument)) {
    if (piece.empty()) continue;  // "ro," is common in generated lists
    const size_t equals = piece.find('=');
    const std::string name = piece.substr(0, equals);
    std::optional<std::string> value;
    if (equals != std::string::npos) value = piece.substr(equals + 1);
    const OptionRow* found = nullptr;
    for (const OptionRow& row : Table()) {
      if (name == row.name) found = &row;
    }
    if (found == nullptr) {
      return BadOption(fmt::format("unknown mount option '{}' (see e2bfs mount --help)", name));
    }
    if (auto outcome = ApplyOne(*found, value, options); !outcome) return outcome;
  }
  return {};
}

Result<void> CheckMountOptions(const OptionValues& options, bool as_root) {
  if (options.allow_other && options.allow_root) {
    return BadOption("mount options allow_other and allow_root exclude each other");
  }
  if (options.ids == "real") {
    if (options.user != "root" || !options.allow_other || !options.default_permissions) {
      return BadOption("mount option ids=real needs user=root,allow_other,default_permissions");
    }
    if (!as_root) return BadOption("mount option ids=real needs root on this machine");
    if (options.uid || options.gid || options.umask) {
      return BadOption("mount option ids=real shows the sandbox's own: it excludes uid=, gid= and umask=");
    }
    if (options.tier == "service") return BadOption("mount option ids=real needs the syscall tier, and tier=service excludes it");
  }
  if (options.keep_alive && !options.sandbox_timeout_s) {
    return BadOption("mount option keep_alive needs timeout=SECONDS: how far ahead the time to live is kept");
  }
  if (options.keep_alive && *options.sandbox_timeout_s < 30) {
    return BadOption("mount option keep_alive needs a timeout of at least 30 seconds");
  }
  return {};
}

std::vector<OptionHelp> MountOptionHelp() {
  std::vector<OptionHelp> lines;
  for (const OptionRow& row : Table()) {
    OptionHelp line;
    line.section = row.section;
    line.syntax = row.name;
    if (*row.placeholder != '\0') line.syntax += std::string("=") + row.placeholder;
    line.text = row.text;
    line.initial = InitialText(row);
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace e2bfs::fuse
