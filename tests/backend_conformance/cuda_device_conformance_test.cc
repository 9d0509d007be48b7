#include <cstddef>
#include <memory>

#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

BackendUnderTest OnAFakeGpu(const char* name, const DeviceLinkOptions& link) {
  const auto gpu = std::make_shared<std::shared_ptr<FakeGpuRuntime>>();
  return {name,
          [gpu, link](size_t capacity_bytes) {
            *gpu = std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{});
            return CreateCudaDeviceBackend({.capacity_bytes = capacity_bytes, .link = link}, *gpu);
          },
          [gpu] { (*gpu)->LoseDevice(0); }};
}

}  // namespace

// With little staging, pieces go over the ends of chunks.
INSTANTIATE_TEST_SUITE_P(CudaDevice, BackendConformanceTest,
                         testing::Values(OnAFakeGpu("on_a_fake_gpu", {}),
                                         OnAFakeGpu("with_little_staging",
                                                    {.staging_bytes = size_t{64} << 10})));

}  // namespace kvcache
