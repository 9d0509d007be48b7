#include "kvcache/eviction/gdsf/gdsf.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot_heap.h"
#include "kvcache/eviction/touch_log.h"

namespace kvcache {
namespace {

class GdsfPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "gdsf"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateGdsfPolicy(); }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    entries_.resize(std::max(entries_.size(), max_slots));
    order_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& info) override {
    Settle();
    KVCACHE_CHECK(slot < entries_.size() && entries_[slot].worth == 0, "slot ", slot,
                  " is out of range or known already");
    entries_[slot].worth = info.CostOr(1) / static_cast<double>(std::max<size_t>(info.bytes, 1));
    Use(slot);
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      if (slot < entries_.size()) __builtin_prefetch(&entries_[slot], 1);
      order_.PrefetchPlace(slot);
      if (touched_.Add(slot)) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason reason) override {
    Settle();
    const double value = EntryOf(slot).rank.value;
    if (reason == RemoveReason::kEvicted) clock_ = std::max(clock_, value);
    if (order_.Contains(slot)) order_.Remove(slot);
    entries_[slot] = Entry();
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
    order_.Push(slot, EntryOf(slot).rank);
  }

 private:
  struct Rank {
    double value = 0;
    uint64_t sequence = 0;  // of the last use

    friend bool operator<(const Rank& a, const Rank& b) {
      return a.value != b.value ? a.value < b.value : a.sequence < b.sequence;
    }
  };

  struct Entry {
    double worth = 0;  // of one use: cost / bytes; 0: the slot is unknown
    uint64_t uses = 0;
    Rank rank;
  };

  Entry& EntryOf(Slot slot) {
    KVCACHE_CHECK(slot < entries_.size() && entries_[slot].worth > 0, "slot ", slot,
                  " is not known");
    return entries_[slot];
  }

  void Settle() {
    if (!touched_.empty()) UseAll(touched_.Take());
  }

  void UseAll(absl::Span<const Slot> slots) {
    for (Slot slot : slots) order_.PrefetchItem(slot);
    for (Slot slot : slots) Use(slot);
  }

  void Use(Slot slot) {
    Entry& entry = EntryOf(slot);
    ++entry.uses;
    entry.rank = {clock_ + static_cast<double>(entry.uses) * entry.worth, ++sequence_};
    if (order_.Contains(slot)) {
      order_.Update(slot, entry.rank);
    } else {
      order_.Push(slot, entry.rank);
    }
  }

  std::vector<Entry> entries_;  // [max_slots]
  SlotHeap<Rank> order_;        // without what is parked
  TouchLog touched_;
  double clock_ = 0;
  uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateGdsfPolicy() { return std::make_unique<GdsfPolicy>(); }

}  // namespace kvcache
