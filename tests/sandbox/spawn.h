// Starting a command as another user, without a shell of our own in between.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/sandbox/envd.h"

namespace e2bfs::sandbox {

struct SpawnRequest {
  std::string program;                   // a path, or a name that is looked up in PATH
  std::vector<std::string> arguments;    // argv[0] included
  std::vector<std::string> environment;  // "NAME=value"
  std::string directory;
  Account account;
  int stdin_fd = -1;  // -1: /dev/null
  int stdout_fd = -1;
  int stderr_fd = -1;
  std::string terminal;  // name of a pty's other end: a new session with it on 0 to 2, the descriptors above
                         // are not used
};

// The new process's id; or minus the errno of the step that failed, chdir and exec included.
// Thread-safe. The process gets a process group of its own, default signals, an empty signal mask and umask
// 022.
pid_t Spawn(const SpawnRequest& request);
// exec.LookPath: the program's path by PATH; "" if there is none.
std::string FindProgram(const std::string& name);

}  // namespace e2bfs::sandbox
