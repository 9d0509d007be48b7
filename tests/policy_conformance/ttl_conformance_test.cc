#include <memory>

#include "gtest/gtest.h"
#include "kvcache/eviction/ttl/ttl.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"
#include "kvcache/tests/policy_conformance/scan_model.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Ttl, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"ttl", CreateTtlPolicy}));

TEST(TtlConformanceTest, AgreesWithTheModel) {
  ExpectSameOrder(CreateTtlPolicy, [] {
    return std::make_unique<ScanModel>(
        [](const auto& a, const auto& b) { return a.deadline < b.deadline; });
  });
}

}  // namespace kvcache
