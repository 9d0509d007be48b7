#include "gtest/gtest.h"
#include "kvcache/eviction/gdsf/gdsf.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Gdsf, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"gdsf", CreateGdsfPolicy}));

}  // namespace kvcache
