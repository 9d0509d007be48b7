#include "kvcache/examples/demo/percentile.h"

#include <algorithm>
#include <cstddef>

namespace kvcache::examples {

absl::Duration Percentile(std::vector<absl::Duration> times, int percent) {
  const size_t rank = (times.size() * percent + 99) / 100;  // from 1
  std::nth_element(times.begin(), times.begin() + (rank - 1), times.end());
  return times[rank - 1];
}

}  // namespace kvcache::examples
