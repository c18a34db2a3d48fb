#include "fuse/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "fuse/cli.h"
#include "transport/control_plane.h"
#include "transport/http/client.h"

namespace e2bfs::fuse {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

std::string MessageOf(std::string_view argument) {
  OptionValues options;
  auto outcome = ApplyMountOptions(argument, options);
  return outcome ? "" : outcome.error().message;
}

TEST(MountOptionTable, TakesEveryKindOfValue) {
  OptionValues options;
  ASSERT_TRUE(ApplyMountOptions("ro,allow_other,uid=12,umask=022,attr_timeout=1.5,memory=2M,symlinks=raw,max_streams=7,nosuid", options));
  ASSERT_TRUE(ApplyMountOptions("idle_expiry=2m,timeout=3600,log_file=/a\\,b,,", options));
  EXPECT_TRUE(options.read_only);
  EXPECT_TRUE(options.allow_other);
  EXPECT_EQ(options.uid, 12);
  EXPECT_EQ(options.umask, 022);
  EXPECT_EQ(options.attribute_timeout, milliseconds(1500));
  EXPECT_EQ(options.memory, 2 << 20);
  EXPECT_EQ(options.symlinks, "raw");
  EXPECT_EQ(options.max_streams, 7);
  EXPECT_EQ(options.idle_expiry, milliseconds(120'000));
  EXPECT_EQ(options.sandbox_timeout_s, 3600);
  EXPECT_EQ(options.log_file, "/a,b");
  EXPECT_FALSE(options.gid.has_value());
  EXPECT_EQ(options.cache_directory, "");
  EXPECT_EQ(options.cache_size, int64_t{2} << 30);
  ASSERT_TRUE(ApplyMountOptions("cache=none,cache_size=10G", options));
  EXPECT_EQ(options.cache_directory, "none");
  EXPECT_EQ(options.cache_size, int64_t{10} << 30);
  EXPECT_THAT(MessageOf("cache_size=1000"), HasSubstr("a size from 1M to"));
}

TEST(MountOptionTable, TheLastOneWins) {
  OptionValues options;
  ASSERT_TRUE(ApplyMountOptions("ro,attr_timeout=5,rw,attr_timeout=0", options));
  EXPECT_FALSE(options.read_only);
  EXPECT_EQ(options.attribute_timeout, milliseconds(0));
}

TEST(MountOptionTable, RefusesWithTheOptionsName) {
  EXPECT_THAT(MessageOf("nonsense"), HasSubstr("unknown mount option 'nonsense'"));
  EXPECT_THAT(MessageOf("ro=1"), HasSubstr("ro takes no value"));
  EXPECT_THAT(MessageOf("attr_timeout"), HasSubstr("attr_timeout needs a value"));
  EXPECT_THAT(MessageOf("uid="), HasSubstr("uid needs a value"));
  for (const char* bad : {"attr_timeout=soon", "attr_timeout=-1", "attr_timeout=2h", "umask=8", "umask=1000", "memory=1", "memory=9999999999999T",
                          "symlinks=insid", "symlinks=inside|raw", "uid=-1", "uid=no such user", "max_streams=0", "max_streams=1.5",
                          "timeout=99999999999999999999", "log_level=loud"}) {
    EXPECT_THAT(MessageOf(bad), HasSubstr("must be")) << bad;
  }
}

TEST(MountOptionTable, ChecksWhatOptionsMeanTogether) {
  const std::set<std::string> bad = {"allow_other,allow_root", "keep_alive", "keep_alive,timeout=10"};
  for (const std::string& argument : bad) {
    OptionValues options;
    ASSERT_TRUE(ApplyMountOptions(argument, options));
    EXPECT_FALSE(CheckMountOptions(options, true)) << argument;
  }
  OptionValues options;
  ASSERT_TRUE(ApplyMountOptions("keep_alive,timeout=60,allow_root", options));
  EXPECT_TRUE(CheckMountOptions(options, false));
}

TEST(MountOptionTable, RealIdsNeedRootOnBothSides) {
  const std::string enough = "ids=real,user=root,allow_other,default_permissions";
  for (const std::string& argument : {std::string("ids=real"), std::string("ids=real,user=root,allow_other"),
                                      std::string("ids=real,user=user,allow_other,default_permissions"), enough + ",uid=0",
                                      enough + ",umask=022", enough + ",tier=service"}) {
    OptionValues options;
    ASSERT_TRUE(ApplyMountOptions(argument, options)) << argument;
    const auto checked = CheckMountOptions(options, true);
    ASSERT_FALSE(checked) << argument;
    EXPECT_NE(checked.error().message.find("ids=real"), std::string::npos);
  }
  OptionValues options;
  ASSERT_TRUE(ApplyMountOptions(enough + ",tier=syscall", options));
  EXPECT_TRUE(CheckMountOptions(options, true));
  EXPECT_FALSE(CheckMountOptions(options, false));
  EXPECT_EQ(options.tier, "syscall");
  EXPECT_FALSE(ApplyMountOptions("ids=true", options));
  EXPECT_FALSE(ApplyMountOptions("tier=fast", options));
}

TEST(MountOptionTable, HelpHasEveryOptionOnceAndItsTrueDefault) {
  std::set<std::string> seen;
  std::map<std::string, std::string> initial;
  for (const OptionHelp& line : MountOptionHelp()) {
    EXPECT_TRUE(seen.insert(line.syntax).second) << line.syntax;
    EXPECT_FALSE(line.text.empty()) << line.syntax;
    initial[line.syntax.substr(0, line.syntax.find('='))] = line.initial;
  }
  // Defaults that live in the layer below: what the table says in words has to be what happens.
  const transport::http::ClientOptions http;
  auto seconds = [](milliseconds value) { return std::to_string(value.count() / 1000); };
  EXPECT_THAT(initial["max_connections"], HasSubstr(std::to_string(http.max_connections)));
  EXPECT_EQ(initial["max_connections_per_host"], std::to_string(http.max_connections_per_origin));
  EXPECT_THAT(initial["max_idle_connections"], HasSubstr(std::to_string(http.max_idle_connections)));
  EXPECT_EQ(initial["max_streams"], std::to_string(http.max_streams_per_connection));
  EXPECT_EQ(initial["max_requests"], std::to_string(http.max_requests));
  EXPECT_EQ(initial["rate_limit"], std::to_string(http.rate_limit_requests));
  EXPECT_THAT(initial["idle_expiry"], HasSubstr(seconds(http.idle_expiry)));
  EXPECT_EQ(initial["connect_timeout"], seconds(http.connect_timeout));
  EXPECT_EQ(initial["head_timeout"], seconds(http.head_timeout));
  EXPECT_EQ(initial["idle_timeout"], seconds(http.idle_timeout));
  EXPECT_THAT(initial["timeout"], HasSubstr(std::to_string(transport::kResumeSeconds)));
  EXPECT_EQ(initial["memory"], "48M");
  EXPECT_EQ(initial["attr_timeout"], "1");
}

// An upload that gets on is not ended by it (unit/cache): the help must not let people raise it for large files.
TEST(MountOptionTable, HelpSaysThatTransferTimeoutIsForUploadsThatDoNotGetOn) {
  for (const OptionHelp& line : MountOptionHelp()) {
    if (line.syntax.starts_with("transfer_timeout")) {
      EXPECT_THAT(line.text, HasSubstr("upload that does not get on"));
    }
  }
}

TEST(MountOptionTable, EveryDefaultCanBeGivenAsAnOption) {
  for (const OptionHelp& line : MountOptionHelp()) {
    const size_t equals = line.syntax.find('=');
    const bool words = line.initial.find(' ') != std::string::npos || line.initial.empty();
    const std::string argument = equals == std::string::npos ? line.syntax : line.syntax.substr(0, equals + 1) + line.initial;
    if (equals == std::string::npos || !words) {
      EXPECT_EQ(MessageOf(argument), "");
    }
  }
}

TEST(OptionValueText, Durations) {
  EXPECT_EQ(ParseDuration("30"), milliseconds(30'000));
  EXPECT_EQ(ParseDuration("0.25"), milliseconds(250));
  EXPECT_EQ(ParseDuration("500ms"), milliseconds(500));
  EXPECT_EQ(ParseDuration("2m"), milliseconds(120'000));
  EXPECT_EQ(ParseDuration("1h"), milliseconds(3'600'000));
  for (const char* bad : {"", "-1", "1x", "m", "1e400", "nan", "inf", "1 s", "99999999999h"}) EXPECT_FALSE(ParseDuration(bad)) << bad;
}

TEST(OptionValueText, ByteCounts) {
  EXPECT_EQ(ParseByteCount("4096"), 4096);
  EXPECT_EQ(ParseByteCount("3k"), 3072);
  EXPECT_EQ(ParseByteCount("1T"), int64_t{1} << 40);
  for (const char* bad : {"", "K", "-1", "1.5M", "1MB", "9223372036854775807K"}) EXPECT_FALSE(ParseByteCount(bad)) << bad;
}

}  // namespace
}  // namespace e2bfs::fuse
