// From what the other side said to Error: the one table (PROTOCOL.md 3). Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "transport/base/error.h"
#include "transport/http/client.h"

namespace e2bfs::transport::envd {

// A Connect error: `code` as in "not_found" (empty if the body held none), `message` the server's text (length-limited here).
// `http_status`: of the head, 200 for one that came in an end-of-stream envelope.
Error FromRpcError(int http_status, std::string_view code, std::string_view message);

// A non-2xx answer of any kind: parses the body as Connect's, envd's, or the edge's JSON, or takes the status alone.
Error FromHttpAnswer(const http::ResponseHead& head, std::string_view body);

// The errno whose text, as Go prints it ("no such file or directory"), is the message or its last part after ": ".
std::optional<int> ErrnoFromText(std::string_view message);

// A listing or a watch failed because of a name that is not UTF-8 (trap 7): ask in another way.
bool IsInvalidUtf8Failure(const Error& error);

}  // namespace e2bfs::transport::envd
