// Writing one uploaded file, as envd's processFile does.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "tests/sandbox/envd.h"

namespace e2bfs::sandbox {

struct UploadFailure {
  int status;
  std::string message;
};
// Up to `capacity` bytes; 0 at the end; nullopt: it broke off.
using UploadSource = std::function<std::optional<size_t>(char* buffer, size_t capacity)>;

// Makes the parents, changes the owner, truncates, and writes in place: what arrived before a failure stays.
// `metadata` replaces the file's own. Nullopt on success.
std::optional<UploadFailure> WriteUpload(EnvdContext& context, const Account& account,
                                         const std::string& path, const UploadSource& source,
                                         const std::map<std::string, std::string>& metadata,
                                         const std::string& broken_text);
// "" or why envd would refuse such metadata.
std::string CheckMetadata(const std::map<std::string, std::string>& metadata);

}  // namespace e2bfs::sandbox
