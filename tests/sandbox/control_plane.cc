#include "tests/sandbox/control_plane.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <vector>

#include "tests/sandbox/json_text.h"

namespace e2bfs::sandbox {
namespace {

using WallClock = std::chrono::system_clock;

std::string WallTimeText(WallClock::time_point time) {
  const time_t seconds = WallClock::to_time_t(time);
  tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

void ReplyApiError(Exchange& exchange, int status, const std::string& message) {
  JsonText json;
  json.BeginObject().Field("code", static_cast<int64_t>(status)).Field("message", message).EndObject();
  exchange.Reply(status, {{"content-type", "application/json; charset=utf-8"}}, json.text());
}

std::vector<std::string> SplitList(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size() && !text.empty();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Reads {"timeout": seconds}; nullopt if the request was refused, and answered.
std::optional<int64_t> ReadTimeoutRequest(Exchange& exchange) {
  const auto body = exchange.ReadWholeBody(size_t{1} << 20);
  std::string error = "unexpected EOF";
  const auto request = body ? JsonMessage::Parse(*body, &error) : std::nullopt;
  if (!request || !request->Has("timeout")) {
    ReplyApiError(
        exchange, 400,
        "Error when parsing request: " + (request ? std::string("property \"timeout\" is missing") : error));
    return std::nullopt;
  }
  const auto timeout = static_cast<int64_t>(request->Uint32("timeout"));
  if (!request->error().empty()) {
    ReplyApiError(exchange, 400, "Error when parsing request: " + request->error());
    return std::nullopt;
  }
  if (timeout > 24 * 3600) {
    ReplyApiError(exchange, 400, "Timeout cannot be greater than 24 hours");
    return std::nullopt;
  }
  return timeout;
}

}  // namespace

ControlPlane::ControlPlane(const SandboxOptions& options) : options_(options) {
  std::vector<SandboxOptions::Instance> instances = options.instances;
  if (instances.empty()) {
    instances.push_back({"debug_sandbox_id", "running", "base", {}, 300});
  }
  const auto now = WallClock::now();
  for (const auto& instance : instances) {
    entries_[instance.id] = {instance, now, now + std::chrono::seconds(instance.seconds_left)};
  }
}

ControlPlane::Entry* ControlPlane::FindLive(const std::string& id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) {
    return nullptr;
  }
  Entry& entry = found->second;
  if (entry.instance.state == "running" && entry.end < WallClock::now()) {
    entry.instance.state = "killed";
  }
  return entry.instance.state == "killed" ? nullptr : &entry;
}

std::optional<std::string> ControlPlane::State(const std::string& sandbox_id) {
  const std::lock_guard lock(mutex_);
  if (entries_.count(sandbox_id) == 0) {
    return std::nullopt;
  }
  const Entry* entry = FindLive(sandbox_id);
  return entry == nullptr ? "killed" : entry->instance.state;
}

void ControlPlane::SetState(const std::string& sandbox_id, const std::string& state) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[sandbox_id];
  const auto now = WallClock::now();
  if (entry.instance.id.empty()) {
    entry.instance.id = sandbox_id;
    entry.started = now;
  }
  if (state == "running" && entry.end < now) {
    entry.end = now + std::chrono::seconds(entry.instance.seconds_left);
  }
  entry.instance.state = state;
}

bool ControlPlane::Authorized(Exchange& exchange) {
  const std::string key = exchange.Header("x-api-key").value_or("");
  if (key.empty()) {
    ReplyApiError(exchange, 401, "no credentials found");
    return false;
  }
  if (!options_.api_key.empty() && key != options_.api_key) {
    ReplyApiError(exchange, 401,
                  "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.");
    return false;
  }
  return true;
}

bool ControlPlane::Handle(Exchange& exchange) {
  static constexpr std::string_view kOne = "/sandboxes/";
  const std::string& path = exchange.path();
  const std::string& method = exchange.method();
  if (path == "/v2/sandboxes" && method == "GET") {
    if (Authorized(exchange)) {
      List(exchange);
    }
    return true;
  }
  if (!path.starts_with(kOne)) {
    return false;
  }
  const std::string rest = path.substr(kOne.size());
  const size_t slash = rest.find('/');
  const std::string id = rest.substr(0, slash);
  const std::string action = slash == std::string::npos ? "" : rest.substr(slash + 1);
  if (!Authorized(exchange)) {
    return true;
  }
  if (action.empty() && method == "GET") {
    Detail(exchange, id);
  } else if (action == "connect" && method == "POST") {
    Connect(exchange, id);
  } else if (action == "timeout" && method == "POST") {
    SetTimeout(exchange, id);
  } else {
    ReplyApiError(exchange, 404, "no matching operation was found");
  }
  return true;
}

void ControlPlane::List(Exchange& exchange) {
  const auto states = SplitList(exchange.Query("state").value_or("running,paused"), ',');
  std::map<std::string, std::string> wanted;
  for (const std::string& pair : SplitList(exchange.Query("metadata").value_or(""), '&')) {
    const size_t equals = std::min(pair.find('='), pair.size());
    wanted[pair.substr(0, equals)] = equals < pair.size() ? pair.substr(equals + 1) : "";
  }
  size_t limit = 100;
  if (const auto text = exchange.Query("limit")) {
    const auto [end, ec] = std::from_chars(text->data(), text->data() + text->size(), limit);
    if (ec != std::errc() || end != text->data() + text->size() || limit == 0 || limit > 100) {
      ReplyApiError(exchange, 400,
                    "parameter \"limit\" in query has an error: number must be between 1 and 100");
      return;
    }
  }
  const std::string after =
      exchange.Query("nextToken").value_or("");  // here simply the last id of the page before
  JsonText json;
  json.BeginArray();
  size_t count = 0;
  std::string last;
  bool more = false;
  {
    const std::lock_guard lock(mutex_);
    for (auto& [id, entry] : entries_) {
      if (FindLive(id) == nullptr || id <= after ||
          std::find(states.begin(), states.end(), entry.instance.state) == states.end()) {
        continue;
      }
      const bool matches = std::all_of(wanted.begin(), wanted.end(), [&](const auto& pair) {
        const auto found = entry.instance.metadata.find(pair.first);
        return found != entry.instance.metadata.end() && found->second == pair.second;
      });
      if (!matches) {
        continue;
      }
      if (count == limit) {
        more = true;
        break;
      }
      ++count;
      last = id;
      json.BeginObject()
          .Field("templateID", entry.instance.template_id)
          .Field("alias", entry.instance.template_id);
      json.Field("clientID", "6532622b")
          .Field("sandboxID", id)
          .Field("startedAt", WallTimeText(entry.started));
      json.Field("endAt", WallTimeText(entry.end))
          .Field("cpuCount", int64_t{2})
          .Field("memoryMB", int64_t{512});
      json.Field("diskSizeMB", int64_t{1024})
          .Field("state", entry.instance.state)
          .Field("envdVersion", options_.envd_version);
      json.Key("metadata").BeginObject();
      for (const auto& [key, value] : entry.instance.metadata) {
        json.Field(key, value);
      }
      json.EndObject().EndObject();
    }
  }
  json.EndArray();
  HeaderList headers = {{"content-type", "application/json; charset=utf-8"}};
  if (more) {
    headers.emplace_back("x-next-token", last);
  }
  exchange.Reply(200, std::move(headers), json.text());
}

void ControlPlane::Detail(Exchange& exchange, const std::string& id) {
  JsonText json;
  {
    const std::lock_guard lock(mutex_);
    const Entry* entry = FindLive(id);
    if (entry != nullptr) {
      json.BeginObject()
          .Field("templateID", entry->instance.template_id)
          .Field("alias", entry->instance.template_id);
      json.Field("sandboxID", id)
          .Field("clientID", "6532622b")
          .Field("startedAt", WallTimeText(entry->started));
      json.Field("endAt", WallTimeText(entry->end)).Field("envdVersion", options_.envd_version);
      if (!options_.access_token.empty()) {
        json.Field("envdAccessToken", options_.access_token);
      }
      json.Key("domain").Raw("null").Field("cpuCount", int64_t{2}).Field("memoryMB", int64_t{512});
      json.Field("diskSizeMB", int64_t{1024})
          .Field("state", entry->instance.state)
          .Key("metadata")
          .BeginObject();
      for (const auto& [key, value] : entry->instance.metadata) {
        json.Field(key, value);
      }
      json.EndObject().EndObject();
    }
  }
  if (json.text().empty()) {
    ReplyApiError(exchange, 404, "sandbox \"" + id + "\" doesn't exist or you don't have access to it");
    return;
  }
  exchange.Reply(200, {{"content-type", "application/json; charset=utf-8"}}, json.text());
}

void ControlPlane::Connect(Exchange& exchange, const std::string& id) {
  const auto timeout = ReadTimeoutRequest(exchange);
  if (!timeout) {
    return;
  }
  JsonText json;
  bool resumed = false;
  {
    const std::lock_guard lock(mutex_);
    Entry* entry = FindLive(id);
    if (entry != nullptr) {
      const auto end = WallClock::now() + std::chrono::seconds(*timeout);
      resumed = entry->instance.state == "paused";
      entry->instance.state = "running";
      entry->end = resumed ? end : std::max(entry->end, end);  // only ever extended
      json.BeginObject().Field("templateID", entry->instance.template_id).Field("sandboxID", id);
      json.Field("alias", entry->instance.template_id)
          .Field("clientID", "6532622b")
          .Field("envdVersion", options_.envd_version);
      if (!options_.access_token.empty()) {
        json.Field("envdAccessToken", options_.access_token);
      }
      json.Key("trafficAccessToken").Raw("null").Key("domain").Raw("null").EndObject();
    }
  }
  if (json.text().empty()) {
    ReplyApiError(exchange, 404, "sandbox \"" + id + "\" doesn't exist or you don't have access to it");
    return;
  }
  exchange.Reply(resumed ? 201 : 200, {{"content-type", "application/json; charset=utf-8"}}, json.text());
}

void ControlPlane::SetTimeout(Exchange& exchange, const std::string& id) {
  const auto timeout = ReadTimeoutRequest(exchange);
  if (!timeout) {
    return;
  }
  bool found = false;
  {
    const std::lock_guard lock(mutex_);
    Entry* entry = FindLive(id);
    found = entry != nullptr && entry->instance.state == "running";
    if (found) {
      entry->end = WallClock::now() + std::chrono::seconds(*timeout);
    }
  }
  if (!found) {
    ReplyApiError(exchange, 404, "sandbox \"" + id + "\" doesn't exist or you don't have access to it");
    return;
  }
  exchange.SendHead(204, {});
}

}  // namespace e2bfs::sandbox
