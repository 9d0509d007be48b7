#include "kvcache/core/table/block_table.h"

#include <algorithm>
#include <utility>

#include "kvcache/core/base/check.h"

namespace kvcache::internal {

BlockTable::BlockTable(size_t capacity_bytes, size_t alignment, size_t max_blocks,
                       bool keeps_checksums, size_t events, EvictionPolicy& policy)
    : policy_(&policy),
      max_blocks_(max_blocks),
      keeps_checksums_(keeps_checksums),
      blocks_(max_blocks),
      writes_(max_blocks),
      pins_(max_blocks),
      events_(events),
      budget_(capacity_bytes, alignment) {
  victims_.reserve(kBlocksPerLock);
  index_.SetMaxSlots(max_blocks);
  deadlines_.SetMaxSlots(max_blocks);
  policy_->SetLimits(max_blocks, capacity_bytes);
}

// --- Memory

void BlockTable::Supplies::Make() {
  if (lacks_blocks) blocks = Blocks::MakeChunk();
  if (lacks_writes) writes = Writes::MakeChunk();
  if (lacks_pins) pins = PinList::Records::MakeChunk();
  if (lacks_namespaces) namespaces = Namespaces::Records::MakeChunk();
}

BlockTable::Supplies BlockTable::Lacking(const Needs& needs) const {
  Supplies supplies;
  supplies.lacks_blocks = blocks_.Lacks(needs.blocks);
  supplies.lacks_writes = writes_.Lacks(needs.blocks);
  supplies.lacks_pins = pins_.records().Lacks(needs.blocks + needs.pins);
  supplies.lacks_namespaces = namespaces_.records().Lacks(needs.namespaces);
  return supplies;
}

void BlockTable::Add(Supplies supplies) {
  if (supplies.blocks != nullptr) blocks_.Add(std::move(supplies.blocks));
  if (supplies.writes != nullptr) writes_.Add(std::move(supplies.writes));
  if (supplies.pins != nullptr) pins_.records().Add(std::move(supplies.pins));
  if (supplies.namespaces != nullptr) namespaces_.records().Add(std::move(supplies.namespaces));
}

// --- Finding

EntryInfo BlockTable::InfoOf(const Block& b, Nanos now) const {
  EntryInfo info = {.key_hash = b.key.Hash64(),
                    .bytes = b.bytes,
                    .parent = b.parent,
                    .depth = b.depth,
                    .recompute_cost = b.recompute_cost,
                    .deadline = b.deadline,
                    .now = now};
  if (b.write == Block::kNone) return info;
  const BlockWrite& write = WriteOf(b);
  info.chain_blocks = write.chain_blocks;
  info.priority = write.priority;
  info.keep_priority_for = write.keep_priority_for;
  return info;
}

// --- Priorities

absl::Status BlockTable::AddPriority(uint16_t priority, std::unique_ptr<EvictionPolicy>* policy,
                                     std::unique_ptr<PriorityLevels>* levels) {
  absl::Status status = CheckPriority(priority);
  if (!status.ok() || HasPriority(priority)) return status;
  if (levels_ == nullptr) {
    levels_ = std::move(*levels);
    policy_ = levels_.get();
  }
  (*policy)->SetLimits(max_blocks_, budget_.capacity());
  levels_->AddLevel(priority, std::move(*policy));
  return absl::OkStatus();
}

void BlockTable::EndPrioritiesThatAreOver(Nanos now) {
  for (;;) {
    const Slot slot = levels_->NextOver(now);
    if (slot == kNoSlot) return;
    levels_->EndPriority(slot, InfoOf(block(slot), now), block(slot).parked);
  }
}

Nanos BlockTable::DeadlineOfParent(const Block& b) const {
  Nanos deadline = kNever;
  if (deadlines_.empty()) return deadline;
  Slot above = b.parent;
  for (size_t i = 0; i < kUnfinishedAncestors && above != kNoSlot; ++i) {
    deadline = std::min(deadline, block(above).deadline);
    if (block(above).state != Block::State::kWriting) break;
    above = block(above).parent;
  }
  return deadline;
}

RemoveReason BlockTable::WhyDead(const Block& b) const {
  if (Erased(b)) return RemoveReason::kErased;
  if (b.parent != kNoSlot && block(b.parent).state == Block::State::kRemoved) {
    return block(b.parent).reason;
  }
  return RemoveReason::kExpired;
}

Slot BlockTable::Find(const BlockKey& key, Nanos now) const { return Live(FindIndexed(key), now); }

Slot BlockTable::FindOrRemove(const BlockKey& key, Nanos now, Removed* removed) {
  return LiveOrRemove(FindIndexed(key), now, removed);
}

void BlockTable::FindAny(absl::Span<const BlockKey> keys, Slot* slots) const {
  if (keys.size() == 1) {
    *slots = FindIndexed(keys[0]);
    return;
  }
  uint64_t hashes[kKeysPerFind];
  for (size_t i = 0; i < keys.size(); ++i) {
    hashes[i] = mixer_(keys[i].bytes);
    index_.Prefetch(hashes[i]);
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    index_.Find(hashes[i], [this](Slot slot) {
      __builtin_prefetch(&block(slot), 1);
      __builtin_prefetch(&block(slot).parts, 1);
      return true;
    });
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    slots[i] = index_.Find(hashes[i], [&](Slot slot) { return block(slot).key == keys[i]; });
  }
}

void BlockTable::RemoveDead(Slot slot, Removed* removed) {
  Unlink(slot, WhyDead(block(slot)), removed);
}

// --- Pins and touches

void BlockTable::Unpinned(Slot slot, Block* b, Removed* removed) {
  if (ABSL_PREDICT_FALSE(b->state == Block::State::kRemoved)) {
    record(*b).usage.bytes_detached -= Charge(b->bytes);
    GiveUpExtent(slot, removed);
    FreeSlotIfUnused(slot, removed);
    return;
  }
  if (b->visible()) loose_bytes_ += Charge(b->bytes);
  if (b->parked) UnparkIfEvictable(slot);
}

void BlockTable::Touch(absl::Span<const Slot> slots, const Run& run) {
  if (levels_ != nullptr) EndPriorities(run.now);
  bool all_known = true;
  for (Slot slot : slots) {
    Block& b = block(slot);
    all_known &= b.admitted;
    if (!b.parked) continue;
    b.parked = false;
    if (b.chosen) {  // by a caller that goes step by step, and will pass it over
      b.chosen = false;
      if (b.parent != kNoSlot) ++block(b.parent).children;
    }
  }
  if (all_known) return policy_->Touch(slots, run);
  absl::InlinedVector<Slot, kBlocksPerLock> admitted;
  for (Slot slot : slots) {
    if (block(slot).admitted) admitted.push_back(slot);
  }
  if (!admitted.empty()) policy_->Touch(admitted, run);
}

void BlockTable::UnparkIfEvictable(Slot slot) {
  Block& b = block(slot);
  if (!b.parked || b.chosen || !Evictable(b)) return;
  b.parked = false;
  policy_->Unpark(slot);
}

// --- The tree

void BlockTable::LinkSibling(Slot slot) {
  Block& b = block(slot);
  NamespaceRecord& ns = record(b);
  Slot& first = b.parent == kNoSlot ? ns.first_root : block(b.parent).first_child;
  b.next_sibling = first;
  if (first != kNoSlot) {
    block(first).previous_sibling = slot;
  } else if (b.parent == kNoSlot) {
    ns.last_root = slot;
  }
  first = slot;
  if (b.parent != kNoSlot) ++block(b.parent).children;
}

void BlockTable::UnlinkSibling(Slot slot) {
  Block& b = block(slot);
  NamespaceRecord& ns = record(b);
  Slot& first = b.parent == kNoSlot ? ns.first_root : block(b.parent).first_child;
  (b.previous_sibling == kNoSlot ? first : block(b.previous_sibling).next_sibling) = b.next_sibling;
  if (b.next_sibling != kNoSlot) {
    block(b.next_sibling).previous_sibling = b.previous_sibling;
  } else if (b.parent == kNoSlot) {
    ns.last_root = b.previous_sibling;
  }
  if (b.parent != kNoSlot && !b.chosen) ChildGone(b.parent);
  b.parent = b.previous_sibling = b.next_sibling = kNoSlot;
}

void BlockTable::ChildGone(Slot parent) {
  --block(parent).children;
  UnparkIfEvictable(parent);
}

// --- Room

BlockTable::Step BlockTable::ChooseOne(const EntryInfo& incoming, Slot* slot) {
  const VictimResult victim = policy_->Victim(incoming);
  if (victim.kind == VictimResult::Kind::kNone) return Step::kNothingToEvict;
  if (victim.kind == VictimResult::Kind::kRefuse) return Step::kRefusedByPolicy;
  Block& b = block(victim.slot);
  if (!Evictable(b)) {
    policy_->Park(victim.slot);
    b.parked = true;
    return Step::kParked;
  }
  if (levels_ != nullptr && levels_->Outranks(victim.slot, incoming)) return Step::kRefusedByPolicy;
  b.chosen = true;
  *slot = victim.slot;
  return Step::kChosen;
}

void BlockTable::ParkChosen(Slot slot) {
  policy_->Park(slot);
  block(slot).parked = true;
}

BlockTable::Room BlockTable::ChooseVictims(
    const EntryInfo& incoming, absl::FunctionRef<bool(size_t victims, size_t bytes)> enough) {
  victims_.clear();
  size_t bytes = 0;
  Room room = Room::kMade;
  for (size_t steps = 0; room == Room::kMade && !enough(victims_.size(), bytes); ++steps) {
    Slot victim = kNoSlot;
    const Step step = steps < kBlocksPerLock ? ChooseOne(incoming, &victim) : Step::kParked;
    if (step == Step::kChosen) {
      const Block& b = block(victim);
      index_.Prefetch(mixer_(b.key.bytes));
      victims_.push_back(victim);
      bytes += Charge(b.bytes);
      // The last one is removed next.
      if (!enough(victims_.size(), bytes)) ParkChosen(victim);
      if (b.parent != kNoSlot) ChildGone(b.parent);
    } else if (steps == kBlocksPerLock) {
      room = Room::kStepByStep;
    } else if (step != Step::kParked) {
      room = step == Step::kRefusedByPolicy ? Room::kRefusedByPolicy : Room::kNothingToEvict;
    }
  }
  if (room != Room::kMade) TakeVictimsBack();
  return room;
}

void BlockTable::TakeBack(Slot slot) {
  Block& b = block(slot);
  if (!b.chosen) return;
  if (b.parent != kNoSlot) ++block(b.parent).children;
  b.chosen = false;
  UnparkIfEvictable(slot);
}

void BlockTable::TakeVictimsBack() {
  for (auto it = victims_.rbegin(); it != victims_.rend(); ++it) TakeBack(*it);
  victims_.clear();
}

void BlockTable::EvictVictims(Removed* removed) {
  for (Slot slot : victims_) Unlink(slot, RemoveReason::kEvicted, removed);
  victims_.clear();
}

bool BlockTable::RemoveExpiredFor(size_t bytes, Nanos now, Removed* removed) {
  for (size_t steps = 0; !(budget_.Fits(Charge(bytes), *removed, 0) && HasSlot()); ++steps) {
    if (steps == kBlocksPerLock) return false;
    if (HasExpired(now)) {
      RemoveExpired(1, now, removed);
    } else if (retired_ != kNoSlot) {  // holds a slot until its children are gone
      RemoveRetired(1, removed);
    } else {
      break;
    }
  }
  return true;
}

BlockTable::Room BlockTable::MakeRoom(size_t bytes, Slot parent, const EntryInfo& incoming,
                                      size_t credit, Removed* removed) {
  const size_t charge = Charge(bytes) - std::min(Charge(bytes), credit);
  if (!budget_.Fits(charge, *removed, loose_bytes_)) return Room::kNothingToEvict;
  const auto enough = [&](size_t victims, size_t victim_bytes) {
    return budget_.Fits(charge, *removed, victim_bytes) && (victims > 0 || HasSlot());
  };
  if (parent != kNoSlot) ++block(parent).children;  // keeps it from being chosen
  const Room room = ChooseVictims(incoming, enough);
  if (parent != kNoSlot) ChildGone(parent);
  if (room != Room::kMade) return room;
  EvictVictims(removed);
  budget_.Take(charge, removed);
  return Room::kMade;
}

size_t BlockTable::PeekVictims(absl::Span<Slot> slots) {
  size_t found = 0;
  victims_.clear();
  for (size_t steps = 0; found < slots.size() && steps < kBlocksPerLock; ++steps) {
    Slot victim = kNoSlot;
    const Step step = ChooseOne({}, &victim);
    if (step == Step::kParked) continue;
    if (step != Step::kChosen) break;
    ParkChosen(victim);
    victims_.push_back(victim);
    const Block& b = block(victim);
    if (!b.copied) slots[found++] = victim;
    if (b.parent != kNoSlot) ChildGone(b.parent);
  }
  TakeVictimsBack();
  return found;
}

void BlockTable::ReserveVictims(std::vector<Slot>* victims) {
  const size_t needed = victims->size() + kBlocksPerLock;
  if (victims->capacity() < needed) victims->reserve(needed + victims->size());
}

BlockTable::Room BlockTable::ChooseMore(const EntryInfo& incoming, Slot parent, size_t bytes,
                                        std::vector<Slot>* victims, size_t* chosen) {
  Room room = Room::kMade;
  if (parent != kNoSlot) ++block(parent).children;  // keeps it from being chosen
  for (size_t steps = 0; *chosen < bytes && room == Room::kMade; ++steps) {
    Slot victim = kNoSlot;
    const Step step = steps < kBlocksPerLock ? ChooseOne(incoming, &victim) : Step::kParked;
    if (step == Step::kChosen) {
      ParkChosen(victim);
      victims->push_back(victim);
      const Block& b = block(victim);
      *chosen += Charge(b.bytes);
      if (b.parent != kNoSlot) ChildGone(b.parent);
    } else if (steps == kBlocksPerLock) {
      room = Room::kStepByStep;
    } else if (step != Step::kParked) {
      room = step == Step::kRefusedByPolicy ? Room::kRefusedByPolicy : Room::kNothingToEvict;
    }
  }
  if (parent != kNoSlot) ChildGone(parent);
  return room;
}

size_t BlockTable::EvictChosen(absl::Span<const Slot>* victims, Removed* removed) {
  size_t bytes = 0;
  for (size_t steps = 0; !victims->empty() && steps < kBlocksPerLock && !removed->full(); ++steps) {
    const Slot slot = victims->front();
    if (block(slot).chosen && Evictable(block(slot))) {
      bytes += Charge(block(slot).bytes);
      Unlink(slot, RemoveReason::kEvicted, removed);
    } else {
      TakeBack(slot);
    }
    victims->remove_prefix(1);
  }
  return bytes;
}

void BlockTable::TakeBackChosen(absl::Span<const Slot>* victims) {
  for (size_t steps = 0; !victims->empty() && steps < kBlocksPerLock; ++steps) {
    TakeBack(victims->back());
    victims->remove_suffix(1);
  }
}

size_t BlockTable::PeekVictims(const EntryInfo& incoming, absl::Span<Extent> extents, Room* room) {
  victims_.clear();
  Step step = Step::kParked;
  for (size_t steps = 0; steps < kBlocksPerLock && victims_.size() < extents.size(); ++steps) {
    Slot victim = kNoSlot;
    step = ChooseOne(incoming, &victim);
    if (step == Step::kParked) continue;
    if (step != Step::kChosen) break;
    ParkChosen(victim);
    extents[victims_.size()] = ExtentOf(block(victim));
    victims_.push_back(victim);
    if (block(victim).parent != kNoSlot) ChildGone(block(victim).parent);
  }
  const size_t found = victims_.size();
  *room = found == 0 && step == Step::kRefusedByPolicy ? Room::kRefusedByPolicy : Room::kMade;
  TakeVictimsBack();
  return found;
}

size_t BlockTable::CostOf(Slot top, const EntryInfo& incoming, size_t* steps) const {
  size_t bytes = 0;
  Slot slot = top;
  for (;;) {
    if (*steps == 0 || !MayGo(slot, incoming)) return kCannotGo;
    --*steps;
    bytes += Charge(block(slot).bytes);
    if (block(slot).first_child != kNoSlot) {
      slot = block(slot).first_child;
      continue;
    }
    while (slot != top && block(slot).next_sibling == kNoSlot) slot = block(slot).parent;
    if (slot == top) return bytes;
    slot = block(slot).next_sibling;
  }
}

// In between two calls anything may happen to the block at *at, which is then a wrong one: so it is
// asked what every victim is asked.
TreeChoice BlockTable::ChooseTree(Slot top, const EntryInfo& incoming, Slot* at, size_t* steps,
                                  std::vector<bool>* dead_ends, std::vector<Slot>* victims) {
  for (; *steps > 0; --*steps) {
    const Slot slot = *at;
    if (slot == kNoSlot || !MayGo(slot, incoming)) return TreeChoice::kCannotGo;
    Block& b = block(slot);
    if (b.children > 0) {
      if (dead_ends != nullptr) {
        if ((*dead_ends)[slot]) return TreeChoice::kCannotGo;
        (*dead_ends)[slot] = true;  // until all below it are chosen
      }
      *at = b.first_child;
      continue;
    }
    if (!b.chosen) {
      if (!b.parked) ParkChosen(slot);
      b.chosen = true;
      victims->push_back(slot);
      if (b.parent != kNoSlot) ChildGone(b.parent);
    }
    if (dead_ends != nullptr) (*dead_ends)[slot] = false;
    if (slot == top) return TreeChoice::kChosen;
    *at = b.next_sibling != kNoSlot ? b.next_sibling : b.parent;
  }
  return TreeChoice::kStepByStep;
}

void BlockTable::SetCapacity(size_t capacity) {
  budget_.SetCapacity(capacity);
  policy_->SetLimits(max_blocks_, capacity);
}

// --- Slots

void BlockTable::FreeSlotIfUnused(Slot slot, Removed* removed) {
  Block& b = block(slot);
  if (b.state != Block::State::kRemoved || b.pinned() || b.retired) return;
  EndWrite(b, removed);
  if (keeps_checksums_ && b.parts > 1) removed->Keep(b.checksums);
  namespaces_.RemoveSlot(b.ns);
  b = Block();
  blocks_.Give(slot);
}

// --- Removing

void BlockTable::CountRemoval(const Block& b, RemoveReason reason) {
  CacheCounters& counters = record(b).counters;
  const bool was_visible = b.admitted;
  if (reason == RemoveReason::kCorrupted) {
    ++counters.corrupted;
    return;
  }
  if (!was_visible || reason == RemoveReason::kAborted) {
    ++counters.failed_writes;
    return;
  }
  switch (reason) {
    case RemoveReason::kEvicted:
      ++counters.evictions;
      counters.evicted_before_reuse += !b.reused;
      counters.evicted_before_copied += !b.copied;
      break;
    case RemoveReason::kErased:
      ++counters.erased;
      break;
    case RemoveReason::kExpired:
      ++counters.expirations;
      break;
    case RemoveReason::kReplaced:
      ++counters.replaced;
      break;
    case RemoveReason::kCorrupted:
    case RemoveReason::kAborted:
    case RemoveReason::kOtherPriority:
      break;
  }
}

void BlockTable::Unlink(Slot slot, RemoveReason reason, Removed* removed) {
  Block& b = block(slot);
  KVCACHE_CHECK(b.state != Block::State::kFree && b.state != Block::State::kRemoved, "slot ", slot,
                " is not in the table");
  NamespaceRecord& ns = record(b);
  const bool was_refused = !b.has_extent;
  if (!was_refused) CountRemoval(b, reason);
  if (b.indexed) {
    if (events_.keeps_any() && b.state == Block::State::kComplete) {
      events_.Add({.kind = BlockEvent::Kind::kRemoved,
                   .reason = reason,
                   .key = b.key,
                   .ns = namespaces_.IdOf(b.ns),
                   .bytes = b.bytes});
    }
    index_.Erase(mixer_(b.key.bytes), slot);
    if (!Erased(b)) {
      --ns.usage.blocks;
      ns.usage.blocks_complete -= b.state == Block::State::kComplete;
    }
  }
  if (b.admitted) policy_->Remove(slot, reason);
  if (deadlines_.Contains(slot)) deadlines_.Remove(slot);
  if (b.visible() && !b.pinned()) loose_bytes_ -= Charge(b.bytes);
  UnlinkSibling(slot);
  b.indexed = b.admitted = b.parked = b.chosen = false;
  b.state = Block::State::kRemoved;
  b.reason = reason;
  if (b.first_child != kNoSlot) {
    b.retired = true;
    b.next_sibling = retired_;
    retired_ = slot;
    removed->more = true;
  }
  if (b.pinned()) {
    ns.usage.bytes_detached += Charge(b.bytes);
  } else {
    GiveUpExtent(slot, removed);
  }
  FreeSlotIfUnused(slot, removed);
}

void BlockTable::GiveUpExtent(Slot slot, Removed* removed) {
  Block& b = block(slot);
  const size_t charge = Charge(b.bytes);
  if (b.has_extent) removed->Add({b.offset, charge, b.extent_node}, slot);
  b.has_extent = false;
  b.bytes = 0;
  record(b).usage.bytes_in_use -= charge;
  budget_.Remove(charge, removed);
}

void BlockTable::RemoveRetired(size_t steps, Removed* removed) {
  for (; retired_ != kNoSlot && steps > 0 && !removed->full(); --steps) {
    const Slot top = retired_;
    Block& b = block(top);
    if (b.first_child != kNoSlot) {
      Unlink(b.first_child, b.reason, removed);
      continue;
    }
    retired_ = std::exchange(b.next_sibling, kNoSlot);
    b.retired = false;
    FreeSlotIfUnused(top, removed);
  }
  removed->more = retired_ != kNoSlot;
}

size_t BlockTable::StartErase(NamespaceId ns) {
  return namespaces_.Erase(namespaces_[Namespaces::NumberOf(ns)]);
}

bool BlockTable::ContinueErase(uint32_t ns, size_t steps, Removed* removed) {
  const NamespaceRecord& record = namespaces_[ns];
  while (record.last_root != kNoSlot && Erased(block(record.last_root))) {
    if (steps-- == 0) return true;
    Unlink(record.last_root, RemoveReason::kErased, removed);
  }
  return false;
}

Slot BlockTable::NextVisible(Slot first, size_t steps, Nanos now, Slot* next) const {
  for (Slot slot = first; slot < blocks_.used(); ++slot) {
    if (steps-- == 0) {
      *next = slot;
      return kNoSlot;
    }
    if (block(slot).visible() && Lives(block(slot), now)) {
      *next = slot + 1;
      return slot;
    }
  }
  *next = kNoSlot;
  return kNoSlot;
}

bool BlockTable::RemoveExpired(size_t steps, Nanos now, Removed* removed) {
  while (HasExpired(now)) {
    if (steps-- == 0) return true;
    Unlink(deadlines_.top(), RemoveReason::kExpired, removed);
  }
  return false;
}

CacheStats BlockTable::Stats(Nanos now, std::vector<NamespaceStats> namespaces) const {
  CacheStats stats;
  stats.namespaces = std::move(namespaces);
  stats.counters = namespaces_.departed();
  stats.usage.bytes_in_use = budget_.charged();
  stats.capacity_bytes = budget_.capacity();
  stats.peak_bytes = budget_.peak();
  stats.max_blocks = max_blocks_;
  stats.leases = pins();
  if (pins() > 0) stats.longest_pinned = absl::Nanoseconds(now - pins_.oldest());
  return stats;
}

}  // namespace kvcache::internal
