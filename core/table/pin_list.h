// PinList: which blocks are pinned, how often, and since when. Internal to core.
#ifndef KVCACHE_CORE_TABLE_PIN_LIST_H_
#define KVCACHE_CORE_TABLE_PIN_LIST_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/table/block.h"
#include "kvcache/core/table/pool.h"

namespace kvcache::internal {

struct PinRecord {
  Nanos since = 0;
  uint32_t pins = 0;
  uint32_t previous = Block::kNone;
  uint32_t next = Block::kNone;
};

// One record for each pinned block, in the order in which they were first pinned. Records are used
// again, the latest first: so those of short leases stay in the processor's cache. O(1).
class PinList {
 public:
  using Records = Pool<PinRecord, &PinRecord::next, 1024>;

  explicit PinList(size_t max_blocks) : records_(max_blocks) {}

  Records& records() { return records_; }
  const Records& records() const { return records_; }

  // Every pin on every block.
  size_t pins() const { return pins_; }
  // When the block that is pinned the longest was pinned first. REQUIRES: pins() > 0.
  Nanos oldest() const { return records_[first_].since; }

  size_t PinsOf(uint32_t record) const {
    return record == Block::kNone ? 0 : records_[record].pins;
  }

  // Adds a pin to the record of a block, which is Block::kNone when it has no pins; then returns
  // true. REQUIRES: a spare record.
  bool Pin(uint32_t* record, Nanos now) {
    ++pins_;
    if (*record != Block::kNone) {
      ++records_[*record].pins;
      return false;
    }
    PinRecord* r;
    const uint32_t taken = records_.Take(&r);
    *r = {now, 1, last_, Block::kNone};
    (last_ == Block::kNone ? first_ : records_[last_].next) = taken;
    last_ = taken;
    *record = taken;
    return true;
  }

  // Takes one away; sets *record to Block::kNone and returns true when that was the last.
  ABSL_ATTRIBUTE_ALWAYS_INLINE bool Unpin(uint32_t* record) {
    KVCACHE_CHECK(*record != Block::kNone, "a pin that was never taken");
    --pins_;
    PinRecord& r = records_[*record];
    if (ABSL_PREDICT_FALSE(--r.pins > 0)) return false;
    (r.previous == Block::kNone ? first_ : records_[r.previous].next) = r.next;
    (r.next == Block::kNone ? last_ : records_[r.next].previous) = r.previous;
    records_.Give(std::exchange(*record, Block::kNone), &r);
    return true;
  }

 private:
  Records records_;
  uint32_t first_ = Block::kNone;
  uint32_t last_ = Block::kNone;
  size_t pins_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_PIN_LIST_H_
