#include "gtest/gtest.h"
#include "kvcache/eviction/arc/arc.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Arc, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"arc", CreateArcPolicy}));

}  // namespace kvcache
