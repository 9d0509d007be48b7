#ifndef KVCACHE_EXAMPLES_DEMO_REPORT_H_
#define KVCACHE_EXAMPLES_DEMO_REPORT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/examples/demo/summary.h"
#include "kvcache/examples/demo/table.h"

namespace kvcache::examples {

std::string FormatMs(absl::Duration duration);       // "312.4 ms"
std::string FormatSeconds(absl::Duration duration);  // "31.24 s"
std::string FormatFactor(double factor);             // "12.3x"
std::string FormatRate(Rate rate);                   // "97 of 100 = 97.0 %"

// What the requests with one store amount to.
struct StoreResult {
  std::string name;
  Latency latency;
  Reuse reuse;
  CacheStats stats;
  size_t logits_mismatches = 0;
};

// What a demo has measured; at least one request.
struct Results {
  size_t requests = 0;
  size_t unique_prompts = 0;
  int layers = 0;
  size_t logits = 0;  // compared with each store
  Latency without;    // everything computed
  std::vector<StoreResult> with;
};

// Rows on hits, bytes, time saved and logits, with a cell for each store.
std::vector<TableRow> ReuseRows(const Results& results);

// What the rows mean, and which store refused what; every line ends with a line break.
std::string Notes(const Results& results);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_REPORT_H_
