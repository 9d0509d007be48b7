// Compiled once per instruction set; KVCACHE_KERNEL_TABLE names the table this compilation defines.
//
// Nothing here may have external linkage except that table, and no header may be included that
// defines inline functions of its own: the linker could otherwise keep an AVX-512 copy of a
// function that the rest of the program calls on a machine without AVX-512.

#include "kvcache/examples/transformer/kernels.h"

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace kvcache::examples {
namespace {

#if defined(__AVX512F__)
constexpr size_t kLanes = 16;
constexpr size_t kMaxRows = 12;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr size_t kLanes = 8;
constexpr size_t kMaxRows = 6;  // 12 accumulators of 16 registers
#else
constexpr size_t kLanes = 4;
constexpr size_t kMaxRows = 6;
#endif
constexpr size_t kPanel = 2 * kLanes;
constexpr size_t kCacheLine = 64 / sizeof(float);
// How far ahead of its use a row of K is fetched: the processor does not look beyond a page of
// memory by itself, which is 16 tokens of the default model.
constexpr size_t kTokensAhead = 32;

using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));
using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using HalfBits = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
using Quad = float __attribute__((vector_size(4 * sizeof(float))));

template <typename V, typename T>
inline V LoadAs(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename V, typename T>
inline void Store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

inline Vec Load(const float* p) { return LoadAs<Vec>(p); }
inline Vec Load(const uint16_t* bf16) {
  return reinterpret_cast<Vec>(__builtin_convertvector(LoadAs<HalfBits>(bf16), Bits) << 16);
}

inline Vec Broadcast(float x) { return x - Vec{}; }

// a * b + c, fused wherever the instruction set can. The compiler is told not to contract by
// itself.
inline Vec MulAdd(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline float Sum(Vec v) {
  float sum = 0;
  for (size_t i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// exp(x) to about 2 ulp, exactly 0 below -87, NaN for NaN.
inline Vec Exp(Vec x) {
  const Vec lowest = Broadcast(-87.0f);
  const Vec highest = Broadcast(88.0f);
  const Vec bounded = x > highest ? highest : x;
  // Adding and subtracting 1.5 * 2^23 rounds to an integer, which is also left in the low bits.
  const Vec round = Broadcast(12582912.0f);
  const Vec shifted = MulAdd(bounded, Broadcast(1.44269504088896341f), round);
  const Vec n = shifted - round;
  Vec r = MulAdd(n, Broadcast(-0.693359375f), bounded);
  r = MulAdd(n, Broadcast(2.12194440e-4f), r);
  Vec p = Broadcast(1.9875691500e-4f);
  p = MulAdd(p, r, Broadcast(1.3981999507e-3f));
  p = MulAdd(p, r, Broadcast(8.3334519073e-3f));
  p = MulAdd(p, r, Broadcast(4.1665795894e-2f));
  p = MulAdd(p, r, Broadcast(1.6666665459e-1f));
  p = MulAdd(p, r, Broadcast(5.0000001201e-1f));
  p = MulAdd(p, r * r, r + 1.0f);
  const Vec power_of_two =
      reinterpret_cast<Vec>((reinterpret_cast<Bits>(shifted) << 23) + 0x3f800000u);
  return x < lowest ? Vec{} : p * power_of_two;
}

// c[kRows, kPanel] = (accumulate ? c : 0) + a[kRows, inner] * b[inner, kPanel]. If `copy` is not
// null it becomes b [inner, kPanel] in f32.
template <size_t kRows, typename B>
inline void Tile(const float* a, size_t a_stride, size_t inner, const B* b, size_t b_stride,
                 float* c, size_t c_stride, bool accumulate, float* copy) {
  Vec sum[kRows][2];
  for (size_t i = 0; i < kRows; ++i) {
    sum[i][0] = accumulate ? Load(c + i * c_stride) : Vec{};
    sum[i][1] = accumulate ? Load(c + i * c_stride + kLanes) : Vec{};
  }
  for (size_t k = 0; k < inner; ++k) {
    const Vec b0 = Load(b + k * b_stride);
    const Vec b1 = Load(b + k * b_stride + kLanes);
    if constexpr (sizeof(B) < sizeof(float)) {
      __builtin_prefetch(b + (k + inner) * b_stride);  // the next panel, or matrix
      if (copy != nullptr) {
        Store(copy + k * kPanel, b0);
        Store(copy + k * kPanel + kLanes, b1);
      }
    }
    for (size_t i = 0; i < kRows; ++i) {
      const Vec x = Broadcast(a[i * a_stride + k]);
      sum[i][0] = MulAdd(x, b0, sum[i][0]);
      sum[i][1] = MulAdd(x, b1, sum[i][1]);
    }
  }
  for (size_t i = 0; i < kRows; ++i) {
    Store(c + i * c_stride, sum[i][0]);
    Store(c + i * c_stride + kLanes, sum[i][1]);
  }
}

// Tile for a number of rows, 1 to kRows, known only at run time.
template <size_t kRows, typename... Args>
inline void TileOf(size_t rows, Args... args) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return TileOf<kRows - 1>(rows, args...);
  }
  Tile<kRows>(args...);
}

// Tiles of about equal height for any number of rows: a tile of one row would waste most of its
// time.
struct Split {
  explicit Split(size_t rows) : rows(rows), tiles((rows + kMaxRows - 1) / kMaxRows) {}
  size_t First(size_t tile) const { return rows * tile / tiles; }

  size_t rows;
  size_t tiles;
};

// Tile for any number of rows.
void Tiles(const float* a, size_t a_stride, size_t rows, size_t inner, const float* b,
           size_t b_stride, float* c, size_t c_stride) {
  const Split split(rows);
  for (size_t t = 0; t < split.tiles; ++t) {
    const size_t first = split.First(t);
    TileOf<kMaxRows>(split.First(t + 1) - first, a + first * a_stride, a_stride, inner, b, b_stride,
                     c + first * c_stride, c_stride, false, nullptr);
  }
}

// The first tile of rows reads a panel from memory and leaves it in f32 for the others.
void MatMul(const float* a, size_t a_stride, size_t rows, const PackedMatrix& b, float* out,
            size_t out_stride, bool accumulate, float* scratch) {
  const Split split(rows);
  for (size_t column = 0; column < b.columns; column += kPanel) {
    float* c = out + column;
    TileOf<kMaxRows>(split.First(1), a, a_stride, b.inner, b.data + column * b.inner, kPanel, c,
                     out_stride, accumulate, split.tiles > 1 ? scratch : nullptr);
    for (size_t t = 1; t < split.tiles; ++t) {
      const size_t first = split.First(t);
      TileOf<kMaxRows>(split.First(t + 1) - first, a + first * a_stride, a_stride, b.inner, scratch,
                       kPanel, c + first * out_stride, out_stride, accumulate, nullptr);
    }
  }
}

void RmsNorm(const float* x, const float* gain, size_t rows, size_t columns, float* out) {
  for (size_t row = 0; row < rows; ++row, x += columns, out += columns) {
    Vec squares{};
    for (size_t i = 0; i < columns; i += kLanes) {
      squares = MulAdd(Load(x + i), Load(x + i), squares);
    }
    const float mean = Sum(squares) / static_cast<float>(columns);
    const Vec scale = Broadcast(1.0f / __builtin_sqrtf(mean + 1e-5f));
    for (size_t i = 0; i < columns; i += kLanes) {
      Store(out + i, Load(x + i) * scale * Load(gain + i));
    }
  }
}

void Rope(float* x, size_t stride, size_t rows, size_t heads, size_t head_dim, const float* cosines,
          const float* sines) {
  const size_t half = head_dim / 2;
  for (size_t row = 0; row < rows; ++row, x += stride, cosines += half, sines += half) {
    for (size_t head = 0; head < heads; ++head) {
      float* low = x + head * head_dim;
      float* high = low + half;
      for (size_t j = 0; j < half; j += kLanes) {
        const Vec c = Load(cosines + j), s = Load(sines + j);
        const Vec x0 = Load(low + j), x1 = Load(high + j);
        Store(low + j, MulAdd(x0, c, -(x1 * s)));
        Store(high + j, MulAdd(x1, c, x0 * s));
      }
    }
  }
}

void SwiGlu(const float* gate_up, size_t rows, size_t columns, float* out) {
  for (size_t row = 0; row < rows; ++row, gate_up += 2 * columns, out += columns) {
    for (size_t i = 0; i < columns; i += kLanes) {
      const Vec gate = Load(gate_up + i);
      Store(out + i, gate / (1.0f + Exp(-gate)) * Load(gate_up + columns + i));
    }
  }
}

// out[4, 4] = the transpose of in[4, 4].
inline void Transpose4x4(const float* in, size_t in_stride, float* out, size_t out_stride) {
  const Quad a = LoadAs<Quad>(in), b = LoadAs<Quad>(in + in_stride);
  const Quad c = LoadAs<Quad>(in + 2 * in_stride), d = LoadAs<Quad>(in + 3 * in_stride);
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  Store(out, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
  Store(out + out_stride, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  Store(out + 2 * out_stride, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
  Store(out + 3 * out_stride, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

void TransposeKeys(const float* k, size_t first, size_t last, size_t kv_heads, size_t head_dim,
                   float* keys, size_t capacity) {
  const size_t token_size = kv_heads * head_dim;
  for (size_t t = first / kPanel * kPanel; t < last || t % kPanel != 0; t += 4) {
    const float* in = k + t * token_size;
    for (size_t head = 0; head < kv_heads; ++head, in += head_dim) {
      float* out = keys + (head * capacity + t / kPanel * kPanel) * head_dim + t % kPanel;
      if (t + 4 <= last) {
        for (size_t e = 0; e < head_dim; e += 4) {
          // One of the cache lines of four rows: after all e, it was each of them.
          const size_t row = kTokensAhead + e / 4 % 4;
          __builtin_prefetch(in + row * token_size + e / kCacheLine * kCacheLine);
          Transpose4x4(in + e, token_size, out + e * kPanel, kPanel);
        }
        continue;
      }
      for (size_t j = 0; j < 4; ++j) {
        for (size_t e = 0; e < head_dim; ++e) {
          out[e * kPanel + j] = t + j < last ? in[j * token_size + e] : 0.0f;
        }
      }
    }
  }
}

// scores[0, visible) becomes exp(score - max), scores[visible, padded) becomes 0; returns the sum.
// `padded` is a multiple of kLanes.
inline float Softmax(float* scores, size_t visible, size_t padded) {
  for (size_t j = visible; j < padded; ++j) scores[j] = -1e30f;
  Vec lane_max = Load(scores);
  for (size_t j = kLanes; j < padded; j += kLanes) {
    const Vec s = Load(scores + j);
    lane_max = s > lane_max ? s : lane_max;
  }
  float max = lane_max[0];
  for (size_t i = 1; i < kLanes; ++i) max = lane_max[i] > max ? lane_max[i] : max;
  Vec sum{};
  for (size_t j = 0; j < padded; j += kLanes) {
    const Vec p = Exp(Load(scores + j) - Broadcast(max));
    Store(scores + j, p);
    sum += p;
  }
  return Sum(sum);
}

// Tokens whose query heads of one group are computed together.
size_t BlockTokens(size_t group) { return group < kMaxRows ? kMaxRows / group : 1; }

size_t AttentionScratch(size_t group, size_t head_dim, size_t capacity) {
  return BlockTokens(group) * group * (capacity + 2 * head_dim + 1);
}

// Fetches one panel's rows of v for a later pass. Some may lie beyond the last token.
inline void PrefetchV(const AttentionArgs& args, size_t head, size_t first) {
  for (size_t t = first; t < first + kPanel; ++t) {
    const float* row = args.v + (t * args.kv_heads + head) * args.head_dim;
    for (size_t e = 0; e < args.head_dim; e += kCacheLine) __builtin_prefetch(row + e);
  }
}

void Attention(const AttentionArgs& args) {
  const size_t head_dim = args.head_dim;
  const size_t group_size = args.group * head_dim;
  const size_t block = BlockTokens(args.group);
  float* scores = args.scratch;                                 // [tokens, group, padded]
  float* q = scores + block * args.group * args.keys_capacity;  // [tokens, group, head_dim]
  float* out = q + block * group_size;                          // [tokens, group, head_dim]
  float* weight = out + block * group_size;                     // [tokens, group]
  for (size_t head = 0; head < args.kv_heads; ++head) {
    const float* keys = args.keys + head * args.keys_capacity * head_dim;
    for (size_t first = 0; first < args.rows; first += block) {
      const size_t tokens = args.rows - first < block ? args.rows - first : block;
      const size_t rows = tokens * args.group;
      const size_t visible_to_last = args.first_position + first + tokens;
      const size_t padded = (visible_to_last + kPanel - 1) / kPanel * kPanel;

      for (size_t t = 0; t < tokens; ++t) {
        const float* in = args.q + (first + t) * args.q_stride + head * group_size;
        for (size_t i = 0; i < group_size; i += kLanes) {
          Store(q + t * group_size + i, Load(in + i) * args.scale);
        }
      }
      for (size_t start = 0; start < padded; start += kPanel) {
        if (first == 0) PrefetchV(args, head, start);
        Tiles(q, head_dim, rows, head_dim, keys + start * head_dim, kPanel, scores + start, padded);
      }
      for (size_t r = 0; r < rows; ++r) {
        const size_t visible = args.first_position + first + r / args.group + 1;
        weight[r] = 1.0f / Softmax(scores + r * padded, visible, padded);
      }
      for (size_t e = 0; e < head_dim; e += kPanel) {
        Tiles(scores, padded, rows, visible_to_last, args.v + head * head_dim + e,
              args.kv_heads * head_dim, out + e, head_dim);
      }
      for (size_t r = 0; r < rows; ++r) {
        float* to = args.out + (first + r / args.group) * args.out_stride + head * group_size +
                    r % args.group * head_dim;
        for (size_t e = 0; e < head_dim; e += kLanes) {
          Store(to + e, Load(out + r * head_dim + e) * weight[r]);
        }
      }
    }
  }
}

}  // namespace

const Kernels KVCACHE_KERNEL_TABLE = {
    .panel_columns = kPanel,
    .matmul = MatMul,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .swiglu = SwiGlu,
    .transpose_keys = TransposeKeys,
    .attention = Attention,
    .attention_scratch = AttentionScratch,
};

}  // namespace kvcache::examples
