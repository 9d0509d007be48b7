// Priorities, under every policy.
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/eviction/arc/arc.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/eviction/fifo/fifo.h"
#include "kvcache/eviction/gdsf/gdsf.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/eviction/s3fifo/s3fifo.h"
#include "kvcache/eviction/ttl/ttl.h"

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

struct Policy {
  const char* name;
  std::unique_ptr<EvictionPolicy> (*create)();
};

// A cache of kBlocks blocks.
class PriorityTest : public testing::TestWithParam<Policy> {
 protected:
  PriorityTest() {
    CacheOptions options;
    options.max_blocks = 64;
    options.clock = &clock_;
    cache_ = *Cache::Create(options, *CreateAccountingBackend({.capacity_bytes = kBlocks * kBlock}),
                            GetParam().create());
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

INSTANTIATE_TEST_SUITE_P(
    Policies, PriorityTest,
    testing::Values(Policy{"arc", CreateArcPolicy}, Policy{"chain", CreateChainPolicy},
                    Policy{"fifo", CreateFifoPolicy}, Policy{"gdsf", CreateGdsfPolicy},
                    Policy{"lfu", CreateLfuPolicy}, Policy{"lru", CreateLruPolicy},
                    Policy{"s3fifo", CreateS3FifoPolicy}, Policy{"ttl", CreateTtlPolicy}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace kvcache
