// PartSet: some of the parts of a block. Internal to core.
#ifndef KVCACHE_CORE_TABLE_PART_SET_H_
#define KVCACHE_CORE_TABLE_PART_SET_H_

#include <cstdint>
#include <vector>

namespace kvcache::internal {

// A set of numbers below a limit; up to 64 take no memory besides the object. A default one has the
// limit 64.
class PartSet {
 public:
  // Empties the set. From now on parts are < parts.
  void Reset(uint32_t parts) {
    first_ = 0;
    if (parts > 64) rest_.assign((parts - 1) / 64, 0);
  }
  bool Has(uint32_t part) const { return Word(part) >> (part % 64) & 1; }
  void Add(uint32_t part) { Word(part) |= uint64_t{1} << (part % 64); }
  void Remove(uint32_t part) { Word(part) &= ~(uint64_t{1} << (part % 64)); }

 private:
  uint64_t& Word(uint32_t part) { return part < 64 ? first_ : rest_[part / 64 - 1]; }
  const uint64_t& Word(uint32_t part) const { return part < 64 ? first_ : rest_[part / 64 - 1]; }

  uint64_t first_ = 0;
  std::vector<uint64_t> rest_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_PART_SET_H_
