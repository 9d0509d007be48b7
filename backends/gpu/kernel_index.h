// Which bytes a thread of a kernel copies: arithmetic that the host can run, and test, too.
#ifndef KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_
#define KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/backends/gpu/device_kernels.h"

#if defined(__CUDACC__)
#define KVCACHE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define KVCACHE_HOST_DEVICE inline
#endif

namespace kvcache {

// Division of numbers below 2^31 by one that is known before: a multiplication and a shift.
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994, figure
// 4.1.
struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;

  // REQUIRES: 0 < divisor < 2^31.
  static Divisor Of(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t multiplier = (((uint64_t{1} << shift) - divisor) << 32) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
  }

  KVCACHE_HOST_DEVICE uint32_t Quotient(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    const uint32_t high = __umulhi(n, multiplier);
#else
    const uint32_t high = static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32);
#endif
    return (high + n) >> shift;
  }
};

// The largest power of two, up to `most`, that divides everything or-ed into `bits`.
KVCACHE_HOST_DEVICE uint32_t UnitOf(uint64_t bits, uint32_t most) {
  uint32_t unit = most;
  while (bits % unit != 0) unit /= 2;
  return unit;
}

struct PieceUnits {
  uint32_t unit_bytes;  // 16, 8, 4 or 1
  uint32_t units;       // whole ones
};

KVCACHE_HOST_DEVICE PieceUnits UnitsOf(const CopyPiece& piece) {
  const uint32_t aligned =
      UnitOf(reinterpret_cast<uintptr_t>(piece.to) | reinterpret_cast<uintptr_t>(piece.from), 16);
  const uint32_t unit = aligned < 4 ? 1 : aligned;
  return {unit, static_cast<uint32_t>(piece.bytes / unit)};
}

// A PagedCopy in units that never go over the end of a head's row.
struct PagedShape {
  uint32_t unit_bytes;  // 16, 8, 4, 2 or 1
  uint32_t page_tokens;
  bool head_token_dim;
  Divisor by_token;  // units of a token, all heads
  Divisor by_row;    // units of one head of a token
  Divisor by_page;   // tokens of a page
};

inline PagedShape ShapeOf(const PagedCopy& copy) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(copy.k) | reinterpret_cast<uintptr_t>(copy.v) |
                        copy.page_stride | copy.row_bytes | copy.alignment;
  const uint32_t unit = UnitOf(bits, 16);
  return {unit,
          copy.page_tokens,
          copy.head_token_dim,
          Divisor::Of(copy.heads * copy.row_bytes / unit),
          Divisor::Of(copy.row_bytes / unit),
          Divisor::Of(copy.page_tokens)};
}

// Of the K, or the V, of a part.
KVCACHE_HOST_DEVICE uint32_t UnitsOfTensor(const PagedShape& shape, uint32_t tokens) {
  return tokens * shape.by_token.divisor;
}

struct PagedUnit {
  uint32_t table_index;
  uint32_t unit_of_page;
};

// Where unit `i` of a dense tensor that begins with token `first_token` is in the pages.
KVCACHE_HOST_DEVICE PagedUnit Locate(const PagedShape& shape, uint32_t first_token, uint32_t i) {
  const uint32_t t = shape.by_token.Quotient(i);
  const uint32_t in_token = i - t * shape.by_token.divisor;
  const uint32_t token = first_token + t;
  const uint32_t table_index = shape.by_page.Quotient(token);
  const uint32_t in_page = token - table_index * shape.page_tokens;
  if (!shape.head_token_dim) {
    return {table_index, in_page * shape.by_token.divisor + in_token};
  }
  const uint32_t head = shape.by_row.Quotient(in_token);
  const uint32_t in_row = in_token - head * shape.by_row.divisor;
  return {table_index, (head * shape.page_tokens + in_page) * shape.by_row.divisor + in_row};
}

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_
