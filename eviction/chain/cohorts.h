// Cohorts: the blocks that the chain policy knows, in groups, and their order. Internal to the
// chain policy.
#ifndef KVCACHE_EVICTION_CHAIN_COHORTS_H_
#define KVCACHE_EVICTION_CHAIN_COHORTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_heap.h"
#include "kvcache/core/policy/slot_index.h"
#include "kvcache/eviction/chain/reuse_odds.h"

namespace kvcache::chain {

// Where a block is: a cohort, and a place in it.
using Place = uint32_t;
inline constexpr Place kNoPlace = 0xffffffff;

// How much computing a hit saves for each byte, compared with other blocks: about half, as usual,
// or about twice as much.
inline constexpr int kWorths = 3;
inline constexpr int kUsualWorth = 1;
constexpr float FactorOf(int worth) { return worth == 0 ? 0.5f : worth == 1 ? 1 : 2; }

// What blocks have in common that are taken for alike.
struct Kind {
  uint8_t block_class = 0;
  uint8_t worth = kUsualWorth;
};

// Blocks that are there, and *ghosts*: blocks that have gone, or were refused, by the hash of their
// key. Up to 16 blocks of one kind that were used one after the other are a *cohort*; they age
// together. The cohorts of a kind and an age bucket are a *cell*, and all blocks in a cell are
// worth the same. So the order is: by the value of the cell, then by the last use.
//
// Takes and returns places, which a block keeps until it is taken out. Time is in blocks used.
class Cohorts {
 public:
  static constexpr int kCohortSize = 16;

  struct Block {
    Slot slot;      // kNoSlot for a ghost
    uint32_t hash;  // of a ghost
    uint8_t uses;
    bool expected;  // a ghost whose last use was counted, but that was not put since
  };

  // Tells `odds` what ages are reached, and orders by its values. It must outlive this.
  explicit Cohorts(ReuseOdds& odds);

  // Slots are < max_slots. Keeps the content; never shrinks. The rest allocates nothing.
  void SetMaxSlots(size_t max_slots);

  // In blocks that were added so far.
  uint64_t now() const { return now_; }

  // Adds a block as the youngest of its kind, in the cohort of the one before unless that is older
  // than `together`. May forget the oldest ghosts.
  Place AddResident(Kind kind, Slot slot, uint8_t uses, uint64_t together);
  Place AddGhost(Kind kind, uint32_t hash, uint8_t uses, bool expected, uint64_t together);
  // Takes any block out.
  void Take(Place place);

  // The ghost of a hash, or kNoPlace.
  Place FindGhost(uint32_t hash) const;
  // Have the processor fetch what will be read.
  void PrefetchGhost(uint32_t hash) const { ghosts_.Prefetch(Spread(hash)); }
  void Prefetch(Place place) const { __builtin_prefetch(&cohorts_[place / kCohortSize], 1); }
  // A ghost comes back, to its old place.
  void Revive(Place ghost, Slot slot);
  // A resident block becomes a ghost in its place, unless it is older than all ghosts.
  void Retire(Place resident, uint32_t hash);
  void SetExpected(Place ghost, bool expected);

  Block BlockAt(Place place) const;
  Kind KindOf(Place place) const { return cohorts_[place / kCohortSize].kind; }
  int BucketOf(Place place) const { return cohorts_[place / kCohortSize].bucket; }
  uint64_t UsedAt(Place place) const { return cohorts_[place / kCohortSize].born; }

  // Takes a resident block out of the order, and puts it back to its place in it.
  void Hide(Place place);
  void Show(Place place);
  bool IsShown(Place place) const { return cohorts_[place / kCohortSize].shown & BitOf(place); }

  // The first in the order, or kNoPlace.
  Place First() const;
  float ValueOf(Kind kind, int bucket) const {
    return odds_.ValueOf(kind.block_class, bucket) * FactorOf(kind.worth);
  }
  // To be called when the values have changed.
  void Reorder();

  size_t ghosts() const { return num_ghosts_; }
  // Forgets the oldest until no more than `most` are left.
  void ForgetGhosts(size_t most);

 private:
  using Id = uint32_t;
  static constexpr Id kNone = 0xffffffff;
  static constexpr uint64_t kNever = ~uint64_t{0};

  // Of a cohort with shown blocks: in the list of its cell, or beside it, waiting to return.
  enum class Listed : uint8_t { kNo, kInList, kReturned };

  struct Cohort {
    uint64_t born;
    // Bits by place. Those neither resident nor ghosts have been taken out.
    uint16_t resident;
    uint16_t shown;  // among the residents
    uint16_t ghosts;
    uint16_t expected;  // among the ghosts
    Kind kind;
    uint8_t bucket : 6;
    Listed listed : 2;
    uint8_t size;       // places that were given out
    Id older, newer;    // listed cohorts of the kind, by age; of a returned one: its siblings
    Id child;           // of a returned one
    Id previous, next;  // all cohorts, by age; spare ones through `next`
    // The slots of residents, the hashes of ghosts.
    std::array<uint32_t, kCohortSize> blocks;
    std::array<uint8_t, kCohortSize> uses;
  };
  static_assert(sizeof(Cohort) == 120);

  // A part of a list by age, from one cohort to another.
  struct Stretch {
    Id oldest = kNone, newest = kNone;
  };
  struct Cell {
    Stretch list;  // of the kind's
    // Cohorts that were hidden and have come back: a pairing heap by age, so that nobody has to
    // look for their place in the list.
    Id returned = kNone;
  };
  struct CellRank {
    float value;
    uint32_t cell;
    friend bool operator<(const CellRank& a, const CellRank& b) {
      return a.value != b.value ? a.value < b.value : a.cell < b.cell;
    }
  };
  static constexpr int kKinds = BlockClass::kCount * kWorths;

  static uint16_t BitOf(Place place) { return uint16_t{1} << place % kCohortSize; }
  // As good as random, whoever chooses the keys.
  uint64_t Spread(uint32_t hash) const { return hash * factor_; }
  static int IndexOf(Kind kind) { return kind.block_class * kWorths + kind.worth; }
  static uint32_t CellOf(Kind kind, int bucket) { return IndexOf(kind) * kBuckets + bucket; }
  static uint32_t CellOf(const Cohort& c) { return CellOf(c.kind, c.bucket); }

  Place Add(Kind kind, uint32_t block, uint8_t uses, uint64_t together);
  // Moves on what is due.
  void Age();
  void AgeBucket(int bucket);
  Id New(Kind kind);
  void FreeIfEmpty(Id id);
  void ForgetOldest();
  void EraseGhost(Place place);

  void MoveOn(Id id);
  static void TakeFirst(Stretch* stretch, Id id, Id next);
  static void Append(Stretch* stretch, Id id);
  static void Drop(Stretch* stretch, Id id, Id previous, Id next);

  void EnterCell(Id id);
  void LeaveCell(Id id);
  CellRank RankOf(uint32_t cell) const;
  void CellChanged(uint32_t cell);
  Id OldestOf(const Cell& cell) const;
  // Of the pairing heap: one of two, which becomes the other's first child; and one of all that
  // hang together as siblings.
  Id Meld(Id a, Id b);
  Id MeldSiblings(Id first);
  void PushReturned(Cell& cell, Id id);
  void RemoveReturned(Cell& cell, Id id);

  ReuseOdds& odds_;
  uint64_t now_ = 0;
  // When the oldest cohort of each bucket moves on to the next, or before that; and the first.
  std::array<uint64_t, kBuckets> due_;
  uint64_t next_due_ = kNever;

  size_t max_cohorts_ = 0;
  size_t used_cohorts_ = 0;            // ever
  std::unique_ptr<Cohort[]> cohorts_;  // memory that was not used yet is not touched
  Id spare_ = kNone;
  Id newest_ = kNone;
  std::array<Stretch, kBuckets> buckets_;  // of the list of all
  std::array<Id, kKinds> open_;            // where the next block of a kind goes

  std::array<Id, kKinds> newest_of_;  // listed ones of a kind
  std::vector<Cell> cells_;
  SlotHeap<CellRank> cells_by_value_;  // those with shown blocks

  const uint64_t factor_ = (uint64_t{std::random_device()()} << 32 | std::random_device()()) | 1;
  SlotIndex ghosts_;
  size_t max_ghosts_ = 0;
  size_t num_ghosts_ = 0;
  // The oldest cohort that may have ghosts, if there is one; cohorts born before that have none.
  Id first_remembered_ = kNone;
  uint64_t remembered_since_ = 0;
};

}  // namespace kvcache::chain

#endif  // KVCACHE_EVICTION_CHAIN_COHORTS_H_
