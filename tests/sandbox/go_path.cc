#include "tests/sandbox/go_path.h"

#include <cctype>
#include <system_error>
#include <vector>

namespace e2bfs::sandbox {

std::string CleanPath(std::string_view path) {
  if (path.empty()) {
    return ".";
  }
  const bool rooted = path.front() == '/';
  std::vector<std::string_view> kept;
  size_t at = 0;
  while (at < path.size()) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string_view element = path.substr(at, end - at);
    at = end + 1;
    if (element.empty() || element == ".") {
      continue;
    }
    if (element == "..") {
      if (!kept.empty() && kept.back() != "..") {
        kept.pop_back();
      } else if (!rooted) {
        kept.push_back(element);
      }
      continue;
    }
    kept.push_back(element);
  }
  std::string cleaned(rooted ? "/" : "");
  for (size_t i = 0; i < kept.size(); ++i) {
    if (i > 0) {
      cleaned += '/';
    }
    cleaned += kept[i];
  }
  return cleaned.empty() ? "." : cleaned;
}

std::string JoinPath(std::string_view first, std::string_view second) {
  if (first.empty() && second.empty()) {
    return "";
  }
  if (first.empty()) {
    return CleanPath(second);
  }
  std::string joined(first);
  if (!second.empty()) {
    joined += '/';
    joined += second;
  }
  return CleanPath(joined);
}

std::string BaseName(std::string_view path) {
  if (path.empty()) {
    return ".";
  }
  while (path.size() > 1 && path.back() == '/') {
    path.remove_suffix(1);
  }
  const size_t slash = path.rfind('/');
  if (slash != std::string_view::npos && path.size() > 1) {
    path.remove_prefix(slash + 1);
  }
  return std::string(path);
}

std::string ParentPath(std::string_view path) {
  const size_t slash = path.rfind('/');
  return CleanPath(slash == std::string_view::npos ? std::string_view() : path.substr(0, slash + 1));
}

std::string Extension(std::string_view path) {
  const size_t slash = path.rfind('/');
  const std::string_view last = slash == std::string_view::npos ? path : path.substr(slash + 1);
  const size_t dot = last.rfind('.');
  return dot == std::string_view::npos ? "" : std::string(last.substr(dot));
}

std::string ErrnoText(int error_number) {
  std::string text = std::generic_category().message(error_number);
  for (char& c : text) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return text;
}

std::string PathErrorText(std::string_view operation, std::string_view path, int error_number) {
  std::string text(operation);
  text += ' ';
  text += path;
  text += ": ";
  text += ErrnoText(error_number);
  return text;
}

}  // namespace e2bfs::sandbox
