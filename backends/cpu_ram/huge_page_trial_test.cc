#include "kvcache/backends/cpu_ram/huge_page_trial.h"

#include <optional>

#include "gtest/gtest.h"

namespace kvcache {
namespace {

TEST(HugePageTrialTest, HugePagesUnlessTheyTakeMoreThanTwiceAsLong) {
  EXPECT_TRUE((HugePageTrial{3e9, 24e9}).PreferHuge());
  EXPECT_TRUE((HugePageTrial{3e9, 3e9}).PreferHuge());
  EXPECT_TRUE((HugePageTrial{2e9, 1e9}).PreferHuge());
  EXPECT_FALSE((HugePageTrial{0.9e9, 0.3e9}).PreferHuge());
}

TEST(HugePageTrialTest, MeasuresBoth) {
  const std::optional<HugePageTrial> trial = RunHugePageTrial();
  ASSERT_TRUE(trial.has_value());
  for (const double speed : {trial->small_bytes_per_second, trial->huge_bytes_per_second}) {
    EXPECT_GT(speed, 1e6);
    EXPECT_LT(speed, 1e13);
  }
}

}  // namespace
}  // namespace kvcache
