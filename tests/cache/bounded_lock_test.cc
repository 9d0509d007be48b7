// No call holds a lock in proportion to a prompt, to blocks, leases or namespaces.
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/lock_probe.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kBlocks = 100'000;
constexpr size_t kBytes = 4096;
// What is done in proportion to kBlocks takes ten times as long and more.
constexpr absl::Duration kLongestHold = absl::Milliseconds(2);
// What is done for each block in proportion to the others takes ten times as long and more.
constexpr absl::Duration kAllHolds = absl::Seconds(2);

BlockKey Key(uint64_t number) {
  BlockKey key;
  const uint64_t mixed = number * 0x9e3779b97f4a7c15;
  std::memcpy(key.bytes.data(), &mixed, sizeof(mixed));
  std::memcpy(key.bytes.data() + 8, &number, sizeof(number));
  return key;
}

std::vector<BlockKey> Keys(uint64_t first, size_t count) {
  std::vector<BlockKey> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(Key(first + i));
  return keys;
}

class BoundedLockTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!LockProbe::kWorks) GTEST_SKIP() << "sanitizers watch the locks";
    auto backend = CreateAccountingBackend({.capacity_bytes = kBlocks * kBytes});
    ASSERT_TRUE(backend.ok()) << backend.status();
    CacheOptions options;
    options.max_blocks = kBlocks;
    options.clock = &clock_;
    auto cache = Cache::Create(options, *std::move(backend), CreateLruPolicy());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  // Runs `call` and checks how long it holds the cache's lock at a time. Returns how often it did.
  size_t Watch(const char* what, const std::function<void()>& call) {
    const LockProbe probe;
    cache_->Lookup(Key(0));  // takes the lock that is watched
    call();
    EXPECT_GT(probe.holds(), 1u) << what << " took no lock";
    EXPECT_LT(probe.longest_hold(), kLongestHold) << what;
    EXPECT_LT(probe.all_holds(), kAllHolds) << what;
    return probe.holds() - 1;
  }

  void Fill(size_t blocks, absl::Duration ttl = absl::InfiniteDuration()) {
    PutOptions options;
    options.ttl = ttl;
    cache_->Clear();
    for (size_t i = 0; i < blocks; ++i) {
      absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(i), {kBytes, 1}, options);
      ASSERT_TRUE(lease.ok()) << lease.status();
      ASSERT_TRUE(lease->Commit().ok());
    }
  }

  // A prompt that is reserved as a whole.
  std::vector<WriteLease> ReserveChain(absl::Span<const BlockKey> keys, const PutOptions& options) {
    std::vector<absl::StatusOr<WriteLease>> results(keys.size());
    EXPECT_EQ(cache_->ReserveMany({.keys = keys}, {BlockSize{kBytes, 1}}, options,
                                  absl::MakeSpan(results)),
              keys.size());
    std::vector<WriteLease> leases;
    for (absl::StatusOr<WriteLease>& result : results) {
      EXPECT_TRUE(result.ok()) << result.status();
      if (result.ok()) leases.push_back(*std::move(result));
    }
    return leases;
  }

  ManualClock clock_;
  std::unique_ptr<Cache> cache_;
};

TEST_F(BoundedLockTest, AChainIsReservedOneByOneAndCommittedWithATtl) {
  PutOptions options;
  options.ttl = absl::Hours(1);
  std::vector<WriteLease> leases;
  Watch("Reserve", [&] {
    for (size_t i = 0; i < kBlocks; ++i) {
      if (i > 0) options.parent = Key(i - 1);
      leases.push_back(*cache_->Reserve(Key(i), {kBytes, 1}, options));
    }
  });
  Watch("Commit", [&] {
    for (WriteLease& lease : leases) ASSERT_TRUE(lease.Commit().ok());
  });
  EXPECT_EQ(cache_->LookupPrefix({.keys = Keys(0, kBlocks)}), kBlocks);
}

TEST_F(BoundedLockTest, AChainIsCommittedFromItsEndWithATtl) {
  PutOptions options;
  options.ttl = absl::Hours(1);
  const std::vector<BlockKey> keys = Keys(0, kBlocks);
  std::vector<WriteLease> leases;
  const size_t holds = Watch("ReserveMany", [&] { leases = ReserveChain(keys, options); });
  EXPECT_LE(holds, kBlocks / 64);
  ASSERT_EQ(leases.size(), kBlocks);
  Watch("Commit", [&] {
    for (; !leases.empty(); leases.pop_back()) ASSERT_TRUE(leases.back().Commit().ok());
  });
  EXPECT_EQ(cache_->LookupPrefix({.keys = keys}), kBlocks);
}

TEST_F(BoundedLockTest, ABlockBehindTooManyOfItsDescendantsIsDroppedWithThem) {
  // Each parent is finished after its child and expires before it.
  const std::vector<BlockKey> keys = Keys(0, kBlocks / 10);
  std::vector<WriteLease> leases;
  PutOptions options;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (i > 0) options.parent = keys[i - 1];
    options.ttl = absl::Hours(1) + absl::Nanoseconds(i);
    leases.push_back(*cache_->Reserve(keys[i], {kBytes, 1}, options));
  }
  size_t dropped = 0;
  Watch("Commit", [&] {
    for (; !leases.empty(); leases.pop_back()) {
      const absl::Status status = leases.back().Commit();
      dropped += absl::IsAborted(status);
      ASSERT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    }
  });
  EXPECT_GT(dropped, 0u);
  // Whatever is left hangs together and expires in time.
  const size_t left = cache_->LookupPrefix({.keys = keys});
  EXPECT_EQ(cache_->stats().usage.blocks, left);
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(cache_->LookupPrefix({.keys = keys}), 0u);
}

TEST_F(BoundedLockTest, APromptIsMatchedReleasedAndErased) {
  const std::vector<BlockKey> keys = Keys(0, kBlocks);
  for (WriteLease& lease : ReserveChain(keys, {})) ASSERT_TRUE(lease.Commit().ok());
  PrefixMatch match;
  size_t holds = Watch("Match", [&] { match = cache_->Match({.keys = keys}); });
  EXPECT_EQ(match.blocks.size(), kBlocks);
  holds += Watch("Release", [&] { cache_->Release(absl::MakeSpan(match.blocks)); });
  EXPECT_LE(holds, kBlocks / 64);
  Watch("LookupPrefix", [&] { cache_->LookupPrefix({.keys = keys}); });
  Watch("Extend", [&] { cache_->Extend({.keys = keys}, absl::Hours(1)).IgnoreError(); });
  Watch("Erase", [&] { EXPECT_TRUE(cache_->Erase(keys[0])); });
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
}

TEST_F(BoundedLockTest, LargeNewcomersAreRefusedAndAdmitted) {
  Fill(kBlocks);
  std::vector<ReadLease> leases(kBlocks / 2);
  std::vector<BlockKey> leased;
  for (size_t i = 0; i < kBlocks; i += 2) leased.push_back(Key(i));
  ASSERT_EQ(cache_->GetMany(kNs, leased, absl::MakeSpan(leases)), leased.size());
  const size_t before = cache_->stats().counters.evictions;
  for (int i = 0; i < 3; ++i) {
    Watch("Reserve of more than is loose", [&] {
      EXPECT_TRUE(absl::IsResourceExhausted(
          cache_->Reserve(Key(kBlocks), {(kBlocks / 2 + 1) * kBytes, 1}).status()));
    });
  }
  // Below a block that is being written nothing can go, though it is not leased.
  PutOptions child;
  child.parent = Key(1);
  WriteLease writing;
  Watch("Reserve of a child", [&] {
    writing = *cache_->Reserve(Key(kBlocks + 1), {kBytes, 1}, child);
  });
  Watch("Reserve of all that is loose and one more", [&] {
    EXPECT_TRUE(absl::IsResourceExhausted(
        cache_->Reserve(Key(kBlocks), {(kBlocks / 2 - 1) * kBytes, 1}).status()));
  });
  EXPECT_EQ(cache_->stats().counters.evictions, before + 1) << "the child's victim";
  const size_t fits = kBlocks / 2 - 2;
  Watch("Reserve of all that can go", [&] {
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(kBlocks), {fits * kBytes, 1});
    // The backend's room is in pieces, so it may not be had; but nothing leased has gone.
    EXPECT_TRUE(lease.ok() || absl::IsResourceExhausted(lease.status())) << lease.status();
  });
  for (const BlockKey& key : leased) ASSERT_EQ(cache_->Lookup(key), LookupResult::kHit);
  EXPECT_LE(cache_->stats().peak_bytes, kBlocks * kBytes);
}

TEST_F(BoundedLockTest, ALargeNewcomerTakesTheRoomOfManyBlocks) {
  Fill(kBlocks);
  Watch("Reserve", [&] {
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(kBlocks), {kBlocks / 2 * kBytes, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(lease->Commit().ok());
  });
  EXPECT_EQ(cache_->stats().counters.evictions, kBlocks / 2);
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, kBlocks * kBytes);
  EXPECT_EQ(cache_->stats().peak_bytes, kBlocks * kBytes);
  EXPECT_EQ(cache_->Lookup(Key(kBlocks / 2 - 1)), LookupResult::kMiss);
  EXPECT_EQ(cache_->Lookup(Key(kBlocks / 2)), LookupResult::kHit);
}

TEST_F(BoundedLockTest, TheCacheIsResizedAndCleared) {
  Fill(kBlocks);
  Watch("Resize", [&] { EXPECT_TRUE(cache_->Resize(kBlocks / 10 * kBytes).ok()); });
  EXPECT_EQ(cache_->stats().usage.blocks, kBlocks / 10);
  EXPECT_EQ(cache_->Lookup(Key(kBlocks - kBlocks / 10)), LookupResult::kHit);
  Watch("Resize", [&] { EXPECT_TRUE(cache_->Resize(kBlocks * kBytes).ok()); });
  Fill(kBlocks);
  Watch("Clear", [&] { cache_->Clear(); });
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
  Fill(kBlocks);
  Watch("EraseNamespace", [&] { EXPECT_EQ(cache_->EraseNamespace(kNs), kBlocks); });
}

TEST_F(BoundedLockTest, ManyBlocksExpireAtOnce) {
  Fill(kBlocks, absl::Seconds(1));
  clock_.Advance(absl::Seconds(2));
  Watch("Reserve", [&] {
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(kBlocks), {kBlocks * kBytes, 1});
    EXPECT_TRUE(lease.ok()) << lease.status();
  });
  Fill(kBlocks, absl::Seconds(1));
  clock_.Advance(absl::Seconds(2));
  Watch("Drain", [&] { cache_->Drain(); });
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
}

TEST_F(BoundedLockTest, APriorityIsUsedForTheFirstTime) {
  Fill(kBlocks);
  PutOptions options;
  options.priority = 7;
  Watch("Reserve", [&] { EXPECT_TRUE(cache_->Reserve(Key(kBlocks), {kBytes, 1}, options).ok()); });
}

TEST_F(BoundedLockTest, ManyNamespacesAreRegisteredCountedAndCleared) {
  constexpr size_t kNamespaces = 20'000;
  Namespace ns = {.model = "m",
                  .shard = Shard::Whole(1, 1),
                  .layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = 8}};
  std::vector<NamespaceId> ids;
  Watch("Register", [&] {
    for (size_t i = 0; i < kNamespaces; ++i) {
      ns.tenant = absl::StrCat(i);
      ids.push_back(cache_->Register(ns).value());
    }
  });
  Watch("stats", [&] { EXPECT_EQ(cache_->stats().namespaces.size(), kNamespaces + 1); });
  PutOptions options;
  for (size_t i = 0; i < kNamespaces; i += 10) {
    options.ns = ids[i];
    ASSERT_TRUE(cache_->Reserve(Key(i), {kBytes, 1}, options)->Commit().ok());
  }
  Watch("Clear", [&] { cache_->Clear(); });
  EXPECT_EQ(cache_->stats().usage.blocks, 0u);
  Watch("Unregister", [&] {
    for (NamespaceId id : ids) cache_->Unregister(id);
  });
  EXPECT_EQ(cache_->stats().namespaces.size(), 1u);
  EXPECT_EQ(cache_->stats().counters.blocks_written, kNamespaces / 10) << "counted for ever";
}

}  // namespace
}  // namespace kvcache
