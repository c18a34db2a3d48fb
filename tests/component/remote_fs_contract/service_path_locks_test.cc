#include "transport/service_path_locks.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

namespace e2bfs::transport {
namespace {

class ServicePathLocks : public ::testing::Test {
 protected:
  // Whether it is granted at once.
  int Use(std::vector<std::string> paths) { return Tried(locks_.Use(std::move(paths), Soon())); }
  int Change(std::vector<std::string> paths) { return Tried(locks_.Change(std::move(paths), Soon())); }
  static int Tried(const Result<PathLocks::Held>& held) { return held ? 0 : held.error().errno_value; }
  static OpContext Soon() { return OpContext::Within(std::chrono::milliseconds(30)); }

  PathLocks locks_;
  OpContext ctx_ = OpContext::Within(std::chrono::minutes(1));
};

TEST_F(ServicePathLocks, UsersDoNotDisturbEachOther) {
  auto held = locks_.Use({"a/b"}, ctx_);
  EXPECT_EQ(Use({"a/b"}), 0);
  EXPECT_EQ(Use({"a", "a/b/c", ""}), 0);
}

TEST_F(ServicePathLocks, AChangeWaitsForUsersAtAndBelowItAndTheyForIt) {
  {
    auto held = locks_.Use({"a/b"}, ctx_);
    EXPECT_EQ(Change({"a/b"}), ETIMEDOUT);
    EXPECT_EQ(Change({"x", "a"}), ETIMEDOUT);
    EXPECT_EQ(Change({"a/b/c"}), 0);
    EXPECT_EQ(Change({"a/bc"}), 0);
  }
  auto held = locks_.Change({"a/b", "c"}, ctx_);
  EXPECT_EQ(Use({"a/b/x"}), ETIMEDOUT);
  EXPECT_EQ(Use({"c"}), ETIMEDOUT);
  EXPECT_EQ(Use({"a"}), 0);
  EXPECT_EQ(Change({"a"}), ETIMEDOUT);
  EXPECT_EQ(Change({"d"}), 0);
}

TEST_F(ServicePathLocks, WhoWaitsGoesBeforeWhoComesLater) {
  auto first = std::make_unique<PathLocks::Held>(*locks_.Use({"a"}, ctx_));
  std::promise<void> let_go;
  std::thread changer([&] {
    auto held = locks_.Change({"a"}, ctx_);
    let_go.get_future().wait();
  });
  while (Use({"a"}) == 0) {
  }
  first.reset();
  EXPECT_EQ(Use({"a"}), ETIMEDOUT);  // it is the changer's turn
  let_go.set_value();
  changer.join();
  EXPECT_EQ(Use({"a"}), 0);
}

TEST_F(ServicePathLocks, WhoWasStoppedIsInNobodysWay) {
  auto held = locks_.Use({"a"}, ctx_);
  std::stop_source stop;
  stop.request_stop();
  OpContext stopped = ctx_;
  stopped.stop = stop.get_token();
  EXPECT_EQ(Tried(locks_.Change({"a"}, stopped)), EINTR);
  EXPECT_EQ(Use({"a"}), 0);
}

}  // namespace
}  // namespace e2bfs::transport
