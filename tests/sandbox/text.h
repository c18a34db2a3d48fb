// Small text helpers of the server core.
#pragma once

#include <ctime>
#include <string>
#include <string_view>

namespace e2bfs::sandbox {

// %XX decoded; what is not a valid escape stays as it is. With `plus_is_space` as in a query.
std::string PercentDecode(std::string_view text, bool plus_is_space);
std::string LowerAscii(std::string_view text);
// Without spaces and tabs at both ends.
std::string_view TrimBlanks(std::string_view text);
// A token of RFC 9110: method and header names.
bool IsHttpToken(std::string_view text);
// The reason phrase of a status, never empty.
std::string_view ReasonPhrase(int status);
// "Sat, 21 Nov 2026 14:29:46 GMT".
std::string HttpDate(time_t when);

}  // namespace e2bfs::sandbox
