// The second example of README.md is what stands between the two marks.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/lru/lru.h"

namespace {

int computed = 0;
int attended = 0;

void ComputeKv(size_t block, std::byte* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(block);
  ++computed;
}

void Attend(const std::byte* data, size_t bytes) {
  attended += data[bytes - 1] == std::byte(attended);
}

absl::Status Run(absl::Span<const int32_t> tokens) {
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
  return absl::OkStatus();
}

}  // namespace

int main() {
  std::vector<int32_t> tokens(70);
  std::iota(tokens.begin(), tokens.end(), 0);
  const absl::Status status = Run(tokens);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() && computed == 5 && attended == 5 ? 0 : 1;
}
