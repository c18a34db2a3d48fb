#include "fuse/mount_control.h"

#include <fmt/core.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "cache/cached_fs.h"
#include "fuse/message.h"
#include "fuse/mount_table.h"
#include "transport/base/log.h"
#include "transport/base/metrics.h"

namespace e2bfs::fuse {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::chrono::seconds kProgressInterval{1};
// Without --timeout: how long nothing at all may get on. Whoever forces it does not want to wait for a sandbox that hangs.
constexpr std::chrono::milliseconds kUnmountPatience{600'000};
constexpr std::chrono::milliseconds kForcedPatience{15'000};

std::string JsonLine(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// All counters of the cache whose names end so, together.
int64_t SumOfCounters(const std::map<std::string, int64_t>& counters, std::string_view end) {
  int64_t sum = 0;
  for (const auto& [name, value] : counters) {
    if (name.starts_with("cache.") && name.ends_with(end)) sum += value;
  }
  return sum;
}

std::string UnsentText(const cache::CacheStatus& status, const std::string& why) {
  if (status.dirty_files == 0) return why;
  return fmt::format("{} unsent in {} file{}{}{}", HumanBytes(status.dirty_bytes), status.dirty_files, status.dirty_files == 1 ? "" : "s",
                     why.empty() ? "" : ": ", why);
}

}  // namespace

MountControl::MountControl(MountIdentity identity, cache::CachedFs& cached, std::function<TransportStatus()> transport,
                           std::stop_source end)
    : identity_(std::move(identity)), cached_(cached), transport_(std::move(transport)), end_request_(std::move(end)) {}

void MountControl::SetState(std::string state) {
  std::lock_guard lock(mutex_);
  state_ = std::move(state);
}

void MountControl::SetEnd(const MountEnd& end) {
  Json json = {{"ended", true}};
  if (!end.saved_in.empty()) json["saved_in"] = end.saved_in;
  if (!end.error.empty()) json["error"] = end.error;
  std::lock_guard lock(mutex_);
  end_line_ = JsonLine(json);
  changed_.notify_all();
}

bool MountControl::WaitUntilIdle(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, time, [this] { return answering_ == 0; });
}

void MountControl::Answer(const std::string& request, const ControlServer::SendLine& send) {
  {
    std::lock_guard lock(mutex_);
    ++answering_;
  }
  const auto json = nlohmann::json::parse(request, nullptr, false);
  const bool readable = json.is_object() && json.contains("command") && json["command"].is_string();
  const std::string command = readable ? json["command"].get<std::string>() : "";
  if (command == "describe") {
    if (!send(Describe())) log::Debug("control", "the asker has gone");
  } else if (command == "status") {
    if (!send(Status())) log::Debug("control", "the asker has gone");
  } else if (command == "unmount" || command == "flush") {
    const bool force = json.contains("force") && json["force"].is_boolean() && json["force"].get<bool>();
    const bool timed = json.contains("timeout_ms") && json["timeout_ms"].is_number_integer();
    OpContext ctx = OpContext::Within(std::chrono::milliseconds(timed ? json["timeout_ms"].get<int64_t>() : kUnmountPatience.count()), ServiceClass::kBulk);
    if (!timed) ctx.renewal = force ? kForcedPatience : kUnmountPatience;
    if (!timed && force) ctx.deadline = Clock::now() + kForcedPatience;
    if (command == "flush") {
      AnswerFlush(ctx, send);
    } else {
      AnswerUnmount(ctx, force, send);
    }
  } else if (!send(R"({"error":"unknown request"})")) {
    log::Debug("control", "the asker has gone");
  }
  std::lock_guard lock(mutex_);
  --answering_;
  changed_.notify_all();
}

std::string MountControl::Describe() const {
  Json json = {{"mountpoint", identity_.mount_point}, {"sandbox", identity_.sandbox_id}};
  json["path"] = cached_.remote().description().root;
  {
    std::lock_guard lock(mutex_);
    json["state"] = state_;
  }
  json["pid"] = getpid();
  json["dirty_bytes"] = cached_.Status().dirty_bytes;
  return JsonLine(json);
}

std::string MountControl::Status() const {
  const cache::CacheStatus cache = cached_.Status();
  const TransportStatus transport = transport_();
  const transport::Description& remote = cached_.remote().description();
  const std::map<std::string, int64_t> counters = Metrics::Snapshot();

  Json json = {{"sandbox", identity_.sandbox_id}, {"template", identity_.template_id}, {"path", remote.root}, {"mountpoint", identity_.mount_point}};
  {
    std::lock_guard lock(mutex_);
    json["state"] = state_;
  }
  json["pid"] = getpid();
  json["mounted_for_seconds"] =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now() - started_).count();
  json["read_only"] = identity_.read_only;
  json["user"] = remote.user;
  json["envd_version"] = remote.server_version;
  json["tier"] = remote.tier;
  json["tier_reason"] = identity_.tier_reason;
  json["can"] = transport.can;
  json["cannot"] = transport.cannot;
  json["limits"] = remote.cannot;
  json["protocol"] = transport.protocol;
  json["requests"] = transport.requests;
  json["retries"] = transport.retries;
  json["sent_bytes"] = transport.bytes_sent;
  json["received_bytes"] = transport.bytes_received;
  json["connections"] = transport.connections;
  json["connections_opened"] = transport.connections_opened;
  json["cache_hits"] = SumOfCounters(counters, "_hits_count");
  json["cache_misses"] = SumOfCounters(counters, "_misses_count");
  auto prefetched = [&](const char* what) {
    const auto found = counters.find(std::string("cache.prefetched_") + what);
    return found == counters.end() ? int64_t{0} : found->second;
  };
  json["prefetch"] = {{"listings", prefetched("listings_count")}, {"listings_used", prefetched("listings_used_count")},
                      {"files", prefetched("files_count")},       {"files_used", prefetched("files_used_count")},
                      {"bytes", prefetched("files_bytes")},       {"bytes_used", prefetched("files_used_bytes")}};
  json["cache_directory"] = cache.store_directory;
  json["cache_limit_bytes"] = cache.store_limit_bytes;
  json["memory_bytes"] = cache.memory_bytes;
  json["known_objects"] = cache.known_nodes;
  json["open_files"] = cache.open_files;
  json["dirty_files"] = cache.dirty_files;
  json["dirty_bytes"] = cache.dirty_bytes;
  json["last_error"] = cache.last_error;
  json["unsent"] = Json::array();
  for (const cache::UnsentFile& file : cache.unsent) {
    json["unsent"].push_back({{"path", file.path}, {"bytes", file.bytes}, {"error", file.last_error}});
  }
  Json details = Json::object();
  for (const auto& [name, value] : cached_.remote().Status()) details[name] = value;
  json["remote"] = details;
  json["counters"] = counters;
  return JsonLine(json);
}

Result<void> MountControl::Flush(const OpContext& ctx, const SendJson& send_line) {
  // Progress by a clock of its own: a transfer that is stuck reports nothing.
  std::condition_variable_any tick;
  std::mutex tick_mutex;
  const auto tell = [&](std::stop_token stop) {
    std::unique_lock lock(tick_mutex);
    while (!stop.stop_requested()) {
      if (!send_line({{"bytes_left", cached_.Status().dirty_bytes}})) return;
      tick.wait_for(lock, stop, kProgressInterval, [] { return false; });
    }
  };
  std::jthread progress;
  try {
    progress = std::jthread(tell);
  } catch (const std::system_error& thrown) {
    log::Warning("control", "sending goes on without telling how far it is: {}", thrown.what());
  }
  return cached_.FlushAll(ctx, [](int64_t) {});
}

void MountControl::AnswerFlush(const OpContext& ctx, const ControlServer::SendLine& send) {
  std::mutex send_mutex;
  const SendJson send_line = [&](const Json& json) {
    std::lock_guard lock(send_mutex);
    return send(JsonLine(json));
  };
  const auto flushed = Flush(ctx, send_line);
  const Json answer = flushed ? Json{{"ready", true}} : Json{{"unsent", UnsentText(cached_.Status(), ErrorText(flushed.error()))}};
  if (!send_line(answer)) log::Debug("control", "the asker has gone");
}

void MountControl::AnswerUnmount(const OpContext& ctx, bool force, const ControlServer::SendLine& send) {
  std::mutex send_mutex;  // progress and answers come from two threads
  const SendJson send_line = [&](const Json& json) {
    std::lock_guard lock(send_mutex);
    return send(JsonLine(json));
  };
  const auto flushed = Flush(ctx, send_line);
  const cache::CacheStatus status = cached_.Status();
  Json ready = {{"ready", true}};
  if (!flushed) {
    const std::string why = ErrorText(flushed.error());
    if (!force) {
      if (!send_line({{"unsent", UnsentText(status, why)}})) log::Info("control", "umount was given up");
      return;
    }
    const std::string& directory = identity_.unsent_directory;
    if (auto saved = cached_.SaveUnsent(directory); !saved) {
      const std::string text = "unsent data could not be put aside in " + directory + ": " + ErrorText(saved.error());
      log::Error("control", "{}", text);
      if (!send_line({{"error", text}})) log::Info("control", "umount was given up");
      return;
    }
    log::Warning("control", "unsent data was put aside in {}: {}", directory, why);
    put_aside_ = true;
    ready["saved_in"] = directory;
    ready["why"] = why;
  }
  if (!send_line(ready) && !force) return;  // interrupted: nobody will unmount
  if (force) end_request_.request_stop();
  WaitForEnd(send);
}

void MountControl::WaitForEnd(const ControlServer::SendLine& send) {
  std::unique_lock lock(mutex_);
  while (end_line_.empty()) {
    changed_.wait_for(lock, kProgressInterval);
    if (!end_line_.empty()) break;
    lock.unlock();
    // A mount namespace that was made meanwhile (a container's, a service's) has a copy of the mount, for which the kernel would go on. Whoever
    // asked wants the end of it.
    if (!MayBeMounted(identity_.mount_point)) end_request_.request_stop();
    const bool listening = send(JsonLine({{"bytes_left", cached_.Status().dirty_bytes}}));
    lock.lock();
    if (!listening) return;
  }
  const std::string line = end_line_;
  lock.unlock();
  if (!send(line)) log::Debug("control", "the asker has gone");
}

}  // namespace e2bfs::fuse
