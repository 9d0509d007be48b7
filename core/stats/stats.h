// What a cache has done and what it holds: plain values, and two ways to print them.
#ifndef KVCACHE_CORE_STATS_STATS_H_
#define KVCACHE_CORE_STATS_STATS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/core/stats/backend_stats.h"

namespace kvcache {

// Events since the cache was made; they only grow. Every lookup is counted once, as a hit, as
// pending (somebody is writing it) or as a miss, and under the name of what was asked for.
struct CacheCounters {
  // Match: one request each. A request hits when all of its blocks, and all of its tokens if it
  // says how many they are, were there.
  uint64_t request_lookups = 0;
  uint64_t request_hits = 0;
  // Get, GetMany, ReadInto, and each block of a Match; blocks behind the first one missing are
  // misses.
  uint64_t block_lookups = 0;
  uint64_t block_hits = 0;
  uint64_t block_pending = 0;
  // GetPart: a layer each.
  uint64_t layer_lookups = 0;
  uint64_t layer_hits = 0;
  uint64_t layer_pending = 0;
  // Match: tokens of the prompts asked for; those of them in leading blocks that were there; and
  // those of these that the caller did not have itself (Chain::first_token).
  uint64_t tokens_looked_up = 0;
  uint64_t tokens_found = 0;
  uint64_t tokens_loaded = 0;
  // Recompute cost of what was hit; a hit on p of P parts adds p/P of it.
  absl::Duration compute_saved;

  uint64_t blocks_written = 0;  // became complete
  uint64_t evictions = 0;
  uint64_t evicted_before_reuse = 0;   // among the evictions: never hit
  uint64_t evicted_before_copied = 0;  // among them: not marked by Cache::MarkCopied()
  uint64_t expirations = 0;
  uint64_t erased = 0;
  uint64_t replaced = 0;
  uint64_t corrupted =
      0;  // dropped since their bytes had changed or could not be read; also what was below
  uint64_t failed_writes = 0;  // dropped, aborted or failed; also blocks lost with such a parent
  uint64_t rejected_too_large = 0;
  uint64_t rejected_pinned = 0;  // no room, and nothing that may go
  uint64_t rejected_fragmented = 0;
  uint64_t rejected_by_policy = 0;
  uint64_t bytes_written = 0;  // of parts committed
  uint64_t bytes_read = 0;     // copied out by the cache; reads in place are not seen

  uint64_t block_misses() const { return block_lookups - block_hits - block_pending; }
  uint64_t layer_misses() const { return layer_lookups - layer_hits - layer_pending; }

  CacheCounters& operator+=(const CacheCounters& other);
};

// What is held now. Bytes are those taken from the backend, rounding included.
struct CacheUsage {
  size_t bytes_in_use = 0;    // everything: visible, being written, detached, being freed
  size_t bytes_detached = 0;  // among them: leased, but no key reaches them any more
  size_t blocks = 0;          // that a key reaches: complete, partial or being written
  size_t blocks_complete = 0;

  CacheUsage& operator+=(const CacheUsage& other);
};

// The share of the block lookups that would have been hits with another capacity or policy, since
// the cache was made or last resized: an estimate from a sample of the keys.
struct Advice {
  std::string policy;
  double times_capacity = 1;  // multiple of the cache's capacity
  size_t capacity_bytes = 0;
  // Of the lookups: what the cache hit, plus what the simulation hit more of the sample, over the
  // sampling rate. None where that would be a guess: for fewer than kFewestSampledLookups, or with
  // room for fewer than kFewestSampledBlocks.
  std::optional<double> hit_ratio = std::nullopt;
  uint64_t lookups = 0;
  uint64_t sampled_lookups = 0;        // among them
  uint64_t sampled_hits = 0;           // of those, by the simulation
  uint64_t sampled_hits_of_cache = 0;  // of those, by the cache

  static constexpr uint64_t kFewestSampledLookups = 1000;
  static constexpr size_t kFewestSampledBlocks = 20;
};

struct NamespaceStats {
  uint64_t id = 0;
  std::string model;  // never the tenant
  CacheCounters counters;
  CacheUsage usage;
};

struct CacheStats {
  CacheCounters counters;  // sum over the namespaces, also those that were given back
  CacheUsage usage;        // sum over the namespaces; bytes_in_use also what is being freed
  std::vector<NamespaceStats> namespaces;

  size_t capacity_bytes = 0;
  size_t peak_bytes = 0;  // highest bytes_in_use
  size_t max_blocks = 0;
  size_t leases = 0;  // pins, by leases and by transfers
  // How long a block has been pinned without a break, by one lease or by several that overlap; the
  // largest of all blocks. Zero without leases.
  absl::Duration longest_pinned;
  uint64_t scrubbed_bytes = 0;  // read by Scrub() and in the background to compare their checksums
  std::string backend;
  std::string policy;
  BackendStats backend_stats;
  std::vector<Advice> advice;  // by policy, the cache's own first, then capacity, as in the options
};

// For people: a few aligned lines. Rates are named for what they count and come with denominators.
std::string StatsText(const CacheStats& stats);

// The Prometheus text exposition format, version 0.0.4; every metric starts with `kvcache_` and has
// the labels namespace (the id) and model where it is kept per namespace. Label values are escaped;
// bytes in them that are not UTF-8 become U+FFFD.
// The backend's own figures are kvcache_backend_NAME, its facts labels of kvcache_backend_info.
std::string PrometheusText(const CacheStats& stats);

}  // namespace kvcache

#endif  // KVCACHE_CORE_STATS_STATS_H_
