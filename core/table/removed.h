// Removed: what a BlockTable has given up, to be freed without the lock. Internal to core.
#ifndef KVCACHE_CORE_TABLE_REMOVED_H_
#define KVCACHE_CORE_TABLE_REMOVED_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/types/span.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/storage/extent.h"

namespace kvcache::internal {

// What is done to blocks in one hold of the lock, at most.
inline constexpr size_t kBlocksPerLock = 256;

// Extents that no block has any more, for the cache to free without its lock and then to settle by
// BlockTable::Freed(), and memory of blocks, which goes with this object. Of a fixed size, so that
// filling it under the lock allocates nothing.
class Removed {
 public:
  Removed() {}  // leaves room_ as it is: most calls remove nothing
  ~Removed() {
    while (memory_ != nullptr) delete[] std::exchange(memory_, NextOf(memory_));
  }
  Removed(const Removed&) = delete;
  Removed& operator=(const Removed&) = delete;

  size_t bytes = 0;   // of all extents and of blocks without, as charged to the budget
  size_t reused = 0;  // among them: charged to the newcomer that they made room for already
  bool more = false;  // RemoveRetired() has something to do
  // Whether the last newcomer has taken over the extent of another slot: the backend is to be told.
  bool moved = false;

  bool empty() const { return bytes == 0 && !more; }
  // Whether a loop over many blocks has to stop here and go on in the next hold of the lock. Behind
  // that there is room for what one call may add beyond its loops.
  bool full() const { return count_ >= kBlocksPerLock; }

  absl::Span<const Extent> extents() const { return {room_, count_}; }
  // Of the block in `slot`.
  void Add(const Extent& extent, Slot slot) {
    KVCACHE_CHECK(count_ < kRoom, "more than ", kRoom, " blocks in one hold of the lock");
    slots_[count_] = slot;
    room_[count_++] = extent;
  }
  // Takes one of this size out again, if there is one in `extents()`, and says whose it was.
  bool TakeOfSize(size_t size, Extent* extent, Slot* slot) {
    const auto end = room_ + count_;
    const auto found =
        std::find_if(room_, end, [size](const Extent& extent) { return extent.size == size; });
    if (found == end) return false;
    *extent = *found;
    *slot = slots_[found - room_];
    *found = room_[--count_];
    slots_[found - room_] = slots_[count_];
    return true;
  }

  // Takes over memory of one word and more, from new[]; nullptr: none.
  void Keep(uint64_t* memory) {
    if (memory == nullptr) return;
    std::memcpy(memory, &memory_, sizeof(memory_));
    memory_ = memory;
  }

 private:
  static constexpr size_t kRoom = 3 * kBlocksPerLock;

  static uint64_t* NextOf(const uint64_t* memory) {
    uint64_t* next;
    std::memcpy(&next, memory, sizeof(next));
    return next;
  }

  size_t count_ = 0;
  uint64_t* memory_ = nullptr;  // a list through the first words
  union {
    Extent room_[kRoom];
  };
  Slot slots_[kRoom];  // as room_
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_REMOVED_H_
