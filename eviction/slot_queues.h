// SlotQueues: first-in, first-out queues of slots, some of which may be passed over for a while.
#ifndef KVCACHE_EVICTION_SLOT_QUEUES_H_
#define KVCACHE_EVICTION_SLOT_QUEUES_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"

namespace kvcache {

// Lists of slots, each slot in at most one of them, in the order in which they were appended, and
// for each list the first slot that may go. Policies that are made of queues stand on it.
//
// A parked slot keeps its place and is not offered; unparked, it is offered at that place again.
// Slots have a class, from 0 to kClasses - 1: of those in a queue, the lowest class is offered
// first, and within a class the slot that came first.
//
// Each queue has a hand, for policies that look at their slots one after the other: it stands on a
// slot, or behind the last one, and goes forward only. A slot that is appended when the hand is
// behind the last one comes under it.
//
// Costs: every call is O(1) amortised, but Unpark and SetClass are O(log n) for a slot that First
// has passed already: such slots wait in a heap. Only SetMaxSlots allocates: 16 bytes for each slot
// and 20 more for each queue. Not thread-safe. Calls that break a REQUIRES abort.
template <size_t kQueues, size_t kClasses = 1>
class SlotQueues {
 public:
  // From now on slots may be < max_slots. Keeps the content; never shrinks.
  void SetMaxSlots(size_t max_slots) {
    nodes_.resize(std::max(nodes_.size(), max_slots));
    for (Queue& queue : queues_) queue.returned.SetMaxSlots(max_slots);
  }

  bool Contains(Slot slot) const { return slot < nodes_.size() && nodes_[slot].queue != kNone; }

  // All of these abort unless the slot is in a queue.
  size_t QueueOf(Slot slot) const { return NodeOf(slot).queue; }
  size_t ClassOf(Slot slot) const { return NodeOf(slot).cls; }
  bool IsParked(Slot slot) const { return NodeOf(slot).parked; }
  bool IsBehindHand(Slot slot) const {
    const Node& node = NodeOf(slot);
    return IsBefore(node, queues_[node.queue].hand);
  }

  // Have the processor fetch what the other calls will read: first the slot, then its neighbours.
  void Prefetch(Slot slot) const {
    if (slot < nodes_.size()) __builtin_prefetch(&nodes_[slot], 1);
  }
  void PrefetchNeighbours(Slot slot) const {
    if (slot >= nodes_.size()) return;
    const Node& node = nodes_[slot];
    if (node.before != kNoSlot) __builtin_prefetch(&nodes_[node.before], 1);
    if (node.after != kNoSlot) __builtin_prefetch(&nodes_[node.after], 1);
  }

  // REQUIRES: slot < max_slots and in no queue.
  void Append(size_t queue, Slot slot, size_t cls = 0) {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].queue == kNone, "slot ", slot,
                  " is out of range or known already");
    Link(queue, slot, cls);
  }

  // REQUIRES of all that follow: slot is in a queue.
  void Remove(Slot slot) {
    Unlink(slot);
    nodes_[slot] = Node();
  }

  // To the end of a queue; a parked slot stays parked.
  void Move(size_t queue, Slot slot, size_t cls = 0) {
    Unlink(slot);
    Link(queue, slot, cls, nodes_[slot].parked);
  }

  // To the end of a queue, where it is offered, also when it was parked.
  void Renew(size_t queue, Slot slot, size_t cls = 0) {
    Unlink(slot);
    Link(queue, slot, cls);
  }

  void SetClass(Slot slot, size_t cls) {
    Node& node = NodeOf(slot);
    node.cls = cls;
    if (!node.parked) Offer(slot);
  }

  // REQUIRES: not parked.
  void Park(Slot slot) {
    Node& node = NodeOf(slot);
    KVCACHE_CHECK(!node.parked, "slot ", slot, " is parked already");
    if (node.returned) TakeBack(slot);
    node.parked = true;
  }

  // REQUIRES: parked.
  void Unpark(Slot slot) {
    Node& node = NodeOf(slot);
    KVCACHE_CHECK(node.parked, "slot ", slot, " is not parked");
    node.parked = false;
    Offer(slot);
  }

  // The first slot that may go, or kNoSlot. Changes nothing that anybody sees.
  Slot First(size_t queue) {
    for (size_t cls = 0; cls < kClasses; ++cls) {
      if (const Slot slot = First(queue, cls); slot != kNoSlot) return slot;
    }
    return kNoSlot;
  }

  // The same among the slots of one class; `cls` is at most the class of First(queue).
  Slot First(size_t queue, size_t cls) {
    Queue& q = queues_[queue];
    Slot& next = q.next[cls];
    while (next != kNoSlot && !IsOffered(nodes_[next], cls)) next = nodes_[next].after;
    if (q.returned.empty()) return next;
    const Slot returned = q.returned.top();
    return nodes_[returned].cls == cls && IsBefore(nodes_[returned], next) ? returned : next;
  }

  Slot hand(size_t queue) const { return queues_[queue].hand; }
  // Over the slot on which it stands. REQUIRES: it stands on one.
  void AdvanceHand(size_t queue) { queues_[queue].hand = NodeOf(queues_[queue].hand).after; }

 private:
  static constexpr size_t kNone = 3;
  static_assert(kQueues <= kNone && kClasses <= 4);
  static constexpr int kSequenceBits = 58;

  struct Node {
    uint64_t sequence : kSequenceBits = 0;  // ascends along the queue
    uint64_t queue : 2 = kNone;
    uint64_t cls : 2 = 0;
    uint64_t parked : 1 = 0;
    uint64_t returned : 1 = 0;  // offered by Queue::returned
    Slot before = kNoSlot;
    Slot after = kNoSlot;
  };
  static_assert(sizeof(Node) == 16);

  struct Queue {
    Queue() { next.fill(kNoSlot); }

    Slot last = kNoSlot;
    Slot hand = kNoSlot;
    // For each class: no slot of it that is offered by the list, and not by `returned`, comes
    // before this one; kNoSlot: there is none at all.
    std::array<Slot, kClasses> next;
    SlotHeap<uint64_t> returned;  // by class, then sequence
  };

  Node& NodeOf(Slot slot) {
    KVCACHE_CHECK(Contains(slot), "slot ", slot, " is not known");
    return nodes_[slot];
  }
  const Node& NodeOf(Slot slot) const {
    KVCACHE_CHECK(Contains(slot), "slot ", slot, " is not known");
    return nodes_[slot];
  }

  static bool IsOffered(const Node& node, size_t cls) {
    return node.cls == cls && !node.parked && !node.returned;
  }
  bool IsBefore(const Node& node, Slot other) const {
    return other == kNoSlot || node.sequence < nodes_[other].sequence;
  }
  static uint64_t RankOf(const Node& node) {
    return uint64_t{node.cls} << kSequenceBits | node.sequence;
  }

  // Of a slot that is not parked: makes sure that First finds it.
  void Offer(Slot slot) {
    Node& node = nodes_[slot];
    Queue& queue = queues_[node.queue];
    if (node.returned) TakeBack(slot);
    if (!IsBefore(node, queue.next[node.cls])) return;
    node.returned = 1;
    queue.returned.Push(slot, RankOf(node));
  }

  void TakeBack(Slot slot) {
    Node& node = nodes_[slot];
    queues_[node.queue].returned.Remove(slot);
    node.returned = 0;
  }

  void Link(size_t queue, Slot slot, size_t cls, bool parked = false) {
    Queue& q = queues_[queue];
    nodes_[slot] = {.sequence = ++sequence_,
                    .queue = queue,
                    .cls = cls,
                    .parked = parked,
                    .before = q.last,
                    .after = kNoSlot};
    if (q.last != kNoSlot) nodes_[q.last].after = slot;
    q.last = slot;
    if (q.hand == kNoSlot) q.hand = slot;
    for (Slot& next : q.next) {
      if (next == kNoSlot) next = slot;
    }
  }

  void Unlink(Slot slot) {
    const Node& node = NodeOf(slot);
    Queue& q = queues_[node.queue];
    if (node.returned) TakeBack(slot);
    if (q.hand == slot) q.hand = node.after;
    for (Slot& next : q.next) {
      if (next == slot) next = node.after;
    }
    if (node.before != kNoSlot) nodes_[node.before].after = node.after;
    (node.after == kNoSlot ? q.last : nodes_[node.after].before) = node.before;
  }

  std::vector<Node> nodes_;
  std::array<Queue, kQueues> queues_;
  uint64_t sequence_ = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_SLOT_QUEUES_H_
