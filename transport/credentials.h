// Where the API key comes from.
#pragma once

#include <string>
#include <string_view>

#include "transport/base/error.h"
#include "transport/environment.h"
#include "transport/secret.h"

namespace e2bfs::transport {

// E2B_API_KEY, else the login that the E2B CLI keeps in ~/.e2b/config.json (`version` 2: projectApiKey, version 1: teamApiKey).
// Errors: kUnauthorized/EACCES, with a text that says what to do, when there is none, the file cannot be read or parsed, or the
// key does not look like one (see CheckApiKeyFormat). Errors never show the key. Reads one small file.
Result<Secret> FindApiKey(const Environment& environment);

// "e2b_" and at least one more of letters, digits, "_" and "-"; any printable ASCII without spaces where `validate` is false. (The SDKs ask for
// hexadecimal digits; the server judges what is behind the prefix, the check is there for keys of something else.)
Result<void> CheckApiKeyFormat(const Secret& key, bool validate);

}  // namespace e2bfs::transport
