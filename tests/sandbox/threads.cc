#include "tests/sandbox/threads.h"

namespace e2bfs::sandbox {
namespace {

#ifdef E2BFS_SANITIZED
constexpr size_t kThreadStackBytes = size_t{2} << 20;  // the sanitizers' frames are larger
#else
constexpr size_t kThreadStackBytes = size_t{512} << 10;
#endif

}  // namespace

void* ThreadGroup::Main(void* argument) {
  Entry* entry = static_cast<Entry*>(argument);
  entry->body();
  entry->body = nullptr;  // what it holds is released before the group says that the thread ended
  ThreadGroup* group = entry->group;
  const std::lock_guard lock(group->mutex_);
  group->finished_.splice(group->finished_.end(), group->running_, entry->self);
  group->ended_.notify_all();
  return nullptr;
}

void ThreadGroup::JoinEntries(std::list<Entry>& entries) {
  for (Entry& entry : entries) {
    pthread_join(entry.id, nullptr);
  }
}

bool ThreadGroup::Spawn(std::function<void()> body) {
  std::list<Entry> done;
  bool started = false;
  {
    const std::lock_guard lock(mutex_);
    done.swap(finished_);
    running_.push_back(Entry{this, std::move(body), {}, {}});
    Entry& entry = running_.back();
    entry.self = std::prev(running_.end());
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kThreadStackBytes);
    // Under the lock, so that the id is there before the thread can end.
    started = pthread_create(&entry.id, &attributes, &ThreadGroup::Main, &entry) == 0;
    pthread_attr_destroy(&attributes);
    if (!started) {
      running_.pop_back();
    }
  }
  JoinEntries(done);
  return started;
}

void ThreadGroup::JoinAll() {
  for (;;) {
    std::list<Entry> done;
    bool last = false;
    {
      std::unique_lock lock(mutex_);
      ended_.wait(lock, [this] { return running_.empty() || !finished_.empty(); });
      done.swap(finished_);
      last = running_.empty();
    }
    JoinEntries(done);
    if (last) {
      return;
    }
  }
}

}  // namespace e2bfs::sandbox
