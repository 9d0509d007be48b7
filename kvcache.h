// The one-line way in: a cache of prompts' K/V in this machine's memory.
#ifndef KVCACHE_KVCACHE_H_
#define KVCACHE_KVCACHE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcache/core/prompts/prefix_cache.h"

namespace kvcache {

struct SimpleKvCacheOptions {
  // The most memory for K and V, in units of 2^30 bytes. The memory is taken as it is used, and
  // never more.
  double max_size_gb = 1;
  // How long a prefix lives after it was put. Default: until its room is needed.
  absl::Duration ttl = absl::InfiniteDuration();
  // Layers of the model.
  uint32_t layers = 32;
  // Name or digest of the weights: set it if keys are ever compared between processes.
  std::string model = "";
};

// A PrefixCache over CPU RAM that evicts the least recently used prefix:
//
//   auto cache = SimpleKvCache::Create({.max_size_gb = 4, .ttl = absl::Hours(1), .layers = 32});
class SimpleKvCache {
 public:
  // Errors: kInvalidArgument for a size or ttl that is not positive, or no layers;
  // kResourceExhausted when the machine, or the cgroup, has not that much memory.
  static absl::StatusOr<std::unique_ptr<PrefixCache>> Create(const SimpleKvCacheOptions& options);
};

}  // namespace kvcache

#endif  // KVCACHE_KVCACHE_H_
