#include "kvcache/bench/peers/contenders.h"

#include <vector>

namespace kvcache::bench {

absl::Span<const ContenderInfo> AllContenders() {
  static const auto& contenders = *new std::vector<ContenderInfo>{
      {"memcpy", "plain copies, in memory that is there already; no index", CreateMemcpy},
      {"streaming_stores", "the same, past the processor's caches", CreateStreamingStores},
      {"kvcache", "cpu_ram, lru, in this process; memory taken at creation",
       [](const ContenderOptions& options) { return CreateKvcache(options, {}); }},
      {"kvcache_no_checksums", "the same without checksums, which nobody else here has on either",
       [](const ContenderOptions& options) {
         return CreateKvcache(options, {.checksums = false});
       }},
      {"unordered_map", "with std::mutex and LRU, in this process; memory from malloc",
       CreateUnorderedMap},
      {"redis", "hiredis, unix socket, allkeys-lru, no persistence; memory from jemalloc",
       CreateRedis},
      {"memcached", "libmemcached, unix socket; memory by slab pages", CreateMemcached},
      {"rocksdb", "in this process, tmpfs, block cache, FIFO; memory by files", CreateRocksDb},
  };
  return contenders;
}

}  // namespace kvcache::bench
