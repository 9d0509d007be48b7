// Pages on a device, saved to blocks in pinned host memory or on the device and loaded into other
// pages, compared with the copies that a processor makes. KVCACHE_SEED=n runs one scenario alone.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/paged_kv.h"
#include "kvcache/core/storage_backend.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

enum class Where { kPinnedHost, kDevice };
enum class PagesAt { kDevice, kPeer, kHost };

class Scenario {
 public:
  Scenario(Where where, PagesAt pages_at, uint64_t seed)
      : random_(seed),
        pages_at_(pages_at),
        gpu_(std::make_shared<FakeGpuRuntime>(
            FakeGpuRuntime::Options{.devices = 2, .seed = static_cast<uint32_t>(seed)})) {
    DeviceLinkOptions link = {.kernel_below_bytes = 64u << random_.Below(8), .threads = 2};
    link.staging_bytes = size_t{64} << 10;
    // Now and then a part is too large for it.
    link.page_staging_bytes = size_t{64} << (10 + random_.Below(2));
    // Parts lie across the ends of what is registered together.
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
        where == Where::kDevice
            ? CreateCudaDeviceBackend({.capacity_bytes = size_t{8} << 20, .link = link}, gpu_)
            : CreatePinnedHostBackend(
                  {.capacity_bytes = size_t{8} << 20, .chunk_bytes = size_t{2} << 20, .link = link},
                  gpu_);
    EXPECT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    stream_ = pages_at == PagesAt::kHost ? Stream::None() : gpu_->EngineStream(DeviceOfPages());
  }

  ~Scenario() {
    backend_.reset();
    for (std::byte* pool : pools_) {
      if (pages_at_ == PagesAt::kHost) continue;
      EXPECT_TRUE(gpu_->FreeDevice(DeviceOfPages(), pool).ok());
    }
    EXPECT_TRUE(gpu_->violations().empty()) << absl::StrJoin(gpu_->violations(), "\n");
  }

  void Run() {
    constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kFp8E4M3};
    KvLayout layout = {
        .dtype = kTypes[random_.Below(3)],
        .kind = random_.Chance(20) ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
        .layers = 1 + random_.Below(4),
        .kv_heads = 1 + random_.Below(4),
        .head_dim = 1 + random_.Below(70)};
    if (layout.kind == KvLayout::Kind::kLatent) layout.kv_heads = 1;
    const uint32_t block_tokens = 1 + random_.Below(40);
    const uint32_t blocks = 1 + random_.Below(5);
    const uint32_t tokens = blocks * block_tokens - random_.Below(block_tokens);

    std::vector<int32_t> from_table;
    const PagedKv from = MakePages(layout, tokens, &from_table);
    Poison(from);
    // The engine's kernel makes the K/V when its stream gets there.
    std::vector<std::vector<std::byte>> computed;
    const PagedKv copy = HostCopy(from, &computed);
    Fill(copy);
    Enqueue([from, copy] {
      for (size_t layer = 0; layer < from.layers.size(); ++layer) {
        CopyPages(from, from.layers[layer].k, copy, copy.layers[layer].k);
        if (from.layers[layer].v == nullptr) continue;
        CopyPages(from, from.layers[layer].v, copy, copy.layers[layer].v);
      }
    });
    // As a processor gathers them.
    std::vector<std::vector<std::byte>> expected;
    std::vector<Extent> extents;
    std::vector<PagedWriteOp> writes;
    std::vector<uint64_t> checksums(layout.layers * blocks, 0);
    for (uint32_t layer = 0; layer < layout.layers; ++layer) {
      for (uint32_t block = 0; block < blocks; ++block) {
        const uint32_t first = block * block_tokens;
        const TokenRange range = {first, std::min(block_tokens, tokens - first)};
        const size_t bytes = *layout.PartBytes(range.count);
        expected.emplace_back(bytes);
        GatherPart(copy, from_table, layer, range, expected.back().data());
        if (layer == 0) {
          const absl::StatusOr<Extent> extent = backend_->Allocate(*layout.BlockBytes(range.count));
          ASSERT_TRUE(extent.ok()) << extent.status();
          extents.push_back(*extent);
        }
        writes.push_back(
            {extents[block], layer * bytes, layer, range, &checksums[layer * blocks + block]});
      }
    }
    const Transfer saved = backend_->WritePages(from, from_table, writes, stream_);
    ASSERT_TRUE(saved.WaitOn(stream_).ok());
    Enqueue([from] { Poison(from); });

    std::vector<int32_t> to_table;
    const PagedKv to = MakePages(layout, tokens, &to_table);
    const uint32_t tokens_before = random_.Below(tokens);  // which are in the pages already
    std::vector<PagedReadOp> reads;
    ASSERT_TRUE(saved.Wait().ok()) << saved.Wait();
    for (size_t i = 0; i < writes.size(); ++i) {
      const PagedWriteOp& op = writes[i];
      if (op.tokens.first + op.tokens.count <= tokens_before) continue;
      reads.push_back({op.destination, op.offset, op.part, op.tokens, checksums[i]});
    }
    // What the engine still does with these pages comes before the load.
    Enqueue([to] { Poison(to); });
    const Transfer loaded = backend_->ReadPages(to, to_table, reads, stream_);
    std::vector<int> right(layout.layers, 0);
    for (uint32_t layer = 0; layer < layout.layers; ++layer) {
      ASSERT_TRUE(loaded.WaitPartOn(stream_, layer).ok());
      Enqueue([&, layer] {
        for (size_t i = 0; i < writes.size(); ++i) {
          const PagedWriteOp& op = writes[i];
          if (op.part != layer || op.tokens.first + op.tokens.count <= tokens_before) continue;
          std::vector<std::byte> part(expected[i].size());
          GatherPart(to, to_table, layer, op.tokens, part.data());
          right[layer] += part == expected[i] ? 1 : -1000;
        }
      });
    }
    ASSERT_TRUE(loaded.Wait().ok()) << loaded.Wait();
    gpu_->RunAll();
    for (int parts : right) EXPECT_EQ(parts, static_cast<int>(reads.size() / layout.layers));

    // Bytes that have changed are found, where this processor sees them.
    if (backend_->traits().memory_space.kind == MemoryKind::kDevice) {
      if (pages_at_ != PagesAt::kHost) {
        EXPECT_EQ(checksums[0], 0u);
      }
    } else {
      EXPECT_NE(checksums[0], 0u);
      backend_->Address(extents.back())[0] ^= std::byte{1};
      const Transfer corrupt = backend_->ReadPages(to, to_table, reads, stream_);
      EXPECT_TRUE(absl::IsDataLoss(corrupt.Wait())) << corrupt.Wait();
    }
    for (const Extent& extent : extents) backend_->Free(extent);
  }

 private:
  int DeviceOfPages() const { return pages_at_ == PagesAt::kPeer ? 1 : 0; }

  void Enqueue(std::function<void()> work) {
    if (stream_.is_none()) {
      work();
    } else {
      gpu_->Enqueue(stream_, std::move(work));
    }
  }

  // Pages for more tokens than there are, somewhere in a pool that is larger than they are.
  PagedKv MakePages(const KvLayout& layout, uint32_t tokens, std::vector<int32_t>* table) {
    PagedKv kv;
    kv.layout = layout;
    kv.order = random_.Chance(50) ? PagedKv::Order::kTokenHeadDim : PagedKv::Order::kHeadTokenDim;
    kv.page_tokens = 1u << random_.Below(7);
    if (random_.Chance(20)) kv.page_tokens = 1 + random_.Below(256);
    const uint32_t used = (tokens + kv.page_tokens - 1) / kv.page_tokens;
    kv.pages = used + random_.Below(3);
    const size_t tensors = layout.kind == KvLayout::Kind::kLatent ? 1 : 2;
    // All layers of a page together, or each layer alone.
    const bool together = random_.Chance(50);
    const size_t page = kv.PageBytes();
    kv.page_stride = (together ? layout.layers : 1) * tensors * page;
    const size_t pool_bytes = layout.layers * tensors * page * kv.pages;
    std::byte* pool;
    if (pages_at_ == PagesAt::kHost) {
      host_pools_.emplace_back(pool_bytes);
      pool = host_pools_.back().data();
    } else {
      pool = *gpu_->AllocateDevice(DeviceOfPages(), pool_bytes);
    }
    pools_.push_back(pool);
    for (uint32_t layer = 0; layer < layout.layers; ++layer) {
      std::byte* const k = pool + layer * tensors * page * (together ? 1 : kv.pages);
      kv.layers.push_back({k, tensors == 2 ? k + page : nullptr});
    }
    kv.space = pages_at_ == PagesAt::kHost ? MemorySpace{}
                                           : MemorySpace{MemoryKind::kDevice, DeviceOfPages()};
    std::vector<int32_t> all(kv.pages);
    std::iota(all.begin(), all.end(), 0);
    for (size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random_.Below(i)]);
    table->assign(all.begin(), all.begin() + used);
    EXPECT_TRUE(kv.Validate().ok()) << kv.Validate();
    return kv;
  }

  // As many pages, dense, in host memory.
  static PagedKv HostCopy(const PagedKv& kv, std::vector<std::vector<std::byte>>* tensors) {
    PagedKv copy = kv;
    copy.space = {};
    copy.page_stride = kv.PageBytes();
    for (PagedKv::Layer& layer : copy.layers) {
      for (std::byte** tensor : {&layer.k, &layer.v}) {
        if (*tensor == nullptr) continue;
        tensors->emplace_back(kv.pages * kv.PageBytes());
        *tensor = tensors->back().data();
      }
    }
    return copy;
  }
  static void CopyPages(const PagedKv& to_kv, std::byte* to, const PagedKv& from_kv,
                        const std::byte* from) {
    for (uint32_t page = 0; page < to_kv.pages; ++page) {
      std::memcpy(to + page * to_kv.page_stride, from + page * from_kv.page_stride,
                  to_kv.PageBytes());
    }
  }

  void Fill(const PagedKv& kv) {
    ForBytes(kv, [this](std::byte& byte) { byte = static_cast<std::byte>(random_.Below(256)); });
  }
  static void Poison(const PagedKv& kv) {
    ForBytes(kv, [](std::byte& byte) { byte = std::byte{0xEE}; });
  }
  template <typename Visit>
  static void ForBytes(const PagedKv& kv, const Visit& visit) {
    for (const PagedKv::Layer& layer : kv.layers) {
      for (std::byte* tensor : {layer.k, layer.v}) {
        for (uint32_t page = 0; tensor != nullptr && page < kv.pages; ++page) {
          for (size_t i = 0; i < kv.PageBytes(); ++i) visit(tensor[page * kv.page_stride + i]);
        }
      }
    }
  }

  Random random_;
  const PagesAt pages_at_;
  const std::shared_ptr<FakeGpuRuntime> gpu_;
  std::unique_ptr<StorageBackend> backend_;
  Stream stream_;
  std::vector<std::byte*> pools_;
  std::vector<std::vector<std::byte>> host_pools_;
};

void RunScenarios(Where where, PagesAt pages_at) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  uint64_t seeds = 200;
#else
  uint64_t seeds = 2000;
#endif
  uint64_t first = 1;
  if (const std::optional<uint64_t> seed = SeedFromEnvironment()) {
    first = *seed;
    seeds = 1;
  }
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    Scenario(where, pages_at, seed).Run();
    ASSERT_FALSE(testing::Test::HasFailure()) << "KVCACHE_SEED=" << seed;
  }
}

TEST(PagesTest, PinnedHost) { RunScenarios(Where::kPinnedHost, PagesAt::kDevice); }
TEST(PagesTest, PinnedHostAndASecondDevice) { RunScenarios(Where::kPinnedHost, PagesAt::kPeer); }
TEST(PagesTest, PinnedHostAndPagesThere) { RunScenarios(Where::kPinnedHost, PagesAt::kHost); }
TEST(PagesTest, Device) { RunScenarios(Where::kDevice, PagesAt::kDevice); }
TEST(PagesTest, DeviceAndPeer) { RunScenarios(Where::kDevice, PagesAt::kPeer); }
TEST(PagesTest, DeviceAndPagesOnTheHost) { RunScenarios(Where::kDevice, PagesAt::kHost); }

}  // namespace
}  // namespace kvcache
