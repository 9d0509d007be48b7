// The part of BlockTable that follows a block from its reservation to the moment it is visible.
#include <algorithm>
#include <utility>

#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache::internal {

BlockTable::PartMemory::PartMemory(uint32_t parts, bool keeps_checksums) {
  if (keeps_checksums && parts > 1) checksums = std::make_unique<uint64_t[]>(parts);
  const size_t words = 3 * PartSet::WordsBeyond(parts);
  if (words > 0) sets = std::make_unique<uint64_t[]>(words);
}

Slot BlockTable::Insert(const BlockKey& key, BlockSize size, NamespaceId ns_id,
                        const EntryInfo& incoming, Nanos ttl, bool replacement, PartMemory memory,
                        Removed* removed) {
  Block* taken;
  const Slot slot = blocks_.Take(&taken);
  Block& b = *taken;
  b.key = key;
  b.bytes = size.bytes;
  b.parts = static_cast<uint16_t>(size.parts);
  b.recompute_cost = incoming.recompute_cost;
  b.parent = incoming.parent;
  b.depth = incoming.depth;
  b.ns = Namespaces::NumberOf(ns_id);
  NamespaceRecord& ns = record(b);
  namespaces_.AddSlot(b.ns);
  b.epoch = namespaces_.EpochOf(ns);
  b.state = Block::State::kWriting;
  if (keeps_checksums_ && b.parts > 1) b.checksums = memory.checksums.release();
  b.write = writes_.Take();
  BlockWrite& write = writes_[b.write];
  write = BlockWrite();
  write.ttl = ttl;
  write.keep_priority_for = incoming.keep_priority_for;
  write.chain_blocks = incoming.chain_blocks;
  write.priority = incoming.priority;
  write.sets = memory.sets.release();
  const size_t beyond = PartSet::WordsBeyond(size.parts);
  write.claimed.Reset(size.parts, write.sets);
  write.committed.Reset(size.parts, write.sets + beyond);
  write.failed.Reset(size.parts, write.sets + 2 * beyond);
  const size_t charge = Charge(b.bytes);
  ns.usage.bytes_in_use += charge;
  LinkSibling(slot);
  if (!replacement) {
    b.indexed = true;
    index_.Insert(mixer_(b.key.bytes), slot);
    namespaces_.CountBlock(ns);
  }
  Pin(&b, incoming.now);
  Slot before = slot;
  if (Extent extent; removed->TakeOfSize(charge, &extent, &before)) {
    SetExtent(&b, extent);
    budget_.TakeOver(charge, removed);
  }
  removed->moved = before != slot;
  return slot;
}

void BlockTable::EndWrite(Block& b, Removed* removed) {
  if (b.write == Block::kNone) return;
  removed->Keep(std::exchange(WriteOf(b).sets, nullptr));
  writes_.Give(std::exchange(b.write, Block::kNone));
}

void BlockTable::Resume(Slot slot, Nanos ttl, Nanos now) {
  Block& b = block(slot);
  KVCACHE_CHECK(b.state == Block::State::kPartial, "slot ", slot, " is not partial");
  if (!b.pinned()) loose_bytes_ -= Charge(b.bytes);
  b.state = Block::State::kWriting;
  WriteOf(b).ttl = ttl;
  WriteOf(b).leased = true;
  WriteOf(b).progress = false;
  WriteOf(b).failed.Clear(b.parts);
  b.early_below = b.first_child != kNoSlot;  // may get an earlier deadline than it had
  // What was written but not committed counts for nothing now.
  for (uint32_t part = 0; keeps_checksums_ && part < b.parts; ++part) {
    if (!WriteOf(b).claimed.Has(part)) ChecksumsOf(b)[part] = 0;
  }
  Pin(slot, now);
}

namespace {

absl::Status Gone() {
  return Error(absl::StatusCode::kAborted,
               "the block was erased or expired, or lost its parent, while it was being written");
}

}  // namespace

absl::Status BlockTable::CheckWriting(Slot slot, Nanos now, Removed* removed) {
  Block& b = block(slot);
  if (b.state == Block::State::kWriting && !Lives(b, now)) Unlink(slot, WhyDead(b), removed);
  if (b.state != Block::State::kRemoved) return absl::OkStatus();
  return Gone();
}

absl::Status BlockTable::ClaimPart(Slot slot, uint32_t part, Nanos now, Removed* removed) {
  Block& b = block(slot);
  if (part >= b.parts) {
    return Error(absl::StatusCode::kInvalidArgument, "part ", part, " of a block with ", b.parts,
                 " parts");
  }
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  if (b.state != Block::State::kWriting || WriteOf(b).claimed.Has(part)) {
    return Error(absl::StatusCode::kFailedPrecondition, "part ", part,
                 " was committed, or given to CommitAfter(), before");
  }
  WriteOf(b).claimed.Add(part);
  WriteOf(b).failed.Remove(part);
  return absl::OkStatus();
}

bool BlockTable::Committed(Slot slot, uint32_t part) const {
  const Block& b = block(slot);
  return b.state == Block::State::kComplete ||
         (b.write != Block::kNone && WriteOf(b).committed.Has(part));
}

bool BlockTable::Claimed(Slot slot, uint32_t part) const {
  const Block& b = block(slot);
  return b.state == Block::State::kComplete ||
         (b.write != Block::kNone && WriteOf(b).claimed.Has(part));
}

void BlockTable::AwaitCopy(Slot slot) {
  if (block(slot).state == Block::State::kWriting) ++WriteOf(block(slot)).copies;
}

void BlockTable::EndCopy(Slot slot, Nanos now, Removed* removed) {
  Block& b = block(slot);
  if (!CheckWriting(slot, now, removed).ok() || b.state != Block::State::kWriting) return;
  --WriteOf(b).copies;
  Settle(slot, now, removed);
}

void BlockTable::FinishCopy(Slot slot, uint32_t part, bool succeeded, Nanos now, Removed* removed) {
  if (block(slot).state == Block::State::kWriting) --WriteOf(block(slot)).copies;
  FinishPart(slot, part, succeeded, now, removed).IgnoreError();  // nobody is left to hear of it
}

absl::Status BlockTable::FinishPart(Slot slot, uint32_t part, bool succeeded, Nanos now,
                                    Removed* removed) {
  Block& b = block(slot);
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  BlockWrite& write = WriteOf(b);
  if (succeeded) {
    CommitOne(b, part);
  } else if (write.keep) {
    write.claimed.Remove(part);
    write.failed.Add(part);
    if (keeps_checksums_) ChecksumsOf(b)[part] = 0;
    ++record(b).counters.failed_writes;
  } else {
    Unlink(slot, RemoveReason::kAborted, removed);
    return absl::OkStatus();
  }
  Settle(slot, now, removed);
  return succeeded && b.state == Block::State::kRemoved ? Gone() : absl::OkStatus();
}

void BlockTable::CommitOne(Block& b, uint32_t part) {
  BlockWrite& write = WriteOf(b);
  write.committed.Add(part);
  ++write.committed_parts;
  write.progress = true;
  record(b).counters.bytes_written += b.part_bytes();
}

absl::Status BlockTable::CommitRest(Slot slot, Nanos now, Removed* removed) {
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  Block& b = block(slot);
  if (b.state != Block::State::kWriting) return absl::OkStatus();
  BlockWrite& write = WriteOf(b);
  absl::Status status;
  for (uint32_t part = 0; part < b.parts; ++part) {
    if (write.claimed.Has(part)) continue;
    if (write.failed.Has(part)) {
      status = Error(absl::StatusCode::kAborted, "the copy into part ", part, " failed");
      continue;
    }
    write.claimed.Add(part);
    CommitOne(b, part);
  }
  write.leased = false;
  Settle(slot, now, removed);
  return status.ok() && b.state == Block::State::kRemoved ? Gone() : status;
}

absl::Status BlockTable::Suspend(Slot slot, Nanos now, Removed* removed) {
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  Block& b = block(slot);
  if (b.state != Block::State::kWriting) return absl::OkStatus();
  WriteOf(b).leased = false;
  WriteOf(b).keep = true;
  Settle(slot, now, removed);
  return absl::OkStatus();
}

void BlockTable::Abort(Slot slot, Nanos now, Removed* removed) {
  Block& b = block(slot);
  if (!CheckWriting(slot, now, removed).ok() || b.state != Block::State::kWriting) return;
  if (!WriteOf(b).keep) return Unlink(slot, RemoveReason::kAborted, removed);
  ++record(b).counters.failed_writes;
  WriteOf(b).leased = false;
  Settle(slot, now, removed);
}

void BlockTable::Settle(Slot slot, Nanos now, Removed* removed) {
  const Block& b = block(slot);
  const BlockWrite& write = WriteOf(b);
  if (write.committed_parts == b.parts) {
    MakeVisible(slot, Block::State::kComplete, now, removed);
  } else if (!write.leased && write.copies == 0) {
    if (write.keep && write.committed_parts > 0) {
      MakeVisible(slot, Block::State::kPartial, now, removed);
    } else {
      Unlink(slot, RemoveReason::kAborted, removed);
    }
  }
}

void BlockTable::MakeVisible(Slot slot, Block::State state, Nanos now, Removed* removed) {
  Block& b = block(slot);
  NamespaceRecord& ns = record(b);
  if (!b.indexed) {
    const Slot old = FindIndexed(b.key);
    if (old != kNoSlot) Unlink(old, RemoveReason::kReplaced, removed);
    b.indexed = true;
    index_.Insert(mixer_(b.key.bytes), slot);
    namespaces_.CountBlock(ns);
  }
  const Nanos own = WriteOf(b).progress ? Later(now, WriteOf(b).ttl) : b.deadline;
  SetDeadline(slot, std::min(own, DeadlineOfParent(b)));
  if (!ClipDescendants(slot)) return Unlink(slot, RemoveReason::kAborted, removed);
  NoteEarly(b);
  b.state = state;
  if (!b.pinned()) loose_bytes_ += Charge(b.bytes);
  if (!b.admitted) {
    EndPriorities(now);
    policy_->Admit(slot, InfoOf(b, now));
    b.admitted = true;
  }
  if (state == Block::State::kComplete) {
    EndWrite(b, removed);
    ++ns.usage.blocks_complete;
    ++ns.counters.blocks_written;
    if (!events_.keeps_any()) return;
    BlockEvent event = {.key = b.key, .ns = namespaces_.IdOf(b.ns), .bytes = b.bytes};
    event.has_parent = b.parent != kNoSlot;
    if (event.has_parent) event.parent = block(b.parent).key;
    events_.Add(event);
  }
}

void BlockTable::SetDeadline(Slot slot, Nanos deadline) {
  Block& b = block(slot);
  b.deadline = deadline;
  if (deadlines_.Contains(slot)) deadlines_.Remove(slot);
  if (deadline != kNever) deadlines_.Push(slot, deadline);
  if (b.admitted) policy_->SetDeadline(slot, deadline);
}

void BlockTable::Extend(Slot slot, Nanos deadline) {
  const Block& b = block(slot);
  deadline = std::min(deadline, DeadlineOfParent(b));
  if (deadline > b.deadline) SetDeadline(slot, deadline);
}

void BlockTable::NoteEarly(const Block& b) {
  Slot above = b.parent;
  for (size_t i = 0; i < kUnfinishedAncestors && above != kNoSlot; ++i) {
    Block& ancestor = block(above);
    if (ancestor.state != Block::State::kWriting) return;
    ancestor.early_below = true;
    above = ancestor.parent;
  }
}

// Below a visible block that expires soon enough, and below one that nobody was earlier than,
// everything is as it should be.
bool BlockTable::ClipDescendants(Slot top) {
  const Nanos limit = block(top).deadline;
  if (!block(top).early_below) return true;
  block(top).early_below = false;
  if (limit == kNever) return true;
  Slot slot = block(top).first_child;
  for (size_t visits = 0; slot != kNoSlot; ++visits) {
    if (visits == kMostClipped) return false;
    const Block& b = block(slot);
    const bool too_late = b.visible() && b.deadline > limit;
    if (too_late) SetDeadline(slot, limit);
    if ((too_late || (!b.visible() && b.early_below)) && b.first_child != kNoSlot) {
      slot = b.first_child;
      continue;
    }
    while (slot != top && block(slot).next_sibling == kNoSlot) slot = block(slot).parent;
    if (slot == top) return true;
    slot = block(slot).next_sibling;
  }
  return true;
}

}  // namespace kvcache::internal
