// filesystem.Filesystem's watches: WatchDir, and CreateWatcher, GetWatcherEvents, RemoveWatcher.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "tests/sandbox/envd.h"
#include "tests/sandbox/watcher.h"

namespace e2bfs::sandbox {

// Thread-safe.
class WatchService {
 public:
  explicit WatchService(EnvdContext& context) : context_(context) {}
  // False if there is no such method.
  bool Handle(Exchange& exchange, const std::string& method);

 private:
  struct Request {
    std::string path;
    bool recursive = false;
    bool include_entry = false;
  };
  // A watcher that is asked for its events. A thread of its own collects them, so that new directories are
  // followed and entries described when something happens.
  struct Polled {
    ~Polled();
    Request request;
    Watcher watcher;  // the thread's
    std::atomic<bool> closing = false;
    std::mutex mutex;  // guards what follows
    std::vector<std::string> events;
    std::optional<RpcError> error;
    std::thread thread;  // not guarded: set before it is shared
  };
  void Collect(Polled& polled);
  void WatchDir(Exchange& exchange);
  RpcResult<std::string> CreateWatcher(const JsonMessage& message, const Account& account);
  RpcResult<std::string> GetWatcherEvents(const JsonMessage& message);
  RpcResult<std::string> RemoveWatcher(const JsonMessage& message);
  // Checks the request and starts the watch. Counts against the limit: EndWatch gives it back.
  RpcResult<Request> BeginWatch(const JsonMessage& message, const Account& account, Watcher& watcher);
  void EndWatch() { --watches_; }
  // One FilesystemEvent.
  void AppendEvent(JsonText& json, const Request& request, const WatchEvent& event, const std::string& type);

  EnvdContext& context_;
  std::atomic<int> watches_{0};
  std::mutex mutex_;  // guards what follows
  std::map<std::string, std::shared_ptr<Polled>> polled_;
  uint64_t next_id_ = 1;
};

}  // namespace e2bfs::sandbox
