// "<sandbox>[:<path>]", the first argument of `e2bfs mount`.
#pragma once

#include <string>
#include <string_view>

#include "transport/base/error.h"

namespace e2bfs::fuse {

struct SandboxSpec {
  std::string sandbox_id;
  std::string path;  // as given: absolute, relative to the home, or empty (the home)
};

// EINVAL with one line: an id that is empty or not letters, digits, '-' and '_' (it becomes part of URLs), a path with a NUL.
Result<SandboxSpec> ParseSandboxSpec(std::string_view text);

}  // namespace e2bfs::fuse
