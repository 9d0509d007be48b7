// What a hit, a put and a Match cost; other policies than LRU are in bench/targets. Compare figures
// of one run with each other: memcpy of the same bytes is measured beside the puts and the copying
// hits.
//
//   bazel run //bench:cache_bench -- --benchmark_out=bench.json
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;

std::vector<BlockKey> RandomKeys(size_t count) {
  std::mt19937_64 random(42);
  std::vector<BlockKey> keys(count);
  for (BlockKey& key : keys) {
    for (size_t i = 0; i < key.bytes.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(&key.bytes[i], &word, 8);
    }
  }
  return keys;
}

// `blocks` blocks of one byte that are counted and not stored: only the bookkeeping is measured.
std::unique_ptr<Cache> FullCache(absl::Span<const BlockKey> keys) {
  auto backend = CreateAccountingBackend({.capacity_bytes = keys.size() * 64});
  CacheOptions options;
  options.max_blocks = keys.size();
  auto cache = Cache::Create(options, *std::move(backend), CreateLruPolicy());
  for (const BlockKey& key : keys) (*cache)->Reserve(key, {64, 1})->Commit().IgnoreError();
  return *std::move(cache);
}

// Get and release of a random block among 1 M.
void BM_Hit(benchmark::State& state) {
  const std::vector<BlockKey> keys = RandomKeys(1 << 20);
  const std::unique_ptr<Cache> cache = FullCache(keys);
  std::minstd_rand random(1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(cache->Get(kNs, keys[random() % keys.size()]));
  }
}
BENCHMARK(BM_Hit);

void BM_Miss(benchmark::State& state) {
  const std::vector<BlockKey> keys = RandomKeys(2 << 20);
  const auto cache = FullCache(absl::MakeSpan(keys).first(keys.size() / 2));
  std::minstd_rand random(1);
  for (auto _ : state) {
    benchmark::DoNotOptimize(cache->Get(kNs, keys[keys.size() / 2 + random() % (keys.size() / 2)]));
  }
}
BENCHMARK(BM_Miss);

// Reserve and commit of a new block in a full cache of 1 M, which evicts one.
void BM_EvictAndPut(benchmark::State& state) {
  const std::vector<BlockKey> keys = RandomKeys(2 << 20);
  const auto cache = FullCache(absl::MakeSpan(keys).first(keys.size() / 2));
  size_t next = keys.size() / 2;
  for (auto _ : state) {
    cache->Reserve(keys[next], {64, 1})->Commit().IgnoreError();
    next = (next + 1) % keys.size();
  }
}
BENCHMARK(BM_EvictAndPut);

using PolicyFactory = std::unique_ptr<EvictionPolicy> (*)();

// Match and release of a chain of `range` blocks, one of many in a cache of 1 M blocks.
void BM_Match(benchmark::State& state, PolicyFactory policy) {
  const size_t blocks = state.range(0);
  const std::vector<BlockKey> keys = RandomKeys(1 << 20);
  auto backend = CreateAccountingBackend({.capacity_bytes = keys.size() * 64});
  CacheOptions options;
  options.max_blocks = keys.size();
  auto cache = *Cache::Create(options, *std::move(backend), policy());
  for (size_t i = 0; i < keys.size(); ++i) {
    PutOptions put;
    if (i % blocks > 0) put.parent = keys[i - 1];
    cache->Reserve(keys[i], {64, 1}, put)->Commit().IgnoreError();
  }
  std::minstd_rand random(1);
  for (auto _ : state) {
    const size_t chain = random() % (keys.size() / blocks);
    PrefixMatch match =
        cache->Match({.keys = absl::MakeSpan(keys).subspan(chain * blocks, blocks)});
    benchmark::DoNotOptimize(match.blocks.size());
    cache->Release(absl::MakeSpan(match.blocks));
  }
  state.counters["per_block"] = benchmark::Counter(
      state.iterations() * blocks, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK_CAPTURE(BM_Match, lru, &CreateLruPolicy)->Arg(1)->Arg(16)->Arg(64)->Arg(256)->Arg(1024);
BENCHMARK_CAPTURE(BM_Match, chain, &CreateChainPolicy)->Arg(16)->Arg(64)->Arg(256);

void BM_LookupPrefix(benchmark::State& state) {
  const std::vector<BlockKey> keys = RandomKeys(1 << 16);
  const auto cache = FullCache(keys);
  const size_t blocks = state.range(0);
  std::minstd_rand random(1);
  for (auto _ : state) {
    const size_t first = random() % (keys.size() - blocks);
    benchmark::DoNotOptimize(
        cache->LookupPrefix({.keys = absl::MakeSpan(keys).subspan(first, blocks)}));
  }
}
BENCHMARK(BM_LookupPrefix)->Arg(64)->Arg(1024);

// Copies of `range` bytes: into a full cache of 512 MiB, out of it, and by memcpy with the same
// footprint.
constexpr size_t kWorkingSet = size_t{512} << 20;

std::unique_ptr<Cache> RamCache() {
  auto backend = CreateCpuRamBackend(
      {.capacity_bytes = kWorkingSet, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
  return *Cache::Create({}, *std::move(backend), CreateLruPolicy());
}

void BM_Put(benchmark::State& state) {
  const size_t bytes = state.range(0);
  const auto cache = RamCache();
  const std::vector<BlockKey> keys = RandomKeys(4 * kWorkingSet / bytes);
  const std::vector<std::byte> block(bytes, std::byte{1});
  size_t next = 0;
  for (auto _ : state) {
    cache->Put(keys[next], {bytes, 1}, {ConstBytes(block)}).IgnoreError();
    next = (next + 1) % keys.size();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

void BM_CopyingHit(benchmark::State& state) {
  const size_t bytes = state.range(0);
  const auto cache = RamCache();
  const std::vector<BlockKey> keys = RandomKeys(kWorkingSet / bytes);
  std::vector<std::byte> block(bytes);
  for (const BlockKey& key : keys) cache->Put(key, {bytes, 1}, {ConstBytes(block)}).IgnoreError();
  const MutableBytes destination = absl::MakeSpan(block);
  size_t next = 0;
  for (auto _ : state) {
    const ReadRequest request = {.key = keys[next], .destination = {&destination, 1}};
    cache->ReadInto({&request, 1}).Wait().IgnoreError();
    next = (next + 1) % keys.size();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

void BM_MemcpyIntoWorkingSet(benchmark::State& state) {
  const size_t bytes = state.range(0);
  std::vector<std::byte> memory(kWorkingSet, std::byte{1});
  const std::vector<std::byte> block(bytes);
  size_t next = 0;
  for (auto _ : state) {
    std::memcpy(&memory[next], block.data(), bytes);
    next = (next + bytes) % kWorkingSet;
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

void BM_MemcpyOutOfWorkingSet(benchmark::State& state) {
  const size_t bytes = state.range(0);
  const std::vector<std::byte> memory(kWorkingSet, std::byte{1});
  std::vector<std::byte> block(bytes);
  size_t next = 0;
  for (auto _ : state) {
    std::memcpy(block.data(), &memory[next], bytes);
    benchmark::DoNotOptimize(block.data());
    next = (next + bytes) % kWorkingSet;
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

BENCHMARK(BM_MemcpyIntoWorkingSet)->Arg(128 << 10)->Arg(1 << 20)->Arg(4 << 20);
BENCHMARK(BM_Put)->Arg(128 << 10)->Arg(1 << 20)->Arg(4 << 20);
BENCHMARK(BM_MemcpyOutOfWorkingSet)->Arg(128 << 10)->Arg(1 << 20)->Arg(4 << 20);
BENCHMARK(BM_CopyingHit)->Arg(128 << 10)->Arg(1 << 20)->Arg(4 << 20);

}  // namespace
}  // namespace kvcache
