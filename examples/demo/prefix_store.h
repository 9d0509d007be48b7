#ifndef KVCACHE_EXAMPLES_DEMO_PREFIX_STORE_H_
#define KVCACHE_EXAMPLES_DEMO_PREFIX_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/examples/transformer/kv_state.h"
#include "kvcache/examples/transformer/transformer.h"

namespace kvcache::examples {

// How a demo keeps the K and V of prompts from one request to the next. Thread-compatible.
class PrefixStore {
 public:
  virtual ~PrefixStore() = default;

  // Fills the first rows of all layers of `kv` with the K and V of as many of the prompt's first
  // tokens as there are, and returns how many, which are then kv.tokens(). A miss is 0. An error
  // leaves kv without tokens. REQUIRES: kv has none and fits the model of the store.
  virtual absl::StatusOr<size_t> Restore(absl::Span<const int32_t> prompt, KvState& kv) = 0;

  // Keeps the rest, of which `kv` now has all: `restored` tokens came from Restore(), to compute
  // the others again would take `compute`. After an error, which is that of the first put refused,
  // the store has less than it could. REQUIRES: restored < prompt.size() <= kv.tokens().
  virtual absl::Status Keep(absl::Span<const int32_t> prompt, size_t restored, KvState& kv,
                            absl::Duration compute) = 0;

  virtual CacheStats stats() const = 0;
};

// Each prompt is one entry of a PrefixCache, found as a whole or not at all.
absl::StatusOr<std::unique_ptr<PrefixStore>> MakeWholePromptStore(
    const Transformer& model, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy);

// Each prompt is a chain of blocks of `tokens_per_block` tokens in a Cache, of which the longest
// beginning is found: prompts that begin alike share blocks. REQUIRES: tokens_per_block > 0.
absl::StatusOr<std::unique_ptr<PrefixStore>> MakeTokenBlockStore(
    const Transformer& model, uint32_t tokens_per_block, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_PREFIX_STORE_H_
