#include "kvcache/eviction/s3fifo/s3fifo.h"

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

// The published algorithm, an object at a time, with linear searches.
class PaperS3Fifo {
 public:
  explicit PaperS3Fifo(size_t capacity)
      : capacity_(capacity * kBytes), small_share_(capacity_ / 10) {}

  bool Access(uint64_t key) {
    for (Queue* queue : {&small_, &main_}) {
      const auto found = Find(*queue, key);
      if (found == queue->end()) continue;
      ++found->hits;
      return true;
    }
    const auto ghost = Find(ghost_, key);
    const bool was_ghost = ghost != ghost_.end();
    if (was_ghost) ghost_.erase(ghost);
    while (BytesOf(small_) + BytesOf(main_) >= capacity_) Evict();
    (was_ghost ? main_ : small_).push_back({key});
    return false;
  }

  std::set<uint64_t> keys() const {
    std::set<uint64_t> keys;
    for (const Queue* queue : {&small_, &main_}) {
      for (const Object& object : *queue) keys.insert(object.key);
    }
    return keys;
  }

 private:
  struct Object {
    uint64_t key;
    int hits = 0;
  };
  using Queue = std::deque<Object>;

  static constexpr size_t kBytes = UnitCache::kBlockBytes;

  static size_t BytesOf(const Queue& queue) { return queue.size() * kBytes; }
  static Queue::iterator Find(Queue& queue, uint64_t key) {
    return std::find_if(queue.begin(), queue.end(),
                        [key](const Object& object) { return object.key == key; });
  }
  static Object Pop(Queue& queue) {
    const Object object = queue.front();
    queue.pop_front();
    return object;
  }

  void Evict() {
    if (BytesOf(main_) > capacity_ - small_share_ || small_.empty()) return EvictFromMain();
    while (!small_.empty()) {
      const Object object = Pop(small_);
      if (object.hits < 2) {
        ghost_.push_back({object.key});
        if (BytesOf(ghost_) > capacity_ - small_share_) ghost_.pop_front();
        return;
      }
      main_.push_back({object.key});
    }
  }

  void EvictFromMain() {
    for (;;) {
      const Object object = Pop(main_);
      if (object.hits == 0) return;
      main_.push_back({object.key, std::min(object.hits, 3) - 1});
    }
  }

  const size_t capacity_;
  const size_t small_share_;
  Queue small_, main_, ghost_;
};

TEST(S3FifoTest, KeepsWhatThePublishedAlgorithmKeeps) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const size_t capacity = 1 + seed * 5;
    UnitCache cache(CreateS3FifoPolicy(), capacity);
    PaperS3Fifo paper(capacity);
    size_t number = 0;
    for (uint64_t key : AnyKeys(seed, 10'000)) {
      ASSERT_EQ(cache.Access(key), paper.Access(key)) << "seed " << seed << ", access " << number;
      if (++number % 100 == 0) {
        ASSERT_EQ(cache.keys(), paper.keys()) << "seed " << seed;
      }
    }
  }
}

// 20 blocks of a cache: 0 and 1 in the small queue, of the size that it should have, then 2 to 19
// in the main queue.
class S3FifoTest20 : public testing::Test {
 protected:
  S3FifoTest20() {
    policy_->SetLimits(30, 20 * kBytes);
    for (Slot slot = 2; slot < 20; ++slot) {
      Admit(slot, 100 + slot);
      Evict(slot);
      Admit(slot, 100 + slot);
    }
    for (Slot slot : {0, 1}) Admit(slot, 100 + slot);
  }

  static constexpr size_t kBytes = 100;

  void Admit(Slot slot, uint64_t key_hash) {
    policy_->Admit(slot, {.key_hash = key_hash, .bytes = kBytes});
  }
  Slot Victim() { return policy_->Victim({}).slot; }
  void Evict(Slot slot) { policy_->Remove(slot, RemoveReason::kEvicted); }

  const std::unique_ptr<EvictionPolicy> policy_ = CreateS3FifoPolicy();
};

TEST_F(S3FifoTest20, ANewBlockGoesBeforeThoseOfTheMainQueueUnlessHitTwice) {
  EXPECT_EQ(Victim(), 0u);
  policy_->Touch({0}, kvcache::Run{});
  EXPECT_EQ(Victim(), 0u);
  policy_->Touch({0}, kvcache::Run{});
  EXPECT_EQ(Victim(), 1u);
}

TEST_F(S3FifoTest20, InTheMainQueueEachHitIsAnotherRound) {
  for (Slot slot : {0, 1}) Evict(slot);
  policy_->Touch({2, 3, 3}, kvcache::Run{});
  for (Slot slot = 4; slot < 20; ++slot) {
    ASSERT_EQ(Victim(), slot);
    Evict(slot);
  }
  EXPECT_THAT(EvictAll(*policy_), ElementsAre(2, 3));
}

TEST_F(S3FifoTest20, AnErasedBlockIsNotRemembered) {
  policy_->Remove(0, RemoveReason::kErased);
  Admit(0, 100);
  policy_->Touch({1, 1}, kvcache::Run{});
  EXPECT_EQ(Victim(), 0u);  // in the small queue, where a ghost would not be
}

TEST_F(S3FifoTest20, ALeasedBlockInFrontOfAnEvictedOneGoesNext) {
  policy_->Park(0);
  Evict(1);
  Admit(20, 120);
  EXPECT_EQ(Victim(), 20u);
  policy_->Unpark(0);
  EXPECT_EQ(Victim(), 0u);
}

TEST_F(S3FifoTest20, ALeasedBlockThatIsHitTwiceAfterItsTurnGoesToTheMainQueue) {
  policy_->Park(0);
  Evict(1);
  policy_->Touch({0, 0}, kvcache::Run{});
  Admit(1, 120);
  EXPECT_EQ(Victim(), 2u);  // 19 of 20 are in the main queue
}

TEST_F(S3FifoTest20, AnEvictionMovesTheHotBlocksInFrontOfIt) {
  policy_->Touch({0, 0}, kvcache::Run{});
  Evict(1);
  Admit(1, 120);
  EXPECT_EQ(Victim(), 2u);  // 19 of 20 are in the main queue
}

TEST_F(S3FifoTest20, TheSharesHoldWhenSlotsAreFullAndBytesAreNot) {
  policy_->SetLimits(30, 2000 * kBytes);
  EXPECT_EQ(Victim(), 0u);
  for (Slot slot : {0, 1}) Evict(slot);
  EXPECT_EQ(Victim(), 2u);
}

}  // namespace
}  // namespace kvcache
