#ifndef KVCACHE_EVICTION_ARC_ARC_H_
#define KVCACHE_EVICTION_ARC_ARC_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Adaptive replacement: ARC(c) of Megiddo and Modha (FAST 2003), Figure 4, with bytes for pages.
//
// Blocks used once and blocks used again are two lists, each in the order of use; the victim is the
// first of the one or of the other, so that the list of those used once comes to a target size.
// Blocks that were given up are remembered, up to the capacity: one that comes back says which list
// was too small, and moves the target.
//
// Costs: every call is O(1), but O(log n) for a block that returns from a lease or loses its last
// child. 106 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateArcPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_ARC_ARC_H_
