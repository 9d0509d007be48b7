#include "kvcache/bench/trace_replay/optimum.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

using Blocks = std::set<uint32_t>;

// Tries every block as the victim of every miss.
class BruteForce {
 public:
  BruteForce(const std::vector<uint32_t>& accesses, size_t capacity)
      : accesses_(accesses), capacity_(capacity) {}

  uint64_t Hits() { return From(0, {}); }

 private:
  uint64_t From(size_t at, const Blocks& resident) {
    if (at == accesses_.size()) return 0;
    const auto [known, added] = known_.try_emplace({at, resident}, 0);
    if (!added) return known->second;
    const uint32_t block = accesses_[at];
    uint64_t best = 0;
    if (resident.count(block) > 0) {
      best = 1 + From(at + 1, resident);
    } else if (resident.size() < capacity_) {
      best = From(at + 1, With(resident, block));
    } else {
      for (uint32_t victim : resident) {
        Blocks rest = resident;
        rest.erase(victim);
        best = std::max(best, From(at + 1, With(rest, block)));
      }
    }
    return known_[{at, resident}] = best;
  }

  static Blocks With(Blocks blocks, uint32_t block) {
    blocks.insert(block);
    return blocks;
  }

  const std::vector<uint32_t>& accesses_;
  const size_t capacity_;
  std::map<std::pair<size_t, Blocks>, uint64_t> known_;
};

TEST(OptimumTest, IsTheBestThatAnyChoiceOfVictimsCouldDo) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    const size_t unique = 2 + random() % 6;
    std::vector<uint32_t> accesses(10 + random() % 20);
    for (uint32_t& block : accesses) {
      block = static_cast<uint32_t>(std::min(random() % unique, random() % unique));
    }
    const Optimum optimum(accesses, unique);
    for (size_t capacity = 1; capacity < unique; ++capacity) {
      ASSERT_EQ(optimum.Hits(capacity), BruteForce(accesses, capacity).Hits())
          << "round " << round << ", capacity " << capacity;
    }
  }
}

TEST(OptimumTest, WithRoomForAllOnlyTheFirstAccessesMiss) {
  const std::vector<uint32_t> accesses = {0, 1, 2, 0, 1, 2, 2};
  const Optimum optimum(accesses, 3);
  EXPECT_EQ(optimum.Hits(3), 4u);
  EXPECT_EQ(optimum.Hits(1'000'000), 4u);
  EXPECT_EQ(optimum.Hits(2), 3u);
}

TEST(OptimumTest, NothingHasNoHits) { EXPECT_EQ(Optimum({}, 0).Hits(1), 0u); }

}  // namespace
}  // namespace kvcache::bench
