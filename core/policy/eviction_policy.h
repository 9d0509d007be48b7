// EvictionPolicy: an order over blocks that says which one to give up first.
#ifndef KVCACHE_CORE_POLICY_EVICTION_POLICY_H_
#define KVCACHE_CORE_POLICY_EVICTION_POLICY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// All that a policy may know about a block.
struct EntryInfo {
  uint64_t key_hash = 0;  // the same for the same key: recognises a block that comes back
  size_t bytes = 0;
  Slot parent = kNoSlot;      // the block before this one in its prompt, kNoSlot for the first
  uint32_t depth = 0;         // blocks before this one in its prompt
  uint32_t chain_blocks = 0;  // blocks of the prompt it was put for; 0: unknown
  uint16_t priority = 0;      // from 0 to 100; a policy sees blocks of one priority only
  Nanos keep_priority_for = kNever;
  double recompute_cost = 0;  // seconds of compute that a hit saves; see CostOr()
  Nanos deadline = kNever;
  Nanos now = 0;

  // recompute_cost in the range in which sums and quotients of costs stay exact enough to be
  // compared: from 1 ns to 1,000,000 s, whatever is given. `unknown` when it is none: 0, negative
  // or NaN.
  double CostOr(double unknown) const {
    return recompute_cost > 0 ? std::clamp(recompute_cost, 1e-9, 1e6) : unknown;
  }
};

// The blocks of one call, as a piece of a request.
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
  kOtherPriority,  // it stays in the cache, in the order of the policy of another priority
};

struct VictimResult {
  enum class Kind { kSlot, kRefuse, kNone };

  static VictimResult Of(Slot slot) { return {Kind::kSlot, slot}; }
  // The newcomer is worth less than everything that could go for it.
  static VictimResult Refuse() { return {Kind::kRefuse, kNoSlot}; }
  // No slot is ordered.
  static VictimResult None() { return {Kind::kNone, kNoSlot}; }

  Kind kind = Kind::kNone;
  Slot slot = kNoSlot;
};

// An order over slots, from the first victim to the last. A policy never sees bytes and never
// decides alone: the cache skips blocks that may not go (leased, or with children) by parking them.
//
// A slot is *ordered* (offered by Victim), *parked* (known, not offered) or unknown. Admit makes it
// ordered, Remove unknown. The cache calls everything but CreateEmpty under its lock: a policy
// needs no lock and must not call the cache.
//
// Costs: each call is O(1) amortised for each slot or hash that it names, or O(log n) where the
// policy's header says so. Only SetLimits allocates, and only for more slots than before.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual const char* name() const = 0;

  // A policy of the same kind and with the same settings that knows no slots and has no limits: the
  // cache uses one for each priority. May be called by several threads at any time.
  virtual std::unique_ptr<EvictionPolicy> CreateEmpty() const = 0;

  // Comes before anything else, and again when the capacity changes. Slots are < max_slots, which
  // never shrinks. O(max_slots) when max_slots grows; else O(1), since a Resize calls it under the
  // cache's lock.
  virtual void SetLimits(size_t max_slots, size_t capacity_bytes) = 0;

  // REQUIRES: slot is unknown.
  virtual void Admit(Slot slot, const EntryInfo& info) = 0;

  // A hit on the blocks of one request: slots[0] first, so that the last one is the most recent.
  // A parked slot becomes ordered again, at its new place. REQUIRES: all slots are known.
  virtual void Touch(absl::Span<const Slot> slots, const Run& run) = 0;

  // REQUIRES: slot is known (ordered or parked).
  virtual void Remove(Slot slot, RemoveReason reason) = 0;

  // The first slot of the order; changes nothing. `incoming` is the block that wants its room. It
  // has no bytes when the cache shrinks: then there is no newcomer, and nothing to refuse.
  virtual VictimResult Victim(const EntryInfo& incoming) = 0;

  // Takes an ordered slot out of the order and puts it back at the place that it would have had,
  // had it never left; so parking some victims and unparking them again, in any order, changes
  // nothing. REQUIRES: to park, slot is ordered; to unpark, it is parked.
  virtual void Park(Slot slot) = 0;
  virtual void Unpark(Slot slot) = 0;

  // The block's deadline changed. REQUIRES: slot is known.
  virtual void SetDeadline(Slot /*slot*/, Nanos /*deadline*/) {}

  // A request asked for these blocks, and they were not there. key_hashes[0] is the last of them in
  // the prompt; `run` says where they are in it. A Touch with the blocks that were hit follows and
  // continues the same request. Those that are put now are admitted later, one by one.
  virtual void Miss(absl::Span<const uint64_t> /*key_hashes*/, const Run& /*run*/) {}

  // These blocks of a request were not admitted, because Victim() refused the newcomer. A policy
  // that remembers blocks that have gone may remember these as well.
  virtual void Bypassed(absl::Span<const uint64_t> /*key_hashes*/, const Run& /*run*/) {}
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_POLICY_EVICTION_POLICY_H_
