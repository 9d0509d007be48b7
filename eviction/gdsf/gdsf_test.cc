#include "kvcache/eviction/gdsf/gdsf.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
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

class GdsfTest : public testing::Test {
 protected:
  GdsfTest() { policy_->SetLimits(8, 8); }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateGdsfPolicy();
};

TEST_F(GdsfTest, TheLargestGoesFirstWhenCostsAreUnknown) {
  policy_->Admit(0, {.bytes = 100});
  policy_->Admit(1, {.bytes = 400});
  policy_->Admit(2, {.bytes = 200});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 2, 0));
}

TEST_F(GdsfTest, TheCheapestToComputeAgainGoesFirst) {
  policy_->Admit(0, {.bytes = 100, .recompute_cost = 0.3});
  policy_->Admit(1, {.bytes = 100, .recompute_cost = 0.1});
  policy_->Admit(2, {.bytes = 200, .recompute_cost = 0.4});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 2, 0));
}

TEST_F(GdsfTest, UsesMultiplyTheWorth) {
  policy_->Admit(0, {.bytes = 400});
  policy_->Admit(1, {.bytes = 100});
  policy_->Touch({0, 0, 0, 0}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 0));
}

TEST_F(GdsfTest, AmongEqualsTheLeastRecentlyUsedGoesFirst) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {.bytes = 64});
  policy_->Touch({1, 0, 2}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 0, 2));
}

TEST_F(GdsfTest, ABlockThatIsNotUsedLosesItsWorth) {
  policy_->Admit(0, {.bytes = 1});
  policy_->Touch({0, 0}, kvcache::Run{});  // worth 3
  for (int i = 0; i < 3; ++i) {
    policy_->Admit(1, {.bytes = 1});
    ASSERT_EQ(policy_->Victim({}).slot, i < 2 ? 1u : 0u) << i;
    policy_->Remove(1, RemoveReason::kEvicted);
  }
}

TEST_F(GdsfTest, AnErasedBlockDoesNotMoveTheClock) {
  policy_->Admit(0, {.bytes = 1});
  policy_->Admit(1, {.bytes = 10});
  policy_->Remove(0, RemoveReason::kErased);
  policy_->Admit(2, {.bytes = 20});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 1));
}

// Costs of which a single one must not decide for ever what is worth keeping.
class GdsfCostTest : public testing::TestWithParam<double> {};

TEST_P(GdsfCostTest, OnceSuchBlocksHaveGoneCostsCountAsBefore) {
  const std::unique_ptr<EvictionPolicy> policy = CreateGdsfPolicy();
  policy->SetLimits(8, 8);
  for (Slot slot : {0, 1}) {
    policy->Admit(slot, {.bytes = 64, .recompute_cost = GetParam()});
    policy->Touch({slot, slot, slot}, kvcache::Run{});
  }
  EXPECT_THAT(EvictAll(*policy), ElementsAre(0, 1));
  policy->Admit(2, {.bytes = 64, .recompute_cost = 3600});
  policy->Admit(3, {.bytes = 64, .recompute_cost = 0.002});
  policy->Admit(4, {.bytes = 64, .recompute_cost = 0.001});
  EXPECT_THAT(EvictAll(*policy), ElementsAre(4, 3, 2));
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
INSTANTIATE_TEST_SUITE_P(Costs, GdsfCostTest,
                         testing::Values(kInfinity, -kInfinity, std::nan(""), -1.0,
                                         std::numeric_limits<double>::max(), 1e18,
                                         std::numeric_limits<double>::denorm_min()));

// The model: the definition, looked at for all blocks in each call.
TEST(GdsfModelTest, AgreesAfterEachOfManyCalls) {
  struct Known {
    Slot slot;
    EntryInfo info;
    double uses;
    double value;
    int last_use;
    bool parked;
  };
  constexpr size_t kSlots = 64;
  const std::unique_ptr<EvictionPolicy> policy = CreateGdsfPolicy();
  policy->SetLimits(kSlots, kSlots);
  std::vector<Known> model;
  double clock = 0;
  int now = 0;
  const auto use = [&](Known& k) {
    const double cost = k.info.recompute_cost == 0 ? 1 : k.info.recompute_cost;
    k.uses += 1;
    k.value = clock + k.uses * (cost / static_cast<double>(k.info.bytes));
    k.last_use = ++now;
    k.parked = false;
  };
  RandomCalls calls(kSlots, 1);
  for (int i = 0; i < 50'000; ++i) {
    const PolicyCall call = calls.Next();
    call.MakeOn(*policy);
    for (Slot slot : call.slots) {
      const auto known = std::find_if(model.begin(), model.end(),
                                      [slot](const Known& k) { return k.slot == slot; });
      switch (call.kind) {
        case PolicyCall::Kind::kAdmit:
          use(model.emplace_back(Known{slot, call.info, 0, 0, 0, false}));
          break;
        case PolicyCall::Kind::kTouch:
          use(*known);
          break;
        case PolicyCall::Kind::kRemove:
          if (call.reason == RemoveReason::kEvicted) clock = std::max(clock, known->value);
          model.erase(known);
          break;
        case PolicyCall::Kind::kPark:
        case PolicyCall::Kind::kUnpark:
          known->parked = call.kind == PolicyCall::Kind::kPark;
          break;
        case PolicyCall::Kind::kSetDeadline:
        case PolicyCall::Kind::kMiss:
          break;
      }
    }
    const Known* first = nullptr;
    for (const Known& k : model) {
      if (k.parked) continue;
      if (first == nullptr || k.value < first->value ||
          (k.value == first->value && k.last_use < first->last_use)) {
        first = &k;
      }
    }
    ASSERT_EQ(policy->Victim({}).slot, first == nullptr ? kNoSlot : first->slot)
        << "call " << i << ": " << call;
  }
}

}  // namespace
}  // namespace kvcache
