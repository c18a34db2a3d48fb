#include "transport/service_store.h"

#include <algorithm>
#include <memory>

#include "transport/base/log.h"
#include "transport/service_session.h"
#include "transport/stage_upload.h"

namespace e2bfs::transport {

namespace {

constexpr size_t kExtentsOfOneCommand = 20'000;    // its arguments stay below the system's limit
constexpr int kStageTries = 3;

// All ranges that are staged, one after the other.
std::vector<Extent> StagedRanges(const StorePiece& piece) {
  std::vector<Extent> ranges = piece.extents;
  if (piece.append) ranges.push_back(*piece.append);
  return ranges;
}

// envd may say no more than "500" of an upload that had no room: what a write there fails with is asked.
Error WithRealErrno(ServiceSession& session, const std::string& path, int64_t bytes, Error error, const OpContext& ctx) {
  if (error.http_status != 500 || error.errno_value != EIO) return error;
  const size_t slash = path.rfind('/');
  auto probed = session.Ask(ServiceScript::kProbe, {EncodeArgument(path.substr(0, slash)), std::to_string(bytes), path.substr(slash + 1) + ".p"}, ctx);
  if (probed || probed.error().kind != ErrorKind::kErrno) return error;
  error.kind = ErrorKind::kErrno;
  error.errno_value = probed.error().errno_value;
  return error;
}

std::string NumberArgument(const std::optional<int64_t>& number) { return number ? std::to_string(*number) : "-"; }

}  // namespace

int64_t StorePiece::bytes() const {
  int64_t total = append ? append->length : 0;
  for (const Extent& extent : extents) total += extent.length;
  return total;
}

// Into a new file each time: a torn or late upload of an earlier try must not meet a later one.
Result<std::string> StageContent(ServiceSession& session, const StorePiece& piece, ContentSource& source, OpContext& ctx) {
  for (int tries = 1;; ++tries) {
    auto path = session.NewStageFile(ctx);
    if (!path) return path;
    auto uploaded = UploadRanges(session.client(), *path, StagedRanges(piece), source, {}, ctx);
    if (uploaded) return path;
    uploaded = Forward(WithRealErrno(session, *path, piece.bytes(), uploaded.error(), ctx));
    session.DiscardStageFile(*path);
    ErrorKind kind = uploaded.error().kind;
    bool again = kind == ErrorKind::kBroken || kind == ErrorKind::kUnavailable || kind == ErrorKind::kConnect ||
                 kind == ErrorKind::kRateLimited;
    if (!again || tries == kStageTries || Clock::now() >= ctx.deadline) return Forward(uploaded.error());
    log::Info("service", "staging failed, trying again: {}", ToString(uploaded.error()));
  }
}

Result<std::vector<StorePiece>> PlanStore(const StoreRequest& request) {
  int64_t end = 0;
  for (const Extent& extent : request.extents) {
    bool sane = extent.offset >= end && extent.length > 0 && extent.length <= INT64_MAX - extent.offset;
    if (!sane || (request.size && extent.end() > *request.size)) return Errno(EINVAL, "extents");
    end = extent.end();
  }
  if ((request.size && *request.size < 0) || (request.cut_to && *request.cut_to < 0)) return Errno(EINVAL, "size");
  if (request.append && (request.append->offset < 0 || request.append->length < 0)) return Errno(EINVAL, "append");

  // Cutting first gives space away that the new bytes may not get again, and the old content with it. Writing over it, zeros where
  // nothing was written, and cutting at the end comes to the same.
  std::optional<int64_t> size = request.size;
  if (request.cut_to && !size) size = std::max(end, *request.cut_to);
  int64_t zeros_from = request.cut_to.value_or(INT64_MAX);
  std::vector<StorePiece> pieces;
  StorePiece piece;
  auto zeros_until = [&](int64_t offset) {
    if (zeros_from < offset) piece.zeros.push_back({zeros_from, offset - zeros_from});
  };
  int64_t bytes = 0;
  auto next_piece = [&] {
    pieces.push_back(std::move(piece));
    piece = {};
    bytes = 0;
  };
  for (Extent extent : request.extents) {
    zeros_until(extent.offset);
    zeros_from = std::max(zeros_from, extent.end());
    while (request.fresh && extent.length > kStorePieceBytes - bytes) {
      int64_t part = kStorePieceBytes - bytes;
      if (part > 0) piece.extents.push_back({extent.offset, part});
      extent = {extent.offset + part, extent.length - part};
      next_piece();
    }
    if (piece.extents.size() + piece.zeros.size() >= kExtentsOfOneCommand) next_piece();
    piece.extents.push_back(extent);
    bytes += extent.length;
  }
  if (size) zeros_until(*size);
  if (request.append && request.append->length > 0) piece.append = request.append;
  piece.size = size;
  piece.last = true;
  pieces.push_back(std::move(piece));
  return pieces;
}

std::string OwnerArgument(const AttributeChange& change) {
  if (!change.uid && !change.gid) return "-";
  std::string owner;
  if (change.uid) owner = std::to_string(*change.uid);
  if (change.gid) owner += ":" + std::to_string(*change.gid);
  return owner;
}

// Five digits: with fewer, coreutils' chmod leaves a directory's setuid and setgid bits.
std::string ModeArgument(const std::optional<uint32_t>& permissions) {
  if (!permissions) return "-";
  std::string digits = "00000";
  for (int i = 0; i < 4; ++i) digits[size_t(4 - i)] = char('0' + ((*permissions >> (3 * i)) & 7));
  return digits;
}

std::string ModeBeyondCreation(uint32_t permissions, uint32_t asked_for) {
  if ((permissions & ~asked_for) == 0) return "-";
  return ModeArgument(permissions);
}

std::string UmaskArgument(uint32_t permissions) { return ModeArgument(~permissions & 0777); }

Result<Attributes> StoreContent(ServiceSession& session, const Node& node, bool by_writer, const StoreRequest& request,
                                const OpContext& ctx) {
  auto pieces = PlanStore(request);
  if (!pieces) return Forward(pieces.error());
  // Nothing is given up half-way because a program dies.
  OpContext whole = ctx.Uninterruptible();
  std::optional<ServiceStat> stored;
  for (const StorePiece& piece : *pieces) {
    std::string stage;
    int64_t bytes = piece.bytes();
    if (bytes > 0) {
      if (!request.source) return Errno(EINVAL, "store without a source");
      auto staged = StageContent(session, piece, *request.source, whole);
      if (!staged) return Forward(staged.error());
      stage = std::move(*staged);
      if (request.before_changing && !request.fresh && &piece == &pieces->front()) {
        if (auto may = request.before_changing(); !may) {
          session.DiscardStageFile(stage);
          return Forward(may.error());
        }
      }
    }
    auto held = session.path_locks().Use({node.path}, whole);
    auto path = held ? session.Locate(node) : Result<std::string>(Forward(held.error()));
    if (!path) {
      if (!stage.empty()) session.DiscardStageFile(stage);
      return Forward(path.error());
    }
    AttributeChange attributes = piece.last ? request.attributes : AttributeChange{};
    std::vector<std::string> arguments = {EncodeArgument(*path),
                                          EncodeArgument(stage),
                                          std::to_string(bytes),
                                          NumberArgument(piece.size),
                                          by_writer ? "w" : "-",
                                          OwnerArgument(attributes),
                                          ModeArgument(attributes.permissions),
                                          ServiceTimeArgument(attributes.atime),
                                          ServiceMtimeArgument(attributes),
                                          session.facts().dd_bytes ? "b" : "p"};
    int64_t place = 0;
    for (const Extent& extent : piece.extents) {
      arguments.push_back(std::to_string(extent.offset) + ":" + std::to_string(extent.length) + ":" + std::to_string(place));
      place += extent.length;
    }
    for (const Extent& zeros : piece.zeros) arguments.push_back(std::to_string(zeros.offset) + ":" + std::to_string(zeros.length) + ":z");
    whole = whole.Renewed();
    if (piece.append) arguments.push_back("a:" + std::to_string(piece.append->length) + ":" + std::to_string(place));
    auto answer = session.Change(ServiceScript::kStore, std::move(arguments), whole);
    if (!answer) {
      // Also bars the command, should it come late.
      if (!stage.empty()) session.DiscardStageFile(stage);
      Error error = answer.error();
      if (error.message.find("E SHORT") != std::string::npos) error.kind = ErrorKind::kBroken;
      return Forward(std::move(error));
    }
    if (answer->objects.size() == 1) stored = answer->objects[0];
  }
  if (!stored) return session.Stat(node.path, whole);
  return session.Complete(*stored, node.path, whole);
}

}  // namespace e2bfs::transport
