#include "tests/sandbox/envd_watch.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>

#include "tests/sandbox/envd_entry.h"
#include "tests/sandbox/go_path.h"

namespace e2bfs::sandbox {
namespace {

constexpr int kWatchTickMs = 50;

bool IsNetworkMount(const std::string& path) {
  struct statfs info {};
  if (statfs(path.c_str(), &info) != 0) {
    return false;
  }
  switch (static_cast<uint32_t>(info.f_type)) {
    case 0x6969:      // NFS
    case 0xFF534D42:  // CIFS
    case 0x517B:      // SMB
    case 0xFE534D42:  // SMB2
    case 0x65735546:  // FUSE
      return true;
    default: return false;
  }
}

}  // namespace

bool WatchService::Handle(Exchange& exchange, const std::string& method) {
  if (method == "WatchDir") {
    WatchDir(exchange);
    return true;
  }
  if (method != "CreateWatcher" && method != "GetWatcherEvents" && method != "RemoveWatcher") {
    return false;
  }
  ServeUnary(exchange, context_.log(), "/filesystem.Filesystem/" + method,
             [&](const JsonMessage& message) -> RpcResult<std::string> {
               if (method == "GetWatcherEvents") {
                 return GetWatcherEvents(message);
               }
               if (method == "RemoveWatcher") {
                 return RemoveWatcher(message);
               }
               const auto account = context_.RpcAccount(exchange);
               if (!account) {
                 return tl::make_unexpected(account.error());
               }
               return CreateWatcher(message, *account);
             });
  return true;
}

RpcResult<WatchService::Request> WatchService::BeginWatch(const JsonMessage& message, const Account& account,
                                                          Watcher& watcher) {
  const EnvdCapabilities& can = context_.can();
  Request request;
  request.recursive = message.Bool("recursive") && can.recursive_watch;
  request.include_entry = message.Bool("includeEntry") && can.watch_entries;
  const bool network_allowed = message.Bool("allowNetworkMounts") && can.network_watches;
  const auto path = context_.FencedPath(message.String("path"), account, true);
  if (!path) {
    return tl::make_unexpected(path.error());
  }
  request.path = *path;
  struct stat info {};
  if (stat(path->c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT) {
      return RpcFailure("not_found", "path " + *path + " not found: " + PathErrorText("stat", *path, error));
    }
    return RpcFailure("internal",
                      "error statting path " + *path + ": " + PathErrorText("stat", *path, error));
  }
  if (!S_ISDIR(info.st_mode)) {
    return RpcFailure("invalid_argument", "path " + *path + " not a directory: %!w(<nil>)");
  }
  if (!network_allowed && IsNetworkMount(*path)) {
    return RpcFailure("invalid_argument", "cannot watch path on network filesystem: " + *path);
  }
  const int limit = context_.options().max_watches;
  if (++watches_ > limit && limit > 0) {
    EndWatch();
    return RpcFailure("internal", "error creating watcher: too many open files");
  }
  if (const int error = watcher.Add(*path, request.recursive); error != 0) {
    EndWatch();
    return RpcFailure("internal", "error adding path " + *path + " to watcher: " + ErrnoText(error));
  }
  return request;
}

void WatchService::AppendEvent(JsonText& json, const Request& request, const WatchEvent& event,
                               const std::string& type) {
  const std::string root = CleanPath(request.path);
  std::string name = ".";
  if (event.path.size() > root.size() && event.path.starts_with(root)) {
    name = event.path.substr(root.back() == '/' ? root.size() : root.size() + 1);
  }
  json.BeginObject().Field("name", name).Field("type", "EVENT_TYPE_" + type);
  if (request.include_entry && (type == "CREATE" || type == "WRITE" || type == "CHMOD")) {
    JsonText entry;
    OwnerNames names;
    if (AppendEntry(entry, event.path, event.path, context_.can(), names)) {
      json.Key("entry").Raw(entry.text());
      if (!entry.valid()) {
        json.Field("", "\xff");  // spoils the whole message, as it does for protobuf
      }
    }
  }
  json.EndObject();
}

void WatchService::WatchDir(Exchange& exchange) {
  RpcStream stream(exchange, context_.log(), "/filesystem.Filesystem/WatchDir",
                   RpcStream::Kind::kServerStream);
  if (!stream.Open()) {
    return;
  }
  const auto message = stream.ReceiveRequest();
  if (!message) {
    return;
  }
  const auto account = context_.RpcAccount(exchange);
  if (!account) {
    stream.End(account.error());
    return;
  }
  Watcher watcher;
  const auto request = BeginWatch(*message, *account, watcher);
  if (!request) {
    stream.End(request.error());
    return;
  }
  struct Release {
    WatchService* service;
    ~Release() { service->EndWatch(); }
  } release{this};
  if (!stream.Send("{\"start\":{}}")) {
    return;
  }
  if (stream.keepalive_seconds() <=
      0) {  // a ticker without an interval panics: here in the request's own goroutine
    stream.Abort();
    return;
  }
  const std::chrono::seconds keepalive(stream.keepalive_seconds());
  auto next_keepalive = std::chrono::steady_clock::now() + keepalive;
  while (true) {
    pollfd ready{watcher.fd(), POLLIN, 0};
    poll(&ready, 1, kWatchTickMs);
    const auto now = std::chrono::steady_clock::now();
    if (stream.deadline() && now >= *stream.deadline()) {
      stream.End(RpcError{"deadline_exceeded", "context deadline exceeded"});
      return;
    }
    if (context_.stopping || context_.crashed) {
      stream.Abort();
      return;
    }
    std::vector<WatchEvent> events;
    const bool complete = watcher.Read(&events);
    for (const WatchEvent& event : events) {
      for (const std::string& type : event.types) {
        JsonText json;
        json.BeginObject().Key("filesystem");
        AppendEvent(json, *request, event, type);
        json.EndObject();
        if (!json.valid()) {
          stream.End(RpcError{"unknown",
                              "error sending filesystem event: internal: marshal message: string field "
                              "contains invalid UTF-8"});
          return;
        }
        if (!stream.Send(json.text())) {
          return;
        }
        next_keepalive = now + keepalive;
      }
    }
    if (!complete) {
      stream.End(RpcError{"internal", "watcher error: fsnotify: queue or buffer overflow"});
      return;
    }
    if (now >= next_keepalive) {
      if (!stream.Send("{\"keepalive\":{}}")) {
        return;
      }
      next_keepalive = now + keepalive;
    }
    if (stream.ClientGone()) {
      return;
    }
  }
}

WatchService::Polled::~Polled() {
  closing = true;
  if (thread.joinable()) {
    thread.join();
  }
}

void WatchService::Collect(Polled& polled) {
  while (!polled.closing && !context_.stopping) {
    pollfd ready{polled.watcher.fd(), POLLIN, 0};
    poll(&ready, 1, kWatchTickMs);
    std::vector<WatchEvent> events;
    const bool complete = polled.watcher.Read(&events);
    const std::lock_guard lock(polled.mutex);
    for (const WatchEvent& event : events) {
      for (const std::string& type : event.types) {
        JsonText json;
        AppendEvent(json, polled.request, event, type);
        if (!json.valid()) {  // envd keeps such an event and fails to encode it when it is asked
          polled.error = RpcError{"internal", "marshal message: string field contains invalid UTF-8"};
        }
        polled.events.push_back(json.TakeText());
      }
    }
    if (!complete) {
      polled.error = RpcError{"internal", "watcher error: fsnotify: queue or buffer overflow"};
      return;
    }
  }
}

RpcResult<std::string> WatchService::CreateWatcher(const JsonMessage& message, const Account& account) {
  auto polled = std::make_shared<Polled>();
  auto request = BeginWatch(message, account, polled->watcher);
  if (!request) {
    return tl::make_unexpected(request.error());
  }
  polled->request = std::move(*request);
  polled->thread = std::thread([this, &collected = *polled] { Collect(collected); });
  const std::lock_guard lock(mutex_);
  const std::string id = "w" + std::to_string(next_id_++);
  polled_[id] = std::move(polled);
  return "{\"watcherId\":\"" + id + "\"}";
}

RpcResult<std::string> WatchService::GetWatcherEvents(const JsonMessage& message) {
  const std::string id = message.String("watcherId");
  std::shared_ptr<Polled> polled;
  {
    const std::lock_guard lock(mutex_);
    const auto found = polled_.find(id);
    if (found == polled_.end()) {
      return RpcFailure("not_found", "watcher with id " + id + " not found");
    }
    polled = found->second;
  }
  const std::lock_guard lock(polled->mutex);
  if (polled->error) {
    return tl::make_unexpected(*polled->error);
  }
  if (polled->events.empty()) {
    return std::string("{}");
  }
  JsonText json;
  json.BeginObject().Key("events").BeginArray();
  for (const std::string& event : polled->events) {
    json.Raw(event);
  }
  polled->events.clear();
  json.EndArray().EndObject();
  return json.TakeText();
}

RpcResult<std::string> WatchService::RemoveWatcher(const JsonMessage& message) {
  const std::string id = message.String("watcherId");
  std::shared_ptr<Polled> polled;
  const std::lock_guard lock(mutex_);
  const auto found = polled_.find(id);
  if (found == polled_.end()) {
    return RpcFailure("not_found", "watcher with id " + id + " not found");
  }
  polled = std::move(found->second);
  polled_.erase(found);
  EndWatch();
  return std::string("{}");
}

}  // namespace e2bfs::sandbox
