// Blocks of many sizes: free memory is in pieces, and neighbours go for a newcomer.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kUnit = 64;

std::unique_ptr<Cache> CacheOf(size_t bytes) {
  return *Cache::Create({.max_blocks = bytes / kUnit, .checksums = false},
                        *CreateCpuRamBackend({.capacity_bytes = bytes}), CreateLruPolicy());
}

absl::Status Put(Cache& cache, uint32_t key, size_t bytes, std::optional<uint32_t> parent = {},
                 uint16_t priority = 0) {
  PutOptions options = {.priority = priority};
  if (parent.has_value()) options.parent = NumberedKey(*parent);
  absl::StatusOr<WriteLease> lease = cache.Reserve(NumberedKey(key), {bytes, 1}, options);
  return lease.ok() ? lease->Commit() : lease.status();
}

bool Resident(const Cache& cache, uint32_t key) {
  return cache.Lookup(NumberedKey(key)) == LookupResult::kHit;
}

TEST(FragmentsTest, OneOfAnEighthOfTheCacheFitsWhenEverySecondSmallOneIsNewer) {
  const auto cache = CacheOf(64 * 512);
  for (uint32_t key = 0; key < 64; ++key) ASSERT_TRUE(Put(*cache, key, 512).ok());
  for (uint32_t key = 0; key < 64; key += 2) ASSERT_TRUE(cache->Get(kNs, NumberedKey(key)).ok());
  EXPECT_TRUE(Put(*cache, 1000, 8 * 512).ok());
  // 8 for its bytes, and the 4 others of 8 neighbours.
  EXPECT_LE(cache->stats().counters.evictions, 12);
}

// Sizes between bytes / 1000 and bytes; the figures say how full the cache is kept.
void PutSizes(bool log_uniform, double expected_in_use) {
  constexpr size_t kCapacity = size_t{64} << 20;
  constexpr double kLargest = 512 << 10;
  const auto cache = CacheOf(kCapacity);
  Random random(1);
  size_t in_use = 0;
  double sum_in_use = 0;
  for (uint32_t key = 0; key < 20'000; ++key) {
    if (key > 100 && random.Chance(50)) {
      (void)cache->Get(kNs, NumberedKey(key - 1 - random.Below(100)));
    }
    const double share = (1 + random.Below(1000)) / 1000.0;
    const size_t bytes = log_uniform ? kLargest * std::pow(1000, share - 1) : kLargest * share;
    const size_t most_in_use = std::min(in_use + bytes, kCapacity);
    ASSERT_TRUE(Put(*cache, key, bytes).ok()) << "key " << key << ", " << bytes << " bytes";
    in_use = cache->stats().usage.bytes_in_use;
    ASSERT_LT(most_in_use - std::min(in_use, most_in_use), bytes + kLargest) << "went in vain";
    if (key >= 10'000) sum_in_use += in_use;
  }
  EXPECT_GE(sum_in_use / 10'000 / kCapacity, expected_in_use) << "of the capacity";
  const CacheStats stats = cache->stats();
  EXPECT_EQ(stats.counters.rejected_fragmented, 0);
  EXPECT_LE(stats.peak_bytes, kCapacity);
}

TEST(FragmentsTest, NoneOfTwentyThousandPromptsOfUniformSizesIsRefused) { PutSizes(false, 0.97); }
TEST(FragmentsTest, NoneOfTwentyThousandPromptsOfLogUniformSizesIsRefused) { PutSizes(true, 0.97); }

TEST(FragmentsTest, AHigherPriorityKeepsNeighboursFromGoing) {
  const auto cache = CacheOf(16 * kUnit);
  for (uint32_t key = 0; key < 16; ++key) {
    ASSERT_TRUE(Put(*cache, key, kUnit, {}, key % 2 == 0 ? 50 : 0).ok());
  }
  EXPECT_EQ(Put(*cache, 100, 2 * kUnit).code(), absl::StatusCode::kResourceExhausted);
  for (uint32_t key = 0; key < 16; key += 2) EXPECT_TRUE(Resident(*cache, key));
  EXPECT_TRUE(Put(*cache, 100, 2 * kUnit, {}, 50).ok());
}

// The only row of neighbours that would do has a block in it with 600 descendants, which lie
// between blocks that are leased.
class DescendantsTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kRoot = 1;
  static constexpr uint32_t kFirst = 10;
  static constexpr uint32_t kDescendants = 600;
  static constexpr uint32_t kLeased = 10'000;

  DescendantsTest() : cache_(CacheOf((21 + 2 * kDescendants) * kUnit)) {
    EXPECT_TRUE(Put(*cache_, 2, 10 * kUnit).ok());
    EXPECT_TRUE(Put(*cache_, kRoot, kUnit).ok());
    EXPECT_TRUE(Put(*cache_, 3, 9 * kUnit).ok());
    Lease(kLeased);
    for (uint32_t i = 0; i < kDescendants; ++i) {
      EXPECT_TRUE(Put(*cache_, kFirst + i, kUnit, i == 0 ? kRoot : kFirst + i - 1).ok());
      Lease(kLeased + 1 + i);
    }
    EXPECT_TRUE(cache_->Erase(NumberedKey(2)));
    EXPECT_TRUE(cache_->Erase(NumberedKey(3)));
  }
  void Lease(uint32_t key) {
    EXPECT_TRUE(Put(*cache_, key, kUnit).ok());
    leases_.push_back(*cache_->Get(kNs, NumberedKey(key)));
  }

  const std::unique_ptr<Cache> cache_;
  std::vector<ReadLease> leases_;
};

TEST_F(DescendantsTest, AllOfThemGoWithIt) {
  EXPECT_TRUE(Put(*cache_, 5, 20 * kUnit).ok());
  EXPECT_EQ(cache_->stats().counters.evictions, kDescendants + 1);
}

TEST_F(DescendantsTest, NoneOfThemGoesWhenOneIsLeased) {
  const ReadLease lease = *cache_->Get(kNs, NumberedKey(kFirst + 300));
  EXPECT_EQ(Put(*cache_, 5, 20 * kUnit).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache_->stats().counters.evictions, 1) << "for its bytes";
  EXPECT_EQ(cache_->stats().counters.rejected_fragmented, 1);
}

TEST_F(DescendantsTest, TheNewcomersAncestorsDoNotGoForIt) {
  EXPECT_EQ(Put(*cache_, 5, 20 * kUnit, kRoot).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Resident(*cache_, kRoot));
}

// What a refusal claims, checked against a map of all that is leased.
class Refusals {
 public:
  explicit Refusals(uint64_t seed) : random_(seed), cache_(CacheOf(kUnits * kUnit)) {
    absl::StatusOr<WriteLease> all = cache_->Reserve(NumberedKey(0), {kUnits * kUnit, 1});
    base_ = all->data();
  }

  void Run(int steps) {
    for (int step = 0; step < steps; ++step) {
      const uint32_t key = random_.Below(kKeys);
      switch (random_.Below(8)) {
        case 0:
        case 1:
          for (uint32_t k = key; k < key + 20; ++k) {
            if (auto lease = cache_->Get(kNs, NumberedKey(k)); lease.ok()) {
              reads_.push_back({k, *std::move(lease)});
              break;
            }
          }
          break;
        case 2:
          while (random_.Below(24) < reads_.size()) {
            std::swap(reads_[random_.Below(reads_.size())], reads_.back());
            reads_.pop_back();
          }
          break;
        case 3:
          if (!writes_.empty()) {
            std::swap(writes_[random_.Below(writes_.size())], writes_.back());
            ASSERT_TRUE(writes_.back().lease.Commit().ok());
            writes_.pop_back();
          }
          break;
        default:
          PutSome(key);
      }
      ASSERT_LE(cache_->stats().peak_bytes, kUnits * kUnit);
    }
  }
  int refused() const { return refused_; }

 private:
  static constexpr size_t kUnits = 512;
  static constexpr uint32_t kKeys = 400;  // and some behind
  struct Place {
    size_t first = 0;
    size_t units = 0;
    std::optional<uint32_t> parent;
  };
  template <typename Lease>
  struct Held {
    uint32_t key;
    Lease lease;
  };

  void PutSome(uint32_t key) {
    std::vector<BlockKey> keys;
    std::vector<BlockSize> sizes;
    for (uint32_t i = 0; i <= random_.Below(4); ++i) {
      keys.push_back(NumberedKey(key + i));
      sizes.push_back({kUnit << random_.Below(8), 1});
      sizes.back().bytes -= kUnit * random_.Below(sizes.back().bytes / kUnit);
    }
    std::optional<uint32_t> parent;
    PutOptions options;
    if (key > 0 && random_.Chance(40)) options.parent = NumberedKey(*(parent = random_.Below(key)));
    std::vector<absl::StatusOr<WriteLease>> results(keys.size());
    const size_t count =
        cache_->ReserveMany({.ns = kNs, .keys = keys}, sizes, options, absl::MakeSpan(results));
    std::vector<Held<WriteLease>> reserved;
    for (uint32_t i = 0; i < count; ++i) {
      const std::optional<uint32_t> above = i == 0 ? parent : key + i - 1;
      if (results[i].ok()) {
        places_[key + i] = {static_cast<size_t>(results[i]->data() - base_) / kUnit,
                            sizes[i].bytes / kUnit, above};
        writes_.push_back({key + i, *std::move(results[i])});
      } else if (results[i].status().code() == absl::StatusCode::kResourceExhausted) {
        if (i + 1 < keys.size()) continue;  // those behind it may have had room already
        ++refused_;
        EXPECT_LT(LongestRun(above), sizes[i].bytes / kUnit) << results[i].status();
      }
    }
    // Nearly all are committed at once.
    while (!writes_.empty() && !random_.Chance(writes_.size() > 4 ? 1 : 10)) {
      ASSERT_TRUE(writes_.back().lease.Commit().ok());
      writes_.pop_back();
    }
  }

  // Of units that are neither leased nor of a block above one that is, or above the newcomer.
  size_t LongestRun(std::optional<uint32_t> parent) const {
    std::vector<bool> stays(kUnits, false);
    const auto keep = [&](std::optional<uint32_t> key) {
      for (; key.has_value(); key = places_.at(*key).parent) {
        const Place& place = places_.at(*key);
        std::fill_n(stays.begin() + place.first, place.units, true);
      }
    };
    for (const auto& held : reads_) keep(held.key);
    for (const auto& held : writes_) keep(held.key);
    keep(parent);
    size_t longest = 0;
    size_t run = 0;
    for (const bool stay : stays) longest = std::max(longest, run = stay ? 0 : run + 1);
    return longest;
  }

  Random random_;
  const std::unique_ptr<Cache> cache_;
  const std::byte* base_;
  std::map<uint32_t, Place> places_;  // of the last block of each key
  std::vector<Held<ReadLease>> reads_;
  std::vector<Held<WriteLease>> writes_;
  int refused_ = 0;
};

TEST(FragmentsTest, WhatIsRefusedWouldHaveNeededSomethingThatIsLeased) {
  int refused = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    if (SeedFromEnvironment().value_or(seed) != seed) continue;
    SCOPED_TRACE(seed);
    Refusals refusals(seed);
    refusals.Run(4000);
    if (::testing::Test::HasFailure()) return;
    refused += refusals.refused();
  }
  EXPECT_GT(refused, 0);
}

TEST(FragmentsTest, ThreadsThatPutAtOnceRefuseEachOtherNothing) {
  const auto cache = CacheOf(1024 * kUnit);
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&cache, thread] {
      Random random(thread);
      for (uint32_t i = 0; i < 2000; ++i) {
        const uint32_t key = thread * 2000 + i;
        const absl::Status status = Put(*cache, key, kUnit * (1 + random.Below(64)));
        EXPECT_TRUE(status.ok()) << status;
        (void)cache->Get(kNs, NumberedKey(random.Below(key + 1)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache->stats().peak_bytes, 1024 * kUnit);
}

}  // namespace
}  // namespace kvcache
