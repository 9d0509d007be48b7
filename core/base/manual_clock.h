#ifndef KVCACHE_CORE_BASE_MANUAL_CLOCK_H_
#define KVCACHE_CORE_BASE_MANUAL_CLOCK_H_

#include <atomic>

#include "absl/time/time.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/base/nanos.h"

namespace kvcache {

// A clock that stands still until it is told otherwise: for tests and for replays, whose time comes
// from a trace. Thread-safe. Resolution: one nanosecond. Aborts rather than go back.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(Nanos start = 1'000'000'000'000'000) : now_(start) {
    KVCACHE_CHECK(start >= 0, "start ", start);
  }

  Nanos Now() const override { return now_.load(); }

  // REQUIRES: `by` is not negative, and short enough for the time to be less than kNever.
  void Advance(absl::Duration by) {
    const Nanos length = ToNanos(by);
    KVCACHE_CHECK(length >= 0, "the clock cannot go back by ", -length, " ns");
    now_.fetch_add(length);
  }

  // REQUIRES: `now` is not before Now(), and no other thread moves the clock meanwhile.
  void Set(Nanos now) {
    KVCACHE_CHECK(now >= now_.load(), "the clock cannot go back from ", now_.load(), " to ", now);
    now_.store(now);
  }

 private:
  std::atomic<Nanos> now_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_MANUAL_CLOCK_H_
