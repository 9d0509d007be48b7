// Which bytes a thread of a kernel copies: arithmetic and loops that the host can run, and test,
// too.
#ifndef KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_
#define KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/backends/gpu/device_kernels.h"

#if defined(__CUDACC__)
#define KVCACHE_HOST_DEVICE __host__ __device__ __forceinline__
#define KVCACHE_DEVICE __device__ __forceinline__
#define KVCACHE_UNROLL _Pragma("unroll")
#else
#define KVCACHE_HOST_DEVICE inline
#define KVCACHE_DEVICE inline
#define KVCACHE_UNROLL
#endif

namespace kvcache {

// Threads of a block.
inline constexpr uint32_t kThreads = 256;
// Loads that a thread has under way before it stores the first: enough for the latency of any
// memory, with as many threads as there are.
inline constexpr uint32_t kInFlight = 4;

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
  const uint32_t low = static_cast<uint32_t>(bits) | most;
  return low & -low;
}

// In the loops below, Access<bytes> says how to Load and Store a Unit of 16, 8, 4, 2 or 1 bytes.

// --- Pieces. A warp takes a tile of a piece at a time.

inline constexpr uint32_t kWarp = 32;

// A piece as bytes before the first unit, units, and bytes behind them.
struct PieceUnits {
  uint32_t unit_bytes;  // both sides have units of it at the same bytes
  uint32_t head;
  uint32_t units;
  uint32_t tail;
};

KVCACHE_HOST_DEVICE PieceUnits UnitsOf(const CopyPiece& piece) {
  const auto to = reinterpret_cast<uintptr_t>(piece.to);
  const uint32_t bytes = static_cast<uint32_t>(piece.bytes);
  const uint32_t unit = UnitOf(to ^ reinterpret_cast<uintptr_t>(piece.from), 16);
  uint32_t head = static_cast<uint32_t>(-to) & (unit - 1);
  if (head > bytes) head = bytes;
  const uint32_t units = (bytes - head) / unit;
  return {unit, head, units, bytes - head - units * unit};
}

// How the tiles of all pieces are numbered: piece i has those from i << tiles_shift on, more than
// it needs where others are larger.
struct PieceTiles {
  uint32_t tile_units;
  uint32_t tiles_shift;

  // A warp has enough to do with the least; more tiles than that only where there are few pieces,
  // so that one large piece is everybody's work, and many small ones beside it cost little.
  // REQUIRES: there are pieces; none has more units.
  static PieceTiles Of(size_t num_pieces, uint32_t most_units) {
    constexpr uint32_t kLeast = 4 * kInFlight * kWarp;
    constexpr uint64_t kMostTiles = uint64_t{1} << 17;
    uint32_t tiles_shift = 0;
    while (most_units > uint64_t{kLeast} << tiles_shift &&
           uint64_t{num_pieces} << (tiles_shift + 1) <= kMostTiles) {
      ++tiles_shift;
    }
    const uint32_t each = static_cast<uint32_t>(
        (uint64_t{most_units} + (uint64_t{1} << tiles_shift) - 1) >> tiles_shift);
    return {each < kLeast ? kLeast : each, tiles_shift};
  }
};

template <typename Access>
KVCACHE_DEVICE void CopyUnits(std::byte* to, const std::byte* from, uint32_t first, uint32_t end,
                              uint32_t lane, const Access& access) {
  using Unit = typename Access::Unit;
  for (uint32_t i = first + lane; i < end; i += kInFlight * kWarp) {
    Unit units[kInFlight];
    KVCACHE_UNROLL
    for (uint32_t j = 0; j < kInFlight; ++j) {
      const uint32_t at = i + j * kWarp;
      if (at < end) units[j] = access.Load(from + size_t{at} * sizeof(Unit));
    }
    KVCACHE_UNROLL
    for (uint32_t j = 0; j < kInFlight; ++j) {
      const uint32_t at = i + j * kWarp;
      if (at < end) access.Store(to + size_t{at} * sizeof(Unit), units[j]);
    }
  }
}

// What a lane of the warp copies of a tile of a piece.
template <template <uint32_t> class Access>
KVCACHE_DEVICE void CopyPieceTile(const CopyPiece& piece, uint32_t tile_units, uint32_t tile,
                                  uint32_t lane) {
  const PieceUnits shape = UnitsOf(piece);
  std::byte* const to = piece.to + shape.head;
  const std::byte* const from = piece.from + shape.head;
  const uint64_t first = uint64_t{tile} * tile_units;
  if (first < shape.units) {
    const uint32_t end =
        shape.units - first < tile_units ? shape.units : static_cast<uint32_t>(first) + tile_units;
    const uint32_t begin = static_cast<uint32_t>(first);
    switch (shape.unit_bytes) {
      case 16:
        CopyUnits(to, from, begin, end, lane, Access<16>());
        break;
      case 8:
        CopyUnits(to, from, begin, end, lane, Access<8>());
        break;
      case 4:
        CopyUnits(to, from, begin, end, lane, Access<4>());
        break;
      case 2:
        CopyUnits(to, from, begin, end, lane, Access<2>());
        break;
      default:
        CopyUnits(to, from, begin, end, lane, Access<1>());
    }
  }
  if (tile > 0) return;
  const Access<1> byte;
  if (lane < shape.head) byte.Store(piece.to + lane, byte.Load(piece.from + lane));
  if (lane < shape.tail) {
    const size_t at = size_t{shape.units} * shape.unit_bytes + lane;
    byte.Store(to + at, byte.Load(from + at));
  }
}

// --- Pages. A block of threads takes a tile of a part, of K and of V, at a time.

inline constexpr uint32_t kTileUnits = kThreads * kInFlight;
// A tile is of at most as many tokens as it has units.
inline constexpr uint32_t kMostTilePages = kTileUnits + 1;

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

// Of `tokens` tokens, K or V.
KVCACHE_HOST_DEVICE uint32_t UnitsOfTensor(const PagedShape& shape, uint32_t tokens) {
  return tokens * shape.by_token.divisor;
}

inline uint32_t TilesOfPart(const PagedShape& shape, uint32_t tokens) {
  const uint32_t units = UnitsOfTensor(shape, tokens);
  return units / kTileUnits + (units % kTileUnits > 0 ? 1 : 0);
}

// Units [first, end) of a tensor, in pages [first_page, first_page + pages) of the page table.
// Empty: end <= first.
struct PagedTile {
  uint32_t first;
  uint32_t end;
  uint32_t first_page;
  uint32_t pages;
};

KVCACHE_HOST_DEVICE PagedTile TileOf(const PagedShape& shape, const PartOfTokens& part,
                                     uint32_t tile) {
  const uint32_t units = UnitsOfTensor(shape, part.tokens);
  const uint32_t first = tile * kTileUnits;
  if (first >= units) return {0, 0, 0, 0};
  const uint32_t end = units - first < kTileUnits ? units : first + kTileUnits;
  const uint32_t first_page =
      shape.by_page.Quotient(part.first_token + shape.by_token.Quotient(first));
  const uint32_t last_page =
      shape.by_page.Quotient(part.first_token + shape.by_token.Quotient(end - 1));
  return {first, end, first_page, last_page - first_page + 1};
}

struct PagedUnit {
  uint32_t page;  // in the page table
  uint32_t unit_of_page;
};

// Where unit `i` of a dense tensor that begins with token `first_token` is in the pages.
KVCACHE_HOST_DEVICE PagedUnit Locate(const PagedShape& shape, uint32_t first_token, uint32_t i) {
  const uint32_t t = shape.by_token.Quotient(i);
  const uint32_t in_token = i - t * shape.by_token.divisor;
  const uint32_t token = first_token + t;
  const uint32_t page = shape.by_page.Quotient(token);
  const uint32_t in_page = token - page * shape.page_tokens;
  if (!shape.head_token_dim) return {page, in_page * shape.by_token.divisor + in_token};
  const uint32_t head = shape.by_row.Quotient(in_token);
  const uint32_t in_row = in_token - head * shape.by_row.divisor;
  return {page, (head * shape.page_tokens + in_page) * shape.by_row.divisor + in_row};
}

// What a thread copies of a tile; pages[0] is that of tile.first_page.
template <typename Access>
KVCACHE_DEVICE void CopyTile(const PagedCopy& copy, const PagedShape& shape,
                             const PartOfTokens& part, const PagedTile& tile, const int32_t* pages,
                             uint32_t thread, const Access& access) {
  using Unit = typename Access::Unit;
  const bool two = copy.v != nullptr;
  std::byte* const dense_k = part.k;
  std::byte* const dense_v =
      dense_k + size_t{UnitsOfTensor(shape, part.part_tokens)} * sizeof(Unit);
  Unit k[kInFlight];
  Unit v[kInFlight];
  size_t in_pages[kInFlight];
  KVCACHE_UNROLL
  for (uint32_t j = 0; j < kInFlight; ++j) {
    const uint32_t i = tile.first + thread + j * kThreads;
    if (i >= tile.end) continue;
    const PagedUnit at = Locate(shape, part.first_token, i);
    in_pages[j] = static_cast<uint32_t>(pages[at.page - tile.first_page]) * copy.page_stride +
                  size_t{at.unit_of_page} * sizeof(Unit);
    const size_t in_part = size_t{i} * sizeof(Unit);
    k[j] = access.Load(copy.to_pages ? dense_k + in_part : copy.k + in_pages[j]);
    if (two) v[j] = access.Load(copy.to_pages ? dense_v + in_part : copy.v + in_pages[j]);
  }
  KVCACHE_UNROLL
  for (uint32_t j = 0; j < kInFlight; ++j) {
    const uint32_t i = tile.first + thread + j * kThreads;
    if (i >= tile.end) continue;
    const size_t in_part = size_t{i} * sizeof(Unit);
    access.Store(copy.to_pages ? copy.k + in_pages[j] : dense_k + in_part, k[j]);
    if (two) access.Store(copy.to_pages ? copy.v + in_pages[j] : dense_v + in_part, v[j]);
  }
}

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_KERNEL_INDEX_H_
