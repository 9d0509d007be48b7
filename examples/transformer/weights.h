#ifndef KVCACHE_EXAMPLES_TRANSFORMER_WEIGHTS_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_WEIGHTS_H_

#include <cstdint>

namespace kvcache::examples {

enum class Matrix : uint8_t {
  kEmbedding,        // [vocabulary, model_dim]
  kQuery,            // [model_dim, heads * head_dim]
  kKey,              // [model_dim, kv_heads * head_dim]
  kValue,            // [model_dim, kv_heads * head_dim]
  kOutput,           // [heads * head_dim, model_dim]
  kGate,             // [model_dim, ff_dim]
  kUp,               // [model_dim, ff_dim]
  kDown,             // [ff_dim, model_dim]
  kHead,             // [model_dim, vocabulary]
  kAttentionGain,    // [model_dim]: of the RMSNorm before attention
  kFeedForwardGain,  // [model_dim]: before the feed-forward
  kFinalGain,        // [model_dim]: before the head
};

// The seeded weights of one matrix: every value is a pure function of seed, layer, matrix and
// index, uniform with mean 0 and variance `variance`, and exactly representable as bf16. Gains are
// near 1.
class WeightSource {
 public:
  WeightSource(uint64_t seed, int layer, Matrix matrix, double variance);

  // The value at a row-major index, as the bits of a bf16.
  uint16_t Bf16(uint64_t index) const;
  // The same value.
  float operator[](uint64_t index) const;

 private:
  uint64_t base_;
  float offset_;
  float scale_;
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_WEIGHTS_H_
