#include "kvcache/bench/trace_replay/optimum.h"

#include <limits>
#include <queue>
#include <utility>

#include "kvcache/core/base/check.h"

namespace kvcache::bench {

Optimum::Optimum(absl::Span<const uint32_t> accesses, size_t unique_blocks)
    : accesses_(accesses), unique_blocks_(unique_blocks), next_(accesses.size()) {
  KVCACHE_CHECK(accesses.size() < std::numeric_limits<uint32_t>::max(), accesses.size());
  std::vector<uint32_t> next_of(unique_blocks, static_cast<uint32_t>(accesses.size()));
  for (size_t i = accesses.size(); i-- > 0;) {
    next_[i] = std::exchange(next_of[accesses[i]], static_cast<uint32_t>(i));
  }
}

uint64_t Optimum::Hits(size_t capacity_blocks) const {
  KVCACHE_CHECK(capacity_blocks > 0, "a capacity of 0 blocks");
  if (capacity_blocks >= unique_blocks_) return accesses_.size() - unique_blocks_;
  constexpr uint32_t kNotResident = std::numeric_limits<uint32_t>::max();
  uint64_t hits = 0;
  size_t resident = 0;
  std::vector<uint32_t> next_of(unique_blocks_, kNotResident);
  // The next access and the block; an entry that does not agree with next_of is out of date.
  std::priority_queue<std::pair<uint32_t, uint32_t>> latest;
  for (size_t i = 0; i < accesses_.size(); ++i) {
    const uint32_t block = accesses_[i];
    if (next_of[block] != kNotResident) {
      ++hits;
    } else if (resident < capacity_blocks) {
      ++resident;
    } else {
      while (next_of[latest.top().second] != latest.top().first) latest.pop();
      next_of[latest.top().second] = kNotResident;
      latest.pop();
    }
    next_of[block] = next_[i];
    latest.emplace(next_[i], block);
  }
  return hits;
}

}  // namespace kvcache::bench
