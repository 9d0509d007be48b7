#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(CpuRam, BackendConformanceTest,
                         testing::Values(BackendUnderTest{"cpu_ram",
                                                          [](size_t capacity_bytes) {
                                                            return CreateCpuRamBackend(
                                                                {.capacity_bytes = capacity_bytes});
                                                          }},
                                         BackendUnderTest{
                                             "cpu_ram, faulted in", [](size_t capacity_bytes) {
                                               return CreateCpuRamBackend(
                                                   {.capacity_bytes = capacity_bytes,
                                                    .fault_in = CpuRamOptions::FaultIn::kAtCreate});
                                             }}));

}  // namespace kvcache
