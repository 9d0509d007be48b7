#ifndef KVCACHE_CORE_BASE_CLOCK_H_
#define KVCACHE_CORE_BASE_CLOCK_H_

#include "absl/time/time.h"

namespace kvcache {

// Where the cache reads the time. Thread-safe: Now() may be called by any thread at any time, also
// while the cache holds its lock, so it must be quick and must not call the cache.
class Clock {
 public:
  virtual ~Clock() = default;

  // Never goes backwards by more than a system clock does; deadlines are compared with it.
  virtual absl::Time Now() const = 0;

  // The system's clock, as of the last tick of the kernel, at most 10 ms ago: reading it costs a
  // few nanoseconds. Lives for ever.
  static const Clock& Real();
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_CLOCK_H_
