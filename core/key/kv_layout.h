// KvLayout: what the K/V of one token looks like, and where it lies in a block.
#ifndef KVCACHE_CORE_KEY_KV_LAYOUT_H_
#define KVCACHE_CORE_KEY_KV_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvcache {

// The type of an element. The numbers are part of every key: they never change.
enum class DType : uint8_t {
  kNone = 0,  // opaque objects only
  kF32 = 1,
  kF16 = 2,
  kBF16 = 3,
  kFp8E4M3 = 4,
  kFp8E5M2 = 5,
  kInt8 = 6,
};

// Bytes of an element; 0 for kNone and for what is no DType.
size_t DTypeSize(DType dtype);

// "bf16", "fp8_e4m3", ...; "unknown" for what is no DType.
const char* DTypeName(DType dtype);

// Where one part (layer) of a block lies. Everything in bytes; offsets count from the block's
// start.
struct PartView {
  struct Region {
    size_t offset = 0;
    size_t bytes = 0;
  };

  // [tokens, kv_heads, head_dim] each. Of a latent layout, `k` is the latent and `v` is empty.
  Region k;
  Region v;
  // [tokens, scale_bytes_per_token] each; empty without scales.
  Region k_scales;
  Region v_scales;

  // From one element of k, and of v, to the next along each dimension.
  size_t token_stride = 0;
  size_t head_stride = 0;
  size_t dim_stride = 0;
};

// The shape of the K/V of one token in the layers that a block holds. A block of n tokens is dense,
// layer-major, and each of its layers is one part:
//
//     layer 0                                 layer 1
//    +---------+---------+---------+---------+---------+-----
//    |    K    |    V    | scales  | scales  |    K    |  ...
//    |         |         |  of K   |  of V   |         |
//    +---------+---------+---------+---------+---------+-----
//     n * row   n * row   n * s     n * s
//
//    row = kv_heads * head_dim * DTypeSize(dtype), ordered [head, dim];  s = scale_bytes_per_token
//
// A latent layout has the latent and its scales only. Scales come last, so that K and V are
// adjacent and begin at multiples of n * row from the part's start; a part holds its own scales
// because it is read alone. There is no padding: sizes are linear in n, so that a writer in any
// language gets them right. Every K and V is aligned to its element, and to 16 bytes in blocks of a
// multiple of 16 tokens.
//
// A plain value, safe for concurrent reading. Functions that return a status call Validate() first.
struct KvLayout {
  // The numbers of both enums are part of every key: they never change.
  enum class Kind : uint8_t {
    kGroupedHeads = 1,  // K and V, [kv_heads, head_dim] each
    kLatent = 2,        // one vector for each token and layer, [1, head_dim]: MLA
    kOpaque = 3,        // an object of an engine's own: one part of any size, no views
  };
  enum class Order : uint8_t {
    kLayerKvTokenHeadDim = 1,  // the picture above
  };

  DType dtype = DType::kNone;
  Kind kind = Kind::kGroupedHeads;
  Order order = Order::kLayerKvTokenHeadDim;
  uint32_t layers = 0;
  uint32_t kv_heads = 0;  // 1 when kLatent
  uint32_t head_dim = 0;  // the size of the latent when kLatent: 512 + 64, say
  // Quantisation scales of a token in one tensor of one layer, for K and for V each: 4 for one f32,
  // 4 * kv_heads for one for each head. A multiple of DTypeSize(dtype), which keeps K and V
  // aligned.
  uint32_t scale_bytes_per_token = 0;

  // kInvalidArgument, naming the field and its value, unless: the three enums have one of their
  // values; layers, kv_heads and head_dim are positive; kv_heads is 1 when kLatent; the scales are
  // a multiple of the element; a block of one token has a size that fits size_t. An opaque layout
  // has DType::kNone and zeros.
  absl::Status Validate() const;

  // Parts of a block: the layers, or 1 of an opaque object.
  uint32_t parts() const { return kind == Kind::kOpaque ? 1 : layers; }

  // Bytes of one part, and of a whole block, of `tokens` tokens; with 1, those of a token. Part i
  // begins i * PartBytes(tokens) bytes after the block. kInvalidArgument, naming the values, when
  // `tokens` is 0, when the size does not fit size_t, or when the layout is opaque: the engine says
  // the size of its object.
  absl::StatusOr<size_t> PartBytes(uint32_t tokens) const;
  absl::StatusOr<size_t> BlockBytes(uint32_t tokens) const;

  // Where `part` lies in a block of `tokens` tokens. Part 0's view fits every part whose bytes are
  // at hand without the rest of the block. Errors: those of BlockBytes(); kInvalidArgument, naming
  // both, unless part < parts().
  absl::StatusOr<PartView> ViewPart(uint32_t part, uint32_t tokens) const;

  // For messages: "bf16, 32 layers, 8 kv heads of 128".
  std::string ToString() const;

  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_KEY_KV_LAYOUT_H_
