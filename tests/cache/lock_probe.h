// For tests: how often a thread takes locks, and how much processor time it spends with each.
#ifndef KVCACHE_TESTS_CACHE_LOCK_PROBE_H_
#define KVCACHE_TESTS_CACHE_LOCK_PROBE_H_

#include <cstddef>

#include "absl/time/time.h"

namespace kvcache {

// Watches the pthread mutex that this thread locks first while the object lives, by replacing the
// functions of the C library in the whole program. Processor time does not count while another
// program has the processor, so the longest hold says what was done under the lock, not how busy
// the machine was. One at a time for each thread; not with sanitizers, which replace them too.
class LockProbe {
 public:
  static constexpr bool kWorks =
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
      false;
#else
      true;
#endif

  LockProbe();
  ~LockProbe();

  absl::Duration longest_hold() const;
  absl::Duration all_holds() const;
  size_t holds() const;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_CACHE_LOCK_PROBE_H_
