#ifndef KVCACHE_EVICTION_ARC_ARC_H_
#define KVCACHE_EVICTION_ARC_ARC_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Adaptive replacement: ARC(c) of Megiddo and Modha (FAST 2003), Figure 4, with bytes for pages.
//
// Blocks used once and blocks used again are two lists, each in the order of use; the victim is the
// first of the one or of the other, so that the list of those used once comes to a target size.
// What was given up is remembered, up to the capacity: a block that comes back says which list was
// too small, and moves the target.
//
// O(1); O(log n) only for blocks that return from a lease or lose their last child. 106
// bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateArcPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_ARC_ARC_H_
