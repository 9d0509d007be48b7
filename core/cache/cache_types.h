// The plain values in the interface of Cache.
#ifndef KVCACHE_CORE_CACHE_CACHE_TYPES_H_
#define KVCACHE_CORE_CACHE_CACHE_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Asks the running cache how many blocks it would hit with other capacities and policies: it keeps,
// of a sample of the keys, simulations of those (CacheStats::advice). Default: none, at no cost.
struct AdviceOptions {
  // Multiples of the capacity, each once and more than 0: 2 is twice the memory, and twice
  // max_blocks. 1 under the cache's own policy says how good the advice is, since the cache
  // measures that itself. None: no advice.
  std::vector<double> capacities = {};
  // What to try besides the cache's own policy, with their settings, each name once; only asked for
  // their name and CreateEmpty(). All are tried at all capacities, at most kMostAdvice in all.
  std::vector<std::shared_ptr<const EvictionPolicy>> policies = {};
  // The share of the keys that is simulated: more than 0, at most kHighestSamplingRate, which is
  // the default since only large samples are precise. Each simulation takes about 100 bytes of host
  // memory, and what its policy takes, for each of sampling_rate x multiple x max_blocks.
  double sampling_rate = 0.05;
  // Another one samples other keys.
  uint64_t seed = 0;
};

inline constexpr size_t kMostAdvice = 64;
inline constexpr double kHighestSamplingRate = 0.05;

struct CacheOptions {
  // The most bytes that blocks may take, each rounded up to the backend's alignment. Default: all
  // of the backend.
  std::optional<size_t> capacity_bytes = std::nullopt;
  // The most blocks. Each costs about 150 bytes of host memory besides its own bytes, of which 30
  // are taken at once. Default: one for every 16 KiB of the backend, at least 1024, at most 16
  // million.
  std::optional<size_t> max_blocks = std::nullopt;
  // For blocks whose PutOptions say nothing. Default: they never expire.
  absl::Duration default_ttl = absl::InfiniteDuration();
  // Whether each part has a checksum, XXH3-64: computed while a part is copied in, or at its commit
  // when it was written in place, and compared whenever the cache copies it out. Reads in place are
  // not checked by themselves: see ReadLease::Verify() and Cache::Scrub(). Costs up to a tenth of
  // the speed of copies.
  bool checksums = true;
  // Bytes that a thread of the cache compares with their checksums each second, over and over:
  // finds what has changed in memory before anybody reads it in place. Default: no such thread,
  // since it takes memory bandwidth from everybody else. Needs `checksums`.
  size_t scrub_bytes_per_second = 0;
  // Costs a thread, which does the simulating.
  AdviceOptions advice = {};
  // Must outlive the cache.
  const Clock* clock = &Clock::Real();
};

// Dense, from Cache::Register(); of one cache.
enum class NamespaceId : uint32_t { kDefault = 0 };

// The consecutive blocks of one prompt. All keys are of the same namespace.
struct Chain {
  NamespaceId ns = NamespaceId::kDefault;
  absl::Span<const BlockKey> keys = {};
  // For the statistics: of every block, the last of which may be short, and of all of them. 0: not
  // counted.
  uint32_t tokens_per_block = 0;
  uint32_t tokens = 0;
};

inline constexpr uint32_t kMostParts = 65535;
inline constexpr uint16_t kHighestPriority = 100;

// A block has 1 to kMostParts parts of equal size.
struct BlockSize {
  size_t bytes = 0;
  uint32_t parts = 1;
};

struct PutOptions {
  NamespaceId ns = NamespaceId::kDefault;
  // The block before this one in its prompt: it cannot be evicted as long as this one is here, and
  // takes this one with it when it is erased or expires.
  std::optional<BlockKey> parent = std::nullopt;
  // Positive. Counts from the commit; a block never outlives its parent.
  std::optional<absl::Duration> ttl = std::nullopt;
  // Compute that a hit saves; 0: unknown.
  absl::Duration recompute_cost = absl::ZeroDuration();
  // Blocks of the whole prompt, for policies; 0: unknown.
  uint32_t chain_blocks = 0;
  // From 0, which is normal, to 100: under every policy, blocks of a higher priority outlive those
  // of a lower one, and are not evicted for them. A cache may be given up to 8 different
  // priorities, 0 included; the bookkeeping of each takes what the policy takes.
  uint16_t priority = 0;
  // Positive. After this, from the commit on, the priority of the block is 0; it stays visible
  // until its ttl ends.
  absl::Duration keep_priority_for = absl::InfiniteDuration();
};

enum class LookupResult {
  kHit,      // complete
  kPartial,  // some parts are readable and nobody is writing
  kPending,  // being written
  kMiss,
};

// The leading blocks of a chain, pinned.
struct PrefixMatch {
  std::vector<ReadLease> blocks;
  uint32_t tokens = 0;  // in them; 0 when the chain does not say its tokens
  // What follows the last of them: kHit when nothing does.
  LookupResult end = LookupResult::kMiss;
};

struct ReadRequest {
  NamespaceId ns = NamespaceId::kDefault;
  BlockKey key = {};
  // Sizes add up to the block's, or to the part's.
  absl::Span<const MutableBytes> destination = {};
  MemorySpace destination_space = {};
  std::optional<uint32_t> part = std::nullopt;
};

struct PutRequest {
  BlockKey key = {};
  BlockSize size = {};
  // Sizes add up to size.bytes.
  absl::Span<const ConstBytes> source = {};
  MemorySpace source_space = {};
  PutOptions options = {};
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_CACHE_TYPES_H_
