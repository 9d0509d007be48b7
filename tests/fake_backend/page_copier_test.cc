// Pages of a backend that has no page copier and whose bytes this processor cannot reach.
#include "kvcache/core/pages/page_copier.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/fake_backend/fake_backend.h"
#include "kvcache/tests/fake_backend/forwarding_backend.h"

namespace kvcache {
namespace {

constexpr uint32_t kLayers = 3;
constexpr uint32_t kTokens = 4;  // of a page, and of a block

class PageCopierTest : public testing::Test {
 protected:
  void Use(size_t capacity_bytes, uint32_t layers, uint32_t head_dim) {
    auto fake = FakeBackend::Create(capacity_bytes);
    fake_ = fake.get();
    backend_ = std::make_unique<ForwardingBackend>(std::move(fake));
    kv_ = {};
    kv_.layout = {.dtype = DType::kBF16, .layers = layers, .kv_heads = 1, .head_dim = head_dim};
    kv_.page_tokens = kTokens;
    kv_.pages = 1;
    kv_.page_stride = kv_.PageBytes();
    memory_.assign(2 * layers * kv_.page_stride, std::byte{1});
    for (uint32_t layer = 0; layer < layers; ++layer) {
      std::byte* const k = memory_.data() + 2 * layer * kv_.page_stride;
      kv_.layers.push_back({k, k + kv_.page_stride});
    }
    part_bytes_ = *kv_.layout.PartBytes(kTokens);
  }
  // What the page of a layer is full of; 0: of different bytes.
  int PageOf(uint32_t layer) const {
    const auto* const first = memory_.data() + layer * part_bytes_;
    const bool all =
        std::all_of(first, first + part_bytes_, [&](std::byte b) { return b == *first; });
    return all ? std::to_integer<int>(*first) : 0;
  }
  void FillPageOf(uint32_t layer, int value) {
    std::fill_n(memory_.data() + layer * part_bytes_, part_bytes_, static_cast<std::byte>(value));
  }

  FakeBackend* fake_ = nullptr;
  std::unique_ptr<StorageBackend> backend_;
  PagedKv kv_;
  std::vector<std::byte> memory_;
  const std::vector<int32_t> table_ = {0};
  size_t part_bytes_ = 0;
};

TEST_F(PageCopierTest, CallsDoNotWaitAndPagesAreFilledAsTheirReadsEnd) {
  Use(4096, kLayers, 16);
  const Extent extent = *backend_->Allocate(kLayers * part_bytes_);
  std::vector<PagedWriteOp> writes;
  std::vector<uint64_t> sums(kLayers);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    FillPageOf(layer, 10 + layer);
    writes.push_back({extent, layer * part_bytes_, layer, {0, kTokens}, &sums[layer]});
  }
  const Transfer written = WritePages(*backend_, kv_, table_, writes, Stream::None());
  EXPECT_FALSE(written.Done());
  EXPECT_EQ(fake_->pending(), kLayers);
  fake_->CompleteAll();
  ASSERT_TRUE(written.Done() && written.Wait().ok());

  for (uint32_t layer = 0; layer < kLayers; ++layer) FillPageOf(layer, 1);
  std::vector<PagedReadOp> reads;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    reads.push_back({extent, layer * part_bytes_, layer, {0, kTokens}, sums[layer]});
  }
  const Transfer read = ReadPages(*backend_, kv_, table_, reads, Stream::None());
  EXPECT_FALSE(read.PartDone(0));
  fake_->Complete(2);
  EXPECT_TRUE(read.PartDone(2) && read.WaitPart(2).ok());
  EXPECT_EQ(PageOf(2), 12);
  EXPECT_EQ(PageOf(0), 1);
  fake_->Fail(0, absl::InternalError("bad sector"));
  EXPECT_EQ(read.result(0), absl::InternalError("bad sector"));
  EXPECT_EQ(PageOf(0), 1) << "a failed read filled its page";
  fake_->FlipBit(extent.offset + part_bytes_, 0);
  fake_->CompleteAll();
  EXPECT_TRUE(absl::IsDataLoss(read.result(1)));
  EXPECT_EQ(PageOf(1), 1);
}

TEST_F(PageCopierTest, CancellingReachesTheBackend) {
  Use(4096, kLayers, 16);
  const Extent extent = *backend_->Allocate(part_bytes_);
  const PagedReadOp op = {extent, 0, 0, {0, kTokens}};
  const Transfer read = ReadPages(*backend_, kv_, table_, {&op, 1}, Stream::None());
  read.Cancel();
  EXPECT_TRUE(read.Done() && absl::IsCancelled(read.Wait()));
  EXPECT_EQ(PageOf(0), 1);
}

TEST_F(PageCopierTest, ACallThatNeedsMoreBuffersWaitsForItsFirstCopies) {
  Use(size_t{17} << 20, 1, (1u << 20) + 1);
  ASSERT_GT(part_bytes_, size_t{16} << 20);
  const Extent extent = *backend_->Allocate(part_bytes_);
  const std::vector<PagedReadOp> ops(6, {extent, 0, 0, {0, kTokens}});
  Transfer read;
  std::thread caller([&] { read = ReadPages(*backend_, kv_, table_, ops, Stream::None()); });
  fake_->WaitForPending(4);
  EXPECT_EQ(fake_->pending(), 4u);
  fake_->Complete(0);
  fake_->WaitForPending(4);
  fake_->Complete(0);
  caller.join();
  EXPECT_EQ(fake_->pending(), 4u);
  fake_->CompleteAll();
  EXPECT_TRUE(read.Wait().ok());
}

}  // namespace
}  // namespace kvcache
