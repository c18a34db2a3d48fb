// The contract about rows of new objects: what every RemoteFs that makes them has to do.
#include <sys/stat.h>

#include <algorithm>

#include "tests/component/remote_fs_contract/contract_fixture.h"

namespace e2bfs::testing {

using ::testing::ElementsAre;
using transport::FileType;
using transport::MadeObjects;
using transport::NewObject;

namespace {

// One of a row, as long as nothing is added to it.
struct RowObject : NewObject {
  RowObject& In(size_t index) {
    made_in = index;
    return *this;
  }
  RowObject& With(uint32_t permissions) {  // set at last
    attributes.permissions = permissions;
    return *this;
  }
};

// A row of new objects, and what their contents come from.
class Row {
 public:
  RowObject& File(const std::string& name, const std::string& content, uint32_t permissions = 0644) {
    RowObject& object = Add(name, FileType::kRegular, permissions);
    object.size = static_cast<int64_t>(content.size());
    sources_.push_back(std::make_unique<StringSource>(content));
    object.source = sources_.back().get();
    return object;
  }
  RowObject& Directory(const std::string& name, uint32_t permissions = 0755) { return Add(name, FileType::kDirectory, permissions); }
  RowObject& Link(const std::string& name, const std::string& target) {
    RowObject& object = Add(name, FileType::kSymlink, 0);
    object.target = target;
    return object;
  }
  size_t last() const { return objects_.size() - 1; }
  std::vector<NewObject> objects() const { return {objects_.begin(), objects_.end()}; }

 private:
  RowObject& Add(const std::string& name, FileType type, uint32_t permissions) {
    RowObject& object = objects_.emplace_back();
    object.name = name;
    object.type = type;
    object.permissions = permissions;
    return object;
  }
  std::vector<RowObject> objects_;
  std::vector<std::unique_ptr<StringSource>> sources_;
};

// 0, or the errno that the object was refused with; attributes where it is there.
int RefusalOf(const MadeObjects& made, size_t index) {
  const transport::MadeObject& object = made.objects.at(index);
  return object.error ? object.error->errno_value : object.attributes ? 0 : -1;
}

}  // namespace

TEST_P(RemoteFsContract, ARowIsMadeInItsOrder) {
  Row row;
  const std::string large = std::string(128 << 10, 'x') + "end";
  row.File("plain", "content").permissions = 0600;
  row.Directory("d", 0700);
  row.Directory("inner").In(1);
  row.File("deep", large, 0755).In(2);
  row.Link("link", "d/inner/deep").In(1);
  row.Link("dangling", "no/such \n thing");
  row.File("empty", "");
  const MadeObjects made = MustMake(row.objects());
  const std::vector<std::string> paths = {"plain", "d", "d/inner", "d/inner/deep", "d/link", "dangling", "empty"};
  for (size_t i = 0; i < paths.size(); ++i) {
    EXPECT_EQ(RefusalOf(made, i), 0) << paths[i];
    ExpectTold(made.objects[i].attributes, paths[i]);
  }
  EXPECT_EQ(Content("plain"), "content");
  EXPECT_EQ(Content("d/inner/deep"), large);
  EXPECT_EQ(Content("empty"), "");
  EXPECT_EQ(MustStat("plain").permissions, 0600u);
  EXPECT_EQ(MustStat("d").permissions, 0700u);
  EXPECT_EQ(MustStat("d/inner/deep").permissions, 0755u);
  EXPECT_EQ(fs().ReadLink({"d/link", {}}, ctx_).value_or(""), "d/inner/deep");
  EXPECT_EQ(fs().ReadLink({"dangling", {}}, ctx_).value_or(""), "no/such \n thing");
  if (traits().changed_is_full) {
    ASSERT_EQ(made.directories.size(), 1u);
    const auto root = MustStat("");
    EXPECT_EQ(made.directories[0].id, root.id);
    EXPECT_TRUE(SameTime(made.directories[0].mtime, root.mtime));
    EXPECT_EQ(made.directories[0].watched, root.watched);
  }
}

TEST_P(RemoteFsContract, OneOfEachKindAlone) {
  for (int kind = 0; kind < 3; ++kind) {
    Row row;
    if (kind == 0) row.Directory("d");
    if (kind == 1) row.File("f", "");
    if (kind == 2) row.Link("l", "f");
    const MadeObjects made = MustMake(row.objects());
    EXPECT_EQ(RefusalOf(made, 0), 0) << kind;
    ExpectTold(made.objects[0].attributes, row.objects()[0].name);
  }
}

TEST_P(RemoteFsContract, NothingIsMadeOfNothing) {
  const MadeObjects made = MustMake({});
  EXPECT_TRUE(made.objects.empty());
  EXPECT_THAT(NamesIn(""), ElementsAre());
}

TEST_P(RemoteFsContract, UnpleasantNamesAndTexts) {
  const std::vector<std::string> names = {"\n", " ", "'", "\"", "*", "-", "-rf", "%41", "\\", "a\nb\n", "\x01\x7f", "\xff\xfe", "$(touch x)", std::string(255, 'n')};
  Row row;
  row.Directory("\xfe\n'");
  for (const std::string& name : names) row.File(name, "of " + name).In(0);
  row.Directory("links").In(0);
  const size_t links = row.last();
  for (const std::string& name : names) row.Link(name, name).In(links);
  const MadeObjects made = MustMake(row.objects());
  for (size_t i = 0; i < made.objects.size(); ++i) EXPECT_EQ(RefusalOf(made, i), 0) << i;
  for (const std::string& name : names) {
    EXPECT_EQ(Content("\xfe\n'/" + name), "of " + name);
    EXPECT_EQ(fs().ReadLink({"\xfe\n'/links/" + name, {}}, ctx_).value_or(""), name);
  }
}

TEST_P(RemoteFsContract, WhatIsThereStays) {
  backend_->InsideWrite("file", "old");
  backend_->InsideMakeDirectory("directory");
  backend_->InsideMakeSymlink("dangling", "nowhere");
  backend_->InsideMakeFifo("fifo");
  Row row;
  row.File("first", "1");
  for (const char* name : {"file", "directory", "dangling", "fifo"}) {
    row.File(name, "new");
    row.Directory(name);
    const size_t directory = row.last();
    row.File("in it", "lost").In(directory);
    row.Link(name, "new");
  }
  row.File("last", "2");
  row.File("last", "once more");
  const MadeObjects made = MustMake(row.objects());
  EXPECT_EQ(RefusalOf(made, 0), 0);
  for (size_t i = 1; i + 2 < made.objects.size(); ++i) {
    EXPECT_EQ(RefusalOf(made, i), (i - 1) % 4 == 2 ? ENOENT : EEXIST) << i;
    EXPECT_FALSE(made.objects[i].attributes) << i;
  }
  EXPECT_EQ(RefusalOf(made, made.objects.size() - 2), 0);
  EXPECT_EQ(RefusalOf(made, made.objects.size() - 1), EEXIST);
  EXPECT_THAT(NamesIn(""), ElementsAre("dangling", "directory", "fifo", "file", "first", "last"));
  EXPECT_THAT(NamesIn("directory"), ElementsAre());
  EXPECT_EQ(Content("file"), "old");
  EXPECT_EQ(Content("last"), "2");
  EXPECT_EQ(MustStat("fifo").type, FileType::kFifo);
}

TEST_P(RemoteFsContract, NamesThatCannotBe) {
  Row row;
  row.File("before", "1");
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string(256, 'n')}) row.File(name, "x");
  row.Link("no text", "");
  row.File("after", "2");
  const MadeObjects made = MustMake(row.objects());
  for (size_t i = 1; i <= 4; ++i) EXPECT_EQ(RefusalOf(made, i), EINVAL) << i;
  EXPECT_EQ(RefusalOf(made, 5), ENAMETOOLONG);
  EXPECT_EQ(RefusalOf(made, 6), ENOENT);
  EXPECT_THAT(NamesIn(""), ElementsAre("after", "before"));
}

TEST_P(RemoteFsContract, RowsThatCannotBe) {
  Row into_itself, into_a_file, too_large, too_many;
  into_itself.Directory("d").In(0);
  into_a_file.File("f", "");
  into_a_file.File("g", "").In(0);
  too_large.File("f", "").size = transport::kMostNewBytes + 1;
  for (size_t i = 0; i <= transport::kMostNewObjects; ++i) too_many.Directory("d" + std::to_string(i));
  for (const Row* row : {&into_itself, &into_a_file, &too_large, &too_many}) {
    auto made = fs().MakeObjects(row->objects(), ctx_);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().kind, ErrorKind::kBadRequest);
  }
  EXPECT_THAT(NamesIn(""), ElementsAre());
}

TEST_P(RemoteFsContract, AttributesAreSetAtLast) {
  Row row;
  row.Directory("d").With(0500).attributes.mtime = Second(1'000'000'002);
  row.Directory("inner").In(0).attributes.mtime = Second(1'000'000'005);
  row.File("plain", "x").In(0);
  row.File("f", "content").In(1).With(0400).attributes.mtime = Second(1'000'000'003);
  row.Link("l", "f").In(1).attributes.mtime = Second(1'000'000'004);
  row.File("set-id", "content").In(1).With(04711);
  const MadeObjects made = MustMake(row.objects());
  const std::vector<std::string> paths = {"d", "d/inner", "d/plain", "d/inner/f", "d/inner/l", "d/inner/set-id"};
  for (size_t i = 0; i < paths.size(); ++i) {
    EXPECT_EQ(RefusalOf(made, i), 0) << paths[i];
    ExpectTold(made.objects[i].attributes, paths[i]);
  }
  const std::vector<time_t> times = {1'000'000'002, 1'000'000'005, 0, 1'000'000'003, 1'000'000'004};
  for (size_t i = 0; i < times.size(); ++i) {
    if (times[i] == 0) continue;
    EXPECT_EQ(MustStat(paths[i]).mtime.tv_sec, times[i]) << paths[i];
  }
  EXPECT_EQ(MustStat("d").permissions, 0500u);
  EXPECT_EQ(MustStat("d/inner/f").permissions, 0400u);
  EXPECT_EQ(MustStat("d/inner/set-id").permissions, 04711u);
  EXPECT_EQ(Content("d/inner/f"), "content");
}

// Some of them only; and each is there all the same.
TEST_P(RemoteFsContract, RefusedAttributesLeaveTheObject) {
  if (fs().description().uid == 0) GTEST_SKIP() << "root may give everything away";
  Row row;
  row.File("f", "content").With(0640).attributes.uid = 4711;
  row.Directory("d").attributes.uid = 4711;
  row.Link("l", "f").With(0640);
  row.File("good", "content").With(0640);
  row.File("in it", "more").In(1);
  const MadeObjects made = MustMake(row.objects());
  EXPECT_EQ(RefusalOf(made, 0), EPERM);
  EXPECT_EQ(RefusalOf(made, 1), EPERM);
  EXPECT_EQ(RefusalOf(made, 2), EOPNOTSUPP);
  EXPECT_EQ(RefusalOf(made, 3), 0);
  EXPECT_EQ(RefusalOf(made, 4), 0);
  const std::vector<std::string> paths = {"f", "d", "l", "good", "d/in it"};
  for (size_t i = 0; i < paths.size(); ++i) ExpectTold(made.objects[i].attributes, paths[i]);
  EXPECT_EQ(Content("f"), "content");
  EXPECT_EQ(Content("d/in it"), "more");
}

TEST_P(RemoteFsContract, AThousandFilesInANewDirectory) {
  Row row;
  row.Directory("d").attributes.mtime = Second(1'000'000'000);
  auto content = [](size_t i) { return std::to_string(i) + std::string(i, char('a' + i % 26)); };
  for (size_t i = 0; i < 1000; ++i) row.File("file " + std::to_string(i), content(i)).In(0);
  const MadeObjects made = MustMake(row.objects());
  for (size_t i = 0; i < made.objects.size(); ++i) ASSERT_EQ(RefusalOf(made, i), 0) << i;
  for (size_t i = 1; i < made.objects.size(); ++i) {
    ASSERT_EQ(made.objects[i].attributes->size, static_cast<int64_t>(content(i - 1).size())) << i;
  }
  EXPECT_EQ(NamesIn("d").size(), 1000u);
  for (const size_t i : {0, 1, 255, 256, 257, 511, 512, 998, 999}) EXPECT_EQ(Content("d/file " + std::to_string(i)), content(i)) << i;
  ExpectTold(made.objects[0].attributes, "d");
  EXPECT_EQ(MustStat("d").mtime.tv_sec, 1'000'000'000);
}

TEST_P(RemoteFsContract, SeveralDirectoriesThatWereThere) {
  backend_->InsideMakeDirectory("a");
  backend_->InsideMakeDirectory("b");
  const auto a = MustStat("a"), b = MustStat("b");
  Row row;
  row.File("1", "x").directory = {"a", a.id};
  row.File("2", "x").directory = {"b", b.id};
  row.Directory("3").directory = {"a", {}};
  row.File("4", "x").directory = {"no/such", {}};
  const MadeObjects made = MustMake(row.objects());
  EXPECT_EQ(RefusalOf(made, 0), 0);
  EXPECT_EQ(RefusalOf(made, 1), 0);
  EXPECT_EQ(RefusalOf(made, 2), 0);
  EXPECT_EQ(RefusalOf(made, 3), ENOENT);
  EXPECT_THAT(NamesIn("a"), ElementsAre("1", "3"));
  EXPECT_THAT(NamesIn("b"), ElementsAre("2"));
  if (traits().changed_is_full) {
    EXPECT_EQ(made.directories.size(), 2u);
  }
}

TEST_P(RemoteFsContract, ADirectoryThatMayNotBeWritten) {
  backend_->InsideMakeDirectory("closed");
  backend_->InsideSetPermissions("closed", 0555);
  if ((MustStat("closed").access & 2) != 0) GTEST_SKIP() << "root may write everywhere";
  Row row;
  row.File("f", "x").directory = {"closed", {}};
  row.Directory("d").directory = {"closed", {}};
  row.File("g", "x").In(1);
  row.Link("l", "x").directory = {"closed", {}};
  row.File("open", "x");
  const MadeObjects made = MustMake(row.objects());
  EXPECT_EQ(RefusalOf(made, 0), EACCES);
  EXPECT_EQ(RefusalOf(made, 1), EACCES);
  EXPECT_EQ(RefusalOf(made, 2), ENOENT);
  EXPECT_EQ(RefusalOf(made, 3), EACCES);
  EXPECT_EQ(RefusalOf(made, 4), 0);
}

TEST_P(RemoteFsContract, AReplacedDirectoryIsStale) {
  auto old = fs().MakeDirectory(In("", "d"), 0755, ctx_);
  ASSERT_TRUE(old) << ToString(old.error());
  const auto known = old->object ? *old->object : MustStat("d");
  ASSERT_TRUE(fs().Rename(In("", "d"), In("", "away"), 0, ctx_));
  ASSERT_TRUE(fs().MakeDirectory(In("", "d"), 0755, ctx_));
  if (MustStat("d").id == known.id) GTEST_SKIP() << "directories are their paths here";
  Row row;
  row.File("f", "x").directory = {"d", known.id};
  row.File("g", "x");
  const MadeObjects made = MustMake(row.objects());
  EXPECT_EQ(RefusalOf(made, 1), 0);
  EXPECT_THAT(NamesIn("d"), ElementsAre());
  // It may be found where it is now.
  if (const int refusal = RefusalOf(made, 0)) {
    EXPECT_EQ(refusal, ESTALE);
    EXPECT_THAT(NamesIn("away"), ElementsAre());
  } else {
    EXPECT_THAT(NamesIn("away"), ElementsAre("f"));
  }
}

TEST_P(RemoteFsContract, WhatCannotBeReadIsNotMade) {
  Row row;
  row.File("a", "x");
  row.File("short", "x").size = 100;
  auto made = fs().MakeObjects(row.objects(), ctx_);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind, ErrorKind::kLocal);
  EXPECT_THAT(NamesIn(""), ElementsAre());
}

}  // namespace e2bfs::testing
