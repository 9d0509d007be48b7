#include "kvcache/core/policy/priority_levels.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"

namespace kvcache::internal {

PriorityLevels::PriorityLevels(EvictionPolicy& normal, size_t max_slots) : level_of_(max_slots) {
  levels_[0].policy = &normal;
  ends_.SetMaxSlots(max_slots);
}

size_t PriorityLevels::FindLevel(uint16_t priority) const {
  size_t level = 0;
  while (level < num_levels_ && levels_[level].priority != priority) ++level;
  return level;
}

absl::Status PriorityLevels::CheckNewLevel(uint16_t priority) const {
  if (num_levels_ < kMostPriorities) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("options.priority: ", priority, " would be one more than the ", kMostPriorities,
                   " different values that a cache may be given, 0 among them"));
}

void PriorityLevels::AddLevel(uint16_t priority, std::unique_ptr<EvictionPolicy> policy) {
  KVCACHE_CHECK(!HasLevel(priority) && num_levels_ < kMostPriorities, "priority ", priority,
                " is there already, or one too many");
  Level& level = levels_[num_levels_];
  level.priority = priority;
  level.policy = policy.get();
  level.owned = std::move(policy);
  by_priority_[num_levels_] = static_cast<uint8_t>(num_levels_);
  ++num_levels_;
  std::sort(by_priority_.begin(), by_priority_.begin() + num_levels_,
            [this](uint8_t a, uint8_t b) { return levels_[a].priority < levels_[b].priority; });
}

EvictionPolicy& PriorityLevels::PolicyOf(Slot slot) {
  KVCACHE_CHECK(slot < level_of_.size(), "slot ", slot, " is not known");
  return *levels_[level_of_[slot]].policy;
}

std::unique_ptr<EvictionPolicy> PriorityLevels::CreateEmpty() const {
  return levels_[0].policy->CreateEmpty();
}

void PriorityLevels::SetLimits(size_t max_slots, size_t capacity_bytes) {
  level_of_.resize(std::max(level_of_.size(), max_slots));
  ends_.SetMaxSlots(max_slots);
  for (size_t i = 0; i < num_levels_; ++i) levels_[i].policy->SetLimits(max_slots, capacity_bytes);
}

void PriorityLevels::Admit(Slot slot, const EntryInfo& info) {
  const size_t level = FindLevel(info.priority);
  KVCACHE_CHECK(level < num_levels_, "there is no level of priority ", info.priority);
  levels_[level].policy->Admit(slot, info);
  level_of_[slot] = static_cast<uint8_t>(level);
  const Nanos end = Later(info.now, info.keep_priority_for);
  if (level > 0 && end != kNever) ends_.Push(slot, {end, ++sequence_});
}

void PriorityLevels::EndPriority(Slot slot, EntryInfo info, bool parked) {
  Remove(slot, RemoveReason::kOtherPriority);
  info.priority = 0;
  Admit(slot, info);
  if (parked) Park(slot);
}

void PriorityLevels::Remove(Slot slot, RemoveReason reason) {
  PolicyOf(slot).Remove(slot, reason);
  level_of_[slot] = 0;
  if (ends_.Contains(slot)) ends_.Remove(slot);
}

// --- Requests

void PriorityLevels::StartRun(const Run& run) {
  if (run.continues) return;
  for (size_t i = 0; i < num_levels_; ++i) levels_[i].in_request = false;
}

Run PriorityLevels::RunFor(Level& level, Run run) {
  run.continues = std::exchange(level.in_request, true);
  return run;
}

void PriorityLevels::Touch(absl::Span<const Slot> slots, const Run& run) {
  StartRun(run);
  for (size_t begin = 0; begin < slots.size();) {
    const EvictionPolicy& policy = PolicyOf(slots[begin]);
    size_t end = begin + 1;
    while (end < slots.size() && &PolicyOf(slots[end]) == &policy) ++end;
    Level& level = levels_[level_of_[slots[begin]]];
    Run part = RunFor(level, run);
    part.first_depth += static_cast<uint32_t>(slots.size() - end);
    level.policy->Touch(slots.subspan(begin, end - begin), part);
    begin = end;
  }
}

void PriorityLevels::Miss(absl::Span<const uint64_t> key_hashes, const Run& run) {
  StartRun(run);
  for (size_t i = 0; i < num_levels_; ++i) {
    levels_[i].policy->Miss(key_hashes, RunFor(levels_[i], run));
  }
}

void PriorityLevels::Bypassed(absl::Span<const uint64_t> key_hashes, const Run& run) {
  levels_[refusing_level_].policy->Bypassed(key_hashes, run);
}

// --- Victims

VictimResult PriorityLevels::Victim(const EntryInfo& incoming) {
  refusing_level_ = FindLevel(incoming.priority);
  for (size_t i = 0; i < num_levels_; ++i) {
    const Level& level = levels_[by_priority_[i]];
    // Blocks of a lower priority than the newcomer go whatever they are worth.
    const bool may_refuse = level.priority == incoming.priority;
    const VictimResult victim = level.policy->Victim(may_refuse ? incoming : EntryInfo());
    if (victim.kind != VictimResult::Kind::kNone) return victim;
  }
  return VictimResult::None();
}

}  // namespace kvcache::internal
