#include "fuse/symlinks.h"

#include <climits>
#include <vector>

namespace e2bfs::fuse {
namespace {

// Without "" and ".".
std::vector<std::string_view> LinkComponents(std::string_view path) {
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    if (!part.empty() && part != ".") parts.push_back(part);
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return parts;
}

std::string JoinComponents(const std::vector<std::string_view>& parts, size_t from) {
  std::string joined;
  for (size_t i = from; i < parts.size(); ++i) {
    if (!joined.empty()) joined += '/';
    joined += parts[i];
  }
  return joined;
}

// True if relative `text` begins with at most `depth` times ".." and has no other.
bool StaysInside(std::string_view text, size_t depth) {
  size_t ups = 0;
  bool named = false;
  for (const std::string_view part : LinkComponents(text)) {
    if (part != "..") {
      named = true;
    } else if (named || ++ups > depth) {
      return false;
    }
  }
  return true;
}

// One component: every '/' and '%' encoded, and the dots of "." and "..", which would be steps.
std::string EncodeOutside(std::string_view text) {
  const bool step = text == "." || text == "..";
  std::string encoded(kOutsidePrefix);
  for (const char c : text) {
    if (c == '/') {
      encoded += "%2F";
    } else if (c == '%') {
      encoded += "%25";
    } else if (step) {
      encoded += "%2E";
    } else {
      encoded += c;
    }
  }
  return encoded;
}

// The inverse; nullopt for what EncodeOutside does not make.
std::optional<std::string> DecodeOutside(std::string_view text) {
  if (!text.starts_with(kOutsidePrefix)) return std::nullopt;
  const std::string_view rest = text.substr(kOutsidePrefix.size());
  std::string decoded;
  for (size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] != '%') {
      decoded += rest[i];
      continue;
    }
    const std::string_view code = rest.substr(i, 3);
    if (code == "%2F") {
      decoded += '/';
    } else if (code == "%25") {
      decoded += '%';
    } else if (code == "%2E") {
      decoded += '.';
    } else {
      return std::nullopt;
    }
    i += 2;
  }
  if (decoded.empty() || EncodeOutside(decoded) != text) return std::nullopt;
  return decoded;
}

Result<std::string> ShownOutside(SymlinkPolicy policy, std::string_view target) {
  if (policy == SymlinkPolicy::kRefuse) {
    return Errno(EPERM, "the link leads out of the mount (-o symlinks=inside shows where, raw follows it)");
  }
  return EncodeOutside(target);
}

// From `directory` to `place`, both relative to the root.
std::string RelativeWay(std::string_view directory, std::string_view place, size_t* ups) {
  const auto from = LinkComponents(directory);
  const auto to = LinkComponents(place);
  size_t common = 0;
  while (common < from.size() && common < to.size() && from[common] == to[common]) ++common;
  *ups = from.size() - common;
  std::string way;
  for (size_t i = 0; i < *ups; ++i) way += way.empty() ? ".." : "/..";
  const std::string down = JoinComponents(to, common);
  if (!way.empty() && !down.empty()) way += '/';
  way += down;
  return way.empty() ? "." : way;
}

}  // namespace

size_t PathDepth(std::string_view path) { return LinkComponents(path).size(); }

std::optional<std::string> PathBelow(std::string_view path, std::string_view root) {
  if (!path.starts_with('/')) return std::nullopt;
  const auto parts = LinkComponents(path);
  const auto root_parts = LinkComponents(root);
  if (parts.size() < root_parts.size()) return std::nullopt;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] == "..") return std::nullopt;
    if (i < root_parts.size() && parts[i] != root_parts[i]) return std::nullopt;
  }
  return JoinComponents(parts, root_parts.size());
}

Result<SymlinkPolicy> ParseSymlinkPolicy(std::string_view text) {
  if (text == "inside") return SymlinkPolicy::kInside;
  if (text == "raw") return SymlinkPolicy::kRaw;
  if (text == "refuse") return SymlinkPolicy::kRefuse;
  return Failure(ErrorKind::kLocal, EINVAL,
                 "symlinks must be inside, raw or refuse, not '" + std::string(text) + "'");
}

Result<std::string> ShownLinkText(SymlinkPolicy policy, std::string_view target, std::string_view root,
                                  std::string_view directory, size_t safe_depth) {
  if (target.empty() || target.find('\0') != std::string_view::npos) {
    return Failure(ErrorKind::kProtocol, EIO, "the sandbox gave a link text that no link can have");
  }
  Result<std::string> shown = std::string(target);
  if (policy != SymlinkPolicy::kRaw) {
    if (target.starts_with('/')) {
      size_t ups = 0;
      const auto place = PathBelow(target, root);
      if (place) shown = RelativeWay(directory, *place, &ups);
      if (!place || ups > safe_depth) shown = ShownOutside(policy, target);
    } else if (target.starts_with(kOutsidePrefix) || !StaysInside(target, safe_depth)) {
      // Text that looks as if we had made it is encoded once more, or making a link with the shown text would store another.
      shown = ShownOutside(policy, target);
    }
  }
  if (shown && shown->size() >= PATH_MAX) return Errno(ENAMETOOLONG, "the text of the link, as shown");
  return shown;
}

Result<std::string> StoredLinkText(SymlinkPolicy policy, std::string_view text, std::string_view root,
                                   std::string_view mount_point, std::string_view directory) {
  if (text.empty()) return Errno(ENOENT);
  if (policy == SymlinkPolicy::kRaw) return std::string(text);
  const auto original = DecodeOutside(text);
  if (policy == SymlinkPolicy::kRefuse && original) {
    return Errno(EPERM, "a link that would lead out of the mount");
  }
  if (original) return *original;
  std::string stored(text);
  if (text.starts_with('/') && !mount_point.empty()) {
    if (const auto place = PathBelow(text, mount_point)) {
      stored = "/" + JoinComponents(LinkComponents(root), 0);
      if (!place->empty()) stored += (stored == "/" ? "" : "/") + *place;
    }
  }
  if (policy == SymlinkPolicy::kRefuse) {
    const bool inside = stored.starts_with('/') ? PathBelow(stored, root).has_value()
                                                : StaysInside(stored, PathDepth(directory));
    if (!inside) return Errno(EPERM, "a link that would lead out of the mount");
  }
  return stored;
}

}  // namespace e2bfs::fuse
