#ifndef KVCACHE_EVICTION_LRU_LRU_H_
#define KVCACHE_EVICTION_LRU_LRU_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that was used, or put, the longest ago. Exact: hits on all blocks count, in
// their order. O(1); O(log n) only for blocks that return from a lease or lose their last child. 44
// bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateLruPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_LRU_LRU_H_
