// RankedPolicy: an eviction policy that orders slots by a rank of their own.
#ifndef KVCACHE_EVICTION_RANKED_POLICY_H_
#define KVCACHE_EVICTION_RANKED_POLICY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"
#include "kvcache/eviction/touch_log.h"

namespace kvcache {

// The first victim is the slot of the lowest rank. Rank is a value with
//
//   static Rank OfNew(const EntryInfo&, uint64_t sequence);
//   void Touch(uint64_t sequence);
//   void SetDeadline(Nanos);
//   bool operator<(Rank, Rank);  // total: sequences are unique and ascend with every use
//
// Costs: every call is O(log n), but a hit is nearer to O(1), since a slot that is hit often is
// deep in the heap already. 20 bytes for each slot, and twice the size of a Rank.
template <typename Rank>
class RankedPolicy : public EvictionPolicy {
 public:
  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    nodes_.resize(std::max(nodes_.size(), max_slots));
    order_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& info) override {
    Settle();
    KVCACHE_CHECK(slot < nodes_.size() && !nodes_[slot].known, "slot ", slot,
                  " is out of range or known already");
    nodes_[slot] = {Rank::OfNew(info, ++sequence_), true};
    order_.Push(slot, nodes_[slot].rank);
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      if (slot < nodes_.size()) __builtin_prefetch(&nodes_[slot], 1);
      order_.PrefetchPlace(slot);
      if (touched_.Add(slot)) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason /*reason*/) override {
    Settle();
    RankOf(slot);
    nodes_[slot].known = false;
    if (order_.Contains(slot)) order_.Remove(slot);
  }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    Settle();
    return order_.empty() ? VictimResult::None() : VictimResult::Of(order_.top());
  }

  void Park(Slot slot) override {
    Settle();
    order_.Remove(slot);
  }
  void Unpark(Slot slot) override {
    Settle();
    order_.Push(slot, RankOf(slot));
  }

  void SetDeadline(Slot slot, Nanos deadline) override {
    Settle();
    Rank& rank = RankOf(slot);
    rank.SetDeadline(deadline);
    if (order_.Contains(slot)) order_.Update(slot, rank);
  }

 private:
  struct Node {
    Rank rank;
    bool known = false;
  };

  Rank& RankOf(Slot slot) {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].known, "slot ", slot, " is not known");
    return nodes_[slot].rank;
  }

  void Settle() {
    if (!touched_.empty()) UseAll(touched_.Take());
  }

  void UseAll(absl::Span<const Slot> slots) {
    for (Slot slot : slots) order_.PrefetchItem(slot);
    for (Slot slot : slots) {
      Rank& rank = RankOf(slot);
      rank.Touch(++sequence_);
      if (order_.Contains(slot)) {
        order_.Update(slot, rank);
      } else {
        order_.Push(slot, rank);
      }
    }
  }

  std::vector<Node> nodes_;
  SlotHeap<Rank> order_;
  TouchLog touched_;
  uint64_t sequence_ = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_RANKED_POLICY_H_
