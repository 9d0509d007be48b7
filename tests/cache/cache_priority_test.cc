// Priorities, under every policy.
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/plugins/registry.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

using testing::HasSubstr;

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kBlock = 64;
constexpr int kBlocks = 4;

BlockKey Key(int i) {
  BlockKey key;
  for (size_t at = 0; at < key.bytes.size(); at += 4) {
    const uint32_t word = static_cast<uint32_t>(i + 1) * 0x9e3779b9u + static_cast<uint32_t>(at);
    std::memcpy(&key.bytes[at], &word, 4);
  }
  return key;
}

// A cache of kBlocks blocks.
class PriorityTest : public testing::TestWithParam<std::string> {
 protected:
  PriorityTest() {
    CacheOptions options;
    options.max_blocks = 64;
    options.clock = &clock_;
    cache_ = *Cache::Create(options, *CreateAccountingBackend({.capacity_bytes = kBlocks * kBlock}),
                            *MakePolicy(GetParam()));
  }

  absl::Status Put(int i, const PutOptions& options = {}) {
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(i), {kBlock, 1}, options);
    return lease.ok() ? lease->Commit() : lease.status();
  }
  absl::Status Put(int i, uint16_t priority) { return Put(i, PutOptions{.priority = priority}); }
  bool IsThere(int i) { return cache_->Lookup(Key(i)) == LookupResult::kHit; }
  // Puts `count` new blocks of priority 0 and hits each a few times.
  void PutOthers(int count) {
    for (int i = 0; i < count; ++i) {
      Put(++last_other_).IgnoreError();
      for (int hit = 0; hit < 3; ++hit) cache_->Get(kNs, Key(last_other_)).IgnoreError();
    }
  }

  ManualClock clock_;
  std::unique_ptr<Cache> cache_;
  int last_other_ = 1000;
};

TEST_P(PriorityTest, HigherOutlivesLower) {
  EXPECT_TRUE(Put(1, 100).ok());
  EXPECT_TRUE(Put(2, 50).ok());
  PutOthers(50);
  EXPECT_TRUE(IsThere(1));
  EXPECT_TRUE(IsThere(2));
  for (int i = 3; i < 6; ++i) EXPECT_TRUE(Put(i, 100).ok());
  EXPECT_FALSE(IsThere(2));
  for (int i : {1, 3, 4, 5}) EXPECT_TRUE(IsThere(i)) << i;
}

TEST_P(PriorityTest, ANewcomerIsRefusedWhereAllIsMoreImportant) {
  for (int i = 0; i < kBlocks; ++i) EXPECT_TRUE(Put(i, 10).ok());
  EXPECT_EQ(Put(9, 9).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(cache_->stats().counters.rejected_by_policy, 1u);
  EXPECT_TRUE(Put(9, 11).ok());
}

TEST_P(PriorityTest, APriorityCanBeGivenWhenTheCacheIsFullAlready) {
  PutOthers(10);
  EXPECT_TRUE(Put(1, 1).ok());
  PutOthers(10);
  EXPECT_TRUE(IsThere(1));
}

TEST_P(PriorityTest, WhenAPriorityEndsTheBlockIsVisibleAndOneOfMany) {
  EXPECT_TRUE(Put(1, {.priority = 80, .keep_priority_for = absl::Minutes(10)}).ok());
  clock_.Advance(absl::Minutes(10) - absl::Nanoseconds(1));
  PutOthers(50);
  EXPECT_TRUE(IsThere(1));
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_TRUE(IsThere(1));
  PutOthers(50);
  EXPECT_EQ(cache_->stats().usage.blocks, static_cast<size_t>(kBlocks));
  EXPECT_FALSE(IsThere(1));
  EXPECT_EQ(cache_->stats().counters.expirations, 0u);
}

TEST_P(PriorityTest, ATtlEndsABlockOfAnyPriority) {
  EXPECT_TRUE(Put(1, {.ttl = absl::Minutes(1), .priority = 100}).ok());
  clock_.Advance(absl::Minutes(1));
  EXPECT_FALSE(IsThere(1));
  cache_->Drain();
  EXPECT_EQ(cache_->stats().counters.expirations, 1u);
}

TEST_P(PriorityTest, APriorityThatEndsWhileTheBlockIsLeasedHasEndedAfterwards) {
  EXPECT_TRUE(Put(1, {.priority = 80, .keep_priority_for = absl::Minutes(10)}).ok());
  {
    const absl::StatusOr<ReadLease> lease = cache_->Get(kNs, Key(1));
    clock_.Advance(absl::Minutes(20));
    PutOthers(50);
    EXPECT_TRUE(IsThere(1));
  }
  PutOthers(50);
  EXPECT_FALSE(IsThere(1));
}

TEST_P(PriorityTest, AParentOutlivesItsChildrenWhateverTheirPriority) {
  EXPECT_TRUE(Put(1).ok());
  EXPECT_TRUE(Put(2, {.parent = Key(1), .priority = 90}).ok());
  PutOthers(50);
  EXPECT_TRUE(IsThere(1));
  EXPECT_TRUE(IsThere(2));
}

TEST_P(PriorityTest, ShrinkingTakesTheLowestFirst) {
  for (int i = 0; i < kBlocks; ++i) {
    EXPECT_TRUE(Put(i, static_cast<uint16_t>(10 * (kBlocks - i))).ok());
  }
  ASSERT_TRUE(cache_->Resize(kBlock).ok());
  EXPECT_TRUE(IsThere(0));
  EXPECT_EQ(cache_->stats().usage.blocks, 1u);
}

TEST_P(PriorityTest, ANinthPriorityIsAnErrorThatNamesItAndTheLimit) {
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(Put(i, static_cast<uint16_t>(10 * i)).ok());
  const absl::Status ninth = Put(9, 75);
  EXPECT_EQ(ninth.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ninth.message()), HasSubstr("options.priority: 75"));
  EXPECT_THAT(std::string(ninth.message()), HasSubstr("8"));
  EXPECT_TRUE(Put(10, 70).ok());
}

TEST_P(PriorityTest, WhatIsNoPriorityIsRefused) {
  EXPECT_EQ(Put(1, 101).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Put(1, {.keep_priority_for = absl::ZeroDuration()}).code(),
            absl::StatusCode::kInvalidArgument);
}

// An LRU that calls `taking_memory` where it takes memory for slots.
class WatchedLru final : public EvictionPolicy {
 public:
  explicit WatchedLru(std::function<void()> taking_memory)
      : taking_memory_(std::move(taking_memory)) {}

  const char* name() const override { return "watched"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override {
    return std::make_unique<WatchedLru>(taking_memory_);
  }
  void SetLimits(size_t max_slots, size_t capacity_bytes) override {
    if (std::exchange(max_slots_, max_slots) != max_slots) taking_memory_();
    lru_->SetLimits(max_slots, capacity_bytes);
  }
  void Admit(Slot slot, const EntryInfo& info) override { lru_->Admit(slot, info); }
  void Touch(absl::Span<const Slot> slots, const Run& run) override { lru_->Touch(slots, run); }
  void Remove(Slot slot, RemoveReason reason) override { lru_->Remove(slot, reason); }
  VictimResult Victim(const EntryInfo& incoming) override { return lru_->Victim(incoming); }
  void Park(Slot slot) override { lru_->Park(slot); }
  void Unpark(Slot slot) override { lru_->Unpark(slot); }

 private:
  const std::function<void()> taking_memory_;
  const std::unique_ptr<EvictionPolicy> lru_ = CreateLruPolicy();
  size_t max_slots_ = 0;
};

TEST(PriorityLockTest, OthersAreServedWhileAPriorityTakesItsMemory) {
  std::unique_ptr<Cache> cache;
  int times = 0;
  std::vector<std::future<LookupResult>> lookups;  // outlive the lock that they may wait for
  auto policy = std::make_unique<WatchedLru>([&] {
    if (cache == nullptr) return;
    ++times;
    lookups.push_back(std::async(std::launch::async, [&] { return cache->Lookup(Key(1)); }));
    // Only a lock that this thread holds makes it wait so long.
    EXPECT_EQ(lookups.back().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  });
  cache =
      *Cache::Create({}, *CreateAccountingBackend({.capacity_bytes = 1 << 20}), std::move(policy));
  absl::StatusOr<WriteLease> lease = cache->Reserve(Key(2), {kBlock, 1}, {.priority = 3});
  EXPECT_TRUE(lease.ok() && lease->Commit().ok());
  EXPECT_EQ(times, 1);
  ASSERT_TRUE(cache->Resize(1 << 19).ok());
  EXPECT_EQ(times, 1) << "the number of slots has not changed";
}

INSTANTIATE_TEST_SUITE_P(Policies, PriorityTest, testing::ValuesIn(PolicyNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace kvcache
