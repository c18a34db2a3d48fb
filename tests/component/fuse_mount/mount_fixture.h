// A real mount over a RemoteFs in memory: the kernel, libfuse, the bridge and the cache, without a network.
//
// The mount lives in this process, so nothing here touches it but child processes: a thread of this process that waited in
// the kernel for an answer of another one could not be killed apart.
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stop_token>
#include <string>
#include <thread>

#include "cache/cached_fs.h"
#include "fuse/mount.h"
#include "fuse/mount_table.h"
#include "tests/support/faulty_remote_fs.h"
#include "tests/support/memory_remote_fs.h"

namespace e2bfs::fuse {

namespace fs = std::filesystem;
using testing::FaultyRemoteFs;
using testing::MemoryRemoteFs;
using testing::MemoryRemoteFsOptions;

inline constexpr std::chrono::seconds kMountPatience{120};

struct CommandResult {
  int status = -1;  // exit status, or 128 + signal
  std::string output;
};

// Runs `script` by sh in a process of its own; stdout and stderr together.
class ShellChild {
 public:
  explicit ShellChild(const std::string& script) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) abort();
    pid_ = fork();
    if (pid_ == 0) {
      setpgid(0, 0);
      dup2(fds[1], 1);
      dup2(fds[1], 2);
      execl("/bin/sh", "sh", "-c", script.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    close(fds[1]);
    output_fd_ = fds[0];
  }
  ~ShellChild() {
    if (pid_ > 0) {
      kill(-pid_, SIGKILL);
      Wait();
    }
    close(output_fd_);
  }
  CommandResult Wait() {
    CommandResult result;
    char buffer[4096];
    ssize_t got;
    while ((got = read(output_fd_, buffer, sizeof buffer)) > 0) result.output.append(buffer, static_cast<size_t>(got));
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
  int output_fd_;
};

inline CommandResult Shell(const std::string& script) { return ShellChild(script).Wait(); }

class MountFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(access("/dev/fuse", R_OK | W_OK), 0) << "these tests need /dev/fuse";
    std::string pattern = (fs::temp_directory_path() / "e2bfs-mount-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    base_ = fs::canonical(pattern);
    mount_point_ = base_ / "mnt";
    for (const char* name : {"mnt", "spool", "state"}) ASSERT_TRUE(fs::create_directory(base_ / name));
    fs::permissions(base_ / "spool", fs::perms::owner_all);
    UseRemote({});
  }

  // A sandbox of another kind; before StartMount.
  void UseRemote(MemoryRemoteFsOptions options) {
    memory_ = std::make_unique<MemoryRemoteFs>(std::move(options));
    remote_ = std::make_unique<FaultyRemoteFs>(*memory_);
  }

  void TearDown() override {
    remote_->Release();
    stop_.request_stop();
    if (thread_.joinable()) thread_.join();
    if (const auto table = ReadMountTable(); table && FindMount(*table, mount_point_.string())) {
      Shell("fusermount3 -uz '" + mount_point_.string() + "' 2>/dev/null || umount -l '" + mount_point_.string() + "'");
    }
    cached_.reset();
    std::error_code ignored;
    fs::remove_all(base_, ignored);
  }

  // Mounts and waits until it answers.
  void StartMount(MountOptions options = {}) {
    cache_options_.spool_directory = (base_ / "spool").string();
    auto cached = cache::CachedFs::Create(*remote_, cache_options_, OpContext::Within(kMountPatience));
    ASSERT_TRUE(cached) << ToString(cached.error());
    cached_ = std::move(*cached);
    options.mount_point = mount_point_.string();
    options.unsent_directory = (base_ / "state").string();
    options.stop = stop_.get_token();
    thread_ = std::thread([this, options] {
      auto end = RunMount(options, *cached_, [this] {
        std::lock_guard lock(mutex_);
        ready_ = true;
        changed_.notify_all();
      });
      std::lock_guard lock(mutex_);
      end_ = std::move(end);
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, kMountPatience, [this] { return ready_ || end_.has_value(); }));
    ASSERT_TRUE(ready_) << ToString(end_->error());
  }

  MountEnd WaitEnd() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kMountPatience, [this] { return end_.has_value(); })) {
      ADD_FAILURE() << "the mount does not end";
      return {};
    }
    if (!*end_) {
      ADD_FAILURE() << ToString(end_->error());
      return {};
    }
    return **end_;
  }

  bool IsMounted() const {
    const auto table = ReadMountTable();
    return table && FindMount(*table, mount_point_.string()).has_value();
  }

  // In the mount.
  CommandResult In(const std::string& script) { return Shell("cd '" + mount_point_.string() + "' && " + script); }

  // What `work` returns, done by a process of its own with `directory` as its working directory.
  static std::string InProcess(const std::string& directory, const std::function<std::string()>& work, uid_t user = 0) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) return "no pipe";
    const pid_t child = fork();
    if (child == 0) {
      if (chdir(directory.c_str()) != 0) _exit(1);
      if (user != 0 && (setgroups(0, nullptr) != 0 || setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0)) _exit(2);
      const std::string said = work();
      for (size_t done = 0; done < said.size();) {
        const ssize_t written = write(fds[1], said.data() + done, said.size() - done);
        if (written <= 0) _exit(3);
        done += static_cast<size_t>(written);
      }
      _exit(0);
    }
    close(fds[1]);
    std::string said;
    char buffer[4096];
    for (ssize_t got; (got = read(fds[0], buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<size_t>(got));
    close(fds[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status == 0 ? said : said + " (status " + std::to_string(status) + ")";
  }
  std::string OnMount(const std::function<std::string()>& work, uid_t user = 0) {
    return InProcess(mount_point_.string(), work, user);
  }

  template <typename Condition>
  static bool Soon(Condition condition) {
    const auto until = std::chrono::steady_clock::now() + kMountPatience;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

  fs::path base_, mount_point_;
  cache::CachedFsOptions cache_options_;
  std::unique_ptr<MemoryRemoteFs> memory_;
  std::unique_ptr<FaultyRemoteFs> remote_;
  std::unique_ptr<cache::CachedFs> cached_;
  std::stop_source stop_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  std::optional<Result<MountEnd>> end_;
};

}  // namespace e2bfs::fuse
