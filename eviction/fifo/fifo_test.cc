#include "kvcache/eviction/fifo/fifo.h"

#include <algorithm>
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

class FifoTest : public testing::Test {
 protected:
  FifoTest() { policy_->SetLimits(8, 8); }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateFifoPolicy();
};

TEST_F(FifoTest, TheFirstAdmittedGoesFirstThoughItWasHit) {
  for (Slot slot : {4, 2, 7}) policy_->Admit(slot, {});
  policy_->Touch({4, 4, 2}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(4, 2, 7));
}

TEST_F(FifoTest, ASlotParkedInTheMiddleComesBackToTheMiddle) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Park(1);
  policy_->Unpark(1);
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(0, 1, 2));
}

TEST_F(FifoTest, AParkedSlotThatIsHitComesBackToItsPlace) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Park(0);
  policy_->Park(1);
  EXPECT_THAT(EvictionOrder(*policy_), ElementsAre(2));
  policy_->Touch({1}, kvcache::Run{});
  EXPECT_THAT(EvictionOrder(*policy_), ElementsAre(1, 2));
  policy_->Unpark(0);
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(0, 1, 2));
}

// The model: the slots that are known, in the order in which they came.
TEST(FifoModelTest, AgreesAfterEachOfManyCalls) {
  struct Known {
    Slot slot;
    bool parked;
  };
  constexpr size_t kSlots = 64;
  const std::unique_ptr<EvictionPolicy> policy = CreateFifoPolicy();
  policy->SetLimits(kSlots, kSlots);
  std::vector<Known> model;
  RandomCalls calls(kSlots, 1);
  for (int i = 0; i < 50'000; ++i) {
    const PolicyCall call = calls.Next();
    call.MakeOn(*policy);
    for (Slot slot : call.slots) {
      const auto known = std::find_if(model.begin(), model.end(),
                                      [slot](const Known& k) { return k.slot == slot; });
      if (call.kind == PolicyCall::Kind::kAdmit) model.push_back({slot, false});
      if (call.kind == PolicyCall::Kind::kRemove) model.erase(known);
      if (call.kind == PolicyCall::Kind::kPark) known->parked = true;
      if (call.kind == PolicyCall::Kind::kUnpark || call.kind == PolicyCall::Kind::kTouch) {
        known->parked = false;
      }
    }
    const auto first =
        std::find_if(model.begin(), model.end(), [](const Known& k) { return !k.parked; });
    ASSERT_EQ(policy->Victim({}).slot, first == model.end() ? kNoSlot : first->slot)
        << "call " << i << ": " << call;
  }
}

}  // namespace
}  // namespace kvcache
