// PartSet: some of the parts of a block. Internal to core.
#ifndef KVCACHE_CORE_PART_SET_H_
#define KVCACHE_CORE_PART_SET_H_

#include <cstddef>
#include <cstdint>

#include "absl/container/inlined_vector.h"

namespace kvcache::internal {

// A set of numbers below a limit; up to 64 take no memory besides the object. A default one has the
// limit 0.
class PartSet {
 public:
  // Empties the set. From now on parts are < parts.
  void Reset(uint32_t parts) {
    words_.clear();
    words_.resize((parts + 63) / 64);
  }
  bool Has(uint32_t part) const { return words_[part / 64] >> (part % 64) & 1; }
  void Add(uint32_t part) { words_[part / 64] |= uint64_t{1} << (part % 64); }
  void Remove(uint32_t part) { words_[part / 64] &= ~(uint64_t{1} << (part % 64)); }

 private:
  absl::InlinedVector<uint64_t, 1> words_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_PART_SET_H_
