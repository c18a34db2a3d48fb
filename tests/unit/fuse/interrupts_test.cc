#include "fuse/interrupts.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <string>

namespace e2bfs::fuse {
namespace {

std::string SignalStatus(uint64_t thread, uint64_t shared, uint64_t blocked, uint64_t ignored, uint64_t caught) {
  char text[512];
  snprintf(text, sizeof text,
           "Name:\tcat\nState:\tD (disk sleep)\nSigQ:\t1/2\nSigPnd:\t%016lx\nShdPnd:\t%016lx\nSigBlk:\t%016lx\n"
           "SigIgn:\t%016lx\nSigCgt:\t%016lx\nCapInh:\t0000000000000000\n",
           thread, shared, blocked, ignored, caught);
  return text;
}

constexpr uint64_t Mask(int signal) { return uint64_t{1} << (signal - 1); }

TEST(Interrupts, KillIsDeadlyWhereverItIsPending) {
  EXPECT_TRUE(StatusSaysDying(SignalStatus(Mask(SIGKILL), 0, 0, 0, 0)));
  EXPECT_TRUE(StatusSaysDying(SignalStatus(0, Mask(SIGKILL), 0, 0, 0)));
  EXPECT_TRUE(StatusSaysDying(SignalStatus(Mask(SIGKILL), Mask(SIGINT), ~0ul, 0, ~0ul)));
}

TEST(Interrupts, ASignalThatTheProgramHandlesIsNot) {
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, 0, 0, 0, 0)));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGINT), 0, 0, Mask(SIGINT))));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(Mask(SIGALRM), 0, 0, 0, Mask(SIGALRM))));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(Mask(SIGURG), 0, 0, 0, 0)));    // ignored by default; Go's preemption
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGCHLD), 0, 0, 0)));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGWINCH), 0, 0, 0)));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGTSTP), 0, 0, 0)));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGTERM), Mask(SIGTERM), 0, 0)));
  EXPECT_FALSE(StatusSaysDying(SignalStatus(0, Mask(SIGHUP), 0, Mask(SIGHUP), 0)));
}

TEST(Interrupts, OneWhoseDefaultIsTheEndIs) {
  EXPECT_TRUE(StatusSaysDying(SignalStatus(0, Mask(SIGQUIT), 0, 0, 0)));  // dumps core: the kernel makes no SIGKILL of it
  EXPECT_TRUE(StatusSaysDying(SignalStatus(Mask(SIGTERM) | Mask(SIGALRM), 0, 0, 0, Mask(SIGALRM))));
}

TEST(Interrupts, OtherTextIsNoReason) {
  EXPECT_FALSE(StatusSaysDying(""));
  EXPECT_FALSE(StatusSaysDying("SigPnd:\tzzzz\nShdPnd:\t0000000000000100\n"));
  EXPECT_FALSE(StatusSaysDying("SigPnd:"));
  EXPECT_FALSE(StatusSaysDying(std::string(5000, '\n')));
}

TEST(Interrupts, ThisThreadLivesAndNobodyDoesNot) {
  EXPECT_FALSE(CallerIsDying(gettid()));
  EXPECT_FALSE(CallerIsDying(0));
  EXPECT_FALSE(CallerIsDying(-1));
}

// Until `condition`, within what even a sanitizer on a loaded machine needs.
template <typename Condition>
bool SoonEnough(Condition condition) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

TEST(Interrupts, ARequestOnceInterruptedIsWatchedUntilItsCallerDies) {
  std::atomic<bool> dying{false};
  std::atomic<int> looks{0};
  InterruptWatch watch(
      [&](pid_t tid) {
        if (tid != 7) return false;
        ++looks;
        return dying.load();
      },
      std::chrono::milliseconds(1));
  std::stop_source seven, eight;
  watch.Interrupted(1, 7, seven);
  watch.Interrupted(2, 8, eight);
  ASSERT_TRUE(SoonEnough([&] { return looks >= 3; }));
  EXPECT_FALSE(seven.stop_requested());
  dying = true;
  EXPECT_TRUE(SoonEnough([&] { return seven.stop_requested(); }));
  EXPECT_FALSE(eight.stop_requested());
}

TEST(Interrupts, AFinishedRequestIsNotWatched) {
  std::atomic<int> looks_at_first{0}, looks_at_second{0};
  InterruptWatch watch([&](pid_t tid) { return ++(tid == 1 ? looks_at_first : looks_at_second) < 0; },
                       std::chrono::milliseconds(1));
  watch.Interrupted(1, 1, std::stop_source());
  ASSERT_TRUE(SoonEnough([&] { return looks_at_first > 0; }));
  watch.Finished(1);
  watch.Finished(99);
  watch.Interrupted(2, 2, std::stop_source());
  ASSERT_TRUE(SoonEnough([&] { return looks_at_second >= 2; }));  // a whole round began after the end
  const int before = looks_at_first;
  const int rounds = looks_at_second;
  ASSERT_TRUE(SoonEnough([&] { return looks_at_second >= rounds + 3; }));
  EXPECT_EQ(looks_at_first, before);
}

}  // namespace
}  // namespace e2bfs::fuse
