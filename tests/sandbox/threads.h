// ThreadGroup: threads with small stacks that are all joined in the end.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <functional>
#include <list>
#include <mutex>

namespace e2bfs::sandbox {

// Thread-safe. Threads that ended are joined by the next Spawn or by JoinAll, so none outlives the group.
class ThreadGroup {
 public:
  ~ThreadGroup() { JoinAll(); }
  // Runs `body` on a thread of its own; false if the system gives no thread (the body is not run then).
  bool Spawn(std::function<void()> body);
  // Waits until every thread has ended. Threads of the group may go on to spawn meanwhile.
  void JoinAll();

 private:
  struct Entry {
    ThreadGroup* group;
    std::function<void()> body;
    pthread_t id;
    std::list<Entry>::iterator self;
  };
  static void* Main(void* argument);
  static void JoinEntries(std::list<Entry>& entries);

  std::mutex mutex_;  // innermost
  std::condition_variable ended_;
  std::list<Entry> running_;
  std::list<Entry> finished_;
};

}  // namespace e2bfs::sandbox
