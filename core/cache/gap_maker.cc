#include "kvcache/core/cache/gap_maker.h"

#include <algorithm>
#include <new>

#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache::internal {
namespace {

// How often a look at all extents begins again because others have changed one at the wrong moment.
constexpr int kMostStarts = 16;

// What the policy gives up first anyway costs this much less.
constexpr size_t kVictimsDiscount = 16;

bool IsBefore(const Extent& a, const Extent& b) { return a.offset < b.offset; }

size_t RoundUp(size_t bytes, size_t alignment) {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

}  // namespace

GapMaker::GapMaker(Cache& cache, size_t bytes, const EntryInfo& incoming)
    : cache_(cache),
      incoming_(incoming),
      bytes_(RoundUp(bytes, cache.backend_->traits().alignment)) {}

GapMaker::Result GapMaker::Make(size_t* credit) {
  if (RemoveExpired()) return Result::kMade;
  passing_ = false;
  Result result = Result::kNone;
  try {
    result = FindCheapest();
    if (result == Result::kMade && Choose(gap_) < gap_.size()) {
      TakeBack();
      result = Result::kNone;
    }
    if (result == Result::kNone) result = ChooseFirst();
  } catch (const std::bad_alloc&) {
    TakeBack();
    return Result::kNoMemory;
  }
  if (result == Result::kMade) {
    cache_.SettleChosen(victims_, /*evict=*/true, credit);
    victims_.clear();
  }
  if (result != Result::kNone) return result;
  MutexLock lock(cache_.mu_);
  if (cache_.IsFreeing()) {
    cache_.changed_.Wait(cache_.mu_);
    return Result::kMade;
  }
  return passing_ ? Result::kMade : Result::kNone;
}

bool GapMaker::RemoveExpired() {
  Removed removed;
  {
    MutexLock lock(cache_.mu_);
    const Nanos now = cache_.Now();
    cache_.table_->EndPriorities(now);
    if (cache_.table_->HasExpired(now)) {
      cache_.table_->RemoveExpired(kBlocksPerLock, now, &removed);
    }
  }
  cache_.Free(removed);
  return !removed.empty();
}

GapMaker::Result GapMaker::FindCheapest() {
  Room room;
  {
    MutexLock lock(cache_.mu_);
    num_places_ = cache_.table_->PeekVictims(incoming_, absl::MakeSpan(places_), &room);
  }
  if (room == Room::kRefusedByPolicy) return Result::kRefusedByPolicy;
  std::sort(places_.begin(), places_.begin() + num_places_, IsBefore);
  gap_.clear();
  size_t cost = BlockTable::kCannotGo;
  for (const Extent& place : absl::MakeConstSpan(places_).first(num_places_)) {
    const auto listed = List(place, /*around=*/true);
    if (HasRoom(listed)) {
      gap_.clear();
      return Result::kMade;
    }
    const auto cheapest = CheapestOf(listed, &cost);
    if (!cheapest.empty()) gap_.assign(cheapest.begin(), cheapest.end());
  }
  return gap_.empty() ? Result::kNone : Result::kMade;
}

absl::Span<const Neighbour> GapMaker::List(const Extent& from, bool around) {
  const size_t listed = cache_.backend_->ListExtents(from, around, bytes_, absl::MakeSpan(listed_));
  return absl::MakeConstSpan(listed_).first(listed);
}

bool GapMaker::HasRoom(absl::Span<const Neighbour> row) const {
  return std::any_of(row.begin(), row.end(),
                     [this](const Neighbour& n) { return !n.used && n.extent.size >= bytes_; });
}

size_t GapMaker::CostOf(const BlockTable& table, const Neighbour& n, size_t* steps) const {
  if (!table.Holds(n.owner, n.extent)) return BlockTable::kCannotGo;
  const size_t cost = table.CostOf(n.owner, incoming_, steps);
  if (cost == BlockTable::kCannotGo) return cost;
  const bool first_victim =
      std::binary_search(places_.begin(), places_.begin() + num_places_, n.extent, IsBefore);
  return first_victim ? cost / kVictimsDiscount : cost;
}

absl::Span<const Neighbour> GapMaker::CheapestOf(absl::Span<const Neighbour> row, size_t* cost) {
  absl::Span<const Neighbour> cheapest;
  size_t steps = kBlocksPerLock;
  size_t first = 0;
  size_t sum = 0;
  MutexLock lock(cache_.mu_);
  const BlockTable& table = *cache_.table_;
  for (size_t last = 0; last < row.size(); ++last) {
    const Neighbour& n = row[last];
    costs_[last] = n.used ? CostOf(table, n, &steps) : 0;
    if (costs_[last] == BlockTable::kCannotGo) {
      first = last + 1;
      sum = 0;
      continue;
    }
    sum += costs_[last];
    while (first < last && IsWide(row[first + 1], n)) sum -= costs_[first++];
    if (IsWide(row[first], n) && sum < *cost) {
      *cost = sum;
      cheapest = row.subspan(first, last - first + 1);
    }
  }
  return cheapest;
}

GapMaker::Result GapMaker::ChooseFirst() {
  for (int starts = 0; starts < kMostStarts; ++starts) {
    dead_ends_.assign(cache_.slots_, false);
    gap_.clear();
    Extent from;
    for (auto row = List(from, false); !row.empty(); row = List(from, false)) {
      if (HasRoom(row)) {
        TakeBack();
        return Result::kMade;
      }
      if (from.size > 0) row.remove_prefix(1);  // the last one of before
      if (row.empty()) {
        TakeBack();
        return Result::kNone;
      }
      from = row.back().extent;
      if (ExtendGap(row)) {
        if (TrimGap()) return Result::kMade;
        break;
      }
    }
    // Others have changed the extent to go on at, or a block of the gap.
    TakeBack();
  }
  passing_ = true;
  return Result::kNone;
}

bool GapMaker::ExtendGap(absl::Span<const Neighbour> row) {
  while (!row.empty()) {
    const Neighbour& first = gap_.empty() ? row.front() : gap_.front();
    size_t length = 0;
    bool wide = false;
    while (length < row.size() && !wide) wide = IsWide(first, row[length++]);
    const size_t chosen = Choose(row.first(length));
    gap_.insert(gap_.end(), row.begin(), row.begin() + chosen);
    if (chosen < length) {
      TakeBack();
      gap_.clear();
      row.remove_prefix(chosen + 1);
    } else if (wide) {
      return true;
    } else {
      row.remove_prefix(length);
    }
  }
  return false;
}

bool GapMaker::TrimGap() {
  size_t first = 0;
  while (first + 1 < gap_.size() && IsWide(gap_[first + 1], gap_.back())) ++first;
  if (first == 0) return true;
  TakeBack();
  gap_.erase(gap_.begin(), gap_.begin() + first);
  return Choose(gap_) == gap_.size();
}

size_t GapMaker::Choose(absl::Span<const Neighbour> row) {
  size_t i = 0;
  Slot at = kNoSlot;
  while (i < row.size()) {
    BlockTable::ReserveVictims(&victims_);
    MutexLock lock(cache_.mu_);
    BlockTable& table = *cache_.table_;
    size_t steps = kBlocksPerLock;
    while (i < row.size() && steps > 0) {
      const Neighbour& n = row[i];
      if (n.used && at == kNoSlot) {
        at = n.owner;
        if (!table.Holds(n.owner, n.extent)) {
          passing_ = true;
          return i;
        }
      }
      if (n.used) {
        const TreeChoice choice = table.ChooseTree(
            n.owner, incoming_, &at, &steps, dead_ends_.empty() ? nullptr : &dead_ends_, &victims_);
        if (choice == TreeChoice::kCannotGo) return i;
        if (choice == TreeChoice::kStepByStep) continue;
        at = kNoSlot;
      }
      ++i;
    }
  }
  return i;
}

void GapMaker::TakeBack() {
  cache_.SettleChosen(victims_, /*evict=*/false, nullptr);
  victims_.clear();
}

}  // namespace kvcache::internal
