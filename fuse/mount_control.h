// MountControl: what a mount's process answers on its control socket (control_socket.h). One JSON object a line, both ways.
//
//   {"command":"describe"}  -> {"mountpoint","sandbox","path","state","pid","dirty_bytes"}
//   {"command":"status"}    -> the same and much more, in the order that people want to read it
//   {"command":"unmount"[,"timeout_ms":N],"force":B}
//        -> {"bytes_left":N} at least each second while it works, then one of
//           {"unsent":"2.0 KiB in 1 file: why"}   nothing happens; without force
//           {"error":"..."}                       nothing happens
//           {"ready":true[,"saved_in":DIRECTORY,"why":"..."]}   everything is sent (or put aside): the client unmounts, with force this process does;
//           then {"bytes_left":N} again until the mount has ended: {"ended":true[,"saved_in":DIRECTORY][,"error":"..."]}
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "fuse/control_socket.h"
#include "fuse/mount.h"

namespace e2bfs::fuse {

// What stays the same for a mount's life.
struct MountIdentity {
  std::string mount_point;
  std::string sandbox_id;
  std::string template_id;
  std::string unsent_directory;  // where unsent data is put aside
  bool read_only = false;
  std::string tier_reason;  // why it is not the best tier; empty if it is
};

// What the transport says of itself at this moment. The composition root fills it in.
struct TransportStatus {
  std::string protocol;  // "h2", "http/1.1", "none yet"
  int64_t requests = 0, retries = 0;
  int64_t bytes_sent = 0, bytes_received = 0;
  int64_t connections = 0, connections_opened = 0;
  std::vector<std::string> can, cannot;  // by the envd's version
};

// Any thread may call it.
class MountControl {
 public:
  // `cached` outlives this object. `end` is asked to stop when a forced unmount has put everything aside, and when
  // whoever asked for an unmount has done it and the kernel goes on.
  MountControl(MountIdentity identity, cache::CachedFs& cached, std::function<TransportStatus()> transport, std::stop_source end);

  // ControlServer::Handler.
  void Answer(const std::string& request, const ControlServer::SendLine& send);

  // What "state" says: "starting", then "mounted", then "unmounting".
  void SetState(std::string state);
  // Ends the waiting for the mount's end. Once.
  void SetEnd(const MountEnd& end);
  // True when no Answer is under way within `time`: those that flush hold on to the cache.
  bool WaitUntilIdle(std::chrono::milliseconds time);
  // A forced unmount has put something aside: what sends it may be stuck.
  bool PutAside() const { return put_aside_; }

 private:
  std::string Describe() const;
  std::string Status() const;
  using SendJson = std::function<bool(const nlohmann::ordered_json&)>;
  // FlushAll, with how much is left told now and then.
  Result<void> Flush(const OpContext& ctx, const SendJson& send_line);
  void AnswerFlush(const OpContext& ctx, const ControlServer::SendLine& send);
  void AnswerUnmount(const OpContext& ctx, bool force, const ControlServer::SendLine& send);
  void WaitForEnd(const ControlServer::SendLine& send);

  const MountIdentity identity_;
  cache::CachedFs& cached_;
  const std::function<TransportStatus()> transport_;
  std::stop_source end_request_;
  const std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();

  mutable std::mutex mutex_;  // guards what follows; nothing is called under it
  std::condition_variable changed_;
  std::string state_ = "starting";
  std::string end_line_;      // empty until the mount has ended
  int answering_ = 0;
  std::atomic<bool> put_aside_{false};
};

}  // namespace e2bfs::fuse
