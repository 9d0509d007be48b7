#ifndef KVCACHE_EXAMPLES_TRANSFORMER_KERNELS_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::examples {

// A weight matrix [inner, columns] of bf16, cut into panels of Kernels::panel_columns columns each:
// data is [columns / panel_columns, inner, panel_columns]. Fastest when what is multiplied next
// follows it in memory.
struct PackedMatrix {
  const uint16_t* data;
  size_t inner;
  size_t columns;
};

// Causal attention of `rows` consecutive tokens, the first at position `first_position`, over the
// keys and values of all positions up to their own. `rows` of q and out are `stride` floats apart.
struct AttentionArgs {
  size_t rows;
  size_t first_position;
  size_t kv_heads;
  size_t group;  // query heads per kv head
  size_t head_dim;
  float scale;     // of the scores: 1 / sqrt(head_dim)
  const float* q;  // [rows, kv_heads * group, head_dim]
  size_t q_stride;
  const float* keys;  // as transpose_keys left them
  size_t keys_capacity;
  const float* v;  // [tokens, kv_heads, head_dim]
  float* out;      // [rows, kv_heads * group, head_dim]
  size_t out_stride;
  float* scratch;  // attention_scratch(...) floats
};

// The arithmetic of the transformer for one instruction set. Every function is deterministic, and
// the result for a row does not depend on how many other rows are computed with it: one accumulator
// per output, the inner index ascending, no split of a sum. That is what makes a restored prefix
// bit-identical to a computed one. Dimensions are multiples of kDimensionStep; arrays are aligned
// to 64 bytes where speed matters, never for correctness.
struct Kernels {
  size_t panel_columns;

  // out[rows, columns] = a[rows, inner] * b, or += if `accumulate`. `scratch` holds one panel:
  // inner * panel_columns floats.
  void (*matmul)(const float* a, size_t a_stride, size_t rows, const PackedMatrix& b, float* out,
                 size_t out_stride, bool accumulate, float* scratch);

  // out[rows, columns] = x / rms(x) * gain. Rows are contiguous.
  void (*rms_norm)(const float* x, const float* gain, size_t rows, size_t columns, float* out);

  // Rotates pairs (j, j + head_dim / 2) of every head in place.
  // cosines, sines: [rows, head_dim / 2].
  void (*rope)(float* x, size_t stride, size_t rows, size_t heads, size_t head_dim,
               const float* cosines, const float* sines);

  // out[rows, columns] = silu(gate) * up, where a row of gate_up is [gate, up].
  void (*swiglu)(const float* gate_up, size_t rows, size_t columns, float* out);

  // Brings k [tokens, kv_heads, head_dim] into the order that attention wants, for the panels
  // that hold tokens [first, last): keys is [kv_heads, capacity / panel_columns, head_dim,
  // panel_columns]. Tokens of the last panel beyond `last` become 0.
  void (*transpose_keys)(const float* k, size_t first, size_t last, size_t kv_heads,
                         size_t head_dim, float* keys, size_t capacity);

  void (*attention)(const AttentionArgs& args);
  size_t (*attention_scratch)(size_t group, size_t head_dim, size_t capacity);
};

// Largest panel_columns of any instruction set.
inline constexpr size_t kDimensionStep = 32;

// One table per instruction set; those that this architecture does not know are not linked.
extern const Kernels kBaselineKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_KERNELS_H_
