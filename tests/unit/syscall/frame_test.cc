// The frames of the syscall tier: round trips, and a parser that takes any bytes.
#include "transport/syscall/frame.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "transport/syscall/new_objects.h"

namespace e2bfs::transport::syscall {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::string kServer("\x01\xff\x00\x7f\x80pQ\n", 8);

template <typename T>
std::string Big(T value) {
  std::string bytes;
  for (int shift = int(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) bytes.push_back(char(uint64_t(value) >> shift));
  return bytes;
}

template <typename T>
T FromBig(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = value << 8 | uint8_t(bytes.at(i));
  return T(value);
}

// The sum of big-endian words, zeros at the end: written once more, so that both sides do not err alike.
uint32_t Sum(std::string_view bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) sum += uint32_t{uint8_t(bytes[i])} << (8 * (3 - i % 4));
  return sum;
}

std::string ReplyFrame(uint64_t number, const std::string& body, const std::string& server = kServer) {
  const std::string checked = server + Big(number) + body;
  return "e2R1" + Big(uint32_t(body.size())) + Big(Sum(checked)) + checked;
}

std::string Outcome(int error, const std::string& result) { return Big(uint32_t(error)) + Big(uint32_t(result.size())) + result; }

std::string ReplyBody(uint8_t flags, const std::vector<std::string>& outcomes) {
  std::string body = std::string(1, char(flags)) + Big(uint16_t(outcomes.size()));
  for (const std::string& outcome : outcomes) body += outcome;
  return body;
}

std::string EchoFrame(uint64_t number, const std::string& text) {
  return ReplyFrame(number, std::string("\x02\0\0", 3) + text);
}

// As server.pl's attributes(): of a file that is there.
std::string StatxOf(const char* path) {
  struct statx found {};
  EXPECT_EQ(::statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_ALL, &found), 0) << path;
  return std::string(reinterpret_cast<const char*>(&found), 144);
}

std::string AttributeBytes(const char* path) { return StatxOf(path) + std::string(1, '\2') + Big(uint16_t(0)); }

// What a server says in a session.
std::vector<std::string> Corpus() {
  const std::string file = AttributeBytes("/etc/passwd"), directory = AttributeBytes("/etc");
  std::string listing = directory + Big(uint32_t(300));
  for (int i = 0; i < 300; ++i) {
    const std::string name = "entry " + std::to_string(i);
    listing += Big(uint16_t(name.size())) + name + file + std::string(1, '\0');
  }
  return {
      EchoFrame(1, "pulse"),
      ReplyFrame(2, ReplyBody(0, {Outcome(0, file)})),
      ReplyFrame(3, ReplyBody(0, {Outcome(2, "")})),
      ReplyFrame(4, ReplyBody(1, {Outcome(0, listing)})),
      ReplyFrame(4, ReplyBody(0, {Outcome(0, Big(uint32_t(0)))})),
      ReplyFrame(5, ReplyBody(0, {Outcome(0, "\x03" + file + directory), Outcome(0, ""), Outcome(116, "")})),
      ReplyFrame(0xffffffffffffffffULL, ReplyBody(0, {Outcome(0, file + std::string(50000, 'x'))})),
      EchoFrame(6, ""),
  };
}

struct Parsed {
  std::vector<Reply> replies;
  bool broken = false;
};

void Drain(ReplyParser& parser, Parsed& parsed) {
  while (!parsed.broken) {
    auto reply = parser.Next();
    if (!reply) {
      EXPECT_EQ(reply.error().kind, ErrorKind::kProtocol);
      EXPECT_EQ(reply.error().errno_value, EIO);
      parsed.broken = true;
    } else if (*reply) {
      parsed.replies.push_back(std::move(**reply));
    } else {
      return;
    }
  }
}

Parsed Parse(const std::string& bytes, const std::vector<size_t>& splits = {}) {
  ReplyParser parser(kServer);
  Parsed parsed;
  size_t at = 0;
  for (size_t i = 0; i <= splits.size(); ++i) {
    const size_t end = i < splits.size() ? splits[i] : bytes.size();
    parser.Feed(std::string_view(bytes).substr(at, end - at));
    Drain(parser, parsed);
    at = end;
  }
  return parsed;
}

bool Same(const Reply& a, const Reply& b) {
  if (a.number != b.number || a.more != b.more || a.echo != b.echo || a.rest != b.rest || a.outcomes.size() != b.outcomes.size()) return false;
  for (size_t i = 0; i < a.outcomes.size(); ++i) {
    if (a.outcomes[i].errno_value != b.outcomes[i].errno_value || a.outcomes[i].result != b.outcomes[i].result) return false;
  }
  return true;
}

std::string Joined(const std::vector<std::string>& frames) {
  std::string all;
  for (const std::string& frame : frames) all += frame;
  return all;
}

// --- requests

TEST(SyscallFrame, RequestIsLaidOutAsDocumented) {
  const std::string body = EncodeOperations(0x0102030405060708, {{Operation::kMakeDirectory, "abc"}, {Operation::kStat, ""}});
  EXPECT_EQ(body, std::string("\1\2\3\4\5\6\7\x08", 8) + std::string(1, '\0') + Big(uint16_t(2)) + std::string(1, '\6') + Big(uint32_t(3)) + "abc" +
                      std::string(1, '\1') + Big(uint32_t(0)));
  const std::string frame = EncodeFrame(kServer, 77, body);
  ASSERT_EQ(frame.size(), kFrameHeaderBytes + body.size());
  EXPECT_EQ(frame.substr(0, 4), "e2Q1");
  EXPECT_EQ(FromBig<uint32_t>(frame.substr(4)), body.size());
  EXPECT_EQ(FromBig<uint32_t>(frame.substr(8)), Sum(frame.substr(12)));
  EXPECT_EQ(frame.substr(12, 8), kServer);
  EXPECT_EQ(FromBig<uint64_t>(frame.substr(20)), 77U);
  EXPECT_EQ(frame.substr(28), body);
}

TEST(SyscallFrame, EchoCancelAndLeave) {
  EXPECT_EQ(EncodeEcho(3, "pulse"), Big(uint64_t(3)) + "\1pulse");
  EXPECT_EQ(EncodeCancel(4, {5, 0x100000000}), Big(uint64_t(4)) + "\2" + Big(uint64_t(5)) + Big(uint64_t(0x100000000)));
  EXPECT_EQ(EncodeLeave(), Big(uint64_t(0)) + "\3");
}

TEST(SyscallFrame, ArgumentsAndFieldsAreInverse) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    std::string text(random() % 300, '\0');
    for (char& c : text) c = char(random());
    const auto small = uint8_t(random());
    const auto middle = uint32_t(random());
    const auto large = int64_t(random());
    const std::string bytes = Arguments().U8(small).Text(text).U32(middle).I64(large).Raw("rest").bytes();
    Fields fields(bytes);
    EXPECT_EQ(fields.U8(), small);
    EXPECT_EQ(fields.Text(), text);
    EXPECT_EQ(fields.U32(), middle);
    EXPECT_EQ(fields.I64(), large);
    EXPECT_EQ(fields.Rest(), "rest");
    EXPECT_TRUE(fields.ok() && fields.ended());
  }
}

TEST(SyscallFrame, FieldsBeyondTheEndAreZeroForEver) {
  Fields fields(std::string_view("\xff\xff\xff\xff" "abc", 7));
  EXPECT_EQ(fields.Text(), "");
  EXPECT_FALSE(fields.ok());
  EXPECT_EQ(fields.U8(), 0);
  EXPECT_EQ(fields.U16(), 0);
  EXPECT_EQ(fields.U32(), 0U);
  EXPECT_EQ(fields.I64(), 0);
  EXPECT_EQ(fields.ShortText(), "");
  EXPECT_FALSE(fields.ok());
}

TEST(SyscallFrame, ChangeNamesOnlyWhatIsSet) {
  AttributeChange change;
  EXPECT_EQ(Arguments().Change(change).bytes(), Big(uint32_t(0)));
  change.permissions = 04755;
  change.uid = 1;
  change.gid = 2;
  change.size = INT64_C(5) << 40;
  change.atime = TimeChange{true, {}};
  change.mtime = TimeChange{false, {-1, 999'999'999}};
  EXPECT_EQ(Arguments().Change(change).bytes(), Big(uint32_t(1 | 2 | 4 | 8 | 32 | 64)) + Big(INT64_C(5) << 40) + Big(uint32_t(1)) + Big(uint32_t(2)) +
                                                    Big(uint32_t(04755)) + Big(int64_t(-1)) + Big(uint32_t(999'999'999)));
}

// --- replies

TEST(ReplyParser, WholeSession) {
  const Parsed parsed = Parse(Joined(Corpus()));
  ASSERT_FALSE(parsed.broken);
  ASSERT_EQ(parsed.replies.size(), 8U);
  EXPECT_TRUE(parsed.replies[0].echo);
  EXPECT_EQ(parsed.replies[0].rest, "pulse");
  EXPECT_EQ(parsed.replies[1].outcomes.at(0).errno_value, 0);
  EXPECT_EQ(parsed.replies[2].outcomes.at(0).errno_value, ENOENT);
  EXPECT_TRUE(parsed.replies[3].more);
  EXPECT_FALSE(parsed.replies[4].more);
  EXPECT_EQ(parsed.replies[5].outcomes.size(), 3U);
  EXPECT_EQ(parsed.replies[5].outcomes[2].errno_value, ESTALE);
  EXPECT_EQ(parsed.replies[6].number, 0xffffffffffffffffULL);
  EXPECT_EQ(parsed.replies[7].rest, "");
}

TEST(ReplyParser, SplitAtEachByte) {
  const std::string all = Joined(Corpus());
  const Parsed whole = Parse(all);
  // Not every byte of the long contents.
  for (size_t at = 1; at < all.size(); at += at < 2000 || at + 600 > all.size() ? 1 : 37) {
    const Parsed parsed = Parse(all, {at});
    ASSERT_FALSE(parsed.broken) << at;
    ASSERT_EQ(parsed.replies.size(), whole.replies.size()) << at;
    for (size_t i = 0; i < whole.replies.size(); ++i) ASSERT_TRUE(Same(parsed.replies[i], whole.replies[i])) << at;
  }
  std::vector<size_t> each;
  for (size_t at = 1; at < all.size(); ++at) each.push_back(at);
  EXPECT_EQ(Parse(all, each).replies.size(), whole.replies.size());
}

TEST(ReplyParser, TruncatedGivesWhatIsWholeAndWaits) {
  const auto frames = Corpus();
  const std::string all = Joined(frames);
  size_t whole = 0, end = frames[0].size();
  for (size_t cut = 0; cut < all.size(); cut += cut < 2000 ? 1 : 41) {
    while (cut >= end) end += frames[++whole].size();
    const Parsed parsed = Parse(all.substr(0, cut));
    ASSERT_FALSE(parsed.broken) << cut;
    ASSERT_EQ(parsed.replies.size(), whole) << cut;
  }
}

TEST(ReplyParser, EveryFlippedBitOfAFrameIsNoticedOrHarmless) {
  const std::string good = ReplyFrame(9, ReplyBody(0, {Outcome(0, AttributeBytes("/etc"))}));
  const std::string next = EchoFrame(10, "x");
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good + next;
    bad[bit / 8] = char(bad[bit / 8] ^ (1 << (bit % 8)));
    const Parsed parsed = Parse(bad);
    // A length that became longer waits for what does not come; nothing wrong is ever given.
    const bool in_length = bit / 8 >= 4 && bit / 8 < 8;
    ASSERT_TRUE(parsed.broken || (in_length && parsed.replies.empty())) << bit;
    ASSERT_THAT(parsed.replies, IsEmpty()) << bit;
  }
}

TEST(ReplyParser, ErrorsAreFinal) {
  ReplyParser parser(kServer);
  parser.Feed(std::string(40, 'z'));
  EXPECT_FALSE(parser.Next());
  parser.Feed(EchoFrame(1, "x"));
  EXPECT_FALSE(parser.Next());
  EXPECT_FALSE(parser.Next());
  for (int i = 0; i < 100; ++i) parser.Feed(std::string(1 << 20, 'z'));
  EXPECT_LE(parser.held_bytes(), 4 * kMaxBodyBytes);
}

TEST(ReplyParser, Nonsense) {
  const std::string fine = ReplyBody(0, {Outcome(0, "x")});
  EXPECT_TRUE(Parse(ReplyFrame(1, fine, "foreign!")).broken);
  EXPECT_TRUE(Parse(ReplyFrame(1, "\1")).broken);                                    // shorter than any
  EXPECT_TRUE(Parse(ReplyFrame(1, ReplyBody(0, {Outcome(4096, "")}))).broken);       // no errno
  EXPECT_TRUE(Parse(ReplyFrame(1, ReplyBody(0, {Big(uint32_t(-1)) + Big(uint32_t(0))}))).broken);
  EXPECT_TRUE(Parse(ReplyFrame(1, fine + "y")).broken);                              // more than it says
  EXPECT_TRUE(Parse(ReplyFrame(1, std::string("\0\xff\xff", 3) + Outcome(0, ""))).broken);  // less
  EXPECT_TRUE(Parse(ReplyFrame(1, ReplyBody(0, {Big(uint32_t(0)) + Big(uint32_t(0xffffffff)) + "x"}))).broken);
  EXPECT_TRUE(Parse("e2R1" + Big(uint32_t(0xffffffff)) + std::string(20, '\0')).broken);
  EXPECT_TRUE(Parse("e2Q1" + ReplyFrame(1, fine).substr(4)).broken);                 // a request
  EXPECT_FALSE(Parse("e2R1" + Big(uint32_t(3))).broken);                             // not yet
}

TEST(ReplyParser, NeverAnEndlessBuffer) {
  // The longest frame there may be, then only zeros; fed as envd does.
  const std::string longest = ReplyFrame(1, ReplyBody(0, {Outcome(0, std::string(2 * kMaxBodyBytes - 11, 'l'))}));
  ReplyParser parser(kServer);
  size_t most = 0, replies = 0;
  for (int round = 0; round < 20; ++round) {
    for (size_t at = 0; at < longest.size(); at += 32768) {
      parser.Feed(std::string_view(longest).substr(at, 32768));
      auto reply = parser.Next();
      ASSERT_TRUE(reply);
      if (*reply) ++replies;
      most = std::max(most, parser.held_bytes());
    }
  }
  EXPECT_EQ(replies, 20U);
  EXPECT_LE(most, longest.size() + 32768);
  EXPECT_TRUE(Parse(ReplyFrame(1, ReplyBody(0, {Outcome(0, std::string(2 * kMaxBodyBytes, 'l'))}))).broken);
}

// One mutation of the bytes: flips, holes, insertions, repeats, numbers that lie.
void Mutate(std::string& bytes, std::mt19937_64& random) {
  if (bytes.empty()) bytes = "e2R1";
  const size_t at = random() % bytes.size();
  switch (random() % 8) {
    case 0: bytes[at] = char(bytes[at] ^ (1 << (random() % 8))); break;
    case 1: bytes[at] = char(random()); break;
    case 2: bytes.resize(at); break;
    case 3: bytes.erase(at, random() % 64); break;
    case 4: bytes.insert(at, std::string(random() % 64, char(random()))); break;
    case 5: bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 400)); break;
    case 6: {
      static const uint32_t kNumbers[] = {0, 1, 2, 3, 0x7fffffff, 0x80000000, 0xffffffff, 0xffff, 0x40000, 0x80000, 0x80001};
      bytes.replace(at, 4, Big(kNumbers[random() % std::size(kNumbers)]));
      break;
    }
    default: std::swap(bytes[at], bytes[random() % bytes.size()]);
  }
}

// Frames whose body is mutated and whose length and checksum are right again: what a hostile server can send.
TEST(ReplyParser, FuzzedBodies) {
  const auto corpus = Corpus();
  const Actor actor{1000, 1000, {4, 20}};
  std::mt19937_64 random(20261128);
  int64_t taken = 0, refused = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string body = corpus[random() % 4].substr(kFrameHeaderBytes);
    for (uint64_t i = random() % 4 + 1; i > 0; --i) Mutate(body, random);
    const Parsed parsed = Parse(ReplyFrame(round, body));
    (parsed.broken ? refused : taken) += 1;
    for (const Reply& reply : parsed.replies) {
      for (const auto& outcome : reply.outcomes) {
        ASSERT_GE(outcome.errno_value, 0);
        ASSERT_LT(outcome.errno_value, 4096);
        Fields fields(outcome.result);
        if (auto attributes = DecodeAttributes(fields, actor)) {
          ASSERT_GE(attributes->size, 0);
          ASSERT_LT(attributes->mtime.tv_nsec, 1'000'000'000);
        }
        Fields again(outcome.result);
        (void)DecodeChanged(again, actor);
      }
    }
  }
  EXPECT_GT(taken, 1000);
  EXPECT_GT(refused, 1000);
}

// The answer to a row of new objects, mutated: nonsense, or an object for each that was asked for.
TEST(NewObjects, FuzzedAnswers) {
  const Actor actor{1000, 1000, {4, 20}};
  std::vector<NewObject> row(3);
  row[1].type = row[2].type = FileType::kDirectory;
  const std::string file = AttributeBytes("/etc/passwd"), directory = AttributeBytes("/etc");
  const std::string good = Big(uint32_t(0)) + "\1" + file + Big(uint32_t(EPERM)) + "\1" + directory + Big(uint32_t(EEXIST)) + std::string(1, '\0') + "\1" + directory;
  ASSERT_TRUE(DecodeMade({good}, row, 1, actor));
  std::mt19937_64 random(11);
  int64_t taken = 0, refused = 0;
  for (int round = 0; round < 30'000; ++round) {
    std::string bytes = good;
    for (uint64_t i = random() % 4; i > 0; --i) Mutate(bytes, random);
    const size_t cut = random() % 4 == 0 ? random() % (bytes.size() + 1) : bytes.size();
    const auto made = DecodeMade({std::string_view(bytes).substr(0, cut), std::string_view(bytes).substr(cut)}, row, 1, actor);
    (made ? taken : refused) += 1;
    if (!made) {
      ASSERT_EQ(made.error().kind, ErrorKind::kProtocol);
      continue;
    }
    ASSERT_EQ(made->objects.size(), row.size());
    ASSERT_LE(made->directories.size(), 1U);
    for (size_t i = 0; i < row.size(); ++i) {
      ASSERT_TRUE(made->objects[i].attributes || made->objects[i].error);
      if (made->objects[i].attributes) {
        ASSERT_EQ(made->objects[i].attributes->type, row[i].type);
      }
    }
  }
  EXPECT_GT(taken, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(ReplyParser, FuzzedStreams) {
  const std::string good = Joined({Corpus()[0], Corpus()[1], Corpus()[2], Corpus()[5], Corpus()[7]});
  std::mt19937_64 random(7);
  int64_t broken = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = good;
    for (uint64_t i = random() % 5 + 1; i > 0; --i) Mutate(bytes, random);
    ReplyParser parser(kServer);
    if (random() % 4 == 0) parser.DiscardUntilEcho("pulse");
    Parsed parsed;
    for (size_t at = 0; at < bytes.size() && !parsed.broken;) {
      const size_t part = random() % 500 + 1;
      parser.Feed(std::string_view(bytes).substr(at, part));
      at += part;
      Drain(parser, parsed);
      ASSERT_LE(parser.held_bytes(), 2 * kMaxBodyBytes + kFrameHeaderBytes + 500);
    }
    broken += parsed.broken ? 1 : 0;
  }
  EXPECT_GT(broken, 1000);
}

// --- after the stream was lost

TEST(DiscardUntilEcho, BeginsInTheMiddleOfAFrame) {
  const std::string before = ReplyFrame(3, ReplyBody(0, {Outcome(0, std::string(500, 'q'))}));
  const std::string nonce = "echo 0123456789abcdef";
  const std::string after = ReplyFrame(5, ReplyBody(0, {Outcome(2, "")}));
  const std::string all = before + before + EchoFrame(4, nonce) + after;
  for (size_t begin = 0; begin <= before.size() * 2; ++begin) {
    ReplyParser parser(kServer);
    parser.Feed("leftovers of the stream that was lost");
    parser.DiscardUntilEcho(nonce);
    Parsed parsed;
    parser.Feed(std::string_view(all).substr(begin));
    Drain(parser, parsed);
    ASSERT_FALSE(parsed.broken) << begin;
    ASSERT_EQ(parsed.replies.size(), 2U) << begin;
    EXPECT_EQ(parsed.replies[0].number, 4U);
    EXPECT_EQ(parsed.replies[0].rest, nonce);
    EXPECT_EQ(parsed.replies[1].number, 5U);
  }
}

TEST(DiscardUntilEcho, NonceSplitOverChunks) {
  const std::string nonce = "echo \0\xff" "e2R1 abcdef";
  const std::string all = std::string(100, '\0') + EchoFrame(4, nonce) + EchoFrame(5, "later");
  for (size_t first = 1; first < all.size(); ++first) {
    for (const size_t second : {first, std::min(first + 1, all.size()), std::min(first + 7, all.size())}) {
      ReplyParser parser(kServer);
      parser.DiscardUntilEcho(nonce);
      Parsed parsed;
      parser.Feed(std::string_view(all).substr(0, first));
      Drain(parser, parsed);
      parser.Feed(std::string_view(all).substr(first, second - first));
      Drain(parser, parsed);
      parser.Feed(std::string_view(all).substr(second));
      Drain(parser, parsed);
      ASSERT_EQ(parsed.replies.size(), 2U) << first << " " << second;
    }
  }
}

TEST(DiscardUntilEcho, TheNonceInsideOfContentIsNone) {
  const std::string nonce = "echo 0123456789abcdef";
  for (const std::string& decoy : {
           nonce,                                                                          // at the very beginning
           std::string(40, 'x') + nonce,                                                    // no frame before it
           ReplyFrame(3, ReplyBody(0, {Outcome(0, "a file that holds " + nonce)})),         // content
           ReplyFrame(3, ReplyBody(0, {Outcome(0, nonce)})),
           EchoFrame(3, nonce + "x"),                                                       // another echo
           EchoFrame(3, "y" + nonce),
           ReplyFrame(3, std::string("\x02\0\0", 3) + nonce, "foreign!"),                   // another server's
           EchoFrame(3, nonce).replace(9, 1, "~"),                                          // a wrong checksum
       }) {
    ReplyParser parser(kServer);
    parser.DiscardUntilEcho(nonce);
    Parsed parsed;
    parser.Feed(decoy);
    Drain(parser, parsed);
    EXPECT_FALSE(parsed.broken);
    EXPECT_THAT(parsed.replies, IsEmpty());
    parser.Feed(EchoFrame(4, nonce));
    Drain(parser, parsed);
    ASSERT_EQ(parsed.replies.size(), 1U);
    EXPECT_EQ(parsed.replies[0].number, 4U);
  }
}

TEST(DiscardUntilEcho, HoldsLittleHoweverMuchComes) {
  ReplyParser parser(kServer);
  parser.DiscardUntilEcho("echo nonce");
  std::mt19937_64 random(3);
  for (int i = 0; i < 500; ++i) {
    std::string chunk(32768, '\0');
    for (size_t at = 0; at < chunk.size(); at += 8) memcpy(chunk.data() + at, std::string(Big(random())).data(), 8);
    parser.Feed(chunk);
    auto reply = parser.Next();
    ASSERT_TRUE(reply);
    ASSERT_FALSE(*reply);
    ASSERT_LE(parser.held_bytes(), 100U);
  }
  parser.Feed(EchoFrame(1, "echo nonce"));
  auto reply = parser.Next();
  ASSERT_TRUE(reply && *reply);
}

// --- attributes

TEST(DecodeAttributes, AsTheKernelSaysThem) {
  struct stat expected {};
  ASSERT_EQ(stat("/etc/passwd", &expected), 0);
  const std::string bytes = AttributeBytes("/etc/passwd");
  Fields fields(bytes);
  auto attributes = DecodeAttributes(fields, {1000, 1000, {}});
  ASSERT_TRUE(attributes);
  EXPECT_TRUE(fields.ended());
  EXPECT_EQ(attributes->type, FileType::kRegular);
  EXPECT_EQ(attributes->size, expected.st_size);
  EXPECT_EQ(attributes->permissions, expected.st_mode & 07777);
  EXPECT_EQ(attributes->inode, expected.st_ino);
  EXPECT_EQ(attributes->link_count, expected.st_nlink);
  EXPECT_EQ(attributes->mtime.tv_sec, expected.st_mtim.tv_sec);
  EXPECT_EQ(attributes->mtime.tv_nsec, expected.st_mtim.tv_nsec);
  EXPECT_EQ(attributes->id.value.size(), 28U);
  EXPECT_EQ(attributes->access, expected.st_mode & 7U);
  ASSERT_TRUE(attributes->xattr_names);
}

// Without a time of birth an inode number says nothing after its file system was mounted again.
TEST(DecodeAttributes, IdentitiesLastWhereThereIsATimeOfBirth) {
  std::string bytes = AttributeBytes("/etc/passwd");
  for (const bool born : {true, false}) {
    bytes.replace(80, 12, std::string(12, born ? '\1' : '\0'));
    Fields fields(bytes);
    auto attributes = DecodeAttributes(fields, {1000, 1000, {}});
    ASSERT_TRUE(attributes);
    EXPECT_EQ(attributes->lasting, born);
  }
}

TEST(DecodeAttributes, AccessOfEach) {
  std::string bytes = AttributeBytes("/etc/passwd");
  const uint16_t mode = 0100640;
  memcpy(bytes.data() + 28, &mode, 2);
  const uint32_t owner = 1000, group = 50;
  memcpy(bytes.data() + 20, &owner, 4);
  memcpy(bytes.data() + 24, &group, 4);
  auto access = [&](const Actor& actor) {
    Fields fields(bytes);
    return DecodeAttributes(fields, actor)->access;
  };
  EXPECT_EQ(access({1000, 1, {}}), 6);
  EXPECT_EQ(access({1, 50, {}}), 4);
  EXPECT_EQ(access({1, 1, {7, 50}}), 4);
  EXPECT_EQ(access({1, 1, {7}}), 0);
  EXPECT_EQ(access({0, 0, {}}), 6);
}

TEST(DecodeAttributes, WhatNoKernelSays) {
  const std::string good = AttributeBytes("/etc/passwd");
  auto refused = [](const std::string& bytes) {
    Fields fields(bytes);
    return !DecodeAttributes(fields, {}).has_value();
  };
  auto with = [&](size_t at, const std::string& bytes) { return std::string(good).replace(at, bytes.size(), bytes); };
  EXPECT_FALSE(refused(good));
  EXPECT_TRUE(refused(with(28, std::string(2, '\0'))));                  // no type
  EXPECT_TRUE(refused(with(28, std::string("\xff\xff", 2))));
  EXPECT_TRUE(refused(with(40, std::string(8, '\xff'))));                // a negative size
  EXPECT_TRUE(refused(with(48, std::string(8, '\xff'))));                // negative blocks
  EXPECT_TRUE(refused(with(120, std::string("\0\xca\x9a\x3b", 4))));      // 1,000,000,000 ns
  EXPECT_TRUE(refused(with(104, std::string(4, '\xff'))));
  for (size_t length = 0; length < good.size(); ++length) EXPECT_TRUE(refused(good.substr(0, length))) << length;
  // Names that say more than is there.
  EXPECT_TRUE(refused(good.substr(0, 145) + "\xff\xff" "abc"));
  std::string names("user.a\0\0user.b\0unterminated", 27);
  const std::string bytes = good.substr(0, 145) + Big(uint16_t(names.size())) + names;
  Fields fields(bytes);
  auto attributes = DecodeAttributes(fields, {});
  ASSERT_TRUE(attributes);
  EXPECT_THAT(*attributes->xattr_names, ElementsAre("user.a", "user.b"));
}

TEST(DecodeChanged, OnlyWhatIsPresentAndNothingMore) {
  const std::string one = AttributeBytes("/etc");
  for (uint8_t present = 0; present < 8; ++present) {
    std::string bytes(1, char(present));
    for (int i = 0; i < 3; ++i) {
      if ((present >> i & 1) != 0) bytes += one;
    }
    Fields fields(bytes);
    auto changed = DecodeChanged(fields, {});
    ASSERT_TRUE(changed);
    EXPECT_EQ(changed->object.has_value(), (present & 1) != 0);
    EXPECT_EQ(changed->parent.has_value(), (present & 2) != 0);
    EXPECT_EQ(changed->old_parent.has_value(), (present & 4) != 0);
    Fields longer(bytes += "x");
    EXPECT_FALSE(DecodeChanged(longer, {}));
  }
  Fields none("");
  EXPECT_FALSE(DecodeChanged(none, {}));
}

// --- news

std::string NameNews(const std::string& name, uint8_t state) {
  return "\x01" + std::string(28, 'i') + Big(uint16_t(name.size())) + name + std::string(1, char(state));
}

TEST(DecodeNews, WhatMakesSense) {
  const std::string entry = AttributeBytes("/etc/passwd") + std::string(1, '\0');
  for (const std::string& news : {std::string(), NameNews("a", 0), NameNews("a", 1) + entry, NameNews("a", 2), "\x02" + AttributeBytes("/etc"),
                                  "\x03" + std::string(28, 'i'), std::string("\x04"),
                                  NameNews("a", 2) + "\x04" + NameNews("b", 1) + entry + "\x02" + AttributeBytes("/etc")}) {
    EXPECT_TRUE(DecodeNews(news, {}, nullptr));
  }
}

TEST(DecodeNews, WhatMakesNone) {
  for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("a\0b", 3)}) {
    EXPECT_FALSE(DecodeNews(NameNews(name, 0), {}, nullptr)) << name;
  }
  for (const std::string& news : {std::string("\x05"), std::string(1, '\0'), NameNews("a", 3), NameNews("a", 1), "\x02" + AttributeBytes("/etc/passwd"),
                                  "\x03" + std::string(27, 'i'), NameNews("a", 0).substr(0, 31)}) {
    EXPECT_FALSE(DecodeNews(news, {}, nullptr));
  }
}

class CountingListener : public ChangeListener {
 public:
  void NameChanged(const FileId&, const std::string&, const std::optional<Entry>&, bool) override { ++others; }
  void DirectoryChanged(const Attributes&) override { ++others; }
  void Unwatched(const FileId&) override { ++others; }
  void ChangesLost() override { ++lost; }
  int lost = 0, others = 0;
};

TEST(DecodeNews, LossesOfOneFrameAreOne) {
  CountingListener listener;
  EXPECT_TRUE(DecodeNews(std::string(3000, '\4') + NameNews("a", 0) + std::string("\4") + NameNews("b", 0), {}, &listener));
  EXPECT_EQ(listener.lost, 1);
  EXPECT_EQ(listener.others, 2);
}

TEST(DecodeNews, NothingIsToldOfAFrameThatMakesNoSense) {
  CountingListener listener;
  EXPECT_FALSE(DecodeNews("\4" + NameNews("a", 0) + "\5", {}, &listener));
  // More than a server puts into one: 96 KiB, and a record.
  EXPECT_FALSE(DecodeNews(std::string(5000, '\4'), {}, &listener));
  std::string many;
  for (int i = 0; i < 5000; ++i) many += "\3" + std::string(28, 'i');
  EXPECT_FALSE(DecodeNews(many, {}, &listener));
  EXPECT_EQ(listener.lost + listener.others, 0);
  EXPECT_TRUE(DecodeNews(many.substr(0, 29 * 3500), {}, &listener));
  EXPECT_EQ(listener.others, 3500);
}

TEST(DecodeNews, Fuzzed) {
  const std::string good = NameNews("name", 1) + AttributeBytes("/etc/passwd") + std::string(1, '\0') + "\x04" + NameNews("x", 2) + "\x02" +
                           AttributeBytes("/etc") + "\x03" + std::string(28, 'i');
  ASSERT_TRUE(DecodeNews(good, {}, nullptr));
  std::mt19937_64 random(11);
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = good;
    for (uint64_t i = random() % 4 + 1; i > 0; --i) Mutate(bytes, random);
    refused += DecodeNews(bytes, {1, 1, {}}, nullptr) ? 0 : 1;
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace e2bfs::transport::syscall
