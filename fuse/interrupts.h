// Interrupts: which waits end early, and when.
//
// The kernel sends an interrupt for any signal that a waiting program gets: timers, SIGCHLD, the preemption signals of a Go
// runtime. A local disk does not fail for those, so neither do we: EINTR there breaks `git clone` and Go programs.
// Only when the caller is dying does its wait end. The kernel sends one interrupt for each request, no more,
// so a request once interrupted is watched from then on: what follows a harmless signal may be a deadly one.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <stop_token>
#include <string_view>
#include <thread>

namespace e2bfs::fuse {

// From the text of /proc/<tid>/status: a signal is pending that will end the thread: SIGKILL (which the kernel also makes of a fatal Ctrl-C), or one that is
// neither blocked, ignored nor caught and whose default is to end the process. False for text that is not such a file. Pure.
bool StatusSaysDying(std::string_view status);

// Reads it for a thread of this machine. False for tid 0 (the caller lives in another pid namespace) and for one that cannot be read.
bool CallerIsDying(pid_t tid);

// Watches the callers of requests that were interrupted. Any thread may call it.
class InterruptWatch {
 public:
  // is_dying is CallerIsDying but in tests. The thread starts with the first interrupt.
  explicit InterruptWatch(std::function<bool(pid_t)> is_dying = CallerIsDying,
                          std::chrono::milliseconds interval = std::chrono::milliseconds(100));
  ~InterruptWatch();

  // The request `id` of thread `tid` was interrupted: `stop` is requested as soon as the caller is dying, by this object's thread
  // (what a stop request runs may take locks, and the caller here is a thread that reads the kernel's requests).
  void Interrupted(uint64_t id, pid_t tid, std::stop_source stop);
  // The request is over. Must be called for each id that was Interrupted; harmless for others.
  void Finished(uint64_t id);

 private:
  struct Watched {
    pid_t tid;
    std::stop_source stop;
  };
  void Run();

  const std::function<bool(pid_t)> is_dying_;
  const std::chrono::milliseconds interval_;
  std::mutex mutex_;  // a leaf: nothing is called while it is held
  std::condition_variable changed_;
  std::map<uint64_t, Watched> watched_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace e2bfs::fuse
