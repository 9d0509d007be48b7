// Loops whose instructions are counted: see check.py. Usage: loops NAME
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace {

using kvcache::BlockKey;
using kvcache::Cache;

constexpr kvcache::NamespaceId kNs = kvcache::NamespaceId::kDefault;
constexpr size_t kKeys = 4096;  // operations of each loop

struct Fixture {
  std::vector<BlockKey> keys = kvcache::bench::RandomKeys(2 * kKeys);
  absl::Span<const BlockKey> resident = absl::MakeSpan(keys).first(kKeys);
  absl::Span<const BlockKey> others = absl::MakeSpan(keys).subspan(kKeys);
};

}  // namespace

// What is counted has names that a tool can find.
extern "C" {

// A lock and a lookup in a hash table, for each key.
[[gnu::noinline]] size_t loop_reference(const Fixture& fixture,
                                        const absl::flat_hash_map<BlockKey, size_t>& map,
                                        std::mutex& mu) {
  size_t sum = 0;
  for (const BlockKey& key : fixture.resident) {
    std::lock_guard<std::mutex> lock(mu);
    sum += map.find(key)->second;
  }
  return sum;
}

[[gnu::noinline]] void loop_hit(const Fixture& fixture, Cache& cache) {
  for (const BlockKey& key : fixture.resident) {
    KVCACHE_CHECK(cache.Get(kNs, key).ok(), "a miss");
  }
}

[[gnu::noinline]] void loop_put(const Fixture& fixture, Cache& cache) {
  for (const BlockKey& key : fixture.others) {
    KVCACHE_CHECK(cache.Reserve(key, {64, 1})->Commit().ok(), "aborted");
  }
}

[[gnu::noinline]] void loop_match(const Fixture& fixture, Cache& cache) {
  for (size_t i = 0; i < kKeys; i += 64) {
    kvcache::PrefixMatch match = cache.Match({.keys = fixture.resident.subspan(i, 64)});
    KVCACHE_CHECK(match.blocks.size() == 64, "a miss");
    cache.Release(absl::MakeSpan(match.blocks));
  }
}

// The same as loop_put, by chains of 64.
[[gnu::noinline]] void loop_batch(const Fixture& fixture, Cache& cache) {
  std::vector<absl::StatusOr<kvcache::WriteLease>> reserved(64);
  std::vector<kvcache::WriteLease> leases(64);
  std::vector<absl::Status> results(64);
  for (size_t i = 0; i < kKeys; i += 64) {
    cache.ReserveMany({.keys = fixture.others.subspan(i, 64)}, {kvcache::BlockSize{64, 1}}, {},
                      absl::MakeSpan(reserved));
    for (size_t j = 0; j < 64; ++j) leases[j] = *std::move(reserved[j]);
    cache.CommitMany(absl::MakeSpan(leases), absl::MakeSpan(results));
    KVCACHE_CHECK(results[63].ok(), "aborted");
  }
}

// Copies of 1 KiB in and out, with checksums: their bookkeeping, mostly.
[[gnu::noinline]] void loop_copy(const Fixture& fixture, Cache& cache) {
  std::vector<std::byte> bytes(1024);
  const kvcache::ConstBytes source = bytes;
  const kvcache::MutableBytes destination = absl::MakeSpan(bytes);
  for (const BlockKey& key : fixture.resident) {
    KVCACHE_CHECK(cache.Put(key, {1024, 1}, {source}).ok(), "no room");
    const kvcache::ReadRequest request = {.key = key, .destination = {&destination, 1}};
    KVCACHE_CHECK(cache.ReadInto({&request, 1}).Wait().ok(), "a miss");
  }
}

}  // extern "C"

int main(int argc, char** argv) {
  const absl::string_view name = argc == 2 ? argv[1] : "";
  const Fixture fixture;
  if (name == "reference") {
    absl::flat_hash_map<BlockKey, size_t> map;
    for (const BlockKey& key : fixture.resident) map[key] = map.size();
    std::mutex mu;
    return loop_reference(fixture, map, mu) == 0;
  }
  if (name == "hit") {
    loop_hit(fixture, *kvcache::bench::FullCache(fixture.resident));
  } else if (name == "put") {
    loop_put(fixture, *kvcache::bench::FullCache(fixture.resident));
  } else if (name == "batch") {
    loop_batch(fixture, *kvcache::bench::FullCache(fixture.resident));
  } else if (name == "match") {
    loop_match(fixture, *kvcache::bench::FullCacheOfChains(fixture.resident, 64));
  } else if (name == "copy") {
    auto backend = kvcache::CreateCpuRamBackend({.capacity_bytes = kKeys / 2 * 1024});
    auto cache = Cache::Create({}, *std::move(backend), kvcache::CreateLruPolicy());
    loop_copy(fixture, **cache);
  } else {
    std::fprintf(stderr, "usage: loops reference|hit|put|batch|match|copy\n");
    return 2;
  }
  return 0;
}
