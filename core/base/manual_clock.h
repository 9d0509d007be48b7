#ifndef KVCACHE_CORE_BASE_MANUAL_CLOCK_H_
#define KVCACHE_CORE_BASE_MANUAL_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "kvcache/core/base/clock.h"

namespace kvcache {

// A clock that stands still until it is told otherwise: for tests and for replays, whose time comes
// from a trace. Thread-safe. Resolution: one nanosecond.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(absl::Time start = absl::FromUnixSeconds(1'000'000'000))
      : nanos_(absl::ToUnixNanos(start)) {}

  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_.fetch_add(absl::ToInt64Nanoseconds(by)); }
  void Set(absl::Time now) { nanos_.store(absl::ToUnixNanos(now)); }

 private:
  std::atomic<int64_t> nanos_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_MANUAL_CLOCK_H_
