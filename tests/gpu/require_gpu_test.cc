#include "kvcache/tests/gpu/require_gpu.h"

#include "gtest/gtest.h"

namespace kvcache {
namespace {

TEST(RequireGpuTest, TheTestsForAGpuAreBuilt) {
  EXPECT_TRUE(KVCACHE_HAVE_CUDA || !GpuIsRequired())
      << "KVCACHE_REQUIRE_GPU=1, but no CUDA Toolkit was found to build //tests/gpu:device_test";
}

}  // namespace
}  // namespace kvcache
