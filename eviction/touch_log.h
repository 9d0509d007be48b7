#ifndef KVCACHE_EVICTION_TOUCH_LOG_H_
#define KVCACHE_EVICTION_TOUCH_LOG_H_

#include <array>
#include <cstddef>
#include <utility>

#include "absl/types/span.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

// Touches that a policy has noted and will deal with before anybody asks. What it knows of a slot
// is anywhere in memory: for many slots at once, also of many requests, the processor fetches it
// all at the same time. So a policy's Touch() adds to the log, and settles it when it is full, as
// every other call does first.
class TouchLog {
 public:
  // Whether the log is full now, and must be taken before the next Add.
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
