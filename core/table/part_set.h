// PartSet: some of the parts of a block. Internal to core.
#ifndef KVCACHE_CORE_TABLE_PART_SET_H_
#define KVCACHE_CORE_TABLE_PART_SET_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvcache::internal {

// A set of numbers below a limit. Numbers from 64 on are kept in memory of the caller's. A default
// one has the limit 64.
class PartSet {
 public:
  // Words of memory that a set with this limit needs besides the object. REQUIRES: parts > 0.
  static size_t WordsBeyond(uint32_t parts) { return (parts - 1) / 64; }

  // An empty set of parts < parts. `beyond` has WordsBeyond(parts) words and outlives the use.
  void Reset(uint32_t parts, uint64_t* beyond) {
    beyond_ = beyond;
    Clear(parts);
  }
  // REQUIRES: `parts` is the limit.
  void Clear(uint32_t parts) {
    first_ = 0;
    std::fill_n(beyond_, WordsBeyond(parts), 0);
  }
  bool Has(uint32_t part) const { return Word(part) >> (part % 64) & 1; }
  void Add(uint32_t part) { Word(part) |= uint64_t{1} << (part % 64); }
  void Remove(uint32_t part) { Word(part) &= ~(uint64_t{1} << (part % 64)); }

 private:
  uint64_t& Word(uint32_t part) { return part < 64 ? first_ : beyond_[part / 64 - 1]; }
  const uint64_t& Word(uint32_t part) const { return part < 64 ? first_ : beyond_[part / 64 - 1]; }

  uint64_t first_ = 0;
  uint64_t* beyond_ = nullptr;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_PART_SET_H_
