// Pieces, thread by thread: a warp takes a tile of a piece at a time.
#ifndef KVCACHE_BACKENDS_GPU_COPY_PIECES_H_
#define KVCACHE_BACKENDS_GPU_COPY_PIECES_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/backends/gpu/device_kernels.h"
#include "kvcache/backends/gpu/kernel_units.h"

namespace kvcache {

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

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_COPY_PIECES_H_
