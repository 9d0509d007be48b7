#include "kvcache/core/pages/paged_kv.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/copy/checksum.h"

namespace kvcache {
namespace {

constexpr auto kNhd = PagedKv::Order::kTokenHeadDim;
constexpr auto kHnd = PagedKv::Order::kHeadTokenDim;
constexpr std::byte kGuard{0xA7};

// The tensors of paged_kv.h.
enum class Tensors {
  kPagesOfK,      // one for each layer, [2, pages, page]
  kPagesOfBoth,   // one for each layer, [pages, 2, page]
  kPagesOfLayers  // one for all, [pages, layers, 2, page]
};
constexpr Tensors kTensors[] = {Tensors::kPagesOfK, Tensors::kPagesOfBoth, Tensors::kPagesOfLayers};

// Pages in a buffer that is exactly as large as they are, with `padding` elements behind each.
struct Pool {
  PagedKv kv;
  std::vector<int32_t> table;
  std::vector<std::byte> bytes;

  Pool(const KvLayout& layout, PagedKv::Order order, uint32_t page_tokens, Tensors tensors,
       uint32_t tokens, size_t padding, std::mt19937* random) {
    kv.layout = layout;
    kv.order = order;
    kv.page_tokens = page_tokens;
    const uint32_t used = (tokens + page_tokens - 1) / page_tokens;
    kv.pages = used + (*random)() % 3;
    const bool latent = layout.kind == KvLayout::Kind::kLatent;
    const size_t both = latent ? 1 : 2;
    const size_t page = kv.PageBytes();
    const size_t pages_apart = tensors == Tensors::kPagesOfK      ? 1
                               : tensors == Tensors::kPagesOfBoth ? both
                                                                  : both * layout.layers;
    kv.page_stride = pages_apart * page + padding * DTypeSize(layout.dtype);
    const size_t tensor_bytes = kv.pages * kv.page_stride;
    bytes.assign(both * layout.layers / pages_apart * tensor_bytes, kGuard);
    for (uint32_t layer = 0; layer < layout.layers; ++layer) {
      std::byte* k = bytes.data();
      std::byte* v = nullptr;
      switch (tensors) {
        case Tensors::kPagesOfK:
          k += both * layer * tensor_bytes;
          v = k + tensor_bytes;
          break;
        case Tensors::kPagesOfBoth:
          k += layer * tensor_bytes;
          v = k + page;
          break;
        case Tensors::kPagesOfLayers:
          k += both * layer * page;
          v = k + page;
          break;
      }
      kv.layers.push_back({k, latent ? nullptr : v});
    }
    table.resize(kv.pages);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), *random);
    // Some of the pages follow each other.
    if ((*random)() % 2 == 0) std::sort(table.begin(), table.begin() + table.size() / 2);
    table.resize(used);
  }

  // Where a byte of an element is, as the header says it.
  std::byte* At(uint32_t layer, bool v, uint32_t token, uint32_t head, size_t byte_of_row) const {
    const size_t row = kv.layout.head_dim * DTypeSize(kv.layout.dtype);
    const size_t in_page = token % kv.page_tokens;
    const size_t index =
        kv.order == kNhd ? in_page * kv.layout.kv_heads + head : head * kv.page_tokens + in_page;
    return (v ? kv.layers[layer].v : kv.layers[layer].k) +
           table[token / kv.page_tokens] * kv.page_stride + index * row + byte_of_row;
  }
};

// Byte by byte, in the order of a block's part: K, then V, each [tokens, heads, dim].
template <typename Visit>
void ForElements(const Pool& pool, uint32_t layer, TokenRange tokens, const Visit& visit) {
  const KvLayout& layout = pool.kv.layout;
  size_t in_part = 0;
  for (int tensor = 0; tensor < (layout.kind == KvLayout::Kind::kLatent ? 1 : 2); ++tensor) {
    for (uint32_t t = 0; t < tokens.count; ++t) {
      for (uint32_t head = 0; head < layout.kv_heads; ++head) {
        for (size_t i = 0; i < layout.head_dim * DTypeSize(layout.dtype); ++i) {
          visit(pool.At(layer, tensor == 1, tokens.first + t, head, i), in_part++);
        }
      }
    }
  }
}

void CheckBothWays(const KvLayout& layout, PagedKv::Order order, uint32_t page_tokens,
                   Tensors tensors, uint32_t seed) {
  std::mt19937 random(seed);
  const uint32_t tokens = 1 + random() % (3 * page_tokens + 20);
  Pool pool(layout, order, page_tokens, tensors, tokens, random() % 3, &random);
  ASSERT_TRUE(pool.kv.Validate().ok()) << pool.kv.Validate();
  TokenRange range;
  range.first = random() % tokens;
  range.count = 1 + random() % (tokens - range.first);
  ASSERT_TRUE(ValidateTokens(pool.kv, pool.table, range).ok());
  for (std::byte& byte : pool.bytes) byte = static_cast<std::byte>(random());
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    const size_t bytes = *layout.PartBytes(range.count);
    std::vector<std::byte> expected(bytes);
    ForElements(pool, layer, range, [&](const std::byte* at, size_t i) { expected[i] = *at; });
    for (bool with_sum : {false, true}) {
      std::vector<std::byte> part(bytes + 128, kGuard);
      // As backends align blocks, and as nobody does.
      const size_t at =
          seed % 2 == 0 ? -reinterpret_cast<uintptr_t>(part.data()) % 64 : seed / 2 % 64;
      uint64_t sum = 0;
      GatherPart(pool.kv, pool.table, layer, range, part.data() + at, with_sum ? &sum : nullptr);
      ASSERT_EQ(std::memcmp(part.data() + at, expected.data(), bytes), 0) << "layer " << layer;
      const auto is_guard = [](std::byte byte) { return byte == kGuard; };
      ASSERT_TRUE(std::all_of(part.begin(), part.begin() + at, is_guard));
      ASSERT_TRUE(std::all_of(part.begin() + at + bytes, part.end(), is_guard));
      ASSERT_EQ(sum, with_sum ? ChecksumOf(expected) : 0);
    }

    for (std::byte& byte : expected) byte = static_cast<std::byte>(random());
    std::vector<std::byte> after = pool.bytes;
    const std::byte* const begin = pool.bytes.data();
    ForElements(pool, layer, range,
                [&](const std::byte* at, size_t i) { after[at - begin] = expected[i]; });
    const std::vector<std::byte> before = pool.bytes;
    for (bool with_sum : {false, true}) {
      std::copy(before.begin(), before.end(), pool.bytes.begin());
      uint64_t sum = 0;
      ScatterPart(pool.kv, pool.table, layer, range, expected.data(), with_sum ? &sum : nullptr);
      ASSERT_TRUE(pool.bytes == after) << "layer " << layer;
      ASSERT_EQ(sum, with_sum ? ChecksumOf(expected) : 0);
    }
  }
}

TEST(PagedKvTest, EveryPageSize) {
  const KvLayout layout = {.dtype = DType::kBF16, .layers = 1, .kv_heads = 2, .head_dim = 4};
  for (uint32_t page_tokens = 1; page_tokens <= 256; ++page_tokens) {
    for (const PagedKv::Order order : {kNhd, kHnd}) {
      for (const Tensors tensors : kTensors) {
        CheckBothWays(layout, order, page_tokens, tensors, page_tokens);
        ASSERT_FALSE(HasFatalFailure()) << "page_tokens " << page_tokens;
      }
    }
  }
}

TEST(PagedKvTest, EveryTypeAndManyShapes) {
  constexpr uint32_t kDims[] = {1, 3, 64, 80, 127, 128};
  constexpr DType kTypes[] = {DType::kF32,     DType::kF16,     DType::kBF16,
                              DType::kFp8E4M3, DType::kFp8E5M2, DType::kInt8};
  std::mt19937 random(3);
  for (uint32_t seed = 0; seed < 600; ++seed) {
    KvLayout layout = {.dtype = kTypes[seed % 6],
                       .layers = 1 + static_cast<uint32_t>(random() % 3),
                       .kv_heads = 1 + static_cast<uint32_t>(random() % 8),
                       .head_dim = kDims[random() % 6]};
    if (random() % 5 == 0) {
      layout.kind = KvLayout::Kind::kLatent;
      layout.kv_heads = 1;
    }
    const uint32_t page_tokens = random() % 2 == 0 ? 1u << random() % 7 : 1 + random() % 96;
    CheckBothWays(layout, random() % 2 == 0 ? kNhd : kHnd, page_tokens, kTensors[random() % 3],
                  seed);
    ASSERT_FALSE(HasFatalFailure())
        << "seed " << seed << ": " << layout.ToString() << ", page_tokens " << page_tokens;
  }
}

class ValidateTest : public testing::Test {
 protected:
  ValidateTest() {
    kv_.layout = {.dtype = DType::kBF16, .layers = 2, .kv_heads = 2, .head_dim = 4};
    kv_.page_tokens = 16;
    kv_.pages = 3;
    kv_.page_stride = 2 * kv_.PageBytes();
    for (int layer = 0; layer < 2; ++layer) {
      kv_.layers.push_back({memory_, memory_ + kv_.PageBytes()});
    }
  }
  void Refuses(const std::string& what) {
    const absl::Status status = kv_.Validate();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find(what), std::string::npos) << status;
  }

  alignas(16) std::byte memory_[4096];
  PagedKv kv_;
};

TEST_F(ValidateTest, AcceptsPages) { EXPECT_TRUE(kv_.Validate().ok()) << kv_.Validate(); }

TEST_F(ValidateTest, RefusesLayoutsThatPagesDoNotHave) {
  kv_.layout.scale_bytes_per_token = 4;
  Refuses("with scales");
  kv_.layout = {.kind = KvLayout::Kind::kOpaque};
  Refuses("not supported");
  kv_.layout = {};
  Refuses("dtype");
}

TEST_F(ValidateTest, RefusesSizesThatCannotBe) {
  kv_.page_tokens = 0;
  Refuses("page_tokens: 0");
  kv_.page_tokens = 65537;
  Refuses("page_tokens: 65537");
  kv_.page_tokens = 16;
  kv_.pages = 0;
  Refuses("pages: 0");
  kv_.pages = 3;
  kv_.page_stride = kv_.PageBytes() - 2;
  Refuses("page_stride: 254");
  kv_.page_stride = kv_.PageBytes() + 1;
  Refuses("page_stride: 257");
  kv_.page_stride = std::numeric_limits<size_t>::max() - 1;
  Refuses("behind the end of addresses");
}

TEST_F(ValidateTest, RefusesLayersThatCannotBe) {
  kv_.layers[1].v = nullptr;
  Refuses("layers[1].v is null");
  kv_.layers[1].v = memory_ + 1;
  Refuses("layers[1].v is not aligned");
  kv_.layers.pop_back();
  Refuses("layers: 1, the layout has 2");
  kv_.layout.kind = KvLayout::Kind::kLatent;
  kv_.layout.kv_heads = 1;
  kv_.layout.layers = 1;
  Refuses("layers[0].v: a latent layout has none");
  kv_.layers[0].v = nullptr;
  EXPECT_TRUE(kv_.Validate().ok()) << kv_.Validate();
}

TEST_F(ValidateTest, RefusesAnOrderThatIsNone) {
  kv_.order = static_cast<PagedKv::Order>(7);
  Refuses("order: 7");
}

TEST_F(ValidateTest, TokensAreInPagesThatThereAre) {
  const std::vector<int32_t> table = {2, 0};
  const auto refuses = [&](absl::Span<const int32_t> pages, TokenRange tokens) {
    return absl::IsInvalidArgument(ValidateTokens(kv_, pages, tokens));
  };
  EXPECT_TRUE(ValidateTokens(kv_, table, {0, 32}).ok());
  EXPECT_TRUE(ValidateTokens(kv_, table, {31, 1}).ok());
  EXPECT_TRUE(refuses(table, {0, 0}));
  EXPECT_TRUE(refuses(table, {0, 33}));
  EXPECT_TRUE(refuses(table, {32, 1}));
  EXPECT_TRUE(refuses(table, {4294967295u, 4294967295u}));
  EXPECT_TRUE(refuses({}, {0, 1}));
  EXPECT_TRUE(refuses({2, 3}, {0, 32}));
  EXPECT_TRUE(ValidateTokens(kv_, {2, 3}, {0, 16}).ok()) << "a page that is not asked for";
  EXPECT_TRUE(refuses({-1, 0}, {0, 1}));
}

}  // namespace
}  // namespace kvcache
