// PinList: which blocks are pinned, how often, and since when. Internal to core.
#ifndef KVCACHE_CORE_TABLE_PIN_LIST_H_
#define KVCACHE_CORE_TABLE_PIN_LIST_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/table/block.h"

namespace kvcache::internal {

// One record for each pinned block, in the order in which they were first pinned. Records are used
// again, the latest first: so those of short leases stay in the processor's cache, and only more
// pinned blocks than ever before cost an allocation. O(1).
class PinList {
 public:
  // Every pin on every block.
  size_t pins() const { return pins_; }
  // When the block that is pinned the longest was pinned first. REQUIRES: pins() > 0.
  Nanos oldest() const { return records_[first_].since; }

  size_t PinsOf(uint32_t record) const {
    return record == Block::kNone ? 0 : records_[record].pins;
  }

  // Adds a pin to the record of a block, which is Block::kNone when it has no pins.
  void Pin(uint32_t* record, Nanos now) {
    ++pins_;
    if (*record != Block::kNone) {
      ++records_[*record].pins;
      return;
    }
    if (free_ == Block::kNone) {
      free_ = static_cast<uint32_t>(records_.size());
      records_.push_back({});
    }
    const uint32_t taken = free_;
    free_ = records_[taken].next;
    records_[taken] = {now, 1, last_, Block::kNone};
    (last_ == Block::kNone ? first_ : records_[last_].next) = taken;
    last_ = taken;
    *record = taken;
  }

  // Takes one away; sets *record to Block::kNone and returns true when that was the last.
  bool Unpin(uint32_t* record) {
    KVCACHE_CHECK(*record != Block::kNone, "a pin that was never taken");
    --pins_;
    Record& r = records_[*record];
    if (--r.pins > 0) return false;
    (r.previous == Block::kNone ? first_ : records_[r.previous].next) = r.next;
    (r.next == Block::kNone ? last_ : records_[r.next].previous) = r.previous;
    r.next = free_;
    free_ = *record;
    *record = Block::kNone;
    return true;
  }

 private:
  struct Record {
    Nanos since = 0;
    uint32_t pins = 0;
    uint32_t previous = Block::kNone;
    uint32_t next = Block::kNone;  // of a free record: the next free one
  };

  std::vector<Record> records_;
  uint32_t free_ = Block::kNone;
  uint32_t first_ = Block::kNone;
  uint32_t last_ = Block::kNone;
  size_t pins_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_PIN_LIST_H_
