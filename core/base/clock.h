#ifndef KVCACHE_CORE_BASE_CLOCK_H_
#define KVCACHE_CORE_BASE_CLOCK_H_

#include "kvcache/core/base/nanos.h"

namespace kvcache {

// Tells a cache the time. Thread-safe: any thread may call Now() at any time, also while the cache
// holds its lock, so it must be quick and must not call the cache.
class Clock {
 public:
  virtual ~Clock() = default;

  // Never negative, and never less than what it returned before, to whichever thread: deadlines are
  // compared with it.
  virtual Nanos Now() const = 0;

  // The system's monotonic clock, as of the last tick of the kernel, at most 10 ms ago: reading it
  // costs a few nanoseconds. Nobody can set it. It stands still while the machine is suspended, so
  // a block lives as long as the machine has run. Lives for ever.
  static const Clock& Real();
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_CLOCK_H_
