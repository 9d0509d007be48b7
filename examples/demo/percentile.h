#ifndef KVCACHE_EXAMPLES_DEMO_PERCENTILE_H_
#define KVCACHE_EXAMPLES_DEMO_PERCENTILE_H_

#include <vector>

#include "absl/time/time.h"

namespace kvcache::examples {

// The smallest of `times` that at least `percent` percent of them do not exceed.
// REQUIRES: times is not empty; 0 < percent <= 100.
absl::Duration Percentile(std::vector<absl::Duration> times, int percent);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_PERCENTILE_H_
