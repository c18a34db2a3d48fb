// The log that envd writes and the platform collects: unary requests and answers whole, command lines with
// their environment, the names of files that were read and written; not what streams carry (from 0.5.27 on).
#pragma once

#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace e2bfs::sandbox {

// Thread-safe. Keeps the last 16 MiB in memory.
class EnvdLog {
 public:
  // Also appends to `file` when it is not empty. Throws std::runtime_error if it cannot be opened.
  explicit EnvdLog(const std::string& file = "");
  ~EnvdLog();
  EnvdLog(const EnvdLog&) = delete;
  EnvdLog& operator=(const EnvdLog&) = delete;

  // One JSON line with a message and fields, whose values are JSON as it is.
  void Line(std::string_view message, const std::vector<std::pair<std::string, std::string>>& json_fields);
  std::string text() const;

 private:
  mutable std::mutex mutex_;
  std::string text_;  // guarded by mutex_
  std::FILE* file_ = nullptr;
};

// `text` as a JSON string, for a field of a line; bytes that are not UTF-8 become '?'.
std::string LogString(std::string_view text);

}  // namespace e2bfs::sandbox
