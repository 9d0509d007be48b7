#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"

namespace kvcache {
namespace {

BackendUnderTest FaultedIn(const char* name, CpuRamOptions::FaultIn fault_in) {
  return {name, [fault_in](size_t capacity_bytes) {
            return CreateCpuRamBackend({.capacity_bytes = capacity_bytes, .fault_in = fault_in});
          }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(
    CpuRam, BackendConformanceTest,
    testing::Values(FaultedIn("cpu_ram, on use", CpuRamOptions::FaultIn::kOnUse),
                    FaultedIn("cpu_ram, at create", CpuRamOptions::FaultIn::kAtCreate),
                    FaultedIn("cpu_ram, background", CpuRamOptions::FaultIn::kBackground)));

}  // namespace kvcache
