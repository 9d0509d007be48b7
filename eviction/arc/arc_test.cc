#include "kvcache/eviction/arc/arc.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_calls.h"
#include "kvcache/tests/policy_conformance/unit_cache.h"

namespace kvcache {
namespace {

using testing::ElementsAre;

// Figure 4 of the paper, line by line, in pages.
class PaperArc {
 public:
  explicit PaperArc(size_t capacity) : c_(static_cast<double>(capacity)) {}

  bool Access(uint64_t x) {
    if (Take(t1_, x) || Take(t2_, x)) {  // case I
      t2_.push_back(x);
      return true;
    }
    if (Has(b1_, x)) {  // case II
      p_ = std::min(p_ + std::max(1.0, Size(b2_) / Size(b1_)), c_);
      Replace(false);
      Take(b1_, x);
      t2_.push_back(x);
    } else if (Has(b2_, x)) {  // case III
      p_ = std::max(p_ - std::max(1.0, Size(b1_) / Size(b2_)), 0.0);
      Replace(true);
      Take(b2_, x);
      t2_.push_back(x);
    } else {  // case IV
      if (Size(t1_) + Size(b1_) == c_) {
        if (Size(t1_) < c_) {
          b1_.pop_front();
          Replace(false);
        } else {
          t1_.pop_front();
        }
      } else {
        const double all = Size(t1_) + Size(t2_) + Size(b1_) + Size(b2_);
        if (all >= c_) {
          if (all == 2 * c_) b2_.pop_front();
          Replace(false);
        }
      }
      t1_.push_back(x);
    }
    return false;
  }

  std::set<uint64_t> keys() const {
    std::set<uint64_t> keys(t1_.begin(), t1_.end());
    keys.insert(t2_.begin(), t2_.end());
    return keys;
  }

 private:
  using Pages = std::deque<uint64_t>;  // least recently used first

  static double Size(const Pages& pages) { return static_cast<double>(pages.size()); }
  static bool Has(const Pages& pages, uint64_t x) {
    return std::find(pages.begin(), pages.end(), x) != pages.end();
  }
  static bool Take(Pages& pages, uint64_t x) {
    if (!Has(pages, x)) return false;
    pages.erase(std::find(pages.begin(), pages.end(), x));
    return true;
  }

  void Replace(bool in_b2) {
    const bool from_t1 = !t1_.empty() && ((in_b2 && Size(t1_) == p_) || Size(t1_) > p_);
    Pages& from = from_t1 ? t1_ : t2_;
    (from_t1 ? b1_ : b2_).push_back(from.front());
    from.pop_front();
  }

  const double c_;
  double p_ = 0;
  Pages t1_, t2_, b1_, b2_;
};

TEST(ArcTest, KeepsWhatThePaperKeeps) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const size_t capacity = 2 + seed * 3;
    UnitCache cache(CreateArcPolicy(), capacity);
    PaperArc paper(capacity);
    size_t number = 0;
    for (uint64_t key : AnyKeys(seed, 10'000)) {
      ASSERT_EQ(cache.Access(key), paper.Access(key)) << "seed " << seed << ", access " << number;
      if (++number % 100 == 0) {
        ASSERT_EQ(cache.keys(), paper.keys()) << "seed " << seed;
      }
    }
  }
}

class ArcTest4 : public testing::Test {
 protected:
  ArcTest4() { policy_->SetLimits(4, 4 * kBytes); }

  static constexpr size_t kBytes = 100;

  void Admit(Slot slot, uint64_t key_hash) {
    policy_->Admit(slot, {.key_hash = key_hash, .bytes = kBytes});
  }
  Slot VictimFor(uint64_t key_hash) {
    return policy_->Victim({.key_hash = key_hash, .bytes = kBytes}).slot;
  }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateArcPolicy();
};

TEST_F(ArcTest4, BlocksUsedOnceGoBeforeBlocksUsedAgain) {
  for (Slot slot : {0, 1, 2, 3}) Admit(slot, 10 + slot);
  policy_->Touch({0, 2}, kvcache::Run{});
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 3, 0, 2));
}

TEST_F(ArcTest4, AGhostThatComesBackEntersAsUsedAgainAndProtectsItsList) {
  for (Slot slot : {0, 1, 2, 3}) Admit(slot, 10 + slot);
  policy_->Touch({2, 3}, kvcache::Run{});
  policy_->Remove(0, RemoveReason::kEvicted);
  Admit(0, 10);  // one more for those used once: slot 1 is within the target now
  EXPECT_EQ(VictimFor(99), 2u);
}

TEST_F(ArcTest4, AnErasedBlockIsNotRemembered) {
  for (Slot slot : {0, 1}) Admit(slot, 10 + slot);
  policy_->Remove(0, RemoveReason::kErased);
  Admit(0, 10);
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(1, 0));
}

TEST_F(ArcTest4, ABlockThatComesBackFromTheListUsedAgainMakesRoomAmongThoseUsedOnce) {
  for (Slot slot : {0, 1, 2, 3}) Admit(slot, 10 + slot);
  policy_->Touch({0, 1, 2, 3}, kvcache::Run{});
  policy_->Remove(0, RemoveReason::kEvicted);  // of those used again
  Admit(0, 20);
  EXPECT_EQ(VictimFor(99), 0u);
  EXPECT_EQ(VictimFor(10), 0u);
}

TEST_F(ArcTest4, ALargeGhostMovesTheTargetByItsBytes) {
  policy_->SetLimits(8, 800);
  policy_->Admit(0, {.key_hash = 10, .bytes = 300});
  for (Slot slot : {1, 2, 3}) Admit(slot, 10 + slot);
  policy_->Touch({1}, kvcache::Run{});
  policy_->Remove(0, RemoveReason::kEvicted);
  policy_->Admit(0, {.key_hash = 10, .bytes = 300});  // the target: 300 bytes
  Admit(4, 14);
  EXPECT_EQ(VictimFor(99), 1u);  // 300 bytes used once
  Admit(5, 15);
  EXPECT_EQ(VictimFor(99), 2u);  // 400 bytes
}

}  // namespace
}  // namespace kvcache
