#include "kvcache/core/table/block_table.h"

#include <algorithm>
#include <utility>

#include "kvcache/core/base/check.h"

namespace kvcache::internal {

BlockTable::BlockTable(size_t capacity_bytes, size_t alignment, size_t max_blocks,
                       bool keeps_checksums, EvictionPolicy& policy)
    : policy_(&policy),
      alignment_(alignment),
      max_blocks_(max_blocks),
      keeps_checksums_(keeps_checksums),
      capacity_(capacity_bytes),
      limit_(capacity_bytes) {
  index_.SetMaxSlots(max_blocks);
  deadlines_.SetMaxSlots(max_blocks);
  policy_->SetLimits(max_blocks, capacity_bytes);
}

NamespaceId BlockTable::AddNamespace(std::string model) {
  namespaces_.emplace_back().model = std::move(model);
  return static_cast<NamespaceId>(namespaces_.size() - 1);
}

// --- Finding

EntryInfo BlockTable::InfoOf(const Block& b, Nanos now) const {
  EntryInfo info = {.key_hash = b.key.Hash64(),
                    .bytes = b.bytes,
                    .parent = b.parent,
                    .depth = b.depth,
                    .recompute_cost = b.recompute_cost,
                    .deadline = ToTime(b.deadline),
                    .now = ToTime(now)};
  if (b.write == Block::kNone) return info;
  const BlockWrite& write = WriteOf(b);
  info.chain_blocks = write.chain_blocks;
  info.priority = write.priority;
  info.keep_priority_for = ToDuration(write.keep_priority_for);
  return info;
}

// --- Priorities

absl::Status BlockTable::AddPriority(uint16_t priority, std::unique_ptr<EvictionPolicy> policy) {
  if (HasPriority(priority)) return absl::OkStatus();
  if (levels_ == nullptr) {
    levels_ = std::make_unique<PriorityLevels>(*policy_, max_blocks_, capacity_);
    policy_ = levels_.get();
  }
  return levels_->AddLevel(priority, std::move(policy));
}

void BlockTable::EndPrioritiesThatAreOver(Nanos now) {
  for (;;) {
    const Slot slot = levels_->NextOver(ToTime(now));
    if (slot == kNoSlot) return;
    levels_->EndPriority(slot, InfoOf(block(slot), now), block(slot).parked);
  }
}

Nanos BlockTable::DeadlineOfParent(const Block& b) const {
  Nanos deadline = kNever;
  Slot above = b.parent;
  for (size_t i = 0; i < kUnfinishedAncestors && above != kNoSlot; ++i) {
    deadline = std::min(deadline, block(above).deadline);
    if (block(above).state != Block::State::kWriting) break;
    above = block(above).parent;
  }
  return deadline;
}

RemoveReason BlockTable::WhyDead(const Block& b) const {
  if (b.epoch != record(b).epoch) return RemoveReason::kErased;
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

void BlockTable::Pin(Slot slot, Nanos now) { pins_.Pin(&block(slot).pin, now); }

void BlockTable::Unpin(Slot slot, Removed* removed) {
  Block& b = block(slot);
  if (!pins_.Unpin(&b.pin)) return;
  if (b.state == Block::State::kRemoved) {
    record(b).usage.bytes_detached -= Charge(b.bytes);
    GiveUpExtent(b, removed);
    FreeSlotIfUnused(slot);
  } else {
    UnparkIfEvictable(slot);
  }
}

void BlockTable::Touch(absl::Span<const Slot> slots, const Run& run) {
  if (levels_ != nullptr) EndPriorities(ToNanos(run.now));
  bool all_known = true;
  for (Slot slot : slots) {
    Block& b = block(slot);
    all_known &= b.admitted;
    if (b.parked) b.parked = false;
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
  if (!b.parked || !Evictable(b)) return;
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

BlockTable::Room BlockTable::ChooseVictims(
    const EntryInfo& incoming, absl::FunctionRef<bool(size_t victims, size_t bytes)> enough) {
  victims_.clear();
  size_t bytes = 0;
  while (!enough(victims_.size(), bytes)) {
    const VictimResult victim = policy_->Victim(incoming);
    if (victim.kind != VictimResult::Kind::kSlot) {
      TakeVictimsBack();
      return victim.kind == VictimResult::Kind::kRefuse ? Room::kRefusedByPolicy
                                                        : Room::kNothingToEvict;
    }
    Block& b = block(victim.slot);
    if (!Evictable(b)) {
      policy_->Park(victim.slot);
      b.parked = true;
      continue;
    }
    if (levels_ != nullptr && levels_->Outranks(victim.slot, incoming)) {
      TakeVictimsBack();
      return Room::kRefusedByPolicy;
    }
    index_.Prefetch(mixer_(b.key.bytes));
    victims_.push_back(victim.slot);
    bytes += Charge(b.bytes);
    b.chosen = true;
    // The last one is removed next.
    if (!enough(victims_.size(), bytes)) {
      policy_->Park(victim.slot);
      b.parked = true;
    }
    if (b.parent != kNoSlot) ChildGone(b.parent);
  }
  return Room::kMade;
}

void BlockTable::TakeVictimsBack() {
  for (auto it = victims_.rbegin(); it != victims_.rend(); ++it) {
    Block& b = block(*it);
    if (b.parent != kNoSlot) ++block(b.parent).children;
    b.chosen = false;
    if (b.parked) policy_->Unpark(*it);
    b.parked = false;
  }
  victims_.clear();
}

void BlockTable::EvictVictims(Removed* removed) {
  for (Slot slot : victims_) Unlink(slot, RemoveReason::kEvicted, removed);
  victims_.clear();
}

bool BlockTable::Fits(size_t charge, size_t victim_bytes, const Removed& removed) const {
  return charged_ + charge <= limit_ + removed.bytes + victim_bytes;
}

void BlockTable::RemoveExpiredFor(size_t bytes, Nanos now, Removed* removed) {
  for (bool more = true; more && !(Fits(Charge(bytes), 0, *removed) && HasSlot());) {
    more = RemoveExpired(1, now, removed);
    RemoveRetired(kBlocksPerLock, removed);  // what still has children holds a slot
  }
}

BlockTable::Room BlockTable::MakeRoom(size_t bytes, Slot parent, const EntryInfo& incoming,
                                      Removed* removed) {
  const size_t charge = Charge(bytes);
  const auto enough = [&](size_t victims, size_t victim_bytes) {
    return Fits(charge, victim_bytes, *removed) && (victims > 0 || HasSlot());
  };
  if (parent != kNoSlot) ++block(parent).children;  // keeps it from being chosen
  const Room room = ChooseVictims(incoming, enough);
  if (parent != kNoSlot) ChildGone(parent);
  if (room != Room::kMade) return room;
  EvictVictims(removed);
  removed->reused = std::min(removed->bytes, charge);
  charged_ += charge - removed->reused;
  peak_ = std::max(peak_, charged_);
  return Room::kMade;
}

size_t BlockTable::EvictOne(size_t max_bytes, const EntryInfo& incoming, Removed* removed) {
  const Room room = ChooseVictims(incoming, [](size_t victims, size_t) { return victims > 0; });
  if (room != Room::kMade) return 0;
  const size_t bytes = Charge(block(victims_.front()).bytes);
  if (bytes > max_bytes) {
    TakeVictimsBack();
    return 0;
  }
  EvictVictims(removed);
  return bytes;
}

bool BlockTable::Shrink(size_t capacity, Nanos now, Removed* removed) {
  const auto enough = [&](size_t, size_t victim_bytes) {
    return charged_ <= capacity + removed->bytes + victim_bytes;
  };
  while (!enough(0, 0) && RemoveExpired(1, now, removed)) {
  }
  EndPriorities(now);
  if (ChooseVictims({}, enough) != Room::kMade) return false;
  EvictVictims(removed);
  limit_ = capacity;
  return true;
}

void BlockTable::SetCapacity(size_t capacity) {
  capacity_ = limit_ = capacity;
  policy_->SetLimits(max_blocks_, capacity);
}

void BlockTable::Freed(const Removed& removed) {
  charged_ -= removed.bytes - removed.reused;
  being_freed_ -= removed.bytes;
}

// --- Slots

Slot BlockTable::TakeSlot() {
  if (free_slot_ != kNoSlot) {
    const Slot slot = free_slot_;
    free_slot_ = block(slot).next_sibling;
    block(slot).next_sibling = kNoSlot;
    return slot;
  }
  KVCACHE_CHECK(slots_ < max_blocks_, "no slot among ", max_blocks_);
  if (slots_ == chunks_.size() * kBlocksPerChunk) {
    chunks_.push_back(std::make_unique<Block[]>(kBlocksPerChunk));
  }
  return static_cast<Slot>(slots_++);
}

void BlockTable::FreeSlotIfUnused(Slot slot) {
  Block& b = block(slot);
  if (b.state != Block::State::kRemoved || b.pinned() || b.retired) return;
  EndWrite(b);
  if (keeps_checksums_ && b.parts > 1) delete[] b.checksums;
  b = Block();
  b.next_sibling = free_slot_;
  free_slot_ = slot;
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
    index_.Erase(mixer_(b.key.bytes), slot);
    if (b.epoch == ns.epoch) {
      --ns.usage.blocks;
      ns.usage.blocks_complete -= b.state == Block::State::kComplete;
    }
  }
  if (b.admitted) policy_->Remove(slot, reason);
  if (deadlines_.Contains(slot)) deadlines_.Remove(slot);
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
    GiveUpExtent(b, removed);
  }
  FreeSlotIfUnused(slot);
}

void BlockTable::GiveUpExtent(Block& b, Removed* removed) {
  const size_t charge = Charge(b.bytes);
  if (b.has_extent) removed->extents.push_back({b.offset, charge, b.extent_node});
  b.has_extent = false;
  b.bytes = 0;
  record(b).usage.bytes_in_use -= charge;
  being_freed_ += charge;
  removed->bytes += charge;
}

void BlockTable::RemoveRetired(size_t steps, Removed* removed) {
  removed->more = false;
  while (retired_ != kNoSlot) {
    const Slot top = retired_;
    Block& b = block(top);
    if (b.first_child == kNoSlot) {
      retired_ = std::exchange(b.next_sibling, kNoSlot);
      b.retired = false;
      FreeSlotIfUnused(top);
      continue;
    }
    if (steps-- == 0) {
      removed->more = true;
      return;
    }
    Unlink(b.first_child, b.reason, removed);
  }
  removed->more = false;
}

size_t BlockTable::StartErase(NamespaceId id) {
  NamespaceRecord& ns = namespaces_[static_cast<size_t>(id)];
  ++ns.epoch;
  ns.usage.blocks_complete = 0;
  return std::exchange(ns.usage.blocks, 0);
}

bool BlockTable::ContinueErase(NamespaceId id, size_t steps, Removed* removed) {
  NamespaceRecord& ns = namespaces_[static_cast<size_t>(id)];
  while (ns.last_root != kNoSlot && block(ns.last_root).epoch != ns.epoch) {
    if (steps-- == 0) return true;
    Unlink(ns.last_root, RemoveReason::kErased, removed);
  }
  return false;
}

Slot BlockTable::NextVisible(Slot first, size_t steps, Nanos now, Slot* next) const {
  for (Slot slot = first; slot < slots_; ++slot) {
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

CacheStats BlockTable::Stats(Nanos now) const {
  CacheStats stats;
  for (size_t id = 0; id < namespaces_.size(); ++id) {
    const NamespaceRecord& ns = namespaces_[id];
    CacheCounters counters = ns.counters;
    counters.compute_saved = absl::Seconds(ns.compute_saved);
    stats.namespaces.push_back({static_cast<uint32_t>(id), ns.model, counters, ns.usage});
    stats.counters += counters;
    stats.usage += ns.usage;
  }
  stats.usage.bytes_in_use = charged_;
  stats.capacity_bytes = capacity_;
  stats.peak_bytes = peak_;
  stats.max_blocks = max_blocks_;
  stats.leases = pins();
  if (pins() > 0) stats.longest_pinned = absl::Nanoseconds(now - pins_.oldest());
  return stats;
}

}  // namespace kvcache::internal
