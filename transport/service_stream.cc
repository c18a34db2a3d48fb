#include "transport/service_stream.h"

#include <algorithm>
#include <vector>

#include "transport/envd/client.h"

namespace e2bfs::transport {

namespace {

constexpr int64_t kMostWindow = 16 << 20;

class ServiceEmptyStream : public ByteStream {
 public:
  Result<size_t> Read(char*, size_t, const OpContext&) override { return size_t{0}; }
  void Cancel() override {}
};

// `skip` bytes are passed over, then at most `length` are given.
class ServiceStream : public ByteStream {
 public:
  ServiceStream(std::unique_ptr<envd::Download> download, bool counted, int64_t skip, int64_t length)
      : download_(std::move(download)), counted_(counted), skip_(skip), left_(length) {}

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    if (left_ == 0 || capacity == 0) return size_t{0};
    while (skip_ > 0) {
      scratch_.resize(size_t(std::min<int64_t>(skip_, 65536)));
      auto passed = download_->Read(scratch_.data(), scratch_.size(), ctx);
      if (!passed || *passed == 0) return passed;
      skip_ -= int64_t(*passed);
    }
    auto got = download_->Read(buffer, size_t(std::min<int64_t>(left_, int64_t(std::min<size_t>(capacity, INT32_MAX)))), ctx);
    if (!got) return got;
    left_ -= int64_t(*got);
    if (left_ == 0 && counted_) {
      // The bytes are all here. Asking once more gives the connection back for reuse; only bytes too many would be an error.
      char extra = 0;
      auto end = download_->Read(&extra, 1, ctx);
      if (end && *end != 0) return Failure(ErrorKind::kProtocol, EIO, "a download longer than its range");
    }
    return got;
  }

  void Cancel() override { download_->Cancel(); }

 private:
  std::unique_ptr<envd::Download> download_;
  const bool counted_;  // its length was told
  int64_t skip_, left_;
  std::vector<char> scratch_;
};

}  // namespace

Result<std::unique_ptr<ByteStream>> OpenServiceStream(envd::Client& client, const std::string& absolute, const Attributes* version,
                                                      Extent range, bool unreliable, const OpContext& ctx) {
  if (range.offset < 0 || range.length < 0 || range.length > INT64_MAX - range.offset) return Errno(EINVAL, "range");
  if (range.length == 0) return std::unique_ptr<ByteStream>(std::make_unique<ServiceEmptyStream>());
  envd::DownloadRequest request;
  request.path = absolute;
  if (unreliable) {
    request.gzip = true;
    auto download = client.OpenDownload(request, ctx);
    if (!download) return Forward(download.error());
    return std::unique_ptr<ByteStream>(std::make_unique<ServiceStream>(std::move(*download), false, range.offset, range.length));
  }
  request.offset = range.offset;
  request.length = range.length;
  // All of a range may come before its reader does; whoever asks for ranges bounds them.
  if (range.length <= kMostWindow) request.window_bytes = static_cast<int>(range.length);
  auto download = client.OpenDownload(request, ctx);
  if (!download) return Forward(download.error());
  const envd::DownloadHead& head = (*download)->head();
  if (version) {
    bool other_size = head.total_size >= 0 && head.total_size != version->size;
    // Before it compressed downloads, envd sent a time of its own as Last-Modified, not the file's.
    bool other_time = client.capabilities().gzip_download && head.last_modified_seconds != 0 && head.last_modified_seconds != version->mtime.tv_sec;
    if (other_size || other_time) return Errno(ESTALE, absolute);
  }
  if (head.length > range.length || (head.length > 0 && head.offset != range.offset)) {
    return Failure(ErrorKind::kProtocol, EIO, "another range than the one that was asked for");
  }
  if (head.length == 0) return std::unique_ptr<ByteStream>(std::make_unique<ServiceEmptyStream>());
  return std::unique_ptr<ByteStream>(std::make_unique<ServiceStream>(std::move(*download), head.length > 0, 0, range.length));
}

}  // namespace e2bfs::transport
