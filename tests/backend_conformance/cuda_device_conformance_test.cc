#include <memory>

#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(CudaDevice, BackendConformanceTest,
                         testing::Values(BackendUnderTest{"on_a_fake_gpu",
                                                          [](size_t capacity_bytes) {
                                                            return CreateCudaDeviceBackend(
                                                                {.capacity_bytes = capacity_bytes},
                                                                std::make_shared<FakeGpuRuntime>(
                                                                    FakeGpuRuntime::Options{}));
                                                          }},
                                         // Pieces go over the ends of chunks.
                                         BackendUnderTest{
                                             "with_little_staging", [](size_t capacity_bytes) {
                                               return CreateCudaDeviceBackend(
                                                   {.capacity_bytes = capacity_bytes,
                                                    .link = {.staging_bytes = size_t{64} << 10}},
                                                   std::make_shared<FakeGpuRuntime>(
                                                       FakeGpuRuntime::Options{}));
                                             }}));

}  // namespace kvcache
