// Being a good daemon: into the background only when the mount answers, readiness for systemd, no secrets in core dumps.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace e2bfs::fuse {

// No core dumps, no ptrace by the same user, and nobody but root reads this process's memory and environment.
void ProtectSecrets();

// As many open files as this user may have (at most a million): each file that is written to here takes two.
void RaiseDescriptorLimit();

// Overwrites the value of a variable in this process's environment (which /proc shows) and removes it.
void WipeVariable(const char* name);

// Sends `message` ("READY=1") to the service manager, if one listens ($NOTIFY_SOCKET). Any thread. True if it was sent.
bool NotifyServiceManager(std::string_view message);

// What runs in the background calls this once when it is ready: the parent then ends with success, stdin and stdout go to
// /dev/null, and stderr (what libraries say) to the end of `log_path`, or to /dev/null if that is empty. Any thread.
using BecomeReady = std::function<void(const std::string& log_path)>;

// Calls `run` in a child process; it inherits the terminal and nothing else that is open, prints its own errors, and returns its exit status. This (the parent's)
// call returns 0 as soon as `run` called its argument, else the child's exit status. SIGINT and SIGTERM go to the child too.
// Call it before any thread is started. `command` is for the one message that this itself may print.
int RunInBackground(std::string_view command, const std::function<int(const BecomeReady&)>& run);

}  // namespace e2bfs::fuse
