#include "transport/service_names.h"

#include <cerrno>
#include <vector>

#include "transport/envd/messages.h"

namespace e2bfs::transport {

namespace {

// The keys of a map that lie below `path` in it: "path/".."path0", since '0' follows '/'.
std::pair<std::string, std::string> KeysBelow(const std::string& path) { return {path + "/", path + "0"}; }

}  // namespace

std::string PathIdentities::Identity(const std::string& path) const {
  std::string ancestor = path;
  while (true) {
    auto found = exceptions_.find(ancestor);
    if (found != exceptions_.end()) return found->second.identity + path.substr(ancestor.size());
    size_t slash = ancestor.rfind('/');
    if (slash == std::string::npos) return "0:" + path;
    ancestor.resize(slash);
  }
}

std::string PathIdentities::NewIdentity() { return std::to_string(++last_epoch_) + ":"; }

void PathIdentities::ForgetBelow(const std::string& path) {
  auto [first, last] = KeysBelow(path);
  exceptions_.erase(exceptions_.lower_bound(first), exceptions_.lower_bound(last));
}

FileId PathIdentities::IdOf(const std::string& path) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return {Identity(path)};
}

void PathIdentities::Created(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  ForgetBelow(path);
  auto [place, fresh] = exceptions_.try_emplace(path);
  place->second = {NewIdentity(), fresh ? true : place->second.forgettable};
}

void PathIdentities::Removed(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  ForgetBelow(path);
  auto found = exceptions_.find(path);
  if (found != exceptions_.end() && found->second.forgettable) {
    exceptions_.erase(found);
  } else {
    exceptions_[path] = {NewIdentity(), false};
  }
}

void PathIdentities::Renamed(const std::string& from, const std::string& to, bool replaced) {
  if (from == to) return;
  std::lock_guard<std::mutex> lock(mutex_);
  std::string identity = Identity(from);
  auto [first, last] = KeysBelow(from);
  std::vector<std::pair<std::string, Exception>> below;
  for (auto it = exceptions_.lower_bound(first); it != exceptions_.end() && it->first < last;) {
    below.emplace_back(to + it->first.substr(from.size()), std::move(it->second));
    it = exceptions_.erase(it);
  }
  auto source = exceptions_.find(from);
  if (source != exceptions_.end() && source->second.forgettable) {
    exceptions_.erase(source);
  } else {
    exceptions_[from] = {NewIdentity(), false};
  }
  ForgetBelow(to);
  auto target = exceptions_.find(to);
  bool forgettable = target != exceptions_.end() ? target->second.forgettable : !replaced;
  exceptions_[to] = {identity, forgettable};
  for (auto& [path, exception] : below) exceptions_[path] = std::move(exception);
}

size_t PathIdentities::exceptions() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return exceptions_.size();
}

std::string JoinPath(const std::string& directory, const std::string& name) {
  if (directory.empty()) return name;
  if (name.empty()) return directory;
  return directory.back() == '/' ? directory + name : directory + "/" + name;
}

std::string ParentPath(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

int CheckName(std::string_view name) {
  if (name.empty() || name == "." || name == "..") return EINVAL;
  if (name.find('/') != std::string_view::npos || name.find('\0') != std::string_view::npos) return EINVAL;
  return name.size() > 255 ? ENAMETOOLONG : 0;
}

int CheckPath(std::string_view path) {
  while (!path.empty()) {
    size_t slash = path.find('/');
    if (int wrong = CheckName(path.substr(0, slash))) return wrong;
    if (slash == std::string_view::npos) return 0;
    path.remove_prefix(slash + 1);
    if (path.empty()) return EINVAL;
  }
  return 0;
}

int CheckLinkText(std::string_view text) {
  if (text.empty()) return ENOENT;
  if (text.find('\0') != std::string_view::npos) return EINVAL;
  return text.size() > 4095 ? ENAMETOOLONG : 0;
}

bool IsUtf8Text(std::string_view bytes) { return bytes.find('\0') == std::string_view::npos && envd::IsUtf8(bytes); }

std::string EncodeArgument(std::string_view bytes) {
  if (IsUtf8Text(bytes)) return "=" + std::string(bytes);
  static constexpr char kDigits[] = "01234567";
  std::string result = "%";
  for (char c : bytes) {
    unsigned char byte = static_cast<unsigned char>(c);
    bool plain = (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || byte == '/' ||
                 byte == '.' || byte == '-' || byte == '_';
    if (plain) {
      result += c;
    } else {
      result += "\\0";
      result += {kDigits[byte >> 6], kDigits[byte >> 3 & 7], kDigits[byte & 7]};
    }
  }
  return result;
}

}  // namespace e2bfs::transport
