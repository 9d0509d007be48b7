#ifndef KVCACHE_EXAMPLES_TRANSFORMER_TRANSFORMER_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_TRANSFORMER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/examples/transformer/aligned_array.h"
#include "kvcache/examples/transformer/instruction_set.h"
#include "kvcache/examples/transformer/kernels.h"
#include "kvcache/examples/transformer/kv_state.h"

namespace kvcache::examples {

// The defaults: 32 layers, 13 million weights, 16 KiB of K and V per token.
struct TransformerConfig {
  int layers = 32;
  int model_dim = 192;  // a multiple of 32, like head_dim, ff_dim and vocabulary
  int heads = 6;        // query heads, a multiple of kv_heads
  int kv_heads = 2;
  int head_dim = 32;
  int ff_dim = 512;
  int vocabulary = 2048;
  int max_tokens = 1024;  // prompt and output together
  uint64_t seed = 42;     // of the weights

  // Unset: the fastest that this machine supports.
  std::optional<InstructionSet> instruction_set;
};

// A small decoder-only transformer of the Llama kind: RMSNorm, rotary positions, grouped-query
// causal attention, SwiGLU; bf16 weights, f32 activations, one thread, no libraries. The weights
// are random, so it says nothing sensible, but the arithmetic and its cost are those of the real
// thing.
//
// The logits after a sequence of tokens are bit-identical however the sequence was divided into
// calls of Forward, and whether the K and V of a prefix were computed or restored, as long as
// both happened with one instruction set.
//
// Thread-compatible: one Forward at a time per object.
class Transformer {
 public:
  // kInvalidArgument when a size is not positive, too large, or does not fit the others, or when
  // the machine does not support the instruction set.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const TransformerConfig& config);

  const TransformerConfig& config() const { return config_; }
  InstructionSet instruction_set() const { return instruction_set_; }

  // Room for the K and V of config().max_tokens tokens, empty.
  KvState NewKvState() const;

  // Appends `tokens` at the positions kv.tokens() and up: computes their K and V into `kv` and,
  // into `logits` [vocabulary], the scores of the token to follow the last one.
  //
  // Refuses without changing anything: kInvalidArgument when there are no tokens, one is outside of
  // the vocabulary, `logits` has another size or `kv` another shape; kResourceExhausted when
  // max_tokens would be exceeded.
  absl::Status Forward(KvState& kv, absl::Span<const int32_t> tokens, absl::Span<float> logits);

 private:
  // Matrices with the same input are side by side in one, for one pass over the input. All point
  // into weights_.
  struct Layer {
    AlignedArray<float> attention_gain;
    PackedMatrix query_key_value;  // [model_dim, (heads + 2 * kv_heads) * head_dim]
    PackedMatrix output;           // [heads * head_dim, model_dim]
    AlignedArray<float> feed_forward_gain;
    PackedMatrix gate_up;  // [model_dim, 2 * ff_dim]
    PackedMatrix down;     // [ff_dim, model_dim]
  };

  Transformer(const TransformerConfig& config, InstructionSet instruction_set);

  absl::Status Check(const KvState& kv, absl::Span<const int32_t> tokens,
                     absl::Span<const float> logits) const;
  // One layer for the tokens [first, first + rows) of the sequence, whose hidden states are x
  // [rows, model_dim]; the keys before `first` must have been transposed.
  void Attend(const Layer& layer, size_t first, size_t rows, float* k, float* v, float* x);
  void FeedForward(const Layer& layer, size_t rows, float* x);

  const TransformerConfig config_;
  const InstructionSet instruction_set_;
  const Kernels& kernels_;

  AlignedArray<uint16_t> embedding_;  // [vocabulary, model_dim], bf16
  AlignedArray<uint16_t> weights_;    // of all matrices, in the order of their use
  std::vector<Layer> layers_;
  AlignedArray<float> final_gain_;  // [model_dim]
  PackedMatrix head_;               // [model_dim, vocabulary]
  AlignedArray<float> cosines_;     // [max_tokens, head_dim / 2]
  AlignedArray<float> sines_;       // [max_tokens, head_dim / 2]

  // Scratch of Forward. A chunk is what goes through one layer at a time.
  AlignedArray<float> hidden_;           // [max_tokens, model_dim]
  AlignedArray<float> normed_;           // [chunk, model_dim]
  AlignedArray<float> projected_;        // [chunk, columns of query_key_value or gate_up]
  AlignedArray<float> mixed_;            // [chunk, heads * head_dim or ff_dim]
  AlignedArray<float> transposed_keys_;  // see Kernels::transpose_keys
  AlignedArray<float> attention_scratch_;
  AlignedArray<float> panel_;  // see Kernels::matmul
};

// The token with the highest score; of equals, the first.
int32_t GreedyToken(absl::Span<const float> logits);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_TRANSFORMER_H_
