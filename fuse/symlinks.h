// What a program here sees as the text of a symbolic link of the sandbox, and what is stored when a program makes one.
//
// The text is chosen by the other side, which is not trusted, and followed by this machine's kernel. So by default nothing
// is shown that could lead out of the mount:
//   - relative text that can only stay below the mounted directory is shown as it is;
//   - an absolute target below the mounted directory is shown as the relative way to it;
//   - everything else is shown as kOutsidePrefix + the original, percent-encoded: a link that leads nowhere and says why.
//     Making a link with that text stores the original, so that `cp -a` and `tar` within the mount keep such links.
// ".." after a name counts as leading out, whatever it looks like: the name may be a link, and ".." is then somewhere else.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "transport/base/error.h"

namespace e2bfs::fuse {

enum class SymlinkPolicy {
  kInside,  // as above
  kRaw,     // text as it is, both ways; for sandboxes that are trusted
  kRefuse,  // as kInside, but a link that leads out cannot be read (EPERM) nor made
};

inline constexpr std::string_view kOutsidePrefix = ".e2bfs-outside/";

// "inside", "raw", "refuse"; EINVAL otherwise.
Result<SymlinkPolicy> ParseSymlinkPolicy(std::string_view text);

// What readlink(2) gives. `target`: the stored text; `root`: the mounted directory, absolute in the sandbox;
// `directory`: the directory that holds the link, relative to `root`, "" for root itself; `safe_depth`: so many ".." are
// certainly still inside (the depth of `directory`, or less if the link has further names nearer to the root).
// EIO: text that no link can have (empty, with a NUL). ENAMETOOLONG: it does not fit into PATH_MAX. EPERM: refused. Pure.
Result<std::string> ShownLinkText(SymlinkPolicy policy, std::string_view target, std::string_view root,
                                  std::string_view directory, size_t safe_depth);

// The components of a path: "a//b/" has 2.
size_t PathDepth(std::string_view path);
// What of `path` is below `root` ("" for root itself), or nullopt; component by component, "//" and "." dropped, any ".." is nullopt.
std::optional<std::string> PathBelow(std::string_view path, std::string_view root);

// What is stored for a link made with `text`. An absolute path below `mount_point` (where the mount is on this machine,
// absolute; may be empty) becomes the same place in the sandbox. EPERM: refused. Pure.
Result<std::string> StoredLinkText(SymlinkPolicy policy, std::string_view text, std::string_view root,
                                   std::string_view mount_point, std::string_view directory);

}  // namespace e2bfs::fuse
