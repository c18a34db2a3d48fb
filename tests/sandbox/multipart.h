// Go's mime/multipart reader and mime.ParseMediaType, as far as an upload form needs them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace e2bfs::sandbox {

struct MediaType {
  std::string type;                               // lower case; "" if it could not be parsed
  std::map<std::string, std::string> parameters;  // names in lower case; name*=utf-8''… decoded
};
MediaType ParseMediaType(std::string_view header);
// mime.FormatMediaType(type, {name: value}): a token, a quoted string, or percent-encoded.
std::string FormatMediaType(const std::string& type, const std::string& name, const std::string& value);

// Reads the parts of a form one after the other.
class MultipartReader {
 public:
  using Source =
      std::function<std::optional<size_t>(char* buffer, size_t capacity)>;  // 0: end, nullopt: torn
  MultipartReader(Source source, const std::string& boundary);
  // Goes to the next part (past what is left of this one). False at the end of the form; *broken if it ends
  // too early.
  bool NextPart(bool* broken);
  // A header of the part, by lower-case name.
  std::string PartHeader(const std::string& name) const;
  // Bytes of the part: 0 at its end, nullopt if the form ends too early.
  std::optional<size_t> Read(char* buffer, size_t capacity);

 private:
  bool Fill();
  bool ReadLine(std::string* line);
  Source source_;
  std::string delimiter_;  // "\r\n--boundary"
  std::string pending_;    // read from the source, not yet given out
  bool source_ended_ = false;
  bool in_part_ = false;
  std::map<std::string, std::string> headers_;
};

}  // namespace e2bfs::sandbox
