// ShadowCache: what a cache of another size or policy would hit. Internal to core.
#ifndef KVCACHE_CORE_ADVICE_SHADOW_CACHE_H_
#define KVCACHE_CORE_ADVICE_SHADOW_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"
#include "kvcache/core/policy/slot_index.h"
#include "kvcache/core/table/block.h"

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
  bool first = true;     // of a request; the others of it follow
  bool matched = false;  // of a put: a Match before has missed it, and so has put it
};

// A cache without blocks: keys, their sizes and deadlines, a budget, and a policy of the real kind.
//
// A lookup that misses is followed by a put at once; of what a Match misses, until the policy
// refuses a block. A Put() of what is there already only mends what that could not know: size, cost
// and ttl.
//
// As in the cache, a Match hits the leading blocks only, a block with children does not go, and
// none lives longer than its parent: that is the block before it in the Match that put it, of those
// in the sample. Leases, priorities and erasing are not modelled.
//
// Allocates only when it is made. Not thread-safe.
class ShadowCache {
 public:
  // `policy` knows no slots. REQUIRES: 0 < max_blocks < kNoSlot.
  ShadowCache(std::unique_ptr<EvictionPolicy> policy, size_t max_blocks, size_t capacity_bytes);

  // The lookups of one request, in the order of its prompt and of one kind. Returns the number of
  // hits.
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
    bool parked = false;
    Slot next_free = kNoSlot;
    Slot parent = kNoSlot;
    uint64_t put_of_parent = 0;  // its number, since the slot may be another block's by now
    uint64_t put = 0;            // number of this one
    uint32_t children = 0;
  };

  Slot Find(uint64_t id) const {
    return index_.Find(id, [&](Slot slot) { return entries_[slot].id == id; });
  }
  // The block if it is there and lives.
  Slot FindLive(const Reference& reference);
  size_t LookAtChain(absl::Span<const Reference> request);
  void Touch(Slot slot, const Reference& reference, bool continues);
  // The slot, or kNoSlot when it is not to have room.
  Slot Insert(const Reference& reference, Slot parent);
  // Of an entry that is in the index and not in the policy.
  void Admit(Slot slot, const Reference& reference);
  // The block's parent, if that is still there.
  Slot ParentOf(const Entry& entry) const;
  void LoseChild(Slot parent);
  void Remove(Slot slot, RemoveReason reason);
  // Whether there is room for `incoming` now.
  bool MakeRoom(const EntryInfo& incoming);
  void RemoveExpired(Nanos now);

  const std::unique_ptr<EvictionPolicy> policy_;
  const size_t max_blocks_;
  size_t capacity_;
  size_t bytes_ = 0;
  bool full_ = false;
  uint64_t puts_ = 0;
  SlotIndex index_;
  std::vector<Entry> entries_;                           // [max_blocks]
  Slot free_ = 0;                                        // list through next_free
  SlotHeap<Nanos> deadlines_;                            // of those that have one
  std::vector<std::pair<Slot, const Reference*>> hits_;  // of the request at hand
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_ADVICE_SHADOW_CACHE_H_
