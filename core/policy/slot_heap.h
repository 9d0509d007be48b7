#ifndef KVCACHE_CORE_POLICY_SLOT_HEAP_H_
#define KVCACHE_CORE_POLICY_SLOT_HEAP_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// An indexed min-heap over slots: the slot of the lowest rank is on top, and any slot can be found,
// moved or taken out. Each slot is in it at most once. Rank is any copyable type with a total order
// by `<`; equal ranks come in no particular order, so put a sequence number into the rank where the
// order matters:
//
//   SlotHeap<std::pair<uint64_t, uint64_t>> by_use;  // count, sequence
//   by_use.SetMaxSlots(1000);
//   by_use.Push(slot, {1, ++sequence});
//   Slot victim = by_use.top();
//
// Push, Update and Remove are O(log n), with 4 children for each node; the rest is O(1). Only
// SetMaxSlots allocates: 4 bytes for each slot, and one (Rank, Slot) pair for each. Not
// thread-safe. Calls that break a REQUIRES abort.
template <typename Rank>
class SlotHeap {
 public:
  // From now on slots may be < max_slots. Keeps the content; never shrinks.
  void SetMaxSlots(size_t max_slots) {
    KVCACHE_CHECK(max_slots <= kNoSlot, "max_slots ", max_slots);
    if (max_slots <= positions_.size()) return;
    positions_.resize(max_slots, kNoPosition);
    heap_.reserve(max_slots);
  }

  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  bool Contains(Slot slot) const {
    return slot < positions_.size() && positions_[slot] != kNoPosition;
  }

  // Two steps that have the processor fetch what Push, Update and Remove will read, for many slots
  // at once: the second takes what the first has fetched. Any slot will do.
  void PrefetchPlace(Slot slot) const {
    if (slot < positions_.size()) __builtin_prefetch(&positions_[slot], 1);
  }
  void PrefetchItem(Slot slot) const {
    if (!Contains(slot)) return;
    const size_t position = positions_[slot];
    __builtin_prefetch(&heap_[position], 1);
    const size_t end = std::min(position * kChildren + 1 + kChildren, heap_.size());
    for (size_t child = position * kChildren + 1; child < end; ++child) {
      __builtin_prefetch(&heap_[child]);
    }
  }

  // The slot of the lowest rank, and that rank. REQUIRES: not empty.
  Slot top() const { return Top().slot; }
  const Rank& top_rank() const { return Top().rank; }

  // REQUIRES: Contains(slot).
  const Rank& RankOf(Slot slot) const { return heap_[PositionOf(slot)].rank; }

  // REQUIRES: slot < max_slots and not in the heap.
  void Push(Slot slot, Rank rank) {
    KVCACHE_CHECK(slot < positions_.size() && positions_[slot] == kNoPosition, "slot ", slot,
                  " of ", positions_.size(), " is out of range or in the heap already");
    heap_.push_back({rank, slot});
    SiftUp(heap_.size() - 1, {std::move(rank), slot});
  }

  // Gives a slot another rank. REQUIRES: Contains(slot).
  void Update(Slot slot, Rank rank) { Sift(PositionOf(slot), {std::move(rank), slot}); }

  // REQUIRES: Contains(slot).
  void Remove(Slot slot) {
    const size_t position = PositionOf(slot);
    Item last = std::move(heap_.back());
    heap_.pop_back();
    positions_[slot] = kNoPosition;
    if (position < heap_.size()) Sift(position, std::move(last));
  }

 private:
  struct Item {
    Rank rank;
    Slot slot;
  };

  static constexpr uint32_t kNoPosition = 0xffffffff;
  static constexpr size_t kChildren = 4;

  const Item& Top() const {
    KVCACHE_CHECK(!empty(), "top of an empty heap");
    return heap_.front();
  }

  size_t PositionOf(Slot slot) const {
    KVCACHE_CHECK(Contains(slot), "slot ", slot, " is not in the heap");
    return positions_[slot];
  }

  void Place(size_t position, Item item) {
    positions_[item.slot] = static_cast<uint32_t>(position);
    heap_[position] = std::move(item);
  }

  // Each puts `item` where it belongs, beginning at `hole`, whose old content counts for nothing.
  void Sift(size_t hole, Item item) {
    if (hole > 0 && item.rank < heap_[(hole - 1) / kChildren].rank) {
      SiftUp(hole, std::move(item));
    } else {
      SiftDown(hole, std::move(item));
    }
  }

  void SiftUp(size_t hole, Item item) {
    while (hole > 0) {
      const size_t parent = (hole - 1) / kChildren;
      if (!(item.rank < heap_[parent].rank)) break;
      Place(hole, std::move(heap_[parent]));
      hole = parent;
    }
    Place(hole, std::move(item));
  }

  void SiftDown(size_t hole, Item item) {
    for (;;) {
      const size_t first = hole * kChildren + 1;
      if (first >= heap_.size()) break;
      const size_t end = std::min(first + kChildren, heap_.size());
      size_t least = first;
      for (size_t child = first + 1; child < end; ++child) {
        if (heap_[child].rank < heap_[least].rank) least = child;
      }
      if (!(heap_[least].rank < item.rank)) break;
      Place(hole, std::move(heap_[least]));
      hole = least;
    }
    Place(hole, std::move(item));
  }

  std::vector<uint32_t> positions_;  // [max_slots], where a slot is in heap_
  std::vector<Item> heap_;           // the children of i are 4i + 1 to 4i + 4
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_POLICY_SLOT_HEAP_H_
