#include "kvcache/bench/harness/summary.h"

#include <algorithm>

#include "kvcache/examples/demo/percentile.h"

namespace kvcache::bench {
namespace {

double MedianOf(absl::Span<const Figures> runs, double Figures::*figure) {
  std::vector<double> values;
  for (const Figures& run : runs) values.push_back(run.*figure);
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

}  // namespace

Figures Summarize(const std::vector<absl::Duration>& times, size_t payload_bytes) {
  absl::Duration total;
  for (const absl::Duration time : times) total += time;
  const double ops_per_s = static_cast<double>(times.size()) / absl::ToDoubleSeconds(total);
  return {.gb_per_s = ops_per_s * static_cast<double>(payload_bytes) / 1e9,
          .ops_per_s = ops_per_s,
          .p50_us = absl::ToDoubleMicroseconds(examples::Percentile(times, 50)),
          .p99_us = absl::ToDoubleMicroseconds(examples::Percentile(times, 99))};
}

Figures Median(absl::Span<const Figures> runs) {
  return {.gb_per_s = MedianOf(runs, &Figures::gb_per_s),
          .ops_per_s = MedianOf(runs, &Figures::ops_per_s),
          .p50_us = MedianOf(runs, &Figures::p50_us),
          .p99_us = MedianOf(runs, &Figures::p99_us)};
}

}  // namespace kvcache::bench
