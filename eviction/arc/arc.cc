#include "kvcache/eviction/arc/arc.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "kvcache/eviction/ghost_lists.h"
#include "kvcache/eviction/slot_queues.h"
#include "kvcache/eviction/touch_log.h"

namespace kvcache {
namespace {

// T1 and T2 of the paper; as lists of ghosts, B1 and B2.
constexpr size_t kOnce = 0;
constexpr size_t kAgain = 1;

// Ghosts may exceed the limit from an eviction to the next Admit.
constexpr size_t kSpareGhosts = 64;
// At most so many are forgotten in one call: after a Resize there may be any number too many.
constexpr int kForgottenAtOnce = 256;

class ArcPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "arc"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateArcPolicy(); }

  void SetLimits(size_t max_slots, size_t capacity_bytes) override {
    queues_.SetMaxSlots(max_slots);
    entries_.resize(std::max(entries_.size(), max_slots));
    ghosts_.SetMaxGhosts(max_slots + kSpareGhosts);
    capacity_ = static_cast<double>(capacity_bytes);
  }

  void Admit(Slot slot, const EntryInfo& info) override {
    Settle();
    const Ghost ghost = ghosts_.Find(info.key_hash);
    const bool again = ghost != kNoGhost;
    queues_.Append(again ? kAgain : kOnce, slot);
    if (again) {
      target_ = TargetAfter(ghost);
      ghosts_.Erase(ghost);
    }
    entries_[slot] = {info.key_hash, info.bytes};
    bytes_[again ? kAgain : kOnce] += info.bytes;
    unsettled_ = {0, 0};
    ForgetSome();
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      if (slot < entries_.size()) __builtin_prefetch(&entries_[slot]);
      queues_.Prefetch(slot);
      if (touched_.Add(slot)) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason reason) override {
    Settle();
    const size_t list = queues_.QueueOf(slot);
    const Entry& entry = entries_[slot];
    queues_.Remove(slot);
    bytes_[list] -= entry.bytes;
    if (reason != RemoveReason::kEvicted) return;
    ghosts_.Add(list, entry.key_hash, entry.bytes);
    unsettled_[list] += entry.bytes;
  }

  // REPLACE of the paper, for a target that Admit of the newcomer will set.
  VictimResult Victim(const EntryInfo& incoming) override {
    Settle();
    const Ghost ghost = incoming.bytes > 0 ? ghosts_.Find(incoming.key_hash) : kNoGhost;
    const double target = ghost == kNoGhost ? target_ : TargetAfter(ghost);
    const double once = static_cast<double>(bytes_[kOnce]);
    const bool from_once =
        once > target || (once == target && ghost != kNoGhost && ghosts_.ListOf(ghost) == kAgain);
    Slot first = queues_.First(from_once ? kOnce : kAgain);
    if (first == kNoSlot) first = queues_.First(from_once ? kAgain : kOnce);
    return first == kNoSlot ? VictimResult::None() : VictimResult::Of(first);
  }

  void Park(Slot slot) override {
    Settle();
    queues_.Park(slot);
  }
  void Unpark(Slot slot) override {
    Settle();
    queues_.Unpark(slot);
  }

 private:
  struct Entry {
    uint64_t key_hash = 0;
    size_t bytes = 0;
  };

  void Settle() {
    if (!touched_.empty()) UseAll(touched_.Take());
  }

  void UseAll(absl::Span<const Slot> slots) {
    if (slots.size() > 1) {
      for (Slot slot : slots) queues_.PrefetchNeighbours(slot);
    }
    for (Slot slot : slots) {
      bytes_[queues_.QueueOf(slot)] -= entries_[slot].bytes;
      bytes_[kAgain] += entries_[slot].bytes;
      queues_.Renew(kAgain, slot);
    }
  }

  // Bytes of the ghosts that there were before those that made room for the newcomer.
  double SettledGhosts(size_t list) const {
    const size_t all = ghosts_.bytes(list);
    return static_cast<double>(all - std::min(all, unsettled_[list]));
  }

  // Where the target goes when the block of this ghost comes back: by its own bytes, and faster if
  // its list is the shorter one.
  double TargetAfter(Ghost ghost) const {
    const size_t list = ghosts_.ListOf(ghost);
    const double bytes = static_cast<double>(ghosts_.BytesOf(ghost));
    const double mine = std::max(SettledGhosts(list), bytes);
    const double step = bytes * std::max(1.0, mine == 0 ? 1.0 : SettledGhosts(1 - list) / mine);
    return list == kOnce ? std::min(target_ + step, capacity_) : std::max(target_ - step, 0.0);
  }

  // |T1| + |B1| <= c, and all four together <= 2c.
  void ForgetSome() {
    const auto once = [&] { return static_cast<double>(bytes_[kOnce] + ghosts_.bytes(kOnce)); };
    const auto again = [&] { return static_cast<double>(bytes_[kAgain] + ghosts_.bytes(kAgain)); };
    int left = kForgottenAtOnce;
    while (once() > capacity_ && ghosts_.oldest(kOnce) != kNoGhost && left-- > 0) {
      ghosts_.Erase(ghosts_.oldest(kOnce));
    }
    while (once() + again() > 2 * capacity_ && ghosts_.oldest(kAgain) != kNoGhost && left-- > 0) {
      ghosts_.Erase(ghosts_.oldest(kAgain));
    }
  }

  SlotQueues<2> queues_;
  GhostLists<2> ghosts_;
  TouchLog touched_;
  std::vector<Entry> entries_;            // [max_slots]
  std::array<size_t, 2> bytes_ = {};      // of the blocks in each queue, parked ones too
  std::array<size_t, 2> unsettled_ = {};  // of the ghosts since the last Admit
  double target_ = 0;                     // p of the paper: bytes for kOnce
  double capacity_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateArcPolicy() { return std::make_unique<ArcPolicy>(); }

}  // namespace kvcache
