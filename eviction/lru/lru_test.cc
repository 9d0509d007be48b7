#include "kvcache/eviction/lru/lru.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"

namespace kvcache {
namespace {

using testing::ElementsAre;

class LruTest : public testing::Test {
 protected:
  LruTest() { policy_->SetLimits(8, 8); }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateLruPolicy();
};

TEST_F(LruTest, TheFirstAdmittedGoesFirst) {
  for (Slot slot : {4, 2, 7}) policy_->Admit(slot, {});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(4, 2, 7));
}

TEST_F(LruTest, TheLastOfATouchIsTheMostRecent) {
  for (Slot slot : {0, 1, 2, 3}) policy_->Admit(slot, {});
  policy_->Touch({1, 0}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 3, 1, 0));
}

TEST_F(LruTest, ASlotParkedInTheMiddleComesBackToTheMiddle) {
  for (Slot slot : {0, 1, 2}) policy_->Admit(slot, {});
  policy_->Park(1);
  policy_->Unpark(1);
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace kvcache
