#ifndef KVCACHE_EVICTION_TOUCH_LOG_H_
#define KVCACHE_EVICTION_TOUCH_LOG_H_

#include <array>
#include <cstddef>
#include <utility>

#include "absl/types/span.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// Touches that a policy has noted and deals with before it is asked for anything. The nodes of
// slots are all over memory, so a policy that moved each slot at its hit would wait for several
// cache misses in a row. For many slots at once, also of many requests, the processor fetches all
// of them at the same time. So a policy's Touch() adds to the log and takes it when it is full, and
// every other call takes it first.
class TouchLog {
 public:
  // Returns true when the log is full, and must be taken before the next Add.
  bool Add(Slot slot) {
    slots_[size_++] = slot;
    return size_ == slots_.size();
  }

  bool empty() const { return size_ == 0; }

  // All of them, in the order in which they were added, until the next Add. Empties the log.
  absl::Span<const Slot> Take() { return {slots_.data(), std::exchange(size_, 0)}; }

 private:
  std::array<Slot, 64> slots_;
  size_t size_ = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_TOUCH_LOG_H_
