// How long a Lookup waits beside calls that concern a large part of the cache, and what a prompt
// costs in proportion to its length. Waits are wall-clock time: look at them on a machine that has
// a core for each of the two threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr uint32_t kBlockTokens = 16;

struct Waits {
  double p9999 = 0;  // microseconds
  double longest = 0;
};

// Of the Lookups of another thread, from the beginning to the end of `call`.
Waits WaitsBeside(const Cache& cache, absl::Span<const BlockKey> keys,
                  const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  std::vector<float> micros(1 << 22);
  size_t lookups = 0;
  std::atomic<bool> looking = false, stop = false;
  std::thread other([&] {
    for (size_t next = 0; !stop; next = (next + 7919) % keys.size()) {
      const auto start = Clock::now();
      cache.Lookup(keys[next]);
      micros[lookups++ % micros.size()] =
          std::chrono::duration<float, std::micro>(Clock::now() - start).count();
      looking = true;
    }
  });
  while (!looking) std::this_thread::yield();
  call();
  stop = true;
  other.join();
  micros.resize(std::min(lookups, micros.size()));
  std::sort(micros.begin(), micros.end());
  return {micros[(micros.size() - 1) * 9999 / 10'000], micros.back()};
}

// Rows for what `call` does, which `prepare` makes possible again.
void MeasureWaits(Suite& suite, const Cache& cache, absl::Span<const BlockKey> keys,
                  const char* name, const std::function<void()>& prepare,
                  const std::function<void()>& call) {
  const auto waits = [&] {
    prepare();
    return WaitsBeside(cache, keys, call);
  };
  suite.Value(absl::StrCat("waits: P99.99 of a Lookup beside ", name), "us", Goal::kAtMost, 200,
              [&] { return waits().p9999; });
  suite.Value(absl::StrCat("waits: longest of a Lookup beside ", name), "us", Goal::kAtMost, 2000,
              [&] { return waits().longest; });
}

void MeasureWaitsOfBlocks(Suite& suite) {
  constexpr size_t kBlocks = 2'000'000;
  if (!suite.Wants("waits: P99.99 of a Lookup beside") &&
      !suite.Wants("waits: longest of a Lookup beside")) {
    return;
  }
  const std::vector<BlockKey> keys = RandomKeys(kBlocks + 1);
  const absl::Span<const BlockKey> resident = absl::MakeConstSpan(keys).first(kBlocks);
  const std::unique_ptr<Cache> cache = FullCache(resident);
  const auto fill = [&] {
    for (const BlockKey& key : resident) {
      absl::StatusOr<WriteLease> lease = cache->Reserve(key, {64, 1});
      if (lease.ok()) lease->Commit().IgnoreError();
    }
  };
  const auto nothing = [] {};

  std::vector<BlockKey> half;
  for (size_t i = 0; i < kBlocks; i += 2) half.push_back(resident[i]);
  std::vector<ReadLease> leases(half.size());
  KVCACHE_CHECK(cache->GetMany(kNs, half, absl::MakeSpan(leases)) == half.size(), "a miss");
  MeasureWaits(suite, *cache, resident, "a refused Reserve of half of 2 M blocks", nothing, [&] {
    KVCACHE_CHECK(!cache->Reserve(keys[kBlocks], {(kBlocks / 2 + 1) * 64, 1}).ok(), "no refusal");
  });
  cache->Release(absl::MakeSpan(leases));
  MeasureWaits(
      suite, *cache, resident, "Resize of 2 M blocks to a tenth", [&] { fill(); },
      [&] {
        KVCACHE_CHECK(cache->Resize(kBlocks / 10 * 64).ok(), "resize");
        KVCACHE_CHECK(cache->Resize(kBlocks * 64).ok(), "resize");
      });
  MeasureWaits(suite, *cache, resident, "Clear of 2 M blocks", fill, [&] { cache->Clear(); });
  MeasureWaits(suite, *cache, resident, "EraseNamespace of 2 M blocks", fill,
               [&] { cache->EraseNamespace(kNs); });
  Namespace ns = {.model = "m",
                  .shard = Shard::Whole(1, 1),
                  .layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = 8}};
  for (int i = 0; i < 100'000; ++i) {
    ns.tenant = absl::StrCat(i);
    KVCACHE_CHECK(cache->Register(ns).ok(), "namespace");
  }
  MeasureWaits(suite, *cache, resident, "stats of 100 k namespaces", nothing,
               [&] { KVCACHE_CHECK(cache->stats().namespaces.size() > 100'000, "stats"); });
}

// Prompts in blocks of 16 tokens whose parts are 32 bytes: little but bookkeeping.
class Prompts {
 public:
  static constexpr uint32_t kLayers = 32;

  explicit Prompts(size_t most_tokens) : tokens_(most_tokens) {
    kv_.layout = {.dtype = DType::kInt8, .layers = kLayers, .kv_heads = 1, .head_dim = 1};
    kv_.page_tokens = kBlockTokens;
    kv_.pages = static_cast<uint32_t>(most_tokens / kBlockTokens);
    kv_.page_stride = 2 * kv_.PageBytes();
    memory_.resize(kLayers * kv_.pages * kv_.page_stride);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory_.data() + layer * kv_.pages * kv_.page_stride;
      kv_.layers.push_back({k, k + kv_.PageBytes()});
    }
    auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{256} << 20});
    CacheOptions cache_options;
    cache_options.checksums = false;
    cache_options.max_blocks = kv_.pages;
    cache_ = *Cache::Create(cache_options, *std::move(backend), CreateLruPolicy());
    PagedCacheOptions options = {.tokens_per_block = kBlockTokens};
    options.ns.layout = kv_.layout;
    options.ns.shard = Shard::Whole(kLayers, 1);
    paged_ = *PagedCache::Create(cache_.get(), kv_, options);
    std::iota(tokens_.begin(), tokens_.end(), 0);
    table_.resize(kv_.pages);
    std::iota(table_.begin(), table_.end(), 0);
  }

  Cache& cache() { return *cache_; }
  std::vector<BlockKey> Keys() const {
    const PagedCache::Prompt prompt = *paged_->Hash(tokens_);
    return {prompt.keys().begin(), prompt.keys().end()};
  }
  void Save(size_t first, size_t tokens, absl::Duration ttl) {
    const absl::Span<const int32_t> prompt = absl::MakeConstSpan(tokens_).subspan(first, tokens);
    auto saved = paged_->Save(prompt, table_, {}, {.ttl = ttl});
    KVCACHE_CHECK(saved.ok() && saved->copies.Wait().ok() && saved->copied_tokens == tokens,
                  "save");
  }
  void Load() {
    auto loaded = paged_->Load(tokens_, table_);
    KVCACHE_CHECK(loaded.ok() && loaded->copies.Wait().ok() && loaded->tokens == tokens_.size(),
                  "load");
  }
  // Nanoseconds for each layer of each block of all tokens, in prompts of `tokens`.
  double SecondsOfSaves(size_t tokens, absl::Duration ttl) {
    cache_->Clear();
    const double seconds = Seconds([&] {
      for (size_t first = 0; first + tokens <= tokens_.size(); first += tokens) {
        Save(first, tokens, ttl);
      }
    });
    const size_t blocks = tokens_.size() / tokens * (tokens / kBlockTokens);
    return 1e9 * seconds / static_cast<double>(blocks * kLayers);
  }

 private:
  PagedKv kv_;
  std::vector<std::byte> memory_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> table_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<PagedCache> paged_;
};

}  // namespace

void MeasureWaits(Suite& suite) {
  if (!suite.Wants("waits:")) return;
  constexpr size_t kMany = 1'000'000;
  constexpr size_t kFew = 16'000;
  Prompts prompts(kMany);
  for (absl::Duration ttl : {absl::InfiniteDuration(), absl::Hours(1)}) {
    suite.Ratio(
        absl::StrCat("waits: Save of 1 M tokens, a layer of a block",
                     ttl < absl::InfiniteDuration() ? ", with a ttl" : ""),
        "ns", Goal::kAtMost, 1.5, [&, ttl] { return prompts.SecondsOfSaves(kMany, ttl); },
        "prompts of 16 k tokens", [&, ttl] { return prompts.SecondsOfSaves(kFew, ttl); });
  }
  const std::vector<BlockKey> keys = prompts.Keys();
  MeasureWaits(
      suite, prompts.cache(), keys, "Save of 1 M tokens", [&] { prompts.cache().Clear(); },
      [&] { prompts.Save(0, kMany, absl::Hours(1)); });
  MeasureWaits(
      suite, prompts.cache(), keys, "Load of 1 M tokens", [] {}, [&] { prompts.Load(); });
  MeasureWaitsOfBlocks(suite);
}

}  // namespace kvcache::bench
