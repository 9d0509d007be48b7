// The plain values in the interface of Cache.
#ifndef KVCACHE_CORE_CACHE_CACHE_TYPES_H_
#define KVCACHE_CORE_CACHE_CACHE_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/advice/advice_options.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/table/block_options.h"
#include "kvcache/core/table/event_ring.h"

namespace kvcache {

struct CacheOptions {
  // The most bytes that blocks may take, each rounded up to the backend's alignment. Default: all
  // of the backend.
  std::optional<size_t> capacity_bytes = std::nullopt;
  // The most blocks. Each costs about 150 bytes of host memory besides its own bytes, of which 30
  // are taken at once. Default: one for every 16 KiB of the backend, at least 1024, at most 16
  // million.
  std::optional<size_t> max_blocks = std::nullopt;
  // For blocks whose PutOptions say nothing: see PutOptions::ttl. Default: they never expire.
  absl::Duration default_ttl = absl::InfiniteDuration();
  // Whether each part has a checksum, XXH3-64: computed while a part is copied in, or at its commit
  // when it was written in place, and compared whenever the cache copies it out. Reads in place are
  // not checked by themselves: see ReadLease::Verify() and Cache::Scrub(). Costs up to a tenth of
  // the speed of copies.
  bool checksums = true;
  // Bytes that a thread of the cache compares with their checksums each second, over and over:
  // finds what has changed in memory before anybody reads it in place. Default: no such thread,
  // since it takes memory bandwidth from everybody else. Needs `checksums`.
  size_t scrub_bytes_per_second = 0;
  // How many of the last BlockEvents are kept for Cache::Events(), 128 bytes each. Default: none.
  size_t events = 0;
  // Costs a thread, which does the simulating.
  AdviceOptions advice = {};
  // Must outlive the cache, but not the leases that do.
  const Clock* clock = &Clock::Real();
};

// The consecutive blocks of one prompt. All keys are of the same namespace.
struct Chain {
  NamespaceId ns = NamespaceId::kDefault;
  absl::Span<const BlockKey> keys = {};
  // For the statistics: tokens of every block, the last of which may be short, and of the whole
  // prompt, also those that are in no block. 0: not counted.
  uint32_t tokens_per_block = 0;
  uint32_t tokens = 0;
  // The caller has the K/V of the tokens before this one: they are not counted as loaded.
  uint32_t first_token = 0;
};

enum class LookupResult {
  kHit,      // complete
  kPartial,  // some parts are readable and nobody is writing
  kPending,  // being written
  kMiss,
};

// The leading blocks of a chain, pinned.
struct PrefixMatch {
  std::vector<ReadLease> blocks;
  uint32_t tokens = 0;  // in them; 0 when the chain does not say its tokens
  // What follows the last of them: kHit when nothing does.
  LookupResult end = LookupResult::kMiss;
};

struct ReadRequest {
  NamespaceId ns = NamespaceId::kDefault;
  BlockKey key = {};
  // Sizes add up to the block's, or to the part's.
  absl::Span<const MutableBytes> destination = {};
  MemorySpace destination_space = {};
  std::optional<uint32_t> part = std::nullopt;
};

struct PutRequest {
  BlockKey key = {};
  BlockSize size = {};
  // Sizes add up to size.bytes.
  absl::Span<const ConstBytes> source = {};
  MemorySpace source_space = {};
  PutOptions options = {};
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_CACHE_TYPES_H_
