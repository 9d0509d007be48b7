#ifndef KVCACHE_BENCH_TRACE_REPLAY_REPORT_H_
#define KVCACHE_BENCH_TRACE_REPLAY_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "kvcache/bench/trace_replay/sweep.h"
#include "kvcache/examples/demo/json.h"

namespace kvcache::bench {

// All that there is to say about a sweep.
struct Report {
  std::string trace;  // its path
  size_t requests = 0;
  size_t block_references = 0;
  size_t unique_blocks = 0;
  size_t skipped_lines = 0;
  uint32_t tokens_per_block = 0;  // 0: the trace does not say
  uint64_t bytes_per_token = 0;   // 0: not said
  TouchOrder touch_order = TouchOrder::kForward;
  std::vector<std::string> policies;
  std::vector<size_t> capacities;
  Sweep sweep;  // of these policies and capacities

  const SweepResult& result(size_t policy, size_t capacity) const {
    return sweep.results[policy * capacities.size() + capacity];
  }
};

// {"trace", "requests", "block_references", "unique_blocks", "results": [{"policy",
// "capacity_blocks", "touch_order", "plain_hit_ratio", "prefix_hit_ratio", "token_hit_ratio",
// "evictions", ...}], ...}. Ratios are of all block references, or of all prompt tokens. Of each
// result also: "expirations", "refused", "optimum_hit_ratio" (plain), "gap_closed" (null where LRU
// is at the optimum), "seconds" and, of real bytes, "payload".
examples::JsonObject Json(const Report& report);

// For people; every line ends with a line break.
std::string Text(const Report& report);

// For each policy, what it needs for kEnough of the possible hits, in a sentence; the optimum last.
std::vector<std::string> NeedSentences(const Report& report);

std::string FormatCount(uint64_t count);  // "204,800"
std::string FormatPercent(double ratio);  // "36.64 %"
// "1.5 GiB"; empty when the report does not say what a block takes.
std::string FormatMemory(const Report& report, size_t blocks);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_REPORT_H_
