#include "kvcache/eviction/lfu/lfu.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache {
namespace {

using testing::ElementsAre;

class LfuTest : public testing::Test {
 protected:
  LfuTest() { policy_->SetLimits(8, 8); }

  Slot Victim() { return policy_->Victim({}).slot; }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateLfuPolicy();
};

TEST_F(LfuTest, TheFewestUsesGoFirst) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Touch({0, 0, 0, 1}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 1, 0));
}

TEST_F(LfuTest, AmongEqualCountsTheLeastRecentlyUsedGoesFirst) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Touch({2, 0, 1}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 0, 1));
}

TEST_F(LfuTest, ARemovedSlotLosesItsCount) {
  for (Slot slot : {0, 1}) policy_->Admit(slot, {});
  policy_->Touch({0, 0, 1}, kvcache::Run{});
  policy_->Remove(0, RemoveReason::kErased);
  policy_->Admit(0, {});
  EXPECT_EQ(Victim(), 0u);
}

TEST_F(LfuTest, AParkedSlotKeepsItsCount) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Touch({0, 1, 1, 2, 2, 2}, kvcache::Run{});
  policy_->Park(1);
  policy_->Unpark(1);
  policy_->Park(1);
  policy_->Touch({1}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(0, 2, 1));
}

}  // namespace
}  // namespace kvcache
