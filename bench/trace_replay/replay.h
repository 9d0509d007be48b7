// Replaying a trace through a Cache.
#ifndef KVCACHE_BENCH_TRACE_REPLAY_REPLAY_H_
#define KVCACHE_BENCH_TRACE_REPLAY_REPLAY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/bench/trace_replay/payload.h"
#include "kvcache/bench/trace_replay/trace.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/stats/stats.h"

namespace kvcache::bench {

enum class TouchOrder {
  // The definition of reference simulators, for policies that know no prompts: blocks have no
  // parents. For each request, first the leading blocks that are there are counted, which changes
  // nothing; then its blocks are accessed in the order of the prompt: Get on a hit, Reserve and
  // Commit on a miss.
  kForward,
  // What an engine does: Match, then Reserve and Commit the blocks that are missing, each the child
  // of the one before, with what was matched pinned meanwhile.
  kChain,
};

// A trace and the keys of its blocks.
struct Workload {
  Trace trace;
  std::vector<BlockKey> keys;  // [trace.unique_blocks]
  uint32_t tokens_per_block = 0;

  // `tokens_per_block` of 0: as TokensPerBlock() finds it.
  static Workload Make(Trace trace, uint32_t tokens_per_block = 0);

  // Tokens of the first `blocks` blocks of a request. Blocks have tokens_per_block tokens each; if
  // that is 0, the request's tokens are divided among its blocks evenly.
  uint64_t TokensIn(const TraceRequest& request, size_t blocks) const;
};

struct ReplayOptions {
  std::string policy = "lru";  // as core/plugins/registry.h knows it
  size_t capacity_blocks = 1000;
  TouchOrder touch_order = TouchOrder::kForward;
  // Of each block, from its commit on, by the clock of the trace.
  absl::Duration ttl = absl::InfiniteDuration();
  // Move real bytes, this many for each block and a multiple of 8: a put writes its block, a hit
  // copies it out and checks it. 0: blocks are counted, by backends/accounting, and have no bytes.
  size_t payload_bytes = 0;
  // What to ask the cache besides.
  AdviceOptions advice = {};
};

struct ReplayResult {
  std::string policy;
  size_t capacity_blocks = 0;
  uint64_t block_references = 0;
  uint64_t plain_hits = 0;   // blocks that were there when their turn came
  uint64_t prefix_hits = 0;  // blocks that were there, with all before them, when the request came
  uint64_t tokens = 0;       // of all prompts
  uint64_t token_hits = 0;   // in the blocks of prefix_hits
  uint64_t evictions = 0;
  uint64_t expirations = 0;
  uint64_t refused = 0;  // blocks that found no room, or that the policy would not have
  double seconds = 0;    // making the cache and all requests
  std::optional<PayloadResult> payload;
  std::vector<Advice> advice;

  double plain_hit_ratio() const { return Ratio(plain_hits, block_references); }
  double prefix_hit_ratio() const { return Ratio(prefix_hits, block_references); }
  double token_hit_ratio() const { return Ratio(token_hits, tokens); }

  static double Ratio(uint64_t part, uint64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

// Errors: those of core/plugins/registry.h for the policy; of the backend for payloads that do not
// fit into memory; kDataLoss when a payload came back changed; kInvalidArgument for a capacity of
// 0, or of 2^32 - 1 blocks and more. Those of a request name its file and line.
absl::StatusOr<ReplayResult> Replay(const Workload& workload, const ReplayOptions& options);

// The prefix hits of a cache that holds everything, forever.
uint64_t PossiblePrefixHits(const Trace& trace);

absl::string_view Name(TouchOrder order);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_REPLAY_H_
