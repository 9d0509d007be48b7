#include "kvcache/backends/gpu/copy_pieces.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/tests/gpu/host_access.h"

namespace kvcache {
namespace {

TEST(PieceUnitsTest, AreTheLargestThatBothSidesHave) {
  alignas(16) std::byte memory[64] = {};
  const auto units = [&](size_t to, size_t from, size_t bytes) {
    return UnitsOf({memory + to, memory + from, bytes});
  };
  EXPECT_EQ(units(0, 32, 33).unit_bytes, 16u);
  EXPECT_EQ(units(0, 32, 33).units, 2u);
  EXPECT_EQ(units(0, 32, 33).tail, 1u);
  EXPECT_EQ(units(5, 37, 24).unit_bytes, 16u) << "both are 5 bytes behind a unit";
  EXPECT_EQ(units(5, 37, 24).head, 11u);
  EXPECT_EQ(units(5, 37, 3).head, 3u);
  EXPECT_EQ(units(5, 37, 3).units, 0u);
  EXPECT_EQ(units(8, 32, 24).unit_bytes, 8u);
  EXPECT_EQ(units(0, 36, 24).unit_bytes, 4u);
  EXPECT_EQ(units(0, 38, 24).unit_bytes, 2u);
  EXPECT_EQ(units(0, 33, 24).unit_bytes, 1u);
}

TEST(PieceTilesTest, CoverEveryPieceAndStayFew) {
  for (size_t pieces : {1, 2, 1000, 10000, 1000000}) {
    for (uint64_t units = 0; units < kMostKernelBytes; units = units * 3 / 2 + 1) {
      const PieceTiles tiles = PieceTiles::Of(pieces, static_cast<uint32_t>(units));
      ASSERT_GE(uint64_t{tiles.tile_units} << tiles.tiles_shift, units);
      ASSERT_LE(pieces << tiles.tiles_shift, std::max<size_t>(pieces, 1 << 17));
    }
  }
  EXPECT_EQ(PieceTiles::Of(10000, 512).tiles_shift, 0u) << "8 KiB are one warp's work";
  EXPECT_EQ(PieceTiles::Of(10000, 1024).tiles_shift, 1u);
  EXPECT_EQ(PieceTiles::Of(1, 1 << 22).tiles_shift, 13u) << "64 MiB are everybody's";
}

// As CopyPiecesKernel does, with `warps` in the whole grid.
void RunPieces(const std::vector<CopyPiece>& pieces, uint64_t warps) {
  uint32_t most_units = 0;
  for (const CopyPiece& piece : pieces) most_units = std::max(most_units, UnitsOf(piece).units);
  const PieceTiles numbering = PieceTiles::Of(pieces.size(), most_units);
  const uint64_t tiles = uint64_t{pieces.size()} << numbering.tiles_shift;
  for (uint64_t warp = 0; warp < warps; ++warp) {
    for (uint64_t tile = warp; tile < tiles; tile += warps) {
      const uint32_t in_piece = static_cast<uint32_t>(tile) & ((1u << numbering.tiles_shift) - 1);
      for (uint32_t lane = 0; lane < kWarp; ++lane) {
        CopyPieceTile<HostAccess>(pieces[tile >> numbering.tiles_shift], numbering.tile_units,
                                  in_piece, lane);
      }
    }
  }
}

TEST(CopyPiecesTest, EveryByteOnceAtAnyAlignment) {
  std::mt19937 random(3);
  for (int round = 0; round < 30; ++round) {
    const std::vector<std::byte> from = RandomBytes(400000, round);
    std::vector<std::byte> to(400000, std::byte{0xEE});
    std::vector<std::byte> expected = to;
    std::vector<CopyPiece> pieces;
    size_t bytes = 0;
    for (size_t at = 0; at < to.size();) {
      at += random() % 40;
      const size_t most = round % 3 == 0 ? 50 : round % 3 == 1 ? 20000 : 200000;
      const size_t size = std::min<size_t>(to.size() - std::min(at, to.size()), random() % most);
      if (size == 0) continue;
      const size_t source = random() % (from.size() - size);
      pieces.push_back({to.data() + at, from.data() + source, size});
      std::copy_n(from.begin() + source, size, expected.begin() + at);
      at += size;
      bytes += size;
    }
    const Stores stores(&to);
    RunPieces(pieces, 1 + random() % 100);
    ASSERT_TRUE(to == expected) << "round " << round;
    ASSERT_EQ(stores.Sum(), bytes);
    ASSERT_LE(stores.Most(), 1);
  }
}

}  // namespace
}  // namespace kvcache
