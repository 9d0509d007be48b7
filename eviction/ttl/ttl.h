#ifndef KVCACHE_EVICTION_TTL_TTL_H_
#define KVCACHE_EVICTION_TTL_TTL_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that expires first; of those that expire together, or never, the one that was
// used, or put, the longest ago.
//
// Costs: every call is O(log n). 52 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateTtlPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_TTL_TTL_H_
