#include "fuse/cli.h"

int main(int argc, char** argv) { return e2bfs::fuse::RunCli(argc, argv); }
