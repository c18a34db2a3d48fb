// The files API of envd::Client.
#include <algorithm>

#include "transport/envd/client.h"
#include "transport/envd/client_core.h"
#include "transport/envd/file_heads.h"
#include "transport/envd/messages.h"

namespace e2bfs::transport::envd {
namespace {

constexpr std::chrono::milliseconds kUploadAnswerTime{10'000};
constexpr size_t kReadBatchBytes = 128 << 10;

tl::unexpected<Error> FilesNotOffered(const char* what, const ClientCore& core) {
  return Failure(ErrorKind::kBadRequest, ENOTSUP, std::string(what) + " is not offered by envd " + core.capabilities.version_text);
}

class EnvdDownload final : public Download {
 public:
  EnvdDownload(std::shared_ptr<ClientCore> core, std::unique_ptr<http::Exchange> exchange, DownloadHead head, bool compressed)
      : core_(std::move(core)), exchange_(std::move(exchange)), head_(std::move(head)), left_(head_.length) {
    if (compressed) inflater_.emplace(*exchange_);
  }

  const DownloadHead& head() const override { return head_; }

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    if (error_) return Forward(*error_);
    if (capacity == 0) return Failure(ErrorKind::kBadRequest, EINVAL, "a read of nothing");
    auto count = ReadSome(buffer, capacity, ctx);
    if (!count) {
      error_ = core_->Examine(std::move(count.error()), ctx);
      exchange_->Cancel();
      return Forward(*error_);
    }
    return count;
  }

  void Cancel() override { exchange_->Cancel(); }

  // The body behind the wanted bytes was not asked for: a server that ignores ranges.
  void ExpectMore() { more_follows_ = true; }

 private:
  Result<size_t> ReadSome(char* buffer, size_t capacity, const OpContext& ctx) {
    if (ended_) return size_t{0};
    if (inflater_) {
      auto count = inflater_->Read(buffer, capacity, ctx);
      if (count && *count == 0) ended_ = true;
      return count;
    }
    if (left_ == 0) {
      // The end is proved by the body's own end; that also gives the connection back.
      ended_ = true;
      if (more_follows_) {
        exchange_->Cancel();
        return size_t{0};
      }
      char extra = 0;
      auto count = exchange_->Read(&extra, 1, ctx);
      if (count && *count != 0) return Failure(ErrorKind::kProtocol, EIO, "envd's answer to a download: longer than it said");
      return count;
    }
    const size_t most = left_ < 0 ? capacity : static_cast<size_t>(std::min<uint64_t>(capacity, static_cast<uint64_t>(left_)));
    auto count = exchange_->Read(buffer, most, ctx);
    if (!count) return count;
    if (*count == 0) {
      if (left_ > 0) return Failure(ErrorKind::kBroken, EIO, "a download ended before its length");
      ended_ = true;
    } else if (left_ > 0) {
      left_ -= static_cast<int64_t>(*count);
    }
    return count;
  }

  const std::shared_ptr<ClientCore> core_;
  const std::unique_ptr<http::Exchange> exchange_;
  const DownloadHead head_;
  std::optional<http::GzipReader> inflater_;
  int64_t left_;  // bytes to come; -1: unknown
  bool ended_ = false;
  bool more_follows_ = false;
  std::optional<Error> error_;
};

// The answer's file has to be the one that was sent. Names that are not UTF-8 come back altered, and are not compared.
Result<WrittenFile> CheckWritten(const std::string& body, std::string_view path) {
  auto written = DecodeWrittenFile(body);
  if (!written) return written;
  std::string_view name = path.substr(path.find_last_of('/') + 1);
  if (IsUtf8(name) && !name.empty() && name != "." && name != ".." && written->name != name) {
    return Failure(ErrorKind::kProtocol, EIO, "envd's answer to an upload: another file was written");
  }
  return written;
}

class EnvdUpload final : public Upload {
 public:
  EnvdUpload(std::shared_ptr<ClientCore> core, std::unique_ptr<http::Exchange> exchange, UploadRequest request, std::string after,
             bool zipped, uint64_t token_generation)
      : core_(std::move(core)),
        exchange_(std::move(exchange)),
        request_(std::move(request)),
        after_(std::move(after)),
        token_generation_(token_generation) {
    if (zipped) gzip_.emplace();
  }

  Result<void> Write(std::string_view bytes, const OpContext& ctx) override {
    if (error_) return Forward(*error_);
    if (bytes.empty()) return {};
    if (request_.length && static_cast<uint64_t>(*request_.length - written_) < bytes.size()) {
      return Failure(ErrorKind::kBadRequest, EINVAL, "more bytes than the declared length of an upload");
    }
    auto sent = Send(bytes, false, ctx);
    written_ += static_cast<int64_t>(bytes.size());
    return sent ? sent : Broken(std::move(sent.error()), ctx);
  }

  Result<WrittenFile> Finish(const OpContext& ctx) override {
    if (error_) return Forward(*error_);
    if (early_) return std::move(*early_);
    if (request_.length && written_ != *request_.length) {
      exchange_->Cancel();
      return Failure(ErrorKind::kBadRequest, EINVAL, "fewer bytes than the declared length of an upload");
    }
    auto sent = Send(after_, true, ctx);
    if (sent) sent = exchange_->FinishBody(ctx);
    if (!sent) {
      if (auto judged = Broken(std::move(sent.error()), ctx); !judged) return Forward(std::move(judged.error()));
    }
    if (early_) return std::move(*early_);
    const TimePoint asked = Clock::now();
    auto head = exchange_->WaitHead(ctx);
    waited_ += Clock::now() - asked;
    if (!head) {
      error_ = core_->Examine(std::move(head.error()), ctx);
      return Forward(*error_);
    }
    auto written = Judge(*head, ctx);
    if (written) core_->compression.Note(wire_bytes_, waited_, compressed_);
    return written;
  }

  void Cancel() override { exchange_->Cancel(); }

 private:
  Result<void> Send(std::string_view bytes, bool last, const OpContext& ctx) {
    const TimePoint begun = Clock::now();
    std::string made;
    if (gzip_) {
      auto compressed = gzip_->Compress(bytes, last);
      if (!compressed) return Forward(compressed.error());
      made = std::move(*compressed);
      bytes = made;
    }
    const TimePoint ready = Clock::now();
    compressed_ += ready - begun;
    if (bytes.empty()) return {};
    auto sent = exchange_->Write(bytes, ctx);
    waited_ += Clock::now() - ready;
    wire_bytes_ += static_cast<int64_t>(bytes.size());
    return sent;
  }

  // The server takes no more bytes: its answer says why (507), if it gave one. Success is the answer of one that counts to the declared
  // length and does not wait for more: then it is kept for Finish.
  Result<void> Broken(Error error, const OpContext& ctx) {
    OpContext soon = ctx;
    soon.deadline = std::min(ctx.deadline, Clock::now() + kUploadAnswerTime);
    auto head = exchange_->WaitHead(soon);
    if (head) {
      auto judged = Judge(*head, soon);
      if (judged && !gzip_ && request_.length && written_ == *request_.length) {
        early_ = std::move(*judged);
        return {};
      }
      if (judged) error_ = Failure(ErrorKind::kProtocol, EIO, "envd's answer to an upload: done before it was all there").value();
      if (!error_) error_ = std::move(judged.error());
    } else {
      error_ = core_->Examine(std::move(error), ctx);
    }
    return Forward(*error_);
  }

  Result<WrittenFile> Judge(const http::ResponseHead& head, const OpContext& ctx) {
    ClientCore::Answer ignored;
    if (head.status != 200) {
      error_ = core_->ReadError(*exchange_, head, ignored, ctx);
      if (ClientCore::IsRefusedToken(*error_) && core_->RefreshTokens(token_generation_, ctx)) {
        error_ = Failure(ErrorKind::kUnavailable, EAGAIN, "the sandbox's token was renewed: begin again").value();
      }
      return Forward(*error_);
    }
    std::string body;
    char buffer[4096];
    while (true) {
      auto count = exchange_->Read(buffer, sizeof buffer, ctx);
      if (!count) {
        error_ = std::move(count.error());
        return Forward(*error_);
      }
      if (*count == 0) break;
      if (body.size() > kMaxUnaryBytes) return Failure(ErrorKind::kProtocol, EFBIG, "envd's answer to an upload: too long");
      body.append(buffer, *count);
    }
    return CheckWritten(body, request_.path);
  }

  const std::shared_ptr<ClientCore> core_;
  const std::unique_ptr<http::Exchange> exchange_;
  const UploadRequest request_;
  const std::string after_;  // multipart's end
  const uint64_t token_generation_;
  std::optional<http::GzipWriter> gzip_;
  int64_t wire_bytes_ = 0;
  std::chrono::nanoseconds waited_{}, compressed_{};
  int64_t written_ = 0;  // handed over, or tried to be
  std::optional<WrittenFile> early_;
  std::optional<Error> error_;
};

}  // namespace

Result<std::unique_ptr<Download>> Client::OpenDownload(const DownloadRequest& request, const OpContext& ctx) {
  const bool ranged = request.offset > 0 || request.length;
  if (request.path.empty() || request.path.find('\0') != std::string::npos || request.offset < 0 ||
      (request.length && (*request.length <= 0 || *request.length > INT64_MAX - request.offset)) || (request.gzip && ranged)) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "an impossible download");
  }
  if (request.gzip && !core_->capabilities.gzip_download) return FilesNotOffered("a compressed download", *core_);
  return core_->Try(Repeat::kIdempotent, ctx, [&](ClientCore::Answer& answer) -> Result<std::unique_ptr<Download>> {
    http::Request get = core_->MakeRequest("GET", core_->FilesTarget(request.path));
    get.headers.emplace_back("accept-encoding", request.gzip ? "gzip" : "identity");
    if (ranged) {
      std::string range = "bytes=" + std::to_string(request.offset) + "-";
      if (request.length) range += std::to_string(request.offset + *request.length - 1);
      get.headers.emplace_back("range", std::move(range));
    }
    if (!request.if_unmodified_since.empty()) get.headers.emplace_back("if-unmodified-since", request.if_unmodified_since);
    get.idempotent = true;
    get.window_bytes = request.window_bytes;
    get.read_batch_bytes = kReadBatchBytes;
    get.expected_bytes = request.length.value_or(0);
    auto exchange = core_->http.Start(std::move(get), ctx);
    if (!exchange) return Forward(std::move(exchange.error()));
    auto head = (*exchange)->WaitHead(ctx);
    if (!head) return Forward(std::move(head.error()));
    if (head->status != 200 && head->status != 206 && head->status != 416) {
      return Forward(core_->ReadError(**exchange, *head, answer, ctx));
    }
    auto checked = CheckDownloadHead(request, *head);
    if (!checked) return Forward(std::move(checked.error()));
    const bool compressed = request.gzip && head->Find("content-encoding") == "gzip";
    auto download = std::make_unique<EnvdDownload>(core_, std::move(*exchange), *checked, compressed);
    // A refused range has a text as its body, and a server that ignores ranges has the rest of the file.
    if (checked->status == 416 || (checked->status == 200 && checked->length >= 0 && checked->length < checked->total_size)) {
      download->ExpectMore();
    }
    return download;
  });
}

Result<std::string> Client::ReadFile(const DownloadRequest& request, size_t max_bytes, const OpContext& ctx) {
  // The whole, not only its head, is repeated when the connection is lost.
  return core_->Try(Repeat::kIdempotent, ctx, [&](ClientCore::Answer&) -> Result<std::string> {
    auto download = OpenDownload(request, ctx);
    if (!download) return Forward(std::move(download.error()));
    const int64_t length = (*download)->head().length;
    if (length >= 0 && static_cast<uint64_t>(length) > max_bytes) {
      return Failure(ErrorKind::kProtocol, EFBIG, "a file larger than expected");
    }
    std::string content;
    if (length > 0) content.reserve(static_cast<size_t>(length));
    std::string buffer(size_t{64} << 10, '\0');
    while (true) {
      auto count = (*download)->Read(buffer.data(), buffer.size(), ctx);
      if (!count) return Forward(std::move(count.error()));
      if (*count == 0) return content;
      if (*count > max_bytes - content.size()) return Failure(ErrorKind::kProtocol, EFBIG, "a file larger than expected");
      content.append(buffer, 0, *count);
    }
  });
}

Result<std::unique_ptr<Upload>> Client::OpenUpload(const UploadRequest& request, const OpContext& ctx) {
  if (request.path.empty() || request.path.find('\0') != std::string::npos || (request.length && *request.length < 0)) {
    return Failure(ErrorKind::kBadRequest, EINVAL, "an impossible upload");
  }
  if (!request.metadata.empty() && !core_->capabilities.metadata) return FilesNotOffered("metadata", *core_);
  const uint64_t token_generation = core_->endpoint->token_generation();
  http::Request post = core_->MakeRequest("POST", core_->FilesTarget(request.path));
  post.headers.emplace_back("accept", "application/json");
  for (const auto& [key, value] : request.metadata) post.headers.emplace_back("x-metadata-" + key, value);
  post.streamed_body = true;
  post.content_length = request.length;
  std::string before, after;
  const bool zipped = core_->compression.Pays(request.beginning);
  if (core_->capabilities.octet_stream_upload) {
    post.headers.emplace_back("content-type", "application/octet-stream");
    if (zipped) {
      post.headers.emplace_back("content-encoding", "gzip");
      post.content_length.reset();
    }
  } else {
    MultipartFrame frame = MultipartFrame::Make();
    post.headers.emplace_back("content-type", std::move(frame.content_type));
    if (request.length) post.content_length = *request.length + static_cast<int64_t>(frame.before.size() + frame.after.size());
    before = std::move(frame.before);
    after = std::move(frame.after);
  }
  auto exchange = core_->http.Start(std::move(post), ctx);
  if (!exchange) return Forward(std::move(exchange.error()));
  if (!before.empty()) {
    if (auto sent = (*exchange)->Write(before, ctx); !sent) return Forward(core_->Examine(std::move(sent.error()), ctx));
  }
  return std::make_unique<EnvdUpload>(core_, std::move(*exchange), request, std::move(after), zipped, token_generation);
}

Result<WrittenFile> Client::WriteFile(const std::string& path, std::string_view bytes, const OpContext& ctx) {
  if (path.empty() || path.find('\0') != std::string::npos) return Failure(ErrorKind::kBadRequest, EINVAL, "an impossible upload");
  const bool plain = core_->capabilities.octet_stream_upload;
  const bool zipped = core_->compression.Pays(bytes);
  return core_->Try(Repeat::kOnce, ctx, [&](ClientCore::Answer& answer) -> Result<WrittenFile> {
    http::Request post = core_->MakeRequest("POST", core_->FilesTarget(path));
    post.headers.emplace_back("accept", "application/json");
    if (plain) {
      post.headers.emplace_back("content-type", "application/octet-stream");
      if (zipped) post.headers.emplace_back("content-encoding", "gzip");
      post.body = zipped ? http::GzipCompress(bytes) : std::string(bytes);
    } else {
      MultipartFrame frame = MultipartFrame::Make();
      post.headers.emplace_back("content-type", std::move(frame.content_type));
      post.body = std::move(frame.before);
      post.body += bytes;
      post.body += frame.after;
    }
    auto response = core_->http.Fetch(std::move(post), ctx, kMaxUnaryBytes);
    if (!response) return Forward(std::move(response.error()));
    if (response->head.status != 200) return Forward(ClientCore::AnswerError(response->head, response->body, answer));
    return CheckWritten(response->body, path);
  });
}

Result<WrittenFile> Client::Compose(const std::vector<std::string>& sources, const std::string& destination, const OpContext& ctx) {
  if (!core_->capabilities.compose) return FilesNotOffered("joining files", *core_);
  auto body = EncodeCompose(sources, destination, core_->user);
  if (!body) return Forward(std::move(body.error()));
  return core_->Try(Repeat::kOnce, ctx, [&](ClientCore::Answer& answer) -> Result<WrittenFile> {
    http::Request post = core_->MakeRequest("POST", "/files/compose");
    post.headers.emplace_back("content-type", "application/json");
    post.headers.emplace_back("accept", "application/json");
    post.body = *body;
    auto response = core_->http.Fetch(std::move(post), ctx, kMaxUnaryBytes);
    if (!response) return Forward(std::move(response.error()));
    if (response->head.status != 200) return Forward(ClientCore::AnswerError(response->head, response->body, answer));
    return CheckWritten(response->body, destination);
  });
}

}  // namespace e2bfs::transport::envd
