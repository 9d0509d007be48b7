// Block: one entry of a BlockTable. Internal to core.
#ifndef KVCACHE_CORE_TABLE_BLOCK_H_
#define KVCACHE_CORE_TABLE_BLOCK_H_

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/table/block_options.h"
#include "kvcache/core/table/part_set.h"

namespace kvcache::internal {

inline double SecondsOf(absl::Duration duration) {
  return duration == absl::ZeroDuration() ? 0 : absl::ToDoubleSeconds(duration);
}

// The progress of a block that is not complete. A part is claimed when it was given to a commit,
// and committed when that has succeeded.
struct BlockWrite {
  Nanos ttl = kNever;
  Nanos keep_priority_for = kNever;  // for the policy
  PartSet claimed;
  PartSet committed;
  PartSet failed;            // their copies did, and no commit has claimed them again
  uint64_t* sets = nullptr;  // memory of the three beyond part 63, from new[]
  uint32_t next_spare = 0;   // of one that no block has
  uint32_t committed_parts = 0;
  uint32_t copies = 0;        // under way into it, and commits that wait for one
  uint32_t chain_blocks = 0;  // for the policy
  uint16_t priority = 0;      // for the policy
  bool leased = true;         // the WriteLease has not ended
  bool keep = false;          // ends as a partial block rather than as none
  bool progress = false;      // a part was committed since the block was last partial
};

struct Block {
  // kRemoved: no key reaches it; it waits for its last pin, or for its children to be removed.
  enum class State : uint8_t { kFree, kWriting, kPartial, kComplete, kRemoved };

  static constexpr uint32_t kNone = 0xffffffff;

  // What a hit reads comes first.
  BlockKey key;
  Nanos deadline = kNever;  // of a block that is being written: when it was partial
  size_t offset = 0;        // of its extent
  size_t bytes = 0;         // 0 once it was given up
  uint32_t pin = kNone;     // its record in the PinList
  Slot parent = kNoSlot;
  uint32_t epoch = 0;
  float recompute_cost = 0;  // seconds
  uint16_t parts = 0;
  State state = State::kFree;
  RemoveReason reason : 3 = RemoveReason::kErased;  // of a removed block
  bool has_extent : 1 = false;
  bool indexed : 1 = false;
  bool admitted : 1 = false;  // the policy knows it
  bool parked : 1 = false;    // ... and does not offer it
  bool chosen : 1 = false;    // as a victim, by the call under way
  bool reused : 1 = false;    // was hit
  bool retired : 1 = false;   // among those with children to remove
  bool copied : 1 = false;    // its bytes are elsewhere, too
  // Of a block that is being written: one of its descendants has become visible before it.
  bool early_below : 1 = false;

  uint32_t ns = 0;  // the number of its namespace
  uint32_t extent_node = 0;
  uint32_t write = kNone;  // its BlockWrite, while kWriting or kPartial
  // The tree of prompts. Children without a parent hang below their namespace.
  Slot first_child = kNoSlot;
  Slot previous_sibling = kNoSlot;
  Slot next_sibling = kNoSlot;  // of a removed block: the next one with children to remove, or free
  uint32_t children = 0;        // without those that were chosen as victims
  uint32_t depth = 0;
  // Of its parts, in caches that keep them; 0: not known. A single one is here, several are in an
  // array from new[].
  union {
    uint64_t checksum = 0;
    uint64_t* checksums;
  };

  size_t part_bytes() const { return bytes / parts; }
  bool pinned() const { return pin != kNone; }
  bool visible() const { return state == State::kPartial || state == State::kComplete; }
};
// A cache of small blocks has millions of them.
static_assert(sizeof(Block) <= 120);

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_BLOCK_H_
