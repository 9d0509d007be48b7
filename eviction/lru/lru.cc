#include "kvcache/eviction/lru/lru.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot_heap.h"

namespace kvcache {
namespace {

// Exact, but lazy: a touch only notes the slot, and the list is put in order before anybody asks.
// The list's nodes are all over memory, so a hit that relinked three of them would wait for as many
// cache misses; for many slots at once the processor fetches them all at the same time.
class LruPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "lru"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateLruPolicy(); }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    nodes_.resize(std::max(nodes_.size(), max_slots));
    returned_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& /*info*/) override {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place == Place::kUnknown, "slot ", slot,
                  " is out of range or known already");
    Settle();
    Append(slot);
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      KVCACHE_CHECK(slot < nodes_.size(), "slot ", slot, " is not known");
      __builtin_prefetch(&nodes_[slot], 1);
      touched_[touches_++] = slot;
      if (touches_ == touched_.size()) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason /*reason*/) override {
    Settle();
    Detach(slot);
    nodes_[slot] = Node();
  }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    Settle();
    if (returned_.empty()) {
      return oldest_ == kNoSlot ? VictimResult::None() : VictimResult::Of(oldest_);
    }
    const bool list_first = oldest_ != kNoSlot && nodes_[oldest_].sequence < returned_.top_rank();
    return VictimResult::Of(list_first ? oldest_ : returned_.top());
  }

  void Park(Slot slot) override {
    Settle();
    KVCACHE_CHECK(NodeOf(slot).place != Place::kParked, "slot ", slot, " is parked already");
    Detach(slot);
    nodes_[slot].place = Place::kParked;
  }

  void Unpark(Slot slot) override {
    Settle();
    Node& node = NodeOf(slot);
    KVCACHE_CHECK(node.place == Place::kParked, "slot ", slot, " is not parked");
    node.place = Place::kReturned;
    returned_.Push(slot, node.sequence);
  }

 private:
  enum class Place : uint64_t { kUnknown, kListed, kReturned, kParked };

  struct Node {
    Place place : 2 = Place::kUnknown;
    uint64_t sequence : 62 = 0;  // of the last use
    Slot older = kNoSlot;
    Slot newer = kNoSlot;
  };
  static_assert(sizeof(Node) == 16);

  Node& NodeOf(Slot slot) {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place != Place::kUnknown, "slot ", slot,
                  " is not known");
    return nodes_[slot];
  }

  // Puts what was touched, in that order, at the end of the list.
  void Settle() {
    if (touches_ > 0) SettleTouched();
  }

  void SettleTouched() {
    const absl::Span<const Slot> slots(touched_.data(), std::exchange(touches_, 0));
    if (slots.size() > 1) {
      for (Slot slot : slots) {
        const Node& node = nodes_[slot];
        if (node.older != kNoSlot) __builtin_prefetch(&nodes_[node.older], 1);
        if (node.newer != kNoSlot) __builtin_prefetch(&nodes_[node.newer], 1);
      }
    }
    for (Slot slot : slots) {
      Detach(slot);
      Append(slot);
    }
  }

  void Append(Slot slot) {
    Node& node = nodes_[slot];
    node.place = Place::kListed;
    node.sequence = ++sequence_;
    node.older = newest_;
    node.newer = kNoSlot;
    (newest_ == kNoSlot ? oldest_ : nodes_[newest_].newer) = slot;
    newest_ = slot;
  }

  // Out of the list or the heap; its place is to be set next.
  void Detach(Slot slot) {
    const Node& node = NodeOf(slot);
    if (node.place == Place::kListed) {
      (node.older == kNoSlot ? oldest_ : nodes_[node.older].newer) = node.newer;
      (node.newer == kNoSlot ? newest_ : nodes_[node.newer].older) = node.older;
    } else if (node.place == Place::kReturned) {
      returned_.Remove(slot);
    }
  }

  std::vector<Node> nodes_;
  uint64_t sequence_ = 0;
  // In the order of use: a slot that returns to the middle of it waits in a heap instead.
  Slot oldest_ = kNoSlot;
  Slot newest_ = kNoSlot;
  SlotHeap<uint64_t> returned_;

  std::array<Slot, 64> touched_;
  size_t touches_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace kvcache
