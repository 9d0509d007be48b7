#include "kvcache/eviction/chain/chain.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache {
namespace {

using testing::ElementsAre;

class ChainTest : public testing::Test {
 protected:
  static constexpr size_t kSlots = 64;

  ChainTest() { policy_->SetLimits(kSlots, kSlots); }

  // A block that was there before, is evicted, and is put again `times` times.
  void Return(Slot slot, uint64_t key_hash, int times) {
    policy_->Admit(slot, {.key_hash = key_hash, .bytes = 1});
    for (int i = 0; i < times; ++i) {
      policy_->Remove(slot, RemoveReason::kEvicted);
      policy_->Admit(slot, {.key_hash = key_hash, .bytes = 1});
    }
  }
  // Requests for blocks that never come back, and for one that always does.
  void TeachThatUsedBlocksComeBack() {
    policy_->Admit(kSlots - 1, {.key_hash = 1, .bytes = 1});
    for (uint64_t i = 0; i < 20'000; ++i) {
      policy_->Miss({1'000'000 + i}, {.chain_blocks = 3});
      if (i % 4 == 0) policy_->Touch({kSlots - 1}, {.chain_blocks = 3});
    }
    policy_->Remove(kSlots - 1, RemoveReason::kErased);
  }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateChainPolicy();
};

TEST_F(ChainTest, WhileNothingIsKnownTheOldestGoesFirst) {
  for (Slot slot : {4, 2, 7}) policy_->Admit(slot, {.key_hash = slot + 1u});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(4, 2, 7));
}

TEST_F(ChainTest, TheLastBlockOfARequestGoesBeforeThoseBeforeIt) {
  policy_->Miss({{13, 12, 11}}, {.chain_blocks = 3});
  policy_->Admit(0, {.key_hash = 11, .depth = 0, .chain_blocks = 3});
  policy_->Admit(1, {.key_hash = 12, .parent = 0, .depth = 1, .chain_blocks = 3});
  policy_->Admit(2, {.key_hash = 13, .parent = 1, .depth = 2, .chain_blocks = 3});
  const std::vector<Slot> order = EvictAll(*policy_);
  EXPECT_LT(std::find(order.begin(), order.end(), 1), std::find(order.begin(), order.end(), 0));
}

TEST_F(ChainTest, ABlockThatHasComeBackOutlivesANewOne) {
  TeachThatUsedBlocksComeBack();
  Return(0, 100, 1);
  policy_->Admit(1, {.key_hash = 200, .bytes = 1});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 0));
}

TEST_F(ChainTest, AGhostRemembersItsUses) {
  TeachThatUsedBlocksComeBack();
  policy_->Admit(0, {.key_hash = 100, .bytes = 1});
  policy_->Remove(0, RemoveReason::kEvicted);
  policy_->Admit(1, {.key_hash = 100, .bytes = 1});
  policy_->Admit(2, {.key_hash = 200, .bytes = 1});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 1));
}

TEST_F(ChainTest, AnErasedBlockIsForgotten) {
  TeachThatUsedBlocksComeBack();
  policy_->Admit(0, {.key_hash = 100, .bytes = 1});
  policy_->Remove(0, RemoveReason::kErased);
  policy_->Admit(1, {.key_hash = 100, .bytes = 1});
  policy_->Admit(2, {.key_hash = 200, .bytes = 1});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 2));
}

TEST_F(ChainTest, ANewcomerThatIsWorthLessThanAllIsRefused) {
  TeachThatUsedBlocksComeBack();
  for (Slot slot = 0; slot < 8; ++slot) Return(slot, 100 + slot, 1);
  EXPECT_EQ(policy_->Victim({.key_hash = 999, .bytes = 1}).kind, VictimResult::Kind::kRefuse);
  EXPECT_EQ(policy_->Victim({.key_hash = 999}).kind, VictimResult::Kind::kSlot)
      << "there is no newcomer";
}

TEST_F(ChainTest, ABlockThatWasRefusedBeforeIsNoLongerNew) {
  TeachThatUsedBlocksComeBack();
  for (Slot slot = 0; slot < 8; ++slot) Return(slot, 100 + slot, 1);
  const EntryInfo newcomer = {.key_hash = 999, .bytes = 1};
  ASSERT_EQ(policy_->Victim(newcomer).kind, VictimResult::Kind::kRefuse);
  policy_->Bypassed({999}, {});
  EXPECT_EQ(policy_->Victim(newcomer).kind, VictimResult::Kind::kSlot);
}

TEST_F(ChainTest, ABlockThatIsCheapToComputeGoesFirst) {
  for (Slot slot : {0, 1, 2}) {
    policy_->Admit(slot, {.key_hash = slot + 1u, .bytes = 100, .recompute_cost = 1});
  }
  policy_->Admit(3, {.key_hash = 9, .bytes = 100, .recompute_cost = 0.1});
  policy_->Admit(4, {.key_hash = 10, .bytes = 1000, .recompute_cost = 1});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(3, 4, 0, 1, 2));
}

}  // namespace
}  // namespace kvcache
