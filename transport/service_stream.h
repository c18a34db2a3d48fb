// Content of a file by envd's files service.
#pragma once

#include <memory>
#include <string>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport {

namespace envd {
class Client;
}

// `absolute` is a regular file that the user may read. `version`: ESTALE unless size and time (grain of Last-Modified: a second) are
// those. `unreliable`: a file as in /proc, read from its beginning to its end whatever its size.
Result<std::unique_ptr<ByteStream>> OpenServiceStream(envd::Client& client, const std::string& absolute, const Attributes* version,
                                                      Extent range, bool unreliable, const OpContext& ctx);

}  // namespace e2bfs::transport
