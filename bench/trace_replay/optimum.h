#ifndef KVCACHE_BENCH_TRACE_REPLAY_OPTIMUM_H_
#define KVCACHE_BENCH_TRACE_REPLAY_OPTIMUM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace kvcache::bench {

// What no policy can beat: hits of Belady's rule, which knows the future and gives up the block
// that is used again the latest. Blocks are accessed one after the other, all of one size, and each
// is put when it misses.
class Optimum {
 public:
  // `accesses` are block numbers below `unique_blocks`; must outlive this.
  Optimum(absl::Span<const uint32_t> accesses, size_t unique_blocks);

  // With room for this many blocks, at least one. O(n log n) for n accesses.
  uint64_t Hits(size_t capacity_blocks) const;

 private:
  const absl::Span<const uint32_t> accesses_;
  const size_t unique_blocks_;
  std::vector<uint32_t> next_;  // [accesses], when the block is accessed next; the end: never
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_OPTIMUM_H_
