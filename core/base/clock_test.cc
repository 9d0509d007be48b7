#include "kvcache/core/base/clock.h"

#include <time.h>

#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/base/nanos.h"

namespace kvcache {
namespace {

Nanos SystemsMonotonicTime() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return ToNanos(absl::DurationFromTimespec(now));
}

TEST(NanosTest, DurationsBecomeNanosAndBack) {
  EXPECT_EQ(ToNanos(absl::Seconds(2)), 2'000'000'000);
  EXPECT_EQ(ToDuration(2'000'000'000), absl::Seconds(2));
  EXPECT_EQ(ToNanos(absl::InfiniteDuration()), kNever);
  EXPECT_EQ(ToDuration(kNever), absl::InfiniteDuration());
  EXPECT_EQ(ToNanos(absl::Hours(24 * 366 * 293)), kNever) << "too long for 64 bits";
}

TEST(NanosTest, LaterThanAllTimesIsNever) {
  EXPECT_EQ(Later(5, 3), 8);
  EXPECT_EQ(Later(0, kNever), kNever);
  EXPECT_EQ(Later(5, kNever), kNever);
  EXPECT_EQ(Later(5, kNever - 5), kNever);
  EXPECT_EQ(Later(5, kNever - 6), kNever - 1);
}

TEST(ClockTest, TheRealOneIsTheSystemsMonotonicClock) {
  const Nanos before = SystemsMonotonicTime() - ToNanos(absl::Milliseconds(10));
  const Nanos now = Clock::Real().Now();
  EXPECT_GE(now, before);
  EXPECT_LE(now, SystemsMonotonicTime());
  EXPECT_EQ(&Clock::Real(), &Clock::Real());
}

TEST(ManualClockTest, StandsStillUntilToldOtherwise) {
  ManualClock clock(100);
  EXPECT_EQ(clock.Now(), 100);
  EXPECT_EQ(clock.Now(), 100);
  clock.Advance(absl::Nanoseconds(1));
  EXPECT_EQ(clock.Now(), 101);
  clock.Set(150);
  EXPECT_EQ(clock.Now(), 150);
  clock.Set(150);
  EXPECT_EQ(clock.Now(), 150);
}

TEST(ManualClockDeathTest, NeverGoesBack) {
  ManualClock clock(100);
  EXPECT_DEATH(clock.Set(99), "cannot go back from 100 to 99");
  EXPECT_DEATH(clock.Advance(-absl::Nanoseconds(3)), "cannot go back by 3 ns");
  EXPECT_DEATH(ManualClock(-1), "start -1");
}

TEST(ManualClockTest, StartsAtAFixedTime) { EXPECT_EQ(ManualClock().Now(), ManualClock().Now()); }

TEST(ManualClockTest, ManyThreadsMayAdvanceIt) {
  ManualClock clock(0);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&clock] {
      Nanos last = clock.Now();
      for (int step = 0; step < 1000; ++step) {
        clock.Advance(absl::Milliseconds(1));
        EXPECT_GT(clock.Now(), last);
        last = clock.Now();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(clock.Now(), ToNanos(absl::Seconds(4)));
}

}  // namespace
}  // namespace kvcache
