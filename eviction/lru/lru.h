#ifndef KVCACHE_EVICTION_LRU_LRU_H_
#define KVCACHE_EVICTION_LRU_LRU_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that was used, or put, the longest ago. Exact: hits on all blocks count, in
// their order.
//
// Costs: every call is O(1), but O(log n) for a block that returns from a lease or loses its last
// child. 36 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateLruPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_LRU_LRU_H_
