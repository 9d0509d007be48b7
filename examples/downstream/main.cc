// An engine that depends on kvcache: it asks for the name of the K/V of its prompt.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "absl/status/statusor.h"
#include "core/cache.h"
#include "kvcache/core/block_key.h"

int main() {
  const std::vector<int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6};
  downstream::Cache questions;
  questions.Ask();
  const absl::StatusOr<kvcache::BlockKey> root = kvcache::RootKey(
      {.model = "tiny",
       .shard = kvcache::Shard::Whole(4, 2),
       .layout = {.dtype = kvcache::DType::kF32, .layers = 4, .kv_heads = 2, .head_dim = 8}});
  if (!root.ok()) {
    std::fprintf(stderr, "%s\n", root.status().ToString().c_str());
    return 1;
  }
  std::printf("question %d: %s\n", questions.questions(),
              kvcache::TokenBlockKey(*root, prompt)->ToHex().c_str());
  return 0;
}
