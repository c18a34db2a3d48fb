#include "tests/sandbox/envd_files.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>

#include "tests/sandbox/envd_entry.h"
#include "tests/sandbox/envd_upload.h"
#include "tests/sandbox/go_path.h"
#include "tests/sandbox/gzip.h"
#include "tests/sandbox/multipart.h"
#include "tests/sandbox/serve_content.h"

namespace e2bfs::sandbox {
namespace {

constexpr size_t kDownloadPiece = size_t{256} << 10;

struct AcceptedCoding {
  std::string name;
  double quality = 1.0;
};

AcceptedCoding ParseCoding(std::string_view item) {
  AcceptedCoding coding;
  const size_t semicolon = std::min(item.find(';'), item.size());
  for (const char c : item.substr(0, semicolon)) {
    if (c != ' ' && c != '\t') {
      coding.name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  const size_t q = item.find("q=", semicolon);
  if (q != std::string_view::npos) {
    const std::string number(item.substr(q + 2));
    char* end = nullptr;
    const double value = strtod(number.c_str(), &end);
    if (end != number.c_str()) {
      coding.quality = value;
    }
  }
  return coding;
}

// envd's own reading of Accept-Encoding for files (not connect-go's).
struct CodingChoice {
  bool gzip = false;
  bool identity_rejected = false;
  bool none = false;  // nothing acceptable
};

CodingChoice ChooseCoding(const std::string& header) {
  CodingChoice choice;
  if (header.empty()) {
    return choice;
  }
  std::vector<AcceptedCoding> codings;
  for (size_t at = 0; at <= header.size();) {
    const size_t end = std::min(header.find(',', at), header.size());
    codings.push_back(ParseCoding(std::string_view(header).substr(at, end - at)));
    at = end + 1;
  }
  bool identity_accepted = false;
  bool wildcard_rejected = false;
  for (const AcceptedCoding& coding : codings) {
    if (coding.name == "identity") {
      (coding.quality == 0 ? choice.identity_rejected : identity_accepted) = true;
    }
    wildcard_rejected |= coding.name == "*" && coding.quality == 0;
  }
  choice.identity_rejected |= wildcard_rejected && !identity_accepted;
  std::stable_sort(codings.begin(), codings.end(),
                   [](const AcceptedCoding& a, const AcceptedCoding& b) { return a.quality > b.quality; });
  for (const AcceptedCoding& coding : codings) {
    if (coding.quality == 0) {
      continue;
    }
    if (coding.name == "identity" || coding.name == "*" || coding.name == "gzip") {
      choice.gzip = coding.name == "gzip" || (coding.name == "*" && choice.identity_rejected);
      return choice;
    }
  }
  choice.none = choice.identity_rejected;
  return choice;
}

std::string RawBase64OfSha256(const std::string& text) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  std::string encoded =
      Base64Encode(std::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  while (!encoded.empty() && encoded.back() == '=') {
    encoded.pop_back();
  }
  return encoded;
}

// Go lower-cases a metadata key, which is the header's name without its prefix.
std::map<std::string, std::string> MetadataHeaders(const Exchange& exchange) {
  static constexpr std::string_view kHeaderPrefix = "x-metadata-";
  std::map<std::string, std::string> metadata;
  for (const auto& [name, value] : exchange.headers()) {
    if (name.size() > kHeaderPrefix.size() && name.compare(0, kHeaderPrefix.size(), kHeaderPrefix) == 0) {
      metadata.emplace(name.substr(kHeaderPrefix.size()), value);
    }
  }
  return metadata;
}

void AppendUploadEntry(JsonText& json, const std::string& path, const EnvdCapabilities& can) {
  json.BeginObject();
  if (can.metadata) {
    if (const std::string metadata = MetadataJson(path); !metadata.empty()) {
      json.Key("metadata").Raw(metadata);
    }
  }
  // Go's encoder replaces what is not UTF-8.
  json.Key("name")
      .Raw(LogString(BaseName(path)))
      .Key("path")
      .Raw(LogString(path))
      .Field("type", "file")
      .EndObject();
}

int FenceStatus(const RpcError& error) { return error.code == "permission_denied" ? 403 : 400; }

int64_t MemInfoBytes(const char* name) {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) {
    return 0;
  }
  std::array<char, 256> line;
  long long kib = 0;
  const std::string lead = std::string(name) + ":";
  while (std::fgets(line.data(), line.size(), file) != nullptr) {
    if (std::string_view(line.data()).starts_with(lead)) {
      kib = atoll(line.data() + lead.size());
      break;
    }
  }
  std::fclose(file);
  return kib * 1024;
}

}  // namespace

void ReplyJsonError(Exchange& exchange, int status, const std::string& message) {
  DrainRequestBody(exchange);
  JsonText json;
  json.BeginObject()
      .Field("code", static_cast<int64_t>(status))
      .Key("message")
      .Raw(LogString(message))
      .EndObject();
  exchange.Reply(status,
                 {{"content-type", "application/json; charset=utf-8"}, {"x-content-type-options", "nosniff"}},
                 json.text() + "\n");
}

void ReplyNotFound(Exchange& exchange) {
  DrainRequestBody(exchange);
  ReplyGoError(exchange, 404, {}, "404 page not found");
}

bool FilesApi::Handle(Exchange& exchange) {
  const std::string& path = exchange.path();
  const std::string& method = exchange.method();
  const bool get = method == "GET";
  if (path == "/health" && get) {
    exchange.SendHead(204, {{"cache-control", "no-store"}});
  } else if (path == "/metrics" && get) {
    Metrics(exchange);
  } else if (path == "/envs" && get) {
    exchange.Reply(200, {{"cache-control", "no-store"}, {"content-type", "application/json"}},
                   "{\"E2B_SANDBOX\":\"false\"}\n");
  } else if (path == "/files" && get) {
    Get(exchange);
  } else if (path == "/files" && method == "POST") {
    Post(exchange);
  } else if (path == "/files/compose" && method == "POST" && context_.can().compose) {
    Compose(exchange);
  } else if (path == "/files") {
    DrainRequestBody(exchange);
    exchange.Reply(405, {{"allow", "GET"}, {"allow", "POST"}}, "");
  } else if (path == "/health" || path == "/metrics" || path == "/envs" ||
             (path == "/files/compose" && context_.can().compose)) {
    DrainRequestBody(exchange);
    exchange.Reply(405, {{"allow", path == "/files/compose" ? "POST" : "GET"}}, "");
  } else {
    return false;
  }
  return true;
}

time_t FilesApi::RequestTime() const {
  const auto running =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - started_);
  return started_at_ + running.count() / 600 * 600;
}

bool FilesApi::Authorized(Exchange& exchange, const std::string& operation) {
  const std::string& token = context_.options().access_token;
  if (token.empty()) {
    return true;
  }
  if (const auto given = exchange.Header("x-access-token"); given && !given->empty()) {
    if (*given == token) {
      return true;
    }
    ReplyJsonError(exchange, 401, "access token present in header but does not match");
    return false;
  }
  const auto signature = exchange.Query("signature");
  if (!signature) {
    ReplyJsonError(exchange, 401, "missing signature query parameter");
    return false;
  }
  const auto expiration = exchange.Query("signature_expiration");
  const std::string text = exchange.Query("path").value_or("") + ":" + operation + ":" +
                           exchange.Query("username").value_or("") + ":" + token +
                           (expiration ? ":" + *expiration : "");
  if ("v1_" + RawBase64OfSha256(text) != *signature) {
    ReplyJsonError(exchange, 401, "invalid signature");
    return false;
  }
  if (expiration && atoll(expiration->c_str()) < time(nullptr)) {
    ReplyJsonError(exchange, 401, "signature is already expired");
    return false;
  }
  return true;
}

std::optional<Account> FilesApi::RequestAccount(Exchange& exchange) {
  const auto username = exchange.Query("username");
  if (!username && !context_.can().default_user) {
    DrainRequestBody(exchange);
    ReplyGoError(exchange, 400, {}, "Query argument username is required, but not found");
    return std::nullopt;
  }
  const std::string name = username.value_or(context_.options().default_user);
  auto account = context_.FindAccount(name);
  if (!account) {
    ReplyJsonError(exchange, 401, "error looking up user '" + name + "': user: unknown user " + name);
  }
  return account;
}

void FilesApi::Get(Exchange& exchange) {
  DrainRequestBody(exchange);
  if (!Authorized(exchange, "read")) {
    return;
  }
  const auto account = RequestAccount(exchange);
  if (!account) {
    return;
  }
  const std::string asked = exchange.Query("path").value_or("");
  context_.log().Line(
      "File read",
      {{"method", "\"GET /files\""}, {"path", LogString(asked)}, {"username", LogString(account->name)}});
  const auto path = context_.FencedPath(asked, *account, true);
  if (!path) {
    ReplyJsonError(exchange, FenceStatus(path.error()),
                   "error expanding and resolving path '" + asked + "': " + path.error().message);
    return;
  }
  struct stat info {};
  if (stat(path->c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT) {
      ReplyJsonError(exchange, 404, "path '" + *path + "' does not exist");
    } else {
      ReplyJsonError(exchange, 500,
                     "error checking if path exists '" + *path + "': " + PathErrorText("stat", *path, error));
    }
    return;
  }
  if (S_ISDIR(info.st_mode)) {
    ReplyJsonError(exchange, 400, "path '" + *path + "' is a directory");
    return;
  }
  HeaderList headers;
  CodingChoice coding;
  if (context_.can().gzip_files) {
    coding = ChooseCoding(exchange.Header("accept-encoding").value_or(""));
    if (coding.none) {
      ReplyJsonError(exchange, 406,
                     "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]");
      return;
    }
    headers.emplace_back("vary", "Accept-Encoding");
    const bool conditional =
        std::any_of(exchange.headers().begin(), exchange.headers().end(), [](const auto& header) {
          return !header.second.empty() && (header.first == "range" || header.first == "if-modified-since" ||
                                            header.first == "if-none-match" || header.first == "if-range");
        });
    if (conditional) {
      if (coding.identity_rejected) {
        ReplyJsonError(exchange, 406, "identity encoding not acceptable for Range or conditional request");
        return;
      }
      coding.gzip = false;
    }
  }
  // Blocks on a fifo that nobody writes to, as envd does; only the double looks for the end of it all
  // meanwhile.
  int fd = -1;
  if (S_ISFIFO(info.st_mode)) {
    while (fd < 0 && !context_.stopping && !exchange.ClientGone()) {
      usleep(50000);
    }
    exchange.Abort();
    return;
  }
  fd = open(path->c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) {
    ReplyJsonError(exchange, 500,
                   "error opening file '" + *path + "': " + PathErrorText("open", *path, errno));
    return;
  }
  if (context_.can().content_disposition) {
    headers.emplace_back("content-disposition", FormatMediaType("inline", "filename", BaseName(*path)));
  }
  if (!coding.gzip) {
    ServeContent(exchange, fd, asked, context_.can().gzip_files ? info.st_mtim.tv_sec : RequestTime(),
                 std::move(headers));
    close(fd);
    return;
  }
  headers.emplace_back("content-encoding", "gzip");
  const std::string type = MediaTypeByExtension(Extension(asked));
  headers.emplace_back("content-type", type.empty() ? "application/octet-stream" : type);
  exchange.SendHead(200, headers);
  GzipWriter writer([&](std::string_view piece) { return exchange.Write(piece); });
  std::vector<char> buffer(kDownloadPiece);
  ssize_t got = 0;
  while ((got = read(fd, buffer.data(), buffer.size())) > 0) {
    if (!writer.Write(std::string_view(buffer.data(), static_cast<size_t>(got)))) {
      close(fd);
      return;
    }
  }
  close(fd);
  (void)writer.Finish();
}

void FilesApi::Post(Exchange& exchange) {
  if (!Authorized(exchange, "write")) {
    return;
  }
  const EnvdCapabilities& can = context_.can();
  const UploadSource plain_body = [&](char* buffer, size_t capacity) {
    return exchange.ReadBody(buffer, capacity);
  };
  UploadSource body = plain_body;
  std::string broken_text = "unexpected EOF";
  std::unique_ptr<GzipReader> expander;
  std::string encoding =
      can.gzip_files ? ParseCoding(exchange.Header("content-encoding").value_or("")).name : "";
  if (!encoding.empty() && encoding != "identity") {
    if (encoding != "gzip") {
      ReplyJsonError(exchange, 400,
                     "error decompressing request body: unsupported Content-Encoding: " + encoding +
                         ", supported: [gzip]");
      return;
    }
    expander = std::make_unique<GzipReader>(plain_body);
    if (!expander->Begin()) {
      ReplyJsonError(exchange, 400,
                     "error decompressing request body: failed to create gzip reader: gzip: invalid header");
      return;
    }
    body = [&](char* buffer, size_t capacity) { return expander->Read(buffer, capacity); };
    broken_text = "gzip: invalid data";
  }
  const auto account = RequestAccount(exchange);
  if (!account) {
    return;
  }
  const auto asked = exchange.Query("path");
  context_.log().Line("File write", {{"method", "\"POST /files\""},
                                     {"path", LogString(asked.value_or(""))},
                                     {"username", LogString(account->name)}});
  const std::map<std::string, std::string> metadata =
      can.metadata ? MetadataHeaders(exchange) : std::map<std::string, std::string>();
  if (const std::string problem = CheckMetadata(metadata); !problem.empty()) {
    ReplyJsonError(exchange, 400, "invalid metadata: " + problem);
    return;
  }
  const std::string content_type = exchange.Header("content-type").value_or("");
  MediaType type = ParseMediaType(content_type);
  JsonText json;
  json.BeginArray();
  if (can.raw_upload && type.type == "application/octet-stream") {
    if (!asked) {
      ReplyJsonError(exchange, 400, "path query parameter is required for raw body upload");
      return;
    }
    const auto path = context_.FencedPath(*asked, *account, true);
    if (!path) {
      ReplyJsonError(exchange, FenceStatus(path.error()), "error resolving path: " + path.error().message);
      return;
    }
    if (const auto failure = WriteUpload(context_, *account, *path, body, metadata, broken_text)) {
      ReplyJsonError(exchange, failure->status, failure->message);
      return;
    }
    AppendUploadEntry(json, *path, can);
  } else if (type.type.starts_with("multipart/") && !type.parameters["boundary"].empty()) {
    MultipartReader form(body, type.parameters["boundary"]);
    std::vector<std::string> done;
    bool broken = false;
    while (form.NextPart(&broken)) {
      MediaType disposition = ParseMediaType(form.PartHeader("content-disposition"));
      if (disposition.type != "form-data" || disposition.parameters["name"] != "file") {
        continue;
      }
      if (!asked && disposition.parameters.count("filename") == 0) {
        ReplyJsonError(exchange, 400,
                       "error getting multipart custom part file name: filename not found in "
                       "Content-Disposition header");
        return;
      }
      const auto path =
          context_.FencedPath(asked ? *asked : disposition.parameters["filename"], *account, true);
      if (!path) {
        ReplyJsonError(exchange, FenceStatus(path.error()), "error resolving path: " + path.error().message);
        return;
      }
      if (std::find(done.begin(), done.end(), *path) != done.end()) {
        ReplyJsonError(exchange, 400,
                       "you cannot upload multiple files to the same path '" + *path +
                           "' in one upload request, only the first specified file was uploaded");
        return;
      }
      const UploadSource part = [&](char* buffer, size_t capacity) { return form.Read(buffer, capacity); };
      if (const auto failure = WriteUpload(context_, *account, *path, part, metadata, "unexpected EOF")) {
        ReplyJsonError(exchange, failure->status, failure->message);
        return;
      }
      done.push_back(*path);
      AppendUploadEntry(json, *path, can);
    }
    if (broken) {
      ReplyJsonError(exchange, 500, "error reading form: multipart: NextPart: EOF");
      return;
    }
  } else if (can.raw_upload && !type.type.starts_with("multipart/")) {
    ReplyJsonError(exchange, 400,
                   "unsupported content type: " + content_type +
                       ", expected multipart/form-data or application/octet-stream");
    return;
  } else {
    ReplyJsonError(exchange, 500,
                   "error parsing multipart form: request Content-Type isn't multipart/form-data");
    return;
  }
  DrainRequestBody(exchange);
  json.EndArray();
  ReplyAsGo(exchange, 200, {{"content-type", "text/plain; charset=utf-8"}}, json.text());
}

void FilesApi::Compose(Exchange& exchange) {
  const auto body = exchange.ReadWholeBody();
  std::string parse_error = "unexpected EOF";
  const auto request = body ? JsonMessage::Parse(*body, &parse_error) : std::nullopt;
  if (!request) {
    ReplyJsonError(exchange, 400, "invalid request body: " + parse_error);
    return;
  }
  const std::vector<std::string> sources = request->StringList("source_paths");
  const std::string destination = request->String("destination");
  const std::string username = request->OptionalString("username").value_or(context_.options().default_user);
  if (!request->error().empty()) {
    ReplyJsonError(exchange, 400, "invalid request body: " + request->error());
    return;
  }
  if (sources.empty() || destination.empty()) {
    ReplyJsonError(exchange, 400,
                   sources.empty() ? "source_paths must not be empty" : "destination is required");
    return;
  }
  const auto account = context_.FindAccount(username);
  if (!account) {
    ReplyJsonError(exchange, 401, "error looking up user '" + username + "': user: unknown user " + username);
    return;
  }
  const auto target = context_.FencedPath(destination, *account, false);
  if (!target) {
    ReplyJsonError(exchange, FenceStatus(target.error()),
                   "error resolving destination path: " + target.error().message);
    return;
  }
  std::vector<std::string> paths;
  for (const std::string& source : sources) {
    const auto path = context_.FencedPath(source, *account, true);
    struct stat info {};
    if (!path) {
      ReplyJsonError(exchange, FenceStatus(path.error()),
                     "error resolving source path: " + path.error().message);
      return;
    }
    if (*path == *target) {
      ReplyJsonError(exchange, 400, "source path \"" + source + "\" cannot be the same as destination");
      return;
    }
    if (stat(path->c_str(), &info) != 0) {
      ReplyJsonError(exchange, 404, "source file not found: " + source);
      return;
    }
    if (!S_ISREG(info.st_mode)) {
      ReplyJsonError(exchange, 400, "source path is not a regular file: " + source);
      return;
    }
    paths.push_back(*path);
  }
  if (auto made = context_.EnsureDirectories(ParentPath(*target), *account); !made) {
    ReplyJsonError(exchange, 500, "error ensuring directories: " + made.error().message);
    return;
  }
  // envd's name carries a UUID; here the process and a count keep it apart.
  static std::atomic<uint64_t> composed{0};
  const std::string temporary = *target + ".e2b-compose." + std::to_string(getpid()) + "-" +
                                std::to_string(composed.fetch_add(1)) + ".tmp";
  size_t next = 0;
  int fd = -1;
  const UploadSource joined = [&](char* buffer, size_t capacity) -> std::optional<size_t> {
    while (true) {
      if (fd < 0) {
        if (next == paths.size()) {
          return 0;
        }
        fd = open(paths[next++].c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
          return std::nullopt;
        }
      }
      const ssize_t got = read(fd, buffer, capacity);
      if (got < 0) {
        return std::nullopt;
      }
      if (got > 0) {
        return static_cast<size_t>(got);
      }
      close(fd);
      fd = -1;
    }
  };
  const auto failure = WriteUpload(context_, *account, temporary, joined, {}, "error composing source");
  if (fd >= 0) {
    close(fd);
  }
  if (failure) {
    unlink(temporary.c_str());
    ReplyJsonError(exchange, failure->status, failure->message);
    return;
  }
  if (rename(temporary.c_str(), target->c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    ReplyJsonError(exchange, 500,
                   "error finalizing compose: rename " + temporary + " " + *target + ": " + ErrnoText(error));
    return;
  }
  for (const std::string& path : paths) {
    if (unlink(path.c_str()) != 0) {
      (void)rmdir(path.c_str());
    }
  }
  context_.log().Line("File compose completed",
                      {{"path", LogString(*target)}, {"sources", std::to_string(paths.size())}});
  JsonText json;
  json.BeginObject()
      .Key("name")
      .Raw(LogString(BaseName(*target)))
      .Key("path")
      .Raw(LogString(*target))
      .Field("type", "file")
      .EndObject();
  exchange.Reply(200, {{"content-type", "application/json"}}, json.text() + "\n");
}

void FilesApi::Metrics(Exchange& exchange) {
  struct statvfs disk {};
  statvfs("/", &disk);
  const auto total = static_cast<int64_t>(disk.f_blocks * disk.f_frsize);
  const auto available = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
  const int64_t mem_total = MemInfoBytes("MemTotal");
  const int64_t mem_used = mem_total - MemInfoBytes("MemAvailable");
  JsonText json;
  json.BeginObject()
      .Field("ts", static_cast<int64_t>(time(nullptr)))
      .Field("cpu_count", static_cast<int64_t>(get_nprocs()));
  json.Field("cpu_used_pct", int64_t{0})
      .Field("mem_total_mib", mem_total >> 20)
      .Field("mem_used_mib", mem_used >> 20);
  json.Field("mem_total", mem_total).Field("mem_used", mem_used).Field("mem_cache", MemInfoBytes("Cached"));
  json.Field("disk_used", total - available).Field("disk_total", total).EndObject();
  exchange.Reply(200, {{"cache-control", "no-store"}, {"content-type", "application/json"}},
                 json.text() + "\n");
}

}  // namespace e2bfs::sandbox
