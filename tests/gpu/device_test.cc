// The backends and kernels on a GPU of this machine. Without one each test is skipped, or fails
// with KVCACHE_REQUIRE_GPU=1.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/gpu/require_gpu.h"

namespace kvcache {
namespace {

constexpr MemorySpace kDevice = {MemoryKind::kDevice, 0};
constexpr size_t kMiB = size_t{1} << 20;

absl::StatusOr<std::unique_ptr<StorageBackend>> MakePinned(size_t capacity_bytes) {
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok()) return runtime.status();
  return CreatePinnedHostBackend({.capacity_bytes = capacity_bytes, .chunk_bytes = 2 * kMiB},
                                 *std::move(runtime));
}

absl::StatusOr<std::unique_ptr<StorageBackend>> MakeOnDevice(size_t capacity_bytes) {
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok()) return runtime.status();
  return CreateCudaDeviceBackend({.capacity_bytes = capacity_bytes}, *std::move(runtime));
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Gpu, BackendConformanceTest,
                         testing::Values(BackendUnderTest{"pinned_host", MakePinned},
                                         BackendUnderTest{"cuda_device", MakeOnDevice}));

namespace {

#define ASSERT_CUDA(call) ASSERT_EQ((call), cudaSuccess)

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
    if (!runtime.ok()) {
      ASSERT_FALSE(GpuIsRequired()) << runtime.status();
      GTEST_SKIP() << runtime.status();
    }
    runtime_ = *std::move(runtime);
    ASSERT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (runtime_ == nullptr) return;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (void* memory : memory_) EXPECT_EQ(cudaFree(memory), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error was left behind";
  }

  std::byte* DeviceMemory(size_t bytes) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
    memory_.push_back(memory);
    return static_cast<std::byte*>(memory);
  }
  Stream stream() const { return {kDevice, stream_}; }

  std::shared_ptr<GpuRuntime> runtime_;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

TEST_F(DeviceTest, KernelCopiesPiecesOfAnySizeAndAlignment) {
  Random random(1);
  constexpr size_t kBytes = 4 * kMiB;
  std::byte* const from = DeviceMemory(kBytes);
  std::byte* const to = DeviceMemory(kBytes);
  std::vector<std::byte> content(kBytes);
  for (std::byte& byte : content) byte = static_cast<std::byte>(random.Below(256));
  ASSERT_CUDA(cudaMemcpy(from, content.data(), kBytes, cudaMemcpyHostToDevice));
  ASSERT_CUDA(cudaMemset(to, 0xEE, kBytes));
  std::vector<std::byte> expected(kBytes, std::byte{0xEE});
  std::vector<CopyPiece> pieces;
  for (size_t at = 0; at + 40000 < kBytes;) {
    const size_t bytes = 1 + random.Below(random.Chance(10) ? 30000 : 700);
    const size_t source = random.Below(kBytes - 40000);
    pieces.push_back({to + at, from + source, bytes});
    std::memcpy(&expected[at], &content[source], bytes);
    at += bytes + random.Below(20);
  }
  void* pinned = nullptr;
  ASSERT_CUDA(cudaMallocHost(&pinned, pieces.size() * sizeof(CopyPiece)));
  auto* const list = static_cast<CopyPiece*>(pinned);
  std::copy(pieces.begin(), pieces.end(), list);
  ASSERT_TRUE(runtime_->CopyByKernel(0, {list, pieces.size()}, stream_).ok());
  ASSERT_CUDA(cudaStreamSynchronize(stream_));
  std::vector<std::byte> seen(kBytes);
  ASSERT_CUDA(cudaMemcpy(seen.data(), to, kBytes, cudaMemcpyDeviceToHost));
  EXPECT_TRUE(seen == expected);
  ASSERT_CUDA(cudaFreeHost(list));
}

TEST_F(DeviceTest, ThreadsKeepTheContextThatTheyHadOrNone) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  ASSERT_CUDA(cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &found, 12000, cudaEnableDefault,
                                               &result));
  const auto get_current = reinterpret_cast<decltype(&cuCtxGetCurrent)>(found);
  const auto current = [&] {
    CUcontext context = nullptr;
    EXPECT_EQ(get_current(&context), CUDA_SUCCESS);
    return context;
  };
  const auto use = [&] {
    const absl::StatusOr<GpuStream> made = runtime_->CreateStream(0);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_TRUE(runtime_->DestroyStream(0, *made).ok());
  };
  const CUcontext of_device = current();
  ASSERT_NE(of_device, nullptr);
  use();
  EXPECT_EQ(current(), of_device);
  std::thread([&] {
    EXPECT_EQ(current(), nullptr);
    EXPECT_TRUE(CreateCudaRuntime().ok());
    use();
    EXPECT_TRUE(absl::IsUnavailable(runtime_->CreateStream(99).status()));
    EXPECT_EQ(current(), nullptr);
    runtime_->UseThreadFor(0);
    EXPECT_EQ(current(), of_device) << "the one that the runtime works in";
    use();
    EXPECT_EQ(current(), of_device);
  }).join();
}

TEST_F(DeviceTest, AGraphThatIsBeingRecordedIsNotSpoiled) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakePinned(4 * kMiB);
  ASSERT_TRUE(backend.ok()) << backend.status();
  std::byte* const memory = DeviceMemory(kMiB);
  ASSERT_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  ASSERT_CUDA(cudaMemsetAsync(memory, 1, kMiB, stream_));
  EXPECT_TRUE(absl::IsInvalidArgument((*backend)->After(stream()).Wait()));
  const Extent extent = *(*backend)->Allocate(kMiB);
  const ConstBytes source(memory, kMiB);
  const WriteOp write = {extent, 0, {&source, 1}, kDevice, 0, {}};
  const Transfer written = (*backend)->Write({&write, 1}, Stream::None());
  EXPECT_TRUE(absl::IsInvalidArgument(written.WaitOn(stream())));
  EXPECT_TRUE(written.Wait().ok()) << written.Wait();
  std::thread([&] {
    const absl::StatusOr<GpuStream> made = runtime_->CreateStream(0);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_TRUE(runtime_->DestroyStream(0, *made).ok());
  }).join();
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaStreamEndCapture(stream_, &graph));
  ASSERT_NE(graph, nullptr);
  ASSERT_CUDA(cudaGraphDestroy(graph));
  (*backend)->Free(extent);
}

TEST_F(DeviceTest, BatchesCopyBothWays) {
  for (size_t piece_bytes : {4096, 65536, 1000000}) {
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakePinned(32 * kMiB);
    ASSERT_TRUE(backend.ok()) << backend.status();
    const size_t count = 24 * kMiB / piece_bytes;
    const Extent extent = *(*backend)->Allocate(count * piece_bytes);
    std::byte* const at = (*backend)->Address(extent);
    for (size_t i = 0; i < extent.size; ++i) at[i] = static_cast<std::byte>(i * 31 + i / 4093);
    const std::vector<std::byte> content(at, at + extent.size);
    // In reverse, so that nothing can be joined.
    std::byte* const memory = DeviceMemory(count * piece_bytes);
    std::vector<MutableBytes> pieces;
    for (size_t i = count; i > 0; --i) {
      pieces.push_back({memory + (i - 1) * piece_bytes, piece_bytes});
    }
    const ReadOp read = {extent, 0, pieces, kDevice, 0, {}};
    ASSERT_TRUE((*backend)->Read({&read, 1}, stream()).Wait().ok());
    std::memset(at, 0, extent.size);
    const std::vector<ConstBytes> sources(pieces.begin(), pieces.end());
    const WriteOp write = {extent, 0, sources, kDevice, 0, {}};
    const absl::Status written = (*backend)->Write({&write, 1}, stream()).Wait();
    ASSERT_TRUE(written.ok()) << written;
    EXPECT_EQ(std::memcmp(at, content.data(), count * piece_bytes), 0) << piece_bytes;
    (*backend)->Free(extent);
  }
}

TEST_F(DeviceTest, ACacheOnTheDeviceServesWhatWasPutFromTheHost) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakeOnDevice(8 * kMiB);
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto cache = Cache::Create({}, *std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache.ok()) << cache.status();
  constexpr size_t kBytes = kMiB + 3 * 4;
  constexpr BlockSize kSize = {kBytes, 4};
  std::vector<std::byte> block(kBytes);
  for (uint32_t i = 0; i < 20; ++i) {
    FillBlock(NumberedKey(i), 4, absl::MakeSpan(block));
    const ConstBytes source = block;
    ASSERT_TRUE((*cache)->Put(NumberedKey(i), kSize, {source}).ok());
  }
  uint32_t hits = 0;
  for (uint32_t i = 0; i < 20; ++i) {
    absl::StatusOr<ReadLease> lease = (*cache)->Get(NamespaceId::kDefault, NumberedKey(i));
    if (!lease.ok()) continue;
    ++hits;
    std::fill(block.begin(), block.end(), std::byte{0});
    const MutableBytes destination = absl::MakeSpan(block);
    ASSERT_TRUE(lease->Read({destination}).Wait().ok());
    EXPECT_TRUE(IsBlock(NumberedKey(i), 4, block));
  }
  EXPECT_EQ(hits, 7u);
}

struct Paging {
  DType dtype;
  uint32_t heads, head_dim, page_tokens;
  PagedKv::Order order;
  bool latent = false;
};

class DevicePagesTest : public DeviceTest, public testing::WithParamInterface<Paging> {
 protected:
  static constexpr uint32_t kLayers = 3;
  static constexpr uint32_t kBlockTokens = 37;
  static constexpr uint32_t kTokens = 300;

  PagedKv Describe(const Paging& paging) const {
    PagedKv kv;
    kv.layout = {.dtype = paging.dtype,
                 .kind = paging.latent ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
                 .layers = kLayers,
                 .kv_heads = paging.heads,
                 .head_dim = paging.head_dim};
    kv.order = paging.order;
    kv.page_tokens = paging.page_tokens;
    kv.pages = (kTokens + paging.page_tokens - 1) / paging.page_tokens + 2;
    kv.page_stride = kv.PageBytes() * (paging.latent ? 1 : 2);
    return kv;
  }
  // The same pages in host memory and on the device.
  void Place(PagedKv* kv, std::byte* memory, MemorySpace space) const {
    const size_t layer_bytes = kv->pages * kv->page_stride;
    kv->layers.clear();
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory + layer * layer_bytes;
      kv->layers.push_back(
          {k, kv->layout.kind == KvLayout::Kind::kLatent ? nullptr : k + kv->PageBytes()});
    }
    kv->space = space;
  }
  static size_t PoolBytes(const PagedKv& kv) { return kLayers * kv.pages * kv.page_stride; }

  void SaveAndLoad(StorageBackend& backend) {
    PagedKv on_host = Describe(GetParam());
    std::vector<std::byte> pool(PoolBytes(on_host));
    Random random(5);
    for (std::byte& byte : pool) byte = static_cast<std::byte>(random.Below(256));
    Place(&on_host, pool.data(), {});
    PagedKv on_device = on_host;
    Place(&on_device, DeviceMemory(pool.size()), kDevice);
    ASSERT_TRUE(on_device.Validate().ok()) << on_device.Validate();
    std::vector<int32_t> table(on_host.pages);
    std::iota(table.begin(), table.end(), 0);
    for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[random.Below(i)]);
    // Behind this copy, on the same stream, without a wait of the host.
    ASSERT_CUDA(cudaMemcpyAsync(on_device.layers[0].k, pool.data(), pool.size(),
                                cudaMemcpyHostToDevice, stream_));
    std::vector<PagedWriteOp> writes;
    std::vector<Extent> extents;
    std::vector<std::vector<std::byte>> expected;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      uint32_t block = 0;
      for (uint32_t first = 0; first < kTokens; first += kBlockTokens, ++block) {
        const TokenRange tokens = {first, std::min(kBlockTokens, kTokens - first)};
        const size_t bytes = *on_host.layout.PartBytes(tokens.count);
        if (layer == 0) extents.push_back(*backend.Allocate(kLayers * bytes));
        expected.emplace_back(bytes);
        GatherPart(on_host, table, layer, tokens, expected.back().data());
        writes.push_back({extents[block], layer * bytes, layer, tokens, nullptr});
      }
    }
    const Transfer saved = WritePages(backend, on_device, table, writes, stream());
    ASSERT_TRUE(saved.WaitOn(stream()).ok());
    ASSERT_CUDA(cudaMemsetAsync(on_device.layers[0].k, 0xEE, pool.size(), stream_));
    ASSERT_TRUE(saved.Wait().ok()) << saved.Wait();
    for (size_t i = 0; i < writes.size(); ++i) {
      std::vector<std::byte> part(expected[i].size());
      const MutableBytes destination = absl::MakeSpan(part);
      const ReadOp read = {writes[i].destination, writes[i].offset, {&destination, 1}, {}, 0, {}};
      ASSERT_TRUE(backend.Read({&read, 1}, Stream::None()).Wait().ok());
      ASSERT_TRUE(part == expected[i]) << "saved part " << i;
    }

    // The first tokens of some parts stay out.
    std::vector<PagedReadOp> reads;
    for (const PagedWriteOp& op : writes) {
      reads.push_back({op.destination, op.offset, op.part, op.tokens, 0,
                       static_cast<uint32_t>(random.Below(3) * op.tokens.count / 3)});
    }
    std::reverse(table.begin(), table.end());
    const Transfer loaded = ReadPages(backend, on_device, table, reads, stream());
    ASSERT_TRUE(loaded.WaitOn(stream()).ok());
    std::vector<std::byte> seen(pool.size());
    ASSERT_CUDA(cudaMemcpyAsync(seen.data(), on_device.layers[0].k, seen.size(),
                                cudaMemcpyDeviceToHost, stream_));
    ASSERT_CUDA(cudaStreamSynchronize(stream_));
    ASSERT_TRUE(loaded.Wait().ok()) << loaded.Wait();
    std::vector<std::byte> wanted(pool.size(), std::byte{0xEE});
    PagedKv reference = on_host;
    Place(&reference, wanted.data(), {});
    for (size_t i = 0; i < writes.size(); ++i) {
      ScatterPart(reference, table, writes[i].part, writes[i].tokens, expected[i].data(), nullptr,
                  reads[i].skip_tokens);
    }
    EXPECT_TRUE(seen == wanted) << "loaded";
    for (const Extent& extent : extents) backend.Free(extent);
  }
};

TEST_P(DevicePagesTest, ThroughPinnedMemory) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakePinned(16 * kMiB);
  ASSERT_TRUE(backend.ok()) << backend.status();
  SaveAndLoad(**backend);
}

TEST_P(DevicePagesTest, OnTheDevice) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakeOnDevice(16 * kMiB);
  ASSERT_TRUE(backend.ok()) << backend.status();
  SaveAndLoad(**backend);
}

constexpr auto kNhd = PagedKv::Order::kTokenHeadDim;
constexpr auto kHnd = PagedKv::Order::kHeadTokenDim;

INSTANTIATE_TEST_SUITE_P(
    Shapes, DevicePagesTest,
    testing::Values(Paging{DType::kBF16, 8, 128, 16, kNhd}, Paging{DType::kBF16, 8, 128, 16, kHnd},
                    Paging{DType::kBF16, 8, 128, 1, kNhd}, Paging{DType::kBF16, 4, 80, 256, kHnd},
                    Paging{DType::kFp8E4M3, 5, 40, 3, kHnd},
                    Paging{DType::kFp8E4M3, 3, 127, 7, kNhd}, Paging{DType::kF16, 2, 3, 32, kHnd},
                    Paging{DType::kF32, 2, 1, 64, kHnd},
                    Paging{DType::kBF16, 1, 576, 64, kNhd, true}));

}  // namespace
}  // namespace kvcache
