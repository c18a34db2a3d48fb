// The contract about open files: by a handle, by one whose open was not waited for, and by none.
#include "tests/component/remote_fs_contract/contract_fixture.h"

#include <string_view>

namespace e2bfs::testing {

TEST_P(RemoteFsContract, WithoutAHandleAFileIsOpenedForOneUse) {
  backend_->InsideWrite("file", "old content");
  const transport::Attributes file = MustStat("file");
  const transport::Node node{"file", file.id};
  EXPECT_EQ(ReadAll(0, node, &file, {0, 11}).value_or("?"), "old content");
  StringSource source("new");
  transport::StoreRequest request;
  request.extents = {{0, 3}};
  request.cut_to = 0;
  request.size = 3;
  request.source = &source;
  auto stored = fs().Store(0, node, request, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->size, 3);
  EXPECT_EQ(backend_->InsideRead("file"), "new");
  // Another file of that name is not the one that was meant.
  ASSERT_TRUE(fs().Unlink(In("", "file"), ctx_));
  fs().Close(MustCreate("", "file").handle, ctx_);
  EXPECT_EQ(Code(fs().Store(0, node, request, ctx_)), ESTALE);
  EXPECT_EQ(Code(ReadAll(0, node, &*stored, {0, 3})), ESTALE);
  EXPECT_EQ(backend_->InsideRead("file"), "");
}

TEST_P(RemoteFsContract, AHandleKnowsItsFileWithoutAName) {
  backend_->InsideWrite("file", "content");
  const transport::Node node{"file", MustStat("file").id};
  auto opened = fs().Open(node, {}, ctx_);
  ASSERT_TRUE(opened) << ToString(opened.error());
  auto attributes = fs().StatHandle(opened->handle, node, ctx_);
  ASSERT_TRUE(attributes) << ToString(attributes.error());
  EXPECT_EQ(attributes->size, 7);
  ASSERT_TRUE(fs().Unlink(In("", "file"), ctx_));
  attributes = fs().StatHandle(opened->handle, node, ctx_);
  EXPECT_EQ(attributes.has_value(), traits().handles_survive_unlink);
  if (attributes) {
    EXPECT_EQ(attributes->link_count, 0u);
  }
  fs().Close(opened->handle, ctx_);
}

TEST_P(RemoteFsContract, AnOpenThatIsNotWaitedForComesBeforeWhatIsAskedLater) {
  backend_->InsideWrite("file", "content");
  const transport::Attributes file = MustStat("file");
  const transport::Node node{"file", file.id};
  const transport::Handle handle = fs().OpenSoon(node, {});
  if (handle == 0) {
    ASSERT_TRUE(std::string_view(GetParam().name).starts_with("Service")) << "only the service tier may not do it";
    GTEST_SKIP() << "not done by the service tier";
  }
  ASSERT_TRUE(fs().Unlink(In("", "file"), ctx_));
  EXPECT_EQ(ReadAll(handle, node, &file, {0, 7}).value_or("?"), "content");
  fs().Close(handle, ctx_);
  // A failed one says so when it is used.
  const transport::Handle missing = fs().OpenSoon(node, {});
  ASSERT_NE(missing, 0u);
  EXPECT_NE(Code(ReadAll(missing, node, &file, {0, 7})), 0);
  EXPECT_NE(Code(fs().StatHandle(missing, node, ctx_)), 0);
  fs().Close(missing, ctx_);
}

TEST_P(RemoteFsContract, WhatLostItsNameIsTold) {
  if (!fs().description().identities_survive_renames) {
    ASSERT_TRUE(std::string_view(GetParam().name).starts_with("Service")) << "only the service tier may not do it";
    GTEST_SKIP() << "identities go with names on the service tier";
  }
  for (const char* name : {"a", "b", "c"}) backend_->InsideWrite(name, name);
  const transport::FileId a = MustStat("a").id, b = MustStat("b").id;
  auto linked = fs().MakeLink(At("a"), In("", "a2"), ctx_);
  ASSERT_TRUE(linked);
  auto removed = fs().Unlink(In("", "a"), ctx_);
  ASSERT_TRUE(removed && removed->object);
  EXPECT_EQ(removed->object->id, a);
  EXPECT_EQ(removed->object->link_count, 1u);
  auto moved = fs().Rename(In("", "c"), In("", "b"), 0, ctx_);
  ASSERT_TRUE(moved && moved->replaced);
  EXPECT_EQ(moved->replaced->id, b);
  EXPECT_EQ(moved->replaced->link_count, 0u);
  moved = fs().Rename(In("", "b"), In("", "free"), 0, ctx_);
  ASSERT_TRUE(moved && moved->replaced);
  EXPECT_FALSE(moved->replaced->id.known());
  moved = fs().Rename(In("", "free"), In("", "a2"), transport::kRenameExchange, ctx_);
  ASSERT_TRUE(moved && moved->replaced) << ToString(moved.error());
  EXPECT_EQ(moved->replaced->id, a);
  removed = fs().Unlink(In("", "free"), ctx_);
  ASSERT_TRUE(removed && removed->object);
  EXPECT_EQ(removed->object->id, a);
  EXPECT_EQ(removed->object->link_count, 0u);
}

}  // namespace e2bfs::testing
