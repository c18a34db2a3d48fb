// e2bfs demo: the test sandbox, a mount of it, and a look at both sides. Everything lives in one scratch directory and dies with it.
#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <optional>

#include "fuse/commands.h"
#include "fuse/directories.h"
#include "fuse/message.h"
#include "fuse/mount.h"
#include "fuse/mount_table.h"
#include "fuse/options.h"
#include "transport/base/context.h"

namespace e2bfs::fuse {
namespace {

constexpr std::chrono::seconds kStartTime{60};
constexpr std::chrono::seconds kStopTime{60};

volatile sig_atomic_t demo_interrupted = 0;
extern "C" void E2bfsDemoInterrupted(int) { demo_interrupted = 1; }

tl::unexpected<Error> DemoError(std::string text) { return Failure(ErrorKind::kLocal, EIO, std::move(text)); }

std::string DirectoryOfThisProgram() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) return "";
  const std::string_view text(path, static_cast<size_t>(length));
  return std::string(text.substr(0, text.rfind('/')));
}

std::string ThisProgram() { return DirectoryOfThisProgram() + "/e2bfs"; }

// e2bfs-test-sandbox: beside this program, else in PATH.
Result<std::string> FindTestSandbox() {
  const char* path = getenv("PATH");
  std::string rest = DirectoryOfThisProgram() + ":" + (path != nullptr ? path : "/usr/local/bin:/usr/bin");
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    const std::string candidate = rest.substr(0, colon) + "/e2bfs-test-sandbox";
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.erase(0, colon == std::string::npos ? rest.size() : colon + 1);
  }
  return DemoError("e2bfs-test-sandbox is neither beside this program nor in PATH");
}

// A child that ends when this process does. Its session is its own, so that Ctrl-C is ours to handle.
class DemoChild {
 public:
  DemoChild() = default;
  DemoChild(const DemoChild&) = delete;
  DemoChild& operator=(const DemoChild&) = delete;
  ~DemoChild() { Stop(); }

  // `output`: descriptor for its standard output, or -1 for ours.
  Result<void> Start(const std::vector<std::string>& words, const std::vector<std::pair<std::string, std::string>>& environment, int output) {
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) return Errno(errno, "fork");
    if (pid_ == 0) {
      setsid();
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (getppid() != parent) _exit(1);
      for (const auto& [name, value] : environment) {
        value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
      }
      const int nowhere = open("/dev/null", O_RDWR);
      dup2(nowhere, STDIN_FILENO);
      if (output >= 0) dup2(output, STDOUT_FILENO);
      signal(SIGINT, SIG_DFL);
      signal(SIGTERM, SIG_DFL);
      execv(argv[0], argv.data());
      PrintErrorLine("demo", fmt::format("{}: {}", words[0], strerror(errno)));
      _exit(127);
    }
    return {};
  }

  bool HasEnded() {
    if (pid_ <= 0) return true;
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
    pid_ = -1;
    exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return true;
  }

  // SIGTERM, and SIGKILL if that does not end it. True if it ended by itself with success.
  bool Stop() {
    if (pid_ > 0) kill(pid_, SIGTERM);
    const TimePoint end = Clock::now() + kStopTime;
    while (!HasEnded()) {
      if (Clock::now() > end) kill(pid_, SIGKILL);
      poll(nullptr, 0, 20);
    }
    return exit_status_ == 0;
  }

  int exit_status() const { return exit_status_; }

 private:
  pid_t pid_ = -1;
  int exit_status_ = 0;
};

// Reads from `descriptor` until `enough` says so, or null at the end, an interrupt, or after kStartTime.
std::optional<std::string> ReadUntil(int descriptor, DemoChild& child, const std::function<bool(const std::string&)>& enough) {
  std::string text;
  const TimePoint end = Clock::now() + kStartTime;
  while (!enough(text)) {
    pollfd poller{descriptor, POLLIN, 0};
    const int count = poll(&poller, 1, 100);
    if (demo_interrupted != 0 || Clock::now() > end) return std::nullopt;
    if (count <= 0) {
      if (child.HasEnded()) return std::nullopt;
      continue;
    }
    char piece[1024];
    const ssize_t length = read(descriptor, piece, sizeof piece);
    if (length <= 0) return std::nullopt;
    text.append(piece, static_cast<size_t>(length));
  }
  return text;
}

// One scratch directory, the test sandbox on it, and the mount. The destructor takes all of it down again.
class Demo {
 public:
  ~Demo() { End(); }

  Result<void> Begin() {
    const char* temporary = getenv("TMPDIR");
    // The commands shown have the path unquoted, to be read easily.
    const bool plain = temporary != nullptr && temporary[0] == '/' &&
                       std::string_view(temporary).find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") == std::string_view::npos;
    scratch_ = std::string(plain ? temporary : "/tmp") + "/e2bfs-demo-XXXXXX";
    if (mkdtemp(scratch_.data()) == nullptr) {
      const int reason = errno;
      return Errno(reason, std::exchange(scratch_, ""));
    }
    // The kernel shows mount points with links resolved; a scratch directory below one must be found in its table.
    if (char* real = realpath(scratch_.c_str(), nullptr); real != nullptr) {
      scratch_ = real;
      free(real);
    }
    for (const char* name : {"/sandbox", "/mount", "/state", "/run"}) {
      if (mkdir((scratch_ + name).c_str(), 0700) != 0) return Errno(errno, scratch_ + name);
    }
    if (auto started = StartSandbox(); !started) return started;
    return StartMount();
  }

  // True if the mount ended well and nothing is left.
  bool End() {
    if (scratch_.empty()) return true;
    bool good = mount_.Stop();
    auto table = ReadMountTable();
    if (table && FindMount(*table, mount_point())) good = Unmount(mount_point(), true).has_value() && good;
    sandbox_.Stop();
    RemoveTree(scratch_);
    const bool gone = access(scratch_.c_str(), F_OK) != 0;
    scratch_.clear();
    return good && gone;
  }

  bool MountHasEnded() { return mount_.HasEnded() || sandbox_.HasEnded(); }
  int mount_exit_status() const { return mount_.exit_status(); }
  std::string root() const { return scratch_ + "/sandbox"; }
  std::string mount_point() const { return scratch_ + "/mount"; }
  std::string runtime_directory() const { return scratch_ + "/run"; }
  std::vector<std::pair<std::string, std::string>> environment() const {
    return {{"E2B_DEBUG", "true"}, {"E2B_SANDBOX_URL", url_}, {"E2B_API_KEY", ""}, {"XDG_STATE_HOME", scratch_ + "/state"},
            {"XDG_RUNTIME_DIR", scratch_ + "/run"}, {"XDG_CACHE_HOME", scratch_ + "/cache"}, {"http_proxy", ""}, {"all_proxy", ""}, {"ALL_PROXY", ""}};
  }

 private:
  Result<void> StartSandbox() {
    auto program = FindTestSandbox();
    if (!program) return Forward(program.error());
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return Errno(errno, "pipe");
    auto started = sandbox_.Start({*program, "--root", root(), "--listen", "127.0.0.1:0"}, {}, ends[1]);
    close(ends[1]);
    constexpr std::string_view kWords = "listening on ";
    std::optional<std::string> text;
    if (started) text = ReadUntil(ends[0], sandbox_, [](const std::string& read) { return read.find('\n') != std::string::npos; });
    close(ends[0]);
    if (!started) return started;
    const size_t at = text ? text->find(kWords) : std::string::npos;
    if (at == std::string::npos) return DemoError("the test sandbox did not start");
    url_ = text->substr(at + kWords.size(), text->find('\n', at) - at - kWords.size());
    return {};
  }

  // In the foreground, as a service manager would: it says when it is ready.
  Result<void> StartMount() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    // In the abstract name space: a path below a long TMPDIR would not fit. Its first byte is 0, written '@'.
    const std::string path = "@" + scratch_.substr(scratch_.rfind('/') + 1);
    memcpy(address.sun_path + 1, path.data() + 1, path.size() - 1);
    const auto address_size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
    const int listener = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (listener < 0) return Errno(errno, "socket");
    Result<void> started;
    if (bind(listener, reinterpret_cast<const sockaddr*>(&address), address_size) != 0) {
      started = Errno(errno, path);
    } else {
      auto variables = environment();
      variables.emplace_back("NOTIFY_SOCKET", path);
      started = mount_.Start({ThisProgram(), "mount", "-f", "debug_sandbox_id", mount_point()}, variables, -1);
    }
    std::optional<std::string> text;
    if (started) text = ReadUntil(listener, mount_, [](const std::string& read) { return read.find("READY=1") != std::string::npos; });
    close(listener);
    if (!started) return started;
    if (!text) return DemoError("the mount did not start");
    return {};
  }

  std::string scratch_, url_;
  DemoChild sandbox_, mount_;
};

// Shows a shell command and what it says. False if it failed.
bool ShowCommand(const Demo& demo, const std::string& title, const std::string& command) {
  PrintLine(fmt::format("# {}\n$ {}", title, command));
  DemoChild shell;
  // HERE and THERE keep the lines short: the mount, and the directory that the sandbox serves.
  const auto started = shell.Start({"/bin/sh", "-c", command}, {{"HERE", demo.mount_point()}, {"THERE", demo.root()}, {"LC_ALL", "C.UTF-8"}}, -1);
  if (!started) return false;
  while (!shell.HasEnded()) poll(nullptr, 0, 10);
  PrintLine("");
  return shell.exit_status() == 0;
}

bool ShowBothSides(const Demo& demo) {
  PrintLine(fmt::format("A test sandbox runs on this machine, and its files are mounted.\n  THERE={}   what the sandbox has\n  HERE={}     the mount\n",
                        demo.root(), demo.mount_point()));
  return ShowCommand(demo, "The sandbox makes a project.", "mkdir -p $THERE/project/src && echo 'hello from the sandbox' > $THERE/project/README && seq 1000 > $THERE/project/src/numbers") &&
         ShowCommand(demo, "It is listed here,", "ls -lR $HERE/project") &&
         ShowCommand(demo, "read here,", "cat $HERE/project/README && grep -c 7 $HERE/project/src/numbers") &&
         ShowCommand(demo, "and written here: the sandbox sees it as soon as the file is closed.",
                     "echo 'hello from this machine' > $HERE/project/answer && cat $THERE/project/answer") &&
         ShowCommand(demo, "What the sandbox changes is seen here (at once on the syscall tier, else after attr_timeout, a second).",
                     "echo 'changed in the sandbox' >> $THERE/project/README && sleep 1.1 && cat $HERE/project/README") &&
         ShowCommand(demo, "Renames and deletes, too.", "mv $HERE/project/answer $HERE/project/src/renamed && rm $HERE/project/src/numbers && ls $THERE/project/src");
}

void StayUp(Demo& demo, std::optional<int64_t> seconds) {
  PrintLine(fmt::format("It stays up {}. Try, in another terminal:\n\n  cd {}\n  git init . && git status\n  XDG_RUNTIME_DIR={} {} status {}\n"
                        "\nWhat the sandbox has is in {}\n",
                        seconds ? fmt::format("for {} seconds, or until Ctrl-C", *seconds) : "until Ctrl-C", demo.mount_point(),
                        demo.runtime_directory(), ThisProgram(), demo.mount_point(), demo.root()));
  const TimePoint end = seconds ? Clock::now() + std::chrono::seconds(*seconds) : TimePoint::max();
  while (demo_interrupted == 0 && Clock::now() < end && !demo.MountHasEnded()) poll(nullptr, 0, 100);
}

}  // namespace

ExitStatus DemoCommand(const CommandLine& line) {
  std::optional<int64_t> seconds;
  if (line.Has("--seconds")) {
    seconds = ParseWholeNumber(line.Value("--seconds"));
    if (!seconds || *seconds > 86'400) {
      PrintErrorLine("demo", fmt::format("--seconds {}: must be a whole number up to 86400", line.Value("--seconds")));
      return ExitStatus::kUsage;
    }
  }
  struct sigaction interrupted {};
  interrupted.sa_handler = E2bfsDemoInterrupted;
  for (int signal_number : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal_number, &interrupted, nullptr);

  Demo demo;
  if (auto begun = demo.Begin(); !begun) {
    const int status = demo.mount_exit_status();
    if (demo_interrupted != 0) return ExitStatus::kInterrupted;
    PrintErrorLine("demo", ErrorText(begun.error()));
    return status != 0 ? static_cast<ExitStatus>(status) : ExitStatus::kFailure;
  }
  const bool shown = ShowBothSides(demo);
  if (!shown && demo_interrupted == 0) PrintErrorLine("demo", "one of the steps failed");
  const bool terminal = isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
  if (shown && demo_interrupted == 0 && (terminal || seconds)) StayUp(demo, seconds);
  if (!demo.End()) {
    PrintErrorLine("demo", "it could not be taken down cleanly");
    return ExitStatus::kFailure;
  }
  PrintLine("The mount, the sandbox and their files are gone again.");
  return shown || demo_interrupted != 0 ? ExitStatus::kOk : ExitStatus::kFailure;
}

}  // namespace e2bfs::fuse
