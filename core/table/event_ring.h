// EventRing: which blocks have come and gone lately. BlockEvent is public, the ring internal to
// core.
#ifndef KVCACHE_CORE_TABLE_EVENT_RING_H_
#define KVCACHE_CORE_TABLE_EVENT_RING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/table/block_options.h"

namespace kvcache {

// A complete block has become visible, or is not any more.
struct BlockEvent {
  enum class Kind : uint8_t { kStored, kRemoved };

  uint64_t sequence = 0;  // from 0 on, without gaps
  Kind kind = Kind::kStored;
  RemoveReason reason = RemoveReason::kErased;  // of kRemoved
  bool has_parent = false;                      // of kStored
  BlockKey key = {};
  BlockKey parent = {};
  NamespaceId ns = NamespaceId::kDefault;
  size_t bytes = 0;
};

namespace internal {

// The last `capacity` events. Allocates in its constructor only; O(1). Not thread-safe.
class EventRing {
 public:
  explicit EventRing(size_t capacity) : events_(capacity) {}

  bool keeps_any() const { return !events_.empty(); }

  // REQUIRES: keeps_any().
  void Add(BlockEvent event) {
    event.sequence = next_;
    events_[next_++ % events_.size()] = event;
  }

  // Copies events, the oldest first, from *sequence on, which becomes that of the next one. Adds to
  // *lost how many were overwritten before that. Returns how many were copied.
  size_t CopyFrom(uint64_t* sequence, absl::Span<BlockEvent> events, uint64_t* lost) const {
    const uint64_t oldest = next_ - std::min<uint64_t>(next_, events_.size());
    if (*sequence < oldest) {
      *lost += oldest - *sequence;
      *sequence = oldest;
    }
    size_t copied = 0;
    for (; copied < events.size() && *sequence < next_; ++*sequence) {
      events[copied++] = events_[*sequence % events_.size()];
    }
    return copied;
  }

 private:
  std::vector<BlockEvent> events_;
  uint64_t next_ = 0;
};

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_CORE_TABLE_EVENT_RING_H_
