// An engine that depends on kvcache, with a core/cache/cache.h of its own: it asks the same prompt
// twice.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/cache/cache.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/lru/lru.h"

namespace {

absl::Status Run() {
  auto backend = kvcache::CreateCpuRamBackend({.capacity_bytes = size_t{1} << 20});
  if (!backend.ok()) return backend.status();
  auto cache = kvcache::Cache::Create({}, *std::move(backend), kvcache::CreateLruPolicy());
  if (!cache.ok()) return cache.status();

  const kvcache::Namespace ns = {
      .model = "tiny",
      .shard = kvcache::Shard::Whole(4, 2),
      .layout = {.dtype = kvcache::DType::kF32, .layers = 4, .kv_heads = 2, .head_dim = 8}};
  const absl::StatusOr<kvcache::NamespaceId> id = (*cache)->Register(ns);
  if (!id.ok()) return id.status();
  const std::vector<int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6};
  const absl::StatusOr<kvcache::BlockKey> root = kvcache::RootKey(ns);
  if (!root.ok()) return root.status();
  const absl::StatusOr<kvcache::BlockKey> key = kvcache::TokenBlockKey(*root, prompt);
  if (!key.ok()) return key.status();

  downstream::Cache questions;
  for (int i = 0; i < 2; ++i) {
    questions.Ask();
    const absl::StatusOr<kvcache::ReadLease> hit = (*cache)->Get(*id, *key);
    std::printf("question %d: %s\n", questions.questions(), hit.ok() ? "hit" : "miss");
    if (hit.ok()) continue;
    const std::vector<std::byte> kv(ns.layout.BlockBytes(prompt.size()).value());
    absl::Status put =
        (*cache)->Put(*key, {kv.size(), ns.layout.parts()}, {kvcache::ConstBytes(kv)}, {.ns = *id});
    if (!put.ok()) return put;
  }
  return (*cache)->stats().counters.block_hits == 1 ? absl::OkStatus()
                                                    : absl::InternalError("expected one hit");
}

}  // namespace

int main() {
  const absl::Status status = Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
