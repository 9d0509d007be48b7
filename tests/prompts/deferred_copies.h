// For tests: prompts, the pages of an engine, and a PagedCache over a FakeBackend.
#ifndef KVCACHE_TESTS_PAGED_DEFERRED_COPIES_H_
#define KVCACHE_TESTS_PAGED_DEFERRED_COPIES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {

inline constexpr uint32_t kLayers = 2;
inline constexpr uint32_t kHeads = 2;
inline constexpr uint32_t kBlockTokens = 4;
inline constexpr uint32_t kPageTokens = 3;  // blocks and pages do not end together
inline constexpr uint32_t kPagesEach = 6;   // of a prompt
inline constexpr KvLayout kLayout = {
    .dtype = DType::kBF16, .layers = kLayers, .kv_heads = kHeads, .head_dim = 4};
inline constexpr size_t kTokenBytes = kHeads * 4 * 2;  // of one tensor of one layer
inline constexpr size_t kBlockBytes = 2 * kLayers * kBlockTokens * kTokenBytes;

using Prompt = std::vector<int32_t>;

// The K/V of a token depends on all tokens before it.
inline std::byte Content(const Prompt& prompt, size_t token, uint32_t layer, bool v, size_t at) {
  const int32_t history = std::accumulate(prompt.begin(), prompt.begin() + token + 1, 0);
  return static_cast<std::byte>(history * 31 + token * 7 + layer * 13 + (v ? 101 : 0) + at * 3);
}

class DeferredCopiesTest : public testing::Test {
 protected:
  explicit DeferredCopiesTest(size_t capacity_blocks = 64, uint32_t places = 8)
      : places_(places), capacity_blocks_(capacity_blocks) {
    kv_.layout = kLayout;
    kv_.order = PagedKv::Order::kHeadTokenDim;
    kv_.page_tokens = kPageTokens;
    kv_.pages = places * kPagesEach;
    kv_.page_stride = 2 * kv_.PageBytes();
    memory_.resize(kLayers * kv_.pages * kv_.page_stride);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory_.data() + layer * kv_.pages * kv_.page_stride;
      kv_.layers.push_back({k, k + kv_.PageBytes()});
    }
    MakeCache({.clock = &clock_});
  }
  // A test that failed has copies under way, for which the cache waits.
  void TearDown() override { backend_->CompleteAll(); }

  void MakeCache(const CacheOptions& cache_options) {
    auto backend = FakeBackend::Create(capacity_blocks_ * kBlockBytes);
    backend_ = backend.get();
    cache_ = *Cache::Create(cache_options, std::move(backend), CreateLruPolicy());
    paged_ = *Create(kv_);
  }
  absl::StatusOr<std::unique_ptr<PagedCache>> Create(const PagedKv& kv) {
    PagedCacheOptions options = {.tokens_per_block = kBlockTokens};
    options.ns.layout = kv.layout;
    options.ns.shard = Shard::Whole(kv.layout.layers, kHeads);
    return PagedCache::Create(cache_.get(), kv, options);
  }

  static Prompt Tokens(size_t count, int32_t first = 1) {
    Prompt prompt(count);
    std::iota(prompt.begin(), prompt.end(), first);
    return prompt;
  }
  // The pages of a place, backwards.
  static std::vector<int32_t> Table(uint32_t place) {
    std::vector<int32_t> table(kPagesEach);
    std::iota(table.rbegin(), table.rend(), static_cast<int32_t>(place * kPagesEach));
    return table;
  }
  // Calls visit(byte, its token, what it should be) for the bytes of tokens of a place.
  template <typename Visit>
  void ForBytes(uint32_t place, const Prompt& prompt, const Visit& visit) {
    const std::vector<int32_t> table = Table(place);
    const size_t row = kTokenBytes / kHeads;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (size_t t = 0; t < kPagesEach * kPageTokens; ++t) {
        for (bool v : {false, true}) {
          for (size_t at = 0; at < kTokenBytes; ++at) {
            std::byte* const page = (v ? kv_.layers[layer].v : kv_.layers[layer].k) +
                                    table[t / kPageTokens] * kv_.page_stride;
            const size_t in_page = at / row * kPageTokens + t % kPageTokens;
            visit(page[in_page * row + at % row], t,
                  t < prompt.size() ? Content(prompt, t, layer, v, at) : std::byte{0});
          }
        }
      }
    }
  }
  void Fill(uint32_t place, std::byte value) {
    ForBytes(place, {}, [&](std::byte& byte, size_t, std::byte) { byte = value; });
  }
  void Compute(uint32_t place, const Prompt& prompt) {
    ForBytes(place, prompt, [](std::byte& byte, size_t, std::byte is) { byte = is; });
  }
  // Whether tokens [first, end) are there and everything else is still `before`.
  bool HasOnly(uint32_t place, const Prompt& prompt, size_t first, size_t end, std::byte before) {
    bool right = true;
    ForBytes(place, prompt, [&](std::byte& byte, size_t t, std::byte is) {
      right &= byte == (t >= first && t < end ? is : before);
    });
    return right;
  }

  PagedCache::Saved Save(uint32_t place, const Prompt& prompt,
                         const PagedSaveOptions& options = {}) {
    Compute(place, prompt);
    return *paged_->Save(prompt, Table(place), {}, options);
  }
  uint32_t Lookup(const Prompt& prompt) { return *paged_->Lookup(prompt); }
  void SaveAndWait(uint32_t place, const Prompt& prompt, const PagedSaveOptions& options = {}) {
    PagedCache::Saved saved = Save(place, prompt, options);
    backend_->CompleteAll();
    ASSERT_TRUE(saved.copies.Wait().ok());
  }
  size_t InUse() { return cache_->stats().usage.bytes_in_use; }

  const uint32_t places_;
  const size_t capacity_blocks_;
  ManualClock clock_;
  FakeBackend* backend_ = nullptr;
  std::unique_ptr<Cache> cache_;
  PagedKv kv_;
  std::vector<std::byte> memory_;
  std::unique_ptr<PagedCache> paged_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_PAGED_DEFERRED_COPIES_H_
