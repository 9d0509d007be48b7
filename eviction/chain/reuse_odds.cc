#include "kvcache/eviction/chain/reuse_odds.h"

#include <algorithm>
#include <cmath>

namespace kvcache::chain {
namespace {

// Chosen on one trace of conversations, where none of them matters much: twice or half of each
// changes no hit ratio by more than 0.002.
constexpr float kPriorPerDoubling = 0.06f;  // odds of a reuse, before anything is known
constexpr float kPriorPrompts = 1;          // what that weighs, in prompts
constexpr float kLevelPrompts = 1000;       // what the level of a class weighs
constexpr float kShortGap = 32.0f / 3;      // in prompts; each further edge is 4 times that

float PriorOdds(int bucket) {
  constexpr float kDoublingsBelow16 = 4;
  if (bucket == 0) return kPriorPerDoubling * kDoublingsBelow16;
  const float growth =
      static_cast<float>(StartOf(bucket + 1)) / static_cast<float>(StartOf(bucket));
  return kPriorPerDoubling * std::log2(growth);
}

// The edges of `uses`, from 1 on.
int UseLevelOf(uint32_t uses) {
  constexpr uint32_t kLast[] = {1, 2, 3, 5, 8, 16, 64};
  return static_cast<int>(std::lower_bound(std::begin(kLast), std::end(kLast), uses) - kLast);
}

}  // namespace

int BlockClass::OfNew(uint32_t blocks, float mean, bool last) {
  const float thirds = 3 * static_cast<float>(blocks);
  const int length = blocks == 0 || (thirds >= mean && thirds < 2 * mean) ? 1
                     : thirds < mean                                      ? 0
                     : thirds < 5 * mean                                  ? 2
                                                                          : 3;
  return 2 * length + last;
}

int BlockClass::OfUsed(uint32_t uses, uint64_t gap, float mean, bool last) {
  int gap_level = 0;
  for (float edge = kShortGap * mean; gap_level + 1 < kGaps && static_cast<float>(gap) >= edge;
       edge *= 4) {
    ++gap_level;
  }
  return 2 * (kLengths + (UseLevelOf(uses) - 1) * kGaps + gap_level) + last;
}

int BlockClass::LevelOf(int block_class) {
  const int uses = block_class < 2 * kLengths ? 0 : (block_class / 2 - kLengths) / kGaps + 1;
  return 2 * uses + block_class % 2;
}

void ReuseOdds::Fade() {
  for (Counts* counts : {&lives_, &reuses_}) {
    for (auto& of_class : *counts) {
      for (double& count : of_class) count *= 0.5;
    }
  }
}

void ReuseOdds::Refresh(float mean_blocks) {
  // A class with little to show is taken for its level, and a level for all blocks.
  Odds all_lives = {}, all_reuses = {};
  std::array<Odds, BlockClass::kLevels> level_lives = {}, level_reuses = {};
  for (int c = 0; c < BlockClass::kCount; ++c) {
    const int level = BlockClass::LevelOf(c);
    for (int b = 0; b < kBuckets; ++b) {
      level_lives[level][b] += static_cast<float>(lives_[c][b]);
      level_reuses[level][b] += static_cast<float>(reuses_[c][b]);
    }
  }
  for (int level = 0; level < BlockClass::kLevels; ++level) {
    for (int b = 0; b < kBuckets; ++b) {
      all_lives[b] += level_lives[level][b];
      all_reuses[b] += level_reuses[level][b];
    }
  }
  const float prior = kPriorPrompts * mean_blocks;
  const float level_prior = kLevelPrompts * mean_blocks;
  std::array<Odds, BlockClass::kLevels> level_odds;
  for (int b = 0; b < kBuckets; ++b) {
    const float odds = (all_reuses[b] + prior * PriorOdds(b)) / (all_lives[b] + prior);
    for (int level = 0; level < BlockClass::kLevels; ++level) {
      level_odds[level][b] =
          (level_reuses[level][b] + prior * odds) / (level_lives[level][b] + prior);
    }
  }
  for (int c = 0; c < BlockClass::kCount; ++c) {
    const Odds& of_level = level_odds[BlockClass::LevelOf(c)];
    Odds odds;
    for (int b = 0; b < kBuckets; ++b) {
      const auto lives = static_cast<float>(lives_[c][b]);
      const auto reuses = static_cast<float>(reuses_[c][b]);
      odds[b] = std::min(0.999f, (reuses + level_prior * of_level[b]) / (lives + level_prior));
    }
    ComputeValues(Smooth(odds), &values_[c]);
  }
}

namespace {

// What keeping a block for a while brings, seen from the beginning of that while.
struct Stretch {
  float hits;
  float time;
  float survives;  // the odds that it was not asked for

  bool BetterThan(const Stretch& other) const { return hits * other.time > other.hits * time; }
  void Add(const Stretch& next) {
    hits += survives * next.hits;
    time += survives * next.time;
    survives *= next.survives;
  }
};

Stretch Through(float width, float odds) { return {odds, width * (1 - odds / 2), 1 - odds}; }

}  // namespace

// The odds of neighbours are alike, so a bucket that few blocks have reached leans on them.
ReuseOdds::Odds ReuseOdds::Smooth(const Odds& odds) {
  Odds smooth = odds;
  for (int b = 1; b + 1 < kBuckets; ++b) {
    smooth[b] = (odds[b - 1] + 4 * odds[b] + odds[b + 1]) / 6;
  }
  return smooth;
}

// From the oldest bucket to the youngest, with the stretches behind it on a stack, the nearest on
// top and the better the nearer: what is better than what comes before it is one with it. Nothing
// is expected of the last bucket. A block in a bucket is taken to be in its middle.
void ReuseOdds::ComputeValues(const Odds& odds, Odds* values) {
  std::array<Stretch, kBuckets> stack;
  int size = 0;
  (*values)[kBuckets - 1] = 0;
  for (int b = kBuckets - 2; b >= 0; --b) {
    const float width = static_cast<float>(StartOf(b + 1) - StartOf(b));
    Stretch half = {odds[b] / 2, width / 2 * (1 - odds[b] / 2), 1 - odds[b] / 2};
    for (int i = size - 1; i >= 0 && stack[i].BetterThan(half); --i) half.Add(stack[i]);
    (*values)[b] = half.hits / half.time;

    Stretch whole = Through(width, odds[b]);
    while (size > 0 && stack[size - 1].BetterThan(whole)) whole.Add(stack[--size]);
    stack[size++] = whole;
  }
}

}  // namespace kvcache::chain
