#ifndef KVCACHE_BENCH_HARNESS_REPORT_H_
#define KVCACHE_BENCH_HARNESS_REPORT_H_

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "kvcache/bench/harness/summary.h"

namespace kvcache::bench {

// Averages of 1, 5 and 15 minutes; NaN where the system has none.
std::array<double, 3> LoadAverage();

struct Report {
  size_t working_set_mb = 0;
  size_t rounds = 0;
  std::array<double, 3> load_before = {};
  std::array<double, 3> load_after = {};
  struct Skipped {
    std::string system;
    std::string reason;
  };
  std::vector<Skipped> skipped;
  std::vector<Result> results;
};

// For people.
std::string Table(const Report& report);

// An object whose "results" is a list of {"system", "operation", "payload_bytes", "gb_per_s",
// "ops_per_s", "p50_us", "p99_us"}.
std::string Json(const Report& report);

// "128 KiB", "4 MiB".
std::string FormatPayload(size_t bytes);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_HARNESS_REPORT_H_
