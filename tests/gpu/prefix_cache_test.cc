// Stored on the CPU, moved to the GPU on access: whole prompts in pinned memory, loaded by one call
// onto a device and a stream.
#include "kvcache/core/prompts/prefix_cache.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

constexpr uint32_t kLayers = 4;
constexpr uint32_t kTokens = 10;
constexpr size_t kTensorBytes = kTokens * 2 * 8 * 4;
constexpr MemorySpace kDevice = {MemoryKind::kDevice, 0};

class PrefixOnDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    for (uint32_t i = 0; i < 2 * kLayers; ++i) {
      tensors_.emplace_back(kTensorBytes);
      for (size_t at = 0; at < kTensorBytes; ++at) {
        tensors_.back()[at] = static_cast<std::byte>(i * 37 + at);
      }
    }
    memory_ = *gpu_->AllocateDevice(0, 2 * kLayers * kTensorBytes);
    stream_ = gpu_->EngineStream();
  }
  void TearDown() override {
    gpu_->RunAll();
    cache_.reset();
    EXPECT_TRUE(gpu_->FreeDevice(0, memory_).ok());
    EXPECT_TRUE(gpu_->violations().empty()) << gpu_->violations()[0];
  }

  void Use(absl::StatusOr<std::unique_ptr<StorageBackend>> backend) {
    ASSERT_TRUE(backend.ok()) << backend.status();
    auto cache = PrefixCache::Create({.layers = kLayers}, *std::move(backend), CreateLruPolicy());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    std::vector<LayerKv> layers;
    for (uint32_t i = 0; i < kLayers; ++i) layers.push_back(Layer(i));
    ASSERT_TRUE(cache_->CacheAllLayers("prompt", layers).ok());
  }
  LayerKv Layer(uint32_t layer) const {
    const auto tensor = [&](uint32_t i) {
      return KvTensor{tensors_[i].data(), DType::kF32, kTokens, 2, 8};
    };
    return {tensor(2 * layer), tensor(2 * layer + 1)};
  }
  std::vector<LayerDestination> Destinations() const {
    std::vector<LayerDestination> destinations;
    for (uint32_t i = 0; i < kLayers; ++i) {
      std::byte* const k = memory_ + 2 * i * kTensorBytes;
      destinations.push_back({{k, kTensorBytes}, {k + kTensorBytes, kTensorBytes}});
    }
    return destinations;
  }
  bool OnDevice(uint32_t layer) const {
    const std::byte* const k = memory_ + 2 * layer * kTensorBytes;
    return std::memcmp(k, tensors_[2 * layer].data(), kTensorBytes) == 0 &&
           std::memcmp(k + kTensorBytes, tensors_[2 * layer + 1].data(), kTensorBytes) == 0;
  }

  const std::shared_ptr<FakeGpuRuntime> gpu_ =
      std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{});
  std::vector<std::vector<std::byte>> tensors_;
  std::byte* memory_ = nullptr;
  Stream stream_;
  std::unique_ptr<PrefixCache> cache_;
};

TEST_F(PrefixOnDeviceTest, AllLayersAreLoadedInTheOrderOfAStream) {
  Use(CreatePinnedHostBackend({.capacity_bytes = size_t{1} << 20}, gpu_));
  const absl::StatusOr<Transfer> loaded =
      cache_->LoadAllLayers("prompt", Destinations(), kDevice, stream_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  std::atomic<int> right = 0;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(loaded->WaitPartOn(stream_, layer).ok());
    gpu_->Enqueue(stream_, [&, layer] { right += OnDevice(layer); });
  }
  gpu_->RunAll();
  EXPECT_EQ(right, static_cast<int>(kLayers));
  EXPECT_TRUE(loaded->Wait().ok());
}

TEST_F(PrefixOnDeviceTest, OneLayerIsLoaded) {
  Use(CreatePinnedHostBackend({.capacity_bytes = size_t{1} << 20}, gpu_));
  const absl::StatusOr<Transfer> loaded =
      cache_->LoadKv("prompt", 2, Destinations()[2], kDevice, stream_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(loaded->Wait().ok());
  EXPECT_TRUE(OnDevice(2));
}

TEST_F(PrefixOnDeviceTest, PromptsLiveOnTheDeviceAndLayersAreReplacedThere) {
  Use(CreateCudaDeviceBackend({.capacity_bytes = size_t{1} << 20}, gpu_));
  tensors_[2][0] ^= std::byte{1};
  ASSERT_TRUE(cache_->CacheKv("prompt", 1, Layer(1).k, Layer(1).v).ok());
  const absl::StatusOr<Transfer> loaded =
      cache_->LoadAllLayers("prompt", Destinations(), kDevice, stream_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE(loaded->Wait().ok()) << loaded->Wait();
  for (uint32_t layer = 0; layer < kLayers; ++layer) EXPECT_TRUE(OnDevice(layer)) << layer;
}

TEST_F(PrefixOnDeviceTest, OutOfPlainMemoryIsRefusedByName) {
  Use(CreateCpuRamBackend({.capacity_bytes = size_t{1} << 20}));
  const absl::StatusOr<Transfer> loaded =
      cache_->LoadAllLayers("prompt", Destinations(), kDevice, stream_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(absl::IsInvalidArgument(loaded->Wait())) << loaded->Wait();
}

}  // namespace
}  // namespace kvcache
