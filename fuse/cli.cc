#include "fuse/cli.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <exception>
#include <fstream>
#include <sstream>

#include "fuse/cli_tables.h"
#include "fuse/message.h"
#include "fuse/options.h"

namespace e2bfs::fuse {
namespace {

constexpr size_t kHelpWidth = 100;
constexpr size_t kTermWidth = 28;

// Words of `text` on lines of at most kHelpWidth columns, each beginning with `indent` spaces, the first continuing at `used`.
std::string Wrapped(std::string_view text, size_t indent, size_t used) {
  std::string result;
  size_t column = used;
  bool line_empty = true;
  std::istringstream words{std::string(text)};
  for (std::string word; words >> word;) {
    if (!line_empty && column + 1 + word.size() > kHelpWidth) {
      result += "\n" + std::string(indent, ' ');
      column = indent;
      line_empty = true;
    }
    if (!line_empty) {
      result += ' ';
      ++column;
    }
    result += word;
    column += word.size();
    line_empty = false;
  }
  return result;
}

// "  term    text", the text wrapped below itself.
std::string HelpLine(const std::string& term, const std::string& text) {
  std::string line = "  " + term;
  if (line.size() + 2 > kTermWidth) {
    line += "\n" + std::string(kTermWidth, ' ');
  } else {
    line += std::string(kTermWidth - line.size(), ' ');
  }
  return line + Wrapped(text, kTermWidth, kTermWidth) + "\n";
}

std::string Paragraphs(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t gap = text.find("\n\n");
    result += Wrapped(text.substr(0, gap), 0, 0) + "\n\n";
    text.remove_prefix(gap == std::string_view::npos ? text.size() : gap + 2);
  }
  return result;
}

std::string OptionTerm(const CommandOption& option) {
  std::string term = option.letter != '\0' ? fmt::format("-{}, {}", option.letter, option.name) : option.name;
  if (!option.placeholder.empty()) term += " " + option.placeholder;
  return term;
}

std::string OptionText(const OptionHelp& line) {
  return line.initial.empty() ? line.text : fmt::format("{} Default: {}.", line.text, line.initial);
}

const CommandOption* FindOption(const CommandSpec& command, std::string_view name, char letter) {
  for (const CommandOption& option : command.options) {
    if ((!name.empty() && option.name == name) || (letter != '\0' && option.letter == letter)) return &option;
  }
  return nullptr;
}

tl::unexpected<Error> UsageError(std::string text) { return Failure(ErrorKind::kBadRequest, EINVAL, std::move(text)); }

// troff's own characters made harmless.
std::string Roff(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else if (c == '\n') {
      result += ' ';
    } else {
      result += c;
    }
  }
  if (!result.empty() && (result[0] == '.' || result[0] == '\'')) result.insert(0, "\\&");
  return result;
}

std::string RoffTerm(std::string_view term, std::string_view text) {
  return fmt::format(".TP\n.B {}\n{}\n", Roff(term), Roff(text));
}

std::string RoffTable(const std::vector<TableLine>& lines) {
  std::string text;
  for (const TableLine& line : lines) text += RoffTerm(line.term, line.text);
  return text;
}

std::string RoffCommands() {
  std::string text;
  for (const CommandSpec& command : Commands()) {
    text += fmt::format(".SS e2bfs {} {}\n", command.name, Roff(command.synopsis));
    std::string_view rest = command.text;
    text += Roff(command.summary) + "\n";
    while (!rest.empty()) {
      const size_t gap = rest.find("\n\n");
      text += ".PP\n" + Roff(rest.substr(0, gap)) + "\n";
      rest.remove_prefix(gap == std::string_view::npos ? rest.size() : gap + 2);
    }
    for (const CommandOption& option : command.options) text += RoffTerm(OptionTerm(option), option.text);
  }
  return text;
}

std::string RoffMountOptions() {
  std::string text, section;
  for (const OptionHelp& line : MountOptionHelp()) {
    if (line.section != section) text += fmt::format(".SS {}\n", Roff(line.section));
    section = line.section;
    text += RoffTerm(line.syntax, OptionText(line));
  }
  return text;
}

int WriteManual(const std::string& from, const std::string& to) {
  std::ifstream input(from);
  std::ostringstream text;
  text << input.rdbuf();
  std::ofstream output(to, std::ios::trunc);
  output << FillManual(text.str());
  output.close();
  if (!input || !output) {
    PrintErrorLine("manual", fmt::format("cannot read {} or write {}", from, to));
    return static_cast<int>(ExitStatus::kFailure);
  }
  return 0;
}

int Dispatch(const std::vector<std::string>& words) {
  const std::string name = words.empty() ? "" : words[0];
  if (name == "--help" || name == "-h" || name == "help") {
    if (name == "help" && words.size() == 2) return Dispatch({words[1], "--help"});
    PrintLine(OverallHelp());
    return 0;
  }
  if (name == "--version" || name == "-V" || name == "version") {
    PrintLine("e2bfs " E2BFS_VERSION);
    return 0;
  }
  if (name == "manual" && words.size() == 3) return WriteManual(words[1], words[2]);
  if (name.empty()) {
    PrintErrorLine("", "which command? One of mount, umount, list, status, cache, recover, demo (see e2bfs --help)");
    return static_cast<int>(ExitStatus::kUsage);
  }
  for (const CommandSpec& command : Commands()) {
    if (command.name != name && !(name == "unmount" && command.name == "umount")) continue;
    const std::vector<std::string> rest(words.begin() + 1, words.end());
    for (const std::string& word : rest) {
      if (word == "--") break;
      if (word == "--help" || word == "-h") {
        PrintLine(CommandHelp(command));
        return 0;
      }
    }
    auto line = ParseCommandLine(command, rest);
    if (!line) {
      PrintErrorLine(command.name, line.error().message);
      return static_cast<int>(ExitStatus::kUsage);
    }
    return static_cast<int>(command.run(*line));
  }
  PrintErrorLine("", fmt::format("unknown {} '{}' (see e2bfs --help)", name[0] == '-' ? "option" : "command", name));
  return static_cast<int>(ExitStatus::kUsage);
}

// What is opened must never become descriptor 0, 1 or 2 because the caller closed those.
void HaveStandardDescriptors() {
  for (int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) return;
  }
}

}  // namespace

std::string CommandLine::Value(const std::string& option, const std::string& otherwise) const {
  const std::vector<std::string> values = Values(option);
  return values.empty() ? otherwise : values.back();
}

std::vector<std::string> CommandLine::Values(const std::string& option) const {
  std::vector<std::string> values;
  for (auto [at, end] = options.equal_range(option); at != end; ++at) values.push_back(at->second);
  return values;
}

Result<CommandLine> ParseCommandLine(const CommandSpec& command, const std::vector<std::string>& words) {
  const std::string hint = fmt::format(" (see e2bfs {} --help)", command.name);
  CommandLine line;
  bool options_over = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (options_over || word.size() < 2 || word[0] != '-') {
      line.arguments.push_back(word);
      continue;
    }
    if (word == "--") {
      options_over = true;
      continue;
    }
    const bool is_long = word[1] == '-';
    const size_t equals = is_long ? word.find('=') : std::string::npos;
    // "-fo ro": letters in one word, the last of which may take a value ("-oro").
    for (size_t at = 1; at < word.size(); ++at) {
      const CommandOption* option =
          is_long ? FindOption(command, word.substr(0, equals), '\0') : FindOption(command, "", word[at]);
      if (option == nullptr) {
        return UsageError(fmt::format("unknown option {}{}", is_long ? word.substr(0, equals) : fmt::format("-{}", word[at]), hint));
      }
      std::optional<std::string> value;
      if (is_long && equals != std::string::npos) value = word.substr(equals + 1);
      const bool flag = option->placeholder.empty();
      if (flag && value) return UsageError(fmt::format("option {} takes no value{}", option->name, hint));
      if (!flag && !value && !is_long && at + 1 < word.size()) value = word.substr(at + 1);
      if (!flag && !value) {
        if (i + 1 == words.size()) return UsageError(fmt::format("option {} needs a value{}", option->name, hint));
        value = words[++i];
      }
      line.options.emplace(option->name, value.value_or(""));
      if (is_long || !flag) break;
    }
  }
  if (line.arguments.size() < command.min_arguments) {
    return UsageError(fmt::format("something is missing: e2bfs {} {}{}", command.name, command.synopsis, hint));
  }
  if (line.arguments.size() > command.max_arguments) {
    return UsageError(fmt::format("unexpected argument '{}'{}", line.arguments[command.max_arguments], hint));
  }
  return line;
}

std::string OverallHelp() {
  std::string text =
      "e2bfs " E2BFS_VERSION " - makes the files of a running E2B sandbox a local directory.\n\nUsage: e2bfs COMMAND ...\n\nCommands:\n";
  for (const CommandSpec& command : Commands()) text += HelpLine(command.name, command.summary);
  text += HelpLine("--version", "Prints the version.");
  text += "\ne2bfs COMMAND --help says more about each. To try it without an account: e2bfs demo\n\nEnvironment:\n";
  for (const TableLine& line : EnvironmentTable()) text += HelpLine(line.term, line.text);
  text += "\nExit status:\n";
  for (const TableLine& line : ExitStatusTable()) text += HelpLine(line.term, line.text);
  text.pop_back();
  return text;
}

std::string CommandHelp(const CommandSpec& command) {
  std::string text = fmt::format("Usage: e2bfs {} {}\n\n{}\n\n", command.name, command.synopsis, command.summary);
  text += Paragraphs(command.text);
  text += "Options:\n";
  for (const CommandOption& option : command.options) text += HelpLine(OptionTerm(option), option.text);
  text += HelpLine("-h, --help", "This text.");
  if (command.mount_options) {
    std::string section;
    text += "\nMount options (-o):\n";
    for (const OptionHelp& line : MountOptionHelp()) {
      if (line.section != section) text += "\n " + line.section + "\n";
      section = line.section;
      text += HelpLine(line.syntax, OptionText(line));
    }
    text += "\nA comma inside a value is written \\,.\n\nExample:\n  e2bfs mount i3x0hlz8wd8fhm7vn3m2a:/home/user/project ~/project -o timeout=3600,keep_alive\n";
  }
  text += "\nEnvironment and exit status: e2bfs --help";
  return text;
}

std::string FillManual(std::string_view manual_template) {
  std::string text;
  while (!manual_template.empty()) {
    const size_t newline = manual_template.find('\n');
    std::string line(manual_template.substr(0, newline));
    manual_template.remove_prefix(newline == std::string_view::npos ? manual_template.size() : newline + 1);
    if (line == "@COMMANDS@") {
      text += RoffCommands();
    } else if (line == "@MOUNT_OPTIONS@") {
      text += RoffMountOptions();
    } else if (line == "@ENVIRONMENT@") {
      text += RoffTable(EnvironmentTable());
    } else if (line == "@EXIT_STATUS@") {
      text += RoffTable(ExitStatusTable());
    } else {
      if (const size_t at = line.find("@VERSION@"); at != std::string::npos) line.replace(at, 9, E2BFS_VERSION);
      text += line + "\n";
    }
  }
  return text;
}

int RunCli(int argc, char** argv) {
  try {
    HaveStandardDescriptors();
    return Dispatch(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& problem) {  // out of memory, mostly
    PrintErrorLine("", problem.what());
    return static_cast<int>(ExitStatus::kFailure);
  }
}

}  // namespace e2bfs::fuse
