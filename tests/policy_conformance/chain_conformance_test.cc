#include "gtest/gtest.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Chain, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"chain", CreateChainPolicy}));

}  // namespace kvcache
