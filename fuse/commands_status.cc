// e2bfs status: prints what the mount's process says of itself.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "fuse/commands.h"
#include "fuse/message.h"
#include "fuse/running_mounts.h"

namespace e2bfs::fuse {
namespace {

constexpr std::chrono::seconds kStatusTime{10};

std::string JsonText(const nlohmann::json& value) {
  if (value.is_string()) return Printable(value.get<std::string>());
  if (value.is_array()) {
    std::string text;
    for (const auto& item : value) text += (text.empty() ? "" : "; ") + JsonText(item);
    return text.empty() ? "-" : text;
  }
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void PrintStatusRow(const std::string& name, const std::string& text) {
  PrintLine(fmt::format("{:<22} {}", name, text.empty() ? "-" : text));
}

void PrintStatus(const nlohmann::json& status) {
  for (const auto& [name, value] : status.items()) {
    if (name == "done") continue;
    if (value.is_object()) {
      PrintLine("");
      PrintLine(name + ":");
      for (const auto& [inner, number] : value.items()) PrintStatusRow("  " + Printable(inner), JsonText(number));
    } else if (name.ends_with("_bytes") && value.is_number_integer()) {
      PrintStatusRow(name, fmt::format("{} ({})", value.get<int64_t>(), HumanBytes(value.get<int64_t>())));
    } else if (value.is_array() && !value.empty() && value.front().is_object()) {
      PrintLine("");
      PrintLine(name + ":");
      for (const auto& item : value) {
        std::string text;
        for (const auto& [inner, part] : item.items()) text += fmt::format("{}{}={}", text.empty() ? "" : " ", inner, JsonText(part));
        PrintLine("  " + text);
      }
    } else {
      PrintStatusRow(name, JsonText(value));
    }
  }
}

}  // namespace

ExitStatus StatusCommand(const CommandLine& line) {
  auto named = FindNamedMount(line.arguments[0]);
  if (!named) {
    PrintErrorLine("status", named.error().message);
    return ExitStatus::kMountPoint;
  }
  auto client = AskMount(named->running, R"({"command":"status"})");
  Result<std::optional<std::string>> answer = std::optional<std::string>();
  if (client) answer = client->ReadLine(kStatusTime);
  if (!client || !answer || !*answer) {
    PrintErrorLine("status", fmt::format("{}: the mount's process does not answer", line.arguments[0]));
    return ExitStatus::kFailure;
  }
  // Ordered, as the mount gives it: identity first.
  const auto status = nlohmann::ordered_json::parse(**answer, nullptr, false);
  if (line.Has("--json")) {
    PrintLine(**answer);
    return ExitStatus::kOk;
  }
  if (!status.is_object()) {
    PrintErrorLine("status", "the mount's process gave an answer that cannot be read");
    return ExitStatus::kFailure;
  }
  for (const auto& [name, value] : status.items()) {
    nlohmann::json one;
    one[name] = nlohmann::json::parse(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    PrintStatus(one);
  }
  return ExitStatus::kOk;
}

}  // namespace e2bfs::fuse
