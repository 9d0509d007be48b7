// EvictionPolicy: an order over blocks that says which one to give up first.
#ifndef KVCACHE_CORE_POLICY_EVICTION_POLICY_H_
#define KVCACHE_CORE_POLICY_EVICTION_POLICY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// What a policy may know about a block.
struct EntryInfo {
  uint64_t key_hash = 0;  // the same for the same key: recognises a block that comes back
  size_t bytes = 0;
  Slot parent = kNoSlot;      // the block before this one in its prompt, kNoSlot for the first
  uint32_t depth = 0;         // blocks before this one in its prompt
  uint32_t chain_blocks = 0;  // blocks of the prompt it was put for; 0: unknown
  uint16_t priority = 0;      // from 0 to 100; a policy sees blocks of one priority only
  Nanos keep_priority_for = kNever;
  double recompute_cost = 0;  // seconds of compute that a hit saves; 0: unknown
  Nanos deadline = kNever;
  Nanos now = 0;
};

// Which piece of which request a call is about.
struct Run {
  uint32_t first_depth = 0;   // depth of the shallowest block
  uint32_t chain_blocks = 0;  // blocks of the whole request; 0: unknown
  Nanos now = 0;
  bool continues = false;  // the same request as the call before
};

enum class RemoveReason : uint8_t {
  kEvicted,
  kErased,
  kExpired,
  kReplaced,
  kAborted,
  kCorrupted,
  kOtherPriority,  // it stays in the cache, with a priority that another policy cares for
};

struct VictimResult {
  enum class Kind { kSlot, kRefuse, kNone };

  static VictimResult Of(Slot slot) { return {Kind::kSlot, slot}; }
  // Rather not admit the newcomer.
  static VictimResult Refuse() { return {Kind::kRefuse, kNoSlot}; }
  // Nothing left in the order.
  static VictimResult None() { return {Kind::kNone, kNoSlot}; }

  Kind kind = Kind::kNone;
  Slot slot = kNoSlot;
};

// An order over slots, from the first victim to the last. A policy never sees bytes and never
// decides alone: the cache skips blocks that may not go (leased, or with children) by parking them.
//
// A slot is *ordered* (offered by Victim), *parked* (known, not offered) or unknown. Admit makes it
// ordered, Remove unknown. The cache calls everything under its lock: a policy needs no lock, must
// not call the cache, and does each call in O(1) amortised, O(log n) where its header says so. It
// allocates only in SetLimits.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual const char* name() const = 0;

  // A policy of the same kind and with the same settings that knows no slots and has no limits: the
  // cache uses one for each priority. May be called by several threads at any time.
  virtual std::unique_ptr<EvictionPolicy> CreateEmpty() const = 0;

  // Called before anything else and again when the capacity changes. Slots are < max_slots, which
  // never shrinks.
  virtual void SetLimits(size_t max_slots, size_t capacity_bytes) = 0;

  // REQUIRES: slot is unknown.
  virtual void Admit(Slot slot, const EntryInfo& info) = 0;

  // A hit on the blocks of one request: slots[0] first, so that the last one is the most recent.
  // A parked slot becomes ordered again, at its new place. REQUIRES: all slots are known.
  virtual void Touch(absl::Span<const Slot> slots, const Run& run) = 0;

  // REQUIRES: slot is known (ordered or parked).
  virtual void Remove(Slot slot, RemoveReason reason) = 0;

  // The first slot of the order; changes nothing. `incoming` is the block that wants its room;
  // without bytes nobody does (the cache shrinks), and there is nothing to refuse.
  virtual VictimResult Victim(const EntryInfo& incoming) = 0;

  // Takes an ordered slot out of the order and puts it back at the place that it would have had,
  // had it never left; so parking some victims and unparking them again, in any order, changes
  // nothing. REQUIRES: to park, slot is ordered; to unpark, it is parked.
  virtual void Park(Slot slot) = 0;
  virtual void Unpark(Slot slot) = 0;

  // The block's deadline changed. REQUIRES: slot is known.
  virtual void SetDeadline(Slot /*slot*/, Nanos /*deadline*/) {}

  // Blocks that a request asked for and that were not there, hashes[0] the last in the prompt;
  // `run` says where they are in it. What was hit comes in the Touch that follows, which then
  // continues the same request. Those that are put now are admitted later, one by one.
  virtual void Miss(absl::Span<const uint64_t> /*key_hashes*/, const Run& /*run*/) {}

  // Blocks of a request that were refused by kRefuse: food for a policy's ghosts.
  virtual void Bypassed(absl::Span<const uint64_t> /*key_hashes*/, const Run& /*run*/) {}
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_POLICY_EVICTION_POLICY_H_
