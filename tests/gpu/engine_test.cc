// Caches in pinned host memory and in device memory, used by an engine. KVCACHE_SEED=n runs one
// scenario alone.
#include <cstdint>

#include "gtest/gtest.h"
#include "kvcache/tests/gpu/engine_scenario.h"
#include "kvcache/tests/gpu/seeds.h"

namespace kvcache {
namespace {

using Where = EngineScenario::Where;
using Faults = EngineScenario::Faults;

void RunScenarios(Where where, Faults faults) {
  EngineScenario::Counts counts;
  const uint64_t seeds = ForEachSeed(
      10000, [&](uint64_t seed) { EngineScenario(where, faults, seed, &counts).Run(); });
  if (seeds == 0) return;
  EXPECT_GT(counts.right_parts, seeds / 2);
  EXPECT_GT(counts.refused_over_an_end, 0u);
  EXPECT_EQ(counts.failed_ops > 0, faults != Faults::kNone);
}

TEST(EngineTest, PinnedHost) { RunScenarios(Where::kPinnedHost, Faults::kNone); }
TEST(EngineTest, Device) { RunScenarios(Where::kDevice, Faults::kNone); }
TEST(EngineTest, PinnedHostWithRefusedCalls) {
  RunScenarios(Where::kPinnedHost, Faults::kRefusedCalls);
}
TEST(EngineTest, DeviceWithRefusedCalls) { RunScenarios(Where::kDevice, Faults::kRefusedCalls); }
TEST(EngineTest, PinnedHostWhoseDeviceIsLost) {
  RunScenarios(Where::kPinnedHost, Faults::kLostDevice);
}
TEST(EngineTest, DeviceThatIsLost) { RunScenarios(Where::kDevice, Faults::kLostDevice); }

}  // namespace
}  // namespace kvcache
