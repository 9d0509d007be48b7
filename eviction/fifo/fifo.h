#ifndef KVCACHE_EVICTION_FIFO_FIFO_H_
#define KVCACHE_EVICTION_FIFO_FIFO_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that was put the longest ago, however often it was used since.
//
// Costs: every call is O(1), but O(log n) for a block that returns from a lease or loses its last
// child. 36 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateFifoPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_FIFO_FIFO_H_
