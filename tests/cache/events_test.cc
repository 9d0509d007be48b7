// What a cache tells those who copy its blocks elsewhere, or keep track of them.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kBytes = 64;
constexpr size_t kBlocks = 8;

BlockKey Key(uint8_t number) {
  BlockKey key;
  key.bytes[0] = key.bytes[31] = number;
  return key;
}

class EventsTest : public testing::Test {
 protected:
  void SetUp() override {
    CacheOptions options;
    options.events = 4;
    cache_ = *Cache::Create(options, *CreateAccountingBackend({.capacity_bytes = kBlocks * kBytes}),
                            CreateLruPolicy());
  }

  void Put(uint8_t number, uint8_t parent = 0) {
    PutOptions options;
    if (parent != 0) options.parent = Key(parent);
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(number), {kBytes, 1}, options);
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_TRUE(lease->Commit().ok());
  }

  // "+2<1" for a stored child of 1, "-1e" for an evicted block; the lost ones in front.
  std::string Events(uint64_t* sequence) const {
    std::vector<BlockEvent> events(100);
    uint64_t lost = 0;
    events.resize(cache_->Events(sequence, absl::MakeSpan(events), &lost));
    std::string text = lost > 0 ? absl::StrCat("lost ", lost) : "";
    for (const BlockEvent& event : events) {
      const bool stored = event.kind == BlockEvent::Kind::kStored;
      absl::StrAppend(&text, text.empty() ? "" : " ", stored ? "+" : "-", event.key.bytes[0]);
      if (event.has_parent) absl::StrAppend(&text, "<", event.parent.bytes[0]);
      if (!stored) absl::StrAppend(&text, event.reason == RemoveReason::kEvicted ? "e" : "r");
      EXPECT_EQ(event.bytes, kBytes);
      EXPECT_EQ(event.ns, kNs);
    }
    return text;
  }

  std::unique_ptr<Cache> cache_;
};

TEST_F(EventsTest, BlocksAreToldWhenTheyBecomeVisibleAndInvisible) {
  uint64_t sequence = 0;
  WriteLease unseen = *cache_->Reserve(Key(9), {kBytes, 1});
  Put(1);
  Put(2, 1);
  EXPECT_EQ(Events(&sequence), "+1 +2<1");
  unseen.Abort();
  EXPECT_EQ(Events(&sequence), "") << "what nobody saw did not go";
  EXPECT_TRUE(cache_->Erase(Key(1)));
  EXPECT_EQ(Events(&sequence), "-1r -2r");
  EXPECT_EQ(sequence, 4u);
}

TEST_F(EventsTest, EvictionsAreTold) {
  for (uint8_t number = 1; number <= kBlocks; ++number) Put(number);
  uint64_t sequence = kBlocks;
  Put(9);
  EXPECT_EQ(Events(&sequence), "-1e +9");
}

TEST_F(EventsTest, AReaderThatWasAwayLearnsHowManyItHasMissed) {
  for (uint8_t number = 1; number <= 6; ++number) Put(number);
  uint64_t sequence = 0;
  EXPECT_EQ(Events(&sequence), "lost 2 +3 +4 +5 +6");
  EXPECT_EQ(Events(&sequence), "");
  uint64_t other = 5;
  EXPECT_EQ(Events(&other), "+6") << "readers do not share a place";
}

class PeekTest : public EventsTest {};

TEST_F(PeekTest, TheComingVictimsAreLeasedAndKeepTheirOrder) {
  for (uint8_t number = 1; number <= kBlocks; ++number) Put(number);
  std::vector<ReadLease> leases(3);
  ASSERT_EQ(cache_->PeekVictims(absl::MakeSpan(leases)), 3u);
  EXPECT_EQ(cache_->stats().leases, 3u);
  EXPECT_EQ(cache_->stats().counters.block_lookups, 0u) << "nothing is counted";
  leases.clear();
  // The order is that of before: 1, 2 and 3 go first.
  for (uint8_t number = 11; number <= 13; ++number) Put(number);
  for (uint8_t number = 1; number <= kBlocks; ++number) {
    EXPECT_EQ(cache_->Lookup(Key(number)), number <= 3 ? LookupResult::kMiss : LookupResult::kHit);
  }
}

TEST_F(PeekTest, AChainIsPeekedFromItsEnd) {
  Put(1);
  Put(2, 1);
  Put(3, 2);
  std::vector<ReadLease> leases(8);
  ASSERT_EQ(cache_->PeekVictims(absl::MakeSpan(leases)), 3u);
  leases.resize(3);
  cache_->MarkCopied(leases[0]);
  leases.clear();
  std::vector<ReadLease> rest(8);
  EXPECT_EQ(cache_->PeekVictims(absl::MakeSpan(rest)), 2u) << "without the one that is copied";
}

TEST_F(PeekTest, EvictionsOfWhatWasCopiedAreNotLosses) {
  for (uint8_t number = 1; number <= kBlocks; ++number) Put(number);
  {
    ReadLease first;
    ASSERT_EQ(cache_->PeekVictims({&first, 1}), 1u);
    cache_->MarkCopied(first);
  }
  Put(9);
  Put(10);
  EXPECT_EQ(cache_->stats().counters.evictions, 2u);
  EXPECT_EQ(cache_->stats().counters.evicted_before_copied, 1u);
}

TEST_F(PeekTest, LeasedBlocksAreNotPeeked) {
  Put(1);
  Put(2);
  const absl::StatusOr<ReadLease> lease = cache_->Get(kNs, Key(1));
  std::vector<ReadLease> leases(8);
  EXPECT_EQ(cache_->PeekVictims(absl::MakeSpan(leases)), 1u);
}

}  // namespace
}  // namespace kvcache
