#include "transport/envd/messages.h"

#include <algorithm>
#include <charconv>
#include <csignal>
#include <nlohmann/json.hpp>

#include "transport/envd/base64.h"

namespace e2bfs::transport::envd {
namespace {

using EnvdJson = nlohmann::json;

tl::unexpected<Error> BadMessage(std::string what) {
  return Failure(ErrorKind::kProtocol, EIO, "envd's answer: " + std::move(what));
}

// --- out

Result<void> CheckText(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return Errno(EINVAL, "NUL in a name or an argument");
  if (!IsUtf8(text)) return Errno(EILSEQ, "a name or an argument that is not UTF-8 cannot be sent as JSON");
  return {};
}

// Every string in it is known to be UTF-8; were one not, this would still not throw.
std::string DumpJson(const EnvdJson& message) {
  return message.dump(-1, ' ', false, EnvdJson::error_handler_t::replace);
}

Result<EnvdJson> SelectorJson(const ProcessSelector& process) {
  if (auto good = CheckText(process.tag); !good) return Forward(good.error());
  if (!process.tag.empty()) return EnvdJson{{"tag", process.tag}};
  return EnvdJson{{"pid", process.pid}};
}

// --- in

// A whole document that is an object, or discarded.
EnvdJson ParseObject(std::string_view text) {
  EnvdJson message = EnvdJson::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) return EnvdJson(EnvdJson::value_t::discarded);
  return message;
}

// The member, or null where it is absent or null.
const EnvdJson& Member(const EnvdJson& object, const char* name) {
  static const EnvdJson kNull;
  const auto found = object.find(name);
  return found == object.end() ? kNull : *found;
}

// Each Take... leaves `out` alone where the field is absent and returns false for a wrong type or value.
bool TakeString(const EnvdJson& object, const char* name, std::string& out) {
  const EnvdJson& value = Member(object, name);
  if (value.is_null()) return true;
  if (!value.is_string()) return false;
  out = value.get_ref<const std::string&>();
  return true;
}

bool TakeBool(const EnvdJson& object, const char* name, bool& out) {
  const EnvdJson& value = Member(object, name);
  if (value.is_null()) return true;
  if (!value.is_boolean()) return false;
  out = value.get<bool>();
  return true;
}

// protobuf's JSON: 64-bit integers are strings, but numbers are to be read too.
bool TakeInteger(const EnvdJson& object, const char* name, int64_t least, int64_t most, int64_t& out) {
  const EnvdJson& value = Member(object, name);
  if (value.is_null()) return true;
  int64_t number = 0;
  if (value.is_number_unsigned()) {
    if (value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return false;
    number = static_cast<int64_t>(value.get<uint64_t>());
  } else if (value.is_number_integer()) {
    number = value.get<int64_t>();
  } else if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || text.empty() || end != text.data() + text.size()) return false;
  } else {
    return false;
  }
  if (number < least || number > most) return false;
  out = number;
  return true;
}

bool TakeStringMap(const EnvdJson& object, const char* name, std::map<std::string, std::string>& out) {
  const EnvdJson& value = Member(object, name);
  if (value.is_null()) return true;
  if (!value.is_object()) return false;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return false;
    out[key] = text.get<std::string>();
  }
  return true;
}

constexpr size_t kMaxPathBytes = size_t{64} << 10;  // an honest one is below PATH_MAX; a mount through links may be longer

// One EntryInfo; the error says what is wrong with it.
Result<EntryInfo> ConvertEntry(const EnvdJson& json) {
  if (!json.is_object()) return BadMessage("an entry that is no object");
  EntryInfo entry;
  std::string type, letters, modified, target;
  int64_t size = 0;
  if (!TakeString(json, "name", entry.name) || !TakeString(json, "path", entry.path) || !TakeString(json, "type", type) ||
      !TakeString(json, "permissions", letters) || !TakeString(json, "owner", entry.owner) ||
      !TakeString(json, "group", entry.group) || !TakeString(json, "modifiedTime", modified) ||
      !TakeString(json, "symlinkTarget", target) || !TakeStringMap(json, "metadata", entry.metadata)) {
    return BadMessage("an entry's field of a wrong type");
  }
  if (!TakeInteger(json, "size", 0, INT64_MAX, size)) return BadMessage("an entry's impossible size");
  if (entry.path.size() > kMaxPathBytes || entry.path.find('\0') != std::string::npos || entry.path.empty() ||
      entry.path.front() != '/') {
    return BadMessage("an entry's impossible path");
  }
  if (entry.name == "/" && CleanAbsolutePath(entry.path) == "/") {
    entry.name.clear();
  } else if (!IsSafeName(entry.name)) {
    return BadMessage("an entry's impossible name");
  }
  if (letters.empty()) {
    // Old envds answer MakeDir with name, type and path only.
    entry.complete = false;
    entry.type = type == "FILE_TYPE_DIRECTORY" ? FileType::kDirectory
                 : type == "FILE_TYPE_SYMLINK" ? FileType::kSymlink
                                               : FileType::kRegular;
    return entry;
  }
  const auto parsed = ParsePermissionLetters(letters);
  if (!parsed) return BadMessage("an entry's impossible permissions");
  entry.type = parsed->type;
  entry.permissions = entry.type == FileType::kSymlink ? 0777 : parsed->permissions;
  entry.size = size;
  if (!modified.empty()) {
    const auto time = ParseTimestamp(modified);
    if (!time) return BadMessage("an entry's impossible time");
    entry.mtime = *time;
  }
  if (entry.type == FileType::kSymlink && !Member(json, "symlinkTarget").is_null()) {
    if (target.find('\0') != std::string::npos || target.size() > kMaxPathBytes) {
      return BadMessage("a link's impossible target");
    }
    entry.resolved_target = std::move(target);
  }
  return entry;
}

// The order of a walk: a directory's content directly behind it, names bytewise.
bool WalksBefore(std::string_view a, std::string_view b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    const auto rank = [](char c) { return c == '/' ? -1 : static_cast<int>(static_cast<unsigned char>(c)); };
    return rank(x) < rank(y);
  });
}

Result<void> PlaceBelow(EntryInfo& entry, std::string_view root, uint32_t depth) {
  std::string_view rest = entry.path;
  if (root != "/") {
    if (!rest.starts_with(root)) return BadMessage("an entry outside of the listed directory");
    rest.remove_prefix(root.size());
  }
  if (!rest.starts_with('/')) return BadMessage("an entry outside of the listed directory");
  rest.remove_prefix(1);
  if (!IsSafeRelativePath(rest)) return BadMessage("an entry's impossible path");
  if (static_cast<uint64_t>(std::count(rest.begin(), rest.end(), '/')) >= depth) return BadMessage("an entry deeper than asked for");
  const size_t slash = rest.rfind('/');
  if (rest.substr(slash == std::string_view::npos ? 0 : slash + 1) != entry.name) {
    return BadMessage("an entry whose path is not its name's");
  }
  entry.relative_path = rest;
  return {};
}

// Thrown out of the parser's callback, caught in DecodeListing.
struct ListingStopped {};

WatchEventType WatchTypeOf(std::string_view name) {
  if (name == "EVENT_TYPE_CREATE") return WatchEventType::kCreate;
  if (name == "EVENT_TYPE_WRITE") return WatchEventType::kWrite;
  if (name == "EVENT_TYPE_REMOVE") return WatchEventType::kRemove;
  if (name == "EVENT_TYPE_RENAME") return WatchEventType::kRename;
  if (name == "EVENT_TYPE_CHMOD") return WatchEventType::kChmod;
  return WatchEventType::kUnknown;
}

Result<WatchEvent> ConvertWatchEvent(const EnvdJson& json) {
  WatchEvent event;
  std::string type;
  if (!json.is_object() || !TakeString(json, "name", event.name) || !TakeString(json, "type", type)) {
    return BadMessage("an impossible event");
  }
  event.type = WatchTypeOf(type);
  if (event.name != "." && !IsSafeRelativePath(event.name)) return BadMessage("an event with an impossible name");
  if (const EnvdJson& entry = Member(json, "entry"); !entry.is_null()) {
    auto converted = ConvertEntry(entry);
    if (!converted) return Forward(converted.error());
    event.entry = std::move(*converted);
  }
  return event;
}

Result<std::optional<ProcessEvent>> ConvertProcessEvent(const EnvdJson& json) {
  ProcessEvent event;
  if (const EnvdJson& start = Member(json, "start"); !start.is_null()) {
    int64_t pid = 0;
    if (!start.is_object() || !TakeInteger(start, "pid", 1, UINT32_MAX, pid) || pid == 0) return BadMessage("a start without a pid");
    event.kind = ProcessEvent::Kind::kStart;
    event.pid = static_cast<uint32_t>(pid);
    return event;
  }
  if (const EnvdJson& data = Member(json, "data"); !data.is_null()) {
    if (!data.is_object()) return BadMessage("impossible output");
    for (const char* stream : {"stdout", "stderr", "pty"}) {
      const EnvdJson& text = Member(data, stream);
      if (text.is_null()) continue;
      auto bytes = text.is_string() ? Base64Decode(text.get_ref<const std::string&>()) : std::nullopt;
      if (!bytes) return BadMessage("output that is not base64");
      event.kind = std::string_view(stream) == "stderr" ? ProcessEvent::Kind::kStderr : ProcessEvent::Kind::kStdout;
      event.data = std::move(*bytes);
      return event;
    }
    return std::nullopt;  // an empty chunk: a field at its default is absent
  }
  if (const EnvdJson& end = Member(json, "end"); !end.is_null()) {
    int64_t exit_code = 0;
    if (!end.is_object() || !TakeInteger(end, "exitCode", INT32_MIN, INT32_MAX, exit_code) ||
        !TakeBool(end, "exited", event.end.exited) || !TakeString(end, "status", event.end.status) ||
        !TakeString(end, "error", event.end.error)) {
      return BadMessage("an impossible end of a process");
    }
    event.kind = ProcessEvent::Kind::kEnd;
    event.end.exit_code = static_cast<int>(exit_code);
    return event;
  }
  return std::nullopt;
}

ErrorBody ConvertErrorBody(const EnvdJson& json) {
  ErrorBody body;
  if (!json.is_object()) return body;
  body.json = true;
  const EnvdJson& code = Member(json, "code");
  if (code.is_string()) body.rpc_code = code.get<std::string>().substr(0, 64);
  int64_t number = 0;
  if (code.is_number_integer() && TakeInteger(json, "code", 0, 9999, number)) body.numeric_code = static_cast<int>(number);
  TakeString(json, "message", body.message);
  body.names_sandbox = Member(json, "sandboxId").is_string();
  body.names_port = Member(json, "port").is_number();
  return body;
}

}  // namespace

Result<std::string> EncodePathRequest(std::string_view path) {
  if (auto good = CheckText(path); !good) return Forward(good.error());
  return DumpJson({{"path", path}});
}

Result<std::string> EncodeListDir(std::string_view path, uint32_t depth) {
  if (auto good = CheckText(path); !good) return Forward(good.error());
  return DumpJson({{"path", path}, {"depth", depth}});
}

Result<std::string> EncodeMove(std::string_view source, std::string_view destination) {
  if (auto good = CheckText(source); !good) return Forward(good.error());
  if (auto good = CheckText(destination); !good) return Forward(good.error());
  return DumpJson({{"source", source}, {"destination", destination}});
}

Result<std::string> EncodeWatch(const WatchRequest& request) {
  if (auto good = CheckText(request.path); !good) return Forward(good.error());
  EnvdJson message = {{"path", request.path}};
  if (request.recursive) message["recursive"] = true;
  if (request.include_entry) message["includeEntry"] = true;
  if (request.allow_network_mounts) message["allowNetworkMounts"] = true;
  return DumpJson(message);
}

Result<std::string> EncodeWatcherId(std::string_view watcher_id) {
  if (auto good = CheckText(watcher_id); !good) return Forward(good.error());
  return DumpJson({{"watcherId", watcher_id}});
}

Result<std::string> EncodeStart(const StartRequest& request) {
  const ProcessConfig& process = request.process;
  for (const std::string_view text : {std::string_view(process.command), std::string_view(process.working_directory),
                                      std::string_view(request.tag)}) {
    if (auto good = CheckText(text); !good) return Forward(good.error());
  }
  EnvdJson config = {{"cmd", process.command}, {"args", EnvdJson::array()}, {"envs", EnvdJson::object()}};
  for (const auto& argument : process.arguments) {
    if (auto good = CheckText(argument); !good) return Forward(good.error());
    config["args"].push_back(argument);
  }
  for (const auto& [name, value] : process.environment) {
    if (auto good = CheckText(name); !good) return Forward(good.error());
    if (auto good = CheckText(value); !good) return Forward(good.error());
    config["envs"][name] = value;
  }
  if (!process.working_directory.empty()) config["cwd"] = process.working_directory;
  EnvdJson message = {{"process", std::move(config)}, {"stdin", request.stdin_open}};
  if (!request.tag.empty()) message["tag"] = request.tag;
  return DumpJson(message);
}

Result<std::string> EncodeSelector(const ProcessSelector& process) {
  auto selector = SelectorJson(process);
  if (!selector) return Forward(selector.error());
  return DumpJson({{"process", std::move(*selector)}});
}

Result<std::string> EncodeSignal(const ProcessSelector& process, int signal_number) {
  auto selector = SelectorJson(process);
  if (!selector) return Forward(selector.error());
  const char* name = signal_number == SIGKILL ? "SIGNAL_SIGKILL" : signal_number == SIGTERM ? "SIGNAL_SIGTERM" : nullptr;
  if (name == nullptr) return Errno(EINVAL, "envd sends SIGTERM and SIGKILL only");
  return DumpJson({{"process", std::move(*selector)}, {"signal", name}});
}

Result<std::string> EncodeSendInput(const ProcessSelector& process, std::string_view bytes) {
  auto selector = SelectorJson(process);
  if (!selector) return Forward(selector.error());
  return DumpJson({{"process", std::move(*selector)}, {"input", {{"stdin", Base64Encode(bytes)}}}});
}

Result<std::string> EncodeInputStart(const ProcessSelector& process) {
  auto selector = SelectorJson(process);
  if (!selector) return Forward(selector.error());
  return DumpJson({{"start", {{"process", std::move(*selector)}}}});
}

std::string EncodeInputData(std::string_view bytes) {
  // By hand: base64 needs no escapes, and this is the path that content takes.
  return R"({"data":{"input":{"stdin":")" + Base64Encode(bytes) + R"("}}})";
}

std::string EncodeInputKeepAlive() { return R"({"keepalive":{}})"; }

Result<std::string> EncodeCompose(const std::vector<std::string>& sources, std::string_view destination, std::string_view user) {
  for (const auto& source : sources) {
    if (auto good = CheckText(source); !good) return Forward(good.error());
  }
  if (auto good = CheckText(destination); !good) return Forward(good.error());
  if (auto good = CheckText(user); !good) return Forward(good.error());
  EnvdJson message = {{"source_paths", sources}, {"destination", destination}};
  if (!user.empty()) message["username"] = user;
  return DumpJson(message);
}

Result<EntryInfo> DecodeEntryAnswer(std::string_view json) {
  const EnvdJson answer = ParseObject(json);
  if (answer.is_discarded()) return BadMessage("not a JSON object");
  const EnvdJson& entry = Member(answer, "entry");
  if (entry.is_null()) return BadMessage("without an entry");
  return ConvertEntry(entry);
}

Result<std::vector<EntryInfo>> DecodeListing(std::string_view json, std::string_view root, const ListingLimits& limits) {
  std::vector<EntryInfo> entries;
  std::optional<Error> error;
  bool key_is_entries = false, in_entries = false, sorted = true;
  const auto stop_with = [&](Error why) {
    error = std::move(why);
    throw ListingStopped();
  };
  // Called for each value as it is complete; what it refuses is dropped at once, so that the document never exists as a whole.
  const EnvdJson::parser_callback_t on_value = [&](int depth, EnvdJson::parse_event_t event, EnvdJson& value) {
    using Event = EnvdJson::parse_event_t;
    if (depth > 8) stop_with(BadMessage("nested too deeply").value());
    if (event == Event::key && depth == 1) key_is_entries = value == "entries";
    if (event == Event::array_start && depth == 1) in_entries = key_is_entries;
    if (event == Event::array_end && depth == 1) in_entries = false;
    if (event == Event::object_end && depth == 2 && in_entries) {
      if (entries.size() >= limits.max_entries) stop_with(Failure(ErrorKind::kProtocol, EFBIG, "a listing with too many entries").value());
      auto entry = ConvertEntry(value);
      if (!entry) stop_with(entry.error());
      if (auto placed = PlaceBelow(*entry, root, limits.depth); !placed) stop_with(placed.error());
      if (!entries.empty() && !WalksBefore(entries.back().relative_path, entry->relative_path)) sorted = false;
      entries.push_back(std::move(*entry));
      return false;
    }
    return true;
  };
  EnvdJson rest;
  try {
    rest = EnvdJson::parse(json.begin(), json.end(), on_value, /*allow_exceptions=*/false);
  } catch (const ListingStopped&) {
    return Forward(std::move(*error));
  }
  if (!rest.is_object()) return BadMessage("not a JSON object");
  const EnvdJson& left = Member(rest, "entries");
  if (!left.is_null() && !(left.is_array() && left.empty())) return BadMessage("entries that are none");
  if (!sorted) {
    std::sort(entries.begin(), entries.end(),
              [](const EntryInfo& a, const EntryInfo& b) { return WalksBefore(a.relative_path, b.relative_path); });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(), [](const EntryInfo& a, const EntryInfo& b) {
      return a.relative_path == b.relative_path;
    });
    if (twice != entries.end()) return BadMessage("a listing with one name twice");
  }
  return entries;
}

Result<WatchMessage> DecodeWatchMessage(std::string_view json) {
  const EnvdJson message = ParseObject(json);
  if (message.is_discarded()) return BadMessage("not a JSON object");
  if (!Member(message, "start").is_null()) return WatchMessage(StreamStarted{});
  const EnvdJson& event = Member(message, "filesystem");
  if (event.is_null()) return WatchMessage(StreamKeepAlive{});
  auto converted = ConvertWatchEvent(event);
  if (!converted) return Forward(converted.error());
  return WatchMessage(std::move(*converted));
}

Result<std::string> DecodeWatcherId(std::string_view json) {
  const EnvdJson answer = ParseObject(json);
  std::string id;
  if (answer.is_discarded() || !TakeString(answer, "watcherId", id) || id.empty() || id.size() > 1024) {
    return BadMessage("without a watcher");
  }
  return id;
}

Result<std::vector<WatchEvent>> DecodeWatcherEvents(std::string_view json) {
  const EnvdJson answer = ParseObject(json);
  if (answer.is_discarded()) return BadMessage("not a JSON object");
  std::vector<WatchEvent> events;
  const EnvdJson& list = Member(answer, "events");
  if (list.is_null()) return events;
  if (!list.is_array()) return BadMessage("events that are none");
  for (const EnvdJson& json_event : list) {
    auto event = ConvertWatchEvent(json_event);
    if (!event) return Forward(event.error());
    events.push_back(std::move(*event));
  }
  return events;
}

Result<std::optional<ProcessEvent>> DecodeProcessMessage(std::string_view json) {
  // As envd writes it, by hand: base64 has no escapes, and this is the path that content takes. All else is parsed.
  constexpr std::string_view kBefore = R"({"event":{"data":{"stdout":")", kAfter = R"("}}})";
  if (json.size() > kBefore.size() + kAfter.size() && json.starts_with(kBefore) && json.ends_with(kAfter)) {
    if (auto bytes = Base64Decode(json.substr(kBefore.size(), json.size() - kBefore.size() - kAfter.size()))) {
      ProcessEvent event;
      event.kind = ProcessEvent::Kind::kStdout;
      event.data = std::move(*bytes);
      return event;
    }
  }
  const EnvdJson message = ParseObject(json);
  if (message.is_discarded()) return BadMessage("not a JSON object");
  const EnvdJson& event = Member(message, "event");
  if (event.is_null()) return std::nullopt;
  if (!event.is_object()) return BadMessage("an impossible event");
  return ConvertProcessEvent(event);
}

Result<std::vector<ProcessInfo>> DecodeProcessList(std::string_view json) {
  const EnvdJson answer = ParseObject(json);
  if (answer.is_discarded()) return BadMessage("not a JSON object");
  std::vector<ProcessInfo> processes;
  const EnvdJson& list = Member(answer, "processes");
  if (list.is_null()) return processes;
  if (!list.is_array()) return BadMessage("processes that are none");
  for (const EnvdJson& item : list) {
    ProcessInfo info;
    int64_t pid = 0;
    if (!item.is_object() || !TakeInteger(item, "pid", 0, UINT32_MAX, pid) || !TakeString(item, "tag", info.tag)) {
      return BadMessage("an impossible process");
    }
    info.pid = static_cast<uint32_t>(pid);
    if (const EnvdJson& config = Member(item, "config"); config.is_object()) {
      const EnvdJson& arguments = Member(config, "args");
      if (!TakeString(config, "cmd", info.config.command) || !TakeString(config, "cwd", info.config.working_directory) ||
          !TakeStringMap(config, "envs", info.config.environment) || !(arguments.is_null() || arguments.is_array())) {
        return BadMessage("an impossible process");
      }
      for (const EnvdJson& argument : arguments) {
        if (!argument.is_string()) return BadMessage("an impossible process");
        info.config.arguments.push_back(argument.get<std::string>());
      }
    }
    processes.push_back(std::move(info));
  }
  return processes;
}

Result<void> DecodeEmptyAnswer(std::string_view json) {
  if (ParseObject(json).is_discarded()) return BadMessage("not a JSON object");
  return {};
}

Result<SandboxMetrics> DecodeMetrics(std::string_view json) {
  const EnvdJson answer = ParseObject(json);
  if (answer.is_discarded()) return BadMessage("not a JSON object");
  SandboxMetrics metrics;
  int64_t processors = 0;
  if (!TakeInteger(answer, "ts", INT64_MIN, INT64_MAX, metrics.timestamp_seconds) ||
      !TakeInteger(answer, "disk_used", 0, INT64_MAX, metrics.disk_used) ||
      !TakeInteger(answer, "disk_total", 0, INT64_MAX, metrics.disk_total) ||
      !TakeInteger(answer, "mem_used", 0, INT64_MAX, metrics.mem_used) ||
      !TakeInteger(answer, "mem_total", 0, INT64_MAX, metrics.mem_total) ||
      !TakeInteger(answer, "mem_cache", 0, INT64_MAX, metrics.mem_cache) ||
      !TakeInteger(answer, "cpu_count", 0, INT32_MAX, processors)) {
    return BadMessage("impossible metrics");
  }
  metrics.cpu_count = static_cast<int>(processors);
  const EnvdJson& used = Member(answer, "cpu_used_pct");
  if (used.is_number()) metrics.cpu_used_percent = used.get<double>();
  return metrics;
}

Result<WrittenFile> DecodeWrittenFile(std::string_view json) {
  const EnvdJson answer = EnvdJson::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (answer.is_array() && answer.size() != 1) return BadMessage("not one file was written");
  const EnvdJson& file = answer.is_array() ? answer.front() : answer;
  WrittenFile written;
  std::string type;
  if (!file.is_object() || !TakeString(file, "name", written.name) || !TakeString(file, "path", written.path) ||
      !TakeString(file, "type", type) || !TakeStringMap(file, "metadata", written.metadata)) {
    return BadMessage("no file was written");
  }
  if (type != "file" || written.path.empty() || written.path.front() != '/' || !IsSafeName(written.name)) {
    return BadMessage("no file was written");
  }
  return written;
}

ErrorBody DecodeErrorBody(std::string_view body) { return ConvertErrorBody(ParseObject(body)); }

Result<std::optional<ErrorBody>> DecodeEndOfStream(std::string_view json) {
  const EnvdJson message = ParseObject(json);
  if (message.is_discarded()) return BadMessage("a stream's end that is not a JSON object");
  const EnvdJson& error = Member(message, "error");
  if (error.is_null()) return std::nullopt;
  if (!error.is_object()) return BadMessage("a stream's end with an impossible error");
  return ConvertErrorBody(error);
}

}  // namespace e2bfs::transport::envd
