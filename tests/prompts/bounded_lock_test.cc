// A long prompt is saved and loaded in few holds of the cache's lock, none of which is long.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/lock_probe.h"

namespace kvcache {
namespace {

constexpr uint32_t kLayers = 32;
constexpr uint32_t kBlockTokens = 16;
constexpr size_t kTokens = 100'000;
constexpr size_t kBlocks = kTokens / kBlockTokens;

TEST(BoundedPromptTest, ALongPromptIsSavedAndLoadedInFewHolds) {
  if (!LockProbe::kWorks) GTEST_SKIP() << "sanitizers watch the locks";
  PagedKv kv;
  kv.layout = {.dtype = DType::kInt8, .layers = kLayers, .kv_heads = 1, .head_dim = 1};
  kv.page_tokens = kBlockTokens;
  kv.pages = kBlocks;
  kv.page_stride = 2 * kv.PageBytes();
  std::vector<std::byte> memory(kLayers * kv.pages * kv.page_stride);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    std::byte* const k = memory.data() + layer * kv.pages * kv.page_stride;
    kv.layers.push_back({k, k + kv.PageBytes()});
  }
  auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{32} << 20});
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto cache = Cache::Create({.max_blocks = kBlocks}, *std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache.ok()) << cache.status();
  PagedCacheOptions options = {.tokens_per_block = kBlockTokens};
  options.ns.layout = kv.layout;
  options.ns.shard = Shard::Whole(kLayers, 1);
  auto paged = PagedCache::Create(cache->get(), kv, options);
  ASSERT_TRUE(paged.ok()) << paged.status();
  std::vector<int32_t> tokens(kTokens), table(kBlocks);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::iota(table.begin(), table.end(), 0);

  const auto watch = [&](const char* what, const std::function<void()>& call) {
    const LockProbe probe;
    (*cache)->Lookup(BlockKey());  // takes the lock that is watched
    call();
    EXPECT_LE(probe.holds() - 1, kBlocks / 64) << what;
    EXPECT_LT(probe.longest_hold(), absl::Milliseconds(2)) << what;
  };
  watch("Save", [&] {
    auto saved = (*paged)->Save(tokens, table, {}, {.ttl = absl::Hours(1)});
    ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok());
    EXPECT_EQ(saved->copied_tokens, kTokens);
  });
  watch("Load", [&] {
    auto loaded = (*paged)->Load(tokens, table);
    ASSERT_TRUE(loaded.ok() && loaded->copies.Wait().ok());
    EXPECT_EQ(loaded->tokens, kTokens);
  });
}

}  // namespace
}  // namespace kvcache
