// The contract about names: what every RemoteFs has to do, on all of them.
#include <sys/stat.h>

#include <algorithm>

#include "tests/component/remote_fs_contract/contract_fixture.h"

namespace e2bfs::testing {

using ::testing::ElementsAre;
using transport::Changed;
using transport::FileType;

// As unpleasant as names get, in sorted order.
static std::vector<std::string> UnpleasantNames() {
  std::vector<std::string> names = {
      "\n", "\n\n", " ", "!", "$(touch x)", "'", "\"", "*", "-", "--", "-rf", "...", "..a", ".a", "=", "%", "%41", "%s\\n", "?[a-z]", "\\", "\\0101",
      "a b\tc", "line\nbreak\n", "\x01\x7f", "\xc3\xa9", std::string(255, 'n')};
  std::sort(names.begin(), names.end());
  return names;
}

TEST_P(RemoteFsContract, TheRootIsADirectory) {
  auto root = MustStat("");
  EXPECT_EQ(root.type, FileType::kDirectory);
  EXPECT_TRUE(root.id.known());
  EXPECT_EQ(root.access & 7, 7u);
  EXPECT_THAT(NamesIn(""), ElementsAre());
}

TEST_P(RemoteFsContract, StatAndLookupTellTheSame) {
  backend_->InsideWrite("file", "12345");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideMakeSymlink("link", "dir");
  backend_->InsideMakeFifo("fifo");
  auto file = MustStat("file");
  EXPECT_EQ(file.type, FileType::kRegular);
  EXPECT_EQ(file.size, 5);
  EXPECT_EQ(file.permissions, 0644u);
  EXPECT_EQ(file.uid, fs().description().uid);
  EXPECT_EQ(file.access, 6u);
  EXPECT_GT(file.mtime.tv_sec, 1'000'000'000);
  auto looked_up = fs().Lookup(In("", "file"), ctx_);
  ASSERT_TRUE(looked_up);
  EXPECT_EQ(looked_up->id, file.id);
  EXPECT_TRUE(SameTime(looked_up->mtime, file.mtime));
  EXPECT_EQ(MustStat("dir").type, FileType::kDirectory);
  EXPECT_EQ(MustStat("fifo").type, FileType::kFifo);
  // The link itself, not what it leads to.
  auto link = MustStat("link");
  EXPECT_EQ(link.type, FileType::kSymlink);
  EXPECT_EQ(link.size, 3);
  EXPECT_NE(link.id, MustStat("dir").id);
}

// Each listing as List gives it, whatever else is there.
TEST_P(RemoteFsContract, SeveralListingsAtOnceAreAsGoodAsEach) {
  for (const char* path : {"t", "t/a", "t/a/x", "t/a/x/deep", "t/b", "t/b-", "t/c", "t/closed", "t/closed/in"}) backend_->InsideMakeDirectory(path);
  for (const char* path : {"t/f", "t/a/f", "t/a/x/f", "t/a/x/deep/f", "t/b-/f", "t/closed/f"}) backend_->InsideWrite(path, path);
  backend_->InsideMakeSymlink("t/b/link", "../a");
  backend_->InsideMakeSymlink("t/c/out", "/etc");
  backend_->InsideMakeFifo("t/c/fifo");
  backend_->InsideSetPermissions("t/closed", 0);
  auto ask = [&](std::vector<std::string> paths, uint32_t depth, size_t directories = 100, size_t entries = 1000) {
    auto listings = fs().ListDeep(At("t"), {std::move(paths), depth, directories, entries}, ctx_);
    std::vector<std::string> found;
    if (!listings) return std::vector<std::string>{ToString(listings.error())};
    for (const auto& each : *listings) {
      found.push_back(each.path);
      auto alone = fs().List(At("t/" + each.path), ctx_);
      EXPECT_TRUE(alone) << each.path;
      if (!alone) continue;
      EXPECT_EQ(each.listing.directory.id, alone->directory.id) << each.path;
      EXPECT_EQ(each.listing.entries.size(), alone->entries.size()) << each.path;
      for (const auto& entry : each.listing.entries) {
        const auto same = std::find_if(alone->entries.begin(), alone->entries.end(), [&](const auto& other) { return other.name == entry.name; });
        EXPECT_NE(same, alone->entries.end()) << entry.name;
        if (same == alone->entries.end()) continue;
        EXPECT_EQ(same->attributes.id, entry.attributes.id) << entry.name;
        EXPECT_EQ(same->attributes.type, entry.attributes.type) << entry.name;
        EXPECT_EQ(same->attributes.size, entry.attributes.size) << entry.name;
        EXPECT_EQ(same->attributes.access, entry.attributes.access) << entry.name;
        EXPECT_TRUE(SameTime(same->attributes.mtime, entry.attributes.mtime)) << entry.name;
        EXPECT_EQ(same->link_target, entry.link_target) << entry.name;
        EXPECT_EQ(same->attributes.xattr_names != nullptr, entry.attributes.xattr_names != nullptr) << entry.name;
      }
    }
    return found;
  };
  EXPECT_THAT(ask({"a", "b", "c"}, 0), ElementsAre("a", "b", "c"));
  // In the order of a program that goes through them.
  EXPECT_THAT(ask({"a", "b", "b-"}, 9), ElementsAre("a", "a/x", "a/x/deep", "b", "b-"));
  EXPECT_THAT(ask({"a"}, 1), ElementsAre("a", "a/x"));
  EXPECT_THAT(ask({"a/x/deep", "b"}, 0), ElementsAre("a/x/deep", "b"));
  EXPECT_THAT(ask({"a", "b", "c"}, 9, 2), ElementsAre("a", "a/x"));
  // What is wanted comes whatever it costs; of the others nothing but the whole.
  EXPECT_THAT(ask({"a", "c"}, 0, 100, 0), ElementsAre("a"));
  EXPECT_THAT(ask({"a", "missing", "f", "b/link", "c/out", "c/fifo", "b"}, 2), ElementsAre("a", "a/x", "a/x/deep", "b"));
  if (fs().description().uid != 0) {
    EXPECT_THAT(ask({"a", "closed", "closed/in"}, 0), ElementsAre("a"));
  }
  EXPECT_EQ(Code(fs().ListDeep(At("nothing"), {{"a"}, 0, 10, 10}, ctx_)), ENOENT);
  backend_->InsideSetPermissions("t/closed", 0755);
}

TEST_P(RemoteFsContract, MissingNamesAndWrongPaths) {
  backend_->InsideWrite("file", "x");
  EXPECT_EQ(Code(fs().Stat(At("nothing"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Lookup(In("", "nothing"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Lookup(In("nothing", "x"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Lookup(In("file", "x"), ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().List(At("file"), ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().List(At("nothing"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Lookup(In("", ".."), ctx_)), EINVAL);
  EXPECT_EQ(Code(fs().Lookup(In("", "a/b"), ctx_)), EINVAL);
  EXPECT_EQ(Code(fs().Lookup(In("", ""), ctx_)), EINVAL);
  EXPECT_EQ(Code(fs().Lookup(In("", std::string(256, 'n')), ctx_)), ENAMETOOLONG);
  EXPECT_EQ(Code(fs().Create(In("", std::string(256, 'n')), {0644, true}, ctx_)), ENAMETOOLONG);
  EXPECT_EQ(Code(fs().MakeDirectory(In("..", "x"), 0755, ctx_)), EINVAL);
}

TEST_P(RemoteFsContract, ListingCarriesAttributesAndLinkTexts) {
  backend_->InsideWrite("file", "12345");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideMakeSymlink("link", "dangling/./text//");
  auto listing = fs().List(At(""), ctx_);
  ASSERT_TRUE(listing) << ToString(listing.error());
  EXPECT_EQ(listing->directory.type, FileType::kDirectory);
  EXPECT_EQ(listing->directory.id, MustStat("").id);
  ASSERT_EQ(listing->entries.size(), 3u);
  for (const auto& entry : listing->entries) {
    auto attributes = MustStat(entry.name);
    EXPECT_EQ(entry.attributes.id, attributes.id);
    EXPECT_EQ(entry.attributes.type, attributes.type);
    EXPECT_EQ(entry.attributes.size, attributes.size);
    EXPECT_TRUE(SameTime(entry.attributes.mtime, attributes.mtime));
    EXPECT_EQ(entry.attributes.permissions, attributes.permissions);
    if (entry.name == "link") {
      EXPECT_EQ(entry.link_target.value_or("none"), "dangling/./text//");
    }
  }
  EXPECT_EQ(fs().ReadLink(At("link"), ctx_).value_or("none"), "dangling/./text//");
  EXPECT_EQ(Code(fs().ReadLink(At("file"), ctx_)), EINVAL);
  EXPECT_EQ(Code(fs().ReadLink(At("nothing"), ctx_)), ENOENT);
}

TEST_P(RemoteFsContract, UnpleasantNamesAreNamesLikeOthers) {
  ASSERT_TRUE(fs().MakeDirectory(In("", "-d\n"), 0755, ctx_));
  const std::vector<std::string> names = UnpleasantNames();
  for (const std::string& name : names) {
    auto opened = MustCreate("-d\n", name);
    EXPECT_TRUE(opened.created);
    EXPECT_EQ(MustStat("-d\n/" + name).id, opened.attributes.id) << name;
  }
  EXPECT_EQ(NamesIn("-d\n"), names);
  for (const std::string& name : names) {
    ASSERT_TRUE(fs().Rename(In("-d\n", name), In("-d\n", "-r"), 0, ctx_)) << name;
    ASSERT_TRUE(fs().MakeSymlink(In("-d\n", name), name, ctx_)) << name;
    EXPECT_EQ(fs().ReadLink(At("-d\n/" + name), ctx_).value_or("none"), name);
    ASSERT_TRUE(fs().Unlink(In("-d\n", "-r"), ctx_)) << name;
  }
  auto listing = fs().List(At("-d\n"), ctx_);
  ASSERT_TRUE(listing);
  for (const auto& entry : listing->entries) EXPECT_EQ(entry.link_target.value_or("none"), entry.name);
  for (const std::string& name : names) EXPECT_EQ(Code(fs().Unlink(In("-d\n", name), ctx_)), 0) << name;
  EXPECT_THAT(NamesIn("-d\n"), ElementsAre());
}

TEST_P(RemoteFsContract, NamesThatAreNotUtf8) {
  const std::string directory = "d\xff", name = "\xe9t\xe9\n\x80\x81\x82\x88\n";
  backend_->InsideWrite("plain", "x");
  auto made = fs().MakeDirectory(In("", directory), 0755, ctx_);
  ASSERT_TRUE(made) << ToString(made.error());
  EXPECT_THAT(NamesIn(""), ElementsAre(directory, "plain"));
  auto opened = MustCreate(directory, name, 0600);
  const std::string path = directory + "/" + name;
  EXPECT_EQ(MustStat(path).permissions, 0600u);
  StringSource source("content");
  transport::StoreRequest store;
  store.extents = {{0, 7}};
  store.source = &source;
  auto stored = fs().Store(opened.handle, {path, opened.attributes.id}, store, ctx_);
  ASSERT_TRUE(stored) << ToString(stored.error());
  EXPECT_EQ(stored->size, 7);
  EXPECT_EQ(Content(path), "content");
  ASSERT_TRUE(fs().MakeSymlink(In(directory, "l"), name, ctx_));
  EXPECT_EQ(fs().ReadLink(At(directory + "/l"), ctx_).value_or("none"), name);
  auto listing = fs().List(At(directory), ctx_);
  ASSERT_TRUE(listing) << ToString(listing.error());
  ASSERT_EQ(listing->entries.size(), 2u);
  for (const auto& entry : listing->entries) {
    EXPECT_TRUE(entry.name == name || entry.name == "l");
    EXPECT_EQ(entry.attributes.size, entry.name == name ? 7 : int64_t(name.size()));
    EXPECT_EQ(entry.attributes.id, MustStat(directory + "/" + entry.name).id);
    if (entry.name == "l") {
      EXPECT_EQ(entry.link_target.value_or("none"), name);
    }
  }
  EXPECT_EQ(Code(fs().RemoveDirectory(In("", directory), ctx_)), ENOTEMPTY);
  EXPECT_EQ(Code(fs().Unlink(In("", directory), ctx_)), EISDIR);
  auto renamed = fs().Rename(In(directory, name), In("", "\xfe"), 0, ctx_);
  if (renamed || renamed.error().errno_value != ENOTSUP) {
    ASSERT_TRUE(renamed) << ToString(renamed.error());
    EXPECT_EQ(Content("\xfe"), "content");
    EXPECT_TRUE(fs().Unlink(In("", "\xfe"), ctx_));
  } else {
    EXPECT_TRUE(fs().Unlink(In(directory, name), ctx_));
  }
  EXPECT_TRUE(fs().Unlink(In(directory, "l"), ctx_));
  EXPECT_TRUE(fs().RemoveDirectory(In("", directory), ctx_));
  EXPECT_THAT(NamesIn(""), ElementsAre("plain"));
}

TEST_P(RemoteFsContract, MakeDirectoryIsExact) {
  backend_->InsideWrite("file", "x");
  backend_->InsideMakeSymlink("dangling", "nowhere");
  for (uint32_t permissions : {0700u, 0755u, 0777u, 0000u, 01777u, 0111u}) {
    std::string name = "d" + std::to_string(permissions);
    auto made = fs().MakeDirectory(In("", name), permissions, ctx_);
    ASSERT_TRUE(made) << ToString(made.error());
    EXPECT_EQ(MustStat(name).permissions, permissions);
    if (traits().changed_is_full) {
      ASSERT_TRUE(made->object && made->parent);
      EXPECT_EQ(made->object->id, MustStat(name).id);
      EXPECT_EQ(made->object->permissions, permissions);
      EXPECT_TRUE(SameTime(made->parent->mtime, MustStat("").mtime));
      EXPECT_EQ(made->parent->id, MustStat("").id);
    }
  }
  EXPECT_EQ(Code(fs().MakeDirectory(In("", "file"), 0755, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().MakeDirectory(In("", "dangling"), 0755, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().MakeDirectory(In("", "d448"), 0755, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().MakeDirectory(In("no/parents", "d"), 0755, ctx_)), ENOENT);
  EXPECT_FALSE(backend_->InsideExists("no"));
  EXPECT_EQ(Code(fs().MakeDirectory(In("file", "d"), 0755, ctx_)), ENOTDIR);
}

TEST_P(RemoteFsContract, UnlinkNeverRemovesADirectory) {
  backend_->InsideMakeDirectory("dir");
  backend_->InsideWrite("dir/file", "x");
  backend_->InsideMakeSymlink("link", "dir");
  backend_->InsideMakeFifo("fifo");
  EXPECT_EQ(Code(fs().Unlink(In("", "dir"), ctx_)), EISDIR);
  EXPECT_TRUE(backend_->InsideExists("dir/file"));
  EXPECT_EQ(Code(fs().Unlink(In("", "nothing"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Unlink(In("dir/file", "x"), ctx_)), ENOTDIR);
  auto removed = fs().Unlink(In("", "link"), ctx_);
  ASSERT_TRUE(removed) << ToString(removed.error());
  if (traits().changed_is_full) {
    ASSERT_TRUE(removed->parent);
    EXPECT_TRUE(SameTime(removed->parent->mtime, MustStat("").mtime));
  }
  EXPECT_TRUE(backend_->InsideExists("dir/file"));
  EXPECT_TRUE(fs().Unlink(In("", "fifo"), ctx_));
  EXPECT_TRUE(fs().Unlink(In("dir", "file"), ctx_));
  EXPECT_THAT(NamesIn(""), ElementsAre("dir"));
  EXPECT_THAT(NamesIn("dir"), ElementsAre());
}

TEST_P(RemoteFsContract, RemoveDirectoryNeverRemovesAFullOne) {
  backend_->InsideMakeDirectory("dir");
  backend_->InsideWrite("dir/file", "x");
  backend_->InsideMakeSymlink("link", "dir");
  EXPECT_EQ(Code(fs().RemoveDirectory(In("", "dir"), ctx_)), ENOTEMPTY);
  EXPECT_EQ(Code(fs().RemoveDirectory(In("", "link"), ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().RemoveDirectory(In("dir", "file"), ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().RemoveDirectory(In("", "nothing"), ctx_)), ENOENT);
  EXPECT_TRUE(backend_->InsideExists("dir/file"));
  EXPECT_TRUE(fs().Unlink(In("dir", "file"), ctx_));
  EXPECT_TRUE(fs().RemoveDirectory(In("", "dir"), ctx_));
  EXPECT_FALSE(backend_->InsideExists("dir"));
}

TEST_P(RemoteFsContract, RenameReplacesAndTakesTheIdentityAlong) {
  backend_->InsideWrite("a", "new");
  backend_->InsideWrite("b", "old");
  backend_->InsideMakeDirectory("dir");
  backend_->InsideWrite("dir/below", "x");
  auto a = MustStat("a"), b = MustStat("b"), dir = MustStat("dir"), below = MustStat("dir/below");
  auto renamed = fs().Rename(In("", "a"), In("", "b"), 0, ctx_);
  ASSERT_TRUE(renamed) << ToString(renamed.error());
  EXPECT_EQ(Content("b"), "new");
  EXPECT_FALSE(backend_->InsideExists("a"));
  EXPECT_EQ(MustStat("b").id, a.id);
  EXPECT_NE(MustStat("b").id, b.id);
  EXPECT_EQ(Code(fs().Stat({"b", b.id}, ctx_)), ESTALE);
  if (traits().changed_is_full) {
    ASSERT_TRUE(renamed->object && renamed->parent);
    EXPECT_EQ(renamed->object->id, a.id);
    EXPECT_EQ(renamed->object->size, 3);
    EXPECT_FALSE(renamed->old_parent);
  }
  // A directory to another directory, with what is below it.
  backend_->InsideMakeDirectory("other");
  renamed = fs().Rename(In("", "dir"), In("other", "moved"), 0, ctx_);
  ASSERT_TRUE(renamed) << ToString(renamed.error());
  EXPECT_EQ(MustStat("other/moved").id, dir.id);
  EXPECT_EQ(MustStat("other/moved/below").id, below.id);
  if (traits().changed_is_full) {
    ASSERT_TRUE(renamed->parent && renamed->old_parent);
    EXPECT_EQ(renamed->parent->id, MustStat("other").id);
    EXPECT_EQ(renamed->old_parent->id, MustStat("").id);
    EXPECT_TRUE(SameTime(renamed->old_parent->mtime, MustStat("").mtime));
  }
  // New objects at the old paths are others.
  backend_->InsideMakeDirectory("dir");
  backend_->InsideWrite("dir/below", "y");
  EXPECT_NE(MustStat("dir").id, dir.id);
  EXPECT_NE(MustStat("dir/below").id, below.id);
  EXPECT_EQ(Code(fs().Stat({"dir/below", below.id}, ctx_)), ESTALE);
  // The directory that is meant is found where it is now, or not at all.
  const int unlinked = Code(fs().Unlink({{"dir", dir.id}, "below"}, ctx_));
  EXPECT_TRUE(unlinked == 0 || unlinked == ESTALE) << unlinked;
  EXPECT_EQ(backend_->InsideExists("other/moved/below"), unlinked != 0);
  EXPECT_TRUE(backend_->InsideExists("dir/below"));
}

TEST_P(RemoteFsContract, RenameIsExact) {
  backend_->InsideWrite("file", "x");
  backend_->InsideWrite("file2", "y");
  backend_->InsideMakeDirectory("empty");
  backend_->InsideMakeDirectory("full");
  backend_->InsideWrite("full/f", "x");
  backend_->InsideMakeDirectory("full/sub");
  backend_->InsideMakeSymlink("link", "empty");
  EXPECT_EQ(Code(fs().Rename(In("", "nothing"), In("", "x"), 0, ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Rename(In("", "file"), In("no/parent", "x"), 0, ctx_)), ENOENT);
  EXPECT_FALSE(backend_->InsideExists("no"));
  EXPECT_EQ(Code(fs().Rename(In("", "file"), In("file2", "x"), 0, ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().Rename(In("", "file"), In("", "empty"), 0, ctx_)), EISDIR);
  EXPECT_EQ(Code(fs().Rename(In("", "empty"), In("", "file"), 0, ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().Rename(In("", "empty"), In("", "link"), 0, ctx_)), ENOTDIR);
  EXPECT_EQ(Code(fs().Rename(In("", "empty"), In("", "full"), 0, ctx_)), ENOTEMPTY);
  EXPECT_EQ(Code(fs().Rename(In("", "full"), In("full/sub", "x"), 0, ctx_)), EINVAL);
  EXPECT_EQ(Code(fs().Rename(In("full", "sub"), In("", "full"), 0, ctx_)), ENOTEMPTY);
  // Onto itself: nothing happens.
  EXPECT_EQ(Code(fs().Rename(In("", "file"), In("", "file"), 0, ctx_)), 0);
  EXPECT_EQ(Content("file"), "x");
  // A link itself is moved, over a file.
  EXPECT_EQ(Code(fs().Rename(In("", "link"), In("", "file2"), 0, ctx_)), 0);
  EXPECT_EQ(fs().ReadLink(At("file2"), ctx_).value_or("none"), "empty");
  // A directory onto an empty one.
  EXPECT_EQ(Code(fs().Rename(In("", "full"), In("", "empty"), 0, ctx_)), 0);
  EXPECT_THAT(NamesIn("empty"), ElementsAre("f", "sub"));
  EXPECT_THAT(NamesIn(""), ElementsAre("empty", "file", "file2"));
}

TEST_P(RemoteFsContract, RenameOfOneHardLinkOntoTheOtherDoesNothing) {
  backend_->InsideWrite("a", "x");
  ASSERT_TRUE(fs().MakeLink(At("a"), In("", "b"), ctx_));
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("", "b"), 0, ctx_)), 0);
  EXPECT_THAT(NamesIn(""), ElementsAre("a", "b"));
}

TEST_P(RemoteFsContract, RenameFlags) {
  backend_->InsideWrite("a", "1");
  backend_->InsideWrite("b", "2");
  backend_->InsideMakeDirectory("d");
  backend_->InsideMakeSymlink("l", "nowhere");
  auto a = MustStat("a");
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("", "b"), transport::kRenameNoReplace, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("", "l"), transport::kRenameNoReplace, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("", "d"), transport::kRenameNoReplace, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().Rename(In("", "nothing"), In("", "c"), transport::kRenameNoReplace, ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("none", "c"), transport::kRenameNoReplace, ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().Rename(In("", "a"), In("d", "c"), transport::kRenameNoReplace, ctx_)), 0);
  EXPECT_EQ(MustStat("d/c").id, a.id);
  EXPECT_EQ(Code(fs().Rename(In("", "l"), In("", "m"), transport::kRenameNoReplace, ctx_)), 0);
  EXPECT_EQ(fs().ReadLink(At("m"), ctx_).value_or("none"), "nowhere");
  EXPECT_THAT(NamesIn(""), ElementsAre("b", "d", "m"));
  EXPECT_EQ(Code(fs().Rename(In("", "d"), In("", "e"), transport::kRenameNoReplace, ctx_)), traits().no_replace_directories ? 0 : EINVAL);
  EXPECT_EQ(Code(fs().Rename(In("", "b"), In("", "m"), transport::kRenameExchange, ctx_)), traits().exchange ? 0 : EINVAL);
  EXPECT_EQ(Code(fs().Rename(In("", "b"), In("", "m"), 4, ctx_)), EINVAL);
}

TEST_P(RemoteFsContract, LinksAndNodes) {
  backend_->InsideWrite("file", "x");
  backend_->InsideMakeDirectory("dir");
  EXPECT_EQ(Code(fs().MakeSymlink(In("", "file"), "t", ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().MakeSymlink(In("", "dir"), "t", ctx_)), EEXIST);
  EXPECT_THAT(NamesIn("dir"), ElementsAre());
  EXPECT_EQ(Code(fs().MakeSymlink(In("", "s"), "", ctx_)), ENOENT);
  auto link = fs().MakeSymlink(In("", "s"), "-t\n", ctx_);
  ASSERT_TRUE(link) << ToString(link.error());
  EXPECT_EQ(fs().ReadLink(At("s"), ctx_).value_or("none"), "-t\n");
  if (traits().changed_is_full) {
    EXPECT_EQ(link->object->type, FileType::kSymlink);
  }
  // A hard link, also of a link itself, never of a directory.
  EXPECT_EQ(Code(fs().MakeLink(At("file"), In("", "dir"), ctx_)), EEXIST);
  EXPECT_THAT(NamesIn("dir"), ElementsAre());
  EXPECT_EQ(Code(fs().MakeLink(At("dir"), In("", "h"), ctx_)), EPERM);
  EXPECT_EQ(Code(fs().MakeLink(At("nothing"), In("", "h"), ctx_)), ENOENT);
  EXPECT_EQ(Code(fs().MakeLink(At("s"), In("", "s2"), ctx_)), 0);
  EXPECT_EQ(fs().ReadLink(At("s2"), ctx_).value_or("none"), "-t\n");
  EXPECT_EQ(Code(fs().MakeLink(At("file"), In("dir", "h"), ctx_)), 0);
  backend_->InsideWrite("file", "changed");
  EXPECT_EQ(Content("dir/h"), "changed");
  // Nodes.
  EXPECT_EQ(Code(fs().MakeNode(In("", "fifo"), FileType::kFifo, 0620, 0, 0, ctx_)), 0);
  EXPECT_EQ(MustStat("fifo").type, FileType::kFifo);
  EXPECT_EQ(MustStat("fifo").permissions, 0620u);
  EXPECT_EQ(Code(fs().MakeNode(In("", "fifo"), FileType::kFifo, 0620, 0, 0, ctx_)), EEXIST);
  EXPECT_EQ(Code(fs().MakeNode(In("", "reg"), FileType::kRegular, 0751, 0, 0, ctx_)), 0);
  EXPECT_EQ(MustStat("reg").permissions, 0751u);
  EXPECT_EQ(MustStat("reg").type, FileType::kRegular);
  if (fs().description().uid != 0) {
    EXPECT_EQ(Code(fs().MakeNode(In("", "null"), FileType::kCharDevice, 0666, 1, 3, ctx_)), EPERM);
  }
}

TEST_P(RemoteFsContract, ThePermissionsOfTheUserHold) {
  if (fs().description().uid == 0) GTEST_SKIP() << "root is denied nothing";
  backend_->InsideMakeDirectory("locked");
  backend_->InsideWrite("locked/file", "x");
  backend_->InsideWrite("secret", "x");
  backend_->InsideSetPermissions("secret", 0);
  backend_->InsideSetPermissions("locked", 0555);
  EXPECT_EQ(MustStat("secret").access, 0u);
  EXPECT_EQ(MustStat("locked").access, 5u);
  EXPECT_EQ(Code(fs().Open(At("secret"), {true, false, false}, ctx_)), EACCES);
  EXPECT_EQ(Code(ReadAll(0, At("secret"), nullptr, {0, 10})), EACCES);
  EXPECT_EQ(Code(fs().Create(In("locked", "new"), {0644, true}, ctx_)), EACCES);
  EXPECT_EQ(Code(fs().MakeDirectory(In("locked", "new"), 0755, ctx_)), EACCES);
  EXPECT_EQ(Code(fs().MakeSymlink(In("locked", "new"), "x", ctx_)), EACCES);
  EXPECT_EQ(Code(fs().Unlink(In("locked", "file"), ctx_)), EACCES);
  EXPECT_EQ(Code(fs().Rename(In("locked", "file"), In("", "file"), 0, ctx_)), EACCES);
  EXPECT_EQ(Code(fs().Rename(In("", "secret"), In("locked", "secret"), 0, ctx_)), EACCES);
  EXPECT_TRUE(backend_->InsideExists("locked/file"));
  backend_->InsideSetPermissions("locked", 0333);
  EXPECT_EQ(Code(fs().List(At("locked"), ctx_)), EACCES);
  backend_->InsideSetPermissions("locked", 0755);
  transport::AttributeChange owner;
  owner.uid = 0;
  EXPECT_EQ(Code(fs().SetAttributes(At("secret"), 0, owner, ctx_)), EPERM);
}

TEST_P(RemoteFsContract, ExtendedAttributesOrNone) {
  backend_->InsideWrite("file", "x");
  EXPECT_EQ(Code(fs().SetXattr(At("file"), 0, "user.a", "1", 0, ctx_)), traits().xattrs ? 0 : ENOTSUP);
  EXPECT_EQ(Code(fs().GetXattr(At("file"), 0, "user.a", ctx_)), traits().xattrs ? 0 : ENOTSUP);
  EXPECT_EQ(Code(fs().ListXattrs(At("file"), 0, ctx_)), traits().xattrs ? 0 : ENOTSUP);
  EXPECT_EQ(Code(fs().RemoveXattr(At("file"), 0, "user.a", ctx_)), traits().xattrs ? 0 : ENOTSUP);
}

TEST_P(RemoteFsContract, Statistics) {
  auto statistics = fs().StatFs(ctx_);
  ASSERT_TRUE(statistics) << ToString(statistics.error());
  EXPECT_GT(statistics->block_bytes, 0u);
  EXPECT_GT(statistics->blocks, 0u);
  EXPECT_GE(statistics->blocks, statistics->blocks_free);
  EXPECT_FALSE(fs().description().tier.empty());
  EXPECT_FALSE(fs().Status().empty());
}

}  // namespace e2bfs::testing
