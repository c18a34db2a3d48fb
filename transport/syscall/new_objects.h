// A row of new objects as the syscall server takes it, and its answer. Pure. Layouts: server.pl, MakeObjects.
#pragma once

#include <string>
#include <vector>

#include "transport/remote_fs.h"
#include "transport/syscall/frame.h"

namespace e2bfs::transport::syscall {

struct EncodedRow {
  std::string bytes;       // contents included
  size_t directories = 0;  // that are there, and are told of after the objects
};

// CheckRow's and ContentOf's errors.
Result<EncodedRow> EncodeRow(const std::vector<NewObject>& objects);

// EIO/kProtocol for what makes no sense as an answer to that row; and of an object that is none of that type, or that is told as another one, too.
Result<MadeObjects> DecodeMade(const std::vector<std::string_view>& pieces, const std::vector<NewObject>& objects, size_t directories, const Actor& actor);

}  // namespace e2bfs::transport::syscall
