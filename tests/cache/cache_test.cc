#include "kvcache/core/cache/cache.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kBlock = 1024;

BlockKey Key(int i) {
  BlockKey key;
  std::memcpy(key.bytes.data(), &i, sizeof(i));
  key.bytes[31] = 1;
  return key;
}

std::vector<std::byte> Content(int i, size_t bytes = kBlock) {
  std::vector<std::byte> content(bytes);
  for (size_t at = 0; at < bytes; ++at) content[at] = static_cast<std::byte>(i * 31 + at / 7 + at);
  return content;
}

bool Holds(const std::byte* data, const std::vector<std::byte>& content) {
  return std::memcmp(data, content.data(), content.size()) == 0;
}

// A cache of `blocks` blocks of kBlock bytes, with exact LRU.
class CacheTest : public ::testing::Test {
 protected:
  explicit CacheTest(size_t blocks = 4, size_t max_blocks = 64) {
    auto backend = CreateCpuRamBackend({.capacity_bytes = 16 * kBlock});
    EXPECT_TRUE(backend.ok()) << backend.status();
    CacheOptions options;
    options.capacity_bytes = blocks * kBlock;
    options.max_blocks = max_blocks;
    options.clock = &clock_;
    auto cache = Cache::Create(options, *std::move(backend), CreateLruPolicy());
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  absl::Status Put(int i, std::optional<int> parent = std::nullopt, size_t bytes = kBlock,
                   std::optional<absl::Duration> ttl = std::nullopt) {
    PutOptions options;
    if (parent.has_value()) options.parent = Key(*parent);
    options.ttl = ttl;
    const std::vector<std::byte> content = Content(i, bytes);
    return cache_->Put(Key(i), {bytes, 1}, {ConstBytes(content)}, options);
  }
  void MustPut(int i, std::optional<int> parent = std::nullopt,
               std::optional<absl::Duration> ttl = std::nullopt) {
    const absl::Status status = Put(i, parent, kBlock, ttl);
    ASSERT_TRUE(status.ok()) << status;
  }
  WriteLease MustReserve(int i, uint32_t parts = 1, std::optional<int> parent = std::nullopt) {
    PutOptions options;
    if (parent.has_value()) options.parent = Key(*parent);
    auto lease = cache_->Reserve(Key(i), {kBlock, parts}, options);
    EXPECT_TRUE(lease.ok()) << lease.status();
    return lease.ok() ? *std::move(lease) : WriteLease();
  }
  bool Resident(int i) { return cache_->Lookup(Key(i)) == LookupResult::kHit; }
  std::string Residents(int up_to) {
    std::string found;
    for (int i = 1; i <= up_to; ++i) {
      if (Resident(i)) absl::StrAppend(&found, found.empty() ? "" : " ", i);
    }
    return found;
  }
  std::vector<BlockKey> Keys(std::vector<int> numbers) {
    std::vector<BlockKey> keys;
    for (int i : numbers) keys.push_back(Key(i));
    return keys;
  }
  CacheCounters counters() { return cache_->stats().counters; }
  CacheUsage usage() { return cache_->stats().usage; }

  ManualClock clock_;
  std::unique_ptr<Cache> cache_;
};

// --- Reading and writing

TEST_F(CacheTest, ReturnsWhatWasPut) {
  MustPut(1);
  absl::StatusOr<ReadLease> lease = cache_->Get(kNs, Key(1));
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->size(), kBlock);
  EXPECT_TRUE(Holds(lease->data(), Content(1)));
  std::vector<std::byte> copy(kBlock);
  EXPECT_TRUE(lease->Read({absl::MakeSpan(copy)}).Wait().ok());
  EXPECT_EQ(copy, Content(1));
  EXPECT_EQ(counters().bytes_read, kBlock);
  EXPECT_EQ(counters().bytes_written, kBlock);
}

TEST_F(CacheTest, AMissIsNotFoundWithoutAMessage) {
  const absl::Status miss = cache_->Get(kNs, Key(1)).status();
  EXPECT_EQ(miss.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(miss.message(), "");
  EXPECT_EQ(counters().block_misses(), 1);
}

TEST_F(CacheTest, ABlockIsInvisibleUntilItsCommit) {
  WriteLease lease = MustReserve(1);
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kPending);
  EXPECT_EQ(cache_->Get(kNs, Key(1)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cache_->Reserve(Key(1), {kBlock, 1}).status().code(), absl::StatusCode::kUnavailable);
  std::memcpy(lease.data(), Content(1).data(), kBlock);
  ASSERT_TRUE(lease.Commit().ok());
  EXPECT_FALSE(lease.holds());
  EXPECT_TRUE(Resident(1));
  EXPECT_EQ(cache_->Reserve(Key(1), {kBlock, 1}).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(CacheTest, ADroppedWriteLeavesNothing) {
  { WriteLease lease = MustReserve(1, 4); }
  {
    WriteLease lease = MustReserve(2, 4);
    ASSERT_TRUE(lease.CommitPart(0).ok());
  }
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kMiss);
  EXPECT_EQ(cache_->Lookup(Key(2)), LookupResult::kMiss);
  EXPECT_EQ(usage().bytes_in_use, 0);
  EXPECT_EQ(usage().blocks, 0);
  EXPECT_EQ(counters().failed_writes, 2);
}

TEST_F(CacheTest, AResidentKeyIsTouchedByReserve) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  EXPECT_EQ(Put(1).code(), absl::StatusCode::kAlreadyExists);
  MustPut(5);
  EXPECT_EQ(Residents(5), "1 3 4 5");
}

TEST_F(CacheTest, CommittedPartsAreReadableAtOnce) {
  WriteLease lease = MustReserve(1, 4);
  std::memcpy(lease.part(2), Content(7, kBlock / 4).data(), kBlock / 4);
  ASSERT_TRUE(lease.CommitPart(2).ok());
  absl::StatusOr<ReadLease> part = cache_->GetPart(kNs, Key(1), 2);
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(part->size(), kBlock / 4);
  EXPECT_EQ(part->parts(), 1);
  EXPECT_TRUE(Holds(part->data(), Content(7, kBlock / 4)));
  EXPECT_EQ(cache_->GetPart(kNs, Key(1), 1).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cache_->Get(kNs, Key(1)).status().code(), absl::StatusCode::kUnavailable);
  const absl::Status outside = cache_->GetPart(kNs, Key(1), 4).status();
  EXPECT_EQ(outside.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(outside.message(), "part: 4 of a block with 4 parts");
}

TEST_F(CacheTest, APartIsCommittedOnce) {
  WriteLease lease = MustReserve(1, 4);
  ASSERT_TRUE(lease.CommitPart(0).ok());
  EXPECT_EQ(lease.CommitPart(0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(lease.CommitPart(4).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<std::byte> content = Content(1, kBlock / 4);
  EXPECT_EQ(lease.WritePart(0, {ConstBytes(content)}).Wait().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(lease.WritePart(1, {ConstBytes(content)}).Wait().ok());
  EXPECT_TRUE(lease.Commit().ok());
}

TEST_F(CacheTest, TheLastPartCompletesTheBlock) {
  WriteLease lease = MustReserve(1, 2);
  ASSERT_TRUE(lease.CommitPart(1).ok());
  ASSERT_TRUE(lease.CommitPart(0).ok());
  EXPECT_TRUE(Resident(1));
  EXPECT_TRUE(lease.Commit().ok());
}

TEST_F(CacheTest, ASuspendedBlockServesItsPartsAndIsResumed) {
  {
    WriteLease lease = MustReserve(1, 4);
    ASSERT_TRUE(lease.CommitPart(1).ok());
    ASSERT_TRUE(lease.Suspend().ok());
  }
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kPartial);
  EXPECT_TRUE(cache_->GetPart(kNs, Key(1), 1).ok());
  EXPECT_EQ(cache_->GetPart(kNs, Key(1), 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(cache_->Get(kNs, Key(1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(cache_->Reserve(Key(1), {2 * kBlock, 4}).status().message(),
              HasSubstr("2048 bytes in 4 parts, but the partial block has 1024 bytes in 4 parts"));
  const std::vector<std::byte> content = Content(1);
  EXPECT_EQ(cache_->Put(Key(1), {kBlock, 4}, {ConstBytes(content)}).code(),
            absl::StatusCode::kFailedPrecondition);
  {
    WriteLease lease = MustReserve(1, 4);
    EXPECT_TRUE(lease.committed(1));
    EXPECT_FALSE(lease.committed(0));
    ASSERT_TRUE(lease.CommitPart(0).ok());
  }  // dropped: partial again, with both parts
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kPartial);
  EXPECT_TRUE(cache_->GetPart(kNs, Key(1), 0).ok());
  ASSERT_TRUE(MustReserve(1, 4).Commit().ok());
  EXPECT_TRUE(Resident(1));
}

TEST_F(CacheTest, SuspendingWithoutACommittedPartLeavesNothing) {
  EXPECT_TRUE(MustReserve(1, 4).Suspend().ok());
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kMiss);
  EXPECT_EQ(usage().bytes_in_use, 0);
}

TEST_F(CacheTest, ResumingAPartialBlockDoesNotLengthenItsLife) {
  const std::vector<std::byte> content = Content(1);
  const auto reserve = [&] {
    return cache_->Reserve(Key(1), {kBlock, 2}, {.ttl = absl::Seconds(10)});
  };
  {
    absl::StatusOr<WriteLease> lease = reserve();
    std::memcpy(lease->data(), content.data(), kBlock / 2);
    ASSERT_TRUE(lease->CommitPart(0).ok());
    ASSERT_TRUE(lease->Suspend().ok());
  }
  clock_.Advance(absl::Seconds(9));
  EXPECT_TRUE(reserve().ok()) << "and dropped";
  absl::StatusOr<WriteLease> writer = reserve();
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(cache_->GetPart(kNs, Key(1), 0).ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(absl::IsNotFound(cache_->GetPart(kNs, Key(1), 0).status()));
  EXPECT_TRUE(absl::IsAborted(writer->Commit()));
  EXPECT_EQ(counters().expirations, 1);
}

TEST_F(CacheTest, ACommittedPartGivesAPartialBlockANewLife) {
  for (uint32_t part = 0; part < 3; ++part) {
    absl::StatusOr<WriteLease> lease =
        cache_->Reserve(Key(1), {kBlock, 4}, {.ttl = absl::Seconds(10)});
    ASSERT_TRUE(lease.ok());
    EXPECT_EQ(lease->committed(0), part > 0);
    std::memset(lease->part(part), 1, kBlock / 4);
    ASSERT_TRUE(lease->CommitPart(part).ok());
    ASSERT_TRUE(lease->Suspend().ok());
    clock_.Advance(absl::Seconds(9));
  }
}

TEST_F(CacheTest, APartialBlockIsEvictedLikeAnyOther) {
  {
    WriteLease lease = MustReserve(1, 4);
    ASSERT_TRUE(lease.CommitPart(1).ok());
    ASSERT_TRUE(lease.Suspend().ok());
  }
  for (int i = 2; i <= 5; ++i) MustPut(i);
  EXPECT_EQ(cache_->Lookup(Key(1)), LookupResult::kMiss);
  EXPECT_EQ(counters().evictions, 1);
}

// --- Leases

TEST_F(CacheTest, AnErasedBlockKeepsItsBytesUntilTheLastLeaseGoes) {
  MustPut(1);
  ReadLease lease = *cache_->Get(kNs, Key(1));
  EXPECT_TRUE(cache_->Erase(Key(1)));
  EXPECT_FALSE(cache_->Erase(Key(1)));
  EXPECT_EQ(usage().bytes_in_use, kBlock);
  EXPECT_EQ(usage().bytes_detached, kBlock);
  for (int i = 2; i <= 4; ++i) MustPut(i);
  MustPut(5);
  EXPECT_TRUE(Holds(lease.data(), Content(1)));
  EXPECT_EQ(Residents(5), "3 4 5");
  lease.Release();
  EXPECT_EQ(usage().bytes_detached, 0);
  EXPECT_EQ(usage().bytes_in_use, 3 * kBlock);
}

TEST_F(CacheTest, ALeasedBlockIsNeverEvicted) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  ReadLease lease = *cache_->Get(kNs, Key(1));
  for (int i = 5; i <= 10; ++i) MustPut(i);
  EXPECT_TRUE(Resident(1));
  EXPECT_TRUE(Holds(lease.data(), Content(1)));
  lease.Release();
  for (int i = 11; i <= 14; ++i) MustPut(i);
  EXPECT_FALSE(Resident(1));
}

TEST_F(CacheTest, AReleasedBlockReturnsToItsPlace) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  {
    ReadLease lease = *cache_->Get(kNs, Key(1));  // the order is 2 3 4 1
    MustPut(5);                                   // evicts 2
    MustPut(6);                                   // evicts 3
    MustPut(7);                                   // evicts 4
    MustPut(8);                                   // passes over 1, evicts 5
  }
  MustPut(9);  // 1 is the least recently used
  EXPECT_EQ(Residents(9), "6 7 8 9");
}

TEST_F(CacheTest, WhatIsAllLeasedRefusesNewcomersAndEvictsNothing) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  std::vector<ReadLease> leases(3);
  ASSERT_EQ(cache_->GetMany(kNs, Keys({2, 3, 4}), absl::MakeSpan(leases)), 3);
  EXPECT_EQ(Put(9, std::nullopt, 2 * kBlock).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Residents(4), "1 2 3 4");
  EXPECT_EQ(counters().rejected_pinned, 1);
  EXPECT_EQ(counters().evictions, 0);
  cache_->Release(absl::MakeSpan(leases));
  EXPECT_TRUE(Put(9, std::nullopt, 2 * kBlock).ok());
  EXPECT_EQ(Residents(9), "2 3 9");
}

TEST_F(CacheTest, LeasesMove) {
  MustPut(1);
  ReadLease a = *cache_->Get(kNs, Key(1));
  ReadLease b = std::move(a);
  EXPECT_FALSE(a.holds());
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_TRUE(b.holds());
  b = ReadLease();
  EXPECT_EQ(cache_->stats().leases, 0);
  WriteLease w = MustReserve(2);
  WriteLease x = std::move(w);
  EXPECT_EQ(w.Commit().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(x.Commit().ok());
}

TEST_F(CacheTest, TheOldestLeaseIsTold) {
  MustPut(1);
  MustPut(2);
  ReadLease first = *cache_->Get(kNs, Key(1));
  clock_.Advance(absl::Seconds(3));
  ReadLease second = *cache_->Get(kNs, Key(2));
  EXPECT_EQ(cache_->stats().longest_pinned, absl::Seconds(3));
  EXPECT_EQ(cache_->stats().leases, 2);
  first.Release();
  EXPECT_EQ(cache_->stats().longest_pinned, absl::ZeroDuration());
}

// --- Room

TEST_F(CacheTest, EvictsTheLeastRecentlyUsed) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  ASSERT_TRUE(cache_->Get(kNs, Key(1)).ok());
  MustPut(5);
  EXPECT_EQ(Residents(5), "1 3 4 5");
  EXPECT_EQ(counters().evictions, 1);
  EXPECT_EQ(counters().evicted_before_reuse, 1);
  EXPECT_LE(cache_->stats().peak_bytes, 4 * kBlock);
}

TEST_F(CacheTest, RefusesWhatCanNeverFitWithoutEvicting) {
  MustPut(1);
  const absl::Status status = Put(2, std::nullopt, 5 * kBlock);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "size.bytes: 5120 is more than the capacity of the cache, 4096");
  EXPECT_TRUE(Resident(1));
  EXPECT_EQ(counters().rejected_too_large, 1);
}

TEST_F(CacheTest, RefusesBadArgumentsByName) {
  const auto message = [this](BlockSize size, const PutOptions& options = {}) {
    const absl::Status status = cache_->Reserve(Key(1), size, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message({0, 1}), "size.bytes: 0, expected more");
  EXPECT_EQ(message({kBlock, 0}), "size.parts: 0, expected from 1 to 65535");
  EXPECT_EQ(message({65536 * 2, 65536}), "size.parts: 65536, expected from 1 to 65535");
  EXPECT_EQ(message({kBlock, 3}), "size.bytes: 1024, expected a multiple of size.parts, 3");
  EXPECT_THAT(message({SIZE_MAX, 1}), HasSubstr("more than the capacity of the cache"));
  PutOptions options;
  options.ttl = -absl::Seconds(1);
  EXPECT_EQ(message({kBlock, 1}, options), "options.ttl: -1s, expected more than 0");
  options = {};
  options.recompute_cost = -absl::Seconds(1);
  EXPECT_EQ(message({kBlock, 1}, options), "options.recompute_cost: -1s, expected from 0 to 24h");
  options = {};
  options.ns = NamespaceId{7};
  EXPECT_EQ(message({kBlock, 1}, options), "options.ns: 7 was not registered with this cache");
  options = {};
  options.parent = Key(1);
  EXPECT_EQ(message({kBlock, 1}, options), "options.parent: the block itself");
  const std::vector<std::byte> content = Content(1);
  EXPECT_EQ(cache_->Put(Key(1), {kBlock + 64, 1}, {ConstBytes(content)}).message(),
            "source: 1024 bytes, expected 1088");
  EXPECT_EQ(cache_->Put(Key(1), {kBlock, 1}, {ConstBytes(nullptr, kBlock)}).message(),
            "source: null data with a size of 1024 bytes");
  EXPECT_EQ(cache_->Get(NamespaceId{7}, Key(1)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(usage().blocks, 0);
}

class FewBlocksTest : public CacheTest {
 protected:
  FewBlocksTest() : CacheTest(4, 2) {}
};

TEST(CacheKeysTest, KeysThatShareMostOfTheirBytesAreFoundAsFast) {
  constexpr int kKeys = 20'000;
  auto backend = CreateCpuRamBackend({.capacity_bytes = kKeys * 64});
  auto cache = *Cache::Create({.max_blocks = kKeys}, *std::move(backend), CreateLruPolicy());
  for (int word = 0; word < 4; ++word) {
    const auto key = [word](int i) {
      BlockKey key;
      std::memcpy(&key.bytes[8 * word], &i, sizeof(i));
      return key;
    };
    for (int i = 1; i <= kKeys; ++i) {
      ASSERT_TRUE(cache->Reserve(key(i), {64, 1})->Commit().ok());
    }
    for (int i = 1; i <= kKeys; ++i) ASSERT_EQ(cache->Lookup(key(i)), LookupResult::kHit);
  }
}

TEST_F(FewBlocksTest, EvictsWhenBlocksRunOutBeforeBytes) {
  for (int i = 1; i <= 3; ++i) MustPut(i);
  EXPECT_EQ(Residents(3), "2 3");
}

TEST_F(CacheTest, BytesAreChargedInUnitsOfTheAlignment) {
  ASSERT_TRUE(Put(1, std::nullopt, 1).ok());
  EXPECT_EQ(usage().bytes_in_use, cache_->backend_traits().alignment);
}

class FragmentedTest : public CacheTest {
 protected:
  FragmentedTest() : CacheTest(16) {}
};

TEST_F(FragmentedTest, EvictsNoMoreThanARequestThatFindsNoRoomInOnePiece) {
  for (int i = 1; i <= 16; ++i) MustPut(i);
  std::vector<ReadLease> leases(8);
  ASSERT_EQ(cache_->GetMany(kNs, Keys({2, 4, 6, 8, 10, 12, 14, 16}), absl::MakeSpan(leases)), 8);
  // Every other block stays: no two neighbours can go.
  const absl::Status status = Put(20, std::nullopt, 2 * kBlock);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(counters().rejected_fragmented, 1);
  EXPECT_EQ(counters().evictions, 2);
  EXPECT_EQ(counters().failed_writes, 0);
  EXPECT_EQ(usage().bytes_in_use, (16 - counters().evictions) * kBlock);
  cache_->Release(absl::MakeSpan(leases));
  EXPECT_TRUE(Put(20, std::nullopt, 2 * kBlock).ok());
}

TEST_F(FragmentedTest, WhatHasExpiredGoesBeforeAnythingIsEvictedForContiguousRoom) {
  for (int i = 1; i <= 16; ++i)
    MustPut(i, std::nullopt, i == 3 ? absl::Seconds(1) : absl::Hours(1));
  EXPECT_TRUE(cache_->Erase(Key(2)));
  EXPECT_TRUE(cache_->Erase(Key(9)));
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(Put(20, std::nullopt, 2 * kBlock).ok()) << "blocks 2 and 3 are neighbours";
  EXPECT_EQ(counters().evictions, 0);
  EXPECT_EQ(counters().expirations, 1);
}

TEST_F(CacheTest, AResizeThatIsRefusedRemovesWhatHangsBelowAnExpiredBlock) {
  MustPut(1, std::nullopt, absl::Minutes(1));
  const ReadLease parent = *cache_->Get(kNs, Key(1));
  const WriteLease child = MustReserve(2, 1, 1);
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(cache_->Resize(kBlock).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(counters().expirations, 1);
  EXPECT_EQ(counters().failed_writes, 1);
}

TEST_F(CacheTest, ResizeEvictsOrRefuses) {
  for (int i = 1; i <= 4; ++i) MustPut(i);
  std::vector<ReadLease> leases(2);
  ASSERT_EQ(cache_->GetMany(kNs, Keys({1, 2}), absl::MakeSpan(leases)), 2);
  EXPECT_EQ(cache_->Resize(kBlock).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Residents(4), "1 2 3 4");
  EXPECT_TRUE(cache_->Resize(3 * kBlock).ok());
  EXPECT_EQ(Residents(4), "1 2 4");
  EXPECT_EQ(cache_->stats().capacity_bytes, 3 * kBlock);
  EXPECT_EQ(cache_->Resize(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache_->Resize(17 * kBlock).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(cache_->Resize(16 * kBlock).ok());
  for (int i = 5; i <= 10; ++i) MustPut(i);
  EXPECT_EQ(Residents(10), "1 2 4 5 6 7 8 9 10");
}

// --- Chains

TEST_F(CacheTest, MatchStopsAtTheFirstBlockThatIsNotComplete) {
  MustPut(1);
  MustPut(2, 1);
  WriteLease pending = MustReserve(3, 1, 2);
  const std::vector<BlockKey> keys = Keys({1, 2, 3, 4});
  const Chain chain = {.keys = keys, .tokens_per_block = 16, .tokens = 60};
  {
    PrefixMatch match = cache_->Match(chain);
    ASSERT_EQ(match.blocks.size(), 2);
    EXPECT_EQ(match.end, LookupResult::kPending);
    EXPECT_EQ(match.tokens, 32);
    EXPECT_TRUE(Holds(match.blocks[1].data(), Content(2)));
  }
  EXPECT_EQ(cache_->LookupPrefix(chain), 2);
  const CacheCounters counted = counters();
  EXPECT_EQ(counted.request_lookups, 1);
  EXPECT_EQ(counted.request_hits, 0);
  EXPECT_EQ(counted.block_lookups, 4);
  EXPECT_EQ(counted.block_hits, 2);
  EXPECT_EQ(counted.block_pending, 1);
  EXPECT_EQ(counted.tokens_looked_up, 60);
  EXPECT_EQ(counted.tokens_found, 32);
  ASSERT_TRUE(pending.Commit().ok());
  PrefixMatch match = cache_->Match({.keys = absl::MakeSpan(keys).first(3)});
  EXPECT_EQ(match.blocks.size(), 3);
  EXPECT_EQ(match.end, LookupResult::kHit);
  EXPECT_EQ(counters().request_hits, 1);
}

TEST_F(CacheTest, ASuffixGoesBeforeItsPrefix) {
  MustPut(1);
  MustPut(2, 1);
  MustPut(3, 2);
  MustPut(4);
  MustPut(5);  // the oldest leaf is 3
  EXPECT_EQ(Residents(5), "1 2 4 5");
  MustPut(6);
  EXPECT_EQ(Residents(6), "1 4 5 6");
  MustPut(7);
  EXPECT_EQ(Residents(7), "4 5 6 7");
}

TEST_F(CacheTest, OneRequestMayEvictAWholeChain) {
  MustPut(1);
  MustPut(2, 1);
  MustPut(3, 2);
  MustPut(4, 3);
  EXPECT_TRUE(Put(9, std::nullopt, 4 * kBlock).ok());
  EXPECT_EQ(Residents(9), "9");
}

TEST_F(CacheTest, TheParentOfTheNewcomerIsNotItsVictim) {
  MustPut(1);
  EXPECT_EQ(Put(2, 1, 4 * kBlock).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Resident(1));
  EXPECT_EQ(Put(2, 7).code(), absl::StatusCode::kNotFound);
}

TEST_F(CacheTest, ErasingABlockErasesWhatDescendsFromIt) {
  MustPut(1);
  MustPut(2, 1);
  MustPut(3, 2);
  MustPut(4);
  EXPECT_TRUE(cache_->Erase(Key(1)));
  EXPECT_EQ(Residents(4), "4");
  EXPECT_EQ(usage().bytes_in_use, kBlock);
  EXPECT_EQ(counters().erased, 3);
}

TEST_F(CacheTest, APendingBlockMayBeExtendedAndTakesItsDescendantsWithItWhenItFails) {
  WriteLease parent = MustReserve(1);
  WriteLease pending = MustReserve(2, 1, 1);
  MustPut(3, 1);
  EXPECT_TRUE(Resident(3));
  parent.Abort();
  EXPECT_FALSE(Resident(3));
  EXPECT_EQ(pending.Commit().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(usage().bytes_in_use, 0);
  EXPECT_EQ(counters().failed_writes, 3);
}

TEST_F(CacheTest, AWriterLearnsThatItsBlockWasErased) {
  WriteLease lease = MustReserve(1, 2);
  ASSERT_TRUE(lease.CommitPart(0).ok());
  EXPECT_TRUE(cache_->Erase(Key(1)));
  EXPECT_EQ(lease.CommitPart(1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(lease.Commit().code(), absl::StatusCode::kAborted);
  MustPut(1);
  EXPECT_TRUE(Resident(1));
}

TEST_F(CacheTest, ReserveManyChainsItsBlocks) {
  MustPut(1);
  const std::vector<BlockKey> keys = Keys({1, 2, 3});
  std::vector<absl::StatusOr<WriteLease>> results(3);
  ASSERT_EQ(
      cache_->ReserveMany({.keys = keys}, {BlockSize{kBlock, 1}}, {}, absl::MakeSpan(results)), 3);
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(results[1].ok() && results[2].ok());
  EXPECT_TRUE(results[1]->Commit().ok());
  EXPECT_TRUE(results[2]->Commit().ok());
  EXPECT_EQ(cache_->LookupPrefix({.keys = keys}), 3);
  EXPECT_TRUE(cache_->Erase(Key(2)));
  EXPECT_EQ(Residents(3), "1");
}

TEST_F(CacheTest, CommitManyCommitsInOrderAndTellsOfEach) {
  std::vector<WriteLease> leases;
  leases.push_back(MustReserve(1, 2));
  leases.push_back(MustReserve(2, 2, 1));
  leases.push_back(MustReserve(3, 2));
  leases.emplace_back();
  leases.push_back(MustReserve(4, 2));
  for (int i : {0, 1, 2, 4}) {
    std::memcpy(leases[i].data(), Content(i).data(), kBlock);
  }
  ASSERT_TRUE(leases[0].CommitPart(1).ok());
  TransferSource copy({0u});
  ASSERT_TRUE(leases[4].CommitAfter(0, copy.transfer()).ok());
  ASSERT_TRUE(cache_->Erase(Key(3)));
  std::vector<absl::Status> results(leases.size(), absl::UnknownError(""));
  cache_->CommitMany(absl::MakeSpan(leases), absl::MakeSpan(results));
  EXPECT_TRUE(results[0].ok() && results[1].ok() && results[4].ok());
  EXPECT_TRUE(absl::IsAborted(results[2]));
  EXPECT_TRUE(absl::IsFailedPrecondition(results[3]));
  for (const WriteLease& lease : leases) EXPECT_FALSE(lease.holds());
  EXPECT_EQ(Residents(4), "1 2");
  copy.Complete(0, absl::OkStatus());
  EXPECT_EQ(Residents(4), "1 2 4");
  for (int i : {1, 2, 4}) EXPECT_TRUE(cache_->Get(kNs, Key(i))->Verify().ok()) << i;
  EXPECT_EQ(cache_->stats().leases, 0);
}

TEST_F(CacheTest, ReserveManyStopsAtTheFirstRefusal) {
  const std::vector<BlockKey> keys = Keys({1, 2, 3, 4, 5, 6});
  std::vector<absl::StatusOr<WriteLease>> results(6);
  EXPECT_EQ(
      cache_->ReserveMany({.keys = keys}, {BlockSize{kBlock, 1}}, {}, absl::MakeSpan(results)), 5);
  EXPECT_EQ(results[4].status().code(), absl::StatusCode::kResourceExhausted);
}

// --- Time

TEST_F(CacheTest, AnExpiredBlockIsAMissAndAnExpiration) {
  MustPut(1, std::nullopt, absl::Seconds(10));
  clock_.Advance(absl::Seconds(10) - absl::Nanoseconds(1));
  EXPECT_TRUE(cache_->Get(kNs, Key(1)).ok());  // a hit extends nothing
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_FALSE(Resident(1));
  EXPECT_EQ(cache_->Get(kNs, Key(1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(counters().expirations, 1);
  EXPECT_EQ(counters().evictions, 0);
  EXPECT_EQ(usage().bytes_in_use, 0);
}

TEST_F(CacheTest, TheTtlCountsFromTheCommit) {
  PutOptions options;
  options.ttl = absl::Seconds(10);
  WriteLease lease = *cache_->Reserve(Key(1), {kBlock, 1}, options);
  clock_.Advance(absl::Seconds(20));
  ASSERT_TRUE(lease.Commit().ok());
  clock_.Advance(absl::Seconds(9));
  EXPECT_TRUE(Resident(1));
}

TEST_F(CacheTest, ExpiredBlocksGoBeforeLiveOnes) {
  MustPut(1);
  MustPut(2, std::nullopt, absl::Seconds(1));
  MustPut(3);
  MustPut(4);
  clock_.Advance(absl::Seconds(1));
  MustPut(5);
  EXPECT_EQ(Residents(5), "1 3 4 5");
  EXPECT_EQ(counters().evictions, 0);
}

TEST_F(CacheTest, ABlockDoesNotOutliveItsParent) {
  MustPut(1, std::nullopt, absl::Seconds(10));
  MustPut(2, 1, absl::Seconds(100));
  clock_.Advance(absl::Seconds(10));
  EXPECT_FALSE(Resident(2));
  cache_->Drain();
  EXPECT_EQ(counters().expirations, 2);
  EXPECT_EQ(usage().bytes_in_use, 0);
}

TEST_F(CacheTest, AParentCommittedLaterShortensItsChildren) {
  PutOptions options;
  options.ttl = absl::Seconds(10);
  WriteLease parent = *cache_->Reserve(Key(1), {kBlock, 1}, options);
  MustPut(2, 1);
  MustPut(3, 2);
  ASSERT_TRUE(parent.Commit().ok());
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(Residents(3), "");
}

TEST_F(CacheTest, ExtendLengthensLivesFromTheFrontOn) {
  MustPut(1, std::nullopt, absl::Seconds(10));
  MustPut(2, 1, absl::Seconds(10));
  const std::vector<BlockKey> keys = Keys({1, 2, 3});
  absl::StatusOr<size_t> extended = cache_->Extend({.keys = keys}, absl::Seconds(30));
  ASSERT_TRUE(extended.ok());
  EXPECT_EQ(*extended, 2);
  clock_.Advance(absl::Seconds(29));
  EXPECT_EQ(Residents(3), "1 2");
  EXPECT_EQ(*cache_->Extend({.keys = keys}, absl::Nanoseconds(1)), 2);  // never shortens
  clock_.Advance(absl::Milliseconds(999));
  EXPECT_EQ(Residents(3), "1 2");
  EXPECT_EQ(cache_->Extend({.keys = keys}, absl::ZeroDuration()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CacheTest, AWriteUnderAnExpiredParentIsAborted) {
  MustPut(1, std::nullopt, absl::Seconds(10));
  WriteLease lease = MustReserve(2, 1, 1);
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(lease.Commit().code(), absl::StatusCode::kAborted);
}

// --- Namespaces

Namespace NamespaceOf(const std::string& tenant) {
  Namespace ns;
  ns.model = "tiny";
  ns.tenant = tenant;
  ns.layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = 8};
  ns.shard = Shard::Whole(1, 1);
  return ns;
}

TEST_F(CacheTest, NamespacesAreErasedAndCountedApart) {
  const NamespaceId a = *cache_->Register(NamespaceOf("a"));
  const NamespaceId b = *cache_->Register(NamespaceOf("b"));
  EXPECT_NE(a, b);
  EXPECT_EQ(*cache_->Register(NamespaceOf("a")), a);
  PutOptions options;
  options.ns = a;
  const std::vector<std::byte> content = Content(1);
  ASSERT_TRUE(cache_->Put(Key(1), {kBlock, 1}, {ConstBytes(content)}, options).ok());
  options.parent = Key(1);
  ASSERT_TRUE(cache_->Put(Key(2), {kBlock, 1}, {ConstBytes(content)}, options).ok());
  options = {};
  options.ns = b;
  options.parent = Key(2);
  EXPECT_THAT(cache_->Reserve(Key(3), {kBlock, 1}, options).status().message(),
              HasSubstr("is of another namespace"));
  options.parent.reset();
  ASSERT_TRUE(cache_->Put(Key(3), {kBlock, 1}, {ConstBytes(content)}, options).ok());
  ReadLease lease = *cache_->Get(a, Key(1));
  WriteLease pending = *cache_->Reserve(Key(4), {kBlock, 1}, {.ns = a, .parent = Key(2)});
  EXPECT_EQ(cache_->EraseNamespace(a), 3);
  EXPECT_EQ(cache_->EraseNamespace(a), 0);
  EXPECT_EQ(Residents(4), "3");
  EXPECT_EQ(pending.Commit().code(), absl::StatusCode::kAborted);
  const CacheStats stats = cache_->stats();
  ASSERT_EQ(stats.namespaces.size(), 3);
  EXPECT_EQ(stats.namespaces[1].counters.erased, 2);
  EXPECT_EQ(stats.namespaces[1].counters.block_hits, 1);
  EXPECT_EQ(stats.namespaces[1].usage.bytes_detached, kBlock);
  EXPECT_EQ(stats.namespaces[2].usage.blocks, 1);
  lease.Release();
  cache_->Clear();
  EXPECT_EQ(usage().bytes_in_use, 0);
}

TEST_F(CacheTest, AHitSavesItsShareOfTheCompute) {
  PutOptions options;
  options.recompute_cost = absl::Seconds(8);
  ASSERT_TRUE(cache_->Reserve(Key(1), {kBlock, 4}, options)->Commit().ok());
  ASSERT_TRUE(cache_->Get(kNs, Key(1)).ok());
  ASSERT_TRUE(cache_->GetPart(kNs, Key(1), 3).ok());
  EXPECT_EQ(counters().compute_saved, absl::Seconds(10));
  EXPECT_EQ(counters().layer_hits, 1);
}

// --- Batches

TEST_F(CacheTest, ReadIntoReportsEachRequest) {
  MustPut(1);
  ASSERT_TRUE(MustReserve(2, 4).Commit().ok());
  WriteLease pending = MustReserve(3);
  std::vector<std::byte> whole(kBlock), part(kBlock / 4), other(kBlock);
  const MutableBytes whole_span = absl::MakeSpan(whole), part_span = absl::MakeSpan(part),
                     other_span = absl::MakeSpan(other);
  std::vector<ReadRequest> requests(5);
  requests[0] = {.key = Key(1), .destination = {&whole_span, 1}};
  requests[1] = {.key = Key(2), .destination = {&part_span, 1}, .part = 2};
  requests[2] = {.key = Key(9), .destination = {&other_span, 1}};
  requests[3] = {.key = Key(3), .destination = {&other_span, 1}};
  requests[4] = {.key = Key(1), .destination = {&part_span, 1}};
  const Transfer transfer = cache_->ReadInto(requests);
  ASSERT_EQ(transfer.size(), 5);
  transfer.Wait().IgnoreError();
  EXPECT_TRUE(transfer.result(0).ok());
  EXPECT_TRUE(transfer.result(1).ok());
  EXPECT_EQ(transfer.result(2), absl::NotFoundError(""));
  EXPECT_EQ(transfer.result(3), absl::UnavailableError(""));
  EXPECT_EQ(transfer.result(4),
            absl::InvalidArgumentError("destination: 256 bytes, expected 1024"));
  EXPECT_EQ(whole, Content(1));
  EXPECT_EQ(cache_->stats().leases, 1);
}

TEST_F(CacheTest, PutManyPutsChains) {
  const std::vector<std::byte> one = Content(1), two = Content(2);
  const ConstBytes one_span = one, two_span = two;
  std::vector<PutRequest> requests(3);
  requests[0] = {.key = Key(1), .size = {kBlock, 1}, .source = {&one_span, 1}};
  requests[1] = {.key = Key(2), .size = {kBlock, 1}, .source = {&two_span, 1}};
  requests[1].options.parent = Key(1);
  requests[2] = requests[0];
  const Transfer transfer = cache_->PutMany(requests);
  EXPECT_TRUE(transfer.result(0).ok());
  EXPECT_TRUE(transfer.result(1).ok());
  EXPECT_EQ(transfer.result(2).code(), absl::StatusCode::kUnavailable);
  const std::vector<BlockKey> keys = Keys({1, 2});
  EXPECT_EQ(cache_->LookupPrefix({.keys = keys}), 2);
  EXPECT_TRUE(Holds(cache_->Get(kNs, Key(2))->data(), two));
}

TEST(CacheChunksTest, LongChainsAreMatchedTouchedAndErasedWhole) {
  constexpr int kBlocks = 1000;
  auto backend = CreateCpuRamBackend({.capacity_bytes = kBlocks * 64});
  auto cache = *Cache::Create({}, *std::move(backend), CreateLruPolicy());
  std::vector<BlockKey> keys;
  const std::vector<std::byte> content(64);
  for (int i = 1; i <= kBlocks; ++i) {
    PutOptions options;
    if (i > 1) options.parent = Key(i - 1);
    keys.push_back(Key(i));
    ASSERT_TRUE(cache->Put(Key(i), {64, 1}, {ConstBytes(content)}, options).ok());
  }
  const Chain chain = {.keys = keys, .tokens_per_block = 16, .tokens = 16 * kBlocks};
  EXPECT_EQ(cache->LookupPrefix(chain), kBlocks);
  {
    PrefixMatch match = cache->Match(chain);
    EXPECT_EQ(match.blocks.size(), kBlocks);
    EXPECT_EQ(match.tokens, 16 * kBlocks);
    cache->Release(absl::MakeSpan(match.blocks));
  }
  ASSERT_TRUE(cache->Put(Key(5000), {64, 1}, {ConstBytes(content)}).ok());
  EXPECT_EQ(cache->LookupPrefix(chain), kBlocks - 1);  // the last block went
  EXPECT_TRUE(cache->Erase(Key(1)));
  EXPECT_EQ(cache->LookupPrefix(chain), 0);
  EXPECT_EQ(cache->stats().usage.bytes_in_use, 64);
}

TEST(CacheCreateTest, RefusesBadOptionsByName) {
  const auto message = [](const CacheOptions& options) {
    const absl::Status status =
        Cache::Create(options, *CreateCpuRamBackend({.capacity_bytes = 4096}), CreateLruPolicy())
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  CacheOptions options;
  options.capacity_bytes = 0;
  EXPECT_THAT(message(options), HasSubstr("capacity_bytes: 0, expected from 64 to 4096"));
  options.capacity_bytes = 4097;
  EXPECT_THAT(message(options), HasSubstr("capacity_bytes: 4097"));
  options = {};
  options.max_blocks = 0;
  EXPECT_THAT(message(options), HasSubstr("max_blocks: 0"));
  options = {};
  options.default_ttl = absl::ZeroDuration();
  EXPECT_EQ(message(options), "default_ttl: 0, expected more than 0");
  options = {};
  EXPECT_EQ(Cache::Create({}, nullptr, CreateLruPolicy()).status().message(), "backend: null");
  EXPECT_EQ(
      Cache::Create({}, *CreateCpuRamBackend({.capacity_bytes = 64}), nullptr).status().message(),
      "policy: null");
}

}  // namespace
}  // namespace kvcache
