#include "transport/envd/file_heads.h"

#include <gtest/gtest.h>

namespace e2bfs::transport::envd {
namespace {

TEST(FileHeads, ContentRange) {
  const auto range = ParseContentRange("bytes 10-19/10000");
  ASSERT_TRUE(range);
  EXPECT_EQ(range->first, 10);
  EXPECT_EQ(range->last, 19);
  EXPECT_EQ(range->total, 10000);
  const auto none = ParseContentRange("bytes */10000");
  ASSERT_TRUE(none);
  EXPECT_EQ(none->first, -1);
  for (const char* bad : {"", "bytes", "bytes 10-19", "bytes 10-19/*", "bytes 19-10/100", "bytes 10-100/100", "bytes -5/10", "bytes 5-/10",
                          "bytes 0-9/-10", "items 0-1/2", "bytes 0-99999999999999999999/99999999999999999999", "bytes 0x1-2/3", "bytes  0-1/2"}) {
    EXPECT_FALSE(ParseContentRange(bad)) << bad;
  }
  EXPECT_EQ(ParseHttpDate("Sat, 21 Nov 2026 14:31:26 GMT"), 1795271486);
  EXPECT_EQ(ParseHttpDate("Saturday"), 0);
}

TEST(FileHeads, AnswersToDownloads) {
  DownloadRequest whole, middle, tail, zipped;
  middle.offset = 10;
  middle.length = 10;
  tail.offset = 10;
  zipped.gzip = true;
  DownloadRequest first;
  first.length = 10;
  const struct {
    const char* what;
    const DownloadRequest* request;
    int status;
    http::Headers headers;
    int64_t length;  // -2: kProtocol
    int64_t total;
  } cases[] = {
      {"whole", &whole, 200, {{"content-length", "100"}}, 100, 100},
      {"whole of unknown length", &whole, 200, {}, -1, -1},
      {"empty", &whole, 200, {{"content-length", "0"}}, 0, 0},
      {"range", &middle, 206, {{"content-range", "bytes 10-19/100"}, {"content-length", "10"}}, 10, 100},
      {"range at the end", &middle, 206, {{"content-range", "bytes 10-14/15"}}, 5, 15},
      {"range of an empty file", &middle, 200, {{"content-length", "0"}}, 0, 0},
      {"past the end", &middle, 416, {{"content-range", "bytes */5"}}, 0, 5},
      {"tail", &tail, 206, {{"content-range", "bytes 10-99/100"}}, 90, 100},
      {"gzip", &zipped, 200, {{"content-encoding", "gzip"}}, -1, -1},
      {"not gzip after all", &zipped, 200, {{"content-length", "7"}}, 7, 7},
      {"ranges not known, from the start", &first, 200, {{"content-length", "100"}}, 10, 100},
      // lies
      {"length that is none", &whole, 200, {{"content-length", "-1"}}, -2, 0},
      {"length with rubbish", &whole, 200, {{"content-length", "10, 10"}}, -2, 0},
      {"part of a whole", &whole, 206, {{"content-range", "bytes 0-9/100"}}, -2, 0},
      {"whole of a part", &middle, 200, {{"content-length", "100"}}, -2, 0},
      {"another start", &middle, 206, {{"content-range", "bytes 0-9/100"}}, -2, 0},
      {"too much", &middle, 206, {{"content-range", "bytes 10-99/100"}}, -2, 0},
      {"too little", &middle, 206, {{"content-range", "bytes 10-11/100"}}, -2, 0},
      {"no range said", &middle, 206, {}, -2, 0},
      {"length against range", &middle, 206, {{"content-range", "bytes 10-19/100"}, {"content-length", "11"}}, -2, 0},
      {"several ranges", &middle, 206, {{"content-type", "multipart/byteranges; boundary=B"}}, -2, 0},
      {"416 of the start", &whole, 416, {{"content-range", "bytes */0"}}, -2, 0},
      {"416 inside of the file", &middle, 416, {{"content-range", "bytes */50"}}, -2, 0},
      {"416 without a size", &middle, 416, {}, -2, 0},
      {"gzip that was not asked for", &whole, 200, {{"content-encoding", "gzip"}}, -2, 0},
      {"another encoding", &zipped, 200, {{"content-encoding", "br"}}, -2, 0},
      {"part of gzip", &zipped, 206, {{"content-range", "bytes 0-9/100"}}, -2, 0},
  };
  for (const auto& c : cases) {
    http::ResponseHead head;
    head.status = c.status;
    head.headers = c.headers;
    const auto checked = CheckDownloadHead(*c.request, head);
    if (c.length == -2) {
      ASSERT_FALSE(checked) << c.what;
      EXPECT_EQ(checked.error().kind, ErrorKind::kProtocol) << c.what;
    } else {
      ASSERT_TRUE(checked) << c.what << ": " << ToString(checked.error());
      EXPECT_EQ(checked->length, c.length) << c.what;
      EXPECT_EQ(checked->total_size, c.total) << c.what;
    }
  }
}

TEST(FileHeads, MultipartFramesDiffer) {
  const auto one = MultipartFrame::Make(), other = MultipartFrame::Make();
  EXPECT_NE(one.content_type, other.content_type);
  const std::string boundary = one.content_type.substr(one.content_type.find("boundary=") + 9);
  EXPECT_TRUE(one.before.starts_with("--" + boundary + "\r\n"));
  EXPECT_TRUE(one.before.ends_with("\r\n\r\n"));
  EXPECT_EQ(one.after, "\r\n--" + boundary + "--\r\n");
}

}  // namespace
}  // namespace e2bfs::transport::envd
