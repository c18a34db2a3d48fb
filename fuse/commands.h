// The commands behind fuse/cli.h, each in a file of its own: commands_<name>.cc.
#pragma once

#include "fuse/cli.h"

namespace e2bfs::fuse {

ExitStatus MountCommand(const CommandLine& line);
ExitStatus UmountCommand(const CommandLine& line);
ExitStatus FlushCommand(const CommandLine& line);
ExitStatus ListCommand(const CommandLine& line);
ExitStatus RecoverCommand(const CommandLine& line);
ExitStatus StatusCommand(const CommandLine& line);
ExitStatus CacheCommand(const CommandLine& line);
ExitStatus DemoCommand(const CommandLine& line);

}  // namespace e2bfs::fuse
