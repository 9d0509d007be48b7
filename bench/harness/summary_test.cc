#include "kvcache/bench/harness/summary.h"

#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

TEST(SummarizeTest, CountsBytesAndCallsOverTheTimeInTheCalls) {
  std::vector<absl::Duration> times(99, absl::Microseconds(10));
  times.push_back(absl::Microseconds(1010));
  const Figures figures = Summarize(times, 1'000'000);
  EXPECT_DOUBLE_EQ(figures.ops_per_s, 50'000);
  EXPECT_DOUBLE_EQ(figures.gb_per_s, 50);
  EXPECT_DOUBLE_EQ(figures.p50_us, 10);
  EXPECT_DOUBLE_EQ(figures.p99_us, 10);
  times.push_back(absl::Microseconds(1010));
  EXPECT_DOUBLE_EQ(Summarize(times, 1).p99_us, 1010);
}

TEST(MedianTest, IsThatOfEachFigureOnItsOwn) {
  const Figures runs[] = {{1, 30, 200, 7}, {3, 10, 100, 8}, {2, 20, 300, 9}};
  const Figures median = Median(runs);
  EXPECT_EQ(median.gb_per_s, 2);
  EXPECT_EQ(median.ops_per_s, 20);
  EXPECT_EQ(median.p50_us, 200);
  EXPECT_EQ(median.p99_us, 8);
}

TEST(MedianTest, OfTwoIsTheirMean) {
  const Figures runs[] = {{1, 1, 1, 1}, {2, 3, 4, 5}};
  EXPECT_EQ(Median(runs).gb_per_s, 1.5);
  EXPECT_EQ(Median(runs).p99_us, 3);
}

}  // namespace
}  // namespace kvcache::bench
