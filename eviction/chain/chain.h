#ifndef KVCACHE_EVICTION_CHAIN_CHAIN_H_
#define KVCACHE_EVICTION_CHAIN_CHAIN_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Gives up the block that is the least likely to be asked for again, for the time that it would be
// kept. It learns these odds from the requests: how often a block has come back, after how long,
// and how long the prompt was. It remembers blocks that have gone, 12 for each that is there in a
// small cache, 3 in a large one. Refuses a newcomer that is worth less than all that is there.
// docs/eviction.md shows how it works, and when LRU does as well.
//
// Deterministic. Costs: every call is O(1) amortised for each block that it names, but O(log n) for
// a block that returns from a lease or loses its last child. 165 bytes for each slot, and 0.6 MB.
std::unique_ptr<EvictionPolicy> CreateChainPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_CHAIN_CHAIN_H_
