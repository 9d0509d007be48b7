#include "kvcache/core/base/clock.h"

#include <time.h>

namespace kvcache {
namespace {

class RealClock final : public Clock {
 public:
  Nanos Now() const override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return Nanos{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  }
};

}  // namespace

const Clock& Clock::Real() {
  static const RealClock* const clock = new RealClock;
  return *clock;
}

}  // namespace kvcache
