// Calls on files while signals rain, for test_signals.py: Python repeats what fails with EINTR, this does not.
//
//   signals timer|timer-plain|storm DIRECTORY ROUNDS [THREADS]
//
//   timer        setitimer at 1 ms, handler with SA_RESTART: what many programs have
//   timer-plain  the same without SA_RESTART: on a local disk, calls on files do not fail with EINTR then either
//   storm        SIGURG to each thread every 50 us by tgkill, as Go's runtime does to take the processor from a goroutine
//                (its handlers have SA_ONSTACK | SA_RESTART)
//
// Each thread works in a directory of its own. Every call has to succeed, whole; the first that does not is told on
// stderr and is exit status 1. The last line says how many calls were made and how many signals came.
#include <dirent.h>
#include <fcntl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<long> signals_caught{0};
std::atomic<long> calls_made{0};
std::atomic<int> failures{0};

void Count(int) { signals_caught.fetch_add(1, std::memory_order_relaxed); }

// `result` of a call: -1, or another number than `expected` where that is not negative, is a failure.
void Expect(const char* call, const std::string& path, long result, long expected = -1) {
  ++calls_made;
  if (result == -1) {
    fprintf(stderr, "%s %s: %s\n", call, path.c_str(), strerrorname_np(errno));
  } else if (expected >= 0 && result != expected) {
    fprintf(stderr, "%s %s: %ld in place of %ld\n", call, path.c_str(), result, expected);
  } else {
    return;
  }
  ++failures;
}

void Round(const std::string& top, int number) {
  const std::string directory = top + "/d" + std::to_string(number);
  const std::string first = directory + "/first", second = directory + "/second", link = directory + "/link";
  std::vector<char> content(20000 + number, static_cast<char>('a' + number % 26)), found(content.size() + 1);
  const long size = static_cast<long>(content.size());
  struct stat status;

  Expect("mkdir", directory, mkdir(directory.c_str(), 0755));
  int file = open(first.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  Expect("create", first, file);
  if (file >= 0) {
    Expect("write", first, write(file, content.data(), content.size()), size);
    Expect("fsync", first, fsync(file));
    Expect("pread", first, pread(file, found.data(), found.size(), 0), size);
    Expect("fstat", first, fstat(file, &status));
    Expect("ftruncate", first, ftruncate(file, 100));
    Expect("pwrite", first, pwrite(file, content.data(), content.size(), 0), size);
    Expect("close", first, close(file));
  }
  Expect("chmod", first, chmod(first.c_str(), 0640));
  Expect("stat", first, stat(first.c_str(), &status));
  Expect("size", first, status.st_size, size);
  const timespec times[2] = {{1500000000, 5}, {1500000000, 7}};
  Expect("utimensat", first, utimensat(AT_FDCWD, first.c_str(), times, 0));
  Expect("rename", first, rename(first.c_str(), second.c_str()));
  Expect("symlink", link, symlink("second", link.c_str()));
  Expect("readlink", link, readlink(link.c_str(), found.data(), found.size()), 6);
  errno = 0;
  Expect("stat of nothing", first, stat(first.c_str(), &status) == -1 && errno == ENOENT ? 0 : -1);
  if (DIR* listing = opendir(directory.c_str())) {
    long entries = 0;
    errno = 0;
    while (readdir(listing) != nullptr) ++entries;
    Expect("readdir", directory, errno != 0 ? -1 : entries, 4);
    Expect("closedir", directory, closedir(listing));
  } else {
    Expect("opendir", directory, -1);
  }
  file = open(link.c_str(), O_RDONLY);
  Expect("open", link, file);
  if (file >= 0) {
    Expect("read", link, read(file, found.data(), found.size()), size);
    Expect("content", link, memcmp(found.data(), content.data(), content.size()) == 0 ? 0 : 1, 0);
    Expect("close", link, close(file));
  }
  file = open(second.c_str(), O_WRONLY | O_TRUNC);
  Expect("open O_TRUNC", second, file);
  if (file >= 0) {
    Expect("write", second, write(file, "new", 3), 3);
    Expect("close", second, close(file));
  }
  Expect("unlink", link, unlink(link.c_str()));
  Expect("unlink", second, unlink(second.c_str()));
  Expect("rmdir", directory, rmdir(directory.c_str()));
}

void Catch(int signal_number, int flags) {
  struct sigaction action = {};
  action.sa_handler = Count;
  action.sa_flags = flags;
  sigaction(signal_number, &action, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string mode = argv[1], top = argv[2];
  const int rounds = atoi(argv[3]), thread_count = argc > 4 ? atoi(argv[4]) : 1;

  std::vector<std::atomic<pid_t>> ids(thread_count);
  std::atomic<int> working{thread_count};
  std::vector<std::thread> threads;
  if (mode == "storm") {
    Catch(SIGURG, SA_ONSTACK | SA_RESTART);
  } else {
    Catch(SIGALRM, mode == "timer" ? SA_RESTART : 0);
    const itimerval every = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &every, nullptr);
  }
  for (int t = 0; t < thread_count; ++t) {
    threads.emplace_back([&, t] {
      ids[t] = gettid();
      const std::string own = top + "/t" + std::to_string(t);
      Expect("mkdir", own, mkdir(own.c_str(), 0755));
      for (int number = 0; number < rounds && failures == 0; ++number) Round(own, number);
      Expect("rmdir", own, failures == 0 ? rmdir(own.c_str()) : 0);
      ids[t] = 0;
      --working;
    });
  }
  if (mode != "storm") {
    // The timer's signals are for the threads that work.
    sigset_t timer;
    sigemptyset(&timer);
    sigaddset(&timer, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &timer, nullptr);
  }
  while (working > 0) {
    if (mode == "storm") {
      for (std::atomic<pid_t>& id : ids) {
        if (const pid_t tid = id; tid != 0) syscall(SYS_tgkill, getpid(), tid, SIGURG);
      }
    }
    usleep(50);
  }
  for (std::thread& thread : threads) thread.join();
  printf("%ld calls, %ld signals\n", calls_made.load(), signals_caught.load());
  return failures == 0 ? 0 : 1;
}
