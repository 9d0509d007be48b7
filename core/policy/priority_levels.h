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

// Blocks of the lowest priority go first; within a priority, its policy decides. Each policy is
// told of a request's blocks that were missed, and of those that were hit, its own.
//
// An EvictionPolicy like others, except for what is below. Costs: each call costs what it costs the
// policy of the block's level, Victim() and Miss() what they cost all of them, and O(log n) more
// for a block whose priority ends. 29 bytes for each slot, besides those of the policies.
class PriorityLevels final : public EvictionPolicy {
 public:
  static constexpr size_t kMostPriorities = 8;

  // `normal` is the policy of priority 0, with all the blocks that it knows already, and outlives
  // this; max_slots is what it has. Takes 29 bytes for each slot, and does not touch `normal`: so a
  // cache makes it without its lock.
  PriorityLevels(EvictionPolicy& normal, size_t max_slots);

  // True when the priority has a level, as Admit() requires of that of the block.
  bool HasLevel(uint16_t priority) const { return FindLevel(priority) < num_levels_; }
  // kInvalidArgument when there are kMostPriorities levels, the normal one among them.
  absl::Status CheckNewLevel(uint16_t priority) const;
  // Adds a level on `policy`, which knows no slots and has the limits of the others. O(1), without
  // allocations. REQUIRES: !HasLevel(priority), and CheckNewLevel(priority) is OK.
  void AddLevel(uint16_t priority, std::unique_ptr<EvictionPolicy> policy);

  // True when a block is too important to make room for a newcomer.
  bool Outranks(Slot slot, const EntryInfo& incoming) const {
    return incoming.bytes > 0 && levels_[level_of_[slot]].priority > incoming.priority;
  }

  // The block whose priority ended first, until EndPriority() has made it a normal one; kNoSlot
  // when no priority has ended.
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
  // The blocks are of the priority of the newcomer of the last Victim().
  void Bypassed(absl::Span<const uint64_t> key_hashes, const Run& run) override;

 private:
  struct Level {
    uint16_t priority = 0;
    EvictionPolicy* policy = nullptr;
    std::unique_ptr<EvictionPolicy> owned;
    bool in_request = false;  // was told of some blocks of the current request
  };

  size_t FindLevel(uint16_t priority) const;
  EvictionPolicy& PolicyOf(Slot slot);
  // `run` with `continues` as it is for this level, which is told of the request from now on.
  Run RunFor(Level& level, Run run);
  void StartRun(const Run& run);

  std::array<Level, kMostPriorities> levels_;  // levels_[0] is the normal one
  size_t num_levels_ = 1;
  std::array<uint8_t, kMostPriorities> by_priority_ = {};  // indices of levels, the lowest first
  std::vector<uint8_t> level_of_;                          // [max_slots]
  SlotHeap<std::pair<Nanos, uint64_t>> ends_;              // when priorities end, and a sequence
  uint64_t sequence_ = 0;
  size_t refusing_level_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_POLICY_PRIORITY_LEVELS_H_
