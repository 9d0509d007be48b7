#include <memory>

#include "gtest/gtest.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(
    PinnedHost, BackendConformanceTest,
    testing::Values(BackendUnderTest{"pinned",
                                     [](size_t capacity_bytes) {
                                       return CreatePinnedHostBackend(
                                           {.capacity_bytes = capacity_bytes},
                                           std::make_shared<FakeGpuRuntime>(
                                               FakeGpuRuntime::Options{}));
                                     }},
                    BackendUnderTest{"pageable", [](size_t capacity_bytes) {
                                       return CreatePinnedHostBackend(
                                           {.capacity_bytes = capacity_bytes,
                                            .if_not_pinnable =
                                                PinnedHostOptions::IfNotPinnable::kUsePageable},
                                           nullptr);
                                     }}));

}  // namespace kvcache
