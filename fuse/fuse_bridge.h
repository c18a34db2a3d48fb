// FuseBridge: one libfuse session. Decodes the kernel's requests, calls Filesystem, and answers. Its .cc file is the only
// one that knows libfuse.
//
// Some threads of the worker pool read requests; whoever read one runs it himself if it is about names or attributes and another is left to
// read, else hands it to another thread of the pool. Each is answered exactly once: by what it found, or with EIO by the destruction of its Reply.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "fuse/filesystem.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

struct BridgeOptions {
  std::string mount_options;  // as after -o, values escaped
  bool debug = false;
  // allow_root, of a mount that the kernel opened to everybody: others than root and this process's user get EACCES. The kernel is to ask for
  // attributes each time then. Everybody may find out which names there are and, by statx's AT_STATX_DONT_SYNC, attributes that the kernel has.
  bool root_and_owner_only = false;
  int max_waiting_operations = 256;
};

// Mount, Serve, Disconnect, WaitIdle and Finish are called in this order by one thread.
class FuseBridge {
 public:
  // `cached` outlives this object and the operations that Finish leaves behind.
  FuseBridge(cache::CachedFs& cached, const FilesystemOptions& filesystem, BridgeOptions options);
  // After WaitIdle or Finish returned true (or without Serve).
  ~FuseBridge();
  FuseBridge(const FuseBridge&) = delete;

  // kLocal with libfuse's text.
  Result<void> Mount(const std::string& mount_point);

  // Starts to answer. `on_end` is called, by another thread and once, when the kernel has ended the session (unmounted, aborted).
  void Serve(std::function<void()> on_end);

  // Takes no more requests and cuts the connection: whoever still uses the mount gets ENOTCONN, and what they waited for is given up.
  void Disconnect();

  // After Disconnect. True if no operation is under way any more (files being sent by close or fsync go on).
  bool WaitIdle(std::chrono::milliseconds time);

  // After Disconnect: nothing more is told to the kernel. False: telling it hangs, and neither this object nor `cached` may be destroyed.
  bool StopNotifying(std::chrono::milliseconds wait);

  // After WaitIdle returned false: asks everything to give up, and waits. False: some go on, and use this object and
  // `cached`; then neither may be destroyed.
  bool Finish(std::chrono::milliseconds wait);

  struct State;  // known to the .cc file

 private:
  std::unique_ptr<State> state_;
};

// `text` as the value of a mount option: commas and backslashes escaped.
std::string EscapeMountOption(const std::string& text);

}  // namespace e2bfs::fuse
