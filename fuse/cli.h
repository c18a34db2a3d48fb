// The command line of e2bfs: its commands, their options, help, and dispatch.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fuse/exit_status.h"
#include "transport/base/error.h"

namespace e2bfs::fuse {

// What one command was given.
struct CommandLine {
  std::vector<std::string> arguments;
  std::multimap<std::string, std::string> options;  // by long name ("--json"), short ones translated; flags have ""

  bool Has(const std::string& option) const { return options.count(option) != 0; }
  // The last one given, or `otherwise`.
  std::string Value(const std::string& option, const std::string& otherwise = {}) const;
  std::vector<std::string> Values(const std::string& option) const;
};

struct CommandOption {
  std::string name;         // "--timeout"
  char letter = '\0';       // 'f' for -f, or none
  std::string placeholder;  // of its value; empty: a flag
  std::string text;
};

struct CommandSpec {
  std::string name;
  std::string synopsis;     // what follows the name: "SANDBOX[:PATH] DIRECTORY [-o OPTION,...] [-f]"
  std::string summary;      // one line
  std::string text;         // paragraphs, separated by empty lines
  std::vector<CommandOption> options;
  size_t min_arguments = 0, max_arguments = 0;
  bool mount_options = false;  // the help goes on with the table of -o
  ExitStatus (*run)(const CommandLine& line) = nullptr;
};

// Every command, in the order of the help.
const std::vector<CommandSpec>& Commands();

// Splits what follows the command's name. "--" ends the options; options may follow arguments. The error (EINVAL) is one line.
Result<CommandLine> ParseCommandLine(const CommandSpec& command, const std::vector<std::string>& words);

std::string OverallHelp();
std::string CommandHelp(const CommandSpec& command);

// `e2bfs manual TEMPLATE OUTPUT`, used by the build: the manual page, with the lines @COMMANDS@, @MOUNT_OPTIONS@, @EXIT_STATUS@,
// @ENVIRONMENT@ and @VERSION@ of the template filled in from the tables.
std::string FillManual(std::string_view manual_template);

// main(). Never throws.
int RunCli(int argc, char** argv);

}  // namespace e2bfs::fuse
