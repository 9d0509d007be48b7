#include "kvcache/eviction/s3fifo/s3fifo.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "kvcache/eviction/ghost_lists.h"
#include "kvcache/eviction/slot_queues.h"
#include "kvcache/eviction/touch_log.h"

namespace kvcache {
namespace {

constexpr size_t kSmall = 0;
constexpr size_t kMain = 1;

constexpr size_t kSmallShare = 10;   // one of so many bytes
constexpr uint8_t kHitsToMain = 2;   // from the small queue
constexpr uint8_t kMostHits = 3;     // that count
constexpr size_t kSpareGhosts = 64;  // from an eviction to the next Admit
// At most so many are forgotten in one call: after a Resize there may be any number too many.
constexpr int kForgottenAtOnce = 256;

// Classes within the small queue; within the main queue the class is the number of hits.
constexpr size_t kCold = 0;
constexpr size_t kHot = 1;  // hit kHitsToMain times: will not be evicted from here

class S3FifoPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "s3fifo"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateS3FifoPolicy(); }

  void SetLimits(size_t max_slots, size_t capacity_bytes) override {
    queues_.SetMaxSlots(max_slots);
    entries_.resize(std::max(entries_.size(), max_slots));
    ghosts_.SetMaxGhosts(max_slots + kSpareGhosts);
    capacity_ = capacity_bytes;
  }

  void Admit(Slot slot, const EntryInfo& info) override {
    Settle();
    const Ghost ghost = ghosts_.Find(info.key_hash);
    const size_t queue = ghost != kNoGhost ? kMain : kSmall;
    queues_.Append(queue, slot);
    if (ghost != kNoGhost) ghosts_.Erase(ghost);
    entries_[slot] = {.key_hash = info.key_hash, .bytes = info.bytes, .hits = 0};
    bytes_[queue] += info.bytes;
    const size_t most_ghosts = capacity_ - SmallBytes(capacity_);
    for (int left = kForgottenAtOnce; ghosts_.bytes(0) > most_ghosts && left > 0; --left) {
      ghosts_.Erase(ghosts_.oldest(0));
    }
  }

  void Touch(absl::Span<const Slot> slots, const Run& /*run*/) override {
    for (Slot slot : slots) {
      if (slot < entries_.size()) __builtin_prefetch(&entries_[slot], 1);
      queues_.Prefetch(slot);
      if (touched_.Add(slot)) Settle();
    }
  }

  void Remove(Slot slot, RemoveReason reason) override {
    Settle();
    if (reason == RemoveReason::kEvicted) PassUpTo(slot);
    const Entry& entry = entries_[slot];
    const size_t queue = queues_.QueueOf(slot);
    queues_.Remove(slot);
    bytes_[queue] -= entry.bytes;
    // Blocks that leave the main queue are not remembered.
    if (reason == RemoveReason::kEvicted && queue == kSmall) {
      ghosts_.Add(0, entry.key_hash, entry.bytes);
    }
  }

  VictimResult Victim(const EntryInfo& /*incoming*/) override {
    Settle();
    const Slot first = MainGoesFirst() ? FirstOfMain() : FirstOfSmall();
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
    uint64_t bytes : 56 = 0;
    uint64_t hits : 8 = 0;
  };

  void Settle() {
    for (Slot slot : touched_.Take()) Hit(slot);
  }

  void Hit(Slot slot) {
    if (queues_.IsParked(slot)) queues_.Unpark(slot);
    Entry& entry = entries_[slot];
    if (queues_.QueueOf(slot) == kSmall) {
      if (entry.hits == kHitsToMain || ++entry.hits < kHitsToMain) return;
      if (queues_.IsBehindHand(slot)) {
        MoveToMain(slot);
      } else {
        queues_.SetClass(slot, kHot);
      }
    } else if (queues_.IsBehindHand(slot)) {
      queues_.Move(kMain, slot);
    } else if (entry.hits < kMostHits) {
      queues_.SetClass(slot, ++entry.hits);
    }
  }

  static size_t SmallBytes(size_t bytes) { return bytes / kSmallShare; }

  // Shares of what there is: the same as those of the capacity when bytes are what is full.
  bool MainGoesFirst() const {
    const size_t all = bytes_[kSmall] + bytes_[kMain];
    return bytes_[kMain] > all - SmallBytes(all) || bytes_[kSmall] == 0;
  }

  Slot FirstOfMain() {
    const Slot main = queues_.First(kMain);
    return main != kNoSlot ? main : queues_.First(kSmall);
  }

  // With nothing cold in it, the small queue empties into the main queue.
  Slot FirstOfSmall() {
    if (const Slot cold = queues_.First(kSmall, kCold); cold != kNoSlot) return cold;
    if (const Slot unhit = queues_.First(kMain, 0); unhit != kNoSlot) return unhit;
    const Slot hot = queues_.First(kSmall);
    return hot != kNoSlot ? hot : queues_.First(kMain);
  }

  void MoveToMain(Slot slot) {
    bytes_[kSmall] -= entries_[slot].bytes;
    bytes_[kMain] += entries_[slot].bytes;
    entries_[slot].hits = 0;
    queues_.Move(kMain, slot);
  }

  // Moves the blocks in front of `victim` as its eviction moves them.
  void PassUpTo(Slot victim) {
    const bool in_small = queues_.QueueOf(victim) == kSmall;
    if (in_small ? !queues_.IsBehindHand(victim) : !MainGoesFirst()) {
      for (Slot slot; (slot = queues_.hand(kSmall)) != kNoSlot && slot != victim;) {
        if (queues_.ClassOf(slot) == kHot) {
          MoveToMain(slot);
        } else {
          queues_.AdvanceHand(kSmall);
        }
      }
    }
    if (in_small || queues_.IsBehindHand(victim)) return;
    for (Slot slot; (slot = queues_.hand(kMain)) != victim || entries_[slot].hits > 0;) {
      if (entries_[slot].hits > 0) {
        queues_.Move(kMain, slot, --entries_[slot].hits);
      } else {
        queues_.AdvanceHand(kMain);
      }
    }
  }

  SlotQueues<2, kMostHits + 1> queues_;
  GhostLists<1> ghosts_;
  TouchLog touched_;
  std::vector<Entry> entries_;        // [max_slots]
  std::array<size_t, 2> bytes_ = {};  // of the blocks in each queue, parked ones too
  size_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateS3FifoPolicy() { return std::make_unique<S3FifoPolicy>(); }

}  // namespace kvcache
