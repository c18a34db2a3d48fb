// A CachedFs over a MemoryRemoteFs with faults in between, and short words for what tests do with it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cache/cached_fs.h"
#include "tests/support/faulty_remote_fs.h"
#include "tests/support/memory_remote_fs.h"

namespace e2bfs::cache {

inline constexpr auto kLongTtl = std::chrono::hours(1);
inline constexpr auto kNoTtl = std::chrono::milliseconds(0);

class CacheFixture : public ::testing::Test {
 protected:
  CacheFixture() {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-cache-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    spool_ = pattern;
    options_.attribute_ttl = kLongTtl;
    options_.negative_ttl = kLongTtl;
    options_.spool_directory = spool_;
  }
  ~CacheFixture() override {
    faulty_->Clear();
    fs_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(spool_, ignored);
  }

  // An empty sandbox of another kind, and a new mount of it.
  void UseRemote(testing::MemoryRemoteFsOptions options) {
    fs_.reset();
    remote_ = std::make_unique<testing::MemoryRemoteFs>(std::move(options));
    faulty_ = std::make_unique<testing::FaultyRemoteFs>(*remote_);
  }
  CachedFs& fs() {
    if (!fs_) {
      auto made = CachedFs::Create(*faulty_, options_, Ctx());
      if (!made) {
        ADD_FAILURE() << ToString(made.error());
        std::abort();
      }
      fs_ = std::move(*made);
    }
    return *fs_;
  }

  static OpContext Ctx() { return OpContext::Within(std::chrono::seconds(60)); }
  static int Errno(const Result<void>& result) { return result ? 0 : result.error().errno_value; }
  template <typename T>
  static int Errno(const Result<T>& result) {
    return result ? 0 : result.error().errno_value;
  }

  // 0 and a failure if a part is not there.
  NodeId Find(const std::string& path) {
    NodeId node = kRoot;
    for (const auto& part : std::filesystem::path(path)) {
      auto found = fs().Lookup(node, part.string(), Ctx());
      if (!found) {
        ADD_FAILURE() << path << ": " << ToString(found.error());
        return 0;
      }
      node = found->node;
    }
    return node;
  }
  FileHandle OpenFor(NodeId node, OpenFlags flags) {
    auto opened = fs().Open(node, flags, Ctx());
    if (!opened) {
      ADD_FAILURE() << ToString(opened.error());
      return 0;
    }
    return opened->handle;
  }
  FileHandle OpenRead(const std::string& path) { return OpenFor(Find(path), OpenFlags{}); }
  FileHandle OpenWrite(const std::string& path) { return OpenFor(Find(path), OpenFlags{true, true, false, false}); }
  OpenedFile Made(const std::string& name, NodeId parent = kRoot, OpenFlags flags = {true, true, false, false}) {
    auto made = fs().CreateFile(parent, name, 0644, true, flags, Ctx());
    if (!made) {
      ADD_FAILURE() << ToString(made.error());
      return {};
    }
    return *made;
  }
  void Write(FileHandle handle, int64_t offset, std::string_view bytes) {
    auto written = fs().Write(handle, offset, bytes, Ctx());
    ASSERT_TRUE(written) << ToString(written.error());
    ASSERT_EQ(*written, bytes.size());
  }
  std::string ReadAt(FileHandle handle, int64_t offset, size_t length) {
    std::string bytes(length, '?');
    auto got = fs().Read(handle, offset, bytes.data(), length, Ctx());
    if (!got) return "error " + ErrnoName(got.error().errno_value);
    bytes.resize(*got);
    return bytes;
  }
  std::string ReadAll(FileHandle handle, size_t piece = 128 << 10) {
    std::string all;
    for (;;) {
      const std::string part = ReadAt(handle, static_cast<int64_t>(all.size()), piece);
      all += part;
      if (part.size() < piece) return all;
    }
  }
  std::string Content(const std::string& path) {
    const FileHandle handle = OpenRead(path);
    std::string all = ReadAll(handle);
    fs().Release(handle, Ctx());
    return all;
  }
  int Flush(FileHandle handle) { return Errno(fs().Flush(handle, Ctx())); }
  // close(2): the flush's errno.
  int Close(FileHandle handle) {
    const int error = Flush(handle);
    fs().Release(handle, Ctx());
    return error;
  }
  int64_t Size(NodeId node) {
    auto attributes = fs().GetAttributes(node, Ctx());
    return attributes ? attributes->attributes.size : -attributes.error().errno_value;
  }
  int Truncate(NodeId node, FileHandle handle, int64_t size) {
    transport::AttributeChange change;
    change.size = size;
    return Errno(fs().SetAttributes(node, handle, change, Ctx()));
  }
  std::vector<std::string> List(NodeId node) {
    std::vector<std::string> names;
    auto handle = fs().OpenDirectory(node, Ctx());
    if (!handle) return {"error " + ErrnoName(handle.error().errno_value)};
    auto read = fs().ReadDirectory(
        *handle, 0, false,
        [&](const DirectoryEntry& entry, uint64_t) {
          names.push_back(entry.name);
          return true;
        },
        Ctx());
    fs().CloseDirectory(*handle);
    if (!read) return {"error " + ErrnoName(read.error().errno_value)};
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string Inside(const std::string& path) { return remote_->InsideRead(path).value_or("(not there)"); }
  size_t SpoolFiles() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(spool_), {}));
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  std::string spool_;
  CachedFsOptions options_;
  std::unique_ptr<testing::MemoryRemoteFs> remote_ = std::make_unique<testing::MemoryRemoteFs>();
  std::unique_ptr<testing::FaultyRemoteFs> faulty_ = std::make_unique<testing::FaultyRemoteFs>(*remote_);
  std::unique_ptr<CachedFs> fs_;
};

}  // namespace e2bfs::cache
