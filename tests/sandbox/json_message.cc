#include <charconv>
#include <nlohmann/json.hpp>

#include "tests/sandbox/json_text.h"

namespace e2bfs::sandbox {

using nlohmann::json;

struct JsonMessage::Document {
  json root;
  std::string error;
};

namespace {

const json& JsonOf(const void* value) { return *static_cast<const json*>(value); }

std::string SnakeCaseName(std::string_view camel) {
  std::string snake;
  for (const char c : camel) {
    if (c >= 'A' && c <= 'Z') {
      snake += '_';
      snake += static_cast<char>(c - 'A' + 'a');
    } else {
      snake += c;
    }
  }
  return snake;
}

}  // namespace

JsonMessage::JsonMessage(std::shared_ptr<Document> document, const void* value)
    : document_(std::move(document)), value_(value) {}

std::optional<JsonMessage> JsonMessage::Parse(std::string_view text, std::string* error) {
  if (text.empty()) {
    *error = "zero-length payload is not a valid JSON object";
    return std::nullopt;
  }
  auto document = std::make_shared<Document>();
  try {
    document->root = json::parse(text);
  } catch (const json::exception& e) {
    *error = std::string("proto: syntax error: ") + e.what();
    return std::nullopt;
  }
  if (!document->root.is_object()) {
    *error = "proto: syntax error: unexpected token, expected {";
    return std::nullopt;
  }
  const void* root = &document->root;
  return JsonMessage(std::move(document), root);
}

const void* JsonMessage::Find(std::string_view name) const {
  if (value_ == nullptr) {
    return nullptr;
  }
  const json& object = JsonOf(value_);
  auto found = object.find(std::string(name));
  if (found == object.end()) {
    found = object.find(SnakeCaseName(name));
  }
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

void JsonMessage::Mismatch(std::string_view name, std::string_view kind) const {
  if (document_->error.empty()) {
    document_->error = "proto: invalid value for " + std::string(kind) + " field " + std::string(name);
  }
}

bool JsonMessage::Has(std::string_view name) const { return Find(name) != nullptr; }

std::optional<std::string> JsonMessage::OptionalString(std::string_view name) const {
  const void* value = Find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!JsonOf(value).is_string()) {
    Mismatch(name, "string");
    return std::nullopt;
  }
  return JsonOf(value).get<std::string>();
}

std::string JsonMessage::String(std::string_view name) const { return OptionalString(name).value_or(""); }

std::string JsonMessage::Bytes(std::string_view name) const {
  auto decoded = Base64Decode(String(name));
  if (!decoded) {
    Mismatch(name, "bytes");
  }
  return std::move(decoded).value_or("");
}

uint32_t JsonMessage::Uint32(std::string_view name) const {
  const void* value = Find(name);
  if (value == nullptr) {
    return 0;
  }
  const json& number = JsonOf(value);
  if (number.is_number_unsigned() && number.get<uint64_t>() <= UINT32_MAX) {
    return number.get<uint32_t>();
  }
  if (number.is_number_float() && number.get<double>() >= 0 && number.get<double>() <= UINT32_MAX &&
      number.get<double>() == static_cast<uint32_t>(number.get<double>())) {
    return static_cast<uint32_t>(number.get<double>());
  }
  if (number.is_string()) {
    const auto& digits = number.get_ref<const std::string&>();
    uint32_t parsed = 0;
    const auto [end, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed);
    if (ec == std::errc() && end == digits.data() + digits.size()) {
      return parsed;
    }
  }
  Mismatch(name, "uint32");
  return 0;
}

std::optional<bool> JsonMessage::OptionalBool(std::string_view name) const {
  const void* value = Find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!JsonOf(value).is_boolean()) {
    Mismatch(name, "bool");
    return std::nullopt;
  }
  return JsonOf(value).get<bool>();
}

bool JsonMessage::Bool(std::string_view name) const { return OptionalBool(name).value_or(false); }

std::optional<std::string> JsonMessage::EnumName(std::string_view name) const {
  const void* value = Find(name);
  if (value == nullptr) {
    return std::nullopt;
  }
  const json& given = JsonOf(value);
  if (given.is_number_integer()) {
    return std::to_string(given.get<int64_t>());
  }
  if (!given.is_string()) {
    Mismatch(name, "enum");
    return std::nullopt;
  }
  return given.get<std::string>();
}

std::vector<std::string> JsonMessage::StringList(std::string_view name) const {
  const void* value = Find(name);
  std::vector<std::string> list;
  if (value == nullptr) {
    return list;
  }
  if (!JsonOf(value).is_array()) {
    Mismatch(name, "repeated");
    return list;
  }
  for (const json& element : JsonOf(value)) {
    if (!element.is_string()) {
      Mismatch(name, "string");
      break;
    }
    list.push_back(element.get<std::string>());
  }
  return list;
}

std::map<std::string, std::string> JsonMessage::StringMap(std::string_view name) const {
  const void* value = Find(name);
  std::map<std::string, std::string> map;
  if (value == nullptr) {
    return map;
  }
  if (!JsonOf(value).is_object()) {
    Mismatch(name, "map");
    return map;
  }
  for (const auto& [key, element] : JsonOf(value).items()) {
    if (!element.is_string()) {
      Mismatch(name, "string");
      break;
    }
    map[key] = element.get<std::string>();
  }
  return map;
}

JsonMessage JsonMessage::Object(std::string_view name) const {
  const void* value = Find(name);
  if (value != nullptr && !JsonOf(value).is_object()) {
    Mismatch(name, "message");
    value = nullptr;
  }
  return JsonMessage(document_, value);
}

std::string JsonMessage::Dump(std::string_view name) const {
  const void* value = Find(name);
  return value == nullptr ? "" : JsonOf(value).dump();
}

const std::string& JsonMessage::error() const { return document_->error; }

}  // namespace e2bfs::sandbox
