// Reading with a block store: what costs no call, and what is never served.
#include <fstream>

#include "cache/block_store.h"
#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

constexpr size_t kMega = 1 << 20;

std::string Distinct(size_t bytes, size_t from = 0) {
  std::string content(bytes, '.');
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    for (size_t number = from + at, i = 0; i < 8; ++i, number /= 26) content[at + i] = static_cast<char>('a' + number % 26);
  }
  return content;
}

class StoredTest : public CacheFixture {
 protected:
  StoredTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-stored-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    directory_ = pattern;
    UseRemote(Settled());
    UseStore();
  }
  ~StoredTest() override {
    faulty_->Clear();
    fs_.reset();
    store_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  // What is there was there long ago.
  static testing::MemoryRemoteFsOptions Settled() {
    testing::MemoryRemoteFsOptions options;
    options.clock_seconds = ::time(nullptr) + 3600;
    return options;
  }
  void UseStore() {
    fs_.reset();
    store_.reset();
    auto store = BlockStore::Open({directory_, int64_t{1} << 30});
    ASSERT_TRUE(store) << ToString(store.error());
    store_ = std::move(*store);
    options_.store = store_.get();
    options_.store_scope = "box";
  }
  // Another mount, later.
  void Remount() {
    UseStore();
    fs();
    remote_->ResetCalls();
  }
  // All of it, by a new open, when what was read before is kept.
  std::string Again(const std::string& path) {
    store_->Settle();
    remote_->ResetCalls();
    return Content(path);
  }
  std::vector<std::filesystem::path> Files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& each : std::filesystem::recursive_directory_iterator(directory_ + "/entries")) {
      if (!each.is_directory()) files.push_back(each.path());
    }
    return files;
  }

  std::string directory_;
  std::unique_ptr<BlockStore> store_;
};

TEST_F(StoredTest, WhatWasReadOnceCostsNoCall) {
  for (const size_t size : {size_t{1}, size_t{5000}, size_t{100'000}, 9 * kMega + 1234}) {
    const std::string content = Distinct(size);
    remote_->InsideWrite("f", content);
    remote_->InsideTell("f");
    fs_.reset();
    EXPECT_TRUE(Content("f") == content) << size;
    EXPECT_TRUE(Again("f") == content) << size;
    EXPECT_EQ(remote_->total_calls(), 0) << size;
  }
}

// Small files that were asked for ahead are kept as others are, once somebody read them; and are not asked for ahead again.
TEST_F(StoredTest, WhatWasAskedForAheadIsKeptOnceItIsRead) {
  testing::MemoryRemoteFsOptions options = Settled();
  options.watches = true;
  UseRemote(options);
  UseStore();
  remote_->InsideMakeDirectory("d");
  for (int i = 0; i < 60; ++i) remote_->InsideWrite("d/f" + std::to_string(100 + i), Distinct(3000, static_cast<size_t>(i)));
  List(Find("d"));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Content("d/f" + std::to_string(100 + i)), Distinct(3000, static_cast<size_t>(i)));
  EXPECT_GE(remote_->calls("ReadFiles"), 1);
  store_->Settle();
  EXPECT_EQ(Files().size(), 50u);
  Remount();
  List(Find("d"));
  remote_->ResetCalls();
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Content("d/f" + std::to_string(100 + i)), Distinct(3000, static_cast<size_t>(i)));
  EXPECT_EQ(remote_->total_calls(), 0);
}

TEST_F(StoredTest, AfterARemountOnlyAttributesAreAskedFor) {
  const std::string content = Distinct(3 * kMega);
  remote_->InsideWrite("f", content);
  EXPECT_TRUE(Content("f") == content);
  store_->Settle();
  Remount();
  EXPECT_TRUE(Content("f") == content);
  EXPECT_EQ(remote_->calls("Read"), 0);
  EXPECT_EQ(remote_->total_calls(), 1);  // the lookup
}

TEST_F(StoredTest, AVersionThatAChangeCouldHideInIsNotKept) {
  auto young = Settled();
  young.clock_seconds = ::time(nullptr);
  UseRemote(young);
  remote_->InsideWrite("f", Distinct(50'000));
  Content("f");
  EXPECT_TRUE(Again("f") == Distinct(50'000));
  EXPECT_EQ(remote_->calls("Read"), 1);
  EXPECT_TRUE(Files().empty());
  young.clock_seconds = 0;  // nobody knows
  UseRemote(young);
  remote_->InsideWrite("f", Distinct(50'000));
  Content("f");
  EXPECT_TRUE(Again("f") == Distinct(50'000));
  EXPECT_TRUE(Files().empty());
}

TEST_F(StoredTest, ItIsKeptWhenItIsOldEnough) {
  auto young = Settled();
  young.clock_seconds = ::time(nullptr);
  UseRemote(young);
  options_.settled_after = std::chrono::milliseconds(300);
  remote_->InsideWrite("f", Distinct(50'000));
  Content("f");
  EXPECT_TRUE(Eventually([&] {
    Again("f");
    return remote_->calls("Read") == 0;
  }));
}

// In the sandbox: the same size each time, in the same second.
TEST_F(StoredTest, AChangeInsideIsSeen) {
  for (const char* how : {"told", "asked", "remount"}) {
    options_.attribute_ttl = std::string(how) == "asked" ? std::chrono::milliseconds(1) : std::chrono::milliseconds(kLongTtl);
    UseStore();
    for (size_t round = 0; round < 5; ++round) {
      const std::string content = Distinct(200'000, round * 1000);
      remote_->InsideWrite("f", content);
      if (std::string(how) == "told") remote_->InsideTell("f");
      if (std::string(how) == "asked") std::this_thread::sleep_for(std::chrono::milliseconds(3));
      if (std::string(how) == "remount") Remount();
      EXPECT_TRUE(Content("f") == content) << how << round;
      EXPECT_TRUE(Again("f") == content) << how << round;
      EXPECT_EQ(remote_->calls("Read"), 0) << how << round;
    }
  }
}

// cp -p, tar, rsync -t: other content of the same size with the old time of modification.
TEST_F(StoredTest, AnOldTimeOfModificationDoesNotBringOldContentBack) {
  remote_->InsideWrite("f", Distinct(200'000));
  const auto before = remote_->InsideStat("f");
  EXPECT_TRUE(Content("f") == Distinct(200'000));
  store_->Settle();
  remote_->InsideWrite("f", Distinct(200'000, 7777));
  remote_->InsideSetTimes("f", before->mtime);
  Remount();
  EXPECT_TRUE(Content("f") == Distinct(200'000, 7777));
}

TEST_F(StoredTest, ReplacedByAnotherFileOfTheSameSizeAndTimeItIsAnotherFile) {
  remote_->InsideWrite("f", Distinct(200'000));
  const auto before = remote_->InsideStat("f");
  Content("f");
  store_->Settle();
  remote_->InsideReplace("f", Distinct(200'000, 7777));
  remote_->InsideSetTimes("f", before->mtime);
  Remount();
  EXPECT_TRUE(Content("f") == Distinct(200'000, 7777));
}

TEST_F(StoredTest, ABrokenBlockIsFetchedAgain) {
  const std::string content = Distinct(2 * kMega);
  remote_->InsideWrite("f", content);
  Content("f");
  store_->Settle();
  ASSERT_EQ(Files().size(), 1U);
  std::fstream file(Files()[0], std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-static_cast<std::streamoff>(kMega), std::ios::end);
  file << "broken";
  file.close();
  EXPECT_TRUE(Again("f") == content);
  EXPECT_GE(remote_->calls("Read"), 1);
  // With it went what was before it. What a reader had begun to read is kept when its transfers end, which is after its release.
  EXPECT_TRUE(Eventually([&] { return Again("f") == content && remote_->calls("Read") == 0; }));
}

// What was read of a range is kept, although nobody wanted the rest.
TEST_F(StoredTest, AReaderThatStopsInTheMiddleFindsWhatItRead) {
  const std::string content = Distinct(32 * kMega);
  remote_->InsideWrite("f", content);
  for (const bool again : {false, true}) {
    const FileHandle handle = OpenRead("f");
    remote_->ResetCalls();
    for (size_t at = 0; at < 9 * kMega; at += 128 << 10) {
      ASSERT_TRUE(ReadAt(handle, static_cast<int64_t>(at), 128 << 10) == content.substr(at, 128 << 10)) << at;
    }
    if (again) {
      EXPECT_EQ(remote_->calls("Read"), 0);
    }
    fs().Release(handle, Ctx());
    fs_.reset();
    store_->Settle();
  }
}

TEST_F(StoredTest, WhatIsMissingComesInOneCall) {
  const std::string content = Distinct(kMega);
  remote_->InsideWrite("f", content);
  for (const int64_t offset : {int64_t{0}, int64_t{384 << 10}}) {
    const FileHandle handle = OpenRead("f");
    ReadAt(handle, offset, 128 << 10);
    fs().Release(handle, Ctx());
  }
  fs_.reset();
  store_->Settle();
  const FileHandle handle = OpenRead("f");
  remote_->ResetCalls();
  const int64_t before = remote_->bytes_read();
  EXPECT_TRUE(ReadAt(handle, 64 << 10, 448 << 10) == content.substr(64 << 10, 448 << 10));
  EXPECT_EQ(remote_->calls("Read"), 1);
  EXPECT_LE(remote_->bytes_read() - before, 384 << 10);
}

TEST_F(StoredTest, RandomReadsAreKeptAsTheyAre) {
  const std::string content = Distinct(16 * kMega);
  remote_->InsideWrite("f", content);
  for (const bool again : {false, true}) {
    const FileHandle handle = OpenRead("f");
    store_->Settle();
    remote_->ResetCalls();
    uint64_t position = 12345;
    for (int i = 0; i < 50; ++i) {
      position = position * 6364136223846793005u + 1442695040888963407u;
      const size_t offset = (position >> 33) % (content.size() / 4096) * 4096;
      ASSERT_EQ(ReadAt(handle, static_cast<int64_t>(offset), 4096), content.substr(offset, 4096));
    }
    if (again) {
      EXPECT_EQ(remote_->calls("Read"), 0);
    }
    fs().Release(handle, Ctx());
  }
}

// What came before a transfer broke is not known to be of the version.
TEST_F(StoredTest, BytesOfARangeThatBrokeAreNotKept) {
  const std::string content = Distinct(60'000);
  remote_->InsideWrite("f", content);
  testing::RemoteFault cut;
  cut.function = "Read";
  cut.action = testing::RemoteFault::kCut;
  cut.bytes = 40'000;
  faulty_->Add(cut);
  EXPECT_TRUE(Content("f") == content);
  store_->Settle();
  const FileHandle handle = OpenRead("f");
  remote_->ResetCalls();
  EXPECT_EQ(ReadAt(handle, 45'056, 10'000), content.substr(45'056, 10'000));
  EXPECT_EQ(remote_->calls("Read"), 0);
  EXPECT_EQ(ReadAt(handle, 0, 10'000), content.substr(0, 10'000));
  EXPECT_EQ(remote_->calls("Read"), 1);
}

TEST_F(StoredTest, AFileThatChangesWhileItIsReadIsNeverJoined) {
  options_.attribute_ttl = std::chrono::milliseconds(1);
  UseStore();
  for (int round = 0; round < 3; ++round) {
    const std::string old_content(4 * kMega, static_cast<char>('a' + 2 * round)), new_content(4 * kMega, static_cast<char>('b' + 2 * round));
    remote_->InsideWrite("f", old_content);
    const FileHandle handle = OpenRead("f");
    for (size_t at = 0; at < 4 * kMega; at += 128 << 10) {
      if (at == kMega) remote_->InsideWrite("f", new_content);
      const std::string part = ReadAt(handle, static_cast<int64_t>(at), 128 << 10);
      ASSERT_TRUE(part == old_content.substr(at, part.size()) || part == new_content.substr(at, part.size())) << at;
    }
    fs().Release(handle, Ctx());
    store_->Settle();
    Remount();
    EXPECT_TRUE(Content("f") == new_content);
    EXPECT_TRUE(Again("f") == new_content);
  }
}

TEST_F(StoredTest, AttributesThatAreNotBelievedAreAskedForOnce) {
  options_.attribute_ttl = std::chrono::milliseconds(1);
  UseStore();
  const std::string content = Distinct(300'000);
  remote_->InsideWrite("f", content);
  Content("f");
  store_->Settle();
  const FileHandle handle = OpenRead("f");
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  options_.attribute_ttl = kLongTtl;
  remote_->ResetCalls();
  EXPECT_EQ(ReadAt(handle, 0, 100'000), content.substr(0, 100'000));
  EXPECT_EQ(remote_->calls("Read"), 0);
  EXPECT_EQ(remote_->total_calls(), 1);
}

TEST_F(StoredTest, WithoutATimeToLiveNothingIsServed) {
  options_.attribute_ttl = kNoTtl;
  UseStore();
  remote_->InsideWrite("f", Distinct(100'000));
  Content("f");
  EXPECT_TRUE(Again("f") == Distinct(100'000));
  EXPECT_EQ(remote_->calls("Read"), 1);
}

TEST_F(StoredTest, WhatOtherMountsCouldNotRelyOnIsOfThisMountAlone) {
  auto options = Settled();
  options.versions_are_lasting = false;
  UseRemote(options);
  const std::string content = Distinct(100'000);
  remote_->InsideWrite("f", content);
  Content("f");
  EXPECT_TRUE(Again("f") == content);
  EXPECT_EQ(remote_->calls("Read"), 0);
  fs_.reset();
  EXPECT_TRUE(Again("f") == content);  // another mount that has the same store
  EXPECT_EQ(remote_->calls("Read"), 1);
  fs_.reset();
  UseStore();
  EXPECT_TRUE(Files().empty());
}

TEST_F(StoredTest, FilesWithoutASizeAreNotKept) {
  remote_->InsideMakeSizeless("stat", "cpu 1 2 3\n");
  EXPECT_EQ(Content("stat"), "cpu 1 2 3\n");
  EXPECT_EQ(Again("stat"), "cpu 1 2 3\n");
  EXPECT_GE(remote_->calls("Read"), 1);
  EXPECT_TRUE(Files().empty());
}

TEST_F(StoredTest, UnsentChangesLieOverIt) {
  std::string content = Distinct(300'000);
  remote_->InsideWrite("f", content);
  Content("f");
  store_->Settle();
  const FileHandle handle = OpenWrite("f");
  remote_->ResetCalls();
  Write(handle, 100'000, "changed");
  content.replace(100'000, 7, "changed");
  EXPECT_TRUE(ReadAll(handle) == content);
  EXPECT_EQ(remote_->calls("Read"), 0);
  EXPECT_EQ(Truncate(Find("f"), handle, 150'000), 0);
  Write(handle, 200'000, "end");
  content = content.substr(0, 150'000) + std::string(50'000, '\0') + "end";
  EXPECT_TRUE(ReadAll(handle) == content);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_TRUE(Content("f") == content);
  EXPECT_TRUE(Again("f") == content);
  EXPECT_TRUE(Inside("f") == content);
}

TEST_F(StoredTest, ARemovedFileThatIsOpenIsReadOn) {
  const std::string content = Distinct(300'000);
  remote_->InsideWrite("f", content);
  Content("f");
  store_->Settle();
  const FileHandle handle = OpenRead("f");
  EXPECT_TRUE(fs().Unlink(kRoot, "f", Ctx()));
  EXPECT_TRUE(ReadAll(handle) == content);
  fs().Release(handle, Ctx());
}

TEST_F(StoredTest, TwoMountsShareIt) {
  const std::string content = Distinct(300'000);
  remote_->InsideWrite("f", content);
  auto second_store = BlockStore::Open({directory_, int64_t{1} << 30});
  ASSERT_TRUE(second_store);
  CachedFsOptions options = options_;
  options.store = second_store->get();
  auto second = CachedFs::Create(*faulty_, options, Ctx());
  ASSERT_TRUE(second);
  Content("f");
  store_->Settle();
  remote_->ResetCalls();
  auto node = (*second)->Lookup(kRoot, "f", Ctx());
  ASSERT_TRUE(node);
  auto opened = (*second)->Open(node->node, {}, Ctx());
  ASSERT_TRUE(opened);
  std::string bytes(300'000, 0);
  EXPECT_EQ((*second)->Read(opened->handle, 0, bytes.data(), bytes.size(), Ctx()).value_or(0), bytes.size());
  EXPECT_TRUE(bytes == content);
  EXPECT_EQ(remote_->calls("Read"), 0);
  (*second)->Release(opened->handle, Ctx());
  second->reset();
}

}  // namespace
}  // namespace e2bfs::cache
