// The note beside unsent content: what is written is read again, whatever the names are, and nothing torn is taken for good.
#include "cache/unsent_record.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace e2bfs::cache {
namespace {

UnsentRecord FullRecord() {
  UnsentRecord record;
  record.id = "aX3_";
  record.sandbox_id = "i3x0hlz8wd8fhm7vn3m2a";
  record.user = "user";
  record.root = "/home/us er";
  record.path = std::string("d/\n\\ %41\xff\xc3\x28\x01 + range 1 2\ne2bfs-unsent 1", 38);
  record.fresh = true;
  record.base = {{std::string("\0\n\xfe", 3)}, 123, {1'700'000'000, 999'999'999}, {-5, 1}, 04755};
  record.change.extents.Add({0, 7});
  record.change.extents.Add({INT64_MAX - 10, 10});
  record.change.append = transport::Extent{1000, 5};
  record.change.cut = 3;
  record.change.size = INT64_MAX;
  record.change.attributes.permissions = 0600;
  record.change.attributes.uid = UINT32_MAX;
  record.change.attributes.gid = 0;
  record.change.attributes.atime = transport::TimeChange{true, {}};
  record.change.attributes.mtime = transport::TimeChange{false, {5, 7}};
  record.change.attributes.mtime_is_implied = true;
  record.since = 1'764'470'229;
  record.last_error = "EIO: no\nway";
  record.being_sent = true;
  record.moving = true;
  record.accepted = true;
  record.order = 1'764'470'229'123'456'789;
  record.make = UnsentMaking{transport::FileType::kSymlink, 07777, Creator{UINT32_MAX, 0}, "../a b\n\xff"};
  return record;
}

// All that a record says, comparable.
std::string Everything(const UnsentRecord& r) {
  std::string text = r.id + "|" + r.sandbox_id + "|" + r.user + "|" + r.root + "|" + r.path + "|" + r.base.id.value + "|" + r.last_error;
  for (const int64_t number : {int64_t{r.nothing}, int64_t{r.has_content}, int64_t{r.fresh}, r.base.size, int64_t{r.base.mtime.tv_sec}, int64_t{r.base.mtime.tv_nsec},
                               int64_t{r.base.ctime.tv_sec}, int64_t{r.base.ctime.tv_nsec}, int64_t{r.base.permissions}, r.since, int64_t{r.being_sent}, int64_t{r.moving},
                               r.change.cut.value_or(-1), r.change.size.value_or(-1), r.change.append ? r.change.append->offset : -1, r.change.append ? r.change.append->length : -1}) {
    text += "|" + std::to_string(number);
  }
  for (const auto& extent : r.change.extents.extents()) text += " " + std::to_string(extent.offset) + "+" + std::to_string(extent.length);
  const transport::AttributeChange& set = r.change.attributes;
  text += "|" + (set.permissions ? std::to_string(*set.permissions) : "-") + "|" + (set.uid ? std::to_string(*set.uid) : "-") + "|" + (set.gid ? std::to_string(*set.gid) : "-");
  for (const auto& time : {set.atime, set.mtime}) {
    text += !time ? "|-" : time->now ? "|now" : "|" + std::to_string(time->value.tv_sec) + "." + std::to_string(time->value.tv_nsec);
  }
  text += set.mtime_is_implied ? "|implied" : "|";
  text += (r.accepted ? "|accepted " : "|") + std::to_string(r.order);
  if (r.make) {
    text += "|" + std::to_string(static_cast<int>(r.make->type)) + " " + std::to_string(r.make->permissions) + " " + r.make->target;
    if (r.make->creator) text += " " + std::to_string(r.make->creator->uid) + " " + std::to_string(r.make->creator->gid);
  }
  return text;
}

class UnsentRecordTest : public ::testing::Test {
 protected:
  UnsentRecordTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-record-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    top_ = pattern;
    path_ = top_ + "/f" + kUnsentNoteSuffix;
  }
  ~UnsentRecordTest() override { std::filesystem::remove_all(top_); }
  std::string Bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string Said() const {
    const auto record = ReadUnsentNote(path_);
    return record ? Everything(*record) : "error: " + record.error().message;
  }

  std::string top_, path_;
};

TEST_F(UnsentRecordTest, SaysAgainWhatItWasTold) {
  ASSERT_TRUE(WriteUnsentNote(path_, FullRecord()));
  EXPECT_EQ(Said(), Everything(FullRecord()));
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  for (int byte = 0; byte < 256; ++byte) {
    UnsentRecord record;
    record.has_content = false;
    record.path = std::string("x") + static_cast<char>(byte);
    record.change.attributes.mtime = transport::TimeChange{false, {1, 2}};
    ASSERT_TRUE(WriteUnsentNote(path_, record));
    ASSERT_EQ(Said(), Everything(record)) << byte;
    EXPECT_EQ(DecodeBytes(EncodeBytes(record.path)), record.path);
  }
  for (const char* bad : {"%", "%4", "%4g", "%g4", "a%-1"}) EXPECT_FALSE(DecodeBytes(bad)) << bad;
}

TEST_F(UnsentRecordTest, WhatIsTornOrForeignIsToldFromWhatIsGood) {
  ASSERT_TRUE(WriteUnsentNote(path_, FullRecord()));
  const std::string good = Bytes();
  ASSERT_TRUE(ParseUnsentNote(good));
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(ParseUnsentNote(std::string_view(good).substr(0, length))) << length;
    EXPECT_FALSE(ParseUnsentNote(good.substr(0, length) + std::string(good.size() - length, '\0'))) << length;
    std::string flipped = good;
    flipped[length] = static_cast<char>(flipped[length] ^ 1);
    EXPECT_FALSE(ParseUnsentNote(flipped)) << length;
  }
  for (const char* foreign : {"", "\n", "file in the sandbox: a\n", "nothing unsent\n", "e2bfs-unsent ", "e2bfs-unsent x slot"}) {
    EXPECT_FALSE(ParseUnsentNote(foreign)) << foreign;
  }
  std::string newer = good;
  newer.replace(0, 14, "e2bfs-unsent 2");
  EXPECT_NE(ParseUnsentNote(newer).error().message.find("newer version"), std::string::npos);
  EXPECT_EQ(ReadUnsentNote(top_ + "/none").error().errno_value, ENOENT);
  ASSERT_EQ(::symlink(path_.c_str(), (top_ + "/link").c_str()), 0);
  EXPECT_FALSE(ReadUnsentNote(top_ + "/link"));
}

// SIGKILL may come after each byte of each write.
TEST_F(UnsentRecordTest, ANoteThatIsBeingRewrittenSaysTheOldOrTheNew) {
  UnsentNote note(path_);
  UnsentRecord record = FullRecord();
  std::string before_bytes, before;
  for (int i = 0; i < 6; ++i) {
    record.path = std::string(static_cast<size_t>(1 + (i * 37) % 90), static_cast<char>('a' + i));  // shorter and longer
    note.Write(record);
    const std::string bytes = Bytes(), now = Everything(record);
    ASSERT_EQ(Said(), now);
    // Where they differ is where it was written, in one piece.
    std::string mixed = before_bytes;
    mixed.resize(bytes.size(), '\0');
    for (size_t at = 0; i > 0 && at <= bytes.size(); ++at) {
      if (at == bytes.size() || mixed[at] != bytes[at]) {
        const auto parsed = ParseUnsentNote(mixed);
        ASSERT_TRUE(parsed) << i << " " << at << ": " << parsed.error().message;
        const std::string said = Everything(*parsed);
        ASSERT_TRUE(said == before || said == now) << i << " " << at << "\n" << said;
      }
      if (at < bytes.size()) mixed[at] = bytes[at];
    }
    before_bytes = bytes;
    before = now;
  }
}

TEST_F(UnsentRecordTest, ManyRangesAreAddedAtTheEndAndATornEndIsLeftOut) {
  UnsentNote note(path_);
  UnsentRecord record = FullRecord();
  record.change = {};
  EXPECT_FALSE(note.Add({1, 1}, false));  // nothing is there to add to
  for (int i = 0; i < 100; ++i) record.change.extents.Add({10 * i, 5});
  record.change.size = 995;
  note.Write(record);
  EXPECT_EQ(Said(), Everything(record));
  std::set<std::string> right{Everything(record)};
  size_t before = Bytes().size();
  for (int i = 100; i < 120; ++i) {
    ASSERT_TRUE(note.Add({10 * i, 5}, false));
    record.change.extents.Add({10 * i, 5});
    record.change.size = 10 * i + 5;
    ASSERT_EQ(Said(), Everything(record));
    const std::string bytes = Bytes();
    for (size_t length = before; length < bytes.size(); ++length) {
      const auto parsed = ParseUnsentNote(std::string_view(bytes).substr(0, length));
      ASSERT_TRUE(parsed && right.contains(Everything(*parsed))) << length;
    }
    right.insert(Everything(record));
    before = bytes.size();
  }
  std::string flipped = Bytes();
  flipped[flipped.size() - 30] ^= 1;
  EXPECT_NE(Everything(ParseUnsentNote(flipped).value_or(UnsentRecord{})), Everything(record));
  // Not for ever: in the end it is written anew, at most as often as it doubles.
  int added = 0;
  while (note.Add({1'000'000 + 10 * added, 5}, false)) ++added;
  EXPECT_GT(added, 1000);
  // Back to few: no line of the log counts any more.
  record.change = {};
  record.change.extents.Add({3, 4});
  note.Write(record);
  EXPECT_EQ(Said(), Everything(record));
  record.nothing = true;
  note.Write(record);
  EXPECT_TRUE(ReadUnsentNote(path_)->nothing);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".new"));
  note.Unlink();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(UnsentRecordTest, AFewRangesAreAddedInTheirSlot) {
  UnsentNote note(path_);
  UnsentRecord record = FullRecord();
  record.change.extents.Clear();
  record.change.size.reset();
  for (int round = 0; round < 3; ++round) {
    record.last_error += "x";
    note.Write(record);
    int added = 0;
    for (; note.Add({2000 + 10 * added, 5}, false) && note.Add({record.change.append->end(), 3}, true); ++added) {
      record.change.extents.Add({2000 + 10 * added, 5});
      record.change.append->length += 3;
      if (added % 20 == 0) {
        ASSERT_EQ(Said(), Everything(record)) << round << " " << added;
      }
    }
    EXPECT_GT(added, 50);
    ASSERT_LE(Bytes().size(), static_cast<size_t>(2 * kNoteSlotBytes));
    record.change.extents.Clear();
  }
  record.change.extents.Add({1, 1});
  note.Write(record);  // over the lines of two records before
  EXPECT_EQ(Said(), Everything(record));
}

// A line that is right in itself, and stands where the next one would, but belongs to another record.
TEST_F(UnsentRecordTest, ALineOfAnotherRecordDoesNotCount) {
  UnsentRecord record = FullRecord();
  std::string texts[2];
  for (int i = 0; i < 2; ++i) {
    record.since = i;
    UnsentNote note(path_);
    note.Write(record);
    ASSERT_TRUE(note.Add({3000, 5}, false));
    texts[i] = Bytes();
    note.Unlink();
  }
  ASSERT_EQ(texts[0].size(), texts[1].size());
  const size_t line = texts[0].rfind("+ 3000 5");
  record.since = 0;
  EXPECT_EQ(Everything(ParseUnsentNote(texts[0].substr(0, line) + texts[1].substr(line)).value_or(UnsentRecord{})), Everything(record));
  record.change.extents.Add({3000, 5});
  EXPECT_EQ(Everything(ParseUnsentNote(texts[0]).value_or(UnsentRecord{})), Everything(record));
}

TEST_F(UnsentRecordTest, ADiskThatTakesNoMoreLeavesNothingUntrue) {
  UnsentNote note(path_);
  UnsentRecord record = FullRecord();
  note.Write(record);
  ASSERT_EQ(Said(), Everything(record));
  // A long one goes into a new file, which cannot be made any more.
  ASSERT_EQ(::mkdir((path_ + ".new").c_str(), 0700), 0);
  for (int i = 0; i < 100; ++i) record.change.extents.Add({2000 + 10 * i, 5});
  note.Write(record);
  EXPECT_EQ(ReadUnsentNote(path_).error().errno_value, ENOENT);
  EXPECT_FALSE(note.Add({1, 1}, false));
  ASSERT_EQ(::rmdir((path_ + ".new").c_str()), 0);
  note.Write(record);
  EXPECT_EQ(Said(), Everything(record));
}

// Files may not become longer than this meanwhile: a write goes as far as that, and fails.
class ShortFiles {
 public:
  explicit ShortFiles(size_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~ShortFiles() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST_F(UnsentRecordTest, APromiseStaysOnADiskThatTakesNoMore) {
  UnsentNote note(path_);
  UnsentRecord record = FullRecord();
  record.moving = false;
  ASSERT_TRUE(note.Write(record));
  ASSERT_EQ(::mkdir((path_ + ".new").c_str(), 0700), 0);
  UnsentRecord longer = record;
  for (int i = 0; i < 100; ++i) longer.change.extents.Add({2000 + 10 * i, 5});
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(note.Write(longer));
    EXPECT_FALSE(note.says());
    EXPECT_FALSE(note.Add({1, 1}, false));
    EXPECT_EQ(Said(), Everything(record));
    record.last_error += "x";
    longer.last_error = record.last_error;
    EXPECT_TRUE(note.Write(record));  // a short one has a place
    EXPECT_TRUE(note.says());
    EXPECT_EQ(Said(), Everything(record));
  }
  // Nothing but its values is new.
  for (int i = 0; i < 100; ++i) longer.change.extents.Remove({2000 + 10 * i, 5});
  longer.last_error = std::string(20'000, 'x');
  EXPECT_TRUE(note.Write(longer));
  EXPECT_FALSE(note.says());
  EXPECT_EQ(Said(), Everything(record));
  // What it says is not all there any more.
  longer.change.extents.Remove({0, 3});
  EXPECT_TRUE(note.Write(longer));
  EXPECT_EQ(ReadUnsentNote(path_).error().errno_value, ENOENT);
  ASSERT_TRUE(note.Write(record));
  record.nothing = longer.nothing = true;
  EXPECT_TRUE(note.Write(record));
  EXPECT_TRUE(ReadUnsentNote(path_)->nothing);
}

TEST_F(UnsentRecordTest, AWriteThatIsCutShortLeavesThePromiseAsItWas) {
  for (const size_t more : {0, 1, 30, 200, 450}) {
    UnsentNote note(path_);
    UnsentRecord record = FullRecord();
    record.moving = false;
    ASSERT_TRUE(note.Write(record));
    const size_t second_slot = Bytes().size();
    const auto add = [&](int64_t offset) {
      record.change.extents.Add({offset, 5});
      return note.Add({offset, 5}, false);
    };
    {
      const ShortFiles limit(second_slot + std::min<size_t>(more, 20));
      EXPECT_EQ(add(2000), false);
      EXPECT_NE(Said(), Everything(record));
      EXPECT_TRUE(note.Write(record));  // into the other slot
      EXPECT_EQ(Said(), Everything(record));
      EXPECT_TRUE(add(3000));
      EXPECT_EQ(Said(), Everything(record));
    }
    const std::string before = Everything(record);
    record.change.extents.Add({4000, 5});
    {
      const ShortFiles limit(static_cast<size_t>(kNoteSlotBytes) + more);
      for (int i = 0; i < 2; ++i) {
        EXPECT_FALSE(note.Write(record));
        EXPECT_EQ(Said(), before) << more;
      }
    }
    EXPECT_TRUE(note.Write(record));
    EXPECT_EQ(Said(), Everything(record));
    EXPECT_TRUE(add(5000));
    EXPECT_EQ(Said(), Everything(record));
    note.Unlink();
  }
}

}  // namespace
}  // namespace e2bfs::cache
