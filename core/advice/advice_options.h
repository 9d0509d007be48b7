// AdviceOptions: what a cache should try besides what it does.
#ifndef KVCACHE_CORE_ADVICE_ADVICE_OPTIONS_H_
#define KVCACHE_CORE_ADVICE_ADVICE_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// Asks the running cache how many blocks it would hit with other capacities and policies: it keeps,
// of a sample of the keys, simulations of those (CacheStats::advice). Default: none, at no cost.
struct AdviceOptions {
  // Multiples of the capacity, each once, more than 0 and at most kMostTimesCapacity: 2 is
  // twice the memory, and twice max_blocks. 1 under the cache's own policy says how good the advice
  // is, since the cache measures that itself. None: no advice.
  std::vector<double> capacities = {};
  // What to try besides the cache's own policy, with their settings, each name once; only asked for
  // their name and CreateEmpty(). All are tried at all capacities, at most kMostAdvice in all.
  std::vector<std::shared_ptr<const EvictionPolicy>> policies = {};
  // The share of the keys that is simulated: more than 0, at most kHighestSamplingRate, which is
  // the default since only large samples are precise. Each simulation takes about 100 bytes of host
  // memory, and what its policy takes, for each of sampling_rate x multiple x max_blocks.
  double sampling_rate = 0.05;
  // Another one samples other keys.
  uint64_t seed = 0;
};

inline constexpr size_t kMostAdvice = 64;
inline constexpr double kMostTimesCapacity = 1000;
inline constexpr double kHighestSamplingRate = 0.05;

}  // namespace kvcache

#endif  // KVCACHE_CORE_ADVICE_ADVICE_OPTIONS_H_
