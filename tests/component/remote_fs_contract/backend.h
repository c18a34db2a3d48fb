// What the contract suite runs on: a RemoteFs, and a way to act inside its sandbox behind its back.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sandbox/sandbox.h"
#include "transport/envd/client.h"
#include "transport/remote_fs.h"
#include "transport/service_fs.h"
#include "transport/syscall/syscall_fs.h"

namespace e2bfs::testing {

// How the file system of a backend is weaker than POSIX, where the interface lets it be.
struct ContractTraits {
  bool handles_survive_unlink = true;
  bool exchange = true;
  bool no_replace_directories = true;
  bool xattrs = true;
  bool changed_is_full = true;  // Changed carries the attributes
};

class ContractBackend {
 public:
  virtual ~ContractBackend() = default;
  virtual transport::RemoteFs& fs() = 0;
  virtual ContractTraits traits() const = 0;

  // Paths as in RemoteFs. Each asserts that it worked.
  virtual void InsideWrite(const std::string& path, const std::string& content) = 0;
  virtual void InsideReplace(const std::string& path, const std::string& content) = 0;  // by a rename over it
  virtual void InsideMakeDirectory(const std::string& path) = 0;
  virtual void InsideMakeSymlink(const std::string& path, const std::string& target) = 0;
  virtual void InsideMakeFifo(const std::string& path) = 0;
  virtual void InsideSetPermissions(const std::string& path, uint32_t permissions) = 0;
  // To another owner; false where that cannot be done.
  virtual bool InsideGiveAway(const std::string&) { return false; }
  virtual bool InsideExists(const std::string& path) = 0;  // lstat
  virtual std::optional<std::string> InsideRead(const std::string& path) = 0;
};

// Options for what only some images have.
struct ServiceBackendOptions {
  bool tls = false;
  std::string envd_version = "0.6.13";
  bool plain_tools = false;  // no perl, no find -printf, no dd with bytes
  std::string command_path;  // the sandbox's PATH; empty: the machine's
  bool syscall_tier = false;  // the other tier, on the same sandbox
  std::string external_url;  // another envd, not the double
};

class ServiceBackend : public ContractBackend {
 public:
  explicit ServiceBackend(ServiceBackendOptions options = {});
  ~ServiceBackend() override;

  transport::RemoteFs& fs() override { return *fs_; }
  ContractTraits traits() const override;
  void InsideWrite(const std::string& path, const std::string& content) override;
  void InsideReplace(const std::string& path, const std::string& content) override;
  void InsideMakeDirectory(const std::string& path) override;
  void InsideMakeSymlink(const std::string& path, const std::string& target) override;
  void InsideMakeFifo(const std::string& path) override;
  void InsideSetPermissions(const std::string& path, uint32_t permissions) override;
  bool InsideGiveAway(const std::string& path) override;
  bool InsideExists(const std::string& path) override;
  std::optional<std::string> InsideRead(const std::string& path) override;

  // Null when external.
  sandbox::Sandbox* sandbox() { return sandbox_.get(); }
  // Another file system of the same sandbox.
  Result<std::unique_ptr<transport::RemoteFs>> Mount(transport::ServiceFsOptions options);
  const std::string& home() const { return home_; }
  transport::envd::Client& client() { return *client_; }
  // A command's output, as the sandbox's user.
  std::string InsideRun(const std::string& script, const std::vector<std::string>& arguments);

 private:
  ServiceBackendOptions options_;
  std::string temporary_;
  std::string home_;  // absolute, of the mounted directory
  std::unique_ptr<sandbox::Sandbox> sandbox_;
  std::unique_ptr<transport::http::HttpClient> http_;
  std::shared_ptr<transport::envd::Client> client_;
  std::unique_ptr<transport::RemoteFs> fs_;
};

std::unique_ptr<ContractBackend> MakeMemoryBackend();

// A deadline that no loaded machine meets by accident.
OpContext ContractContext();

// Bytes of a store, by offset in the file.
class StringSource : public transport::ContentSource {
 public:
  explicit StringSource(std::string bytes) : bytes_(std::move(bytes)) {}
  Result<void> ReadAt(int64_t offset, char* buffer, size_t length) override;

 private:
  std::string bytes_;
};

}  // namespace e2bfs::testing
