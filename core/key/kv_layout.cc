#include "kvcache/core/key/kv_layout.h"

#include <limits>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"

namespace kvcache {
namespace {

// Tensors of a layer.
int Tensors(const KvLayout& layout) { return layout.kind == KvLayout::Kind::kLatent ? 1 : 2; }

// Bytes of a token in all layers: less than 2^100 for any fields, so 128 bits hold it.
absl::uint128 TokenBytes(const KvLayout& layout) {
  const absl::uint128 row =
      absl::uint128(layout.kv_heads) * layout.head_dim * DTypeSize(layout.dtype);
  return (row + layout.scale_bytes_per_token) * Tensors(layout) * layout.layers;
}

bool FitsSize(absl::uint128 bytes) { return bytes <= std::numeric_limits<size_t>::max(); }

absl::Status ValidateOpaque(const KvLayout& layout) {
  const KvLayout blank{.kind = KvLayout::Kind::kOpaque};
  if (layout == blank) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layout: an opaque one has no dtype, layers, kv_heads, head_dim and "
                   "scale_bytes_per_token, but they are ",
                   DTypeName(layout.dtype), ", ", layout.layers, ", ", layout.kv_heads, ", ",
                   layout.head_dim, " and ", layout.scale_bytes_per_token));
}

absl::Status ValidatePositive(const char* field, uint32_t value) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layout.", field, " is 0"));
}

}  // namespace

size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kFp8E4M3:
    case DType::kFp8E5M2:
    case DType::kInt8:
      return 1;
    case DType::kNone:
      break;
  }
  return 0;
}

const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kNone:
      return "none";
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kFp8E4M3:
      return "fp8_e4m3";
    case DType::kFp8E5M2:
      return "fp8_e5m2";
    case DType::kInt8:
      return "int8";
  }
  return "unknown";
}

absl::Status KvLayout::Validate() const {
  if (order != Order::kLayerKvTokenHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.order is ", static_cast<int>(order), ", which is no Order"));
  }
  switch (kind) {
    case Kind::kOpaque:
      return ValidateOpaque(*this);
    case Kind::kGroupedHeads:
    case Kind::kLatent:
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("layout.kind is ", static_cast<int>(kind), ", which is no Kind"));
  }
  const size_t element = DTypeSize(dtype);
  if (element == 0) {
    return absl::InvalidArgumentError(absl::StrCat("layout.dtype is ", static_cast<int>(dtype),
                                                   ", which is no type of an element"));
  }
  if (absl::Status s = ValidatePositive("layers", layers); !s.ok()) return s;
  if (absl::Status s = ValidatePositive("kv_heads", kv_heads); !s.ok()) return s;
  if (absl::Status s = ValidatePositive("head_dim", head_dim); !s.ok()) return s;
  if (kind == Kind::kLatent && kv_heads != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout.kv_heads is ", kv_heads, ", but a latent layout has 1"));
  }
  if (scale_bytes_per_token % element != 0) {
    return absl::InvalidArgumentError(absl::StrCat("layout.scale_bytes_per_token is ",
                                                   scale_bytes_per_token, ", no multiple of the ",
                                                   element, " bytes of ", DTypeName(dtype)));
  }
  if (!FitsSize(TokenBytes(*this))) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: the bytes of a token overflow with ", ToString()));
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> KvLayout::BlockBytes(uint32_t tokens) const {
  if (absl::Status s = Validate(); !s.ok()) return s;
  if (kind == Kind::kOpaque) {
    return absl::InvalidArgumentError("layout.kind is opaque: its size is not a matter of tokens");
  }
  if (tokens == 0) return absl::InvalidArgumentError("tokens is 0");
  const absl::uint128 token_bytes = TokenBytes(*this);
  if (!FitsSize(token_bytes * tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens is ", tokens, ", too many for a block of ",
                     absl::Uint128Low64(token_bytes), " bytes for each token"));
  }
  return static_cast<size_t>(token_bytes * tokens);
}

absl::StatusOr<size_t> KvLayout::PartBytes(uint32_t tokens) const {
  absl::StatusOr<size_t> block_bytes = BlockBytes(tokens);
  if (!block_bytes.ok()) return block_bytes;
  return *block_bytes / layers;
}

absl::StatusOr<PartView> KvLayout::ViewPart(uint32_t part, uint32_t tokens) const {
  absl::StatusOr<size_t> part_bytes = PartBytes(tokens);
  if (!part_bytes.ok()) return part_bytes.status();
  if (part >= layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("part is ", part, ", but the layout has ", layers, " parts"));
  }
  PartView view;
  view.dim_stride = DTypeSize(dtype);
  view.head_stride = view.dim_stride * head_dim;
  view.token_stride = view.head_stride * kv_heads;

  const size_t data = view.token_stride * tokens;
  const size_t scales = size_t{scale_bytes_per_token} * tokens;
  size_t offset = part * *part_bytes;
  auto take = [&offset](size_t bytes) {
    const PartView::Region region{offset, bytes};
    offset += bytes;
    return region;
  };
  const bool has_v = Tensors(*this) == 2;
  view.k = take(data);
  view.v = take(has_v ? data : 0);
  view.k_scales = take(scales);
  view.v_scales = take(has_v ? scales : 0);
  return view;
}

std::string KvLayout::ToString() const {
  if (kind == Kind::kOpaque) return "opaque";
  std::string text = absl::StrCat(DTypeName(dtype), ", ", layers, " layers, ");
  if (kind == Kind::kLatent) {
    absl::StrAppend(&text, "a latent of ", head_dim);
  } else {
    absl::StrAppend(&text, kv_heads, " kv heads of ", head_dim);
  }
  if (scale_bytes_per_token > 0) {
    absl::StrAppend(&text, ", ", scale_bytes_per_token, " scale bytes");
  }
  return text;
}

}  // namespace kvcache
