#include "kvcache/tests/policy_conformance/policy_calls.h"

#include <algorithm>
#include <set>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

constexpr Nanos kSecond = 1'000'000'000;
constexpr Nanos kStart = 1'000'000 * kSecond;

// `take` must take the victim out of the order.
std::vector<Slot> Victims(EvictionPolicy& policy, absl::FunctionRef<void(Slot)> take) {
  std::vector<Slot> victims;
  std::set<Slot> seen;
  for (;;) {
    const VictimResult victim = policy.Victim(EntryInfo());
    if (victim.kind == VictimResult::Kind::kNone) return victims;
    EXPECT_EQ(victim.kind, VictimResult::Kind::kSlot) << "there is no newcomer to refuse";
    const bool is_new = seen.insert(victim.slot).second;
    EXPECT_TRUE(is_new) << "slot " << victim.slot << " is offered again";
    if (victim.kind != VictimResult::Kind::kSlot || !is_new) return victims;
    victims.push_back(victim.slot);
    take(victim.slot);
  }
}

}  // namespace

void PolicyCall::MakeOn(EvictionPolicy& policy) const {
  switch (kind) {
    case Kind::kAdmit:
      return policy.Admit(slots[0], info);
    case Kind::kTouch:
      return policy.Touch(slots, run);
    case Kind::kRemove:
      return policy.Remove(slots[0], reason);
    case Kind::kPark:
      return policy.Park(slots[0]);
    case Kind::kUnpark:
      return policy.Unpark(slots[0]);
    case Kind::kSetDeadline:
      return policy.SetDeadline(slots[0], info.deadline);
    case Kind::kMiss:
      return policy.Miss(key_hashes, run);
  }
}

std::ostream& operator<<(std::ostream& out, const PolicyCall& call) {
  constexpr const char* kNames[] = {"Admit",  "Touch",       "Remove", "Park",
                                    "Unpark", "SetDeadline", "Miss"};
  return out << kNames[static_cast<int>(call.kind)] << "(" << absl::StrJoin(call.slots, ", ")
             << ")";
}

RandomCalls::RandomCalls(size_t max_slots, uint64_t seed) : random_(seed), blocks_(max_slots) {}

PolicyCall RandomCalls::Next() {
  ++calls_;
  PolicyCall::Kind kind;
  std::optional<Slot> slot;
  do {
    kind = AnyKind();
    if (kind == PolicyCall::Kind::kMiss) return Miss();
    slot = AnySlotFor(kind);
  } while (!slot.has_value());

  Block& block = blocks_[*slot];
  switch (kind) {
    case PolicyCall::Kind::kTouch:
      return Hit(*slot);
    case PolicyCall::Kind::kAdmit:
      block.info = AnyInfo(block.info);
      block.state = State::kOrdered;
      break;
    case PolicyCall::Kind::kRemove:
      block.state = State::kUnknown;
      for (Block& other : blocks_) {
        if (other.info.parent == *slot) other.info.parent = kNoSlot;
      }
      break;
    case PolicyCall::Kind::kPark:
      block.state = State::kParked;
      break;
    case PolicyCall::Kind::kUnpark:
      block.state = State::kOrdered;
      break;
    case PolicyCall::Kind::kSetDeadline:
      block.info.deadline = AnyDeadline();
      break;
    case PolicyCall::Kind::kMiss:
      break;
  }
  return {.kind = kind,
          .slots = {*slot},
          .info = block.info,
          .reason = static_cast<RemoveReason>(Below(5))};
}

PolicyCall::Kind RandomCalls::AnyKind() {
  const bool grows = calls_ / 1'000 % 2 == 0;
  const uint64_t die = Below(100);
  if (die < 40) return PolicyCall::Kind::kTouch;
  if (die < 70) return (die < 45) == grows ? PolicyCall::Kind::kRemove : PolicyCall::Kind::kAdmit;
  if (die < 83) return PolicyCall::Kind::kPark;
  if (die < 96) return PolicyCall::Kind::kUnpark;
  return die < 98 ? PolicyCall::Kind::kSetDeadline : PolicyCall::Kind::kMiss;
}

std::optional<Slot> RandomCalls::AnySlotFor(PolicyCall::Kind kind) {
  const size_t first = Below(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Slot slot = static_cast<Slot>((first + i) % blocks_.size());
    const State state = blocks_[slot].state;
    bool legal = state != State::kUnknown;
    if (kind == PolicyCall::Kind::kAdmit) legal = state == State::kUnknown;
    if (kind == PolicyCall::Kind::kPark) legal = state == State::kOrdered;
    if (kind == PolicyCall::Kind::kUnpark) legal = state == State::kParked;
    if (legal) return slot;
  }
  return std::nullopt;
}

std::vector<Slot> RandomCalls::SlotsIn(State state) const {
  std::vector<Slot> slots;
  for (Slot slot = 0; slot < blocks_.size(); ++slot) {
    if (blocks_[slot].state == state) slots.push_back(slot);
  }
  return slots;
}

Nanos RandomCalls::AnyDeadline() {
  return Below(2) == 0 ? kNever : kStart + static_cast<Nanos>(Below(30)) * kSecond;
}

EntryInfo RandomCalls::AnyInfo(const EntryInfo& last_in_slot) {
  EntryInfo info = {.key_hash = Below(2) == 0 ? last_in_slot.key_hash : random_(),
                    .bytes = 4096 * (1 + Below(8)),
                    .chain_blocks = static_cast<uint32_t>(Below(16)),
                    .priority = static_cast<uint16_t>(Below(3)),
                    .recompute_cost = 0.001 * static_cast<double>(Below(10)),
                    .deadline = AnyDeadline()};
  if (const auto parent = AnySlotFor(PolicyCall::Kind::kTouch); parent && Below(4) != 0) {
    info.parent = *parent;
    info.depth = blocks_[*parent].info.depth + 1;
  }
  if (info.chain_blocks != 0) info.chain_blocks = std::max(info.chain_blocks, info.depth + 1);
  return info;
}

PolicyCall RandomCalls::Hit(Slot slot) {
  PolicyCall call = {.kind = PolicyCall::Kind::kTouch};
  const size_t longest = 1 + Below(8);
  for (Slot next = slot; next != kNoSlot && call.slots.size() < longest;
       next = blocks_[next].info.parent) {
    blocks_[next].state = State::kOrdered;
    call.slots.push_back(next);
    call.run.first_depth = blocks_[next].info.depth;
  }
  call.run.chain_blocks = blocks_[slot].info.chain_blocks;
  call.run.now = kStart + static_cast<Nanos>(calls_) * (kSecond / 1'000);
  // A prompt may name a block twice.
  if (Below(8) == 0) call.slots.push_back(slot);
  return call;
}

// Of blocks that were there before, and of others.
PolicyCall RandomCalls::Miss() {
  PolicyCall call = {.kind = PolicyCall::Kind::kMiss};
  const size_t missed = 1 + Below(8);
  for (const Block& block : blocks_) {
    if (call.key_hashes.size() == missed) break;
    if (block.state == State::kUnknown) call.key_hashes.push_back(block.info.key_hash);
  }
  while (call.key_hashes.size() < missed) call.key_hashes.push_back(random_());
  call.run.chain_blocks = static_cast<uint32_t>(missed + Below(2));
  call.run.now = kStart + static_cast<Nanos>(calls_) * (kSecond / 1'000);
  return call;
}

std::vector<Slot> EvictionOrder(EvictionPolicy& policy) {
  const std::vector<Slot> order = Victims(policy, [&](Slot slot) { policy.Park(slot); });
  std::vector<Slot> back = order;
  std::shuffle(back.begin(), back.end(), std::mt19937_64(back.size()));
  for (Slot slot : back) policy.Unpark(slot);
  return order;
}

std::vector<Slot> EvictAll(EvictionPolicy& policy) {
  return Victims(policy, [&](Slot slot) { policy.Remove(slot, RemoveReason::kEvicted); });
}

}  // namespace kvcache
