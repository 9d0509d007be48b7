// What the kernels do, thread by thread, on this processor.
#include "kvcache/backends/gpu/kernel_index.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/paged_kv.h"

namespace kvcache {
namespace {

TEST(DivisorTest, IsDivision) {
  std::mt19937 random(1);
  std::vector<uint32_t> divisors(2048);
  std::iota(divisors.begin(), divisors.end(), 1);
  for (int i = 0; i < 2000; ++i) divisors.push_back(1 + random() % ((1u << 31) - 1));
  for (uint32_t divisor : divisors) {
    const Divisor by = Divisor::Of(divisor);
    std::vector<uint32_t> numbers = {0, 1, divisor - 1, divisor, (1u << 31) - 1};
    for (int i = 0; i < 50; ++i) numbers.push_back(random() % (1u << 31));
    for (uint32_t n : numbers) {
      ASSERT_EQ(by.Quotient(n), n / divisor) << n << " / " << divisor;
    }
  }
}

// Counts the stores to each byte of a buffer.
class Stores {
 public:
  explicit Stores(std::vector<std::byte>* memory)
      : begin_(memory->data()), counts_(memory->size()) {
    active_ = this;
  }
  ~Stores() { active_ = nullptr; }
  static void Count(const std::byte* at, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) ++active_->counts_[at - active_->begin_ + i];
  }
  size_t Sum() const { return std::accumulate(counts_.begin(), counts_.end(), size_t{0}); }
  int Most() const { return *std::max_element(counts_.begin(), counts_.end()); }

 private:
  static inline Stores* active_ = nullptr;
  const std::byte* const begin_;
  std::vector<int> counts_;
};

template <uint32_t kBytes>
struct HostAccess {
  struct Unit {
    std::byte bytes[kBytes];
  };
  Unit Load(const std::byte* from) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(from) % kBytes, 0u);
    Unit unit;
    std::memcpy(&unit, from, kBytes);
    return unit;
  }
  void Store(std::byte* to, const Unit& unit) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(to) % kBytes, 0u);
    std::memcpy(to, &unit, kBytes);
    Stores::Count(to, kBytes);
  }
};

std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// --- Pieces

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

// --- Pages

struct Shape {
  DType dtype;
  uint32_t heads, head_dim, page_tokens;
  PagedKv::Order order;
  bool latent;
};

// As CopyPagesKernel does.
void RunPages(const PagedCopy& copy) {
  const PagedShape shape = ShapeOf(copy);
  const uint32_t tiles = TilesOfPart(shape, copy.most_tokens);
  for (uint32_t p = 0; p < copy.num_parts; ++p) {
    const PartOfTokens& part = copy.parts[p];
    for (uint32_t t = 0; t < tiles; ++t) {
      const PagedTile tile = TileOf(shape, part, t);
      ASSERT_LE(tile.pages, kMostTilePages);
      const std::vector<int32_t> pages(copy.page_table + tile.first_page,
                                       copy.page_table + tile.first_page + tile.pages);
      for (uint32_t thread = 0; thread < kThreads; ++thread) {
        const auto run = [&](const auto& access) {
          CopyTile(copy, shape, part, tile, pages.data(), thread, access);
        };
        switch (shape.unit_bytes) {
          case 16:
            run(HostAccess<16>());
            break;
          case 8:
            run(HostAccess<8>());
            break;
          case 4:
            run(HostAccess<4>());
            break;
          case 2:
            run(HostAccess<2>());
            break;
          default:
            run(HostAccess<1>());
        }
      }
    }
  }
}

class CopyPagesTest : public testing::TestWithParam<Shape> {
 protected:
  // With the V of a page behind its K, or those of all pages; and bytes between pages.
  void Check(bool k_then_v, size_t padding);
};

void CopyPagesTest::Check(bool k_then_v, size_t padding) {
  const Shape& shape = GetParam();
  const uint32_t num_pages = shape.page_tokens < 32 ? 24 : 9;
  PagedKv kv;
  kv.layout = {.dtype = shape.dtype,
               .kind = shape.latent ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
               .layers = 1,
               .kv_heads = shape.heads,
               .head_dim = shape.head_dim};
  kv.order = shape.order;
  kv.page_tokens = shape.page_tokens;
  kv.pages = num_pages;
  kv.page_stride = (k_then_v ? 1 : 2) * kv.PageBytes() + padding;
  const size_t v_at = k_then_v ? num_pages * kv.page_stride : kv.PageBytes();
  std::vector<std::byte> pool = RandomBytes((k_then_v ? 2 : 1) * num_pages * kv.page_stride, 7);
  kv.layers = {{pool.data(), shape.latent ? nullptr : pool.data() + v_at}};
  ASSERT_TRUE(kv.Validate().ok()) << kv.Validate();
  std::vector<int32_t> table(num_pages);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(7));

  // Parts of different sizes, behind each other: from the middle of the first page on, but the last
  // token of all.
  const uint32_t all = num_pages * shape.page_tokens - 1;
  std::vector<TokenRange> ranges;
  uint32_t most_tokens = 0;
  size_t bytes = 0;
  for (uint32_t first = shape.page_tokens / 2; first < all;) {
    const uint32_t count =
        std::min(all - first, 1 + all / 7 + 3 * static_cast<uint32_t>(ranges.size()));
    ranges.push_back({first, count});
    most_tokens = std::max(most_tokens, count);
    bytes += *kv.layout.PartBytes(count);
    first += count;
  }
  std::vector<std::byte> blocks(bytes);
  std::vector<std::byte> expected(bytes);
  std::vector<PartOfTokens> parts;
  uint32_t alignment = 16;
  bytes = 0;
  for (const TokenRange& tokens : ranges) {
    GatherPart(kv, table, 0, tokens, &expected[bytes]);
    parts.push_back({&blocks[bytes], tokens.first, tokens.count, tokens.count});
    alignment = UnitOf(bytes, alignment);
    bytes += *kv.layout.PartBytes(tokens.count);
  }
  PagedCopy copy = {.k = kv.layers[0].k,
                    .v = kv.layers[0].v,
                    .page_stride = kv.page_stride,
                    .page_tokens = kv.page_tokens,
                    .heads = shape.heads,
                    .row_bytes = static_cast<uint32_t>(shape.head_dim * DTypeSize(shape.dtype)),
                    .head_token_dim = shape.order == PagedKv::Order::kHeadTokenDim,
                    .to_pages = false,
                    .page_table = table.data(),
                    .parts = parts.data(),
                    .num_parts = static_cast<uint32_t>(parts.size()),
                    .most_tokens = most_tokens,
                    .alignment = alignment};
  {
    const Stores stores(&blocks);
    RunPages(copy);
    EXPECT_TRUE(blocks == expected);
    EXPECT_EQ(stores.Sum(), bytes);
    EXPECT_EQ(stores.Most(), 1);
  }

  std::vector<std::byte> scattered(pool.size(), std::byte{0xEE});
  const auto into = [&](std::vector<std::byte>* memory) {
    PagedKv other = kv;
    other.layers = {{memory->data(), shape.latent ? nullptr : memory->data() + v_at}};
    return other;
  };
  const std::vector<std::byte> content = RandomBytes(bytes, 8);
  std::copy(content.begin(), content.end(), blocks.begin());
  // Without the first tokens of some parts.
  const size_t token_bytes = size_t{copy.heads} * copy.row_bytes;
  size_t skipped = 0;
  size_t at = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const uint32_t skip = static_cast<uint32_t>(i % 4) * ranges[i].count / 4;
    ScatterPart(into(&scattered), table, 0, ranges[i], &blocks[at], nullptr, skip);
    at += *kv.layout.PartBytes(ranges[i].count);
    parts[i].k += skip * token_bytes;
    parts[i].first_token += skip;
    parts[i].tokens -= skip;
    skipped += skip * token_bytes * (shape.latent ? 1 : 2);
  }
  std::vector<std::byte> by_kernel(pool.size(), std::byte{0xEE});
  const PagedKv other = into(&by_kernel);
  copy.k = other.layers[0].k;
  copy.v = other.layers[0].v;
  copy.to_pages = true;
  const Stores stores(&by_kernel);
  RunPages(copy);
  EXPECT_TRUE(by_kernel == scattered);
  EXPECT_EQ(stores.Sum(), bytes - skipped);
  EXPECT_EQ(stores.Most(), 1);
}

// Every byte once, the same as the copies of the host.
TEST_P(CopyPagesTest, EqualsTheHost) {
  Check(/*k_then_v=*/false, /*padding=*/0);
  Check(/*k_then_v=*/true, /*padding=*/0);
  Check(/*k_then_v=*/false, /*padding=*/DTypeSize(GetParam().dtype));
}

constexpr auto kNhd = PagedKv::Order::kTokenHeadDim;
constexpr auto kHnd = PagedKv::Order::kHeadTokenDim;

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes = {{DType::kBF16, 8, 128, 16, kNhd, false},
                               {DType::kBF16, 8, 128, 16, kHnd, false},
                               {DType::kBF16, 1, 576, 64, kNhd, true},
                               {DType::kFp8E4M3, 1, 67, 5, kHnd, true}};
  constexpr uint32_t kDims[] = {1, 3, 8, 40, 64, 80, 127, 128};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kFp8E4M3};
  std::mt19937 random(5);
  for (uint32_t page_tokens : {1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 64, 100, 128, 256}) {
    for (const PagedKv::Order order : {kNhd, kHnd}) {
      shapes.push_back({kTypes[random() % 4], 1 + static_cast<uint32_t>(random() % 8),
                        kDims[random() % 8], page_tokens, order, false});
    }
  }
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(Shapes, CopyPagesTest, testing::ValuesIn(Shapes()));

}  // namespace
}  // namespace kvcache
