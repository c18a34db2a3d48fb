#include "tests/component/remote_fs_contract/backend.h"

#include <gtest/gtest.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/support/memory_remote_fs.h"

namespace e2bfs::testing {

namespace {

// The suite also has to run as nobody special: commands of root are denied nothing.
std::string OrdinaryUser() {
  if (getuid() != 0) {
    const passwd* entry = getpwuid(getuid());
    return entry != nullptr ? entry->pw_name : "";
  }
  setpwent();
  std::string found;
  while (const passwd* entry = getpwent()) {
    if (entry->pw_uid != 0 && (found.empty() || strcmp(entry->pw_name, "nobody") == 0)) found = entry->pw_name;
  }
  endpwent();
  return found;
}

class MemoryBackend : public ContractBackend {
 public:
  transport::RemoteFs& fs() override { return fs_; }
  ContractTraits traits() const override { return {}; }
  void InsideWrite(const std::string& path, const std::string& content) override { ASSERT_TRUE(fs_.InsideWrite(path, content)); }
  void InsideReplace(const std::string& path, const std::string& content) override { ASSERT_TRUE(fs_.InsideReplace(path, content)); }
  void InsideMakeDirectory(const std::string& path) override { ASSERT_TRUE(fs_.InsideMakeDirectory(path)); }
  void InsideMakeSymlink(const std::string& path, const std::string& target) override {
    ASSERT_TRUE(fs_.InsideMakeSymlink(path, target));
  }
  void InsideMakeFifo(const std::string& path) override { ASSERT_TRUE(fs_.InsideMakeFifo(path)); }
  void InsideSetPermissions(const std::string& path, uint32_t permissions) override {
    ASSERT_TRUE(fs_.InsideSetPermissions(path, permissions));
  }
  bool InsideGiveAway(const std::string& path) override { return fs_.InsideSetOwner(path, 4711, 4711); }
  bool InsideExists(const std::string& path) override { return fs_.InsideExists(path); }
  std::optional<std::string> InsideRead(const std::string& path) override { return fs_.InsideRead(path); }

 private:
  MemoryRemoteFs fs_;
};

}  // namespace

std::unique_ptr<ContractBackend> MakeMemoryBackend() { return std::make_unique<MemoryBackend>(); }

OpContext ContractContext() { return OpContext::Within(std::chrono::minutes(5)); }

Result<void> StringSource::ReadAt(int64_t offset, char* buffer, size_t length) {
  if (offset < 0 || size_t(offset) > bytes_.size() || bytes_.size() - size_t(offset) < length) return Errno(EIO, "beyond the source");
  memcpy(buffer, bytes_.data() + offset, length);
  return {};
}

ServiceBackend::ServiceBackend(ServiceBackendOptions options) : options_(std::move(options)) {
  std::string url = options_.external_url;
  transport::http::ClientOptions http_options;
  transport::envd::ClientOptions client_options;
  client_options.compress = false;  // faults come at places of the content
  transport::ServiceFsOptions fs_options;
  if (url.empty()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-contract-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp");
    temporary_ = std::filesystem::canonical(pattern).string();
    std::string root = temporary_ + "/home";
    std::filesystem::create_directory(root);
    sandbox::SandboxOptions sandbox_options;
    sandbox_options.root = root;
    sandbox_options.envd_version = options_.envd_version;
    sandbox_options.command_path = options_.command_path;
    if (options_.tls) {
      sandbox_options.server.listen.clear();
      sandbox_options.server.tls_listen = "127.0.0.1:0";
    }
    std::string user = OrdinaryUser();
    if (!user.empty()) {
      const passwd* entry = getpwnam(user.c_str());
      if (chown(root.c_str(), entry->pw_uid, entry->pw_gid) != 0) throw std::runtime_error("chown");
      chmod(temporary_.c_str(), 0755);
      sandbox_options.default_user = user;
      client_options.user = user;
    }
    sandbox_ = std::make_unique<sandbox::Sandbox>(sandbox_options);
    url = options_.tls ? sandbox_->tls_base_url() : sandbox_->base_url();
    if (options_.tls) {
      http_options.ca_file = temporary_ + "/ca.pem";
      std::ofstream(http_options.ca_file) << sandbox_->server().certificate_pem();
    }
  } else {
    const char* user = getenv("E2BFS_TEST_ENVD_USER");
    client_options.user = user ? user : "";
  }
  auto http = transport::http::HttpClient::Create(http_options);
  if (!http) throw std::runtime_error("http: " + ToString(http.error()));
  http_ = std::move(*http);
  transport::Environment environment;
  environment.sandbox_url = url;
  environment.debug = true;
  auto endpoint = transport::SandboxEndpoint::Create(std::string(transport::kDebugSandboxId), "", environment, {});
  if (!endpoint) throw std::runtime_error("endpoint: " + ToString(endpoint.error()));
  client_ = std::make_shared<transport::envd::Client>(
      *http_, *endpoint, transport::envd::Capabilities::ForVersion(options_.external_url.empty() ? options_.envd_version : "debug"),
      client_options);
  if (!options_.external_url.empty()) {
    // A directory of our own in its user's home.
    transport::envd::RunRequest make;
    make.process.command = "/bin/sh";
    make.process.arguments = {"-c", "cd && mktemp -d \"$PWD/e2bfs-contract-XXXXXXXX\""};
    auto made = client_->Run(make, ContractContext());
    if (!made || !made->Succeeded()) throw std::runtime_error("no directory in the sandbox");
    fs_options.root = made->out.substr(0, made->out.size() - 1);
  }
  auto fs = options_.syscall_tier ? transport::SyscallFs::Create(client_, {.channel = {.root = fs_options.root}}, ContractContext())
                                  : Mount(fs_options);
  if (!fs) throw std::runtime_error("mounting: " + ToString(fs.error()));
  fs_ = std::move(*fs);
  home_ = fs_->description().root;
}

ServiceBackend::~ServiceBackend() {
  if (!options_.external_url.empty()) InsideRun("rm -rf -- \"$1\"", {home_});
  fs_.reset();
  client_.reset();
  http_.reset();
  sandbox_.reset();
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

Result<std::unique_ptr<transport::RemoteFs>> ServiceBackend::Mount(transport::ServiceFsOptions options) {
  if (options_.plain_tools) options.use_perl = options.use_find = options.use_dd_bytes = false;
  return transport::ServiceFs::Create(client_, options, ContractContext());
}

ContractTraits ServiceBackend::traits() const {
  ContractTraits traits;
  if (options_.syscall_tier) return traits;
  traits.handles_survive_unlink = false;
  traits.exchange = false;
  traits.no_replace_directories = false;
  traits.xattrs = false;
  traits.changed_is_full = options_.external_url.empty() && !options_.plain_tools;
  return traits;
}

std::string ServiceBackend::InsideRun(const std::string& script, const std::vector<std::string>& arguments) {
  transport::envd::RunRequest request;
  request.process.command = "/bin/sh";
  request.process.arguments = {"-c", script, "inside"};
  request.process.arguments.insert(request.process.arguments.end(), arguments.begin(), arguments.end());
  auto result = client_->Run(request, ContractContext());
  EXPECT_TRUE(result) << (result ? "" : ToString(result.error()));
  if (!result) return "";
  EXPECT_TRUE(result->Succeeded()) << script << ": " << result->err;
  return result->out;
}

void ServiceBackend::InsideWrite(const std::string& path, const std::string& content) {
  auto written = client_->WriteFile(home_ + "/" + path, content, ContractContext());
  ASSERT_TRUE(written) << ToString(written.error());
}

void ServiceBackend::InsideReplace(const std::string& path, const std::string& content) {
  InsideWrite(path + ".new", content);
  InsideRun("mv -f -- \"$1.new\" \"$1\"", {home_ + "/" + path});
}

void ServiceBackend::InsideMakeDirectory(const std::string& path) { InsideRun("mkdir -- \"$1\"", {home_ + "/" + path}); }

void ServiceBackend::InsideMakeSymlink(const std::string& path, const std::string& target) {
  InsideRun("ln -s -- \"$2\" \"$1\"", {home_ + "/" + path, target});
}

void ServiceBackend::InsideMakeFifo(const std::string& path) { InsideRun("mkfifo -- \"$1\"", {home_ + "/" + path}); }

void ServiceBackend::InsideSetPermissions(const std::string& path, uint32_t permissions) {
  char digits[8];
  snprintf(digits, sizeof digits, "0%04o", permissions & 07777U);
  InsideRun("chmod -- \"$2\" \"$1\"", {home_ + "/" + path, digits});
}

// The double serves this machine's files.
bool ServiceBackend::InsideGiveAway(const std::string& path) {
  return sandbox_ != nullptr && getuid() == 0 && chown((home_ + "/" + path).c_str(), 0, 0) == 0;
}

bool ServiceBackend::InsideExists(const std::string& path) {
  return InsideRun("if [ -e \"$1\" ] || [ -h \"$1\" ]; then echo yes; fi", {home_ + "/" + path}) == "yes\n";
}

std::optional<std::string> ServiceBackend::InsideRead(const std::string& path) {
  transport::envd::DownloadRequest request;
  request.path = home_ + "/" + path;
  auto content = client_->ReadFile(request, size_t{64} << 20, ContractContext());
  if (!content) return std::nullopt;
  return std::move(*content);
}

}  // namespace e2bfs::testing
