#ifndef KVCACHE_BENCH_HARNESS_SUMMARY_H_
#define KVCACHE_BENCH_HARNESS_SUMMARY_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/bench/harness/measure.h"

namespace kvcache::bench {

// What the times of one run, or of several, amount to.
struct Figures {
  double gb_per_s = 0;  // payload bytes copied or shown, in 10^9, over the time spent in the calls
  double ops_per_s = 0;
  double p50_us = 0;
  double p99_us = 0;
};

// REQUIRES: `times` is not empty, and not all of it zero.
Figures Summarize(const std::vector<absl::Duration>& times, size_t payload_bytes);

// The median of each figure on its own; of an even number the mean of the middle two. REQUIRES: at
// least one run.
Figures Median(absl::Span<const Figures> runs);

struct Result {
  std::string system;
  Operation operation = Operation::kPutNew;
  size_t payload_bytes = 0;
  Figures figures;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_HARNESS_SUMMARY_H_
