// ReuseOdds: how likely blocks are to be asked for again, learned from those that were. Internal to
// the chain policy.
#ifndef KVCACHE_EVICTION_CHAIN_REUSE_ODDS_H_
#define KVCACHE_EVICTION_CHAIN_REUSE_ODDS_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvcache::chain {

// Ages and gaps are counted in blocks asked for. The buckets of ages begin at 0, 16, 24, 32, 48, 64
// and so on, two for each doubling; the last holds all that is older than 16 million.
inline constexpr int kBuckets = 42;

constexpr uint64_t StartOf(int bucket) {
  return bucket == 0 ? 0 : uint64_t(bucket % 2 == 0 ? 12 : 8) << (bucket + 1) / 2;
}

// What is known of a block when it is used. Blocks of one class are taken for alike.
class BlockClass {
 public:
  static constexpr int kLengths = 4;
  static constexpr int kUses = 8;
  static constexpr int kGaps = 4;
  static constexpr int kCount = 2 * (kLengths + (kUses - 1) * kGaps);

  // One that was never seen before, in a prompt of `blocks` (0: unknown) where they have `mean` on
  // average. `last`: it ends the prompt, so it is often cut short and does not come back.
  static int OfNew(uint32_t blocks, float mean, bool last);
  // One that is used for the `uses`th time, from 2 on, `gap` after the time before.
  static int OfUsed(uint32_t uses, uint64_t gap, float mean, bool last);

  // Classes of one level have the same number of uses, and end a prompt or do not.
  static constexpr int kLevels = 2 * kUses;
  static int LevelOf(int block_class);
};

// For each class, how many blocks reached an age and how many were asked for at it. From this the
// value of keeping a block: its Gittins index, the most hits that can be expected for each unit of
// time that it is kept, over all times to give it up. What was never seen is as likely as under
// LRU: at each doubling of the age the same.
//
// Fixed size; every call but Refresh() is O(1).
class ReuseOdds {
 public:
  ReuseOdds() { Refresh(1); }

  void CountReached(int block_class, int bucket, int blocks) {
    lives_[block_class][bucket] += blocks;
  }
  void CountReuse(int block_class, int bucket) { reuses_[block_class][bucket] += 1; }

  // As of the last Refresh().
  float ValueOf(int block_class, int bucket) const { return values_[block_class][bucket]; }

  // Computes the values; a prompt has `mean_blocks` on average. A few tens of microseconds.
  void Refresh(float mean_blocks);
  // Halves all counts, so that what is old counts for less.
  void Fade();

 private:
  using Odds = std::array<float, kBuckets>;
  // Doubles: a float would not grow beyond 2^24 by ones.
  using Counts = std::array<std::array<double, kBuckets>, BlockClass::kCount>;

  static Odds Smooth(const Odds& odds);
  static void ComputeValues(const Odds& odds, Odds* values);

  Counts lives_ = {};
  Counts reuses_ = {};
  std::array<Odds, BlockClass::kCount> values_;
};

}  // namespace kvcache::chain

#endif  // KVCACHE_EVICTION_CHAIN_REUSE_ODDS_H_
