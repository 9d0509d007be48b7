// ShadowCache: what a cache of another size or policy would hit. Internal to core.
#ifndef KVCACHE_CORE_SHADOW_CACHE_H_
#define KVCACHE_CORE_SHADOW_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/block.h"
#include "kvcache/core/eviction_policy.h"
#include "kvcache/core/slot.h"
#include "kvcache/core/slot_heap.h"
#include "kvcache/core/slot_index.h"

namespace kvcache::internal {

// What happened to one block.
struct Reference {
  enum class Kind : uint8_t {
    kLookup,  // by a Get
    kMatch,   // by a Match
    kPut,
  };

  uint64_t id = 0;        // of the key; as good as random, whoever chooses the keys
  uint64_t key_hash = 0;  // what policies are told
  size_t bytes = 0;       // as charged to the budget; 0: unknown, so it cannot be put
  Nanos now = 0;
  Nanos ttl = kNever;
  float recompute_cost = 0;
  uint32_t depth = 0;
  uint32_t chain_blocks = 0;
  Kind kind = Kind::kLookup;
  bool first = true;  // of a request; the others of it follow
};

// A cache without blocks: keys, their sizes and deadlines, a budget, and a policy of the real kind.
//
// A lookup that misses is followed by a put at once. A Put() of what is there already only mends
// what that could not know: size, cost and ttl. Deadlines are kept as the cache does;
// leases, parents, priorities and erasing are not modelled: what the policy says first goes first.
//
// Allocates only when it is made. Not thread-safe.
class ShadowCache {
 public:
  // `policy` knows no slots. REQUIRES: 0 < max_blocks < kNoSlot.
  ShadowCache(std::unique_ptr<EvictionPolicy> policy, size_t max_blocks, size_t capacity_bytes);

  // The lookups of one request, in the order of its prompt. Returns the number of hits.
  size_t Look(absl::Span<const Reference> request);
  void Put(const Reference& put);

  // Evicts what no longer fits.
  void SetCapacity(size_t capacity_bytes);

  const char* policy() const { return policy_->name(); }
  // Whether something had to go for want of room, and how many blocks there are.
  bool full() const { return full_; }
  size_t blocks() const { return index_.size(); }

 private:
  struct Entry {
    uint64_t id = 0;
    size_t bytes = 0;
    Nanos deadline = kNever;
    Nanos ttl = kNever;
    float recompute_cost = 0;
    bool guessed = false;  // nobody has put it yet
    Slot next_free = kNoSlot;
  };

  Slot Find(uint64_t id) const {
    return index_.Find(id, [&](Slot slot) { return entries_[slot].id == id; });
  }
  // The block if it is there and lives.
  Slot FindLive(const Reference& reference);
  void Insert(const Reference& reference);
  void Remove(Slot slot, RemoveReason reason);
  // Whether there is room for `incoming` now.
  bool MakeRoom(const EntryInfo& incoming);
  void RemoveExpired(Nanos now);

  const std::unique_ptr<EvictionPolicy> policy_;
  const size_t max_blocks_;
  size_t capacity_;
  size_t bytes_ = 0;
  bool full_ = false;
  SlotIndex index_;
  std::vector<Entry> entries_;                   // [max_blocks]
  Slot free_ = 0;                                // list through next_free
  SlotHeap<Nanos> deadlines_;                    // of those that have one
  std::vector<std::pair<Slot, uint32_t>> hits_;  // of the request at hand, and their depths
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_SHADOW_CACHE_H_
