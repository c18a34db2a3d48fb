#include "cache/early_send.h"

#include <algorithm>
#include <string>
#include <utility>

#include "transport/base/log.h"
#include "transport/base/waiting.h"

namespace e2bfs::cache {
namespace {

constexpr int64_t kPieceBytes = 256 << 10;
// Fewer are not worth waking a thread.
constexpr int64_t kLeastBytes = 1 << 20;

}  // namespace

void EarlySend::MoreUntil(int64_t end) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  claimed_ = std::max(claimed_, end);
  if (running_ || queued_ || claimed_ - sent_ < kLeastBytes) return;
  queued_ = threads_.Add([self = shared_from_this()](std::stop_token stop) { self->Run(stop); });
}

int64_t EarlySend::claimed() const {
  std::lock_guard lock(mutex_);
  return claimed_;
}

void EarlySend::GiveUp() {
  std::unique_lock lock(mutex_);
  ended_ = true;
  given_up_.request_stop();
  if (running_) return;
  running_ = true;
  EndRun(lock, std::move(store_));
}

bool EarlySend::End(const OpContext& ctx) {
  GiveUp();
  std::unique_lock lock(mutex_);
  return WaitWithin(changed_, lock, ctx, [this] { return !running_; });
}

void EarlySend::EndRun(std::unique_lock<std::mutex>& lock, std::unique_ptr<transport::EarlyStore> store) {
  if (ended_) {
    lock.unlock();
    store.reset();
    lock.lock();
  } else {
    store_ = std::move(store);
  }
  running_ = false;
  changed_.notify_all();
}

std::unique_ptr<transport::EarlyStore> EarlySend::Take(const OpContext& ctx) {
  std::unique_lock lock(mutex_);
  claimed_ = sent_;  // no further piece is begun
  if (!WaitWithin(changed_, lock, ctx, [this] { return !running_; })) given_up_.request_stop();
  if (std::exchange(ended_, true)) return nullptr;
  return std::move(store_);
}

void EarlySend::Run(std::stop_token stop) {
  const std::stop_callback ends(stop, [this] { given_up_.request_stop(); });
  OpContext ctx;
  ctx.service_class = ServiceClass::kBulk;
  ctx.stop = given_up_.get_token();
  std::string piece;
  std::unique_lock lock(mutex_);
  queued_ = false;
  if (ended_) return;  // taken or given up before a thread was free
  running_ = true;
  std::unique_ptr<transport::EarlyStore> store = std::move(store_);
  while (!ended_ && sent_ < claimed_) {
    const int64_t from = sent_;
    piece.resize(static_cast<size_t>(std::min(kPieceBytes, claimed_ - sent_)));
    lock.unlock();
    Result<void> sent;
    if (!store) {
      auto begun = begin_(ctx);
      if (!begun) {
        sent = Forward(begun.error());
      } else if (!*begun) {
        sent = Errno(ENOTSUP, "sending while it is written");
      } else {
        store = std::move(*begun);
      }
    }
    if (sent) sent = spool_->ReadAt(from, piece.data(), piece.size());
    if (sent) sent = store->Write(piece, ctx);
    lock.lock();
    if (sent) {
      sent_ += static_cast<int64_t>(piece.size());
    } else {
      if (!ended_) log::Debug("cache", "not sent while it is written: {}", ToString(sent.error()));
      ended_ = true;
    }
  }
  EndRun(lock, std::move(store));
}

}  // namespace e2bfs::cache
