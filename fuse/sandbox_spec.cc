#include "fuse/sandbox_spec.h"

#include <fmt/core.h>

namespace e2bfs::fuse {
namespace {

constexpr size_t kMaxSandboxId = 128;

bool IsSandboxIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

}  // namespace

Result<SandboxSpec> ParseSandboxSpec(std::string_view text) {
  const size_t colon = text.find(':');
  SandboxSpec spec;
  spec.sandbox_id = std::string(text.substr(0, colon));
  if (colon != std::string_view::npos) spec.path = std::string(text.substr(colon + 1));
  if (spec.sandbox_id.empty()) {
    return Failure(ErrorKind::kBadRequest, EINVAL, fmt::format("'{}': the sandbox's id is missing: SANDBOX[:PATH]", text));
  }
  bool good = spec.sandbox_id.size() <= kMaxSandboxId;
  for (char c : spec.sandbox_id) good = good && IsSandboxIdCharacter(c);
  if (!good) {
    return Failure(ErrorKind::kBadRequest, EINVAL,
                   fmt::format("'{}' is no sandbox id: letters, digits, '-' and '_' only", spec.sandbox_id));
  }
  if (spec.path.find('\0') != std::string::npos) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "a path cannot hold a NUL");
  }
  return spec;
}

}  // namespace e2bfs::fuse
