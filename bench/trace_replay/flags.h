#ifndef KVCACHE_BENCH_TRACE_REPLAY_FLAGS_H_
#define KVCACHE_BENCH_TRACE_REPLAY_FLAGS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcache/bench/trace_replay/replay.h"

namespace kvcache::bench {

// The command line, checked.
struct ReplayFlags {
  std::string trace;
  std::vector<std::string> policies;
  std::vector<size_t> capacities;  // ascending, each once; empty: to be chosen
  TouchOrder touch_order = TouchOrder::kForward;
  uint64_t bytes_per_token = 0;   // 0: not said
  uint32_t tokens_per_block = 0;  // 0: as the trace has it
  absl::Duration ttl;
  std::string json;  // empty: none
  std::string html;  // empty: none
  bool payload = false;
  bool skip_bad_lines = false;
};

std::string Usage();

// Errors: kInvalidArgument, naming the flag, its value and what was expected.
absl::StatusOr<ReplayFlags> CheckFlags();

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_FLAGS_H_
