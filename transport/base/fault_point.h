// FaultPoint: a place where a test ends the process as a crash would. Any thread.
//
// Without these variables in the environment (read once) it does nothing:
//   E2BFS_FAULT_LOG=FILE     adds the name of each point that is passed to FILE, a line each
//   E2BFS_KILL_AT=NAME:N     SIGKILL for this process at the Nth time (from 1) that the point NAME is passed
//
// It is in releases too, so that what is tested is what is shipped. That gives nobody anything: the variables are the process's own, and whoever sets
// them for a process could as well end it, or write the file, himself.
#pragma once

#include <string_view>

namespace e2bfs {

void FaultPoint(std::string_view name);

}  // namespace e2bfs
