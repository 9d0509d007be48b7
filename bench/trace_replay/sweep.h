#ifndef KVCACHE_BENCH_TRACE_REPLAY_SWEEP_H_
#define KVCACHE_BENCH_TRACE_REPLAY_SWEEP_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/bench/trace_replay/replay.h"

namespace kvcache::bench {

struct SweepOptions {
  std::vector<std::string> policies;  // each once
  std::vector<size_t> capacities;     // in blocks, ascending, each once
  // Of each replay; its policy and capacity do not count.
  ReplayOptions replay;
  // Also find the capacity that each policy needs: more replays, between those above.
  bool find_needs = false;
};

// One policy at one capacity.
struct SweepResult {
  ReplayResult replay;
  // (hits - LRU's hits) / (optimum's - LRU's), of plain hits; none where LRU is at the optimum.
  std::optional<double> gap_closed;
};

// The least memory for most of what memory can give.
struct Need {
  std::string policy;  // "optimum" for the optimum
  size_t capacity_blocks = 0;
};

// The share of the possible hits that a Need is about.
inline constexpr double kEnough = 0.95;

struct Sweep {
  std::vector<SweepResult> results;      // by policy, then capacity, as in the options
  std::vector<double> optimum;           // [capacities], plain hit ratio
  double possible_prefix_hit_ratio = 0;  // with all the memory in the world
  // For each policy, and for the optimum as the last: the smallest capacity, to within 1 %, whose
  // prefix hits are kEnough of the possible ones (the optimum's hits are plain). Never more than
  // the blocks of the trace. Found by bisection, which takes it that more memory is no worse.
  std::vector<Need> needs;
};

// Called before each replay: how many are done, of how many there will be at most, and which one is
// next.
using Progress = absl::FunctionRef<void(size_t done, size_t all, absl::string_view next)>;

// Errors: those of Replay().
absl::StatusOr<Sweep> RunSweep(const Workload& workload, const SweepOptions& options,
                               Progress progress);

// A few round numbers up to the number of blocks of the trace.
std::vector<size_t> DefaultCapacities(size_t unique_blocks);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_SWEEP_H_
