#ifndef KVCACHE_EVICTION_LFU_LFU_H_
#define KVCACHE_EVICTION_LFU_LFU_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that was used the fewest times, counting from its put, which is the first; of
// equals, the one that was used the longest ago. An evicted block loses its count.
//
// Costs: every call is O(log n), but a hit is nearer to O(1), since what is hit often is deep in
// the heap already. 52 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateLfuPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_LFU_LFU_H_
