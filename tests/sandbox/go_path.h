// Paths and error texts as Go's path/filepath and os packages make them: what envd answers is built from
// these.
#pragma once

#include <string>
#include <string_view>

namespace e2bfs::sandbox {

// filepath.Clean: the shortest equivalent path by text alone; "" gives ".".
std::string CleanPath(std::string_view path);
// filepath.Join of two elements; an empty element is left out.
std::string JoinPath(std::string_view first, std::string_view second);
// filepath.Base: the last element without trailing slashes; "/" for only slashes, "." for "".
std::string BaseName(std::string_view path);
// filepath.Dir: all but the last element, cleaned.
std::string ParentPath(std::string_view path);
// filepath.Ext: from the last dot of the last element on, or "".
std::string Extension(std::string_view path);
// The text of an errno as in Go's errors: strerror in lower case.
std::string ErrnoText(int error_number);
// A Go *PathError's text: "open /x: no such file or directory".
std::string PathErrorText(std::string_view operation, std::string_view path, int error_number);

}  // namespace e2bfs::sandbox
