// The pure parts of the service tier: identities, messages, plans, and the scripts themselves in every shell of this machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "transport/service_names.h"
#include "transport/service_scripts.h"
#include "transport/service_store.h"

namespace e2bfs::testing {

using ::testing::ElementsAre;
using transport::Extent;
using transport::FileType;
using transport::PathIdentities;
using transport::ServiceScript;

TEST(PathIdentitiesTest, FollowRenamesAndNeverComeBack) {
  PathIdentities ids;
  auto file = ids.IdOf("d/f"), deep = ids.IdOf("d/e/g"), directory = ids.IdOf("d");
  ids.Renamed("d", "moved", false);
  EXPECT_EQ(ids.IdOf("moved"), directory);
  EXPECT_EQ(ids.IdOf("moved/f"), file);
  EXPECT_EQ(ids.IdOf("moved/e/g"), deep);
  EXPECT_NE(ids.IdOf("d"), directory);
  EXPECT_NE(ids.IdOf("d/f"), file);
  ids.Removed("moved/f");
  auto second = ids.IdOf("moved/f");
  EXPECT_NE(second, file);
  ids.Created("moved/f");
  EXPECT_NE(ids.IdOf("moved/f"), file);
  // An exception below goes along too, and back.
  auto created = ids.IdOf("moved/f");
  ids.Renamed("moved", "d", false);
  EXPECT_EQ(ids.IdOf("d/f"), created);
  EXPECT_EQ(ids.IdOf("d/e/g"), deep);
  EXPECT_NE(ids.IdOf("d0"), ids.IdOf("d/0"));
}

TEST(PathIdentitiesTest, TemporaryFilesLeaveNothingBehind) {
  PathIdentities ids;
  for (int i = 0; i < 1000; ++i) {
    std::string name = "d/tmp" + std::to_string(i);
    ids.Created(name);
    ids.Removed(name);
    ids.Created(name);
    ids.Renamed(name, "d/target", true);
  }
  EXPECT_LE(ids.exceptions(), 2u);
  ids.Created("d/x");
  ids.Removed("d");
  EXPECT_LE(ids.exceptions(), 1u);
}

TEST(ServiceMessages, BecomeErrnos) {
  const std::pair<const char*, int> cases[] = {
      {"rmdir: failed to remove '/x': Directory not empty\n", ENOTEMPTY},
      {"unlink: cannot unlink '/x: Permission denied': Is a directory\n", EISDIR},
      {"unlink: can't remove file '/x': Operation not permitted", EPERM},
      {"sh: 1: cannot create /x/y: Directory nonexistent\n", ENOENT},
      {"sh: 5: cannot create /x: File exists\n", EEXIST},
      {"e2bfs: line 20: /x: cannot overwrite existing file\n", EEXIST},
      {"e2bfs: can't create /x: nonexistent directory\n", ENOENT},
      {"mkdir: can't create directory '/x': No space left on device\n", ENOSPC},
      {"dd: error writing '/x': Disk quota exceeded\n3+0 records in\n2+0 records out\n", EDQUOT},
      {"dd: error writing 'x': No space left on device\n1+0 records in\n0 bytes copied, 0.1 s, 0.0 kB/s\n", ENOSPC},
      {"ln: failed to create symbolic link '/x': File name too long", ENAMETOOLONG},
      {"ln: /x: Filename too long", ENAMETOOLONG},
      {"stat: cannot statx '/a/b': Too many levels of symbolic links", ELOOP},
      {"stat: can't stat '/a/b': Symbolic link loop", ELOOP},
      {"link: cannot create link '/x' to '/y': Invalid cross-device link", EXDEV},
      {"truncate: cannot open '/x' for writing: Read-only file system", EROFS},
      {"rmdir: failed to remove '/x': Device or resource busy", EBUSY},
      {"E EINVAL\n", EINVAL},
      {"E 39\n", ENOTEMPTY},
      {"", EIO},
      {"something else entirely", EIO},
      {"E 99999", EIO},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(transport::ErrnoFromCommandOutput(text), expected) << text;
}

TEST(ServiceAnswers, AreReadOnlyWhole) {
  const std::string whole = "S 0\nNEW\nA 81a4 1 1000 1000 5 1700000000.000000001 user user\n.\n";
  auto answer = transport::ParseServiceChange(whole);
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->objects.size(), 1u);
  EXPECT_EQ(answer->objects[0].permissions, 0644u);
  EXPECT_EQ(answer->objects[0].mtime.tv_nsec, 1);
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_FALSE(transport::ParseServiceChange(whole.substr(0, i))) << i;
  auto quarter = transport::ParseServiceStat("A 81a4 1 0 0 5 -0.250000000 root root");
  ASSERT_TRUE(quarter);
  EXPECT_EQ(quarter->mtime.tv_sec, -1);
  EXPECT_EQ(quarter->mtime.tv_nsec, 750'000'000);
  EXPECT_EQ(transport::ServiceTimeArgument(transport::TimeChange{false, quarter->mtime}), "-0.250000000");
  for (const char* bad : {"A", "A 81a4 1 0 0 -5 1.0 r r", "A zz 1 0 0 5 1.0 r r", "A 1a4 1 0 0 5 1.0 r r", "A 81a4 1 0 0 99999999999999999999 1.0 r r",
                          "A 81a4 1 0 0 5 1.x r r", "A 81a4 1 0 0 5 1.0 r"}) {
    EXPECT_FALSE(transport::ParseServiceStat(bad)) << bad;
  }
  auto list = [](std::string text) { return transport::ParseServiceListing(text, true).has_value(); };
  using std::string_literals::operator""s;
  EXPECT_TRUE(list("Na\0t\0E\0"s));
  EXPECT_FALSE(list("Na\0t\0"s));
  EXPECT_FALSE(list("Na/b\0t\0E\0"s));
  EXPECT_FALSE(list("N..\0t\0E\0"s));
  EXPECT_FALSE(list("Na\0t\0Na\0t\0E\0"s));
}

TEST(StorePlan, CutsLastAndInPiecesOnlyWhatIsFresh) {
  transport::StoreRequest request;
  request.extents = {{0, 100}};
  request.cut_to = 0;
  auto plan = transport::PlanStore(request);
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->size(), 1u);
  EXPECT_TRUE(plan->front().zeros.empty());
  EXPECT_EQ(plan->front().size.value_or(-1), 100);
  request.extents = {{50, 50}, {200, 10}};
  request.cut_to = 20;
  request.size = 1'000;
  plan = transport::PlanStore(request);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->front().zeros, (std::vector<Extent>{{20, 30}, {100, 100}, {210, 790}}));
  EXPECT_EQ(plan->front().size.value_or(-1), 1'000);
  request = {};
  request.extents = {{10, 3 * transport::kStorePieceBytes}};
  EXPECT_EQ(transport::PlanStore(request)->size(), 1u);
  request.fresh = true;
  plan = transport::PlanStore(request);
  ASSERT_TRUE(plan);
  int64_t total = 0, next = 10;
  for (const auto& piece : *plan) {
    EXPECT_LE(piece.bytes(), transport::kStorePieceBytes);
    for (const Extent& extent : piece.extents) {
      EXPECT_EQ(extent.offset, next);
      next = extent.end();
      total += extent.length;
    }
    EXPECT_EQ(piece.last, &piece == &plan->back());
  }
  EXPECT_EQ(total, 3 * transport::kStorePieceBytes);
  request.cut_to = 5;
  plan = transport::PlanStore(request);
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->front().zeros, (std::vector<Extent>{{5, 5}}));
  for (size_t i = 1; i < plan->size(); ++i) EXPECT_TRUE((*plan)[i].zeros.empty());
  request.cut_to.reset();
  request.extents = {{0, 10}, {5, 10}};
  EXPECT_FALSE(transport::PlanStore(request));
  request.extents = {{0, 10}};
  request.size = 5;
  EXPECT_FALSE(transport::PlanStore(request));
}

// A shell and tools to run a script with: this machine's, and busybox' where there is one.
struct ScriptWorld {
  std::vector<std::string> shell;
  std::string path;
};

class ServiceScripts : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "e2bfs-scripts-XXXXXX").string();
    ASSERT_TRUE(mkdtemp(pattern.data()));
    directory_ = std::filesystem::canonical(pattern).string();
    worlds_.push_back({{"/bin/sh"}, "/usr/bin:/bin"});
    if (access("/bin/bash", X_OK) == 0) worlds_.push_back({{"/bin/bash", "--posix"}, "/usr/bin:/bin"});
    for (const char* busybox : {"/usr/bin/busybox", "/bin/busybox"}) {
      if (access(busybox, X_OK) != 0) continue;
      std::string applets = directory_ + "/applets";
      std::filesystem::create_directory(applets);
      for (const char* name : {"stat", "ln", "link", "unlink", "mkdir", "rmdir", "mkfifo", "chmod", "chown", "touch", "truncate", "dd", "cmp",
                               "cat", "rm", "find", "readlink", "tail", "head", "sleep", "id", "printf", "sync", "fallocate"}) {
        ASSERT_EQ(symlink(busybox, (applets + "/" + name).c_str()), 0);
      }
      worlds_.push_back({{busybox, "sh"}, applets});
      break;
    }
  }
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  // The script's standard output.
  static std::string RunScript(const ScriptWorld& world, ServiceScript script, std::vector<std::string> arguments, rlim_t file_bytes = RLIM_INFINITY) {
    std::vector<std::string> words = world.shell;
    words.insert(words.end(), {"-c", transport::ServiceScriptText(script), "e2bfs"});
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<std::string> environment = {"PATH=" + world.path, "LC_ALL=C", "PERL_UNICODE=0"};
    std::vector<char*> envp;
    for (std::string& word : environment) envp.push_back(word.data());
    envp.push_back(nullptr);
    int out[2];
    if (pipe(out) != 0) return "";
    pid_t child = fork();
    if (child == 0) {
      dup2(out[1], 1);
      close(out[0]);
      close(out[1]);
      if (file_bytes != RLIM_INFINITY) {
        rlimit limit{file_bytes, file_bytes};
        setrlimit(RLIMIT_FSIZE, &limit);
        signal(SIGXFSZ, SIG_IGN);
      }
      execve(argv[0], argv.data(), envp.data());
      _exit(126);
    }
    close(out[1]);
    std::string text;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = read(out[0], buffer, sizeof buffer)) > 0) text.append(buffer, size_t(got));
    close(out[0]);
    int status = 0;
    waitpid(child, &status, 0);
    last_status_ = status;
    return text;
  }

  static transport::ServiceChangeAnswer MustChange(const ScriptWorld& world, ServiceScript script, const std::string& stage,
                                                   const std::string& claim, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {transport::EncodeArgument(stage), claim, ""});
    std::string text = RunScript(world, script, arguments);
    auto answer = transport::ParseServiceChange(text);
    EXPECT_TRUE(answer) << world.shell[0] << ": " << text;
    return answer.value_or(transport::ServiceChangeAnswer{});
  }

  static std::string ReadWhole(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void WriteWhole(const std::string& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

  static inline int last_status_ = 0;
  std::string directory_;
  std::vector<ScriptWorld> worlds_;
};

TEST_F(ServiceScripts, EveryByteOfANameArrives) {
  for (size_t w = 0; w < worlds_.size(); ++w) {
    for (int first = 1; first < 256; first += 51) {
      std::string name;
      for (int byte = first; byte < first + 51 && byte < 256; ++byte) {
        if (byte != '/') name += char(byte);
      }
      for (const std::string& each : {name, name + "\n", name + "\xff\n\n"}) {
        std::string path = directory_ + "/" + each;
        auto answer = MustChange(worlds_[w], ServiceScript::kCreate, "", "c", {transport::EncodeArgument(path),
                                 transport::EncodeArgument(directory_), "00077", "-", "x"});
        EXPECT_EQ(answer.status, 0) << worlds_[w].shell[0] << answer.messages;
        struct stat info {};
        ASSERT_EQ(lstat(path.c_str(), &info), 0) << worlds_[w].shell[0];
        EXPECT_EQ(info.st_mode & 07777U, 0600u);
        EXPECT_EQ(answer.objects.size(), 2u);
        answer = MustChange(worlds_[w], ServiceScript::kCreate, "", "c", {transport::EncodeArgument(path),
                            transport::EncodeArgument(directory_), "00077", "-", "x"});
        EXPECT_EQ(transport::ErrnoFromCommandOutput(answer.messages), EEXIST);
        answer = MustChange(worlds_[w], ServiceScript::kUnlink, "", "c", {transport::EncodeArgument(path), transport::EncodeArgument(directory_)});
        EXPECT_EQ(answer.status, 0) << answer.messages;
        EXPECT_NE(lstat(path.c_str(), &info), 0);
      }
    }
  }
}

TEST_F(ServiceScripts, AClaimMakesAChangeHappenOnce) {
  for (size_t w = 0; w < worlds_.size(); ++w) {
    std::string stage = directory_ + "/stage" + std::to_string(w), file = directory_ + "/file" + std::to_string(w);
    std::filesystem::create_directory(stage);
    WriteWhole(stage + "/d1", "abcdef");
    WriteWhole(file, "begin ");
    std::vector<std::string> arguments = {transport::EncodeArgument(file), transport::EncodeArgument(stage + "/d1"), "6", "-", "w", "-", "-", "-", "-",
                                          w == 0 ? "b" : "p", "a:6:0"};
    auto first = MustChange(worlds_[w], ServiceScript::kStore, stage, "c1", arguments);
    EXPECT_EQ(first.status, 0) << worlds_[w].shell[0] << first.messages;
    auto second = MustChange(worlds_[w], ServiceScript::kStore, stage, "c1", arguments);
    EXPECT_EQ(second.status, 0);
    ASSERT_EQ(second.objects.size(), 1u);
    EXPECT_EQ(second.objects[0].size, 12);
    EXPECT_EQ(ReadWhole(file), "begin abcdef");
    // The staged bytes are gone: a late first arrival does nothing.
    auto late = MustChange(worlds_[w], ServiceScript::kStore, stage, "c2", arguments);
    EXPECT_NE(late.status, 0);
    EXPECT_EQ(ReadWhole(file), "begin abcdef");
  }
}

TEST_F(ServiceScripts, RangesGoWhereTheyBelong) {
  for (size_t w = 0; w < worlds_.size(); ++w) {
    for (const char* flavour : {"b", "p"}) {
      std::string stage = directory_ + "/s" + std::to_string(w) + flavour;
      std::filesystem::create_directory(stage);
      std::string file = stage + "-file";
      std::string expected(100'000, 'o'), staged;
      WriteWhole(file, expected);
      chmod(file.c_str(), 0440);
      std::vector<std::string> arguments = {transport::EncodeArgument(file), transport::EncodeArgument(stage + "/d1"), "", "-", "w", "-", "-", "-", "-", flavour};
      for (auto [offset, length] : {std::pair<size_t, size_t>{0, 3}, {5, 1}, {4'095, 70'001}, {99'990, 20}, {200'000, 4'097}}) {
        std::string bytes(length, char('a' + offset % 26));
        if (expected.size() < offset + length) expected.resize(offset + length);
        expected.replace(offset, length, bytes);
        arguments.push_back(std::to_string(offset) + ":" + std::to_string(length) + ":" + std::to_string(staged.size()));
        staged += bytes;
      }
      WriteWhole(stage + "/d1", staged);
      arguments[2] = std::to_string(staged.size());
      auto answer = MustChange(worlds_[w], ServiceScript::kStore, stage, "c1", arguments);
      EXPECT_EQ(answer.status, 0) << worlds_[w].shell[0] << answer.messages;
      EXPECT_TRUE(ReadWhole(file) == expected) << worlds_[w].shell[0] << flavour;
      ASSERT_EQ(answer.objects.size(), 1u);
      EXPECT_EQ(answer.objects[0].permissions, 0440u);
      // Shorter in the stage than announced: nothing is touched.
      WriteWhole(stage + "/d1", staged.substr(1));
      answer = MustChange(worlds_[w], ServiceScript::kStore, stage, "c2", arguments);
      EXPECT_NE(answer.status, 0);
      EXPECT_TRUE(ReadWhole(file) == expected);
    }
  }
}

TEST_F(ServiceScripts, NewObjectsAreMadeInTheirOrder) {
  for (size_t w = 0; w < worlds_.size(); ++w) {
    SCOPED_TRACE(worlds_[w].shell[0]);
    const std::string top = directory_ + "/w" + std::to_string(w) + "\n: ", stage = top + "stage";
    std::filesystem::create_directory(top);
    WriteWhole(top + "/taken", "old");
    ASSERT_EQ(symlink("nowhere", (top + "/dangling").c_str()), 0);
    const std::string first(9'000, '1'), lost(700, 'x'), large(20'000, 'l'), last = "the last\n";
    WriteWhole(stage, "skipped" + first + lost + large + lost + last);
    const std::vector<std::pair<std::string, std::string>> steps = {
        {"d", "d,-,0,00027,-,-,-,-,-,"},
        {"d/first", "f,0,9000,00077,00755,-,-,-,1000000000.500000000,"},
        {"taken", "f,-,700,00022,-,-,-,-,-,"},
        {"d/large", "f,0,20000,00022,-,-,-,-,-,"},
        {"taken", "d,-,0,00022,-,-,-,-,-,"},
        {"taken/in it", "f,4,700,00022,-,-,-,-,-,"},
        {"d/last", "f,0,9,00022,-,-,00400,-,-,"},
        {"d/empty", "f,0,0,00022,-,-,-,-,-,"},
        {"link", "l,-,0,00777,-,-,-,-,1000000000.000000000," + transport::EncodeArgument("a,b\n'\xff")},
        {"dangling", "f,-,0,00022,-,-,-,-,-,"},
        {"missing/f", "f,-,0,00022,-,-,-,-,-,"},
        {"", "f,x,0,00022,-,-,-,-,-,"},
        {"refused", "f,-,0,00022,-,4711:4711,-,-,-,"},
        {"d", "s,-,0,00022,-,-,00750,-,1000000000.000000000,"},
    };
    std::vector<std::string> arguments = {"", "c", "", transport::EncodeArgument(stage), std::to_string(7 + 9'000 + 700 + 20'000 + 700 + 9), "7"};
    for (const auto& [name, step] : steps) {
      arguments.push_back(transport::EncodeArgument(top + "/" + name));
      arguments.push_back(step);
    }
    const std::string text = RunScript(worlds_[w], ServiceScript::kMakeObjects, arguments, 10'000);
    const auto answer = transport::ParseServiceChange(text);
    ASSERT_TRUE(answer) << text;
    EXPECT_EQ(answer->status, 0) << text;
    std::map<std::string, int> failures;
    for (size_t at = 0; at < answer->messages.size();) {
      const size_t end = answer->messages.find('\n', at), space = answer->messages.find(' ', at + 2);
      failures[answer->messages.substr(at, space - at)] = transport::ErrnoFromCommandOutput(answer->messages.substr(space + 1, end - space - 1));
      at = end + 1;
    }
    std::map<std::string, int> expected = {{"F 2", EEXIST}, {"F 3", EFBIG}, {"F 4", EEXIST}, {"F 5", ENOENT}, {"F 9", EEXIST}, {"F 10", ENOENT}, {"F 11", ENOENT}};
    if (geteuid() != 0) expected["R 12"] = EPERM;
    EXPECT_EQ(failures, expected) << text;
    ASSERT_EQ(answer->objects.size(), 6u) << text;
    EXPECT_EQ(answer->objects[0].permissions, 0755u);
    EXPECT_EQ(answer->objects[0].mtime.tv_sec, 1'000'000'000);
    EXPECT_EQ(answer->objects[1].permissions, 0400u);
    EXPECT_EQ(answer->objects[3].type, transport::FileType::kSymlink);
    EXPECT_EQ(answer->objects[5].permissions, 0750u);
    EXPECT_EQ(ReadWhole(top + "/d/first"), first);
    EXPECT_EQ(ReadWhole(top + "/d/last"), last);
    EXPECT_EQ(ReadWhole(top + "/taken"), "old");
    EXPECT_EQ(std::filesystem::read_symlink(top + "/link").string(), "a,b\n'\xff");
    EXPECT_FALSE(std::filesystem::exists(top + "/d/large"));
    EXPECT_FALSE(std::filesystem::exists(top + "/nowhere"));
    // Shorter in the stage than announced: nothing is made.
    std::filesystem::remove_all(top + "/d");
    WriteWhole(stage, first);
    EXPECT_THAT(RunScript(worlds_[w], ServiceScript::kMakeObjects, arguments), ::testing::HasSubstr("E SHORT"));
    EXPECT_FALSE(std::filesystem::exists(top + "/d"));
  }
}

// Nobody may believe that nothing is there.
TEST_F(ServiceScripts, ANewFileThatStaysTornIsToldOf) {
  const std::string tools = directory_ + "/tools", stage = directory_ + "/stage", path = directory_ + "/large";
  std::filesystem::create_directory(tools);
  WriteWhole(tools + "/rm", "#!/bin/sh\nexit 1\n");
  std::filesystem::permissions(tools + "/rm", std::filesystem::perms(0755));
  WriteWhole(stage, std::string(20'000, 'l'));
  for (ScriptWorld world : worlds_) {
    if (world.path != "/usr/bin:/bin") continue;  // busybox' own rm
    SCOPED_TRACE(world.shell[0]);
    world.path = tools + ":" + world.path;
    const std::string text = RunScript(world, ServiceScript::kMakeObjects,
                                       {"", "c", "", transport::EncodeArgument(stage), "20000", "0", transport::EncodeArgument(path), "f,-,20000,00022,-,-,-,-,-,"}, 10'000);
    const auto answer = transport::ParseServiceChange(text);
    ASSERT_TRUE(answer) << text;
    EXPECT_EQ(answer->status, 0) << text;
    EXPECT_EQ(answer->messages, "T 0\n");
    EXPECT_TRUE(answer->objects.empty());
    EXPECT_EQ(std::filesystem::file_size(path), 10'000U);
    std::filesystem::remove(path);
  }
}

// A limit on the size of files stands for a full disk: the same way through the script.
TEST_F(ServiceScripts, WhereThereIsNoRoomTheOldContentStays) {
  const std::string old_content(50'000, 'o');
  WriteWhole(directory_ + "/staged", std::string(200'000, 'n'));
  for (const ScriptWorld& world : worlds_) {
    for (const char* flavour : {"b", "p"}) {
      for (const auto& [range, size] : {std::pair{"0:200000:0", "-"}, {"40000:90000:0", "-"}, {"100000:90000:0", "-"}, {"0:9000:0", "150000"}}) {
        std::string file = directory_ + "/file";
        WriteWhole(file, old_content);
        std::string text = RunScript(world, ServiceScript::kStore,
                                     {"=", "c", "", transport::EncodeArgument(file), transport::EncodeArgument(directory_ + "/staged"), "200000", size,
                                      "w", "-", "-", "-", "-", flavour, range},
                                     100'000);
        auto answer = transport::ParseServiceChange(text);
        ASSERT_TRUE(answer) << world.shell[0] << text;
        EXPECT_NE(answer->status, 0);
        // busybox' head does not know why.
        bool known = world.path.find("applets") == std::string::npos || *flavour == 'b' || *size != '-';
        EXPECT_EQ(transport::ErrnoFromCommandOutput(answer->messages), known ? EFBIG : EIO) << world.shell[0] << answer->messages;
        EXPECT_TRUE(ReadWhole(file) == old_content) << world.shell[0] << flavour << range;
      }
    }
  }
}

// What was cut and not written reads as zeros, although nothing is cut before the new bytes are there.
TEST_F(ServiceScripts, ZerosGoOverWhatWasThere) {
  WriteWhole(directory_ + "/staged", std::string(5'000, 'n'));
  for (const ScriptWorld& world : worlds_) {
    for (const char* flavour : {"b", "p"}) {
      const std::string file = directory_ + "/file", staged = directory_ + "/staged-now";
      WriteWhole(file, std::string(50'000, 'o'));
      std::filesystem::copy_file(directory_ + "/staged", staged);
      auto answer = MustChange(world, ServiceScript::kStore, "", "c",
                               {transport::EncodeArgument(file), transport::EncodeArgument(staged), "5000", "60000", "w", "-", "-", "-", "-", flavour,
                                "20000:5000:0", "10:19990:z", "25000:35000:z"});
      EXPECT_EQ(answer.status, 0) << world.shell[0] << answer.messages;
      EXPECT_TRUE(ReadWhole(file) == std::string(10, 'o') + std::string(19'990, '\0') + std::string(5'000, 'n') + std::string(35'000, '\0'))
          << world.shell[0] << flavour;
    }
  }
}

TEST_F(ServiceScripts, AnAppendThatFailsHalfWayIsCutOffOrToldOf) {
  const std::string old_content(50'000, 'o'), staged = directory_ + "/staged";
  WriteWhole(staged, std::string(90'000, 'n'));
  // Stands for what cannot be compared any more, since somebody else has appended, too.
  const std::string others = directory_ + "/others";
  std::filesystem::create_directory(others);
  ASSERT_EQ(symlink("/bin/false", (others + "/cmp").c_str()), 0);
  for (const ScriptWorld& world : worlds_) {
    for (const char* flavour : {"b", "p"}) {
      for (const bool ours : {true, false}) {
        SCOPED_TRACE(world.shell[0] + flavour + (ours ? " ours" : " not ours"));
        const std::string file = directory_ + "/file";
        WriteWhole(file, old_content);
        const ScriptWorld now{world.shell, (ours ? "" : others + ":") + world.path};
        const std::string text = RunScript(now, ServiceScript::kStore,
                                           {"=", "c", "", transport::EncodeArgument(file), transport::EncodeArgument(staged), "90000", "-", "w", "-", "-",
                                            "-", "-", flavour, "a:90000:0"},
                                           100'000);
        auto answer = transport::ParseServiceChange(text);
        ASSERT_TRUE(answer) << text;
        EXPECT_NE(answer->status, 0);
        EXPECT_TRUE(ReadWhole(file) == old_content + std::string(ours ? 0 : 50'000, 'n')) << text;
        // Of busybox' tools, and of head, nobody says how much they wrote.
        const bool told = !ours && *flavour == 'b' && world.path.find("applets") == std::string::npos;
        EXPECT_EQ(answer->appended, told ? 50'000 : 0) << text;
      }
    }
  }
}

TEST_F(ServiceScripts, AProbeFailsAsAWriteWould) {
  EXPECT_EQ(transport::ErrnoFromCommandOutput("E ENOSPC\n"), ENOSPC);
  for (const ScriptWorld& world : worlds_) {
    const std::string stage = transport::EncodeArgument(directory_);
    const auto probe = [&](const std::string& bytes, rlim_t limit) {
      RunScript(world, ServiceScript::kProbe, {stage, bytes, "probe"}, limit);
      return last_status_ == 0;
    };
    EXPECT_TRUE(probe("1000", RLIM_INFINITY)) << world.shell[0];
    EXPECT_FALSE(probe("4611686018427387904", RLIM_INFINITY)) << world.shell[0];
    EXPECT_FALSE(probe("1000", 1000)) << world.shell[0];
    EXPECT_FALSE(std::filesystem::exists(directory_ + "/probe"));
  }
}

TEST_F(ServiceScripts, ListingsWithAnyTools) {
  std::string listed = directory_ + "/listed";
  std::filesystem::create_directory(listed);
  std::vector<std::string> names = {".hidden", "..odd", "*", "-n", "a\nb\n", "\xff\xfe", "link"};
  for (const std::string& name : names) {
    if (name != "link") WriteWhole(listed + "/" + name, "12345");
  }
  ASSERT_EQ(symlink("text\n", (listed + "/link").c_str()), 0);
  std::sort(names.begin(), names.end());
  for (const ScriptWorld& world : worlds_) {
    for (const char* flavour : {"g", "p"}) {
      // busybox' find has no -printf.
      if (world.path.find("applets") != std::string::npos && *flavour == 'g') continue;
      auto listing = transport::ParseServiceListing(RunScript(world, ServiceScript::kList, {transport::EncodeArgument(listed), flavour, "a"}), false);
      ASSERT_TRUE(listing) << world.shell[0] << flavour;
      std::vector<std::string> found;
      for (const auto& entry : listing->entries) {
        found.push_back(entry.name);
        EXPECT_EQ(entry.stat.size, 5);
        EXPECT_EQ(entry.stat.type, entry.name == "link" ? FileType::kSymlink : FileType::kRegular);
        EXPECT_EQ(entry.link_target, entry.name == "link" ? "text\n" : "");
      }
      std::sort(found.begin(), found.end());
      EXPECT_EQ(found, names) << world.shell[0] << flavour;
      auto links = transport::ParseServiceListing(RunScript(world, ServiceScript::kList, {transport::EncodeArgument(listed), flavour, "l"}), true);
      ASSERT_TRUE(links) << world.shell[0] << flavour;
      ASSERT_EQ(links->entries.size(), 1u);
      EXPECT_EQ(links->entries[0].link_target, "text\n");
    }
  }
}

// The other tools' ways, once through each script.
TEST_F(ServiceScripts, NamesAndAttributesWithAnyTools) {
  for (size_t w = 0; w < worlds_.size(); ++w) {
    const ScriptWorld& world = worlds_[w];
    std::string parent = directory_ + "/n" + std::to_string(w);
    std::filesystem::create_directory(parent);
    auto path = [&](const char* name) { return transport::EncodeArgument(parent + "/" + name); };
    auto run = [&](ServiceScript script, std::vector<std::string> arguments) {
      auto answer = MustChange(world, script, "", "c", std::move(arguments));
      return answer.status == 0 ? 0 : transport::ErrnoFromCommandOutput(answer.messages);
    };
    const std::string in = transport::EncodeArgument(parent);
    EXPECT_EQ(run(ServiceScript::kMakeDirectory, {path("d"), in, "00027", "-"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kMakeDirectory, {path("d"), in, "00027", "-"}), EEXIST) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kMakeDirectory, {path("x/d"), path("x"), "00027", "-"}), ENOENT) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kCreate, {path("f"), in, "00022", "04755", "x"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kCreate, {path("f/g"), path("f"), "00022", "-", "x"}), ENOTDIR) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kCreate, {path("x/g"), path("x"), "00022", "-", "x"}), ENOENT) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kMakeSymlink, {path("s"), in, "=-x"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kMakeLink, {path("s2"), in, path("s")}), 0) << world.shell[0];
    EXPECT_TRUE(std::filesystem::is_symlink(parent + "/s2"));
    EXPECT_EQ(run(ServiceScript::kMakeNode, {path("p"), in, "00077", "-", "p", "0", "0"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kUnlink, {path("d"), in}), EISDIR) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kRemoveDirectory, {path("f"), in}), ENOTDIR) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kRemoveDirectory, {transport::EncodeArgument(parent), in}), ENOTEMPTY) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kSetAttributes, {path("f"), "10", "-", "00640", "now", "1500000000.000000000", "-"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kSetAttributes, {path("s"), "-", "-", "-", "-", "1500000000.500000000", "-"}), 0) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kSetAttributes, {path("s"), "-", "-", "00644", "-", "-", "-"}), EOPNOTSUPP) << world.shell[0];
    struct stat info {};
    ASSERT_EQ(lstat((parent + "/f").c_str(), &info), 0);
    EXPECT_EQ(info.st_size, 10);
    EXPECT_EQ(info.st_mode & 07777U, 0640u) << world.shell[0];
    EXPECT_EQ(info.st_mtim.tv_sec, 1'500'000'000) << world.shell[0];
    ASSERT_EQ(lstat((parent + "/s").c_str(), &info), 0);
    EXPECT_EQ(info.st_mtim.tv_sec, 1'500'000'000) << world.shell[0];
    for (const char* way : {"p", "-"}) {
      EXPECT_EQ(run(ServiceScript::kRename, {path("f"), path("d"), in, in, "-", way}), EISDIR) << world.shell[0] << way;
      EXPECT_EQ(run(ServiceScript::kRename, {path("d"), path("f"), in, in, "-", way}), ENOTDIR) << world.shell[0] << way;
      EXPECT_EQ(run(ServiceScript::kRename, {path("d"), path("d/x"), in, path("d"), "-", way}), EINVAL) << world.shell[0] << way;
      EXPECT_EQ(run(ServiceScript::kRename, {path("x"), path("y"), in, in, "-", way}), ENOENT) << world.shell[0] << way;
      EXPECT_EQ(run(ServiceScript::kRename, {path("f"), path("x/y"), in, path("x"), "-", way}), ENOENT) << world.shell[0] << way;
    }
    EXPECT_EQ(run(ServiceScript::kRename, {path("f"), path("p"), in, in, "n", "-"}), EEXIST) << world.shell[0];
    EXPECT_EQ(run(ServiceScript::kRename, {path("f"), path("g"), in, in, "n", "-"}), 0) << world.shell[0];
    EXPECT_FALSE(std::filesystem::exists(parent + "/f"));
    EXPECT_TRUE(std::filesystem::exists(parent + "/g"));
  }
}

}  // namespace e2bfs::testing
