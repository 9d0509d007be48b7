// What every StorageBackend does with an engine's pages in host memory.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"

namespace kvcache {
namespace {

constexpr uint32_t kLayers = 3;
constexpr uint32_t kPages = 7;
constexpr size_t kGuardBytes = 64;

// Pages of two-byte elements, with guards around them: K and V of a page, and a page that is
// nobody's, behind each other; or all pages of K, then those of V, without gaps.
struct EnginePages {
  PagedKv kv;
  std::string memory;
  std::vector<int32_t> table = {5, 0, 1, 6, 3};

  EnginePages(KvLayout::Kind kind, PagedKv::Order order, uint32_t page_tokens, bool gaps = true) {
    const bool latent = kind == KvLayout::Kind::kLatent;
    kv.layout = {.dtype = DType::kBF16,
                 .kind = kind,
                 .layers = kLayers,
                 .kv_heads = latent ? 1u : 3u,
                 .head_dim = latent ? 40u : 16u};
    kv.order = order;
    kv.page_tokens = page_tokens;
    kv.pages = kPages;
    kv.page_stride = (gaps ? 3 : 1) * kv.PageBytes();
    const size_t layer_bytes = (gaps ? 1 : 2) * kPages * kv.page_stride;
    memory.resize(2 * kGuardBytes + kLayers * layer_bytes);
    for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<char>(i * 7 + i / 256);
    auto* const first = reinterpret_cast<std::byte*>(memory.data()) + kGuardBytes;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = first + layer * layer_bytes;
      std::byte* const v = k + (gaps ? kv.PageBytes() : kPages * kv.page_stride);
      kv.layers.push_back({k, latent ? nullptr : v});
    }
  }

  // Calls visit(byte of the pages, byte's place in the part) for the bytes of a part, in order.
  template <typename Visit>
  void ForBytes(uint32_t layer, TokenRange tokens, const Visit& visit) {
    const size_t row = kv.layout.head_dim * DTypeSize(kv.layout.dtype);
    const size_t heads = kv.layout.kv_heads;
    size_t place = 0;
    for (std::byte* tensor : {kv.layers[layer].k, kv.layers[layer].v}) {
      if (tensor == nullptr) continue;
      for (size_t t = tokens.first; t < tokens.first + tokens.count; ++t) {
        std::byte* const page = tensor + table[t / kv.page_tokens] * kv.page_stride;
        const size_t in_page = t % kv.page_tokens;
        for (size_t head = 0; head < heads; ++head) {
          const size_t i = kv.order == PagedKv::Order::kTokenHeadDim
                               ? in_page * heads + head
                               : head * kv.page_tokens + in_page;
          for (size_t byte = 0; byte < row; ++byte) visit(page[i * row + byte], place++);
        }
      }
    }
  }
  std::string Part(uint32_t layer, TokenRange tokens) {
    std::string part;
    ForBytes(layer, tokens, [&](std::byte b, size_t) { part += static_cast<char>(b); });
    return part;
  }
  size_t PartBytes(uint32_t tokens) const { return *kv.layout.PartBytes(tokens); }
  size_t Tensors() const { return kv.layers[0].v == nullptr ? 1 : 2; }
};

uint64_t SumOf(const std::string& bytes) {
  return ChecksumOf({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
}

// Two blocks, in two extents: the second one is short.
constexpr TokenRange kBlocks[] = {{2, 9}, {11, 4}};

struct Shape {
  KvLayout::Kind kind;
  PagedKv::Order order;
  uint32_t page_tokens;
  bool gaps = true;
};
constexpr auto kHeads = KvLayout::Kind::kGroupedHeads;
constexpr auto kNhd = PagedKv::Order::kTokenHeadDim;
constexpr auto kHnd = PagedKv::Order::kHeadTokenDim;
constexpr Shape kShapes[] = {
    {kHeads, kNhd, 4},        {kHeads, kHnd, 4},        {kHeads, kNhd, 3},
    {kHeads, kHnd, 3},        {kHeads, kNhd, 64},       {KvLayout::Kind::kLatent, kNhd, 4},
    {kHeads, kNhd, 4, false}, {kHeads, kHnd, 4, false}, {KvLayout::Kind::kLatent, kNhd, 4, false}};

}  // namespace

TEST_P(BackendConformanceTest, PagesAreGatheredIntoPartsOfBlocks) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(shape.page_tokens);
    EnginePages pages(shape.kind, shape.order, shape.page_tokens, shape.gaps);
    const std::string before = pages.memory;
    std::vector<Extent> extents;
    std::vector<std::string> fresh;
    std::vector<PagedWriteOp> ops;
    uint64_t sums[2 * kLayers] = {};
    // Behind 32 bytes that stay as they are.
    for (const TokenRange& block : kBlocks) {
      extents.push_back(Allocate(32 + kLayers * pages.PartBytes(block.count)));
      fresh.push_back(std::string(extents.back().size, 'x'));
      ASSERT_TRUE(Write(extents.back(), fresh.back()).ok());
    }
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (size_t i = 0; i < 2; ++i) {
        ops.push_back({extents[i], 32 + layer * pages.PartBytes(kBlocks[i].count), layer,
                       kBlocks[i], layer == 1 ? nullptr : &sums[ops.size()]});
      }
    }
    const Transfer written = WritePages(backend(), pages.kv, pages.table, ops, Stream::None());
    EXPECT_EQ(written.size(), ops.size());
    for (uint32_t layer = 0; layer < kLayers; ++layer) EXPECT_TRUE(written.WaitPart(layer).ok());
    ASSERT_TRUE(written.Wait().ok()) << written.Wait();
    EXPECT_EQ(pages.memory, before);
    for (size_t op = 0; op < ops.size(); ++op) {
      const std::string part = pages.Part(ops[op].part, ops[op].tokens);
      fresh[op % 2].replace(ops[op].offset, part.size(), part);
      EXPECT_EQ(sums[op], ops[op].part == 1 ? 0 : SumOf(part)) << "op " << op;
    }
    for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(Contents(extents[i]) == fresh[i]) << "block " << i;
    for (const Extent& extent : extents) Free(extent);
  }
}

TEST_P(BackendConformanceTest, PartsOfBlocksAreScatteredIntoPages) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(shape.page_tokens);
    EnginePages pages(shape.kind, shape.order, shape.page_tokens, shape.gaps);
    std::string expected = pages.memory;
    std::vector<std::string> blocks;
    std::vector<PagedReadOp> ops;
    std::vector<Extent> extents;
    for (const TokenRange& block : kBlocks) {
      extents.push_back(Allocate(kLayers * pages.PartBytes(block.count)));
      blocks.push_back(std::string(extents.back().size, '\0'));
      for (size_t i = 0; i < blocks.back().size(); ++i) {
        blocks.back()[i] = static_cast<char>(i * 11 + i / 199 + block.count);
      }
      ASSERT_TRUE(Write(extents.back(), blocks.back()).ok());
    }
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (size_t i = 0; i < 2; ++i) {
        const size_t bytes = pages.PartBytes(kBlocks[i].count);
        const std::string part = blocks[i].substr(layer * bytes, bytes);
        const auto skip = static_cast<uint32_t>(layer + i);
        ops.push_back(
            {extents[i], layer * bytes, layer, kBlocks[i], layer == 1 ? 0 : SumOf(part), skip});
        const size_t token_bytes = pages.PartBytes(1) / pages.Tensors();
        pages.ForBytes(layer, kBlocks[i], [&](std::byte& at, size_t place) {
          if (place / token_bytes % kBlocks[i].count < skip) return;
          expected[reinterpret_cast<char*>(&at) - pages.memory.data()] = part[place];
        });
      }
    }
    const Transfer read = ReadPages(backend(), pages.kv, pages.table, ops, Stream::None());
    EXPECT_EQ(read.size(), ops.size());
    EXPECT_TRUE(read.WaitPart(0).ok());
    ASSERT_TRUE(read.Wait().ok()) << read.Wait();
    EXPECT_TRUE(pages.memory == expected);
    for (const Extent& extent : extents) Free(extent);
  }
}

TEST_P(BackendConformanceTest, PagesGetNoBytesWithoutNotice) {
  if (!traits().stores_bytes || traits().memory_space.kind == MemoryKind::kDevice) {
    GTEST_SKIP() << "no bytes to compare";
  }
  EnginePages pages(kHeads, kNhd, 4);
  const Extent extent = Allocate(pages.PartBytes(8));
  uint64_t sum = 0;
  const PagedWriteOp write = {extent, 0, 0, {0, 8}, &sum};
  ASSERT_TRUE(
      WritePages(backend(), pages.kv, pages.table, {&write, 1}, Stream::None()).Wait().ok());
  ASSERT_NE(sum, 0u);
  const PagedReadOp ops[] = {
      {extent, 0, 0, {0, 8}, sum}, {extent, 0, 1, {0, 8}, sum ^ 1}, {extent, 0, 2, {0, 8}, 0}};
  const Transfer read = ReadPages(backend(), pages.kv, pages.table, ops, Stream::None());
  EXPECT_TRUE(absl::IsDataLoss(read.Wait())) << read.Wait();
  EXPECT_TRUE(read.result(0).ok());
  EXPECT_TRUE(absl::IsDataLoss(read.result(1)));
  EXPECT_TRUE(read.result(2).ok());
}

TEST_P(BackendConformanceTest, WithoutStoredBytesPagesAreWrittenAndNotRead) {
  if (traits().stores_bytes) GTEST_SKIP() << "stores bytes";
  EnginePages pages(kHeads, kNhd, 4);
  const std::string before = pages.memory;
  const Extent extent = Allocate(pages.PartBytes(8));
  const PagedWriteOp write = {extent, 0, 0, {0, 8}};
  EXPECT_TRUE(
      WritePages(backend(), pages.kv, pages.table, {&write, 1}, Stream::None()).Wait().ok());
  const PagedReadOp read = {extent, 0, 0, {0, 8}};
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ReadPages(backend(), pages.kv, pages.table, {&read, 1}, Stream::None()).Wait()));
  EXPECT_EQ(pages.memory, before);
}

TEST_P(BackendConformanceTest, PagedOpsThatCannotBeAreRefusedAlone) {
  EnginePages pages(kHeads, kNhd, 4);
  pages.table[4] = kPages;  // there is no such page
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  const size_t bytes = pages.PartBytes(8);
  const Extent extent = Allocate(2 * bytes);
  const Extent other = Allocate(bytes);
  const std::string fresh(extent.size, 'x');
  ASSERT_TRUE(Write(extent, fresh).ok());
  ASSERT_TRUE(Write(other, std::string(other.size, 'x')).ok());
  struct Case {
    size_t offset;
    uint32_t part;
    TokenRange tokens;
    uint32_t skip_tokens = 0;
  };
  const Case cases[] = {
      {0, kLayers, {0, 8}},                  // no such layer
      {extent.size - bytes + 1, 0, {0, 8}},  // over the end
      {extent.size + 1, 0, {0, 8}},
      {kMax - 7, 0, {0, 8}},
      {0, 0, {0, 0}},   // no tokens
      {0, 0, {14, 3}},  // in a page that there is not
      {0, 0, {19, 2}},  // not in the table
      {0, 0, {0xffffffff, 8}},
  };
  const Case skipping[] = {
      {0, 0, {0, 8}, 8}, {0, 0, {0, 8}, 9}, {0, 0, {0xffffffff, 8}, 1}, {0, 0, {12, 8}, 3}};
  std::vector<PagedWriteOp> writes = {{other, 0, 1, {0, 8}}};
  std::vector<PagedReadOp> reads = {{other, 0, 1, {0, 8}}};
  for (const Case& c : cases) {
    writes.push_back({extent, c.offset, c.part, c.tokens});
    reads.push_back({extent, c.offset, c.part, c.tokens});
  }
  for (const Case& c : skipping) {
    reads.push_back({extent, c.offset, c.part, c.tokens, 0, c.skip_tokens});
  }
  std::string expected = pages.memory;
  const Transfer written = WritePages(backend(), pages.kv, pages.table, writes, Stream::None());
  EXPECT_TRUE(absl::IsInvalidArgument(written.Wait())) << written.Wait();
  EXPECT_TRUE(written.result(0).ok()) << written.result(0);
  for (size_t op = 1; op < writes.size(); ++op) {
    EXPECT_TRUE(absl::IsInvalidArgument(written.result(op))) << "op " << op;
  }
  if (!traits().stores_bytes) return;
  EXPECT_TRUE(Contents(extent) == fresh) << "a refused op copied";
  pages.ForBytes(1, {0, 8}, [&](std::byte& at, size_t) {
    at = std::byte{0};  // comes back
  });
  const Transfer read = ReadPages(backend(), pages.kv, pages.table, reads, Stream::None());
  EXPECT_TRUE(absl::IsInvalidArgument(read.Wait())) << read.Wait();
  EXPECT_TRUE(read.result(0).ok()) << read.result(0);
  for (size_t op = 1; op < reads.size(); ++op) {
    EXPECT_TRUE(absl::IsInvalidArgument(read.result(op))) << "op " << op;
  }
  EXPECT_TRUE(pages.memory == expected) << "a refused op copied";
}

TEST_P(BackendConformanceTest, PagesThatAreNotValidAreRefused) {
  EnginePages pages(kHeads, kNhd, 4);
  const Extent extent = Allocate(pages.PartBytes(8));
  pages.kv.page_stride = 1;
  const PagedWriteOp writes[] = {{extent, 0, 0, {0, 4}}, {extent, 0, 1, {0, 4}}};
  const PagedReadOp reads[] = {{extent, 0, 0, {0, 4}}, {extent, 0, 1, {0, 4}}};
  const Transfer written = WritePages(backend(), pages.kv, pages.table, writes, Stream::None());
  const Transfer read = ReadPages(backend(), pages.kv, pages.table, reads, Stream::None());
  for (size_t op = 0; op < 2; ++op) {
    EXPECT_TRUE(absl::IsInvalidArgument(written.result(op))) << written.result(op);
    EXPECT_TRUE(absl::IsInvalidArgument(read.result(op))) << read.result(op);
  }
}

TEST_P(BackendConformanceTest, PagesTablesAndOpsMayGoWhenTheCallReturns) {
  EnginePages pages(kHeads, kHnd, 4);
  const Extent extent = Allocate(pages.PartBytes(8));
  const std::string expected = pages.Part(2, {1, 8});
  auto kv = std::make_unique<PagedKv>(pages.kv);
  auto table = std::make_unique<std::vector<int32_t>>(pages.table);
  auto op = std::make_unique<PagedWriteOp>(PagedWriteOp{extent, 0, 2, {1, 8}});
  const Transfer written = WritePages(backend(), *kv, *table, {op.get(), 1}, Stream::None());
  kv.reset();
  table.reset();
  op.reset();
  ASSERT_TRUE(written.Wait().ok()) << written.Wait();
  if (!traits().stores_bytes) return;
  EXPECT_TRUE(Contents(extent).substr(0, expected.size()) == expected);
}

TEST_P(BackendConformanceTest, NoPagesToCopyIsDone) {
  EnginePages pages(kHeads, kNhd, 4);
  EXPECT_TRUE(WritePages(backend(), pages.kv, pages.table, {}, Stream::None()).Wait().ok());
  EXPECT_TRUE(ReadPages(backend(), pages.kv, pages.table, {}, Stream::None()).Wait().ok());
  EXPECT_EQ(ReadPages(backend(), pages.kv, {}, {}, Stream::None()).size(), 0u);
}

TEST_P(BackendConformanceTest, TheCallingThreadsWorkHasEndedAlready) {
  const Transfer after = backend().After(Stream::None());
  EXPECT_EQ(after.size(), 1u);
  EXPECT_TRUE(after.Wait().ok()) << after.Wait();
}

}  // namespace kvcache
