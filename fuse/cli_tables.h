// Tables that help and the manual page share, beside Commands() of cli.h and the mount options of options.h.
#pragma once

#include <string>
#include <vector>

#include "fuse/cli.h"

namespace e2bfs::fuse {

struct TableLine {
  std::string term;
  std::string text;
};

const std::vector<TableLine>& EnvironmentTable();
const std::vector<TableLine>& ExitStatusTable();

}  // namespace e2bfs::fuse
