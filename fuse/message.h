// How the command talks to people: one line on stderr for an error, and text of the other side made harmless.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fuse/exit_status.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

// Control characters as \xNN, so that a name or message of a hostile server cannot steer a terminal or fake a line.
std::string Printable(std::string_view text);

// "e2bfs mount: text" on stderr; `command` may be empty.
void PrintErrorLine(std::string_view command, std::string_view text);

// To stdout, as it is, with a newline.
void PrintLine(std::string_view text);

// Columns as wide as their widest cell; an empty one is "-".
void PrintTable(const std::vector<std::vector<std::string>>& rows);

// An error in a person's words: its message, and what the other side said, without internals.
std::string ErrorText(const Error& error);

// 4096 -> "4.0 KiB".
std::string HumanBytes(int64_t bytes);
// 252 -> "4m12s"; negative is "over".
std::string HumanSeconds(int64_t seconds);

}  // namespace e2bfs::fuse
