#include "transport/base/fault_point.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

namespace e2bfs {
namespace {

class Faults {
 public:
  Faults() {
    if (const char* path = std::getenv("E2BFS_FAULT_LOG"); path != nullptr) log_ = ::open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, 0600);
    const char* at = std::getenv("E2BFS_KILL_AT");
    if (at == nullptr) return;
    name_ = at;
    const size_t colon = name_.rfind(':');
    if (colon != std::string::npos) left_ = std::strtol(name_.c_str() + colon + 1, nullptr, 10);
    name_.resize(colon == std::string::npos ? 0 : colon);
  }
  void Pass(std::string_view name) {
    if (log_ >= 0) {
      const std::string line = std::string(name) + "\n";
      (void)!::write(log_, line.data(), line.size());
    }
    if (name == name_ && left_.fetch_sub(1) == 1) ::kill(::getpid(), SIGKILL);
  }

 private:
  int log_ = -1;
  std::string name_;
  std::atomic<long> left_{0};
};

}  // namespace

void FaultPoint(std::string_view name) {
  static Faults faults;
  faults.Pass(name);
}

}  // namespace e2bfs
