#ifndef KVCACHE_EVICTION_GDSF_GDSF_H_
#define KVCACHE_EVICTION_GDSF_GDSF_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Greedy-Dual-Size with frequency (Cherkasova, HP Labs 1998): gives up the block of the lowest
//
//   clock at its last use + uses x recompute_cost / bytes
//
// and of equals the one that was used the longest ago. The clock is the value of the last block
// that was given up, so a block that is not used any more loses its worth. A block's put is its
// first use. A recompute_cost of 0, which means unknown, counts as 1 second, and others as
// EntryInfo::CostOr() says. Give a cost for all blocks or for none.
//
// Costs: every call is O(log n), but a hit is nearer to O(1). 60 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateGdsfPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_GDSF_GDSF_H_
