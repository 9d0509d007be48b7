// The third example of README.md is what stands between the two marks.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace {

uint32_t computed_from = 0;

void ComputeKv(uint32_t from) { computed_from = from; }

absl::Status Run(kvcache::Cache& cache, const kvcache::Namespace& ns, uint32_t num_pages,
                 size_t stride, absl::Span<const std::pair<std::byte*, std::byte*>> engine_layers,
                 absl::Span<const int32_t> prompt, absl::Span<const int32_t> page_table) {
  // clang-format off
  // [example]
  kvcache::PagedKv pages = {.layout = ns.layout, .page_tokens = 16, .pages = num_pages, .page_stride = stride};
  for (auto [k, v] : engine_layers) pages.layers.push_back({k, v});        // page 0 of each layer
  auto paged = kvcache::PagedCache::Create(&cache, pages, {.tokens_per_block = 64, .ns = ns});
  if (!paged.ok()) return paged.status();

  auto loaded = (*paged)->Load(prompt, page_table);  // the beginning that is there, into its pages
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = loaded->copies.Wait(); !status.ok()) return status;  // or WaitPartOn(stream, layer)
  ComputeKv(loaded->tokens);                         // the rest of the prompt
  auto saved = (*paged)->Save(prompt, page_table);   // what is not there yet
  if (!saved.ok()) return saved.status();
  if (absl::Status status = saved->copies.Wait(); !status.ok()) return status;
  // [example]
  // clang-format on
  return absl::OkStatus();
}

}  // namespace

int main() {
  kvcache::Namespace ns = {
      .shard = kvcache::Shard::Whole(2, 2),
      .layout = {.dtype = kvcache::DType::kF32, .layers = 2, .kv_heads = 2, .head_dim = 4}};
  auto backend = kvcache::CreateCpuRamBackend({.capacity_bytes = size_t{1} << 20});
  auto cache = kvcache::Cache::Create({}, *std::move(backend), kvcache::CreateLruPolicy());
  constexpr uint32_t kPages = 20;
  constexpr size_t kPageBytes = 16 * 2 * 4 * 4;
  std::vector<std::byte> memory(2 * 2 * kPages * kPageBytes, std::byte{1});
  std::vector<std::pair<std::byte*, std::byte*>> layers;
  for (size_t layer = 0; layer < 2; ++layer) {
    std::byte* const k = memory.data() + 2 * layer * kPages * kPageBytes;
    layers.push_back({k, k + kPages * kPageBytes});
  }
  std::vector<int32_t> prompt(150);
  std::iota(prompt.begin(), prompt.end(), 0);
  std::vector<int32_t> page_table(10);
  std::iota(page_table.rbegin(), page_table.rend(), 3);
  for (uint32_t expected : {0u, 150u}) {
    const absl::Status status = Run(**cache, ns, kPages, kPageBytes, layers, prompt, page_table);
    if (status.ok() && computed_from == expected) continue;
    std::fprintf(stderr, "computed from %u on, expected %u: %s\n", computed_from, expected,
                 status.ToString().c_str());
    return 1;
  }
}
