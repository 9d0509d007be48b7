// PriorityLevels: several eviction policies of a kind, one for each priority in use. Internal to
// core.
#ifndef KVCACHE_CORE_POLICY_PRIORITY_LEVELS_H_
#define KVCACHE_CORE_POLICY_PRIORITY_LEVELS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"

namespace kvcache::internal {

// Gives up what has the lowest priority; within a priority, what its policy says. Every policy sees
// the whole requests: it hears of all blocks that were not there, and of those that were, its own.
//
// An EvictionPolicy like others, except for what is below; each call costs what it costs the policy
// of the block's level, Victim() and Miss() what they cost all of them.
class PriorityLevels final : public EvictionPolicy {
 public:
  static constexpr size_t kMostPriorities = 8;

  // `normal` is the policy of priority 0, with all the blocks that it knows already, and must
  // outlive this. The limits are those that it has.
  PriorityLevels(EvictionPolicy& normal, size_t max_slots, size_t capacity_bytes);

  // Whether the level is there. REQUIRES for Admit(): that of the block is.
  bool HasLevel(uint16_t priority) const { return FindLevel(priority) < num_levels_; }
  // A level on `policy`, which knows no slots. kInvalidArgument when there are kMostPriorities, the
  // normal one among them.
  absl::Status AddLevel(uint16_t priority, std::unique_ptr<EvictionPolicy> policy);

  // Whether a block is too important to make room for a newcomer.
  bool Outranks(Slot slot, const EntryInfo& incoming) const {
    return incoming.bytes > 0 && levels_[level_of_[slot]].priority > incoming.priority;
  }

  // A block whose priority is over, if there is one, else kNoSlot; in the order in which they end.
  Slot NextOver(Nanos now) const {
    return !ends_.empty() && ends_.top_rank().first <= now ? ends_.top() : kNoSlot;
  }
  // Makes the priority of a block the normal one; for its new policy it is like one that was just
  // put, `info`. REQUIRES: NextOver() returned it.
  void EndPriority(Slot slot, EntryInfo info, bool parked);

  const char* name() const override { return levels_[0].policy->name(); }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override;
  void SetLimits(size_t max_slots, size_t capacity_bytes) override;
  void Admit(Slot slot, const EntryInfo& info) override;
  void Touch(absl::Span<const Slot> slots, const Run& run) override;
  void Remove(Slot slot, RemoveReason reason) override;
  VictimResult Victim(const EntryInfo& incoming) override;
  void Park(Slot slot) override { PolicyOf(slot).Park(slot); }
  void Unpark(Slot slot) override { PolicyOf(slot).Unpark(slot); }
  void SetDeadline(Slot slot, Nanos deadline) override {
    PolicyOf(slot).SetDeadline(slot, deadline);
  }
  void Miss(absl::Span<const uint64_t> key_hashes, const Run& run) override;
  // Of the priority that the last Victim() was asked for.
  void Bypassed(absl::Span<const uint64_t> key_hashes, const Run& run) override;

 private:
  struct Level {
    uint16_t priority = 0;
    EvictionPolicy* policy = nullptr;
    std::unique_ptr<EvictionPolicy> owned;
    bool hears = false;  // the request that is told now
  };

  size_t FindLevel(uint16_t priority) const;
  EvictionPolicy& PolicyOf(Slot slot);
  // `run` as this level has to hear it.
  Run ToldTo(Level& level, Run run);
  void StartRun(const Run& run);

  std::array<Level, kMostPriorities> levels_;  // levels_[0] is the normal one
  size_t num_levels_ = 1;
  std::array<uint8_t, kMostPriorities> by_priority_ = {};  // indices of levels, the lowest first
  std::vector<uint8_t> level_of_;                          // [max_slots]
  SlotHeap<std::pair<Nanos, uint64_t>> ends_;              // when priorities end, and a sequence
  uint64_t sequence_ = 0;
  size_t capacity_bytes_;
  size_t refusing_level_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_POLICY_PRIORITY_LEVELS_H_
