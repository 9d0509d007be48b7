// Several threads on one cache. Wall-clock time counts here, since waiting for each other is what
// is measured; so other programs disturb more than elsewhere.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr auto kRoundTime = std::chrono::milliseconds(100);

// Lets `threads` threads repeat `work(thread)` for a while; how often each did.
std::vector<double> Repeat(size_t threads, const std::function<void(size_t thread)>& work) {
  std::vector<double> counts(threads);
  std::atomic<bool> go = false, stop = false;
  std::vector<std::thread> running;
  for (size_t i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      while (!go) std::this_thread::yield();
      double count = 0;
      for (; !stop; ++count) work(i);
      counts[i] = count;
    });
  }
  go = true;
  std::this_thread::sleep_for(kRoundTime);
  stop = true;
  for (std::thread& thread : running) thread.join();
  return counts;
}

double Sum(const std::vector<double>& counts) {
  double sum = 0;
  for (double count : counts) sum += count;
  return sum;
}

void MeasureMatches(Suite& suite) {
  constexpr size_t kBlocks = 256;
  constexpr size_t kChains = 64;
  const BlockKey root = {};
  std::vector<std::vector<int32_t>> tokens(kChains, std::vector<int32_t>(kBlocks * 16));
  std::vector<BlockKey> all;
  std::vector<BlockKey> keys;
  for (size_t chain = 0; chain < kChains; ++chain) {
    for (size_t i = 0; i < tokens[chain].size(); ++i) {
      tokens[chain][i] = static_cast<int32_t>(chain * 7919 + i);
    }
    KVCACHE_CHECK(ChainKeys(root, tokens[chain], 16, &keys).ok(), "bad tokens");
    all.insert(all.end(), keys.begin(), keys.end());
  }
  const std::unique_ptr<Cache> cache = FullCacheOfChains(all, kBlocks);
  const auto matches = [&](size_t threads) {
    std::vector<std::vector<BlockKey>> hashed(threads);
    std::vector<size_t> next(threads);
    return Sum(Repeat(threads, [&](size_t thread) {
      const size_t chain = (++next[thread] * 31 + thread * 7) % kChains;
      KVCACHE_CHECK(ChainKeys(root, tokens[chain], 16, &hashed[thread]).ok(), "bad tokens");
      PrefixMatch match = cache->Match({.keys = hashed[thread]});
      KVCACHE_CHECK(match.blocks.size() == kBlocks, "a miss");
      cache->Release(absl::MakeSpan(match.blocks));
    }));
  };
  suite.Ratio(
      "threads: hash + Match of 256 blocks, 2 threads", "matches", Goal::kAtLeast, 1.7,
      [&] { return matches(2); }, "1 thread", [&] { return matches(1); });
}

void MeasureGets(Suite& suite) {
  const std::vector<BlockKey> keys = RandomKeys(10'000);
  const std::unique_ptr<Cache> cache = FullCache(keys);
  std::vector<double> counts;
  const auto gets = [&](size_t threads) {
    // Each a cache line of its own.
    struct alignas(64) Next {
      size_t value = 0;
    };
    std::vector<Next> next(threads);
    counts = Repeat(threads, [&](size_t thread) {
      for (int i = 0; i < 16; ++i) {
        next[thread].value = (next[thread].value + 7919 + thread) % keys.size();
        benchmark::DoNotOptimize(cache->Get(kNs, keys[next[thread].value]).ok());
      }
    });
    return Sum(counts);
  };
  for (size_t threads : {2, 8}) {
    suite.Ratio(
        absl::StrCat("threads: bare Get, ", threads, " threads together"), "x 16 gets",
        Goal::kAtLeast, 0.9, [&] { return gets(threads); }, "1 thread", [&] { return gets(1); });
    suite.Value(absl::StrCat("threads: bare Get, ", threads, " threads, most / fewest of one"), "x",
                Goal::kAtMost, 2, [&] {
                  gets(threads);
                  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
                  return *most / *least;
                });
  }
}

// A reader of hits beside a thread that puts blocks of 4 MiB, or that only burns its core.
void MeasureReaderBesidePuts(Suite& suite) {
  constexpr size_t kBlock = size_t{4} << 20;
  constexpr size_t kSmall = 64;
  constexpr size_t kHot = 1000;
  auto backend = CreateCpuRamBackend(
      {.capacity_bytes = 64 * kBlock, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
  auto cache = *Cache::Create({.max_blocks = 4096}, *std::move(backend), CreateLruPolicy());
  const std::vector<BlockKey> keys = RandomKeys(kHot + 4096);
  const std::vector<std::byte> bytes(kBlock, std::byte{1});
  for (size_t i = 0; i < kHot; ++i) {
    const ConstBytes small(bytes.data(), kSmall);
    KVCACHE_CHECK(cache->Put(keys[i], {kSmall, 1}, {small}).ok(), "no room");
  }
  std::vector<double> late;
  size_t put = 0;
  const auto read = [&](bool puts) {
    std::vector<float> micros;
    micros.reserve(1 << 21);
    size_t next = 0;
    std::atomic<uint64_t> burnt = 0;
    const double reads = Repeat(2, [&](size_t thread) {
      if (thread == 0) {
        const auto start = Clock::now();
        benchmark::DoNotOptimize(cache->Get(kNs, keys[next = (next + 7) % kHot]).ok());
        if (micros.size() < micros.capacity()) {
          micros.push_back(std::chrono::duration<float, std::micro>(Clock::now() - start).count());
        }
      } else if (puts) {
        const ConstBytes block = bytes;
        KVCACHE_CHECK(cache->Put(keys[kHot + put++ % 4096], {kBlock, 1}, {block}).ok(), "no room");
      } else {
        for (int i = 0; i < 1000; ++i) burnt.fetch_add(1, std::memory_order_relaxed);
      }
    })[0];
    const size_t rank = micros.size() * 999 / 1000;
    std::nth_element(micros.begin(), micros.begin() + rank, micros.end());
    late.push_back(micros[rank]);
    return reads;
  };
  suite.Ratio(
      "threads: hits beside puts of 4 MiB", "hits", Goal::kAtLeast, 0.8, [&] { return read(true); },
      "beside a busy core", [&] { return read(false); });
  suite.Value("threads: P99.9 of a hit beside puts of 4 MiB", "us", Goal::kAtMost, 50, [&] {
    read(true);
    return late.back();
  });
}

}  // namespace

void MeasureThreads(Suite& suite) {
  if (!suite.Wants("threads:")) return;
  MeasureMatches(suite);
  MeasureGets(suite);
  MeasureReaderBesidePuts(suite);
}

}  // namespace kvcache::bench
