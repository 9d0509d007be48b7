#ifndef KVCACHE_TESTS_POLICY_CONFORMANCE_SCAN_MODEL_H_
#define KVCACHE_TESTS_POLICY_CONFORMANCE_SCAN_MODEL_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// A policy that is too slow to use and too simple to be wrong: it keeps its entries in the order of
// their last use and looks at all of them in every call. The victim is the entry that goes before
// all others by `goes_before`, the least recently used one of equals:
//
//   ScanModel lfu([](const auto& a, const auto& b) { return a.uses < b.uses; });
class ScanModel final : public EvictionPolicy {
 public:
  struct Entry {
    Slot slot;
    Nanos deadline;
    int uses = 1;
    bool parked = false;
  };

  explicit ScanModel(std::function<bool(const Entry&, const Entry&)> goes_before)
      : goes_before_(std::move(goes_before)) {}

  const char* name() const override { return "scan"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override {
    return std::make_unique<ScanModel>(goes_before_);
  }
  void SetLimits(size_t, size_t) override {}

  void Admit(Slot slot, const EntryInfo& info) override {
    entries_.push_back({slot, info.deadline});
  }

  void Touch(absl::Span<const Slot> slots, const Run&) override {
    for (Slot slot : slots) {
      Entry entry = *Find(slot);
      entries_.erase(Find(slot));
      ++entry.uses;
      entry.parked = false;
      entries_.push_back(entry);
    }
  }

  void Remove(Slot slot, RemoveReason) override { entries_.erase(Find(slot)); }

  VictimResult Victim(const EntryInfo&) override {
    const Entry* first = nullptr;
    for (const Entry& entry : entries_) {
      if (!entry.parked && (first == nullptr || goes_before_(entry, *first))) first = &entry;
    }
    return first == nullptr ? VictimResult::None() : VictimResult::Of(first->slot);
  }

  void Park(Slot slot) override { Find(slot)->parked = true; }
  void Unpark(Slot slot) override { Find(slot)->parked = false; }
  void SetDeadline(Slot slot, Nanos deadline) override { Find(slot)->deadline = deadline; }

 private:
  std::vector<Entry>::iterator Find(Slot slot) {
    return std::find_if(entries_.begin(), entries_.end(),
                        [slot](const Entry& entry) { return entry.slot == slot; });
  }

  const std::function<bool(const Entry&, const Entry&)> goes_before_;
  std::vector<Entry> entries_;  // by last use, the least recent first
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_POLICY_CONFORMANCE_SCAN_MODEL_H_
