#include "kvcache/eviction/chain/reuse_odds.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache::chain {
namespace {

constexpr float kMean = 10;

TEST(BlockClassTest, EachBucketBeginsWhereTheOneBeforeEnds) {
  EXPECT_EQ(StartOf(0), 0u);
  EXPECT_EQ(StartOf(1), 16u);
  for (int b = 2; b < kBuckets; ++b) {
    EXPECT_GT(StartOf(b), StartOf(b - 1));
    EXPECT_LE(static_cast<double>(StartOf(b)) / StartOf(b - 1), 1.5);
  }
}

TEST(BlockClassTest, NewBlocksDifferByTheLengthOfTheirPromptAgainstTheMean) {
  const auto length = [](uint32_t blocks) { return BlockClass::OfNew(blocks, kMean, false); };
  EXPECT_EQ(length(3), length(1));
  EXPECT_NE(length(4), length(3));
  EXPECT_EQ(length(6), length(4));
  EXPECT_NE(length(7), length(6));
  EXPECT_EQ(length(16), length(7));
  EXPECT_NE(length(17), length(16));
  EXPECT_EQ(length(1000), length(17));
  EXPECT_EQ(length(0), length(5)) << "unknown";
  EXPECT_EQ(BlockClass::OfNew(40, 4 * kMean, false), length(10)) << "not in blocks";
}

TEST(BlockClassTest, UsedBlocksDifferByUsesAndGap) {
  const auto used = [](uint32_t uses, uint64_t gap) {
    return BlockClass::OfUsed(uses, gap, kMean, false);
  };
  EXPECT_NE(used(2, 0), used(3, 0));
  EXPECT_EQ(used(4, 0), used(5, 0));
  EXPECT_NE(used(16, 0), used(17, 0));
  EXPECT_EQ(used(65, 0), used(255, 0));
  EXPECT_EQ(used(2, 0), used(2, 106));
  EXPECT_NE(used(2, 106), used(2, 107));
  EXPECT_NE(used(2, 107), used(2, 427));
  EXPECT_EQ(used(2, 1'000'000), used(2, 1'000'000'000));
}

TEST(BlockClassTest, AClassAndItsLevelAreInRange) {
  for (bool last : {false, true}) {
    for (uint32_t blocks : {0, 1, 5, 10, 100}) {
      const int c = BlockClass::OfNew(blocks, kMean, last);
      ASSERT_TRUE(c >= 0 && c < BlockClass::kCount);
      EXPECT_EQ(BlockClass::LevelOf(c), last ? 1 : 0);
    }
    for (uint32_t uses = 2; uses < 256; ++uses) {
      for (uint64_t gap = 1; gap < 1'000'000; gap *= 3) {
        const int c = BlockClass::OfUsed(uses, gap, kMean, last);
        ASSERT_TRUE(c >= 2 * BlockClass::kLengths && c < BlockClass::kCount);
        const int level = BlockClass::LevelOf(c);
        ASSERT_TRUE(level >= 2 && level < BlockClass::kLevels && level % 2 == (last ? 1 : 0));
        EXPECT_EQ(level, BlockClass::LevelOf(BlockClass::OfUsed(uses, 0, kMean, last)));
      }
    }
  }
}

TEST(ReuseOddsTest, WhileNothingIsKnownTheOldestIsWorthTheLeast) {
  const ReuseOdds odds;
  for (int c = 0; c < BlockClass::kCount; ++c) {
    for (int b = 1; b < kBuckets; ++b) EXPECT_LT(odds.ValueOf(c, b), odds.ValueOf(c, b - 1));
  }
}

TEST(ReuseOddsTest, WhatComesBackAtOneAgeIsWorthTheMoreTheNearerThatIs) {
  constexpr int kClass = 3;
  constexpr int kReturn = 20;
  ReuseOdds odds;
  for (int b = 0; b <= kReturn; ++b) odds.CountReached(kClass, b, 100'000);
  for (int i = 0; i < 90'000; ++i) odds.CountReuse(kClass, kReturn);
  odds.Refresh(1);
  for (int b = 10; b < kReturn; ++b)
    EXPECT_GT(odds.ValueOf(kClass, b), odds.ValueOf(kClass, b - 1));
  EXPECT_LT(odds.ValueOf(kClass, kReturn + 2), odds.ValueOf(kClass, kReturn));
}

TEST(ReuseOddsTest, WhatHasFadedCountsLessThanWhatIsNew) {
  ReuseOdds faded, steady;
  for (ReuseOdds* odds : {&faded, &steady}) {
    odds->CountReached(0, 0, 10'000);
    for (int i = 0; i < 5'000; ++i) odds->CountReuse(0, 0);
  }
  for (int i = 0; i < 5; ++i) faded.Fade();
  for (ReuseOdds* odds : {&faded, &steady}) {
    odds->CountReached(0, 0, 1'000);
    odds->Refresh(1);
  }
  EXPECT_LT(faded.ValueOf(0, 0), steady.ValueOf(0, 0));
}

// The definitions, written down once more and without any economy.
class Model {
 public:
  Model() : lives_(BlockClass::kCount, Counts(kBuckets)), reuses_(lives_) {}

  double Value(int block_class, int bucket, double mean_blocks) const {
    std::vector<double> odds;
    for (int b = 0; b < kBuckets; ++b) odds.push_back(Odds(block_class, b, mean_blocks));
    const std::vector<double> raw = odds;
    for (int b = 1; b + 1 < kBuckets; ++b) odds[b] = (raw[b - 1] + 4 * raw[b] + raw[b + 1]) / 6;

    double best = 0, hits = 0, time = 0, survives = 1;
    for (int b = bucket; b + 1 < kBuckets; ++b) {
      const double share = b == bucket ? 0.5 : 1;
      const double width = share * static_cast<double>(StartOf(b + 1) - StartOf(b));
      hits += survives * share * odds[b];
      time += survives * width * (1 - odds[b] / 2);
      survives *= 1 - share * odds[b];
      best = std::max(best, hits / time);
    }
    return best;
  }

  using Counts = std::vector<double>;
  std::vector<Counts> lives_;
  std::vector<Counts> reuses_;

 private:
  double Odds(int block_class, int b, double mean_blocks) const {
    double all_lives = 0, all_reuses = 0, level_lives = 0, level_reuses = 0;
    for (int c = 0; c < BlockClass::kCount; ++c) {
      const bool same = BlockClass::LevelOf(c) == BlockClass::LevelOf(block_class);
      all_lives += lives_[c][b];
      all_reuses += reuses_[c][b];
      level_lives += same ? lives_[c][b] : 0;
      level_reuses += same ? reuses_[c][b] : 0;
    }
    const double doublings =
        b == 0 ? 4
               : std::log2(static_cast<double>(StartOf(b + 1)) / static_cast<double>(StartOf(b)));
    const double all = (all_reuses + mean_blocks * 0.06 * doublings) / (all_lives + mean_blocks);
    const double level = (level_reuses + mean_blocks * all) / (level_lives + mean_blocks);
    return std::min(0.999, (reuses_[block_class][b] + 1000 * mean_blocks * level) /
                               (lives_[block_class][b] + 1000 * mean_blocks));
  }
};

TEST(ReuseOddsTest, AgreesWithTheModel) {
  for (int seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    ReuseOdds odds;
    Model model;
    for (int c = 0; c < BlockClass::kCount; ++c) {
      int alive = static_cast<int>(random() % 60'000);
      for (int b = 0; b < kBuckets && alive > 0; ++b) {
        odds.CountReached(c, b, alive);
        model.lives_[c][b] = alive;
        const int reused = static_cast<int>(random() % 4 == 0 ? random() % alive : 0);
        for (int i = 0; i < reused; ++i) odds.CountReuse(c, b);
        model.reuses_[c][b] = reused;
        alive -= reused;
      }
    }
    const float mean_blocks = static_cast<float>(1 + random() % 30);
    odds.Refresh(mean_blocks);
    for (int c = 0; c < BlockClass::kCount; ++c) {
      for (int b = 0; b + 1 < kBuckets; ++b) {
        const double expected = model.Value(c, b, mean_blocks);
        ASSERT_NEAR(odds.ValueOf(c, b) / expected, 1, 1e-3)
            << "seed " << seed << ", class " << c << ", bucket " << b;
      }
      EXPECT_EQ(odds.ValueOf(c, kBuckets - 1), 0);
    }
  }
}

TEST(ReuseOddsTest, CountsWithoutEnd) {
  // In a cache of many blocks, counts fade late.
  constexpr int kMany = 1 << 26;
  ReuseOdds odds;
  odds.CountReached(0, 0, kMany);
  for (int i = 0; i < kMany / 2; ++i) odds.CountReuse(0, 0);
  odds.Refresh(kMean);
  ReuseOdds fewer;
  fewer.CountReached(0, 0, kMany / 64);
  for (int i = 0; i < kMany / 128; ++i) fewer.CountReuse(0, 0);
  fewer.Refresh(kMean);
  EXPECT_NEAR(odds.ValueOf(0, 0) / fewer.ValueOf(0, 0), 1, 0.02);
}

}  // namespace
}  // namespace kvcache::chain
