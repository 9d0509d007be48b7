// Keys and full caches to measure with.
#ifndef KVCACHE_BENCH_TARGETS_FIXTURES_H_
#define KVCACHE_BENCH_TARGETS_FIXTURES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache::bench {

// Always the same.
std::vector<BlockKey> RandomKeys(size_t count, uint64_t seed = 42);

// The numbers below `count`, shuffled.
std::vector<uint32_t> Shuffled(size_t count, uint64_t seed = 1);

// A cache with LRU that is full with one block for each key; its blocks are counted and have no
// bytes, so that nothing but the bookkeeping is measured.
std::unique_ptr<Cache> FullCache(absl::Span<const BlockKey> keys, uint32_t parts = 1);

// The same, with chains of `blocks` keys each, and with another policy than LRU if there is one.
std::unique_ptr<Cache> FullCacheOfChains(absl::Span<const BlockKey> keys, size_t blocks,
                                         std::unique_ptr<EvictionPolicy> policy = nullptr,
                                         uint32_t parts = 1);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TARGETS_FIXTURES_H_
