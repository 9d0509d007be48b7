#include "kvcache/core/policy/slot_heap.h"

#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

TEST(SlotHeapTest, TopIsTheLowestRank) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(10);
  EXPECT_TRUE(heap.empty());
  heap.Push(7, 30);
  heap.Push(2, 10);
  heap.Push(9, 20);
  EXPECT_EQ(heap.size(), 3u);
  EXPECT_EQ(heap.top(), 2u);
  EXPECT_EQ(heap.top_rank(), 10);
  EXPECT_EQ(heap.RankOf(7), 30);
}

TEST(SlotHeapTest, UpdateMovesASlotBothWays) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(100);
  for (Slot slot = 0; slot < 100; ++slot) heap.Push(slot, 1000 + static_cast<int>(slot));
  heap.Update(99, 1);
  EXPECT_EQ(heap.top(), 99u);
  heap.Update(99, 5000);
  EXPECT_EQ(heap.top(), 0u);
  EXPECT_EQ(heap.RankOf(99), 5000);
  heap.Update(0, 1000);
  EXPECT_EQ(heap.top(), 0u);
}

TEST(SlotHeapTest, ARemovedSlotCanComeBack) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(2);
  heap.Push(1, 5);
  heap.Remove(1);
  EXPECT_TRUE(heap.empty());
  EXPECT_FALSE(heap.Contains(1));
  heap.Push(1, 6);
  EXPECT_EQ(heap.top_rank(), 6);
}

TEST(SlotHeapTest, ContainsIsFalseOutOfRange) {
  SlotHeap<int> heap;
  EXPECT_FALSE(heap.Contains(0));
  heap.SetMaxSlots(2);
  EXPECT_FALSE(heap.Contains(2));
  EXPECT_FALSE(heap.Contains(kNoSlot));
}

TEST(SlotHeapTest, GrowingKeepsTheContentAndSmallerLimitsChangeNothing) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(2);
  heap.Push(0, 2);
  heap.Push(1, 1);
  heap.SetMaxSlots(1000);
  heap.Push(999, 0);
  heap.SetMaxSlots(1);
  EXPECT_EQ(heap.size(), 3u);
  EXPECT_EQ(heap.top(), 999u);
  EXPECT_EQ(heap.RankOf(0), 2);
}

TEST(SlotHeapTest, EqualRanksAllComeOut) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(50);
  for (Slot slot = 0; slot < 50; ++slot) heap.Push(slot, 1);
  std::set<Slot> out;
  while (!heap.empty()) {
    out.insert(heap.top());
    heap.Remove(heap.top());
  }
  EXPECT_EQ(out.size(), 50u);
}

TEST(SlotHeapTest, TimesAreRanks) {
  SlotHeap<absl::Time> heap;
  heap.SetMaxSlots(3);
  heap.Push(0, absl::InfiniteFuture());
  heap.Push(1, absl::FromUnixSeconds(2));
  heap.Push(2, absl::FromUnixSeconds(1));
  EXPECT_EQ(heap.top(), 2u);
  heap.Remove(2);
  heap.Remove(1);
  EXPECT_EQ(heap.top_rank(), absl::InfiniteFuture());
}

// Ranks are unique, so that the order is determined.
TEST(SlotHeapTest, AgreesWithASortedSetOverRandomOperations) {
  using Rank = std::pair<uint64_t, uint64_t>;
  constexpr Slot kSlots = 500;
  SlotHeap<Rank> heap;
  heap.SetMaxSlots(kSlots);
  std::map<Slot, Rank> rank_of;
  std::set<std::pair<Rank, Slot>> sorted;
  std::mt19937_64 random(20240501);
  for (uint64_t step = 0; step < 300'000; ++step) {
    const Slot slot = static_cast<Slot>(random() % kSlots);
    const Rank rank = {random() % 16, step};
    const auto known = rank_of.find(slot);
    ASSERT_EQ(heap.Contains(slot), known != rank_of.end());
    if (known == rank_of.end()) {
      heap.Push(slot, rank);
    } else {
      ASSERT_EQ(heap.RankOf(slot), known->second);
      sorted.erase({known->second, slot});
      // Phases that mostly grow, then mostly shrink.
      if (random() % 4 < (step / 10'000 % 2 == 0 ? 1 : 3)) {
        heap.Remove(slot);
        rank_of.erase(known);
      } else {
        heap.Update(slot, rank);
      }
    }
    if (heap.Contains(slot)) {
      rank_of[slot] = rank;
      sorted.insert({rank, slot});
    }
    ASSERT_EQ(heap.size(), sorted.size());
    if (sorted.empty()) continue;
    ASSERT_EQ(heap.top(), sorted.begin()->second);
    ASSERT_EQ(heap.top_rank(), sorted.begin()->first);
  }
  for (; !sorted.empty(); sorted.erase(sorted.begin())) {
    ASSERT_EQ(heap.top(), sorted.begin()->second);
    heap.Remove(heap.top());
  }
  EXPECT_TRUE(heap.empty());
}

TEST(SlotHeapDeathTest, MisuseAborts) {
  SlotHeap<int> heap;
  heap.SetMaxSlots(2);
  heap.Push(0, 1);
  EXPECT_DEATH(heap.Push(0, 2), "slot 0 of 2 is out of range or in the heap already");
  EXPECT_DEATH(heap.Push(2, 2), "slot 2 of 2 is out of range or in the heap already");
  EXPECT_DEATH(heap.Remove(1), "slot 1 is not in the heap");
  EXPECT_DEATH(heap.Update(1, 3), "slot 1 is not in the heap");
  heap.Remove(0);
  EXPECT_DEATH(heap.top(), "top of an empty heap");
}

}  // namespace
}  // namespace kvcache
