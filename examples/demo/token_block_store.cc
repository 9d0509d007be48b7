#include <algorithm>
#include <utility>
#include <vector>

#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/examples/demo/kv_rows.h"
#include "kvcache/examples/demo/prefix_store.h"

namespace kvcache::examples {
namespace {

class TokenBlockStore : public PrefixStore {
 public:
  TokenBlockStore(uint32_t tokens_per_block, const KvLayout& layout, const BlockKey& root,
                  NamespaceId ns, std::unique_ptr<Cache> cache)
      : tokens_per_block_(tokens_per_block),
        layout_(layout),
        root_(root),
        ns_(ns),
        cache_(std::move(cache)) {}

  absl::StatusOr<size_t> Restore(absl::Span<const int32_t> prompt, KvState& kv) override {
    std::vector<BlockKey> keys;
    if (absl::Status status = ChainKeys(root_, prompt, tokens_per_block_, &keys); !status.ok()) {
      return status;
    }
    const PrefixMatch match = cache_->Match({.ns = ns_,
                                             .keys = keys,
                                             .tokens_per_block = tokens_per_block_,
                                             .tokens = static_cast<uint32_t>(prompt.size())});
    for (size_t i = 0; i < match.blocks.size(); ++i) {
      const size_t first = i * tokens_per_block_;
      const std::vector<MutableBytes> rows =
          RowsOfAllLayers<MutableBytes>(kv, first, BlockTokens(first, prompt));
      if (absl::Status status = match.blocks[i].Read(rows).Wait(); !status.ok()) return status;
    }
    kv.SetTokens(static_cast<int>(match.tokens));
    return match.tokens;
  }

  absl::Status Keep(absl::Span<const int32_t> prompt, size_t restored, KvState& kv,
                    absl::Duration compute) override {
    std::vector<BlockKey> keys;
    if (absl::Status status = ChainKeys(root_, prompt, tokens_per_block_, &keys); !status.ok()) {
      return status;
    }
    const absl::Duration compute_per_token = compute / (prompt.size() - restored);
    // A short block is the last, so what was restored are full blocks.
    for (size_t i = restored / tokens_per_block_; i < keys.size(); ++i) {
      const size_t first = i * tokens_per_block_;
      const size_t tokens = BlockTokens(first, prompt);
      const absl::StatusOr<size_t> bytes = layout_.BlockBytes(static_cast<uint32_t>(tokens));
      if (!bytes.ok()) return bytes.status();
      PutOptions options = {.ns = ns_,
                            .recompute_cost = compute_per_token * tokens,
                            .chain_blocks = static_cast<uint32_t>(keys.size())};
      if (i > 0) options.parent = keys[i - 1];
      const absl::Status put = cache_->Put(keys[i], {*bytes, layout_.parts()},
                                           RowsOfAllLayers<ConstBytes>(kv, first, tokens), options);
      if (!put.ok()) return put;  // without this block, those behind it are of no use
    }
    return absl::OkStatus();
  }

  CacheStats stats() const override { return cache_->stats(); }

 private:
  // Of the block that begins at token `first`.
  size_t BlockTokens(size_t first, absl::Span<const int32_t> prompt) const {
    return std::min<size_t>(tokens_per_block_, prompt.size() - first);
  }

  const uint32_t tokens_per_block_;
  const KvLayout layout_;
  const BlockKey root_;
  const NamespaceId ns_;
  const std::unique_ptr<Cache> cache_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefixStore>> MakeTokenBlockStore(
    const Transformer& model, uint32_t tokens_per_block, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy) {
  const TransformerConfig& config = model.config();
  const KvLayout layout = {.dtype = DType::kF32,
                           .layers = static_cast<uint32_t>(config.layers),
                           .kv_heads = static_cast<uint32_t>(config.kv_heads),
                           .head_dim = static_cast<uint32_t>(config.head_dim)};
  const Namespace ns = {.model = kModelName,
                        .revision = Revision(model),
                        .adapter = "",
                        .tenant = "",
                        .shard = Shard::Whole(layout.layers, layout.kv_heads),
                        .layout = layout};
  const absl::StatusOr<BlockKey> root = RootKey(ns);
  if (!root.ok()) return root.status();
  absl::StatusOr<std::unique_ptr<Cache>> cache =
      Cache::Create({}, std::move(backend), std::move(policy));
  if (!cache.ok()) return cache.status();
  const absl::StatusOr<NamespaceId> id = (*cache)->Register(ns);
  if (!id.ok()) return id.status();
  return std::make_unique<TokenBlockStore>(tokens_per_block, layout, *root, *id, *std::move(cache));
}

}  // namespace kvcache::examples
