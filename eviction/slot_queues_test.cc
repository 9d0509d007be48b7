#include "kvcache/eviction/slot_queues.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {
namespace {

TEST(SlotQueuesTest, OffersInTheOrderOfAppending) {
  SlotQueues<2> queues;
  queues.SetMaxSlots(8);
  EXPECT_EQ(queues.First(0), kNoSlot);
  for (Slot slot : {3, 1}) queues.Append(0, slot);
  queues.Append(1, 7);
  EXPECT_EQ(queues.First(0), 3u);
  EXPECT_EQ(queues.First(1), 7u);
  queues.Remove(3);
  EXPECT_EQ(queues.First(0), 1u);
  queues.Move(1, 1);
  EXPECT_EQ(queues.First(0), kNoSlot);
  queues.Remove(7);
  EXPECT_EQ(queues.First(1), 1u);
}

TEST(SlotQueuesTest, AParkedSlotIsPassedOverAndComesBackToItsPlace) {
  SlotQueues<1> queues;
  queues.SetMaxSlots(8);
  for (Slot slot : {0, 1, 2}) queues.Append(0, slot);
  queues.Park(0);
  queues.Park(1);
  EXPECT_EQ(queues.First(0), 2u);
  queues.Unpark(1);
  EXPECT_EQ(queues.First(0), 1u);
  queues.Unpark(0);
  EXPECT_EQ(queues.First(0), 0u);
}

TEST(SlotQueuesTest, AMovedSlotStaysParked) {
  SlotQueues<2> queues;
  queues.SetMaxSlots(8);
  queues.Append(0, 5);
  queues.Park(5);
  queues.Move(1, 5);
  EXPECT_TRUE(queues.IsParked(5));
  EXPECT_EQ(queues.First(1), kNoSlot);
  queues.Unpark(5);
  EXPECT_EQ(queues.First(1), 5u);
}

TEST(SlotQueuesTest, ASlotAppendedWhileTheHandIsBehindTheLastOneComesUnderTheHand) {
  SlotQueues<1> queues;
  queues.SetMaxSlots(8);
  EXPECT_EQ(queues.hand(0), kNoSlot);
  queues.Append(0, 4);
  EXPECT_EQ(queues.hand(0), 4u);
  queues.AdvanceHand(0);
  EXPECT_TRUE(queues.IsBehindHand(4));
  queues.Append(0, 2);
  EXPECT_EQ(queues.hand(0), 2u);
  EXPECT_FALSE(queues.IsBehindHand(2));
  queues.Remove(2);
  EXPECT_EQ(queues.hand(0), kNoSlot);
}

// The model: all slots of a queue in a vector, with linear searches.
TEST(SlotQueuesTest, AgreesWithTheModel) {
  constexpr size_t kSlots = 40;
  constexpr size_t kClasses = 3;
  struct Known {
    Slot slot;
    size_t cls;
    bool parked;
    bool behind_hand;
  };
  std::mt19937_64 random(1);
  SlotQueues<2, kClasses> queues;
  queues.SetMaxSlots(kSlots);
  std::vector<Known> model[2];
  for (int i = 0; i < 200'000; ++i) {
    const Slot slot = static_cast<Slot>(random() % kSlots);
    const size_t cls = random() % kClasses;
    size_t from = 0;
    auto known = model[0].end();
    for (size_t queue : {0, 1}) {
      const auto found = std::find_if(model[queue].begin(), model[queue].end(),
                                      [slot](const Known& k) { return k.slot == slot; });
      if (found == model[queue].end()) continue;
      known = found;
      from = queue;
    }
    const size_t to = random() % 2;
    if (!queues.Contains(slot)) {
      queues.Append(to, slot, cls);
      model[to].push_back({slot, cls, false, false});
    } else {
      switch (random() % 6) {
        case 0:
          queues.Remove(slot);
          model[from].erase(known);
          break;
        case 1: {
          const Known moved = {slot, cls, known->parked, false};
          queues.Move(to, slot, cls);
          model[from].erase(known);
          model[to].push_back(moved);
          break;
        }
        case 2:
          queues.SetClass(slot, cls);
          known->cls = cls;
          break;
        case 3:
          if (queues.hand(from) == kNoSlot) break;
          for (Known& k : model[from]) k.behind_hand |= k.slot == queues.hand(from);
          queues.AdvanceHand(from);
          break;
        default:
          known->parked ? queues.Unpark(slot) : queues.Park(slot);
          known->parked = !known->parked;
      }
    }
    for (size_t queue : {0, 1}) {
      const Known* first = nullptr;
      Slot hand = kNoSlot;
      for (const Known& k : model[queue]) {
        if (!k.parked && (first == nullptr || k.cls < first->cls)) first = &k;
        if (!k.behind_hand && hand == kNoSlot) hand = k.slot;
        ASSERT_EQ(queues.IsBehindHand(k.slot), k.behind_hand) << "call " << i;
        ASSERT_EQ(queues.QueueOf(k.slot), queue);
        ASSERT_EQ(queues.ClassOf(k.slot), k.cls);
      }
      ASSERT_EQ(queues.First(queue), first == nullptr ? kNoSlot : first->slot) << "call " << i;
      ASSERT_EQ(queues.hand(queue), hand) << "call " << i;
    }
  }
}

TEST(SlotQueuesTest, MisuseAborts) {
  testing::FLAGS_gtest_death_test_style = "fast";
  SlotQueues<1> queues;
  queues.SetMaxSlots(2);
  queues.Append(0, 0);
  EXPECT_DEATH(queues.Append(0, 0), "slot 0 ");
  EXPECT_DEATH(queues.Append(0, 2), "slot 2 ");
  EXPECT_DEATH(queues.Remove(1), "slot 1 ");
  EXPECT_DEATH(queues.Unpark(0), "slot 0 ");
  queues.Park(0);
  EXPECT_DEATH(queues.Park(0), "slot 0 ");
}

}  // namespace
}  // namespace kvcache
