#include "transport/envd/connect_codec.h"

#include <gtest/gtest.h>

#include <random>

#include "transport/envd/base64.h"
#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

std::string CodecBytes(std::initializer_list<int> values) {
  std::string bytes;
  for (const int value : values) bytes += static_cast<char>(value);
  return bytes;
}

TEST(ConnectCodec, EnvelopeIsFlagLengthPayload) {
  EXPECT_EQ(EncodeEnvelope("{}"), CodecBytes({0, 0, 0, 0, 2}) + "{}");
  EXPECT_EQ(EncodeEnvelope("", kEnvelopeEndOfStream), CodecBytes({2, 0, 0, 0, 0}));
  EXPECT_EQ(EncodeEnvelope(std::string(0x10203, 'x')).substr(0, 5), CodecBytes({0, 0, 1, 2, 3}));
}

// However the body is cut into reads, the same messages come out.
TEST(ConnectCodec, DecodesWhateverTheCuts) {
  const std::string body = EncodeEnvelope("one") + EncodeEnvelope("") + EncodeEnvelope(std::string(3000, 'y')) +
                           EncodeEnvelope("{}", kEnvelopeEndOfStream);
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{5}, size_t{7}, size_t{1000}, body.size()}) {
    EnvelopeDecoder decoder;
    std::vector<std::string> payloads;
    bool ended = false;
    for (size_t at = 0; at < body.size(); at += piece) {
      decoder.Feed(std::string_view(body).substr(at, piece));
      while (true) {
        auto next = decoder.Next();
        ASSERT_TRUE(next) << ToString(next.error());
        if (!*next) break;
        ended = (*next)->end_of_stream;
        payloads.push_back((*next)->payload);
      }
    }
    ASSERT_EQ(payloads.size(), 4U) << piece;
    EXPECT_EQ(payloads[0], "one");
    EXPECT_EQ(payloads[1], "");
    EXPECT_EQ(payloads[2], std::string(3000, 'y'));
    EXPECT_TRUE(ended);
    EXPECT_TRUE(decoder.Finish());
  }
}

// Every way in which a body can be torn or lie is EIO/kProtocol.
TEST(ConnectCodec, TornAndHostileBodiesAreProtocolErrors) {
  const std::string end = EncodeEnvelope("{}", kEnvelopeEndOfStream);
  const struct {
    const char* what;
    std::string body;
  } cases[] = {
      {"nothing at all", ""},
      {"half of a head", CodecBytes({0, 0, 0})},
      {"a head without its payload", CodecBytes({0, 0, 0, 0, 5})},
      {"torn payload", EncodeEnvelope("hello").substr(0, 8)},
      {"no end of stream", EncodeEnvelope("hello")},
      {"torn end of stream", end.substr(0, 6)},
      {"bytes behind the end", end + "x"},
      {"a message behind the end", end + EncodeEnvelope("more")},
      {"two ends", end + end},
      {"compressed", EncodeEnvelope("zz", kEnvelopeCompressed) + end},
      {"compressed end", EncodeEnvelope("{}", kEnvelopeCompressed | kEnvelopeEndOfStream)},
      {"unknown flags", EncodeEnvelope("zz", 4) + end},
      {"all flags", EncodeEnvelope("zz", 0xff) + end},
      {"a length of 4 GiB", CodecBytes({0, 255, 255, 255, 255}) + "xxxx"},
      {"one byte too long", EncodeEnvelope(std::string(1025, 'x')) + end},
      {"too much in all", EncodeEnvelope(std::string(1000, 'x')) + EncodeEnvelope(std::string(1000, 'x')) +
                              EncodeEnvelope(std::string(1000, 'x')) + end},
  };
  for (const auto& c : cases) {
    EnvelopeDecoder decoder({1024, 2500});
    decoder.Feed(c.body);
    std::optional<Error> error;
    while (!error) {
      auto next = decoder.Next();
      if (!next) {
        error = next.error();
      } else if (!*next) {
        auto finished = decoder.Finish();
        ASSERT_FALSE(finished) << c.what;
        error = finished.error();
      }
    }
    EXPECT_EQ(error->kind, ErrorKind::kProtocol) << c.what;
    EXPECT_EQ(error->errno_value, EIO) << c.what;
    EXPECT_FALSE(decoder.Next() && decoder.Finish()) << c.what << ": an error is final";
  }
}

TEST(ConnectCodec, Base64RoundTripAndBothAlphabets) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    bytes += static_cast<char>(i);
    EXPECT_EQ(Base64Decode(Base64Encode(bytes)), bytes);
  }
  EXPECT_EQ(Base64Encode("user:"), "dXNlcjo=");
  EXPECT_EQ(Base64Decode("-_8"), "\xfb\xff");
  EXPECT_EQ(Base64Decode("+/8="), "\xfb\xff");
  for (const char* bad : {"a", "a===", "====", "ab=c", "a b=", "abc\n", "ab!d", "=abc"}) {
    EXPECT_FALSE(Base64Decode(bad)) << bad;
  }
}

// Mutated streams and messages: whatever comes, an answer or an error, never a crash or a hang.
TEST(ConnectCodec, MutatedBytesNeverCrash) {
  const std::string seeds[] = {
      EncodeEnvelope(R"({"event":{"start":{"pid":17}}})") + EncodeEnvelope(R"({"event":{"data":{"stdout":"aGVsbG8="}}})") +
          EncodeEnvelope(R"({"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3"}}})") +
          EncodeEnvelope("{}", kEnvelopeEndOfStream),
      EncodeEnvelope(R"({"start":{}})") + EncodeEnvelope(R"({"filesystem":{"name":"a/b","type":"EVENT_TYPE_CREATE"}})") +
          EncodeEnvelope(R"({"error":{"code":"not_found","message":"no such file or directory"}})", kEnvelopeEndOfStream),
  };
  const std::string listing =
      R"({"entries":[{"name":"a","type":"FILE_TYPE_FILE","path":"/r/a","size":"12","mode":420,"permissions":"-rw-r--r--",)"
      R"("owner":"user","group":"user","modifiedTime":"2026-11-21T14:31:26.123456789Z","metadata":{"k":"v"}},)"
      R"({"name":"b","path":"/r/a/b","permissions":"Lrwxrwxrwx","symlinkTarget":"/r/b","modifiedTime":"2026-11-21T14:31:26Z"}]})";
  std::mt19937 random(20261121);
  const auto mutate = [&](std::string bytes) {
    for (uint32_t changes = 1 + random() % 4; changes > 0 && !bytes.empty(); --changes) {
      const size_t at = random() % bytes.size();
      switch (random() % 5) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes.erase(at, 1 + random() % 8); break;
        case 2: bytes.insert(at, 1, static_cast<char>(random())); break;
        case 3: bytes.resize(at); break;
        default: bytes.insert(at, bytes.substr(random() % bytes.size(), 1 + random() % 16)); break;
      }
    }
    return bytes;
  };
  int good = 0, bad = 0;
  for (int i = 0; i < 20'000; ++i) {
    const std::string body = mutate(seeds[static_cast<size_t>(i) % 2]);
    EnvelopeDecoder decoder({4096, 16384});
    decoder.Feed(body);
    bool failed = false;
    for (int messages = 0; messages < 1000; ++messages) {
      auto next = decoder.Next();
      failed = failed || !next;
      if (!next || !*next) break;
      const std::string& payload = (*next)->payload;
      (void)DecodeProcessMessage(payload);
      (void)DecodeWatchMessage(payload);
      (void)DecodeEndOfStream(payload);
      (void)DecodeErrorBody(payload);
    }
    (failed || !decoder.Finish() ? bad : good) += 1;
    const auto entries = DecodeListing(mutate(listing), "/r", {100, 2});
    if (entries) {
      for (const auto& entry : *entries) {
        ASSERT_TRUE(IsSafeName(entry.name));
        ASSERT_TRUE(IsSafeRelativePath(entry.relative_path));
        ASSERT_GE(entry.size, 0);
      }
    }
  }
  EXPECT_GT(good, 0);
  EXPECT_GT(bad, 0);
}

}  // namespace
}  // namespace e2bfs::transport::envd
