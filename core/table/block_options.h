// The plain values that describe a block to be put.
#ifndef KVCACHE_CORE_TABLE_BLOCK_OPTIONS_H_
#define KVCACHE_CORE_TABLE_BLOCK_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "kvcache/core/key/block_key.h"

namespace kvcache {

// From Cache::Register(); of one cache. Numbers are used again, but not the same id.
enum class NamespaceId : uint64_t { kDefault = 0 };

inline constexpr uint32_t kMostParts = 65535;
inline constexpr uint16_t kHighestPriority = 100;
inline constexpr absl::Duration kHighestRecomputeCost = absl::Hours(24);

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
  // Positive. Counts from the commit, in whole nanoseconds; more than 2^63 - 2 of them, 292 years,
  // are for ever. A block never outlives its parent.
  std::optional<absl::Duration> ttl = std::nullopt;
  // Compute that a hit saves, at most kHighestRecomputeCost; 0: unknown.
  absl::Duration recompute_cost = absl::ZeroDuration();
  // Blocks of the whole prompt, for policies; 0: unknown.
  uint32_t chain_blocks = 0;
  // From 0, which is normal, to 100: under every policy, blocks of a higher priority outlive those
  // of a lower one, and are not evicted for them. A cache may be given up to 8 different
  // priorities, 0 included; the bookkeeping of each takes what the policy takes.
  uint16_t priority = 0;
  // Positive, and counted like the ttl. After this, from the commit on, the priority of the block
  // is 0; it stays visible until its ttl ends.
  absl::Duration keep_priority_for = absl::InfiniteDuration();
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_TABLE_BLOCK_OPTIONS_H_
