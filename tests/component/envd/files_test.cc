#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/component/envd/envd_fixture.h"

namespace e2bfs::transport::envd {
namespace {

class EnvdFiles : public EnvdProtocolTest {
 protected:
  static std::string Pattern(size_t size) {
    std::string bytes(size, '\0');
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>((i * 2654435761U) >> 13);
    return bytes;
  }
  static DownloadRequest Range(const std::string& path, int64_t offset, std::optional<int64_t> length = {}) {
    DownloadRequest request;
    request.path = path;
    request.offset = offset;
    request.length = length;
    return request;
  }
};
INSTANTIATE_TEST_SUITE_P(Both, EnvdFiles, testing::Bool(), EnvdProtocolName);

TEST_P(EnvdFiles, RangesOfAFile) {
  EnvdTestBench bench(GetParam());
  const std::string content = Pattern(3'000'000);
  bench.Write("f", content);
  const std::string path = bench.Path("f");
  const auto read = [&](const DownloadRequest& request) { return bench.client().ReadFile(request, 4'000'000, Ctx()); };
  EXPECT_TRUE(read(Range(path, 0)) == content);
  EXPECT_TRUE(read(Range(path, 10, 10)) == content.substr(10, 10));
  EXPECT_TRUE(read(Range(path, 0, 1)) == content.substr(0, 1));
  EXPECT_TRUE(read(Range(path, 2'999'990)) == content.substr(2'999'990));
  EXPECT_TRUE(read(Range(path, 2'999'990, 100)) == content.substr(2'999'990));
  EXPECT_TRUE(read(Range(path, 3'000'000, 100)) == std::string());
  EXPECT_TRUE(read(Range(path, 9'000'000)) == std::string());

  auto download = bench.client().OpenDownload(Range(path, 1'000'000, 500'000), Ctx());
  ASSERT_TRUE(download) << ToString(download.error());
  const DownloadHead& head = (*download)->head();
  EXPECT_EQ(head.status, 206);
  EXPECT_EQ(head.length, 500'000);
  EXPECT_EQ(head.total_size, 3'000'000);
  struct stat real {};
  ASSERT_EQ(stat(path.c_str(), &real), 0);
  EXPECT_EQ(head.last_modified_seconds, real.st_mtime);

  bench.Write("empty", "");
  EXPECT_TRUE(read(Range(bench.Path("empty"), 0)) == std::string());
  EXPECT_TRUE(read(Range(bench.Path("empty"), 0, 100)) == std::string());
  EXPECT_TRUE(read(Range(bench.Path("empty"), 5, 100)) == std::string());

  EXPECT_EQ(read(Range(bench.Path("nope"), 0)).error().errno_value, ENOENT);
  EXPECT_EQ(read(Range(bench.root(), 0)).error().errno_value, EISDIR);
  EXPECT_EQ(read(Range(bench.Path("f/x"), 0)).error().errno_value, ENOTDIR);
  EXPECT_EQ(bench.client().ReadFile(Range(path, 0), 1000, Ctx()).error().errno_value, EFBIG);
  EXPECT_EQ(bench.client().OpenDownload(Range(path, 0, 0), Ctx()).error().errno_value, EINVAL);

  // Any bytes in a name.
  for (const char* name : {"raw\xff\xfe", "q?&=#%41 +", "new\nline"}) {
    bench.Write(name, name);
    auto back = read(Range(bench.Path(name), 0));
    ASSERT_TRUE(back) << ToString(back.error());
    EXPECT_EQ(*back, name);
  }
}

TEST_P(EnvdFiles, AnotherVersionIsEstale) {
  EnvdTestBench bench(GetParam());
  bench.Write("f", "content");
  DownloadRequest request = Range(bench.Path("f"), 0, 7);
  request.if_unmodified_since = "Sat, 21 Nov 2020 14:31:26 GMT";
  EXPECT_EQ(bench.client().OpenDownload(request, Ctx()).error().errno_value, ESTALE);
  auto now = bench.client().OpenDownload(Range(bench.Path("f"), 0), Ctx());
  ASSERT_TRUE(now);
  request.if_unmodified_since = (*now)->head().last_modified;
  EXPECT_TRUE(bench.client().ReadFile(request, 100, Ctx()) == std::string("content"));
}

TEST_P(EnvdFiles, CompressedReadsGiveProcFiles) {
  EnvdTestBench bench(GetParam());
  bench.Write("f", std::string(500'000, 'z'));
  DownloadRequest request;
  request.path = bench.Path("f");
  request.gzip = true;
  EXPECT_TRUE(bench.client().ReadFile(request, 1'000'000, Ctx()) == std::string(500'000, 'z'));
  EXPECT_LT(bench.server().counts().response_body_bytes, 50'000);
  request.path = "/proc/self/status";
  auto status = bench.client().ReadFile(request, 1'000'000, Ctx());
  ASSERT_TRUE(status) << ToString(status.error());
  EXPECT_NE(status->find("Name:"), std::string::npos);
  request.offset = 5;
  EXPECT_EQ(bench.client().OpenDownload(request, Ctx()).error().errno_value, EINVAL);
}

TEST_P(EnvdFiles, UploadsInPiecesAndWhole) {
  for (const char* version : {"0.6.13", "0.5.6", "0.2.11"}) {
    EnvdTestOptions options;
    options.version = version;
    EnvdTestBench bench(GetParam(), options);
    const std::string content = Pattern(1'500'000);
    for (const bool declared : {true, false}) {
      UploadRequest request;
      request.path = bench.Path(declared ? "a/declared" : "a/chunked");
      if (declared) request.length = static_cast<int64_t>(content.size());
      auto upload = bench.client().OpenUpload(request, Ctx());
      ASSERT_TRUE(upload) << ToString(upload.error());
      for (size_t at = 0; at < content.size(); at += 400'000) {
        auto written = (*upload)->Write(std::string_view(content).substr(at, 400'000), Ctx());
        ASSERT_TRUE(written) << ToString(written.error());
      }
      auto finished = (*upload)->Finish(Ctx());
      ASSERT_TRUE(finished) << version << ToString(finished.error());
      EXPECT_TRUE(bench.Read(declared ? "a/declared" : "a/chunked") == content) << version;
    }
    auto small = bench.client().WriteFile(bench.Path("small"), "tiny", Ctx());
    ASSERT_TRUE(small) << version << ToString(small.error());
    EXPECT_EQ(bench.Read("small"), "tiny");
    auto empty = bench.client().WriteFile(bench.Path("empty"), "", Ctx());
    ASSERT_TRUE(empty) << version << ToString(empty.error());
    EXPECT_TRUE(std::filesystem::exists(bench.Path("empty")));
    auto zipped = bench.client().WriteFile(bench.Path("zipped"), std::string(100'000, 'a'), Ctx());
    ASSERT_TRUE(zipped) << version << ToString(zipped.error());
    EXPECT_EQ(bench.Read("zipped"), std::string(100'000, 'a'));
    EXPECT_EQ(bench.client().WriteFile(bench.root(), "x", Ctx()).error().errno_value, EISDIR) << version;
  }
}

TEST_P(EnvdFiles, UploadsKeepTheirPromises) {
  EnvdTestBench bench(GetParam());
  UploadRequest request;
  request.path = bench.Path("raw\xff");
  request.length = 4;
  auto upload = bench.client().OpenUpload(request, Ctx());
  ASSERT_TRUE(upload);
  ASSERT_TRUE((*upload)->Write("da", Ctx()));
  EXPECT_EQ((*upload)->Write("too much", Ctx()).error().errno_value, EINVAL);
  ASSERT_TRUE((*upload)->Write("ta", Ctx()));
  auto finished = (*upload)->Finish(Ctx());
  ASSERT_TRUE(finished) << ToString(finished.error());
  EXPECT_EQ(bench.Read("raw\xff"), "data");

  upload = bench.client().OpenUpload(request, Ctx());
  ASSERT_TRUE(upload);
  ASSERT_TRUE((*upload)->Write("da", Ctx()));
  EXPECT_EQ((*upload)->Finish(Ctx()).error().errno_value, EINVAL) << "fewer than declared";

  // The server's own answer is the error: no space.
  // (Matched by name: the cancelled upload above may reach the double late.)
  sandbox::Fault full;
  full.match = "full";
  full.action = "status";
  full.status = 507;
  full.body = R"({"code":507,"message":"not enough disk space available"})";
  bench.server().AddFault(full);
  EXPECT_EQ(bench.client().WriteFile(bench.Path("full1"), "x", Ctx()).error().errno_value, ENOSPC);
  bench.server().AddFault(full);
  request.path = bench.Path("full2");
  request.length = 100'000;
  upload = bench.client().OpenUpload(request, Ctx());
  ASSERT_TRUE(upload);
  auto written = (*upload)->Write(std::string(100'000, 'x'), Ctx());
  const Error error = written ? (*upload)->Finish(Ctx()).error() : written.error();
  EXPECT_EQ(error.errno_value, ENOSPC) << ToString(error);

  // A 200 for another file.
  sandbox::Fault other;
  other.match = "elsewhere";
  other.action = "replace_body";
  other.body = R"([{"name":"other","path":"/other","type":"file"}])";
  bench.server().AddFault(other);
  EXPECT_EQ(bench.client().WriteFile(bench.Path("elsewhere"), "x", Ctx()).error().kind, ErrorKind::kProtocol);
}

TEST_P(EnvdFiles, ComposeJoinsParts) {
  EnvdTestBench bench(GetParam());
  bench.Write("p1", "one");
  bench.Write("p2", "two");
  bench.Write("dst", "old");
  auto written = bench.client().Compose({bench.Path("p1"), bench.Path("p2")}, bench.Path("dst"), Ctx());
  ASSERT_TRUE(written) << ToString(written.error());
  EXPECT_EQ(bench.Read("dst"), "onetwo");
  EXPECT_FALSE(std::filesystem::exists(bench.Path("p1")));
  EXPECT_EQ(bench.client().Compose({bench.Path("nope")}, bench.Path("dst"), Ctx()).error().errno_value, ENOENT);
  EnvdTestOptions options;
  options.version = "0.2.11";
  EnvdTestBench old(GetParam(), options);
  EXPECT_EQ(old.client().Compose({old.Path("p")}, old.Path("d"), Ctx()).error().errno_value, ENOTSUP);
}

// Torn and overlong bodies are never taken for complete.
TEST_P(EnvdFiles, TornDownloadsAreErrors) {
  EnvdTestBench bench(GetParam());
  bench.Write("f", Pattern(200'000));
  for (const char* action : {"reset", "close", "cut"}) {
    sandbox::Fault fault;
    fault.match = "GET /files";
    fault.action = action;
    fault.at_byte = 100'000;
    fault.count = -1;  // a reset can overtake the head, and opening is repeated
    bench.server().AddFault(fault);
    auto download = bench.client().OpenDownload(Range(bench.Path("f"), 0, 200'000), Ctx());
    Error error;
    if (download) {
      std::string buffer(size_t{1} << 16, '\0');
      int64_t total = 0;
      while (true) {
        auto count = (*download)->Read(buffer.data(), buffer.size(), Ctx());
        if (!count) error = count.error();
        if (!count || *count == 0) break;
        total += static_cast<int64_t>(*count);
      }
      EXPECT_LT(total, 200'000);
    } else {
      error = download.error();
    }
    EXPECT_TRUE(error.kind == ErrorKind::kBroken || error.kind == ErrorKind::kProtocol) << action << ToString(error);
    bench.server().ClearFaults();
  }
  // The convenience that may repeat does, and has it all.
  sandbox::Fault fault;
  fault.match = "GET /files";
  fault.action = "reset";
  fault.at_byte = 100'000;
  bench.server().AddFault(fault);
  EXPECT_TRUE(bench.client().ReadFile(Range(bench.Path("f"), 0), 1'000'000, Ctx()) == Pattern(200'000));
}

}  // namespace
}  // namespace e2bfs::transport::envd
