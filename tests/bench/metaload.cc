// Operations on metadata, as many as go, for metadata.py.
//
//   metaload DIRECTORY THREADS SECONDS LIMIT PHASE...
//
// Each thread works in a directory of its own that it makes, DIRECTORY/t<number>/work. The phases run in the order given, all threads begin one
// together; a phase ends for a thread after SECONDS, after LIMIT operations, or when nothing is left to work on. What
// `mkdir` and `create` made is what the phases after them work on. Prints for each phase: name, operations, seconds.
// `cold` and `listing` need what metadata.py made inside the sandbox before: t<number>/cold/d<k>/f<i> and
// t<number>/listing/d<k>/ with 1,000 entries. An operation that fails ends the program with status 1.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFilesOfAColdDirectory = 100;
constexpr int kListings = 20;

[[noreturn]] void Fail(const char* call, const std::string& path) {
  fprintf(stderr, "%s %s: %s\n", call, path.c_str(), strerror(errno));
  _exit(1);
}

void Check(const char* call, const std::string& path, long result) {
  if (result < 0) Fail(call, path);
}

// What a thread has made so far.
struct Work {
  std::string top;
  long directories = 0;
  long files = 0;
  long renamed = 0;  // the first so many files have their second name

  std::string Directory(long i) const { return top + "/work/d" + std::to_string(i); }
  std::string File(long i) const { return top + (i < renamed ? "/work/r" : "/work/f") + std::to_string(i); }
};

int Open(const std::string& path, int flags) {
  const int file = open(path.c_str(), flags, 0644);
  Check("open", path, file);
  return file;
}

struct Phase {
  std::function<long(const Work&)> available;        // how many operations there are to do, -1: any number
  std::function<void(Work&, long)> operation;  // the i-th
};

Phase PhaseOf(const std::string& name) {
  auto any = [](const Work&) { return -1L; };
  auto files = [](const Work& work) { return work.files; };
  if (name == "mkdir") {
    return {any, [](Work& work, long i) {
              Check("mkdir", work.Directory(i), mkdir(work.Directory(i).c_str(), 0755));
              ++work.directories;
            }};
  }
  if (name == "create") {
    return {any, [](Work& work, long i) {
              close(Open(work.File(i), O_CREAT | O_EXCL | O_WRONLY));
              ++work.files;
            }};
  }
  if (name == "stat") {
    return {files, [](Work& work, long i) {
              struct stat status;
              Check("stat", work.File(i), stat(work.File(i).c_str(), &status));
            }};
  }
  if (name == "cold") {
    return {[](const Work&) { return 10L * kFilesOfAColdDirectory; }, [](Work& work, long i) {
              const std::string path = work.top + "/cold/d" + std::to_string(i % 10) + "/f" + std::to_string(i / 10);
              struct stat status;
              Check("stat", path, stat(path.c_str(), &status));
            }};
  }
  if (name == "listing") {
    return {[](const Work&) { return long{kListings}; }, [](Work& work, long i) {
              const std::string path = work.top + "/listing/d" + std::to_string(i);
              DIR* listing = opendir(path.c_str());
              if (listing == nullptr) Fail("opendir", path);
              long entries = 0;
              errno = 0;
              while (readdir(listing) != nullptr) ++entries;
              if (errno != 0 || entries != 1002) Fail("readdir", path);
              closedir(listing);
            }};
  }
  if (name == "chmod") {
    return {files, [](Work& work, long i) { Check("chmod", work.File(i), chmod(work.File(i).c_str(), 0600)); }};
  }
  if (name == "rename") {
    return {files, [](Work& work, long i) {
              const std::string from = work.File(i);
              const std::string to = work.top + "/work/r" + std::to_string(i);
              Check("rename", from, rename(from.c_str(), to.c_str()));
              work.renamed = i + 1;
            }};
  }
  if (name == "write") {
    return {files, [](Work& work, long i) {
              const std::string content(100, 'x');
              const int file = Open(work.File(i), O_WRONLY | O_TRUNC);
              if (write(file, content.data(), content.size()) != 100) Fail("write", work.File(i));
              Check("close", work.File(i), close(file));
            }};
  }
  if (name == "read") {
    return {[](const Work&) { return 10L * kFilesOfAColdDirectory; }, [](Work& work, long i) {
              const std::string path = work.top + "/cold/d" + std::to_string(i % 10) + "/f" + std::to_string(i / 10);
              char buffer[200];
              const int file = Open(path, O_RDONLY);
              if (read(file, buffer, sizeof buffer) != 100) Fail("read", path);
              Check("close", path, close(file));
            }};
  }
  if (name == "unlink") {
    // From the last to the first, so that the names of the others stay.
    return {files, [](Work& work, long) {
              const std::string path = work.File(work.files - 1);
              Check("unlink", path, unlink(path.c_str()));
              --work.files;
            }};
  }
  if (name == "rmdir") {
    return {[](const Work& work) { return work.directories; }, [](Work& work, long) {
              const std::string path = work.Directory(work.directories - 1);
              Check("rmdir", path, rmdir(path.c_str()));
              --work.directories;
            }};
  }
  fprintf(stderr, "unknown phase %s\n", name.c_str());
  _exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    fprintf(stderr, "usage: metaload DIRECTORY THREADS SECONDS LIMIT PHASE...\n");
    return 2;
  }
  const std::string top = argv[1];
  const int thread_count = atoi(argv[2]);
  const auto time_limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(atof(argv[3])));
  const long limit = atol(argv[4]);
  std::vector<Phase> phases;
  for (int i = 5; i < argc; ++i) phases.push_back(PhaseOf(argv[i]));

  std::barrier together(thread_count);
  std::vector<std::vector<long>> done(phases.size(), std::vector<long>(thread_count));
  std::vector<std::vector<Clock::time_point>> begun(phases.size(), std::vector<Clock::time_point>(thread_count));
  std::vector<std::vector<Clock::time_point>> ended = begun;
  std::vector<std::thread> threads;
  for (int t = 0; t < thread_count; ++t) {
    threads.emplace_back([&, t] {
      Work work{.top = top + "/t" + std::to_string(t)};
      if (mkdir((work.top + "/work").c_str(), 0755) != 0 && errno != EEXIST) Fail("mkdir", work.top + "/work");
      for (size_t p = 0; p < phases.size(); ++p) {
        const long available = phases[p].available(work);
        const long count = available < 0 ? limit : std::min(limit, available);
        together.arrive_and_wait();
        begun[p][t] = Clock::now();
        long i = 0;
        for (; i < count && Clock::now() - begun[p][t] < time_limit; ++i) phases[p].operation(work, i);
        ended[p][t] = Clock::now();
        done[p][t] = i;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t p = 0; p < phases.size(); ++p) {
    long operations = 0;
    for (const long each : done[p]) operations += each;
    const auto first = *std::min_element(begun[p].begin(), begun[p].end());
    const auto last = *std::max_element(ended[p].begin(), ended[p].end());
    printf("%s %ld %.6f\n", argv[5 + p], operations, std::chrono::duration<double>(last - first).count());
  }
  return 0;
}
