// Reading: how much is fetched, of which version, and what happens when it breaks.
#include "cache/memory_budget.h"
#include "cache/stream_reader.h"
#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

// No two places look alike.
std::string NumberedContent(size_t bytes) {
  std::string content(bytes, '.');
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    for (size_t number = at, i = 0; i < 8; ++i, number /= 26) content[at + i] = static_cast<char>('a' + number % 26);
  }
  return content;
}

using ReadingTest = CacheFixture;

TEST_F(ReadingTest, ASmallFileIsOneRequest) {
  remote_->InsideWrite("a", NumberedContent(100'000));
  const FileHandle handle = OpenRead("a");
  remote_->ResetCalls();
  EXPECT_EQ(ReadAll(handle, 16 << 10), NumberedContent(100'000));
  EXPECT_EQ(remote_->calls("Read"), 1);
  EXPECT_EQ(remote_->bytes_read(), 100'000);
}

TEST_F(ReadingTest, SequentialReadingUsesFewRequestsAndFetchesEachByteOnce) {
  const std::string content = NumberedContent(24 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  EXPECT_TRUE(ReadAll(handle) == content);
  EXPECT_LE(remote_->calls("Read"), 10);
  EXPECT_EQ(remote_->bytes_read(), static_cast<int64_t>(content.size()));
}

TEST_F(ReadingTest, PiecesInAnotherOrderAreStillOneTransfer) {
  const std::string content = NumberedContent(8 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  constexpr int64_t kPiece = 128 << 10;
  for (int64_t at = 0; at < static_cast<int64_t>(content.size()); at += 2 * kPiece) {
    for (const int64_t offset : {at + kPiece, at}) {
      ASSERT_TRUE(ReadAt(handle, offset, kPiece) == content.substr(static_cast<size_t>(offset), kPiece)) << offset;
    }
  }
  EXPECT_LE(remote_->calls("Read"), 16);
  EXPECT_LE(remote_->bytes_read(), static_cast<int64_t>(content.size()) + (1 << 20));
}

// As root the kernel's read-ahead is 1 MiB, asked for by several threads at once.
TEST_F(ReadingTest, LargePiecesInAnotherOrderAreStillOneTransfer) {
  const std::string content = NumberedContent(64 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  constexpr int64_t kPiece = 1 << 20;
  for (int64_t at = 0; at < static_cast<int64_t>(content.size()); at += 2 * kPiece) {
    for (const int64_t offset : {at + kPiece, at}) {
      ASSERT_TRUE(ReadAt(handle, offset, kPiece) == content.substr(static_cast<size_t>(offset), kPiece)) << offset;
    }
  }
  EXPECT_LE(remote_->calls("Read"), 16);  // of 64 reads: seven that grow, then 8 MiB each
  EXPECT_LE(remote_->bytes_read(), static_cast<int64_t>(content.size()) + (4 << 20));
}

TEST_F(ReadingTest, RandomReadsFetchLittle) {
  const std::string content = NumberedContent(16 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  uint64_t position = 12345;
  for (int i = 0; i < 100; ++i) {
    position = (position * 6364136223846793005u + 1442695040888963407u);
    const size_t offset = (position >> 33) % (content.size() - 4096);
    ASSERT_EQ(ReadAt(handle, static_cast<int64_t>(offset), 4096), content.substr(offset, 4096));
  }
  EXPECT_LE(remote_->bytes_read(), 2 * 100 * 4096);
}

TEST_F(ReadingTest, StridesThatSkipMostAreNotReadThrough) {
  const std::string content = NumberedContent(24 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  for (size_t offset = 0; offset + 4096 < content.size(); offset += 256 << 10) {
    ASSERT_EQ(ReadAt(handle, static_cast<int64_t>(offset), 4096), content.substr(offset, 4096));
  }
  EXPECT_LE(remote_->bytes_read(), 8 << 20);
}

// What it costs when each round trip takes its time: fetched before they are asked for, all but the first ones.
TEST_F(ReadingTest, StridesAndBackwardReadingAreFetchedAhead) {
  const std::string content = NumberedContent(24 << 20);
  remote_->InsideWrite("big", content);
  {
    const FileHandle handle = OpenRead("big");
    remote_->ResetCalls();
    for (size_t offset = 1 << 20; offset + 4096 < content.size(); offset += 200'000) {
      ASSERT_EQ(ReadAt(handle, static_cast<int64_t>(offset), 4096), content.substr(offset, 4096));
    }
    EXPECT_LE(remote_->bytes_read(), 1 << 20);  // 120 of 4 KiB, those beyond the last one, and what was begun before the steps were known
  }
  {
    const FileHandle handle = OpenRead("big");
    remote_->ResetCalls();
    constexpr int64_t kPiece = 4096;
    for (int64_t offset = static_cast<int64_t>(content.size()) - kPiece; offset >= 0; offset -= kPiece) {
      ASSERT_TRUE(ReadAt(handle, offset, kPiece) == content.substr(static_cast<size_t>(offset), kPiece)) << offset;
    }
    EXPECT_LE(remote_->calls("Read"), 40);  // of 6,144 reads
    EXPECT_LE(remote_->bytes_read(), static_cast<int64_t>(content.size()) + (1 << 20));
  }
}

TEST_F(ReadingTest, SeveralPlacesOfOneFileAreReadAsStreamsAtOnce) {
  const std::string content = NumberedContent(32 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  constexpr int64_t kPart = 8 << 20, kPiece = 128 << 10;
  for (int64_t at = 0; at < kPart; at += kPiece) {
    for (int64_t part = 0; part < 4; ++part) {
      const int64_t offset = part * kPart + at;
      ASSERT_TRUE(ReadAt(handle, offset, kPiece) == content.substr(static_cast<size_t>(offset), kPiece)) << offset;
    }
  }
  EXPECT_LE(remote_->calls("Read"), 40);  // of 256 reads
  EXPECT_LE(remote_->bytes_read(), static_cast<int64_t>(content.size()) * 3 / 2);
}

// A program that takes its time in the middle of a range finds the next ones under way, and a whole window of them.
TEST_F(ReadingTest, RangesAreOpenedAheadOfTheReader) {
  const std::string content = NumberedContent(40 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  remote_->ResetCalls();
  for (int64_t at = 0; at < (6 << 20); at += 128 << 10) ReadAt(handle, at, 128 << 10);
  EXPECT_TRUE(Eventually([&] { return remote_->calls("Read") >= 5; }));
  EXPECT_GE(fs().Status().memory_bytes, 16 << 20);
  EXPECT_LE(fs().Status().memory_bytes, 32 << 20);
  fs().Release(handle, Ctx());
  EXPECT_TRUE(Eventually([&] { return fs().Status().memory_bytes == 0; }));
}

TEST_F(ReadingTest, ATransferThatBreaksIsResumedWhereItStopped) {
  const std::string content = NumberedContent(4 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  testing::RemoteFault cut;
  cut.function = "Read";
  cut.action = testing::RemoteFault::kCut;
  cut.bytes = 50'000;
  cut.count = 3;
  faulty_->Add(cut);
  EXPECT_TRUE(ReadAll(handle) == content);
  EXPECT_LE(remote_->bytes_read(), static_cast<int64_t>(content.size()) + (1 << 20));
}

TEST_F(ReadingTest, ATransferThatAlwaysBreaksIsAnError) {
  remote_->InsideWrite("a", NumberedContent(100'000));
  const FileHandle handle = OpenRead("a");
  testing::RemoteFault cut;
  cut.function = "Read";
  cut.action = testing::RemoteFault::kCut;
  cut.bytes = 0;
  cut.count = -1;
  faulty_->Add(cut);
  EXPECT_EQ(ReadAt(handle, 0, 10), "error EIO");
  EXPECT_LE(faulty_->calls("Read"), 10);
  faulty_->Clear();
  EXPECT_EQ(ReadAt(handle, 0, 8), NumberedContent(8));
}

TEST_F(ReadingTest, TwoVersionsAreNeverJoined) {
  const std::string old_content(1 << 20, 'a'), new_content(1 << 20, 'b');
  remote_->InsideWrite("a", old_content);
  const FileHandle handle = OpenRead("a");
  EXPECT_EQ(ReadAt(handle, 0, 4096), old_content.substr(0, 4096));
  const uint64_t generation = fs().GetAttributes(Find("a"), Ctx())->content_generation;
  remote_->InsideWrite("a", new_content);
  const std::string rest = ReadAt(handle, 4096, 300'000);
  EXPECT_TRUE(rest == new_content.substr(0, 300'000) || rest == old_content.substr(0, 300'000));
  // Read to the end, each answer is of one version, and in the end it is the new one.
  const std::string end = ReadAt(handle, 900'000, 100'000);
  EXPECT_TRUE(end == new_content.substr(0, 100'000)) << end.substr(0, 10);
  EXPECT_NE(fs().GetAttributes(Find("a"), Ctx())->content_generation, generation);
}

TEST_F(ReadingTest, AFileReplacedByRenameIsReadOnInItsOldVersion) {
  const std::string old_content = NumberedContent(600'000);
  remote_->InsideWrite("a", old_content);
  const FileHandle handle = OpenRead("a");
  EXPECT_EQ(ReadAt(handle, 0, 4096), old_content.substr(0, 4096));
  remote_->InsideReplace("a", "another");
  EXPECT_TRUE(ReadAll(handle) == old_content);
}

TEST_F(ReadingTest, AFileThatShrankIsReadAsItIs) {
  remote_->InsideWrite("a", std::string(300'000, 'a'));
  const FileHandle handle = OpenRead("a");
  remote_->InsideWrite("a", "short");
  EXPECT_EQ(ReadAt(handle, 0, 100), "short");
  EXPECT_EQ(Size(Find("a")), 5);
}

TEST_F(ReadingTest, KernelPagesAreKeptWhileContentIsTheSame) {
  options_.attribute_ttl = kNoTtl;
  remote_->InsideWrite("a", "one");
  const NodeId a = Find("a");
  EXPECT_FALSE(fs().Open(a, {}, Ctx())->keep_kernel_pages);
  EXPECT_TRUE(fs().Open(a, {}, Ctx())->keep_kernel_pages);
  const FileHandle writer = OpenWrite("a");
  Write(writer, 0, "two");
  EXPECT_EQ(Close(writer), 0);
  EXPECT_TRUE(fs().Open(a, {}, Ctx())->keep_kernel_pages);
  remote_->InsideWrite("a", "new");
  EXPECT_FALSE(fs().Open(a, {}, Ctx())->keep_kernel_pages);
  EXPECT_EQ(Content("a"), "new");
}

TEST_F(ReadingTest, FilesWithoutATrueSizeAreReadToTheirEnd) {
  const std::string content = NumberedContent(50'000);
  remote_->InsideMakeSizeless("proc", content);
  auto opened = fs().Open(Find("proc"), {}, Ctx());
  ASSERT_TRUE(opened);
  EXPECT_TRUE(opened->direct);
  EXPECT_EQ(ReadAll(opened->handle, 4096), content);
  EXPECT_EQ(remote_->calls("Read"), 1);
  EXPECT_EQ(ReadAt(opened->handle, 1000, 10), content.substr(1000, 10));
}

TEST_F(ReadingTest, ReadsMergeWhatIsUnsentOverWhatIsThere) {
  const std::string content = NumberedContent(500'000);
  remote_->InsideWrite("a", content);
  const FileHandle handle = OpenWrite("a");
  std::string expected = content;
  for (const size_t offset : {0u, 1000u, 127'000u, 300'000u, 499'990u}) {
    Write(handle, static_cast<int64_t>(offset), "<changed>");
    expected.replace(offset, 9, "<changed>");
  }
  EXPECT_TRUE(ReadAll(handle) == expected);
  EXPECT_EQ(Close(handle), 0);
  EXPECT_TRUE(Inside("a") == expected);
}

TEST_F(ReadingTest, AStalledReadEndsWithItsContextAndDelaysNobody) {
  remote_->InsideWrite("a", NumberedContent(100'000));
  remote_->InsideWrite("b", "text");
  const FileHandle handle = OpenRead("a");
  testing::RemoteFault stall;
  stall.function = "Read";
  stall.path_contains = "a";
  stall.action = testing::RemoteFault::kStall;
  stall.count = -1;
  faulty_->Add(stall);
  std::stop_source dying;
  std::thread reader([&] {
    OpContext ctx = Ctx();
    ctx.stop = dying.get_token();
    char byte;
    EXPECT_EQ(Errno(fs().Read(handle, 0, &byte, 1, ctx)), EINTR);
  });
  ASSERT_TRUE(faulty_->WaitForStalled(1));
  std::thread second([&] {  // waits for the first one's transfer
    char byte;
    EXPECT_EQ(Errno(fs().Read(handle, 0, &byte, 1, OpContext::Within(std::chrono::milliseconds(30)))), ETIMEDOUT);
  });
  second.join();
  EXPECT_EQ(Content("b"), "text");
  dying.request_stop();
  reader.join();
  faulty_->Clear();
  EXPECT_EQ(ReadAt(handle, 0, 8), NumberedContent(8));
}

TEST_F(ReadingTest, AnIdleTransferIsEndedAndGoesOnLater) {
  options_.reader_idle = std::chrono::milliseconds(1);
  const std::string content = NumberedContent(3 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  EXPECT_EQ(ReadAt(handle, 128 << 10, 4096), content.substr(128 << 10, 4096));
  EXPECT_EQ(ReadAt(handle, 0, 4096), content.substr(0, 4096));
  EXPECT_EQ(ReadAt(handle, 100'000, 4096), content.substr(100'000, 4096));  // what is between is kept
  EXPECT_GT(fs().Status().memory_bytes, 0);
  EXPECT_TRUE(Eventually([&] { return fs().Status().memory_bytes == 0; }));
  EXPECT_TRUE(ReadAll(handle) == content);
}

TEST_F(ReadingTest, MemoryIsBoundedForAllReadersTogether) {
  options_.memory_bytes = 300'000;
  const std::string content = NumberedContent(2 << 20);
  remote_->InsideWrite("big", content);
  const NodeId big = Find("big");
  std::vector<std::thread> threads;
  std::atomic<int64_t> most{0};
  for (int i = 0; i < 6; ++i) {
    const FileHandle handle = OpenFor(big, {});
    threads.emplace_back([&, handle] {
      constexpr int64_t kPiece = 64 << 10;
      for (int64_t at = 0; at < (2 << 20); at += 4 * kPiece) {
        for (const int64_t offset : {at, at + 3 * kPiece, at + 2 * kPiece, at + kPiece}) {
          EXPECT_TRUE(ReadAt(handle, offset, kPiece) == content.substr(static_cast<size_t>(offset), kPiece));
          int64_t seen = most;
          const int64_t now = fs().Status().memory_bytes;
          while (seen < now && !most.compare_exchange_weak(seen, now)) {
          }
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_GT(most.load(), 0);
  EXPECT_LE(most.load(), 300'000);
}

TEST_F(ReadingTest, SeveralThreadsReadOneHandle) {
  const std::string content = NumberedContent(4 << 20);
  remote_->InsideWrite("big", content);
  const FileHandle handle = OpenRead("big");
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      constexpr size_t kPiece = 128 << 10;
      for (;;) {
        const size_t offset = next.fetch_add(kPiece);
        if (offset >= content.size()) return;
        EXPECT_TRUE(ReadAt(handle, static_cast<int64_t>(offset), kPiece) == content.substr(offset, kPiece)) << offset;
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace e2bfs::cache
