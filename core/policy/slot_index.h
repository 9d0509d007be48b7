// SlotIndex: from the hash of a key to the slot of its entry.
#ifndef KVCACHE_CORE_POLICY_SLOT_INDEX_H_
#define KVCACHE_CORE_POLICY_SLOT_INDEX_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// A hash table that holds no keys: an entry is a slot and 32 bits of its key's hash, its tag, so a
// lookup costs one cache miss here and nearly always exactly one where the keys are.
//
// All entries stand in the order of their tags, each at its tag's place in the array or as soon
// after it as there is room (linear probing, ordered; Amble and Knuth, 1974). So a miss ends at the
// first larger tag, and removing leaves no tombstones. At most 5 of 7 places are taken: nearer
// to full, a removal would move many neighbours.
//
// The caller's hashes must be as good as random, whoever chooses the keys: KeyMixer below makes
// such.
//
// O(1) expected. Allocates only in SetMaxSlots(): 11 bytes for each slot. Not thread-safe.
class SlotIndex {
 public:
  // REQUIRES: empty.
  void SetMaxSlots(size_t max_slots) {
    KVCACHE_CHECK(size_ == 0, size_, " entries already");
    places_ = max_slots + max_slots / 5 * 2 + 1;
    // Those with the last tags need places behind them. A run of this many taken places has a
    // probability below 1e-80.
    entries_.assign(places_ + std::min<size_t>(max_slots, 4096) + 1, Entry());
  }

  size_t size() const { return size_; }

  // The slot that was inserted with `hash` and for which `matches(slot)` is true, or kNoSlot. Calls
  // `matches` for other slots only when their hashes have the same tag.
  template <typename Matches>
  Slot Find(uint64_t hash, const Matches& matches) const {
    const uint32_t tag = TagOf(hash);
    for (const Entry* e = &entries_[PlaceOf(tag)]; e->slot != kNoSlot && e->tag <= tag; ++e) {
      if (e->tag == tag && matches(e->slot)) return e->slot;
    }
    return kNoSlot;
  }

  // A first step of Find() for many hashes: has the processor fetch what the search will read.
  void Prefetch(uint64_t hash) const { __builtin_prefetch(&entries_[PlaceOf(TagOf(hash))]); }

  // REQUIRES: the slot is not in the index, which has less than max_slots.
  void Insert(uint64_t hash, Slot slot) {
    Entry entry = {TagOf(hash), slot};
    Entry* e = &entries_[PlaceOf(entry.tag)];
    while (e->slot != kNoSlot && e->tag <= entry.tag) ++e;
    for (; entry.slot != kNoSlot; ++e) {
      KVCACHE_CHECK(e != &entries_.back(), "the index is full, of ", size_);
      std::swap(*e, entry);
    }
    ++size_;
  }

  // REQUIRES: the slot was inserted with this hash.
  void Erase(uint64_t hash, Slot slot) {
    const uint32_t tag = TagOf(hash);
    Entry* e = &entries_[PlaceOf(tag)];
    while (e->slot != slot) {
      KVCACHE_CHECK(e->slot != kNoSlot && e->tag <= tag, "slot ", slot, " is not in the index");
      ++e;
    }
    for (; e[1].slot != kNoSlot && &entries_[PlaceOf(e[1].tag)] <= e; ++e) e[0] = e[1];
    *e = Entry();
    --size_;
  }

 private:
  struct Entry {
    uint32_t tag = 0;
    Slot slot = kNoSlot;
  };

  static uint32_t TagOf(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  size_t PlaceOf(uint32_t tag) const { return uint64_t{tag} * places_ >> 32; }

  size_t places_ = 0;
  std::vector<Entry> entries_;  // behind places_: room for the last ones, and one that stays empty
  size_t size_ = 0;
};

// Hashes of 32-byte keys: all bytes count, with random factors that nobody knows, so that no choice
// of keys makes them fall together.
class KeyMixer {
 public:
  KeyMixer() {
    std::random_device random;
    for (uint64_t& factor : factors_) factor = (uint64_t{random()} << 32 | random()) | 1;
  }

  uint64_t operator()(const std::array<uint8_t, 32>& key) const {
    uint64_t words[4];
    std::memcpy(words, key.data(), sizeof(words));
    uint64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += words[i] * factors_[i];
    sum ^= sum >> 32;
    return sum * factors_[4];
  }

 private:
  std::array<uint64_t, 5> factors_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_POLICY_SLOT_INDEX_H_
