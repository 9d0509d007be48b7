// GapMaker: evicts blocks that lie side by side, for one that fits nowhere. Internal to core.
#ifndef KVCACHE_CORE_CACHE_GAP_MAKER_H_
#define KVCACHE_CORE_CACHE_GAP_MAKER_H_

#include <array>
#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/storage/extent.h"

namespace kvcache {

class Cache;

namespace internal {

class BlockTable;

// Makes room in one piece where what is free is enough, but in pieces. A gap is a row of extents,
// used and free, as long as the newcomer and no longer than it has to be; its blocks go, with what
// descends from them, if all of them may. Of the gaps at the policy's first kPlaces victims the one
// goes that costs the fewest bytes, of which those of these victims count little; if none of those
// can, the first one that can of all. So what goes is less than the newcomer and one block besides,
// and what descends from them.
//
// Nothing is evicted unless all of a gap can go. The lock of the cache is held for kBlocksPerLock
// steps at a time. Each of these is O(1); all of them together O(blocks), and that only if blocks
// that cannot go are nearly everywhere.
class GapMaker {
 public:
  // For a block of `bytes`, which are charged, as `incoming` describes it.
  GapMaker(Cache& cache, size_t bytes, const EntryInfo& incoming);

  enum class Result {
    kMade,  // something has changed: the block may fit now, unless others were faster
    kNone,  // every gap has something in it that cannot go
    kRefusedByPolicy,
    kNoMemory,
  };
  // What is evicted stays charged and is added to *credit, so that nobody else takes its room.
  // REQUIRES: the caller has the cache's turn to go step by step.
  Result Make(size_t* credit);

 private:
  static constexpr size_t kPlaces = 64;
  static constexpr size_t kListed = 256;

  // Removes what has expired; whether there was any.
  bool RemoveExpired();
  // Sets gap_ to the cheapest one at the policy's first victims, or to none.
  Result FindCheapest();
  // What evicting the owner of an extent costs.
  size_t CostOf(const BlockTable& table, const Neighbour& n, size_t* steps) const;
  // The cheapest gap of a row, if it costs less than *cost, which it sets.
  absl::Span<const Neighbour> CheapestOf(absl::Span<const Neighbour> row, size_t* cost);
  // Chooses the blocks of the first gap that can go.
  Result ChooseFirst();
  // Goes on along a row, the blocks of which it chooses; begins a new gap behind each that cannot
  // go. Returns whether the gap is wide enough.
  bool ExtendGap(absl::Span<const Neighbour> row);
  // Takes back what the gap need not begin with; false when something else cannot go now.
  bool TrimGap();
  // Chooses the blocks of a row up to the first that cannot go; returns how many extents that were.
  size_t Choose(absl::Span<const Neighbour> row);
  void TakeBack();
  absl::Span<const Neighbour> List(const Extent& from, bool around);
  // Whether the newcomer fits into one of them that is free.
  bool HasRoom(absl::Span<const Neighbour> row) const;
  bool IsWide(const Neighbour& first, const Neighbour& last) const {
    return last.extent.offset + last.extent.size - first.extent.offset >= bytes_;
  }

  Cache& cache_;
  const EntryInfo& incoming_;
  const size_t bytes_;
  std::array<Extent, kPlaces> places_;  // of the first victims, by offset
  size_t num_places_ = 0;
  std::array<Neighbour, kListed> listed_;
  std::array<size_t, kListed> costs_;
  std::vector<Neighbour> gap_;
  std::vector<Slot> victims_;
  std::vector<bool> dead_ends_;  // by slot
  bool passing_ = false;         // an extent was passed over that is just coming or going
};

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_GAP_MAKER_H_
