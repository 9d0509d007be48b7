#include "kvcache/examples/demo/table.h"

#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

TEST(FormatTableTest, AlignsLabelsToTheLeftAndNumbersToTheRight) {
  EXPECT_EQ(FormatTable({{"", "with", "without"}, {"mean", "1", "20"}, {"speed-up", "", "3"}}),
            "           with   without\n"
            "mean          1        20\n"
            "speed-up                3\n");
}

TEST(FormatCountTest, SeparatesThousands) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
}

}  // namespace
}  // namespace kvcache::examples
