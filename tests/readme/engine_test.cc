// The second and the third example of README.md stand between marks, one behind the other as a
// reader would write them.
#include <algorithm>
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

int computed = 0;
int attended = 0;
uint32_t computed_from = 1;

void ComputeKv(size_t block, std::byte* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(block);
  ++computed;
}

void Attend(const std::byte* data, size_t bytes) {
  attended += data[bytes - 1] == std::byte(attended);
}

void ComputeKv(uint32_t from) { computed_from = from; }

absl::Status Run(absl::Span<const int32_t> tokens, uint32_t num_pages, size_t stride,
                 absl::Span<const std::pair<std::byte*, std::byte*>> engine_layers,
                 absl::Span<const int32_t> page_table) {
  // clang-format off
  // [example]
  kvcache::KvLayout layout = {.dtype = kvcache::DType::kBF16, .layers = 32, .kv_heads = 8, .head_dim = 128};
  kvcache::Namespace ns = {.model = "my-model", .tenant = "alice",
                           .shard = kvcache::Shard::Whole(32, 8), .layout = layout};
  auto backend = kvcache::CreateCpuRamBackend({.capacity_bytes = size_t{256} << 20});
  if (!backend.ok()) return backend.status();
  auto cache = kvcache::Cache::Create({}, *std::move(backend), kvcache::CreateLruPolicy());
  if (!cache.ok()) return cache.status();
  kvcache::NamespaceId id = (*cache)->Register(ns).value();

  std::vector<kvcache::BlockKey> keys;  // one for every 16 tokens, each hashed over its parent
  absl::Status hashed = kvcache::ChainKeys(kvcache::RootKey(ns).value(), tokens, 16, &keys);
  if (!hashed.ok()) return hashed;
  kvcache::PrefixMatch match = (*cache)->Match({.ns = id, .keys = keys});  // the longest prefix, pinned
  for (kvcache::ReadLease& block : match.blocks) Attend(block.data(), block.size());

  for (size_t i = match.blocks.size(); i < keys.size(); ++i) {             // compute only the rest
    kvcache::PutOptions put = {.ns = id};
    if (i > 0) put.parent = keys[i - 1];
    uint32_t n = std::min<size_t>(16, tokens.size() - 16 * i);             // the last block may be short
    auto block = (*cache)->Reserve(keys[i], {layout.BlockBytes(n).value(), layout.parts()}, put);
    if (!block.ok()) break;                                                // no room, or somebody else is at it
    ComputeKv(i, block->data(), block->size());                            // in place; nobody sees it yet
    if (!block->Commit().ok()) break;
  }
  // [example]
  // clang-format on
  kvcache::PrefixMatch again = (*cache)->Match({.ns = id, .keys = keys});
  for (kvcache::ReadLease& block : again.blocks) Attend(block.data(), block.size());

  // clang-format off
  // [example]
  kvcache::PagedKv pages = {.layout = ns.layout, .page_tokens = 16, .pages = num_pages, .page_stride = stride};
  for (auto [k, v] : engine_layers) pages.layers.push_back({k, v});        // page 0 of each layer
  auto paged = kvcache::PagedCache::Create(cache->get(), pages, {.tokens_per_block = 64, .ns = ns});
  if (!paged.ok()) return paged.status();

  auto loaded = (*paged)->Load(tokens, page_table);  // the beginning that is there, into its pages
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = loaded->copies.Wait(); !status.ok()) return status;  // or WaitPartOn(stream, layer)
  ComputeKv(loaded->tokens);                         // the rest of the prompt
  auto saved = (*paged)->Save(tokens, page_table);   // what is not there yet
  if (!saved.ok()) return saved.status();
  if (absl::Status status = saved->copies.Wait(); !status.ok()) return status;
  // [example]
  // clang-format on
  loaded = (*paged)->Load(tokens, page_table);
  if (!loaded.ok()) return loaded.status();
  if (loaded->tokens != tokens.size()) return absl::InternalError("not all that was saved");
  return loaded->copies.Wait();
}

}  // namespace

int main() {
  std::vector<int32_t> tokens(70);
  std::iota(tokens.begin(), tokens.end(), 0);
  constexpr uint32_t kPages = 5;
  constexpr size_t kPageBytes = 16 * 8 * 128 * 2;
  std::vector<std::byte> memory(2 * 32 * kPages * kPageBytes, std::byte{1});
  std::vector<std::pair<std::byte*, std::byte*>> layers;
  for (size_t layer = 0; layer < 32; ++layer) {
    std::byte* const k = memory.data() + 2 * layer * kPages * kPageBytes;
    layers.push_back({k, k + kPages * kPageBytes});
  }
  const std::vector<int32_t> page_table = {4, 3, 2, 1, 0};
  const absl::Status status = Run(tokens, kPages, kPageBytes, layers, page_table);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() && computed == 5 && attended == 5 && computed_from == 0 ? 0 : 1;
}
