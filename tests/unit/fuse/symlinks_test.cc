#include "fuse/symlinks.h"

#include <gtest/gtest.h>

#include <climits>

namespace e2bfs::fuse {
namespace {

struct ShownCase {
  const char* target;
  const char* directory;
  const char* inside;  // nullptr: leads out
};

constexpr const char* kLinkRoot = "/home/user";

const ShownCase kShownCases[] = {
    // Relative text that stays.
    {"file", "", "file"},
    {"a/b/c", "", "a/b/c"},
    {"./a//b/", "", "./a//b/"},
    {"../file", "a", "../file"},
    {"../../file", "a/b", "../../file"},
    {"..", "a", ".."},
    {".", "", "."},
    {"...", "", "..."},
    {"..a/b", "", "..a/b"},
    {"with space\nand newline", "", "with space\nand newline"},
    // Relative text that leads out, or might.
    {"..", "", nullptr},
    {"../file", "", nullptr},
    {"./../file", "", nullptr},
    {".//../file", "", nullptr},
    {"../../file", "a", nullptr},
    {"../../../../../../../../etc/passwd", "a/b", nullptr},
    {"a/../../file", "", nullptr},
    {"a/../file", "", nullptr},   // `a` may be a link to the root
    {"../a/..", "x/y", nullptr},
    // Absolute below the root.
    {"/home/user/file", "", "file"},
    {"/home/user/file", "a", "../file"},
    {"/home/user/a/file", "a", "file"},
    {"/home/user/a/b/file", "a/c", "../b/file"},
    {"/home/user", "", "."},
    {"/home/user/", "a/b", "../.."},
    {"/home/user/a", "a", "."},
    {"//home//./user//file", "", "file"},
    // Absolute elsewhere.
    {"/", "", nullptr},
    {"/home", "", nullptr},
    {"/home/username/file", "", nullptr},
    {"/home/use", "", nullptr},
    {"/etc/passwd", "", nullptr},
    {"/home/user/../other", "", nullptr},
    {"/home/user/a/../b", "", nullptr},
    {"/proc/self/root/etc/shadow", "a/b/c", nullptr},
    // Text that looks as if it came from here.
    {".e2bfs-outside/x", "", nullptr},
};

TEST(Symlinks, InsideShowsWhatStaysAndMarksWhatDoesNot) {
  for (const ShownCase& c : kShownCases) {
    const auto shown =
        ShownLinkText(SymlinkPolicy::kInside, c.target, kLinkRoot, c.directory, PathDepth(c.directory));
    ASSERT_TRUE(shown) << c.target;
    if (c.inside != nullptr) {
      EXPECT_EQ(*shown, c.inside) << c.target << " in " << c.directory;
    } else {
      EXPECT_TRUE(shown->starts_with(kOutsidePrefix)) << c.target << " in " << c.directory << ": " << *shown;
      EXPECT_EQ(shown->find('/', kOutsidePrefix.size()), std::string::npos) << *shown;
      EXPECT_NE(*shown, std::string(kOutsidePrefix) + "..");
      EXPECT_NE(*shown, std::string(kOutsidePrefix) + ".");
      // Making a link with the shown text gives the original back.
      const auto stored = StoredLinkText(SymlinkPolicy::kInside, *shown, kLinkRoot, "/mnt/box", c.directory);
      ASSERT_TRUE(stored);
      EXPECT_EQ(*stored, c.target);
    }
  }
}

TEST(Symlinks, RefuseFailsForWhatLeadsOut) {
  for (const ShownCase& c : kShownCases) {
    const auto shown =
        ShownLinkText(SymlinkPolicy::kRefuse, c.target, kLinkRoot, c.directory, PathDepth(c.directory));
    if (c.inside != nullptr) {
      ASSERT_TRUE(shown) << c.target;
      EXPECT_EQ(*shown, c.inside);
    } else {
      ASSERT_FALSE(shown) << c.target;
      EXPECT_EQ(shown.error().errno_value, EPERM);
    }
  }
  const auto made = StoredLinkText(SymlinkPolicy::kRefuse, "../x", kLinkRoot, "/mnt/box", "");
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().errno_value, EPERM);
  EXPECT_FALSE(StoredLinkText(SymlinkPolicy::kRefuse, "/etc/passwd", kLinkRoot, "/mnt/box", ""));
  EXPECT_FALSE(StoredLinkText(SymlinkPolicy::kRefuse, ".e2bfs-outside/..", kLinkRoot, "/mnt/box", "a"));
  EXPECT_TRUE(StoredLinkText(SymlinkPolicy::kRefuse, "../x", kLinkRoot, "/mnt/box", "a"));
  EXPECT_TRUE(StoredLinkText(SymlinkPolicy::kRefuse, "/mnt/box/x", kLinkRoot, "/mnt/box", ""));
}

TEST(Symlinks, RawChangesNothing) {
  for (const ShownCase& c : kShownCases) {
    EXPECT_EQ(ShownLinkText(SymlinkPolicy::kRaw, c.target, kLinkRoot, c.directory, 0).value_or("?"), c.target);
    EXPECT_EQ(StoredLinkText(SymlinkPolicy::kRaw, c.target, kLinkRoot, "/mnt", c.directory).value_or("?"), c.target);
  }
}

TEST(Symlinks, AFurtherNameNearerToTheRootDecides) {
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "../../f", kLinkRoot, "a/b", 2).value(), "../../f");
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "../../f", kLinkRoot, "a/b", 1).value(), ".e2bfs-outside/..%2F..%2Ff");
  EXPECT_TRUE(ShownLinkText(SymlinkPolicy::kInside, "/home/user/f", kLinkRoot, "a/b", 0)->starts_with(kOutsidePrefix));
}

TEST(Symlinks, TheWholeSandboxAsRootLeavesNothingOutsideButDots) {
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "/etc/passwd", "/", "usr/lib", 2).value(), "../../etc/passwd");
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "/usr/lib/x", "/", "usr/lib", 2).value(), "x");
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "/", "/", "usr", 1).value(), "..");
  EXPECT_TRUE(ShownLinkText(SymlinkPolicy::kInside, "../x", "/", "", 0)->starts_with(kOutsidePrefix));
}

TEST(Symlinks, TextThatNoLinkCanHaveIsAnError) {
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, "", kLinkRoot, "", 0).error().errno_value, EIO);
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kRaw, std::string_view("a\0b", 3), kLinkRoot, "", 0).error().errno_value, EIO);
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kRaw, std::string(PATH_MAX, 'x'), kLinkRoot, "", 0).error().errno_value,
            ENAMETOOLONG);
  // Fits as it is, but not as it would be shown.
  std::string deep;
  while (deep.size() < 3000) deep += "/x";
  EXPECT_EQ(ShownLinkText(SymlinkPolicy::kInside, deep, kLinkRoot, "", 0).error().errno_value, ENAMETOOLONG);
}

TEST(Symlinks, OnlyWhatIsShownIsDecoded) {
  const auto stored = [](std::string_view text) {
    return StoredLinkText(SymlinkPolicy::kInside, text, kLinkRoot, "/mnt/box", "").value_or("?");
  };
  EXPECT_EQ(stored(".e2bfs-outside/%2Fetc%2Fpasswd"), "/etc/passwd");
  EXPECT_EQ(stored(".e2bfs-outside/100%25"), "100%");
  EXPECT_EQ(stored(".e2bfs-outside/%2E%2E"), "..");
  // Not in the form that we make: stored as they are.
  EXPECT_EQ(stored(".e2bfs-outside/"), ".e2bfs-outside/");
  EXPECT_EQ(stored(".e2bfs-outside/.."), ".e2bfs-outside/..");
  EXPECT_EQ(stored(".e2bfs-outside/%2fetc"), ".e2bfs-outside/%2fetc");
  EXPECT_EQ(stored(".e2bfs-outside/%2"), ".e2bfs-outside/%2");
  EXPECT_EQ(stored(".e2bfs-outside/a/b"), ".e2bfs-outside/a/b");
  EXPECT_EQ(stored("x/.e2bfs-outside/%2Fetc"), "x/.e2bfs-outside/%2Fetc");
}

TEST(Symlinks, AnAbsolutePathBelowTheMountPointIsThatPlaceInTheSandbox) {
  const auto stored = [](std::string_view text, std::string_view root) {
    return StoredLinkText(SymlinkPolicy::kInside, text, root, "/mnt/box", "").value_or("?");
  };
  EXPECT_EQ(stored("/mnt/box/a/b", kLinkRoot), "/home/user/a/b");
  EXPECT_EQ(stored("/mnt/box", kLinkRoot), "/home/user");
  EXPECT_EQ(stored("/mnt/box/a", "/"), "/a");
  EXPECT_EQ(stored("/mnt/box", "/"), "/");
  EXPECT_EQ(stored("/mnt/boxes/a", kLinkRoot), "/mnt/boxes/a");
  EXPECT_EQ(stored("/mnt/box/../a", kLinkRoot), "/mnt/box/../a");
}

TEST(Symlinks, PolicyNames) {
  EXPECT_EQ(ParseSymlinkPolicy("inside").value(), SymlinkPolicy::kInside);
  EXPECT_EQ(ParseSymlinkPolicy("raw").value(), SymlinkPolicy::kRaw);
  EXPECT_EQ(ParseSymlinkPolicy("refuse").value(), SymlinkPolicy::kRefuse);
  EXPECT_EQ(ParseSymlinkPolicy("Inside").error().errno_value, EINVAL);
}

}  // namespace
}  // namespace e2bfs::fuse
