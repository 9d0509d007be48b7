#include "kvcache/backends/gpu/copy_pages.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/tests/gpu/host_access.h"

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

struct Shape {
  DType dtype;
  uint32_t heads, head_dim, page_tokens;
  PagedKv::Order order;
  bool latent;
};

// As CopyPagesKernel does.
template <typename Descriptors>
void RunPages(const PagedCopy& copy, const Descriptors& descriptors) {
  const PagedShape shape = ShapeOf(copy);
  const uint32_t tiles = TilesOfPart(shape, copy.most_tokens);
  for (uint32_t p = 0; p < copy.num_parts; ++p) {
    const PartOfTokens part = descriptors.Part(p);
    for (uint32_t t = 0; t < tiles; ++t) {
      const PagedTile tile = TileOf(shape, part, t);
      ASSERT_LE(tile.pages, kMostTilePages);
      std::vector<int32_t> pages(tile.pages);
      for (uint32_t i = 0; i < tile.pages; ++i) pages[i] = descriptors.Page(tile.first_page + i);
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
                    .alignment = alignment,
                    .host_page_table = table.data()};
  ASSERT_LE(copy.num_parts, PagesByValue::kMostParts);
  {
    const Stores stores(&blocks);
    RunPages(copy, PagesByPointer{copy.parts, copy.page_table});
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
  const PagesByValue values = PagesByValue::Of(copy);
  EXPECT_EQ(values.page_table, nullptr);
  const Stores stores(&by_kernel);
  RunPages(copy, values);
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

TEST(PagesByValueTest, HoldThePagesOfTheirPartsOrPointToAll) {
  constexpr uint32_t kPageTokens = 16;
  std::vector<int32_t> table(2000);
  std::iota(table.begin(), table.end(), 5000);
  std::vector<PartOfTokens> parts = {{nullptr, 700, 40, 64}, {nullptr, 9, 0, 64}};
  PagedCopy copy = {};
  copy.page_tokens = kPageTokens;
  copy.page_table = table.data();
  copy.parts = parts.data();
  copy.num_parts = 2;
  EXPECT_EQ(PagesByValue::Of(copy).page_table, table.data()) << "the host cannot read it";
  copy.host_page_table = table.data();
  const auto expect_pages = [&](uint32_t first, uint32_t last) {
    const PagesByValue values = PagesByValue::Of(copy);
    EXPECT_EQ(values.page_table, nullptr);
    for (uint32_t i = first; i <= last; ++i) ASSERT_EQ(values.Page(i), 5000 + static_cast<int>(i));
  };
  expect_pages(43, 46);
  parts[1] = {nullptr, (43 + PagesByValue::kMostPages - 1) * kPageTokens, kPageTokens, 64};
  expect_pages(43, 43 + PagesByValue::kMostPages - 1);
  ++parts[1].tokens;
  const PagesByValue values = PagesByValue::Of(copy);
  EXPECT_EQ(values.page_table, table.data()) << "too many";
  EXPECT_EQ(values.Page(1999), 6999);
  EXPECT_EQ(values.Part(1).tokens, kPageTokens + 1);
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
