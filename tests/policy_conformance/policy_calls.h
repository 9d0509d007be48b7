// Calls on eviction policies, as data: made at random, and on several policies alike.
#ifndef KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CALLS_H_
#define KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <random>
#include <vector>

#include "kvcache/core/base/nanos.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// One call that may change something.
struct PolicyCall {
  enum class Kind { kAdmit, kTouch, kRemove, kPark, kUnpark, kSetDeadline, kMiss };

  void MakeOn(EvictionPolicy& policy) const;
  friend std::ostream& operator<<(std::ostream& out, const PolicyCall& call);

  Kind kind = Kind::kAdmit;
  std::vector<Slot> slots = {};           // one, except for kTouch and kMiss
  std::vector<uint64_t> key_hashes = {};  // kMiss
  EntryInfo info = {};                    // kAdmit, and the deadline of kSetDeadline
  Run run = {};                           // kTouch, kMiss
  RemoveReason reason = RemoveReason::kEvicted;
};

// An endless sequence of legal calls, the same for the same seed: blocks of branching prompts come,
// are hit together with the blocks before them, are parked, unparked and removed, are asked for in
// vain, and some come back. Blocks become more in the first 1,000 calls, fewer in the second, and
// so on. Deadlines are whole seconds, so many are equal.
class RandomCalls {
 public:
  RandomCalls(size_t max_slots, uint64_t seed);

  PolicyCall Next();

  // After all calls so far, in ascending order.
  std::vector<Slot> ordered() const { return SlotsIn(State::kOrdered); }
  std::vector<Slot> parked() const { return SlotsIn(State::kParked); }

 private:
  enum class State { kUnknown, kOrdered, kParked };

  struct Block {
    State state = State::kUnknown;
    EntryInfo info;
  };

  uint64_t Below(uint64_t limit) { return random_() % limit; }
  PolicyCall::Kind AnyKind();
  // Any slot for which this call is legal.
  std::optional<Slot> AnySlotFor(PolicyCall::Kind kind);
  std::vector<Slot> SlotsIn(State state) const;
  Nanos AnyDeadline();
  EntryInfo AnyInfo(const EntryInfo& last_in_slot);
  PolicyCall Hit(Slot slot);
  PolicyCall Miss();

  std::mt19937_64 random_;
  uint64_t calls_ = 0;
  std::vector<Block> blocks_;  // [max_slots]
};

// All ordered slots, from the first victim to the last. Parks them for that, and unparks them in
// another order: by the contract this changes nothing.
std::vector<Slot> EvictionOrder(EvictionPolicy& policy);

// Removes victim after victim until there is none.
std::vector<Slot> EvictAll(EvictionPolicy& policy);

}  // namespace kvcache

#endif  // KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CALLS_H_
