#include "fuse/identity.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace e2bfs::fuse {
namespace {

TEST(Identity, TheMountingUserByDefault) {
  const Identity identity(IdentityOptions{});
  EXPECT_EQ(identity.uid(), getuid());
  EXPECT_EQ(identity.gid(), getgid());
  EXPECT_EQ(identity.Shown(04755), 04755u);
}

TEST(Identity, ChownToTheShownOwnerIsNothingAndToAnotherEperm) {
  IdentityOptions options;
  options.uid = 4711;
  options.gid = 4712;
  const Identity identity(options);
  EXPECT_TRUE(identity.CheckOwnerChange(std::nullopt, std::nullopt));
  EXPECT_TRUE(identity.CheckOwnerChange(4711, std::nullopt));
  EXPECT_TRUE(identity.CheckOwnerChange(4711, 4712));
  EXPECT_EQ(identity.CheckOwnerChange(0, std::nullopt).error().errno_value, EPERM);
  EXPECT_EQ(identity.CheckOwnerChange(4711, 4711).error().errno_value, EPERM);
  EXPECT_EQ(identity.CheckOwnerChange(std::nullopt, 0).error().errno_value, EPERM);
}

TEST(Identity, UmaskTakesPermissionsAway) {
  IdentityOptions options;
  options.umask = 0027;
  EXPECT_EQ(Identity(options).Shown(06777), 06750u);
  options.umask = 07777;  // never the bits beyond rwx
  EXPECT_EQ(Identity(options).Shown(07777), 07000u);
}

}  // namespace
}  // namespace e2bfs::fuse
