#include "gtest/gtest.h"
#include "kvcache/eviction/fifo/fifo.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Fifo, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"fifo", CreateFifoPolicy}));

}  // namespace kvcache
