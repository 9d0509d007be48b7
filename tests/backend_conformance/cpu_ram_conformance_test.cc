#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"

namespace kvcache {
namespace {

using Sharing = CpuRamOptions::Sharing;

BackendUnderTest FaultedIn(const char* name, CpuRamOptions::FaultIn fault_in,
                           Sharing sharing = Sharing::kPrivate) {
  return {name, [=](size_t capacity_bytes) {
            return CreateCpuRamBackend(
                {.capacity_bytes = capacity_bytes, .fault_in = fault_in, .sharing = sharing});
          }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(
    CpuRam, BackendConformanceTest,
    testing::Values(FaultedIn("cpu_ram, on use", CpuRamOptions::FaultIn::kOnUse),
                    FaultedIn("cpu_ram, at create", CpuRamOptions::FaultIn::kAtCreate),
                    FaultedIn("cpu_ram, background", CpuRamOptions::FaultIn::kBackground),
                    FaultedIn("cpu_ram, exported", CpuRamOptions::FaultIn::kBackground,
                              Sharing::kExported)));

}  // namespace kvcache
