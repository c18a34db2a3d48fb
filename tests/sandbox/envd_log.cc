#include "tests/sandbox/envd_log.h"

#include <stdexcept>

#include "tests/sandbox/json_text.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kKeptLogBytes = size_t{16} << 20;

}  // namespace

EnvdLog::EnvdLog(const std::string& file) {
  if (!file.empty()) {
    file_ = std::fopen(file.c_str(), "ae");
    if (file_ == nullptr) {
      throw std::runtime_error("cannot open the log file " + file);
    }
  }
}

EnvdLog::~EnvdLog() {
  if (file_ != nullptr) {
    std::fclose(file_);
  }
}

void EnvdLog::Line(std::string_view message,
                   const std::vector<std::pair<std::string, std::string>>& json_fields) {
  JsonText line;
  line.BeginObject();
  for (const auto& [key, json] : json_fields) {
    line.Key(key).Raw(json);
  }
  line.Key("message").Raw(LogString(message)).EndObject();
  const std::lock_guard lock(mutex_);
  if (text_.size() + line.text().size() > kKeptLogBytes) {
    text_.erase(0, text_.size() / 2);
  }
  text_ += line.text();
  text_ += '\n';
  if (file_ != nullptr) {
    std::fputs(line.text().c_str(), file_);
    std::fputc('\n', file_);
    std::fflush(file_);
  }
}

std::string EnvdLog::text() const {
  const std::lock_guard lock(mutex_);
  return text_;
}

std::string LogString(std::string_view text) {
  std::string clean(text);
  if (!IsUtf8(clean)) {
    for (char& c : clean) {
      if (static_cast<unsigned char>(c) >= 0x80) {
        c = '?';
      }
    }
  }
  JsonText json;
  json.String(clean);
  return json.TakeText();
}

}  // namespace e2bfs::sandbox
