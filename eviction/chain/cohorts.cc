#include "kvcache/eviction/chain/cohorts.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kvcache/core/base/check.h"

namespace kvcache::chain {
namespace {

// Ghosts matter the more the fewer blocks there are.
constexpr size_t kFewSlots = 2048;
size_t MostGhosts(size_t max_slots) { return 3 * max_slots + 9 * std::min(max_slots, kFewSlots); }

}  // namespace

Cohorts::Cohorts(ReuseOdds& odds) : odds_(odds), cells_(kKinds * kBuckets) {
  due_.fill(kNever);
  open_.fill(kNone);
  newest_of_.fill(kNone);
  cells_by_value_.SetMaxSlots(cells_.size());
}

// A cohort for each slot and each kind is always enough for the blocks that are there, however thin
// they are spread, once all ghosts are forgotten.
void Cohorts::SetMaxSlots(size_t max_slots) {
  const size_t max_cohorts = max_slots + kKinds + std::min(max_slots, kFewSlots) / 4 + 1;
  if (max_cohorts <= max_cohorts_) return;
  // Not initialised: what is not used yet takes no memory.
  std::unique_ptr<Cohort[]> cohorts(new Cohort[max_cohorts]);
  if (used_cohorts_ > 0) std::copy_n(cohorts_.get(), used_cohorts_, cohorts.get());
  cohorts_ = std::move(cohorts);
  max_cohorts_ = max_cohorts;

  max_ghosts_ = MostGhosts(max_slots);
  const auto for_each_ghost = [this](auto visit) {
    for (const Stretch& bucket : buckets_) {
      for (Id id = bucket.oldest; id != kNone;
           id = id == bucket.newest ? kNone : cohorts_[id].next) {
        for (unsigned bits = cohorts_[id].ghosts; bits != 0; bits &= bits - 1) {
          const int at = std::countr_zero(bits);
          visit(Spread(cohorts_[id].blocks[at]), id * kCohortSize + at);
        }
      }
    }
  };
  for_each_ghost([this](uint64_t hash, Place place) { ghosts_.Erase(hash, place); });
  ghosts_.SetMaxSlots(max_ghosts_);
  for_each_ghost([this](uint64_t hash, Place place) { ghosts_.Insert(hash, place); });
}

// --- Time

void Cohorts::Age() {
  next_due_ = kNever;
  for (int b = 0; b + 1 < kBuckets; ++b) {
    if (now_ >= due_[b]) AgeBucket(b);
    next_due_ = std::min(next_due_, due_[b]);
  }
}

void Cohorts::AgeBucket(int bucket) {
  const uint64_t end = StartOf(bucket + 1);
  for (;;) {
    const Id id = buckets_[bucket].oldest;
    due_[bucket] = id == kNone ? kNever : cohorts_[id].born + end;
    if (id != kNone && cohorts_[id].next != kNone) {
      __builtin_prefetch(&cohorts_[cohorts_[id].next], 1);  // the next to be looked at
    }
    if (now_ < due_[bucket]) return;
    MoveOn(id);
    const Cohort& c = cohorts_[id];
    if (c.bucket + 1 < kBuckets) {
      due_[c.bucket] = std::min(due_[c.bucket], c.born + StartOf(c.bucket + 1));
    }
    odds_.CountReached(c.kind.block_class, c.bucket,
                       std::popcount<unsigned>(c.resident | c.ghosts));
  }
}

// The oldest cohort of a bucket becomes the youngest of the next one, where it is in both lists.
void Cohorts::MoveOn(Id id) {
  Cohort& c = cohorts_[id];
  const uint32_t from = CellOf(c);
  TakeFirst(&buckets_[c.bucket], id, c.next);
  if (c.listed == Listed::kReturned) RemoveReturned(cells_[from], id);
  if (c.listed == Listed::kInList) TakeFirst(&cells_[from].list, id, c.newer);
  if (c.listed != Listed::kNo) CellChanged(from);
  ++c.bucket;
  Append(&buckets_[c.bucket], id);
  if (c.listed == Listed::kInList) {
    Append(&cells_[CellOf(c)].list, id);
    CellChanged(CellOf(c));
  } else if (c.listed == Listed::kReturned) {
    EnterCell(id);
  }
}

// --- Blocks

Place Cohorts::Add(Kind kind, uint32_t block, uint8_t uses, uint64_t together) {
  if (++now_ >= next_due_) Age();
  Id id = open_[IndexOf(kind)];
  if (id == kNone || cohorts_[id].size == kCohortSize || now_ - cohorts_[id].born > together) {
    id = New(kind);
  }
  Cohort& c = cohorts_[id];
  c.blocks[c.size] = block;
  c.uses[c.size] = uses;
  for (int b = 0; b <= c.bucket; ++b) odds_.CountReached(kind.block_class, b, 1);
  return id * kCohortSize + c.size++;
}

Place Cohorts::AddResident(Kind kind, Slot slot, uint8_t uses, uint64_t together) {
  const Place place = Add(kind, slot, uses, together);
  cohorts_[place / kCohortSize].resident |= BitOf(place);
  Show(place);
  return place;
}

Place Cohorts::AddGhost(Kind kind, uint32_t hash, uint8_t uses, bool expected, uint64_t together) {
  ForgetGhosts(max_ghosts_ - 1);
  const Place place = Add(kind, hash, uses, together);
  Cohort& c = cohorts_[place / kCohortSize];
  c.ghosts |= BitOf(place);
  if (expected) c.expected |= BitOf(place);
  ghosts_.Insert(Spread(hash), place);
  ++num_ghosts_;
  return place;
}

void Cohorts::Take(Place place) {
  Cohort& c = cohorts_[place / kCohortSize];
  if (c.resident & BitOf(place)) {
    if (IsShown(place)) Hide(place);
    c.resident &= ~BitOf(place);
  } else {
    EraseGhost(place);
  }
  FreeIfEmpty(place / kCohortSize);
}

Place Cohorts::FindGhost(uint32_t hash) const {
  return ghosts_.Find(Spread(hash), [&](Place place) {
    return cohorts_[place / kCohortSize].blocks[place % kCohortSize] == hash;
  });
}

void Cohorts::EraseGhost(Place place) {
  Cohort& c = cohorts_[place / kCohortSize];
  ghosts_.Erase(Spread(c.blocks[place % kCohortSize]), place);
  c.ghosts &= ~BitOf(place);
  c.expected &= ~BitOf(place);
  --num_ghosts_;
}

void Cohorts::Revive(Place ghost, Slot slot) {
  EraseGhost(ghost);
  Cohort& c = cohorts_[ghost / kCohortSize];
  c.blocks[ghost % kCohortSize] = slot;
  c.resident |= BitOf(ghost);
  Show(ghost);
}

void Cohorts::Retire(Place resident, uint32_t hash) {
  const Place other = FindGhost(hash);
  if (other != kNoPlace) Take(other);
  ForgetGhosts(max_ghosts_ - 1);
  Cohort& c = cohorts_[resident / kCohortSize];
  if (c.born < remembered_since_) return Take(resident);
  if (IsShown(resident)) Hide(resident);
  c.resident &= ~BitOf(resident);
  c.ghosts |= BitOf(resident);
  c.blocks[resident % kCohortSize] = hash;
  ghosts_.Insert(Spread(hash), resident);
  ++num_ghosts_;
}

void Cohorts::SetExpected(Place ghost, bool expected) {
  Cohort& c = cohorts_[ghost / kCohortSize];
  c.expected = expected ? c.expected | BitOf(ghost) : c.expected & ~BitOf(ghost);
}

Cohorts::Block Cohorts::BlockAt(Place place) const {
  const Cohort& c = cohorts_[place / kCohortSize];
  const uint32_t block = c.blocks[place % kCohortSize];
  const bool resident = c.resident & BitOf(place);
  return {.slot = resident ? block : kNoSlot,
          .hash = resident ? 0 : block,
          .uses = c.uses[place % kCohortSize],
          .expected = (c.expected & BitOf(place)) != 0};
}

// --- Ghosts that are forgotten

void Cohorts::ForgetGhosts(size_t most) {
  while (num_ghosts_ > most) ForgetOldest();
}

void Cohorts::ForgetOldest() {
  const Id id = first_remembered_;
  KVCACHE_CHECK(id != kNone, num_ghosts_, " ghosts in no cohort");
  first_remembered_ = cohorts_[id].next;
  remembered_since_ = first_remembered_ == kNone ? now_ + 1 : cohorts_[first_remembered_].born;
  Cohort& c = cohorts_[id];
  if (open_[IndexOf(c.kind)] == id) open_[IndexOf(c.kind)] = kNone;
  while (c.ghosts != 0) EraseGhost(id * kCohortSize + std::countr_zero(c.ghosts));
  FreeIfEmpty(id);
}

// --- Cohorts

Cohorts::Id Cohorts::New(Kind kind) {
  while (spare_ == kNone && used_cohorts_ == max_cohorts_) ForgetOldest();
  Id id = spare_;
  if (id != kNone) {
    spare_ = cohorts_[id].next;
  } else {
    id = static_cast<Id>(used_cohorts_++);
  }
  Cohort& c = cohorts_[id];
  c.born = now_;
  c.resident = c.shown = c.ghosts = c.expected = 0;
  c.kind = kind;
  c.bucket = c.size = 0;
  c.listed = Listed::kNo;
  c.next = kNone;
  c.previous = std::exchange(newest_, id);
  if (c.previous != kNone) cohorts_[c.previous].next = id;
  Append(&buckets_[0], id);
  due_[0] = std::min(due_[0], now_ + StartOf(1));
  next_due_ = std::min(next_due_, due_[0]);
  open_[IndexOf(kind)] = id;
  if (first_remembered_ == kNone) {
    first_remembered_ = id;
    remembered_since_ = now_;
  }
  return id;
}

void Cohorts::FreeIfEmpty(Id id) {
  Cohort& c = cohorts_[id];
  if ((c.resident | c.ghosts) != 0) return;
  if (open_[IndexOf(c.kind)] == id) open_[IndexOf(c.kind)] = kNone;
  if (first_remembered_ == id) {
    first_remembered_ = c.next;
    remembered_since_ = first_remembered_ == kNone ? now_ + 1 : cohorts_[first_remembered_].born;
  }
  Drop(&buckets_[c.bucket], id, c.previous, c.next);
  if (c.previous != kNone) cohorts_[c.previous].next = c.next;
  (c.next == kNone ? newest_ : cohorts_[c.next].previous) = c.previous;
  c.next = std::exchange(spare_, id);
}

// Of a stretch of a list: takes its first cohort out of the stretch, adds one that follows its
// last, and takes any one out.

void Cohorts::TakeFirst(Stretch* stretch, Id id, Id next) {
  stretch->oldest = stretch->newest == id ? kNone : next;
  if (stretch->oldest == kNone) stretch->newest = kNone;
}

void Cohorts::Append(Stretch* stretch, Id id) {
  stretch->newest = id;
  if (stretch->oldest == kNone) stretch->oldest = id;
}

void Cohorts::Drop(Stretch* stretch, Id id, Id previous, Id next) {
  if (stretch->oldest == id) return TakeFirst(stretch, id, next);
  if (stretch->newest == id) stretch->newest = previous;
}

// --- The order

void Cohorts::Hide(Place place) {
  Cohort& c = cohorts_[place / kCohortSize];
  c.shown &= ~BitOf(place);
  if (c.shown == 0) LeaveCell(place / kCohortSize);
}

void Cohorts::Show(Place place) {
  Cohort& c = cohorts_[place / kCohortSize];
  const bool enters = c.shown == 0;
  c.shown |= BitOf(place);
  if (enters) EnterCell(place / kCohortSize);
}

Place Cohorts::First() const {
  if (cells_by_value_.empty()) return kNoPlace;
  const Id id = OldestOf(cells_[cells_by_value_.top()]);
  return id * kCohortSize + std::countr_zero(cohorts_[id].shown);
}

Cohorts::Id Cohorts::OldestOf(const Cell& cell) const {
  const Id listed = cell.list.oldest;
  if (listed == kNone) return cell.returned;
  if (cell.returned == kNone) return listed;
  return cohorts_[listed].born < cohorts_[cell.returned].born ? listed : cell.returned;
}

void Cohorts::Reorder() {
  for (uint32_t cell = 0; cell < cells_.size(); ++cell) {
    if (cells_by_value_.Contains(cell)) cells_by_value_.Update(cell, RankOf(cell));
  }
}

Cohorts::CellRank Cohorts::RankOf(uint32_t cell) const {
  const int kind = static_cast<int>(cell) / kBuckets;
  return {ValueOf({static_cast<uint8_t>(kind / kWorths), static_cast<uint8_t>(kind % kWorths)},
                  static_cast<int>(cell) % kBuckets),
          cell};
}

void Cohorts::CellChanged(uint32_t cell) {
  const bool empty = cells_[cell].list.oldest == kNone && cells_[cell].returned == kNone;
  if (empty != cells_by_value_.Contains(cell)) return;
  if (empty) {
    cells_by_value_.Remove(cell);
  } else {
    cells_by_value_.Push(cell, RankOf(cell));
  }
}

// Into the list of its kind, if it is clear where it belongs there.
void Cohorts::EnterCell(Id id) {
  Cohort& c = cohorts_[id];
  Cell& cell = cells_[CellOf(c)];
  Id& newest = newest_of_[IndexOf(c.kind)];
  const Id before = cell.list.newest != kNone ? cell.list.newest : newest;
  if (before == kNone || cohorts_[before].born < c.born) {
    c.listed = Listed::kInList;
    c.older = before;
    c.newer = before == kNone ? kNone : cohorts_[before].newer;
    if (before != kNone) cohorts_[before].newer = id;
    (c.newer == kNone ? newest : cohorts_[c.newer].older) = id;
    Append(&cell.list, id);
  } else {
    PushReturned(cell, id);
  }
  CellChanged(CellOf(c));
}

void Cohorts::LeaveCell(Id id) {
  Cohort& c = cohorts_[id];
  Cell& cell = cells_[CellOf(c)];
  if (c.listed == Listed::kReturned) {
    RemoveReturned(cell, id);
  } else {
    Drop(&cell.list, id, c.older, c.newer);
    if (c.older != kNone) cohorts_[c.older].newer = c.newer;
    (c.newer == kNone ? newest_of_[IndexOf(c.kind)] : cohorts_[c.newer].older) = c.older;
  }
  c.listed = Listed::kNo;
  CellChanged(CellOf(c));
}

// In the pairing heap, `older` of a first child is its parent, of another child the sibling before
// it; `newer` is the sibling behind it.

void Cohorts::PushReturned(Cell& cell, Id id) {
  Cohort& c = cohorts_[id];
  c.listed = Listed::kReturned;
  c.older = c.newer = c.child = kNone;
  cell.returned = cell.returned == kNone ? id : Meld(cell.returned, id);
}

void Cohorts::RemoveReturned(Cell& cell, Id id) {
  const Cohort& c = cohorts_[id];
  const Id below = c.child == kNone ? kNone : MeldSiblings(c.child);
  if (cell.returned == id) {
    cell.returned = below;
    return;
  }
  Cohort& before = cohorts_[c.older];
  (before.child == id ? before.child : before.newer) = c.newer;
  if (c.newer != kNone) cohorts_[c.newer].older = c.older;
  if (below != kNone) cell.returned = Meld(cell.returned, below);
}

Cohorts::Id Cohorts::Meld(Id a, Id b) {
  if (cohorts_[b].born < cohorts_[a].born) std::swap(a, b);
  Cohort& parent = cohorts_[a];
  Cohort& child = cohorts_[b];
  child.older = a;
  child.newer = parent.child;
  if (parent.child != kNone) cohorts_[parent.child].older = b;
  parent.child = b;
  parent.older = parent.newer = kNone;
  return a;
}

// In pairs from the left, and then all pairs from the right.
Cohorts::Id Cohorts::MeldSiblings(Id first) {
  Id pairs = kNone;  // a stack through `newer`
  while (first != kNone) {
    Id one = first;
    const Id other = cohorts_[one].newer;
    first = other == kNone ? kNone : cohorts_[other].newer;
    cohorts_[one].older = cohorts_[one].newer = kNone;
    if (other != kNone) {
      cohorts_[other].older = cohorts_[other].newer = kNone;
      one = Meld(one, other);
    }
    cohorts_[one].newer = std::exchange(pairs, one);
  }
  Id all = pairs;
  pairs = cohorts_[all].newer;
  cohorts_[all].newer = kNone;
  while (pairs != kNone) {
    const Id next = cohorts_[pairs].newer;
    cohorts_[pairs].newer = kNone;
    all = Meld(all, pairs);
    pairs = next;
  }
  return all;
}

}  // namespace kvcache::chain
