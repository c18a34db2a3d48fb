// The fixture of the contract suite, and short ways to say things.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/component/remote_fs_contract/backend.h"

namespace e2bfs::testing {

struct ContractParameter {
  const char* name;
  std::function<std::unique_ptr<ContractBackend>()> make;
};

class RemoteFsContract : public ::testing::TestWithParam<ContractParameter> {
 protected:
  void SetUp() override { backend_ = GetParam().make(); }

  transport::RemoteFs& fs() { return backend_->fs(); }
  ContractTraits traits() { return backend_->traits(); }
  static transport::TimeChange Second(time_t second) { return {false, {second, 0}}; }
  static transport::Node At(const std::string& path) { return {path, {}}; }
  static transport::Name In(const std::string& directory, const std::string& name) { return {{directory, {}}, name}; }

  // 0 or the errno.
  template <typename T>
  static int Code(const Result<T>& result) {
    return result ? 0 : result.error().errno_value;
  }

  transport::Attributes MustStat(const std::string& path) {
    auto attributes = fs().Stat(At(path), ctx_);
    EXPECT_TRUE(attributes) << path << ": " << ToString(attributes.error());
    return attributes ? *attributes : transport::Attributes{};
  }

  std::vector<std::string> NamesIn(const std::string& path) {
    auto listing = fs().List(At(path), ctx_);
    EXPECT_TRUE(listing) << ToString(listing.error());
    std::vector<std::string> names;
    if (listing) {
      for (const auto& entry : listing->entries) names.push_back(entry.name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  Result<std::string> ReadAll(transport::Handle handle, const transport::Node& node, const transport::Attributes* version,
                              transport::Extent range) {
    auto stream = fs().Read(handle, node, version, range, ctx_);
    if (!stream) return Forward(stream.error());
    std::string all;
    char buffer[10000];
    while (true) {
      auto got = (*stream)->Read(buffer, sizeof buffer, ctx_);
      if (!got) return Forward(got.error());
      if (*got == 0) return all;
      all.append(buffer, *got);
    }
  }

  std::string Content(const std::string& path) {
    auto content = ReadAll(0, At(path), nullptr, {0, INT64_C(1) << 40});
    EXPECT_TRUE(content) << path << ": " << ToString(content.error());
    return content.value_or("");
  }

  transport::Opened MustCreate(const std::string& directory, const std::string& name, uint32_t permissions = 0644) {
    auto opened = fs().Create(In(directory, name), {permissions, true}, ctx_);
    EXPECT_TRUE(opened) << name << ": " << ToString(opened.error());
    return opened.value_or(transport::Opened{});
  }

  transport::MadeObjects MustMake(const std::vector<transport::NewObject>& row) {
    auto made = fs().MakeObjects(row, ctx_);
    EXPECT_TRUE(made) << ToString(made.error());
    if (!made) made.emplace();
    EXPECT_EQ(made->objects.size(), row.size());
    made->objects.resize(row.size());
    return std::move(*made);
  }

  // What was told is what is there now.
  void ExpectTold(const std::optional<transport::Attributes>& told, const std::string& path) {
    ASSERT_TRUE(told) << path;
    const auto now = MustStat(path);
    EXPECT_EQ(told->id, now.id) << path;
    EXPECT_EQ(told->type, now.type) << path;
    EXPECT_EQ(told->permissions, now.permissions) << path;
    EXPECT_EQ(told->access, now.access) << path;
    EXPECT_EQ(told->uid, now.uid) << path;
    EXPECT_EQ(told->gid, now.gid) << path;
    EXPECT_EQ(told->size, now.size) << path;
    EXPECT_EQ(told->watched, now.watched) << path;
    EXPECT_TRUE(SameTime(told->mtime, now.mtime)) << path;
  }

  static bool SameTime(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

  OpContext ctx_ = ContractContext();
  std::unique_ptr<ContractBackend> backend_;
};

}  // namespace e2bfs::testing
