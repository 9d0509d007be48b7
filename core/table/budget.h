// Budget: how many bytes the blocks of a cache take, and may. Internal to core.
#ifndef KVCACHE_CORE_TABLE_BUDGET_H_
#define KVCACHE_CORE_TABLE_BUDGET_H_

#include <algorithm>
#include <cstddef>

#include "kvcache/core/table/removed.h"

namespace kvcache::internal {

// Bytes are charged before the backend allocates them and given back after it has freed them, so
// what the backend holds is never more than charged(), which is never more than capacity(). A
// newcomer takes over the charge of its victims.
class Budget {
 public:
  // Charges are multiples of `alignment`, a power of two.
  Budget(size_t capacity, size_t alignment)
      : alignment_(alignment), capacity_(capacity), limit_(capacity) {}

  size_t Charge(size_t bytes) const { return (bytes + alignment_ - 1) & ~(alignment_ - 1); }
  size_t capacity() const { return capacity_; }
  size_t charged() const { return charged_; }
  size_t peak() const { return peak_; }
  // What newcomers keep to: the capacity, or less while it is about to shrink.
  size_t limit() const { return limit_; }
  // What is removed but not yet freed.
  size_t being_freed() const { return being_freed_; }

  // Whether a charge fits once `removed` and `more` bytes have gone.
  bool Fits(size_t charge, const Removed& removed, size_t more) const {
    return charged_ + charge <= limit_ + (removed.bytes - removed.reused) + more;
  }
  // Charges a newcomer, first with what is in `removed`. REQUIRES: Fits(charge, *removed, 0).
  void Take(size_t charge, Removed* removed) {
    const size_t reused = std::min(removed->bytes - removed->reused, charge);
    removed->reused += reused;
    charged_ += charge - reused;
    peak_ = std::max(peak_, charged_);
  }
  void Remove(size_t charge, Removed* removed) {
    being_freed_ += charge;
    removed->bytes += charge;
  }
  // A newcomer takes over an extent of `removed` with its charge, for which it was charged already.
  void TakeOver(size_t charge, Removed* removed) {
    being_freed_ -= charge;
    removed->bytes -= charge;
    removed->reused -= charge;
  }
  // What was evicted for a newcomer, and kept charged, is not needed.
  void GiveBack(size_t charge) { charged_ -= charge; }
  void Freed(const Removed& removed) {
    charged_ -= removed.bytes - removed.reused;
    being_freed_ -= removed.bytes;
  }

  // Two steps of a change of the capacity: from the first on newcomers keep to the lower of both;
  // the second comes when what is charged does.
  void Limit(size_t capacity) { limit_ = std::min(capacity_, capacity); }
  void SetCapacity(size_t capacity) { capacity_ = limit_ = capacity; }

 private:
  const size_t alignment_;
  size_t capacity_;  // as told to everybody
  size_t limit_;
  size_t charged_ = 0;
  size_t being_freed_ = 0;
  size_t peak_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_BUDGET_H_
