#include "transport/envd/compression.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "transport/http/client.h"

namespace e2bfs::transport::envd {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const std::string kText(64 << 10, 't');

std::string Random(size_t length) {
  std::mt19937 random(1);  // NOLINT: the same bytes each time
  std::string bytes(length, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST(Compression, PaysWhereASampleShrinks) {
  const Compression compression(true);
  EXPECT_TRUE(compression.Pays(kText));
  EXPECT_FALSE(compression.Pays(Random(64 << 10)));
  EXPECT_FALSE(compression.Pays(kText.substr(0, 1000)));  // the sample alone would take as long
  EXPECT_FALSE(compression.Pays(""));
  EXPECT_FALSE(Compression(false).Pays(kText));
}

TEST(Compression, NotWhereTheNetworkIsFaster) {
  Compression compression(true);
  compression.Note(100 << 20, seconds(1), milliseconds(0));
  EXPECT_FALSE(compression.Pays(kText));
  for (int i = 0; i < 4; ++i) compression.Note(10 << 20, seconds(1), milliseconds(0));  // it became slow
  EXPECT_TRUE(compression.Pays(kText));
  compression.Note(1000, seconds(1), milliseconds(0));  // a small one tells nothing
  EXPECT_TRUE(compression.Pays(kText));
  // Nobody waited for the network: gzip was the slower one.
  for (int i = 0; i < 4; ++i) compression.Note(1 << 20, milliseconds(1), seconds(1));
  compression.Note(60 << 20, seconds(1), milliseconds(0));
  EXPECT_FALSE(compression.Pays(kText));
}

TEST(GzipWriter, PiecesAreTheWhole) {
  const std::string content = kText + Random(300'000) + kText;
  http::GzipWriter writer;
  std::string pieces;
  for (size_t at = 0; at < content.size(); at += 70'000) {
    auto some = writer.Compress(std::string_view(content).substr(at, 70'000), false);
    ASSERT_TRUE(some);
    pieces += *some;
  }
  auto rest = writer.Compress("", true);
  ASSERT_TRUE(rest);
  EXPECT_EQ(pieces + *rest, http::GzipCompress(content));
}

}  // namespace
}  // namespace e2bfs::transport::envd
