#include "kvcache/examples/demo/percentile.h"

#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

using absl::Milliseconds;

std::vector<absl::Duration> Descending(int count) {
  std::vector<absl::Duration> times;
  for (int i = count; i > 0; --i) times.push_back(Milliseconds(i));
  return times;
}

TEST(PercentileTest, OfAHundredIsTheOneOfThatRank) {
  for (int percent : {1, 50, 95, 99, 100}) {
    EXPECT_EQ(Percentile(Descending(100), percent), Milliseconds(percent));
  }
}

TEST(PercentileTest, IsTheSmallestThatEnoughDoNotExceed) {
  EXPECT_EQ(Percentile(Descending(4), 50), Milliseconds(2));
  EXPECT_EQ(Percentile(Descending(5), 50), Milliseconds(3));
  EXPECT_EQ(Percentile(Descending(10), 95), Milliseconds(10));
  EXPECT_EQ(Percentile(Descending(20), 95), Milliseconds(19));
  EXPECT_EQ(Percentile(Descending(21), 95), Milliseconds(20));
}

TEST(PercentileTest, OfOneIsThatOne) {
  for (int percent : {1, 50, 99, 100})
    EXPECT_EQ(Percentile(Descending(1), percent), Milliseconds(1));
}

}  // namespace
}  // namespace kvcache::examples
