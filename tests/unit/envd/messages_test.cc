#include "transport/envd/messages.h"

#include <gtest/gtest.h>

#include <csignal>

namespace e2bfs::transport::envd {
namespace {

std::string EntryJson(const std::string& name, const std::string& path, const std::string& more = "") {
  return R"({"name":")" + name + R"(","path":")" + path + R"(","permissions":"-rw-r--r--")" + more + "}";
}

TEST(Messages, PermissionLetters) {
  const struct {
    const char* letters;
    FileType type;
    uint32_t permissions;
  } good[] = {
      {"-rw-r--r--", FileType::kRegular, 0644},      {"drwxr-xr-x", FileType::kDirectory, 0755},
      {"Lrwxrwxrwx", FileType::kSymlink, 0777},      {"urwxr-xr-x", FileType::kRegular, 04755},
      {"grwxr-xr-x", FileType::kRegular, 02755},     {"dgtrwxrwxr-x", FileType::kDirectory, 03775},
      {"dtrwxrwxrwx", FileType::kDirectory, 01777},  {"ug--x--x--x", FileType::kRegular, 06111},
      {"prw-r--r--", FileType::kFifo, 0644},         {"Srwxrwxrwx", FileType::kSocket, 0777},
      {"Dcrw-rw-rw-", FileType::kCharDevice, 0666},  {"Drw-rw----", FileType::kBlockDevice, 0660},
      {"----------", FileType::kRegular, 0},         {"dugtrwxrwxrwx", FileType::kDirectory, 07777},
      {"?rw-r--r--", FileType::kSocket, 0644},
  };
  for (const auto& c : good) {
    const auto parsed = ParsePermissionLetters(c.letters);
    ASSERT_TRUE(parsed) << c.letters;
    EXPECT_EQ(parsed->type, c.type) << c.letters;
    EXPECT_EQ(parsed->permissions, c.permissions) << c.letters;
  }
  for (const char* bad : {"", "rwxrwxrwx", "-", "xrw-r--r--", "-rw-r--r-", "-rwxrwxrwx ", "ddrwxr-xr-x", "dLrwxr-xr-x", "crw-rw-rw-",
                          "tdrwxrwxrwx", "-wr-r--r--", "--rw-r--r--", "uurwxrwxrwx"}) {
    EXPECT_FALSE(ParsePermissionLetters(bad)) << bad;
  }
}

TEST(Messages, Timestamps) {
  const auto check = [](const char* text, time_t seconds, long nanoseconds) {
    const auto time = ParseTimestamp(text);
    ASSERT_TRUE(time) << text;
    EXPECT_EQ(time->tv_sec, seconds) << text;
    EXPECT_EQ(time->tv_nsec, nanoseconds) << text;
  };
  check("1970-01-01T00:00:00Z", 0, 0);
  check("2026-11-21T14:31:26.123456789Z", 1795271486, 123456789);
  check("2026-11-21T14:31:26.5Z", 1795271486, 500000000);
  check("2026-11-21T16:31:26.123+02:00", 1795271486, 123000000);
  check("1969-12-31T23:59:59.999999999Z", -1, 999999999);
  check("0001-01-01T00:00:00Z", -62135596800, 0);
  check("2024-02-29T00:00:00Z", 1709164800, 0);
  for (const char* bad : {"", "2026-11-21", "2026-11-21T14:31:26", "2026-13-21T14:31:26Z", "2026-02-29T00:00:00Z", "2026-11-21T24:00:00Z",
                          "2026-11-21T14:31:26.Z", "2026-11-21T14:31:26.1234567890Z", "2026-11-21T14:31:26Zx", "2026-11-21T14:31:26+2:00",
                          "2026-11-21T14:31:26+", "0000-01-01T00:00:00Z", "2026/11/21T14:31:26Z", "-026-11-21T14:31:26Z"}) {
    EXPECT_FALSE(ParseTimestamp(bad)) << bad;
  }
}

TEST(Messages, NamesPathsAndUtf8) {
  for (const char* good : {"a", "...", "-x", "a b", "new\nline", "\xff"}) EXPECT_TRUE(IsSafeName(good)) << good;
  for (const auto& bad : {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("a\0b", 3), std::string(256, 'n')}) {
    EXPECT_FALSE(IsSafeName(bad));
  }
  EXPECT_TRUE(IsSafeRelativePath("a/b/c"));
  for (const char* bad : {"", "/a", "a/", "a//b", "a/../b", "./a"}) EXPECT_FALSE(IsSafeRelativePath(bad)) << bad;
  EXPECT_TRUE(IsUtf8("aü€😀"));
  for (const char* bad : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "\xe0\x80\x80"}) EXPECT_FALSE(IsUtf8(bad));
  EXPECT_EQ(CleanAbsolutePath("/a//b/./c/../d/"), "/a/b/d");
  EXPECT_EQ(CleanAbsolutePath("/../.."), "/");
  EXPECT_EQ(CleanAbsolutePath("a/b"), "");
}

TEST(Messages, Requests) {
  EXPECT_EQ(*EncodePathRequest("/a\"b"), R"({"path":"/a\"b"})");
  EXPECT_EQ(*EncodeListDir("/", 3), R"({"depth":3,"path":"/"})");
  EXPECT_EQ(*EncodeMove("/a", "/b"), R"({"destination":"/b","source":"/a"})");
  EXPECT_EQ(*EncodeSelector({42, ""}), R"({"process":{"pid":42}})");
  EXPECT_EQ(*EncodeSelector({0, "t"}), R"({"process":{"tag":"t"}})");
  EXPECT_EQ(*EncodeSignal({42, ""}, SIGKILL), R"({"process":{"pid":42},"signal":"SIGNAL_SIGKILL"})");
  EXPECT_EQ(*EncodeSendInput({42, ""}, "one"), R"({"input":{"stdin":"b25l"},"process":{"pid":42}})");
  EXPECT_EQ(*EncodeInputStart({42, ""}), R"({"start":{"process":{"pid":42}}})");
  EXPECT_EQ(EncodeInputData("one"), R"({"data":{"input":{"stdin":"b25l"}}})");
  EXPECT_EQ(*EncodeCompose({"/p1", "/p2"}, "/d", "user"), R"({"destination":"/d","source_paths":["/p1","/p2"],"username":"user"})");
  StartRequest start;
  start.process = {"ls", {"-l", "ü"}, {{"LC_ALL", "C"}}, "/tmp"};
  EXPECT_EQ(*EncodeStart(start), R"({"process":{"args":["-l","ü"],"cmd":"ls","cwd":"/tmp","envs":{"LC_ALL":"C"}},"stdin":false})");
  start.process = {"true", {}, {}, ""};
  start.stdin_open = true;
  start.tag = "t";
  EXPECT_EQ(*EncodeStart(start), R"({"process":{"args":[],"cmd":"true","envs":{}},"stdin":true,"tag":"t"})");
}

TEST(Messages, WhatCannotBeSentIsRefused) {
  EXPECT_EQ(EncodePathRequest("/\xff").error().errno_value, EILSEQ);
  EXPECT_EQ(EncodePathRequest(std::string("/a\0b", 4)).error().errno_value, EINVAL);
  EXPECT_EQ(EncodeMove("/a", "/\xff").error().errno_value, EILSEQ);
  StartRequest start;
  start.process.arguments = {"\xfe"};
  EXPECT_EQ(EncodeStart(start).error().errno_value, EILSEQ);
  EXPECT_EQ(EncodeSignal({1, ""}, SIGHUP).error().errno_value, EINVAL);
}

// Recorded answers of a real envd 0.6.13 (shared/envd-0.6.13.json), with $ROOT as /r.
TEST(Messages, EntriesAsRealEnvdSendsThem) {
  auto file = DecodeEntryAnswer(
      R"({"entry":{"name":"f","type":"FILE_TYPE_FILE","path":"/r/f","size":"10000","mode":420,"permissions":"-rw-r--r--","owner":"user",)"
      R"("group":"staff","modifiedTime":"2026-11-21T14:31:26.123456789Z","unknownField":[1,{}]}})");
  ASSERT_TRUE(file) << ToString(file.error());
  EXPECT_EQ(file->name, "f");
  EXPECT_EQ(file->type, FileType::kRegular);
  EXPECT_EQ(file->size, 10000);
  EXPECT_EQ(file->permissions, 0644U);
  EXPECT_EQ(file->owner, "user");
  EXPECT_EQ(file->group, "staff");
  EXPECT_EQ(file->mtime.tv_nsec, 123456789);
  EXPECT_FALSE(file->resolved_target);

  // Trap 4: type and mode are the target's; the letters are the link's.
  auto link = DecodeEntryAnswer(
      R"({"entry":{"name":"link","type":"FILE_TYPE_FILE","path":"/r/link","size":"1","mode":420,"permissions":"Lrwxrwxrwx","owner":"root",)"
      R"("group":"root","modifiedTime":"2026-11-21T14:31:26Z","symlinkTarget":"/r/f"}})");
  ASSERT_TRUE(link);
  EXPECT_EQ(link->type, FileType::kSymlink);
  EXPECT_EQ(link->permissions, 0777U);
  EXPECT_EQ(link->resolved_target, "/r/f");

  // A file at its defaults: no size. A fifo: no type. A device.
  auto fifo = DecodeEntryAnswer(R"({"entry":{"name":"fifo","path":"/r/fifo","mode":420,"permissions":"prw-r--r--"}})");
  ASSERT_TRUE(fifo);
  EXPECT_EQ(fifo->type, FileType::kFifo);
  EXPECT_EQ(fifo->size, 0);

  auto root = DecodeEntryAnswer(R"({"entry":{"name":"/","type":"FILE_TYPE_DIRECTORY","path":"/","mode":493,"permissions":"drwxr-xr-x"}})");
  ASSERT_TRUE(root);
  EXPECT_EQ(root->name, "");

  // 0.2.11's MakeDir.
  auto made = DecodeEntryAnswer(R"({"entry":{"name":"y","type":"FILE_TYPE_DIRECTORY","path":"/r/y"}})");
  ASSERT_TRUE(made);
  EXPECT_FALSE(made->complete);
  EXPECT_EQ(made->type, FileType::kDirectory);

  auto metadata = DecodeEntryAnswer(R"({"entry":{"name":"f","path":"/r/f","permissions":"-rw-r--r--","metadata":{"color":"red"}}})");
  ASSERT_TRUE(metadata);
  EXPECT_EQ(metadata->metadata.at("color"), "red");
}

TEST(Messages, HostileEntriesAreProtocolErrors) {
  const std::string deep(100'000, '[');
  const std::string cases[] = {
      "", "null", "[]", "{", "{}", R"({"entry":null})", R"({"entry":[]})", R"({"entry":"x"})", R"({"entry":{}})", deep,
      R"({"entry":)" + deep,
      R"({"entry":)" + EntryJson("..", "/r/..") + "}",
      R"({"entry":)" + EntryJson(".", "/r/.") + "}",
      R"({"entry":)" + EntryJson("", "/r/") + "}",
      R"({"entry":)" + EntryJson("a/b", "/r/a/b") + "}",
      R"({"entry":)" + EntryJson("a\\u0000b", "/r/a") + "}",
      R"({"entry":)" + EntryJson(std::string(256, 'n'), "/r/n") + "}",
      R"({"entry":)" + EntryJson("a", "r/a") + "}",
      R"({"entry":)" + EntryJson("a", "") + "}",
      R"({"entry":)" + EntryJson("a", "/" + std::string(100'000, 'p')) + "}",
      R"({"entry":)" + EntryJson("/", "/r") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":"-1")") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":-1)") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":"9223372036854775808")") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":9223372036854775808)") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":1e30)") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":"12x")") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"size":{})") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"modifiedTime":"yesterday")") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"owner":7)") + "}",
      R"({"entry":)" + EntryJson("a", "/r/a", R"(,"metadata":{"k":1})") + "}",
      R"({"entry":{"name":"a","path":"/r/a","permissions":"rubbish"}})",
      "{\"entry\":{\"name\":\"\xff\",\"path\":\"/r/a\",\"permissions\":\"-rw-r--r--\"}}",
      R"({"entry":)" + EntryJson("a", "/r/a") + "} trailing",
  };
  for (const auto& json : cases) {
    const auto entry = DecodeEntryAnswer(json);
    ASSERT_FALSE(entry) << json.substr(0, 200);
    EXPECT_EQ(entry.error().kind, ErrorKind::kProtocol) << json.substr(0, 200);
    EXPECT_EQ(entry.error().errno_value, EIO);
  }
}

TEST(Messages, ListingOfATree) {
  const std::string json = R"({"entries":[)" + EntryJson("a", "/r/a") + "," + EntryJson("b", "/r/a/b") + "," + EntryJson("a!", "/r/a!") +
                           R"(],"more":[{"name":"x"}]})";
  auto entries = DecodeListing(json, "/r", {10, 2});
  ASSERT_TRUE(entries) << ToString(entries.error());
  ASSERT_EQ(entries->size(), 3U);
  EXPECT_EQ((*entries)[1].relative_path, "a/b");
  EXPECT_EQ((*entries)[1].name, "b");
  EXPECT_EQ((*entries)[2].relative_path, "a!");
  EXPECT_TRUE(DecodeListing("{}", "/r", {10, 1})->empty());
  EXPECT_TRUE(DecodeListing(R"({"entries":[]})", "/r", {10, 1})->empty());
  // The root directory, whose path ends with the separator.
  auto root = DecodeListing(R"({"entries":[)" + EntryJson("a", "/a") + "]}", "/", {10, 1});
  ASSERT_TRUE(root);
  EXPECT_EQ((*root)[0].relative_path, "a");
  // Not in a walk's order: sorted into it.
  auto sorted = DecodeListing(R"({"entries":[)" + EntryJson("b", "/r/b") + "," + EntryJson("a", "/r/a") + "]}", "/r", {10, 1});
  ASSERT_TRUE(sorted);
  EXPECT_EQ((*sorted)[0].name, "a");
}

TEST(Messages, HostileListingsAreProtocolErrors) {
  const auto list = [](const std::string& entries) { return R"({"entries":[)" + entries + "]}"; };
  const std::string cases[] = {
      "", "[]", "null", R"({"entries":{}})", R"({"entries":"x"})", R"({"entries":{"a":{}}})", list("1"), list("\"x\""), list("[]"), list("null"),
      list(EntryJson("a", "/r/a")).substr(0, 60),
      list(EntryJson("a", "/q/a")),
      list(EntryJson("a", "/ra")),
      list(EntryJson("r", "/r")),
      list(EntryJson("a", "/r//a")),
      list(EntryJson("b", "/r/a/b")),                                      // deeper than asked
      list(EntryJson("passwd", "/r/../etc/passwd")),
      list(EntryJson("a", "/r/b")),                                        // the path's name is another
      list(EntryJson("a", "/r/a") + "," + EntryJson("a", "/r/a")),         // twice
      list(EntryJson("b", "/r/b") + "," + EntryJson("a", "/r/a") + "," + EntryJson("b", "/r/b")),
      list(EntryJson("a", "/r/a") + "," + EntryJson("b", "/r/b") + "," + EntryJson("c", "/r/c") + "," + EntryJson("d", "/r/d")),  // more than 3
      list(EntryJson("a", "/r/a", R"(,"metadata":{"a":{"b":{"c":{"d":{"e":{"f":{}}}}}}})")),
      std::string(1'000'000, '['),
  };
  for (const auto& json : cases) {
    const auto entries = DecodeListing(json, "/r", {3, 1});
    ASSERT_FALSE(entries) << json.substr(0, 200);
    EXPECT_EQ(entries.error().kind, ErrorKind::kProtocol) << json.substr(0, 200);
  }
}

TEST(Messages, ProcessEvents) {
  auto start = DecodeProcessMessage(R"({"event":{"start":{"pid":17}}})");
  ASSERT_TRUE(start && *start);
  EXPECT_EQ((*start)->pid, 17U);
  auto data = DecodeProcessMessage(R"({"event":{"data":{"stderr":"/wB4"}}})");
  ASSERT_TRUE(data && *data);
  EXPECT_EQ((*data)->kind, ProcessEvent::Kind::kStderr);
  EXPECT_EQ((*data)->data, std::string("\xff\0x", 3));
  auto killed = DecodeProcessMessage(R"({"event":{"end":{"exitCode":-1,"status":"signal: killed","error":"signal: killed"}}})");
  ASSERT_TRUE(killed && *killed);
  EXPECT_EQ((*killed)->end.exit_code, -1);
  EXPECT_FALSE((*killed)->end.exited);
  auto good = DecodeProcessMessage(R"({"event":{"end":{"exited":true,"status":"exit status 0"}}})");
  ASSERT_TRUE(good && *good);
  EXPECT_EQ((*good)->end.exit_code, 0);
  for (const char* nothing : {R"({"event":{"keepalive":{}}})", R"({"event":{"new":{}}})", "{}", R"({"event":{"data":{}}})"}) {
    auto event = DecodeProcessMessage(nothing);
    ASSERT_TRUE(event) << nothing;
    EXPECT_FALSE(*event) << nothing;
  }
  for (const char* bad : {"", "[]", R"({"event":1})", R"({"event":{"start":{}}})", R"({"event":{"start":{"pid":-1}}})",
                          R"({"event":{"start":{"pid":4294967296}}})", R"({"event":{"data":{"stdout":"!!"}}})",
                          R"({"event":{"data":{"stdout":7}}})", R"({"event":{"end":{"exitCode":"x"}}})", R"({"event":{"end":[]}})"}) {
    EXPECT_FALSE(DecodeProcessMessage(bad)) << bad;
  }
}

TEST(ConnectMessages, OutputIsTheSameHoweverItIsWritten) {
  for (const char* json : {R"({"event":{"data":{"stdout":"AAEC/w=="}}})", R"({"event":{"data":{"stdout":"AAEC_w"}}})",
                           R"({ "event": {"data":{"stdout":"AAEC/w=="}}})", R"({"event":{"data":{"stdout":"AAEC\/w=="}}})"}) {
    const auto event = DecodeProcessMessage(json);
    ASSERT_TRUE(event && *event) << json;
    EXPECT_EQ((*event)->kind, ProcessEvent::Kind::kStdout);
    EXPECT_EQ((*event)->data, std::string("\0\1\2\xff", 4)) << json;
  }
  EXPECT_EQ((*DecodeProcessMessage(R"({"event":{"data":{"stdout":"AA","stderr":"A"}}})"))->data, std::string(1, '\0'));
}

TEST(Messages, WatchEvents) {
  auto start = DecodeWatchMessage(R"({"start":{}})");
  ASSERT_TRUE(start);
  EXPECT_TRUE(std::holds_alternative<StreamStarted>(*start));
  auto event = DecodeWatchMessage(R"({"filesystem":{"name":"s2/q","type":"EVENT_TYPE_RENAME"}})");
  ASSERT_TRUE(event);
  EXPECT_EQ(std::get<WatchEvent>(*event).name, "s2/q");
  EXPECT_EQ(std::get<WatchEvent>(*event).type, WatchEventType::kRename);
  auto self = DecodeWatchMessage(R"({"filesystem":{"name":".","type":"EVENT_TYPE_REMOVE"}})");
  ASSERT_TRUE(self);
  auto with_entry = DecodeWatchMessage(R"({"filesystem":{"name":"a","type":"EVENT_TYPE_WRITE","entry":)" + EntryJson("a", "/r/a") + "}}");
  ASSERT_TRUE(with_entry);
  EXPECT_EQ(std::get<WatchEvent>(*with_entry).entry->permissions, 0644U);
  EXPECT_TRUE(std::holds_alternative<StreamKeepAlive>(*DecodeWatchMessage(R"({"keepalive":{}})")));
  for (const char* bad : {R"({"filesystem":{"name":"../x"}})", R"({"filesystem":{"name":"/etc/passwd"}})", R"({"filesystem":{}})",
                          R"({"filesystem":[]})", R"({"filesystem":{"name":"a","entry":{}}})"}) {
    EXPECT_FALSE(DecodeWatchMessage(bad)) << bad;
  }
  EXPECT_EQ(*DecodeWatcherId(R"({"watcherId":"w1"})"), "w1");
  EXPECT_FALSE(DecodeWatcherId("{}"));
  EXPECT_EQ(DecodeWatcherEvents(R"({"events":[{"name":"a","type":"EVENT_TYPE_CREATE"}]})")->size(), 1U);
}

TEST(Messages, FilesMetricsAndProcesses) {
  auto written = DecodeWrittenFile(R"([{"name":"b","path":"/r/b","type":"file","metadata":{"k":"v"}}])");
  ASSERT_TRUE(written);
  EXPECT_EQ(written->name, "b");
  EXPECT_EQ(written->metadata.at("k"), "v");
  EXPECT_TRUE(DecodeWrittenFile(R"({"name":"dst","path":"/r/dst","type":"file"})"));
  for (const char* bad : {"", "[]", "{}", R"([{"name":"b","path":"/r/b","type":"file"},{"name":"c","path":"/r/c","type":"file"}])",
                          R"([{"name":"b","path":"/r/b","type":"dir"}])", R"([{"name":"..","path":"/r/b","type":"file"}])", R"([1])"}) {
    EXPECT_FALSE(DecodeWrittenFile(bad)) << bad;
  }
  auto metrics = DecodeMetrics(R"({"ts":1795271486,"cpu_count":2,"cpu_used_pct":1.5,"mem_total":8000,"disk_used":10,"disk_total":100})");
  ASSERT_TRUE(metrics);
  EXPECT_EQ(metrics->disk_total, 100);
  EXPECT_EQ(metrics->cpu_count, 2);
  EXPECT_FALSE(DecodeMetrics(R"({"disk_used":-1})"));
  auto processes = DecodeProcessList(R"({"processes":[{"config":{"cmd":"sh","args":["-c","x"],"envs":{"A":"b"}},"pid":9,"tag":"t"}]})");
  ASSERT_TRUE(processes);
  ASSERT_EQ(processes->size(), 1U);
  EXPECT_EQ((*processes)[0].config.arguments[1], "x");
  EXPECT_FALSE(DecodeProcessList(R"({"processes":[{"config":{"args":[1]}}]})"));
}

}  // namespace
}  // namespace e2bfs::transport::envd
