#include "kvcache/eviction/chain/cohorts.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/eviction/chain/reuse_odds.h"

namespace kvcache::chain {
namespace {

using testing::ElementsAre;

constexpr uint64_t kTogether = 20;

// Hides all that is shown, first to last, and shows it again in another order.
std::vector<Slot> OrderOf(Cohorts& cohorts) {
  std::vector<Slot> order;
  std::vector<Place> hidden;
  for (Place place; (place = cohorts.First()) != kNoPlace;) {
    order.push_back(cohorts.BlockAt(place).slot);
    hidden.push_back(place);
    cohorts.Hide(place);
  }
  std::shuffle(hidden.begin(), hidden.end(), std::mt19937(order.size()));
  for (Place place : hidden) cohorts.Show(place);
  return order;
}

class CohortsTest : public testing::Test {
 protected:
  CohortsTest() { cohorts_.SetMaxSlots(64); }

  Place Add(Slot slot, int block_class = 0, int worth = kUsualWorth) {
    return cohorts_.AddResident({static_cast<uint8_t>(block_class), static_cast<uint8_t>(worth)},
                                slot, 1, kTogether);
  }
  Place AddGhost(uint32_t hash) { return cohorts_.AddGhost({}, hash, 1, false, kTogether); }

  ReuseOdds odds_;
  Cohorts cohorts_{odds_};
};

TEST_F(CohortsTest, OfBlocksOfAKindTheFirstUsedGoesFirst) {
  for (Slot slot : {5, 3, 9}) Add(slot);
  EXPECT_THAT(OrderOf(cohorts_), ElementsAre(5, 3, 9));
}

TEST_F(CohortsTest, TheKindThatIsWorthLessGoesFirst) {
  Add(1, 0, kUsualWorth + 1);
  Add(2, 0, kUsualWorth);
  Add(3, 0, kUsualWorth - 1);
  EXPECT_THAT(OrderOf(cohorts_), ElementsAre(3, 2, 1));
}

TEST_F(CohortsTest, AKindThatComesBackOftenGoesLast) {
  Add(1, /*block_class=*/8);
  Add(2, /*block_class=*/0);
  odds_.CountReached(8, 0, 1'000'000);
  for (int i = 0; i < 500'000; ++i) odds_.CountReuse(8, 0);
  odds_.Refresh(1);
  cohorts_.Reorder();
  EXPECT_THAT(OrderOf(cohorts_), ElementsAre(2, 1));
}

TEST_F(CohortsTest, AGhostIsFoundUntilItComesBack) {
  EXPECT_EQ(cohorts_.FindGhost(77), kNoPlace);
  const Place place = Add(4);
  cohorts_.Retire(place, 77);
  EXPECT_EQ(cohorts_.FindGhost(77), place);
  EXPECT_EQ(cohorts_.ghosts(), 1u);
  EXPECT_EQ(cohorts_.First(), kNoPlace);
  cohorts_.Revive(place, 6);
  EXPECT_EQ(cohorts_.FindGhost(77), kNoPlace);
  EXPECT_EQ(cohorts_.ghosts(), 0u);
  EXPECT_THAT(OrderOf(cohorts_), ElementsAre(6));
}

TEST_F(CohortsTest, TwoGhostsOfOneHashAreOne) {
  const Place first = Add(1);
  const Place second = Add(2);
  cohorts_.Retire(first, 7);
  cohorts_.Retire(second, 7);
  EXPECT_EQ(cohorts_.FindGhost(7), second);
  EXPECT_EQ(cohorts_.ghosts(), 1u);
}

TEST_F(CohortsTest, TheOldestGhostsAreForgottenFirst) {
  for (uint32_t hash = 1; hash <= 200; ++hash) AddGhost(hash);
  cohorts_.ForgetGhosts(100);
  EXPECT_LE(cohorts_.ghosts(), 100u);
  EXPECT_GT(cohorts_.ghosts(), 100u - Cohorts::kCohortSize);
  EXPECT_EQ(cohorts_.FindGhost(1), kNoPlace);
  EXPECT_NE(cohorts_.FindGhost(200), kNoPlace);
}

TEST_F(CohortsTest, ABlockOlderThanAllGhostsDoesNotBecomeOne) {
  const Place old = Add(1);
  for (uint32_t hash = 1; hash <= 200; ++hash) AddGhost(hash);
  cohorts_.ForgetGhosts(50);
  cohorts_.Retire(old, 1'000);
  EXPECT_EQ(cohorts_.FindGhost(1'000), kNoPlace);
}

TEST_F(CohortsTest, BlocksThatAreSpreadThinAlwaysFindACohort) {
  constexpr size_t kSlots = 64;
  std::vector<Place> places;
  // One block of each cohort stays.
  for (Slot slot = 0; slot < kSlots; ++slot) {
    places.push_back(Add(slot));
    for (uint32_t i = 0; i < 200; ++i) AddGhost(slot * 1'000 + i);
  }
  EXPECT_EQ(OrderOf(cohorts_).size(), kSlots);
  for (Place place : places) EXPECT_NE(cohorts_.BlockAt(place).slot, kNoSlot);
}

// All blocks in a list, all sorted for each question.
class Model {
 public:
  explicit Model(const ReuseOdds& odds) : odds_(odds) {}

  void Add(Kind kind, Slot slot) {
    ++now_;
    Open& open = open_[{kind.block_class, kind.worth}];
    const bool empty = std::none_of(blocks_.begin(), blocks_.end(),
                                    [&](const Block& b) { return b.cohort == open.cohort; });
    if (open.size == Cohorts::kCohortSize || now_ - open.born > kTogether || empty) {
      open = {++cohorts_, now_, 0};
    }
    ++open.size;
    blocks_.push_back({kind, slot, open.cohort, open.born, now_, true});
  }
  void Take(Slot slot) { blocks_.erase(Find(slot)); }
  void SetShown(Slot slot, bool shown) { Find(slot)->shown = shown; }
  void SetGhost(Slot slot, bool ghost) { Find(slot)->ghost = ghost; }

  std::vector<Slot> Order() const {
    std::vector<Block> shown;
    for (const Block& block : blocks_) {
      if (block.shown && !block.ghost) shown.push_back(block);
    }
    std::sort(shown.begin(), shown.end(), [this](const Block& a, const Block& b) {
      const auto rank = [this](const Block& block) {
        int bucket = 0;
        while (bucket + 1 < kBuckets && now_ - block.born >= StartOf(bucket + 1)) ++bucket;
        return std::tuple(
            odds_.ValueOf(block.kind.block_class, bucket) * FactorOf(block.kind.worth),
            block.kind.block_class, block.kind.worth, bucket, block.used);
      };
      return rank(a) < rank(b);
    });
    std::vector<Slot> order;
    for (const Block& block : shown) order.push_back(block.slot);
    return order;
  }

 private:
  struct Block {
    Kind kind;
    Slot slot;
    int cohort;
    uint64_t born;  // of the cohort
    uint64_t used;
    bool shown;
    bool ghost = false;
  };
  struct Open {
    int cohort = 0;
    uint64_t born = 0;
    int size = Cohorts::kCohortSize;
  };

  std::vector<Block>::iterator Find(Slot slot) {
    return std::find_if(blocks_.begin(), blocks_.end(),
                        [slot](const Block& block) { return block.slot == slot; });
  }

  const ReuseOdds& odds_;
  uint64_t now_ = 0;
  int cohorts_ = 0;
  std::map<std::pair<uint8_t, uint8_t>, Open> open_;
  std::vector<Block> blocks_;
};

TEST(CohortsModelTest, TheOrderIsThatOfTheModel) {
  constexpr Slot kSlots = 150;
  for (int seed = 1; seed <= 10; ++seed) {
    std::mt19937 random(seed);
    ReuseOdds odds;
    Cohorts cohorts(odds);
    cohorts.SetMaxSlots(kSlots);
    Model model(odds);
    std::vector<Place> places(kSlots, kNoPlace);  // of ghosts, too, by the slot they had
    std::vector<bool> ghost(kSlots);
    for (int i = 0; i < 20'000; ++i) {
      const Slot slot = random() % kSlots;
      Place& place = places[slot];
      const uint32_t hash = slot * 31 + 7;
      if (place == kNoPlace) {
        const Kind kind = {static_cast<uint8_t>(random() % 6), static_cast<uint8_t>(random() % 3)};
        place = cohorts.AddResident(kind, slot, 1, kTogether);
        model.Add(kind, slot);
      } else if (ghost[slot]) {
        ASSERT_EQ(cohorts.FindGhost(hash), place);
        if (random() % 2 == 0) {
          cohorts.Revive(place, slot);
          model.SetGhost(slot, false);
          model.SetShown(slot, true);
        } else {
          cohorts.Take(place);
          model.Take(slot);
          place = kNoPlace;
        }
        ghost[slot] = false;
      } else if (random() % 4 != 0) {
        const bool shown = cohorts.IsShown(place);
        shown ? cohorts.Hide(place) : cohorts.Show(place);
        model.SetShown(slot, !shown);
      } else if (random() % 2 == 0) {
        cohorts.Retire(place, hash);
        model.SetGhost(slot, true);
        ghost[slot] = true;
      } else {
        cohorts.Take(place);
        model.Take(slot);
        place = kNoPlace;
      }
      if (i % 500 == 0) {
        for (int b = 0; b < 10; ++b) {
          const int block_class = random() % 6;
          odds.CountReached(block_class, b, 40'000);
          for (int n = random() % 20'000; n > 0; --n) odds.CountReuse(block_class, b);
        }
        odds.Refresh(1);
        cohorts.Reorder();
      }
      if (i % 50 == 0) {
        ASSERT_EQ(OrderOf(cohorts), model.Order()) << "seed " << seed << ", " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvcache::chain
