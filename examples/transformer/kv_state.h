#ifndef KVCACHE_EXAMPLES_TRANSFORMER_KV_STATE_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_KV_STATE_H_

#include <cstddef>

#include "absl/types/span.h"
#include "kvcache/examples/transformer/aligned_array.h"

namespace kvcache::examples {

// The working K and V of one sequence: what Transformer::Forward reads and extends, and what a
// cache saves and restores. Every layer's K, and likewise its V, is contiguous f32 [tokens,
// kv_heads, head_dim], so that the rows of any range of tokens are one contiguous piece.
//
// To restore: write the rows of tokens [0, n) into mutable_k(layer) and mutable_v(layer) of every
// layer, then SetTokens(n). Not thread-safe. Comes from Transformer::NewKvState.
class KvState {
 public:
  // Requires positive arguments whose product fits into memory.
  KvState(int layers, int max_tokens, int kv_heads, int head_dim);

  int layers() const { return layers_; }
  int max_tokens() const { return max_tokens_; }
  // Tokens whose K and V are valid.
  int tokens() const { return tokens_; }
  // Floats per token in one layer's K: kv_heads * head_dim.
  size_t token_size() const { return token_size_; }

  // The valid rows of one layer: [tokens(), kv_heads, head_dim].
  absl::Span<const float> k(int layer) const { return Rows(2 * layer, tokens_); }
  absl::Span<const float> v(int layer) const { return Rows(2 * layer + 1, tokens_); }

  // All rows of one layer: [max_tokens(), kv_heads, head_dim].
  absl::Span<float> mutable_k(int layer) { return MutableRows(2 * layer); }
  absl::Span<float> mutable_v(int layer) { return MutableRows(2 * layer + 1); }

  // Declares the first `tokens` rows valid: fewer than before to go back, or as many as were
  // restored. Requires 0 <= tokens <= max_tokens() (checked).
  void SetTokens(int tokens);

  // Fills everything with NaN and forgets all tokens, so that nothing can be reused by accident.
  void Poison();

 private:
  absl::Span<const float> Rows(int plane, int rows) const {
    return absl::MakeConstSpan(data_.data() + plane * plane_size_, rows * token_size_);
  }
  absl::Span<float> MutableRows(int plane) {
    return absl::MakeSpan(data_.data() + plane * plane_size_, plane_size_);
  }

  const int layers_;
  const int max_tokens_;
  const size_t token_size_;
  const size_t plane_size_;
  int tokens_ = 0;
  AlignedArray<float> data_;  // [layers, K then V, max_tokens, kv_heads, head_dim]
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_KV_STATE_H_
