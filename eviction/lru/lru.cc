#include "kvcache/eviction/lru/lru.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvcache/core/check.h"
#include "kvcache/core/slot_heap.h"

namespace kvcache {
namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "lru"; }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    nodes_.resize(std::max(nodes_.size(), max_slots));
    returned_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& /*info*/) override {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place == Place::kUnknown, "slot ", slot,
                  " is out of range or known already");
    Append(slot);
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    constexpr size_t kAhead = 16;
    for (; !slots.empty(); slots.remove_prefix(std::min(kAhead, slots.size()))) {
      const auto some = slots.subspan(0, kAhead);
      // The processor fetches all nodes at once, then all of their neighbours.
      if (some.size() > 1) {
        for (Slot slot : some) __builtin_prefetch(&nodes_[slot], 1);
        for (Slot slot : some) {
          const Node& node = nodes_[slot];
          if (node.older != kNoSlot) __builtin_prefetch(&nodes_[node.older], 1);
          if (node.newer != kNoSlot) __builtin_prefetch(&nodes_[node.newer], 1);
        }
      }
      for (Slot slot : some) {
        Detach(slot);
        Append(slot);
      }
    }
  }

  void Remove(Slot slot, RemoveReason /*reason*/) override {
    Detach(slot);
    nodes_[slot] = Node();
  }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    if (returned_.empty()) {
      return oldest_ == kNoSlot ? VictimResult::None() : VictimResult::Of(oldest_);
    }
    const bool list_first = oldest_ != kNoSlot && nodes_[oldest_].sequence < returned_.top_rank();
    return VictimResult::Of(list_first ? oldest_ : returned_.top());
  }

  void Park(Slot slot) override {
    KVCACHE_CHECK(NodeOf(slot).place != Place::kParked, "slot ", slot, " is parked already");
    Detach(slot);
    nodes_[slot].place = Place::kParked;
  }

  void Unpark(Slot slot) override {
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
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace kvcache
