#include "kvcache/eviction/fifo/fifo.h"

#include "kvcache/eviction/slot_queues.h"

namespace kvcache {
namespace {

class FifoPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "fifo"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateFifoPolicy(); }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    queue_.SetMaxSlots(max_slots);
  }

  void Admit(Slot slot, const EntryInfo& /*info*/) override { queue_.Append(0, slot); }

  // A hit changes no place; a parked slot is offered at its own again.
  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) queue_.Prefetch(slot);
    for (Slot slot : slots) {
      if (queue_.IsParked(slot)) queue_.Unpark(slot);
    }
  }

  void Remove(Slot slot, RemoveReason /*reason*/) override { queue_.Remove(slot); }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    const Slot first = queue_.First(0);
    return first == kNoSlot ? VictimResult::None() : VictimResult::Of(first);
  }

  void Park(Slot slot) override { queue_.Park(slot); }
  void Unpark(Slot slot) override { queue_.Unpark(slot); }

 private:
  SlotQueues<1> queue_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateFifoPolicy() { return std::make_unique<FifoPolicy>(); }

}  // namespace kvcache
