#include "transport/envd/base64.h"

#include <array>
#include <cstdint>

namespace e2bfs::transport::envd {
namespace {

constexpr char kBase64Alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<int8_t, 256> MakeBase64Values() {
  std::array<int8_t, 256> values{};
  for (auto& value : values) value = -1;
  for (int8_t i = 0; i < 64; ++i) values[static_cast<uint8_t>(kBase64Alphabet[i])] = i;
  values[static_cast<uint8_t>('-')] = 62;
  values[static_cast<uint8_t>('_')] = 63;
  return values;
}
constexpr std::array<int8_t, 256> kBase64Values = MakeBase64Values();

}  // namespace

std::string Base64Encode(std::string_view bytes) {
  std::string text((bytes.size() + 2) / 3 * 4, '=');
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])); };
  size_t out = 0, i = 0;
  for (; i + 3 <= bytes.size(); i += 3, out += 4) {
    const uint32_t group = byte(i) << 16 | byte(i + 1) << 8 | byte(i + 2);
    text[out] = kBase64Alphabet[group >> 18];
    text[out + 1] = kBase64Alphabet[group >> 12 & 63];
    text[out + 2] = kBase64Alphabet[group >> 6 & 63];
    text[out + 3] = kBase64Alphabet[group & 63];
  }
  if (i < bytes.size()) {
    const bool two = i + 1 < bytes.size();
    const uint32_t group = byte(i) << 16 | (two ? byte(i + 1) << 8 : 0U);
    text[out] = kBase64Alphabet[group >> 18];
    text[out + 1] = kBase64Alphabet[group >> 12 & 63];
    if (two) text[out + 2] = kBase64Alphabet[group >> 6 & 63];
  }
  return text;
}

std::optional<std::string> Base64Decode(std::string_view text) {
  if (text.size() % 4 == 0) {
    for (int i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
  }
  if (text.size() % 4 == 1) return std::nullopt;
  std::string bytes(text.size() * 3 / 4, '\0');
  const auto value = [&](size_t i) { return static_cast<int32_t>(kBase64Values[static_cast<uint8_t>(text[i])]); };
  size_t out = 0, i = 0;
  int32_t all = 0;  // negative once one is
  for (; i + 4 <= text.size(); i += 4, out += 3) {
    const int32_t a = value(i), b = value(i + 1), c = value(i + 2), d = value(i + 3);
    all |= a | b | c | d;
    const auto group = static_cast<uint32_t>(a) << 18 | static_cast<uint32_t>(b) << 12 | static_cast<uint32_t>(c) << 6 | static_cast<uint32_t>(d);
    bytes[out] = static_cast<char>(group >> 16);
    bytes[out + 1] = static_cast<char>(group >> 8);
    bytes[out + 2] = static_cast<char>(group);
  }
  if (i < text.size()) {
    const bool two = i + 2 < text.size();
    const int32_t a = value(i), b = value(i + 1), c = two ? value(i + 2) : 0;
    all |= a | b | c;
    const auto group = static_cast<uint32_t>(a) << 18 | static_cast<uint32_t>(b) << 12 | static_cast<uint32_t>(c) << 6;
    bytes[out] = static_cast<char>(group >> 16);
    if (two) bytes[out + 1] = static_cast<char>(group >> 8);
  }
  if (all < 0) return std::nullopt;
  return bytes;
}

}  // namespace e2bfs::transport::envd
