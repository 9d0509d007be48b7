#include "kvcache/eviction/lru/lru.h"

#include "kvcache/eviction/slot_queues.h"
#include "kvcache/eviction/touch_log.h"

namespace kvcache {
namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "lru"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateLruPolicy(); }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    queue_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& /*info*/) override {
    Settle();
    queue_.Append(0, slot);
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      queue_.Prefetch(slot);
      if (touched_.Add(slot)) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason /*reason*/) override {
    Settle();
    queue_.Remove(slot);
  }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    Settle();
    const Slot first = queue_.First(0);
    return first == kNoSlot ? VictimResult::None() : VictimResult::Of(first);
  }

  void Park(Slot slot) override {
    Settle();
    queue_.Park(slot);
  }
  void Unpark(Slot slot) override {
    Settle();
    queue_.Unpark(slot);
  }

 private:
  void Settle() {
    if (!touched_.empty()) RenewAll(touched_.Take());
  }

  void RenewAll(absl::Span<const Slot> slots) {
    if (slots.size() > 1) {
      for (Slot slot : slots) queue_.PrefetchNeighbours(slot);
    }
    for (Slot slot : slots) queue_.Renew(0, slot);
  }

  SlotQueues<1> queue_;  // in the order of use
  TouchLog touched_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace kvcache
