#include "kvcache/core/policy/slot_index.h"

#include <random>
#include <unordered_map>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache {
namespace {

// Slots whose key is a number; the hash of several keys may be the same.
class SlotIndexTest : public testing::Test {
 protected:
  Slot Find(uint64_t hash, uint64_t key) const {
    return index_.Find(hash, [&](Slot slot) { return keys_[slot] == key; });
  }

  SlotIndex index_;
  std::vector<uint64_t> keys_;
};

TEST_F(SlotIndexTest, AgreesWithAMapWhenNearlyFull) {
  constexpr size_t kSlots = 1000;
  std::mt19937_64 random(1);
  // As good as all different, or in groups of 16 with the same hash.
  for (const uint64_t hash_mask : {~uint64_t{0}, uint64_t{63} << 20}) {
    SCOPED_TRACE(hash_mask);
    SlotIndex index;
    index.SetMaxSlots(kSlots);
    std::vector<uint64_t> keys(kSlots);
    std::vector<Slot> free;
    for (Slot slot = 0; slot < kSlots; ++slot) free.push_back(slot);
    std::unordered_map<uint64_t, Slot> model;
    for (int step = 0; step < 50'000; ++step) {
      const uint64_t key = random() % 1200 * 0x9e3779b97f4a7c15;
      const uint64_t hash = key & hash_mask;
      const Slot found = index.Find(hash, [&](Slot slot) { return keys[slot] == key; });
      const auto expected = model.find(key);
      ASSERT_EQ(found, expected == model.end() ? kNoSlot : expected->second) << step;
      if (found != kNoSlot && random() % 8 == 0) {
        index.Erase(hash, found);
        free.push_back(found);
        model.erase(expected);
      } else if (found == kNoSlot && !free.empty()) {
        keys[free.back()] = key;
        index.Insert(hash, free.back());
        model[key] = free.back();
        free.pop_back();
      }
      ASSERT_EQ(index.size(), model.size());
    }
  }
}

TEST_F(SlotIndexTest, HoldsAsManySlotsAsItWasMadeForEvenWithOneHash) {
  for (const size_t slots : {1, 2, 7, 300}) {
    SlotIndex index;
    index.SetMaxSlots(slots);
    for (Slot slot = 0; slot < slots; ++slot) index.Insert(~uint64_t{0}, slot);
    for (Slot slot = 0; slot < slots; ++slot) {
      EXPECT_EQ(index.Find(~uint64_t{0}, [slot](Slot s) { return s == slot; }), slot);
    }
    for (Slot slot = 0; slot < slots; ++slot) index.Erase(~uint64_t{0}, slot);
    EXPECT_EQ(index.Find(~uint64_t{0}, [](Slot) { return true; }), kNoSlot);
  }
}

TEST_F(SlotIndexTest, AsksOnlyAboutSlotsOfTheSameHash) {
  index_.SetMaxSlots(1000);
  for (Slot slot = 0; slot < 1000; ++slot) index_.Insert(slot * 0x9e3779b97f4a7c15, slot);
  int asked = 0;
  for (Slot slot = 0; slot < 1000; ++slot) {
    index_.Find(slot * 0x9e3779b97f4a7c15, [&](Slot s) {
      ++asked;
      return s == slot;
    });
  }
  EXPECT_LE(asked, 1002);
}

TEST_F(SlotIndexTest, AnEmptyOneFindsNothing) {
  index_.SetMaxSlots(1);
  EXPECT_EQ(Find(7, 7), kNoSlot);
  EXPECT_DEATH(index_.Erase(7, 0), "slot 0 is not in the index");
}

}  // namespace
}  // namespace kvcache
