#include "kvcache/eviction/ttl/ttl.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache {
namespace {

using testing::ElementsAre;

constexpr Nanos At(int seconds) { return seconds * Nanos{1'000'000'000}; }

class TtlTest : public testing::Test {
 protected:
  TtlTest() { policy_->SetLimits(8, 8); }

  Slot Victim() { return policy_->Victim({}).slot; }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateTtlPolicy();
};

TEST_F(TtlTest, TheEarliestDeadlineGoesFirst) {
  policy_->Admit(0, {});
  policy_->Admit(1, {.deadline = At(30)});
  policy_->Admit(2, {.deadline = At(10)});
  policy_->Touch({2}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 1, 0));
}

TEST_F(TtlTest, AmongEqualDeadlinesTheLeastRecentlyUsedGoesFirst) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Touch({2, 0}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 2, 0));
}

TEST_F(TtlTest, AnExtendedDeadlineMovesTheSlotBack) {
  policy_->Admit(0, {.deadline = At(10)});
  policy_->Admit(1, {.deadline = At(20)});
  policy_->SetDeadline(0, At(30));
  EXPECT_EQ(Victim(), 1u);
}

TEST_F(TtlTest, ADeadlineSetWhileParkedHoldsAfterwards) {
  policy_->Admit(0, {.deadline = At(10)});
  policy_->Admit(1, {.deadline = At(20)});
  policy_->Park(0);
  policy_->SetDeadline(0, At(30));
  EXPECT_EQ(Victim(), 1u);
  policy_->Unpark(0);
  EXPECT_EQ(Victim(), 1u);
}

}  // namespace
}  // namespace kvcache
