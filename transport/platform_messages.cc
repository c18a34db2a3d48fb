#include "transport/platform_messages.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "transport/envd/messages.h"

namespace e2bfs::transport {
namespace {

using PlatformJson = nlohmann::json;

tl::unexpected<Error> BadPlatformAnswer(std::string what) {
  return Failure(ErrorKind::kProtocol, EIO, "the control plane's answer: " + std::move(what));
}

PlatformJson ParsePlatformJson(std::string_view text) {
  return PlatformJson::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

// Empty where it is absent, null or no string.
std::string TextOf(const PlatformJson& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

Secret SecretOf(const PlatformJson& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? Secret(found->get_ref<const std::string&>()) : Secret();
}

timespec TimeOf(const PlatformJson& object, const char* name) {
  return envd::ParseTimestamp(TextOf(object, name)).value_or(timespec{});
}

Result<SandboxSummary> ConvertSummary(const PlatformJson& json) {
  if (!json.is_object()) return BadPlatformAnswer("a sandbox that is no object");
  SandboxSummary summary;
  summary.id = TextOf(json, "sandboxID");
  if (!IsSandboxId(summary.id)) return BadPlatformAnswer("a sandbox without a valid id");
  summary.template_id = TextOf(json, "templateID");
  summary.alias = TextOf(json, "alias");
  const std::string state = TextOf(json, "state");
  summary.state = state == "running" ? SandboxState::kRunning : state == "paused" ? SandboxState::kPaused : SandboxState::kUnknown;
  summary.started_at = TimeOf(json, "startedAt");
  summary.end_at = TimeOf(json, "endAt");
  summary.envd_version = TextOf(json, "envdVersion");
  if (const auto found = json.find("metadata"); found != json.end() && found->is_object()) {
    for (const auto& [key, value] : found->items()) {
      if (value.is_string()) summary.metadata[key] = value.get<std::string>();
    }
  }
  return summary;
}

}  // namespace

bool IsSandboxId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_';
  });
}

Result<std::vector<SandboxSummary>> DecodeSandboxPage(std::string_view json) {
  const PlatformJson page = ParsePlatformJson(json);
  if (page.is_null()) return std::vector<SandboxSummary>();
  if (!page.is_array()) return BadPlatformAnswer("not a list");
  std::vector<SandboxSummary> sandboxes;
  for (const PlatformJson& item : page) {
    auto summary = ConvertSummary(item);
    if (!summary) return Forward(summary.error());
    sandboxes.push_back(std::move(*summary));
  }
  return sandboxes;
}

Result<SandboxDetail> DecodeSandboxDetail(std::string_view json) {
  const PlatformJson object = ParsePlatformJson(json);
  auto summary = ConvertSummary(object);
  if (!summary) return Forward(summary.error());
  SandboxDetail detail;
  static_cast<SandboxSummary&>(detail) = std::move(*summary);
  detail.domain = TextOf(object, "domain");
  detail.tokens.access = SecretOf(object, "envdAccessToken");
  detail.tokens.traffic = SecretOf(object, "trafficAccessToken");
  return detail;
}

Result<SandboxConnection> DecodeSandboxConnection(std::string_view json) {
  const PlatformJson object = ParsePlatformJson(json);
  if (!object.is_object()) return BadPlatformAnswer("not an object");
  SandboxConnection connection;
  connection.id = TextOf(object, "sandboxID");
  if (!IsSandboxId(connection.id)) return BadPlatformAnswer("a sandbox without a valid id");
  connection.template_id = TextOf(object, "templateID");
  connection.envd_version = TextOf(object, "envdVersion");
  connection.domain = TextOf(object, "domain");
  connection.tokens.access = SecretOf(object, "envdAccessToken");
  connection.tokens.traffic = SecretOf(object, "trafficAccessToken");
  return connection;
}

std::string EncodeTimeout(int64_t seconds) { return "{\"timeout\":" + std::to_string(seconds) + "}"; }

std::string DecodePlatformMessage(std::string_view body) {
  const PlatformJson object = ParsePlatformJson(body);
  return object.is_object() ? TextOf(object, "message").substr(0, 512) : std::string();
}

Result<Secret> DecodeLoginFile(std::string_view json) {
  const PlatformJson object = ParsePlatformJson(json);
  if (!object.is_object()) return Failure(ErrorKind::kProtocol, EIO, "not a JSON object");
  // Version 2 of the CLI's file has projectApiKey, version 1 (or none) teamApiKey.
  const auto version = object.find("version");
  const bool second = version != object.end() && version->is_number_integer() && version->get<int64_t>() >= 2;
  return SecretOf(object, second ? "projectApiKey" : "teamApiKey");
}

}  // namespace e2bfs::transport
