#include "transport/envd/errors.h"

#include <cctype>
#include <cstring>

#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

constexpr size_t kMaxErrorText = 512;  // of the server's text in messages and logs

// What an RPC code means by itself. Codes: connectrpc.com/docs/protocol#error-codes. `look_at_text`: the errno at the end of the text, or a known
// phrase, says it better.
struct RpcCodeRow {
  const char* code;
  ErrorKind kind;
  int errno_value;
  bool look_at_text;
};
constexpr RpcCodeRow kRpcCodes[] = {
    {"not_found", ErrorKind::kErrno, ENOENT, false},
    {"already_exists", ErrorKind::kErrno, EEXIST, false},
    {"permission_denied", ErrorKind::kErrno, EACCES, false},
    {"unauthenticated", ErrorKind::kUnauthorized, EACCES, false},
    {"invalid_argument", ErrorKind::kBadRequest, EINVAL, true},
    {"failed_precondition", ErrorKind::kErrno, EINVAL, true},
    {"out_of_range", ErrorKind::kBadRequest, EINVAL, false},
    {"internal", ErrorKind::kErrno, EIO, true},
    {"unknown", ErrorKind::kErrno, EIO, true},
    {"aborted", ErrorKind::kErrno, EIO, true},
    {"data_loss", ErrorKind::kErrno, EIO, false},
    {"resource_exhausted", ErrorKind::kRateLimited, EAGAIN, false},
    {"unavailable", ErrorKind::kUnavailable, EIO, false},
    {"deadline_exceeded", ErrorKind::kTimeout, ETIMEDOUT, false},
    {"canceled", ErrorKind::kBroken, EIO, false},
    {"unimplemented", ErrorKind::kBadRequest, ENOTSUP, false},
};

// What a status means where the body gives no RPC code (files, edge, proxies). Behind it: whatever is not listed.
struct StatusRow {
  int status;
  ErrorKind kind;
  int errno_value;
  bool look_at_text;
};
constexpr StatusRow kStatuses[] = {
    {400, ErrorKind::kBadRequest, EINVAL, true},
    {401, ErrorKind::kUnauthorized, EACCES, false},
    {403, ErrorKind::kUnauthorized, EACCES, false},
    {408, ErrorKind::kTimeout, ETIMEDOUT, false},
    {409, ErrorKind::kErrno, EEXIST, true},
    {412, ErrorKind::kErrno, ESTALE, false},
    {413, ErrorKind::kErrno, EFBIG, false},
    {429, ErrorKind::kRateLimited, EAGAIN, false},
    {431, ErrorKind::kErrno, ENAMETOOLONG, false},
    {414, ErrorKind::kErrno, ENAMETOOLONG, false},
    {500, ErrorKind::kErrno, EIO, true},
    {502, ErrorKind::kBroken, EIO, false},       // a proxy lost the server: nobody knows whether it was done
    {503, ErrorKind::kUnavailable, EIO, false},
    {504, ErrorKind::kTimeout, ETIMEDOUT, false},
    {507, ErrorKind::kErrno, ENOSPC, true},
};

// envd's own phrases that stand for an errno and do not end with its text (infra: services/filesystem/dir.go, api/upload.go, api/download.go,
// services/process). At the text's start, since paths follow.
struct PhraseRow {
  const char* start;
  int errno_value;
};
constexpr PhraseRow kPhrases[] = {
    {"path is not a directory", ENOTDIR},
    {"path already exists but it is not a directory", EEXIST},
    {"path already exists, but it is not a directory", EEXIST},
    {"path is a directory", EISDIR},
    {"path is a file", ENOTDIR},
    {"error ensuring directories: path is a file", ENOTDIR},
    {"cyclic symlink", ELOOP},
    {"cwd ", ENOENT},
    {"not enough inodes", ENOSPC},
    {"not enough disk space", ENOSPC},
};

std::optional<int> ErrnoFromPhrase(std::string_view message) {
  for (const auto& row : kPhrases) {
    if (message.starts_with(row.start)) return row.errno_value;
  }
  if (message.starts_with("path '") && message.ends_with("' is a directory")) return EISDIR;  // a download's 400
  return std::nullopt;
}

// A row's kind and errno, refined by the text where the row says so.
void Apply(Error& error, ErrorKind kind, int errno_value, bool look_at_text) {
  error.kind = kind;
  error.errno_value = errno_value;
  if (!look_at_text) return;
  std::optional<int> better = ErrnoFromPhrase(error.message);
  if (!better) better = ErrnoFromText(error.message);
  if (!better) return;
  error.kind = ErrorKind::kErrno;
  error.errno_value = *better;
}

Error FromStatus(int status, std::string_view message) {
  Error error;
  error.http_status = status;
  error.message = message.substr(0, kMaxErrorText);
  for (const auto& row : kStatuses) {
    if (row.status == status) {
      Apply(error, row.kind, row.errno_value, row.look_at_text);
      return error;
    }
  }
  if (status >= 500) {
    Apply(error, ErrorKind::kUnavailable, EIO, false);
  } else if (status >= 400) {
    Apply(error, ErrorKind::kBadRequest, EIO, false);
  } else {
    Apply(error, ErrorKind::kProtocol, EIO, false);  // a redirect, which is not followed, or a success that is none
  }
  if (error.message.empty()) error.message = "unexpected answer";
  return error;
}

}  // namespace

std::optional<int> ErrnoFromText(std::string_view message) {
  const size_t colon = message.rfind(": ");
  const std::string_view text = colon == std::string_view::npos ? message : message.substr(colon + 2);
  if (text.empty()) return std::nullopt;
  // Go's texts are the C library's with a small first letter.
  for (int number = 1; number < 134; ++number) {
    const char* description = strerrordesc_np(number);
    if (description == nullptr || std::strlen(description) != text.size()) continue;
    const char first = static_cast<char>(std::tolower(static_cast<unsigned char>(description[0])));
    if ((text[0] == first || text[0] == description[0]) && text.substr(1) == description + 1) return number;
  }
  return std::nullopt;
}

Error FromRpcError(int http_status, std::string_view code, std::string_view message) {
  Error error;
  error.http_status = http_status;
  error.rpc_code = code;
  error.message = message.substr(0, kMaxErrorText);
  for (const auto& row : kRpcCodes) {
    if (code == row.code) {
      Apply(error, row.kind, row.errno_value, row.look_at_text);
      return error;
    }
  }
  Apply(error, ErrorKind::kErrno, EIO, true);
  return error;
}

Error FromHttpAnswer(const http::ResponseHead& head, std::string_view body) {
  const ErrorBody said = DecodeErrorBody(body);
  // The edge: {"sandboxId","message","code":502}; with a "port" the sandbox runs but nothing listens there (envd is just starting).
  if (head.status == 502 && said.names_sandbox) {
    Error error;
    error.http_status = head.status;
    error.message = said.message.substr(0, kMaxErrorText);
    Apply(error, said.names_port ? ErrorKind::kUnavailable : ErrorKind::kNotRunning, said.names_port ? EIO : ENOTCONN, false);
    return error;
  }
  if (!said.rpc_code.empty()) return FromRpcError(head.status, said.rpc_code, said.message);
  if (head.status == 404) {
    Error error;
    error.http_status = head.status;
    if (said.numeric_code) {
      error.message = said.message.substr(0, kMaxErrorText);
      Apply(error, ErrorKind::kErrno, ENOENT, false);
    } else {
      // "Could not ask" is never "not there": Go's router says "404 page not found" for a method that this envd does not have.
      error.message = "not offered by this envd";
      Apply(error, ErrorKind::kBadRequest, ENOTSUP, false);
    }
    return error;
  }
  return FromStatus(head.status, said.message);
}

bool IsInvalidUtf8Failure(const Error& error) {
  return (error.rpc_code == "internal" || error.rpc_code == "unknown") && error.message.find("UTF-8") != std::string::npos;
}

}  // namespace e2bfs::transport::envd
