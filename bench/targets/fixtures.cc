#include "kvcache/bench/targets/fixtures.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/base/check.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {

std::vector<BlockKey> RandomKeys(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<BlockKey> keys(count);
  for (BlockKey& key : keys) {
    for (size_t i = 0; i < key.bytes.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&key.bytes[i], &word, 8);
    }
  }
  return keys;
}

std::vector<uint32_t> Shuffled(size_t count, uint64_t seed) {
  std::vector<uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937_64(seed));
  return numbers;
}

std::unique_ptr<Cache> FullCache(absl::Span<const BlockKey> keys, uint32_t parts) {
  return FullCacheOfChains(keys, 1, nullptr, parts);
}

std::unique_ptr<Cache> FullCacheOfChains(absl::Span<const BlockKey> keys, size_t blocks,
                                         std::unique_ptr<EvictionPolicy> policy, uint32_t parts) {
  if (policy == nullptr) policy = CreateLruPolicy();
  auto backend = CreateAccountingBackend({.capacity_bytes = keys.size() * 64});
  CacheOptions options;
  options.max_blocks = keys.size();
  auto cache = Cache::Create(options, *std::move(backend), std::move(policy));
  KVCACHE_CHECK(cache.ok(), cache.status().ToString());
  for (size_t i = 0; i < keys.size(); ++i) {
    PutOptions put;
    if (i % blocks > 0) put.parent = keys[i - 1];
    const absl::Status status = (*cache)->Reserve(keys[i], {64, parts}, put)->Commit();
    KVCACHE_CHECK(status.ok(), status.ToString());
  }
  return *std::move(cache);
}

}  // namespace kvcache::bench
