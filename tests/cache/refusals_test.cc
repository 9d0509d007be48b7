// Which code each outcome has, and what is refused of the numbers that an option may be given.
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/eviction/gdsf/gdsf.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/kvcache.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr BlockSize kSize = {64, 1};

Namespace OneLayer() {
  Namespace ns;
  ns.model = "tiny";
  ns.layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = 8};
  ns.shard = Shard::Whole(1, 1);
  return ns;
}

std::unique_ptr<StorageBackend> CpuRam(size_t bytes = size_t{64} << 10) {
  return *CreateCpuRamBackend({.capacity_bytes = bytes});
}

absl::Status Reserve(Cache& cache, uint32_t key, const PutOptions& options = {}) {
  return cache.Reserve(NumberedKey(key), kSize, options).status();
}

void Fill(Cache& cache, uint32_t key, const PutOptions& options = {}) {
  absl::StatusOr<WriteLease> lease = cache.Reserve(NumberedKey(key), kSize, options);
  ASSERT_TRUE(lease.ok()) << lease.status();
  ASSERT_TRUE(lease->Commit().ok());
}

// --- Outcomes

TEST(OutcomesTest, EachHasACodeOfItsOwn) {
  auto fake = FakeBackend::Create(4 * kSize.bytes);
  FakeBackend* backend = fake.get();
  const auto cache = *Cache::Create({}, std::move(fake), CreateLruPolicy());
  const NamespaceId other = *cache->Register(OneLayer());

  EXPECT_TRUE(absl::IsNotFound(cache->Get(kNs, NumberedKey(1)).status()));
  WriteLease writing = *cache->Reserve(NumberedKey(1), kSize);
  EXPECT_TRUE(absl::IsUnavailable(cache->Get(kNs, NumberedKey(1)).status()));
  EXPECT_TRUE(absl::IsUnavailable(Reserve(*cache, 1)));
  ASSERT_TRUE(writing.Commit().ok());
  EXPECT_TRUE(absl::IsAlreadyExists(Reserve(*cache, 1)));
  EXPECT_TRUE(absl::IsNotFound(Reserve(*cache, 2, {.parent = NumberedKey(9)})));
  EXPECT_TRUE(absl::IsInvalidArgument(Reserve(*cache, 2, {.ns = other, .parent = NumberedKey(1)})));

  Fill(*cache, 2, {.priority = 2});
  Fill(*cache, 3, {.priority = 2});
  Fill(*cache, 4, {.priority = 2});
  ASSERT_TRUE(cache->Erase(NumberedKey(1)));
  Fill(*cache, 1, {.priority = 2});
  EXPECT_TRUE(absl::IsPermissionDenied(Reserve(*cache, 5, {.priority = 1})));
  {
    const ReadLease leases[] = {*cache->Get(kNs, NumberedKey(1)), *cache->Get(kNs, NumberedKey(2)),
                                *cache->Get(kNs, NumberedKey(3)), *cache->Get(kNs, NumberedKey(4))};
    EXPECT_TRUE(absl::IsResourceExhausted(Reserve(*cache, 5, {.priority = 3})));
  }
  WriteLease partial = *cache->Reserve(NumberedKey(6), {64, 2}, {.priority = 3});
  ASSERT_TRUE(partial.CommitPart(0).ok());
  ASSERT_TRUE(partial.Suspend().ok());
  std::vector<std::byte> bytes(64);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      cache->Put(NumberedKey(6), {64, 2}, {ConstBytes(bytes)}, {.priority = 3})));

  cache->Clear();
  backend->FailNextAllocate(absl::UnavailableError("the medium is gone"));
  const absl::Status failed = Reserve(*cache, 7);
  EXPECT_TRUE(absl::IsInternal(failed));
  EXPECT_EQ(failed.message(), "the medium is gone");
}

TEST(OutcomesTest, WithoutABlockLeftTheMessageSpeaksOfBlocks) {
  CacheOptions options;
  options.max_blocks = 2;
  const auto cache = *Cache::Create(options, CpuRam(), CreateLruPolicy());
  const WriteLease first = *cache->Reserve(NumberedKey(1), kSize);
  const WriteLease second = *cache->Reserve(NumberedKey(2), kSize);
  const absl::Status refused = Reserve(*cache, 3);
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(refused.message(), HasSubstr("max_blocks, 2"));
  EXPECT_THAT(refused.message(), Not(HasSubstr("bytes")));
}

// --- Numbers

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Durations that somebody may compute, also out of a double that is no number.
const absl::Duration kDurations[] = {
    absl::Seconds(-kNan),
    -absl::InfiniteDuration(),
    absl::Seconds(-1e300),
    -absl::Nanoseconds(1),
    absl::ZeroDuration(),
    absl::Nanoseconds(1) / 4,
    absl::Nanoseconds(1),
    kHighestRecomputeCost,
    kHighestRecomputeCost + absl::Nanoseconds(1),
    absl::Hours(24 * 365) * 290,
    absl::Hours(24 * 365) * 300,
    absl::Seconds(std::numeric_limits<int64_t>::max()),
    absl::Seconds(1e300),
    absl::InfiniteDuration(),
    absl::Seconds(kNan),
};

bool IsLength(absl::Duration duration) { return duration > absl::ZeroDuration(); }
bool IsCost(absl::Duration duration) {
  return duration >= absl::ZeroDuration() && duration <= kHighestRecomputeCost;
}

struct DurationOption {
  const char* name;
  bool (*allowed)(absl::Duration);
  std::function<absl::Status(absl::Duration)> use;
};

class NumbersTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kTokens = 4;

  NumbersTest() {
    CacheOptions options;
    options.clock = &clock_;
    cache_ = *Cache::Create(options, CpuRam(), CreateGdsfPolicy());
    PrefixCacheOptions prefix;
    prefix.layers = 1;
    prefix_ = *PrefixCache::Create(prefix, CpuRam(), CreateGdsfPolicy());
    PagedKv pages;
    pages.layout = OneLayer().layout;
    pages.page_tokens = kTokens;
    pages.pages = 1;
    pages.page_stride = pages.PageBytes();
    tensors_.resize(2 * kTokens * 8);
    auto* at = reinterpret_cast<std::byte*>(tensors_.data());
    pages.layers = {{at, at + pages.PageBytes()}};
    paged_ =
        *PagedCache::Create(cache_.get(), pages, {.tokens_per_block = kTokens, .ns = OneLayer()});
  }

  absl::Status Put(const PutOptions& options) {
    cache_->Clear();
    absl::StatusOr<WriteLease> lease = cache_->Reserve(NumberedKey(1), kSize, options);
    return lease.ok() ? lease->Commit() : lease.status();
  }
  absl::Status Save(const PagedSaveOptions& options) {
    cache_->Clear();
    const std::vector<int32_t> tokens(kTokens, 1);
    const auto saved = paged_->Save(tokens, {0}, {}, options);
    return saved.ok() ? saved->stopped : saved.status();
  }
  absl::Status PutPrefix(const PrefixPutOptions& options) {
    const std::vector<float> data(8, 1.0f);
    const KvTensor tensor = {data.data(), DType::kF32, 1, 1, 8};
    return prefix_->CacheKv("prompt", 0, tensor, tensor, options);
  }

  ManualClock clock_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<PrefixCache> prefix_;
  std::vector<float> tensors_;
  std::unique_ptr<PagedCache> paged_;
};

TEST_F(NumbersTest, EveryDurationIsTakenOrRefusedAsItsOptionSays) {
  const DurationOption options[] = {
      {"CacheOptions::default_ttl", IsLength,
       [](absl::Duration duration) {
         CacheOptions options;
         options.default_ttl = duration;
         return Cache::Create(options, CpuRam(), CreateLruPolicy()).status();
       }},
      {"SimpleKvCacheOptions::ttl", IsLength,
       [](absl::Duration duration) {
         return SimpleKvCache::Create({.max_size_gb = 0.001, .ttl = duration}).status();
       }},
      {"PutOptions::ttl", IsLength,
       [this](absl::Duration duration) { return Put({.ttl = duration}); }},
      {"PutOptions::keep_priority_for", IsLength,
       [this](absl::Duration duration) {
         return Put({.priority = 1, .keep_priority_for = duration});
       }},
      {"PutOptions::recompute_cost", IsCost,
       [this](absl::Duration duration) { return Put({.recompute_cost = duration}); }},
      {"Extend", IsLength,
       [this](absl::Duration duration) { return cache_->Extend({.keys = {}}, duration).status(); }},
      {"PrefixPutOptions::ttl", IsLength,
       [this](absl::Duration duration) { return PutPrefix({.ttl = duration}); }},
      {"PrefixPutOptions::recompute_cost", IsCost,
       [this](absl::Duration duration) { return PutPrefix({.recompute_cost = duration}); }},
      {"PagedSaveOptions::ttl", IsLength,
       [this](absl::Duration duration) { return Save({.ttl = duration}); }},
      {"PagedSaveOptions::recompute_cost_per_token",
       [](absl::Duration duration) { return IsCost(kTokens * duration); },
       [this](absl::Duration duration) { return Save({.recompute_cost_per_token = duration}); }},
      {"PagedSaveOptions::keep_priority_for", IsLength,
       [this](absl::Duration duration) {
         return Save({.priority = 1, .keep_priority_for = duration});
       }},
  };
  for (const DurationOption& option : options) {
    for (absl::Duration duration : kDurations) {
      SCOPED_TRACE(absl::StrCat(option.name, " ", absl::FormatDuration(duration)));
      const absl::Status status = option.use(duration);
      EXPECT_EQ(status.ok(), option.allowed(duration)) << status;
      EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    }
  }
}

TEST_F(NumbersTest, LengthsThatNanosecondsDoNotHoldAreForEver) {
  for (absl::Duration ttl : {absl::Hours(24 * 365) * 300, absl::Seconds(1e300),
                             absl::InfiniteDuration(), absl::Seconds(kNan)}) {
    SCOPED_TRACE(absl::FormatDuration(ttl));
    ASSERT_TRUE(Put({.ttl = ttl}).ok());
    clock_.Advance(absl::Hours(24 * 365));
    EXPECT_EQ(cache_->Lookup(NumberedKey(1)), LookupResult::kHit);
  }
  ASSERT_TRUE(Put({.ttl = absl::Seconds(1)}).ok());
  const BlockKey keys[] = {NumberedKey(1)};
  EXPECT_EQ(*cache_->Extend({.keys = keys}, absl::Hours(24 * 365) * 300), 1u);
  clock_.Advance(absl::Hours(24 * 365));
  EXPECT_EQ(cache_->Lookup(NumberedKey(1)), LookupResult::kHit);
  ASSERT_TRUE(Put({.ttl = absl::Nanoseconds(1) / 4}).ok());
  EXPECT_EQ(cache_->Lookup(NumberedKey(1)), LookupResult::kMiss);
}

// An infinite one would raise the others' ranks to infinity when it goes.
TEST_F(NumbersTest, TheHighestCostDoesNotSpoilTheOrder) {
  CacheOptions options;
  options.capacity_bytes = 2 * kSize.bytes;
  const auto cache = *Cache::Create(options, CpuRam(), CreateGdsfPolicy());
  Fill(*cache, 1, {.recompute_cost = kHighestRecomputeCost});
  ASSERT_TRUE(cache->Erase(NumberedKey(1)));
  for (uint32_t key = 2; key < 100; ++key)
    Fill(*cache, key, {.recompute_cost = kHighestRecomputeCost});
  cache->Clear();
  Fill(*cache, 200, {.recompute_cost = absl::Seconds(100)});
  Fill(*cache, 201, {.recompute_cost = absl::Seconds(1)});
  Fill(*cache, 202, {.recompute_cost = absl::Seconds(50)});
  EXPECT_EQ(cache->Lookup(NumberedKey(200)), LookupResult::kHit);
  EXPECT_EQ(cache->Lookup(NumberedKey(201)), LookupResult::kMiss);
}

TEST_F(NumbersTest, EveryDoubleIsTakenOrRefusedAsItsOptionSays) {
  struct DoubleOption {
    const char* name;
    std::function<bool(double)> allowed;
    std::function<absl::Status(double)> use;
  };
  const auto advise = [](const AdviceOptions& advice) {
    CacheOptions options;
    options.max_blocks = 100;
    options.advice = advice;
    return Cache::Create(options, CpuRam(), CreateLruPolicy()).status();
  };
  const DoubleOption options[] = {
      {"AdviceOptions::capacities",
       [](double value) { return value > 0 && value <= kMostTimesCapacity; },
       [&](double value) { return advise({.capacities = {value}}); }},
      {"AdviceOptions::sampling_rate",
       [](double value) { return value > 0 && value <= kHighestSamplingRate; },
       [&](double value) { return advise({.capacities = {1}, .sampling_rate = value}); }},
      {"SimpleKvCacheOptions::max_size_gb", [](double value) { return value >= 1e-5 && value < 1; },
       [](double value) {
         if (value >= 1 && value < 1e9) value = kNan;  // rather not tried
         return SimpleKvCache::Create({.max_size_gb = value}).status();
       }},
  };
  for (const DoubleOption& option : options) {
    for (double value : {kNan, -kNan, -kInfinity, -1e300, -1.0, -0.0, 0.0, 1e-300, 1e-4, 0.05, 1.0,
                         1000.0, 1000.5, 1e300, kInfinity}) {
      SCOPED_TRACE(absl::StrCat(option.name, " ", value));
      const absl::Status status = option.use(value);
      EXPECT_EQ(status.ok(), option.allowed(value)) << status;
      EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    }
  }
}

}  // namespace
}  // namespace kvcache
