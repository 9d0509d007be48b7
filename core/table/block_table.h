// BlockTable: what a Cache guards with its lock. Internal to core.
#ifndef KVCACHE_CORE_TABLE_BLOCK_TABLE_H_
#define KVCACHE_CORE_TABLE_BLOCK_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/priority_levels.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"
#include "kvcache/core/policy/slot_index.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/table/block.h"
#include "kvcache/core/table/block_options.h"
#include "kvcache/core/table/budget.h"
#include "kvcache/core/table/event_ring.h"
#include "kvcache/core/table/namespaces.h"
#include "kvcache/core/table/pin_list.h"
#include "kvcache/core/table/pool.h"
#include "kvcache/core/table/removed.h"

namespace kvcache::internal {

enum class Room : uint8_t {
  kMade,
  kNothingToEvict,
  kRefusedByPolicy,
  kStepByStep,  // takes more than may be done in one hold of the lock
  kNoMemory,    // to remember the victims
};

// What becomes of the choice of a block and of those below it.
enum class TreeChoice : uint8_t { kChosen, kStepByStep, kCannotGo };

// Blocks by key and by slot, their tree, their pins, their deadlines, the eviction order and the
// byte budget: a state machine without locks, memory or I/O. Every member function is called under
// the cache's lock. Pointers from it are for that call only.
//
// A block becomes visible in MakeVisible() and invisible in Unlink(), and nowhere else.
//
// Nothing is done in proportion to the length of a prompt. So deadlines pass at once between blocks
// with up to kUnfinishedAncestors unfinished ones between them; farther ones learn of each other
// when what is between is finished or removed. A block that becomes visible behind so many of its
// descendants that kMostClipped blocks would have to be visited is dropped, and they with it.
//
// Allocates nothing but in its constructor: what a call needs is made without the lock before it,
// see Supplies and PartMemory, and what it no longer needs is in Removed.
class BlockTable {
 public:
  // Allocates what it takes to find and to evict max_blocks blocks. Bytes are charged to the budget
  // in multiples of `alignment`, a power of two.
  BlockTable(size_t capacity_bytes, size_t alignment, size_t max_blocks, bool keeps_checksums,
             size_t events, EvictionPolicy& policy);

  // --- Memory for blocks to come. To be asked for under the lock, made without it, and added.
  using Blocks = Pool<Block, &Block::next_sibling, 1024>;
  using Writes = Pool<BlockWrite, &BlockWrite::next_spare, 512>;
  struct Needs {
    size_t blocks = 0;  // to reserve; each is pinned, too
    size_t pins = 0;
    size_t namespaces = 0;
  };
  struct Supplies {
    // Throws std::bad_alloc.
    void Make();

    bool lacks_blocks = false;
    bool lacks_writes = false;
    bool lacks_pins = false;
    bool lacks_namespaces = false;
    Blocks::Chunk blocks = nullptr;
    Writes::Chunk writes = nullptr;
    PinList::Records::Chunk pins = nullptr;
    Namespaces::Records::Chunk namespaces = nullptr;
  };
  // Whether something has to be supplied first, and what.
  bool Lacks(const Needs& needs) const {
    return blocks_.Lacks(needs.blocks) || writes_.Lacks(needs.blocks) ||
           pins_.records().Lacks(needs.blocks + needs.pins) ||
           namespaces_.records().Lacks(needs.namespaces);
  }
  Supplies Lacking(const Needs& needs) const;
  void Add(Supplies supplies);

  // --- Namespaces. What takes an id REQUIRES that it is known.
  Namespaces& namespaces() { return namespaces_; }
  const Namespaces& namespaces() const { return namespaces_; }
  bool Knows(NamespaceId ns) const { return namespaces_.Knows(ns); }
  CacheCounters& counters(NamespaceId ns) { return namespaces_[Namespaces::NumberOf(ns)].counters; }
  CacheCounters& CountersOf(const Block& b) { return record(b).counters; }
  void CountSaved(NamespaceId ns, double seconds) {
    namespaces_[Namespaces::NumberOf(ns)].compute_saved += seconds;
  }

  // --- Finding
  Block& block(Slot slot) { return blocks_[slot]; }
  const Block& block(Slot slot) const { return blocks_[slot]; }
  // The block of a key if it lives, else kNoSlot.
  Slot Find(const BlockKey& key, Nanos now) const;
  // The same, but removes it when it does not live any more.
  Slot FindOrRemove(const BlockKey& key, Nanos now, Removed* removed);
  // FindOrRemove() in two steps, for many keys: the first only looks them up, so that the
  // processor waits for all of their memory at once; the second says for each result whether it
  // lives. In between no slot may be taken. REQUIRES: keys.size() <= kKeysPerFind.
  static constexpr size_t kKeysPerFind = 16;
  void FindAny(absl::Span<const BlockKey> keys, Slot* slots) const;
  Slot LiveOrRemove(Slot found, Nanos now, Removed* removed) {
    // One of the same batch may have removed it.
    if (found == kNoSlot || !block(found).indexed) return kNoSlot;
    if (Lives(block(found), now)) return found;
    RemoveDead(found, removed);
    return kNoSlot;
  }
  Slot Live(Slot found, Nanos now) const {
    return found != kNoSlot && block(found).indexed && Lives(block(found), now) ? found : kNoSlot;
  }
  // Whether a block may come after `previous` in a chain: it has no parent, or that one. Any block
  // may be the first, after kNoSlot.
  bool Follows(Slot slot, Slot previous) const {
    const Slot parent = block(slot).parent;
    return previous == kNoSlot || parent == kNoSlot || parent == previous;
  }

  // --- Pins and touches
  // REQUIRES: supplies for a pin, or the block is pinned already.
  void Pin(Slot slot, Nanos now) { Pin(&block(slot), now); }
  void Pin(Block* b, Nanos now) {
    if (pins_.Pin(&b->pin, now) && b->visible()) loose_bytes_ -= Charge(b->bytes);
  }
  void Unpin(Slot slot, Removed* removed) {
    Block& b = block(slot);
    if (pins_.Unpin(&b.pin)) Unpinned(slot, &b, removed);
  }
  // Blocks that the policy does not know are left out.
  void Touch(absl::Span<const Slot> slots, const Run& run);

  bool EvictableButForOnePin(Slot slot) const {
    const Block& b = block(slot);
    return b.visible() && b.children == 0 && pins_.PinsOf(b.pin) == 1;
  }

  // --- The policy, and priorities
  EvictionPolicy& policy() { return *policy_; }
  bool HasPriority(uint16_t priority) const {
    return priority == 0 || (levels_ != nullptr && levels_->HasLevel(priority));
  }
  // kInvalidArgument for one priority too many: PriorityLevels::CheckNewLevel().
  absl::Status CheckPriority(uint16_t priority) const {
    return HasPriority(priority) || levels_ == nullptr ? absl::OkStatus()
                                                       : levels_->CheckNewLevel(priority);
  }
  // From now on blocks may have this priority. *policy, with max_blocks slots and none of them
  // known, orders them; *levels is over the policy that this table was made with. O(1): takes of
  // these two what it does not have yet, and leaves the rest to the caller, to be freed without the
  // lock. Errors: those of CheckPriority().
  absl::Status AddPriority(uint16_t priority, std::unique_ptr<EvictionPolicy>* policy,
                           std::unique_ptr<PriorityLevels>* levels);
  // Must come before whatever tells the policy about blocks or asks it.
  void EndPriorities(Nanos now) {
    if (levels_ != nullptr) EndPrioritiesThatAreOver(now);
  }

  // --- Making room
  using Room = internal::Room;
  // Removes what has expired until a block of these bytes fits. Any slot may go. Returns false when
  // there is more to do than one hold of the lock may.
  bool RemoveExpiredFor(size_t bytes, Nanos now, Removed* removed);
  // Makes room for a block of these bytes, and a slot for it, by evicting; evicts nothing if that
  // does not suffice. `credit` bytes are charged for it already. On kMade all of the room is, and
  // Insert() must follow.
  Room MakeRoom(size_t bytes, Slot parent, const EntryInfo& incoming, size_t credit,
                Removed* removed);

  // The blocks that would be evicted first, in that order, of which up to slots.size() are not
  // marked as copied; looks at up to kBlocksPerLock. Their order stays as it is. Returns how many.
  size_t PeekVictims(absl::Span<Slot> slots);

  // MakeRoom() in steps, for room that takes more than kBlocksPerLock blocks: one caller at a time
  // chooses victims until they suffice, and then evicts them or takes them back, some in each hold
  // of the lock. In between anything may happen to a chosen block, except that nobody else evicts
  // it: one that is hit, leased or given a child is passed over in the end.
  //
  // Chooses until `bytes` are chosen, up to kBlocksPerLock steps, but not `parent`; adds them to
  // `victims`, which has room for as many more, and their bytes to *chosen.
  static void ReserveVictims(std::vector<Slot>* victims);  // throws std::bad_alloc
  Room ChooseMore(const EntryInfo& incoming, Slot parent, size_t bytes, std::vector<Slot>* victims,
                  size_t* chosen);
  // Evicts up to kBlocksPerLock of them, the first ones, and takes them out of `victims`; returns
  // their bytes.
  size_t EvictChosen(absl::Span<const Slot>* victims, Removed* removed);
  void TakeBackChosen(absl::Span<const Slot>* victims);

  // --- Making room in one piece, for a newcomer whose bytes are charged: see GapMaker.
  //
  // The extents of the first victims of the policy's order, which stays as it is. Returns how many;
  // kRefusedByPolicy in *room if it is none for that reason.
  size_t PeekVictims(const EntryInfo& incoming, absl::Span<Extent> extents, Room* room);
  // Whether the block in `slot` has this extent.
  bool Holds(Slot slot, const Extent& extent) const {
    if (slot >= blocks_.used()) return false;
    const Block& b = block(slot);
    return b.has_extent && b.offset == extent.offset && b.extent_node == extent.node;
  }
  // The bytes of a block and of all that descend from it, where all of that may go; kCannotGo
  // otherwise, and when it takes more than *steps visits, which are subtracted.
  static constexpr size_t kCannotGo = std::numeric_limits<size_t>::max();
  size_t CostOf(Slot top, const EntryInfo& incoming, size_t* steps) const;
  // Chooses a block and all that descend from it, the descendants first, as ChooseMore() does. *at
  // says where to go on, at first at `top`. Takes up to *steps, which are subtracted, and adds as
  // many to `victims`. Notes in *dead_ends, by slot, the blocks with something below them that
  // cannot go, and enters none of those again; nullptr: notes nothing.
  TreeChoice ChooseTree(Slot top, const EntryInfo& incoming, Slot* at, size_t* steps,
                        std::vector<bool>* dead_ends, std::vector<Slot>* victims);

  // --- Writing
  // Memory of a block, for its parts; empty where none is needed.
  struct PartMemory {
    // Throws std::bad_alloc.
    PartMemory(uint32_t parts, bool keeps_checksums);
    std::unique_ptr<uint64_t[]> checksums;
    std::unique_ptr<uint64_t[]> sets;
  };
  // A block in kWriting, pinned. It has no extent yet, unless one of the victims left one that fits
  // exactly: that is taken out of `removed` again. REQUIRES: supplies for a block; `memory` is for
  // size.parts; `incoming` is what MakeRoom() was told.
  Slot Insert(const BlockKey& key, BlockSize size, NamespaceId ns, const EntryInfo& incoming,
              Nanos ttl, bool replacement, PartMemory memory, Removed* removed);
  void SetExtent(Slot slot, const Extent& extent) { SetExtent(&block(slot), extent); }
  // Its extent, of size 0 while it has none.
  Extent ExtentOf(const Block& b) const {
    return b.has_extent ? Extent{b.offset, Charge(b.bytes), b.extent_node} : Extent();
  }
  // One for each part, 0 where none is known; nullptr when none are kept. Belongs to whoever pins
  // the block: the writer sets that of a part before its commit, without the lock, and from then on
  // it does not change.
  uint64_t* ChecksumsOf(Block& b) const {
    return !keeps_checksums_ ? nullptr : b.parts == 1 ? &b.checksum : b.checksums;
  }
  // REQUIRES: the block is being written, or partial.
  BlockWrite& WriteOf(const Block& b) { return writes_[b.write]; }
  const BlockWrite& WriteOf(const Block& b) const { return writes_[b.write]; }
  // Lets a partial block be written on; pins it. REQUIRES: supplies for a pin.
  void Resume(Slot slot, Nanos ttl, Nanos now);

  // See WriteLease. ClaimPart comes first and checks; then either FinishPart, or AwaitCopy and
  // later FinishCopy. A block with copies does not become partial.
  bool Committed(Slot slot, uint32_t part) const;
  bool Claimed(Slot slot, uint32_t part) const;
  absl::Status ClaimPart(Slot slot, uint32_t part, Nanos now, Removed* removed);
  absl::Status FinishPart(Slot slot, uint32_t part, bool succeeded, Nanos now, Removed* removed);
  void AwaitCopy(Slot slot);
  // A copy into a part that is not committed by it.
  void EndCopy(Slot slot, Nanos now, Removed* removed);
  void FinishCopy(Slot slot, uint32_t part, bool succeeded, Nanos now, Removed* removed);
  absl::Status CommitRest(Slot slot, Nanos now, Removed* removed);
  absl::Status Suspend(Slot slot, Nanos now, Removed* removed);
  void Abort(Slot slot, Nanos now, Removed* removed);

  // --- Removing
  // Makes a block unreachable, whatever its state. What hangs below it follows in RemoveRetired().
  void Unlink(Slot slot, RemoveReason reason, Removed* removed);
  // Removes up to `steps` descendants of removed blocks; sets removed->more when that was not all.
  void RemoveRetired(size_t steps, Removed* removed);
  // Nobody finds what is in the namespace, or in any, now. Returns how many blocks that were.
  size_t StartErase(NamespaceId ns);
  void StartClear() { namespaces_.EraseAll(); }
  // Removes up to `steps` blocks of a namespace that are erased; false when there are no more.
  bool ContinueErase(uint32_t ns, size_t steps, Removed* removed);
  // The first complete or partial block of the slots from `first` on that lives, of up to `steps`
  // slots; sets *next to where to go on, or to kNoSlot behind the last slot.
  Slot NextVisible(Slot first, size_t steps, Nanos now, Slot* next) const;
  bool HasExpired(Nanos now) const { return !deadlines_.empty() && deadlines_.top_rank() <= now; }
  // Removes up to `steps` blocks that have expired; false when there are no more.
  bool RemoveExpired(size_t steps, Nanos now, Removed* removed);

  // --- Deadlines and budget
  void Extend(Slot slot, Nanos deadline);
  size_t Charge(size_t bytes) const { return budget_.Charge(bytes); }
  Budget& budget() { return budget_; }
  const Budget& budget() const { return budget_; }
  void Freed(const Removed& removed) { budget_.Freed(removed); }
  // A new capacity, once no more than that is charged.
  void SetCapacity(size_t capacity);
  // What could be evicted at most: all that is visible and not pinned.
  size_t loose_bytes() const { return loose_bytes_; }

  const EventRing& events() const { return events_; }
  size_t pins() const { return pins_.pins(); }
  // Everything but the names of backend and policy, and what each of the namespaces adds.
  CacheStats Stats(Nanos now, std::vector<NamespaceStats> namespaces) const;

 private:
  static constexpr size_t kUnfinishedAncestors = 16;
  static constexpr size_t kMostClipped = 1024;

  NamespaceRecord& record(const Block& b) { return namespaces_[b.ns]; }
  const NamespaceRecord& record(const Block& b) const { return namespaces_[b.ns]; }
  bool Erased(const Block& b) const { return b.epoch != namespaces_.EpochOf(record(b)); }

  Slot FindIndexed(const BlockKey& key) const {
    return index_.Find(mixer_(key.bytes), [&](Slot slot) { return block(slot).key == key; });
  }
  EntryInfo InfoOf(const Block& b, Nanos now) const;
  void EndPrioritiesThatAreOver(Nanos now);
  void EndWrite(Block& b, Removed* removed);
  // A block that is being written lives no longer than its parent, nor than those above that, up to
  // the first that is finished.
  Nanos DeadlineOfParent(const Block& b) const;
  bool Lives(const Block& b, Nanos now) const {
    if (Erased(b)) return false;
    if (b.parent != kNoSlot && block(b.parent).state == Block::State::kRemoved) return false;
    return now < b.deadline && (b.visible() || now < DeadlineOfParent(b));
  }
  void RemoveDead(Slot slot, Removed* removed);
  RemoveReason WhyDead(const Block& b) const;
  bool Evictable(const Block& b) const { return b.visible() && !b.pinned() && b.children == 0; }
  static void SetExtent(Block* b, const Extent& extent) {
    b->offset = extent.offset;
    b->extent_node = extent.node;
    b->has_extent = true;
  }
  void UnparkIfEvictable(Slot slot);
  void Unpinned(Slot slot, Block* block, Removed* removed);

  // Whether a block may go for a newcomer, once nothing is below it.
  bool MayGo(Slot slot, const EntryInfo& incoming) const {
    const Block& b = block(slot);
    return b.visible() && !b.pinned() && (levels_ == nullptr || !levels_->Outranks(slot, incoming));
  }
  bool HasSlot() const { return blocks_.spare() > 0; }
  void FreeSlotIfUnused(Slot slot, Removed* removed);

  void LinkSibling(Slot slot);
  void UnlinkSibling(Slot slot);
  void ChildGone(Slot parent);

  // Chooses one more victim, or parks what the policy offers and cannot go.
  enum class Step { kChosen, kParked, kNothingToEvict, kRefusedByPolicy };
  Step ChooseOne(const EntryInfo& incoming, Slot* victim);
  void ParkChosen(Slot slot);
  // Chooses victims until `enough()`; takes all of them back and says why when it does not come to
  // that. Leaves them in victims_, the last of them still ordered.
  Room ChooseVictims(const EntryInfo& incoming,
                     absl::FunctionRef<bool(size_t victims, size_t bytes)> enough);
  void TakeBack(Slot slot);
  void TakeVictimsBack();
  void EvictVictims(Removed* removed);

  // kAborted when what is written now would never be found; removes it then.
  absl::Status CheckWriting(Slot slot, Nanos now, Removed* removed);
  void CommitOne(Block& b, uint32_t part);
  // Ends the write if nothing is left to wait for.
  void Settle(Slot slot, Nanos now, Removed* removed);
  void MakeVisible(Slot slot, Block::State state, Nanos now, Removed* removed);
  void SetDeadline(Slot slot, Nanos deadline);
  // Tells the unfinished ancestors of a block that it became visible before they did.
  void NoteEarly(const Block& b);
  // Lets what hangs below a block live no longer than the block; false when that is too much.
  bool ClipDescendants(Slot slot);
  void CountRemoval(const Block& b, RemoveReason reason);
  void GiveUpExtent(Slot slot, Removed* removed);

  EvictionPolicy* policy_;  // levels_, once there are any
  std::unique_ptr<PriorityLevels> levels_;
  const size_t max_blocks_;
  const bool keeps_checksums_;

  Blocks blocks_;
  Writes writes_;  // by Block::write
  PinList pins_;
  Namespaces namespaces_;
  std::vector<Slot> victims_;  // of the call under way, up to kBlocksPerLock
  const KeyMixer mixer_;
  SlotIndex index_;
  SlotHeap<Nanos> deadlines_;  // of visible blocks that have one
  EventRing events_;
  Slot retired_ = kNoSlot;  // stack through next_sibling
  Budget budget_;
  size_t loose_bytes_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_BLOCK_TABLE_H_
