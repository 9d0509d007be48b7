#include "kvcache/core/policy/priority_levels.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/policy_conformance/allocation_count.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache::internal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kSlots = 16;

constexpr Nanos Seconds(int seconds) { return seconds * Nanos{1'000'000'000}; }

// Says what it is told.
class ToldPolicy final : public EvictionPolicy {
 public:
  struct Request {
    std::vector<Slot> slots;
    std::vector<uint64_t> missed;
    Run run;
  };

  explicit ToldPolicy(VictimResult victim = VictimResult::None()) : victim_(victim) {}

  const char* name() const override { return "told"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override {
    return std::make_unique<ToldPolicy>();
  }
  void SetLimits(size_t, size_t) override {}
  void Admit(Slot, const EntryInfo&) override {}
  void Touch(absl::Span<const Slot> slots, const Run& run) override {
    requests.push_back({{slots.begin(), slots.end()}, {}, run});
  }
  void Remove(Slot, RemoveReason reason) override { removed = reason; }
  VictimResult Victim(const EntryInfo& incoming) override {
    newcomer_bytes = incoming.bytes;
    return victim_;
  }
  void Park(Slot) override {}
  void Unpark(Slot) override {}
  void Miss(absl::Span<const uint64_t> hashes, const Run& run) override {
    requests.push_back({{}, {hashes.begin(), hashes.end()}, run});
  }
  void Bypassed(absl::Span<const uint64_t> hashes, const Run&) override {
    bypassed.assign(hashes.begin(), hashes.end());
  }

  std::vector<Request> requests;
  RemoveReason removed = RemoveReason::kErased;
  size_t newcomer_bytes = 0;
  std::vector<uint64_t> bypassed;

 private:
  const VictimResult victim_;
};

class PriorityLevelsTest : public testing::Test {
 protected:
  PriorityLevelsTest() {
    normal_->SetLimits(kSlots, kSlots);
    for (uint16_t priority : {50, 20}) {
      levels_.AddLevel(priority, NewPolicy());
    }
  }

  static std::unique_ptr<EvictionPolicy> NewPolicy() {
    std::unique_ptr<EvictionPolicy> policy = CreateLruPolicy();
    policy->SetLimits(kSlots, kSlots);
    return policy;
  }

  const std::unique_ptr<EvictionPolicy> normal_ = CreateLruPolicy();
  PriorityLevels levels_{*normal_, kSlots};
};

TEST_F(PriorityLevelsTest, LowerPrioritiesGoFirstAndWithinOneThePolicyDecides) {
  levels_.Admit(0, {.priority = 50});
  levels_.Admit(1, {.priority = 20});
  levels_.Admit(2, {});
  levels_.Admit(3, {.priority = 20});
  levels_.Admit(4, {});
  levels_.Touch({1}, {});
  EXPECT_THAT(EvictionOrder(levels_), ElementsAre(2, 4, 3, 1, 0));
}

TEST_F(PriorityLevelsTest, ABlockOutranksNewcomersOfALowerPriority) {
  levels_.Admit(0, {.priority = 20});
  EXPECT_TRUE(levels_.Outranks(0, {.bytes = 1, .priority = 19}));
  EXPECT_FALSE(levels_.Outranks(0, {.bytes = 1, .priority = 20}));
  EXPECT_FALSE(levels_.Outranks(0, {.bytes = 1, .priority = 50}));
  EXPECT_FALSE(levels_.Outranks(0, {})) << "there is no newcomer";
}

TEST_F(PriorityLevelsTest, APriorityEndsAndTheBlockIsAsIfItHadJustBeenPut) {
  levels_.Admit(0, {.priority = 50, .keep_priority_for = Seconds(10), .now = Seconds(0)});
  levels_.Admit(1, {.priority = 20, .keep_priority_for = Seconds(5), .now = Seconds(0)});
  levels_.Admit(2, {.priority = 20, .now = Seconds(0)});
  levels_.Admit(3, {});
  EXPECT_EQ(levels_.NextOver(Seconds(4)), kNoSlot);
  EXPECT_EQ(levels_.NextOver(Seconds(10)), 1u);
  levels_.EndPriority(1, {}, /*parked=*/false);
  EXPECT_EQ(levels_.NextOver(Seconds(10)), 0u);
  levels_.EndPriority(0, {}, /*parked=*/true);
  EXPECT_EQ(levels_.NextOver(Seconds(1000)), kNoSlot);
  EXPECT_THAT(EvictionOrder(levels_), ElementsAre(3, 1, 2));
  levels_.Unpark(0);
  EXPECT_THAT(EvictionOrder(levels_), ElementsAre(3, 1, 0, 2));
}

TEST_F(PriorityLevelsTest, ThePriorityOfARemovedBlockNeverEnds) {
  levels_.Admit(0, {.priority = 50, .keep_priority_for = Seconds(10), .now = Seconds(0)});
  levels_.Remove(0, RemoveReason::kErased);
  levels_.Admit(0, {.priority = 50, .now = Seconds(1)});
  EXPECT_EQ(levels_.NextOver(Seconds(100)), kNoSlot);
}

TEST_F(PriorityLevelsTest, AtMostEightPrioritiesAreInUse) {
  for (uint16_t priority : {1, 2, 3, 4, 5}) {
    EXPECT_TRUE(levels_.CheckNewLevel(priority).ok());
    levels_.AddLevel(priority, NewPolicy());
  }
  EXPECT_TRUE(levels_.HasLevel(5));
  const absl::Status ninth = levels_.CheckNewLevel(77);
  EXPECT_EQ(ninth.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ninth.message(), HasSubstr("77"));
  EXPECT_THAT(ninth.message(), HasSubstr("8"));
}

TEST_F(PriorityLevelsTest, AddingALevelAllocatesNothing) {
  std::unique_ptr<EvictionPolicy> policy = NewPolicy();
  const size_t before = AllocationCount();
  levels_.AddLevel(7, std::move(policy));
  EXPECT_EQ(AllocationCount(), before);
  levels_.Admit(0, {.priority = 7});
  EXPECT_EQ(AllocationCount(), before);
}

TEST(PriorityLevelsRequestTest, EachLevelIsToldOfItsHitsAndOfAllMisses) {
  ToldPolicy normal;
  PriorityLevels levels(normal, kSlots);
  auto owned = std::make_unique<ToldPolicy>();
  ToldPolicy& high = *owned;
  levels.AddLevel(9, std::move(owned));
  for (Slot slot : {0, 1}) levels.Admit(slot, {.priority = 9});
  for (Slot slot : {2, 3}) levels.Admit(slot, {});
  levels.Miss({100, 101}, {.first_depth = 4, .chain_blocks = 6});
  levels.Touch({3, 2, 1, 0}, {.first_depth = 0, .chain_blocks = 6, .continues = true});

  ASSERT_EQ(normal.requests.size(), 2u);
  EXPECT_THAT(normal.requests[0].missed, ElementsAre(100, 101));
  EXPECT_FALSE(normal.requests[0].run.continues);
  EXPECT_THAT(normal.requests[1].slots, ElementsAre(3, 2));
  EXPECT_EQ(normal.requests[1].run.first_depth, 2u);
  EXPECT_TRUE(normal.requests[1].run.continues);
  ASSERT_EQ(high.requests.size(), 2u);
  EXPECT_THAT(high.requests[0].missed, ElementsAre(100, 101));
  EXPECT_THAT(high.requests[1].slots, ElementsAre(1, 0));
  EXPECT_EQ(high.requests[1].run.first_depth, 0u);

  levels.Touch({0}, {});
  EXPECT_FALSE(high.requests.back().run.continues);
}

TEST(PriorityLevelsRequestTest, OnlyThePolicyOfItsPriorityMayFindANewcomerWorthLess) {
  ToldPolicy normal(VictimResult::Refuse());
  PriorityLevels levels(normal, kSlots);
  auto owned = std::make_unique<ToldPolicy>(VictimResult::Of(7));
  ToldPolicy& high = *owned;
  levels.AddLevel(9, std::move(owned));
  EXPECT_EQ(levels.Victim({.bytes = 5}).kind, VictimResult::Kind::kRefuse);
  EXPECT_EQ(normal.newcomer_bytes, 5u);
  levels.Bypassed({1}, {});
  EXPECT_THAT(normal.bypassed, ElementsAre(1));
  EXPECT_THAT(high.bypassed, ElementsAre());
  levels.Victim({.bytes = 5, .priority = 9});
  EXPECT_EQ(normal.newcomer_bytes, 0u) << "it must not refuse what is more important";
}

TEST(PriorityLevelsRequestTest, APolicyIsToldThatABlockWhosePriorityEndsStaysInTheCache) {
  ToldPolicy normal;
  PriorityLevels levels(normal, kSlots);
  auto owned = std::make_unique<ToldPolicy>();
  ToldPolicy& high = *owned;
  levels.AddLevel(9, std::move(owned));
  levels.Admit(0, {.priority = 9, .keep_priority_for = Seconds(1), .now = Seconds(0)});
  levels.EndPriority(0, {.priority = 9}, false);
  EXPECT_EQ(high.removed, RemoveReason::kOtherPriority);
}

}  // namespace
}  // namespace kvcache::internal
