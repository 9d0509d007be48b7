// Namespaces: what a BlockTable knows of each namespace. Internal to core.
#ifndef KVCACHE_CORE_TABLE_NAMESPACES_H_
#define KVCACHE_CORE_TABLE_NAMESPACES_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/table/block_options.h"
#include "kvcache/core/table/pool.h"

namespace kvcache::internal {

struct NamespaceRecord {
  BlockKey root;
  const std::string* model = nullptr;  // nullptr while the record is nobody's
  CacheCounters counters;              // compute_saved is below
  double compute_saved = 0;            // seconds
  CacheUsage usage;                    // of blocks only as of `clears`
  uint32_t epoch = 0;
  uint32_t clears = 0;
  uint32_t generation = 0;
  size_t holders = 0;
  size_t slots = 0;  // of its blocks, also of those that no key reaches any more
  // The list of blocks without parents, newest first: so those of older epochs are at its end.
  Slot first_root = kNoSlot;
  Slot last_root = kNoSlot;
  uint32_t next = 0;  // while it is nobody's
};

// Records by number. One is given back when nobody holds the namespace and it has no blocks; its
// number is used again, with another generation, after TakeDeparted() has told its root key. What
// it has counted stays in departed(). Allocates nothing, see Pool. O(1) each.
class Namespaces {
 public:
  static constexpr size_t kMost = size_t{1} << 22;
  using Records = Pool<NamespaceRecord, &NamespaceRecord::next, 256>;

  Records& records() { return records_; }
  const Records& records() const { return records_; }
  NamespaceRecord& operator[](uint32_t i) { return records_[i]; }
  const NamespaceRecord& operator[](uint32_t i) const { return records_[i]; }

  static uint32_t NumberOf(NamespaceId id) { return static_cast<uint32_t>(id); }
  NamespaceId IdOf(uint32_t i) const {
    return static_cast<NamespaceId>(uint64_t{records_[i].generation} << 32 | i);
  }
  bool Knows(NamespaceId id) const {
    const uint32_t i = NumberOf(id);
    return i < records_.used() && records_[i].model != nullptr && IdOf(i) == id;
  }

  // Held once. `model` outlives the record. REQUIRES: a spare record.
  NamespaceId Add(const BlockKey& root, const std::string* model) {
    const uint32_t i = records_.Take();
    NamespaceRecord& record = records_[i];
    const uint32_t generation = record.generation;
    record = NamespaceRecord();
    record.generation = generation;
    record.root = root;
    record.model = model;
    record.holders = 1;
    record.clears = clears_;
    return IdOf(i);
  }
  void Hold(NamespaceId id) { ++records_[NumberOf(id)].holders; }
  void Unhold(NamespaceId id) {
    NamespaceRecord& record = records_[NumberOf(id)];
    KVCACHE_CHECK(record.holders > 0, "namespace ", NumberOf(id), " is held by nobody");
    --record.holders;
    DepartIfUnused(NumberOf(id));
  }
  void AddSlot(uint32_t i) { ++records_[i].slots; }
  void RemoveSlot(uint32_t i) {
    --records_[i].slots;
    DepartIfUnused(i);
  }

  // The root keys of up to roots.size() records that were given back, which can be used again from
  // now on. Returns how many; fewer than that: no more.
  size_t TakeDeparted(absl::Span<BlockKey> roots) {
    size_t taken = 0;
    for (; taken < roots.size() && first_departed_ != Records::kNone; ++taken) {
      const uint32_t i = first_departed_;
      roots[taken] = records_[i].root;
      first_departed_ = records_[i].next;
      records_.Give(i);
    }
    return taken;
  }
  const CacheCounters& departed() const { return departed_; }

  // Blocks with another epoch than that of their namespace are erased.
  uint32_t EpochOf(const NamespaceRecord& record) const { return record.epoch + clears_; }
  // Erases what is in a namespace, or in all. Returns how many blocks that were.
  size_t Erase(NamespaceRecord& record) {
    const size_t blocks = UsageOf(record).blocks;
    ++record.epoch;
    ForgetBlocks(record);
    return blocks;
  }
  void EraseAll() { ++clears_; }

  void CountBlock(NamespaceRecord& record) {
    if (record.clears != clears_) ForgetBlocks(record);
    ++record.usage.blocks;
  }
  CacheUsage UsageOf(const NamespaceRecord& record) const {
    CacheUsage usage = record.usage;
    if (record.clears != clears_) usage.blocks = usage.blocks_complete = 0;
    return usage;
  }
  static CacheCounters CountersOf(const NamespaceRecord& record) {
    CacheCounters counters = record.counters;
    counters.compute_saved = absl::Seconds(record.compute_saved);
    return counters;
  }

 private:
  void ForgetBlocks(NamespaceRecord& record) {
    record.usage.blocks = record.usage.blocks_complete = 0;
    record.clears = clears_;
  }
  void DepartIfUnused(uint32_t i) {
    NamespaceRecord& record = records_[i];
    if (record.holders > 0 || record.slots > 0) return;
    departed_ += CountersOf(record);
    record.model = nullptr;
    ++record.generation;
    record.next = first_departed_;
    first_departed_ = i;
  }

  Records records_{kMost};
  uint32_t first_departed_ = Records::kNone;
  CacheCounters departed_;
  uint32_t clears_ = 0;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_NAMESPACES_H_
