#include "kvcache/core/base/clock.h"

#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/manual_clock.h"

namespace kvcache {
namespace {

TEST(ClockTest, TheRealOneTellsTheSystemsTime) {
  const absl::Time before = absl::Now() - absl::Milliseconds(10);
  const absl::Time now = Clock::Real().Now();
  EXPECT_GE(now, before);
  EXPECT_LE(now, absl::Now());
  EXPECT_EQ(&Clock::Real(), &Clock::Real());
}

TEST(ManualClockTest, StandsStillUntilToldOtherwise) {
  ManualClock clock(absl::FromUnixSeconds(100));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(100));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(100));
  clock.Advance(absl::Nanoseconds(1));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(100) + absl::Nanoseconds(1));
  clock.Set(absl::FromUnixSeconds(50));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(50));
  clock.Advance(-absl::Seconds(1));
  EXPECT_EQ(clock.Now(), absl::FromUnixSeconds(49));
}

TEST(ManualClockTest, StartsAtAFixedTime) { EXPECT_EQ(ManualClock().Now(), ManualClock().Now()); }

TEST(ManualClockTest, ManyThreadsMayAdvanceIt) {
  ManualClock clock(absl::UnixEpoch());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&clock] {
      absl::Time last = clock.Now();
      for (int step = 0; step < 1000; ++step) {
        clock.Advance(absl::Milliseconds(1));
        EXPECT_GT(clock.Now(), last);
        last = clock.Now();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(clock.Now(), absl::UnixEpoch() + absl::Seconds(4));
}

}  // namespace
}  // namespace kvcache
