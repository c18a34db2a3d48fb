// What the block store has of files, and what may go there.
#include "cache/cached_fs_impl.h"

namespace e2bfs::cache {
namespace {

void Append(std::string& bytes, int64_t number) { bytes.append(reinterpret_cast<const char*>(&number), sizeof number); }

void Append(std::string& bytes, const std::string& text) {
  Append(bytes, static_cast<int64_t>(text.size()));
  bytes += text;
}

void Append(std::string& bytes, const timespec& time) {
  Append(bytes, int64_t{time.tv_sec});
  Append(bytes, int64_t{time.tv_nsec});
}


bool SameVersion(const transport::Attributes& a, const transport::Attributes& b) {
  return a.id == b.id && a.lasting == b.lasting && a.size == b.size && transport::SameTime(a.mtime, b.mtime) && transport::SameTime(a.ctime, b.ctime);
}

// A regular file whose attributes say which content it has.
bool HasVersions(const transport::Attributes& attributes) {
  return attributes.type == transport::FileType::kRegular && attributes.id.known() && attributes.size > 0 && !attributes.size_unreliable && !attributes.being_written;
}

// Bytes on their way to a program, of which a copy is kept when it is known that all of them are of one version: at the end of the range,
// or when the file has been looked at since reading began (ByteStream::attributes).
class KeptStream final : public transport::ByteStream {
 public:
  KeptStream(std::unique_ptr<transport::ByteStream> stream, const transport::Attributes& version, int64_t length, std::unique_ptr<BlockStore::Filling> kept)
      : stream_(std::move(stream)), version_(version), left_(length), kept_(std::move(kept)) {}
  // Nobody wants the rest.
  ~KeptStream() override { End(stream_->attributes() != nullptr); }

  Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) override {
    auto got = stream_->Read(buffer, capacity, ctx);
    if (!got) {
      kept_.reset();
    } else if (kept_) {
      kept_->Add({buffer, *got});
      left_ -= static_cast<int64_t>(*got);
      if (*got == 0 || left_ <= 0) End(true);
    }
    return got;
  }
  void Cancel() override { stream_->Cancel(); }
  const transport::Attributes* attributes() const override { return stream_->attributes(); }

 private:
  // `proved`: size and mtime are the version's. Where more is known it has to be the same, too.
  void End(bool proved) {
    const transport::Attributes* read = stream_->attributes();
    if (kept_ && proved && (read == nullptr || (SameVersion(*read, version_) && !read->being_written))) kept_->Done();
    kept_.reset();
  }

  const std::unique_ptr<transport::ByteStream> stream_;
  const transport::Attributes version_;
  int64_t left_;
  std::unique_ptr<BlockStore::Filling> kept_;
};

}  // namespace

BlockStore::Key CachedFsImpl::StoreKey(const transport::Attributes& version) const {
  BlockStore::Key key;
  key.sandbox = options_.store_scope;
  key.size = version.size;
  key.lasting = version.lasting;
  Append(key.object, version.lasting ? std::string() : store_session_);
  Append(key.object, version.id.value);
  Append(key.object, version.mtime);
  Append(key.object, version.ctime);
  return key;
}

std::shared_ptr<BlockStore::File> CachedFsImpl::StoredContent(OpenFile& file) const {
  const Node& node = *file.node;
  // Without a time to live nothing that is known is believed, and a question for each read costs as much as the read.
  if (options_.store == nullptr || file.direct || options_.attribute_ttl.count() == 0) return nullptr;
  if (!HasVersions(node.attributes) || node.attributes.id != node.file_id || node.changes_in_flight > 0) return nullptr;
  if (!file.stored_version || !SameVersion(*file.stored_version, node.attributes)) {
    file.stored = options_.store->Find(StoreKey(node.attributes));
    file.stored_version = node.attributes;
  }
  file.stored_used = Clock::now();
  return file.stored;
}

bool CachedFsImpl::MayServeStored(const Node& node) const { return node.deleted || node.fresh_until > Clock::now(); }

std::shared_ptr<BlockStore::File> CachedFsImpl::PlaceOf(const transport::Attributes& version, TimePoint asked) const {
  const int64_t clock = remote_.description().clock_seconds;
  if (options_.store == nullptr || clock == 0 || !HasVersions(version)) return nullptr;
  // At least so late it was there when the range was asked for: the clock was told before made_.
  const auto now = std::chrono::seconds(clock) + (asked - made_);
  if (std::chrono::seconds(version.ctime.tv_sec) + std::chrono::nanoseconds(version.ctime.tv_nsec) + options_.settled_after > now) return nullptr;
  return options_.store->Find(StoreKey(version));
}

std::unique_ptr<transport::ByteStream> CachedFsImpl::KeepRange(std::unique_ptr<transport::ByteStream> stream, const transport::Attributes& version,
                                                               transport::Extent range, TimePoint asked) const {
  auto file = PlaceOf(version, asked);
  if (!file) return stream;
  auto filling = options_.store->Fill(std::move(file), range.offset, range.length);
  return std::make_unique<KeptStream>(std::move(stream), version, range.length, std::move(filling));
}

void CachedFsImpl::KeepWhole(const transport::Attributes& version, std::string_view bytes, TimePoint asked) const {
  auto file = PlaceOf(version, asked);
  if (!file) return;
  const auto filling = options_.store->Fill(std::move(file), 0, version.size);
  filling->Add(bytes);
  filling->Done();
}

}  // namespace e2bfs::cache
