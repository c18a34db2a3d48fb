// base64 as protobuf's JSON has it: written in the standard alphabet with padding, read in both alphabets, padded or not.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace e2bfs::transport::envd {

std::string Base64Encode(std::string_view bytes);
// nullopt for anything that is not base64.
std::optional<std::string> Base64Decode(std::string_view text);

}  // namespace e2bfs::transport::envd
