// Go's http.ServeContent: a file as the answer to a GET, with conditions and ranges.
#pragma once

#include <ctime>
#include <string>
#include <string_view>

#include "tests/sandbox/exchange.h"

namespace e2bfs::sandbox {

// Answers with the content of the open file `fd`. `name` gives the media type by its extension. Without a
// `modified` time (0) there is no Last-Modified and no condition on it holds. `headers` are sent with every
// answer but the errors that Go strips.
void ServeContent(Exchange& exchange, int fd, const std::string& name, time_t modified, HeaderList headers);
// mime.TypeByExtension with Go's own table; "" if unknown.
std::string MediaTypeByExtension(std::string extension);
// http.Error: a line of plain text.
void ReplyGoError(Exchange& exchange, int status, HeaderList headers, const std::string& text);

}  // namespace e2bfs::sandbox
