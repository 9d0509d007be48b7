#ifndef KVCACHE_TESTS_POLICY_CONFORMANCE_UNIT_CACHE_H_
#define KVCACHE_TESTS_POLICY_CONFORMANCE_UNIT_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// The cache of a textbook, around a policy: blocks of one size, one access after the other, nothing
// leased. For policies that are published as such, to be compared with a second program of it.
class UnitCache {
 public:
  static constexpr size_t kBlockBytes = 64;

  UnitCache(std::unique_ptr<EvictionPolicy> policy, size_t capacity)
      : policy_(std::move(policy)), keys_(capacity) {
    policy_->SetLimits(capacity, capacity * kBlockBytes);
    for (size_t slot = capacity; slot-- > 0;) unused_.push_back(static_cast<Slot>(slot));
  }

  // Whether the key was there; now it is.
  bool Access(uint64_t key) {
    if (const auto found = slots_.find(key); found != slots_.end()) {
      policy_->Touch({found->second}, {});
      return true;
    }
    const EntryInfo info = {.key_hash = key, .bytes = kBlockBytes};
    if (unused_.empty()) {
      const Slot victim = policy_->Victim(info).slot;
      policy_->Remove(victim, RemoveReason::kEvicted);
      slots_.erase(keys_[victim]);
      unused_.push_back(victim);
    }
    const Slot slot = unused_.back();
    unused_.pop_back();
    policy_->Admit(slot, info);
    keys_[slot] = key;
    slots_[key] = slot;
    return false;
  }

  std::set<uint64_t> keys() const {
    std::set<uint64_t> keys;
    for (const auto& [key, slot] : slots_) keys.insert(key);
    return keys;
  }

 private:
  const std::unique_ptr<EvictionPolicy> policy_;
  std::map<uint64_t, Slot> slots_;
  std::vector<uint64_t> keys_;  // [capacity], by slot
  std::vector<Slot> unused_;
};

// Keys, always the same for a seed: some popular, some met once, and now and then a loop.
inline std::vector<uint64_t> AnyKeys(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<uint64_t> keys;
  uint64_t fresh = 1'000'000;
  while (keys.size() < count) {
    switch (random() % 16) {
      case 0:
        for (uint64_t i = 0; i < 60; ++i) keys.push_back(500'000 + i % (20 + seed % 30));
        break;
      case 1:
        for (uint64_t i = 0; i < 30; ++i) keys.push_back(fresh++);
        break;
      default:
        for (int i = 0; i < 20; ++i) keys.push_back(random() % (1 + random() % 200));
    }
  }
  keys.resize(count);
  return keys;
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_POLICY_CONFORMANCE_UNIT_CACHE_H_
