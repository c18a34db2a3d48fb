// BlockStore: what it gives is what was put in, or nothing, whatever happened to its files.
#include "cache/block_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "transport/base/log.h"
#include "transport/base/metrics.h"

namespace e2bfs::cache {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int64_t kBlock = BlockStore::kBlockBytes;
constexpr int64_t kMebi = 1 << 20;

// Random, and another one for each seed.
std::string Noise(int64_t bytes, unsigned seed = 1) {
  std::mt19937_64 random(seed);
  std::string noise(static_cast<size_t>((bytes + 7) / 8 * 8), 0);
  for (size_t at = 0; at < noise.size(); at += 8) {
    const uint64_t value = random();
    noise.replace(at, 8, reinterpret_cast<const char*>(&value), 8);
  }
  noise.resize(static_cast<size_t>(bytes));
  return noise;
}

class BlockStoreTest : public ::testing::Test {
 protected:
  BlockStoreTest() {
    std::string pattern = (fs::temp_directory_path() / "e2bfs-store-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    scratch_ = pattern;
    directory_ = scratch_ / "cache";
    fs::create_directory(directory_);
    ::chmod(directory_.c_str(), 0700);
    log_ = scratch_ / "log";
    EXPECT_TRUE(log::OpenFile(log_));
  }
  ~BlockStoreTest() override {
    store_.reset();
    std::error_code ignored;
    fs::remove_all(scratch_, ignored);
  }

  std::unique_ptr<BlockStore> Open(int64_t limit = int64_t{1} << 30) {
    auto store = BlockStore::Open({directory_, limit});
    if (!store) ADD_FAILURE() << ToString(store.error());
    return store ? std::move(*store) : nullptr;
  }
  BlockStore& store() {
    if (!store_) store_ = Open();
    return *store_;
  }
  static BlockStore::Key Key(const std::string& object, int64_t size) { return {"box", object, size}; }

  static void Fill(BlockStore& store, const BlockStore::Key& key, int64_t offset, std::string_view bytes, bool done = true) {
    auto filling = store.Fill(store.Find(key), offset, static_cast<int64_t>(bytes.size()));
    for (size_t at = 0; at < bytes.size(); at += 100'000) {
      filling->Add(bytes.substr(at, 100'000));
      if (at % 3'000'000 == 0) store.Settle();  // never more than may be queued
    }
    if (done) filling->Done();
    filling.reset();
    store.Settle();
  }
  void Keep(const std::string& object, const std::string& content) { Fill(store(), Key(object, static_cast<int64_t>(content.size())), 0, content); }
  static std::string Front(BlockStore& store, const BlockStore::Key& key, int64_t offset, size_t length) {
    std::string bytes(length, '?');
    bytes.resize(store.Find(key)->ReadFront(offset, bytes.data(), length));
    return bytes;
  }
  // What the store has of the whole file, from its beginning.
  std::string Kept(const std::string& object, int64_t size) { return Front(store(), Key(object, size), 0, static_cast<size_t>(size)); }

  std::vector<fs::path> Files(const char* below = "entries") const {
    std::vector<fs::path> files;
    for (const auto& each : fs::recursive_directory_iterator(directory_ / below)) {
      if (!each.is_directory()) files.push_back(each.path());
    }
    return files;
  }
  fs::path OnlyFile() const {
    const auto files = Files();
    EXPECT_EQ(files.size(), 1U);
    return files.empty() ? fs::path() : files[0];
  }
  static void Overwrite(const fs::path& file, int64_t offset, std::string_view bytes) {
    const int opened = ::open(file.c_str(), O_WRONLY);
    ASSERT_GE(opened, 0);
    ASSERT_EQ(::pwrite(opened, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
    ::close(opened);
  }
  // Where the index of a file with so many blocks, all there, begins, and what it is: the last numbers before the content that are not zero.
  static std::pair<int64_t, std::string> IndexOf(const fs::path& file, size_t blocks) {
    std::ifstream opened(file, std::ios::binary);
    std::string all{std::istreambuf_iterator<char>(opened), {}};
    all.resize(all.size() - blocks * kBlock);
    while (all.ends_with(std::string(8, '\0'))) all.resize(all.size() - 8);
    return {static_cast<int64_t>(all.size() - 8 * blocks), all.substr(all.size() - 8 * blocks)};
  }
  std::string Log() const {
    std::ifstream file(log_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  int64_t BytesOnDisk() const {
    int64_t bytes = 0;
    for (const fs::path& file : Files()) {
      struct stat status {};
      if (::lstat(file.c_str(), &status) == 0) bytes += status.st_blocks * 512;
    }
    return bytes;
  }
  void Reopen() {
    store_.reset();
    store();
  }

  fs::path scratch_, directory_, log_;
  std::unique_ptr<BlockStore> store_;
};

TEST_F(BlockStoreTest, GivesWhatWasKeptAlsoLater) {
  for (const int64_t size : {int64_t{1}, kBlock - 1, kBlock, kBlock + 1, 5 * kBlock + 17, 3 * kMebi + 5}) {
    const std::string content = Noise(size, static_cast<unsigned>(size));
    Keep("f" + std::to_string(size), content);
    EXPECT_TRUE(Kept("f" + std::to_string(size), size) == content) << size;
  }
  Reopen();
  for (const int64_t size : {int64_t{1}, kBlock - 1, kBlock, kBlock + 1, 5 * kBlock + 17, 3 * kMebi + 5}) {
    EXPECT_TRUE(Kept("f" + std::to_string(size), size) == Noise(size, static_cast<unsigned>(size))) << size;
  }
}

TEST_F(BlockStoreTest, AnyPlaceCanBeReadAndUnalignedToo) {
  const std::string content = Noise(40 * kBlock + 100);
  Keep("f", content);
  const auto key = Key("f", 40 * kBlock + 100);
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const size_t offset = random() % content.size();
    const size_t length = 1 + random() % (6 * kBlock);
    ASSERT_TRUE(Front(store(), key, static_cast<int64_t>(offset), length) == content.substr(offset, length)) << offset << " " << length;
  }
  EXPECT_EQ(Front(store(), key, static_cast<int64_t>(content.size()), 10), "");
}

TEST_F(BlockStoreTest, PartsAreGivenAsFarAsTheyGo) {
  const std::string content = Noise(20 * kBlock);
  const auto key = Key("f", 20 * kBlock);
  Fill(store(), key, 0, std::string_view(content).substr(0, 5 * kBlock));
  // Not from where a block begins: only whole ones are kept.
  Fill(store(), key, 10 * kBlock - 7, std::string_view(content).substr(10 * kBlock - 7, 10 * kBlock + 7));
  EXPECT_EQ(Front(store(), key, 100, 20 * kBlock), content.substr(100, 5 * kBlock - 100));
  EXPECT_EQ(Front(store(), key, 5 * kBlock, 10), "");
  EXPECT_EQ(Front(store(), key, 10 * kBlock - 7, 10), "");
  std::string back(12 * kBlock, '?');
  EXPECT_EQ(store().Find(key)->ReadBack(8 * kBlock, back.data(), back.size()), static_cast<size_t>(10 * kBlock));
  EXPECT_TRUE(back.substr(2 * kBlock) == content.substr(10 * kBlock));
  EXPECT_EQ(back.substr(0, 2 * kBlock), std::string(2 * kBlock, '?'));
  EXPECT_EQ(store().Find(key)->ReadBack(6 * kBlock, back.data(), 2 * kBlock), 0U);
  EXPECT_TRUE(store().Find(key)->HasAnEndOf(8 * kBlock, 12 * kBlock));
  EXPECT_FALSE(store().Find(key)->HasAnEndOf(6 * kBlock, 2 * kBlock));
}

TEST_F(BlockStoreTest, WhatWasNotProvedIsNotThere) {
  const std::string content = Noise(8 * kBlock);
  Fill(store(), Key("f", 8 * kBlock), 0, content, false);
  EXPECT_EQ(Kept("f", 8 * kBlock), "");
  Fill(store(), Key("f", 8 * kBlock), 4 * kBlock, std::string_view(content).substr(4 * kBlock));
  EXPECT_EQ(Kept("f", 8 * kBlock), "");
  EXPECT_EQ(Front(store(), Key("f", 8 * kBlock), 4 * kBlock, 10 * kBlock), content.substr(4 * kBlock));
}

TEST_F(BlockStoreTest, AnotherVersionSandboxOrSizeIsAnotherFile) {
  const std::string content = Noise(kBlock);
  Keep("f", content);
  EXPECT_EQ(Kept("g", kBlock), "");
  EXPECT_EQ(Front(store(), {"other box", "f", kBlock}, 0, kBlock), "");
  EXPECT_EQ(Kept("f", kBlock + 1), "");
  // The parts of a key do not run into each other.
  EXPECT_EQ(Front(store(), {"bo", "xf", kBlock}, 0, kBlock), "");
  EXPECT_TRUE(Kept("f", kBlock) == content);
}

TEST_F(BlockStoreTest, FilesAreOursAloneAndTellNoNames) {
  ::umask(0);
  Keep("secret-name", Noise(kBlock));
  ::umask(022);
  size_t seen = 0;
  for (const auto& each : fs::recursive_directory_iterator(directory_)) {
    struct stat status {};
    ASSERT_EQ(::lstat(each.path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, S_ISDIR(status.st_mode) ? 0700U : 0600U) << each.path();
    EXPECT_THAT(each.path().string(), Not(HasSubstr("secret")));
    ++seen;
  }
  EXPECT_GE(seen, 5U);
}

TEST_F(BlockStoreTest, ASmallFileTakesOnePageOfTheDisk) {
  Keep("f", Noise(1000));
  struct stat status {};
  ASSERT_EQ(::stat(OnlyFile().c_str(), &status), 0);
  EXPECT_LE(status.st_blocks * 512, 4096);
}

// --- what crashes, bad disks and others leave

TEST_F(BlockStoreTest, EveryByteThatIsNotAsItWasIsNoticed) {
  const int64_t size = 3 * kBlock;
  const std::string content = Noise(size);
  const auto key = Key("f", size);
  Keep("f", content);
  const int64_t length = static_cast<int64_t>(fs::file_size(OnlyFile()));
  std::mt19937 random(5);
  std::vector<int64_t> places;
  for (int64_t at = 0; at < 200; ++at) places.push_back(at);  // the header and the index
  for (int i = 0; i < 100; ++i) places.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(length)));
  store_.reset();
  for (const int64_t at : places) {
    std::ifstream before(OnlyFile(), std::ios::binary);
    before.seekg(at);
    const char broken = static_cast<char>(before.get() ^ 0x10);
    Overwrite(OnlyFile(), at, {&broken, 1});
    const std::string given = Kept("f", size);
    ASSERT_TRUE(given == content.substr(0, given.size())) << at;  // never wrong; blocks before it, or all if it is a byte of no meaning
    if (Files().empty()) {
      EXPECT_FALSE(Files("set-aside").empty()) << at;
      Keep("f", content);
    }
    store_.reset();
    if (OnlyFile().empty()) return;
    fs::remove(OnlyFile());
    Keep("f", content);
    store_.reset();
  }
}

TEST_F(BlockStoreTest, ABrokenBlockIsSetAsideSaidAndFetchedAgain) {
  const std::string content = Noise(10 * kBlock);
  Keep("f", content);
  const fs::path file = OnlyFile();
  Overwrite(file, static_cast<int64_t>(fs::file_size(file)) - 5 * kBlock, "broken");
  EXPECT_EQ(Kept("f", 10 * kBlock), content.substr(0, 5 * kBlock));
  EXPECT_TRUE(Files().empty());
  EXPECT_EQ(Files("set-aside").size(), 1U);
  EXPECT_THAT(Log(), HasSubstr("block 5 is not what its checksum says; set aside as"));
  EXPECT_EQ(Kept("f", 10 * kBlock), "");
  Keep("f", content);
  EXPECT_TRUE(Kept("f", 10 * kBlock) == content);
}

// After a power cut the disk may have the index and not the block, or a part of either.
TEST_F(BlockStoreTest, ATornBlockAndATornIndexAreNoticed) {
  const std::string content = Noise(32 * kBlock);
  for (const bool index : {false, true}) {
    Keep("f", content);
    const fs::path file = OnlyFile();
    const int64_t data = static_cast<int64_t>(fs::file_size(file)) - 32 * kBlock;
    store_.reset();
    Overwrite(file, index ? IndexOf(file, 32).first + 9 * 8 - 3 : data + 7 * kBlock + 512, index ? std::string(3, '\0') : std::string(kBlock - 512, '\0'));
    const std::string given = Kept("f", 32 * kBlock);
    EXPECT_LT(given.size(), content.size());
    EXPECT_TRUE(given == content.substr(0, given.size()));
    for (const fs::path& each : Files()) fs::remove(each);
    store_.reset();
  }
}

TEST_F(BlockStoreTest, CutEmptyLongAndForeignFilesAreSetAside) {
  const std::string content = Noise(20 * kBlock);
  const auto spoil = [&](const std::function<void(const fs::path&)>& how, const char* said) {
    Keep("f", content);
    const fs::path file = OnlyFile();
    store_.reset();
    how(file);
    EXPECT_EQ(Kept("f", 20 * kBlock), "") << said;
    EXPECT_TRUE(Files().empty()) << said;
    EXPECT_THAT(Log(), HasSubstr(said));
    Keep("f", content);
    EXPECT_TRUE(Kept("f", 20 * kBlock) == content) << said;
    for (const fs::path& each : Files()) fs::remove(each);
    store_.reset();
    std::ofstream(log_, std::ios::trunc);
  };
  spoil([](const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }, "it is cut");
  spoil([](const fs::path& file) { fs::resize_file(file, 0); }, "it is cut");
  spoil([](const fs::path& file) { fs::resize_file(file, fs::file_size(file) + 1); }, "too long");
  spoil([](const fs::path& file) { Overwrite(file, 0, "something else"); }, "does not begin as it has to");
  spoil([](const fs::path& file) { ::chmod(file.c_str(), 0644); }, "not a file of ours alone");
  spoil([&](const fs::path& file) {
    fs::rename(file, scratch_ / "elsewhere");
    fs::create_symlink(scratch_ / "elsewhere", file);
  }, "not a file of ours alone");
  spoil([](const fs::path& file) {
    fs::remove(file);
    fs::create_directory(file);
  }, "not a file of ours alone");
}

// The content of one version under the name of another one.
TEST_F(BlockStoreTest, AFileUnderAnotherNameIsNotServed) {
  Keep("old", Noise(2 * kBlock, 1));
  const fs::path old_file = OnlyFile();
  Keep("new", Noise(2 * kBlock, 2));
  fs::path new_file;
  for (const fs::path& file : Files()) {
    if (file != old_file) new_file = file;
  }
  Reopen();
  fs::copy_file(old_file, new_file, fs::copy_options::overwrite_existing);
  EXPECT_EQ(Kept("new", 2 * kBlock), "");
  EXPECT_THAT(Log(), HasSubstr("does not begin as it has to"));
}

// A block of another place, or of another version whose index was put in with it.
TEST_F(BlockStoreTest, ABlockOfAnotherPlaceOrVersionIsNotServed) {
  const std::string content = Noise(40 * kBlock);
  Keep("f", content);
  const fs::path file = OnlyFile();
  const int64_t data = static_cast<int64_t>(fs::file_size(file)) - 40 * kBlock;
  store_.reset();
  const auto [place, index] = IndexOf(file, 40);
  // Blocks 0 and 1 change places, with their checksums.
  Overwrite(file, place, index.substr(8, 8) + index.substr(0, 8));
  Overwrite(file, data, content.substr(kBlock, kBlock) + content.substr(0, kBlock));
  EXPECT_EQ(Kept("f", 40 * kBlock), "");
  EXPECT_THAT(Log(), HasSubstr("block 0 is not what its checksum says"));
}

TEST_F(BlockStoreTest, WhatWasBeingMadeInACrashIsNoFileAndGoes) {
  Keep("f", Noise(kBlock));
  const fs::path left = OnlyFile().parent_path() / "new-1-1";
  std::ofstream(left) << "half a head";
  ::chmod(left.c_str(), 0600);
  Reopen();
  Keep("g", Noise(kBlock));
  EXPECT_TRUE(fs::exists(left));  // of a process that may be at it
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, left.c_str(), old, 0), 0);
  Reopen();
  Keep("h", Noise(kBlock));
  EXPECT_FALSE(fs::exists(left));
}

TEST_F(BlockStoreTest, KilledAtAnyMomentItNeverServesWhatIsWrong) {
  const int64_t size = 4 * kMebi;
  const std::string content = Noise(size);
  for (int round = 0; round < 12; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto opened = BlockStore::Open({directory_, int64_t{1} << 30});
      if (!opened) ::_exit(1);
      for (int64_t at = 0; at < size; at += 256 << 10) {
        auto filling = (*opened)->Fill((*opened)->Find(Key("f", size)), at, 256 << 10);
        filling->Add(std::string_view(content).substr(static_cast<size_t>(at), 256 << 10));
        filling->Done();
      }
      for (;;) ::pause();
    }
    ::usleep(static_cast<useconds_t>(300 * round));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    for (int64_t at = 0; at < size; at += kBlock) {
      const std::string given = Front(store(), Key("f", size), at, kBlock);
      ASSERT_TRUE(given.empty() || given == content.substr(static_cast<size_t>(at), kBlock)) << round << " " << at;
    }
    store_.reset();
    if (round % 4 == 3) {
      ASSERT_TRUE(BlockStore::Clear(directory_));
    }
  }
  EXPECT_EQ(Log(), "");
}

// --- whose directory it is

TEST_F(BlockStoreTest, ADirectoryWithSomethingElseInItIsRefusedAndLeftAsItIs) {
  std::ofstream(directory_ / "thesis.txt") << "mine";
  const auto refused = BlockStore::Open({directory_});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errno_value, ENOTEMPTY);
  EXPECT_THAT(refused.error().message, HasSubstr("something else in it than a cache of e2bfs"));
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1);
  EXPECT_FALSE(BlockStore::Clear(directory_));
  EXPECT_TRUE(fs::exists(directory_ / "thesis.txt"));
}

TEST_F(BlockStoreTest, ADirectoryThatOthersMayEnterIsRefused) {
  ::chmod(directory_.c_str(), 0750);
  auto refused = BlockStore::Open({directory_});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errno_value, EACCES);
  ::chmod(directory_.c_str(), 0700);
  fs::create_directory_symlink(directory_, scratch_ / "link");
  refused = BlockStore::Open({scratch_ / "link"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errno_value, ENOTDIR);
  if (::geteuid() != 0) return;
  ASSERT_EQ(::chown(directory_.c_str(), 65534, 65534), 0);
  refused = BlockStore::Open({directory_});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errno_value, EACCES);
}

TEST_F(BlockStoreTest, AStoreOfAnotherFormatIsSetAsideAsAWhole) {
  for (const char* marker : {"e2bfs block store 2\n", ""}) {
    Keep("f", Noise(kBlock));
    store_.reset();
    std::ofstream(directory_ / "e2bfs-cache", std::ios::trunc) << marker;
    EXPECT_EQ(Kept("f", kBlock), "");
    EXPECT_TRUE(Files().empty());
    EXPECT_EQ(Files("set-aside").size(), 1U);
    EXPECT_THAT(Log(), HasSubstr("another format, or its marker is damaged"));
    Keep("f", Noise(kBlock));
    EXPECT_EQ(Kept("f", kBlock), Noise(kBlock));
    store_.reset();
    EXPECT_TRUE(BlockStore::Clear(directory_));
    EXPECT_TRUE(Files("set-aside").empty());
  }
}

TEST_F(BlockStoreTest, FilesOfOthersInItAreLeftAlone) {
  Keep("f", Noise(kBlock));
  const fs::path foreign = OnlyFile().parent_path() / "notes";
  std::ofstream(foreign) << "mine";
  std::ofstream(directory_ / "entries/README") << "mine";
  auto summary = BlockStore::Inspect(directory_);
  ASSERT_TRUE(summary);
  EXPECT_EQ(summary->entries, 1);
  ASSERT_TRUE(BlockStore::Clear(directory_));
  EXPECT_TRUE(fs::exists(foreign));
  EXPECT_TRUE(fs::exists(directory_ / "entries/README"));
  EXPECT_EQ(Files().size(), 2U);
}

// A mount that was killed while it made the directory.
TEST_F(BlockStoreTest, AStoreThatIsHalfMadeIsMadeWhole) {
  std::ofstream(directory_ / "new-marker") << "e2b";
  for (const char* missing : {"e2bfs-cache", "entries", "set-aside", "limit"}) {
    Keep("f", Noise(kBlock));
    EXPECT_EQ(Kept("f", kBlock), Noise(kBlock));
    store_.reset();
    if (std::string(missing) != "e2bfs-cache") fs::remove_all(directory_ / missing);
  }
  Keep("f", Noise(kBlock));
  EXPECT_EQ(Kept("f", kBlock), Noise(kBlock));
}

// --- how much there is

TEST_F(BlockStoreTest, TheLimitHoldsAndWhatWasNotUsedForLongestGoes) {
  store_ = Open(8 * kMebi);
  const std::string content = Noise(kMebi);
  for (int i = 0; i < 5; ++i) {
    Keep("f" + std::to_string(i), content);
    // As if each were a minute older than the next.
    for (const fs::path& file : Files()) {
      struct stat status {};
      ASSERT_EQ(::stat(file.c_str(), &status), 0);
      const timespec older[2] = {status.st_atim, {status.st_mtim.tv_sec - 60, 0}};
      ASSERT_EQ(::utimensat(AT_FDCWD, file.c_str(), older, 0), 0);
    }
  }
  // f0 is used again by another mount.
  EXPECT_TRUE(Front(*Open(8 * kMebi), Key("f0", kMebi), 0, kMebi) == content);
  for (int i = 5; i < 40; ++i) {
    Keep("f" + std::to_string(i), content);
    ASSERT_LE(BytesOnDisk(), 8 * kMebi) << i;
    if (i == 9) {
      EXPECT_TRUE(Kept("f0", kMebi) == content);
      EXPECT_EQ(Kept("f1", kMebi), "");
    }
  }
  EXPECT_GE(BytesOnDisk(), 5 * kMebi);
  EXPECT_TRUE(Kept("f39", kMebi) == content);
  EXPECT_EQ(Log(), "");
}

TEST_F(BlockStoreTest, ALargeFileDoesNotDriveOutAllOthers) {
  store_ = Open(8 * kMebi);
  Keep("small", Noise(kMebi));
  const std::string content = Noise(32 * kMebi, 2);
  Fill(store(), Key("large", 32 * kMebi), 0, content);
  EXPECT_TRUE(Kept("small", kMebi) == Noise(kMebi));
  const std::string given = Kept("large", 32 * kMebi);
  EXPECT_GE(given.size(), static_cast<size_t>(2 * kMebi));
  EXPECT_LE(given.size(), static_cast<size_t>(4 * kMebi));
  EXPECT_TRUE(given == content.substr(0, given.size()));
}

TEST_F(BlockStoreTest, WhatComesFasterThanItIsWrittenIsNotKeptAndNobodyWaits) {
  auto opened = BlockStore::Open({directory_, int64_t{1} << 30, 512 << 10});
  ASSERT_TRUE(opened);
  const std::string content = Noise(64 * kMebi);
  const auto key = Key("f", 64 * kMebi);
  auto filling = (*opened)->Fill((*opened)->Find(key), 0, 64 * kMebi);
  for (size_t at = 0; at < content.size(); at += 128 << 10) filling->Add(std::string_view(content).substr(at, 128 << 10));
  filling->Done();
  filling.reset();
  (*opened)->Settle();
  EXPECT_GT(Metrics::Get("cache.store_dropped_bytes").value(), 0);
  int64_t kept = 0;
  for (int64_t at = 0; at < 64 * kMebi; at += kBlock) {
    const std::string given = Front(**opened, key, at, kBlock);
    ASSERT_TRUE(given.empty() || given == content.substr(static_cast<size_t>(at), kBlock));
    kept += static_cast<int64_t>(given.size());
  }
  EXPECT_GT(kept, 0);
}

TEST_F(BlockStoreTest, WhatCannotBeWrittenIsSaidOnceAndReadingGoesOn) {
  Keep("f", Noise(kBlock));
  store_.reset();
  fs::permissions(directory_ / "entries", fs::perms::owner_read | fs::perms::owner_exec);
  if (::geteuid() == 0) {  // whom no mode stops
    fs::remove_all(directory_ / "entries");
    store();
    fs::remove_all(directory_ / "entries");
  }
  for (int i = 0; i < 10; ++i) Keep("g" + std::to_string(i), Noise(kBlock));
  EXPECT_EQ(Kept("g1", kBlock), "");
  const std::string said = Log();
  const size_t first = said.find("files are read without a cache on the disk");
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(said.find("files are read without", first + 1), std::string::npos);
  fs::create_directories(directory_ / "entries");
  fs::permissions(directory_ / "entries", fs::perms::owner_all);
}

// --- several at once

TEST_F(BlockStoreTest, TwoMountsShareWhatEitherHas) {
  auto one = Open(), two = Open();
  const std::string content = Noise(64 * kBlock);
  const auto key = Key("f", 64 * kBlock);
  EXPECT_EQ(Front(*two, key, 0, 64 * kBlock), "");
  Fill(*one, key, 0, std::string_view(content).substr(0, 40 * kBlock));
  EXPECT_TRUE(Front(*two, key, 0, 64 * kBlock) == content.substr(0, 40 * kBlock));
  Fill(*two, key, 30 * kBlock, std::string_view(content).substr(30 * kBlock));
  EXPECT_TRUE(Front(*one, key, 0, 64 * kBlock) == content);
  EXPECT_EQ(Files().size(), 1U);
}

TEST_F(BlockStoreTest, WhatDoesNotLastGoesWithItsMount) {
  auto key = Key("f", kBlock);
  key.lasting = false;
  Fill(store(), key, 0, Noise(kBlock));
  EXPECT_EQ(Front(store(), key, 0, kBlock), Noise(kBlock));
  EXPECT_EQ(Files().size(), 1U);
  store_.reset();
  EXPECT_TRUE(Files().empty());
}

TEST_F(BlockStoreTest, AReaderKeepsWhatIsClearedMeanwhileAndThenHasNothing) {
  const std::string content = Noise(16 * kBlock);
  Keep("f", content);
  const auto file = store().Find(Key("f", 16 * kBlock));
  std::string bytes(16 * kBlock, 0);
  EXPECT_EQ(file->ReadFront(0, bytes.data(), bytes.size()), bytes.size());
  ASSERT_TRUE(BlockStore::Clear(directory_));
  EXPECT_EQ(file->ReadFront(0, bytes.data(), bytes.size()), bytes.size());  // its descriptor has it
  EXPECT_TRUE(bytes == content);
  // What comes next goes into a file that the next mount can find.
  Keep("f", content);
  EXPECT_EQ(Files().size(), 1U);
  Reopen();
  EXPECT_TRUE(Kept("f", 16 * kBlock) == content);
}

// Two processes fill, evict, read and clear one directory: no read ever gives a byte that is not the version's.
TEST_F(BlockStoreTest, ManyAtOnceInOneDirectory) {
  constexpr int kObjects = 12;
  constexpr int64_t kSize = 600'000;
  std::vector<std::string> contents;
  for (unsigned i = 0; i < kObjects; ++i) contents.push_back(Noise(kSize, i));
  const auto work = [&](BlockStore& store, unsigned seed, int steps) {
    std::mt19937 random(seed);
    bool right = true;
    for (int step = 0; step < steps; ++step) {
      const unsigned which = random() % kObjects;
      const auto key = Key("f" + std::to_string(which), kSize);
      const int64_t offset = static_cast<int64_t>(random() % kSize);
      const int64_t length = std::min<int64_t>(kSize - offset, 1 + static_cast<int64_t>(random() % 300'000));
      if (random() % 2 == 0) {
        auto filling = store.Fill(store.Find(key), offset, length);
        filling->Add(std::string_view(contents[which]).substr(static_cast<size_t>(offset), static_cast<size_t>(length)));
        if (random() % 4 != 0) filling->Done();
      } else {
        const std::string given = Front(store, key, offset, static_cast<size_t>(length));
        right = right && contents[which].compare(static_cast<size_t>(offset), given.size(), given) == 0;
      }
      if (seed == 0 && step % 200 == 199) BlockStore::Clear(directory_);
    }
    return right;
  };
  constexpr int64_t kLimit = 4 * kMebi;  // all of it is 7
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto mine = BlockStore::Open({directory_, kLimit});
    const bool right = mine && work(**mine, 0, 1500);
    if (mine) mine->reset();
    ::_exit(right ? 0 : 1);
  }
  {
    auto one = Open(kLimit);
    std::atomic<bool> right{true};
    std::vector<std::jthread> threads;
    for (unsigned seed = 1; seed < 4; ++seed) {
      threads.emplace_back([&, seed] {
        if (!work(*one, seed, 1000)) right = false;
      });
    }
    threads.clear();
    EXPECT_TRUE(right);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_LE(BytesOnDisk(), kLimit);
  EXPECT_EQ(Log(), "");  // nothing was taken for broken
}

TEST_F(BlockStoreTest, PeopleAreToldWhatIsThere) {
  auto nothing = BlockStore::Inspect(scratch_ / "nowhere");
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().errno_value, ENOENT);
  nothing = BlockStore::Inspect(directory_);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().errno_value, ENOENT);
  Keep("f", Noise(100 * kBlock));
  Fill(store(), {"other", "f", kBlock}, 0, Noise(kBlock));
  const auto found = BlockStore::Inspect(directory_);
  ASSERT_TRUE(found) << ToString(found.error());
  EXPECT_EQ(found->entries, 2);
  EXPECT_GE(found->bytes, 101 * kBlock);
  EXPECT_EQ(found->limit_bytes, int64_t{1} << 30);
  EXPECT_EQ(found->sandboxes.at("box").first, 1);
  EXPECT_EQ(found->sandboxes.at("other").first, 1);
  const auto removed = BlockStore::Clear(directory_);
  ASSERT_TRUE(removed);
  EXPECT_EQ(*removed, found->bytes);
  EXPECT_EQ(BlockStore::Inspect(directory_)->entries, 0);
}

TEST_F(BlockStoreTest, SizesThatNobodyCanKeepAreNotKept) {
  for (const int64_t size : {int64_t{0}, int64_t{-1}, BlockStore::kMostFileBytes + 1, INT64_MAX}) EXPECT_EQ(store().Find(Key("f", size)), nullptr);
  const auto key = Key("f", BlockStore::kMostFileBytes);
  Fill(store(), key, BlockStore::kMostFileBytes - kBlock, Noise(kBlock));
  EXPECT_LE(BytesOnDisk(), 64 << 10);
  EXPECT_EQ(Front(store(), key, BlockStore::kMostFileBytes - kBlock, kBlock), Noise(kBlock));
}

}  // namespace
}  // namespace e2bfs::cache
