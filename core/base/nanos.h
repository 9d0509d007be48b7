// Nanos: times and lengths of time on a cache's own time line.
#ifndef KVCACHE_CORE_BASE_NANOS_H_
#define KVCACHE_CORE_BASE_NANOS_H_

#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace kvcache {

// Either a time, in nanoseconds since an origin that only its Clock knows, or a length of time.
// Times never go back and say nothing about the date: they are compared with times of the same
// clock only, and are never stored durably. 8 bytes where absl::Time has 12, and compared in one
// instruction.
using Nanos = int64_t;

// Later than every time; as a length: without end.
inline constexpr Nanos kNever = std::numeric_limits<Nanos>::max();

// Rounds towards zero. kNever for everything longer than 292 years.
inline Nanos ToNanos(absl::Duration length) {
  // The usual one: absl divides for it.
  return length == absl::InfiniteDuration() ? kNever : absl::ToInt64Nanoseconds(length);
}

inline absl::Duration ToDuration(Nanos length) {
  return length == kNever ? absl::InfiniteDuration() : absl::Nanoseconds(length);
}

// `length` after `now`; kNever where that would be later than all times. REQUIRES: neither is
// negative.
constexpr Nanos Later(Nanos now, Nanos length) {
  return length > kNever - now ? kNever : now + length;
}

namespace internal {
using kvcache::kNever;
using kvcache::Later;
using kvcache::Nanos;
using kvcache::ToDuration;
using kvcache::ToNanos;
}  // namespace internal

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_NANOS_H_
