#include "kvcache/kvcache.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {

absl::StatusOr<std::unique_ptr<PrefixCache>> SimpleKvCache::Create(
    const SimpleKvCacheOptions& options) {
  const double bytes = std::ldexp(options.max_size_gb, 30);
  if (!(bytes >= 1 && bytes < std::ldexp(1.0, 62))) {
    return absl::InvalidArgumentError(absl::StrCat("max_size_gb: ", options.max_size_gb,
                                                   ", expected more than 0 and less than 2^32"));
  }
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
      CreateCpuRamBackend({.capacity_bytes = static_cast<size_t>(bytes)});
  if (!backend.ok()) return backend.status();
  PrefixCacheOptions prefix_options;
  prefix_options.layers = options.layers;
  prefix_options.model = options.model;
  prefix_options.cache.default_ttl = options.ttl;
  return PrefixCache::Create(prefix_options, *std::move(backend), CreateLruPolicy());
}

}  // namespace kvcache
