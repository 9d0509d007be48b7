#ifndef KVCACHE_EVICTION_S3FIFO_S3FIFO_H_
#define KVCACHE_EVICTION_S3FIFO_S3FIFO_H_

#include <memory>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// S3-FIFO: "FIFO queues are all you need for cache eviction" (Yang et al., SOSP 2023), with bytes
// for objects and the constants of its authors' simulator, libCacheSim: a small queue of 10 % of
// the bytes, a main queue of 90 %, ghosts for another 90 %.
//
// A new block enters the small queue, or the main queue when it is remembered as a ghost. (That is
// the published rule; a later version of the simulator fills the main queue before the first
// eviction, which costs 0.06 of the hits of a trace of chats that barely fits.) The victim is the
// first of the small queue that was hit less than twice, which becomes a ghost; those before it,
// hit more often, go to the end of the main queue. When the main queue has more than its share, its
// first block goes, if it was not hit since it last came to the front; otherwise it goes to the end
// with one hit less, of at most 3.
//
// The queues change when a block is evicted, not when a victim is asked for. A block in front of
// the evicted one that had to stay (leased, or with children) is the next to go; if it is hit, it
// goes to the end of the main queue as if it had been hit in time.
//
// Costs: every call is O(1) amortised: an eviction may move the blocks in front of the victim. But
// O(log n) for a block that returns from a lease or loses its last child. 106 bytes for each slot.
std::unique_ptr<EvictionPolicy> CreateS3FifoPolicy();

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_S3FIFO_S3FIFO_H_
