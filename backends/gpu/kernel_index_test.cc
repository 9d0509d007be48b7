// What the kernels do, thread by thread, on this processor.
#include "kvcache/backends/gpu/kernel_index.h"

#include <algorithm>
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

TEST(UnitsTest, AreTheLargestThatFit) {
  alignas(16) std::byte memory[64] = {};
  EXPECT_EQ(UnitsOf({memory, memory + 32, 33}).unit_bytes, 16u);
  EXPECT_EQ(UnitsOf({memory, memory + 32, 33}).units, 2u);
  EXPECT_EQ(UnitsOf({memory + 8, memory + 32, 24}).unit_bytes, 8u);
  EXPECT_EQ(UnitsOf({memory, memory + 36, 24}).unit_bytes, 4u);
  EXPECT_EQ(UnitsOf({memory, memory + 38, 24}).unit_bytes, 1u);
}

struct Shape {
  DType dtype;
  uint32_t heads, head_dim, page_tokens;
  PagedKv::Order order;
  bool latent;
};

class PagedIndexTest : public testing::TestWithParam<Shape> {};

// Every unit once, at the bytes that the copies of the host go to and come from.
TEST_P(PagedIndexTest, EqualsTheHost) {
  const Shape& shape = GetParam();
  constexpr uint32_t kPages = 40;
  PagedKv kv;
  kv.layout = {.dtype = shape.dtype,
               .kind = shape.latent ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
               .layers = 1,
               .kv_heads = shape.heads,
               .head_dim = shape.head_dim};
  kv.order = shape.order;
  kv.page_tokens = shape.page_tokens;
  kv.pages = kPages;
  kv.page_stride = 2 * kv.PageBytes();
  std::vector<std::byte> pool(kPages * kv.page_stride);
  std::mt19937 random(7);
  for (std::byte& byte : pool) byte = static_cast<std::byte>(random());
  kv.layers = {{pool.data(), shape.latent ? nullptr : pool.data() + kv.PageBytes()}};
  ASSERT_TRUE(kv.Validate().ok()) << kv.Validate();
  std::vector<int32_t> table(kPages);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random);

  const uint32_t first = shape.page_tokens / 2;
  const uint32_t tokens = (kPages - 1) * shape.page_tokens - 1;
  const size_t bytes = *kv.layout.PartBytes(tokens);
  std::vector<std::byte> expected(bytes);
  GatherPart(kv, table, 0, {first, tokens}, expected.data());

  std::vector<std::byte> part(bytes);
  PagedCopy copy = {.k = kv.layers[0].k,
                    .v = kv.layers[0].v,
                    .page_stride = kv.page_stride,
                    .page_tokens = kv.page_tokens,
                    .heads = shape.heads,
                    .row_bytes = static_cast<uint32_t>(shape.head_dim * DTypeSize(shape.dtype)),
                    .head_token_dim = shape.order == PagedKv::Order::kHeadTokenDim,
                    .to_pages = false,
                    .page_table = table.data(),
                    .parts = nullptr,
                    .num_parts = 1,
                    .most_tokens = tokens,
                    .alignment = 16};
  const PagedShape units = ShapeOf(copy);
  EXPECT_EQ(copy.row_bytes % units.unit_bytes, 0u);
  std::vector<std::byte> other_pool(pool.size(), std::byte{0xEE});
  std::vector<int> seen(pool.size(), 0);
  for (size_t tensor = 0; tensor < (shape.latent ? 1 : 2); ++tensor) {
    const uint32_t count = UnitsOfTensor(units, tokens);
    const size_t base = tensor == 0 ? 0 : kv.PageBytes();
    for (uint32_t i = 0; i < count; ++i) {
      const PagedUnit at = Locate(units, first, i);
      const size_t in_pool = base + table[at.table_index] * kv.page_stride +
                             size_t{at.unit_of_page} * units.unit_bytes;
      const size_t in_part = (tensor * count + i) * units.unit_bytes;
      std::memcpy(&part[in_part], &pool[in_pool], units.unit_bytes);
      std::memcpy(&other_pool[in_pool], &expected[in_part], units.unit_bytes);
      for (uint32_t byte = 0; byte < units.unit_bytes; ++byte) ++seen[in_pool + byte];
    }
  }
  EXPECT_EQ(part, expected);

  std::vector<std::byte> scattered(pool.size(), std::byte{0xEE});
  PagedKv other = kv;
  other.layers = {{scattered.data(), shape.latent ? nullptr : scattered.data() + kv.PageBytes()}};
  ScatterPart(other, table, 0, {first, tokens}, expected.data());
  EXPECT_EQ(other_pool, scattered);
  EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), size_t{0}), bytes);
  EXPECT_LE(*std::max_element(seen.begin(), seen.end()), 1);
}

constexpr auto kNhd = PagedKv::Order::kTokenHeadDim;
constexpr auto kHnd = PagedKv::Order::kHeadTokenDim;

INSTANTIATE_TEST_SUITE_P(Shapes, PagedIndexTest,
                         testing::Values(Shape{DType::kBF16, 8, 128, 16, kNhd, false},
                                         Shape{DType::kBF16, 8, 128, 16, kHnd, false},
                                         Shape{DType::kBF16, 1, 80, 1, kHnd, false},
                                         Shape{DType::kFp8E4M3, 5, 40, 3, kHnd, false},
                                         Shape{DType::kFp8E4M3, 3, 127, 7, kNhd, false},
                                         Shape{DType::kF16, 2, 3, 32, kHnd, false},
                                         Shape{DType::kF32, 2, 1, 64, kHnd, false},
                                         Shape{DType::kBF16, 1, 576, 64, kNhd, true}));

}  // namespace
}  // namespace kvcache
