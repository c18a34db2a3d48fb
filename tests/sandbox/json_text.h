// Writing and reading JSON without the parser's header: JsonText appends to a string; JsonMessage wraps a
// parsed request and reads its fields with the rules of protobuf's JSON mapping.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace e2bfs::sandbox {

// True if every byte belongs to well-formed UTF-8 (no surrogates, nothing above U+10FFFF).
bool IsUtf8(std::string_view text);

// Builds one JSON value; commas come by themselves. Not thread-safe.
class JsonText {
 public:
  JsonText& BeginObject();
  JsonText& EndObject();
  JsonText& BeginArray();
  JsonText& EndArray();
  JsonText& Key(std::string_view name);
  JsonText& String(std::string_view value);
  JsonText& Number(int64_t value);
  JsonText& Bool(bool value);
  // `json` is appended as it is: a value that was made elsewhere.
  JsonText& Raw(std::string_view json);
  // Key and value; Field of a string leaves nothing out.
  JsonText& Field(std::string_view name, std::string_view value) { return Key(name).String(value); }
  JsonText& Field(std::string_view name, int64_t value) { return Key(name).Number(value); }

  const std::string& text() const { return text_; }
  std::string TakeText() { return std::move(text_); }
  // False once a string was not UTF-8: protobuf refuses to encode such a message.
  bool valid() const { return valid_; }

 private:
  void Separate();
  std::string text_;
  bool need_comma_ = false;
  bool valid_ = true;
};

// A JSON object of a request. Absent, null and default are the same; names come in camelCase or snake_case;
// 64-bit numbers may be strings; unknown fields are ignored. A field of a wrong type gives the default and is
// remembered: see error(). Copies share what was parsed; not thread-safe.
class JsonMessage {
 public:
  // Nullopt and a reason in *error if `text` is not a JSON object.
  static std::optional<JsonMessage> Parse(std::string_view text, std::string* error);

  bool Has(std::string_view name) const;
  std::string String(std::string_view name) const;
  std::optional<std::string> OptionalString(std::string_view name) const;
  std::string Bytes(std::string_view name) const;  // base64, standard or URL alphabet
  uint32_t Uint32(std::string_view name) const;
  bool Bool(std::string_view name) const;
  std::optional<bool> OptionalBool(std::string_view name) const;
  // An enum's value given by name or number; nullopt if absent.
  std::optional<std::string> EnumName(std::string_view name) const;
  std::vector<std::string> StringList(std::string_view name) const;
  std::map<std::string, std::string> StringMap(std::string_view name) const;
  // The object of that name; an empty one if absent.
  JsonMessage Object(std::string_view name) const;
  // The field's value as compact JSON, "" if absent.
  std::string Dump(std::string_view name) const;
  // What was wrong with a field that was read, "" if nothing.
  const std::string& error() const;

 private:
  struct Document;
  JsonMessage(std::shared_ptr<Document> document, const void* value);
  const void* Find(std::string_view name) const;
  void Mismatch(std::string_view name, std::string_view kind) const;
  std::shared_ptr<Document> document_;
  const void* value_;
};

std::string Base64Encode(std::string_view bytes);
// Standard or URL alphabet, padding optional. Nullopt if it is neither.
std::optional<std::string> Base64Decode(std::string_view text);

}  // namespace e2bfs::sandbox
