#include "kvcache/core/advice/advisor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/arc/arc.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/eviction/fifo/fifo.h"
#include "kvcache/eviction/gdsf/gdsf.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/eviction/s3fifo/s3fifo.h"

namespace kvcache {
namespace {

using internal::Advisor;
using internal::Reference;
using ::testing::HasSubstr;

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kUnit = 64;

std::vector<BlockKey> Keys(size_t count) {
  std::vector<BlockKey> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(*TextKey(BlockKey(), absl::StrCat(i)));
  return keys;
}

// Numbers below `count`, the first of which are the most frequent.
std::vector<size_t> Zipf(size_t count, size_t draws, double exponent, uint64_t seed) {
  std::vector<double> weights;
  for (size_t i = 1; i <= count; ++i) {
    weights.push_back(std::pow(static_cast<double>(i), -exponent));
  }
  std::discrete_distribution<size_t> distribution(weights.begin(), weights.end());
  std::mt19937_64 random(seed);
  std::vector<size_t> numbers;
  for (size_t i = 0; i < draws; ++i) numbers.push_back(distribution(random));
  return numbers;
}

std::unique_ptr<Cache> MakeCache(size_t blocks, std::unique_ptr<EvictionPolicy> policy,
                                 AdviceOptions advice = {}, const Clock* clock = nullptr) {
  CacheOptions options;
  options.max_blocks = blocks;
  options.advice = std::move(advice);
  if (clock != nullptr) options.clock = clock;
  return *Cache::Create(
      options, *CreateAccountingBackend({.capacity_bytes = blocks * kUnit, .alignment = kUnit}),
      std::move(policy));
}

bool GetOrPut(Cache& cache, const BlockKey& key, const PutOptions& put = {}) {
  if (cache.Get(kNs, key).ok()) return true;
  absl::StatusOr<WriteLease> block = cache.Reserve(key, {kUnit, 1}, put);
  if (block.ok()) block->Commit().IgnoreError();
  return false;
}

uint64_t HitsOf(Cache& cache, const std::vector<BlockKey>& keys,
                const std::vector<size_t>& accesses) {
  uint64_t hits = 0;
  for (size_t i : accesses) hits += GetOrPut(cache, keys[i]);
  return hits;
}

// --- All keys in the sample

// A cache and an Advisor that hears of all of its keys.
class Advised {
 public:
  Advised(size_t blocks, std::unique_ptr<EvictionPolicy> policy, AdviceOptions options,
          const Clock* clock = nullptr)
      : advisor_((options.sampling_rate = 1, options), *policy, blocks, blocks * kUnit, kNever),
        cache_(MakeCache(blocks, std::move(policy), {}, clock)) {}

  void Access(const BlockKey& key, const PutOptions& put = {}, Nanos now = 0) {
    const bool hit = GetOrPut(*cache_, key, put);
    advisor_.LookOne(key, hit ? kUnit : 0, now);
    if (hit) return;
    EntryInfo info = {.key_hash = key.Hash64(), .now = now};
    info.recompute_cost = absl::ToDoubleSeconds(put.recompute_cost);
    advisor_.Put(key, kUnit, info, put);
  }

  uint64_t hits() const { return cache_->stats().counters.block_hits; }
  std::vector<Advice> Advise() {
    const CacheStats stats = cache_->stats();
    return advisor_.Advise({stats.counters.block_lookups, stats.counters.block_hits});
  }

 private:
  Advisor advisor_;
  std::unique_ptr<Cache> cache_;
};

TEST(AdvisorTest, WithAllKeysAShadowHitsWhatTheRealCacheHits) {
  const std::vector<BlockKey> keys = Keys(2000);
  const std::vector<size_t> accesses = Zipf(keys.size(), 40'000, 0.8, 1);
  AdviceOptions options = {.capacities = {0.5, 1, 3}};
  options.policies = {CreateLfuPolicy(), CreateArcPolicy(), CreateS3FifoPolicy()};
  Advised advised(200, CreateLruPolicy(), options);
  for (size_t i : accesses) advised.Access(keys[i]);

  std::vector<std::unique_ptr<Cache>> real;
  for (auto* create : {&CreateLruPolicy, &CreateLfuPolicy}) {
    for (size_t blocks : {100, 200, 600}) real.push_back(MakeCache(blocks, create()));
  }
  const std::vector<Advice> advice = advised.Advise();
  ASSERT_EQ(advice.size(), 12u);
  for (size_t i = 0; i < real.size(); ++i) {
    const uint64_t hits = HitsOf(*real[i], keys, accesses);
    EXPECT_EQ(advice[i].policy, real[i]->stats().policy);
    EXPECT_EQ(advice[i].capacity_bytes, real[i]->stats().capacity_bytes);
    EXPECT_EQ(advice[i].sampled_lookups, accesses.size());
    EXPECT_EQ(advice[i].sampled_hits, hits) << i;
    EXPECT_EQ(advice[i].sampled_hits_of_cache, advised.hits());
    ASSERT_TRUE(advice[i].hit_ratio.has_value());
    EXPECT_NEAR(*advice[i].hit_ratio,
                static_cast<double>(hits) / static_cast<double>(accesses.size()), 1e-9);
  }
  EXPECT_STREQ(advice[6].policy.c_str(), "arc");
  EXPECT_EQ(advice[6].sampled_hits, HitsOf(*MakeCache(100, CreateArcPolicy()), keys, accesses));
}

TEST(AdvisorTest, AShadowKnowsWhatItCostsToComputeABlockAgain) {
  const std::vector<BlockKey> keys = Keys(500);
  const auto cost_of = [](size_t i) {
    return PutOptions{.recompute_cost = absl::Seconds(1 + i * 7 % 50)};
  };
  // The larger shadow makes the table of what is known large enough for these keys.
  AdviceOptions options = {.capacities = {1, 16}};
  options.policies = {CreateGdsfPolicy()};
  Advised advised(100, CreateLruPolicy(), options);
  std::unique_ptr<Cache> real = MakeCache(100, CreateGdsfPolicy());
  uint64_t hits = 0;
  for (size_t i : Zipf(keys.size(), 20'000, 0.7, 2)) {
    advised.Access(keys[i], cost_of(i));
    hits += GetOrPut(*real, keys[i], cost_of(i));
  }
  const Advice gdsf = advised.Advise()[2];
  EXPECT_STREQ(gdsf.policy.c_str(), "gdsf");
  EXPECT_EQ(gdsf.times_capacity, 1);
  EXPECT_NEAR(static_cast<double>(gdsf.sampled_hits), static_cast<double>(hits), 50);
}

TEST(AdvisorTest, WhatHasExpiredIsAMissInAShadowToo) {
  const std::vector<BlockKey> keys = Keys(200);
  ManualClock clock(0);
  Advised advised(100, CreateLruPolicy(), {.capacities = {1, 4}}, &clock);
  std::unique_ptr<Cache> larger = MakeCache(400, CreateLruPolicy(), {}, &clock);
  uint64_t hits_of_larger = 0;
  size_t n = 0;
  for (size_t i : Zipf(keys.size(), 20'000, 0.5, 3)) {
    const PutOptions put = {.ttl = absl::Seconds(10 + i)};
    if (++n % 10 == 0) clock.Advance(absl::Seconds(1));
    advised.Access(keys[i], put, clock.Now());
    hits_of_larger += GetOrPut(*larger, keys[i], put);
  }
  const std::vector<Advice> advice = advised.Advise();
  EXPECT_EQ(advice[0].sampled_hits, advised.hits());
  // Some keys have lost their place in the table of what is known.
  EXPECT_NEAR(static_cast<double>(advice[1].sampled_hits), static_cast<double>(hits_of_larger), 20);
  EXPECT_LT(hits_of_larger, 19'500u) << "nothing expired";
}

// Conversations below a few system prompts, that grow by some blocks each turn.
std::vector<std::vector<BlockKey>> Prompts(size_t count, uint64_t seed) {
  constexpr size_t kConversations = 60;
  const std::vector<BlockKey> keys = Keys(count * 4);
  std::mt19937_64 random(seed);
  std::vector<std::vector<BlockKey>> conversations(kConversations);
  std::vector<std::vector<BlockKey>> prompts;
  size_t next = 0;
  for (size_t conversation : Zipf(kConversations, count, 0.6, seed)) {
    std::vector<BlockKey>& prompt = conversations[conversation];
    if (prompt.size() > 20) prompt.clear();
    if (prompt.empty()) {
      for (size_t i = 0; i < 4; ++i)
        prompt.push_back(keys[keys.size() - 1 - conversation % 5 - 5 * i]);
    }
    for (size_t more = 1 + random() % 3; more > 0; --more) prompt.push_back(keys[next++]);
    prompts.push_back(prompt);
  }
  return prompts;
}

// What an engine does: returns how many blocks were there, and which were put or refused.
size_t MatchAndPut(Cache& cache, absl::Span<const BlockKey> prompt, std::vector<BlockKey>* asked) {
  const PrefixMatch match = cache.Match({.keys = prompt});
  PutOptions put = {.chain_blocks = static_cast<uint32_t>(prompt.size())};
  for (size_t i = match.blocks.size(); i < prompt.size(); ++i) {
    if (i > 0) put.parent = prompt[i - 1];
    absl::StatusOr<WriteLease> block = cache.Reserve(prompt[i], {kUnit, 1}, put);
    if (asked != nullptr) asked->push_back(prompt[i]);
    if (!block.ok()) break;
    EXPECT_TRUE(block->Commit().ok());
  }
  return match.blocks.size();
}

TEST(AdvisorTest, WithAllKeysAShadowHitsWhatTheRealCacheHitsOfPrompts) {
  const std::vector<std::vector<BlockKey>> prompts = Prompts(3000, 4);
  const std::vector<std::unique_ptr<EvictionPolicy> (*)()> policies = {
      &CreateLruPolicy, &CreateFifoPolicy, &CreateLfuPolicy, &CreateArcPolicy, &CreateChainPolicy};
  AdviceOptions options = {.capacities = {0.5, 1, 3}, .sampling_rate = 1};
  for (size_t i = 1; i < policies.size(); ++i) options.policies.push_back(policies[i]());
  for (auto* own : {&CreateLruPolicy, &CreateChainPolicy}) {
    if (own == &CreateChainPolicy) options.policies = {CreateLruPolicy()};
    const std::unique_ptr<Cache> cache = MakeCache(200, own());
    Advisor advisor(options, *own(), 200, 200 * kUnit, kNever);
    const auto put = [&advisor](const BlockKey& key) {
      advisor.Put(key, kUnit, {.key_hash = key.Hash64()}, {});
    };
    put(Keys(1)[0]);  // now it knows how large blocks are
    uint64_t lookups = 0;
    uint64_t hits = 0;
    for (const std::vector<BlockKey>& prompt : prompts) {
      std::vector<BlockKey> asked;
      const size_t hit = MatchAndPut(*cache, prompt, &asked);
      advisor.Look(prompt, Reference::Kind::kMatch, 0,
                   [hit](size_t i) { return i < hit ? kUnit : 0; });
      for (const BlockKey& key : asked) put(key);
      lookups += prompt.size();
      hits += hit;
    }
    for (const Advice& advice : advisor.Advise({lookups, hits})) {
      const auto create = std::find_if(policies.begin(), policies.end(), [&](auto* create) {
        return advice.policy == create()->name();
      });
      const auto real = MakeCache(advice.capacity_bytes / kUnit, (*create)());
      GetOrPut(*real, Keys(1)[0]);
      uint64_t real_hits = 0;
      for (const auto& prompt : prompts) real_hits += MatchAndPut(*real, prompt, nullptr);
      // Some keys have lost their place in the table of what is known: what chain has refused is
      // put again then.
      EXPECT_NEAR(static_cast<double>(advice.sampled_hits), static_cast<double>(real_hits),
                  advice.policy == "chain" ? static_cast<double>(real_hits) / 1000 : 0)
          << advice.policy << " x " << advice.times_capacity << ", asked by " << own()->name();
      EXPECT_GT(real_hits, lookups / 10);
    }
  }
}

// --- A sample

TEST(CacheAdviceTest, ASamplePredictsTheHitsOfZipfTraffic) {
  const std::vector<BlockKey> keys = Keys(60'000);
  const std::vector<size_t> accesses = Zipf(keys.size(), 200'000, 0.8, 5);
  constexpr size_t kBlocks = 5000;
  std::vector<double> truth;
  for (auto* create : {&CreateLruPolicy, &CreateS3FifoPolicy}) {
    for (size_t blocks : {kBlocks / 2, kBlocks, kBlocks * 4}) {
      truth.push_back(static_cast<double>(HitsOf(*MakeCache(blocks, create()), keys, accesses)) /
                      static_cast<double>(accesses.size()));
    }
  }
  for (uint64_t seed = 0; seed < 3; ++seed) {
    AdviceOptions options = {.capacities = {0.5, 1, 4}, .seed = seed};
    options.policies = {CreateS3FifoPolicy()};
    std::unique_ptr<Cache> cache = MakeCache(kBlocks, CreateLruPolicy(), options);
    HitsOf(*cache, keys, accesses);
    const std::vector<Advice> advice = cache->stats().advice;
    ASSERT_EQ(advice.size(), truth.size());
    for (size_t i = 0; i < advice.size(); ++i) {
      EXPECT_EQ(advice[i].lookups, accesses.size());
      EXPECT_LE(advice[i].sampled_lookups, accesses.size() / 10);
      ASSERT_TRUE(advice[i].hit_ratio.has_value());
      EXPECT_NEAR(*advice[i].hit_ratio, truth[i], 0.035) << seed << " " << i;
    }
  }
}

TEST(CacheAdviceTest, TheSameSeedGivesTheSameAdviceAndAnotherAnother) {
  const std::vector<BlockKey> keys = Keys(20'000);
  const std::vector<size_t> accesses = Zipf(keys.size(), 60'000, 0.8, 6);
  std::vector<uint64_t> sampled;
  for (uint64_t seed : {1, 1, 2}) {
    std::unique_ptr<Cache> cache =
        MakeCache(2000, CreateLruPolicy(), {.capacities = {2}, .seed = seed});
    HitsOf(*cache, keys, accesses);
    sampled.push_back(cache->stats().advice[0].sampled_hits);
  }
  EXPECT_EQ(sampled[0], sampled[1]);
  EXPECT_NE(sampled[0], sampled[2]);
}

TEST(CacheAdviceTest, TooSmallASampleGivesNoRatio) {
  const std::vector<BlockKey> keys = Keys(20'000);
  const std::vector<size_t> accesses = Zipf(keys.size(), 60'000, 0.5, 7);
  std::unique_ptr<Cache> cache = MakeCache(2000, CreateLruPolicy(), {.capacities = {0.1, 1}});
  HitsOf(*cache, keys, {accesses.begin(), accesses.begin() + 1000});
  for (const Advice& advice : cache->stats().advice) {
    EXPECT_FALSE(advice.hit_ratio.has_value()) << advice.sampled_lookups;
  }
  HitsOf(*cache, keys, accesses);
  EXPECT_FALSE(cache->stats().advice[0].hit_ratio.has_value()) << "of 10 blocks";
  EXPECT_TRUE(cache->stats().advice[1].hit_ratio.has_value());
}

TEST(CacheAdviceTest, ResizeBeginsAnewWithTheNewCapacity) {
  const std::vector<BlockKey> keys = Keys(20'000);
  const std::vector<size_t> accesses = Zipf(keys.size(), 60'000, 0.8, 8);
  std::unique_ptr<Cache> cache = MakeCache(4000, CreateLruPolicy(), {.capacities = {2}});
  HitsOf(*cache, keys, accesses);
  ASSERT_TRUE(cache->Resize(1000 * kUnit).ok());
  Advice advice = cache->stats().advice[0];
  EXPECT_EQ(advice.capacity_bytes, 2000 * kUnit);
  EXPECT_EQ(advice.lookups, 0u);
  EXPECT_EQ(advice.sampled_lookups, 0u);
  EXPECT_FALSE(advice.hit_ratio.has_value());
  HitsOf(*cache, keys, accesses);
  advice = cache->stats().advice[0];
  EXPECT_EQ(advice.lookups, accesses.size());
  std::unique_ptr<Cache> real = MakeCache(2000, CreateLruPolicy());
  EXPECT_NEAR(
      *advice.hit_ratio,
      static_cast<double>(HitsOf(*real, keys, accesses)) / static_cast<double>(accesses.size()),
      0.04);
}

TEST(CacheAdviceTest, AllKindsOfLookupsCountOnce) {
  const std::vector<BlockKey> keys = Keys(400);
  std::unique_ptr<Cache> cache = MakeCache(4000, CreateLruPolicy(), {.capacities = {1}});
  for (const BlockKey& key : keys) GetOrPut(*cache, key);
  const uint64_t sampled = cache->stats().advice[0].sampled_lookups;
  EXPECT_GT(sampled, 0u);
  EXPECT_EQ(cache->stats().advice[0].sampled_hits, 0u);

  std::vector<ReadLease> leases(keys.size());
  cache->GetMany(kNs, keys, absl::MakeSpan(leases));
  cache->Match({.keys = keys});
  std::vector<ReadRequest> requests;
  std::vector<std::byte> bytes(kUnit);
  const MutableBytes destination = absl::MakeSpan(bytes);
  for (const BlockKey& key : keys) {
    requests.push_back({.key = key, .destination = {&destination, 1}});
  }
  cache->ReadInto(requests).Wait().IgnoreError();
  // Not counted as block lookups.
  cache->Lookup(keys[0]);
  cache->LookupPrefix({.keys = keys});
  cache->GetPart(kNs, keys[0], 0).IgnoreError();

  const Advice advice = cache->stats().advice[0];
  EXPECT_EQ(advice.lookups, cache->stats().counters.block_lookups);
  EXPECT_EQ(advice.sampled_lookups, 4 * sampled);
  EXPECT_EQ(advice.sampled_hits, 3 * sampled);
  EXPECT_EQ(advice.sampled_hits_of_cache, 3 * sampled);
}

TEST(CacheAdviceTest, WithoutOptionsThereIsNoAdvice) {
  std::unique_ptr<Cache> cache = MakeCache(100, CreateLruPolicy());
  GetOrPut(*cache, Keys(1)[0]);
  EXPECT_TRUE(cache->stats().advice.empty());
}

TEST(CacheAdviceTest, ThreadsMayUseItAtTheSameTime) {
  const std::vector<BlockKey> keys = Keys(4000);
  AdviceOptions options = {.capacities = {0.5, 2}};
  options.policies = {CreateLfuPolicy()};
  std::unique_ptr<Cache> cache = MakeCache(1000, CreateLruPolicy(), options);
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    threads.emplace_back([&, seed] {
      for (size_t i : Zipf(keys.size() - 8, 15'000, 0.8, seed)) {
        GetOrPut(*cache, keys[i]);
        if (i % 16 == 0) cache->Match({.keys = absl::MakeSpan(keys).subspan(i, 8)});
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(cache->stats().advice.size(), 4u);
    ASSERT_TRUE(cache->Resize((500 + i) * kUnit).ok());
  }
  for (std::thread& thread : threads) thread.join();
}

// --- Options

std::string ErrorOf(AdviceOptions advice) {
  CacheOptions options;
  options.advice = std::move(advice);
  const auto cache =
      Cache::Create(options, *CreateAccountingBackend({.capacity_bytes = 6400, .alignment = kUnit}),
                    CreateLruPolicy());
  if (cache.ok()) return "";
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(cache.status().message());
}

TEST(CacheAdviceTest, OptionsThatMakeNoSenseAreNamedWithTheirValues) {
  EXPECT_EQ(ErrorOf({.capacities = {0.5, 1, 2}}), "");
  EXPECT_EQ(ErrorOf({.capacities = {1, 0}}),
            "advice.capacities[1]: 0, expected more than 0, at most 1000");
  EXPECT_THAT(ErrorOf({.capacities = {-1}}), HasSubstr("advice.capacities[0]: -1"));
  EXPECT_THAT(ErrorOf({.capacities = {std::nan("")}}), HasSubstr("advice.capacities[0]: nan"));
  EXPECT_THAT(ErrorOf({.capacities = {std::numeric_limits<double>::infinity()}}),
              HasSubstr("advice.capacities[0]: inf"));
  EXPECT_EQ(ErrorOf({.capacities = {kMostTimesCapacity}}), "");
  EXPECT_THAT(ErrorOf({.capacities = {1e300}}), HasSubstr("advice.capacities[0]: 1e+300"));
  for (double rate : {std::nan(""), std::numeric_limits<double>::infinity(), -0.01, 1e300}) {
    EXPECT_THAT(ErrorOf({.capacities = {1}, .sampling_rate = rate}),
                HasSubstr(absl::StrCat("advice.sampling_rate: ", rate, ", expected")));
  }
  EXPECT_EQ(ErrorOf({.capacities = {2, 2}}), "advice.capacities: 2 twice");
  EXPECT_THAT(ErrorOf({.capacities = {1}, .sampling_rate = 0.06}),
              HasSubstr("advice.sampling_rate: 0.06"));
  EXPECT_THAT(ErrorOf({.capacities = {1}, .sampling_rate = 0}),
              HasSubstr("advice.sampling_rate: 0,"));
  EXPECT_EQ(ErrorOf({.capacities = {1}, .policies = {nullptr}}), "advice.policies[0]: null");
  EXPECT_THAT(ErrorOf({.capacities = {1}, .policies = {CreateLruPolicy()}}),
              HasSubstr("advice.policies: lru twice"));
  EXPECT_THAT(ErrorOf({.policies = {CreateArcPolicy()}}),
              HasSubstr("advice.capacities: none, but advice.policies: 1"));
  AdviceOptions many;
  for (size_t i = 1; i <= kMostAdvice + 1; ++i) many.capacities.push_back(static_cast<double>(i));
  EXPECT_THAT(ErrorOf(many), HasSubstr("65 capacities under 1 policies, expected at most 64"));
}

}  // namespace
}  // namespace kvcache
