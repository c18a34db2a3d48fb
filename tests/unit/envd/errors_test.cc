#include "transport/envd/errors.h"

#include <gtest/gtest.h>

#include "transport/envd/capabilities.h"

namespace e2bfs::transport::envd {
namespace {

http::ResponseHead HeadOf(int status) {
  http::ResponseHead head;
  head.status = status;
  return head;
}

TEST(EnvdErrors, Table) {
  const struct {
    int status;
    const char* body;
    ErrorKind kind;
    int errno_value;
  } cases[] = {
      // Connect
      {404, R"({"code":"not_found","message":"file not found: lstat /x: no such file or directory"})", ErrorKind::kErrno, ENOENT},
      {409, R"({"code":"already_exists","message":"directory already exists: /x"})", ErrorKind::kErrno, EEXIST},
      {403, R"({"code":"permission_denied","message":"no"})", ErrorKind::kErrno, EACCES},
      {401, R"({"code":"unauthenticated","message":"no such user"})", ErrorKind::kUnauthorized, EACCES},
      {400, R"({"code":"invalid_argument","message":"whatever"})", ErrorKind::kBadRequest, EINVAL},
      {400, R"({"code":"invalid_argument","message":"path is not a directory: /x"})", ErrorKind::kErrno, ENOTDIR},
      {400, R"({"code":"invalid_argument","message":"path already exists but it is not a directory: /x"})", ErrorKind::kErrno, EEXIST},
      {400, R"({"code":"invalid_argument","message":"cwd '/x' does not exist"})", ErrorKind::kErrno, ENOENT},
      {400, R"({"code":"failed_precondition","message":"cyclic symlink or chain >255 links at \"/x\""})", ErrorKind::kErrno, ELOOP},
      {500, R"({"code":"internal","message":"error renaming: rename /a /b: not a directory"})", ErrorKind::kErrno, ENOTDIR},
      {500, R"({"code":"internal","message":"error renaming: rename /a /b: file exists"})", ErrorKind::kErrno, EEXIST},
      {500, R"({"code":"internal","message":"error renaming: rename /a /b: invalid cross-device link"})", ErrorKind::kErrno, EXDEV},
      {500, R"({"code":"internal","message":"rename: directory not empty"})", ErrorKind::kErrno, ENOTEMPTY},
      {500, R"({"code":"internal","message":"mkdir /x: file name too long"})", ErrorKind::kErrno, ENAMETOOLONG},
      {500, R"({"code":"internal","message":"mkdir /x: read-only file system"})", ErrorKind::kErrno, EROFS},
      {500, R"({"code":"internal","message":"mkdir /x: no space left on device"})", ErrorKind::kErrno, ENOSPC},
      {500, R"({"code":"internal","message":"mkdir /x: disk quota exceeded"})", ErrorKind::kErrno, EDQUOT},
      {500, R"({"code":"internal","message":"stat /x: too many levels of symbolic links"})", ErrorKind::kErrno, ELOOP},
      {500, R"({"code":"internal","message":"failed: path is a file"})", ErrorKind::kErrno, EIO},
      {500, R"({"code":"internal","message":"something else"})", ErrorKind::kErrno, EIO},
      {429, R"({"code":"resource_exhausted","message":"slow down"})", ErrorKind::kRateLimited, EAGAIN},
      {503, R"({"code":"unavailable","message":"later"})", ErrorKind::kUnavailable, EIO},
      {504, R"({"code":"deadline_exceeded","message":"late"})", ErrorKind::kTimeout, ETIMEDOUT},
      {501, R"({"code":"unimplemented","message":"no"})", ErrorKind::kBadRequest, ENOTSUP},
      {500, R"({"code":"brand_new","message":"no"})", ErrorKind::kErrno, EIO},
      // envd's REST
      {404, R"({"code":404,"message":"path '/x' does not exist"})", ErrorKind::kErrno, ENOENT},
      {400, R"({"code":400,"message":"path '/x' is a directory"})", ErrorKind::kErrno, EISDIR},
      {400, R"({"code":400,"message":"path is a directory: /x"})", ErrorKind::kErrno, EISDIR},
      {400, R"({"code":400,"message":"something"})", ErrorKind::kBadRequest, EINVAL},
      {401, R"({"code":401,"message":"bad token"})", ErrorKind::kUnauthorized, EACCES},
      {500, R"({"code":500,"message":"error opening file: open /x: not a directory"})", ErrorKind::kErrno, ENOTDIR},
      {507, R"({"code":507,"message":"attempted to write 10 bytes: not enough disk space available"})", ErrorKind::kErrno, ENOSPC},
      {507, R"({"code":507,"message":"write: disk quota exceeded"})", ErrorKind::kErrno, EDQUOT},
      {412, "", ErrorKind::kErrno, ESTALE},
      {413, "", ErrorKind::kErrno, EFBIG},
      {500, "rubbish", ErrorKind::kErrno, EIO},
      // "Could not ask" is never "not there".
      {404, "404 page not found\n", ErrorKind::kBadRequest, ENOTSUP},
      {404, "", ErrorKind::kBadRequest, ENOTSUP},
      // edge and proxies
      {502, R"({"sandboxId":"i1","message":"The sandbox was not found","code":502})", ErrorKind::kNotRunning, ENOTCONN},
      {502, R"({"sandboxId":"i1","message":"The sandbox is running but port is not open","port":49983,"code":502})", ErrorKind::kUnavailable, EIO},
      {502, "<html>", ErrorKind::kBroken, EIO},
      {503, "", ErrorKind::kUnavailable, EIO},
      {504, "", ErrorKind::kTimeout, ETIMEDOUT},
      {429, "", ErrorKind::kRateLimited, EAGAIN},
      {301, "", ErrorKind::kProtocol, EIO},
      {204, "", ErrorKind::kProtocol, EIO},
      {418, "", ErrorKind::kBadRequest, EIO},
      {599, "", ErrorKind::kUnavailable, EIO},
  };
  for (const auto& c : cases) {
    const Error error = FromHttpAnswer(HeadOf(c.status), c.body);
    EXPECT_EQ(error.kind, c.kind) << c.status << " " << c.body;
    EXPECT_EQ(error.errno_value, c.errno_value) << c.status << " " << c.body << " " << ToString(error);
    EXPECT_EQ(error.http_status, c.status);
  }
}

TEST(EnvdErrors, StreamsAndTexts) {
  const Error error = FromRpcError(200, "not_found", "no such file or directory");
  EXPECT_EQ(error.errno_value, ENOENT);
  EXPECT_EQ(error.rpc_code, "not_found");
  EXPECT_EQ(ErrnoFromText("a: b: permission denied"), EACCES);
  EXPECT_EQ(ErrnoFromText("operation not permitted"), EPERM);
  EXPECT_EQ(ErrnoFromText("input/output error"), EIO);
  EXPECT_EQ(ErrnoFromText("No such file or directory"), ENOENT);
  for (const char* none : {"", ": ", "x", "file exists.", "the file exists"}) EXPECT_FALSE(ErrnoFromText(none)) << none;
  // The server's text is bounded.
  EXPECT_LE(FromRpcError(500, "internal", std::string(100'000, 'x')).message.size(), 512U);
  EXPECT_TRUE(IsInvalidUtf8Failure(FromRpcError(500, "internal", "marshal message: string field contains invalid UTF-8")));
  EXPECT_TRUE(IsInvalidUtf8Failure(FromRpcError(200, "unknown", "string field contains invalid UTF-8")));
  EXPECT_FALSE(IsInvalidUtf8Failure(FromRpcError(404, "not_found", "UTF-8")));
}

TEST(EnvdCapabilities, ByVersion) {
  const struct {
    const char* version;
    const char* names;
  } cases[] = {
      {"0.2.11", "recursive-watch"},
      {"0.4.0", "recursive-watch start-without-stdin default-user"},
      {"0.5.6", "recursive-watch start-without-stdin default-user close-stdin gzip-upload gzip-download compose"},
      {"0.5.7", "recursive-watch start-without-stdin default-user close-stdin gzip-upload gzip-download compose octet-stream-upload"},
      {"v0.5.28", "recursive-watch start-without-stdin default-user close-stdin gzip-upload gzip-download compose octet-stream-upload "
                  "private-streams"},
      {"nonsense", ""},
      {"", ""},
      {"0.6", ""},
      {"0.6.x", ""},
  };
  for (const auto& c : cases) {
    std::string names;
    for (const auto& name : Capabilities::ForVersion(c.version).Names(true)) names += (names.empty() ? "" : " ") + name;
    EXPECT_EQ(names, c.names) << c.version;
  }
  for (const char* newest : {"0.6.13", "debug", "1.0.0", "0.10.0-rc1"}) {
    EXPECT_TRUE(Capabilities::ForVersion(newest).Names(false).empty()) << newest;
  }
  EXPECT_LT(Version::Parse("0.5.9"), Version::Parse("0.5.27"));
}

}  // namespace
}  // namespace e2bfs::transport::envd
