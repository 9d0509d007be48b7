// What fresh memory costs, and what each way of faulting it in leaves of that in the first puts.
// Compare the figures of one run with each other, first of all those of BM_FirstPut with
// BM_SteadyPut and BM_StreamingStore. Fresh memory is at its slowest in a virtual machine whose
// host has yet to find it: then the first cases to run pay for the others, so run one alone with
// --benchmark_filter.
//
//   bazel run //bench:memory_bench -- --benchmark_out=bench.json
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

using Clock = std::chrono::steady_clock;
using FaultIn = CpuRamOptions::FaultIn;
using HugePages = CpuRamOptions::HugePages;

constexpr size_t kCapacity = size_t{1} << 30;
constexpr size_t kBlock = size_t{1} << 20;
constexpr size_t kBlocks = kCapacity / kBlock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::unique_ptr<StorageBackend> MakeBackend(FaultIn fault_in, HugePages huge_pages) {
  return CreateCpuRamBackend(
             {.capacity_bytes = kCapacity, .fault_in = fault_in, .huge_pages = huge_pages})
      .value();
}

void WaitUntilFaultedIn(const StorageBackend& backend) {
  while (backend.stats().Value("faulted_bytes").value() < static_cast<double>(kCapacity)) {
    std::this_thread::yield();
  }
}

std::vector<BlockKey> Keys(size_t count) {
  std::mt19937_64 random(42);
  std::vector<BlockKey> keys(count);
  for (BlockKey& key : keys) {
    for (auto& byte : key.bytes) byte = static_cast<uint8_t>(random());
  }
  return keys;
}

// From Create until all memory is there.
void BM_FaultIn(benchmark::State& state, FaultIn fault_in, HugePages huge_pages) {
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const auto backend = MakeBackend(fault_in, huge_pages);
    WaitUntilFaultedIn(*backend);
    state.SetIterationTime(SecondsSince(start));
  }
  state.SetBytesProcessed(state.iterations() * kCapacity);
}

// How long Create takes, the trial included, and what the trial says.
void BM_Create(benchmark::State& state) {
  BackendStats stats;
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const auto backend = MakeBackend(FaultIn::kBackground, HugePages::kAuto);
    state.SetIterationTime(SecondsSince(start));
    stats = backend->stats();
  }
  state.SetLabel(absl::StrCat("huge_pages ", stats.Text("huge_pages").value_or("?")));
  for (const char* pages : {"small", "huge"}) {
    state.counters[absl::StrCat(pages, "_pages_B/s")] =
        stats.Value(absl::StrCat(pages, "_pages_first_touch_bytes_per_second")).value_or(0);
  }
}

// Fills a cache that nothing was put into before, `wait`: once its memory is faulted in.
void BM_FirstPut(benchmark::State& state, FaultIn fault_in, HugePages huge_pages, bool wait) {
  const std::vector<BlockKey> keys = Keys(kBlocks);
  const std::vector<std::byte> block(kBlock, std::byte{1});
  double page_faults = 0;
  for (auto _ : state) {
    auto backend = MakeBackend(fault_in, huge_pages);
    if (wait) WaitUntilFaultedIn(*backend);
    const auto cache = *Cache::Create({}, std::move(backend), CreateLruPolicy());
    const Clock::time_point start = Clock::now();
    for (const BlockKey& key : keys) {
      cache->Put(key, {kBlock, 1}, {ConstBytes(block)}).IgnoreError();
    }
    state.SetIterationTime(SecondsSince(start));
    page_faults += cache->stats().backend_stats.Value("page_fault_bytes").value();
  }
  state.SetBytesProcessed(state.iterations() * kCapacity);
  state.counters["page_fault_share"] =
      page_faults / static_cast<double>(state.iterations() * kCapacity);
}

// Puts into a full cache, each of which evicts a block.
void BM_SteadyPut(benchmark::State& state, HugePages huge_pages) {
  const std::vector<BlockKey> keys = Keys(2 * kBlocks);
  const std::vector<std::byte> block(kBlock, std::byte{1});
  const auto cache =
      *Cache::Create({}, MakeBackend(FaultIn::kAtCreate, huge_pages), CreateLruPolicy());
  size_t next = 0;
  const auto put = [&] {
    cache->Put(keys[next], {kBlock, 1}, {ConstBytes(block)}).IgnoreError();
    next = (next + 1) % keys.size();
  };
  for (size_t i = 0; i < kBlocks; ++i) put();
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    for (size_t i = 0; i < kBlocks; ++i) put();
    state.SetIterationTime(SecondsSince(start));
  }
  state.SetBytesProcessed(state.iterations() * kCapacity);
}

#ifdef __SSE2__
// What bounds every put: the same bytes by streaming stores from one hot block.
void BM_StreamingStore(benchmark::State& state, HugePages huge_pages) {
  const auto backend = MakeBackend(FaultIn::kAtCreate, huge_pages);
  std::byte* const memory = backend->Address(backend->Allocate(kCapacity).value());
  const std::vector<std::byte> block(kBlock, std::byte{1});
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    for (size_t offset = 0; offset < kCapacity; offset += kBlock) {
      auto* to = reinterpret_cast<__m128i*>(memory + offset);
      const auto* from = reinterpret_cast<const __m128i*>(block.data());
      for (size_t i = 0; i < kBlock / sizeof(*to); ++i) {
        _mm_stream_si128(to + i, _mm_loadu_si128(from + i));
      }
    }
    _mm_sfence();
    state.SetIterationTime(SecondsSince(start));
  }
  state.SetBytesProcessed(state.iterations() * kCapacity);
}
BENCHMARK_CAPTURE(BM_StreamingStore, small, HugePages::kNever)->UseManualTime()->Iterations(5);
BENCHMARK_CAPTURE(BM_StreamingStore, huge, HugePages::kAdvise)->UseManualTime()->Iterations(5);
#endif

#define KVCACHE_BENCHMARK(function, name, ...) \
  BENCHMARK_CAPTURE(function, name, __VA_ARGS__)->UseManualTime()->Iterations(5)

KVCACHE_BENCHMARK(BM_FaultIn, at_create_small, FaultIn::kAtCreate, HugePages::kNever);
KVCACHE_BENCHMARK(BM_FaultIn, at_create_huge, FaultIn::kAtCreate, HugePages::kAdvise);
KVCACHE_BENCHMARK(BM_FaultIn, background_small, FaultIn::kBackground, HugePages::kNever);
KVCACHE_BENCHMARK(BM_FaultIn, background_huge, FaultIn::kBackground, HugePages::kAdvise);
BENCHMARK(BM_Create)->UseManualTime()->Iterations(5);
KVCACHE_BENCHMARK(BM_SteadyPut, small, HugePages::kNever);
KVCACHE_BENCHMARK(BM_SteadyPut, huge, HugePages::kAdvise);
KVCACHE_BENCHMARK(BM_FirstPut, on_use_small, FaultIn::kOnUse, HugePages::kNever, false);
KVCACHE_BENCHMARK(BM_FirstPut, on_use_huge, FaultIn::kOnUse, HugePages::kAdvise, false);
KVCACHE_BENCHMARK(BM_FirstPut, background_at_once_small, FaultIn::kBackground, HugePages::kNever,
                  false);
KVCACHE_BENCHMARK(BM_FirstPut, background_at_once_huge, FaultIn::kBackground, HugePages::kAdvise,
                  false);
KVCACHE_BENCHMARK(BM_FirstPut, background_done_small, FaultIn::kBackground, HugePages::kNever,
                  true);
KVCACHE_BENCHMARK(BM_FirstPut, background_done_huge, FaultIn::kBackground, HugePages::kAdvise,
                  true);
KVCACHE_BENCHMARK(BM_FirstPut, at_create_small, FaultIn::kAtCreate, HugePages::kNever, false);
KVCACHE_BENCHMARK(BM_FirstPut, at_create_huge, FaultIn::kAtCreate, HugePages::kAdvise, false);

}  // namespace
}  // namespace kvcache
