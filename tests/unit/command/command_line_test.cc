#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fuse/cli.h"
#include "fuse/message.h"
#include "fuse/options.h"
#include "fuse/sandbox_spec.h"

namespace e2bfs::fuse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const CommandSpec& CommandNamed(const std::string& name) {
  for (const CommandSpec& command : Commands()) {
    if (command.name == name) return command;
  }
  ADD_FAILURE() << "no command " << name;
  return Commands().front();
}

std::string UsageErrorOf(const std::string& command, const std::vector<std::string>& words) {
  auto line = ParseCommandLine(CommandNamed(command), words);
  return line ? "" : line.error().message;
}

TEST(CommandLineParser, OptionsMayStandAnywhereAndBeShort) {
  auto line = ParseCommandLine(CommandNamed("mount"), {"-f", "id", "-o", "ro", "dir", "-ouid=1", "--option=gid=2", "-dfo", "rw"});
  ASSERT_TRUE(line);
  EXPECT_THAT(line->arguments, ElementsAre("id", "dir"));
  EXPECT_THAT(line->Values("--option"), ElementsAre("ro", "uid=1", "gid=2", "rw"));
  EXPECT_TRUE(line->Has("--foreground"));
  EXPECT_TRUE(line->Has("--debug"));
}

TEST(CommandLineParser, TwoDashesEndTheOptions) {
  auto line = ParseCommandLine(CommandNamed("umount"), {"--timeout", "5", "--", "--force"});
  ASSERT_TRUE(line);
  EXPECT_THAT(line->arguments, ElementsAre("--force"));
  EXPECT_EQ(line->Value("--timeout"), "5");
  EXPECT_FALSE(line->Has("--force"));
}

TEST(CommandLineParser, MistakesAreOneLineThatNamesThem) {
  EXPECT_THAT(UsageErrorOf("mount", {"a", "b", "--nonsense"}), HasSubstr("unknown option --nonsense"));
  EXPECT_THAT(UsageErrorOf("mount", {"a", "b", "-fx"}), HasSubstr("unknown option -x"));
  EXPECT_THAT(UsageErrorOf("mount", {"a"}), HasSubstr("missing"));
  EXPECT_THAT(UsageErrorOf("mount", {"a", "b", "c"}), HasSubstr("'c'"));
  EXPECT_THAT(UsageErrorOf("mount", {"a", "b", "-o"}), HasSubstr("--option needs a value"));
  EXPECT_THAT(UsageErrorOf("list", {"--json=yes"}), HasSubstr("--json takes no value"));
}

TEST(CommandHelpText, NamesEveryOption) {
  for (const CommandSpec& command : Commands()) {
    const std::string help = CommandHelp(command);
    for (const CommandOption& option : command.options) EXPECT_THAT(help, HasSubstr(option.name)) << command.name;
    EXPECT_THAT(OverallHelp(), HasSubstr(command.summary));
  }
  for (const OptionHelp& line : MountOptionHelp()) EXPECT_THAT(CommandHelp(CommandNamed("mount")), HasSubstr(line.syntax));
}

TEST(CommandManual, IsFilledInFromTheTables) {
  const std::string page = FillManual(".TH E2BFS \"@VERSION@\"\n@COMMANDS@\n@MOUNT_OPTIONS@\n@ENVIRONMENT@\n@EXIT_STATUS@\n.SH END\n");
  EXPECT_THAT(page, testing::Not(HasSubstr("@")));
  EXPECT_THAT(page, HasSubstr(".SS e2bfs umount"));
  EXPECT_THAT(page, HasSubstr(".B umask=OCTAL\n"));
  EXPECT_THAT(page, HasSubstr(".B E2B_API_KEY\n"));
  EXPECT_THAT(page, HasSubstr(".SH END\n"));
  // A line that begins with a quote or a dot would be a command to troff.
  size_t begin = 0;
  while (begin < page.size()) {
    const size_t end = page.find('\n', begin);
    const std::string line = page.substr(begin, end - begin);
    EXPECT_TRUE(line.empty() || line[0] != '\'') << line;
    EXPECT_TRUE(line.empty() || line[0] != '.' || std::isupper(static_cast<unsigned char>(line[1])) != 0) << line;
    begin = end + 1;
  }
}

TEST(SandboxArgument, IsAnIdAndPerhapsAPath) {
  auto plain = ParseSandboxSpec("i3x0hlz8wd8fhm7vn3m2a");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->sandbox_id, "i3x0hlz8wd8fhm7vn3m2a");
  EXPECT_EQ(plain->path, "");
  auto with_path = ParseSandboxSpec("a-b_C1:/x:y/../z");
  ASSERT_TRUE(with_path);
  EXPECT_EQ(with_path->sandbox_id, "a-b_C1");
  EXPECT_EQ(with_path->path, "/x:y/../z");
  EXPECT_EQ(ParseSandboxSpec("a:")->path, "");
  EXPECT_EQ(ParseSandboxSpec("a:work")->path, "work");
}

TEST(SandboxArgument, RefusesWhatCouldBecomeAnotherUrl) {
  for (const std::string bad : {"", ":/x", "a/b", "a.b", "a b", "a@b", "../x", "a\n", "ä"}) EXPECT_FALSE(ParseSandboxSpec(bad)) << bad;
  EXPECT_FALSE(ParseSandboxSpec(std::string(200, 'a')));
  EXPECT_FALSE(ParseSandboxSpec(std::string("a:x\0y", 5)));
}

TEST(PrintableText, NeutralisesControlCharacters) {
  EXPECT_EQ(Printable("a\x1b[31m\n\x7f"), "a\\x1b[31m\\x0a\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b" "1m"), "\\xc2\\x9b1m");
  EXPECT_EQ(Printable("grüße"), "grüße");
}

TEST(HumanText, SizesAndTimes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(int64_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(HumanSeconds(59), "59s");
  EXPECT_EQ(HumanSeconds(252), "4m12s");
  EXPECT_EQ(HumanSeconds(3700), "1h01m");
  EXPECT_EQ(HumanSeconds(-1), "over");
}

}  // namespace
}  // namespace e2bfs::fuse
