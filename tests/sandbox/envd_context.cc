#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <stdexcept>

#include "tests/sandbox/envd.h"
#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

std::optional<Account> AccountFromPasswd(const passwd& entry) {
  Account account;
  account.name = entry.pw_name;
  account.uid = entry.pw_uid;
  account.gid = entry.pw_gid;
  account.home = entry.pw_dir;
  int count = 64;
  account.groups.resize(static_cast<size_t>(count));
  if (getgrouplist(entry.pw_name, entry.pw_gid, account.groups.data(), &count) < 0) {
    account.groups.resize(static_cast<size_t>(count));
    getgrouplist(entry.pw_name, entry.pw_gid, account.groups.data(), &count);
  }
  account.groups.resize(static_cast<size_t>(count));
  return account;
}

std::optional<Account> LookUpAccount(const std::string& name) {
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  if (getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) {
    return std::nullopt;
  }
  return AccountFromPasswd(*found);
}

Account RunningAccount() {
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  if (getpwuid_r(geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
    return *AccountFromPasswd(*found);
  }
  Account account;
  account.name = std::to_string(geteuid());
  account.uid = geteuid();
  account.gid = getegid();
  account.groups = {getegid()};
  account.home = "/";
  return account;
}

// realpath(3) of what exists of `path`, with the rest appended by text.
std::string CanonicalPath(const std::string& path, bool follow, int links_left = 40) {
  std::string existing = path;
  std::string rest;
  if (!follow && existing.size() > 1) {
    while (existing.size() > 1 && existing.back() == '/') {
      existing.pop_back();
    }
    const size_t slash = existing.rfind('/');
    rest = existing.substr(slash);
    existing.resize(slash == 0 ? 1 : slash);
  }
  while (true) {
    if (char* real = realpath(existing.c_str(), nullptr)) {
      std::string canonical(real);
      free(real);
      return CleanPath(canonical + rest);
    }
    char target[PATH_MAX];
    const ssize_t length = readlink(existing.c_str(), target, sizeof(target));
    if (length > 0 && links_left > 0 && (follow || !rest.empty())) {  // a link to what is not there yet
      const std::string text(target, static_cast<size_t>(length));
      const std::string beside = existing.substr(0, existing.rfind('/') + 1);
      return CanonicalPath((text.front() == '/' ? text : beside + text) + rest, true, links_left - 1);
    }
    const size_t slash = existing.find_last_of('/');
    if (slash == std::string::npos || existing == "/") {
      return CleanPath("/" + rest);
    }
    rest = existing.substr(slash) + rest;
    existing.resize(slash == 0 ? 1 : slash);
  }
}

bool IsAtOrBelow(std::string_view path, std::string_view directory) {
  if (directory == "/") {
    return true;
  }
  return path.substr(0, directory.size()) == directory &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

}  // namespace

EnvdContext::EnvdContext(const EnvdOptions& options)
    : options_(options),
      can_(EnvdCapabilities::Of(options.version)),
      log_(options.log_file),
      self_(RunningAccount()) {
  char* real = realpath(options.root.c_str(), nullptr);
  if (real == nullptr) {
    throw std::runtime_error("the root directory " + options.root + ": " + ErrnoText(errno));
  }
  canonical_root_ = real;
  free(real);
  struct stat info {};
  if (stat(canonical_root_.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    throw std::runtime_error("the root " + options.root + " is not a directory");
  }
  if (options_.default_user.empty()) {
    options_.default_user = self_.name;
  }
}

std::optional<Account> EnvdContext::FindAccount(const std::string& name) const {
  auto account = LookUpAccount(name);
  if (!account && name == options_.default_user) {
    account = self_;
  }
  if (account && geteuid() != 0) {
    const std::string home = account->home;
    account = self_;
    account->home = home;
  }
  if (account && canonical_root_ != "/") {
    account->home = canonical_root_;
  }
  return account;
}

std::optional<std::string> EnvdContext::BasicUser(const Exchange& exchange) {
  const auto header = exchange.Header("authorization");
  if (!header || header->size() < 6) {
    return std::nullopt;
  }
  std::string scheme = header->substr(0, 6);
  for (char& c : scheme) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  if (scheme != "basic ") {
    return std::nullopt;
  }
  const auto decoded = Base64Decode(std::string_view(*header).substr(6));
  if (!decoded || decoded->find(':') == std::string::npos) {
    return std::nullopt;
  }
  return decoded->substr(0, decoded->find(':'));
}

RpcResult<Account> EnvdContext::RpcAccount(const Exchange& exchange) const {
  const auto name = BasicUser(exchange);
  if (!name && !can_.default_user) {
    return RpcFailure("unauthenticated", "no user specified");
  }
  auto account = FindAccount(name.value_or(options_.default_user));
  if (!account) {
    return RpcFailure("unauthenticated", "invalid default user: '" + options_.default_user + "'");
  }
  return std::move(*account);
}

RpcResult<std::string> EnvdContext::ResolvePath(const std::string& path, const Account& account) const {
  if (!path.empty() && path[0] == '~') {
    if (path.size() > 1 && path[1] != '/' && path[1] != '\\') {
      return RpcFailure("invalid_argument", "failed to expand path '" + path + "' for user '" + account.name +
                                                "': cannot expand user-specific home dir");
    }
    return JoinPath(account.home, path.substr(1));
  }
  if (!path.empty() && path[0] == '/') {
    return path;
  }
  return JoinPath(account.home, path);
}

bool EnvdContext::InsideFence(const std::string& path, bool follow) const {
  if (canonical_root_ == "/") {
    return true;
  }
  const std::string cleaned = CleanPath(path);
  const bool leaves_proc = path.find("/..") != std::string::npos || path.find("/root") != std::string::npos ||
                           path.find("/cwd") != std::string::npos;
  if ((IsAtOrBelow(cleaned, "/proc") || IsAtOrBelow(cleaned, "/sys")) && !leaves_proc) {
    return true;
  }
  return IsAtOrBelow(CanonicalPath(path, follow), canonical_root_);
}

RpcResult<std::string> EnvdContext::FencedPath(const std::string& path, const Account& account,
                                               bool follow) const {
  auto resolved = ResolvePath(path, account);
  if (resolved && resolved->find('\0') != std::string::npos) {
    return RpcFailure("internal", "error getting file info: " + PathErrorText("lstat", "…", EINVAL));
  }
  if (resolved && !InsideFence(*resolved, follow)) {
    return RpcFailure("permission_denied",
                      "the path " + *resolved + " is outside of the test sandbox's root");
  }
  return resolved;
}

int EnvdContext::ChownPath(const std::string& path, const Account& account) const {
  return chown(path.c_str(), account.uid, account.gid) == 0 ? 0 : errno;
}

RpcResult<void> EnvdContext::EnsureDirectories(const std::string& path, const Account& account) const {
  const std::string target = CleanPath(path);
  size_t end = 0;
  while (end < target.size()) {
    end = std::min(target.find('/', end + 1), target.size());
    const std::string step = target.substr(0, end);
    struct stat info {};
    if (stat(step.c_str(), &info) == 0) {
      if (!S_ISDIR(info.st_mode)) {
        return RpcFailure("internal", "path is a file: " + step);
      }
      continue;
    }
    if (errno != ENOENT) {
      return RpcFailure("internal", "failed to stat directory: " + PathErrorText("stat", step, errno));
    }
    if (mkdir(step.c_str(), 0755) == 0) {
      (void)chmod(step.c_str(), 0755);  // whatever the umask here: envd's is 022
    } else if (errno != EEXIST) {
      return RpcFailure("internal", "failed to create directory: " + PathErrorText("mkdir", step, errno));
    }
    if (const int error = ChownPath(step, account); error != 0) {
      return RpcFailure("internal", "failed to chown directory: " + PathErrorText("chown", step, error));
    }
  }
  return {};
}

}  // namespace e2bfs::sandbox
