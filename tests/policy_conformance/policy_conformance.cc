#include "kvcache/tests/policy_conformance/policy_conformance.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/allocation_count.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;
using ::testing::UnorderedElementsAreArray;

constexpr size_t kBytesPerSlot = 65'536;

// kNoSlot for no victim.
Slot VictimOf(EvictionPolicy& policy) {
  const VictimResult victim = policy.Victim(EntryInfo());
  EXPECT_NE(victim.kind, VictimResult::Kind::kRefuse) << "there is no newcomer to refuse";
  return victim.slot;
}

std::string Where(uint64_t seed, int number, const PolicyCall& call) {
  std::ostringstream where;
  where << "seed " << seed << ", call " << number << ": " << call;
  return where.str();
}

}  // namespace

std::unique_ptr<EvictionPolicy> PolicyConformanceTest::Create(size_t max_slots) {
  std::unique_ptr<EvictionPolicy> policy = GetParam().create();
  policy->SetLimits(max_slots, max_slots * kBytesPerSlot);
  return policy;
}

void ExpectSameOrder(const CreatePolicy& create_policy, const CreatePolicy& create_model) {
  constexpr size_t kSlots = 64;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const auto policy = create_policy();
    const auto model = create_model();
    policy->SetLimits(kSlots, kSlots * kBytesPerSlot);
    model->SetLimits(kSlots, kSlots * kBytesPerSlot);
    RandomCalls calls(kSlots, seed);
    for (int i = 0; i < 50'000; ++i) {
      const PolicyCall call = calls.Next();
      call.MakeOn(*policy);
      call.MakeOn(*model);
      ASSERT_EQ(VictimOf(*policy), VictimOf(*model)) << Where(seed, i, call);
      if (i % 700 == 0) {
        ASSERT_EQ(EvictionOrder(*policy), EvictionOrder(*model)) << Where(seed, i, call);
      }
    }
    ASSERT_EQ(EvictAll(*policy), EvictAll(*model)) << "seed " << seed;
  }
}

TEST_P(PolicyConformanceTest, HasAName) { EXPECT_STRNE(Create()->name(), ""); }

TEST_P(PolicyConformanceTest, AnEmptyPolicyHasNoVictim) {
  const auto policy = Create();
  EXPECT_EQ(policy->Victim(EntryInfo()).kind, VictimResult::Kind::kNone);
  policy->Admit(3, EntryInfo());
  EXPECT_EQ(policy->Victim(EntryInfo()).kind, VictimResult::Kind::kSlot);
  policy->Remove(3, RemoveReason::kErased);
  EXPECT_EQ(policy->Victim(EntryInfo()).kind, VictimResult::Kind::kNone);
}

TEST_P(PolicyConformanceTest, EveryOrderedSlotIsAVictimOnceAndNoOtherIs) {
  const auto policy = Create();
  RandomCalls calls(kSlots, 1);
  for (int i = 0; i < 20'000; ++i) {
    const PolicyCall call = calls.Next();
    call.MakeOn(*policy);
    const std::vector<Slot> ordered = calls.ordered();
    const Slot victim = VictimOf(*policy);
    if (ordered.empty()) {
      ASSERT_EQ(victim, kNoSlot) << Where(1, i, call);
    } else {
      ASSERT_THAT(ordered, testing::Contains(victim)) << Where(1, i, call);
    }
    if (i % 100 == 0) {
      ASSERT_THAT(EvictionOrder(*policy), UnorderedElementsAreArray(ordered)) << Where(1, i, call);
    }
  }
  const std::vector<Slot> ordered = calls.ordered();
  EXPECT_THAT(EvictAll(*policy), UnorderedElementsAreArray(ordered));
}

TEST_P(PolicyConformanceTest, VictimChangesNothing) {
  const auto asked = Create();
  const auto left_alone = Create();
  RandomCalls calls(kSlots, 2);
  for (int i = 0; i < 4'900; ++i) {
    const PolicyCall call = calls.Next();
    call.MakeOn(*asked);
    call.MakeOn(*left_alone);
    const Slot victim = VictimOf(*asked);
    asked->Victim({.key_hash = 7, .bytes = 4096, .depth = 3, .chain_blocks = 5});
    ASSERT_EQ(VictimOf(*asked), victim) << Where(2, i, call);
  }
  EXPECT_EQ(EvictAll(*asked), EvictAll(*left_alone));
}

TEST_P(PolicyConformanceTest, EqualCallsMakeEqualOrders) {
  ExpectSameOrder(GetParam().create, GetParam().create);
}

TEST_P(PolicyConformanceTest, ParkingAndUnparkingChangesNoOrder) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const auto policy = Create();
    const auto never_parks = Create();
    RandomCalls calls(kSlots, seed);
    for (uint64_t i = 0; i < 100 * seed; ++i) {
      const PolicyCall call = calls.Next();
      call.MakeOn(*policy);
      if (call.kind == PolicyCall::Kind::kPark || call.kind == PolicyCall::Kind::kUnpark) continue;
      call.MakeOn(*never_parks);
    }
    for (Slot slot : calls.parked()) policy->Unpark(slot);
    ASSERT_EQ(EvictAll(*policy), EvictAll(*never_parks)) << "seed " << seed;
  }
}

TEST_P(PolicyConformanceTest, ParkedVictimsReturnInAnyOrder) {
  const auto policy = Create();
  RandomCalls calls(kSlots, 3);
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < 20; ++i) calls.Next().MakeOn(*policy);
    const std::vector<Slot> order = EvictionOrder(*policy);
    std::vector<Slot> parked(order.begin(), order.begin() + random() % (order.size() + 1));
    for (Slot slot : parked) {
      ASSERT_EQ(VictimOf(*policy), slot) << "round " << round;
      policy->Park(slot);
    }
    std::shuffle(parked.begin(), parked.end(), random);
    for (Slot slot : parked) policy->Unpark(slot);
    ASSERT_EQ(EvictionOrder(*policy), order) << "round " << round;
  }
}

TEST_P(PolicyConformanceTest, ATouchedParkedSlotIsOrderedAgain) {
  const auto policy = Create();
  for (Slot slot : {0, 1, 2}) policy->Admit(slot, EntryInfo());
  policy->Park(1);
  EXPECT_THAT(EvictionOrder(*policy), UnorderedElementsAre(0, 2));
  policy->Touch({1}, {});
  EXPECT_THAT(EvictionOrder(*policy), UnorderedElementsAre(0, 1, 2));
  policy->Park(1);
  EXPECT_THAT(EvictAll(*policy), UnorderedElementsAre(0, 2));
}

TEST_P(PolicyConformanceTest, ATouchMayNameASlotTwiceOrNone) {
  const auto policy = Create();
  policy->Touch({}, {});
  for (Slot slot : {0, 1, 2}) policy->Admit(slot, EntryInfo());
  const std::vector<Slot> order = EvictionOrder(*policy);
  policy->Touch({}, {});
  EXPECT_EQ(EvictionOrder(*policy), order);
  policy->Park(1);
  policy->Touch({0, 1, 0, 1, 1}, {});
  EXPECT_THAT(EvictAll(*policy), UnorderedElementsAre(0, 1, 2));
}

TEST_P(PolicyConformanceTest, AParkedSlotCanBeRemoved) {
  const auto policy = Create();
  for (Slot slot : {0, 1}) policy->Admit(slot, EntryInfo());
  policy->Park(1);
  policy->Remove(1, RemoveReason::kErased);
  EXPECT_THAT(EvictionOrder(*policy), ElementsAre(0));
  policy->Admit(1, EntryInfo());
  EXPECT_THAT(EvictAll(*policy), UnorderedElementsAre(0, 1));
}

TEST_P(PolicyConformanceTest, ASlotThatIsUsedAgainIsLikeANewOne) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const size_t num_calls = 100 * seed;
    const auto policy = Create(num_calls);
    const auto never_reuses = Create(num_calls);
    RandomCalls calls(kSlots, seed);
    std::vector<Slot> unused(num_calls);
    std::iota(unused.begin(), unused.end(), 0);
    std::shuffle(unused.begin(), unused.end(), std::mt19937_64(seed));
    std::vector<Slot> name(kSlots, kNoSlot);
    for (size_t i = 0; i < num_calls; ++i) {
      PolicyCall call = calls.Next();
      call.MakeOn(*policy);
      if (call.kind == PolicyCall::Kind::kAdmit) {
        name[call.slots[0]] = unused.back();
        unused.pop_back();
      }
      for (Slot& slot : call.slots) slot = name[slot];
      if (call.info.parent != kNoSlot) call.info.parent = name[call.info.parent];
      call.MakeOn(*never_reuses);
    }
    std::vector<Slot> expected = EvictAll(*policy);
    for (Slot& slot : expected) slot = name[slot];
    ASSERT_EQ(EvictAll(*never_reuses), expected) << "seed " << seed;
  }
}

TEST_P(PolicyConformanceTest, NewLimitsKeepTheContent) {
  constexpr Slot kNewSlot = 10 * kSlots - 1;
  for (int calls_before : {1, 10, 300, 900}) {
    const auto policy = Create();
    const auto unchanged = Create();
    RandomCalls calls(kSlots, 4);
    for (int i = 0; i < calls_before; ++i) {
      const PolicyCall call = calls.Next();
      call.MakeOn(*policy);
      call.MakeOn(*unchanged);
    }
    policy->SetLimits(kSlots, kBytesPerSlot);
    policy->SetLimits(10 * kSlots, 10 * kSlots * kBytesPerSlot);
    ASSERT_EQ(EvictionOrder(*policy), EvictionOrder(*unchanged)) << calls_before << " calls";

    std::vector<Slot> known = calls.ordered();
    for (Slot slot : calls.parked()) {
      policy->Unpark(slot);
      known.push_back(slot);
    }
    policy->Admit(kNewSlot, EntryInfo());
    known.push_back(kNewSlot);
    ASSERT_THAT(EvictAll(*policy), UnorderedElementsAreArray(known)) << calls_before << " calls";
  }
}

// A cache does that under its lock.
TEST_P(PolicyConformanceTest, AnotherCapacityForAsManySlotsCostsTheSameWhateverTheirNumber) {
  constexpr size_t kMany = 1 << 20;
  const auto policy = GetParam().create();
  const auto first = std::chrono::steady_clock::now();
  policy->SetLimits(kMany, kMany * kBytesPerSlot);
  const auto grown = std::chrono::steady_clock::now();
  const size_t before = AllocationCount();
  for (size_t i = 1; i <= 1000; ++i) policy->SetLimits(kMany, i * kBytesPerSlot);
  EXPECT_EQ(AllocationCount(), before);
  // One that looked at each slot would take a thousand times as long.
  EXPECT_LT(std::chrono::steady_clock::now() - grown, 50 * (grown - first));
}

TEST_P(PolicyConformanceTest, AllocatesOnlyInSetLimits) {
  const auto policy = Create();
  RandomCalls calls(kSlots, 5);
  const uint64_t key_hash = 1;
  for (int i = 0; i < 20'000; ++i) {
    const PolicyCall call = calls.Next();
    const size_t before = AllocationCount();
    call.MakeOn(*policy);
    policy->Victim(call.info);
    policy->Bypassed({&key_hash, 1}, call.run);
    ASSERT_EQ(AllocationCount(), before) << Where(5, i, call);
  }
}

// Nothing is timed here, but a policy that walks over what is parked does not come to an end.
TEST_P(PolicyConformanceTest, ParkedSlotsAtTheVictimEndAreNotWalkedOver) {
  constexpr Slot kParked = 100'000;
  const auto policy = Create(kParked + 1);
  for (Slot slot = 0; slot < kParked; ++slot) policy->Admit(slot, EntryInfo());
  std::vector<Slot> parked;
  for (Slot slot = 0; slot < kParked; ++slot) {
    parked.push_back(VictimOf(*policy));
    policy->Park(parked.back());
  }
  for (int i = 0; i < 1'000'000; ++i) {
    ASSERT_EQ(VictimOf(*policy), kNoSlot);
    policy->Admit(kParked, EntryInfo());
    ASSERT_EQ(VictimOf(*policy), kParked);
    policy->Remove(kParked, RemoveReason::kEvicted);
  }
  for (Slot slot : parked) {
    policy->Unpark(slot);
    ASSERT_EQ(VictimOf(*policy), slot);
    policy->Remove(slot, RemoveReason::kEvicted);
  }
}

TEST_P(PolicyConformanceTest, MisuseAborts) {
  testing::FLAGS_gtest_death_test_style = "fast";
  const auto policy = Create();
  policy->Admit(0, EntryInfo());
  policy->Admit(1, EntryInfo());
  policy->Park(1);
  EXPECT_DEATH(policy->Admit(0, EntryInfo()), "slot 0 ");
  EXPECT_DEATH(policy->Admit(1, EntryInfo()), "slot 1 ");
  EXPECT_DEATH(policy->Admit(kSlots, EntryInfo()), "slot 64 ");
  // A policy may note what was touched and look at it later.
  const auto touch_unknown = [&] {
    policy->Touch({2}, {});
    policy->Victim({});
  };
  EXPECT_DEATH(touch_unknown(), "slot 2 ");
  EXPECT_DEATH(policy->Remove(2, RemoveReason::kErased), "slot 2 ");
  EXPECT_DEATH(policy->Remove(kSlots, RemoveReason::kErased), "slot 64 ");
  EXPECT_DEATH(policy->Park(1), "slot 1 ");
  EXPECT_DEATH(policy->Park(2), "slot 2 ");
  EXPECT_DEATH(policy->Unpark(0), "slot 0 ");
  EXPECT_DEATH(policy->Unpark(2), "slot 2 ");
}

}  // namespace kvcache
