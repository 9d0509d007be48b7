#include <utility>
#include <vector>

#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/examples/demo/kv_rows.h"
#include "kvcache/examples/demo/prefix_store.h"

namespace kvcache::examples {
namespace {

class WholePromptStore : public PrefixStore {
 public:
  WholePromptStore(const TransformerConfig& model, std::unique_ptr<PrefixCache> cache)
      : kv_heads_(model.kv_heads), head_dim_(model.head_dim), cache_(std::move(cache)) {}

  absl::StatusOr<size_t> Restore(absl::Span<const int32_t> prompt, KvState& kv) override {
    std::vector<LayerDestination> layers;
    layers.reserve(kv.layers());
    for (int layer = 0; layer < kv.layers(); ++layer) {
      layers.push_back({.k = Rows(kv, kv.mutable_k(layer), 0, prompt.size()),
                        .v = Rows(kv, kv.mutable_v(layer), 0, prompt.size())});
    }
    const absl::StatusOr<Transfer> load = cache_->LoadAllLayers(prompt, layers);
    if (absl::IsNotFound(load.status())) return 0;
    if (!load.ok()) return load.status();
    if (absl::Status status = load->Wait(); !status.ok()) return status;
    kv.SetTokens(static_cast<int>(prompt.size()));
    return prompt.size();
  }

  absl::Status Keep(absl::Span<const int32_t> prompt, size_t restored, KvState& kv,
                    absl::Duration compute) override {
    std::vector<LayerKv> layers;
    layers.reserve(kv.layers());
    for (int layer = 0; layer < kv.layers(); ++layer) {
      layers.push_back({.k = Tensor(kv.k(layer).data(), prompt.size()),
                        .v = Tensor(kv.v(layer).data(), prompt.size())});
    }
    return cache_->CacheAllLayers(prompt, layers, {.recompute_cost = compute});
  }

  CacheStats stats() const override { return cache_->stats(); }

 private:
  KvTensor Tensor(const float* data, size_t tokens) const {
    return {.data = data,
            .dtype = DType::kF32,
            .tokens = static_cast<uint32_t>(tokens),
            .kv_heads = kv_heads_,
            .head_dim = head_dim_};
  }

  const uint32_t kv_heads_;
  const uint32_t head_dim_;
  const std::unique_ptr<PrefixCache> cache_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefixStore>> MakeWholePromptStore(
    const Transformer& model, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy) {
  const PrefixCacheOptions options = {.layers = static_cast<uint32_t>(model.config().layers),
                                      .model = kModelName,
                                      .revision = Revision(model)};
  absl::StatusOr<std::unique_ptr<PrefixCache>> cache =
      PrefixCache::Create(options, std::move(backend), std::move(policy));
  if (!cache.ok()) return cache.status();
  return std::make_unique<WholePromptStore>(model.config(), *std::move(cache));
}

}  // namespace kvcache::examples
