// The part of BlockTable that follows a block from its reservation to the moment it is visible.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/core/block_table.h"
#include "kvcache/core/check.h"

namespace kvcache::internal {

Slot BlockTable::Insert(const BlockKey& key, BlockSize size, const PutOptions& options, Slot parent,
                        absl::Duration ttl, bool replacement, absl::Time now) {
  const Slot slot = TakeSlot();
  Block& b = block(slot);
  b.key = key;
  b.bytes = size.bytes;
  b.parts = static_cast<uint16_t>(size.parts);
  b.recompute_cost = absl::ToDoubleSeconds(options.recompute_cost);
  b.parent = parent;
  b.depth = parent == kNoSlot ? 0 : block(parent).depth + 1;
  b.chain_blocks = options.chain_blocks;
  b.priority = options.priority;
  b.ns = options.ns;
  NamespaceRecord& ns = record(b);
  b.epoch = ns.epoch;
  b.state = Block::State::kWriting;
  b.write = std::make_unique<BlockWrite>();
  b.write->ttl = ttl;
  b.write->claimed.resize(size.parts);
  b.write->committed.resize(size.parts);
  b.write->replacement = replacement;
  ns.usage.bytes_in_use += Charge(b.bytes);
  LinkSibling(slot);
  if (!replacement) {
    b.indexed = true;
    index_.insert(slot);
    ++ns.usage.blocks;
  }
  Pin(slot, now);
  return slot;
}

void BlockTable::Resume(Slot slot, absl::Duration ttl, absl::Time now) {
  Block& b = block(slot);
  KVCACHE_CHECK(b.state == Block::State::kPartial, "slot ", slot, " is not partial");
  b.state = Block::State::kWriting;
  b.write->ttl = ttl;
  b.write->leased = true;
  SetDeadline(slot, absl::InfiniteFuture());
  Pin(slot, now);
}

absl::Status BlockTable::CheckWriting(Slot slot, absl::Time now, Removed* removed) {
  Block& b = block(slot);
  if (b.state == Block::State::kWriting && !Lives(b, now)) Unlink(slot, WhyDead(b), removed);
  if (b.state != Block::State::kRemoved) return absl::OkStatus();
  return absl::AbortedError(
      "the block was erased or expired, or lost its parent, while it was being written");
}

absl::Status BlockTable::ClaimPart(Slot slot, uint32_t part, absl::Time now, Removed* removed) {
  Block& b = block(slot);
  if (part >= b.parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("part ", part, " of a block with ", b.parts, " parts"));
  }
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  if (b.state != Block::State::kWriting || b.write->claimed[part]) {
    return absl::FailedPreconditionError(
        absl::StrCat("part ", part, " was committed, or given to CommitAfter(), before"));
  }
  b.write->claimed[part] = true;
  return absl::OkStatus();
}

bool BlockTable::Committed(Slot slot, uint32_t part) const {
  const Block& b = block(slot);
  return b.state == Block::State::kComplete || (b.write != nullptr && b.write->committed[part]);
}

bool BlockTable::Claimed(Slot slot, uint32_t part) const {
  const Block& b = block(slot);
  return b.state == Block::State::kComplete || (b.write != nullptr && b.write->claimed[part]);
}

void BlockTable::AwaitCopy(Slot slot) {
  if (block(slot).state == Block::State::kWriting) ++block(slot).write->copies;
}

void BlockTable::EndCopy(Slot slot, absl::Time now, Removed* removed) {
  Block& b = block(slot);
  if (!CheckWriting(slot, now, removed).ok() || b.state != Block::State::kWriting) return;
  --b.write->copies;
  Settle(slot, now, removed);
}

void BlockTable::FinishCopy(Slot slot, uint32_t part, bool succeeded, absl::Time now,
                            Removed* removed) {
  if (block(slot).state == Block::State::kWriting) --block(slot).write->copies;
  FinishPart(slot, part, succeeded, now, removed);
}

void BlockTable::FinishPart(Slot slot, uint32_t part, bool succeeded, absl::Time now,
                            Removed* removed) {
  Block& b = block(slot);
  if (!CheckWriting(slot, now, removed).ok()) return;
  BlockWrite& write = *b.write;
  if (succeeded) {
    write.committed[part] = true;
    ++write.committed_parts;
    record(b).counters.bytes_written += b.part_bytes();
  } else if (write.keep) {
    write.claimed[part] = false;
    ++record(b).counters.failed_writes;
  } else {
    Unlink(slot, RemoveReason::kAborted, removed);
    return;
  }
  Settle(slot, now, removed);
}

absl::Status BlockTable::CommitRest(Slot slot, absl::Time now, Removed* removed) {
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  Block& b = block(slot);
  if (b.state != Block::State::kWriting) return absl::OkStatus();
  BlockWrite& write = *b.write;
  for (uint32_t part = 0; part < b.parts; ++part) {
    if (write.claimed[part]) continue;
    write.claimed[part] = write.committed[part] = true;
    ++write.committed_parts;
    record(b).counters.bytes_written += b.part_bytes();
  }
  write.leased = false;
  Settle(slot, now, removed);
  return absl::OkStatus();
}

absl::Status BlockTable::Suspend(Slot slot, absl::Time now, Removed* removed) {
  if (absl::Status status = CheckWriting(slot, now, removed); !status.ok()) return status;
  Block& b = block(slot);
  if (b.state != Block::State::kWriting) return absl::OkStatus();
  b.write->leased = false;
  b.write->keep = true;
  Settle(slot, now, removed);
  return absl::OkStatus();
}

void BlockTable::Abort(Slot slot, absl::Time now, Removed* removed) {
  Block& b = block(slot);
  if (!CheckWriting(slot, now, removed).ok() || b.state != Block::State::kWriting) return;
  if (!b.write->keep) return Unlink(slot, RemoveReason::kAborted, removed);
  ++record(b).counters.failed_writes;
  b.write->leased = false;
  Settle(slot, now, removed);
}

void BlockTable::Settle(Slot slot, absl::Time now, Removed* removed) {
  const Block& b = block(slot);
  const BlockWrite& write = *b.write;
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

void BlockTable::MakeVisible(Slot slot, Block::State state, absl::Time now, Removed* removed) {
  Block& b = block(slot);
  NamespaceRecord& ns = record(b);
  if (!b.indexed) {
    const auto old = index_.find(b.key);
    if (old != index_.end()) Unlink(*old, RemoveReason::kReplaced, removed);
    b.indexed = true;
    index_.insert(slot);
    ++ns.usage.blocks;
  }
  b.state = state;
  SetDeadline(slot, std::min(now + b.write->ttl, DeadlineOfParent(b)));
  ClipDescendants(slot);
  if (!b.admitted) {
    policy_.Admit(slot, InfoOf(b));
    b.admitted = true;
  }
  if (state == Block::State::kComplete) {
    b.write.reset();
    ++ns.usage.blocks_complete;
    ++ns.counters.blocks_written;
  }
}

void BlockTable::SetDeadline(Slot slot, absl::Time deadline) {
  Block& b = block(slot);
  b.deadline = deadline;
  if (deadlines_.Contains(slot)) deadlines_.Remove(slot);
  if (deadline != absl::InfiniteFuture()) deadlines_.Push(slot, deadline);
  if (b.admitted) policy_.SetDeadline(slot, deadline);
}

void BlockTable::Extend(Slot slot, absl::Time deadline) {
  const Block& b = block(slot);
  deadline = std::min(deadline, DeadlineOfParent(b));
  if (deadline > b.deadline) SetDeadline(slot, deadline);
}

// Below a visible block that expires soon enough everything is as it should be.
void BlockTable::ClipDescendants(Slot top) {
  const absl::Time limit = block(top).deadline;
  if (limit == absl::InfiniteFuture()) return;
  Slot slot = block(top).first_child;
  while (slot != kNoSlot) {
    const Block& b = block(slot);
    const bool too_late = b.visible() && b.deadline > limit;
    if (too_late) SetDeadline(slot, limit);
    if ((too_late || !b.visible()) && b.first_child != kNoSlot) {
      slot = b.first_child;
      continue;
    }
    while (slot != top && block(slot).next_sibling == kNoSlot) slot = block(slot).parent;
    if (slot == top) return;
    slot = block(slot).next_sibling;
  }
}

}  // namespace kvcache::internal
